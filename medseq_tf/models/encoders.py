"""Takes padded sequences of slices, gives a vector of features for each slice."""

from __future__ import annotations

import keras
from keras import ops

from medseq_tf.layers import (
    ConvolutionBlock,
    FeatureSimilarity,
    Mirrored,
    PerPosition,
    TimeDistributed,
)
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.models.keras_application import keras_application
from medseq_tf.models.lesion_area import LesionArea
from medseq_tf.models.segmenters import Segmenter
from medseq_tf.recipe import ConvFSM as ConvFSMSettings
from medseq_tf.recipe import Pixels as PixelsSettings
from medseq_tf.recipe import Segmenter as SegmenterSettings

POOLINGS = ("flatten", "average", "max", "lesion_map")

LEAST_AREA = 1e-3
"""Of a lesion map, as a share of it: added before the logarithm."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class ConvFSMStack(keras.layers.Layer):
    """Slices where `real` is False count in no batch statistic; their outputs are to be ignored.

    Convolution stages, feature similarity module, pooling (paper 1, figure 6), for slices of one
    position, or of several positions side by side in the channels. The positions share the batch
    normalisation of a stage and nothing else.

    Args:
        filters: of each stage and position.
        kernels: kernel size of each stage.
        strides: of each stage.
        paddings: rows and columns of zeros on each side, of each stage.
        attention: of the feature similarity module, see `FeatureSimilarity`; None: no module.
        pooling: `flatten`, or `average` or `max` over height and width, or `lesion_map`: the maps
            become one of lesion logits (a 1 x 1 convolution), whose area, the mean probability, on
            a logarithmic scale, and maximum are the two features.
        positions: number of positions.
        mirrored: whether slices are turned upright and joined by their mirror images first, see
            `Mirrored`.
        activation: of every block, by name.
        momentum: of the batch normalisations.
        epsilon: of the batch normalisations.
        seed: seed of the initial weights.

    Call arguments:
        inputs: `(batch, height, width, positions * channels)`, the channels position by position.
        real: `(batch,)` or `(batch, positions)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`.

    Returns:
        `(batch, positions * features)`, position by position; flattened maps in the order height,
        width, channel.
    """

    def __init__(
        self,
        filters=(16, 32, 48),
        kernels=(11, 5, 5),
        strides=(2, 2, 2),
        paddings=(0, 1, 0),
        attention="softmax",
        pooling="flatten",
        positions=1,
        mirrored=False,
        activation="relu",
        momentum=0.9,
        epsilon=1e-5,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.filters = list(filters)
        self.kernels = list(kernels)
        self.strides = list(strides)
        self.paddings = list(paddings)
        self.attention = attention
        self.pooling = pooling
        self.positions = positions
        self.mirrored = mirrored
        self.activation = activation
        self.momentum = momentum
        self.epsilon = epsilon
        self.seed = seed
        *stage_seeds, fsm_seed = child_seeds(seed, len(self.filters) + 1)
        self.mirror = Mirrored(name="mirrored", dtype=self.dtype_policy) if mirrored else None
        common = {
            "positions": positions,
            "activation": activation,
            "momentum": momentum,
            "epsilon": epsilon,
            "dtype": self.dtype_policy,
        }
        stages = zip(
            self.filters, self.kernels, self.strides, self.paddings, stage_seeds, strict=True
        )
        self.stages = [
            ConvolutionBlock(*stage[:4], seed=stage[4], name=f"stage_{number}", **common)
            for number, stage in enumerate(stages, start=1)
        ]
        self.fsm = attention and FeatureSimilarity(attention, seed=fsm_seed, name="fsm", **common)
        self.lesions = None
        if pooling == "lesion_map":
            initializer = keras.initializers.GlorotUniform(seed=fsm_seed)
            self.lesions = keras.layers.Dense(
                1, kernel_initializer=initializer, name="lesions", dtype=self.dtype_policy
            )

    def build(self, input_shape):
        shape = self.mirror.compute_output_shape(input_shape) if self.mirror else input_shape
        for stage in self.stages:
            stage.build(shape)
            shape = stage.compute_output_shape(shape)
        if self.fsm:
            self.fsm.build(shape)
        if self.lesions:
            self.lesions.build(shape)

    def maps(self, inputs, real=None, training=None):
        """What is pooled: `(batch, height, width, positions * channels)`; a lesion map: logits."""
        maps = self.mirror(inputs) if self.mirror else inputs
        for stage in self.stages:
            maps = stage(maps, real=real, training=training)
        if self.fsm:
            maps = self.fsm(maps, real=real, training=training)
        return self.lesions(maps) if self.lesions else maps

    def call(self, inputs, real=None, training=None):
        maps = self.maps(inputs, real=real, training=training)
        if self.lesions:
            area = ops.mean(ops.sigmoid(maps), axis=(1, 2))
            highest = ops.max(maps, axis=(1, 2))
            return ops.concatenate([ops.log(area + LEAST_AREA) / 2 + 2, highest / 4], axis=-1)
        if self.pooling == "average":
            return ops.mean(maps, axis=(1, 2))
        if self.pooling == "max":
            return ops.max(maps, axis=(1, 2))
        return self._flatten(maps)

    def _flatten(self, maps):
        batch, height, width, packed = ops.shape(maps)
        if self.positions > 1:
            maps = ops.reshape(maps, (batch, height * width, self.positions, -1))
            maps = ops.transpose(maps, (0, 2, 1, 3))
        return ops.reshape(maps, (batch, height * width * packed))

    def maps_shape(self, slice_shape):
        """`(height, width, channels)` of one slice's maps ahead of the pooling."""
        height, width, channels = slice_shape
        shape = (None, height, width, self.positions * channels * (2 if self.mirrored else 1))
        for stage in self.stages:
            shape = stage.compute_output_shape(shape)
        return (*shape[1:-1], shape[-1] // self.positions)

    def compute_output_shape(self, input_shape):
        batch, *slice_shape = input_shape
        if self.lesions:
            return (batch, 2)
        slice_shape[-1] //= self.positions
        height, width, channels = self.maps_shape(slice_shape)
        packed = self.positions * channels
        return (batch, height * width * packed if self.pooling == "flatten" else packed)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernels": self.kernels,
            "strides": self.strides,
            "paddings": self.paddings,
            "attention": self.attention,
            "pooling": self.pooling,
            "positions": self.positions,
            "mirrored": self.mirrored,
            "activation": self.activation,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class Encoder(keras.layers.Layer):
    """Padded positions give zeros, and neither they nor batch-mates change what real ones give.

    A layer over sequences, then dropout of its features.

    Args:
        slices_to_features: a `TimeDistributed` or `PerPosition` layer,
            `(batch, steps, height, width, channels)` to `(batch, steps, features)`.
        dropout: share of the features that are dropped in training.
        seed: seed of the dropout.

    Call arguments:
        slices: `(batch, steps, height, width, channels)`.
        lengths: `(batch,)` number of real slices of each study.
        training: whether to drop features and to learn batch statistics.

    Returns:
        `(batch, steps, features)`.
    """

    def __init__(self, slices_to_features, dropout=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.slices_to_features = slices_to_features
        self.dropout = dropout
        self.seed = seed
        self.drop = keras.layers.Dropout(
            dropout, seed=seed, name="dropout", dtype=self.dtype_policy
        )

    def build(self, slices_shape):
        if not self.slices_to_features.built:  # a loaded layer comes built
            self.slices_to_features.build(slices_shape)

    def call(self, slices, lengths, training=None):
        features = self.backbone(slices, lengths=lengths, training=training)
        return self.finish(features, lengths, training=training)

    @property
    def backbone(self):
        """The layer from slices to features, without the dropout."""
        return self.slices_to_features

    def finish(self, features, lengths, training=None):
        """What follows the backbone: dropout of `(batch, steps, features)`."""
        return self.drop(features, training=training)

    def compute_output_shape(self, slices_shape, lengths_shape=None):
        return self.slices_to_features.compute_output_shape(slices_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "slices_to_features": keras.saving.serialize_keras_object(self.slices_to_features),
            "dropout": self.dropout,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["slices_to_features"])
        return cls(**{**config, "slices_to_features": layer})


def conv_fsm(settings: ConvFSMSettings, seed: int | None = None, skip_padding: bool = True):
    """The encoder of paper 1, with weights shared by all slices or weights per position.

    Args:
        settings: the recipe's `model.encoder`.
        seed: seed of the initial weights and of dropout.
        skip_padding: see `TimeDistributed`; weights per position take padding along in any case.

    Returns:
        An `Encoder`, not built.
    """
    weights_seed, dropout_seed = child_seeds(seed, 2)
    per_position = settings.weights == "per_position"
    stack = ConvFSMStack(
        filters=settings.filters,
        kernels=settings.kernels,
        strides=settings.strides,
        paddings=settings.paddings,
        attention=settings.fsm and settings.fsm.attention,
        pooling=settings.pooling,
        positions=settings.positions if per_position else 1,
        mirrored=settings.mirrored,
        activation=settings.activation,
        momentum=settings.batch_norm_momentum,
        epsilon=settings.batch_norm_epsilon,
        seed=weights_seed,
        name="conv_fsm",
    )
    if per_position:
        layer = PerPosition(stack, name="per_position")
    else:
        layer = TimeDistributed(stack, skip_padding=skip_padding, name="shared")
    return Encoder(layer, settings.dropout, dropout_seed, name="encoder")


def pixels(settings: PixelsSettings, seed: int | None = None, skip_padding: bool = True) -> Encoder:
    """Every slice as it is, flattened; there is nothing to draw from `seed` and to be skipped."""
    flatten = keras.layers.Flatten(name="flatten")
    return Encoder(TimeDistributed(flatten, skip_padding=False, name="pixels"), name="encoder")


def segmenter(settings: SegmenterSettings, seed: int | None = None, skip_padding: bool = True):
    """The encoder whose one feature of a slice is its predicted lesion's area.

    Args:
        settings: the recipe's `model.encoder`.
        seed: seed of the initial weights and of dropout.
        skip_padding: see `TimeDistributed`.

    Returns:
        An `Encoder`, not built.
    """
    weights_seed, dropout_seed = child_seeds(seed, 2)
    network = Segmenter(settings.network, settings.width, seed=weights_seed, name=settings.network)
    area = LesionArea(network, skip_padding, name="lesion_area")
    return Encoder(area, 0.0, dropout_seed, name="encoder")


ENCODERS = {
    "conv_fsm": conv_fsm,
    "keras_application": keras_application,
    "pixels": pixels,
    "segmenter": segmenter,
}
