"""Takes the slices of each study as one stack, gives one vector for each study by convolutions in
three dimensions."""

from __future__ import annotations

import math

import keras
from keras import ops

from medseq_tf.layers import BatchNormalization
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.recipe import Cnn3D as Cnn3DSettings

POOLINGS = ("average", "max")


def resampling_weights(lengths, steps, depth: int):
    """How much each slice of a stack weighs in each of `depth` evenly spaced ones.

    Linear interpolation where a stack is shorter than `depth`; where it is longer, triangles as
    wide as the new spacing, so that every slice counts. A stack of `depth` slices stays as it is.

    Args:
        lengths: `(batch,)` number of real slices of each study, at least 1.
        steps: number of positions, padding included.
        depth: number of slices to resample to.

    Returns:
        `(batch, depth, steps)` float32: each row adds up to 1, padding weighs 0.
    """
    lengths = ops.reshape(ops.cast(lengths, "float32"), (-1, 1, 1))
    spacing = lengths / depth
    new = ops.reshape(ops.arange(depth, dtype="float32") + 0.5, (1, -1, 1)) * spacing - 0.5
    old = ops.reshape(ops.arange(steps, dtype="float32"), (1, 1, -1))
    weights = ops.maximum(0.0, 1.0 - ops.abs(old - new) / ops.maximum(spacing, 1.0))
    weights = ops.where(old < lengths, weights, 0.0)
    return weights / ops.sum(weights, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="medseq_tf")
class VolumeStage(keras.layers.Layer):
    """Has no part in lengths and padding: it sees stacks of one depth.

    Convolution 3 x 3 x 3, batch normalisation, ReLU, maximum of 2 x 2 x 2.

    Args:
        filters: number of filters.
        momentum: of the batch normalisation.
        epsilon: of the batch normalisation.
        seed: seed of the initial kernel.

    Call arguments:
        inputs: `(batch, depth, height, width, channels)`.
        training: as in `BatchNormalization`.

    Returns:
        `(batch, depth / 2, height / 2, width / 2, filters)`, rounded up.
    """

    def __init__(self, filters, momentum=0.9, epsilon=1e-5, seed=None, **kwargs):
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

    def build(self, inputs_shape):
        self.convolution.build(inputs_shape)
        self.normalization.build((None, None, None, self.filters))

    def call(self, inputs, training=None):
        maps = self.convolution(inputs)
        shape = ops.shape(maps)
        flat = ops.reshape(maps, (shape[0] * shape[1], *shape[2:]))
        maps = ops.relu(ops.reshape(self.normalization(flat, training=training), shape))
        # TensorFlow has no 3-D pooling in half precision on a CPU.
        maps = ops.cast(maps, "float32")
        maps = ops.max_pool(maps, 2, 2, "same", data_format="channels_last")
        return ops.cast(maps, self.compute_dtype)

    def compute_output_shape(self, inputs_shape):
        batch, *sides, _ = inputs_shape
        return (batch, *(-(-side // 2) for side in sides), self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class VolumeNetwork(keras.layers.Layer):
    """Padding, whatever it holds and however much it is, changes nothing: the real slices alone
    are resampled to `depth`.

    A 3-D convolutional network over a study's slices, for studies whose volume is intact (paper 2,
    setting 2): `resampling_weights`, one `VolumeStage` for each entry of `filters`, the average or
    maximum over the volume.

    Args:
        slice_shape: `(height, width, channels)` of a slice.
        depth: slices that a study is resampled to.
        filters: of each stage.
        pooling: `average` or `max`, over what is left of the volume.
        momentum: of the batch normalisations.
        epsilon: of the batch normalisations.
        seed: seed of the initial weights.

    Call arguments:
        features: `(batch, steps, height * width * channels)`, the slices' own pixels.
        lengths: `(batch,)` number of real slices of each study, at least 1.
        training: whether to learn batch statistics.

    Returns:
        `(batch, filters)` of the last stage.
    """

    at_once = 8
    """Studies, or beginnings of one, that pass at once where a study asks for many."""

    def __init__(
        self,
        slice_shape,
        depth=16,
        filters=(16, 32, 64),
        pooling="average",
        momentum=0.9,
        epsilon=1e-5,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.slice_shape = list(slice_shape)
        self.depth = depth
        self.filters = list(filters)
        self.pooling = pooling
        self.momentum = momentum
        self.epsilon = epsilon
        self.seed = seed
        seeds = child_seeds(seed, len(self.filters))
        self.stages = [
            VolumeStage(
                count,
                momentum,
                epsilon,
                stage_seed,
                name=f"stage_{number}",
                dtype=self.dtype_policy,
            )
            for number, (count, stage_seed) in enumerate(
                zip(self.filters, seeds, strict=True), start=1
            )
        ]

    def build(self, features_shape):
        if features_shape[-1] not in (None, math.prod(self.slice_shape)):
            raise ValueError(
                f"slices of {self.slice_shape} have {math.prod(self.slice_shape)} values, got "
                f"{features_shape[-1]}"
            )
        shape = (None, self.depth, *self.slice_shape)
        for stage in self.stages:
            stage.build(shape)
            shape = stage.compute_output_shape(shape)

    def call(self, features, lengths, training=None):
        batch, steps = ops.shape(features)[:2]
        features = zero_padding(features, sequence_mask(lengths, steps))
        weights = ops.cast(resampling_weights(lengths, steps, self.depth), features.dtype)
        volume = ops.matmul(weights, features)
        volume = ops.reshape(volume, (batch, self.depth, *self.slice_shape))
        for stage in self.stages:
            volume = stage(volume, training=training)
        summarise = ops.mean if self.pooling == "average" else ops.max
        return summarise(volume, axis=(1, 2, 3))

    def compute_output_shape(self, features_shape, lengths_shape=None):
        return (features_shape[0], self.filters[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "slice_shape": self.slice_shape,
            "depth": self.depth,
            "filters": self.filters,
            "pooling": self.pooling,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "seed": self.seed,
        }


def cnn_3d(
    settings: Cnn3DSettings, seed: int | None, slice_shape: tuple[int, int, int]
) -> VolumeNetwork:
    """A 3-D convolutional network over slices of `slice_shape`, `(height, width, channels)`."""
    return VolumeNetwork(
        slice_shape,
        settings.depth,
        settings.filters,
        settings.pooling,
        settings.batch_norm_momentum,
        settings.batch_norm_epsilon,
        seed,
        name="aggregator",
    )
