"""The prepared data set: what is in it, that it is the same every time, and that it survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.dataset.prepare import READERS, Prepared, prepare
from medseq_tf.dataset.records import FEWEST_TELLING_PIXELS, is_telling, slice_hash, to_square
from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.phantom.writers import write_image_folder
from medseq_tf.readers import Slices, SourceIndex, StudySource

REAL_DATA = Path(
    os.environ.get("MEDSEQ_TF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
)


def make(reader, source=None, **settings):
    return prepare(reader, source, **{"workers": 1, "progress": False, **settings})


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


@pytest.fixture
def folder(tmp_path, rng):
    """A class folder of four patients, two slices each, 20 x 30."""
    for patient in range(1, 5):
        for number in (1, 2):
            name = f"{'Normal' if patient < 3 else 'Stroke'}/{patient} ({number}).png"
            save(tmp_path / "source" / name, rng.integers(0, 256, (20, 30), np.uint8))
    return tmp_path / "source"


# ------------------------------------------------------------------------------------ what it holds


def test_the_demo_cohort_is_kept_pixel_by_pixel(tmp_path):
    data = make("demo", out=tmp_path / "demo", patients=5, size=32, slices=(4, 7), labels=5)
    cohort = DemoCohort(patients=5, size=32, slices=(4, 7), labels=5)
    for row in range(5):
        study = cohort.render(row)
        np.testing.assert_array_equal(data.slices(row), photographs(study.volume))
        np.testing.assert_array_equal(data.masks(row), study.mask)
        np.testing.assert_array_equal(data.labels[row], list(study.labels.values()))
        assert data.studies.slices[row] == len(study.volume)
    np.testing.assert_array_equal(data.slices(1, [2, 0]), data.slices(1)[[2, 0]])
    assert data.info["counts"]["patients"] == len(data) == 5


def test_tensorflow_reads_the_shards(tmp_path):
    import tensorflow as tf

    data = make("demo", out=tmp_path / "demo", patients=18, size=16, slices=(3, 5))
    shards = sorted(str(path) for path in (data.path / "shards").iterdir())
    assert len(shards) == 2
    features = {
        "study_id": tf.io.FixedLenFeature([], tf.string),
        "slices": tf.io.RaggedFeature(tf.string),
        "masks": tf.io.RaggedFeature(tf.string),
        "labels": tf.io.FixedLenFeature([1], tf.float32),
    }
    for row, record in enumerate(tf.data.TFRecordDataset(shards)):
        assert record.numpy() == data.record(row)
        example = tf.io.parse_single_example(record, features)
        assert example["study_id"].numpy().decode() == data.studies.study_id[row]
        np.testing.assert_array_equal(example["labels"], data.labels[row])
        slices = np.stack([tf.io.decode_png(png)[..., 0] for png in example["slices"]])
        np.testing.assert_array_equal(slices, data.slices(row))
        masks = np.stack([tf.io.decode_png(png)[..., 0] for png in example["masks"]])
        np.testing.assert_array_equal(masks // 255, data.masks(row))


@dataclass(frozen=True)
class Volume(StudySource):
    """A CT study of random intensities, with a label that may be unknown."""

    dtype: str = "int16"

    def read(self):
        limits = np.iinfo(self.dtype)
        rng = np.random.default_rng(len(self.source))
        images = rng.integers(limits.min, limits.max, (3, 12, 12), self.dtype, endpoint=True)
        images[0, 0, 0], images[0, 0, 1] = limits.min, limits.max
        return Slices(list(images))


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_sixteen_bit_intensities_come_back_exactly(tmp_path, monkeypatch, dtype):
    study = Volume("a", "patient", {"mass": float("nan"), "bleed": 1.0}, "test", dtype)
    scan = SourceIndex([study], ["bleed", "mass"], "CT", dtype=dtype)
    monkeypatch.setitem(READERS, "volume", lambda source=None: scan)
    data = make("volume", out=tmp_path / "out", size=12)
    np.testing.assert_array_equal(data.slices(0), study.read().images)
    assert data.slices(0).dtype == dtype
    assert data.masks(0) is None
    assert data.info["storage"] == {
        "dtype": "uint16",
        "offset": -32768 if dtype == "int16" else 0,
    }
    assert data.info["unit"] == "HU"
    assert data.studies.split[0] == "test"
    np.testing.assert_array_equal(data.labels, [[1.0, np.nan]])


def test_slices_are_padded_to_a_square_and_shrunk_by_area(folder, tmp_path):
    source = cv2.imread(str(folder / "Normal" / "1 (1).png"), cv2.IMREAD_GRAYSCALE)
    padded = np.zeros((30, 30), np.uint8)
    padded[5:25] = source
    data = make("image-folder", folder, out=tmp_path / "pad", size=15)
    blocks = padded.reshape(15, 2, 15, 2).mean((1, 3))
    assert np.abs(data.slices(0)[0] - blocks).max() <= 0.5
    data = make("image-folder", folder, out=tmp_path / "stretch", size=10, aspect="stretch")
    blocks = source.reshape(10, 2, 10, 3).mean((1, 3))
    assert np.abs(data.slices(0)[0] - blocks).max() <= 0.51
    assert data.info["preparation"]["aspect"] == "stretch"


def test_squares_are_shrunk_and_grown_as_tensorflow_does(rng):
    import tensorflow as tf

    image = rng.integers(0, 256, (24, 24), np.uint8)
    for size, ours, theirs in ((12, cv2.INTER_AREA, "area"), (36, cv2.INTER_LINEAR, "bilinear")):
        expected = tf.image.resize(image[..., None], (size, size), method=theirs)[..., 0]
        assert np.abs(to_square(image, size, "pad", ours) - expected).max() <= 1


def test_studies_parquet(folder, tmp_path):
    data = make("image-folder", folder, out=tmp_path / "out", size=16)
    assert list(data.studies.columns) == [
        *("study_id", "patient_id", "slices", "split", "content_hash", "slice_hashes"),
        *("source", "shard", "offset", "length", "label.stroke"),
    ]
    assert list(data.studies.source) == ["Normal/1", "Normal/2", "Stroke/3", "Stroke/4"]
    for column in ("study_id", "patient_id"):
        assert data.studies[column].str.fullmatch("[0-9a-f]{16}").all()
        assert data.studies[column].is_unique
    assert data.studies.split.isna().all()
    np.testing.assert_array_equal(data.labels[:, 0], [0, 0, 1, 1])


def test_no_raw_patient_id_beside_the_source_paths(tmp_path):
    for name in ("Doe_John_1970", "Roe_Jane_1980"):
        for kind in ("Normal", "Stroke"):
            save(tmp_path / "s" / name / f"{kind}.png", np.eye(9, dtype=np.uint8) * len(kind))
    (tmp_path / "labels.csv").write_text("id,x\nDoe_John_1970,1\nRoe_Jane_1980,0\n")
    data = make("image-folder", tmp_path / "s", out=tmp_path / "o", labels=tmp_path / "labels.csv")
    assert b"Doe" not in (data.path / "dataset.json").read_bytes()
    assert b"Doe" not in b"".join(data.record(row) for row in range(2))
    assert not data.studies.drop(columns="source").astype(str).stack().str.contains("Doe").any()


def test_the_salt_of_the_user_changes_the_ids_and_nothing_else(folder, tmp_path, monkeypatch):
    first = make("image-folder", folder, out=tmp_path / "a")
    monkeypatch.setenv("MEDSEQ_TF_SALT", "pepper")
    second = make("image-folder", folder, out=tmp_path / "b")
    assert set(first.studies.patient_id).isdisjoint(second.studies.patient_id)
    assert first.fingerprint == second.fingerprint
    assert b"pepper" not in b"".join(contents(second.path).values())


def test_the_fingerprint_follows_content_labels_and_preparation(folder, tmp_path):
    names = iter("abcdefgh")

    def fingerprint(**settings):
        return make("image-folder", folder, out=tmp_path / next(names), **settings).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(size=32) != first
    assert fingerprint(positive="Normal") != first
    save(folder / "Stroke" / "3 (2).png", np.eye(20, dtype=np.uint8))
    assert fingerprint() != first


# ------------------------------------------------------------------------ the same bytes every time


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    settings = {"patients": 20, "size": 16, "slices": (3, 6)}
    one = make("demo", out=tmp_path / "one", **settings)
    two = make("demo", out=tmp_path / "two", workers=2, **settings)
    assert contents(one.path) == contents(two.path)


KILLED = """
import sys
from medseq_tf.dataset.prepare import prepare
if __name__ == "__main__":
    prepare("demo", out=sys.argv[1], patients=70, size=48, workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, workers):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(script), str(out), str(workers)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out.partial-*/progress/*1.json")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (partial,) = tmp_path.glob("out.partial-*")
    finished = partial / "shards" / "00000.tfrecord"
    written = finished.stat().st_ino
    resumed = make("demo", out=out, patients=70, size=48)
    assert (out / "shards" / "00000.tfrecord").stat().st_ino == written
    assert not list(tmp_path.glob("*.partial-*"))
    whole = make("demo", out=tmp_path / "whole", patients=70, size=48)
    assert contents(resumed.path) == contents(whole.path)


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt(monkeypatch, after):
    """Ends the run when that many studies are done."""
    original, count = package_prepare_module().study_record, iter(range(10**6))

    def failing(*task):
        if next(count) == after:
            raise Interrupted
        return original(*task)

    monkeypatch.setattr(package_prepare_module(), "study_record", failing)


def package_prepare_module():
    return sys.modules["medseq_tf.dataset.shards"]


def test_a_damaged_shard_of_an_earlier_run_is_written_again(tmp_path, monkeypatch):
    settings = {"patients": 33, "size": 16, "slices": (3, 4)}
    with monkeypatch.context() as patch:
        interrupt(patch, after=32)
        with pytest.raises(Interrupted):
            make("demo", out=tmp_path / "out", **settings)
    (partial,) = tmp_path.glob("out.partial-*")
    shard = partial / "shards" / "00001.tfrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    resumed = make("demo", out=tmp_path / "out", **settings)
    whole = make("demo", out=tmp_path / "whole", **settings)
    assert contents(resumed.path) == contents(whole.path)


def test_other_settings_or_a_changed_file_start_again(folder, tmp_path, monkeypatch):
    for number in range(5, 22):
        save(folder / "Normal" / f"{number} (1).png", np.eye(9, dtype=np.uint8) * number)
    with monkeypatch.context() as patch:
        interrupt(patch, after=18)
        with pytest.raises(Interrupted):
            make("image-folder", folder, out=tmp_path / "out")
    (before,) = tmp_path.glob("out.partial-*")
    time.sleep(0.01)
    save(folder / "Normal" / "1 (1).png", 255 - cv2.imread(str(folder / "Normal/1 (1).png"), 0))
    data = make("image-folder", folder, out=tmp_path / "out")
    assert not before.exists()
    np.testing.assert_array_equal(
        data.slices(0), make("image-folder", folder, out=tmp_path / "new").slices(0)
    )


# --------------------------------------------------------------------------------------- the audit


def everything_written(folder):
    """Return all that a data set's files hold but its slices, as text."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tfrecord"]
    return "".join(path.read_bytes().decode("latin-1") for path in files)


def test_the_name_of_the_labels_goes_nowhere(tmp_path):
    for patient in ("7", "8"):
        save(tmp_path / "s" / patient / "1.png", np.full((9, 9), int(patient), np.uint8))
    table = tmp_path / "PLANTNAME_labels.csv"
    table.write_text("id,x\n7,1\n8,0\n9,1\n7,1\n")
    data = make("image-folder", tmp_path / "s", out=tmp_path / "o", labels=table)
    assert "PLANTNAME" not in everything_written(tmp_path / "o")
    assert {f["where"] for f in data.audit["entries"]} == {"labels line 4", "labels line 5"}
    assert data.info["preparation"]["options"] == {"labels": "CSV"}
    file = tmp_path / "o" / "dataset.json"  # as version 0.1.0 wrote it
    file.write_text(file.read_text().replace('"CSV"', '"PLANTNAME_labels.csv"'))
    assert "PLANTNAME" not in str(Prepared.load(tmp_path / "o").info)


def test_copies_of_slices_are_told_apart(folder, tmp_path):
    def copy(source, target):
        (folder / target).write_bytes((folder / source).read_bytes())

    copy("Normal/1 (1).png", "Normal/1 (3).png")
    copy("Normal/1 (2).png", "Stroke/1 (1).png")
    copy("Normal/2 (1).png", "Stroke/4 (3).png")
    for patient in (2, 3):
        save(next(folder.glob(f"*/{patient} (1).png")).with_stem(f"{patient} (9)"), BLACK)
    data = make("image-folder", folder, out=tmp_path / "out", same_numbers="same")
    found = {(f["kind"], f["where"]) for f in data.audit["entries"] if "copy" in f["kind"]}
    assert found == {
        ("copy of a slice in its study", "Normal/1 (3).png"),
        ("copy of a slice in another study of its patient", "Stroke/1 (1).png"),
        ("copy of a slice in another patient", "Stroke/4 (3).png"),
    }
    row = list(data.studies.source).index("Normal/2")
    assert data.studies.slice_hashes[row][2] is None


BLACK = np.zeros((20, 30), np.uint8)


@settings(max_examples=200)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from(["uint8", "int16", "uint16"]),
    marked=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_slice_tells_if_sixteen_pixels_differ_from_its_most_common_value(
    shape, dtype, marked, seed
):
    rng = np.random.default_rng(seed)
    image = np.full(shape, rng.integers(0, 256), dtype)
    places = rng.permutation(image.size)[:marked]
    image.ravel()[places] = rng.integers(0, 256, len(places))
    differing = image.size - np.unique(image, return_counts=True)[1].max()
    assert is_telling(image) == (differing >= FEWEST_TELLING_PIXELS)


def test_nearly_blank_slices_are_no_copies(folder, tmp_path):
    dot, spot = BLACK.copy(), BLACK.copy()
    dot[5, :15], spot[5, :16] = 255, 255
    for patient in (2, 3):
        stem = next(folder.glob(f"*/{patient} (1).png"))
        save(stem.with_stem(f"{patient} (8)"), dot)
        save(stem.with_stem(f"{patient} (9)"), spot)
    data = make("image-folder", folder, out=tmp_path / "out")
    found = [f["where"] for f in data.audit["entries"] if "copy" in f["kind"]]
    assert found == ["Stroke/3 (9).png"]
    row = list(data.studies.source).index("Normal/2")
    assert [digest is None for digest in data.studies.slice_hashes[row]] == [0, 0, 1, 0]


def test_hashes_are_of_the_slices_before_they_are_resized(folder, tmp_path):
    for number, mark in ((3, 0), (4, 1)):
        picture = np.full((300, 300), 80, np.uint8)
        picture[100:200, 100:200], picture[150, 151] = 90, 90 + mark
        save(folder / "Normal" / f"2 ({number}).png", picture)
    small = make("image-folder", folder, out=tmp_path / "small", size=8)
    large = make("image-folder", folder, out=tmp_path / "large", size=64, aspect="stretch")
    for column in ("slice_hashes", "content_hash"):
        assert list(map(list, small.studies[column])) == list(map(list, large.studies[column]))
    row = list(small.studies.source).index("Normal/2")
    np.testing.assert_array_equal(*small.slices(row, [2, 3]))
    assert len(set(small.studies.slice_hashes[row])) == 4


@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    dtype=st.sampled_from(["uint8", "int16", "uint16"]),
    data=st.data(),
)
def test_one_other_pixel_is_another_hash(shape, dtype, data):
    image = np.zeros(shape, dtype)
    other = image.copy()
    other.ravel()[data.draw(st.integers(0, other.size - 1))] = data.draw(st.integers(1, 255))
    assert slice_hash(image) == slice_hash(np.asfortranarray(image))
    assert slice_hash(image) != slice_hash(other)
    assert shape[0] == shape[1] or slice_hash(image) != slice_hash(image.T)


@pytest.mark.parametrize("grey_levels", [2, 256])
def test_flat_slices_are_packed_and_others_stored(folder, tmp_path, rng, grey_levels):
    picture = rng.integers(0, grey_levels, (4, 4), np.uint8).repeat(16, 0).repeat(16, 1)
    if grey_levels > 2:
        picture += rng.integers(0, 9, picture.shape, np.uint8)
    save(folder / "Normal" / "0 (1).png", picture)
    data = make("image-folder", folder, out=tmp_path / "out", size=64)
    np.testing.assert_array_equal(data.slices(0), picture[None])
    assert (data.studies.length[0] < picture.size / 5) == (grey_levels == 2)


def test_slices_alike_are_encoded_once_and_all_kept(folder, tmp_path):
    for number in (3, 4):
        save(folder / "Normal" / f"1 ({number}).png", BLACK)
    data = make("image-folder", folder, out=tmp_path / "out", size=16)
    assert data.studies.slices[0] == 4
    np.testing.assert_array_equal(data.slices(0)[2:], np.zeros((2, 16, 16)))
    assert data.slices(0)[:2].any((1, 2)).all()


def test_the_audit_counts_and_names(folder, tmp_path):
    (folder / "Normal" / "notes.txt").write_text("x")
    (folder / "Normal" / "1 (2).png").write_bytes(b"\x89PNG")
    save(folder / "Stroke" / "3 (3).png", np.eye(7, dtype=np.uint8))
    save(folder / "Stroke" / "9 (1).png", BLACK)
    (folder / "Stroke" / "9 (1).png").write_bytes(b"")
    data = make("image-folder", folder, out=tmp_path / "out")
    assert data.audit["counts"] == {
        "mixed sizes in a study": 1,
        "odd file": 1,
        "study left out": 1,
        "unreadable image": 2,
    }
    assert list(data.studies.source) == ["Normal/1", "Normal/2", "Stroke/3", "Stroke/4"]
    text = data.audit_text()
    assert text == (data.path / "audit.txt").read_text("utf-8")
    assert text.startswith("4 studies of 4 patients, 8 slices; 5 audit entries\n")
    for name in ("Normal/notes.txt", "Stroke/9 (1).png", "Stroke/3: 2 of 30 x 20, 1 of 7 x 7"):
        assert name in text


def test_the_printed_audit_is_short(folder, tmp_path):
    for number in range(15):
        (folder / "Normal" / f"{number}.txt").write_text("x")
    data = make("image-folder", folder, out=tmp_path / "out")
    assert "... and 12 more, see audit.txt" in data.audit_text(most=3)
    assert "Normal/14.txt" in (data.path / "audit.txt").read_text("utf-8")


def test_strict_refuses_to_leave_a_study_out(folder, tmp_path):
    (folder / "Stroke" / "9 (1).png").write_bytes(b"")
    with pytest.raises(InputError, match=r"Stroke/9: study left out \(no slice can be read\)"):
        make("image-folder", folder, out=tmp_path / "out", strict=True)
    assert not list(tmp_path.glob("out*"))


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reader": "image_folder"}, r"unknown \(did you mean image-folder\?\)"),
        ({"size": 4}, "size=4 is not a whole number of pixels from 8 to 1024"),
        ({"aspect": "crop"}, "aspect='crop' is unknown; valid: pad, stretch"),
        ({"workers": 0}, "workers=0 is not a number of processes"),
        ({"difficulty": 1}, "difficulty is not an option of reader image-folder; valid: labels"),
        ({"source": None}, "reader image-folder needs a source"),
        ({"source": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_bad_settings_are_one_line(folder, tmp_path, settings, message):
    given = {"reader": "image-folder", "source": folder, "out": tmp_path / "out", **settings}
    with pytest.raises(InputError, match=message) as error:
        make(given.pop("reader"), given.pop("source"), **given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_a_source_of_which_nothing_can_be_read(folder, tmp_path):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"no slice that can be read; found: 8 unreadable image \(an empty file"
    ):
        make("image-folder", folder, out=tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_what_exists_is_kept_unless_told_otherwise(folder, tmp_path):
    out = tmp_path / "out"
    first = make("image-folder", folder, out=out)
    with pytest.raises(InputError, match="exists; choose another out, or overwrite=True"):
        make("image-folder", folder, out=out)
    second = make("image-folder", folder, out=out, size=32, overwrite=True)
    assert second.info["size"] == 32
    assert first.fingerprint != second.fingerprint
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a prepared data set, so it is not overwritten"):
        make("image-folder", folder, out=tmp_path / "mine", overwrite=True)
    for inside in (folder / "out", tmp_path):
        with pytest.raises(InputError, match="lie in one another"):
            make("image-folder", folder, out=inside, overwrite=True)


def test_nothing_but_a_data_set_is_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    make("image-folder", folder, out=out)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("dataset.json", "experiment.yaml", "model.keras"):
        (run / name).write_text("{}")
    before = contents(run)
    with pytest.raises(InputError, match="is the folder of a run, so it is not overwritten"):
        make("image-folder", folder, out=run, overwrite=True)
    assert contents(run) == before
    for name in ("runs/first/model.keras", "shards/notes.txt", "splits.csv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(InputError, match="holds more than a prepared data set"):
            make("image-folder", folder, out=out, overwrite=True)
        assert (out / name).read_text("utf-8") == "mine"
        shutil.rmtree(out / "runs", ignore_errors=True)
        (out / name).unlink(missing_ok=True)
    make("image-folder", folder, out=out, overwrite=True, size=16)


def test_a_data_set_that_came_meanwhile_is_kept(folder, tmp_path, monkeypatch):
    """As of another process, which ended while this one read its source."""
    out, scan = tmp_path / "out", READERS["image-folder"]

    def slow(source, **options):
        found = scan(source, **options)
        monkeypatch.setitem(READERS, "image-folder", scan)
        make("image-folder", folder, out=out, size=16)
        return found

    monkeypatch.setitem(READERS, "image-folder", slow)
    with pytest.raises(InputError, match="exists; choose another out"):
        make("image-folder", folder, out=out, size=32)
    assert Prepared.load(out).info["size"] == 16
    assert not list(tmp_path.glob("*.partial-*"))


def test_one_process_at_a_time_prepares_for_a_target(folder, tmp_path, monkeypatch):
    """Whatever each of them prepares, and with overwrite too."""
    out, module = tmp_path / "out", package_prepare_module()
    original, refused = module.study_record, []

    def beside(*task):
        if not refused:
            with pytest.raises(InputError, match="is being prepared by another process") as caught:
                prepare("demo", out=out, patients=3, workers=1, progress=False, overwrite=True)
            refused.append(caught.value)
        return original(*task)

    monkeypatch.setattr(module, "study_record", beside)
    data = make("image-folder", folder, out=out)
    assert refused
    assert len(data) == 4
    assert not list(tmp_path.glob("*out*.p*"))


def test_a_data_set_that_a_killed_run_was_about_to_replace_comes_back(folder, tmp_path):
    out = tmp_path / "out"
    make("image-folder", folder, out=out)
    before = contents(out)
    out.rename(tmp_path / "out.partial-0123456789ab.replaced")
    (tmp_path / "out.partial-of my own").mkdir()
    with pytest.raises(InputError, match="exists; choose another out"):
        make("image-folder", folder, out=out, size=32)
    assert contents(out) == before
    assert (tmp_path / "out.partial-of my own").is_dir()


def test_a_link_is_followed_and_nothing_is_replaced_through_it(folder, tmp_path):
    place, link = tmp_path / "disk" / "place", tmp_path / "link"
    link.symlink_to(place)
    assert make("image-folder", folder, out=link).path == place
    before = contents(place)
    with pytest.raises(InputError, match="exists; choose another out"):
        make("image-folder", folder, out=link, size=16)
    with pytest.raises(InputError, match=r"symbolic link; to replace .*place itself"):
        make("image-folder", folder, out=link, size=16, overwrite=True)
    assert link.is_symlink()
    assert contents(place) == before


def test_loading_what_is_not_whole(folder, tmp_path):
    with pytest.raises(InputError, match=r"is not a prepared data set"):
        Prepared.load(tmp_path)
    data = make("image-folder", folder, out=tmp_path / "out")
    shard = data.path / "shards" / "00000.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"has .* bytes where dataset.json says"):
        Prepared.load(data.path)
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        Prepared.load(data.path)
    shard.write_bytes(content)
    pd.read_parquet(data.path / "studies.parquet")[:2].to_parquet(data.path / "studies.parquet")
    with pytest.raises(InputError, match=r"studies\.parquet is not the one that dataset\.json"):
        Prepared.load(data.path)
    info = json.loads((data.path / "dataset.json").read_text("utf-8"))
    (data.path / "dataset.json").write_text(json.dumps({**info, "format_version": 99}))
    with pytest.raises(InputError, match="has format version 99"):
        Prepared.load(data.path)
    (data.path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Prepared.load(data.path)


@pytest.fixture
def two_alike(tmp_path):
    """Two data sets of the same studies, and of shards of the same sizes: one padded, one not."""
    for patient in range(20):
        for number in (1, 2):
            name = f"{'Normal' if patient < 10 else 'Stroke'}/{patient} ({number}).png"
            image = np.random.default_rng(patient).integers(0, 256, (20, 30), np.uint8)
            save(tmp_path / "source" / name, image)
    pair = [
        make("image-folder", tmp_path / "source", out=tmp_path / aspect, size=16, aspect=aspect)
        for aspect in ("pad", "stretch")
    ]
    assert list(pair[0].studies.study_id) == list(pair[1].studies.study_id)
    return pair


def test_a_shard_of_another_preparation_is_refused_by_name(two_alike):
    data, other = two_alike
    shard = data.path / "shards" / "00001.tfrecord"
    content = (other.path / "shards" / shard.name).read_bytes()
    assert shard.stat().st_size == len(content), "nothing but its content gives it away"
    assert data.slices(19).shape == (2, 16, 16)
    shard.write_bytes(content)
    again = Prepared.load(data.path)
    assert again.slices(0).shape == (2, 16, 16), "the other shard is whole"
    for read in (
        lambda: again.slices(19),
        lambda: again.masks(19),
        lambda: again.encoded_slices(19),
        lambda: again.record(19),
        lambda: again.verify(),
        lambda: data.slices(19),  # one that was opened, and read, before
    ):
        with pytest.raises(InputError, match=r"00001\.tfrecord is not the shard that"):
            read()


def test_a_record_of_another_study_is_refused(two_alike):
    data, _ = two_alike
    studies = data.studies.copy()
    studies.loc[[2, 3], ["offset", "length"]] = studies.loc[[3, 2], ["offset", "length"]].to_numpy()
    crossed = Prepared(data.path, data.info, studies)
    assert crossed.slices(1).shape == (2, 16, 16)
    with pytest.raises(InputError, match=rf"study {studies.study_id[2]} is damaged"):
        crossed.slices(2)


def test_shards_are_hashed_once_in_a_process(two_alike, monkeypatch):
    import hashlib

    data, hashed = two_alike[0], []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(a) or original(*a))
    for _ in range(2):
        again = Prepared.load(data.path)
        again.verify()
        for row in range(20):
            again.slices(row)
    assert len(hashed) == 2


def test_written_folders_and_the_demo_reader_agree(tmp_path):
    cohort = DemoCohort(patients=6, size=24, slices=(3, 5))
    written = write_image_folder(cohort, tmp_path / "cohort", layout="patient")
    from_files = make("image-folder", written, out=tmp_path / "a", size=24)
    direct = make("demo", out=tmp_path / "b", patients=6, size=24, slices=(3, 5))
    for row in range(6):
        np.testing.assert_array_equal(from_files.slices(row), direct.slices(row))
    np.testing.assert_array_equal(from_files.labels, direct.labels)


def test_workers_import_neither_tensorflow_nor_pandas():
    code = (
        "import sys, medseq_tf.dataset.records as s; "
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_benchmark_runs():
    script = Path(__file__).parents[2] / "benchmarks" / "bench_prepare.py"
    run = subprocess.run(
        [sys.executable, str(script), "--quick", "--workers", "2"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for name in ("demo, JPEG", "demo, NIfTI", "demo, DICOM", "peak memory"):
        assert name in run.stdout


@pytest.mark.skipif(not (REAL_DATA / "stroke_ct").is_dir(), reason="the CT slices are not here")
def test_the_stroke_ct_slices(tmp_path):
    data = make("image-folder", REAL_DATA / "stroke_ct", out=tmp_path / "ct")
    assert data.label_names == ["stroke"]
    assert data.info["counts"]["slices"] == 1889 == data.studies.slices.sum()
    assert set(data.audit["counts"]) == {"gap in slice numbers"}
