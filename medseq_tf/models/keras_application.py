"""The encoder of paper 2: a network of `keras.applications` over every slice, then dense layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.errors import InputError
from medseq_tf.layers import TimeDistributed, kernels
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, child_seeds
from medseq_tf.layers.layer import dense as dense_layer
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models import applications

CHUNK = 16
"""Slices that pass at once through a network that is frozen whole."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class KerasNetwork(Layer):
    """A network as those of `keras.applications` up to its outputs, for slices in [0, 1].

    It brings its own preprocessing, and has no part in lengths and padding: it sees slices one by
    one. Frozen layers are never trained, and batch normalisation among them keeps its moving
    statistics. A network that is frozen whole runs in inference mode, has no gradient, and takes
    at most 16 slices at a time, so that its memory does not grow with a study.

    Its configuration names the network and holds no weights file: a saved model brings its own
    weights. Set `source` ahead of `build` for others than random ones.

    Args:
        application: name of the network, see `applications.find`.
        output_name: `average`, `max` or a layer's name, or several, see `applications.network`.
        frozen: `all`, `none`, or how many of its layers, from the first.
        seed: seed of random weights and of the network's own dropout.

    Attributes:
        source: where `build` takes the weights from: `imagenet`, a file's path, `none` (random) or
            None (to be set later).

    Call arguments:
        images: `(B, H, W, C)` in [0, 1], one channel, shown as three equal
            ones, or three.
        training: whether layers that are not frozen drop and learn batch statistics.

    Returns:
        `(B, F)`.

    Raises:
        InputError: from `build`, if network, output, size, layers or weights do not fit.
    """

    def __init__(
        self,
        application: str,
        output_name: str | Sequence[str],
        frozen: str | int,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.application = application
        self.output_name = output_name if isinstance(output_name, str) else list(output_name)
        self.frozen = frozen
        self.seed = seed
        self.source: str | None = "none"

    def build(self, images_shape: Shape) -> None:
        """Make the network and load its weights from `source`."""
        _, height, width, channels = images_shape
        if channels not in (1, 3):
            raise InputError(
                f"{self.application} takes slices of 1 or 3 channels, got {channels}; set "
                "input.windows or input.neighbours, or prepare other series as channels"
            )
        self.preprocess = self._preprocessing()
        with applications.dtype_policy(self.dtype_policy):
            self.model, layers = self._network((height, width, 3))
        self._freeze(layers)

    def _preprocessing(self) -> Callable[[Any], Any]:
        """Return what turns pictures in 0..255 into the network's input."""
        return applications.preprocessing(self.application)

    def _network(
        self, input_shape: tuple[int, int, int]
    ) -> tuple[keras.Model, list[keras.layers.Layer]]:
        """Return the network up to its outputs, and the layers by which frozen ones count."""
        return applications.network(
            self.application, self.output_name, input_shape, self.source, self.seed
        )

    def _freeze(self, layers: list[keras.layers.Layer]) -> None:
        if self.frozen == "all":
            self.model.trainable = False
        elif isinstance(self.frozen, int):
            if self.frozen > len(layers):
                raise InputError(
                    f"model.encoder.frozen = {self.frozen}: {self.application} has {len(layers)} "
                    "layers; all freezes every one"
                )
            for layer in layers[: self.frozen]:
                layer.trainable = False

    def call(self, images: Tensor, training: Training = None) -> Tensor:
        """Return the network's output, pooled where it is a map."""
        if self.frozen != "all":
            return self._features(images, training)
        features = kernels.in_chunks(
            self._features, images, CHUNK, self.model.output_shape[1:], self.compute_dtype
        )
        return ops.stop_gradient(features)

    def with_gradient(self, images: Tensor) -> Tensor:
        """Return what `call` returns in inference, with its gradient, of all images at once."""
        return self._features(images, False)

    def _features(self, images: Tensor, training: Training = False) -> Tensor:
        if images.shape[-1] == 1:
            images = ops.repeat(images, 3, axis=-1)
        return self.model(self.preprocess(255.0 * images), training=training)

    @property
    def made_by(self) -> list[Any]:
        """What decides on the features, besides weights and the shape of a slice."""
        return [self.application, self.output_name]

    @property
    def learns_statistics(self) -> bool:
        """Whether training changes the moving statistics of a batch normalisation."""
        return any(
            isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for layer in self.model.layers
        )

    def compute_output_shape(self, images_shape: Shape) -> Shape:
        """Return the shape of the features."""
        return (images_shape[0], self.model.output_shape[-1])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasNetwork:
        """Return the layer that has this configuration; its weights are to be set later."""
        layer = cls(**config)
        layer.source = None
        return layer


@keras.saving.register_keras_serializable(package="medseq_tf")
class PretrainedEncoder(Layer):
    """A network over every slice, then dense layers, then dropout (paper 2).

    Padded positions give zeros, and neither they nor batch-mates change what real ones give.

    Args:
        network: a `KerasNetwork`.
        dense: units and activation, by name, of each dense layer.
        dropout: share of the features that are dropped in training.
        skip_padding: see `TimeDistributed`.
        seed: seed of the dense layers' weights and of the dropout.

    Attributes:
        backbone: the network over sequences, `(B, T, H, W, C)` to
            `(B, T, F)`.

    Call arguments:
        slices: `(B, T, H, W, C)` in [0, 1].
        lengths: `(B,)` number of real slices of each study.
        training: whether to drop features and to learn batch statistics.

    Returns:
        `(B, T, F)`.
    """

    def __init__(
        self,
        network: KerasNetwork,
        dense: Sequence[Sequence],
        dropout: float,
        skip_padding: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.dense = [list(layer) for layer in dense]
        self.dropout = dropout
        self.skip_padding = skip_padding
        self.seed = seed
        self.backbone = TimeDistributed(
            network, skip_padding, name="backbone", dtype=self.dtype_policy
        )
        policy = self.dtype_policy
        *dense_seeds, dropout_seed = child_seeds(seed, len(self.dense) + 1)
        self.dense_layers = [
            dense_layer(units, child, f"dense_{number}", activation, dtype=policy)
            for number, ((units, activation), child) in enumerate(
                zip(self.dense, dense_seeds, strict=True), start=1
            )
        ]
        self.drop = keras.layers.Dropout(dropout, seed=dropout_seed, name="dropout", dtype=policy)

    @property
    def network(self) -> KerasNetwork:
        """The network for slices `(slices, H, W, C)` in [0, 1]."""
        return self.backbone.layer

    def build(self, slices_shape: Shape) -> None:
        """Build the network and the dense layers.

        Raises:
            InputError: batch statistics would be learned from padding.
        """
        self.backbone.build(slices_shape)
        if not self.skip_padding and self.network.learns_statistics:
            raise InputError(
                f"{self.network.application} learns batch statistics, in which padding must not "
                "count: set fit.jit=false or model.encoder.frozen=all"
            )
        shape = self.backbone.compute_output_shape(slices_shape)
        for layer in self.dense_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, slices: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the features of every slice."""
        features = self.backbone(slices, lengths=lengths, training=training)
        return self.finish(features, lengths, training=training)

    def finish(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return what follows the network, `(B, T, F)`, of its features."""
        for layer in self.dense_layers:
            features = layer(features)
        features = self.drop(features, training=training)
        return zero_padding(features, sequence_mask(lengths, ops.shape(features)[1]))

    def compute_output_shape(self, slices_shape: Shape) -> Shape:
        """Return the shape of the features."""
        shape = self.backbone.compute_output_shape(slices_shape)
        return (*shape[:-1], self.dense[-1][0]) if self.dense else shape
