"""How much each slice of a study counted: what the probability loses without it.

Each slice is left out of the study (occlusion: Zeiler and Fergus 2014, section 4.2). A slice that
others repeat counts little: without it they still say the same. A model's graph that encodes the
slices once answers at once; any other model is asked anew for the study without one slice after
the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medseq_tf.dataset.records import StudyRecord
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.serving.open_model import GraphModel, Model
from medseq_tf.serving.refusals import RequestRefused
from medseq_tf.serving.study_prediction import FoundStudy, Predictor, told_of

MOST_SLICES = 64
"""Of a study whose slices are left out one by one, each as much work as a prediction."""


def importance(found: FoundStudy, record: StudyRecord, predictor: Predictor) -> np.ndarray:
    """Return what the probabilities lose without each slice, (T, labels).

    It is 0 throughout of the only slice of a study, and where a study has too many slices for a
    model that is asked anew for each, or is refused without one.

    Args:
        found: the study.
        record: of it.
        predictor: that asks the model.
    """
    files, told = list(decode_example(record.example)["slices"]), told_of(found, record)
    lost = np.zeros((len(files), len(predictor.description.labels)))
    if len(files) < 2:
        return lost
    model = predictor.model
    try:
        at_once = model.without_each(files, **told) if isinstance(model, GraphModel) else None
        if at_once is not None:
            whole, without = at_once
            return whole - without
        return one_by_one(model, files, told) if len(files) <= MOST_SLICES else lost
    except RequestRefused:
        return lost


def one_by_one(model: Model, files: Sequence[bytes], told: dict[str, Any]) -> np.ndarray:
    """Return what the probabilities lose without each slice, (T, labels), of any model."""
    whole = model.predict(files, **told).probability
    lost = []
    for place in range(len(files)):
        others = {**told, "series": _without(place, told["series"])} if "series" in told else told
        lost.append(whole - model.predict(_without(place, files), **others).probability)
    return np.stack(lost)


def _without(place: int, values: Sequence[Any]) -> list[Any]:
    return [*values[:place], *values[place + 1 :]]
