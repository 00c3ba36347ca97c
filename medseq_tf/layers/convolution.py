"""Takes feature maps of slices, gives them convolved, by shared weights or each position's own."""

from __future__ import annotations

import keras

from medseq_tf.errors import InputError
from medseq_tf.layers import kernels
from medseq_tf.layers.batch_normalization import BatchNormalization


@keras.saving.register_keras_serializable(package="medseq_tf")
class PerPositionConv2D(keras.layers.Layer):
    """No slice, real or padded, has a part in another's output; padded ones are convolved too.

    `positions` 2-D convolutions side by side, each with a kernel of its own, as one convolution
    whose groups are the positions (paper 1, figure 7: SequenceConv2D). With one position it is an
    ordinary convolution over slices folded into the batch axis.

    Kernels and biases are drawn from U(-1/sqrt(n), 1/sqrt(n)), n = inputs of one output.

    Args:
        filters: number of filters of each position.
        kernel_size: height and width of the kernel.
        strides: the same along both axes.
        padding: rows and columns of zeros on each side, or "same": `kernel_size // 2`.
        positions: number of positions that stand side by side in the channels.
        seed: seed of the initial kernel.

    Call arguments:
        inputs: `(batch, height, width, positions * channels)`, the channels position by position.

    Raises:
        InputError: at build, where a slice is smaller than the kernel.
    """

    def __init__(
        self, filters, kernel_size, strides=1, padding=0, positions=1, seed=None, **kwargs
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
        return self.kernel_size // 2 if self.padding == "same" else self.padding

    def build(self, input_shape):
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

    def call(self, inputs):
        kernel = keras.ops.convert_to_tensor(self.kernel)
        outputs = kernels.convolution(inputs, kernel, self.strides, self.margin, self.positions)
        return outputs + self.bias

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        sides = [self._output_side(side) for side in (height, width)]
        return (batch, *sides, self.positions * self.filters)

    def _output_side(self, side):
        if side is None:
            return None
        if side + 2 * self.margin < self.kernel_size:
            raise InputError(
                f"a slice of {side} pixels a side, with padding {self.margin}, is smaller than the "
                f"kernel of {self.kernel_size}: use larger slices, or smaller kernels or strides"
            )
        return (side + 2 * self.margin - self.kernel_size) // self.strides + 1

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "positions": self.positions,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="medseq_tf")
class ConvolutionBlock(keras.layers.Layer):
    """Slices where `real` is False count in no batch statistic; their outputs are to be ignored.

    Convolution with bias, batch normalisation, activation: paper 1's BasicModule and
    SequenceConv2D (figures 7 and 8).

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
        inputs: `(batch, height, width, positions * channels)`, the channels position by position.
        real: `(batch,)` or `(batch, positions)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        positions=1,
        shared_normalization=True,
        activation="relu",
        momentum=0.9,
        epsilon=1e-5,
        seed=None,
        **kwargs,
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
            momentum,
            epsilon,
            name="normalization",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalization.build(self.compute_output_shape(input_shape))

    def call(self, inputs, real=None, training=None):
        outputs = self.normalization(self.convolution(inputs), real=real, training=training)
        return keras.activations.get(self.activation)(outputs)

    def compute_output_shape(self, input_shape):
        return self.convolution.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "positions": self.positions,
            "shared_normalization": self.shared_normalization,
            "activation": self.activation,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "seed": self.seed,
        }
