"""A structured report of what a model predicts of a study: a measurement report, TID 1500.

    Imaging Measurement Report
      the model as a device that observes, its version
      Image Library: the instances that it was given
      Imaging Measurements: a group a label, or a class (TID 1501)
        Probability, calibrated probability, Threshold Value, what the call costs
        the call: the label is Positive or Negative, the class is called or not
        the prediction set, the operating point in words
        what the probability loses without each key slice, inferred from that slice
        the model, its version and the SHA-256 of its weights (TID 4019)
      Qualitative Evaluations: research use, intended use, what was odd about the study

Concepts that SNOMED CT, DICOM or UCUM name have their codes, all others one of `99MEDSEQ`.
Measured values are decimal strings of 16 characters, and beside them the doubles that they round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medseq_tf import __version__
from medseq_tf.errors import printable
from medseq_tf.readers.dicom.header import MANUFACTURER, MR
from medseq_tf.serving.dicom_results.answer import Answer, KeySlice
from medseq_tf.serving.dicom_results.source import (
    RESEARCH,
    evidence,
    long_string,
    settle,
    source_of,
    when,
)
from medseq_tf.serving.study_prediction import Prediction

SCHEME = "99MEDSEQ"
SERIES_NUMBER = 9901

PROBABILITY, THRESHOLD = codes.DCM.Probability, codes.DCM.ThresholdValue
POSITIVE, NEGATIVE = codes.SCT.Positive, codes.SCT.Negative
CALIBRATED = Code("CALIBRATED", SCHEME, "Probability after temperature scaling")
IMPORTANCE = Code("IMPORTANCE", SCHEME, "Loss of probability without the slice")
EXPECTED_COST = Code("EXPECTED-COST", SCHEME, "Expected cost of the call")
CALLED, NOT_CALLED = (
    Code("CALLED", SCHEME, "Called class"),
    Code("NOT-CALLED", SCHEME, "Class that is not called"),
)
PREDICTION_SET = Code("PREDICTION-SET", SCHEME, "In the prediction set")
OPERATING_POINT = Code("OPERATING-POINT", SCHEME, "Operating point")
USE = Code("USE", SCHEME, "Use")
INTENDED_USE = Code("INTENDED-USE", SCHEME, "Intended use")
_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")


def structured_report(answer: Answer) -> Dataset | None:
    """Return the report of a study, a Comprehensive 3D SR; None of one without a prediction.

    Raises:
        InputError: the source's files have no UIDs to refer to.
    """
    if answer.error:
        return None
    instances = evidence(answer.headers)
    source = source_of(answer.headers[0])
    date, time = when(source)
    report = sr.Comprehensive3DSR(
        instances,
        _content(answer, instances),
        answer.uid("series of reports"),
        SERIES_NUMBER,
        answer.uid("report"),
        1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=long_string(answer.model.name),
        software_versions=__version__,
        is_complete=True,
        content_date=date,
        content_time=time,
        series_description=long_string(f"Report by {answer.model.name}: research use only"),
        specific_character_set=source.get("SpecificCharacterSet"),
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name=MANUFACTURER, responsible_organization=MANUFACTURER
            )
        ],
    )
    report.copy_patient_and_study_information(source)
    return settle(report, answer.headers[0])


def _content(answer: Answer, instances: Sequence[Dataset]) -> sr.MeasurementReport:
    is_mr = answer.description.modality == MR
    report = sr.MeasurementReport(
        _observation_context(answer),
        codes.LN.MRIUnspecifiedBodyRegion if is_mr else codes.LN.CTUnspecifiedBodyRegion,
        [group for one in answer.predictions for group in _groups(answer, one)],
    )
    modality = codes.DCM.MagneticResonance if is_mr else codes.DCM.ComputedTomography
    *before, measurements = report[0].ContentSequence
    children = [*before, _image_library(instances, modality), measurements, _evaluations(answer)]
    report[0].ContentSequence = sr.ContentSequence(children)
    return report


def _observation_context(answer: Answer) -> sr.ObservationContext:
    model = answer.model
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            codes.DCM.Device,
            sr.DeviceObserverIdentifyingAttributes(
                model.uid,
                name=model.name,
                manufacturer_name=MANUFACTURER,
                model_name=model.name,
                serial_number=model.version,
            ),
        )
    )


def _image_library(instances: Sequence[Dataset], modality: Code) -> sr.ContainerContentItem:
    """Return references to all that the model was given (TID 1600)."""
    group = sr.ContainerContentItem(
        codes.DCM.ImageLibraryGroup, relationship_type=Relation.CONTAINS
    )
    acquired = Relation.HAS_ACQ_CONTEXT
    group.ContentSequence = sr.ContentSequence(
        [
            sr.CodeContentItem(codes.DCM.Modality, modality, acquired),
            *(
                sr.ImageContentItem(
                    codes.SCT.Source,
                    one.SOPClassUID,
                    one.SOPInstanceUID,
                    relationship_type=Relation.CONTAINS,
                )
                for one in instances
            ),
        ]
    )
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=Relation.CONTAINS)
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _groups(
    answer: Answer, prediction: Prediction
) -> Iterator[sr.MeasurementsAndQualitativeEvaluations]:
    """Yield the group of a label, or one of each class."""
    if prediction.called is None:
        measured = {
            PROBABILITY: prediction.probability,
            CALIBRATED: prediction.calibrated,
            THRESHOLD: prediction.threshold,
        }
        call = POSITIVE if prediction.positive else NEGATIVE
        yield _group(answer, prediction, str(prediction.label), measured, call)
        return
    calibrated = prediction.calibrated_probabilities or {}
    for name, probability in (prediction.probabilities or {}).items():
        measured = {PROBABILITY: probability, CALIBRATED: calibrated.get(name)}
        if name == prediction.called:
            measured[EXPECTED_COST] = prediction.expected_cost
        call = CALLED if name == prediction.called else NOT_CALLED
        yield _group(answer, prediction, name, measured, call)


def _group(
    answer: Answer,
    prediction: Prediction,
    name: str,
    measured: dict[Code, float | None],
    call: Code,
) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return what is measured and called of a label or class, and the slices that counted."""
    values = {code: value for code, value in measured.items() if value is not None}
    group = sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(answer.uid(f"tracking of {name}"), printable(name)),
        algorithm_id=sr.AlgorithmIdentification(
            answer.model.name,
            answer.model.version,
            [f"SHA-256 {answer.model.sha256}"],
            manufacturer=MANUFACTURER,
        ),
        measurements=[
            *(
                sr.Measurement(code, float(value), codes.UCUM.NoUnits)
                for code, value in values.items()
            ),
            *(_key_slice(answer, one) for one in answer.key_slices.get(name, ())),
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_concept(name), call),
            *(
                sr.QualitativeEvaluation(PREDICTION_SET, one)
                for one in _prediction_set(prediction, call)
            ),
        ],
    )
    if prediction.operating_point:
        group[0].ContentSequence.append(_text(OPERATING_POINT, prediction.operating_point))
    return group


def _prediction_set(prediction: Prediction, call: Code) -> list[Code]:
    """Return the members of a prediction set, of classes beside the one that is called."""
    members = getattr(prediction, "prediction_set", None) or ()
    words = {"positive": POSITIVE, "negative": NEGATIVE} if prediction.called is None else {}
    return [words.get(name) or _concept(name) for name in members if call != NOT_CALLED]


def _key_slice(answer: Answer, key_slice: KeySlice) -> sr.Measurement:
    """Return what is lost without a slice, with a reference to its instance, or its frame there."""
    header = answer.headers[key_slice.picture]
    frame = answer.frame(key_slice.picture)
    source = sr.SourceImageForMeasurement(
        header.SOPClassUID, header.SOPInstanceUID, [frame] if frame else None
    )
    return sr.Measurement(
        IMPORTANCE, key_slice.importance, codes.UCUM.NoUnits, referenced_images=[source]
    )


def _evaluations(answer: Answer) -> sr.ContainerContentItem:
    """Return what is said of the report as a whole, in words."""
    container = sr.ContainerContentItem(_EVALUATIONS, relationship_type=Relation.CONTAINS)
    container.ContentSequence = sr.ContentSequence(
        [
            _text(USE, RESEARCH),
            _text(INTENDED_USE, answer.model.intended_use),
            *(_text(codes.DCM.Comment, warning) for warning in answer.warnings),
        ]
    )
    return container


def _text(name: Code, value: str) -> sr.TextContentItem:
    return sr.TextContentItem(name, printable(value), Relation.CONTAINS)


def _concept(name: str) -> sr.CodedConcept:
    """Return the code of a label or class: its meaning is its name, as far as there is room."""
    value = "L" + hashlib.sha256(name.encode()).hexdigest()[:15]
    return sr.CodedConcept(value, SCHEME, long_string(name))
