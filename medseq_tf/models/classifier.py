"""Takes padded sequences of slices and their lengths, gives one logit for each study and label."""

from __future__ import annotations

import keras

PARTS = ("encoder", "aggregator", "head")


@keras.saving.register_keras_serializable(package="medseq_tf")
class SequenceClassifier(keras.Model):
    """Padding, what it holds and how much of it there is, changes no logit.

    encoder: `(slices, lengths)` to features of each slice; aggregator: `(features, lengths)` to one
    vector of each study; head: vector to logits. It is built by its constructor's caller through
    `build()` without arguments: the shape of a slice is part of the configuration, batch and steps
    are free.

    `variables`, not `weights`, holds the whole state: the weights, the moving statistics and the
    state of every dropout's seed. Restoring it continues a training bit for bit.

    Args:
        encoder: a layer called with `(slices, lengths, training)`.
        aggregator: a layer called with `(features, lengths, training)`.
        head: a layer called with `(vectors, training)`.
        slice_shape: `(height, width, channels)`.

    Call arguments:
        inputs: {"slices": float `(batch, steps, height, width, channels)`, right-padded;
            "lengths": int `(batch,)`, each from 1 to steps}.
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
        for part in (self.encoder, self.aggregator, self.head):
            if not part.built:
                part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, inputs, training=False):
        lengths = inputs["lengths"]
        features = self.encode(inputs["slices"], lengths, training=training)
        return self.classify(features, lengths, training=training)

    def encode(self, slices, lengths, training=False):
        """Features `(batch, steps, features)` of padded slices."""
        return self.encoder(slices, lengths, training=training)

    def classify(self, features, lengths, training=False):
        """Logits `(batch, labels)` of features `(batch, steps, features)`."""
        vectors = self.aggregator(features, lengths, training=training)
        return self.head(vectors, training=training)

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
