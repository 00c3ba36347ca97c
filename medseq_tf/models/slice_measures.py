"""Measures of single slices by formulas: what `HandcraftedFeatures` documents, group by group.

Channels are images by themselves: M stands for N * C of them in shapes. What is measured in an
empty region is 0.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from medseq_tf.layers import Mirrored, kernels
from medseq_tf.layers.layer import Tensor

SMOOTHING = 32
"""Share of a slice's side over which brightness is smoothed."""
RIM = 21
"""Share of a slice's side that a region's rim is thick: a skull and what is beside it."""
TEXTURE_SCALES = (1, 2, 4)
ASYMMETRY_SCALES = (1, 2, 4, 8)
"""Sides of the squares of pixels whose means are looked at; each twice the one before."""
CORNER = 8
"""Share of a slice's side that is a corner's."""
BORDER = 32
"""Share of a slice's side that the border is thick."""
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
"""Percent."""
SORTED_SIDE = 128
"""Of a slice of twice that side every second row and column is sorted, and so on."""
FINENESS = 64
"""Share of a slice's side that is a step of erosion, and the least deviation of a blur."""
EROSIONS, BLURS = (1, 2, 3, 4), (1, 2, 4)
"""In these steps."""
DEEPEST = 4
"""Share of a slice's side beyond which depth is not told apart."""
LEAST_SHARE = 1e-4
"""Of a region's pixels: added before the root, whose slope at 0 has no end."""
LEAST_DIFFERENCE = 1e-3
"""Of intensities: added before the logarithm."""
TINY = 1e-12
"""Added to squares before their root, likewise."""
REGIONS = ("whole", "inside")
PARTS = ("bright", "whole")
SHAPE_OF_PART = (
    "area",
    "centre_x",
    "centre_y",
    "long_axis",
    "short_axis",
    "roundness",
    "covariance",
    "perimeter",
    "compactness",
)


class Region(NamedTuple):
    """Where a head, or whatever is shown, lies: `(M, H, W)` float32, 1 inside and 0 outside."""

    bright: Tensor
    whole: Tensor
    inside: Tensor


class Shown:
    """Slices to be measured.

    Args:
        slices: `(N, H, W, C)` in [0, 1].
        mirrored: what turns them upright.
        bins: of histograms.
    """

    def __init__(self, slices: Tensor, mirrored: Mirrored, bins: int):
        self.slices, self.mirrored, self.bins = slices, mirrored, bins
        self.images = images_of(slices)

    @functools.cached_property
    def region(self) -> Region:
        """The region of every slice, `(N, H, W)`."""
        return find_region(self.mirrored.outline(self.slices))

    @functools.cached_property
    def regions(self) -> Region:
        """The region of every image: that of its slice."""
        return self._by_image(self.region)

    @functools.cached_property
    def halves(self) -> tuple[tuple[Tensor, Region], tuple[Tensor, Region]]:
        """Left and mirrored right halves, `(M, H, W // 2)`, of upright images, and their regions.

        The column in the middle of an odd number is in neither.
        """
        upright = self.mirrored.upright(self.slices, self.slices)
        images = images_of(upright)
        regions = self._by_image(find_region(self.mirrored.outline(upright)))
        half = images.shape[2] // 2
        left = (images[:, :, :half], Region(*(part[:, :, :half] for part in regions)))
        turned = Region(*(_mirror_image(part)[:, :, :half] for part in regions))
        return left, (_mirror_image(images)[:, :, :half], turned)

    def _by_image(self, region: Region) -> Region:
        channels = self.slices.shape[-1]
        return Region(*(ops.repeat(part, channels, axis=0) for part in region))


def images_of(slices: Tensor) -> Tensor:
    """Return the channels of `(N, H, W, C)` one by one, `(N * C, H, W)`."""
    _, height, width, _ = slices.shape
    return ops.reshape(ops.transpose(slices, (0, 3, 1, 2)), (-1, height, width))


def find_region(outline: Tensor) -> Region:
    """Return the region of slices whose brightness `(N, H, W)` is in [0, 1]."""
    side = min(outline.shape[1:])
    bright = _float(_square_mean(outline, _odd(side // SMOOTHING)) > 0.5)
    whole = _enclosed(bright, 1) * _enclosed(bright, 2)
    return Region(bright, whole, _without_rim(whole, max(side // RIM, 1)))


def _enclosed(bright: Tensor, axis: int) -> Tensor:
    """Return what is bright or has something bright before and after it, along an axis."""
    before = ops.cumsum(bright, axis)
    all_there = ops.max(before, axis=axis, keepdims=True)
    return _float(ops.logical_and(before > 0, all_there - before + bright > 0))


def _without_rim(region: Tensor, thickness: int) -> Tensor:
    """Return what has nothing but the region in a square about it, outside the slice included."""
    size = 2 * thickness + 1
    outside = ops.pad(1 - region, _around(thickness), constant_values=1.0)[..., None]
    for window in ((size, 1), (1, size)):
        outside = ops.max_pool(outside, window, 1, "valid", data_format="channels_last")
    return 1 - outside[..., 0]


# ------------------------------------------------------------------------------- histogram


def histogram_names(bins: int) -> list[str]:
    """Return the names of `histogram`."""
    return [f"histogram_{region}_{step}" for region in REGIONS for step in range(bins)]


def histogram(shown: Shown) -> Tensor:
    """Return roots of shares of pixels by intensity."""
    parts = (shown.regions.whole, shown.regions.inside)
    shares = [intensity_shares(shown.images, part, shown.bins) for part in parts]
    return _roots(ops.concatenate(shares, axis=1))


def intensity_shares(images: Tensor, region: Tensor, bins: int) -> Tensor:
    """Return the shares of a region's pixels, `(M, bins)`, near each of even steps in [0, 1].

    A pixel between two steps counts to both, by how near it is.
    """
    count = ops.shape(images)[0]
    place = images * (bins - 1)
    lower = ops.minimum(ops.floor(place), bins - 2)
    upper_share = (place - lower) * region
    first = bins * ops.arange(count, dtype="int32")[:, None, None]
    number = ops.reshape(ops.cast(ops.stop_gradient(lower), "int32") + first, (-1,))

    def total(share: Tensor, numbers: Tensor) -> Tensor:
        return ops.segment_sum(ops.reshape(share, (-1,)), numbers, count * bins)

    sums = total(region - upper_share, number) + total(upper_share, number + 1)
    pixels = ops.maximum(ops.sum(region, axis=(1, 2)), 1.0)
    return ops.reshape(sums, (-1, bins)) / pixels[:, None]


# ------------------------------------------------------------------------------- asymmetry


def asymmetry_names(bins: int) -> list[str]:
    """Return the names of `asymmetry`."""
    of_scale = [f"asymmetry_{m}_{k}" for k in ASYMMETRY_SCALES for m in ("mean", "max")]
    return [f"asymmetry_{region}" for region in REGIONS] + of_scale


def asymmetry(shown: Shown) -> Tensor:
    """Return how far both halves differ."""
    (left, of_left), (right, of_right) = shown.halves
    found = []
    for here, there in ((of_left.whole, of_right.whole), (of_left.inside, of_right.inside)):
        ours = _roots(intensity_shares(left, here, shown.bins))
        theirs = _roots(intensity_shares(right, there, shown.bins))
        squares = ops.sum(ops.square(ours - theirs), axis=1) / 2
        known = _pixels(here) * _pixels(there) > 0
        found.append(ops.where(known, ops.sqrt(squares + TINY), 0.0))
    difference, both = left - right, of_left.inside * of_right.inside
    for scale in ASYMMETRY_SCALES:
        if scale > 1:
            difference, both = _halved(difference, both)
        size = ops.abs(difference)
        for value in (_mean(size, both), ops.max(size * both, axis=(1, 2))):
            found.append(ops.log(value + LEAST_DIFFERENCE))
    return ops.stack(found, axis=1)


# --------------------------------------------------------------------------------- texture


def texture_names(bins: int) -> list[str]:
    """Return the names of `texture`."""
    kinds = ("gradient", "laplacian", "local_sd")
    names = itertools.product(REGIONS, TEXTURE_SCALES, kinds)
    return [f"{kind}_{region}_{scale}" for region, scale, kind in names]


def texture(shown: Shown) -> Tensor:
    """Return how much intensities vary from pixel to pixel."""
    found: list[Tensor] = []
    for region in (shown.regions.whole, shown.regions.inside):
        images = shown.images
        for scale in TEXTURE_SCALES:
            if scale > 1:
                images, region = _halved(images, region)
            for measure in (_gradient, _laplacian, _local_deviation):
                found.append(_mean(measure(images), region))
    return ops.stack(found, axis=1)


def _gradient(images: Tensor) -> Tensor:
    """Return the length of the differences to the next pixel on the right and below."""
    along = ops.pad(images[:, :, 1:] - images[:, :, :-1], [[0, 0], [0, 0], [0, 1]])
    down = ops.pad(images[:, 1:] - images[:, :-1], [[0, 0], [0, 1], [0, 0]])
    return ops.sqrt(ops.square(along) + ops.square(down) + TINY)


def _laplacian(images: Tensor) -> Tensor:
    """Return how far pixels are from the sum of their four neighbours, by size."""
    wide = ops.pad(images, _around(1))
    neighbours = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    return ops.abs(neighbours - 4 * images)


def _local_deviation(images: Tensor) -> Tensor:
    """Return the standard deviation among 3 x 3 pixels."""
    variance = _square_mean(ops.square(images), 3) - ops.square(_square_mean(images, 3))
    return ops.sqrt(ops.maximum(variance, 0.0) + TINY)


# ----------------------------------------------------------------------------------- shape


def shape_names(bins: int) -> list[str]:
    """Return the names of `shape`."""
    return [f"{measure}_{part}" for part in PARTS for measure in SHAPE_OF_PART] + ["filled"]


def shape(shown: Shown) -> Tensor:
    """Return area, place, second moments and outline of the regions."""
    bright, whole, _ = shown.region
    filled = _pixels(bright) / ops.maximum(_pixels(whole), 1.0)
    return ops.stack([*_shape_of(bright), *_shape_of(whole), filled], axis=1)


def _shape_of(region: Tensor) -> list[Tensor]:
    _, height, width = region.shape
    side = math.sqrt(height * width)
    pixels = ops.maximum(_pixels(region), 1.0)
    columns, rows = ops.sum(region, axis=1), ops.sum(region, axis=2)
    x = (ops.arange(width, dtype="float32") - (width - 1) / 2) / side
    y = (ops.arange(height, dtype="float32") - (height - 1) / 2) / side
    centre_x, centre_y = ops.sum(columns * x, axis=1) / pixels, ops.sum(rows * y, axis=1) / pixels
    from_x, from_y = x - centre_x[:, None], y - centre_y[:, None]
    var_x = ops.sum(columns * ops.square(from_x), axis=1) / pixels
    var_y = ops.sum(rows * ops.square(from_y), axis=1) / pixels
    products = from_y[:, :, None] * from_x[:, None, :]
    covariance = ops.sum(region * products, axis=(1, 2)) / pixels
    half = (var_x + var_y) / 2
    reach = ops.sqrt(ops.square(var_x - var_y) / 4 + ops.square(covariance))
    long_axis, short_axis = ops.sqrt(half + reach), ops.sqrt(ops.maximum(half - reach, 0.0))
    wide = ops.pad(region, _around(1))
    edges = ops.sum(ops.abs(wide[:, 1:] - wide[:, :-1]), axis=(1, 2))
    edges += ops.sum(ops.abs(wide[:, :, 1:] - wide[:, :, :-1]), axis=(1, 2))
    area = _pixels(region) / (height * width)
    return [
        area,
        centre_x,
        centre_y,
        long_axis,
        short_axis,
        short_axis / ops.maximum(long_axis, TINY),
        covariance,
        edges / (2 * (height + width)),
        4 * ops.sqrt(_pixels(region)) / ops.maximum(edges, 1.0),
    ]


# ------------------------------------------------------------------------------ silhouette


def silhouette_names(bins: int) -> list[str]:
    """Return the names of `silhouette`."""
    box = ("outline", "height", "width", "extent", "depth_max", "depth_mean")
    left = [f"left_{step}" for step in EROSIONS]
    near = [f"near_{step}" for step in BLURS]
    return [f"silhouette_{name}" for name in (*SHAPE_OF_PART, *box, *left, *near)]


def silhouette(shown: Shown) -> Tensor:
    """Return area, place, outline and thickness of what is above the middle of [0, 1]."""
    region = _float(ops.mean(shown.slices, axis=-1) > 0.5)
    _, height, width = region.shape
    pixels = ops.maximum(_pixels(region), 1.0)
    shapes = _shape_of(region)
    edges = 2 * (height + width) * shapes[SHAPE_OF_PART.index("perimeter")]
    high = ops.sum(_enclosed(ops.max(region, axis=2), 1), axis=1)
    wide = ops.sum(_enclosed(ops.max(region, axis=1), 1), axis=1)
    found = [
        *shapes,
        ops.square(edges) / (16 * pixels),
        high / height,
        wide / width,
        _pixels(region) / ops.maximum(high * wide, 1.0),
        *_depths(region, pixels),
        *(_mean(_blurred(region, steps), region) for steps in BLURS),
    ]
    return ops.stack(found, axis=1)


def _depths(region: Tensor, pixels: Tensor) -> list[Tensor]:
    """Return the largest and the mean depth in sides, and the shares left by `EROSIONS`."""
    side = min(region.shape[1:])
    eroded = [max(round(steps * side / FINENESS), 1) for steps in EROSIONS]
    left = [_pixels(region)]
    for number in range(max(side // DEEPEST, *eroded)):
        region = _eroded(region, is_square=number % 2 == 1)
        left.append(_pixels(region))
    stages = ops.stack(left, axis=1)
    deepest = ops.sum(_float(stages > 0), axis=1) / side
    mean = ops.sum(stages, axis=1) / pixels / side
    return [deepest, mean, *(left[number] / pixels for number in eroded)]


def _eroded(region: Tensor, is_square: bool) -> Tensor:
    """Return what has nothing but the region in the 3 x 3 about it, or in its cross alone."""
    wide = ops.pad(region, _around(1))
    column = functools.reduce(ops.minimum, (wide[:, :-2], wide[:, 1:-1], wide[:, 2:]))
    row = column if is_square else wide[:, 1:-1]
    return functools.reduce(ops.minimum, (column[:, :, 1:-1], row[:, :, :-2], row[:, :, 2:]))


def _blurred(region: Tensor, steps: int) -> Tensor:
    """Return a region blurred by a Gaussian, cut off at three deviations; beyond it is 0."""
    deviation = steps * min(region.shape[1:]) / FINENESS
    reach = math.ceil(3 * deviation)
    weights = np.exp(-np.square(np.arange(-reach, reach + 1) / deviation) / 2)
    line = ops.convert_to_tensor((weights / weights.sum()).astype("float32"))
    wide = ops.pad(region, _around(reach))[..., None]
    for window in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        wide = kernels.convolution(wide, ops.reshape(line, window))
    return wide[..., 0]


# ----------------------------------------------------------------------------- acquisition


def acquisition_names(bins: int) -> list[str]:
    """Return the names of `acquisition`."""
    corners = [f"corner_{place}" for place in ("top_left", "top_right", "low_left", "low_right")]
    places = [f"{place}_{m}" for place in ("border", "outside") for m in ("mean", "sd", "max")]
    quantiles = [f"quantile_{percent}" for percent in QUANTILES]
    return [*corners, "corner_sd", *places, "share_0", "share_1", *quantiles]


def acquisition(shown: Shown) -> Tensor:
    """Return what corners, border and the outside of the region hold, and the whole slice."""
    images = shown.images
    _, height, width = images.shape
    high, wide = max(height // CORNER, 1), max(width // CORNER, 1)
    corners = [
        images[:, rows, columns]
        for rows in (slice(high), slice(height - high, None))
        for columns in (slice(wide), slice(width - wide, None))
    ]
    found = [ops.mean(corner, axis=(1, 2)) for corner in corners]
    variance = sum(ops.var(corner, axis=(1, 2)) for corner in corners) / 4
    found.append(ops.sqrt(variance + TINY))
    thick = max(min(height, width) // BORDER, 1)
    border = np.ones((1, height, width), "float32")
    border[:, thick:-thick, thick:-thick] = 0
    for place in (ops.convert_to_tensor(border), 1 - shown.regions.whole):
        found += [*_moments(images, place), ops.max(images * place, axis=(1, 2))]
    for value in (0.0, 1.0):
        found.append(ops.mean(_float(images == value), axis=(1, 2)))
    return ops.concatenate([ops.stack(found, axis=1), _quantiles(images)], axis=1)


def _quantiles(images: Tensor) -> Tensor:
    """Return the intensities below which `QUANTILES` percent of the pixels are."""
    step = max(min(images.shape[1:]) // SORTED_SIDE, 1)
    seen = images[:, ::step, ::step]
    pixels = seen.shape[1] * seen.shape[2]
    values = ops.sort(ops.reshape(seen, (-1, pixels)), axis=1)
    places = [round(percent / 100 * (pixels - 1)) for percent in QUANTILES]
    return ops.take(values, places, axis=1)


# ----------------------------------------------------------------------------------- parts


def _moments(values: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over a region, `(M,)` each."""
    mean = _mean(values, region)
    return mean, ops.sqrt(_mean(ops.square(values - mean[:, None, None]), region) + TINY)


def _mean(values: Tensor, region: Tensor) -> Tensor:
    """Return the mean over a region, `(M,)`, 0 where it is empty."""
    return ops.sum(values * region, axis=(1, 2)) / ops.maximum(_pixels(region), 1.0)


def _halved(images: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of every 2 x 2 pixels, and where all four are in the region."""
    return _pooled(images), _float(_pooled(region) == 1.0)


def _pooled(images: Tensor) -> Tensor:
    pooled = ops.average_pool(images[..., None], 2, 2, "valid", data_format="channels_last")
    return pooled[..., 0]


def _square_mean(images: Tensor, size: int) -> Tensor:
    """Return the mean of the square of an odd size about every pixel; beyond the image is 0."""
    wide = ops.pad(images, _around(size // 2))[..., None]
    for window in ((size, 1), (1, size)):
        wide = ops.average_pool(wide, window, 1, "valid", data_format="channels_last")
    return wide[..., 0]


def _pixels(region: Tensor) -> Tensor:
    """Return the number of pixels of a region, `(M,)`."""
    return ops.sum(region, axis=(1, 2))


def _roots(shares: Tensor) -> Tensor:
    return ops.sqrt(shares + LEAST_SHARE)


def _mirror_image(images: Tensor) -> Tensor:
    return ops.flip(images, axis=2)


def _around(pixels: int) -> list[list[int]]:
    """Return the padding of images on all four sides."""
    return [[0, 0], [pixels, pixels], [pixels, pixels]]


def _odd(number: int) -> int:
    return max(number, 1) | 1


def _float(condition: Tensor) -> Tensor:
    return ops.cast(condition, "float32")


class Group(NamedTuple):
    """One group of features."""

    names: Callable[[int], list[str]]
    """Of its features, by the number of bins."""
    measure: Callable[[Shown], Tensor]
    """Slices to `(M, features)`; of `by_slice`, `(N, features)`."""
    by_slice: bool = False
    """Whether it is of all channels together."""


GROUPS = {
    "histogram": Group(histogram_names, histogram),
    "asymmetry": Group(asymmetry_names, asymmetry),
    "texture": Group(texture_names, texture),
    "shape": Group(shape_names, shape, by_slice=True),
    "silhouette": Group(silhouette_names, silhouette, by_slice=True),
    "acquisition": Group(acquisition_names, acquisition),
}
"""`model.encoder.features` -> what it stands for."""
