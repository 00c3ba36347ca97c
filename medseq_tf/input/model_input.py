"""Slices, their lengths and a seed become the model's input: scaled, augmented, normalised, padded.

Masks of lesions are moved as their slices are. Graphs are traced once a recipe, for all epochs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from medseq_tf.input.augment import augment
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Augment, Input


def scale_intensities(images: tf.Tensor, ranges: tf.Tensor) -> tf.Tensor:
    """Scale intensities to [0, 1], each slice by all ranges; what lies outside is clipped.

    Args:
        images: (N, H, W, K * C), any numeric type: K neighbouring slices, or one, of C channels.
        ranges: float32 (N, C, R, 2), the intensities of each channel that become 0 and 1.

    Returns:
        float32 (N, H, W, K * C * R): the first channel of the first slice by every range, then the
        next channel.
    """
    _, height, width, pictures = images.shape
    _, channels, count, _ = ranges.shape
    low, high = tf.unstack(ranges[:, None, None, None], axis=-1)
    images = tf.reshape(images, (-1, height, width, pictures // channels, channels, 1))
    scaled = tf.clip_by_value((tf.cast(images, tf.float32) - low) / (high - low), 0.0, 1.0)
    return tf.reshape(scaled, (-1, height, width, pictures * count))


def pad(
    images: tf.Tensor,
    lengths: tf.Tensor,
    longest: tf.Tensor | None = None,
    beyond: float | None = None,
) -> tf.Tensor:
    """Lay out flat slices (N, ...) as (B, T, ...), with `beyond`, or zeros, after each sequence.

    T is the longest of `lengths`, or `longest`, which none exceeds.
    """
    ragged = tf.RaggedTensor.from_row_lengths(images, lengths, validate=False)
    padded = ragged.to_tensor(default_value=beyond)
    if longest is None:
        return padded
    further = [[0, 0], [0, longest - tf.shape(padded)[1]], *[[0, 0]] * (len(padded.shape) - 2)]
    return tf.pad(padded, further, constant_values=beyond or 0)


@functools.lru_cache(maxsize=16)
def input_graph(input_json: str, augment_json: str) -> tf.types.experimental.PolymorphicFunction:
    """Make the graph from intensities to inputs, traced once for all epochs, folds and stores."""
    settings = Input.model_validate_json(input_json)
    augmentation = Augment.model_validate_json(augment_json)

    @tf.function(autograph=False)
    def make_inputs(images, lengths, ranges, seed, before=None, after=None):
        sequence_ids, first, longest = places(lengths, before, after)
        images = scale_intensities(images, ranges)
        scale = (settings.mean, settings.std)
        images = augment(images, sequence_ids, seed, augmentation, *scale, first)
        return {"slices": pad(images, lengths, longest), "lengths": lengths}

    return make_inputs


def places(
    lengths: tf.Tensor, before: tf.Tensor | None, after: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
    """Return the sequence of each slice of a whole batch, and what a part of it has to know.

    Args:
        lengths: int32 (B,), of the part's sequences.
        before: int32, the lengths of the batch's sequences before the part; None: it is whole.
        after: the same of those after it.

    Returns:
        int32 (N,), the place of the part's first slice, and the length of the batch's longest
        sequence; both None where the batch is whole.
    """
    first = longest = None
    if before is not None:
        lengths, first = tf.concat([before, lengths, after], 0), tf.reduce_sum(before)
        longest = tf.reduce_max(lengths)
    return tf.repeat(tf.range(tf.size(lengths)), lengths), first, longest


GEOMETRIC = ("rotation", "resized_crop", "flip", "grid_distortion", "optical_distortion")
"""The augmentations that move pixels, masks included."""


@functools.lru_cache(maxsize=16)
def mask_graph(augment_json: str) -> tf.types.experimental.PolymorphicFunction:
    """Make the graph from stored masks to padded ones, moved as the slices of the same seed."""
    augmentation = Augment.model_validate_json(augment_json)
    still = {name: None for name, _ in augmentation if name not in GEOMETRIC}
    augmentation = augmentation.model_copy(update=still)

    @tf.function(autograph=False)
    def make_masks(masks, lengths, seed, before=None, after=None):
        sequence_ids, first, longest = places(lengths, before, after)
        moved = augment(masks[..., None], sequence_ids, seed, augmentation, 0.0, 1.0, first)[..., 0]
        masks = tf.where(tf.math.is_nan(moved), moved, tf.cast(moved >= 0.5, tf.float32))
        return pad(masks, lengths, longest, np.nan)

    return make_masks


def study_input(
    store: SliceStore, row: int, augmentation: Augment, seed: Sequence[int] | np.ndarray
) -> tf.Tensor:
    """Make a whole study the model's input, varied as one sequence by what a seed (2,) draws.

    Returns:
        float32 (L, H, W, C), normalised, in scan order.

    Raises:
        InputError: The study cannot be read.
    """
    length = int(store.prepared.studies["slices"].iat[row])
    images = store.slices_among_neighbours(row, np.arange(length))
    values = (images, [length], store.intensity_ranges(row, np.arange(length)), seed)
    signature = input_signature(store)
    make_inputs = input_graph(store.input.model_dump_json(), augmentation.model_dump_json())
    tensors = [tf.constant(v, spec.dtype) for v, spec in zip(values, signature, strict=True)]
    return make_inputs.get_concrete_function(*signature)(*tensors)["slices"][0]


def input_signature(store: SliceStore) -> tuple[tf.TensorSpec, ...]:
    """Return the types of what inputs are made of: slices, lengths, intensity ranges and a seed."""
    size, settings, channels = store.input.size, store.input, store.prepared.channels
    pictures = (1 + 2 * settings.neighbours) * channels
    return (
        tf.TensorSpec((None, size, size, pictures), store.dtype),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, channels, len(settings.windows or [0]), 2), tf.float32),
        tf.TensorSpec((2,), tf.int32),
    )
