"""Takes one vector for each study, gives one logit for each label."""

from __future__ import annotations

import keras

from medseq_tf.layers.seeds import child_seeds


@keras.saving.register_keras_serializable(package="medseq_tf")
class Head(keras.layers.Layer):
    """Has no part in lengths and padding: it sees one vector for each study.

    Dense layers, each with an activation and dropout, then one dense layer without either (paper
    1: 32 units, ReLU, dropout 0.2, 1 logit). Logits are float32 whatever the precision.

    Args:
        labels: number of labels.
        units: of each hidden layer.
        activation: of the hidden layers, by name.
        dropout: share of each hidden layer's outputs that are dropped in training.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        vectors: `(..., features)`.
        training: whether to drop.

    Returns:
        `(..., labels)` float32.
    """

    def __init__(self, labels, units=(32,), activation="relu", dropout=0.2, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.labels = labels
        self.units = list(units)
        self.activation = activation
        self.dropout = dropout
        self.seed = seed
        seeds = iter(child_seeds(seed, 2 * len(self.units) + 1))
        self.hidden = [
            keras.layers.Dense(
                width,
                activation,
                kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
                name=f"dense_{number}",
                dtype=self.dtype_policy,
            )
            for number, width in enumerate(self.units, start=1)
        ]
        self.drops = [
            keras.layers.Dropout(
                dropout, seed=next(seeds), name=f"dropout_{number}", dtype=self.dtype_policy
            )
            for number, _ in enumerate(self.units, start=1)
        ]
        self.logits = keras.layers.Dense(
            labels,
            kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
            name="logits",
            dtype="float32",
        )

    def build(self, vectors_shape):
        for layer in (*self.hidden, self.logits):
            layer.build(vectors_shape)
            vectors_shape = layer.compute_output_shape(vectors_shape)

    def call(self, vectors, training=None):
        for dense, drop in zip(self.hidden, self.drops, strict=True):
            vectors = drop(dense(vectors), training=training)
        return self.logits(vectors)

    def compute_output_shape(self, vectors_shape):
        return (*vectors_shape[:-1], self.labels)

    def get_config(self):
        return {
            **super().get_config(),
            "labels": self.labels,
            "units": self.units,
            "activation": self.activation,
            "dropout": self.dropout,
            "seed": self.seed,
        }
