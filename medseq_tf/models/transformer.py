"""Takes a vector of features for each slice and lengths, gives one vector for each study by
letting every slice look at every other."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.layers.seeds import child_seeds
from medseq_tf.models.pooling import Pooling, masked_softmax
from medseq_tf.recipe import Transformer as TransformerSettings

EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="medseq_tf")
class SelfAttention(keras.layers.Layer):
    """Real slices look at real slices only (Vaswani et al. 2017, section 3.2).

    Args:
        units: size of the vectors, a multiple of `heads`.
        heads: number of attention heads.
        seed: seed of the initial weights.

    Call arguments:
        inputs: `(batch, steps, units)`.
        mask: `(batch, steps)` bool, which slices are real; at least one a study.

    Returns:
        `(batch, steps, units)`; what stands in padded steps is to be ignored.
    """

    def __init__(self, units, heads, seed=None, **kwargs):
        super().__init__(**kwargs)
        if units % heads:
            raise ValueError(f"units ({units}) has to be a multiple of heads ({heads})")
        self.units = units
        self.heads = heads
        self.seed = seed
        *projection_seeds, output_seed = child_seeds(seed, 4)
        self.projections = [
            keras.layers.Dense(
                units,
                kernel_initializer=keras.initializers.GlorotUniform(projection_seed),
                name=name,
                dtype=self.dtype_policy,
            )
            for name, projection_seed in zip(
                ("query", "key", "value"), projection_seeds, strict=True
            )
        ]
        self.output_projection = keras.layers.Dense(
            units,
            kernel_initializer=keras.initializers.GlorotUniform(output_seed),
            name="output",
            dtype=self.dtype_policy,
        )

    def build(self, inputs_shape):
        for layer in (*self.projections, self.output_projection):
            layer.build(inputs_shape)

    def call(self, inputs, mask):
        batch, steps = ops.shape(inputs)[:2]
        width = self.units // self.heads

        def by_head(projected):
            return ops.transpose(
                ops.reshape(projected, (batch, steps, self.heads, width)), (0, 2, 1, 3)
            )

        query, key, value = (by_head(layer(inputs)) for layer in self.projections)
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * width**-0.5
        weights = masked_softmax(scores, mask[:, None, None, :])
        mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.output_projection(ops.reshape(mixed, (batch, steps, self.units)))

    def compute_output_shape(self, inputs_shape, mask_shape=None):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "heads": self.heads,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class TransformerBlock(keras.layers.Layer):
    """Real slices look at real slices only: attention, then two dense layers for each slice.

    Each part adds to its input what it makes of the normalised input (Xiong et al. 2020, pre-LN).

    Args:
        units: size of the vectors, a multiple of `heads`.
        heads: number of attention heads.
        feed_forward: size of the hidden dense layer.
        dropout: share of what each part adds that is dropped in training.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        inputs: `(batch, steps, units)`.
        mask: `(batch, steps)` bool, which slices are real; at least one a study.
        training: whether to drop.

    Returns:
        `(batch, steps, units)`; what stands in padded steps is to be ignored.
    """

    def __init__(self, units, heads, feed_forward, dropout=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.heads = heads
        self.feed_forward = feed_forward
        self.dropout = dropout
        self.seed = seed
        seeds = child_seeds(seed, 5)
        policy = self.dtype_policy
        self.attention = SelfAttention(units, heads, seeds[0], name="attention", dtype=policy)
        self.hidden = keras.layers.Dense(
            feed_forward,
            "gelu",
            kernel_initializer=keras.initializers.GlorotUniform(seeds[1]),
            name="hidden",
            dtype=policy,
        )
        self.dense = keras.layers.Dense(
            units,
            kernel_initializer=keras.initializers.GlorotUniform(seeds[2]),
            name="dense",
            dtype=policy,
        )
        self.norms = [
            keras.layers.LayerNormalization(epsilon=EPSILON, name=f"norm_{number}", dtype=policy)
            for number in (1, 2)
        ]
        self.drops = [
            keras.layers.Dropout(dropout, seed=drop_seed, name=f"dropout_{number}", dtype=policy)
            for number, drop_seed in enumerate(seeds[3:], start=1)
        ]

    def build(self, inputs_shape):
        for layer in (*self.norms, self.attention, self.hidden):
            layer.build(inputs_shape)
        self.dense.build((*inputs_shape[:-1], self.feed_forward))

    def call(self, inputs, mask, training=None):
        looked = self.attention(self.norms[0](inputs), mask)
        inputs = inputs + self.drops[0](looked, training=training)
        thought = self.dense(self.hidden(self.norms[1](inputs)))
        return inputs + self.drops[1](thought, training=training)

    def compute_output_shape(self, inputs_shape, mask_shape=None):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "dropout": self.dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class Transformer(keras.layers.Layer):
    """Padding, whatever it holds, changes nothing; nor, without positions, does the order.

    A dense layer to `units`, blocks of attention, the mean over the slices. Without positional
    encoding, as paper 2 proposes, the slices are a set.

    Args:
        units: size of the vectors, a multiple of `heads`.
        layers: number of blocks.
        heads: number of attention heads of a block.
        feed_forward: size of the hidden dense layer of a block.
        positions: whether a sinusoidal encoding of a slice's place in the sequence is added
            (Vaswani et al. 2017, section 3.5).
        dropout: share of what each part of a block adds that is dropped in training.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        features: `(batch, steps, features)`.
        lengths: `(batch,)` number of real slices of each study, at least 1.
        training: whether to drop.

    Returns:
        `(batch, units)`.
    """

    def __init__(
        self,
        units=64,
        layers=2,
        heads=4,
        feed_forward=128,
        positions=False,
        dropout=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = units
        self.layers = layers
        self.heads = heads
        self.feed_forward = feed_forward
        self.positions = positions
        self.dropout = dropout
        self.seed = seed
        first, *seeds = child_seeds(seed, 1 + layers)
        policy = self.dtype_policy
        self.projection = keras.layers.Dense(
            units,
            kernel_initializer=keras.initializers.GlorotUniform(first),
            name="projection",
            dtype=policy,
        )
        self.blocks = [
            TransformerBlock(
                units,
                heads,
                feed_forward,
                dropout,
                block_seed,
                name=f"block_{number}",
                dtype=policy,
            )
            for number, block_seed in enumerate(seeds, start=1)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm", dtype=policy)
        self.pool = Pooling("mean", name="mean", dtype=policy)

    def build(self, features_shape):
        self.projection.build(features_shape)
        shape = (*features_shape[:-1], self.units)
        for layer in (*self.blocks, self.norm):
            layer.build(shape)

    def call(self, features, lengths, training=None):
        steps = ops.shape(features)[1]
        mask = sequence_mask(lengths, steps)
        vectors = self.projection(zero_padding(features, mask))
        if self.positions:
            vectors = vectors + sinusoids(steps, self.units, vectors.dtype)
        for block in self.blocks:
            vectors = block(vectors, mask, training=training)
        return self.pool(self.norm(vectors), lengths)

    def compute_output_shape(self, features_shape, lengths_shape=None):
        return (features_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "layers": self.layers,
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "positions": self.positions,
            "dropout": self.dropout,
            "seed": self.seed,
        }


def sinusoids(steps, units: int, dtype):
    """Sines, then cosines, of each place at `units / 2` wavelengths: `(steps, units)`."""
    rates = 10000.0 ** (-np.arange(0, units, 2, dtype="float32") / units)
    angles = ops.expand_dims(ops.cast(ops.arange(steps), "float32"), 1) * rates
    waves = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)[:, :units]
    return ops.cast(waves, dtype)


def transformer(settings: TransformerSettings, seed: int | None = None) -> Transformer:
    """A transformer over the slices, with or without positions."""
    return Transformer(
        units=settings.units,
        layers=settings.layers,
        heads=settings.heads,
        feed_forward=settings.feed_forward,
        positions=settings.positions,
        dropout=settings.dropout,
        seed=seed,
        name="aggregator",
    )
