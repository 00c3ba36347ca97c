"""A contact sheet shows the slices in order and in proportion, and nothing of the patient."""

from __future__ import annotations

import dataclasses
import gc
import io
import tracemalloc
import warnings

import matplotlib
import numpy as np
import pydicom
import pytest
from dicom_answers import MODEL, OF_SOURCES, answer_for, bytes_of
from dicom_heads import enhanced, head_study, leaked
from dicom_validators import assert_valid
from matplotlib.backends.backend_agg import RendererAgg
from oriented_phantom import DIRECTIONS, write_pictures

from medseq_tf.readers.classes import Classes
from medseq_tf.serving.dicom_results import contact_sheet as module
from medseq_tf.serving.dicom_results.answer import KeySlice
from medseq_tf.serving.dicom_results.contact_sheet import contact_sheet, sheet
from medseq_tf.serving.study_prediction import Prediction


@pytest.fixture
def told(monkeypatch):
    """The texts of every sheet that is drawn."""
    texts, draw = [], module._with_texts

    def remember(picture, lines):
        texts.extend(text for _, _, text, _ in lines)
        return draw(picture, lines)

    monkeypatch.setattr(module, "_with_texts", remember)
    return texts


@pytest.fixture
def head(tmp_path):
    return head_study(tmp_path / "head", slices=6)


def answer_of_head(head, **changes):
    answer = answer_for(head.folder, size=32, threshold=60)
    return dataclasses.replace(answer, **changes)


def without_colour(picture):
    return (picture.max(axis=-1).astype(int) - picture.min(axis=-1)) < 3


def tile_of(picture, place, count, words=1):
    """The inside of a tile of a sheet of so many slices, by the module's own measures."""
    columns = module._columns(count)
    side = min(module.LARGEST_TILE, (module.WIDTH - 2 * module.MARGIN) // columns)
    top = module.MARGIN + module.LINE * (words + 2) + side * (place // columns)
    left = module.MARGIN + side * (place % columns)
    inside = side - module.BETWEEN
    return picture[top : top + inside, left : left + inside]


def test_it_is_valid_and_read_back(head, told):
    result = contact_sheet(answer_of_head(head))
    assert_valid(result)
    back = pydicom.dcmread(io.BytesIO(bytes_of(result)))
    np.testing.assert_array_equal(back.pixel_array, sheet(answer_of_head(head)))
    header = pydicom.dcmread(head.paths[0])
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert back[name].value == header[name].value
    assert back.BurnedInAnnotation == "NO"
    assert back.RecognizableVisualFeatures == "YES"
    assert back.Modality == "OT"
    assert list(back.PatientOrientation) == ["L", "P"]
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in head.paths}
    assert {item.ReferencedSOPInstanceUID for item in back.SourceImageSequence} == sources
    assert any("RESEARCH USE ONLY" in text for text in told)


def test_nothing_of_the_patient_is_drawn(head, told):
    sheet(answer_of_head(head))
    assert leaked(" ".join(told)) == []
    assert any("lesion: positive, probability 0.700" in text for text in told)


def test_the_same_answer_is_the_same_object(head):
    first, again = (contact_sheet(answer_of_head(head)) for _ in range(2))
    assert bytes_of(first) == bytes_of(again)
    other = answer_of_head(head, model=MODEL._replace(sha256="1f" * 32))
    assert contact_sheet(other).SOPInstanceUID != first.SOPInstanceUID


def test_the_user_s_matplotlib_changes_nothing_of_it(head):
    expected = sheet(answer_of_head(head))
    with matplotlib.rc_context({"text.hinting": "none", "text.usetex": True, "font.size": 30}):
        np.testing.assert_array_equal(sheet(answer_of_head(head)), expected)


@pytest.mark.parametrize("height", [113, 116, 201, 226])
def test_no_line_of_a_picture_is_lost(height):
    picture = np.arange(height * 3, dtype=np.uint8).reshape(height, 1, 3).repeat(9, axis=1)
    np.testing.assert_array_equal(module._with_texts(picture, []), picture)


def test_a_call_by_costs_says_so(head, told):
    classes = {"glioma": 0.6, "meningioma": 0.4}
    prediction = Prediction(
        "study", "tumour", 0.4, called="meningioma", probabilities=classes, expected_cost=0.5
    )
    sheet(answer_of_head(head, predictions=[prediction]))
    line = "tumour: meningioma, the call of least expected cost  (probabilities: glioma 0.600, "
    assert line + "meningioma 0.400)" in told


def test_a_study_without_a_prediction_has_none(head):
    left_out = [Prediction("study", error="no slice can be read")]
    assert contact_sheet(answer_of_head(head, predictions=left_out, slices=[])) is None


def test_of_many_labels_the_first_are_told_and_how_many_more(head, told):
    rows = [
        Prediction("study", f"label {i}", probability=0.1, threshold=0.5, positive=False)
        for i in range(20)
    ]
    sheet(answer_of_head(head, predictions=rows))
    named = [text for text in told if text.startswith("label ")]
    assert len(named) == module.MOST_LINES - 1
    assert f"and {20 - len(named)} labels more" in told


def test_slices_are_shown_in_their_order_at_the_sources_window(head):
    answer = answer_of_head(head, maps=None)
    for header in answer.headers:
        header.WindowCenter, header.WindowWidth = [40, 500], [400, 2000]
    picture = sheet(answer)
    for place, values in enumerate(head.volume):
        grey = tile_of(picture, place, 6)[..., 0].astype(float) / 255
        rows, columns = (np.array(grey.shape) * 0.5).astype(int)
        expected = np.clip((values[15:17, 15:17].mean() + 160) / 400, 0, 1)
        assert abs(grey[rows - 3 : rows + 3, columns - 3 : columns + 3].mean() - expected) < 0.12
    inside = np.concatenate([tile_of(picture, place, 6)[30:-30, 30:-30] for place in range(6)])
    assert without_colour(inside).all()


@pytest.mark.parametrize("kind", ["lesion", "heat"])
def test_the_map_lies_over_its_slice_and_the_legend_says_what_it_is(head, told, kind):
    answer = answer_of_head(head)
    values = np.zeros((6, 32, 32), np.float32)
    values[4, 8:16, 16:24] = 0.9 if kind == "lesion" else 0.3
    picture = sheet(
        dataclasses.replace(answer, maps=answer.maps._replace(values=values, kind=kind))
    )
    for place in range(6):
        tile = tile_of(picture, place, 6)
        inside = ~without_colour(tile)[24:, :]  # below the number
        assert inside.any() == (place == 4)
    rows, columns = np.nonzero(~without_colour(tile_of(picture, 4, 6)))
    scale = tile.shape[0] / 32
    np.testing.assert_allclose([rows.min() / scale, rows.max() / scale], [8, 16], atol=0.6)
    np.testing.assert_allclose([columns.min() / scale, columns.max() / scale], [16, 24], atol=0.6)
    tile = tile_of(picture, 4, 6)
    red, _, blue = tile[int(12 * scale), int(20 * scale)].astype(int)
    assert red - blue > 100
    words = "probability that a pixel" if kind == "lesion" else "Grad-CAM of lesion"
    assert any(words in text for text in told)


def test_without_maps_it_says_so_and_a_slice_that_is_not_shown_has_none(head, told):
    sheet(answer_of_head(head, maps=None))
    assert any("No heat map" in text for text in told)
    answer = answer_of_head(head)
    values = np.full((6, 32, 32), 0.9, np.float32)
    values[2] = np.nan
    maps = answer.maps._replace(values=values, kind="heat")
    picture = sheet(dataclasses.replace(answer, maps=maps))
    assert without_colour(tile_of(picture, 2, 6)).all()
    assert not without_colour(tile_of(picture, 3, 6)).all()


def test_slices_that_counted_are_framed(head, told):
    key = {"lesion": [KeySlice(3, 0.25, 3), KeySlice(1, 0.05, 1)]}
    picture = sheet(answer_of_head(head, maps=None, key_slices=key))
    framed = [place for place in range(6) if (tile_of(picture, place, 6)[-1, -1] != 0).all()]
    assert framed == [1, 3]
    assert (tile_of(picture, 3, 6)[-1, -1] == module.FRAME).all()
    assert {"+0.250", "+0.050"} < set(told)
    assert any("what it loses without one" in text for text in told)


def test_of_many_slices_some_are_shown_and_all_that_counted():
    assert module._shown(60, [3]) == list(range(60))
    shown = module._shown(500, [3, 499, 251])
    assert {0, 3, 251, 499} <= set(shown)
    assert shown == sorted(set(shown))
    assert 55 <= len(shown) <= module.MOST_SLICES
    assert max(np.diff(shown)) < 12


@pytest.mark.parametrize("aspect", ["pad", "stretch"])
@pytest.mark.parametrize("direction", [0, 2, 7, 13, 20])
def test_a_ball_is_round_whatever_the_shape_of_pixels(tmp_path, direction, aspect):
    folder = write_pictures(tmp_path, *DIRECTIONS[direction])
    answer = answer_for(folder, aspect=aspect)
    picture = sheet(dataclasses.replace(answer, maps=None))
    tile = tile_of(picture, 4, 9)[24:, :, 0]
    rows, columns = np.nonzero(tile > 128)
    assert abs(np.ptp(rows) / np.ptp(columns) - 1) < 0.12


@pytest.mark.parametrize(
    "attributes",
    [
        *OF_SOURCES,
        {"WindowCenter": "", "RecognizableVisualFeatures": "NO"},
        {"LossyImageCompression": "01", "LossyImageCompressionRatio": "12.5"},
    ],
    ids=lambda attributes: ", ".join(attributes),
)
def test_patient_and_study_are_the_sources(tmp_path, attributes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are none
        head = head_study(tmp_path / "head", **attributes)
        result = contact_sheet(answer_of_head(head))
        back = pydicom.dcmread(io.BytesIO(bytes_of(result)))
        assert back.PatientName == pydicom.dcmread(head.paths[0]).PatientName
        for name in ("RecognizableVisualFeatures", "LossyImageCompression"):
            if name in attributes:
                assert back[name].value == attributes[name]
    if "StudyDate" not in attributes:
        assert_valid(result)


def test_of_a_file_of_many_frames_and_of_classes(head, tmp_path, told):
    path = enhanced(head, tmp_path / "enhanced" / "all.dcm")
    answer = answer_for(path.parent, size=32, threshold=60)
    description = dataclasses.replace(
        answer.description,
        labels=["ischaemia", "none"],
        classes=Classes("finding", ("ischaemia", "none"), False),
    )
    called = Prediction(
        "study", "finding", 0.8, called="ischaemia", probabilities={"none": 0.2, "ischaemia": 0.8}
    )
    result = contact_sheet(
        dataclasses.replace(answer, predictions=[called], description=description, maps=None)
    )
    assert_valid(result)
    assert len(result.SourceImageSequence) == 1
    assert any("finding: ischaemia" in text and "0.800, none 0.200" in text for text in told)


def test_no_pixels_of_a_sheet_stay_until_garbage_is_collected():
    picture = np.zeros((400, 500, 3), np.uint8)
    texts = [(3, 3, "slice 1", "white")]
    module._with_texts(picture, texts)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            module._with_texts(picture, texts)
        grown = tracemalloc.get_traced_memory()[0] - before
        drawn = [one for one in gc.get_objects() if isinstance(one, RendererAgg)]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < picture.nbytes
    assert not drawn
