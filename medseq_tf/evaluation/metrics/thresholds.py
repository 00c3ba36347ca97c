"""The threshold from which a study is called positive, chosen by a rule on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    Confusion,
    by_score,
    class_counts,
    known_studies,
)
from medseq_tf.recipe import threshold_rule


def choose_threshold(labels: Array, probabilities: Array, rule: str = "youden") -> float:
    """Choose the operating point by a rule; on validation, never on test.

    Candidates lie halfway between neighbouring observed probabilities, at half of the lowest and
    halfway from the highest to 1 (just above 1 if that is observed). Ties go to the higher Youden
    index, then to the lower threshold.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        rule: as `fit.threshold` of a recipe.

    Raises:
        InputError: An unknown rule, or only one class.
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


def choose_thresholds(
    labels: Array, probabilities: Array, label_names: Sequence[str], rule: str = "youden"
) -> tuple[Array, list[str]]:
    """Choose each label's threshold; 0.5, and a note, where a label has only one class.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        rule: As for `choose_threshold`.

    Returns:
        Thresholds (labels,), and the notes.
    """
    _objective(rule)
    thresholds, notes = np.full(len(label_names), 0.5), []
    for index, name in enumerate(label_names):
        column = np.asarray(labels, dtype=float)[:, index]
        if len(np.unique(column[~np.isnan(column)])) < 2:
            notes.append(f"{name}: {class_counts(column)}, so the threshold is 0.5")
        else:
            thresholds[index] = choose_threshold(column, np.asarray(probabilities)[:, index], rule)
    return thresholds, notes


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
