"""Batch normalisation by statistics of the real slices alone."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from medseq_tf.layers import kernels, replicas
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training


@keras.saving.register_keras_serializable(package="medseq_tf")
class BatchNormalization(Layer):
    """Batch normalisation (Ioffe and Szegedy 2015) that leaves padding out of its statistics.

        y = gamma (x - mean) / sqrt(variance + epsilon) + beta

    In training a channel is normalised by its mean and biased variance over the batch, that of all
    `replicas`, height and width, and over the positions too where they share the statistics; slices
    where `real` is False count in none of them. In inference the moving averages are used:
    `moving = momentum * moving + (1 - momentum) * batch`, so `momentum=0.9` is PyTorch's 0.1.
    The moving variance averages biased variances as Keras does, where PyTorch averages unbiased
    ones: training moves them differently by n / (n - 1), inference on the same values is the same.

    Args:
        positions: number of positions that stand side by side in the channels.
        shared: whether all positions share one scale, offset and set of statistics, or each
            position has its own.
        momentum: share of the old moving average that is kept at each training step.
        epsilon: added to the variance.

    Call arguments:
        inputs: `(B, H, W, P * C)`.
        real: `(B,)` or `(B, P)` bool, which slices are real; None: all of them.
        training: whether to use, and learn from, the statistics of this batch.

    Returns:
        `(B, H, W, P * C)`; what stands at padded slices is to be
        ignored.
    """

    def __init__(
        self,
        positions: int = 1,
        shared: bool = True,
        *,
        momentum: float,
        epsilon: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.positions = positions
        self.shared = shared
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: Shape) -> None:
        """Make the scale, the offset and the moving averages."""
        channels = input_shape[-1] // self.positions if self.shared else input_shape[-1]

        def weight(name: str, initializer: str, trainable: bool = True) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=(channels,),
                initializer=initializer,
                trainable=trainable,
                autocast=False,
            )

        self.gamma = weight("gamma", "ones")
        self.beta = weight("beta", "zeros")
        self.moving_mean = weight("moving_mean", "zeros", trainable=False)
        self.moving_variance = weight("moving_variance", "ones", trainable=False)

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the inputs, normalised."""
        shape = ops.shape(inputs)
        outputs = ops.cast(inputs, "float32")
        if self.shared and self.positions > 1:
            channels = shape[-1] // self.positions
            outputs = ops.reshape(outputs, (shape[0], shape[1] * shape[2], -1, channels))
        if not (training and self.trainable):
            outputs = self._normalize(outputs, self.moving_mean, self.moving_variance)
        elif not replicas.is_alone():  # whose sums no condition may stand around
            outputs, mean, variance, count = kernels.normalize_by_shares(
                outputs,
                replicas.counted(self._weights(real, outputs)),
                self.gamma,
                self.beta,
                self.epsilon,
                replicas.summed,
            )
            self._update(mean, variance, count > 0)
        elif real is None:
            outputs, mean, variance = self._normalize_all(outputs)
            self._update(mean, variance)
        else:
            # One fused kernel where a batch has no padding, as with sequences of one length.
            outputs, mean, variance, known = ops.cond(
                ops.all(real),
                lambda: (*self._normalize_all(outputs), ops.ones_like(self.gamma, "bool")),
                lambda: self._normalize_real(outputs, self._weights(real, outputs)),
            )
            self._update(mean, variance, known)
        return ops.cast(ops.reshape(outputs, shape), self.compute_dtype)

    def _normalize(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return ops.batch_normalization(
            inputs, mean, variance, -1, self.beta, self.gamma, self.epsilon
        )

    def _normalize_all(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta))
        return kernels.normalize_by_batch(inputs, *weights, self.epsilon)

    def _weights(self, real: Tensor | None, inputs: Tensor) -> Tensor:
        """Return 1 for the channels of real slices, else 0, of rank 4, to be broadcast."""
        if real is None:
            real = ops.ones((ops.shape(inputs)[0], self.positions))
        real = ops.reshape(ops.cast(real, "float32"), (-1, self.positions))
        if self.shared:
            return ops.reshape(real, (-1, 1, self.positions, 1))
        real = ops.repeat(real, inputs.shape[-1] // self.positions, axis=1)
        return ops.reshape(real, (-1, 1, 1, inputs.shape[-1]))

    def _normalize_real(
        self, inputs: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = ops.shape(inputs)
        # Padding becomes 0 first: times 0 it would stay what it is if it is not finite.
        inputs = ops.where(weights > 0, inputs, 0.0)
        area = shape[1] if self.shared and self.positions > 1 else shape[1] * shape[2]
        count = ops.sum(weights, axis=(0, 1, 2)) * ops.cast(area, "float32")
        some = ops.maximum(count, 1.0)
        mean = ops.sum(inputs, axis=(0, 1, 2)) / some
        variance = ops.sum(weights * ops.square(inputs - mean), axis=(0, 1, 2)) / some
        known = ops.broadcast_to(count > 0, self.gamma.shape)
        return self._normalize(inputs, mean, variance), mean, variance, known

    def _update(self, mean: Tensor, variance: Tensor, known: Tensor | None = None) -> None:
        """Move the moving averages, of channels that the batch has real slices for."""
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = ops.convert_to_tensor(moving)
            new = old * self.momentum + ops.cast(batch, "float32") * (1.0 - self.momentum)
            # A position that no study of the batch reaches has nothing to learn from it.
            moving.assign(new if known is None else ops.where(known, new, old))
