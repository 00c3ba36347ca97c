"""A model of CT whose probabilities are known."""

from __future__ import annotations

import cv2
import numpy as np
from small_models import description_of

from medseq_tf.serving.client import StudyProbabilities


class Bright:
    """A model of CT whose probabilities are known: shares of bright pixels."""

    def __init__(self, **changes):
        self._description = description_of("int16", **changes)

    def describe(self):
        return self._description

    def predict(self, slices, running=False, **told):
        images = [cv2.imdecode(np.frombuffer(s, np.uint8), cv2.IMREAD_UNCHANGED) for s in slices]
        share = float(np.mean(np.stack(images) > 32768 - 200))
        count = len(self._description.labels)
        return StudyProbabilities(np.linspace(share, share / 2, count, dtype=np.float32), None)
