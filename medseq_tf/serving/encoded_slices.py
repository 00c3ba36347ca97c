"""Encoded slices as the model's input, in TensorFlow operations alone.

What the readers and `input` do to a picture in OpenCV and NumPy is repeated here in a
graph, so that a SavedModel predicts from bytes what the prepared data set gives. Intensities are
whole numbers in float32 until they are scaled.
"""

from __future__ import annotations

import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.input.model_input import scale_intensities
from medseq_tf.readers.study import LARGEST_SIDE
from medseq_tf.serving.description import Description

LARGEST_PIXELS = 16 * 2**20
"""Of one slice: what a header declares is checked before anything is decoded."""

SLICES_AT_ONCE = 8
"""Slices that are decoded at a time, on as many cores."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_HEADER_BYTES = 26
_COLOUR = {1: 0, 2: 2, 3: 2, 4: 6}
"""The kind of a PNG by its channels: grey, RGB or RGBA."""


def require(condition: tf.Tensor, *message: str | tf.Tensor) -> tf.Operation:
    """Stop the graph with an InvalidArgumentError that reads as the parts of `message`, joined."""
    parts = [part if isinstance(part, str) else tf.strings.as_string(part) for part in message]
    return tf.debugging.Assert(condition, [tf.strings.join(parts)], summarize=1)


def require_pictures(
    encoded: tf.Tensor, names: tf.Tensor, bits: int, channels: int = 1
) -> tf.Tensor:
    """Stop the graph at slices that are no JPEG or PNG of the model's kind; else return them.

    Only the first bytes are read here: the kind of file, and of a PNG its bits and colours.

    Args:
        encoded: string (N,).
        names: string (N,), what an error calls each.
        bits: 8: JPEG or PNG of at most 8 bits; 16: greyscale PNG of 16 bits.
        channels: 2 or 3: RGB PNG of these bits, 4: RGBA.
    """
    long_enough = tf.strings.length(encoded) >= _PNG_HEADER_BYTES
    with tf.control_dependencies([_require_all(long_enough, names, "is cut short or empty")]):
        start = tf.strings.substr(encoded, 0, _PNG_HEADER_BYTES)
    is_png = tf.strings.substr(start, 0, len(_PNG_MAGIC)) == _PNG_MAGIC
    header = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int32)
    header = tf.ensure_shape(header, (None, _PNG_HEADER_BYTES))
    depth, colour = header[:, 24], header[:, 25]
    if bits == 8 and channels == 1:
        is_jpeg = tf.strings.substr(start, 0, len(_JPEG_MAGIC)) == _JPEG_MAGIC
        checks = [
            _require_all(is_png | is_jpeg, names, "is no JPEG or PNG picture"),
            _require_all(~is_png | (depth <= 8), names, "has 16 bits a pixel, this model reads 8"),
        ]
    else:
        fits = is_png & (depth == bits) & (colour == _COLOUR[channels])
        kind = {0: "greyscale", 2: "RGB", 6: "RGBA"}[_COLOUR[channels]]
        of_what = f" of {channels} series" if channels > 1 else ""
        wanted = f"is no {bits}-bit {kind} PNG{of_what}, which is what this model reads"
        checks = [_require_all(fits, names, wanted)]
    with tf.control_dependencies(checks):
        return tf.identity(encoded)


def _require_all(fits: tf.Tensor, names: tf.Tensor, problem: str) -> tf.Operation:
    """Stop the graph with the name of the first that does not fit."""
    first = tf.argmin(tf.cast(tf.concat([fits, [False]], 0), tf.int32))
    name = tf.concat([names, [""]], 0)[first]
    return require(tf.reduce_all(fits), name, f" {problem}")


def decode(encoded: tf.Tensor, name: tf.Tensor, stored: Description) -> tf.Tensor:
    """Decode a slice as the readers do: colour becomes luma, orientations are not applied.

    Of several channels each is a colour of a PNG.

    Args:
        encoded: string (), that passed `require_pictures`.
        name: string (), what an error calls it.
        stored: how slices are stored: their intensities.

    Returns:
        float32 (channels, H, W), whole numbers.
    """
    grey = stored.channels == 1
    if stored.bits == 8 and grey:
        is_png = tf.strings.substr(encoded, 0, len(_PNG_MAGIC)) == _PNG_MAGIC
        shape = tf.cond(
            is_png, lambda: _png_shape(encoded), lambda: tf.io.extract_jpeg_shape(encoded)[:2]
        )
    else:
        shape = _png_shape(encoded)
    fits = tf.reduce_max(shape) <= LARGEST_SIDE
    fits &= tf.reduce_prod(tf.cast(shape, tf.int64)) <= LARGEST_PIXELS
    too_large = require(
        fits & (tf.reduce_min(shape) >= 1),
        *(name, " declares ", shape[1], " x ", shape[0], " pixels; at most "),
        f"{LARGEST_PIXELS >> 20} Mi pixels and {LARGEST_SIDE} a side are read",
    )
    with tf.control_dependencies([too_large]):
        if stored.bits == 8 and grey:  # which reads PNGs, too
            image = tf.io.decode_jpeg(encoded, channels=1, dct_method="INTEGER_ACCURATE")
        else:
            in_file = 1 if grey else max(stored.channels, 3)
            dtype = tf.uint8 if stored.bits == 8 else tf.uint16
            image = tf.io.decode_png(encoded, channels=in_file, dtype=dtype)
    image = tf.cast(image[:, :, : stored.channels], tf.float32)
    image = tf.transpose(image, (2, 0, 1))
    return image + float(stored.offset) if stored.offset else image


def _png_shape(encoded: tf.Tensor) -> tf.Tensor:
    """Return height and width, int32 (2,), that a PNG declares; -1 for what is beyond int32."""
    sizes = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
    return tf.ensure_shape(sizes, (2,))[::-1]


def quantile_ranges(
    images: tf.Tensor, series: tf.Tensor, count: tf.Tensor, quantiles: tuple[float, float]
) -> tf.Tensor:
    """Find two quantiles of each series' intensities, never equal, as `quantile_range` does.

    Args:
        images: float32 (N, H, W), whole numbers from 0 to 65535.
        series: int32 (N,), the series of each slice: of one study, and of one kind in it.
        count: int32 (), number of series; each has a slice.
        quantiles: from 0 to 1.

    Returns:
        float32 (series, 1, 2).
    """
    values = tf.cast(images, tf.int32) + 2**16 * series[:, None, None]
    size = 2**16 * count
    histogram = tf.math.bincount(tf.reshape(values, [-1]), minlength=size, maxlength=size)
    below = tf.cumsum(tf.reshape(histogram, [count, 2**16]), axis=1)
    pixels = tf.cast(below[:, -1], tf.float64)
    low, high = (_quantile(below, pixels, quantile) for quantile in quantiles)
    return tf.cast(tf.stack([low, tf.maximum(high, low + 1)], axis=-1)[:, None], tf.float32)


def _quantile(below: tf.Tensor, pixels: tf.Tensor, quantile: float) -> tf.Tensor:
    """Return float64 (series,): between the two values next to the quantile's rank, linearly."""
    rank = quantile * (pixels - 1)
    first = tf.floor(rank)
    share = rank - first
    ranks = tf.stack([first, tf.minimum(first + 1, pixels - 1)], axis=1)
    values = tf.searchsorted(below, tf.cast(ranks, below.dtype), side="right")
    before, after = tf.unstack(tf.cast(values, tf.float64), axis=1)
    step = after - before
    return tf.where(share < 0.5, before + step * share, after - step * (1 - share))


def to_input(images: tf.Tensor, ranges: tf.Tensor, settings: recipes.Input) -> tf.Tensor:
    """Scale intensities to the ranges and normalise them.

    Args:
        images: (N, H, W, K * C), a slice among its neighbours, each of C channels.
        ranges: float32 (N, C, R, 2), the intensities of each channel that become 0 and 1.
        settings: the recipe's `input`.

    Returns:
        float32 (N, H, W, K * C * R).
    """
    return (scale_intensities(images, ranges) - settings.mean) / settings.std
