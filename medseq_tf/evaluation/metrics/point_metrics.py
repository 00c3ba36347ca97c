"""Metrics of a binary label from probabilities, without intervals, for weighted studies.

A metric is written once, for weighted studies, so that a bootstrap is one call with a matrix of
counts. The arguments are those of all of `metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.recipe import threshold_rule

Array = np.ndarray

CONFIDENCE = 0.95
"""Of all intervals."""

TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
"""The quantiles that bound them."""


# ------------------------------------------------------------------------------ at a threshold


@dataclass(frozen=True)
class Confusion:
    """Counts of studies, each () or (resamples,), and the rates that follow from them.

    A rate whose denominator is 0 is nan.
    """

    true_positives: Array
    false_positives: Array
    true_negatives: Array
    false_negatives: Array

    @property
    def _of_negative(self) -> Confusion:
        """The same counts with the negative class as the one to be found."""
        counts = (self.true_positives, self.false_positives)
        return Confusion(self.true_negatives, self.false_negatives, *counts)

    @property
    def accuracy(self) -> Array:
        """Share of all studies that are classified rightly."""
        right = self.true_positives + self.true_negatives
        return ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def recall(self) -> Array:
        """Sensitivity: share of the positive studies that are found."""
        return ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> Array:
        """Share of the negative studies that are called negative."""
        return self._of_negative.recall

    @property
    def precision(self) -> Array:
        """Positive predictive value: share of the positive calls that are right."""
        return ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def negative_predictive_value(self) -> Array:
        """Share of the negative calls that are right."""
        return self._of_negative.precision

    @property
    def f1(self) -> Array:
        """Harmonic mean of precision and recall; 0 when every positive study is missed."""
        wrong = self.false_positives + self.false_negatives
        return ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def f1_negative(self) -> Array:
        """F1 of the negative class: harmonic mean of negative predictive value and specificity."""
        return self._of_negative.f1

    @property
    def balanced_accuracy(self) -> Array:
        """Mean of recall and specificity, which is the macro average of recall."""
        return (self.recall + self.specificity) / 2

    @property
    def recall_macro(self) -> Array:
        """Recall, averaged over the two classes (paper 1, tables 4 and 5)."""
        return self.balanced_accuracy

    @property
    def precision_macro(self) -> Array:
        """Precision, averaged over the two classes (paper 1, tables 4 and 5)."""
        return (self.precision + self.negative_predictive_value) / 2

    @property
    def f1_macro(self) -> Array:
        """F1, averaged over the two classes (paper 1, tables 4 and 5)."""
        return (self.f1 + self.f1_negative) / 2


def confusion(
    labels: Array, probabilities: Array, threshold: float | Array, weights: Array | None = None
) -> Confusion:
    """Count right and wrong calls; a study is called positive at `threshold` or above.

    The threshold is one for all, or (studies,), such as that of each study's own fold.
    """
    labels, probabilities, weights, known = known_studies(labels, probabilities, weights)
    threshold = np.broadcast_to(np.asarray(threshold, dtype=float), known.shape)[known]
    counts = weights @ np.stack(confusion_cells(probabilities >= threshold, labels == 1), axis=1)
    return Confusion(*np.moveaxis(counts, -1, 0))


def confusion_cells(called: Array, positive: Array) -> list[Array]:
    """1.0 where a study (studies,) is in a cell, for the counts of `Confusion` in their order."""
    cells = (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
    return [cell.astype(float) for cell in cells]


def choose_threshold(labels: Array, probabilities: Array, rule: str = "youden") -> float:
    """Choose the operating point by a rule; on validation, never on test.

    Candidates lie halfway between neighbouring observed probabilities, at half of the lowest and
    halfway from the highest to 1 (just above 1 if that is observed). Ties go to the higher Youden
    index, then to the lower threshold. The rules are those of `fit.threshold` of a recipe.

    Raises:
        InputError: an unknown rule, or only one class.
    """
    objective = _objective(rule)
    labels, probabilities, _, _ = known_studies(labels, probabilities, None, unit_interval=True)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"no threshold can be chosen: {class_counts(labels)}; both classes are needed"
        )
    positives, negatives, observed = by_score(labels, probabilities, None)
    true, false = (np.concatenate([[0], np.cumsum(kind)]) for kind in (positives, negatives))
    counts = Confusion(true, false, false[-1] - false, true[-1] - true)
    top = max(1.0, np.nextafter(observed[0], np.inf))
    above, below = np.concatenate([[top], observed]), np.concatenate([observed, [0.0]])
    candidates = below + (above - below) / 2
    # Halfway between two neighbouring floats is one of them: only the upper one splits them.
    candidates = np.where(candidates <= below, above, candidates)
    score = objective(counts).round(12)
    return float(candidates[np.lexsort([candidates, -youden(counts).round(12), -score])[0]])


def _objective(rule: str) -> Callable[[Confusion], Array]:
    """What a rule makes as great as possible."""
    try:
        kept, _, least = threshold_rule(rule).partition(">=")
    except ValueError as error:
        raise InputError(str(error)) from None
    if not least:
        return youden if rule == "youden" else attrgetter(rule)

    def best_of_the_other(counts: Confusion) -> Array:
        rates = {"sensitivity": counts.recall, "specificity": counts.specificity}
        allowed = rates.pop(kept.strip())
        (other,) = rates.values()
        return np.where(allowed >= float(least) - 1e-12, other, -np.inf)

    return best_of_the_other


def youden(counts: Confusion) -> Array:
    """Youden's index (1950): sensitivity + specificity - 1."""
    return counts.recall + counts.specificity - 1


# -------------------------------------------------------------------------- over all thresholds


def auroc(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Area under the ROC curve: a positive study ranks above a negative one, ties count half.

    The Mann-Whitney statistic on midranks; any increasing score serves in place of probabilities.
    """
    positives, negatives, _ = by_score(labels, probabilities, weights)
    negatives_below = negatives.sum(axis=-1, keepdims=True) - np.cumsum(negatives, axis=-1)
    concordant = (positives * (negatives_below + negatives / 2)).sum(axis=-1)
    return ratio(concordant, positives.sum(axis=-1) * negatives.sum(axis=-1))


def average_precision(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Area under the precision-recall curve in steps: sum of precision times the gain in recall."""
    positives, negatives, _ = by_score(labels, probabilities, weights)
    hits = np.cumsum(positives, axis=-1)
    called = hits + np.cumsum(negatives, axis=-1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    area = ratio((positives * precision).sum(axis=-1), hits[..., -1])
    return np.where(called[..., -1] > hits[..., -1], area, np.nan)


def sensitivity_at_specificity(
    labels: Array, probabilities: Array, specificity: float = 0.9, weights: Array | None = None
) -> Array:
    """The greatest sensitivity of any threshold that keeps at least this specificity."""
    sensitivities, specificities = operating_points(labels, probabilities, weights)
    return _best(sensitivities, specificities >= specificity - 1e-12)


def specificity_at_sensitivity(
    labels: Array, probabilities: Array, sensitivity: float = 0.9, weights: Array | None = None
) -> Array:
    """The greatest specificity of any threshold that keeps at least this sensitivity."""
    sensitivities, specificities = operating_points(labels, probabilities, weights)
    return _best(specificities, sensitivities >= sensitivity - 1e-12)


def _best(values: Array, allowed: Array) -> Array:
    """The greatest allowed value along the last axis, nan where none is allowed."""
    best = np.where(allowed, values, -np.inf).max(axis=-1)
    return np.where(allowed.any(axis=-1), best, np.nan)


def squared_error(labels: Array, probabilities: Array) -> Array:
    """Squared difference of probability and label, (studies,)."""
    return (probabilities - labels) ** 2


def mean_loss(
    loss: Callable[[Array, Array], Array],
    labels: Array,
    probabilities: Array,
    weights: Array | None = None,
) -> Array:
    """Mean over studies of a loss (labels, probabilities) -> (studies,); () or (resamples,)."""
    labels, probabilities, weights, _ = known_studies(
        labels, probabilities, weights, unit_interval=True
    )
    return ratio(weights @ loss(labels, probabilities), weights.sum(axis=-1))


def brier(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Brier score (Brier 1950): mean squared difference of probability and label."""
    return mean_loss(squared_error, labels, probabilities, weights)


# ----------------------------------------------------------------------------------- groundwork


def known_studies(
    labels: Array, probabilities: Array, weights: Array | None, unit_interval: bool = False
) -> tuple[Array, Array, Array, Array]:
    """Check labels and probabilities, and leave out studies of unknown label.

    Returns:
        Labels, probabilities and weights of the known studies, and which they are (studies,) bool.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    if labels.ndim != 1 or labels.shape != probabilities.shape:
        raise InputError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not fit: expected "
            "both (studies,)"
        )
    known = ~np.isnan(labels)
    wrong = known & (labels != 0) & (labels != 1)
    if wrong.any():
        raise InputError(f"label {labels[wrong][0]:g} of study {wrong.argmax()}: expected 0 or 1")
    wrong = known & ~np.isfinite(probabilities)
    if unit_interval:
        wrong |= known & ((probabilities < 0) | (probabilities > 1))
    if wrong.any():
        expected = "a number in [0, 1]" if unit_interval else "a finite number"
        raise InputError(
            f"probability {probabilities[wrong][0]:g} of study {wrong.argmax()}: "
            f"expected {expected}"
        )
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    return labels[known], probabilities[known], weights[..., known], known


def ratio(numerator: Array, denominator: Array) -> Array:
    """Their quotient, nan where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    )
    empty = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=empty, where=denominator != 0)


def mean_of_numbers(values: Array) -> Array:
    """Mean over the first axis of what is a number; nan where nothing is."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def by_score(
    labels: Array, probabilities: Array, weights: Array | None
) -> tuple[Array, Array, Array]:
    """Weight of positive and of negative studies at each distinct probability, highest first.

    Returns:
        Positives and negatives (..., distinct), and the probabilities (distinct,).
    """
    labels, probabilities, weights, _ = known_studies(labels, probabilities, weights)
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if not len(ordered):
        nothing = np.zeros((*weights.shape[:-1], 1))
        return nothing, nothing, np.array([np.nan])
    weights, positive = weights[..., order], labels[order] == 1
    positives = np.add.reduceat(weights * positive, starts, axis=-1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=-1)
    return positives, negatives, ordered[starts]


def operating_points(
    labels: Array, probabilities: Array, weights: Array | None
) -> tuple[Array, Array]:
    """Sensitivity and specificity (..., 1 + distinct), from nothing called positive to all."""
    positives, negatives, _ = by_score(labels, probabilities, weights)
    hits = np.cumsum(positives, axis=-1)
    false = np.cumsum(negatives, axis=-1)
    start = np.zeros((*hits.shape[:-1], 1))
    hits, false = (np.concatenate([start, counts], axis=-1) for counts in (hits, false))
    return ratio(hits, hits[..., -1:]), 1 - ratio(false, false[..., -1:])


def owners_of(patients: Array | None, studies: int) -> Array:
    """The patient of each study, (studies,); None: each study has its own."""
    if patients is None:
        return np.arange(studies)
    patients = np.asarray(patients)
    if patients.shape != (studies,):
        raise InputError(
            f"patients {patients.shape} do not fit {studies} studies: expected ({studies},)"
        )
    return patients


def class_counts(labels: Array) -> str:
    """How many studies are positive and negative, in words."""
    labels = np.asarray(labels, dtype=float)
    return f"{(labels == 1).sum()} positive and {(labels == 0).sum()} negative studies"


def class_limits(
    labels: Array,
    patients: Array | None,
    needed: tuple[str, ...] = ("positive", "negative"),
) -> list[str]:
    """Why the classes that a metric needs do not carry an interval; empty if they do."""
    labels = np.asarray(labels, dtype=float)
    owner = owners_of(patients, len(labels))
    limits = []
    for kind in needed:
        count = len(np.unique(owner[labels == (kind == "positive")]))
        if count < 2:
            limits.append(f"{'one' if count else 'no'} {kind} patient")
    return limits
