"""How often 95% intervals of the metrics of classes hold the truth: methods side by side.

Takes the number of draws; gives a row a figure, setting and method: how often the interval holds
the truth, how wide it is, and how often the truth lies below and above it. The method that the
package uses is called `medseq_tf`, and its intervals are those of `metrics.evaluate_classes`. The
scores of a class are normal, `shift` apart from the others'; grades are cut from one score. Models
are `sure` of themselves when their logits are half as great again as is right. `several` are one to
four studies a patient, alike to 0.7.

    python benchmarks/coverage_classes.py --draws 1000
    python benchmarks/coverage_classes.py --draws 2000 --figure log_loss --setting 3
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.metrics.proportions import effective_interval
from medseq_tf.evaluation.metrics.resampling import (
    bootstrap_weights,
    influences,
    jackknife_groups,
    jackknife_variance,
    left_out_weights,
)
from medseq_tf.readers.classes import Classes

EVEN = (1.0,)
SKEWED = (6.0, 3.0, 1.0, 2.0, 1.0)


@dataclass(frozen=True)
class Setting:
    """What is drawn: how many patients, of which classes, how far apart."""

    patients: int
    classes: int = 3
    shift: float = 1.5
    prevalence: tuple[float, ...] = EVEN
    ordered: bool = True
    sharpness: float = 1.0
    several: bool = False

    @property
    def prior(self) -> np.ndarray:
        """Of the classes."""
        shares = np.resize(self.prevalence, self.classes)
        return shares / shares.sum()

    @property
    def names(self) -> Classes:
        """The classes; grades, so that all metrics are defined."""
        return Classes("grade", tuple(f"c{k}" for k in range(self.classes)), ordered=True)

    @property
    def costs(self) -> np.ndarray:
        """To miss a class costs the more, the higher it is."""
        costs = np.arange(1.0, self.classes + 1)[:, None] * np.ones(self.classes)
        np.fill_diagonal(costs, 0)
        return costs

    def __str__(self) -> str:
        kind = "grades" if self.ordered else "classes"
        words = [f"{self.patients:>3}", f"{self.classes} {kind}", f"shift {self.shift:g}"]
        words += ["skewed"] if len(self.prevalence) > 1 else []
        words += ["sure"] if self.sharpness > 1 else []
        return " ".join(words + (["several"] if self.several else []))


SETTINGS = [
    *(Setting(n, 3, shift) for n in (30, 57, 150) for shift in (1.0, 2.0, 4.0)),
    *(Setting(n, 3, shift, ordered=False) for n in (30, 57) for shift in (1.5, 3.0)),
    *(Setting(n, 3, shift, SKEWED[:3], ordered=False) for n in (57, 150) for shift in (1.5, 3.0)),
    *(Setting(n, 5, shift) for n in (60, 150) for shift in (1.0, 2.0)),
    *(Setting(n, 5, shift, SKEWED, ordered=False) for n in (60, 150) for shift in (1.5, 3.0)),
    *(Setting(57, 3, shift, ordered=False, sharpness=1.5) for shift in (1.5, 3.0)),
    *(Setting(n, 3, shift, ordered=False, several=True) for n in (40, 100) for shift in (1.5, 3.0)),
    Setting(60, 5, 1.5, SKEWED, several=True),
]


def draw(setting: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one-hot classes, probabilities and owners; two patients of each class at least."""
    prior, count = setting.prior, setting.patients
    while True:
        owner = np.arange(count)
        if setting.several:
            owner = np.repeat(owner, rng.integers(1, 5, count))
        truth = rng.choice(setting.classes, count, p=prior)[owner]
        if setting.several:  # not every study of a patient is of the same class
            other = rng.choice(setting.classes, len(owner), p=prior)
            truth = np.where(rng.random(len(owner)) < 0.2, other, truth)
        patients = [len(np.unique(owner[truth == k])) for k in range(setting.classes)]
        if min(patients) >= 2:
            break
    width = (1,) if setting.ordered else (setting.classes,)
    noise = rng.normal(size=(len(owner), *width))
    if setting.several:
        noise = np.sqrt(0.7) * rng.normal(size=(count, *width))[owner] + np.sqrt(0.3) * noise
    if setting.ordered:
        scores = noise + setting.shift * truth[:, None]
        logs = stats.norm.logpdf(scores - setting.shift * np.arange(setting.classes))
    else:
        one_hot = truth[:, None] == np.arange(setting.classes)
        logs = setting.shift * (noise + setting.shift * one_hot)
    probabilities = special.softmax(setting.sharpness * (logs + np.log(prior)), axis=1)
    return np.eye(setting.classes)[truth], probabilities, owner


Bounds = dict[str, tuple[float, float]]


def others(
    truth: np.ndarray, probabilities: np.ndarray, owner: np.ndarray, costs: np.ndarray
) -> dict[str, Bounds]:
    """Intervals of every figure by other methods: by method, then by figure."""

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.class_point_metrics(truth, probabilities, None, True, costs, weights)

    values = figures(np.ones(len(truth)))
    count = len(np.unique(owner))
    without = [figures(weights) for weights in left_out_weights(jackknife_groups(owner))]
    drawn = [figures(w) for w in bootstrap_weights(truth[:, 0], owner, 500, 0)]
    t = stats.t.ppf(0.975, count - 1)
    found: dict[str, Bounds] = {
        "normal": {}, "log": {}, "score": {}, "percentile": {}, "BCa": {}
    }  # fmt: skip
    for name, value in values.items():
        value = float(value)
        influence = influences(np.concatenate([piece[name] for piece in without]))
        variance = jackknife_variance(influence)
        half = t * np.sqrt(variance)
        found["normal"][name] = value - half, value + half
        if value > 0:
            found["log"][name] = tuple(value * np.exp(np.array([-half, half]) / value))
        if 0 <= value <= 1:
            found["score"][name] = effective_interval(value, variance, count)
        resampled = np.concatenate([piece[name] for piece in drawn])
        resampled = resampled[np.isfinite(resampled)]
        found["percentile"][name] = tuple(np.quantile(resampled, [0.025, 0.975]))
        below = (np.mean(resampled < value) + np.mean(resampled <= value)) / 2
        bias = stats.norm.ppf(np.clip(below, 1e-3, 1 - 1e-3))
        spread = (influence**2).sum() ** 1.5
        skew = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
        z = bias + stats.norm.ppf([0.025, 0.975])
        tails = stats.norm.cdf(bias + z / (1 - skew * z))
        found["BCa"][name] = tuple(np.quantile(resampled, tails))
    return found


def own(
    truth: np.ndarray, probabilities: np.ndarray, owner: np.ndarray, setting: Setting
) -> Bounds:
    """Intervals of every figure of the classes together as the package gives them."""
    table = metrics.evaluate_classes(
        truth, probabilities, setting.names, patients=owner, costs=setting.costs
    )
    rows = table[table["label"] == setting.names.column]
    return {row.metric: (row.low, row.high) for row in rows.itertuples()}


def coverage(setting: Setting, draws: int, only_own: bool = False) -> Iterator[dict]:
    """Yield a row a figure and method."""
    many = draw(Setting(**{**vars(setting), "patients": 100_000}), np.random.default_rng(99))[:2]
    true = metrics.class_point_metrics(*many, None, True, setting.costs)
    rng, found = np.random.default_rng(setting.patients), []
    for _ in range(draws):
        data = draw(setting, rng)
        methods = {"medseq_tf": own(*data, setting)}
        if not only_own:
            methods |= others(*data, setting.costs)
        found.append(methods)
    for figure, value in true.items():
        for method in found[0]:
            bounds = np.array([one[method].get(figure, (np.nan, np.nan)) for one in found])
            said = ~np.isnan(bounds[:, 0])
            if not said.any():
                continue
            low, high = bounds[said].T + np.array([[-1e-9], [1e-9]])
            yield {
                "figure": figure,
                "setting": str(setting),
                "true": round(float(value), 3),
                "method": method,
                "coverage": np.mean((low <= value) & (value <= high)).round(3),
                "width": np.mean(high - low).round(3),
                "truth below": np.mean(value < low).round(3),
                "truth above": np.mean(value > high).round(3),
                "said": said.mean().round(3),
            }


def main() -> None:
    """Print the table, and each method's coverage over all settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--figure", action="append", help="default: all")
    parser.add_argument("--setting", type=int, action="append", help="its number; default: all")
    parser.add_argument("--only-own", action="store_true", help="no other methods")
    arguments = parser.parse_args()
    chosen = [SETTINGS[i] for i in arguments.setting or range(len(SETTINGS))]
    tables = []
    for setting in chosen:
        table = pd.DataFrame(coverage(setting, arguments.draws, arguments.only_own))
        if arguments.figure:
            table = table[table["figure"].isin(arguments.figure)]
        tables.append(table)
        print(table.to_string(index=False), flush=True)
    of_methods = pd.concat(tables).groupby(["figure", "method"], sort=False)["coverage"]
    print(of_methods.agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
