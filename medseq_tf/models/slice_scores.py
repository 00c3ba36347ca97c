"""An aggregator of scores: the head judges every slice, their scores are summarised."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from medseq_tf.layers.layer import Tensor, Training, check_choice
from medseq_tf.layers.lengths import sequence_mask, zero_padding
from medseq_tf.models.aggregator import Aggregator
from medseq_tf.models.pooling import Pooling
from medseq_tf.recipe import SliceScores as SliceScoresSettings
from medseq_tf.recipe import choices


@keras.saving.register_keras_serializable(package="medseq_tf")
class SliceScores(Aggregator):
    """The summary of the scores that the head gives every slice by itself (paper 2, setting 1).

    The head stands before this aggregator. Neither the order of the slices nor padding changes
    anything.

    Args:
        pooling: `mean`: the mean of the slices' probabilities; `max`: their maximum;
            `log_sum_exp`: that of the logits, `log(mean(exp(r x))) / r` (Pinheiro and Collobert
            2015, equation 6).
        sharpness: r of `log_sum_exp`: near 0 it is the mean, large the maximum.
        target: what the training loss judges: `slice`: every slice by its study's labels; `study`:
            the pooled score alone (multiple instance learning).

    Call arguments:
        features: `(B, T, labels)` logits of each slice.
        lengths: `(B,)` number of real slices of each study, at least 1.
        training: not used.

    Returns:
        `(B, labels)` logits.
    """

    of_scores = True

    def __init__(self, pooling: str, sharpness: float, target: str, **kwargs: Any):
        super().__init__(**kwargs)
        check_choice("pooling", pooling, choices(SliceScoresSettings, "pooling"))
        check_choice("target", target, choices(SliceScoresSettings, "target"))
        self.pooling = pooling
        self.sharpness = sharpness
        self.target = target
        self.pool = Pooling(pooling, sharpness, name="pool", dtype=self.dtype_policy)

    @property
    def learns_from_slices(self) -> bool:
        """Whether the training loss judges every slice."""
        return self.target == "slice"

    def call(self, features: Tensor, lengths: Tensor, training: Training = None) -> Tensor:
        """Return the summary of the real slices' scores."""
        scores = features
        if self.pooling != "mean":
            return self.pool(scores, lengths)
        # logit(mean(p)) = log(sum(p)) - log(sum(1 - p)), which rounds no p to 0 or 1.
        mask = sequence_mask(lengths, ops.shape(scores)[1])
        scores, real = zero_padding(scores, mask), ops.expand_dims(mask, -1)
        nothing = ops.cast(-math.inf, scores.dtype)
        positive = ops.where(real, -ops.softplus(-scores), nothing)
        negative = ops.where(real, -ops.softplus(scores), nothing)
        return ops.logsumexp(positive, axis=1) - ops.logsumexp(negative, axis=1)
