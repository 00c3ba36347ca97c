"""Banzhaf values of slices, with an interval where they were sampled.

A game tells what the model predicts for a subset of a study's slices. The Banzhaf value of a slice
is how much it adds, on average, to a subset of the others, each subset as likely as any other. The
subset of no slice is one of them. No model predicts for it: its worth is the base value, the mean
prediction for studies of the same kind (the convention of SHAP; Lundberg and Lee 2017, section 4).

Up to `EXACT_UP_TO` slices every subset is shown. Above that random subsets are shown, each with its
complement, until the first slice is told apart from the others (or every subset, where that is no
more), and the values are the best linear fit of the prediction on which slices are shown (Hammer
and Holzman 1992, theorem 4.2: over all subsets it is the Banzhaf value exactly). A subset and its
complement are one observation: with the difference of their predictions, d, and z = 1 for a slice
in the subset and -1 for one outside, d = z @ values + error. The errors are of unequal size, so the
covariance is the heteroscedasticity-consistent one (HC3, MacKinnon and White 1985).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EXACT_UP_TO = 10
"""Slices of which every subset is shown."""
FIRST_SUBSETS = 512
"""Subsets shown at first; twice as many are shown until the values are `settled`."""
MOST_SUBSETS = 8192
PRECISE = 0.002
"""A standard error of a difference in probability below which no more subsets are shown."""
APART = 3.0
"""Standard errors between two slices that are told apart: many are compared, after every look."""

Game = Callable[[np.ndarray], np.ndarray]
"""What the model predicts, (subsets, labels), for subsets (subsets, slices), none of them empty."""


class SliceValues(NamedTuple):
    """Banzhaf values of the slices that were shown.

    Attributes:
        values: (slices, labels).
        covariance: (labels, slices, slices), of the sampling; 0 where every subset was shown.
        subsets: how many subsets of the slices the model was shown.
    """

    values: np.ndarray
    covariance: np.ndarray
    subsets: int


def banzhaf(
    game: Game,
    slices: int,
    base_values: np.ndarray,
    rng: np.random.Generator,
    most_subsets: int = MOST_SUBSETS,
    decisive: int | None = None,
) -> SliceValues:
    """Return the Banzhaf value of each slice; `base_values` (labels,) is the worth of no slice.

    Of more than `EXACT_UP_TO` slices at most `most_subsets` are drawn, until the values of the
    first `decisive` labels (None: of all) are `settled`.
    """
    base_values = np.asarray(base_values, float)

    def difference(shown: np.ndarray) -> np.ndarray:
        """Return the predictions for subsets less those for their complements, (pairs, labels)."""
        both = np.concatenate([shown, ~shown])
        predicted = np.empty((len(both), len(base_values)))
        empty = ~both.any(axis=1)
        predicted[empty] = base_values
        predicted[~empty] = game(both[~empty])
        return predicted[: len(shown)] - predicted[len(shown) :]

    def exactly() -> SliceValues:
        shown = every_subset(slices)
        values = _signs(shown).T @ difference(shown) / len(shown)
        return SliceValues(values, np.zeros((len(base_values), slices, slices)), 2 * len(shown) - 1)

    if slices <= EXACT_UP_TO:
        return exactly()
    count = max(FIRST_SUBSETS, 8 * slices) // 2
    shown, differences = np.zeros((0, slices), bool), np.zeros((0, len(base_values)))
    while True:
        drawn = rng.random((count - len(shown), slices)) < 0.5
        shown = np.concatenate([shown, drawn])
        differences = np.concatenate([differences, difference(drawn)])
        values, covariance = _fit(_signs(shown), differences)
        if settled(values[:, :decisive], covariance[:decisive]) or 4 * count > most_subsets:
            return SliceValues(values, covariance, 2 * count)
        if 4 * count >= 2**slices:
            return exactly()
        count *= 2


def every_subset(slices: int) -> np.ndarray:
    """Return one of each subset and its complement, (2 ** (slices - 1), slices) bool."""
    numbers = np.arange(2 ** (slices - 1))
    return (numbers[:, None] >> np.arange(slices)) % 2 == 1


def settled(values: np.ndarray, covariance: np.ndarray) -> bool:
    """Return whether the first slice of every label is told apart, or known as well as need be."""
    for column, matrix in zip(values.T, covariance, strict=True):
        rivals = not_told_apart(column, matrix)
        if (
            len(rivals)
            and _error_of_difference(matrix, int(np.argmax(column)))[rivals].max() > PRECISE
        ):
            return False
    return True


def not_told_apart(values: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return the slices that may be as important as the first one, by a label's values."""
    first = int(np.argmax(values))
    # Values of equal slices differ by the rounding of the network's float32.
    margin = np.maximum(APART * _error_of_difference(covariance, first), 1e-6)
    order = np.argsort(-values, kind="stable")
    near = values[first] - values <= margin
    return np.array([i for i in order if near[i] and i != first], int)


def _error_of_difference(covariance: np.ndarray, first: int) -> np.ndarray:
    """Return the standard error of each slice's value less the first one's."""
    variance = covariance[first, first] + np.diag(covariance) - 2 * covariance[first]
    return np.sqrt(np.maximum(variance, 0))


def _signs(shown: np.ndarray) -> np.ndarray:
    return np.where(shown, 1.0, -1.0)


def _fit(signs: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best linear fit (slices, labels), and its covariance (labels, slices, slices)."""
    inverse = np.linalg.inv(signs.T @ signs)
    values = inverse @ (signs.T @ differences)
    leverage = ((signs @ inverse) * signs).sum(axis=1)
    errors = (differences - signs @ values) / (1 - leverage)[:, None]
    weighted = [signs * column[:, None] for column in errors.T]
    return values, np.stack([inverse @ (rows.T @ rows) @ inverse for rows in weighted])
