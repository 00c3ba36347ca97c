"""Aggregators that take no notice of order.

Fixed summaries of features (mean, sum, maximum, log-sum-exp, several statistics at once) or of each
slice's scores, and gated attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.layers.layer import Shape, Tensor, Training, check_choice, child_seeds, dense
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.recipe import STATISTICS, choices
from medseq_tf.recipe import Pooling as PoolingSettings
from medseq_tf.recipe import SliceScores as SliceScoresSettings

MODES = choices(PoolingSettings, "name")


@keras.saving.register_keras_serializable(package="medseq_tf")
class Pooling(Aggregator):
    """Mean, maximum, sum or log-sum-exp of each feature over the real slices.

    Log-sum-exp, `log(mean(exp(r x))) / r`, is a maximum that lets every slice learn (Pinheiro and
    Collobert 2015, equation 6). Neither the order of the slices nor padding changes anything.

    Args:
        mode: `mean`, `max`, `sum` or `log_sum_exp`.
        sharpness: r of `log_sum_exp`, not read by the others: near 0 it is the mean, large the
            maximum.

    Returns:
        `(B, F)`.
    """

    def __init__(self, mode: str, sharpness: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("mode", mode, MODES)
        self.mode = mode
        self.sharpness = sharpness

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the summary of the real slices."""
        mask = sequence_mask(lengths, ops.shape(features)[1])
        if self.mode == "sum":
            return ops.sum(zero_padding(features, mask), axis=1)
        if self.mode == "mean":
            count = ops.cast(ops.expand_dims(lengths, 1), features.dtype)
            return ops.sum(zero_padding(features, mask), axis=1) / count
        lowest = ops.cast(-math.inf, features.dtype)
        real = ops.where(ops.expand_dims(mask, -1), features, lowest)
        highest = ops.max(real, axis=1)
        if self.mode == "max":
            return highest
        # Taken from the maximum, so that no exponential overflows.
        over = zero_padding(features - ops.expand_dims(highest, 1), mask)
        powers = zero_padding(ops.exp(self.sharpness * over), mask)
        count = ops.cast(ops.expand_dims(lengths, 1), features.dtype)
        return highest + ops.log(ops.sum(powers, axis=1) / count) / self.sharpness


@keras.saving.register_keras_serializable(package="medseq_tf")
class Statistics(Aggregator):
    """Mean, maximum and standard deviation of each feature over the real slices, and their number.

    The standard deviation is that of the population, the root of the mean squared distance from the
    mean: 0 for one slice, where it has no gradient. Neither the order of the slices nor padding
    changes anything.

    Args:
        of: which of `mean`, `max`, `std` and `count`, in the order that they have in the vector.

    Returns:
        `(B, F * (those of mean, max, std) + (1 with count))`.
    """

    def __init__(self, of: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        for statistic in of:
            check_choice("of", statistic, STATISTICS)
        self.of = list(of)
        self.mean = Pooling("mean", name="mean", dtype=self.dtype_policy)
        self.max = Pooling("max", name="max", dtype=self.dtype_policy)
        self.mean_square = Pooling("mean", name="mean_square", dtype="float32")

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the statistics of the real slices, side by side."""
        mean = self.mean(features, lengths)
        vectors = {
            "mean": mean,
            "max": self.max(features, lengths),
            "std": self._deviation(features, mean, lengths),
            "count": ops.expand_dims(lengths, 1),
        }
        chosen = [ops.cast(vectors[statistic], features.dtype) for statistic in self.of]
        return ops.concatenate(chosen, axis=-1)

    def _deviation(self, features: Tensor, mean: Tensor, lengths: Tensor) -> Tensor:
        distance = ops.cast(features - ops.expand_dims(mean, 1), "float32")
        variance = self.mean_square(ops.square(distance), lengths)
        varies = variance > 0  # the root has no gradient at 0
        return ops.where(varies, ops.sqrt(ops.where(varies, variance, 1.0)), 0.0)

    def compute_output_shape(self, features_shape: Shape) -> Shape:
        """Return the shape of the vectors."""
        width = sum(1 if statistic == "count" else features_shape[-1] for statistic in self.of)
        return (features_shape[0], width)


@keras.saving.register_keras_serializable(package="medseq_tf")
class SliceScores(Aggregator):
    """The summary of the scores that the head gives every slice by itself (paper 2, setting 1).

    The head stands before this aggregator. Neither the order of the slices nor padding changes
    anything. Each label or class is summarised by itself: of classes the maxima and log-sum-exps do
    not add up to 1, and `SequenceClassifier.classify` scales them.

    Args:
        pooling: `mean`: the mean of the slices' probabilities; `max`: their maximum;
            `log_sum_exp`: that of the logits, `log(mean(exp(r x))) / r` (Pinheiro and Collobert
            2015, equation 6).
        sharpness: r of `log_sum_exp`: near 0 it is the mean, large the maximum.
        target: what the training loss is of: `slice`: every slice by its study's labels or class;
            `study`: the pooled score alone (multiple instance learning).

    Call arguments:
        features: `(B, T, labels)` logits of each slice.
        lengths: `(B,)` number of real slices of each study, at least 1.
        training: not used.

    Returns:
        `(B, labels)` logits.
    """

    of_scores = True

    def __init__(self, pooling: str, sharpness: float, target: str, **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("pooling", pooling, choices(SliceScoresSettings, "pooling"))
        check_choice("target", target, choices(SliceScoresSettings, "target"))
        self.pooling = pooling
        self.sharpness = sharpness
        self.target = target
        self.pool = Pooling(pooling, sharpness, name="pool", dtype=self.dtype_policy)

    @property
    def learns_from_slices(self) -> bool:
        """Whether the training loss is of every slice."""
        return self.target == "slice"

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the summary of the real slices' scores."""
        scores = features
        if self.pooling != "mean":
            return self.pool(scores, lengths)
        # logit(mean(p)) = log(sum(p)) - log(sum(1 - p)), which rounds no p to 0 or 1.
        mask = sequence_mask(lengths, ops.shape(scores)[1])
        scores, real = zero_padding(scores, mask), ops.expand_dims(mask, -1)
        nothing = ops.cast(-math.inf, scores.dtype)
        positive = ops.where(real, -ops.softplus(-scores), nothing)
        negative = ops.where(real, -ops.softplus(scores), nothing)
        return ops.logsumexp(positive, axis=1) - ops.logsumexp(negative, axis=1)


@keras.saving.register_keras_serializable(package="medseq_tf")
class GatedAttention(Aggregator):
    """A weighted mean of the slices whose weights are learned.

    The weights are a softmax over the real slices of `w . (tanh(V h) * sigmoid(U h))` (Ilse,
    Tomczak and Welling 2018, equation 9). Neither the order of the slices nor padding changes
    anything.

    Args:
        units: size of V h and U h.
        dropout: share of the features that are dropped in training.
        seed: seed of the initial weights and of dropout.

    Returns:
        `(B, F)`.
    """

    def __init__(self, units: int, dropout: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.dropout = dropout
        self.seed = seed
        policy = self.dtype_policy
        hidden_seed, score_seed, dropout_seed = child_seeds(seed, 3)
        self.hidden = dense(2 * units, hidden_seed, "hidden", dtype=policy)  # V and U side by side
        # A softmax takes no notice of a bias.
        self.score = dense(1, score_seed, "score", use_bias=False, dtype=policy)
        self.drop = keras.layers.Dropout(dropout, seed=dropout_seed, name="dropout", dtype=policy)

    def build(self, features_shape: Shape) -> None:
        """Make V, U and w."""
        self.hidden.build(features_shape)
        self.score.build((*features_shape[:-1], self.units))

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the weighted mean of the slices."""
        features = self.drop(features, training=training)
        weights = self.attention_weights(features, lengths)
        # The padding may hold anything, and 0 times infinity is no number.
        mask = sequence_mask(lengths, ops.shape(features)[1])
        return ops.sum(ops.expand_dims(weights, -1) * zero_padding(features, mask), axis=1)

    def attention_weights(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the share of each slice: `(B, T)`, a sum of 1 a study, 0 for padding."""
        v, u = ops.split(self.hidden(features), 2, axis=-1)
        scores = self.score(ops.tanh(v) * ops.sigmoid(u))[..., 0]
        return masked_softmax(scores, sequence_mask(lengths, ops.shape(features)[1]))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last axis of `scores` where `mask` is True, 0 elsewhere."""
    # `ops.softmax` warns of the single slice that a study may have.
    nothing = ops.cast(-math.inf, scores.dtype)
    highest = ops.max(ops.where(mask, scores, nothing), axis=-1, keepdims=True)
    powers = ops.exp(ops.where(mask, scores - highest, nothing))
    return powers / ops.sum(powers, axis=-1, keepdims=True)
