"""Weights by which candidates' probabilities are averaged, found by the log loss.

The log loss of an average depends on what each candidate gives to what is true, and on nothing
else, so that labels and classes are one case: see `TruthProbabilities`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseq_tf.evaluation.metrics.point_metrics import Array

STEPS = 20
"""Of the greedy selection: weights are multiples of 1 / 20, or of a larger share."""

ALIKE = 1e-9
"""Log losses that differ by less are equal, so that the order of the patients decides nothing."""


@dataclass(frozen=True)
class TruthProbabilities:
    """What candidates give to what is true, an item a study of known class, or a known label.

    Attributes:
        values: (candidates, items) probabilities.
        weights: (items,) of the mean, adding up to 1.
        owners: (items,) the patient's number, leaving no number out.
    """

    values: Array
    weights: Array
    owners: Array

    @classmethod
    def of(
        cls, truth: Array, predictions: Array, outputs: str, patients: Array
    ) -> TruthProbabilities:
        """Read predictions; each label has the same weight, whatever the studies it is known of.

        Args:
            truth: (rows, outputs) 0, 1 or nan.
            predictions: (candidates, rows, outputs) probabilities.
            outputs: `labels`, `classes` or `ordered`.
            patients: (rows,) owners.
        """
        known = ~np.isnan(truth)
        if outputs != "labels":
            known &= truth == 1
        rows, columns = np.nonzero(known)
        values = predictions[:, rows, columns]
        values = np.where(truth[rows, columns] == 1, values, 1 - values)
        weights = np.ones(len(rows))
        if outputs == "labels":
            weights = 1 / known.sum(axis=0)[columns]
        owners = np.unique(patients[rows], return_inverse=True)[1]
        least = np.finfo(float).eps
        return cls(np.clip(values, least, 1), weights / weights.sum(), owners)

    def losses(self, shares: Array) -> Array:
        """Log loss by patient (averages, patients), adding up to that of all.

        Args:
            shares: (averages, candidates), each adding up to 1.
        """
        items = -np.log(shares @ self.values) * self.weights
        owned = self.owners[:, None] == np.arange(self.owners.max(initial=-1) + 1)
        return items @ owned


def greedy(probabilities: TruthProbabilities) -> Array:
    """Shares (candidates,) by greedy selection with replacement (Caruana et al. 2004).

    Starting from nothing, the candidate that makes the average best is added, again and again; of
    all averages on the way the best is kept. Of equals the one that stands first is added.
    """
    values, weights = probabilities.values, probabilities.weights
    counts, total = np.zeros(len(values)), np.zeros(values.shape[1])
    best, least = counts, np.inf
    for step in range(1, STEPS + 1):
        losses = -np.log((total + values) / step) @ weights
        added = int(np.flatnonzero(losses <= losses.min() + ALIKE)[0])
        counts = counts + (np.arange(len(values)) == added)
        total = total + values[added]
        if losses[added] < least - ALIKE:
            best, least = counts / step, losses[added]
    return best


def spread(losses: Array) -> Array:
    """Standard error of sums over patients, (averages,) of differences (averages, patients)."""
    patients = losses.shape[1]
    rest = losses - losses.mean(axis=1, keepdims=True)
    return np.sqrt((rest**2).sum(axis=1) * patients / max(patients - 1, 1))
