"""Tables of metrics with intervals over patients: one model, two models, lesion pixels.

Labels are 0, 1, or nan for unknown (left out); probabilities are those of the positive class. The
unit of evaluation is the study. Where a patient has several, `patients` (studies,) names the owner
of each, and every interval is over patients. What cannot be said is nan, and a note says why.

The parts that the tables are made of are in modules of their own; the names that others use are
here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.auc_intervals import DeLongTest, delong_interval, delong_test
from medseq_tf.evaluation.metrics.calibration import (
    TEMPERATURES,
    apply_temperature,
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    fit_temperature,
    logits,
    null_calibration_error,
    observed_expected,
    reliability_curve,
    scale,
)
from medseq_tf.evaluation.metrics.curves import (
    decision_curve,
    net_benefit,
    precision_recall_band,
    precision_recall_points,
    roc_band,
    roc_points,
)
from medseq_tf.evaluation.metrics.metric_intervals import (
    DESCRIBED,
    FEW_PATIENTS,
    TABLE,
    LabelPredictions,
    MetricEstimate,
    brier_interval,
    difference_of,
    holm,
    label_row,
    mean_of,
    multiplicity,
)
from medseq_tf.evaluation.metrics.pixel_metrics import PIXEL_METRICS, evaluate_pixels, pixel_metrics
from medseq_tf.evaluation.metrics.point_metrics import (
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
    confusion,
    owners_of,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from medseq_tf.evaluation.metrics.proportions import wilson_interval
from medseq_tf.evaluation.metrics.resampling import (
    Estimate,
    bootstrap,
    owners_by_content,
    resample_weights,
)
from medseq_tf.evaluation.metrics.thresholds import choose_threshold, choose_thresholds

__all__ = [
    "DECISIONS",
    "DESCRIBED",
    "FEW_PATIENTS",
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
    "brier_interval",
    "calibration_intercept",
    "calibration_slope",
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
    "holm",
    "logits",
    "multiplicity",
    "net_benefit",
    "null_calibration_error",
    "observed_expected",
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


def evaluate_predictions(
    labels: Array,
    probabilities: Array,
    label_names: Sequence[str],
    thresholds: Array | float = 0.5,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    cuts: Mapping[str, Array] | None = None,
) -> pd.DataFrame:
    """Every metric of every label, and their mean over labels, with intervals over patients.

    The unit is the study; what varies is the patient, whatever the class. The methods are those of
    `metric_intervals`, named in the column `interval`. A label without both classes is left out of
    the macro average, which has no interval where one of its labels has none.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        thresholds: One, (labels,), or (studies, labels), such as that of each study's own model.
        patients: (studies,) owners; None: each study has its own.
        resamples: Not used any more: these intervals draw nothing.
        seed: Likewise.
        confidence: Of the intervals.
        cuts: By the names of `TRADE_OFFS`, the thresholds, as `thresholds`, that were chosen on
            other studies. Without them the cut is chosen on these, and there is no interval.

    Returns:
        Tidy, one row a label (then `macro`, if there are several) and metric of `TABLE`, with
        columns `label`, `metric`, `value`, `low`, `high`, `interval` (its method, or empty), `n`
        (studies with a known label), `positives` (studies), `patients`, `threshold` (nan if the
        metric has none, or several), and `note`.

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
    columns = _columns(label_names, labels, probabilities, thresholds, owners, cuts)
    return pd.DataFrame(_label_rows(columns, confidence))


def _columns(
    label_names: Sequence[str],
    labels: Array,
    probabilities: Array,
    thresholds: Array,
    owners: Array,
    cuts: Mapping[str, Array] | None,
) -> list[LabelPredictions]:
    """The labels' predictions one by one."""
    cuts = {name: np.broadcast_to(cut, labels.shape) for name, cut in (cuts or {}).items()}
    return [
        LabelPredictions(
            name,
            labels[:, i],
            probabilities[:, i],
            thresholds[:, i],
            owners,
            {metric: cut[:, i] for metric, cut in cuts.items() if not np.isnan(cut[:, i]).any()},
        )
        for i, name in enumerate(label_names)
    ]


def _label_rows(columns: list[LabelPredictions], confidence: float) -> list[dict]:
    """The rows of `evaluate_predictions` without folds."""
    estimates = [label.estimates(confidence) for label in columns]
    rows = [
        label_row(label, metric, estimate)
        for label, of_label in zip(columns, estimates, strict=True)
        for metric, estimate in of_label.items()
    ]
    if len(columns) == 1:
        return rows
    nowhere = np.full(len(columns[0].labels), np.nan)
    macro = LabelPredictions("macro", any_finding(columns), nowhere, nowhere, columns[0].patients)
    used = [i for i, label in enumerate(columns) if label.has_both_classes]
    if not used:
        nothing = MetricEstimate(float("nan"), note="no label has both classes")
        return rows + [label_row(macro, metric, nothing) for metric in TABLE]
    left_out = [label.name for label in columns if not label.has_both_classes]
    remark = f"without {', '.join(left_out)}: not both classes" if left_out else ""
    for metric in TABLE:
        parts = [estimates[i][metric] for i in used]
        # What is said of a label is said in the label's own row.
        said = [
            f"{columns[i].name}: {estimates[i][metric].note}"
            for i in used
            if not estimates[i][metric].has_interval
        ]
        note = "; ".join([*said, *filter(None, [remark])])
        rows.append(label_row(macro, metric, replace(mean_of(parts), note=note)))
    return rows


def any_finding(columns: Sequence[LabelPredictions]) -> Array:
    """Whether a study (studies,) has any of the labels, nan where none is known."""
    labels = np.stack([label.labels for label in columns], axis=1)
    return np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).any(axis=1))


def compare_predictions(
    labels: Array,
    probabilities: tuple[Array, Array],
    label_names: Sequence[str],
    thresholds: tuple[Array | float, Array | float] = (0.5, 0.5),
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    cuts: tuple[Mapping[str, Array] | None, Mapping[str, Array] | None] = (None, None),
) -> pd.DataFrame:
    """Differences of two models on the same studies, with intervals over patients.

    The AUROC of a label is compared by DeLong's paired test. Every other difference has the
    interval that follows from those of the two figures and their correlation over the patients
    (`proportions.combine`). With fewer than `FEW_PATIENTS` patients of the rarer class there is no
    p-value: the figures describe these patients.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: Of the first and the second model, (studies, labels) each.
        label_names: (labels,).
        thresholds: Of both models, as for `evaluate_predictions`.
        patients: (studies,) owners; None: each study has its own.
        resamples: Not used any more: these intervals draw nothing.
        seed: Likewise.
        confidence: Of the intervals.
        cuts: Of both models, as for `evaluate_predictions`.

    Returns:
        One row a label (then `macro`) and metric of `TABLE`: `label`, `metric`, `difference`
        (first minus second), `low`, `high`, `p` (two-sided; DeLong's test alone gives one),
        `method` and `note`.
    """
    labels = np.asarray(labels, dtype=float)
    owners = np.arange(len(labels)) if patients is None else owners_of(patients, len(labels))
    first, second = (
        _columns(
            label_names,
            labels,
            np.asarray(its, dtype=float),
            np.broadcast_to(np.asarray(cut, dtype=float), labels.shape),
            owners,
            its_cuts,
        )
        for its, cut, its_cuts in zip(probabilities, thresholds, cuts, strict=True)
    )
    return pd.DataFrame(_paired_rows(first, second, confidence))


def _paired_rows(
    first: list[LabelPredictions], second: list[LabelPredictions], confidence: float
) -> list[dict]:
    """The rows of `compare_predictions` without folds."""
    estimates = [[label.estimates(confidence) for label in model] for model in (first, second)]
    rows = []
    for a, b, of_a, of_b in zip(first, second, *estimates, strict=True):
        for metric in TABLE:
            found, p = difference_of([of_a[metric]], [of_b[metric]]), float("nan")
            notes = dict.fromkeys([of_a[metric].note, of_b[metric].note])
            if metric in TRADE_OFFS and found.has_interval:
                notes = {a.remark(): None}
            if metric == "auroc":
                test = delong_test(
                    a.labels, a.probabilities, b.probabilities, a.patients, confidence
                )
                found = MetricEstimate(found.value, test.low, test.high, "DeLong")
                notes, p = dict.fromkeys([test.note, a.remark()]), test.p
                if a.remark():
                    p = float("nan")
            note = "; ".join(filter(None, notes))
            rows.append(_difference_row(a.name, metric, replace(found, note=note), p))
    used = [i for i, label in enumerate(first) if label.has_both_classes]
    if len(first) > 1 and used:
        for metric in TABLE:
            parts = [[model[i][metric] for i in used] for model in estimates]
            without = [
                first[i].name
                for i in used
                if not all(model[i][metric].has_interval for model in estimates)
            ]
            note = f"no interval: {', '.join(without)} has none" if without else ""
            rows.append(_difference_row("macro", metric, replace(difference_of(*parts), note=note)))
    return rows


def _difference_row(label: str, metric: str, found: MetricEstimate, p: float = np.nan) -> dict:
    return {
        "label": label,
        "metric": metric,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p": p,
        "method": found.method,
        "note": found.note,
    }
