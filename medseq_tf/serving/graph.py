"""Takes encoded slices of studies; gives the model's input, in TensorFlow operations alone.

What `prepare` and `pipeline` do to a picture in OpenCV and NumPy is repeated here in a graph, so
that a SavedModel answers from bytes with the number that the prepared data set gives. Intensities
are whole numbers in float32 until they are scaled, rounded where OpenCV rounds.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.input import sampling
from medseq_tf.input.model_input import scale_intensities

LARGEST_SIDE = 8192
LARGEST_PIXELS = 16 * 2**20
"""Of one slice: what a header declares is checked before anything is decoded."""

SLICES_AT_ONCE = 8
"""Slices that are decoded at a time, on as many cores."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_HEADER_BYTES = 26
_GREY = 0
_LINEAR_SCALE = 2048.0


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a prepared data set holds its slices (`dataset.json`).

    Attributes:
        size: side in pixels.
        aspect: `pad` or `stretch`.
        offset: intensity = stored value + offset.
        bits: of a stored value, 8 or 16.
    """

    size: int
    aspect: str
    offset: int
    bits: int

    @property
    def lowest(self) -> int:
        """The smallest intensity."""
        return self.offset

    @property
    def highest(self) -> int:
        """The largest intensity."""
        return 2**self.bits - 1 + self.offset


# ---------------------------------------------------------------------------------------- bytes


def require(condition: tf.Tensor, *message: str | tf.Tensor) -> tf.Operation:
    """Stops the graph with an InvalidArgumentError that reads as the parts of `message`, joined."""
    parts = [part if isinstance(part, str) else tf.strings.as_string(part) for part in message]
    return tf.debugging.Assert(condition, [tf.strings.join(parts)], summarize=1)


def require_pictures(encoded: tf.Tensor, names: tf.Tensor, bits: int) -> tf.Tensor:
    """Stops the graph at slices that are no JPEG or PNG of the model's kind; gives them back.

    Only the first bytes are read here: the kind of file, and of a PNG its bits and colours.

    Args:
        encoded: string (N,).
        names: string (N,), what an error calls each.
        bits: 8: JPEG or PNG of at most 8 bits; 16: greyscale PNG of 16 bits.
    """
    long_enough = tf.strings.length(encoded) >= _PNG_HEADER_BYTES
    with tf.control_dependencies([_require_all(long_enough, names, "is cut short or empty")]):
        start = tf.strings.substr(encoded, 0, _PNG_HEADER_BYTES)
    is_png = tf.strings.substr(start, 0, len(_PNG_MAGIC)) == _PNG_MAGIC
    header = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int32)
    header = tf.ensure_shape(header, (None, _PNG_HEADER_BYTES))
    depth, colour = header[:, 24], header[:, 25]
    if bits == 8:
        is_jpeg = tf.strings.substr(start, 0, len(_JPEG_MAGIC)) == _JPEG_MAGIC
        checks = [
            _require_all(is_png | is_jpeg, names, "is no JPEG or PNG picture"),
            _require_all(~is_png | (depth <= 8), names, "has 16 bits a pixel, this model reads 8"),
        ]
    else:
        fits = is_png & (depth == 16) & (colour == _GREY)
        wanted = "is no 16-bit greyscale PNG, which is what this model reads"
        checks = [_require_all(fits, names, wanted)]
    with tf.control_dependencies(checks):
        return tf.identity(encoded)


def _require_all(fits: tf.Tensor, names: tf.Tensor, problem: str) -> tf.Operation:
    """Stops the graph with the name of the first that does not fit."""
    first = tf.argmin(tf.cast(tf.concat([fits, [False]], 0), tf.int32))
    name = tf.concat([names, [""]], 0)[first]
    return require(tf.reduce_all(fits), name, f" {problem}")


def decode(encoded: tf.Tensor, name: tf.Tensor, stored: Stored) -> tf.Tensor:
    """Decodes a slice as the readers do: colour becomes luma, orientations are not applied.

    Args:
        encoded: string (), that passed `require_pictures`.
        name: string (), what an error calls it.
        stored: says what intensities there are.

    Returns:
        float32 (H, W), whole numbers.
    """
    if stored.bits == 8:
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
        if stored.bits == 8:  # of a PNG it decodes as of a JPEG, its own kind of file apart
            image = tf.io.decode_jpeg(encoded, channels=1, dct_method="INTEGER_ACCURATE")
        else:
            image = tf.io.decode_png(encoded, channels=1, dtype=tf.uint16)
    image = tf.cast(image[:, :, 0], tf.float32)
    return image + float(stored.offset) if stored.offset else image


def _png_shape(encoded: tf.Tensor) -> tf.Tensor:
    """int32 (2,): height and width that a PNG declares; -1 for what is beyond int32."""
    sizes = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
    return tf.ensure_shape(sizes, (2,))[::-1]


# --------------------------------------------------------------------------------------- resizing


def to_square(image: tf.Tensor, stored: Stored) -> tf.Tensor:
    """Brings a slice to its stored size, as `study_record` does.

    Args:
        image: float32 (H, W), whole numbers.
        stored: the side, and whether to pad or to stretch.

    Returns:
        float32 (size, size), whole numbers.
    """
    height, width = tf.unstack(tf.shape(image))
    if stored.aspect == "pad":
        image = tf.cond(tf.equal(height, width), lambda: image, lambda: _padded(image, stored))
        height = width = tf.maximum(height, width)
    return resize(image[None], height, width, stored.size, stored)[0]


def _padded(image: tf.Tensor, stored: Stored) -> tf.Tensor:
    """The slice in the middle of a square, on 0 or (16 bits) its own minimum."""
    height, width = tf.unstack(tf.shape(image))
    side = tf.maximum(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    edges = [[top, side - height - top], [left, side - width - left]]
    value = 0.0 if stored.bits == 8 else tf.reduce_min(image)
    return tf.pad(image, edges, constant_values=value)


def resize(
    images: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, size: int, stored: Stored
) -> tf.Tensor:
    """Resizes by area where both sides are `size` or more, else linearly, as OpenCV rounds it.

    Args:
        images: float32 (N, H, W), whole numbers.
        height: H.
        width: W.
        size: side of the result.
        stored: says what intensities there are.

    Returns:
        float32 (N, size, size), whole numbers.
    """
    fixed = not tf.is_tensor(height)
    shortest = min(height, width) if fixed else tf.minimum(height, width)
    same = (height == size) & (width == size)
    whole = (height % size == 0) & (width % size == 0)
    cases = (
        (same, lambda: images),
        (whole, lambda: _area_of_whole_pixels(images, height // size, width // size, size, stored)),
        (shortest >= size, lambda: _area(images, height, width, size, stored)),
        (True, lambda: _linear(images, height, width, size, stored)),
    )
    if fixed:
        resized = next(make for applies, make in cases if applies)()
    else:
        resized = cases[-1][1]
        for applies, make in reversed(cases[:-1]):
            resized = _cond(applies, make, resized)
        resized = resized()
    return tf.ensure_shape(resized, (None, size, size))


def _cond(applies, make, otherwise):
    return lambda: tf.cond(applies, make, otherwise)


def _area_of_whole_pixels(images, down, across, size: int, stored: Stored) -> tf.Tensor:
    """Means over cells of `down` x `across` pixels; halves of a cell of 2 x 2 go up."""
    count = tf.shape(images)[0]
    if stored.bits > 8:  # sums in float32 would not be exact
        images = tf.cast(images, tf.int32)
    rows = tf.reshape(images, [count, size, down, size * across])
    rows = tf.reduce_sum(rows, axis=2)
    cells = tf.reduce_sum(tf.reshape(rows, [count, size, size, across]), axis=3)
    means = tf.cast(cells, tf.float32) * (1.0 / tf.cast(down * across, tf.float32))
    is_fourth = tf.equal(down, 2) & tf.equal(across, 2)
    return tf.where(is_fourth, tf.floor(means + 0.5), tf.round(means))


def _area(images, height, width, size: int, stored: Stored) -> tf.Tensor:
    """Means over cells with parts of pixels at their edges, summed in OpenCV's order."""
    columns = _sums_in_order(tf.transpose(images, (0, 2, 1)), *_cells(width, size))
    means = _sums_in_order(tf.transpose(columns, (0, 2, 1)), *_cells(height, size))
    return _clipped(tf.round(means), stored)


def _cells(length, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Which of `length` pixels make up each of `size` cells, and their shares of it.

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
    """Weighted sums of rows, (N, size, W), each added up in the order of the taps in float32."""
    taps, size = tf.unstack(tf.shape(index))
    count, _, width = tf.unstack(tf.shape(images))
    rows = tf.gather(images, tf.reshape(index, [-1]), axis=1)
    rows = tf.reshape(rows, [count, taps, size, width]) * share[:, :, None]
    return tf.cumsum(rows, axis=1)[:, -1]


def _linear(images, height, width, size: int, stored: Stored) -> tf.Tensor:
    """Between the two nearest rows and columns, bilinearly."""
    if stored.bits == 8:
        return _linear_fixed_point(images, height, width, size)
    left, right, x = _neighbours(width, size, tf.float64)
    upper, lower, y = _neighbours(height, size, tf.float64)
    images = _between(images, left, right, tf.cast(x, tf.float32), axis=2)
    images = _between(images, upper, lower, tf.cast(y, tf.float32)[:, None], axis=1)
    return _clipped(tf.round(images), stored)


def _between(images, before, after, share, axis: int) -> tf.Tensor:
    first, second = tf.gather(images, before, axis=axis), tf.gather(images, after, axis=axis)
    return first + (second - first) * share


def _neighbours(length, size: int, dtype) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The pixels before and after each place of the result, and how far it is from the first."""
    scale = tf.cast(length, tf.float64) / size
    place = tf.cast((tf.range(size, dtype=tf.float64) + 0.5) * scale - 0.5, dtype)
    before = tf.floor(place)
    index = tf.cast(before, tf.int32)
    last = tf.cast(length, tf.int32) - 1
    return tf.clip_by_value(index, 0, last), tf.clip_by_value(index + 1, 0, last), place - before


def _linear_fixed_point(images, height, width, size: int) -> tf.Tensor:
    """OpenCV's arithmetic for 8 bits: weights of 11 bits, cut off and rounded in integers."""
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


def _clipped(images: tf.Tensor, stored: Stored) -> tf.Tensor:
    return tf.clip_by_value(images, float(stored.lowest), float(stored.highest))


# ------------------------------------------------------------------------------- intensity ranges


def quantile_ranges(
    images: tf.Tensor, studies: tf.Tensor, count: tf.Tensor, quantiles: tuple[float, float]
) -> tf.Tensor:
    """Two quantiles of each study's intensities, never equal, as `slice_store.quantile_range` does.

    Args:
        images: float32 (N, H, W), whole numbers from 0 to 65535.
        studies: int32 (N,), the study of each slice.
        count: int32 (), number of studies; each has a slice.
        quantiles: from 0 to 1.

    Returns:
        float32 (studies, 1, 2).
    """
    values = tf.cast(images, tf.int32) + 2**16 * studies[:, None, None]
    size = 2**16 * count
    histogram = tf.math.bincount(tf.reshape(values, [-1]), minlength=size, maxlength=size)
    below = tf.cumsum(tf.reshape(histogram, [count, 2**16]), axis=1)
    pixels = tf.cast(below[:, -1], tf.float64)
    low, high = (_quantile(below, pixels, quantile) for quantile in quantiles)
    return tf.cast(tf.stack([low, tf.maximum(high, low + 1)], axis=-1)[:, None], tf.float32)


def _quantile(below: tf.Tensor, pixels: tf.Tensor, quantile: float) -> tf.Tensor:
    """float64 (studies,): between the two values next to the quantile's rank, linearly."""
    rank = quantile * (pixels - 1)
    first = tf.floor(rank)
    share = rank - first
    ranks = tf.stack([first, tf.minimum(first + 1, pixels - 1)], axis=1)
    values = tf.searchsorted(below, tf.cast(ranks, below.dtype), side="right")
    before, after = tf.unstack(tf.cast(values, tf.float64), axis=1)
    step = after - before
    return tf.where(share < 0.5, before + step * share, after - step * (1 - share))


def to_input(images: tf.Tensor, ranges: tf.Tensor, settings: recipes.Input) -> tf.Tensor:
    """Scales intensities to the ranges and normalises them.

    Args:
        images: (N, H, W, K), a slice among its neighbours.
        ranges: float32 (N, R, 2), the intensities that become 0 and 1.
        settings: the recipe's `input`.

    Returns:
        float32 (N, H, W, K * R).
    """
    return (scale_intensities(images, ranges) - settings.mean) / settings.std


# -------------------------------------------------------------------------------------- sequences


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences that answer for studies, those of a study next to each other.

    Attributes:
        study: int32 (S,), the study of each.
        positions: int32 (S, n), slices of the study in scan order; the last is repeated in padding.
        lengths: int32 (S,), number of positions.
    """

    study: tf.Tensor
    positions: tf.Tensor
    lengths: tf.Tensor


def evaluation_sequences(lengths: tf.Tensor, settings: recipes.Sequence) -> Sequences:
    """Gives what `sampling.evaluation_sequences` gives, of several studies at once.

    Args:
        lengths: int32 (B,), slices of each study, 1 or more.
        settings: the recipe's `sequence`.
    """
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
    """`sampling._paper`: draws for short studies, windows for long ones."""
    some = [[]] if count == 1 else [_drawn(length, count) for length in range(1, count)]
    drawn = tf.reshape(tf.constant(np.array(some, np.int32)), [-1, count])
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


def mean_of_sequences(
    steps: tf.Tensor, chosen: Sequences, lengths: tf.Tensor, width: tf.Tensor
) -> tf.Tensor:
    """What is known of each study after each of its slices: a mean over its sequences.

    After slice t the sequences that hold one of the slices 0..t have begun; each answers with its
    slices up to t, and the answers are averaged. Before the first of the chosen slices its answer
    stands. After the last slice it is the mean over all sequences.

    Args:
        steps: float32 (S, n, labels), probability after each position of each sequence.
        chosen: the sequences.
        lengths: int32 (B,), slices of each study.
        width: int32 (), T.

    Returns:
        float32 (B, T, labels), zeros after the end of a study.
    """
    studies = tf.size(lengths)
    real = tf.sequence_mask(chosen.lengths, tf.shape(chosen.positions)[1])
    positions = tf.where(real, chosen.positions, tf.int32.max)
    first = tf.math.segment_min(tf.reduce_min(positions, axis=1), chosen.study)
    time = tf.maximum(tf.range(width), first[:, None])
    time = tf.gather(time, chosen.study)
    seen = tf.reduce_sum(tf.cast(positions[:, None] <= time[:, :, None], tf.int32), axis=2)
    answers = tf.gather(steps, tf.maximum(seen - 1, 0), axis=1, batch_dims=1)
    begun = tf.cast(seen > 0, tf.float32)[:, :, None]
    total = tf.math.unsorted_segment_sum(answers * begun, chosen.study, studies)
    count = tf.math.unsorted_segment_sum(begun, chosen.study, studies)
    inside = tf.sequence_mask(lengths, width)[:, :, None]
    return tf.where(inside, tf.math.divide_no_nan(total, count), 0.0)
