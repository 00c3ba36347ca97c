"""The catalogue of encoders, from slices to a vector of features for each, and that of paper 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.layers import (
    ConvolutionBlock,
    FeatureSimilarity,
    Mirrored,
    PerPosition,
    TimeDistributed,
)
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, check_choice, child_seeds, dense
from medseq_tf.models.handcrafted import HandcraftedFeatures
from medseq_tf.models.joined import JoinedFeatures
from medseq_tf.models.lesion_area import LesionArea
from medseq_tf.models.pretrained import keras_application, network_of
from medseq_tf.models.segmenters import Segmenter
from medseq_tf.recipe import ConvFSM as ConvFSMSettings
from medseq_tf.recipe import Handcrafted as HandcraftedSettings
from medseq_tf.recipe import Joined as JoinedSettings
from medseq_tf.recipe import Pixels as PixelsSettings
from medseq_tf.recipe import Segmenter as SegmenterSettings
from medseq_tf.recipe import choices

LEAST_AREA = 1e-3
"""Of a lesion map, as a share of it: added before the logarithm."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class ConvFSMStack(Layer):
    """Convolution stages, feature similarity module, pooling (paper 1, figure 6).

    For slices of one position, or of several positions side by side in the channels. The positions
    share the batch normalisation of a stage and nothing else. Slices where `real` is False count in
    no batch statistic.

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
        inputs: `(B, H, W, P * C)`, the channels position by position.
        real: `(B,)` or `(B, P)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`.

    Returns:
        `(B, P * F)`, position by position; flattened maps in the order height,
        width, channel. What stands at padded slices is to be ignored.
    """

    def __init__(
        self,
        filters: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        attention: str | None,
        pooling: str,
        positions: int,
        mirrored: bool,
        activation: str,
        momentum: float,
        epsilon: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("pooling", pooling, choices(ConvFSMSettings, "pooling"))
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
        common: dict[str, Any] = {
            "positions": positions,
            "activation": activation,
            "momentum": momentum,
            "epsilon": epsilon,
            "dtype": self.dtype_policy,
        }
        stages = zip(self.filters, self.kernels, self.strides, self.paddings, strict=True)
        self.stages = [
            ConvolutionBlock(*stage, seed=child, name=f"stage_{number}", **common)
            for number, (stage, child) in enumerate(zip(stages, stage_seeds, strict=True), start=1)
        ]
        self.fsm = attention and FeatureSimilarity(attention, seed=fsm_seed, name="fsm", **common)
        has_map = pooling == "lesion_map"
        self.lesions = dense(1, fsm_seed, "lesions", dtype=self.dtype_policy) if has_map else None

    def build(self, input_shape: Shape) -> None:
        """Build the stages and what follows them."""
        shape = self.mirror.compute_output_shape(input_shape) if self.mirror else input_shape
        for stage in self.stages:
            stage.build(shape)
            shape = stage.compute_output_shape(shape)
        if self.fsm:
            self.fsm.build(shape)
        if self.lesions:
            self.lesions.build(shape)

    def maps(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return what is pooled: `(B, H, W, P * C)`; a lesion map: logits."""
        maps = self.mirror(inputs) if self.mirror else inputs
        for stage in self.stages:
            maps = stage(maps, real=real, training=training)
        if self.fsm:
            maps = self.fsm(maps, real=real, training=training)
        return self.lesions(maps) if self.lesions else maps

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the features of every slice."""
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

    def _flatten(self, maps: Tensor) -> Tensor:
        batch, height, width, packed = ops.shape(maps)
        if self.positions > 1:
            maps = ops.reshape(maps, (batch, height * width, self.positions, -1))
            maps = ops.transpose(maps, (0, 2, 1, 3))
        return ops.reshape(maps, (batch, height * width * packed))

    def maps_shape(self, slice_shape: Shape) -> Shape:
        """Return `(H, W, C)` of one slice's maps ahead of the pooling."""
        height, width, channels = slice_shape
        channels *= 2 if self.mirrored else 1
        shape: Shape = (None, height, width, self.positions * channels)
        for stage in self.stages:
            shape = stage.compute_output_shape(shape)
        return (*shape[1:-1], shape[-1] // self.positions)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the features."""
        batch, *slice_shape = input_shape
        if self.lesions:
            return (batch, 2)
        slice_shape[-1] //= self.positions
        height, width, channels = self.maps_shape(tuple(slice_shape))
        packed = self.positions * channels
        return (batch, height * width * packed if self.pooling == "flatten" else packed)


@keras.saving.register_keras_serializable(package="medseq_tf")
class Encoder(Layer):
    """A layer over sequences of slices, then dropout of its features.

    Padded positions give zeros, and neither they nor batch-mates change what real ones give.

    Args:
        slices_to_features: a `TimeDistributed` or `PerPosition` layer,
            `(B, T, H, W, C)` to `(B, T, F)`.
        dropout: share of the features that are dropped in training.
        seed: seed of the dropout.

    Call arguments:
        slices: `(B, T, H, W, C)`.
        lengths: `(B,)` number of real slices of each study.
        training: whether to drop features and to learn batch statistics.

    Returns:
        `(B, T, F)`.
    """

    def __init__(
        self,
        slices_to_features: keras.layers.Layer,
        dropout: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.slices_to_features = slices_to_features
        self.dropout = dropout
        self.seed = seed
        self.drop = keras.layers.Dropout(
            dropout, seed=seed, name="dropout", dtype=self.dtype_policy
        )

    def build(self, slices_shape: Shape) -> None:
        """Build the layer over sequences."""
        if not self.slices_to_features.built:  # a loaded layer comes built
            self.slices_to_features.build(slices_shape)

    def call(self, slices: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the features of every slice."""
        features = self.backbone(slices, lengths=lengths, training=training)
        return self.finish(features, lengths, training=training)

    @property
    def backbone(self) -> keras.layers.Layer:
        """The layer from slices to features, without the dropout."""
        return self.slices_to_features

    def finish(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return what follows the backbone: dropout of `(B, T, F)`."""
        return self.drop(features, training=training)

    def compute_output_shape(self, slices_shape: Shape) -> Shape:
        """Return the shape of the features."""
        return self.slices_to_features.compute_output_shape(slices_shape)


def conv_fsm(settings: ConvFSMSettings, seed: int | None, skip_padding: bool) -> Encoder:
    """Return the encoder of paper 1, with weights shared by all slices or weights per position.

    Weights per position take padding along in any case.
    """
    weights_seed, dropout_seed = child_seeds(seed, 2)
    per_position = settings.weights == "per_position"
    apart = {"name", "weights", "positions", "fsm", "dropout"}
    stack = ConvFSMStack(
        **settings.model_dump(by_alias=True, exclude=apart),
        attention=settings.fsm.attention if settings.fsm else None,
        positions=settings.positions if per_position else 1,
        seed=weights_seed,
        name="conv_fsm",
    )
    if per_position:
        layer = PerPosition(stack, name="per_position")
    else:
        layer = TimeDistributed(stack, skip_padding=skip_padding, name="shared")
    return Encoder(layer, settings.dropout, dropout_seed, name="encoder")


def handcrafted(settings: HandcraftedSettings, seed: int | None, skip_padding: bool) -> Encoder:
    """Return the encoder that measures slices; nothing is drawn from `seed`."""
    measures = HandcraftedFeatures(settings.features, settings.bins, name="handcrafted")
    layer = TimeDistributed(measures, skip_padding=skip_padding, name="measured")
    return Encoder(layer, 0.0, name="encoder")


def joined(settings: JoinedSettings, seed: int | None, skip_padding: bool) -> Encoder:
    """Return the encoder of hand-made features beside a frozen network's.

    Args:
        settings: the recipe's `model.encoder`.
        seed: seed of random weights.
        skip_padding: see `TimeDistributed`.

    Raises:
        InputError: see `hub_network.hub_network`.
    """
    measures = settings.handcrafted
    network_seed, _ = child_seeds(seed, 2)  # random weights are those of `keras_application`
    features = JoinedFeatures(
        HandcraftedFeatures(measures.features, measures.bins, name="handcrafted"),
        network_of(settings.keras_application, network_seed),
        name="joined",
    )
    return Encoder(TimeDistributed(features, skip_padding, name="backbone"), 0.0, name="encoder")


def pixels(settings: PixelsSettings, seed: int | None, skip_padding: bool) -> Encoder:
    """Return every slice as it is, flattened; nothing is drawn from `seed` or left out."""
    flatten = keras.layers.Flatten(name="flatten")
    layer = TimeDistributed(flatten, skip_padding=False, name="pixels")
    return Encoder(layer, 0.0, name="encoder")


def segmenter(settings: SegmenterSettings, seed: int | None, skip_padding: bool) -> Encoder:
    """Return the encoder whose one feature of a slice is its predicted lesion's area."""
    weights_seed, dropout_seed = child_seeds(seed, 2)
    network = Segmenter(settings.network, settings.width, seed=weights_seed, name=settings.network)
    area = LesionArea(network, skip_padding, name="lesion_area")
    return Encoder(area, 0.0, dropout_seed, name="encoder")


ENCODERS: dict[str, Callable[[Any, int | None, bool], Layer]] = {
    "conv_fsm": conv_fsm,
    "keras_application": keras_application,
    "handcrafted": handcrafted,
    "joined": joined,
    "pixels": pixels,
    "segmenter": segmenter,
}
"""`model.encoder.name` -> what makes the encoder, not built.

It gets the recipe's `model.encoder`, the seed of the weights and of dropout, and whether padded
slices are left out of the computation.
"""
