"""Structured reports: the numbers come back, and independent programs find no fault."""

from __future__ import annotations

import dataclasses
import io
import shutil

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_heads import enhanced, head_study, leaked
from dicom_validators import assert_valid, dsr_tree
from mean_answers import POINT, MeanModel, answer
from pydicom.sr.codedict import codes
from scipy.special import expit, logit

from medseq_tf.errors import InputError
from medseq_tf.reporting.rendering import LIMITS_OF_CLASSES, LIMITS_OF_USE
from medseq_tf.serving.dicom_results.results import results
from medseq_tf.serving.dicom_results.source import RESEARCH, UNKNOWN_DATE
from medseq_tf.serving.dicom_results.structured_report import structured_report

LABELS = ["lesion", "edema"]
TEMPERATURE = 1.7


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return head_study(tmp_path_factory.mktemp("head") / "study", slices=5)


@pytest.fixture(scope="module")
def of_labels(head):
    return answer(head.folder, MeanModel(LABELS, temperature=TEMPERATURE))


def as_file(report):
    buffer = io.BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(report):
    """The report as another program reads its file."""
    return hd.sr.srread(io.BytesIO(as_file(report)))


def groups(report):
    """Its measurement groups by label or class."""
    found = read(report).content.get_image_measurement_groups()
    return {group.tracking_identifier: group for group in found}


def values(group):
    """What is measured by the meaning of its code; of several the last."""
    return {one.name.meaning: one.value for one in group.get_measurements()}


def decimals(report):
    """Every measured value as it is printed, in order."""
    texts = []

    def visit(data_set):
        for item in data_set.get("ContentSequence", []):
            for value in item.get("MeasuredValueSequence", []):
                texts.append(str(value.NumericValue))
            visit(item)

    visit(pydicom.dcmread(io.BytesIO(as_file(report))))
    return texts


def calls(group):
    return {one.name.meaning: one.value for one in group.get_qualitative_evaluations()}


def words(report):
    """What is said of the report as a whole, by the meaning of its code."""
    container = read(report).content[0].ContentSequence[-1]
    return [(item.name.meaning, item.value) for item in container.ContentSequence]


def hounsfield(head, model):
    """A head's slices as they are stored for a model."""
    return np.clip(head.volume, -1024, 3071).astype(int) - model.description.offset


def test_labels(of_labels, head):
    model = MeanModel(LABELS, temperature=TEMPERATURE)
    expected = model.probability(hounsfield(head, model))
    report = structured_report(of_labels)
    found = groups(report)
    assert list(found) == LABELS
    for label, probability in zip(LABELS, expected, strict=True):
        measured = values(found[label])
        assert measured["Probability"] == pytest.approx(probability, abs=2e-6)
        calibrated = expit(logit(measured["Probability"]) / TEMPERATURE)
        assert measured["Probability after temperature scaling"] == pytest.approx(calibrated)
        assert measured["Threshold Value"] == 0.4
        call = codes.SCT.Positive if measured["Probability"] >= 0.4 else codes.SCT.Negative
        assert calls(found[label]) == {label: call}
        (point,) = (
            item.value
            for item in found[label][0].ContentSequence
            if item.name.value == "OPERATING-POINT"
        )
        assert point == POINT
    assert words(report) == [("Use", RESEARCH), ("Intended use", LIMITS_OF_USE)]


def test_numbers_are_the_predictions_to_the_last_bit(of_labels):
    report = structured_report(of_labels)
    for one in of_labels.predictions:
        measured = values(groups(report)[one.label])
        assert measured["Probability"] == one.probability
        assert measured["Probability after temperature scaling"] == one.calibrated
    printed = decimals(report)
    exact = [
        value
        for one in of_labels.predictions
        for value in (
            one.probability,
            one.calibrated,
            one.threshold,
            *(key.importance for key in of_labels.key_slices[one.label]),
        )
    ]
    assert printed == [pydicom.valuerep.format_number_as_ds(value) for value in exact]
    assert all(len(text) <= 16 for text in printed)
    assert np.array(printed, float) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("costs", [None, [[0, 1, 1], [1, 0, 1], [9, 9, 0]]])
def test_classes(head, costs):
    names = ["glioma", "meningioma", "pituitary"]
    found = answer(head.folder, MeanModel(names, True, TEMPERATURE, costs))
    (one,) = found.predictions
    report = structured_report(found)
    by_class = groups(report)
    assert list(by_class) == names
    for name, group in by_class.items():
        measured = values(group)
        assert measured["Probability"] == one.probabilities[name]
        scaled = one.calibrated_probabilities[name]
        assert measured["Probability after temperature scaling"] == scaled
        is_called = name == one.called
        assert calls(group)[name].value == ("CALLED" if is_called else "NOT-CALLED")
        cost = one.expected_cost if is_called else None
        assert measured.get("Expected cost of the call") == cost
    assert one.called == ("glioma" if costs is None else "pituitary")
    assert list(found.key_slices) == [one.called]
    assert words(report)[1] == ("Intended use", LIMITS_OF_CLASSES)
    assert_valid(report)
    assert "meningioma" in dsr_tree(report)


def test_key_slices_refer_to_the_instances_that_counted(head, of_labels):
    model = MeanModel(LABELS)
    stored = hounsfield(head, model)
    whole = model.probability(stored)[0]
    lost = [whole - model.probability(np.delete(stored, t, 0))[0] for t in range(5)]
    group = groups(structured_report(of_labels))["lesion"]
    found = [
        (one.value, one.referenced_images[0].referenced_sop_instance_uid)
        for one in group.get_measurements()
        if one.name.value == "IMPORTANCE"
    ]
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in head.paths]
    order = [t for t in np.argsort(lost)[::-1] if lost[t] >= 0.001]
    assert [uid for _, uid in found] == [uids[t] for t in order]
    assert [value for value, _ in found] == pytest.approx([lost[t] for t in order], abs=1e-5)
    assert len(order) > 1


def test_the_image_library_holds_what_the_model_was_given(head, of_labels):
    report = structured_report(of_labels)
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in head.paths}
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == head.series_uid
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence} == uids
    assert "PertinentOtherEvidenceSequence" not in report


def test_the_model_is_named(of_labels):
    report = read(structured_report(of_labels))
    (context,) = report.content.get_observer_contexts(codes.DCM.Device)
    device = context.observer_identifying_attributes
    assert device.name == of_labels.model.name == "mean of slices"
    assert device.serial_number == of_labels.model.version == "3"
    for group in groups(report).values():
        of_model = [item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"]
        assert of_model[1:5] == [
            "mean of slices",
            "3",
            "medseq_tf",
            f"SHA-256 {of_labels.model.sha256}",
        ]
    assert report.ManufacturerModelName == "mean of slices"


def test_independent_programs_find_no_fault(of_labels):
    report = structured_report(of_labels)
    assert_valid(report)
    tree = dsr_tree(report)
    assert 'Probability")="' in tree
    assert '"Imaging Measurement Report"' in tree


def test_the_same_answer_twice_is_the_same_object(head, of_labels, tmp_path):
    once = as_file(structured_report(of_labels))
    for number, path in enumerate(head.paths):
        (tmp_path / "elsewhere" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "elsewhere" / str(number % 2) / f"{9 - number}.dcm")
    (tmp_path / "elsewhere" / "notes.txt").write_text("no image")
    again = answer(tmp_path / "elsewhere", MeanModel(LABELS, temperature=TEMPERATURE))
    assert again.study.source != of_labels.study.source  # hashes are salted
    assert as_file(structured_report(again)) == once
    other = answer(head.folder, MeanModel(LABELS, temperature=2.0))
    report = structured_report(other)
    assert report.SOPInstanceUID != of_labels.uid("report")
    assert structured_report(of_labels).SOPInstanceUID == of_labels.uid("report")


def test_a_study_without_prediction_gives_no_report(of_labels):
    failed = [dataclasses.replace(one, error="no") for one in of_labels.predictions]
    assert structured_report(dataclasses.replace(of_labels, predictions=failed)) is None


def test_patient_and_study_are_the_source_s_and_stand_nowhere_else(head, of_labels):
    report = structured_report(of_labels)
    source = pydicom.dcmread(head.paths[0])
    copied = [
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate"),
        *("StudyTime", "StudyID", "StudyInstanceUID", "AccessionNumber", "StudyDescription"),
        "ReferringPhysicianName",
    ]
    for keyword in copied:
        assert report[keyword].value == source[keyword].value, keyword
        del report[keyword]
    del report.CurrentRequestedProcedureEvidenceSequence
    assert set(leaked(str(report))) <= {head.study_uid}
    assert str(head.folder) not in str(report)
    assert (str(report.ContentDate), str(report.ContentTime)) == ("20260115", "101200")


def test_warnings_are_said(of_labels):
    odd = dataclasses.replace(of_labels, warnings=("gap in the series: 10 mm", "Größe — 大"))
    report = structured_report(odd)
    assert words(report)[2:] == [("Comment", line) for line in odd.warnings]
    assert_valid(report)


def test_a_prediction_set_is_told_where_there_is_one(of_labels, head):
    @dataclasses.dataclass(frozen=True)
    class WithSet(type(of_labels.predictions[0])):
        prediction_set: tuple[str, ...] = ()

    def with_set(one, *members):
        return WithSet(**vars(one), prediction_set=members)

    def members(group):
        return [
            one.value.meaning
            for one in group.get_qualitative_evaluations()
            if one.name.value == "PREDICTION-SET"
        ]

    first, second = of_labels.predictions
    sets = [with_set(first, "negative", "positive"), with_set(second, "negative")]
    report = structured_report(dataclasses.replace(of_labels, predictions=sets))
    assert [members(group) for group in groups(report).values()] == [
        ["Negative", "Positive"],
        ["Negative"],
    ]
    assert_valid(report)
    classes = answer(head.folder, MeanModel(["a", "b"], True))
    sets = [with_set(classes.predictions[0], "a", "b")]
    report = structured_report(dataclasses.replace(classes, predictions=sets))
    assert members(groups(report)["a"]) == ["a", "b"]
    assert members(groups(report)["b"]) == []


# ----------------------------------------------------------------------------------- odd sources


def report_of(folder, model=None, **attributes):
    head_study(folder, slices=3, **attributes)
    return structured_report(answer(folder, model or MeanModel(LABELS)))


NAMES = {
    "ISO_IR 100": "Müller^Jürgen",
    "ISO_IR 192": "Łukasz^Żółć",
    "ISO 2022 IR 6\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
}


@pytest.mark.parametrize("character_set", NAMES)
def test_names_of_other_alphabets_stay_right(tmp_path, character_set):
    name = NAMES[character_set]
    report = report_of(
        tmp_path / "s",
        SpecificCharacterSet=character_set.split("\\"),
        PatientName=name,
        StudyDescription="Schädel" if "100" in character_set else "head",
    )
    found = pydicom.dcmread(io.BytesIO(as_file(report)))
    assert str(found.PatientName) == name
    if "100" in character_set:
        assert found.StudyDescription == "Schädel"
    assert_valid(report)


def test_labels_that_the_source_s_letters_do_not_have(tmp_path):
    model = MeanModel(["出血", "x" * 80])
    report = report_of(
        tmp_path / "s", model, SpecificCharacterSet="ISO_IR 100", PatientName="Müller"
    )
    assert list(groups(report)) == ["出血", "x" * 80]
    assert str(pydicom.dcmread(io.BytesIO(as_file(report))).PatientName) == "Müller"
    assert_valid(report)


def test_labels_that_would_break_a_line_are_told_on_one(tmp_path):
    report = report_of(tmp_path / "s", MeanModel(["a\tb\nc"]))
    assert list(groups(report)) == [r"a\tb\nc"]
    assert_valid(report)


MAY_BE_MISSING = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "ContentDate"),
    *("ContentTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
]


def test_what_is_missing_is_empty(tmp_path):
    report = report_of(tmp_path / "s", **dict.fromkeys(MAY_BE_MISSING))
    assert not report.PatientName
    assert not report.PatientID
    assert str(report.ContentDate) == UNKNOWN_DATE
    assert_valid(report)
    dsr_tree(report)


def test_a_sequence_of_the_patient_is_copied_with_its_text(tmp_path):
    item = pydicom.Dataset()
    item.PatientID, item.TypeOfPatientID = "Nº 5", "TEXT"
    report = report_of(
        tmp_path / "s", SpecificCharacterSet="ISO_IR 100", OtherPatientIDsSequence=[item]
    )
    found = pydicom.dcmread(io.BytesIO(as_file(report)))
    assert found.OtherPatientIDsSequence[0].PatientID == "Nº 5"
    assert_valid(report)


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_odd_uids_are_referred_to_as_they_are(tmp_path):
    report = report_of(tmp_path / "s", StudyInstanceUID="1.2.003.4", SeriesInstanceUID="1.02")
    assert report.StudyInstanceUID == "1.2.003.4"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.02"


def test_without_a_uid_nothing_can_refer_to_the_source(of_labels):
    headers = [pydicom.Dataset(), *of_labels.headers[1:]]
    headers[0].update(of_labels.headers[0])
    headers[0].SeriesInstanceUID = ""
    with pytest.raises(InputError, match="SeriesInstanceUID"):
        structured_report(dataclasses.replace(of_labels, headers=headers))


def test_frames_of_a_multi_frame_source_are_named(head, of_labels, tmp_path):
    enhanced(head, tmp_path / "s" / "all.dcm")
    found = answer(tmp_path / "s", MeanModel(LABELS, temperature=TEMPERATURE))
    report = structured_report(found)
    image = pydicom.dcmread(tmp_path / "s" / "all.dcm")
    expected = []
    for key in of_labels.key_slices["lesion"]:
        source = pydicom.dcmread(head.paths[key.slice])
        positions = [
            group.PlanePositionSequence[0].ImagePositionPatient
            for group in image.PerFrameFunctionalGroupsSequence
        ]
        expected.append(positions.index(source.ImagePositionPatient) + 1)
    group = groups(report)["lesion"]
    references = [one.referenced_images for one in group.get_measurements()]
    frames = [one[0].referenced_frame_numbers for one in references if one]
    assert frames == [[number] for number in expected]
    assert {one[0].referenced_sop_instance_uid for one in references if one} == {
        image.SOPInstanceUID
    }
    assert_valid(report)
    dsr_tree(report)


def test_a_file_of_one_frame_has_no_frames_to_name(tmp_path):
    report = report_of(tmp_path / "s", NumberOfFrames="1")
    references = [one.referenced_images for one in groups(report)["lesion"].get_measurements()]
    assert [one[0].referenced_frame_numbers for one in references if one]
    assert not any(one[0].referenced_frame_numbers for one in references if one)
    assert_valid(report)


def test_values_that_are_none_stop_no_report(tmp_path):
    study = head_study(tmp_path / "s", slices=3)
    for path in study.paths:
        wrong = pydicom.dcmread(path)
        for keyword, kind, value in (
            ("PatientWeight", "DS", b"70kg"),
            ("PatientSex", "CS", b"male"),
            ("StudyDate", "DA", b"2026.01.15"),
            ("SeriesDate", "DA", b"20261399"),
        ):
            tag = pydicom.tag.Tag(keyword)
            raw = (tag, kind, len(value), value, 0, False, True)
            wrong._dict[tag] = pydicom.dataelem.RawDataElement(*raw)
        wrong.save_as(path)
    (report,) = results(answer(study.folder, MeanModel(LABELS)), ["report"])
    found = pydicom.dcmread(io.BytesIO(as_file(report)))
    assert (found.PatientSex, str(found.StudyDate)) == ("male", "2026.01.15")
    assert str(report.ContentDate) == UNKNOWN_DATE
    assert list(groups(report)) == LABELS


def test_mr(tmp_path):
    report = report_of(tmp_path / "s", MeanModel(LABELS, modality="MR"), modality="MR")
    assert "MRI unspecified body region" in dsr_tree(report)
    assert_valid(report)


def test_slices_between_pictures_are_no_key_slices(head):
    found = answer(head.folder, MeanModel(LABELS), spacing=(0, 0, 4))
    assert found.pictures is None
    report = structured_report(found)
    assert {one.name.value for one in groups(report)["lesion"].get_measurements()} == {
        "122157", "122411", "CALIBRATED",
    }  # fmt: skip
    assert_valid(report)
