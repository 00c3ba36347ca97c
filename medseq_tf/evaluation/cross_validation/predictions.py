"""The held-out predictions of folds: which model said what of which patient's study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from medseq_tf.evaluation.cross_validation.variance import INFLATION
from medseq_tf.evaluation.metrics.catalogue import BOTH, CATALOGUE
from medseq_tf.evaluation.metrics.point_metrics import Array, class_limits
from medseq_tf.evaluation.metrics.tables import any_positive

ALIKE = 0.05
"""Folds whose probabilities differ, within a class, with a smaller p-value are not pooled."""


@dataclass(frozen=True)
class HeldOut:
    """A model's held-out predictions, a row a study and repeat.

    Attributes:
        labels: names.
        truth: (rows, labels) 0, 1 or nan.
        probabilities: (rows, labels).
        thresholds: (rows, labels), of the fold that tested the study.
        patients: (rows,) owners.
        studies: (rows,) ids.
        folds: (rows,) a number unique over all repeats.
        repeats: (rows,).
        called: (rows, labels) bool, which are called positive; None: those at their threshold or
            above.
    """

    labels: Sequence[str]
    truth: Array
    probabilities: Array
    thresholds: Array
    patients: Array
    studies: Array
    folds: Array
    repeats: Array
    called: Array | None = None

    def of(self, label: int) -> LabelFolds:
        """The predictions of one label, where it is known."""
        known = ~np.isnan(self.truth[:, label])
        everyone, owner = np.unique(self.patients, return_inverse=True)
        rows = (self.studies, self.folds, self.repeats)
        at_threshold = self.probabilities >= self.thresholds
        called = at_threshold if self.called is None else self.called
        return LabelFolds(
            self.labels[label],
            len(everyone),
            *(array[known, label] for array in (self.truth, self.probabilities, self.thresholds)),
            *(array[known] for array in (owner, *rows, called[:, label])),
        )

    def any_label(self) -> LabelFolds:
        """Whether any label is positive, as a label `macro` without predictions."""
        truth = any_positive(self.truth)[:, None]
        nowhere = np.full_like(truth, np.nan)
        columns = {"truth": truth, "probabilities": nowhere, "thresholds": nowhere}
        return replace(self, labels=["macro"], **columns).of(0)


def held_out(predictions: pd.DataFrame, labels: Sequence[str]) -> HeldOut:
    """Read a table of predictions, a row a study, label and repeat, for labels in the order wanted.

    Its columns are `patient`, `study`, `label`, `truth`, `probability`, `threshold` and, where they
    are not all of one model, `fold` and perhaps `repeat`.
    """
    labels = list(labels)
    missing = {name: 1 for name in ("fold", "repeat") if name not in predictions}
    wide = predictions.assign(**missing).pivot(
        index=["patient", "study", "repeat", "fold"],
        columns="label",
        values=["truth", "probability", "threshold"],
    )
    values = (
        wide[name].reindex(columns=labels).to_numpy(float)
        for name in ("truth", "probability", "threshold")
    )
    keys = (wide.index.get_level_values(name) for name in ("patient", "study", "fold", "repeat"))
    return HeldOut(labels, *values, *(key.to_numpy() for key in keys))


@dataclass(frozen=True)
class LabelFolds:
    """A model's held-out predictions of one label, as of `HeldOut`, where the label is known.

    Attributes:
        name: of the label.
        everyone: number of patients of the whole table.
        owner: (rows,) the patient's number among them.
        called: (rows,) bool, whether the study is called positive.
    """

    name: str
    everyone: int
    truth: Array
    probabilities: Array
    thresholds: Array
    owner: Array
    studies: Array
    folds: Array
    repeats: Array
    called: Array

    @cached_property
    def rows(self) -> dict[int, Array]:
        """Row numbers by fold, of the folds that have both classes."""
        by_fold = {fold: np.flatnonzero(self.folds == fold) for fold in np.unique(self.folds)}
        return {fold: rows for fold, rows in by_fold.items() if len(set(self.truth[rows])) == 2}

    @property
    def left_out(self) -> list[str]:
        """The folds that cannot be ranked, as a note."""
        names = [str(fold) for fold in np.unique(self.folds) if fold not in self.rows]
        return [f"without fold {', '.join(names)}: not both classes"] if names else []

    @property
    def has_both_classes(self) -> bool:
        """Whether there is a positive and a negative study."""
        return len(set(self.truth)) == 2

    @cached_property
    def classes(self) -> tuple[int, int]:
        """How many patients have a positive, and how many a negative study."""
        positive, negative = (len(np.unique(self.owner[self.truth == kind])) for kind in (1, 0))
        return positive, negative

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many studies there are, how many are positive, and how many patients."""
        studies, first = np.unique(self.studies, return_index=True)
        return len(studies), int((self.truth[first] == 1).sum()), len(np.unique(self.owner))

    @cached_property
    def patient_known(self) -> Array:
        """(everyone,) 0, or nan for patients of unknown label."""
        known = np.full(self.everyone, np.nan)
        known[self.owner] = 0
        return known

    @property
    def inflation(self) -> float:
        """How much more than the tested patients alone the estimate varies."""
        return INFLATION[1] - (INFLATION[1] - INFLATION[0]) / len(np.unique(self.repeats))

    def limits(self, metric: str) -> list[str]:
        """Why there is no interval of a metric; empty if there is one."""
        # The cut of a trade-off is chosen on these studies, for which it takes both classes.
        is_chosen_here = CATALOGUE[metric].kind == "trade-off"
        needed = BOTH if is_chosen_here else CATALOGUE[metric].classes
        return class_limits(self.truth, self.owner, needed)

    def support(self, metric: str) -> int:
        """The number of patients that a metric is a mean of, or of the rarer class."""
        if not CATALOGUE[metric].is_mean:
            return min(self.classes)
        studies = CATALOGUE[metric].studies(self.truth == 1, self.called)
        return len(np.unique(self.owner[studies]))

    def as_one_model(self) -> LabelFolds:
        """The same, with all folds of a repeat ranked together."""
        return replace(self, folds=self.repeats)

    @property
    def is_alike(self) -> bool:
        """Whether the folds' probabilities, class by class, could be of one model.

        By the test of Kruskal and Wallis (1952) in each repeat, of which the median counts.
        """
        for kind in (0, 1):
            ps = []
            for repeat in np.unique(self.repeats):
                own = (self.repeats == repeat) & (self.truth == kind)
                groups = [self.probabilities[own & (self.folds == fold)] for fold in self.rows]
                groups = [group for group in groups if len(group)]
                if len(groups) > 1 and len(set(np.concatenate(groups))) > 1:
                    ps.append(stats.kruskal(*groups).pvalue)
            if ps and np.median(ps) < ALIKE:
                return False
        return True
