"""What a cross-validated recipe of classes can do, with intervals; see the folder's word on it.

A class is evaluated against the rest as a label is. Of the classes together the AUROCs are means
over the folds, with DeLong's variance of all the pairs of patients that they compare; all else is
over all studies at once, with the variance of bootstrap samples of patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
import pandas as pd

from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.cross_validation.fold_metrics import (
    MeanAuroc,
    Resampled,
    draw_patients,
    mean_auroc,
    resample,
    weighted_sum,
)
from medseq_tf.evaluation.cross_validation.predictions import HeldOut, LabelFolds
from medseq_tf.evaluation.cross_validation.tables import (
    METHOD,
    difference_estimate,
    difference_rows,
    label_rows,
    numbered_apart,
)
from medseq_tf.evaluation.cross_validation.variance import (
    VarianceComponents,
    between_folds,
    interval,
)
from medseq_tf.evaluation.metrics.class_estimates import ClassFigures, one_against_rest_names
from medseq_tf.evaluation.metrics.class_metrics import CLASS_METRICS, ClassPredictions
from medseq_tf.evaluation.metrics.estimates import NAN, Estimate, difference_row, metric_row
from medseq_tf.evaluation.metrics.point_metrics import Array
from medseq_tf.evaluation.metrics.resampling import variance_of_mean
from medseq_tf.readers.classes import Classes

RANKING = ("auroc", "auroc_pairwise")
"""Of the classes together, the metrics that are means over the folds."""

MEANS_OF_CLASSES = ("balanced_accuracy", *RANKING, "f1_macro")
OF_EACH_CLASS = (*MEANS_OF_CLASSES, "kappa", "kappa_quadratic")
"""Those that the rarest class decides; the others are means over the studies."""


@dataclass(frozen=True)
class ClassFolds:
    """Held-out predictions of studies of known class, a row a study and repeat.

    Attributes:
        figures: of all rows, their owners being the patients.
        studies: (rows,) ids.
        folds: (rows,) a number unique over all repeats.
        repeats: (rows,).
    """

    figures: ClassFigures
    studies: Array
    folds: Array
    repeats: Array

    @classmethod
    def of(cls, table: ClassTable, costs: Array | None = None) -> ClassFolds:
        """Read a table; a model without folds is one fold, predictions without repeats are one."""
        known = table.known
        figures = ClassFigures.of(
            known.truth, known.probabilities, known.classes, known.called, known.patients, costs
        )
        ones = np.ones(len(known), int)
        numbers = (known.studies.get(name, ones) for name in ("fold", "repeat"))
        return cls(figures, known.studies["study"].to_numpy(), *map(np.asarray, numbers))

    @property
    def classes(self) -> Classes:
        """What is told apart."""
        return self.figures.classes

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics of the classes together."""
        return self.figures.metrics

    @cached_property
    def against_rest(self) -> list[LabelFolds]:
        """Each class as a label, positive where it is called."""
        predictions, names = self.figures.predictions, self.classes.names
        called = predictions.called[:, None] == np.arange(len(names))
        return self._labels(names, predictions.one_hot, predictions.probabilities, called)

    @cached_property
    def pairs(self) -> list[LabelFolds]:
        """Each class against each other one, ranked by its probability."""
        predictions, names = self.figures.predictions, self.classes.names
        both = list(permutations(range(len(names)), 2))
        truth = np.stack([predictions.pair(i, j) for i, j in both], axis=1)
        probabilities = predictions.probabilities[:, [i for i, _ in both]]
        titles = [f"{names[i]} and {names[j]}" for i, j in both]
        return self._labels(titles, truth, probabilities, np.zeros(truth.shape, bool))

    def _labels(
        self, names: Sequence[str], truth: Array, probabilities: Array, called: Array
    ) -> list[LabelFolds]:
        nowhere = np.full(truth.shape, np.nan)
        of_rows = (self.figures.patients, self.studies, self.folds, self.repeats)
        held_out = HeldOut(names, truth, probabilities, nowhere, *of_rows, called)
        return [held_out.of(number) for number in range(len(names))]

    def ranking(self, metric: str) -> MeanAuroc | None:
        """The mean over the folds, and over the classes or pairs; None where no fold can say."""
        labels = self.against_rest if metric == "auroc" else self.pairs
        able = [label for label in labels if label.rows]
        return mean_auroc(able) if able else None

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many studies there are, how many have one of the classes, and how many patients."""
        studies = len(np.unique(self.studies))
        return studies, studies, self.figures.patient_count

    def support(self, metric: str) -> int:
        """The number of patients behind a metric: all, or of the rarest class that there is."""
        if metric not in OF_EACH_CLASS:
            return self.figures.patient_count
        return min((count for count in self.figures.patients_by_class() if count), default=0)

    @property
    def inflation(self) -> float:
        """How much more than the tested patients alone the estimate varies."""
        return self.against_rest[0].inflation

    def resample(self, weights: Sequence[Array]) -> Resampled:
        """Compute what is over all studies, also in the samples of `draw_patients`."""
        owner = np.unique(self.figures.patients, return_inverse=True)[1]
        names = [name for name in self.metrics if name not in RANKING]
        everyone = self.figures.predictions

        def compute(predictions: ClassPredictions, weights: Array) -> dict[str, Array]:
            return {name: CLASS_METRICS[name](predictions, weights) for name in names}

        drawn = [compute(everyone, pieces[:, owner]) for pieces in weights]
        values = compute(everyone, np.ones(len(owner)))
        by_fold = {}
        for fold in np.unique(self.folds):
            own = self.folds == fold
            of_fold = ClassPredictions(
                everyone.truth[own],
                everyone.probabilities[own],
                everyone.called[own],
                everyone.costs,
            )
            by_fold[int(fold)] = compute(of_fold, np.ones(own.sum()))
        return Resampled(
            {name: float(values[name]) for name in names},
            {name: np.concatenate([sample[name] for sample in drawn]) for name in names},
            {name: {fold: float(own[name]) for fold, own in by_fold.items()} for name in names},
            {fold: int(self.repeats[self.folds == fold][0]) for fold in by_fold},
        )


def evaluate_class_folds(
    table: ClassTable, resamples: int = 2000, costs: Array | None = None
) -> pd.DataFrame:
    """Evaluate the classes together, then each against the rest, with intervals of the recipe.

    Returns:
        As `metrics.evaluate_classes`, `interval` being `METHOD`.
    """
    folds = ClassFolds.of(table, costs)
    everyone = np.zeros(folds.figures.patient_count)
    resampled = folds.resample(draw_patients(everyone, resamples))
    rows = [
        metric_row(
            folds.classes.column, name, _estimate(name, folds, resampled), folds.counts, np.zeros(0)
        )
        for name in folds.metrics
    ]
    names = one_against_rest_names()
    for label in folds.against_rest:
        weights = draw_patients(label.patient_known, resamples)
        of_label = label_rows(label, [label], resample(label, weights), label.left_out)
        rows += [row for row in of_label if row["metric"] in names]
    return pd.DataFrame(rows)


def _estimate(metric: str, folds: ClassFolds, resampled: Resampled) -> Estimate:
    """A metric of the classes together, with its interval or the reason why it has none."""
    components, defined = _components(metric, folds, resampled)
    value, support = components.value, folds.support(metric)
    names, counts = folds.classes.names, folds.figures.patients_by_class()
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    of_classes = metric in OF_EACH_CLASS and absent
    notes = [f"without {', '.join(absent)}: no study"] if of_classes else []
    if metric in RANKING:
        present = [label for label in folds.against_rest if label.has_both_classes]
        notes += [f"{label.name}: {words}" for label in present for words in label.left_out]
    if not np.isfinite(value):
        return Estimate(note="; ".join([*notes, "undefined: fewer than two classes"]))
    if metric == "expected_calibration_error":
        return Estimate(value, note="no interval: right probabilities have one too, by chance")
    if metric == "log_loss":  # simulated: it held in 0.78 of small cohorts of nearly perfect ones
        return Estimate(value, note="no interval: gross errors that were not seen may decide it")
    if support < 2:
        return Estimate(value, note="; ".join([*notes, "no interval: a class has one patient"]))
    if defined < 0.5:
        notes.append(f"no interval: undefined in {1 - defined:.1%} of resamples")
        return Estimate(value, note="; ".join(notes))
    bounds = _bounds(metric, folds, components)
    if bounds is None:
        return Estimate(value, note="; ".join([*notes, "no interval: it does not vary"]))
    notes.append(folds.figures.remark())
    return Estimate(value, *bounds, "; ".join(filter(None, notes)), METHOD)


def _bounds(
    metric: str, folds: ClassFolds, components: VarianceComponents
) -> tuple[float, float] | None:
    """The interval of a metric: as `interval` has it, of where it lies from best to worst."""
    best, worst = 0.0, 1.0
    if metric not in MEANS_OF_CLASSES:
        best, worst = folds.figures.range_of(metric)
    if best == worst:
        return None
    share = components.scaled(best, worst)
    bounds = interval(share, folds.inflation, folds.support(metric))
    ends = sorted(best + (worst - best) * bound for bound in bounds)
    low, high = (float(end) for end in np.clip(ends, *folds.figures.limits(metric)))
    return low, high


def _components(
    metric: str, folds: ClassFolds, resampled: Resampled
) -> tuple[VarianceComponents, float]:
    """A metric with its variance, and in how many resamples it is defined."""
    if metric in RANKING:
        mean = folds.ranking(metric)
        return (mean.variance() if mean else VarianceComponents()), 1.0
    support = folds.support(metric)
    return resampled.variance(metric, support, support)


def confusion_of_folds(table: ClassTable) -> pd.DataFrame:
    """How many studies of each class are called which, with intervals of the recipe.

    Returns:
        As `metrics.confusion_table`; over repeats the counts are means.
    """
    folds, rows = ClassFolds.of(table), []
    truth, called = folds.figures.predictions.truth, folds.figures.predictions.called
    repeats = max(len(np.unique(folds.repeats)), 1)
    for i, true in enumerate(folds.classes.names):
        own = truth == i
        for j, other in enumerate(folds.classes.names):
            hits = (called[own] == j).astype(float)
            share = _share(hits, own, folds)
            bounds = {"low": share.low, "high": share.high, "interval": share.method}
            row = {"true": true, "called": other, "count": hits.sum() / repeats}
            rows.append({**row, "share": share.value, **bounds})
    return pd.DataFrame(rows)


def _share(hits: Array, own: Array, folds: ClassFolds) -> Estimate:
    """The share of some studies that are 1 in `hits`; `own` (rows,) says which they are."""
    if not len(hits):
        return Estimate()
    value, owners = float(hits.mean()), np.unique(folds.figures.patients[own], return_inverse=True)
    count = len(owners[0])
    if count < 2:
        return Estimate(value)
    patients = variance_of_mean(hits - value, owners[1])
    of_fold = pd.Series(hits).groupby(folds.folds[own]).mean().to_dict()
    repeats = dict(zip(folds.folds, folds.repeats, strict=True))
    between = between_folds(of_fold, repeats, patients)
    components = VarianceComponents(value, patients, between, count - 1)
    return Estimate(value, *interval(components, folds.inflation, count), method=METHOD)


# ----------------------------------------------------------------------------- two recipes


def compare_class_folds(
    first: ClassTable, second: ClassTable, resamples: int = 2000, costs: Array | None = None
) -> pd.DataFrame:
    """Compare two models of classes on the same studies, of which one at least is cross-validated.

    As `compare_folds`; rows of the classes together come first, and `p` is that of the AUROCs.

    Returns:
        As `metrics.compare_classes`.
    """
    a, b = ClassFolds.of(first, costs), ClassFolds.of(second, costs)
    b = numbered_apart(a, b)
    weights = draw_patients(np.zeros(a.figures.patient_count), resamples)
    resampled = weighted_sum([a.resample(weights), b.resample(weights)], [1.0, -1.0])
    rows = []
    for name in a.metrics:
        estimate, p = _difference(name, a, b, resampled)
        rows.append(difference_row(a.classes.column, name, replace(estimate, method=METHOD), p))
    names = one_against_rest_names()
    for label, other in zip(a.against_rest, b.against_rest, strict=True):
        weights = draw_patients(label.patient_known, resamples)
        of_label = difference_rows(label.name, [(label, other)], weights)
        rows += [row for row in of_label if row["metric"] in names]
    return pd.DataFrame(rows)


def _difference(
    metric: str, a: ClassFolds, b: ClassFolds, resampled: Resampled
) -> tuple[Estimate, float]:
    """A difference of two recipes with its interval, and the p-value of one that ranks."""
    support, inflation = a.support(metric), max(a.inflation, b.inflation)
    if metric in RANKING:
        of_first, of_second = a.ranking(metric), b.ranking(metric)
        if of_first is None or of_second is None:
            return Estimate(note="no fold has both classes"), NAN
        components, defined = of_first.minus(of_second).variance(), 1.0
    else:
        components, defined = resampled.variance(metric, support, support)
    if support < 2 or metric == "expected_calibration_error":
        why = "a class has one patient" if support < 2 else "right probabilities have one too"
        return Estimate(components.value, note=f"no interval: {why}"), NAN
    reach = a.figures.reach(metric)
    estimate, p = difference_estimate(components, defined, inflation, reach)
    return estimate, p if metric in RANKING else NAN
