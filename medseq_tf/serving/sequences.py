"""The sequences of slices that predict studies, chosen and averaged in TensorFlow operations."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.input import sampling


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences that studies are predicted from, those of a study next to each other.

    Attributes:
        study: int32 (S,), the study of each.
        positions: int32 (S, n), slices of the study in scan order; the last is repeated in padding.
        lengths: int32 (S,), number of positions.
        mirrored: bool (S,), those whose slices are shown mirrored left-right; None: no sequence is.
    """

    study: tf.Tensor
    positions: tf.Tensor
    lengths: tf.Tensor
    mirrored: tf.Tensor | None = None

    def and_mirrored(self) -> Sequences:
        """Return each sequence followed by itself, mirrored."""
        parts = (self.study, self.positions, self.lengths)
        study, positions, lengths = (tf.repeat(part, 2, axis=0) for part in parts)
        return Sequences(study, positions, lengths, tf.range(tf.size(study)) % 2 == 1)

    def some(self, numbers: tf.Tensor) -> Sequences:
        """Return the sequences with these numbers (R,)."""
        mirrored = None if self.mirrored is None else tf.gather(self.mirrored, numbers)
        parts = (self.study, self.positions, self.lengths)
        study, positions, lengths = (tf.gather(part, numbers) for part in parts)
        return Sequences(study, positions, lengths, mirrored)

    def without(self, places: tf.Tensor) -> tuple[Sequences, tf.Tensor]:
        """Return each without its steps of the slice at its one of places (S,).

        A sequence of nothing else stays as it is.

        Returns:
            The sequences, and int32 (S, n), the steps that they have; those left out come last.
        """
        is_step = tf.sequence_mask(self.lengths, tf.shape(self.positions)[1])
        is_kept = is_step & (self.positions != places[:, None])
        is_kept |= is_step & ~tf.reduce_any(is_kept, axis=1, keepdims=True)
        kept = tf.argsort(tf.cast(~is_kept, tf.int32), stable=True)
        lengths = tf.reduce_sum(tf.cast(is_kept, tf.int32), axis=1)
        positions = tf.gather(self.positions, kept, batch_dims=1)
        return Sequences(self.study, positions, lengths, self.mirrored), kept


def evaluation_sequences(lengths: tf.Tensor, settings: recipes.Sequence) -> Sequences:
    """Choose what `sampling.evaluation_sequences` chooses, of several studies at once.

    With `evaluation.mirrored` each is followed by itself, mirrored.

    Args:
        lengths: int32 (B,), slices of each study, 1 or more.
        settings: the recipe's `sequence`.
    """
    chosen = _as_they_are(lengths, settings)
    return chosen.and_mirrored() if settings.evaluation.mirrored else chosen


def _as_they_are(lengths: tf.Tensor, settings: recipes.Sequence) -> Sequences:
    count = settings.evaluation.length or settings.length
    study = tf.range(tf.size(lengths))
    if settings.evaluation.policy == "paper":
        return _paper(lengths, count)
    if settings.evaluation.policy == "all":
        taken = tf.minimum(lengths, settings.evaluation.length or lengths)
    elif settings.fill:
        taken = tf.fill(tf.shape(lengths), count)
    else:
        taken = tf.minimum(lengths, count)
    place = tf.minimum(tf.range(tf.reduce_max(taken)), taken[:, None] - 1)
    positions = (2 * place + 1) * lengths[:, None] // (2 * taken[:, None])
    return Sequences(study, positions, taken)


def _paper(lengths: tf.Tensor, count: int) -> Sequences:
    """Choose draws of short studies, windows of long ones."""
    short = [_drawn(length, count) for length in range(1, count)]
    drawn = tf.reshape(tf.constant(np.array(short, np.int32)), [-1, count])
    numbers = tf.where(lengths < count, count, tf.maximum(lengths - count, 1))
    study = tf.repeat(tf.range(tf.size(lengths)), numbers)
    number = tf.range(tf.size(study)) - tf.gather(tf.cumsum(numbers, exclusive=True), study)
    length = tf.gather(lengths, study)
    windows = number[:, None] + tf.range(count)
    if count == 1:
        return Sequences(study, windows, tf.ones_like(study))
    row = tf.where(length < count, (length - 1) * count + number, 0)
    positions = tf.where((length < count)[:, None], tf.gather(drawn, row), windows)
    return Sequences(study, positions, tf.fill(tf.shape(study), count))


def _drawn(length: int, count: int) -> np.ndarray:
    evaluation = recipes.Evaluation(policy="paper", length=count)
    settings = recipes.Sequence(evaluation=evaluation)
    return np.stack(sampling.evaluation_sequences(length, settings))


def mirror(images: tf.Tensor, is_mirrored: tf.Tensor) -> tf.Tensor:
    """Return images (N, ..., H, W, C), some of them, bool (N,), mirrored left-right."""
    is_mirrored = tf.reshape(is_mirrored, [-1] + [1] * (len(images.shape) - 1))
    return tf.where(is_mirrored, tf.reverse(images, [-2]), images)


def mean_of_sequences(
    steps: tf.Tensor, chosen: Sequences, lengths: tf.Tensor, width: tf.Tensor
) -> tf.Tensor:
    """Average over its sequences what is known of each study after each of its slices.

    After slice t the sequences that hold one of the slices 0..t have begun; each predicts from its
    slices up to t, and the probabilities are averaged. Before the first of the chosen slices the
    probability after it stands. After the last slice it is the mean over all sequences.

    Args:
        steps: float32 (S, n, labels), probability after each position of each sequence.
        chosen: the sequences.
        lengths: int32 (B,), slices of each study.
        width: int32 (), T.

    Returns:
        float32 (B, T, labels), zeros after the end of a study.
    """
    studies = tf.size(lengths)
    is_slice = tf.sequence_mask(chosen.lengths, tf.shape(chosen.positions)[1])
    positions = tf.where(is_slice, chosen.positions, tf.int32.max)
    first = tf.math.segment_min(tf.reduce_min(positions, axis=1), chosen.study)
    time = tf.maximum(tf.range(width), first[:, None])
    time = tf.gather(time, chosen.study)
    seen = tf.reduce_sum(tf.cast(positions[:, None] <= time[:, :, None], tf.int32), axis=2)
    probabilities = tf.gather(steps, tf.maximum(seen - 1, 0), axis=1, batch_dims=1)
    begun = tf.cast(seen > 0, tf.float32)[:, :, None]
    total = tf.math.unsorted_segment_sum(probabilities * begun, chosen.study, studies)
    count = tf.math.unsorted_segment_sum(begun, chosen.study, studies)
    inside = tf.sequence_mask(lengths, width)[:, :, None]
    return tf.where(inside, tf.math.divide_no_nan(total, count), 0.0)
