"""How often 95% intervals of one test set hold the truth: methods side by side.

Takes the number of draws; gives a row a figure, setting and method: how often the interval holds
the truth, how wide it is, and how often the truth lies below and above it. The method that the
package uses is called `medseq_tf`, and its intervals are those of its public functions. Scores are
normal within a class (`normal`), of unequal spread (`wide`), exponential, or those of a model that
finds most of the positives and says nothing of the others (`mixed`); `several` are one to four
studies a patient, alike to 0.7.

    python benchmarks/coverage.py --draws 1000
    python benchmarks/coverage.py --draws 2000 --figure auroc
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy import special, stats

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.metrics.auc_intervals import Placements

Z = stats.norm.ppf(0.975)
Bounds = tuple[float, float]
SETTINGS = [  # kind of scores, patients, prevalence, AUROC
    ("normal", 20, 0.3, 0.85),
    ("normal", 30, 0.15, 0.85),
    ("normal", 30, 0.5, 0.96),
    ("normal", 48, 0.5, 0.7),
    ("normal", 48, 0.5, 0.96),
    ("normal", 48, 0.5, 0.98),
    ("normal", 100, 0.3, 0.9),
    ("normal", 200, 0.3, 0.995),
    ("wide", 48, 0.3, 0.9),
    ("exponential", 48, 0.3, 0.9),
    ("exponential", 100, 0.3, 0.98),
    ("mixed", 100, 0.3, 0.9),
    ("several", 30, 0.4, 0.85),
    ("several", 60, 0.3, 0.95),
]


def draw(
    kind: str, patients: int, prevalence: float, auroc: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels, probabilities and owners, (studies,) each, with two patients of each class."""
    while True:
        owner = np.arange(patients)
        if kind == "several":
            owner = np.repeat(owner, rng.integers(1, 5, patients))
        labels = (rng.random(patients) < prevalence).astype(float)[owner]
        if kind == "several":  # not every study of a patient shows it
            labels[(labels == 1) & (rng.random(len(owner)) < 0.25)] = 0
        if min(len(set(owner[labels == 1])), len(set(owner[labels == 0]))) >= 2:
            break
    shift = np.sqrt(2) * stats.norm.ppf(auroc)
    own, noise = rng.normal(size=patients)[owner], rng.normal(size=len(owner))
    if kind == "several":
        noise = np.sqrt(0.7) * own + np.sqrt(0.3) * noise
    scores = noise + shift * labels
    if kind == "wide":
        scores = np.where(labels == 1, 2 * noise + np.sqrt(5) * stats.norm.ppf(auroc), noise)
    if kind == "exponential":
        scores = rng.exponential(np.where(labels == 1, auroc / (1 - auroc), 1.0))
    if kind == "mixed":
        scores = noise + 4.5 * labels * (rng.random(len(owner)) < 2 * auroc - 1)
    calibrated = shift * scores - shift**2 / 2 + special.logit(prevalence)
    return labels, special.expit(calibrated), owner


def plain_delong(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
    """AUROC plus and minus 1.96 of DeLong's standard errors; one point at separation."""
    placed = Placements.of(labels, [probabilities], owner)
    half = Z * np.sqrt(placed.covariance[0, 0])
    return placed.aurocs[0] - half, placed.aurocs[0] + half


def logit_delong(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
    """The same on the logit scale."""
    placed = Placements.of(labels, [probabilities], owner)
    value = placed.aurocs[0]
    if value in (0, 1):
        return value, value
    half = Z * np.sqrt(placed.covariance[0, 0]) / (value * (1 - value))
    return tuple(special.expit(special.logit(value) + np.array([-half, half])))


def newcombe(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
    """Newcombe 2006, method 5, on a grid."""
    placed = Placements.of(labels, [probabilities], owner)
    (m, n), true = placed.counts, np.linspace(1e-4, 1 - 1e-4, 9999)
    others = (m + n) / 2 - 1
    variance = true * (1 - true) / (m * n)
    variance *= 1 + others * (1 - true) / (2 - true) + others * true / (1 + true)
    held = true[np.abs(placed.aurocs[0] - true) <= Z * np.sqrt(variance)]
    return held.min(initial=placed.aurocs[0]), held.max(initial=placed.aurocs[0])


def resample(labels: np.ndarray, owner: np.ndarray, stratified: bool) -> np.ndarray:
    """How often each study is drawn with its patient, (500, studies).

    Stratified, as many patients with a positive study are drawn as there are, and of the others.
    """
    patient = np.unique(owner, return_inverse=True)[1]
    strata = (np.bincount(patient, labels) > 0) & stratified
    rng, counts = np.random.default_rng(0), np.zeros((500, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn = members[rng.integers(len(members), size=(500, len(members)))]
        np.add.at(counts, (np.arange(500)[:, None], drawn), 1)
    return counts[:, patient]


def percentile(metric: Callable, stratified: bool) -> Callable[..., Bounds]:
    """Return a percentile bootstrap of a metric over patients."""

    def bounds(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
        weights = resample(labels, owner, stratified)
        values = metric(labels, probabilities, weights=weights)
        return tuple(np.nanquantile(values, [0.025, 0.975]))

    return bounds


def bca(metric: Callable) -> Callable[..., Bounds]:
    """Return `metrics.bootstrap` of a metric."""

    def bounds(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
        found = metrics.bootstrap(metric, labels, probabilities, owner, 500)
        return found.low, found.high

    return bounds


def of_table(name: str) -> Callable[..., Bounds]:
    """Return the interval that `metrics.evaluate_predictions` gives a metric at prevalence."""

    def bounds(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
        arrays = labels[:, None], probabilities[:, None]
        table = metrics.evaluate_predictions(*arrays, ["a"], THRESHOLD, owner)
        row = table.set_index("metric").loc[name]
        return row["low"], row["high"]

    return bounds


def of_estimate(measure: Callable) -> Callable[..., Bounds]:
    """Return the interval of a function that gives an `Estimate`."""

    def bounds(labels: np.ndarray, probabilities: np.ndarray, owner: np.ndarray) -> Bounds:
        found = measure(labels, probabilities, owner)
        return found.low, found.high

    return bounds


THRESHOLD = 0.4


def shares(name: str) -> Callable[..., np.ndarray]:
    """Return a metric at the threshold."""

    def metric(labels: np.ndarray, probabilities: np.ndarray, weights: object = None) -> np.ndarray:
        return getattr(metrics.confusion(labels, probabilities, THRESHOLD, weights), name)

    return metric


def value_of(measure: Callable) -> Callable[..., float]:
    """Return the value of a function that gives an `Estimate`."""
    return lambda labels, probabilities: measure(labels, probabilities).value


def bootstrapped(metric: Callable, name: str) -> dict[str, Callable]:
    """Return the methods of a metric that the bootstrap can do."""
    return {
        "percentile, stratified": percentile(metric, True),
        "percentile, plain": percentile(metric, False),
        "BCa, plain": bca(metric),
        "medseq_tf": of_table(name),
    }


FIGURES: dict[str, tuple[Callable, dict[str, Callable]]] = {
    "auroc": (
        metrics.auroc,
        {
            "DeLong": plain_delong,
            "DeLong, logit": logit_delong,
            "Newcombe": newcombe,
            "medseq_tf": of_estimate(metrics.delong_interval),
        },
    ),
    "average_precision": (
        metrics.average_precision,
        bootstrapped(metrics.average_precision, "average_precision"),
    ),
    "brier": (metrics.brier, bootstrapped(metrics.brier, "brier")),
    **{
        name: (shares(name), bootstrapped(shares(name), name))
        for name in ("recall", "precision", "f1", "balanced_accuracy", "f1_macro")
    },
    **{
        measure.__name__: (value_of(measure), {"medseq_tf": of_estimate(measure)})
        for measure in (
            metrics.observed_expected,
            metrics.calibration_intercept,
            metrics.calibration_slope,
        )
    },
}
"""By name: the metric, and the methods of its interval."""


def coverage(figure: str, draws: int) -> Iterator[dict]:
    """Yield a row a setting and method."""
    metric, methods = FIGURES[figure]
    for number, setting in enumerate(SETTINGS):
        many = draw(setting[0], 100_000, *setting[2:], np.random.default_rng(99))
        true = float(metric(*many[:2]))
        found = {name: [] for name in methods}
        rng = np.random.default_rng(number)
        for _ in range(draws):
            data = draw(*setting, rng)
            for name, method in methods.items():
                with np.errstate(all="ignore"):
                    found[name].append(method(*data))
        for name, bounds in found.items():
            low, high = np.array(bounds, dtype=float).T
            said = ~np.isnan(low)
            low, high = low[said] - 1e-9, high[said] + 1e-9
            yield {
                "figure": figure,
                "scores": setting[0],
                "patients": setting[1],
                "prevalence": setting[2],
                "true": round(true, 3),
                "method": name,
                "coverage": np.mean((low <= true) & (true <= high)).round(3),
                "width": np.mean(np.minimum(high, 1e3) - np.maximum(low, -1e3)).round(3),
                "truth below": np.mean(true < low).round(3),
                "truth above": np.mean(true > high).round(3),
                "said": said.mean().round(3),
            }


def main() -> None:
    """Print the table, and each method's coverage over all settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--figure", choices=list(FIGURES), action="append")
    arguments = parser.parse_args()
    tables = []
    for figure in arguments.figure or FIGURES:
        tables.append(pd.DataFrame(coverage(figure, arguments.draws)))
        print(tables[-1].to_string(index=False), flush=True)
    of_methods = pd.concat(tables).groupby(["figure", "method"], sort=False)["coverage"]
    print(of_methods.agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
