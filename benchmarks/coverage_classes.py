"""How often 95% intervals of the metrics of classes hold the truth: methods side by side.

Takes the number of draws; gives a row a figure, setting and method: how often the interval holds
the truth, how wide it is, how often the truth lies below and above it, and in how many draws there
is one. The method that the package uses is called `medseq_tf`, and its intervals are those of
`metrics.evaluate_classes`. With `--differences` they are those of `metrics.compare_classes`, of two
models on the same patients, and `apart` says how often 0 lies outside.

The scores of a class are normal, `shift` above those of the others; grades are told by one score.
Models that are `sure` have logits half as great again as is right. `several` are one to four
studies a patient, alike to 0.7.

    python benchmarks/coverage_classes.py --draws 1000
    python benchmarks/coverage_classes.py --draws 2000 --figure log_loss --setting 3
    python benchmarks/coverage_classes.py --differences
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special, stats

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.metrics.resampling import (
    bootstrap_weights,
    influences,
    jackknife_groups,
    jackknife_variance,
    left_out_weights,
)
from medseq_tf.readers.classes import Classes

Array = np.ndarray
Bounds = dict[str, tuple[float, float]]
SKEWED = (6.0, 3.0, 1.0, 2.0, 1.0)
"""How common the classes are, by each other."""


@dataclass(frozen=True)
class Setting:
    """What is drawn: how many patients, of which classes, how well they are told apart."""

    patients: int
    classes: int = 3
    shift: float = 1.5
    skewed: bool = False
    grades: bool = False
    sure: bool = False
    several: bool = False

    @property
    def prior(self) -> Array:
        """How common the classes are."""
        shares = np.array(SKEWED[: self.classes]) if self.skewed else np.ones(self.classes)
        return shares / shares.sum()

    @property
    def names(self) -> Classes:
        """The classes; always ordered, so that they have all metrics."""
        return Classes("grade", tuple(f"c{k}" for k in range(self.classes)), ordered=True)

    @property
    def costs(self) -> Array:
        """To miss a class costs the more, the higher it is."""
        costs = np.arange(1.0, self.classes + 1)[:, None] * np.ones(self.classes)
        np.fill_diagonal(costs, 0)
        return costs

    def __str__(self) -> str:
        kind = "grades" if self.grades else "classes"
        traits = [name for name in ("skewed", "sure", "several") if getattr(self, name)]
        return " ".join([f"{self.patients} {self.classes} {kind} {self.shift:g}", *traits])


SETTINGS = [
    *(Setting(n, 3, shift, grades=True) for n in (30, 57, 150) for shift in (1.0, 2.0, 4.0)),
    *(Setting(n, 3, shift) for n in (30, 57) for shift in (1.5, 3.0)),
    *(Setting(n, 3, shift, skewed=True) for n in (57, 150) for shift in (1.5, 3.0)),
    *(Setting(n, 5, shift, grades=True) for n in (60, 150) for shift in (1.0, 2.0)),
    *(Setting(n, 5, shift, skewed=True) for n in (60, 150) for shift in (1.5, 3.0)),
    *(Setting(57, 3, shift, sure=True) for shift in (1.5, 3.0)),
    *(Setting(n, 3, shift, several=True) for n in (40, 100) for shift in (1.5, 3.0)),
    Setting(30, 3, 1.0, skewed=True, grades=True),
    Setting(60, 5, 1.5, skewed=True, grades=True, several=True),
]


def draw(
    setting: Setting, rng: np.random.Generator, shifts: tuple[float, ...] = ()
) -> tuple[Array, list[Array], Array]:
    """Draw one-hot classes, each model's probabilities, and owners; two patients of a class.

    There is a model for each of `shifts`, alike to 0.5; without them one, of the setting's.
    """
    prior, count = setting.prior, setting.patients
    while True:
        owner = np.arange(count)
        if setting.several:
            owner = np.repeat(owner, rng.integers(1, 5, count))
        truth = rng.choice(setting.classes, count, p=prior)[owner]
        if setting.several:  # not every study of a patient is of the same class
            other = rng.choice(setting.classes, len(owner), p=prior)
            truth = np.where(rng.random(len(owner)) < 0.2, other, truth)
        if min(len(np.unique(owner[truth == k])) for k in range(setting.classes)) >= 2:
            break
    width = 1 if setting.grades else setting.classes

    def noise() -> Array:
        drawn = rng.normal(size=(len(owner), width))
        if setting.several:
            of_patient = rng.normal(size=(count, width))[owner]
            drawn = np.sqrt(0.7) * of_patient + np.sqrt(0.3) * drawn
        return drawn

    common, models = noise(), []
    for shift in shifts or (setting.shift,):
        own = np.sqrt(0.5) * (common + noise()) if shifts else common
        if setting.grades:
            places = shift * np.arange(setting.classes)
            logits = stats.norm.logpdf(own + shift * truth[:, None] - places)
        else:
            logits = shift * (own + shift * np.eye(setting.classes)[truth])
        sharpness = 1.5 if setting.sure else 1.0
        models.append(special.softmax(sharpness * (logits + np.log(prior)), axis=1))
    return np.eye(setting.classes)[truth], models, owner


def point_metrics(
    setting: Setting, truth: Array, probabilities: Array, weights: Array | None = None
) -> dict[str, Array]:
    """Every figure, the calls being those of least cost."""
    return metrics.class_point_metrics(
        truth, probabilities, None, True, setting.costs, weights=weights
    )


def truth_of(setting: Setting, shifts: tuple[float, ...] = ()) -> list[dict[str, float]]:
    """What each model's figures are on many patients."""
    many = replace(setting, patients=100_000)
    truth, models, _ = draw(many, np.random.default_rng(99), shifts)
    return [
        {name: float(value) for name, value in point_metrics(setting, truth, model).items()}
        for model in models
    ]


def bounds_of(setting: Setting, truth: Array, probabilities: Array, owner: Array) -> Bounds:
    """The package's interval of every figure of the classes together."""
    table = metrics.evaluate_classes(
        truth, probabilities, setting.names, patients=owner, costs=setting.costs
    )
    rows = table[table["label"] == setting.names.column]
    return {row.metric: (row.low, row.high) for row in rows.itertuples()}


def other_methods(
    setting: Setting, truth: Array, probabilities: Array, owner: Array
) -> dict[str, Bounds]:
    """Intervals of every figure by other methods: by method, then by figure."""
    values = point_metrics(setting, truth, probabilities)
    pieces = (left_out_weights(jackknife_groups(owner)), bootstrap_weights(owner, owner, 500, 0))
    without, drawn = (
        [point_metrics(setting, truth, probabilities, weights) for weights in of] for of in pieces
    )
    t = stats.t.ppf(0.975, len(np.unique(owner)) - 1)
    found: dict[str, Bounds] = {"normal": {}, "log": {}, "percentile": {}, "BCa": {}}
    for name, value in values.items():
        influence = influences(np.concatenate([piece[name] for piece in without]))
        half = t * np.sqrt(jackknife_variance(influence))
        found["normal"][name] = float(value - half), float(value + half)
        if value > 0:
            factor = float(np.exp(half / value))
            found["log"][name] = float(value / factor), float(value * factor)
        resampled = np.concatenate([piece[name] for piece in drawn])
        resampled = resampled[np.isfinite(resampled)]
        found["percentile"][name] = tuple(np.quantile(resampled, [0.025, 0.975]))
        below = np.clip((resampled < value).mean() + (resampled == value).mean() / 2, 1e-3, 0.999)
        spread = (influence**2).sum() ** 1.5
        skew = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
        z = stats.norm.ppf(below) + stats.norm.ppf([0.025, 0.975])
        tails = stats.norm.cdf(stats.norm.ppf(below) + z / (1 - skew * z))
        found["BCa"][name] = tuple(np.quantile(resampled, tails))
    return found


def coverage(setting: Setting, draws: int, others: bool = False) -> pd.DataFrame:
    """One row a figure and method."""
    (true,), rng, found = truth_of(setting), np.random.default_rng(setting.patients), []
    for _ in range(draws):
        truth, (probabilities,), owner = draw(setting, rng)
        data = (setting, truth, probabilities, owner)
        found.append({"medseq_tf": bounds_of(*data)} | (other_methods(*data) if others else {}))
    return pd.DataFrame(_rows(setting, true, found))


def difference_coverage(setting: Setting, draws: int, shifts: tuple[float, float]) -> pd.DataFrame:
    """One row a figure, of two models' difference; `p` is how often McNemar's is below 0.05."""
    first, second = truth_of(setting, shifts)
    true = {name: first[name] - second[name] if len(set(shifts)) > 1 else 0.0 for name in first}
    rng, found, p = np.random.default_rng(setting.patients), [], []
    for _ in range(draws):
        truth, models, owner = draw(setting, rng, shifts)
        table = metrics.compare_classes(
            truth, tuple(models), setting.names, patients=owner, costs=setting.costs
        )
        rows = table[table["label"] == setting.names.column].set_index("metric")
        found.append(
            {"medseq_tf": dict(zip(rows.index, rows[["low", "high"]].to_numpy(), strict=True))}
        )
        p.append(rows.loc["accuracy", "p"])
    table = pd.DataFrame(_rows(setting, true, found))
    below = np.mean(np.array(p)[~np.isnan(p)] < 0.05) if not np.isnan(p).all() else np.nan
    return table.assign(shifts=f"{shifts[0]:g} {shifts[1]:g}", p=below)


def _rows(
    setting: Setting, true: dict[str, float], found: list[dict[str, Bounds]]
) -> Iterator[dict]:
    """Yield a row a figure and method, of the intervals of every draw."""
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
                "true": round(value, 3),
                "method": method,
                "coverage": np.mean((low <= value) & (value <= high)).round(3),
                "width": np.mean(high - low).round(3),
                "truth below": np.mean(value < low).round(3),
                "truth above": np.mean(value > high).round(3),
                "apart": np.mean((low > 0) | (high < 0)).round(3),
                "said": said.mean().round(3),
            }


def main() -> None:
    """Print the table, and each method's coverage over all settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--figure", action="append", help="default: all")
    parser.add_argument("--setting", type=int, action="append", help="its number; default: all")
    parser.add_argument("--others", action="store_true", help="other methods too")
    parser.add_argument("--differences", action="store_true", help="of two models")
    arguments = parser.parse_args()
    tables = []
    for number in arguments.setting or range(len(SETTINGS)):
        setting = SETTINGS[number]
        if arguments.differences:
            pairs = [(setting.shift,) * 2, (setting.shift, 0.8 * setting.shift)]
            parts = [difference_coverage(setting, arguments.draws, pair) for pair in pairs]
            table = pd.concat(parts)
        else:
            table = coverage(setting, arguments.draws, arguments.others)
        if arguments.figure:
            table = table[table["figure"].isin(arguments.figure)]
        tables.append(table)
        print(table.to_string(index=False), flush=True)
    everything = pd.concat(tables)
    keys, columns = ["figure", "method"], ["coverage"]
    if arguments.differences:
        shifts = everything["shifts"].str.split(" ", expand=True)
        everything["models"] = np.where(shifts[0] == shifts[1], "equal", "unequal")
        keys, columns = ["models", "figure"], ["coverage", "apart"]
    by_key = everything.groupby(keys, sort=False)[columns]
    print(by_key.agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
