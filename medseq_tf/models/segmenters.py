"""Takes single slices, gives a logit for every pixel: X-Net, U-Net and D-UNet of paper 1's table 6.

All three are U-shaped: five levels, each of twice the filters and half the resolution of the one
above, and back up with the maps of the way down beside those from below.

    xnet   three depthwise separable convolutions a level beside a 1 x 1 shortcut, and a feature
           similarity module at the bottom (Qi et al. 2019): 15.1M
    unet   two 3 x 3 convolutions a level (Ronneberger et al. 2015), with batch normalisation and
           3 x 3 convolutions on the way up, as table 6 counts it: 34.5M
    dunet  a U-Net of half the filters beside a 3-D branch of three levels over four neighbouring
           slices; their maps are added at the second and third level, each weighted by
           squeeze-and-excitation (Zhou et al. 2019): 8,640,163

The counts are for one channel (D-UNet: four) and hold the moving averages of batch normalisation.
"""

from __future__ import annotations

import keras
from keras import ops

from medseq_tf.layers import BatchNormalization, kernels
from medseq_tf.layers.seeds import child_seeds

LEVELS = 5
WIDTHS = {"xnet": 64, "unet": 64, "dunet": 32}
"""Filters of the first level, as published."""
DEPTH = 4
"""Slices that D-UNet reads: two before, the slice itself and one after."""
SLICES_AT_ONCE = 32
"""Slices that pass through in inference at a time, which bounds the memory."""
REDUCTION = 16
"""Of squeeze-and-excitation: filters to hidden units."""


class Convolution(keras.layers.Layer):
    """A Keras convolution of 2-D or 3-D maps, batch normalisation over real slices, ReLU."""

    def __init__(self, convolution, momentum, epsilon, **kwargs):
        super().__init__(**kwargs)
        self.convolution = convolution
        self.normalization = BatchNormalization(
            momentum=momentum, epsilon=epsilon, name="normalization", dtype=self.dtype_policy
        )

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalization.build(self.compute_output_shape(input_shape))

    def call(self, inputs, real=None, training=None):
        maps = self.convolution(inputs)
        shape = ops.shape(maps)
        if len(shape) == 5:  # the depth goes beside the width: one statistic for all of it
            maps = ops.reshape(maps, (shape[0], shape[1], shape[2] * shape[3], shape[4]))
        maps = self.normalization(maps, real=real, training=training)
        return ops.relu(ops.reshape(maps, shape))

    def compute_output_shape(self, input_shape):
        return self.convolution.compute_output_shape(input_shape)


class Chain(keras.layers.Layer):
    """`Convolution`s one after another, with their sum to a `shortcut` of the input, if any."""

    def __init__(self, convolutions, shortcut=None, **kwargs):
        super().__init__(**kwargs)
        self.convolutions = convolutions
        self.shortcut = shortcut

    def build(self, input_shape):
        if self.shortcut is not None:
            self.shortcut.build(input_shape)
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def call(self, inputs, real=None, training=None):
        maps = inputs
        for convolution in self.convolutions:
            maps = convolution(maps, real=real, training=training)
        if self.shortcut is None:
            return maps
        return maps + self.shortcut(inputs, real=real, training=training)

    def compute_output_shape(self, input_shape):
        for convolution in self.convolutions:
            input_shape = convolution.compute_output_shape(input_shape)
        return input_shape


class PlainConvolution(keras.layers.Layer):
    """A Keras convolution and ReLU, called as `Convolution`."""

    def __init__(self, convolution, **kwargs):
        super().__init__(**kwargs)
        self.convolution = convolution

    def build(self, input_shape):
        self.convolution.build(input_shape)

    def call(self, inputs, real=None, training=None):
        return ops.relu(self.convolution(inputs))

    def compute_output_shape(self, input_shape):
        return self.convolution.compute_output_shape(input_shape)


class Similarity(keras.layers.Layer):
    """X-Net's feature similarity module: C channels to C // 8, whose places look at each other
    through projections to half as many, `theta . phi^T / places`, and back to C, plus the input."""

    def __init__(self, reduce, project, restore, expand, **kwargs):
        super().__init__(**kwargs)
        self.reduce, self.project = reduce, project
        self.restore, self.expand = restore, expand

    def build(self, input_shape):
        self.reduce.build(input_shape)
        reduced = self.reduce.compute_output_shape(input_shape)
        self.project.build(reduced)
        projected = self.project.compute_output_shape(reduced)
        self.restore.build((*projected[:-1], projected[-1] // 3))
        self.expand.build(reduced)

    def call(self, inputs, real=None, training=None):
        x = self.reduce(inputs, real=real, training=training)
        z = x + self.restore(self._attend(self.project(x)))
        return inputs + self.expand(z, real=real, training=training)

    def _attend(self, projections):
        batch, height, width, channels = ops.shape(projections)
        places = height * width
        theta, phi, g = ops.split(ops.reshape(projections, (batch, places, channels)), 3, axis=-1)
        # phi^T . g first: the same product, without a matrix of places by places.
        y = ops.matmul(theta, ops.matmul(ops.transpose(phi, (0, 2, 1)), g) / places)
        return ops.reshape(y, (batch, height, width, channels // 3))

    def compute_output_shape(self, input_shape):
        return input_shape


class Excitation(keras.layers.Layer):
    """Squeeze-and-excitation (Hu et al. 2018): each channel times a weight from all their means."""

    def __init__(self, squeeze, excite, **kwargs):
        super().__init__(**kwargs)
        self.squeeze, self.excite = squeeze, excite

    def build(self, input_shape):
        self.squeeze.build((input_shape[0], input_shape[-1]))
        self.excite.build((input_shape[0], self.squeeze.units))

    def call(self, inputs):
        weights = self.excite(self.squeeze(ops.mean(inputs, axis=(1, 2))))
        return inputs * weights[:, None, None, :]

    def compute_output_shape(self, input_shape):
        return input_shape


class Fusion(keras.layers.Layer):
    """D-UNet's fusion of 3-D maps `(batch, height, width, depth, channels)` into 2-D maps."""

    def __init__(self, flatten, convolution, excite_3d, excite_2d, **kwargs):
        super().__init__(**kwargs)
        self.flatten, self.convolution = flatten, convolution
        self.excite_3d, self.excite_2d = excite_3d, excite_2d

    def build(self, volume_shape, maps_shape):
        self.flatten.build(volume_shape)
        self.convolution.build(volume_shape[:-1])
        self.excite_3d.build(maps_shape)
        self.excite_2d.build(maps_shape)

    def call(self, volume, maps):
        flat = ops.squeeze(self.flatten(volume), axis=-1)
        return self.excite_3d(self.convolution(flat)) + self.excite_2d(maps)

    def compute_output_shape(self, volume_shape, maps_shape):
        return maps_shape


class _Parts:
    """Makes the parts of a network, each with initial weights from a seed of its own."""

    def __init__(self, seed, momentum, epsilon, dtype):
        self.seeds = iter(child_seeds(seed, 128))
        self.normalized = {"momentum": momentum, "epsilon": epsilon, "dtype": dtype}
        self.dtype = dtype

    def _he_normal(self):
        return keras.initializers.HeNormal(next(self.seeds))

    def conv(self, filters, kernel, bias=True, layer=keras.layers.Conv2D, name="convolution"):
        return layer(
            filters,
            kernel,
            padding="same",
            use_bias=bias,
            kernel_initializer=self._he_normal(),
            name=name,
            dtype=self.dtype,
        )

    def block(self, name, filters, kernel, layer=keras.layers.Conv2D):
        convolution = self.conv(filters, kernel, layer=layer)
        return Convolution(convolution, name=name, **self.normalized)

    def plain(self, name, filters, kernel):
        return PlainConvolution(self.conv(filters, kernel), name=name, dtype=self.dtype)

    def twice(self, name, filters, layer=keras.layers.Conv2D):
        blocks = [self.block(f"block_{i}", filters, 3, layer) for i in (1, 2)]
        return Chain(blocks, name=name, dtype=self.dtype)

    def _depthwise(self, name):
        convolution = keras.layers.DepthwiseConv2D(
            3,
            padding="same",
            use_bias=False,
            depthwise_initializer=self._he_normal(),
            name="depthwise",
            dtype=self.dtype,
        )
        return Convolution(convolution, name=name, **self.normalized)

    def separable(self, name, filters):
        shortcut = self.block("shortcut", filters, 1)
        chain = []
        for i in (1, 2, 3):
            chain += [self._depthwise(f"places_{i}"), self.block(f"channels_{i}", filters, 1)]
        return Chain(chain, shortcut, name=name, dtype=self.dtype)

    def similarity(self, channels):
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

    def excitation(self, name, channels):
        def dense(name, units, activation):
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

    def fusion(self, name, channels):
        return Fusion(
            self.conv(1, 1, layer=keras.layers.Conv3D, name="flatten"),
            self.plain("plain", channels, 3),
            self.excitation("excite_3d", channels),
            self.excitation("excite_2d", channels),
            name=name,
            dtype=self.dtype,
        )


@keras.saving.register_keras_serializable(package="medseq_tf")
class Segmenter(keras.layers.Layer):
    """Slices where `real` is False count in no batch statistic; their outputs are to be ignored.

    Args:
        network: `xnet`, `unet` or `dunet`.
        width: filters of the first level; None: as published.
        momentum: of the batch normalisations.
        epsilon: of the batch normalisations.
        dropout: share of the maps dropped at D-UNet's two lowest levels; X-Net and U-Net have none.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        inputs: `(batch, height, width, channels)`, the sides multiples of 16. D-UNet takes the
            first four channels for neighbouring slices, the third being the one to segment.
        real: `(batch,)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`; outside training slices pass in portions.

    Returns:
        `(batch, height, width, 1)` float32 logits of the third slice (D-UNet), or the only one.
    """

    def __init__(
        self,
        network="xnet",
        width=None,
        momentum=0.9,
        epsilon=1e-3,
        dropout=0.3,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if network not in WIDTHS:
            raise ValueError(f"network is one of {', '.join(WIDTHS)}, got {network!r}")
        self.network = network
        self.width = width
        self.momentum = momentum
        self.epsilon = epsilon
        self.dropout = dropout
        self.seed = seed
        weights_seed, dropout_seed = child_seeds(seed, 2)
        parts = _Parts(weights_seed, momentum, epsilon, self.dtype_policy)
        filters = [(width or WIDTHS[network]) * 2**level for level in range(LEVELS)]
        level = parts.separable if network == "xnet" else parts.twice
        rise, kernel = (parts.plain, 2) if network == "dunet" else (parts.block, 3)
        upwards = list(enumerate(filters[:-1], start=1))[::-1]
        self.down = [level(f"down_{i}", f) for i, f in enumerate(filters, start=1)]
        self.rise = [rise(f"rise_{i}", f, kernel) for i, f in upwards]
        self.up = [level(f"up_{i}", f) for i, f in upwards]
        self.bottom = parts.similarity(filters[-1]) if network == "xnet" else None
        self.volume, self.fusions, self.drops = [], [], []
        if network == "dunet":
            self.volume = [
                parts.twice(f"volume_{i}", f, keras.layers.Conv3D)
                for i, f in enumerate(filters[:3], start=1)
            ]
            self.fusions = [parts.fusion(f"fusion_{i + 1}", filters[i]) for i in (1, 2)]
            self.drops = [
                keras.layers.Dropout(dropout, seed=s, name=f"dropout_{i}", dtype=self.dtype_policy)
                for i, s in zip((4, 5), child_seeds(dropout_seed, 2), strict=True)
            ]
        self.logits = keras.layers.Conv2D(
            1,
            1,
            kernel_initializer=keras.initializers.GlorotUniform(next(parts.seeds)),
            name="logits",
            dtype="float32",
        )

    def build(self, input_shape):
        batch, height, width, channels = input_shape
        if self.network == "dunet" and channels < DEPTH:
            raise ValueError(f"dunet reads {DEPTH} neighbouring slices, got {channels} channels")
        channels = DEPTH if self.volume else channels
        shapes = []
        shape = (batch, height, width, channels)
        for number, level in enumerate(self.down):
            shape = _halved(shape) if number else shape
            level.build(shape)
            shape = level.compute_output_shape(shape)
            shapes.append(shape)
        if self.bottom is not None:
            self.bottom.build(shape)
        for rise, level, beside in zip(self.rise, self.up, shapes[-2::-1], strict=True):
            rise.build((*beside[:-1], shape[-1]))
            level.build((*beside[:-1], 2 * beside[-1]))
            shape = beside
        shape = (batch, height, width, channels, 1)
        for number, level in enumerate(self.volume):
            shape = _halved(shape) if number else shape
            level.build(shape)
            shape = level.compute_output_shape(shape)
            if number:
                self.fusions[number - 1].build(shape, shapes[number])
        self.logits.build(shapes[0])

    def call(self, inputs, real=None, training=None):
        if training:
            return self._segment(inputs, real, True)
        shape = (*inputs.shape[1:3], 1)
        return kernels.in_chunks(
            lambda part: self._segment(part, None, False), inputs, SLICES_AT_ONCE, shape, "float32"
        )

    def _segment(self, inputs, real, training):
        maps = inputs[..., :DEPTH] if self.volume else inputs
        volumes = self._volumes(maps, real, training)
        beside = []
        for number, level in enumerate(self.down):
            if number:
                maps = ops.max_pool(maps, 2, 2)
            maps = level(maps, real=real, training=training)
            if 1 <= number <= len(self.fusions):
                maps = self.fusions[number - 1](volumes[number], maps)
            if self.drops and number >= LEVELS - 2:
                maps = self.drops[number - LEVELS + 2](maps, training=training)
            beside.append(maps)
        if self.bottom is not None:
            maps = self.bottom(maps, real=real, training=training)
        for rise, level, skipped in zip(self.rise, self.up, beside[-2::-1], strict=True):
            maps = ops.repeat(ops.repeat(maps, 2, axis=1), 2, axis=2)
            maps = rise(maps, real=real, training=training)
            maps = ops.concatenate([skipped, maps], axis=-1)
            maps = level(maps, real=real, training=training)
        return self.logits(maps)

    def _volumes(self, maps, real, training):
        volumes, volume = [], ops.expand_dims(maps, -1)
        for number, level in enumerate(self.volume):
            if number:
                volume = ops.max_pool(volume, 2, 2)
            volume = level(volume, real=real, training=training)
            volumes.append(volume)
        return volumes

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 1)

    def get_config(self):
        return {
            **super().get_config(),
            "network": self.network,
            "width": self.width,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "seed": self.seed,
        }


def _halved(shape):
    """The shape of maps `(batch, ..., channels)` after pooling."""
    return (shape[0], *(side // 2 for side in shape[1:-1]), shape[-1])
