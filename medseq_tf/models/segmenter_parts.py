"""The parts of X-Net, U-Net and D-UNet.

Every part is called with `real`, `(B,)` bool: slices where it is False count in no batch statistic.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from medseq_tf.layers import BatchNormalization
from medseq_tf.layers.layer import Shape, Tensor, Training, child_seeds

REDUCTION = 16
"""Of squeeze-and-excitation: filters to hidden units."""


class Convolution(keras.layers.Layer):
    """A Keras convolution of 2-D or 3-D maps, batch normalisation over real slices if any, ReLU."""

    def __init__(
        self,
        convolution: keras.layers.Layer,
        normalization: BatchNormalization | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.convolution = convolution
        self.normalization = normalization

    def build(self, input_shape: Shape) -> None:
        """Build the parts."""
        self.convolution.build(input_shape)
        if self.normalization is not None:
            self.normalization.build(self.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the maps."""
        maps = self.convolution(inputs)
        if self.normalization is None:
            return ops.relu(maps)
        shape = ops.shape(maps)
        if len(shape) == 5:  # the depth goes beside the width: one statistic for all of it
            maps = ops.reshape(maps, (shape[0], shape[1], shape[2] * shape[3], shape[4]))
        maps = self.normalization(maps, real=real, training=training)
        return ops.relu(ops.reshape(maps, shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the maps' shape."""
        return self.convolution.compute_output_shape(input_shape)


class PlainConvolution(Convolution):
    """A Keras convolution and ReLU; model files know it by the name of this class."""


class Chain(keras.layers.Layer):
    """`Convolution`s one after another, with their sum to a `shortcut` of the input, if any."""

    def __init__(
        self, convolutions: list[Convolution], shortcut: Convolution | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.convolutions = convolutions
        self.shortcut = shortcut

    def build(self, input_shape: Shape) -> None:
        """Build the parts."""
        if self.shortcut is not None:
            self.shortcut.build(input_shape)
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the maps."""
        maps = inputs
        for convolution in self.convolutions:
            maps = convolution(maps, real=real, training=training)
        if self.shortcut is None:
            return maps
        return maps + self.shortcut(inputs, real=real, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the maps' shape."""
        for convolution in self.convolutions:
            input_shape = convolution.compute_output_shape(input_shape)
        return input_shape


class Similarity(keras.layers.Layer):
    """X-Net's feature similarity module (Qi et al. 2019).

    C channels become C // 8, whose places look at each other through projections to half as many,
    `theta . phi^T / places`, then C again, plus the input.
    """

    def __init__(
        self,
        reduce: Convolution,
        project: keras.layers.Layer,
        restore: keras.layers.Layer,
        expand: Convolution,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.reduce, self.project = reduce, project
        self.restore, self.expand = restore, expand

    def build(self, input_shape: Shape) -> None:
        """Build the parts."""
        self.reduce.build(input_shape)
        reduced = self.reduce.compute_output_shape(input_shape)
        self.project.build(reduced)
        projected = self.project.compute_output_shape(reduced)
        self.restore.build((*projected[:-1], projected[-1] // 3))
        self.expand.build(reduced)

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the maps."""
        x = self.reduce(inputs, real=real, training=training)
        z = x + self.restore(self._attend(self.project(x)))
        return inputs + self.expand(z, real=real, training=training)

    def _attend(self, projections: Tensor) -> Tensor:
        batch, height, width, channels = ops.shape(projections)
        places = height * width
        theta, phi, g = ops.split(ops.reshape(projections, (batch, places, channels)), 3, axis=-1)
        # phi^T . g first: the same product, without a matrix of places by places.
        y = ops.matmul(theta, ops.matmul(ops.transpose(phi, (0, 2, 1)), g) / places)
        return ops.reshape(y, (batch, height, width, channels // 3))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the inputs' shape."""
        return input_shape


class Excitation(keras.layers.Layer):
    """Squeeze-and-excitation (Hu et al. 2018): each channel times a weight from all their means."""

    def __init__(self, squeeze: keras.layers.Dense, excite: keras.layers.Dense, **kwargs: Any):
        super().__init__(**kwargs)
        self.squeeze, self.excite = squeeze, excite

    def build(self, input_shape: Shape) -> None:
        """Build the parts."""
        self.squeeze.build((input_shape[0], input_shape[-1]))
        self.excite.build((input_shape[0], self.squeeze.units))

    def call(self, inputs: Tensor) -> Tensor:
        """Return the weighted channels."""
        weights = self.excite(self.squeeze(ops.mean(inputs, axis=(1, 2))))
        return inputs * weights[:, None, None, :]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the inputs' shape."""
        return input_shape


class Fusion(keras.layers.Layer):
    """D-UNet's fusion of 3-D maps `(B, H, W, depth, C)` into 2-D maps."""

    def __init__(
        self,
        flatten: keras.layers.Layer,
        convolution: PlainConvolution,
        excite_3d: Excitation,
        excite_2d: Excitation,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.flatten, self.convolution = flatten, convolution
        self.excite_3d, self.excite_2d = excite_3d, excite_2d

    def build(self, volume_shape: Shape, maps_shape: Shape) -> None:
        """Build the parts."""
        self.flatten.build(volume_shape)
        self.convolution.build(volume_shape[:-1])
        self.excite_3d.build(maps_shape)
        self.excite_2d.build(maps_shape)

    def call(self, volume: Tensor, maps: Tensor) -> Tensor:
        """Return the sum of both, each weighted."""
        flat = ops.squeeze(self.flatten(volume), axis=-1)
        return self.excite_3d(self.convolution(flat)) + self.excite_2d(maps)

    def compute_output_shape(self, volume_shape: Shape, maps_shape: Shape) -> Shape:
        """Return the 2-D maps' shape."""
        return maps_shape


class Parts:
    """Maker of the parts of a network, each with initial weights from a seed of its own."""

    def __init__(self, seed: int | None, momentum: float, epsilon: float, dtype: Any):
        self.seeds = iter(child_seeds(seed, 128))
        self.normalization = {"momentum": momentum, "epsilon": epsilon, "dtype": dtype}
        self.dtype = dtype

    def _he_normal(self) -> keras.initializers.Initializer:
        return keras.initializers.HeNormal(next(self.seeds))

    def conv(
        self,
        filters: int,
        kernel: int,
        bias: bool = True,
        layer: type = keras.layers.Conv2D,
        name: str = "convolution",
    ) -> keras.layers.Layer:
        """Return a Keras convolution without activation."""
        return layer(
            filters,
            kernel,
            padding="same",
            use_bias=bias,
            kernel_initializer=self._he_normal(),
            name=name,
            dtype=self.dtype,
        )

    def _normalized(self, convolution: keras.layers.Layer, name: str) -> Convolution:
        normalization = BatchNormalization(name="normalization", **self.normalization)
        return Convolution(convolution, normalization, name=name, dtype=self.dtype)

    def block(
        self, name: str, filters: int, kernel: int, layer: type = keras.layers.Conv2D
    ) -> Convolution:
        """Return a convolution, normalisation and ReLU."""
        return self._normalized(self.conv(filters, kernel, layer=layer), name)

    def plain(self, name: str, filters: int, kernel: int) -> PlainConvolution:
        """Return a convolution and ReLU."""
        return PlainConvolution(self.conv(filters, kernel), name=name, dtype=self.dtype)

    def twice(self, name: str, filters: int, layer: type = keras.layers.Conv2D) -> Chain:
        """Return U-Net's level: two blocks of side 3."""
        blocks = [self.block(f"block_{i}", filters, 3, layer) for i in (1, 2)]
        return Chain(blocks, name=name, dtype=self.dtype)

    def _depthwise(self, name: str) -> Convolution:
        convolution = keras.layers.DepthwiseConv2D(
            3,
            padding="same",
            use_bias=False,
            depthwise_initializer=self._he_normal(),
            name="depthwise",
            dtype=self.dtype,
        )
        return self._normalized(convolution, name)

    def separable(self, name: str, filters: int) -> Chain:
        """Return X-Net's level: three depthwise separable convolutions beside a shortcut."""
        shortcut = self.block("shortcut", filters, 1)
        chain: list[Convolution] = []
        for i in (1, 2, 3):
            chain += [self._depthwise(f"places_{i}"), self.block(f"channels_{i}", filters, 1)]
        return Chain(chain, shortcut, name=name, dtype=self.dtype)

    def similarity(self, channels: int) -> Similarity:
        """Return X-Net's feature similarity module."""
        reduced = max(channels // 8, 2)
        projected = reduced // 2
        return Similarity(
            self.block("reduce", reduced, 3),
            self.conv(3 * projected, 1, bias=False, name="project"),
            self.conv(reduced, 1, bias=False, name="restore"),
            self.block("expand", channels, 3),
            name="similarity",
            dtype=self.dtype,
        )

    def excitation(self, name: str, channels: int) -> Excitation:
        """Return squeeze-and-excitation of these channels."""

        def dense(name: str, units: int, activation: str) -> keras.layers.Dense:
            return keras.layers.Dense(
                units,
                activation,
                use_bias=False,
                kernel_initializer=self._he_normal(),
                name=name,
                dtype=self.dtype,
            )

        squeeze = dense("squeeze", max(channels // REDUCTION, 1), "relu")
        return Excitation(
            squeeze, dense("excite", channels, "sigmoid"), name=name, dtype=self.dtype
        )

    def fusion(self, name: str, channels: int) -> Fusion:
        """Return D-UNet's fusion of 3-D maps into these channels."""
        return Fusion(
            self.conv(1, 1, layer=keras.layers.Conv3D, name="flatten"),
            self.plain("plain", channels, 3),
            self.excitation("excite_3d", channels),
            self.excitation("excite_2d", channels),
            name=name,
            dtype=self.dtype,
        )
