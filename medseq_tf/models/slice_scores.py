"""Takes a score of each slice and label and lengths, gives the pooled score of each study."""

from __future__ import annotations

import math

import keras
from keras import ops

from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.pooling import Pooling
from medseq_tf.recipe import SliceScores as SliceScoresSettings

POOLINGS = ("mean", "max", "log_sum_exp")
TARGETS = ("slice", "study")


@keras.saving.register_keras_serializable(package="medseq_tf")
class SliceScores(keras.layers.Layer):
    """Neither the order of the slices nor padding, whatever it holds, changes anything.

    The head stands before this aggregator: it scores every slice by itself, and the scores of a
    study are summarised for its answer (paper 2, setting 1).

    Args:
        pooling: `mean`: the mean of the slices' probabilities; `max`: their maximum;
            `log_sum_exp`: that of the logits, `log(mean(exp(r x))) / r` (Pinheiro and Collobert
            2015, equation 6).
        sharpness: r of `log_sum_exp`: near 0 it is the mean, large the maximum.
        target: what the training loss judges: `slice`: every slice by its study's labels; `study`:
            the pooled score alone (multiple instance learning).

    Call arguments:
        scores: `(batch, steps, labels)` logits of each slice.
        lengths: `(batch,)` number of real slices of each study, at least 1.
        training: not used.

    Returns:
        `(batch, labels)` logits.
    """

    of_scores = True
    """The head comes first."""

    def __init__(self, pooling="mean", sharpness=5.0, target="slice", **kwargs):
        super().__init__(**kwargs)
        for name, value, valid in (("pooling", pooling, POOLINGS), ("target", target, TARGETS)):
            if value not in valid:
                raise ValueError(f"{name} is one of {', '.join(valid)}, got {value!r}")
        self.pooling = pooling
        self.sharpness = sharpness
        self.target = target
        self.pool = Pooling(pooling, sharpness, name="pool", dtype=self.dtype_policy)

    @property
    def learns_from_slices(self) -> bool:
        """Whether the training loss judges every slice."""
        return self.target == "slice"

    def build(self, scores_shape):
        pass

    def call(self, scores, lengths, training=None):
        if self.pooling != "mean":
            return self.pool(scores, lengths)
        # logit(mean(p)) = log(sum(p)) - log(sum(1 - p)), which rounds no p to 0 or 1.
        mask = sequence_mask(lengths, ops.shape(scores)[1])
        scores, real = zero_padding(scores, mask), ops.expand_dims(mask, -1)
        nothing = ops.cast(-math.inf, scores.dtype)
        positive = ops.where(real, -ops.softplus(-scores), nothing)
        negative = ops.where(real, -ops.softplus(scores), nothing)
        return ops.logsumexp(positive, axis=1) - ops.logsumexp(negative, axis=1)

    def compute_output_shape(self, scores_shape, lengths_shape=None):
        return (scores_shape[0], scores_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "sharpness": self.sharpness,
            "target": self.target,
        }


def slice_scores(settings: SliceScoresSettings, seed: int | None = None) -> SliceScores:
    """A pool of the slices' own scores; there is nothing to draw from `seed`."""
    return SliceScores(
        settings.pooling,
        settings.sharpness,
        settings.target,
        name="aggregator",
        dtype="float32",  # as the head's logits
    )
