"""Tables of metrics with intervals over patients: one model, two models, lesion pixels.

Labels are 0, 1, or nan for unknown (left out); probabilities are those of the positive class. The
unit of evaluation is the study. Where a patient has several, `patients` (studies,) names the owner
of each, and every interval is over patients. What cannot be said is nan, and a note says why.

The parts that the tables are made of are in modules of their own; the names that others use are
here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medseq_tf.auc_intervals import DeLongTest, delong_interval, delong_test
from medseq_tf.calibration import (
    TEMPERATURES,
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    logits,
    reliability_curve,
    scale,
)
from medseq_tf.curves import (
    decision_curve,
    net_benefit,
    precision_recall_band,
    precision_recall_points,
    roc_band,
    roc_points,
)
from medseq_tf.errors import InputError
from medseq_tf.point_metrics import (
    DECISIONS,
    METRICS,
    RANKING,
    TRADE_OFFS,
    Array,
    Confusion,
    all_metrics,
    auroc,
    average_precision,
    brier,
    class_limits,
    confusion,
    owners_of,
    ratio,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from medseq_tf.proportions import wilson_interval
from medseq_tf.resampling import (
    Estimate,
    bootstrap,
    estimate_from,
    owners_by_content,
    resample_weights,
    weight_chunks,
)
from medseq_tf.thresholds import choose_threshold, choose_thresholds

__all__ = [
    "DECISIONS",
    "METRICS",
    "PIXEL_METRICS",
    "RANKING",
    "TABLE",
    "TEMPERATURES",
    "TRADE_OFFS",
    "Confusion",
    "DeLongTest",
    "Estimate",
    "all_metrics",
    "apply_temperature",
    "auroc",
    "average_precision",
    "bootstrap",
    "brier",
    "choose_threshold",
    "choose_thresholds",
    "compare_predictions",
    "confusion",
    "decision_curve",
    "delong_interval",
    "delong_test",
    "evaluate_pixels",
    "evaluate_predictions",
    "expected_calibration_error",
    "fit_temperature",
    "logits",
    "net_benefit",
    "pixel_metrics",
    "precision_recall_band",
    "precision_recall_points",
    "reliability_curve",
    "resample_weights",
    "roc_band",
    "roc_points",
    "scale",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "wilson_interval",
]

TABLE = (*RANKING, *TRADE_OFFS, *DECISIONS, "brier")
"""Names in the column `metric` of `evaluate_predictions`, in its order."""

_CLASSES_NEEDED = dict.fromkeys(TABLE, ("positive", "negative")) | {
    "recall": ("positive",),
    "specificity": ("negative",),
}


def evaluate_predictions(
    labels: Array,
    probabilities: Array,
    label_names: Sequence[str],
    thresholds: Array | float = 0.5,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Every metric of every label, and their mean over labels, with intervals over patients.

    The unit is the study; resampling draws whole patients. A label's intervals are stratified by
    its own classes; that of its AUROC is DeLong's. The macro rows resample all labels together,
    stratified by whether a patient has any finding; a resample in which a label cannot be judged
    is left out. A label without both classes is left out of the macro average.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        thresholds: One, (labels,), or (studies, labels).
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the intervals.

    Returns:
        Tidy, one row a label (then `macro`, if there are several) and metric of `TABLE`, with
        columns `label`, `metric`, `value`, `low`, `high`, `interval` (`DeLong`, `bootstrap`, or
        empty), `n` (studies with a known label), `positives` (studies), `patients`, `threshold`
        (nan if the metric has none, or several), and `note`.

    Raises:
        InputError: Arrays of other shapes, labels that are not 0, 1 or nan, probabilities outside
            [0, 1].
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    shape = (len(labels), len(label_names))
    if labels.shape != shape or probabilities.shape != shape:
        raise InputError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not fit "
            f"{len(label_names)} labels: expected both (studies, {len(label_names)})"
        )
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype=float), shape)
    if patients is None:
        owners = owners_by_content(labels, probabilities)
    else:
        owners = owners_of(patients, len(labels))
    judged = [
        _Judged(name, labels[:, i], probabilities[:, i], thresholds[:, i], owners)
        for i, name in enumerate(label_names)
    ]
    rows = []
    for label in judged:
        chunks = weight_chunks(label.labels, owners, resamples, seed)
        samples = _joined([label.metrics(weights) for weights in chunks])
        for metric, value in label.metrics().items():
            if metric == "auroc":
                its = (label.labels, label.probabilities, owners, confidence)
                estimate = replace(delong_interval(*its), value=float(value))
                rows.append(_row(label, metric, estimate, "DeLong"))
            else:
                estimate = estimate_from(value, samples[metric], label.limits(metric), confidence)
                rows.append(_row(label, metric, estimate, "bootstrap"))
    if len(judged) > 1:
        rows += _macro_rows(judged, labels, resamples, seed, confidence)
    return pd.DataFrame(rows)


def compare_predictions(
    labels: Array,
    probabilities: tuple[Array, Array],
    label_names: Sequence[str],
    thresholds: tuple[Array | float, Array | float] = (0.5, 0.5),
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Differences of two models on the same studies, with intervals over patients.

    The AUROC of a label is compared by DeLong's paired test, everything else by a bootstrap that
    draws the same patients for both.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: Of the first and the second model, (studies, labels) each.
        label_names: (labels,).
        thresholds: Of both models, as for `evaluate_predictions`.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the intervals.

    Returns:
        One row a label (then `macro`) and metric of `TABLE`: `label`, `metric`, `difference`
        (first minus second), `low`, `high`, `p` (two-sided; DeLong's test alone gives one),
        `method` and `note`.
    """
    labels = np.asarray(labels, dtype=float)
    owners = np.arange(len(labels)) if patients is None else owners_of(patients, len(labels))
    models = []
    for its, cut in zip(probabilities, thresholds, strict=True):
        its, cut = np.asarray(its, dtype=float), np.broadcast_to(cut, labels.shape)
        models.append(
            [
                _Judged(name, labels[:, i], its[:, i], cut[:, i], owners)
                for i, name in enumerate(label_names)
            ]
        )
    rows = []
    for a, b in zip(*models, strict=True):
        chunks = weight_chunks(a.labels, owners, resamples, seed)
        samples = _joined([_differences([a], [b], weights) for weights in chunks])
        for metric, value in _differences([a], [b]).items():
            if metric == "auroc":
                test = delong_test(a.labels, a.probabilities, b.probabilities, owners, confidence)
                estimate = Estimate(float(value), test.low, test.high, test.note)
                rows.append(_difference_row(a.name, metric, estimate, test.p, "DeLong"))
            else:
                limits = list(dict.fromkeys(a.limits(metric) + b.limits(metric)))
                estimate = estimate_from(value, samples[metric], limits, confidence)
                rows.append(_difference_row(a.name, metric, estimate))
    used = [pair for pair in zip(*models, strict=True) if pair[0].has_both_classes]
    if len(label_names) > 1 and used:
        pair = tuple(zip(*used, strict=True))
        findings = np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).any(axis=1))
        chunks = weight_chunks(findings, owners, resamples, seed)
        samples = _joined([_differences(*pair, weights) for weights in chunks])
        for metric, value in _differences(*pair).items():
            estimate = estimate_from(value, samples[metric], [], confidence)
            rows.append(_difference_row("macro", metric, estimate))
    return pd.DataFrame(rows)


def _differences(
    a: Sequence[_Judged], b: Sequence[_Judged], weights: Array | None = None
) -> dict[str, Array]:
    """Every metric of `TABLE`, mean over the labels: first model minus second."""
    first, second = (_mean([label.metrics(weights) for label in model]) for model in (a, b))
    return {metric: first[metric] - second[metric] for metric in TABLE}


def _difference_row(
    label: str, metric: str, estimate: Estimate, p: float = np.nan, method: str = "bootstrap"
) -> dict:
    return {
        "label": label,
        "metric": metric,
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p": p,
        "method": method,
        "note": estimate.note,
    }


@dataclass(frozen=True)
class _Judged:
    """One label's predictions, (studies,) each."""

    name: str
    labels: Array
    probabilities: Array
    thresholds: Array
    patients: Array

    def metrics(self, weights: Array | None = None) -> dict[str, Array]:
        whole = all_metrics(self.labels, self.probabilities, self.thresholds, weights)
        for name, metric in TRADE_OFFS.items():
            whole[name] = metric(self.labels, self.probabilities, weights=weights)
        return {name: whole[name] for name in TABLE}

    @property
    def has_both_classes(self) -> bool:
        return bool((self.labels == 0).any() and (self.labels == 1).any())

    def limits(self, metric: str) -> list[str]:
        return class_limits(self.labels, self.patients, _CLASSES_NEEDED[metric])


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


def _mean(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {metric: np.mean([part[metric] for part in parts], axis=0) for metric in parts[0]}


def _macro_rows(
    judged: list[_Judged], labels: Array, resamples: int, seed: int, confidence: float
) -> list[dict]:
    """The rows of `evaluate_predictions` for the mean over the labels that can be judged."""
    findings = np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).any(axis=1))
    nowhere, owners = np.full(len(labels), np.nan), judged[0].patients
    macro = _Judged("macro", findings, nowhere, nowhere, owners)
    used = [label for label in judged if label.has_both_classes]
    if not used:
        nothing = Estimate(*[float("nan")] * 3, "no label has both classes")
        return [_row(macro, metric, nothing, "bootstrap") for metric in judged[0].metrics()]
    left_out = [label.name for label in judged if not label.has_both_classes]
    remark = [f"without {', '.join(left_out)}: not both classes"] if left_out else []
    chunks = weight_chunks(findings, owners, resamples, seed)
    samples = _joined([_mean([label.metrics(weights) for label in used]) for weights in chunks])
    rows = []
    for metric, value in _mean([label.metrics() for label in used]).items():
        limits = [f"{label.name}: {limit}" for label in used for limit in label.limits(metric)]
        estimate = estimate_from(value, samples[metric], limits, confidence)
        note = "; ".join([estimate.note] * bool(estimate.note) + remark)
        rows.append(_row(macro, metric, replace(estimate, note=note), "bootstrap"))
    return rows


def _row(label: _Judged, metric: str, estimate: Estimate, interval: str) -> dict:
    known = ~np.isnan(label.labels)
    thresholds = np.unique(label.thresholds)
    has_threshold = metric in DECISIONS and len(thresholds) == 1
    return {
        "label": label.name,
        "metric": metric,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "interval": "" if np.isnan(estimate.low) else interval,
        "n": int(known.sum()),
        "positives": int((label.labels == 1).sum()),
        "patients": len(np.unique(np.asarray(label.patients)[known])),
        "threshold": float(thresholds[0]) if has_threshold else float("nan"),
        "note": estimate.note,
    }


# -------------------------------------------------------------------------------- lesion pixels

PIXEL_METRICS = ("dice", "iou", "pixel_recall", "pixel_precision")
"""Means over the studies that have a lesion; each `_pooled` over the pixels of all studies."""


def pixel_metrics(
    found: Array, false: Array, missed: Array, weights: Array | None = None
) -> dict[str, Array]:
    """How well the pixels that a segmenter calls lesion are the lesion's.

    A study whose mask is empty has no Dice, IoU or recall, and is left out of the means over
    studies; a study with a lesion in which no pixel is called has 0 in all four. What is wrongly
    called in studies without lesion counts in the pooled figures, where the pixels of all studies
    are one picture; they are nan where that has neither a lesion nor a call.

    Args:
        found: (studies,) lesion pixels that are called lesion; nan: the study's mask is not known.
        false: (studies,) other pixels that are called lesion.
        missed: (studies,) lesion pixels that are not.
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        By the names of `PIXEL_METRICS`, then the same with `_pooled`, each () or (resamples,); nan
        where undefined.
    """
    counts = [np.asarray(part, dtype=float) for part in (found, false, missed)]
    weights = np.ones(len(counts[0])) if weights is None else np.asarray(weights, dtype=float)
    known = ~np.isnan(counts).any(axis=0)
    counts, weights = [part[known] for part in counts], weights[..., known]
    has_lesion = counts[0] + counts[2] > 0
    by_study = _overlap(*(part[has_lesion] for part in counts))
    of_lesions = weights[..., has_lesion]
    total = of_lesions.sum(axis=-1)
    means = {k: ratio(of_lesions @ np.nan_to_num(v), total) for k, v in by_study.items()}
    pooled = _overlap(*(weights @ part for part in counts))
    return means | {f"{name}_pooled": value for name, value in pooled.items()}


def _overlap(found: Array, false: Array, missed: Array) -> dict[str, Array]:
    return {
        "dice": ratio(2 * found, 2 * found + false + missed),
        "iou": ratio(found, found + false + missed),
        "pixel_recall": ratio(found, found + missed),
        "pixel_precision": ratio(found, found + false),
    }


def evaluate_pixels(
    found: Array,
    false: Array,
    missed: Array,
    label: str,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """`pixel_metrics` with intervals over patients, stratified by whether they have a lesion.

    Args:
        found: (studies,), as the next two as for `pixel_metrics`.
        false: (studies,).
        missed: (studies,).
        label: What the masks are of.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the intervals.

    Returns:
        Rows as those of `evaluate_predictions`; `positives` are the studies with a lesion.
    """
    counts = [np.asarray(part, dtype=float) for part in (found, false, missed)]
    unknown = np.isnan(counts).any(axis=0)
    has_lesion = np.where(unknown, np.nan, counts[0] + counts[2] > 0)
    owners = owners_of(patients, len(has_lesion))
    nowhere = np.full(len(has_lesion), np.nan)
    judged = _Judged(label, has_lesion, nowhere, nowhere, owners)
    limits = class_limits(has_lesion, owners, ("positive",))
    chunks = weight_chunks(has_lesion, owners, resamples, seed)
    samples = _joined([pixel_metrics(*counts, weights) for weights in chunks])
    rows = []
    for metric, value in pixel_metrics(*counts).items():
        estimate = estimate_from(value, samples[metric], limits, confidence)
        rows.append(_row(judged, metric, estimate, "bootstrap"))
    return pd.DataFrame(rows)
