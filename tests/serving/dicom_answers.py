"""What models say of DICOM studies, for the objects that are made of it."""

from __future__ import annotations

import dataclasses
import io

import cv2
import numpy as np
from small_models import description_of

from medseq_tf.dataset.records import StorageSpec, study_record
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.readers.dicom.index import find_dicom_studies
from medseq_tf.serving.dicom_results.answer import Answer, ModelIdentity, SliceMaps
from medseq_tf.serving.study_prediction import Prediction

OF_SOURCES = (
    dict.fromkeys(["PatientID", "PatientBirthDate", "AccessionNumber", "StudyID"]),
    dict.fromkeys(["StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "PatientSex"]),
    {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
    {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎"},
)
"""What sources say of a patient, or leave out, that results take over."""

MODEL = ModelIdentity("lesions\\of all", "3", "0f" * 32, "research")


def answer_for(folder, size=64, aspect="pad", threshold=50, **settings):
    """What a model would say that sees a lesion exactly where prepared slices are bright."""
    (study,), _ = find_dicom_studies(folder, **settings)
    record = study_record(study, "", StorageSpec((), "int16", size, aspect))
    files = decode_example(record.example)["slices"]
    slices = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files]
    values = np.stack(slices).astype(np.float32) - 32768
    lesion = np.clip(values / (2 * threshold), 0, 1)
    description = dataclasses.replace(description_of("int16"), size=size, aspect=aspect)
    return Answer(
        [Prediction("study", "lesion", probability=0.7, threshold=0.5, positive=True)],
        description,
        MODEL,
        study,
        study.source_headers(),
        record.pictures,
        slices,
        maps=SliceMaps(lesion, "lesion", "lesion"),
    )


def bytes_of(dataset):
    """The whole file of an object."""
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
