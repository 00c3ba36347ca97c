"""A transformer over the slices: every slice looks at every other."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, child_seeds, dense
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.models.pooling import Pooling, masked_softmax

EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="medseq_tf")
class SelfAttention(Layer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2), of real slices to real slices.

        attention(Q, K, V) = softmax(Q K^T / sqrt(units / heads)) V

    Args:
        units: size of the vectors, a multiple of `heads`.
        heads: number of attention heads.
        seed: seed of the initial weights.

    Call arguments:
        inputs: `(B, T, units)`.
        lengths: `(B,)` number of real slices of each study, at least 1.

    Returns:
        `(B, T, units)`; what stands in padded steps is to be ignored.
    """

    def __init__(self, units: int, heads: int, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if units % heads:
            raise ValueError(f"units ({units}) has to be a multiple of heads ({heads})")
        self.units = units
        self.heads = heads
        self.seed = seed
        policy = self.dtype_policy
        *seeds, output_seed = child_seeds(seed, 4)
        self.projections = [
            dense(units, child, name, dtype=policy)
            for name, child in zip(("query", "key", "value"), seeds, strict=True)
        ]
        self.output_projection = dense(units, output_seed, "output", dtype=policy)

    def build(self, inputs_shape: Shape) -> None:
        """Make the four projections."""
        for layer in (*self.projections, self.output_projection):
            layer.build(inputs_shape)

    def call(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return what each slice sees in the real ones."""
        batch, steps = ops.shape(inputs)[:2]
        width = self.units // self.heads

        def by_head(projected: Tensor) -> Tensor:
            return ops.transpose(
                ops.reshape(projected, (batch, steps, self.heads, width)), (0, 2, 1, 3)
            )

        query, key, value = (by_head(layer(inputs)) for layer in self.projections)
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * width**-0.5
        weights = masked_softmax(scores, sequence_mask(lengths, steps)[:, None, None, :])
        mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.output_projection(ops.reshape(mixed, (batch, steps, self.units)))


@keras.saving.register_keras_serializable(package="medseq_tf")
class TransformerBlock(Layer):
    """Self-attention, then two dense layers for each slice (Xiong et al. 2020, pre-LN).

        x = x + attention(norm(x))
        x = x + dense(gelu(hidden(norm(x))))

    Real slices look at real slices only.

    Args:
        units: size of the vectors, a multiple of `heads`.
        heads: number of attention heads.
        feed_forward: size of the hidden dense layer.
        dropout: share of what each part adds that is dropped in training.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        inputs: `(B, T, units)`.
        lengths: `(B,)` number of real slices of each study, at least 1.
        training: whether to drop.

    Returns:
        `(B, T, units)`; what stands in padded steps is to be ignored.
    """

    def __init__(
        self,
        units: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.units = units
        self.heads = heads
        self.feed_forward = feed_forward
        self.dropout = dropout
        self.seed = seed
        seeds = child_seeds(seed, 5)
        policy = self.dtype_policy
        self.attention = SelfAttention(units, heads, seeds[0], name="attention", dtype=policy)
        self.hidden = dense(feed_forward, seeds[1], "hidden", "gelu", dtype=policy)
        self.dense = dense(units, seeds[2], "dense", dtype=policy)
        self.norms = [
            keras.layers.LayerNormalization(epsilon=EPSILON, name=f"norm_{number}", dtype=policy)
            for number in (1, 2)
        ]
        self.drops = [
            keras.layers.Dropout(dropout, seed=child, name=f"dropout_{number}", dtype=policy)
            for number, child in enumerate(seeds[3:], start=1)
        ]

    def build(self, inputs_shape: Shape) -> None:
        """Build both parts."""
        for layer in (*self.norms, self.attention, self.hidden):
            layer.build(inputs_shape)
        self.dense.build((*inputs_shape[:-1], self.feed_forward))

    def call(self, inputs: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the inputs and what both parts add to them."""
        looked = self.attention(self.norms[0](inputs), lengths)
        inputs = inputs + self.drops[0](looked, training=training)
        thought = self.dense(self.hidden(self.norms[1](inputs)))
        return inputs + self.drops[1](thought, training=training)


@keras.saving.register_keras_serializable(package="medseq_tf")
class Transformer(Aggregator):
    """A dense layer to `units`, blocks of self-attention, the mean over the real slices.

    Without positional encoding, as paper 2 proposes, the slices are a set. Padding changes nothing.

    Args:
        units: size of the vectors, a multiple of `heads`.
        layers: number of blocks.
        heads: number of attention heads of a block.
        feed_forward: size of the hidden dense layer of a block.
        positions: whether a sinusoidal encoding of a slice's place in the sequence is added
            (Vaswani et al. 2017, section 3.5).
        dropout: share of what each part of a block adds that is dropped in training.
        seed: seed of the initial weights and of dropout.

    Returns:
        `(B, units)`.
    """

    def __init__(
        self,
        units: int,
        layers: int,
        heads: int,
        feed_forward: int,
        positions: bool,
        dropout: float,
        seed: int | None = None,
        **kwargs: Any,
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
        self.projection = dense(units, first, "projection", dtype=policy)
        block = (units, heads, feed_forward, dropout)
        self.blocks = [
            TransformerBlock(*block, child, name=f"block_{number}", dtype=policy)
            for number, child in enumerate(seeds, start=1)
        ]
        self.norm = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm", dtype=policy)
        self.pool = Pooling("mean", name="mean", dtype=policy)

    def build(self, features_shape: Shape) -> None:
        """Build the projection, the blocks and the last normalisation."""
        self.projection.build(features_shape)
        shape = (*features_shape[:-1], self.units)
        for layer in (*self.blocks, self.norm):
            layer.build(shape)

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the mean of what the blocks make of the slices."""
        steps = ops.shape(features)[1]
        vectors = self.projection(zero_padding(features, sequence_mask(lengths, steps)))
        if self.positions:
            vectors = vectors + sinusoids(steps, self.units, vectors.dtype)
        for block in self.blocks:
            vectors = block(vectors, lengths, training=training)
        return self.pool(self.norm(vectors), lengths)

    def compute_output_shape(self, features_shape: Shape) -> Shape:
        """Return the shape of the vectors."""
        return (features_shape[0], self.units)


def sinusoids(steps: int | Tensor, units: int, dtype: str) -> Tensor:
    """Return sines, then cosines, of each place at `units / 2` wavelengths: `(T, units)`."""
    rates = 10000.0 ** (-np.arange(0, units, 2, dtype="float32") / units)
    angles = ops.expand_dims(ops.cast(ops.arange(steps), "float32"), 1) * rates
    waves = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)[:, :units]
    return ops.cast(waves, dtype)
