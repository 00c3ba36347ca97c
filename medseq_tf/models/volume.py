"""An aggregator of pixels: convolutions in three dimensions over the stack of slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.layers import BatchNormalization
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, check_choice, child_seeds
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.recipe import Cnn3D as Cnn3DSettings
from medseq_tf.recipe import choices


def resampling_weights(lengths: Tensor, steps: int | Tensor, depth: int) -> Tensor:
    """Return how much each slice of a stack weighs in each of `depth` evenly spaced ones.

    Linear interpolation where a stack is shorter than `depth`; where it is longer, triangles as
    wide as the new spacing, so that every slice counts. A stack of `depth` slices stays as it is.

    Args:
        lengths: `(B,)` number of real slices of each study, at least 1.
        steps: number of positions, padding included.
        depth: number of slices to resample to.

    Returns:
        `(B, depth, T)` float32: each row adds up to 1, padding weighs 0.
    """
    lengths = ops.reshape(ops.cast(lengths, "float32"), (-1, 1, 1))
    spacing = lengths / depth
    new = ops.reshape(ops.arange(depth, dtype="float32") + 0.5, (1, -1, 1)) * spacing - 0.5
    old = ops.reshape(ops.arange(steps, dtype="float32"), (1, 1, -1))
    weights = ops.maximum(0.0, 1.0 - ops.abs(old - new) / ops.maximum(spacing, 1.0))
    weights = ops.where(old < lengths, weights, 0.0)
    return weights / ops.sum(weights, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="medseq_tf")
class VolumeStage(Layer):
    """Convolution 3 x 3 x 3, batch normalisation, ReLU, maximum of 2 x 2 x 2.

    It has no part in lengths and padding: it sees stacks of one depth.

    Args:
        filters: number of filters.
        momentum: of the batch normalisation.
        epsilon: of the batch normalisation.
        seed: seed of the initial kernel.

    Call arguments:
        inputs: `(B, depth, H, W, C)`.
        training: as in `BatchNormalization`.

    Returns:
        `(B, depth / 2, H / 2, W / 2, filters)`, rounded up.
    """

    def __init__(
        self, filters: int, momentum: float, epsilon: float, seed: int | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.momentum = momentum
        self.epsilon = epsilon
        self.seed = seed
        self.convolution = keras.layers.Conv3D(
            filters,
            3,
            padding="same",
            use_bias=False,  # the normalisation takes it away
            kernel_initializer=keras.initializers.HeNormal(seed),
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.normalization = BatchNormalization(
            momentum=momentum, epsilon=epsilon, name="normalization", dtype=self.dtype_policy
        )

    def build(self, inputs_shape: Shape) -> None:
        """Make the weights of both parts."""
        self.convolution.build(inputs_shape)
        self.normalization.build((None, None, None, self.filters))

    def call(self, inputs: Tensor, training: Training = None) -> Tensor:
        """Return maps of half the sides."""
        maps = self.convolution(inputs)
        shape = ops.shape(maps)
        flat = ops.reshape(maps, (shape[0] * shape[1], *shape[2:]))
        maps = ops.relu(ops.reshape(self.normalization(flat, training=training), shape))
        # TensorFlow has no 3-D pooling in half precision on a CPU.
        maps = ops.cast(maps, "float32")
        maps = ops.max_pool(maps, 2, 2, "same", data_format="channels_last")
        return ops.cast(maps, self.compute_dtype)

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """Return the shape of the maps."""
        batch, *sides, _ = inputs_shape
        return (batch, *(-(-side // 2) for side in sides), self.filters)


@keras.saving.register_keras_serializable(package="medseq_tf")
class VolumeNetwork(Aggregator):
    """A 3-D convolutional network over a study's slices (paper 2, setting 2).

    For studies whose volume is intact: `resampling_weights`, one `VolumeStage` for each entry of
    `filters`, the average or maximum over the volume. Padding changes nothing: the real slices
    alone are resampled to `depth`.

    Args:
        slice_shape: `(H, W, C)` of a slice.
        depth: slices that a study is resampled to.
        filters: of each stage.
        pooling: `average` or `max`, over what is left of the volume.
        momentum: of the batch normalisations.
        epsilon: of the batch normalisations.
        seed: seed of the initial weights.

    Call arguments:
        features: `(B, T, H * W * C)`, the slices' own pixels.
        lengths: `(B,)` number of real slices of each study, at least 1.
        training: whether to learn batch statistics.

    Returns:
        `(B, filters)` of the last stage.
    """

    at_once = 8

    def __init__(
        self,
        slice_shape: Sequence[int],
        depth: int,
        filters: Sequence[int],
        pooling: str,
        momentum: float,
        epsilon: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("pooling", pooling, choices(Cnn3DSettings, "pooling"))
        self.slice_shape = list(slice_shape)
        self.depth = depth
        self.filters = list(filters)
        self.pooling = pooling
        self.momentum = momentum
        self.epsilon = epsilon
        self.seed = seed
        policy = self.dtype_policy
        stages = zip(self.filters, child_seeds(seed, len(self.filters)), strict=True)
        self.stages = [
            VolumeStage(count, momentum, epsilon, child, name=f"stage_{number}", dtype=policy)
            for number, (count, child) in enumerate(stages, start=1)
        ]

    def build(self, features_shape: Shape) -> None:
        """Build the stages.

        Raises:
            ValueError: slices are not of `slice_shape`.
        """
        if features_shape[-1] not in (None, math.prod(self.slice_shape)):
            raise ValueError(
                f"slices of {self.slice_shape} have {math.prod(self.slice_shape)} values, got "
                f"{features_shape[-1]}"
            )
        shape: Shape = (None, self.depth, *self.slice_shape)
        for stage in self.stages:
            stage.build(shape)
            shape = stage.compute_output_shape(shape)

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the summary of the last stage's maps."""
        batch, steps = ops.shape(features)[:2]
        features = zero_padding(features, sequence_mask(lengths, steps))
        weights = ops.cast(resampling_weights(lengths, steps, self.depth), features.dtype)
        volume = ops.matmul(weights, features)
        volume = ops.reshape(volume, (batch, self.depth, *self.slice_shape))
        for stage in self.stages:
            volume = stage(volume, training=training)
        summarise = ops.mean if self.pooling == "average" else ops.max
        return summarise(volume, axis=(1, 2, 3))

    def compute_output_shape(self, features_shape: Shape) -> Shape:
        """Return the shape of the vectors."""
        return (features_shape[0], self.filters[-1])
