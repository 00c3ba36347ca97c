"""Tables of a cross-validated recipe's metrics, and of the differences of two recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from medseq_tf.evaluation.cross_validation.fold_metrics import (
    Resampled,
    draw_patients,
    mean_auroc,
    resample,
    weighted_sum,
)
from medseq_tf.evaluation.cross_validation.predictions import HeldOut, LabelFolds
from medseq_tf.evaluation.cross_validation.variance import VarianceComponents, interval
from medseq_tf.evaluation.metrics.catalogue import CATALOGUE
from medseq_tf.evaluation.metrics.estimates import (
    NAN,
    OUTSIDE,
    Estimate,
    difference_row,
    few_patients,
    is_share,
    metric_row,
)
from medseq_tf.evaluation.metrics.point_metrics import TAILS, Array

RECIPE = "this recipe, trained anew on another cohort of this size"
SITES = (
    "this recipe, on new patients of these {count} sites, each by a model that was trained without "
    "the site; of other sites they say nothing"
)
FITTED = "these fitted models, on new patients"
"""The questions that an interval can answer."""

METHOD = "cross-validation"
"""What stands in the columns `interval` and `method`."""


def question(predictions: pd.DataFrame) -> str:
    """Return what intervals of folds are about; with `site`, each fold has left one out."""
    if "site" in predictions:
        return SITES.format(count=predictions["site"].nunique())
    return RECIPE


LabelPairs = list[tuple[LabelFolds, LabelFolds]]
"""The same labels' predictions by a first and by a second recipe."""


def evaluate_folds(predictions: HeldOut, resamples: int = 2000) -> pd.DataFrame:
    """Evaluate every metric of every label, and their mean, with intervals of the recipe.

    Of all metrics but the AUROC they are found by `resamples` of the patients.

    Returns:
        As `metrics.evaluate_predictions`, `interval` being `METHOD`. Where the folds'
        probabilities are alike, each metric that ranks is followed by the same over all of a
        repeat's folds together (`auroc_pooled`).
    """
    labels = [predictions.of(number) for number in range(len(predictions.labels))]
    rows = []
    for label in labels:
        weights = draw_patients(label.patient_known, resamples)
        resampled = resample(label, weights)
        rows += label_rows(label, [label], resampled, label.left_out)
    if len(labels) > 1:
        used = [label for label in labels if label.has_both_classes]
        left_out = [label.name for label in labels if not label.has_both_classes]
        remark = [f"without {', '.join(left_out)}: not both classes"] if left_out else []
        macro, mean = predictions.any_label(), None
        if used:
            weights = draw_patients(macro.patient_known, resamples)
            of_labels = [resample(label, weights) for label in used]
            mean = weighted_sum(of_labels, [1 / len(of_labels)] * len(of_labels))
        rows += label_rows(macro, used, mean, remark)
    return pd.DataFrame(rows)


def label_rows(
    shown: LabelFolds,
    labels: list[LabelFolds],
    resampled: Resampled | None,
    remarks: list[str],
) -> list[dict[str, Any]]:
    """The rows of a label, or of the mean over labels.

    Args:
        shown: whose name and counts stand in the rows.
        labels: whose mean the figures are; empty where none has both classes.
        resampled: their mean.
        remarks: what is to be said of the metrics that rank studies.
    """
    pooled = bool(labels) and all(label.is_alike and label.has_both_classes for label in labels)
    rows = []
    for metric, definition in CATALOGUE.items():
        thresholds = shown.thresholds if definition.kind == "decision" else np.zeros(0)
        notes = remarks if definition.kind in ("ranking", "trade-off") else []
        for is_pooled in (False, True) if pooled and definition.kind == "ranking" else (False,):
            components, defined = _components(metric, labels, resampled, is_pooled)
            estimate = _estimate(metric, labels, components, defined, notes)
            name = f"{metric}_pooled" if is_pooled else metric
            rows.append(metric_row(shown.name, name, estimate, shown.counts, thresholds))
    return rows


def _components(
    metric: str, labels: list[LabelFolds], resampled: Resampled | None, is_pooled: bool
) -> tuple[VarianceComponents, float]:
    """A metric of the table, with its variance and in how many resamples it is defined."""
    definition = CATALOGUE[metric]
    ranked = [label.as_one_model() for label in labels] if is_pooled else labels
    if definition.interval == "DeLong":
        able = bool(ranked) and all(label.rows for label in ranked)
        return (mean_auroc(ranked).variance() if able else VarianceComponents()), 1.0
    if resampled is None:
        return VarianceComponents(), 0.0
    rarer = min(min(label.classes) for label in labels)
    components, defined = resampled.variance(metric, rarer, _support(metric, labels))
    if is_pooled:  # its spread is taken from the folds' mean, which ranks fewer pairs
        values = [
            definition.compute(label.truth[own], label.probabilities[own])
            for label in ranked
            for own in (label.folds == fold for fold in np.unique(label.folds))
        ]
        components = replace(components, value=float(np.mean(values)))
    return components, defined


def _estimate(
    metric: str,
    labels: list[LabelFolds],
    components: VarianceComponents,
    defined: float,
    remarks: list[str],
) -> Estimate:
    """A metric with its interval, or with the reason why it has none."""
    limits, value = _limits(metric, labels), components.value
    if not labels:
        return Estimate(value, note="no label has both classes")
    if not np.isfinite(value):
        notes = limits or remarks or ["undefined: a class is never called"]
        return Estimate(value, note="; ".join(notes))
    if limits:
        return Estimate(value, note="; ".join(["no interval: " + "; ".join(limits), *remarks]))
    reason = ""
    if CATALOGUE[metric].kind == "trade-off":
        reason = "cut chosen on each fold's own test studies: too good; no interval"
    elif not is_share(value):
        reason = OUTSIDE
    elif defined < 0.5:
        reason = f"no interval: undefined in {1 - defined:.1%} of resamples"
    if reason:
        return Estimate(value, note="; ".join([*remarks, reason]))
    inflation = max(label.inflation for label in labels)
    low, high = interval(components, inflation, _support(metric, labels))
    few = few_patients(*labels[0].classes) if len(labels) == 1 else ""
    return Estimate(value, low, high, "; ".join(filter(None, [*remarks, few])), METHOD)


def _support(metric: str, labels: list[LabelFolds]) -> int:
    return min(label.support(metric) for label in labels)


def _limits(metric: str, labels: list[LabelFolds]) -> list[str]:
    """Why labels, named if they are several, allow no interval of a metric."""
    return [
        f"{label.name}: {limit}" if len(labels) > 1 else limit
        for label in labels
        for limit in label.limits(metric)
    ]


def auroc_estimate(labels: list[LabelFolds]) -> Estimate:
    """The mean AUROC of labels, or of classes each against the rest, with its interval."""
    remarks = [words for label in labels for words in label.left_out]
    return _estimate("auroc", labels, *_components("auroc", labels, None, False), remarks)


# ----------------------------------------------------------------------------- two recipes


def compare_folds(
    first: HeldOut,
    second: HeldOut,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Compare two models on the same studies, of which one at least is cross-validated.

    The same patients are drawn for both, and what each gives to one model is held against what he
    gives to the other, whether their folds are the same or not.

    Returns:
        As `metrics.compare_predictions`; `p`, two-sided, is that of the AUROC.
    """
    both = (first, numbered_apart(first, second))
    models = [[model.of(i) for i in range(len(model.labels))] for model in both]
    pairs = list(zip(*models, strict=True))
    rows = []
    for a, b in pairs:
        weights = draw_patients(a.patient_known, resamples)
        rows += difference_rows(a.name, [(a, b)], weights)
    used = [pair for pair in pairs if pair[0].has_both_classes]
    if len(pairs) > 1 and used:
        weights = draw_patients(first.any_label().patient_known, resamples)
        rows += difference_rows("macro", used, weights)
    return pd.DataFrame(rows)


def numbered_apart(first: Any, second: Any) -> Any:
    """The second, its folds numbered apart if they do not test the same studies as the first's.

    Both are held-out predictions, with the fold and the study of each row.
    """
    tested = [set(zip(model.folds, model.studies, strict=True)) for model in (first, second)]
    if tested[0] == tested[1]:
        return second
    return replace(second, folds=second.folds + first.folds.max())


def difference_rows(name: str, pairs: LabelPairs, weights: list[Array]) -> list[dict[str, Any]]:
    """The rows of a label, or of the mean over labels."""
    labels = [label for pair in pairs for label in pair]
    of_labels = [resample(label, weights) for label in labels]
    resampled = weighted_sum(of_labels, [1 / len(pairs), -1 / len(pairs)] * len(pairs))
    rarer = min(min(a.classes) for a, _ in pairs)
    rows = []
    for metric, definition in CATALOGUE.items():
        if definition.interval == "DeLong":
            estimate, p = auroc_difference(pairs)
        else:
            components, defined = resampled.variance(metric, rarer, _support(metric, labels))
            estimate, p = _difference(components, defined, pairs, metric)[0], NAN
        rows.append(difference_row(name, metric, replace(estimate, method=METHOD), p))
    return rows


def auroc_difference(pairs: LabelPairs) -> tuple[Estimate, float]:
    """First minus second, mean over the labels, and the two-sided p-value."""
    if not all(label.rows for pair in pairs for label in pair):
        return Estimate(note="no fold has both classes"), NAN
    first, second = (mean_auroc([pair[side] for pair in pairs]) for side in (0, 1))
    return _difference(first.minus(second).variance(), 1.0, pairs, "auroc")


def _difference(
    components: VarianceComponents,
    defined: float,
    pairs: LabelPairs,
    metric: str,
) -> tuple[Estimate, float]:
    """A difference with its interval and its p-value, by Student's t."""
    if limits := _limits(metric, [a for a, _ in pairs]):
        return Estimate(components.value, note="no interval: " + "; ".join(limits)), NAN
    inflation = max(label.inflation for pair in pairs for label in pair)
    return difference_estimate(components, defined, inflation)


def difference_estimate(
    components: VarianceComponents, defined: float, inflation: float, reach: float = 1.0
) -> tuple[Estimate, float]:
    """A difference, of at most `reach`, with its interval and its p-value, by Student's t."""
    value = components.value
    if not np.isfinite(value) or defined < 0.5:
        return Estimate(value, note="undefined: a class is never called"), NAN
    spread = components.spread(inflation)
    if spread > 1e-8:
        half = stats.t.ppf(TAILS[1], components.freedom) * spread
        p = float(2 * stats.t.sf(abs(value) / spread, components.freedom))
        return Estimate(value, max(value - half, -reach), min(value + half, reach)), p
    if value == 0:
        return Estimate(value, 0.0, 0.0, "the two are alike"), 1.0
    return Estimate(value, note="no test: the variance is 0"), NAN
