"""Operating points: the threshold from which a study is called positive, chosen on validation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    Confusion,
    by_score,
    class_counts,
    known_studies,
)


def choose_threshold(labels: Array, probabilities: Array, rule: str = "youden") -> float:
    """The operating point by a rule; to be chosen on validation, never on test.

    Candidates lie halfway between neighbouring observed probabilities, at half of the lowest and
    halfway from the highest to 1 (just above 1 if that is observed). Ties go to the higher Youden
    index, then to the lower threshold.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        rule: `youden` (sensitivity + specificity - 1), `f1`, `f1_macro`, `accuracy`,
            `sensitivity>=X` (the most specific that finds this share), or `specificity>=X` (the
            most sensitive that keeps this share).

    Raises:
        InputError: An unknown rule, or only one class.
    """
    objective = _rule(rule)
    labels, probabilities, _, _ = known_studies(labels, probabilities, None, unit_interval=True)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"no threshold can be chosen: {class_counts(labels)}; both classes are needed"
        )
    positives, negatives, observed = by_score(labels, probabilities, None)
    found, false = (np.concatenate([[0], np.cumsum(part)]) for part in (positives, negatives))
    counts = Confusion(found, false, false[-1] - false, found[-1] - found)
    top = max(1.0, np.nextafter(observed[0], np.inf))
    above, below = np.concatenate([[top], observed]), np.concatenate([observed, [0.0]])
    candidates = below + (above - below) / 2
    # Halfway between two neighbouring floats is one of them: only the upper one splits them.
    candidates = np.where(candidates <= below, above, candidates)
    score = objective(counts).round(12)
    youden = (counts.recall + counts.specificity - 1).round(12)
    return float(candidates[np.lexsort([candidates, -youden, -score])[0]])


def choose_thresholds(
    labels: Array, probabilities: Array, label_names: Sequence[str], rule: str = "youden"
) -> tuple[Array, list[str]]:
    """`choose_threshold` for each label; 0.5, and a note, where a label has only one class.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        rule: As for `choose_threshold`.

    Returns:
        Thresholds (labels,), and the notes.
    """
    _rule(rule)
    thresholds, notes = np.full(len(label_names), 0.5), []
    for index, name in enumerate(label_names):
        column = np.asarray(labels, dtype=float)[:, index]
        if len(np.unique(column[~np.isnan(column)])) < 2:
            notes.append(f"{name}: {class_counts(column)}, so the threshold is 0.5")
        else:
            thresholds[index] = choose_threshold(column, np.asarray(probabilities)[:, index], rule)
    return thresholds, notes


def _rule(rule: str) -> Callable[[Confusion], Array]:
    simple = {
        "youden": lambda counts: counts.recall + counts.specificity - 1,
        "f1": lambda counts: counts.f1,
        "f1_macro": lambda counts: counts.f1_macro,
        "accuracy": lambda counts: counts.accuracy,
    }
    if rule in simple:
        return simple[rule]
    match = re.fullmatch(r"(sensitivity|specificity)\s*>=\s*(0(?:\.\d+)?|1(?:\.0+)?|\.\d+)", rule)
    if match is None:
        raise InputError(
            f"unknown threshold rule {rule!r}: expected one of {', '.join(simple)}, "
            "sensitivity>=X, specificity>=X (X from 0 to 1)"
        )
    kept, least = match[1], float(match[2]) - 1e-12

    def best_of_the_other(counts: Confusion) -> Array:
        rates = {"sensitivity": counts.recall, "specificity": counts.specificity}
        other = rates["specificity" if kept == "sensitivity" else "sensitivity"]
        return np.where(rates[kept] >= least, other, -np.inf)

    return best_of_the_other
