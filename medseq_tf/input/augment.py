"""Augmentation: a batch's flat slices in [0, 1], randomly varied and normalised.

All in the TensorFlow graph and stateless: the same seed gives the same pictures. Each augmentation
first draws parameters (`draw_<name>`), tensors of leading dimension `count`, one entry a slice or a
sequence, and then applies one entry to each of `images` (N, H, W, C) float32, so that a draw can be
kept and replayed. An entry that was not chosen (probability p) is neutral, and its slice comes back
bit for bit. All sizes but N are known when the graph is made.

What a warp needs from beyond the border is mirrored there (the border pixel not repeated, OpenCV's
BORDER_REFLECT_101), except for rotation, which turns the slice in black.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from medseq_tf import recipe as recipes

Parameters = dict[str, tf.Tensor]


def _draw(count: tf.Tensor, seed: tf.Tensor, p: float, numbers: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw which of `count` entries are chosen, bool (count,), and uniform (count, numbers)."""
    drawn = tf.random.stateless_uniform((count, 1 + numbers), seed)
    return drawn[:, 0] < p, drawn[:, 1:]


def _between(low: float, high: float, uniform: tf.Tensor) -> tf.Tensor:
    """Bring numbers from [0, 1) to [low, high)."""
    return low + (high - low) * uniform


class Augmentation(NamedTuple):
    """One augmentation.

    Attributes:
        draw: draws parameters from a count, a seed and the recipe's settings.
        is_chosen: (N,) bool, which entries of parameters are not neutral.
        change: applies one entry each to slices.
    """

    draw: Callable[[tf.Tensor, tf.Tensor, Any], Parameters]
    is_chosen: Callable[[Parameters], tf.Tensor]
    change: Callable[[tf.Tensor, Parameters], tf.Tensor]

    def apply(self, images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """Change the chosen ones of `images`; leave the others alone, and uncomputed."""
        index = tf.where(self.is_chosen(parameters))
        chosen = {name: tf.gather_nd(value, index) for name, value in parameters.items()}
        changed = self.change(tf.gather_nd(images, index), chosen)
        return tf.tensor_scatter_nd_update(images, index, changed)


def _reflect(coordinates: tf.Tensor, size: int) -> tf.Tensor:
    """Mirror coordinates at the centres of the first and the last pixel: into [0, size - 1].

    They may lie up to two extents beyond the last. (Faster than the modulus of any distance.)
    """
    last = size - 1.0
    return tf.abs(last - tf.abs(last - tf.abs(coordinates)))


def _interpolation(coordinates: tf.Tensor, size: int) -> tf.Tensor:
    """Return the matrices (n, out, size) that read `size` pixels at `coordinates` (n, out)."""
    pixels = np.arange(size, dtype=np.float32)
    return tf.nn.relu(1.0 - tf.abs(_reflect(coordinates, size)[..., None] - pixels))


def _transform_axes(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Multiply each slice by `rows` (n, H, H) from the left, `columns` (n, W, W) from the right.

    Blur and axis-aligned warps are such products, which are faster than gathering pixels.
    """
    _, height, width, channels = images.shape
    images = tf.matmul(rows, tf.reshape(images, (-1, height, width * channels)))
    if channels == 1:
        return tf.matmul(images, columns, transpose_b=True)[..., None]
    images = tf.reshape(images, (-1, height, width, channels))
    return tf.einsum("nvw,nhwc->nhvc", columns, images)


def _sample(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Read slices bilinearly at `y`, `x` (n, H, W), in pixels from the first pixel's centre."""
    _, height, width, channels = images.shape
    y, x = _reflect(y, height), _reflect(x, width)
    top = tf.minimum(tf.cast(y, tf.int32), height - 2)
    left = tf.minimum(tf.cast(x, tf.int32), width - 2)
    down = (y - tf.cast(top, tf.float32))[..., None]
    right = (x - tf.cast(left, tf.float32))[..., None]
    slice_starts = tf.range(tf.shape(images)[0])[:, None, None] * (height * width)
    first = slice_starts + top * width + left
    pixels = tf.reshape(images, (-1, channels))
    corners = [tf.gather(pixels, first + offset) for offset in (0, 1, width, width + 1)]
    above = corners[0] + right * (corners[1] - corners[0])
    below = corners[2] + right * (corners[3] - corners[2])
    return above + down * (below - above)


def draw_rotation(count: tf.Tensor, seed: tf.Tensor, settings: recipes.Rotation) -> Parameters:
    """Draw `radians` (count,), uniform in ±degrees."""
    chosen, uniform = _draw(count, seed, settings.p, 1)
    limit = math.radians(settings.degrees)
    return {"radians": tf.where(chosen, _between(-limit, limit, uniform[:, 0]), 0.0)}


def _rotate(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Turn slices counter-clockwise about their centre, bilinearly; what comes in is black."""
    _, height, width, _ = images.shape
    x, y = (width - 1) / 2, (height - 1) / 2
    cosine, sine = tf.cos(parameters["radians"]), tf.sin(parameters["radians"])
    zero = tf.zeros_like(cosine)
    # From output (x, y) to input (x, y), as rows of a projective matrix.
    transforms = [
        cosine,
        -sine,
        (1 - cosine) * x + sine * y,
        sine,
        cosine,
        (1 - cosine) * y - sine * x,
        zero,
        zero,
    ]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(transforms, axis=1),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def draw_resized_crop(
    count: tf.Tensor, seed: tf.Tensor, settings: recipes.ResizedCrop
) -> Parameters:
    """Draw `scale` (count,), the share of the side that is kept, and where: `y`, `x` in [0, 1).

    `y` and `x` are the shares of the free play above and left of the crop.
    """
    chosen, uniform = _draw(count, seed, settings.p, 3)
    scale = _between(*settings.scale, uniform[:, 0])
    return {"scale": tf.where(chosen, scale, 1.0), "y": uniform[:, 1], "x": uniform[:, 2]}


def _crop(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Cut out a part of each slice and bring it back to full size, bilinearly."""
    _, height, width, _ = images.shape
    scale = parameters["scale"][:, None]

    def matrices(size: int, place: tf.Tensor) -> tf.Tensor:
        centres = np.arange(size, dtype=np.float32) + 0.5
        start = place[:, None] * (1.0 - scale) * size
        return _interpolation(start + scale * centres - 0.5, size)

    return _transform_axes(
        images, matrices(height, parameters["y"]), matrices(width, parameters["x"])
    )


def draw_flip(count: tf.Tensor, seed: tf.Tensor, settings: recipes.Flip) -> Parameters:
    """Draw `flip` (count,) bool."""
    return {"flip": _draw(count, seed, settings.p, 0)[0]}


def draw_gaussian_noise(
    count: tf.Tensor, seed: tf.Tensor, settings: recipes.GaussianNoise
) -> Parameters:
    """Draw `std` (count,), on the 0..1 scale, of a uniform variance; and a `seed` (count, 2).

    `skipped` (count,) is how many pictures of the batch get their noise before the first of these.
    """
    chosen, uniform = _draw(count, seed, settings.p, 1)
    std = tf.sqrt(_between(*settings.variance, uniform[:, 0])) / 255.0
    return {
        "std": tf.where(chosen, std, 0.0),
        "seed": tf.tile(tf.random.fold_in(seed, 1)[None], (count, 1)),
        "skipped": tf.zeros((count,), tf.int32),
    }


def _add_noise(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Add noise, independent in every pixel, channel and slice, and clip to [0, 1]."""
    seed = tf.reduce_max(parameters["seed"], axis=0)
    skipped = tf.maximum(tf.reduce_max(parameters["skipped"]), 0)
    count = skipped + tf.shape(images)[0]
    noise = tf.random.stateless_normal((count, *images.shape[1:]), seed)[skipped:]
    noise *= parameters["std"][:, None, None, None]
    return tf.clip_by_value(images + noise, 0.0, 1.0)


def draw_gaussian_blur(
    count: tf.Tensor, seed: tf.Tensor, settings: recipes.GaussianBlur
) -> Parameters:
    """Draw `weights` (count, largest kernel): OpenCV's Gaussian of a random odd kernel size.

    Every odd size of the range is equally likely; sigma is OpenCV's for that size.
    """
    smallest, largest = settings.kernel
    kernels = np.stack([_gaussian(size, largest) for size in range(smallest, largest + 1, 2)])
    chosen, uniform = _draw(count, seed, settings.p, 1)
    weights = tf.gather(kernels, tf.cast(uniform[:, 0] * len(kernels), tf.int32))
    return {"weights": tf.where(chosen[:, None], weights, _gaussian(1, largest))}


def _gaussian(size: int, width: int) -> np.ndarray:
    """Return OpenCV's Gaussian kernel of `size` taps, centred in `width` taps, float32."""
    return np.pad(cv2.getGaussianKernel(size, -1, cv2.CV_32F)[:, 0], (width - size) // 2)


def _blur(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Convolve slices with their weights along both axes."""

    def matrices(size: int) -> tf.Tensor:
        taps = parameters["weights"].shape[1]
        sources = np.pad(np.arange(size), taps // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(sources, size)  # one a tap
        shifted = np.eye(size, dtype=np.float32)[windows]
        return tf.reshape(parameters["weights"] @ shifted.reshape(taps, -1), (-1, size, size))

    _, height, width, _ = images.shape
    return _transform_axes(images, matrices(height), matrices(width))


def draw_grid_distortion(
    count: tf.Tensor, seed: tf.Tensor, settings: recipes.GridDistortion
) -> Parameters:
    """Draw `y`, `x` (count, steps), each cell's source extent, uniform in 1 ± limit."""
    chosen, uniform = _draw(count, seed, settings.p, 2 * settings.steps)
    extents = _between(1.0 - settings.limit, 1.0 + settings.limit, uniform)
    y, x = tf.split(tf.where(chosen[:, None], extents, 1.0), 2, axis=1)
    return {"y": y, "x": x}


def _distort_grid(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Stretch the rows and columns of a grid's equal cells, starting from the top left corner."""

    def matrices(size: int, extents: tf.Tensor) -> tf.Tensor:
        # A pixel's source coordinate is the sum of all extents up to it.
        steps = extents.shape[1]
        cell = size / steps
        starts = np.arange(steps)[:, None] * cell
        covered = np.clip(np.arange(size) - starts, 0, cell).astype(np.float32)
        return _interpolation(extents @ covered, size)

    _, height, width, _ = images.shape
    return _transform_axes(
        images, matrices(height, parameters["y"]), matrices(width, parameters["x"])
    )


def draw_optical_distortion(
    count: tf.Tensor, seed: tf.Tensor, settings: recipes.OpticalDistortion
) -> Parameters:
    """Draw `coefficient` (count,), uniform in ±limit: above 0 barrel, below 0 pincushion."""
    chosen, uniform = _draw(count, seed, settings.p, 1)
    coefficient = _between(-settings.limit, settings.limit, uniform[:, 0])
    return {"coefficient": tf.where(chosen, coefficient, 0.0)}


def _distort_as_a_lens(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Distort slices as a lens does: OpenCV's camera model with k1 = k2 = coefficient.

    The focal lengths are the width and the height, the optical centre is the slice's.
    """
    _, height, width, _ = images.shape
    y = np.asarray(np.arange(height) - (height - 1) / 2, np.float32)[:, None]
    x = np.asarray(np.arange(width) - (width - 1) / 2, np.float32)[None, :]
    squared_radius = (y / height) ** 2 + (x / width) ** 2
    scale = 1.0 + parameters["coefficient"][:, None, None] * (squared_radius + squared_radius**2)
    return _sample(images, y * scale + (height - 1) / 2, x * scale + (width - 1) / 2)


def draw_coarse_dropout(
    count: tf.Tensor, seed: tf.Tensor, settings: recipes.CoarseDropout
) -> Parameters:
    """Draw `y`, `x` (count, holes) in [0, 1), and `size` (count,), the holes' side in pixels.

    `y` and `x` are the shares of the free play above and left of a hole, which lies inside the
    slice. A size of 0 means no holes.
    """
    chosen, uniform = _draw(count, seed, settings.p, 2 * settings.holes)
    y, x = tf.split(uniform, 2, axis=1)
    return {"size": tf.where(chosen, settings.size, 0), "y": y, "x": x}


def _punch_holes(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Fill square holes with 0."""

    def covered(size: int, place: tf.Tensor) -> tf.Tensor:
        """Tell which of `size` pixels each hole covers: (n, holes, size), 1.0 or 0.0."""
        side = tf.minimum(parameters["size"], size)[:, None]
        start = tf.cast(place * tf.cast(size - side + 1, tf.float32), tf.int32)[..., None]
        from_start = np.arange(size, dtype=np.int32) - start
        return tf.cast((from_start >= 0) & (from_start < side[..., None]), tf.float32)

    _, height, width, _ = images.shape
    rows, columns = covered(height, parameters["y"]), covered(width, parameters["x"])
    holes = tf.matmul(rows, columns, transpose_a=True)[..., None] > 0.0
    return tf.where(holes, 0.0, images)


def _flip(images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
    """Mirror slices left-right."""
    return tf.reverse(images, [2])


def _is_blurred(parameters: Parameters) -> tf.Tensor:
    return parameters["weights"][:, parameters["weights"].shape[1] // 2] != 1.0


def _is_distorted(parameters: Parameters) -> tf.Tensor:
    return tf.reduce_any((parameters["y"] != 1.0) | (parameters["x"] != 1.0), axis=1)


def _has_holes(parameters: Parameters) -> tf.Tensor:
    return parameters["size"] > 0


AUGMENTATIONS = {
    "rotation": Augmentation(draw_rotation, lambda drawn: drawn["radians"] != 0.0, _rotate),
    "resized_crop": Augmentation(draw_resized_crop, lambda drawn: drawn["scale"] != 1.0, _crop),
    "flip": Augmentation(draw_flip, lambda drawn: drawn["flip"], _flip),
    "gaussian_noise": Augmentation(
        draw_gaussian_noise, lambda drawn: drawn["std"] != 0.0, _add_noise
    ),
    "gaussian_blur": Augmentation(draw_gaussian_blur, _is_blurred, _blur),
    "grid_distortion": Augmentation(draw_grid_distortion, _is_distorted, _distort_grid),
    "optical_distortion": Augmentation(
        draw_optical_distortion, lambda drawn: drawn["coefficient"] != 0.0, _distort_as_a_lens
    ),
    "coarse_dropout": Augmentation(draw_coarse_dropout, _has_holes, _punch_holes),
}
"""By the field of the recipe's `Augment`, in the order of application."""


@tf.autograph.experimental.do_not_convert  # its conversion would take most of the tracing
def augment(
    images: tf.Tensor,
    sequence_ids: tf.Tensor,
    seed: tf.Tensor,
    settings: recipes.Augment,
    mean: float,
    std: float,
    first: tf.Tensor | None = None,
) -> tf.Tensor:
    """Vary and normalise the slices of a batch, in the order of the fields of `Augment`.

    Args:
        images: float32 (N, H, W, C) in [0, 1], the slices of all sequences one after another.
        sequence_ids: int32 (N,), the sequence of each slice, from 0, for what is drawn once per
            sequence.
        seed: int32 (2,).
        settings: The recipe's `augment`.
        mean: The recipe's `input.mean`.
        std: The recipe's `input.std`.
        first: Where `images` are a part of the batch's slices, the first one's place among all of
            them, of which `sequence_ids` tells. They come out as of the whole batch, to rounding.

    Returns:
        float32 (N, H, W, C), normalised by `(x - mean) / std`.
    """
    images = tf.convert_to_tensor(images)
    seeds = tf.unstack(tf.random.split(seed, len(AUGMENTATIONS)))
    normalised = False
    for (name, augmentation), seed in zip(AUGMENTATIONS.items(), seeds, strict=True):
        chosen = getattr(settings, name)
        if chosen is None:
            continue
        if chosen.per == "sequence":
            drawn = augmentation.draw(tf.reduce_max(sequence_ids) + 1, seed, chosen)
            parameters = {key: tf.gather(value, sequence_ids) for key, value in drawn.items()}
        else:
            parameters = augmentation.draw(tf.size(sequence_ids), seed, chosen)
        if first is not None:
            parameters = _of_part(augmentation, parameters, first, tf.shape(images)[0])
        if name == "coarse_dropout" and chosen.after_normalisation:
            images, normalised = (images - mean) / std, True
        images = augmentation.apply(images, parameters)
    return images if normalised else (images - mean) / std


def _of_part(
    augmentation: Augmentation, parameters: Parameters, first: tf.Tensor, count: tf.Tensor
) -> Parameters:
    """Return the parameters of `count` slices of a batch, from the one at `first`."""
    before = augmentation.is_chosen(parameters)[:first]
    parameters = {name: value[first : first + count] for name, value in parameters.items()}
    if "skipped" in parameters:
        parameters["skipped"] += tf.reduce_sum(tf.cast(before, tf.int32))
    return parameters
