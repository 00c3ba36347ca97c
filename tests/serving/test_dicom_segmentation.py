"""A segmentation lies where the lesion lies in the source, whatever way the source was turned."""

from __future__ import annotations

import dataclasses
import io
import warnings

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from dicom_answers import MODEL, OF_SOURCES, answer_for, bytes_of
from dicom_heads import PLANTED, enhanced, head_study
from dicom_validators import assert_valid
from oriented_phantom import (
    CENTRE,
    DIRECTIONS,
    RADIUS,
    SHAPE,
    STEP,
    is_ball,
    oblique,
    pixel_places,
    write_pictures,
)
from small_models import description_of

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.records import StorageSpec, from_square, study_record, to_square
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.index import find_dicom_studies
from medseq_tf.serving.dicom_results.segmentation import in_source, refusal, segmentation
from medseq_tf.serving.member_group import ServedMember
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import GraphModel
from medseq_tf.serving.predict import predict


def in_pixels(answer):
    return in_source(answer, answer.maps.values, answer.pictures)


def lesion_places(dataset):
    """(N, 3) mm, where the pixels of a segmentation lie that are lesion, by its own geometry."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    masks, found = dataset.pixel_array, []
    for mask, groups in zip(masks, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        settings = (orientation[:3], orientation[3:], mask.shape, spacing)
        found.append(pixel_places(position, *settings)[mask > 0])
    return np.concatenate(found)


@pytest.mark.parametrize("aspect", ["pad", "stretch"])
@pytest.mark.parametrize("direction", range(len(DIRECTIONS)))
def test_the_ball_is_found_where_it_is(tmp_path, direction, aspect):
    folder = write_pictures(tmp_path, *DIRECTIONS[direction])
    answer = answer_for(folder, aspect=aspect)
    found = in_pixels(answer)
    assert found.shape == (9, *SHAPE)
    for header, values in zip(answer.headers, found, strict=True):
        orientation = np.array(header.ImageOrientationPatient, float)
        places = pixel_places(
            header.ImagePositionPatient,
            orientation[:3],
            orientation[3:],
            SHAPE,
            header.PixelSpacing,
        )
        ball = is_ball(places)
        assert np.abs(values.sum() - ball.sum()) <= max(0.1 * ball.sum(), 2)
        overlap = ((values > 0.5) & ball).sum() / max(((values > 0.5) | ball).sum(), 1)
        assert overlap > 0.85 or ball.sum() < 20


@pytest.mark.parametrize("kind", ["binary", "fractional"])
@pytest.mark.parametrize(
    "directions",
    [
        pytest.param((np.eye(3)[0], np.eye(3)[1]), id="axial"),
        pytest.param((-np.eye(3)[0], -np.eye(3)[1]), id="axial flipped"),
        pytest.param((np.eye(3)[1], np.eye(3)[0]), id="axial transposed"),
        pytest.param((np.eye(3)[0], -np.eye(3)[2]), id="coronal"),
        pytest.param((np.eye(3)[1], -np.eye(3)[2]), id="sagittal"),
        pytest.param((-np.eye(3)[1], np.eye(3)[2]), id="sagittal flipped"),
        pytest.param(oblique(25), id="oblique"),
    ],
)
def test_another_reader_overlays_it_on_the_source(tmp_path, directions, kind):
    folder = write_pictures(tmp_path / "source", *directions)
    result = segmentation(answer_for(folder), kind)
    assert_valid(result)
    path = tmp_path / "result.dcm"
    result.save_as(path, enforce_file_format=True)
    if kind == "binary":
        places = lesion_places(pydicom.dcmread(path))
        np.testing.assert_allclose(places.mean(axis=0), CENTRE, atol=0.5)
        assert np.linalg.norm(places - CENTRE, axis=1).max() < RADIUS + 1.5
    read = highdicom.seg.segread(path)
    sources = [pydicom.dcmread(file) for file in folder.glob("*.dcm")]
    uids = [source.SOPInstanceUID for source in sources]
    of_sources = read.get_pixels_by_source_instance(
        uids, combine_segments=False, rescale_fractional=True
    )
    assert of_sources.shape == (9, *SHAPE, 1)
    volume = read.get_volume(rescale_fractional=True, combine_segments=False)
    truth = highdicom.get_volume_from_series(sources)
    np.testing.assert_allclose(np.abs(volume.spacing), np.abs(truth.spacing), atol=1e-4)
    for values, source in zip(of_sources[..., 0], sources, strict=True):
        ball = source.pixel_array > 50
        if ball.sum() > 20:
            overlap = ((values > 0.5) & ball).sum() / ((values > 0.5) | ball).sum()
            assert overlap > 0.85
    on_truth = volume.match_geometry(truth.get_geometry())
    lesion, ball = on_truth.array[..., 0] > 0.5, truth.array > 50
    assert (lesion & ball).sum() / (lesion | ball).sum() > 0.85
    lowest = np.unique(of_sources)
    assert len(lowest) == 2 if kind == "binary" else len(lowest) > 5


# ------------------------------------------------------------------------------- other sources


def head_answer(folder, **settings):
    """The answer for a head whose lesion a model finds: the phantom's, brighter than 90 HU."""
    return answer_for(folder, size=32, threshold=60, **settings)


def test_frames_of_a_file_of_many_are_told_one_by_one(tmp_path):
    study = head_study(tmp_path / "single", slices=6)
    single = segmentation(head_answer(study.folder))
    path = enhanced(study, tmp_path / "enhanced" / "all.dcm")
    answer = head_answer(path.parent)
    several = segmentation(answer)
    assert_valid(several)
    np.testing.assert_array_equal(several.pixel_array, single.pixel_array)
    np.testing.assert_array_equal(lesion_places(several), lesion_places(single))
    source = pydicom.dcmread(path)
    frames = []
    for groups in several.PerFrameFunctionalGroupsSequence:
        (item,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert item.ReferencedSOPClassUID == source.SOPClassUID
        frames.append(item.ReferencedFrameNumber)
        there = source.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert position == there.PlanePositionSequence[0].ImagePositionPatient
    assert sorted(frames) == [1, 2, 3, 4, 5, 6]
    assert len(several.SourceImageSequence) == 1
    path = tmp_path / "result.dcm"
    several.save_as(path, enforce_file_format=True)
    read = highdicom.seg.segread(path)
    by_frame = read.get_pixels_by_source_frame(source.SOPInstanceUID, frames)
    np.testing.assert_array_equal(by_frame[..., 0], several.pixel_array)


def test_a_file_of_one_frame_has_no_frames_to_name(tmp_path):
    result = segmentation(head_answer(head_study(tmp_path, slices=3, NumberOfFrames="1").folder))
    assert_valid(result)
    for groups in result.PerFrameFunctionalGroupsSequence:
        (item,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert "ReferencedFrameNumber" not in item


def test_a_corrected_tilt_is_undone(tmp_path):
    directions = (np.eye(3)[0], np.array([0, np.cos(0.3), np.sin(0.3)]))
    folder = write_pictures(tmp_path / "source", *directions, tilt=1.4)
    kept, corrected = answer_for(folder), answer_for(folder, tilt="correct")
    assert any((a != b).any() for a, b in zip(kept.slices, corrected.slices, strict=True))
    found, expected = in_pixels(corrected), in_pixels(kept)
    np.testing.assert_allclose(found.sum(), expected.sum(), rtol=0.02)
    both, either = (found > 0.5) & (expected > 0.5), (found > 0.5) | (expected > 0.5)
    assert both.sum() / either.sum() > 0.9
    result = segmentation(corrected)
    assert_valid(result)
    np.testing.assert_allclose(lesion_places(result).mean(axis=0), CENTRE, atol=0.6)


def test_what_cannot_be_placed_is_refused_with_a_reason(tmp_path):
    directions = (np.eye(3)[0], np.eye(3)[1])
    folder = write_pictures(tmp_path / "source", *directions)
    answer = answer_for(folder)
    assert refusal(answer) is None
    even = answer_for(folder, spacing=(1.0, 1.0, STEP))
    assert "resampled" in refusal(even)
    assert segmentation(even) is None
    space, answer.headers[-1].FrameOfReferenceUID = answer.headers[-1].FrameOfReferenceUID, "1.2.9"
    assert "several frames of reference" in refusal(answer)
    answer.headers[-1].FrameOfReferenceUID = space
    for header in answer.headers:  # as of one file whose frames have no places of their own
        header.NumberOfFrames = 9
    assert "where each of its frames lies" in refusal(answer)
    assert segmentation(answer) is None
    for header in answer.headers:
        del header.FrameOfReferenceUID
    assert "frame of reference" in refusal(answer)
    assert segmentation(answer) is None


def test_a_name_of_any_letters_is_kept(tmp_path):
    study = head_study(tmp_path, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    answer = head_answer(study.folder)
    answer = dataclasses.replace(answer, maps=answer.maps._replace(label="病変 \\ läsion" * 9))
    back = pydicom.dcmread(io.BytesIO(bytes_of(segmentation(answer))))
    assert back.PatientName == "Müller^Jörg"
    assert back.SegmentSequence[0].SegmentLabel == ("病変 / läsion" * 9)[:64]


def test_heat_is_no_segmentation(tmp_path):
    folder = write_pictures(tmp_path / "source", np.eye(3)[0], np.eye(3)[1])
    answer = answer_for(folder)
    heat = dataclasses.replace(answer, maps=answer.maps._replace(kind="heat"))
    assert segmentation(heat) is None
    assert segmentation(dataclasses.replace(answer, maps=None)) is None


def test_the_same_answer_is_the_same_object(tmp_path):
    folder = write_pictures(tmp_path / "source", np.eye(3)[0], np.eye(3)[1])
    answer = answer_for(folder)
    before = [header.to_json() for header in answer.headers]
    made = [bytes_of(segmentation(answer, kind)) for kind in ("binary", "binary", "fractional")]
    assert made[0] == made[1] != made[2]
    assert [header.to_json() for header in answer.headers] == before
    uids = [pydicom.dcmread(io.BytesIO(one)).SOPInstanceUID for one in made]
    assert uids[0] == uids[1] != uids[2]
    other = dataclasses.replace(answer, model=MODEL._replace(sha256="1f" * 32))
    assert segmentation(other).SOPInstanceUID != uids[0]


@pytest.mark.parametrize(
    "attributes",
    [
        *OF_SOURCES,
        {"PatientSex": "X"},
        {"SliceThickness": None},
        {"PatientIdentityRemoved": "YES", "DeidentificationMethod": ""},
        {"SpecificCharacterSet": "ISO_IR 999", "PatientName": "Nobody"},
        {"StudyDate": "2026.01.15", "PatientAge": ""},
    ],
    ids=lambda attributes: ", ".join(attributes),
)
def test_patient_and_study_are_the_sources(tmp_path, attributes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are none
        study = head_study(tmp_path / "source", **attributes)
        answer = head_answer(study.folder)
        result = segmentation(answer)
        back = pydicom.dcmread(io.BytesIO(bytes_of(result)))
        header = pydicom.dcmread(study.paths[0])
        for name in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "StudyID"):
            assert back.get(name, None) == header.get(name, None) or not header.get(name), name
        assert str(back.PatientSex or "") == str(header.get("PatientSex", ""))
        assert (back.StudyDate or None) == header.get("StudyDate")
    if not {"PatientSex", "StudyDate"} & set(attributes):
        assert_valid(result)
    highdicom.seg.Segmentation.from_dataset(back)


@pytest.mark.parametrize("aspect", ["pad", "stretch"])
@pytest.mark.parametrize("shape", [(40, 40), (31, 64), (80, 37), (20, 21), (1, 5)])
def test_a_square_goes_back_to_where_it_came_from(shape, aspect):
    """A ramp is linear, so that resizing it twice changes it at the edges alone."""
    rows, columns = np.indices(shape, np.float32)
    for ramp in (rows, columns):
        square = to_square(ramp + 1, 128, aspect, cv2.INTER_LINEAR)
        back = from_square(square, *shape, aspect) - 1
        assert back.shape == shape
        inner = tuple(slice(2, -2) if side > 4 else slice(None) for side in shape)
        tolerance = 0.05 if min(shape) > 4 else 1
        np.testing.assert_allclose(back[inner], ramp[inner], atol=tolerance)


# ------------------------------------------------------------------------------ the whole road


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A segmenter of CT, whose weights mean nothing, and which calls most pixels lesion."""
    recipe = recipes.load(
        "unet", ["model.encoder.width=2", "input.size=32", "input.windows=[[40, 80]]"]
    )
    model = models.build(recipe.model, (32, 32, 1), labels=1, seed=1)
    description = dataclasses.replace(
        description_of("int16"),
        labels=["lesion"],
        size=32,
        thresholds={"lesion": 0.5},
        temperatures={"lesion": 1.0},
    )
    made = GraphModel(ServingModel([ServedMember(model, recipe, 1.0)], description).signatures)
    told = made.lesion_map(files_of(head_study(tmp_path_factory.mktemp("head") / "one")))
    low = np.quantile(np.log(told / (1 - told)), 0.05)
    bias = model.encoder.backbone.segmenter.logits.bias
    bias.assign(bias - low)
    return made


def files_of(head):
    (study,), _ = find_dicom_studies(head.folder)
    record = study_record(study, "", StorageSpec((), "int16", 32, "pad"))
    return list(decode_example(record.example)["slices"])


@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_predict_tells_a_segmenters_map_pixel_by_pixel(segmenter, tmp_path, kind):
    """Of pictures as large as the prepared slices the map is the model's own."""
    head = head_study(tmp_path / "head", slices=4)
    out = tmp_path / "out"
    (row,) = predict(segmenter, head.folder, workers=1, dicom_out=out, dicom_seg=kind)
    assert (row.error, row.results_error, row.warnings) == (None, None, ())
    assert len(row.results) == 3
    (path,) = out.glob("seg-*.dcm")
    assert_valid(path)
    found = highdicom.seg.segread(path)
    sources = [pydicom.dcmread(file).SOPInstanceUID for file in head.paths]
    values = found.get_pixels_by_source_instance(sources, combine_segments=False)[..., 0]
    expected = segmenter.lesion_map(files_of(head))
    if kind == "binary":
        np.testing.assert_array_equal(values, expected > 0.5)
        assert 0.5 < values.mean() < 1
    else:
        np.testing.assert_allclose(values, expected, atol=0.5 / 255 + 1e-6)
    assert found.PatientName == PLANTED["PatientName"]


def test_predict_says_why_there_is_no_segmentation(segmenter, tmp_path):
    head = head_study(tmp_path / "head", slices=4, FrameOfReferenceUID=None)
    (row,) = predict(segmenter, head.folder, workers=1, dicom_out=tmp_path / "out")
    assert row.results_error is None
    assert len(row.results) == 2
    assert [text for text in row.warnings if "no frame of reference" in text]


def test_a_kind_of_segmentation_that_there_is_none_of_is_refused(segmenter, tmp_path):
    with pytest.raises(InputError, match="'probability': expected binary or fractional"):
        predict(segmenter, tmp_path, dicom_out=tmp_path / "out", dicom_seg="probability")
