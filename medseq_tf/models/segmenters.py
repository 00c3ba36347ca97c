"""Segmenters: X-Net, U-Net and D-UNet of paper 1's table 6, a logit for every pixel of a slice.

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

from typing import Any

import keras
from keras import ops

from medseq_tf.layers import kernels
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training, check_choice, child_seeds
from medseq_tf.models.segmenter_parts import Parts

LEVELS = 5
WIDTHS = {"xnet": 64, "unet": 64, "dunet": 32}
"""Filters of the first level, as published."""
DEPTH = 4
"""Slices that D-UNet reads: two before, the slice itself and one after."""
SLICES_AT_ONCE = 32
"""Slices that pass through in inference at a time, which bounds the memory."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class Segmenter(Layer):
    """A network that says of every pixel of a slice whether it is lesion.

    Slices where `real` is False count in no batch statistic; their outputs are to be ignored.

    Args:
        network: `xnet`, `unet` or `dunet`.
        width: filters of the first level; None: as published.
        momentum: of the batch normalisations.
        epsilon: of the batch normalisations.
        dropout: share of the maps dropped at D-UNet's two lowest levels; X-Net and U-Net have none.
        seed: seed of the initial weights and of dropout.

    Call arguments:
        inputs: `(B, H, W, C)`, the sides multiples of 16. D-UNet takes the
            first four channels for neighbouring slices, the third being the one to segment.
        real: `(B,)` bool, which slices are real; None: all of them.
        training: as in `BatchNormalization`; outside training slices pass in portions.

    Returns:
        `(B, H, W, 1)` float32 logits of the third slice (D-UNet), or the only one.
    """

    def __init__(
        self,
        network: str,
        width: int | None,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        dropout: float = 0.3,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice("network", network, WIDTHS)
        self.network = network
        self.width = width
        self.momentum = momentum
        self.epsilon = epsilon
        self.dropout = dropout
        self.seed = seed
        self._make_parts(*child_seeds(seed, 2))

    def _make_parts(self, weights_seed: int | None, dropout_seed: int | None) -> None:
        network, width, policy = self.network, self.width, self.dtype_policy
        parts = Parts(weights_seed, self.momentum, self.epsilon, policy)
        filters = [(width or WIDTHS[network]) * 2**level for level in range(LEVELS)]
        level = parts.separable if network == "xnet" else parts.twice
        rise, kernel = (parts.plain, 2) if network == "dunet" else (parts.block, 3)
        upwards = list(enumerate(filters[:-1], start=1))[::-1]
        self.down = [level(f"down_{i}", f) for i, f in enumerate(filters, start=1)]
        self.rise = [rise(f"rise_{i}", f, kernel) for i, f in upwards]
        self.up = [level(f"up_{i}", f) for i, f in upwards]
        self.bottom = parts.similarity(filters[-1]) if network == "xnet" else None
        self.volume: list[Layer] = []
        self.fusions: list[Layer] = []
        self.drops: list[Layer] = []
        if network == "dunet":
            self.volume = [
                parts.twice(f"volume_{i}", f, keras.layers.Conv3D)
                for i, f in enumerate(filters[:3], start=1)
            ]
            self.fusions = [parts.fusion(f"fusion_{i + 1}", filters[i]) for i in (1, 2)]
            self.drops = [
                keras.layers.Dropout(self.dropout, seed=s, name=f"dropout_{i}", dtype=policy)
                for i, s in zip((4, 5), child_seeds(dropout_seed, 2), strict=True)
            ]
        self.logits = keras.layers.Conv2D(
            1,
            1,
            kernel_initializer=keras.initializers.GlorotUniform(next(parts.seeds)),
            name="logits",
            dtype="float32",
        )

    def build(self, input_shape: Shape) -> None:
        """Build every level.

        Raises:
            ValueError: too few channels for D-UNet.
        """
        batch, height, width, channels = input_shape
        if self.network == "dunet" and channels < DEPTH:
            raise ValueError(f"dunet reads {DEPTH} neighbouring slices, got {channels} channels")
        channels = DEPTH if self.volume else channels
        shapes = []
        shape: Shape = (batch, height, width, channels)
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

    def call(self, inputs: Tensor, real: Tensor | None = None, training: Training = None) -> Tensor:
        """Return the logits."""
        if training:
            return self._segment(inputs, real, True)
        shape = (*inputs.shape[1:3], 1)
        return kernels.in_chunks(
            lambda part: self._segment(part, None, False), inputs, SLICES_AT_ONCE, shape, "float32"
        )

    def _segment(self, inputs: Tensor, real: Tensor | None, training: bool) -> Tensor:
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

    def _volumes(self, maps: Tensor, real: Tensor | None, training: bool) -> list[Tensor]:
        volumes, volume = [], ops.expand_dims(maps, -1)
        for number, level in enumerate(self.volume):
            if number:
                volume = ops.max_pool(volume, 2, 2)
            volume = level(volume, real=real, training=training)
            volumes.append(volume)
        return volumes

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the logits' shape."""
        return (*input_shape[:-1], 1)


def _halved(shape: Shape) -> Shape:
    """Return the shape of maps `(B, ..., C)` after pooling."""
    return (shape[0], *(side // 2 for side in shape[1:-1]), shape[-1])
