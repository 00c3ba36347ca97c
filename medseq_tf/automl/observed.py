"""Patients with what is known of them, and how well probabilities rank them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medseq_tf.evaluation import cross_validation
from medseq_tf.evaluation.cross_validation import HeldOut, LabelFolds
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.point_metrics import Array, mean_of_numbers

ALIKE = 1e-9
"""AUROCs that differ by less are equal, so that the order of the patients decides nothing."""


class Ranking(NamedTuple):
    """AUROCs of several predictions of the same patients, and what each patient adds to them.

    Attributes:
        aurocs: (several,) means over the folds, and over labels or classes.
        parts: (several, patients) how far a patient's placements lie from the mean.
    """

    aurocs: Array
    parts: Array

    def behind_the_best(self) -> Array:
        """How far each is behind the best, in standard errors of the difference (several,).

        Of several that are best alike it is the first that the others are held against.
        """
        values = np.nan_to_num(self.aurocs)
        best = int(np.flatnonzero(values >= values.max() - ALIKE)[0])
        gap = values[best] - values
        patients = self.parts.shape[1]
        variance = ((self.parts[best] - self.parts) ** 2).sum(axis=1)
        error = np.sqrt(variance * patients / max(patients - 1, 1))
        return np.where(gap > ALIKE, gap / np.maximum(error, ALIKE), 0.0)


@dataclass(frozen=True)
class Observed:
    """Patients with what is known of them, a row a study and repeat.

    Attributes:
        truth: (rows, outputs) 0, 1 or nan.
        outputs: `labels`, `classes` or `ordered`.
        patients: (rows,) owners.
        folds: (rows,) which rows are of one model, a number unique over all repeats.
        repeats: (rows,).
    """

    truth: Array
    outputs: str
    patients: Array
    folds: Array
    repeats: Array

    def where(self, rows: Array) -> Observed:
        """The same of some rows (rows,) bool."""
        arrays = (self.patients[rows], self.folds[rows], self.repeats[rows])
        return Observed(self.truth[rows], self.outputs, *arrays)

    def ranking(self, probabilities: Array) -> Ranking:
        """How well several probabilities (several, rows, outputs) rank the patients.

        The figures are those of `cross_validation.mean_auroc`, for many predictions at once.
        """
        everyone, owner = np.unique(self.patients, return_inverse=True)
        columns = [self._of_column(probabilities, column) for column in range(self.truth.shape[1])]
        able = [one for one in columns if one is not None]
        if not able:
            nowhere = np.zeros((len(probabilities), len(everyone)))
            return Ranking(np.full(len(probabilities), np.nan), nowhere)
        values, rows = (np.mean(parts, axis=0) for parts in zip(*able, strict=True))
        return Ranking(values, np.stack([np.bincount(owner, one) for one in rows]))

    def _of_column(self, probabilities: Array, column: int) -> tuple[Array, Array] | None:
        """AUROCs (several,) of an output and the parts of the rows; None if no fold can say."""
        truth, folds = self.truth[:, column], []
        for fold in np.unique(self.folds):
            sides = [np.flatnonzero((self.folds == fold) & (truth == kind)) for kind in (1, 0)]
            if all(len(side) for side in sides):
                positive, negative = (probabilities[:, side, column] for side in sides)
                wins = (np.sign(positive[:, :, None] - negative[:, None]) + 1) / 2
                folds.append((sides, wins))
        if not folds:
            return None
        value = np.mean([wins.mean(axis=(1, 2)) for _, wins in folds], axis=0)
        parts = np.zeros(probabilities.shape[:2])
        for sides, wins in folds:
            for side, other in ((0, 2), (1, 1)):
                placed = wins.mean(axis=other) - value[:, None]
                parts[:, sides[side]] += placed / (len(sides[side]) * len(folds))
        return value, parts

    def log_losses(self, probabilities: Array) -> Array:
        """Mean log loss of several probabilities (several, rows, outputs), and over the labels."""
        of_truth = np.where(self.truth == 1, probabilities, 1 - probabilities)
        losses = -np.log(np.clip(of_truth, np.finfo(float).eps, 1))
        if self.outputs != "labels":
            return losses[:, self.truth == 1].mean(axis=1)
        known = np.where(np.isnan(self.truth), np.nan, losses)
        return mean_of_numbers(mean_of_numbers(np.moveaxis(known, 1, 0)).T)

    def _labels(self, probabilities: Array) -> list[LabelFolds]:
        """Probabilities (rows, outputs) of each label, or class against the rest, that has both."""
        names = [str(number) for number in range(self.truth.shape[1])]
        nowhere = np.full(self.truth.shape, np.nan)
        rows = (np.arange(len(self.truth)), self.folds, self.repeats)
        held_out = HeldOut(names, self.truth, probabilities, nowhere, self.patients, *rows)
        labels = [held_out.of(number) for number in range(len(names))]
        return [label for label in labels if label.has_both_classes]

    def auroc(self, probabilities: Array) -> Estimate:
        """The mean AUROC of probabilities (rows, outputs), with its interval."""
        return cross_validation.auroc_estimate(self._labels(probabilities))

    def lead(self, first: Array, second: Array) -> Estimate:
        """By how much the AUROC of the first probabilities (rows, outputs) is ahead."""
        pairs = [*zip(self._labels(first), self._labels(second), strict=True)]
        return cross_validation.auroc_difference(pairs)[0] if pairs else Estimate()
