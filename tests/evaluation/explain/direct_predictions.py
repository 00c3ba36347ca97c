"""What a model predicts for slices of a study, by itself, without the graphs of explanations."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def probability(study, slices):
    return tf.sigmoid(logits(study, tf.gather(study.inputs, slices))).numpy()


def logits(study, slices):
    lengths = np.array([len(slices)], np.int32)
    return study.model({"slices": slices[None], "lengths": lengths}, training=False)[0]
