"""The threshold from which a study is called positive, chosen by a rule on validation."""

from __future__ import annotations

from collections.abc import Callable
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
