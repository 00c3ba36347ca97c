"""Detection by segmentation: the area that a segmenter calls lesion, as odds of a lesion.

A study is positive when its predicted lesion exceeds an area. The odds
rise with the area and with nothing else, so the threshold that is chosen on validation is an area.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from medseq_tf.layers import TimeDistributed
from medseq_tf.layers.layer import Layer, Shape, Tensor, Training
from medseq_tf.layers.lengths import sequence_mask, zero_padding

SMALLEST_AREA = 1e-6
"""Added to every area: less than a pixel of 1000 x 1000, so that no lesion has odds, too."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class LesionArea(Layer):
    """The area of each slice that a segmenter calls lesion.

    Padded positions give zeros, and neither they nor batch-mates change what real ones give.

    Args:
        segmenter: a layer `(B, H, W, C)` to logits `(..., H, W, 1)`.
        skip_padding: see `TimeDistributed`.

    Call arguments:
        slices: `(B, T, H, W, C)`.
        lengths: `(B,)` number of real slices of each study; None: all of them.
        training: passed to the segmenter.

    Returns:
        `(B, T, 1)` float32: the share of the slice's pixels that are called lesion. A pixel
        counts where its logit is above 0.5, not at all below -0.5 and in part between, so that no
        rounding moves a probability by a pixel.
    """

    def __init__(self, segmenter: keras.layers.Layer, skip_padding: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.segmenter = segmenter
        self.skip_padding = skip_padding
        self.segment = TimeDistributed(
            segmenter, skip_padding=skip_padding, name="segment", dtype=self.dtype_policy
        )

    def build(self, slices_shape: Shape) -> None:
        """Build the segmenter."""
        if not self.segment.built:  # a loaded layer comes built
            self.segment.build(slices_shape)

    def call(
        self, slices: Tensor, lengths: Tensor | None = None, training: Training = None
    ) -> Tensor:
        """Return the areas."""
        return self.area(self.lesion(slices, lengths, training=training), lengths)

    def lesion(
        self, slices: Tensor, lengths: Tensor | None = None, training: Training = None
    ) -> Tensor:
        """Return logits of every pixel, `(B, T, H, W)` float32, zeros for padding."""
        return self.segment(slices, lengths=lengths, training=training)[..., 0]

    def area(self, lesion: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return areas `(B, T, 1)` of the logits of every pixel, zeros for padding."""
        areas = ops.mean(ops.clip(lesion + 0.5, 0.0, 1.0), axis=(2, 3))
        if lengths is not None:
            areas = zero_padding(areas, sequence_mask(lengths, ops.shape(areas)[1]))
        return ops.expand_dims(areas, -1)

    def compute_output_shape(self, slices_shape: Shape) -> Shape:
        """Return the shape of the areas."""
        return (*slices_shape[:2], 1)


@keras.saving.register_keras_serializable(package="medseq_tf")
class AreaHead(Layer):
    """The logit of a study by the area of its lesions, without any weights.

    It has no part in lengths and padding: it sees one area for each study.

    Args:
        even_area: the area whose logit is 0, as a share of one slice.

    Call arguments:
        areas: `(..., 1)`, as shares of a slice.
        training: not used.

    Returns:
        `(..., 1)` float32 logits, log(area / even_area).
    """

    labels = 1
    exclusive = False

    def __init__(self, even_area: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.even_area = even_area

    def build(self, areas_shape: Shape) -> None:
        """Make nothing: there are no weights."""

    def call(self, areas: Tensor, training: Training = None) -> Tensor:
        """Return the logits."""
        areas = ops.cast(areas, "float32")
        return ops.log(areas + SMALLEST_AREA) - math.log(self.even_area)
