"""Hand-made features of slices: intensities, asymmetry, texture, shape, a scanner's traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.errors import InputError
from medseq_tf.layers import Mirrored, kernels
from medseq_tf.layers.layer import Layer, Shape, Tensor, check_choice
from medseq_tf.models.slice_measures import GROUPS, Shown

CHUNK = 16
"""Slices that are measured at once."""
LEAST_SIDE = 16
"""Of a slice, in pixels: its halves are halved three times."""
FORMULAS = 1
"""To be raised with every change of what a feature is."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class HandcraftedFeatures(Layer):
    """Measures of single slices by formulas; it has no weights.

    Brightness is 0 at the darkest grey value of a slice and 1 from a quarter of its range up
    (`Mirrored.outline`; of several channels their mean counts), smoothed over squares of a 32nd of
    the side. Three regions follow from it, for CT, MRI and binary shapes alike: `bright`, where it
    is above 0.5; `whole`, all that has bright pixels on its left, on its right, above and below;
    `inside`, without a rim of a 21st of the side, as a brain without its skull. A slice of one grey
    value has none.

    Features, by group, of intensities x in [0, 1]. mean and sd are those of a region, and 0 if it
    is empty. At a scale of k, x is the mean of every k x k pixels, of which all have to be in the
    region.

    histogram (REGION: whole, inside):
        histogram_REGION_b: sqrt(p + 0.0001), p the share of pixels near the b-th of `bins` even
        steps from 0 to 1; a pixel between two counts to both, by how near it is. The distance of
        such roots is Hellinger's.

    asymmetry, of slices turned upright (`Mirrored`):
        asymmetry_REGION: Hellinger distance of the histograms of the left and the right half;
        asymmetry_mean_k, asymmetry_max_k (k: 1, 2, 4, 8): log(v + 0.001), v the mean and the
        maximum of |left - mirrored right| where both are inside.

    texture (REGION: whole, inside; k: 1, 2, 4), the means of
        gradient_REGION_k: sqrt(dx^2 + dy^2) of the differences to the pixel on the right and to
        that below; laplacian_REGION_k: |sum of the four neighbours - 4 x|;
        local_sd_REGION_k: the standard deviation among 3 x 3 pixels.

    shape (PART: bright, whole), lengths in sides of the slice:
        area_PART; centre_x_PART, centre_y_PART: of the centre of mass from the slice's centre;
        long_axis_PART, short_axis_PART: roots of the eigenvalues of the second moments;
        roundness_PART: short / long; covariance_PART: of x and y;
        perimeter_PART: edges between pixels in and out, as a share of those about the slice;
        compactness_PART: 4 sqrt(pixels) / edges, 1 for a square; filled: area of bright / whole.

    silhouette, for binary slices, of what is above 0.5 on the mean of the channels (its pixels: A,
    the edges between pixels in and out: E), lengths in sides of the slice:
        silhouette_area, and so on: as of shape; silhouette_outline: E^2 / 16 A, 1 for a square;
        silhouette_height, silhouette_width: of the box about it; silhouette_extent: its share of
        the box; silhouette_depth_max, silhouette_depth_mean: of its pixels, the octagonal distance
        to what is outside (erosions by a cross and a square of 3 x 3 in turn; Rosenfeld and Pfaltz
        1968), at most a 4th of the side; silhouette_left_k (k: 1, 2, 3, 4): the share of A that k
        64ths of the side of such erosions leave; silhouette_near_k (k: 1, 2, 4): the mean over it
        of itself, blurred by a Gaussian with a deviation of k 64ths.

    acquisition, what a scanner leaves and a diagnosis should not show in:
        corner_top_left, corner_top_right, corner_low_left, corner_low_right: means of squares of
        an 8th of the side; corner_sd: the root of the mean of their variances;
        border_mean, border_sd, border_max: of the outermost 32nd; outside_mean, _sd, _max: of what
        is not whole; share_0, share_1: of pixels that are 0 and 1; quantile_P: the intensity below
        which P percent of the slice is.

    Each channel is measured by itself, in the region of its slice; shape is that of the region, and
    silhouette that of the slice.

    Args:
        features: groups, in the order of their features.
        bins: of the histograms.

    Call arguments:
        slices: `(N, H, W, C)` in [0, 1]; what is beyond is clipped.

    Returns:
        `(N, F)` float32, in each group channel by channel: `feature_names`.

    Raises:
        InputError: from `build`, if slices are smaller than 16 x 16.
    """

    frozen = "all"
    """As of a network that is never trained."""

    def __init__(self, features: Sequence[str], bins: int, **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32"})
        for name in features:
            check_choice("features", name, GROUPS)
        self.features = list(features)
        self.bins = bins
        self.mirrored = Mirrored(name="mirrored", dtype="float32")

    @property
    def made_by(self) -> list[Any]:
        """What decides on the features, besides weights and the shape of a slice."""
        return ["handcrafted", FORMULAS, self.features, self.bins]

    def feature_names(self, channels: int = 1) -> list[str]:
        """Return the names of all features of slices with so many channels, in their order."""
        names = []
        for group in map(GROUPS.__getitem__, self.features):
            of_group = group.names(self.bins)
            if channels == 1 or group.by_slice:
                names += of_group
            else:
                names += [f"channel_{c + 1}_{name}" for c in range(channels) for name in of_group]
        return names

    def build(self, slices_shape: Shape) -> None:
        """Check the size of the slices."""
        _, height, width, _ = slices_shape
        if min(height, width) < LEAST_SIDE:
            raise InputError(
                f"model.encoder handcrafted measures slices of {LEAST_SIDE} x {LEAST_SIDE} pixels "
                f"or more, got {height} x {width}; set input.size"
            )

    def call(self, slices: Tensor) -> Tensor:
        """Return the features of every slice."""
        count = len(self.feature_names(slices.shape[-1]))
        return kernels.in_chunks(self._measure, slices, CHUNK, (count,), "float32")

    def _measure(self, slices: Tensor) -> Tensor:
        shown = Shown(ops.clip(slices, 0.0, 1.0), self.mirrored, self.bins)
        count = ops.shape(slices)[0]
        groups = [GROUPS[name].measure(shown) for name in self.features]
        return ops.concatenate([ops.reshape(group, (count, -1)) for group in groups], axis=1)

    def compute_output_shape(self, slices_shape: Shape) -> Shape:
        """Return the shape of the features."""
        return (slices_shape[0], len(self.feature_names(slices_shape[-1])))
