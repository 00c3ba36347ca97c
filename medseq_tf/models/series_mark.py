"""A learned mark of the series that a slice is of, such as the plane it was taken in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from medseq_tf.layers.layer import Layer, Shape, Tensor


@keras.saving.register_keras_serializable(package="medseq_tf")
class SeriesMark(Layer):
    """A learned vector for each series, added to the features of its slices; zeros at first.

    Args:
        names: of the series.

    Call arguments:
        features: `(B, T, F)`.
        series: int `(B, T)`, the place of each slice's series in `names`; one that is none of them,
            such as -1, adds nothing.

    Returns:
        `(B, T, F)`.
    """

    def __init__(self, names: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.names = list(names)

    def build(self, features_shape: Shape) -> None:
        """Make the vectors, as long as a slice's features."""
        self.marks = self.add_weight((len(self.names), features_shape[-1]), "zeros", name="marks")

    def call(self, features: Tensor, series: Tensor) -> Tensor:
        """Return the features, marked."""
        marks = ops.one_hot(series, len(self.names), dtype=self.compute_dtype)
        return features + ops.cast(ops.matmul(marks, self.marks), features.dtype)
