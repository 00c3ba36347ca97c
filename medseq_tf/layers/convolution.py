"""2-D convolutions of slices, by weights that all slices share or by each position's own."""

from __future__ import annotations

from typing import Any

import keras

from medseq_tf.errors import InputError
from medseq_tf.layers import kernels
from medseq_tf.layers.batch_normalization import BatchNormalization
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training


@keras.saving.register_keras_serializable(package="medseq_tf")
class PerPositionConv2D(Layer):
    """`positions` 2-D convolutions side by side, each with a kernel of its own.

    It is one convolution whose groups are the positions (paper 1, figure 7: SequenceConv2D); with
    one position, an ordinary one over slices folded into the batch axis. No slice has a part in
    another's output; padded ones are convolved too.

    Kernels and biases are drawn from U(-1/sqrt(n), 1/sqrt(n)), n = inputs of one output.

    Args:
        filters: number of filters of each position.
        kernel_size: height and width of the kernel.
        strides: the same along both axes.
        padding: rows and columns of zeros on each side, or "same": `kernel_size // 2`.
        positions: number of positions that stand side by side in the channels.
        seed: seed of the initial kernel.

    Call arguments:
        inputs: `(B, H, W, P * C)`, the channels position by position.

    Returns:
        `(B, H', W', P * filters)`, position by position.

    Raises:
        InputError: at build, where a slice is smaller than the kernel.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        padding: int | str = 0,
        positions: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.positions = positions
        self.seed = seed

    @property
    def margin(self) -> int:
        """Rows and columns of zeros added on each side."""
        return self.kernel_size // 2 if self.padding == "same" else int(self.padding)

    def build(self, input_shape: Shape) -> None:
        """Make the kernel and the bias."""
        self.compute_output_shape(input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                self.kernel_size,
                self.kernel_size,
                input_shape[-1] // self.positions,
                self.positions * self.filters,
            ),
            initializer=keras.initializers.VarianceScaling(
                1 / 3, "fan_in", "uniform", seed=self.seed
            ),
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.positions * self.filters,), initializer="zeros"
        )

    def call(self, inputs: Tensor) -> Tensor:
        """Return the convolved slices."""
        kernel = keras.ops.convert_to_tensor(self.kernel)
        outputs = kernels.convolution(inputs, kernel, self.strides, self.margin, self.positions)
        return outputs + self.bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape after the convolution."""
        batch, height, width, _ = input_shape
        sides = [self._output_side(side) for side in (height, width)]
        return (batch, *sides, self.positions * self.filters)

    def _output_side(self, side: int | None) -> int | None:
        if side is None:
            return None
        if side + 2 * self.margin < self.kernel_size:
            raise InputError(
                f"a slice of {side} pixels a side, with padding {self.margin}, is smaller than the "
                f"kernel of {self.kernel_size}: use larger slices, or smaller kernels or strides"
            )
        return (side + 2 * self.margin - self.kernel_size) // self.strides + 1


@keras.saving.register_keras_serializable(package="medseq_tf")
class ConvolutionBlock(Layer):
    """Convolution with bias, batch normalisation, activation.

    Paper 1's BasicModule and SequenceConv2D (figures 7 and 8). Slices where `real` is False count
    in no batch statistic.

    Args:
        filters: number of filters of each position.
        kernel_size: height and width of the kernel.
        strides: the same along both axes.
        padding: rows and columns of zeros on each side, or "same": `kernel_size // 2`.
        positions: number of positions that stand side by side in the channels, each with a
            convolution of its own.
        shared_normalization: whether the positions share one batch normalisation.
        activation: a Keras activation, by name.
        momentum: of the batch normalisation.
        epsilon: of the batch normalisation.
        seed: seed of the initial kernel.

    Call arguments:
        inputs: `(B, H, W, P * C)`, the channels position by position.
        real: `(B,)` or `(B, P)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`.

    Returns:
        `(B, H', W', P * filters)`, position by position; what stands at
        padded slices is to be ignored.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        padding: int | str = "same",
        positions: int = 1,
        shared_normalization: bool = True,
        *,
        activation: str,
        momentum: float,
        epsilon: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.positions = positions
        self.shared_normalization = shared_normalization
        self.activation = activation
        self.momentum = momentum
        self.epsilon = epsilon
        self.seed = seed
        self.convolution = PerPositionConv2D(
            filters,
            kernel_size,
            strides,
            padding,
            positions,
            seed,
            name="convolution",
            dtype=self.dtype_policy,
        )
        self.normalization = BatchNormalization(
            positions,
            shared_normalization,
            momentum=momentum,
            epsilon=epsilon,
            name="normalization",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Shape) -> None:
        """Make the weights of both parts."""
        self.convolution.build(input_shape)
        self.normalization.build(self.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the activation of the normalised convolution."""
        outputs = self.normalization(self.convolution(inputs), real=real, training=training)
        return keras.activations.get(self.activation)(outputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape after the convolution."""
        return self.convolution.compute_output_shape(input_shape)
