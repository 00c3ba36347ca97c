"""The whole model: padded sequences of slices in, one logit for each study and label out.

A logit is the log-odds of its label; of its class, where a study has one class of several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from medseq_tf.layers import kernels
from medseq_tf.layers.layer import Layer, Shape, Tensor
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.models.head import log_odds

PARTS = ("encoder", "aggregator", "head")


@keras.saving.register_keras_serializable(package="medseq_tf")
class SequenceClassifier(keras.Model):
    """An encoder, an aggregator and a head; padding changes no logit.

    encoder: `(slices, lengths)` to features of each slice, its `backbone` first, which knows one
    slice at a time, then `finish`; aggregator: `(features, lengths)` to one vector of each study;
    head: vector to logits. An aggregator `of_scores` stands after the head, which then scores every
    slice, and pools the scores; those of classes are then scaled to add up to 1. The model is built
    by its constructor's caller through `build()` without arguments: the shape of a slice is part of
    the configuration, batch and steps are free.

    `variables`, not `weights`, holds the whole state: the weights, the moving statistics and the
    state of every dropout's seed. Restoring it continues a training bit for bit.

    Args:
        encoder: a layer called with `(slices, lengths, training)`.
        aggregator: an `Aggregator`.
        head: a layer called with `(vectors, training)`.
        slice_shape: `(H, W, C)`.

    Call arguments:
        inputs: {"slices": float `(B, T, H, W, C)`, right-padded;
            "lengths": int `(B,)`, each from 1 to steps}; or, in place of the slices,
            "features": float `(B, T, F)`, as `extract` gives them.
        training: whether to drop and to learn batch statistics.

    Returns:
        `(B, labels)` float32 logits, of classes `(B, classes)`.
    """

    def __init__(
        self, encoder: Layer, aggregator: Aggregator, head: Layer, slice_shape: Shape, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.aggregator = aggregator
        self.head = head
        self.slice_shape = tuple(slice_shape)

    def build(self, input_shape: Shape | None = None) -> None:
        """Build the parts, for slices of `slice_shape`."""
        shape: Shape = (None, None, *self.slice_shape)
        for part in (self.encoder, *self._after_the_encoder):
            if not part.built:
                part.build(shape)
            shape = part.compute_output_shape(shape)

    @property
    def _after_the_encoder(self) -> tuple[Layer, Layer]:
        scores_first = self.aggregator.of_scores
        return (self.head, self.aggregator) if scores_first else (self.aggregator, self.head)

    def call(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        """Return the logits of every study."""
        features = self._features(inputs, training)
        return self.classify(features, inputs["lengths"], training=training)

    def _features(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        lengths = inputs["lengths"]
        if "features" in inputs:
            return self.encoder.finish(inputs["features"], lengths, training=training)
        return self.encode(inputs["slices"], lengths, training=training)

    def encode(self, slices: Tensor, lengths: Tensor, training: bool = False) -> Tensor:
        """Return features `(B, T, F)` of padded slices, ready for the aggregator."""
        return self.encoder(slices, lengths, training=training)

    def extract(self, slices: Tensor, lengths: Tensor) -> Tensor:
        """Return the backbone's features `(B, T, F)`, which the call takes for slices."""
        return self.encoder.backbone(slices, lengths=lengths, training=False)

    def classify(self, features: Tensor, lengths: Tensor, training: bool = False) -> Tensor:
        """Return logits `(B, labels)` of features `(B, T, F)`."""
        if self.aggregator.of_scores:
            logits = self.aggregator(self.head(features, training=training), lengths)
            # Means of probabilities add up to 1; maxima and log-sum-exps by class do not.
            return log_odds(ops.log_sigmoid(logits)) if self.head.exclusive else logits
        vectors = self.aggregator(features, lengths, training=training)
        return self.head(vectors, training=training)

    def examples(self, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a training step compares, in training mode: logits and their labels.

        Args:
            inputs: as in the call.
            labels: `(B, labels)`, NaN where unknown.

        Returns:
            Logits and labels, both `(B, labels)`; where the aggregator `learns_from_slices`,
            both `(B, T, labels)`: each slice's logits, and its study's labels, which are
            unknown where the study has ended. Of a segmenter, whose `labels` are lesion masks
            `(B, T, H, W)`, these and the logits of the same pixels.
        """
        if hasattr(self.encoder.backbone, "lesion"):
            slices, lengths = inputs["slices"], inputs["lengths"]
            return self.encoder.backbone.lesion(slices, lengths, training=True), labels
        if not self.aggregator.learns_from_slices:
            return self(inputs, training=True), labels
        features = self._features(inputs, training=True)
        mask = sequence_mask(inputs["lengths"], ops.shape(features)[1])
        labels = ops.where(mask[..., None], ops.expand_dims(labels, 1), math.nan)
        return self.head(features, training=True), labels

    def running(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction after each slice: P(y | x1..xt) for every t, as logits (paper 2).

        Every slice passes through the encoder once. A causal aggregator gives all of them in one
        pass, any other one reads all beginnings of the studies side by side.

        Args:
            inputs: as in the call.

        Returns:
            `(B, T, labels)` float32: at t the logits of the study's first t + 1 slices
            alone, zeros where it has ended.
        """
        lengths = inputs["lengths"]
        features = self._features(inputs)
        if self.aggregator.causal:
            logits = self.head(self.aggregator.steps(features, lengths, training=False))
        else:
            logits = self._of_prefixes(features)
        return zero_padding(logits, sequence_mask(lengths, ops.shape(features)[1]))

    def _of_prefixes(self, features: Tensor) -> Tensor:
        batch, steps, _ = ops.shape(features)

        def logits(numbers: Tensor) -> Tensor:
            return self.classify(ops.take(features, numbers // steps, axis=0), numbers % steps + 1)

        numbers = ops.arange(batch * steps, dtype="int32")
        at_once, row = self.aggregator.at_once, (self.head.labels,)
        of_all = kernels.in_chunks(logits, numbers, at_once, row, "float32")
        return ops.reshape(of_all, (batch, steps, self.head.labels))

    def compute_output_shape(self, input_shape: Mapping[str, Shape]) -> Shape:
        """Return the logits' shape."""
        return (input_shape["slices"][0], self.head.labels)

    def get_config(self) -> dict[str, Any]:
        """Return the parts' configurations and the shape of a slice."""
        parts = {
            part: _to_be_built(keras.saving.serialize_keras_object(getattr(self, part)))
            for part in PARTS
        }
        return {**super().get_config(), **parts, "slice_shape": list(self.slice_shape)}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> SequenceClassifier:
        """Return the model that has this configuration, to be built."""
        parts = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects)
            for part in PARTS
        }
        return cls(**{**config, **parts})

    def get_build_config(self) -> dict[str, Any]:
        """Return nothing to build by: the shape of a slice is part of the configuration."""
        return {"input_shape": None}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build a loaded model."""
        self.build()


def _to_be_built(config: Any) -> Any:
    """Return a configuration without shapes to build by at once.

    So `build` gives weights the paths in a loaded model that they have in a new one.
    """
    if isinstance(config, dict):
        return {k: _to_be_built(v) for k, v in config.items() if k != "build_config"}
    return config
