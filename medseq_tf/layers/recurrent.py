"""One layer of LSTM or GRU over sequences of vectors, in one direction or both."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from medseq_tf.layers import kernels
from medseq_tf.layers.layer import Layer, Shape, Tensor, check_choice, child_seeds
from medseq_tf.layers.lengths import sequence_mask, zero_padding

GATES = {"lstm": 4, "gru": 3}

CLOSED = 1e4
"""Added to or taken from a gate before its sigmoid, this opens or closes it, in float16 too."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class RecurrentLayer(Layer):
    """Long short-term memory or gated recurrent unit, in one direction or both.

    LSTM (Hochreiter and Schmidhuber 1997, forget gate by Gers et al. 2000):

        i, f, g, o = x . kernel + h . recurrent_kernel + bias
        c = sigmoid(f) c + sigmoid(i) tanh(g)
        h = sigmoid(o) tanh(c)

    GRU (Cho et al. 2014):

        z, r, n = x . kernel + bias[0]
        z', r', n' = h . recurrent_kernel + bias[1]
        h = sigmoid(z + z') h + (1 - sigmoid(z + z')) tanh(n + sigmoid(r + r') n')

    They are those of `keras.layers.LSTM` and `keras.layers.GRU(reset_after=True)`, and differ from
    them in time taken: the inputs are multiplied once for all steps and both directions, the
    directions share one loop, and padding closes gates ahead of the loop instead of selecting
    states in it. So padded steps change no state, forward or backward; their outputs are zeros.

    Weights; d directions: forward, backward; gates in the order i, f, g, o or (GRU) z, r, n:

        kernel            (features, d, gates * units)     glorot_uniform
        recurrent_kernel  (d, units, gates * units)        orthogonal
        bias              (d, 4 * units)                   LSTM: 0, and 1 for f
        bias              (d, 2, 3 * units)                GRU: 0; of the input, of the state

    Args:
        units: size of the state of one direction.
        cell: `lstm` or `gru`.
        bidirectional: whether a second set of weights reads the slices backward.
        seed: seed of the initial weights.

    Call arguments:
        inputs: `(B, T, F)`.
        lengths: `(B,)` number of real steps; None: all of them.

    Returns:
        `(B, T, d * units)`: at step t the forward state after step t, then the backward
        state after the steps from the last one down to t.
    """

    def __init__(
        self,
        units: int,
        cell: str,
        bidirectional: bool,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("cell", cell, GATES)
        self.units = units
        self.cell = cell
        self.bidirectional = bidirectional
        self.seed = seed

    @property
    def directions(self) -> int:
        """1 or, with `bidirectional`, 2."""
        return 2 if self.bidirectional else 1

    def build(self, input_shape: Shape) -> None:
        """Make the kernels and the bias."""
        features, width = input_shape[-1], GATES[self.cell] * self.units
        seeds = child_seeds(self.seed, 2 * self.directions)

        def glorot(shape: Shape, dtype: str) -> Tensor:
            draws = [keras.initializers.GlorotUniform(s) for s in seeds[: self.directions]]
            return ops.stack([draw((features, width), dtype) for draw in draws], axis=1)

        def orthogonal(shape: Shape, dtype: str) -> Tensor:
            draws = [keras.initializers.Orthogonal(seed=s) for s in seeds[self.directions :]]
            return ops.stack([draw((self.units, width), dtype) for draw in draws])

        def zeros(shape: Shape, dtype: str) -> Tensor:
            bias = ops.zeros(shape, dtype)
            return bias if self.cell == "gru" else bias + self._forget_gate(dtype)

        d = self.directions
        self.kernel = self.add_weight(name="kernel", shape=(features, d, width), initializer=glorot)
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(d, self.units, width), initializer=orthogonal
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(d, width) if self.cell == "lstm" else (d, 2, width),
            initializer=zeros,
        )

    def _forget_gate(self, dtype: str) -> Tensor:
        return ops.repeat(ops.cast([0, 1, 0, 0], dtype), self.units)

    def call(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the states after every step."""
        batch, steps, features = ops.shape(inputs)
        width = GATES[self.cell] * self.units
        kernel = ops.reshape(self.kernel, (features, self.directions * width))
        drive = ops.reshape(ops.matmul(inputs, kernel), (batch, steps, self.directions, width))
        bias = ops.convert_to_tensor(self.bias)
        drive = drive + (bias if self.cell == "lstm" else bias[:, 0])
        mask = None if lengths is None else sequence_mask(lengths, steps)
        if mask is not None:
            drive = ops.where(mask[:, :, None, None], drive, self._padding(drive.dtype))
        drive = ops.transpose(drive, (1, 2, 0, 3))
        states = (
            self._gru(drive) if self.cell == "gru" else kernels.lstm(drive, self.recurrent_kernel)
        )
        outputs = ops.reshape(
            ops.transpose(states, (2, 0, 1, 3)), (batch, steps, self.directions * self.units)
        )
        return outputs if mask is None else zero_padding(outputs, mask)

    def _padding(self, dtype: str) -> Tensor:
        """Return the input of a padded step: no way in (LSTM), or keep the state (GRU)."""
        closed = [-CLOSED, 0, 0, -CLOSED] if self.cell == "lstm" else [CLOSED, 0, 0]
        return ops.repeat(ops.cast(closed, dtype), self.units)

    def _gru(self, drive: Tensor) -> Tensor:
        recurrent_kernel = ops.convert_to_tensor(self.recurrent_kernel)
        recurrent_bias = ops.convert_to_tensor(self.bias)[:, 1:]

        def step(h: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
            update, reset, candidate = ops.split(drive, 3, axis=-1)
            recurrent = kernels.each_direction(h, recurrent_kernel) + recurrent_bias
            h_update, h_reset, h_candidate = ops.split(recurrent, 3, axis=-1)
            update = ops.sigmoid(update + h_update)
            candidate = ops.tanh(candidate + ops.sigmoid(reset + h_reset) * h_candidate)
            h = update * h + (1 - update) * candidate
            return h, h

        zeros = ops.zeros_like(drive[0, ..., : self.units])
        return kernels.each_in_its_order(
            kernels.scan(step, zeros, kernels.each_in_its_order(drive))
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of all states."""
        return (*input_shape[:-1], self.directions * self.units)
