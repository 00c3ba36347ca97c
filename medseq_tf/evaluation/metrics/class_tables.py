"""Tables of metrics of classes that exclude each other, with intervals over patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from medseq_tf.evaluation.metrics.class_estimates import ClassFigures
from medseq_tf.evaluation.metrics.estimates import NAN, Estimate, difference_row, metric_row
from medseq_tf.evaluation.metrics.label_estimates import weighted_sum
from medseq_tf.evaluation.metrics.point_metrics import Array, owners_of
from medseq_tf.evaluation.metrics.proportions import (
    cautious_correlation,
    correlation,
    effective_interval,
    wilson_interval,
)
from medseq_tf.evaluation.metrics.resampling import variance_of_mean
from medseq_tf.evaluation.metrics.tables import label_difference
from medseq_tf.readers.classes import Classes

NO_THRESHOLD = np.zeros(0)


def evaluate_classes(
    truth: Array,
    probabilities: Array,
    classes: Classes,
    called: Array | None = None,
    patients: Array | None = None,
    costs: Array | None = None,
) -> pd.DataFrame:
    """Every metric of the classes together, and of each class against the rest.

    The unit is the study; what varies is the patient, whatever the class. The methods are those of
    `class_estimates`, named in the column `interval`. A macro mean leaves out a class without a
    study, and its note says so; it has no interval where a class has one patient alone.

    Args:
        truth: (studies, classes) one-hot; a row of nan is unknown and left out.
        probabilities: (studies, classes), which add up to 1.
        classes: their names.
        called: (studies,) numbers of the called classes; None: as `call` calls them.
        patients: (studies,) owners; None: each study has its own.
        costs: (classes, classes) of a call, true by called; None: none are given.

    Returns:
        As `evaluate_predictions`, without thresholds: rows of the classes together under the name
        of their column, whose `positives` are all studies, then those of each class.

    Raises:
        InputError: arrays of another shape, or numbers that are none of these.
    """
    figures = ClassFigures.of(truth, probabilities, classes, called, patients, costs)
    by_class, labels = figures.estimates_by_class(), figures.against_rest()
    rows = [
        metric_row(classes.column, metric, estimate, figures.counts(), NO_THRESHOLD)
        for metric, estimate in figures.estimates(by_class).items()
    ]
    rows += [
        metric_row(name, metric, estimate, labels[name].counts, NO_THRESHOLD)
        for name, estimates in by_class.items()
        for metric, estimate in estimates.items()
    ]
    return pd.DataFrame(rows)


def compare_classes(
    truth: Array,
    probabilities: tuple[Array, Array],
    classes: Classes,
    called: tuple[Array | None, Array | None] = (None, None),
    patients: Array | None = None,
    costs: Array | None = None,
) -> pd.DataFrame:
    """Differences of two models on the same studies, with intervals over patients.

    The AUROC of a class is compared by DeLong's paired test, accuracy by McNemar's exact one where
    each patient has one study. Every other difference has the interval that follows from those of
    the two figures and their correlation over the patients (`proportions.combine`), of log losses
    a cautious one (`proportions.cautious_correlation`). With fewer than `FEW_PATIENTS` patients of
    the rarest class there is no p-value.

    The arguments are those of `evaluate_classes`, two of them of the first and second model.

    Returns:
        As `compare_predictions`, rows of the classes together, then those of each class.
    """
    owners = np.arange(len(truth)) if patients is None else owners_of(patients, len(truth))
    first, second = (
        ClassFigures.of(truth, own, classes, calls, owners, costs)
        for own, calls in zip(probabilities, called, strict=True)
    )
    by_class = [figures.estimates_by_class() for figures in (first, second)]
    together = [
        figures.estimates(of) for figures, of in zip((first, second), by_class, strict=True)
    ]
    rows = []
    for metric, estimate in together[0].items():
        pair, p = (estimate, together[1][metric]), NAN
        difference = _difference(metric, *pair, first.reach(metric))
        if metric == "accuracy" and first.has_one_study_each and not first.remark():
            p = mcnemar(first, second)
            difference = replace(difference, method=f"{difference.method}; p: McNemar")
        rows.append(difference_row(classes.column, metric, difference, p))
    labels = [figures.against_rest() for figures in (first, second)]
    for name in classes.names:
        a, b = (of[name] for of in labels)
        of_a, of_b = (of[name] for of in by_class)
        for metric in of_a:
            difference, p = label_difference(a, b, of_a[metric], of_b[metric], metric)
            rows.append(difference_row(name, metric, difference, p))
    return pd.DataFrame(rows)


def _difference(metric: str, first: Estimate, second: Estimate, reach: float) -> Estimate:
    """One figure of all classes, the first model's less the second's, at most `reach`."""
    related = cautious_correlation if metric == "log_loss" else correlation
    difference = weighted_sum([first, second], [1.0, -1.0], (-reach, reach), related)
    note = "; ".join(filter(None, dict.fromkeys([first.note, second.note])))
    if metric == "expected_calibration_error":
        note = "no interval: right probabilities have an error too"
    return replace(difference, note=note)


def mcnemar(first: ClassFigures, second: ClassFigures) -> float:
    """The two-sided p-value that two models call equally many studies right (McNemar 1947).

    Exact: of the studies that one alone calls right, each model has half by chance.
    """
    right = [figures.predictions.called == figures.predictions.truth for figures in (first, second)]
    alone = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return float(stats.binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0


def confusion_table(
    truth: Array, called: Array, classes: Classes, patients: Array | None = None
) -> pd.DataFrame:
    """How many studies of each class are called which.

    Args:
        truth: (studies, classes) one-hot; a row of nan is unknown and left out.
        called: (studies,) numbers of the called classes.
        classes: their names.
        patients: (studies,) owners; None: each study has its own.

    Returns:
        One row a true and a called class: `true`, `called`, `count` (studies), `share` of the true
        class's studies, its `low` and `high` (95%, over patients; nan of fewer than two patients),
        and `interval`, the method.
    """
    truth = np.asarray(truth, dtype=float)
    nothing_told = np.full(truth.shape, 1 / len(classes.names))
    figures = ClassFigures.of(truth, nothing_told, classes, called, patients)
    rows = []
    for i, true in enumerate(classes.names):
        own = figures.predictions.truth == i
        owners = np.unique(figures.patients[own], return_inverse=True)[1]
        for j, other in enumerate(classes.names):
            hits = (figures.predictions.called[own] == j).astype(float)
            share = _share(hits, owners)
            row = {"true": true, "called": other, "count": int(hits.sum()), "share": share.value}
            row |= {"low": share.low, "high": share.high, "interval": share.method}
            rows.append(row)
    return pd.DataFrame(rows)


def _share(hits: Array, owners: Array) -> Estimate:
    """The share of studies (studies,) that are 1, with its interval over patients 0, 1, ...."""
    if not len(hits):
        return Estimate()
    value, count = float(hits.mean()), int(owners.max()) + 1
    if count < 2:
        return Estimate(value)
    if count == len(hits):
        low, high = wilson_interval(hits.sum(), count)
        return Estimate(value, float(low), float(high), method="Wilson")
    bounds = effective_interval(value, variance_of_mean(hits - value, owners), count)
    return Estimate(value, *bounds, method="Wilson, effective n")
