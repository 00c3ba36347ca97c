"""Feature similarity module: each place of a map informed by the places like it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from medseq_tf.layers.convolution import ConvolutionBlock
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, check_choice, child_seeds
from medseq_tf.recipe import FeatureSimilaritySettings, choices

ATTENTIONS = choices(FeatureSimilaritySettings, "attention")


@keras.saving.register_keras_serializable(package="medseq_tf")
class FeatureSimilarity(Layer):
    """Feature similarity module (Qi et al. 2019, X-Net; paper 1, figure 8).

    With x = 3x3 block of the input to C' = max(C // 3, 4) channels, and theta, phi, g = 1x1 blocks
    of x to
    C'' = max(C' // 2, 2) channels, each a matrix of (places, C''):

        attention = theta . phi^T       softmax: over the places of phi; scaled: / places
        y = attention . g
        output = 3x3 block(1x1 block(y) + x) + input

    theta, phi and g are one convolution with 3 C'' filters, which is the same thing. Slices where
    `real` is False count in no batch statistic.

    Args:
        attention: `softmax` (paper 1's figure), `none` (its public code) or `scaled` (X-Net).
        positions: number of positions that stand side by side in the channels, each with weights
            and statistics of its own.
        activation: of the blocks, by name.
        momentum: of the batch normalisations.
        epsilon: of the batch normalisations.
        seed: seed of the initial weights.

    Call arguments:
        inputs: `(B, H, W, P * C)`, the channels position by position.
        real: `(B,)` or `(B, P)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`.

    Returns:
        `(B, H, W, P * C)`, as the inputs; what stands at padded slices
        is to be ignored.
    """

    def __init__(
        self,
        attention: str,
        positions: int = 1,
        *,
        activation: str,
        momentum: float,
        epsilon: float,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("attention", attention, ATTENTIONS)
        self.attention = attention
        self.positions = positions
        self.activation = activation
        self.momentum = momentum
        self.epsilon = epsilon
        self.seed = seed

    def build(self, input_shape: Shape) -> None:
        """Make the four blocks."""
        channels = input_shape[-1] // self.positions
        reduced = max(channels // 3, 4)
        self.projected = max(reduced // 2, 2)
        seeds = child_seeds(self.seed, 4)
        self.reduce = self._block("reduce", reduced, 3, seeds[0])
        self.project = self._block("project", 3 * self.projected, 1, seeds[1])
        self.restore = self._block("restore", reduced, 1, seeds[2])
        self.expand = self._block("expand", channels, 3, seeds[3])
        reduced_shape = (*input_shape[:-1], self.positions * reduced)
        self.reduce.build(input_shape)
        self.project.build(reduced_shape)
        self.restore.build((*input_shape[:-1], self.positions * self.projected))
        self.expand.build(reduced_shape)

    def _block(
        self, name: str, filters: int, kernel_size: int, seed: int | None
    ) -> ConvolutionBlock:
        return ConvolutionBlock(
            filters,
            kernel_size,
            positions=self.positions,
            shared_normalization=False,
            activation=self.activation,
            momentum=self.momentum,
            epsilon=self.epsilon,
            seed=seed,
            name=name,
            dtype=self.dtype_policy,
        )

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the inputs plus what the places like each place tell it."""
        x = self.reduce(inputs, real=real, training=training)
        y = self._attend(self.project(x, real=real, training=training))
        z = self.restore(y, real=real, training=training) + x
        return self.expand(z, real=real, training=training) + inputs

    def _attend(self, projections: Tensor) -> Tensor:
        """Return y, `(..., P * C'')`, of theta, phi and g, `(..., P * 3 * C'')`."""
        batch, height, width, _ = ops.shape(projections)
        places = height * width
        by_place = ops.reshape(projections, (batch, places, self.positions, 3 * self.projected))
        theta, phi, g = ops.split(ops.transpose(by_place, (0, 2, 1, 3)), 3, axis=-1)
        attention = ops.matmul(theta, ops.transpose(phi, (0, 1, 3, 2)))
        if self.attention == "softmax":
            attention = ops.softmax(attention, axis=-1)
        elif self.attention == "scaled":
            attention = attention / ops.cast(places, attention.dtype)
        y = ops.transpose(ops.matmul(attention, g), (0, 2, 1, 3))
        return ops.reshape(y, (batch, height, width, self.positions * self.projected))
