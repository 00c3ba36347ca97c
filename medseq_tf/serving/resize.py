"""The resizing of slices in TensorFlow operations alone, bit for bit as OpenCV does it.

`prepare` resizes in OpenCV; repeated here, a SavedModel predicts from any slice what the prepared
data set gives. Intensities are whole numbers in float32, rounded where OpenCV rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from medseq_tf.serving.description import Description

Side: TypeAlias = "int | tf.Tensor"

_LINEAR_SCALE = 2048.0


def to_square(image: tf.Tensor, stored: Description) -> tf.Tensor:
    """Bring a slice to its stored size, as `study_record` does.

    Args:
        image: float32 (channels, H, W), whole numbers.
        stored: how slices are stored: the side, and whether to pad or to stretch.

    Returns:
        float32 (channels, size, size), whole numbers.
    """
    _, height, width = tf.unstack(tf.shape(image))
    if stored.aspect == "pad":
        image = tf.cond(tf.equal(height, width), lambda: image, lambda: _padded(image, stored))
        height = width = tf.maximum(height, width)
    return resize(image, height, width, stored.size, stored)


def _padded(image: tf.Tensor, stored: Description) -> tf.Tensor:
    """Put each channel in the middle of a square, on 0 or (16 bits) its own minimum."""
    _, height, width = tf.unstack(tf.shape(image))
    side = tf.maximum(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    edges = [[0, 0], [top, side - height - top], [left, side - width - left]]
    if stored.bits == 8:
        return tf.pad(image, edges)
    least = tf.reduce_min(image, axis=(1, 2), keepdims=True)
    return tf.pad(image - least, edges) + least


def resize(
    images: tf.Tensor, height: Side, width: Side, size: int, stored: Description
) -> tf.Tensor:
    """Resize by area where both sides are `size` or more, else linearly, as OpenCV rounds it.

    Args:
        images: float32 (N, H, W), whole numbers; each channel is an image of its own.
        height: H.
        width: W.
        size: side of the result.
        stored: how slices are stored: their intensities.

    Returns:
        float32 (N, size, size), whole numbers.
    """
    is_known = not tf.is_tensor(height)
    shortest = min(height, width) if is_known else tf.minimum(height, width)
    is_same = (height == size) & (width == size)
    is_multiple = (height % size == 0) & (width % size == 0)
    cases: tuple[tuple[Any, Callable[[], tf.Tensor]], ...] = (
        (is_same, lambda: images),
        (
            is_multiple,
            lambda: _area_of_whole_pixels(images, height // size, width // size, size, stored),
        ),
        (shortest >= size, lambda: _area(images, height, width, size, stored)),
        (True, lambda: _linear(images, height, width, size, stored)),
    )
    if is_known:
        resized = next(make for applies, make in cases if applies)()
    else:
        make_resized = cases[-1][1]
        for applies, make in reversed(cases[:-1]):
            make_resized = functools.partial(tf.cond, applies, make, make_resized)
        resized = make_resized()
    return tf.ensure_shape(resized, (None, size, size))


def _area_of_whole_pixels(
    images: tf.Tensor, down: Side, across: Side, size: int, stored: Description
) -> tf.Tensor:
    """Return means over cells of `down` x `across` pixels.

    Halves of a cell of 2 x 2 go up, but those of pictures of 2 channels to the even number.
    """
    count = tf.shape(images)[0]
    if stored.bits > 8:  # sums in float32 would not be exact
        images = tf.cast(images, tf.int32)
    rows = tf.reshape(images, [count, size, down, size * across])
    rows = tf.reduce_sum(rows, axis=2)
    cells = tf.reduce_sum(tf.reshape(rows, [count, size, size, across]), axis=3)
    means = tf.cast(cells, tf.float32) * (1.0 / tf.cast(down * across, tf.float32))
    is_fourth = tf.equal(down, 2) & tf.equal(across, 2) & (stored.channels != 2)
    return tf.where(is_fourth, tf.floor(means + 0.5), tf.round(means))


def _area(
    images: tf.Tensor, height: Side, width: Side, size: int, stored: Description
) -> tf.Tensor:
    """Return means over cells with parts of pixels at their edges, in OpenCV's order."""
    columns = _sums_in_order(tf.transpose(images, (0, 2, 1)), *_cells(width, size))
    means = _sums_in_order(tf.transpose(columns, (0, 2, 1)), *_cells(height, size))
    return _clipped(tf.round(means), stored)


def _cells(length: Side, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Find which of `length` pixels make up each of `size` cells, and their shares of it.

    Returns:
        int32 (taps, size) and float32 (taps, size); a share of 0 where a cell has fewer pixels.
    """
    length = tf.cast(length, tf.float64)
    scale = length / size
    start = tf.range(size, dtype=tf.float64) * scale
    end = start + scale
    cell = tf.minimum(scale, length - start)
    last = tf.minimum(tf.floor(end), length - 1)
    first = tf.minimum(tf.math.ceil(start), last)
    taps = tf.cast(tf.math.ceil(scale), tf.int32) + 2
    pixel = first - 1 + tf.cast(tf.range(taps), tf.float64)[:, None]
    before = tf.where(first - start > 1e-3, first - start, 0.0)
    after = tf.where(end - last > 1e-3, tf.minimum(tf.minimum(end - last, 1.0), cell), 0.0)
    share = tf.where((pixel >= first) & (pixel < last), tf.ones_like(pixel), 0.0)
    share = tf.where(pixel < first, before, share)
    share = tf.where(pixel == last, after, share)
    index = tf.cast(tf.clip_by_value(pixel, 0.0, length - 1), tf.int32)
    return index, tf.cast(share / cell, tf.float32)


def _sums_in_order(images: tf.Tensor, index: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Return weighted sums of rows, (N, size, W), each added up in the order of the taps."""
    taps, size = tf.unstack(tf.shape(index))
    count, _, width = tf.unstack(tf.shape(images))
    rows = tf.gather(images, tf.reshape(index, [-1]), axis=1)
    rows = tf.reshape(rows, [count, taps, size, width]) * share[:, :, None]
    return tf.cumsum(rows, axis=1)[:, -1]


def _linear(
    images: tf.Tensor, height: Side, width: Side, size: int, stored: Description
) -> tf.Tensor:
    """Interpolate between the two nearest rows and columns, bilinearly."""
    if stored.bits == 8:
        return _linear_fixed_point(images, height, width, size)
    left, right, x = _neighbours(width, size, tf.float64)
    upper, lower, y = _neighbours(height, size, tf.float64)
    images = _between(images, left, right, tf.cast(x, tf.float32), axis=2)
    images = _between(images, upper, lower, tf.cast(y, tf.float32)[:, None], axis=1)
    return _clipped(tf.round(images), stored)


def _between(
    images: tf.Tensor, before: tf.Tensor, after: tf.Tensor, share: tf.Tensor, axis: int
) -> tf.Tensor:
    first, second = tf.gather(images, before, axis=axis), tf.gather(images, after, axis=axis)
    return first + (second - first) * share


def _neighbours(length: Side, size: int, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Find the pixels before and after each place of the result, and how far the first is."""
    scale = tf.cast(length, tf.float64) / size
    place = tf.cast((tf.range(size, dtype=tf.float64) + 0.5) * scale - 0.5, dtype)
    before = tf.floor(place)
    index = tf.cast(before, tf.int32)
    last = tf.cast(length, tf.int32) - 1
    return tf.clip_by_value(index, 0, last), tf.clip_by_value(index + 1, 0, last), place - before


def _linear_fixed_point(images: tf.Tensor, height: Side, width: Side, size: int) -> tf.Tensor:
    """Interpolate in OpenCV's arithmetic for 8 bits: weights of 11 bits, in integers."""
    left, right, x = _neighbours(width, size, tf.float32)
    x = tf.where(left == right, 0.0, x)
    upper, lower, y = _neighbours(height, size, tf.float32)
    images = tf.cast(images, tf.int32)
    images = tf.gather(images, left, axis=2) * _fixed(1 - x) + tf.gather(
        images, right, axis=2
    ) * _fixed(x)
    images = tf.bitwise.right_shift(images, 4)
    upper = tf.gather(images, upper, axis=1) * _fixed(1 - y)[:, None]
    lower = tf.gather(images, lower, axis=1) * _fixed(y)[:, None]
    total = tf.bitwise.right_shift(upper, 16) + tf.bitwise.right_shift(lower, 16) + 2
    return tf.cast(tf.bitwise.right_shift(total, 2), tf.float32)


def _fixed(share: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(share * _LINEAR_SCALE), tf.int32)


def _clipped(images: tf.Tensor, stored: Description) -> tf.Tensor:
    return tf.clip_by_value(images, float(stored.offset), float(stored.offset + 2**stored.bits - 1))
