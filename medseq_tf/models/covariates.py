"""Covariates of a study, such as age and sex, as features that join those of its slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from medseq_tf.layers.layer import Layer, Shape, Tensor


@keras.saving.register_keras_serializable(package="medseq_tf")
class Covariates(Layer):
    """Standardised numbers and one-hot categories; what is missing has learned values.

    A number is (x - mean) / deviation, both of the training studies (`standardise`): as far out of
    their range as it is. A category is 1 in its own place and 0 in the others. In the places of a
    covariate that is missing stand weights, 0 at first, which is the mean of a number. It has no
    part in lengths and padding: it sees one row of values for each study.

    Args:
        names: of the covariates.
        categories: those of each covariate; None for a number.

    Call arguments:
        values: float32 `(B, covariates)`: a number as it is, a category by its place in the list,
            NaN where it is missing.

    Returns:
        `(B, width)` float32.
    """

    def __init__(
        self, names: Sequence[str], categories: Sequence[Sequence[str] | None], **kwargs: Any
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.names = list(names)
        self.categories = [None if of_one is None else list(of_one) for of_one in categories]
        widths = [1 if of_one is None else len(of_one) for of_one in self.categories]
        self.width = sum(widths)
        self._covariate = np.repeat(np.arange(len(widths)), widths)
        self._place = np.concatenate([np.arange(width) for width in widths]).astype("float32")
        self._is_number = np.array([of_one is None for of_one in self.categories])

    def build(self, values_shape: Shape) -> None:
        """Make the weights: constants of numbers, and what stands for missing values."""
        count = (len(self.names),)
        self.mean = self.add_weight(count, "zeros", trainable=False, name="mean")
        self.deviation = self.add_weight(count, "ones", trainable=False, name="deviation")
        self.missing = self.add_weight((self.width,), "zeros", name="missing")

    @property
    def numbers(self) -> dict[int, int]:
        """The place among the features of each covariate that is a number, by its own place."""
        places = np.flatnonzero(self._is_number).tolist()
        return {place: int(np.argmax(self._covariate == place)) for place in places}

    def standardise(self, values: np.ndarray) -> None:
        """Take mean and standard deviation of numbers from the training studies.

        A number that is the same in all of them is only shifted, one that is missing in all is not.

        Args:
            values: `(studies, covariates)`, as in the call.
        """
        mean, deviation = np.zeros(len(self.names)), np.ones(len(self.names))
        for place in np.flatnonzero(self._is_number):
            known = np.asarray(values, np.float64)[:, place]
            known = known[~np.isnan(known)]
            if len(known):
                mean[place] = known.mean()
                if known.std() > np.finfo(np.float32).eps * abs(mean[place]):
                    deviation[place] = known.std()
        self.mean.assign(mean)
        self.deviation.assign(deviation)

    def call(self, values: Tensor) -> Tensor:
        """Return the features."""
        is_missing = ops.isnan(values)
        values = ops.where(is_missing, 0.0, values)
        numbers = ops.take((values - self.mean) / self.deviation, self._covariate, axis=1)
        in_place = ops.take(values, self._covariate, axis=1) == self._place
        features = ops.where(
            self._is_number[self._covariate], numbers, ops.cast(in_place, "float32")
        )
        return ops.where(ops.take(is_missing, self._covariate, axis=1), self.missing, features)

    def compute_output_shape(self, values_shape: Shape) -> Shape:
        """Return the shape of the features."""
        return (values_shape[0], self.width)
