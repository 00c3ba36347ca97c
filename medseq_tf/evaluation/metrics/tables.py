"""Tables of metrics with intervals over patients, of one model, and of two compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.auc_intervals import delong_test
from medseq_tf.evaluation.metrics.catalogue import CATALOGUE
from medseq_tf.evaluation.metrics.estimates import NAN, Estimate, difference_row, metric_row
from medseq_tf.evaluation.metrics.label_estimates import LabelPredictions, difference_of, mean_of
from medseq_tf.evaluation.metrics.point_metrics import Array, owners_of
from medseq_tf.evaluation.metrics.resampling import owners_by_content


def evaluate_predictions(
    labels: Array,
    probabilities: Array,
    label_names: Sequence[str],
    thresholds: Array | float = 0.5,
    patients: Array | None = None,
    cuts: Mapping[str, Array] | None = None,
) -> pd.DataFrame:
    """Every metric of every label, and their mean over labels, with intervals over patients.

    The unit is the study; what varies is the patient, whatever the class. The methods are those of
    `label_estimates`, named in the column `interval`. A label without both classes is left out of
    the macro average, which has no interval where one of its labels has none.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        thresholds: One, (labels,), or (studies, labels), such as that of each study's own model.
        patients: (studies,) owners; None: each study has its own.
        cuts: By the names of `TRADE_OFFS`, the thresholds, as `thresholds`, that were chosen on
            other studies. Without them the cut is chosen on these, and there is no interval.

    Returns:
        Tidy, one row a label (then `macro`, if there are several) and metric of `CATALOGUE`, with
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
    if patients is None:
        owners = owners_by_content(labels, probabilities)
    else:
        owners = owners_of(patients, len(labels))
    return pd.DataFrame(
        _label_rows(_columns(label_names, labels, probabilities, thresholds, owners, cuts))
    )


def _columns(
    label_names: Sequence[str],
    labels: Array,
    probabilities: Array,
    thresholds: Array | float,
    owners: Array,
    cuts: Mapping[str, Array] | None,
) -> list[LabelPredictions]:
    """The labels' predictions one by one."""
    probabilities = np.asarray(probabilities, dtype=float)
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype=float), labels.shape)
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


def _label_rows(columns: list[LabelPredictions]) -> list[dict[str, Any]]:
    """The rows of `evaluate_predictions`."""
    estimates = [label.estimates() for label in columns]
    rows = [
        metric_row(label.name, metric, estimate, label.counts, label.thresholds_of(metric))
        for label, of_label in zip(columns, estimates, strict=True)
        for metric, estimate in of_label.items()
    ]
    if len(columns) == 1:
        return rows
    used = [i for i, label in enumerate(columns) if label.has_both_classes]
    left_out = [label.name for label in columns if not label.has_both_classes]
    remark = f"without {', '.join(left_out)}: not both classes" if left_out else ""
    nowhere = np.full(len(columns[0].labels), np.nan)
    any_label = any_positive(np.stack([label.labels for label in columns], axis=1))
    macro = LabelPredictions("macro", any_label, nowhere, nowhere, columns[0].patients)
    for metric in CATALOGUE:
        mean = Estimate(note="no label has both classes")
        if used:
            # What is to be said of a label's interval stands in the label's own row.
            notes = [
                f"{columns[i].name}: {estimates[i][metric].note}"
                for i in used
                if not estimates[i][metric].has_interval
            ]
            note = "; ".join(filter(None, [*notes, remark]))
            mean = replace(mean_of([estimates[i][metric] for i in used]), note=note)
        rows.append(metric_row("macro", metric, mean, macro.counts, np.zeros(0)))
    return rows


def any_positive(labels: Array) -> Array:
    """Whether each study has any of the labels (studies, labels), nan where none is known."""
    return np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).any(axis=1))


def compare_predictions(
    labels: Array,
    probabilities: tuple[Array, Array],
    label_names: Sequence[str],
    thresholds: tuple[Array | float, Array | float] = (0.5, 0.5),
    patients: Array | None = None,
    cuts: tuple[Mapping[str, Array] | None, Mapping[str, Array] | None] = (None, None),
) -> pd.DataFrame:
    """Differences of two models on the same studies, with intervals over patients.

    The AUROC of a label is compared by DeLong's paired test. Every other difference has the
    interval that follows from those of the two figures and their correlation over the patients
    (`proportions.combine`). With fewer than `FEW_PATIENTS` patients of the rarer class there is no
    p-value: the figures describe these patients.

    The arguments are those of `evaluate_predictions`, three of them of the first and second model.

    Returns:
        One row a label (then `macro`) and metric of `CATALOGUE`: `label`, `metric`, `difference`
        (first minus second), `low`, `high`, `p` (two-sided; DeLong's test alone gives one),
        `method` and `note`.
    """
    labels = np.asarray(labels, dtype=float)
    owners = np.arange(len(labels)) if patients is None else owners_of(patients, len(labels))
    first, second = (
        _columns(label_names, labels, own, threshold, owners, own_cuts)
        for own, threshold, own_cuts in zip(probabilities, thresholds, cuts, strict=True)
    )
    return pd.DataFrame(_paired_rows(first, second))


def _paired_rows(
    first: list[LabelPredictions], second: list[LabelPredictions]
) -> list[dict[str, Any]]:
    """The rows of `compare_predictions`."""
    estimates = [[label.estimates() for label in model] for model in (first, second)]
    rows = []
    for a, b, of_a, of_b in zip(first, second, *estimates, strict=True):
        for metric in CATALOGUE:
            difference, p = label_difference(a, b, of_a[metric], of_b[metric], metric)
            rows.append(difference_row(a.name, metric, difference, p))
    used = [i for i, label in enumerate(first) if label.has_both_classes]
    if len(first) > 1 and used:
        for metric in CATALOGUE:
            of_first, of_second = ([model[i][metric] for i in used] for model in estimates)
            without = [
                first[i].name
                for i, *pair in zip(used, of_first, of_second, strict=True)
                if not all(estimate.has_interval for estimate in pair)
            ]
            note = f"no interval: {', '.join(without)} has none" if without else ""
            difference = replace(difference_of(of_first, of_second), note=note)
            rows.append(difference_row("macro", metric, difference))
    return rows


def label_difference(
    a: LabelPredictions,
    b: LabelPredictions,
    of_a: Estimate,
    of_b: Estimate,
    metric: str,
) -> tuple[Estimate, float]:
    """One metric of one label, the first model's less the second's, and the p-value."""
    difference = difference_of([of_a], [of_b])
    if CATALOGUE[metric].interval == "DeLong":
        test = delong_test(a.labels, a.probabilities, b.probabilities, a.patients)
        note = "; ".join(filter(None, dict.fromkeys([test.note, a.remark()])))
        estimate = Estimate(difference.value, test.low, test.high, note, "DeLong")
        return estimate, NAN if a.remark() else test.p
    notes = [of_a.note, of_b.note]
    if CATALOGUE[metric].kind == "trade-off" and difference.has_interval:
        notes = [a.remark()]
    note = "; ".join(filter(None, dict.fromkeys(notes)))
    return replace(difference, note=note), NAN
