"""Sampling: which slices of a study make a sequence, in what order, and which sequences a batch.

NumPy only. A sequence is an array of positions in its study's slices (scan order, from 0). What is
drawn for a study depends on the seed, the epoch and the study alone, never on its companions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError

BUCKET_BATCHES = 8
"""Batches whose sequences are sorted by length together: little padding, yet ever new batches."""

# Separate random streams of one (seed, epoch).
_ORDER, _STUDY, _BATCHES = range(3)


class StudySequence(NamedTuple):
    """One sequence of one study.

    Attributes:
        study: Position of the study in the cohort at hand.
        slices: int64 (T,), positions of the slices in the study.
        number: Its number among the study's own sequences, from 0.
        mirrored: Whether its slices are shown mirrored left-right.
    """

    study: int
    slices: np.ndarray
    number: int = 0
    mirrored: bool = False


@dataclass(frozen=True)
class Part:
    """One of several parts of every batch, which together are the batch, in order.

    Attributes:
        number: its number, from 0.
        count: how many there are.
    """

    number: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return which sequences of a batch of `size` are in it: perhaps none, if there are few."""
        return slice(size * self.number // self.count, size * (self.number + 1) // self.count)


WHOLE = Part()


def spread_evenly(length: int, count: int) -> np.ndarray:
    """Spread `count` positions evenly over `length` slices: the middles of `count` equal parts.

    With `count` above `length`, slices are repeated, in order, as equally often as can be.

    >>> spread_evenly(9, 3), spread_evenly(3, 5), spread_evenly(9, 1)
    (array([1, 4, 7]), array([0, 0, 1, 2, 2]), array([4]))
    """
    return (2 * np.arange(count) + 1) * length // (2 * count)


def _paper(length: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the sequences of paper 1's sampler (table 2; see `recipes.Sequence`)."""
    if length < count:
        return [np.sort(rng.integers(length, size=count)) for _ in range(count)]
    if length == count:
        return [np.arange(count)]
    return [start + np.arange(count) for start in range(length - count)]


def _short(length: int, settings: recipes.Sequence) -> np.ndarray:
    """Return the one sequence of a study of at most `settings.length` slices."""
    return spread_evenly(length, settings.length if settings.fill else length)


def _draw(length: int, settings: recipes.Sequence, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the sequences of a study by the policy, in scan order."""
    count = settings.length
    if settings.policy == "paper":
        return _paper(length, count, rng)
    if settings.policy == "all":
        if length <= count:
            return [np.arange(length)]
        return [spread_evenly(length, count)] if settings.over == "thin" else []
    if settings.policy == "even":
        return [_short(length, settings) if length < count else spread_evenly(length, count)]
    if length <= count:
        return [_short(length, settings)] * settings.per_study
    if settings.policy == "window":
        starts = rng.integers(length - count + 1, size=settings.per_study)
        return [start + np.arange(count) for start in starts]
    return [
        np.sort(rng.choice(length, size=count, replace=False)) for _ in range(settings.per_study)
    ]


def _check_not_empty(length: int) -> None:
    if length < 1:
        raise InputError(f"a study has {length} slices; every study needs at least one")


def study_sequences(
    length: int, settings: recipes.Sequence, rng: np.random.Generator
) -> list[np.ndarray]:
    """Draw the training sequences of a study of `length` slices for one epoch, by the policy.

    Returns:
        int64 arrays (T,) of positions; in scan order, or shuffled with `order: shuffled`. Empty
        where the policy leaves the study out. A short study that is taken whole stands
        `per_study` times, as a long one does.

    Raises:
        InputError: The study has no slices.
    """
    _check_not_empty(length)
    sequences = _draw(length, settings, rng)
    if settings.order == "shuffled":
        return [rng.permutation(sequence) for sequence in sequences]
    return sequences


def evaluation_sequences(length: int, settings: recipes.Sequence) -> list[np.ndarray]:
    """Return the sequences that one study is evaluated on: at least one, always the same.

    `evaluation.length`, or else `length`, is the number of slices n; order is always scan order.
    `paper` gives every sequence of the paper's sampler, drawn with a generator seeded by the
    study's length.
    `even` spreads n slices (a shorter study whole, or filled with `fill`). `all` gives every
    slice, however many, unless `evaluation.length` is set: longer studies are thinned to it.

    Returns:
        int64 arrays (T,) of positions, in scan order.

    Raises:
        InputError: The study has no slices.
    """
    _check_not_empty(length)
    count = settings.evaluation.length or settings.length
    if settings.evaluation.policy == "paper":
        return _paper(length, count, np.random.default_rng(length))
    if settings.evaluation.policy == "all":
        limit = settings.evaluation.length or length
        return [spread_evenly(length, min(length, limit))]
    if length < count and not settings.fill:
        return [np.arange(length)]
    return [spread_evenly(length, count)]


def study_key(study_id: str) -> int:
    """Return a study's own number, the same in every cohort that it is part of."""
    return int.from_bytes(hashlib.blake2b(study_id.encode(), digest_size=8).digest(), "big")


def plan_epoch(
    slice_counts: Sequence[int] | np.ndarray,
    settings: recipes.Sequence,
    seed: int,
    epoch: int,
    keys: Sequence[int] | None = None,
) -> list[StudySequence]:
    """Draw the sequences of one epoch (from 0) of training, in an order seeded by (seed, epoch).

    `slice_counts` (studies,) are the studies' numbers of slices; `keys`, by default their
    positions, are integers that stay the studies' own in any cohort, so that the draws of a study
    do not depend on which others are present.

    Raises:
        InputError: A study has no slices.
    """
    keys = range(len(slice_counts)) if keys is None else keys
    plan = [
        StudySequence(study, slices, number)
        for study, (length, key) in enumerate(zip(slice_counts, keys, strict=True))
        for number, slices in enumerate(
            study_sequences(
                int(length), settings, np.random.default_rng([seed, epoch, _STUDY, key])
            )
        )
    ]
    order = np.random.default_rng([seed, epoch, _ORDER]).permutation(len(plan))
    return [plan[i] for i in order]


def batches(
    plan: Sequence[StudySequence], batch_size: int, seed: int, epoch: int
) -> list[list[StudySequence]]:
    """Cut an epoch's plan into batches of similar length, in random order.

    `BUCKET_BATCHES` batches' worth of neighbours in the plan are sorted by length and cut; then
    all batches are shuffled by (seed, epoch). Sequences of one length stay a plain shuffle. At
    most one batch is smaller than `batch_size`.
    """
    bucket = batch_size * BUCKET_BATCHES
    cut = [
        batch
        for start in range(0, len(plan), bucket)
        for batch in batches_by_length(plan[start : start + bucket], batch_size)
    ]
    order = np.random.default_rng([seed, epoch, _BATCHES]).permutation(len(cut))
    return [cut[i] for i in order]


def batches_by_length(plan: Sequence[StudySequence], batch_size: int) -> list[list[StudySequence]]:
    """Cut a plan, sorted by length, into batches: the least padding, always the same batches."""
    by_length = sorted(plan, key=lambda sequence: len(sequence.slices))
    return [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
