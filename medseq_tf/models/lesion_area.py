"""Takes sequences of slices, gives the area that a segmenter calls lesion, as odds of a finding.

Detection by segmentation: a study is positive when its predicted lesion exceeds an area. The odds
rise with the area and with nothing else, so the threshold that is chosen on validation is an area.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from medseq_tf.layers import TimeDistributed
from medseq_tf.layers.lengths import sequence_mask, zero_padding

SMALLEST_AREA = 1e-6
"""Added to every area: less than a pixel of 1000 x 1000, so that no lesion has odds, too."""


@keras.saving.register_keras_serializable(package="medseq_tf")
class LesionArea(keras.layers.Layer):
    """Padded positions give zeros, and neither they nor batch-mates change what real ones give.

    Args:
        segmenter: a layer `(batch, height, width, channels)` to logits `(..., height, width, 1)`.
        skip_padding: see `TimeDistributed`.

    Call arguments:
        slices: `(batch, steps, height, width, channels)`.
        lengths: `(batch,)` number of real slices of each study; None: all of them.
        training: passed to the segmenter.

    Returns:
        `(batch, steps, 1)` float32: the share of the slice's pixels that are called lesion. A pixel
        counts where its logit is above 0.5, not at all below -0.5 and in part between, so that no
        rounding moves an answer by a pixel.
    """

    def __init__(self, segmenter, skip_padding=True, **kwargs):
        super().__init__(**kwargs)
        self.segmenter = segmenter
        self.skip_padding = skip_padding
        self.segment = TimeDistributed(
            segmenter, skip_padding=skip_padding, name="segment", dtype=self.dtype_policy
        )

    def build(self, slices_shape):
        if not self.segment.built:  # a loaded layer comes built
            self.segment.build(slices_shape)

    def call(self, slices, lengths=None, training=None):
        return self.area(self.lesion(slices, lengths, training=training), lengths)

    def lesion(self, slices, lengths=None, training=None):
        """Logits of every pixel, `(batch, steps, height, width)` float32, zeros for padding."""
        return self.segment(slices, lengths=lengths, training=training)[..., 0]

    def area(self, lesion, lengths=None):
        """Areas `(batch, steps, 1)` of the logits of every pixel, zeros for padding."""
        areas = ops.mean(ops.clip(lesion + 0.5, 0.0, 1.0), axis=(2, 3))
        if lengths is not None:
            areas = zero_padding(areas, sequence_mask(lengths, ops.shape(areas)[1]))
        return ops.expand_dims(areas, -1)

    def compute_output_shape(self, slices_shape, lengths_shape=None):
        return (*slices_shape[:2], 1)

    def get_config(self):
        return {
            **super().get_config(),
            "segmenter": keras.saving.serialize_keras_object(self.segmenter),
            "skip_padding": self.skip_padding,
        }

    @classmethod
    def from_config(cls, config):
        segmenter = keras.saving.deserialize_keras_object(config["segmenter"])
        return cls(**{**config, "segmenter": segmenter})


@keras.saving.register_keras_serializable(package="medseq_tf")
class AreaHead(keras.layers.Layer):
    """Has no part in lengths and padding: it sees one area for each study, and has no weights.

    Args:
        even_area: the area whose logit is 0, as a share of one slice.

    Call arguments:
        areas: `(..., 1)`, as shares of a slice.
        training: not used.

    Returns:
        `(..., 1)` float32 logits, log(area / even_area).
    """

    labels = 1

    def __init__(self, even_area=0.01, **kwargs):
        super().__init__(**kwargs)
        self.even_area = even_area

    def build(self, areas_shape):
        pass

    def call(self, areas, training=None):
        areas = ops.cast(areas, "float32")
        return ops.log(areas + SMALLEST_AREA) - math.log(self.even_area)

    def compute_output_shape(self, areas_shape):
        return areas_shape

    def get_config(self):
        return {**super().get_config(), "even_area": self.even_area}
