"""Sequences of slices through a layer that has weights for each position."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from medseq_tf.errors import InputError
from medseq_tf.layers import kernels
from medseq_tf.layers.layer import Shape, Tensor, Training
from medseq_tf.layers.lengths import sequence_mask, zero_padding


def pack(slices: Tensor, positions: int) -> Tensor:
    """Place slices `(B, T, H, W, C)` side by side in the channels.

    Returns:
        `(B, H, W, P * C)`, position by position, with zeros for the
        positions beyond `steps`.
    """
    batch, steps, height, width, channels = ops.shape(slices)
    if slices.shape[1] != positions:
        slices = ops.pad(slices, [[0, 0], [0, positions - steps], [0, 0], [0, 0], [0, 0]])
    slices = ops.transpose(slices, (0, 2, 3, 1, 4))
    return ops.reshape(slices, (batch, height, width, positions * channels))


@keras.saving.register_keras_serializable(package="medseq_tf")
class PerPosition(keras.layers.Wrapper):
    """Slice 1 through the first position's weights, slice 2 through the second's, and so on.

    Paper 1, figure 7. Padded positions give zeros, and neither they nor batch-mates change what
    real ones give. The wrapped layer holds them all: it has an attribute `positions` and
    takes `(B, H, W, P * C)` and `real`, `(B, P)`, as
    `ConvolutionBlock` and `FeatureSimilarity` do.

    Args:
        layer: the wrapped layer, whose outputs are `(B, ..., P * F)`.

    Call arguments:
        inputs: `(B, T, H, W, C)` with at most `positions` steps.
        lengths: `(B,)` number of real slices of each study; None: all of them.
        training: passed to the wrapped layer.

    Returns:
        `(B, T, ..., F)`.

    Raises:
        InputError: where there are more steps than positions; if their number is known only when
            the graph runs, TensorFlow's InvalidArgumentError with the same message.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.positions = layer.positions

    def _packed_shape(self, input_shape: Shape) -> Shape:
        batch, steps, *sides, channels = input_shape
        if steps is not None and steps > self.positions:
            raise InputError(f"{self._limit}, got {steps}")
        return (batch, *sides, self.positions * channels)

    @property
    def _limit(self) -> str:
        return (
            f"a model with weights for {self.positions} positions takes sequences of at most "
            f"{self.positions} slices"
        )

    def build(self, input_shape: Shape) -> None:
        """Build the wrapped layer."""
        super().build(self._packed_shape(input_shape))

    def call(
        self, inputs: Tensor, lengths: Tensor | None = None, training: Training = None
    ) -> Tensor:
        """Return what each position makes of its slice."""
        packed_shape = self._packed_shape(inputs.shape)
        batch, steps = ops.shape(inputs)[:2]
        if inputs.shape[1] is None:
            inputs = kernels.require_at_most(inputs, steps, self.positions, self._limit)
        mask = None if lengths is None else sequence_mask(lengths, self.positions)
        packed = pack(inputs, self.positions)
        if mask is None and inputs.shape[1] != self.positions:
            mask = sequence_mask(ops.repeat(ops.expand_dims(steps, 0), batch), self.positions)
        outputs = self.layer(packed, real=mask, training=training)
        trailing = self.layer.compute_output_shape(packed_shape)[1:]
        outputs = ops.reshape(
            outputs, (batch, *trailing[:-1], self.positions, trailing[-1] // self.positions)
        )
        outputs = ops.moveaxis(outputs, -2, 1)[:, :steps]
        return outputs if mask is None else zero_padding(outputs, mask[:, :steps])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the wrapped layer's outputs, slice by slice."""
        batch, *middle, features = self.layer.compute_output_shape(self._packed_shape(input_shape))
        return (batch, input_shape[1], *middle, features // self.positions)
