"""The metrics of a label: what each is computed from, and of which studies it is a figure.

A table of metrics has a row for each of `CATALOGUE`, in its order. Every metric lies in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    Confusion,
    auroc,
    average_precision,
    confusion,
    mean_loss,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    squared_error,
)
from medseq_tf.recipe import MONITORS

BOTH = ("positive", "negative")

Kind = Literal["ranking", "trade-off", "decision", "loss"]


def _all_studies(positive: Array, called: Array) -> Array:
    return np.ones(positive.shape, bool)


@dataclass(frozen=True)
class Metric:
    """A metric of one label.

    Attributes:
        kind: what it is computed from. A `ranking` is of the order of the studies by probability,
            which the models of several folds do not share; a `trade-off` is what a ranking offers
            at one cut; a `decision` is of the counts of right and wrong calls at the threshold; a
            `loss` is the mean over studies of what each one's probability costs.
        compute: of a decision from its `Confusion`; of a loss (labels, probabilities) -> (studies,)
            of known studies; of the others (labels, probabilities, weights=) -> () or (resamples,).
        studies: of which studies it is a share or a mean: (positive, called) -> (studies,) bool,
            both (studies,) bool.
        classes: of which classes it needs two patients each to have an interval.
        interval: `DeLong`; `share` of the studies above, Wilson's; `F1`, 2 s / (1 + s) of a share
            s; or `jackknife`, the variance of any metric over patients.
        mean_of: the names of two metrics that it is the mean of, and whose intervals give its own.
        rule: by which a trade-off's cut is chosen on other studies.
    """

    kind: Kind
    compute: Callable[..., Array]
    studies: Callable[[Array, Array], Array] = _all_studies
    classes: tuple[str, ...] = BOTH
    interval: Literal["DeLong", "share", "F1", "jackknife"] = "jackknife"
    mean_of: tuple[str, str] | None = None
    rule: str = ""

    @property
    def is_mean(self) -> bool:
        """Whether it is a plain mean over its studies, of no class against the other."""
        return self.kind == "loss" or (self.kind == "decision" and self.interval == "share")

    @property
    def keeps(self) -> str:
        """The rate that the rule of a trade-off keeps: `sensitivity` or `specificity`."""
        return self.rule.partition(">=")[0]


def _share(
    compute: Callable[[Confusion], Array],
    studies: Callable[[Array, Array], Array] = _all_studies,
    classes: tuple[str, ...] = BOTH,
) -> Metric:
    return Metric("decision", compute, studies, classes, "share")


def _mean(compute: Callable[[Confusion], Array], first: str, second: str) -> Metric:
    return Metric("decision", compute, mean_of=(first, second))


def _positive(positive: Array, called: Array) -> Array:
    return positive


def _negative(positive: Array, called: Array) -> Array:
    return ~positive


CATALOGUE: dict[str, Metric] = {
    "auroc": Metric("ranking", auroc, interval="DeLong"),
    "average_precision": Metric("ranking", average_precision, _positive),
    "sensitivity_at_90_specificity": Metric(
        "trade-off",
        sensitivity_at_specificity,
        _positive,
        ("positive",),
        "share",
        rule="specificity>=0.9",
    ),
    "specificity_at_90_sensitivity": Metric(
        "trade-off",
        specificity_at_sensitivity,
        _negative,
        ("negative",),
        "share",
        rule="sensitivity>=0.9",
    ),
    "accuracy": _share(lambda counts: counts.accuracy),
    "recall": _share(lambda counts: counts.recall, _positive, ("positive",)),
    "specificity": _share(lambda counts: counts.specificity, _negative, ("negative",)),
    "precision": _share(lambda counts: counts.precision, lambda positive, called: called),
    "f1": Metric(
        "decision", lambda counts: counts.f1, lambda positive, called: positive | called, BOTH, "F1"
    ),
    "balanced_accuracy": _mean(lambda counts: counts.balanced_accuracy, "recall", "specificity"),
    "recall_macro": _mean(lambda counts: counts.recall_macro, "recall", "specificity"),
    "precision_macro": _mean(
        lambda counts: counts.precision_macro, "precision", "negative_predictive_value"
    ),
    "f1_macro": _mean(lambda counts: counts.f1_macro, "f1", "f1_negative"),
    "brier": Metric("loss", squared_error),
}
"""The metrics of a table, in its order."""

PARTS: dict[str, Metric] = {
    "negative_predictive_value": _share(
        lambda counts: counts.negative_predictive_value, lambda positive, called: ~called
    ),
    "f1_negative": Metric(
        "decision",
        lambda counts: counts.f1_negative,
        lambda positive, called: ~(positive & called),
        BOTH,
        "F1",
    ),
}
"""Metrics that stand in no table, but that some of `CATALOGUE` are the mean of."""

METRICS = tuple(name for name in MONITORS if name in CATALOGUE)
"""The metrics that training may watch, every epoch; what `all_metrics` returns, in its order."""

TRADE_OFFS = {name: metric.rule for name, metric in CATALOGUE.items() if metric.rule}
"""The metrics of an operating point beside the threshold, and the rule that chooses it."""


def all_metrics(
    labels: Array,
    probabilities: Array,
    threshold: float | Array = 0.5,
    weights: Array | None = None,
    names: Iterable[str] = METRICS,
) -> dict[str, Array]:
    """Compute metrics of one label by name, without intervals.

    The threshold is one for all, or (studies,); `names` are of `CATALOGUE` or `PARTS`.
    """
    metrics = {name: CATALOGUE[name] if name in CATALOGUE else PARTS[name] for name in names}
    values = {}
    if any(metric.kind == "decision" for metric in metrics.values()):
        counts = confusion(labels, probabilities, threshold, weights)
    for name, metric in metrics.items():
        if metric.kind == "decision":
            values[name] = metric.compute(counts)
        elif metric.kind == "loss":
            values[name] = mean_loss(metric.compute, labels, probabilities, weights)
        else:
            values[name] = metric.compute(labels, probabilities, weights=weights)
    return values
