"""The head: from one vector of a study to one logit for each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, child_seeds, dense


@keras.saving.register_keras_serializable(package="medseq_tf")
class Head(Layer):
    """Dense layers, each with an activation and dropout, then one dense layer without either.

    Paper 1: 32 units, ReLU, dropout 0.2, 1 logit. Logits are float32 whatever the precision. It has
    no part in lengths and padding: it sees one vector for each study.

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

    def __init__(
        self,
        labels: int,
        units: Sequence[int],
        activation: str,
        dropout: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.labels = labels
        self.units = list(units)
        self.activation = activation
        self.dropout = dropout
        self.seed = seed
        policy = self.dtype_policy
        seeds = iter(child_seeds(seed, 2 * len(self.units) + 1))
        self.hidden = [
            dense(width, next(seeds), f"dense_{number}", activation, dtype=policy)
            for number, width in enumerate(self.units, start=1)
        ]
        self.drops = [
            keras.layers.Dropout(dropout, seed=next(seeds), name=f"dropout_{number}", dtype=policy)
            for number, _ in enumerate(self.units, start=1)
        ]
        self.logits = dense(labels, next(seeds), "logits", dtype="float32")

    def build(self, vectors_shape: Shape) -> None:
        """Build the layers, one after the other."""
        for layer in (*self.hidden, self.logits):
            layer.build(vectors_shape)
            vectors_shape = layer.compute_output_shape(vectors_shape)

    def call(self, vectors: Tensor, training: Training = None) -> Tensor:
        """Return the logits."""
        for layer, drop in zip(self.hidden, self.drops, strict=True):
            vectors = drop(layer(vectors), training=training)
        return self.logits(vectors)

    def compute_output_shape(self, vectors_shape: Shape) -> Shape:
        """Return the logits' shape."""
        return (*vectors_shape[:-1], self.labels)
