"""Takes sequences of slices, gives what a layer with weights for each position makes of them."""

from __future__ import annotations

import keras
from keras import ops

from medseq_tf.errors import InputError
from medseq_tf.layers import kernels
from medseq_tf.layers.lengths import sequence_mask, zero_padding


def pack(slices, positions: int):
    """`(batch, steps <= positions, height, width, channels)` to channels position by position.

    Returns:
        `(batch, height, width, positions * channels)`, with zeros for the positions beyond `steps`.
    """
    batch, steps, height, width, channels = ops.shape(slices)
    if slices.shape[1] != positions:
        slices = ops.pad(slices, [[0, 0], [0, positions - steps], [0, 0], [0, 0], [0, 0]])
    slices = ops.transpose(slices, (0, 2, 3, 1, 4))
    return ops.reshape(slices, (batch, height, width, positions * channels))


@keras.saving.register_keras_serializable(package="medseq_tf")
class PerPosition(keras.layers.Wrapper):
    """Padded positions give zeros, and neither they nor batch-mates change what real ones give.

    Slice 1 passes through the first position's weights, slice 2 through the second's, and so on
    (paper 1, figure 7). The wrapped layer holds them all: it has an attribute `positions` and
    takes `(batch, height, width, positions * channels)` and `real`, `(batch, positions)`, as
    `ConvolutionBlock` and `FeatureSimilarity` do.

    Args:
        layer: the wrapped layer, whose outputs are `(batch, ..., positions * features)`.

    Call arguments:
        inputs: `(batch, steps, height, width, channels)` with at most `positions` steps.
        lengths: `(batch,)` number of real slices of each study; None: all of them.
        training: passed to the wrapped layer.

    Returns:
        `(batch, steps, ..., features)`.

    Raises:
        InputError: where there are more steps than positions; if their number is known only when
            the graph runs, TensorFlow's InvalidArgumentError with the same message.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **kwargs)
        self.positions = layer.positions

    def _packed_shape(self, input_shape):
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

    def build(self, input_shape):
        super().build(self._packed_shape(input_shape))

    def call(self, inputs, lengths=None, training=None):
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

    def compute_output_shape(self, input_shape):
        batch, *middle, features = self.layer.compute_output_shape(self._packed_shape(input_shape))
        return (batch, input_shape[1], *middle, features // self.positions)
