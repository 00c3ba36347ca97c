"""Takes a vector of features for each slice and lengths, gives one vector for each study, order
aside: mean, sum, maximum, log-sum-exp or gated attention."""

from __future__ import annotations

import math

import keras
from keras import ops

from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.recipe import Attention as AttentionSettings
from medseq_tf.recipe import Pooling as PoolingSettings

MODES = ("mean", "max", "sum", "log_sum_exp")


@keras.saving.register_keras_serializable(package="medseq_tf")
class Pooling(keras.layers.Layer):
    """Neither the order of the slices nor padding, whatever it holds, changes anything.

    Args:
        mode: `mean`; `max`; `sum`; or `log_sum_exp`, `log(mean(exp(r x))) / r`, a maximum that lets
            every slice learn (Pinheiro and Collobert 2015, equation 6).
        sharpness: r of `log_sum_exp`: near 0 it is the mean, large the maximum.

    Call arguments:
        features: `(batch, steps, features)`.
        lengths: `(batch,)` number of real slices of each study, at least 1.
        training: not used.

    Returns:
        `(batch, features)`.
    """

    def __init__(self, mode="mean", sharpness=5.0, **kwargs):
        super().__init__(**kwargs)
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, got {mode!r}")
        self.mode = mode
        self.sharpness = sharpness

    def build(self, features_shape):
        pass

    def call(self, features, lengths, training=None):
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

    def compute_output_shape(self, features_shape, lengths_shape=None):
        return (features_shape[0], features_shape[-1])

    def get_config(self):
        return {**super().get_config(), "mode": self.mode, "sharpness": self.sharpness}


@keras.saving.register_keras_serializable(package="medseq_tf")
class GatedAttention(keras.layers.Layer):
    """Neither the order of the slices nor padding, whatever it holds, changes anything.

    A weighted mean of the slices whose weights are learned: a softmax over the slices of
    `w . (tanh(V h) * sigmoid(U h))` (Ilse, Tomczak and Welling 2018, equation 9).

    Args:
        units: size of V h and U h.
        dropout: share of the features that are dropped in training.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        features: `(batch, steps, features)`.
        lengths: `(batch,)` number of real slices of each study, at least 1.
        training: whether to drop.

    Returns:
        `(batch, features)`.
    """

    def __init__(self, units=64, dropout=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dropout = dropout
        self.seed = seed
        hidden_seed, score_seed, dropout_seed = child_seeds(seed, 3)
        self.hidden = keras.layers.Dense(  # V and U side by side
            2 * units,
            kernel_initializer=keras.initializers.GlorotUniform(hidden_seed),
            name="hidden",
            dtype=self.dtype_policy,
        )
        self.score = keras.layers.Dense(
            1,
            use_bias=False,  # a softmax takes no notice of it
            kernel_initializer=keras.initializers.GlorotUniform(score_seed),
            name="score",
            dtype=self.dtype_policy,
        )
        self.drop = keras.layers.Dropout(
            dropout, seed=dropout_seed, name="dropout", dtype=self.dtype_policy
        )

    def build(self, features_shape):
        self.hidden.build(features_shape)
        self.score.build((*features_shape[:-1], self.units))

    def call(self, features, lengths, training=None):
        features = self.drop(features, training=training)
        weights = self.attention_weights(features, lengths)
        # The padding may hold anything, and 0 times infinity is no number.
        mask = sequence_mask(lengths, ops.shape(features)[1])
        return ops.sum(ops.expand_dims(weights, -1) * zero_padding(features, mask), axis=1)

    def attention_weights(self, features, lengths):
        """The share of each slice: `(batch, steps)`, a sum of 1 a study, 0 for padding."""
        v, u = ops.split(self.hidden(features), 2, axis=-1)
        scores = self.score(ops.tanh(v) * ops.sigmoid(u))[..., 0]
        return masked_softmax(scores, sequence_mask(lengths, ops.shape(features)[1]))

    def compute_output_shape(self, features_shape, lengths_shape=None):
        return (features_shape[0], features_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "dropout": self.dropout,
            "seed": self.seed,
        }


def masked_softmax(scores, mask):
    """Softmax over the last axis of `scores` where `mask` is True, 0 elsewhere."""
    # `ops.softmax` warns of the single slice that a study may have.
    nothing = ops.cast(-math.inf, scores.dtype)
    highest = ops.max(ops.where(mask, scores, nothing), axis=-1, keepdims=True)
    powers = ops.exp(ops.where(mask, scores - highest, nothing))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def pooling(settings: PoolingSettings, seed: int | None = None) -> Pooling:
    """Mean, maximum or log-sum-exp over the slices; there is nothing to draw from `seed`."""
    return Pooling(settings.name, settings.sharpness, name="aggregator")


def attention(settings: AttentionSettings, seed: int | None = None) -> GatedAttention:
    """Gated attention over the slices."""
    return GatedAttention(settings.units, settings.dropout, seed, name="aggregator")
