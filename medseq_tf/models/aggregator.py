"""The contract of an aggregator: features of a study's slices in, one vector out."""

from __future__ import annotations

from typing import Any

from medseq_tf.layers.layer import Layer, Shape, Tensor, Training


class Aggregator(Layer):
    """A layer from the features of each slice to one vector of each study.

    Its constructor takes the settings of `model.aggregator` by their names and, where it has such
    arguments, `seed` and `slice_shape`, (height, width, channels). Padding, whatever it holds and
    however much it is, changes nothing.

    Call arguments:
        features: `(B, T, F)`.
        lengths: `(B,)` number of real slices of each study, at least 1.
        training: whether to drop and to learn batch statistics.

    Returns:
        `(B, vector)`.
    """

    of_scores: Any = False
    """Whether the head comes first, and what is aggregated are its logits of each slice."""
    learns_from_slices: Any = False
    """Whether the training loss compares every slice's logits, not the study's."""
    causal: Any = False
    """Whether `steps` gives the vector after each slice in one pass."""
    at_once: int = 64
    """How many beginnings of studies pass at once where a vector after each slice is asked for."""

    def build(self, features_shape: Shape) -> None:
        """Make the weights for features of this shape; here: none."""

    def compute_output_shape(self, features_shape: Shape) -> Shape:
        """Return the shape of the vectors; here: a vector is as long as the features of a slice."""
        return (features_shape[0], features_shape[-1])

    def steps(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the vector after each slice, `(B, T, vector)`, where `causal`."""
        raise NotImplementedError
