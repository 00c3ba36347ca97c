"""What a model reads of a study besides its slices, where the recipe asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from medseq_tf.dataset.covariate_values import covariate_values
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.input.sampling import StudySequence
from medseq_tf.readers.series import NO_SERIES
from medseq_tf.recipe import Experiment


def input_specs(model: Any, kind: str = "slices") -> dict[str, tf.TensorSpec]:
    """Return the types of all inputs of a `SequenceClassifier`, by name.

    `kind` is `slices`, or `features` in their place.
    """
    signature = model.input_signature(kind)
    return {name: tf.TensorSpec(i.shape, i.dtype, name) for name, i in signature.items()}


class FurtherInputs:
    """The inputs besides slices and lengths, for any batch of sequences.

        covariates  float32 (B, D), as `covariate_values`, in the order of `model.covariates`
        series      int32 (B, T), the number of each slice's series; -1 after the sequence's end

    Args:
        prepared: the data set.
        experiment: the recipe.

    Raises:
        InputError: the data set lacks what the recipe asks for.
    """

    def __init__(self, prepared: Prepared, experiment: Experiment):
        self._by_study: dict[str, np.ndarray] = {}
        if names := experiment.model.covariates:
            self._by_study["covariates"] = covariate_values(prepared, names)
        self._series_of = prepared.series_of if experiment.model.series_mark else None

    @property
    def signature(self) -> dict[str, tf.TensorSpec]:
        """The type of each input, by name."""
        specs = {
            name: tf.TensorSpec((None, *values.shape[1:]), values.dtype, name)
            for name, values in self._by_study.items()
        }
        if self._series_of is not None:
            specs["series"] = tf.TensorSpec((None, None), tf.int32, "series")
        return specs

    def of(
        self, batch: Sequence[StudySequence], longest: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return the inputs of sequences, whose studies are rows of the data set, by name.

        Args:
            batch: the sequences.
            longest: what they are padded to; None: the longest of them.
        """
        rows = [sequence.study for sequence in batch]
        inputs = {name: values[rows] for name, values in self._by_study.items()}
        if self._series_of is not None:
            if longest is None:
                longest = max(len(sequence.slices) for sequence in batch)
            inputs["series"] = np.full((len(batch), longest), NO_SERIES, np.int32)
            for place, one in enumerate(batch):
                of_slices = self._series_of(one.study)[one.slices]
                inputs["series"][place, : len(one.slices)] = of_slices
        return inputs
