"""The command `prepare`: its options, and what a data set then holds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from image_folders import contents, make, save

from medseq_tf.cli import cli
from medseq_tf.dataset.prepare import READERS, Prepared
from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.phantom.writers import write_image_folder
from medseq_tf.readers import Classes, Slices, SourceIndex, StudySource

REAL_DATA = Path(
    os.environ.get("MEDSEQ_TF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
)


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


def test_the_salt_of_the_user_changes_the_ids_and_nothing_else(folder, tmp_path, monkeypatch):
    first = make("image-folder", folder, out=tmp_path / "a")
    monkeypatch.setenv("MEDSEQ_TF_SALT", "pepper")
    second = make("image-folder", folder, out=tmp_path / "b")
    assert set(first.studies.patient_id).isdisjoint(second.studies.patient_id)
    assert first.fingerprint == second.fingerprint
    assert b"pepper" not in b"".join(contents(second.path).values())


def test_written_folders_and_the_demo_reader_agree(tmp_path):
    cohort = DemoCohort(patients=6, size=24, slices=(3, 5))
    written = write_image_folder(cohort, tmp_path / "cohort", layout="patient")
    from_files = make("image-folder", written, out=tmp_path / "a", size=24)
    direct = make("demo", out=tmp_path / "b", patients=6, size=24, slices=(3, 5))
    for row in range(6):
        np.testing.assert_array_equal(from_files.slices(row), direct.slices(row))
    np.testing.assert_array_equal(from_files.labels, direct.labels)


def test_strict_refuses_to_leave_a_study_out(folder, tmp_path):
    (folder / "Stroke" / "9 (1).png").write_bytes(b"")
    with pytest.raises(InputError, match=r"Stroke/9: study left out \(no slice can be read\)"):
        make("image-folder", folder, out=tmp_path / "out", strict=True)
    assert not list(tmp_path.glob("out*"))


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


@pytest.mark.slow
def test_the_benchmark_runs():
    script = Path(__file__).parents[2] / "benchmarks" / "bench_prepare.py"
    run = subprocess.run(
        [sys.executable, str(script), "--quick", "--workers", "2"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for name in ("demo, JPEG", "demo, NIfTI", "demo, DICOM", "peak memory"):
        assert name in run.stdout


def test_the_command_takes_the_columns_of_a_table(tmp_path):
    for patient in range(4):
        save(tmp_path / "s" / f"p{patient}" / "1.png", np.eye(9, dtype=np.uint8) * patient)
    (tmp_path / "labels.csv").write_text('id,grade\np0,"low, or none"\np1,high\np2,high\np3,\n')
    table = "participant_id\twhere\twhen\tage\tsex\n"
    rows = [f"p{i}\t{'AB'[i % 2]}\t2024010{i + 1}\t{i}\tF\n" for i in range(4)]
    (tmp_path / "participants.tsv").write_text(table + "".join(rows))
    arguments = ["prepare", "image-folder", str(tmp_path / "s"), "--out", str(tmp_path / "o")]
    arguments += ["--labels", str(tmp_path / "labels.csv"), "--classes", "grade"]
    arguments += ["--ordered", '"low, or none",high', "--group", "where", "--date", "when"]
    arguments += ["--participants", str(tmp_path / "participants.tsv"), "--covariates", "age,sex"]
    result = CliRunner().invoke(cli, [*arguments, "--workers", "1"])
    assert result.exit_code == 0, result.output
    data = Prepared.load(tmp_path / "o")
    assert data.classes == Classes("grade", ("low, or none", "high"), ordered=True)
    assert list(data.studies["site"]) == ["A", "B", "A"]
    assert list(data.studies["date"]) == [0, 1, 2]
    assert list(data.covariates) == ["age", "sex"]
    assert data.info["preparation"]["options"]["ordered"] == '"low, or none",high'


@pytest.mark.skipif(not (REAL_DATA / "stroke_ct").is_dir(), reason="the CT slices are not here")
def test_the_stroke_ct_slices(tmp_path):
    data = make("image-folder", REAL_DATA / "stroke_ct", out=tmp_path / "ct")
    assert data.label_names == ["stroke"]
    assert data.info["counts"]["slices"] == 1889 == data.studies.slices.sum()
    assert set(data.audit["counts"]) == {"gap in slice numbers"}


@pytest.mark.skipif(not (REAL_DATA / "brain_mri").is_dir(), reason="the MR slices are not here")
def test_the_brain_tumours(tmp_path):
    source = REAL_DATA / "brain_mri"
    data = make(
        "image-folder",
        source / "images",
        out=tmp_path / "mri",
        size=16,
        labels=source / "diagnosis.csv",
        classes="diagnosis",
        participants=source / "groups.csv",
        site="source",
    )
    assert data.classes == Classes("diagnosis", ("glioma", "meningioma", "pituitary"))
    assert len(data) == 152
    assert data.studies["site"].value_counts().to_dict() == {"A": 121, "B": 31}
    assert data.audit["entries"] == []
