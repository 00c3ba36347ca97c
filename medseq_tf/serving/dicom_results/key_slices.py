"""How much each slice of a study counted: what the probability loses without it.

The model is asked again for the study without one slice after the other (occlusion: Zeiler and
Fergus 2014, section 4.2), and so any model can be asked. A slice that others repeat counts little:
without it they still say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medseq_tf.dataset.records import StudyRecord
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.serving.refusals import RequestRefused
from medseq_tf.serving.study_prediction import FoundStudy, Predictor, told_of

MOST_SLICES = 64
"""Of a study whose slices are left out one by one, each as much work as a prediction."""


def importance(found: FoundStudy, record: StudyRecord, predictor: Predictor) -> np.ndarray:
    """Return what the probabilities lose without each slice, (T, labels).

    It is 0 throughout of the only slice of a study, and where a study has too many slices or the
    model refuses it without one.

    Args:
        found: the study.
        record: of it.
        predictor: that asks the model.
    """
    files = list(decode_example(record.example)["slices"])
    lost = np.zeros((len(files), len(predictor.description.labels)))
    if not 1 < len(files) <= MOST_SLICES:
        return lost
    told = told_of(found, record)
    try:
        whole = predictor.model.predict(files, **told).probability
        for place in range(len(files)):
            others = {**told, "series": _without(place, told["series"])} if record.series else told
            lost[place] = (
                whole - predictor.model.predict(_without(place, files), **others).probability
            )
    except RequestRefused:
        lost[:] = 0
    return lost


def _without(place: int, values: Sequence[Any]) -> list[Any]:
    return [*values[:place], *values[place + 1 :]]
