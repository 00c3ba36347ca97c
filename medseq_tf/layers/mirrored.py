"""Heads turned upright, beside their mirror images."""

from __future__ import annotations

import keras
from keras import ops

from medseq_tf.layers.layer import Layer, Shape, Tensor

MOST_TILT = 35.0
"""Degrees: an axis further from upright is not that of a head that lies on its back."""
LEAST_ELONGATION = 1.1
"""Of the variances along and across the axis: a rounder outline says nothing of the tilt."""
FILLED = 0.25
"""Share of a slice's range of intensities above which a pixel weighs fully in the outline."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class Mirrored(Layer):
    """Each slice, centred and turned upright, with its mirror image as further channels.

    A convolution then sees both halves of a brain in one place, and what is on one side alone. The
    outline is weighed by intensity: the darkest pixel of the slice by 0, all above a quarter of its
    range by 1; its centre of mass goes to the slice's centre, its long axis to the vertical, if it
    is at most `MOST_TILT` degrees away and the outline is not round. A slice of one grey value
    stays as it is. What a slice becomes depends on that slice alone. Mirroring the input mirrors
    the first half of the channels and swaps it with the second.

    Call arguments:
        slices: `(B, H, W, C)`.

    Returns:
        `(B, H, W, 2 * C)`: upright slices, then their mirror images.
    """

    def call(self, slices: Tensor) -> Tensor:
        """Return upright slices beside their mirror images."""
        upright = self.upright(slices, slices)
        return ops.concatenate([upright, ops.flip(upright, axis=2)], axis=-1)

    def upright(self, images: Tensor, slices: Tensor) -> Tensor:
        """Move `images` `(B, H, W, C)`, such as masks, as `slices` are."""
        return _moved(images, *self._pose(slices))

    def back(self, images: Tensor, slices: Tensor) -> Tensor:
        """Move what was seen in upright slices, such as a heat map, to where it is in `slices`."""
        x, y, angle = self._pose(slices)
        cosine, sine = ops.cos(angle), ops.sin(angle)
        return _moved(images, sine * y - cosine * x, -sine * x - cosine * y, -angle)

    def _pose(self, slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the head lies, `(B,)` each.

        x and y of its centre from the slice's, in pixels, and radians from the vertical to its long
        axis.
        """
        _, height, width, _ = slices.shape
        weights = self.outline(slices)
        total = ops.sum(weights, axis=(1, 2))
        some = ops.maximum(total, 1e-6)
        x = ops.arange(width, dtype="float32") - (width - 1) / 2
        y = ops.arange(height, dtype="float32") - (height - 1) / 2
        columns, rows = ops.sum(weights, axis=1), ops.sum(weights, axis=2)
        centre_x = ops.sum(columns * x, axis=1) / some
        centre_y = ops.sum(rows * y, axis=1) / some
        var_x = ops.sum(columns * ops.square(x - centre_x[:, None]), axis=1) / some
        var_y = ops.sum(rows * ops.square(y - centre_y[:, None]), axis=1) / some
        products = ops.sum(weights * y[None, :, None] * x[None, None, :], axis=(1, 2)) / some
        covariance = products - centre_x * centre_y
        return centre_x, centre_y, self._tilt(var_x, var_y, covariance)

    def outline(self, slices: Tensor) -> Tensor:
        """Return `(B, H, W)` weights in [0, 1]; 0 for a slice of one grey value."""
        grey = ops.cast(ops.mean(ops.stop_gradient(slices), axis=-1), "float32")
        darkest = ops.min(grey, axis=(1, 2), keepdims=True)
        span = ops.max(grey, axis=(1, 2), keepdims=True) - darkest
        return ops.minimum((grey - darkest) / ops.maximum(FILLED * span, 1e-6), 1.0)

    def _tilt(self, var_x: Tensor, var_y: Tensor, covariance: Tensor) -> Tensor:
        """Return `(B,)` radians from the vertical to the long axis of the outline."""
        half, spread = (var_x + var_y) / 2, (var_y - var_x) / 2
        reach = ops.sqrt(ops.square(spread) + ops.square(covariance))
        angle = 0.5 * ops.arctan2(covariance, spread)
        elongated = half + reach > LEAST_ELONGATION * ops.maximum(half - reach, 1e-6)
        upright = ops.abs(angle) <= MOST_TILT * 3.141592653589793 / 180
        return ops.where(ops.logical_and(elongated, upright), angle, 0.0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the slices' shape with twice the channels."""
        return (*input_shape[:-1], 2 * input_shape[-1])


def _moved(images: Tensor, x: Tensor, y: Tensor, angle: Tensor) -> Tensor:
    """Read images `x`, `y` off their centre, in pixels, along axes turned by `angle`."""
    _, height, width, _ = images.shape
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    cosine, sine, zero = ops.cos(angle), ops.sin(angle), ops.zeros_like(angle)
    transforms = [
        cosine,
        sine,
        x + middle_x - cosine * middle_x - sine * middle_y,
        -sine,
        cosine,
        y + middle_y + sine * middle_x - cosine * middle_y,
        zero,
        zero,
    ]
    moved = ops.image.affine_transform(
        images, ops.stack(transforms, axis=1), interpolation="bilinear", fill_mode="nearest"
    )
    return ops.reshape(moved, (-1, *images.shape[1:]))
