"""Predictions of files: one number by every road, and no study stops the others."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from served import NAME, exported, folder, serving, small_run

import medseq_tf
from medseq_tf import cli, tracking
from medseq_tf.answering import open_model
from medseq_tf.errors import InputError
from medseq_tf.inference import study_probabilities
from medseq_tf.pipeline import SliceStore
from medseq_tf.predict import Prediction, predict, table
from medseq_tf.prepare import prepare
from medseq_tf.readers.demo import DemoCohort, write_image_folder
from medseq_tf.readers.demo_files import write_dicom, write_volumes
from medseq_tf.readers.unlabelled import find_studies

COHORT = DemoCohort(patients=4, size=50, slices=(5, 12), difficulty=0.0, prevalence=0.5)


@functools.cache
def sources():
    """The same four patients in every layout."""
    place = folder() / "sources"
    write_image_folder(COHORT, place / "classes")
    write_image_folder(COHORT, place / "patients", "patient")
    write_volumes(COHORT, place / "volumes", as_photographs=True)
    write_volumes(COHORT, place / "hu")
    write_dicom(COHORT, place / "dicom")
    return place


@functools.cache
def prepared_road():
    """Probability by patient, by way of a prepared data set and evaluation."""
    out = folder() / "four"
    source = sources() / "patients"
    prepared = prepare("image-folder", source, out=out, size=32, workers=1, progress=False)
    run = small_run()
    store = SliceStore(prepared, run.experiment)
    rows = np.arange(len(prepared))
    found = study_probabilities(run.model(), store, rows, run.experiment)[:, 0]
    return dict(zip(prepared.studies["source"], found, strict=True))


@functools.cache
def model():
    return open_model(exported().path)


def numbers(predictions):
    """Probability by patient's number."""
    rows = list(predictions)
    assert not [row.error for row in rows if row.error]
    return {Path(row.study).name.split(".")[0]: row.probability for row in rows}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, probability in expected.items():
        assert found[name] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize(
    "road",
    ["run", pytest.param("run folder", marks=pytest.mark.slow), "SavedModel", "its versions"],
)
def test_one_number_by_every_road(road):
    run, path = small_run(), exported().path
    models = {"run": run, "run folder": run.path, "SavedModel": path, "its versions": path.parent}
    same(numbers(predict(models[road], sources() / "patients", workers=1)), prepared_road())


def test_one_number_from_volumes():
    same(numbers(predict(model(), sources() / "volumes", workers=1)), prepared_road())


def test_one_number_from_a_server():
    with serving(with_grpc=True) as server:
        for address in (server.address(), f"grpc://127.0.0.1:{server.grpc_port}/{NAME}"):
            same(numbers(predict(address, sources() / "patients", workers=1)), prepared_road())


def test_one_number_from_single_studies_and_from_worker_processes():
    paths = sorted((sources() / "patients").glob("patient-*"))
    same(numbers(predict(model(), *paths, workers=2)), prepared_road())
    volumes = sorted((sources() / "volumes").glob("*.nii.gz"))
    same(numbers(predict(model(), *volumes, workers=1)), prepared_road())


def test_classes_are_read_in_the_order_of_the_slices():
    found = list(predict(model(), sources() / "classes", workers=1))
    assert sorted(row.probability for row in found) == pytest.approx(
        sorted(prepared_road().values()), abs=1e-5
    )


def test_a_prediction():
    (row,) = predict(model(), sources() / "patients" / "patient-0002", running=True, workers=1)
    assert row.study == str(sources() / "patients" / "patient-0002")
    assert row.label == "lesion"
    assert row.threshold == small_run().thresholds["lesion"]
    assert row.positive == (row.probability >= row.threshold)
    assert len(row.running) == row.slices
    assert row.running[-1] == pytest.approx(row.probability, abs=1e-5)
    assert json.loads(row.to_json())["slices"] == row.slices
    frame = pd.DataFrame(predict(model(), sources() / "patients", workers=1))
    assert list(frame["slices"]) == [len(list(p.glob("*.png"))) for p in sorted(
        (sources() / "patients").glob("patient-*"))]  # fmt: skip


@pytest.fixture
def with_bad_studies(tmp_path):
    place = tmp_path / "scans"
    shutil.copytree(sources() / "patients", place)
    (place / "patient-0001" / "0.png").write_bytes(b"no picture")
    for file in (place / "patient-0003").iterdir():
        file.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return place


def test_a_bad_study_stops_no_other(with_bad_studies):
    rows = list(predict(model(), with_bad_studies, workers=1))
    assert [bool(row.error) for row in rows] == [False, False, True, False]
    assert rows[2].error == "no slice can be read"
    assert rows[2].probability is None
    assert "unreadable image" in rows[0].warnings[0]
    with pytest.raises(InputError, match=r"patient-0003: no slice can be read"):
        list(predict(model(), with_bad_studies, workers=1, strict=True))


def test_a_study_that_the_model_refuses_stops_no_other(tmp_path, monkeypatch):
    class Picky:
        describe = model().describe

        def predict(self, slices, running=False):
            if len(slices) > 11:
                from medseq_tf.serving_client import RequestRefused

                raise RequestRefused("too many for me")
            return model().predict(slices, running)

    rows = list(predict(Picky(), sources() / "patients", workers=1))
    refused = [row for row in rows if row.error]
    assert {row.error for row in refused} == {"too many for me"}
    assert 0 < len(refused) < 4
    assert all(row.slices > 11 for row in refused)


def test_dicom_studies_are_called_by_hashes():
    studies, findings = find_studies(sources() / "dicom", "CT", {"reader": "dicom"})
    assert len(studies) == 4
    assert all(re.fullmatch(r"study-[0-9a-f]{16}", study.source) for study in studies)
    assert not [f for f in findings if "patient" in f.where + f.detail]
    lengths = sorted(len(study.read().images) for study in studies)
    volumes, _ = find_studies(sources() / "hu", "CT", {"reader": "volumes"})
    assert lengths == sorted(len(study.read().images) for study in volumes)


def test_volumes_are_cut_as_the_training_data_were():
    options = {"options": {"axis": "sagittal", "spacing": None}}
    (study,), _ = find_studies(sources() / "hu" / "patient-0001.nii.gz", "CT", options)
    assert len(study.read().images) == COHORT.size
    extent = {"reader": "atlas", "options": {"extent": [0.0, 0.5]}}
    (half,), _ = find_studies(sources() / "hu" / "patient-0001.nii.gz", "MR", extent)
    (whole,), _ = find_studies(sources() / "hu" / "patient-0001.nii.gz", "MR", {})
    assert len(half.read().images) == len(whole.read().images) // 2


WRONG_PATHS = {
    "nowhere": ("nowhere", "no such file or folder"),
    "a text": ("text.txt", "a study is a volume"),
    "an empty folder": ("empty", "holds no image"),
    "DICOM for photographs": ("dicom", "holds no image"),
}


@pytest.mark.parametrize("case", WRONG_PATHS)
def test_a_path_that_holds_no_study(tmp_path, case):
    name, words = WRONG_PATHS[case]
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    path = sources() / "dicom" if name == "dicom" else tmp_path / name
    with pytest.raises(InputError, match=words):
        predict(model(), path)


def test_photographs_for_a_model_of_intensities():
    with pytest.raises(InputError, match="the model reads CT intensities"):
        find_studies(sources() / "patients", "CT", {})


@pytest.mark.parametrize(
    "name",
    ["nowhere", "prepared", "http://host", pytest.param("models:/none/1", marks=pytest.mark.slow)],
)
def test_a_model_that_is_none(name, no_server):
    (no_server / "prepared").mkdir()
    with pytest.raises(InputError, match=re.escape(name)):
        predict(name, sources() / "patients")


def test_another_saved_model(tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(InputError, match="none that this version's export wrote"):
        open_model(tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be loaded"):
        open_model(tmp_path / "broken")


def test_wrong_arguments():
    with pytest.raises(InputError, match="no path"):
        predict(model())
    with pytest.raises(InputError, match="workers=0"):
        predict(model(), sources() / "patients", workers=0)


def test_a_table_comes_line_by_line():
    rows = iter([
        Prediction("a/1", "lesion", 0.25, 0.25, 0.5, False, 9, running=(0.1, 0.25)),
        Prediction("a/2", error="no slice can be read", warnings=("odd file (x)",)),
    ])  # fmt: skip
    lines = table(rows)
    assert "probability" in next(lines)
    assert re.search(r"a/1 +lesion +0\.2500 +negative +9", next(lines))
    assert "0.100 0.250" in next(lines)
    assert "left out: no slice can be read" in next(lines)
    assert "warning: odd file" in next(lines)
    assert next(lines, None) is None
    assert list(table([])) == []


def run_command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["medseq-tf", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_the_command_line(monkeypatch, capsys, with_bad_studies):
    words = ["predict", exported().path, sources() / "patients", "--workers", 1, "--json"]
    status, out, err = run_command(monkeypatch, capsys, *words, "--running")
    assert status == 0
    assert not err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["label"] for row in rows] == ["lesion"] * 4
    assert all(len(row["running"]) == row["slices"] for row in rows)
    words[2] = with_bad_studies
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert status == 1
    assert "1 studies left out" in err
    assert len(out.splitlines()) == 4
    status, out, err = run_command(monkeypatch, capsys, *words, "--strict")
    assert status == 2
    assert len(out.splitlines()) == 2
    assert err.startswith("medseq-tf: error:")
    assert len(err.splitlines()) == 1


def test_it_is_a_function_of_the_package():
    assert medseq_tf.predict.predict is predict
    assert callable(medseq_tf.export)


def test_an_mlflow_uri(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "download_saved_model", lambda uri: exported().path)
    same(numbers(predict("models:/lesion/1", sources() / "volumes", workers=1)), prepared_road())
