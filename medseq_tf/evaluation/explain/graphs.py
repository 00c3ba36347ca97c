"""A model as TensorFlow graphs: its logits, features, gradients and feature maps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from medseq_tf.errors import InputError
from medseq_tf.input.further_inputs import input_specs
from medseq_tf.layers import PerPosition
from medseq_tf.models import SequenceClassifier
from medseq_tf.recipe import Experiment

Told: TypeAlias = dict[str, Any]
"""Inputs besides slices and lengths, by name, with one row, or one a sequence."""


class ModelGraphs:
    """A model as graphs, each traced once for all lengths, with a gradient in any case.

    A network that is frozen whole has no gradient inside its model, so it is called by itself. All
    sequences of a call are of one study, of which `told` is what the model reads besides slices,
    in one row for all of them; `series` perhaps in one row each.

    Attributes:
        model: a `SequenceClassifier`.
        experiment: its recipe.
    """

    def __init__(self, model: SequenceClassifier, experiment: Experiment):
        self.model, self.experiment = model, experiment
        self._told = input_specs(model)
        slices, lengths = self._told.pop("slices"), self._told.pop("lengths")
        label = tf.TensorSpec((), tf.int32)
        self.slice_logits = self._graph(self._of_slices, slices, lengths, self._told)
        self.whole_logits = self._graph(self._whole, slices, self._told)
        self.gradient = self._graph(self._gradient, slices, label, self._told)
        one_study = tf.TensorSpec(slices.shape[1:], tf.float32)
        self.features = self._graph(self._encode, one_study)
        self.lesion_probability = self._graph(self._lesion, one_study)
        self.maps_and_gradient = self._graph(self._maps_and_gradient, one_study, label, self._told)

    @staticmethod
    def _graph(function: Callable[..., Any], *signature: Any) -> Callable[..., Any]:
        return tf.function(function, input_signature=signature, autograph=False)

    @property
    def by_position(self) -> bool:
        """Whether a slice's features depend on its place in the sequence."""
        return isinstance(self.model.encoder.backbone, PerPosition)

    @functools.cached_property
    def feature_logits(self) -> Callable[..., tf.Tensor]:
        """The graph of logits of features (sequences, steps, features), lengths and `told`."""
        width = self.model.encoder.compute_output_shape((None, None, *self.model.slice_shape))[-1]
        features = tf.TensorSpec((None, None, width), tf.float32)
        lengths = tf.TensorSpec((None,), tf.int32)
        return self._graph(self._of_features, features, lengths, self._told)

    def _of_features(self, features: tf.Tensor, lengths: tf.Tensor, told: Told) -> tf.Tensor:
        inputs = {"lengths": lengths, **_of_each(told, lengths)}
        return self.model.classify(self.model.marked(features, inputs), inputs)

    def _of_slices(self, slices: tf.Tensor, lengths: tf.Tensor, told: Told) -> tf.Tensor:
        inputs = {"slices": slices, "lengths": lengths, **_of_each(told, lengths)}
        return self.model(inputs, training=False)

    def _encode(self, slices: tf.Tensor) -> tf.Tensor:
        """Return the features (slices, features) of the slices of one study."""
        features = self.model.encode(slices[None], tf.shape(slices)[:1], training=False)
        return tf.cast(features[0], tf.float32)

    def _lesion(self, slices: tf.Tensor) -> tf.Tensor:
        """Return a segmenter's probability of every pixel, (slices, height, width), of a study."""
        return tf.sigmoid(self.model.encoder.backbone.lesion(slices[None])[0])

    def _whole(self, slices: tf.Tensor, told: Told) -> tf.Tensor:
        """Return the logits (sequences, labels) of whole sequences, all of one length."""
        shape = tf.shape(slices)
        lengths = tf.fill(shape[:1], shape[1])
        layer: Any = getattr(self.model.encoder.backbone, "layer", None)
        if not hasattr(layer, "with_gradient"):
            return self._of_slices(slices, lengths, told)
        features = layer.with_gradient(tf.reshape(slices, (-1, *slices.shape[2:])))
        features = tf.reshape(features, (shape[0], shape[1], features.shape[-1]))
        inputs = {"features": features, "lengths": lengths, **_of_each(told, lengths)}
        return self.model(inputs, training=False)

    def moved_back(self, heat: np.ndarray, slices: tf.Tensor) -> np.ndarray:
        """Return heat (N, H, W) over slices as given, where the encoder turned them upright."""
        mirror = getattr(getattr(self.model.encoder.backbone, "layer", None), "mirror", None)
        if mirror is None:
            return heat
        heat = tf.constant(heat[..., None], tf.float32)
        return mirror.back(heat, slices).numpy()[..., 0]

    def _gradient(self, slices: tf.Tensor, label: tf.Tensor, told: Told) -> tf.Tensor:
        """Return the gradient of each sequence's logit in its slices, of their shape."""
        with tf.GradientTape() as tape:
            tape.watch(slices)
            logit = tf.reduce_sum(tf.gather(self._whole(slices, told), label, axis=1))
        return tape.gradient(logit, slices)

    def _maps_and_gradient(
        self, slices: tf.Tensor, label: tf.Tensor, told: Told
    ) -> tuple[tf.Tensor, ...]:
        """Return the last feature maps of one sequence, and its logit's gradient in them."""
        with (
            record_outputs(last_feature_maps(self.model.encoder)) as recorded,
            tf.GradientTape() as tape,
        ):
            tape.watch(slices)
            logit = tf.gather(self._whole(slices[None], told)[0], label)
        maps = recorded[-1]
        return tf.cast(maps, tf.float32), tf.cast(tape.gradient(logit, maps), tf.float32)


def _of_each(told: Told, lengths: tf.Tensor) -> Told:
    """Return one study's inputs, for each of its sequences."""
    rows = tf.shape(lengths)
    return {n: tf.broadcast_to(v, tf.concat([rows, tf.shape(v)[1:]], 0)) for n, v in told.items()}


def last_feature_maps(encoder: Any) -> Any:
    """Return the layer that gives an encoder's last feature maps.

    Of `keras.applications` that is the last one with maps of several pixels that is no pooling.
    """
    network = getattr(encoder, "network", None)
    if network is None:
        stack = encoder.backbone.layer
        if not hasattr(stack, "stages"):
            raise InputError(
                f"the encoder's layer {stack.name} has no feature maps for grad_cam; use "
                "integrated_gradients"
            )
        return stack.fsm or stack.stages[-1]
    layer = last_maps_of(network)
    if layer is None:
        raise InputError(
            f"{network.application} has no feature maps for grad_cam; use integrated_gradients"
        )
    return layer


def last_maps_of(network: Any) -> Any:
    """Return the layer of `last_feature_maps` of a pretrained network, or None: it has tokens."""
    for layer in reversed(network.model.layers):
        shape: tuple[int, ...] = getattr(layer.output, "shape", ())
        is_map = len(shape) == 4 and shape[1] > 1
        if is_map and not any(kind in type(layer).__name__ for kind in ("Pooling", "InputLayer")):
            return layer
    return None


@contextlib.contextmanager
def record_outputs(layer: Any) -> Iterator[list[tf.Tensor]]:
    """Yield a list that collects what the layer returns inside the block."""
    call, recorded = layer.call, []

    def recording(*args: Any, **kwargs: Any) -> Any:
        recorded.append(call(*args, **kwargs))
        return recorded[-1]

    object.__setattr__(layer, "call", recording)
    try:
        yield recorded
    finally:
        object.__delattr__(layer, "call")
