"""Takes a game of slices; gives each slice's Banzhaf value, with an interval where it was sampled.

A game tells what the model answers to a part of a study's slices. The Banzhaf value of a slice is
how much it adds, on average, to a part of the others, each part as likely as any other. The part of
no slice is one of them. No model answers it: its worth is the base, the mean answer to studies of
the same kind (the convention of SHAP; Lundberg and Lee 2017, section 4).

Up to `EXACT_UP_TO` slices every part is shown. Above that random parts are shown, each with its
complement, until the first slice is told apart from the others (or every part, where that is no
more), and the values are the best linear fit of the answer on which slices are shown (Hammer
and Holzman 1992, theorem 4.2: over all parts it is the Banzhaf value exactly). A part and its
complement are one observation: with the difference of their answers, d, and z = 1 for a slice in
the part and -1 for one outside, d = z @ values + error. The errors are of unequal size, so the
covariance is the heteroscedasticity-consistent one (HC3, MacKinnon and White 1985).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EXACT_UP_TO = 10
"""Slices of which every part is shown."""
FIRST_PARTS = 512
"""Parts shown at first; twice as many are shown until the values are `settled`."""
MOST_PARTS = 8192
PRECISE = 0.002
"""A standard error of a difference in probability below which no more parts are shown."""
APART = 3.0
"""Standard errors between two slices that are told apart: many are compared, after every look."""

Game = Callable[[np.ndarray], np.ndarray]
"""What the model answers, (parts, labels), to parts (parts, slices) bool, none of them empty."""


class SliceValues(NamedTuple):
    """Banzhaf values of the slices that were shown.

    Attributes:
        values: (slices, labels).
        covariance: (labels, slices, slices), of the sampling; 0 where every part was shown.
        parts: how many parts of the study the model was shown.
    """

    values: np.ndarray
    covariance: np.ndarray
    parts: int


def banzhaf(
    game: Game,
    slices: int,
    base: np.ndarray,
    rng: np.random.Generator,
    most_parts: int = MOST_PARTS,
) -> SliceValues:
    """Return the Banzhaf value of each slice.

    Args:
        game: what the model answers to parts of the slices.
        slices: how many there are.
        base: (labels,), the worth of the part of no slice.
        rng: draws the parts where there are more than `EXACT_UP_TO` slices.
        most_parts: where to stop drawing, if the values are not settled before.
    """
    base = np.asarray(base, float)

    def difference(shown: np.ndarray) -> np.ndarray:
        """The answers to parts less those to their complements, (pairs, labels)."""
        both = np.concatenate([shown, ~shown])
        answers = np.empty((len(both), len(base)))
        empty = ~both.any(axis=1)
        answers[empty] = base
        answers[~empty] = game(both[~empty])
        return answers[: len(shown)] - answers[len(shown) :]

    def exactly() -> SliceValues:
        shown = every_part(slices)
        values = _signs(shown).T @ difference(shown) / len(shown)
        return SliceValues(values, np.zeros((len(base), slices, slices)), 2 * len(shown) - 1)

    if slices <= EXACT_UP_TO:
        return exactly()
    count = max(FIRST_PARTS, 8 * slices) // 2
    shown, found = np.zeros((0, slices), bool), np.zeros((0, len(base)))
    while True:
        drawn = rng.random((count - len(shown), slices)) < 0.5
        shown = np.concatenate([shown, drawn])
        found = np.concatenate([found, difference(drawn)])
        values, covariance = _fit(_signs(shown), found)
        if settled(values, covariance) or 4 * count > most_parts:
            return SliceValues(values, covariance, 2 * count)
        if 4 * count >= 2**slices:
            return exactly()
        count *= 2


def every_part(slices: int) -> np.ndarray:
    """Return one of each part and its complement, (2 ** (slices - 1), slices) bool."""
    numbers = np.arange(2 ** (slices - 1))
    return (numbers[:, None] >> np.arange(slices)) % 2 == 1


def settled(values: np.ndarray, covariance: np.ndarray) -> bool:
    """Whether the first slice of every label is told apart, or known as well as need be."""
    for column, matrix in zip(values.T, covariance, strict=True):
        rivals = not_told_apart(column, matrix)
        if (
            len(rivals)
            and _error_of_difference(matrix, int(np.argmax(column)))[rivals].max() > PRECISE
        ):
            return False
    return True


def not_told_apart(values: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return the slices that may be as important as the first one, by value.

    Args:
        values: (slices,) of one label.
        covariance: (slices, slices).
    """
    first = int(np.argmax(values))
    # Values of equal slices differ by the rounding of the network's float32.
    margin = np.maximum(APART * _error_of_difference(covariance, first), 1e-6)
    order = np.argsort(-values, kind="stable")
    near = values[first] - values <= margin
    return np.array([i for i in order if near[i] and i != first], int)


def _error_of_difference(covariance: np.ndarray, first: int) -> np.ndarray:
    """The standard error of each slice's value less the first one's."""
    variance = covariance[first, first] + np.diag(covariance) - 2 * covariance[first]
    return np.sqrt(np.maximum(variance, 0))


def _signs(shown: np.ndarray) -> np.ndarray:
    return np.where(shown, 1.0, -1.0)


def _fit(signs: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best linear fit (slices, labels), and its covariance (labels, slices, slices)."""
    inverse = np.linalg.inv(signs.T @ signs)
    values = inverse @ (signs.T @ differences)
    leverage = ((signs @ inverse) * signs).sum(axis=1)
    errors = (differences - signs @ values) / (1 - leverage)[:, None]
    weighted = [signs * column[:, None] for column in errors.T]
    return values, np.stack([inverse @ (part.T @ part) @ inverse for part in weighted])
