"""The head: from one vector of a study to one logit for each label or class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, check_choice, child_seeds, dense
from medseq_tf.readers.classes import LABELS, ORDERED, OUTPUTS


@keras.saving.register_keras_serializable(package="medseq_tf")
class Head(Layer):
    """Dense layers, each with an activation and dropout, then one dense layer without either.

    Paper 1: 32 units, ReLU, dropout 0.2, 1 logit. Logits are float32 whatever the precision. It has
    no part in lengths and padding: it sees one vector for each study.

    A logit is always the log-odds of its label or class, so that its sigmoid is the probability. Of
    classes, which exclude each other, it is the log-odds against all others together, and the
    sigmoids are the softmax of what the last layer gives: they add up to 1. Of ordered classes the
    last layer gives one score f, without a bias, and P(class <= k) = sigmoid(cutpoint_k - f), with
    cutpoints that rise with k (the cumulative logit model of McCullagh 1980, section 2). They begin
    where all classes are equally likely at f = 0, and weight decay draws them back there.

    Args:
        labels: number of labels or classes.
        units: of each hidden layer.
        activation: of the hidden layers, by name.
        dropout: share of each hidden layer's outputs that are dropped in training.
        outputs: `labels`, `classes` or `ordered`; of the last two there are at least 2.
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
        outputs: str = LABELS,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("outputs", outputs, OUTPUTS)
        self.labels = labels
        self.units = list(units)
        self.activation = activation
        self.dropout = dropout
        self.outputs = outputs
        self.seed = seed
        if self.exclusive and labels < 2:
            raise ValueError(f"{labels} class: there are at least 2")
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
        ordered = outputs == ORDERED
        self.logits = dense(
            1 if ordered else labels, next(seeds), "logits", use_bias=not ordered, dtype="float32"
        )

    @property
    def exclusive(self) -> bool:
        """Whether a study has one class alone, so that probabilities add up to 1."""
        return self.outputs != LABELS

    def build(self, vectors_shape: Shape) -> None:
        """Build the layers, one after the other, and the cutpoints of grades."""
        for layer in (*self.hidden, self.logits):
            layer.build(vectors_shape)
            vectors_shape = layer.compute_output_shape(vectors_shape)
        if self.outputs == ORDERED:
            even = np.arange(1, self.labels) / self.labels
            even = np.log(even / (1 - even))
            self._even_lowest = even[:1].astype("float32")
            self._even_steps = np.log(np.expm1(np.diff(even))).astype("float32")
            self.lowest = self._offsets("lowest_cutpoint", 1)
            self.steps = self._offsets("steps", self.labels - 2)

    def _offsets(self, name: str, count: int) -> keras.Variable:
        return self.add_weight((count,), "zeros", "float32", autocast=False, name=name)

    def call(self, vectors: Tensor, training: Training = None) -> Tensor:
        """Return the logits."""
        for layer, drop in zip(self.hidden, self.drops, strict=True):
            vectors = drop(layer(vectors), training=training)
        last = self.logits(vectors)
        if self.outputs == LABELS:
            return last
        return log_odds(self._of_grades(last) if self.outputs == ORDERED else last)

    @property
    def cutpoints(self) -> Tensor:
        """The scores `(labels - 1,)` between ordered classes, ascending."""
        lowest = self.lowest + self._even_lowest
        steps = ops.cumsum(ops.softplus(self.steps + self._even_steps))
        return ops.concatenate([lowest, lowest + steps])

    def _of_grades(self, score: Tensor) -> Tensor:
        """Return the logarithm of the probability of each ordered class."""
        below = self.cutpoints - score  # (..., labels - 1), the logit of P(class <= k)
        first, last = ops.log_sigmoid(below[..., :1]), ops.log_sigmoid(-below[..., -1:])
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which cancels nothing,
        # and with a - b = softplus(s) the last factor is sigmoid(s).
        within = ops.log_sigmoid(self.steps + self._even_steps)
        between = ops.log_sigmoid(below[..., 1:]) + ops.log_sigmoid(-below[..., :-1]) + within
        return ops.concatenate([first, between, last], axis=-1)

    def compute_output_shape(self, vectors_shape: Shape) -> Shape:
        """Return the logits' shape."""
        return (*vectors_shape[:-1], self.labels)


def log_odds(scores: Tensor) -> Tensor:
    """Return the log-odds of each class against all others, `(..., classes)`.

    With p = softmax(scores) they are log(p / (1 - p)): sigmoid gives p back.

    Args:
        scores: `(..., classes)`, logarithms of probabilities, but for a constant.
    """
    scores = scores - ops.max(scores, axis=-1, keepdims=True)  # large ones have coarse fractions
    count = scores.shape[-1]
    itself = ops.eye(count, dtype=bool)
    others = ops.where(itself, -1e30, ops.expand_dims(scores, -2))
    return scores - ops.logsumexp(others, axis=-1)
