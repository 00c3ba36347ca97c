"""Answers of a model whose probabilities are known in closed form: a logistic of slices' means."""

from __future__ import annotations

import cv2
import numpy as np

from medseq_tf.dataset.records import study_record
from medseq_tf.readers.classes import Classes
from medseq_tf.readers.dicom.index import find_dicom_studies
from medseq_tf.serving.client import StudyProbabilities
from medseq_tf.serving.description import Description
from medseq_tf.serving.dicom_results.answer import answer_of, model_identity
from medseq_tf.serving.study_prediction import FoundStudy, Predictor

POINT = "youden on 12 patients: sensitivity 0.80, specificity 0.90"


class MeanModel:
    """Of labels: sigmoid(w * mean over slices of the slice's mean in 1000 HU); of classes softmax.

    Its weights are 1 for the first label or class, 2 for the second, ...
    """

    def __init__(self, labels, classes=False, temperature=1.0, costs=None, modality="CT", size=32):
        self.labels, self.asked = labels, 0
        column = "tumour"
        self.description = Description(
            name="mean of slices",
            labels=list(labels),
            thresholds={} if classes else dict.fromkeys(labels, 0.4),
            temperatures=dict.fromkeys([column] if classes else labels, temperature),
            modality=modality,
            unit="HU",
            bits=16,
            offset=-32768 if modality == "CT" else 0,
            size=size,
            aspect="pad",
            most_slices=512,
            preparation={},
            classes=Classes(column, tuple(labels), False) if classes else None,
            costs=costs,
        )

    def describe(self):
        return self.description

    def predict(self, slices, running=False, covariates=None, series=None):
        self.asked += 1
        return StudyProbabilities(self.probability([self.decoded(file) for file in slices]))

    def decoded(self, file):
        return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)

    def probability(self, images):
        mean = np.mean([image.astype(float).mean() + self.description.offset for image in images])
        logits = np.arange(1, len(self.labels) + 1) * mean / 1000
        if self.description.classes:
            powers = np.exp(logits)
            return (powers / powers.sum()).astype(np.float32)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)


def answer(folder, model, spacing=None, fewest_slices=1, name="mean/3"):
    """The answer of a model for the only study in a folder."""
    modality = model.description.modality
    (study,), entries = find_dicom_studies(
        folder, modality=modality, spacing=spacing, fewest_slices=fewest_slices
    )
    points = dict.fromkeys(model.labels, POINT)
    predictor = Predictor(model, model.description, points)
    found = FoundStudy(study, str(folder), tuple(entries))
    record = study_record(study, "", predictor.storage)
    predictions = predictor.of(found, record)
    identity = model_identity(name, model, model.description)
    return answer_of(found, record, predictions, predictor, identity)
