"""Takes padded sequences of slices and their lengths, gives one logit for each study and label."""

from __future__ import annotations

import math

import keras
from keras import ops

from medseq_tf.layers import kernels
from medseq_tf.layers.lengths import sequence_mask, zero_padding

PREFIXES = 64
"""Beginnings of studies that `running` passes at once through an aggregator that is not causal,
unless the aggregator has its own number, `at_once`."""

PARTS = ("encoder", "aggregator", "head")


@keras.saving.register_keras_serializable(package="medseq_tf")
class SequenceClassifier(keras.Model):
    """Padding, what it holds and how much of it there is, changes no logit.

    encoder: `(slices, lengths)` to features of each slice, its `backbone` first, which knows one
    slice at a time, then `finish`; aggregator: `(features, lengths)` to one vector of each study;
    head: vector to logits. An aggregator `of_scores` stands after the head, which then scores every
    slice, and pools the scores. The model is built by its constructor's caller through `build()`
    without arguments: the shape of a slice is part of the configuration, batch and steps are free.

    `variables`, not `weights`, holds the whole state: the weights, the moving statistics and the
    state of every dropout's seed. Restoring it continues a training bit for bit.

    Args:
        encoder: a layer called with `(slices, lengths, training)`.
        aggregator: a layer called with `(features, lengths, training)`.
        head: a layer called with `(vectors, training)`.
        slice_shape: `(height, width, channels)`.

    Call arguments:
        inputs: {"slices": float `(batch, steps, height, width, channels)`, right-padded;
            "lengths": int `(batch,)`, each from 1 to steps}; or, in place of the slices,
            "features": float `(batch, steps, features)`, as `extract` gives them.
        training: whether to drop and to learn batch statistics.

    Returns:
        `(batch, labels)` float32 logits.
    """

    def __init__(self, encoder, aggregator, head, slice_shape, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.aggregator = aggregator
        self.head = head
        self.slice_shape = tuple(slice_shape)

    def build(self, input_shape=None):
        shape = (None, None, *self.slice_shape)
        for part in (self.encoder, *self._after_the_encoder):
            if not part.built:
                part.build(shape)
            shape = part.compute_output_shape(shape)

    @property
    def _after_the_encoder(self):
        parts = (self.aggregator, self.head)
        return parts[::-1] if getattr(self.aggregator, "of_scores", False) else parts

    def call(self, inputs, training=False):
        features = self._features(inputs, training)
        return self.classify(features, inputs["lengths"], training=training)

    def _features(self, inputs, training=False):
        lengths = inputs["lengths"]
        if "features" in inputs:
            return self.encoder.finish(inputs["features"], lengths, training=training)
        return self.encode(inputs["slices"], lengths, training=training)

    def encode(self, slices, lengths, training=False):
        """Features `(batch, steps, features)` of padded slices, ready for the aggregator."""
        return self.encoder(slices, lengths, training=training)

    def extract(self, slices, lengths):
        """The backbone's features `(batch, steps, features)`, which the call takes for slices."""
        return self.encoder.backbone(slices, lengths=lengths, training=False)

    def classify(self, features, lengths, training=False):
        """Logits `(batch, labels)` of features `(batch, steps, features)`."""
        if getattr(self.aggregator, "of_scores", False):
            return self.aggregator(self.head(features, training=training), lengths)
        vectors = self.aggregator(features, lengths, training=training)
        return self.head(vectors, training=training)

    def examples(self, inputs, labels):
        """What a training step compares, in training mode: logits and their labels.

        Args:
            inputs: as in the call.
            labels: `(batch, labels)`, NaN where unknown.

        Returns:
            Logits and labels, both `(batch, labels)`; where the aggregator `learns_from_slices`,
            both `(batch, steps, labels)`: each slice's logits, and its study's labels, which are
            unknown where the study has ended. Of a segmenter, whose `labels` are lesion masks
            `(batch, steps, height, width)`, these and the logits of the same pixels.
        """
        if hasattr(self.encoder.backbone, "lesion"):
            slices, lengths = inputs["slices"], inputs["lengths"]
            return self.encoder.backbone.lesion(slices, lengths, training=True), labels
        if not getattr(self.aggregator, "learns_from_slices", False):
            return self(inputs, training=True), labels
        features = self._features(inputs, training=True)
        mask = sequence_mask(inputs["lengths"], ops.shape(features)[1])
        labels = ops.where(mask[..., None], ops.expand_dims(labels, 1), math.nan)
        return self.head(features, training=True), labels

    def running(self, inputs):
        """The answer after each slice: P(y | x1..xt) for every t, as logits (paper 2).

        Every slice passes through the encoder once. A causal aggregator gives all answers in one
        pass, any other one reads all beginnings of the studies side by side.

        Args:
            inputs: as in the call.

        Returns:
            `(batch, steps, labels)` float32: at t the logits of the study's first t + 1 slices
            alone, zeros where it has ended.
        """
        lengths = inputs["lengths"]
        features = self._features(inputs)
        if getattr(self.aggregator, "causal", False):
            logits = self.head(self.aggregator.steps(features, lengths, training=False))
        else:
            logits = self._of_prefixes(features)
        return zero_padding(logits, sequence_mask(lengths, ops.shape(features)[1]))

    def _of_prefixes(self, features):
        batch, steps, _ = ops.shape(features)

        def logits(numbers):
            return self.classify(ops.take(features, numbers // steps, axis=0), numbers % steps + 1)

        numbers = ops.arange(batch * steps, dtype="int32")
        at_once = getattr(self.aggregator, "at_once", PREFIXES)
        found = kernels.in_chunks(logits, numbers, at_once, (self.head.labels,), "float32")
        return ops.reshape(found, (batch, steps, self.head.labels))

    def compute_output_shape(self, input_shape):
        return (input_shape["slices"][0], self.head.labels)

    def get_config(self):
        parts = {
            part: _to_be_built(keras.saving.serialize_keras_object(getattr(self, part)))
            for part in PARTS
        }
        return {**super().get_config(), **parts, "slice_shape": list(self.slice_shape)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects)
            for part in PARTS
        }
        return cls(**{**config, **parts})

    def get_build_config(self):
        return {"input_shape": None}

    def build_from_config(self, config):
        self.build()


def _to_be_built(config):
    """A configuration without shapes to build by at once, so that `build` gives weights the paths
    in a loaded model that they have in a new one."""
    if isinstance(config, dict):
        return {k: _to_be_built(v) for k, v in config.items() if k != "build_config"}
    return config
