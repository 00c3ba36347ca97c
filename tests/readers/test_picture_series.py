"""Series of pictures, a folder each in a patient's: channels, one sequence, or studies."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError


@pytest.fixture
def folder(tmp_path, rng):
    """Two patients of two series, and one who has the first alone."""
    pictures = {}
    for patient, counts in (("a", (3, 3)), ("b", (4, 4)), ("c", (2, 0))):
        for series, count in zip(("dwi", "adc"), counts, strict=True):
            for number in range(count):
                path = tmp_path / "scans" / patient / series / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures[patient, series, number] = rng.integers(256, size=(16, 16), dtype=np.uint8)
                cv2.imwrite(str(path), pictures[patient, series, number])
    (tmp_path / "labels.csv").write_text("patient_id,sick\na,1\nb,0\nc,1\n")
    return tmp_path, pictures


def prepared(folder, name="data", **options):
    settings = {"out": folder / name, "size": 16, "workers": 1, "progress": False}
    return prepare(
        "image-folder", folder / "scans", labels=folder / "labels.csv", **settings, **options
    )


def row_of(data, source):
    return data.studies["source"].tolist().index(source)


def test_one_after_the_other_each_slice_knows_its_series(folder):
    root, pictures = folder
    data = prepared(root, series_as="sequence", series=["dwi", "adc"])
    row = row_of(data, "b")
    assert data.series.names == ("dwi", "adc")
    assert data.channels == 1
    assert data.series_of(row).tolist() == [0] * 4 + [1] * 4
    expected = [pictures["b", series, n] for series in ("dwi", "adc") for n in range(4)]
    np.testing.assert_array_equal(data.slices(row), expected)
    assert data.series_of(row_of(data, "c")).tolist() == [0, 0]
    assert data.audit["counts"] == {"study without a series": 1}


def test_the_order_of_the_series_is_the_one_that_is_asked_for(folder):
    root, _ = folder
    first = prepared(root, "1", series_as="sequence")
    second = prepared(root, "2", series_as="sequence", series=["dwi", "adc"])
    assert first.series.names == ("adc", "dwi")
    assert first.fingerprint != second.fingerprint


def test_registered_series_are_channels_of_a_slice(folder):
    root, pictures = folder
    data = prepared(root, series_as="channels", series=["dwi", "adc"])
    row = row_of(data, "a")
    assert data.channels == 2
    assert data.studies["slices"].iat[row] == 3
    expected = np.stack(
        [np.stack([pictures["a", s, n] for s in ("dwi", "adc")], axis=-1) for n in range(3)]
    )
    np.testing.assert_array_equal(data.slices(row), expected)
    np.testing.assert_array_equal(data.slices(row, [2, 0]), expected[[2, 0]])
    assert len(data) == 2
    (entry,) = data.audit["entries"]
    assert entry["kind"] == "study left out"
    assert "has no adc" in entry["detail"]


@pytest.mark.parametrize("count", [3, 4])
def test_as_many_channels_as_a_png_has(tmp_path, rng, count):
    names = [f"s{i}" for i in range(count)]
    images = rng.integers(256, size=(count, 16, 16), dtype=np.uint8)
    for name, image in zip(names, images, strict=True):
        (tmp_path / "scans" / "a" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "scans" / "a" / name / "0.png"), image)
    (tmp_path / "labels.csv").write_text("patient_id,sick\na,1\n")
    data = prepared(tmp_path, series_as="channels")
    np.testing.assert_array_equal(data.slices(0)[0], np.moveaxis(images, 0, -1))


def test_each_a_study_of_its_patient(folder):
    root, pictures = folder
    data = prepared(root, series_as="separate")
    assert data.series is None
    assert sorted(data.studies["source"]) == ["a/adc", "a/dwi", "b/adc", "b/dwi", "c/dwi"]
    assert data.studies["patient_id"].nunique() == 3
    np.testing.assert_array_equal(
        data.slices(row_of(data, "a/adc")), [pictures["a", "adc", n] for n in range(3)]
    )


def test_without_the_option_the_folders_tell_nothing(folder):
    root, _ = folder
    data = prepared(root)
    assert data.series is None
    assert "series" not in data.studies
    assert data.studies["slices"].tolist() == [6, 8, 2]


def test_pictures_of_two_sizes_are_no_channels_of_one_slice(folder):
    root, _ = folder
    cv2.imwrite(str(root / "scans/a/adc/1.png"), np.ones((20, 16), np.uint8))
    data = prepared(root, series_as="channels")
    assert data.studies["source"].tolist() == ["b"]
    assert any("not of one place" in entry["detail"] for entry in data.audit["entries"])


def test_an_unreadable_picture_parts_channels_and_not_a_sequence(folder):
    root, _ = folder
    (root / "scans/a/adc/1.png").write_bytes(b"no picture")
    data = prepared(root, series_as="channels", series=["dwi", "adc"])
    assert data.studies["source"].tolist() == ["b"]
    assert any("3 of 16 x 16, 2 of 16 x 16" in entry["detail"] for entry in data.audit["entries"])
    sequence = prepared(root, "s", series_as="sequence", series=["dwi", "adc"])
    assert sequence.series_of(row_of(sequence, "a")).tolist() == [0, 0, 0, 1, 1]


def test_pictures_that_lost_their_partners_are_no_channels(folder):
    root, _ = folder
    (root / "scans/a/dwi/0.png").write_bytes(b"no picture")
    (root / "scans/a/adc/2.png").write_bytes(b"no picture")
    data = prepared(root, series_as="channels", series=["dwi", "adc"])
    assert data.studies["source"].tolist() == ["b"]
    (entry,) = [e for e in data.audit["entries"] if e["where"] == "a"]
    assert entry["detail"] == "series are not of one place, slice by slice: positions differ"


def test_pictures_that_lost_their_partners_too_are_channels(folder):
    root, pictures = folder
    for series in ("dwi", "adc"):
        (root / f"scans/a/{series}/1.png").write_bytes(b"no picture")
    data = prepared(root, series_as="channels", series=["dwi", "adc"])
    left = [np.stack([pictures["a", s, n] for s in ("dwi", "adc")], axis=-1) for n in (0, 2)]
    np.testing.assert_array_equal(data.slices(row_of(data, "a")), left)


def test_a_series_that_cannot_be_read_is_named(folder):
    root, _ = folder
    for number in range(3):
        (root / f"scans/a/adc/{number}.png").write_bytes(b"no picture")
    data = prepared(root, series_as="sequence", strict=True)
    assert data.series_of(row_of(data, "a")).tolist() == [1, 1, 1]
    (entry,) = [e for e in data.audit["entries"] if e["kind"] == "series left out"]
    assert entry["where"] == "a/adc"


def test_folders_that_differ_in_capitals_are_shown(folder):
    root, _ = folder
    (root / "scans/a/adc").rename(root / "scans/a/ADC")
    with pytest.raises(InputError, match="ADC and adc differ only in capitals"):
        prepared(root, series_as="sequence")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"series_as": "side by side"}, "valid: channels, sequence, separate"),
        ({"series": ["dwi"]}, "series needs series_as"),
        ({"series_as": "sequence", "series": ["dwi", "t2"]}, "no patient of .* has a folder t2"),
        ({"series_as": "sequence", "series": ["dwi"]}, "needs 2 to 100 series, got 1: dwi"),
    ],
)
def test_what_cannot_be_meant_is_one_line(folder, options, words):
    root, _ = folder
    with pytest.raises(InputError, match=words):
        prepared(root, **options)
