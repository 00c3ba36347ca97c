"""Predictions of files: one number by every road, and no study stops the others."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from command_line import run_command
from served import NAME, class_run, exported, exported_classes, folder, serving, small_run
from small_models import (
    CLASSES,
    COLUMN,
    COVARIATES,
    NETWORK,
    description_of,
    members_of,
    model_of,
    recipe_of,
)
from stores import upload

import medseq_tf
from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom, write_image_folder, write_volumes
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.unlabelled import find_studies
from medseq_tf.runs import mlflow_store
from medseq_tf.serving.client import StudyProbabilities
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import GraphModel, open_model
from medseq_tf.serving.predict import CALLED, CALLED_BY_COST, predict, table
from medseq_tf.serving.study_prediction import Prediction

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


def test_one_number_from_a_bucket(s3):
    url = upload(s3, sources() / "patients")
    same(numbers(predict(model(), url, workers=1)), prepared_road())
    one, *_ = predict(model(), f"{url}/patient-0001", "s3://hospital/none", workers=1)
    assert one.study == f"{url}/patient-0001"
    with pytest.raises(InputError, match="has a name, password or query in it") as error:
        predict(model(), url, "s3://key:word@hospital/cohort", workers=1)
    assert "word@" not in str(error.value)


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
                from medseq_tf.serving.client import RequestRefused

                raise RequestRefused("too many for me")
            return model().predict(slices, running)

    rows = list(predict(Picky(), sources() / "patients", workers=1))
    refused = [row for row in rows if row.error]
    assert {row.error for row in refused} == {"too many for me"}
    assert 0 < len(refused) < 4
    assert all(row.slices > 11 for row in refused)


def test_dicom_studies_are_called_by_hashes():
    studies, audit_entries = find_studies(sources() / "dicom", "CT", {"reader": "dicom"})
    assert len(studies) == 4
    assert all(re.fullmatch(r"study-[0-9a-f]{16}", study.source) for study in studies)
    assert not [f for f in audit_entries if "patient" in f.where + f.detail]
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


def pictures_at(place, *names):
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources() / "patients" / "patient-0001" / "1.png", path)
    return place


def found_in(place, **preparation):
    studies, audit_entries = find_studies(place, "photograph", preparation)
    relative = [str(Path(study.source).relative_to(place)) for study in studies]
    return relative, [Path(entry.where).name for entry in audit_entries if entry.detail]


def test_a_picture_of_no_patient_merges_no_patients(tmp_path):
    names = ["Normal/1 (1).png", "Normal/1 (2).png", "Normal/2 (1).png", "Normal/montage.png"]
    place = pictures_at(tmp_path, *names)
    assert found_in(place) == (["Normal/1", "Normal/2"], ["montage.png"])
    (place / "Normal" / "2 (1).png").unlink()
    classes = {"reader": "image-folder", "options": {"layout": "class"}}
    assert found_in(place, **classes) == (["Normal/1"], ["montage.png"])


def test_a_study_is_a_folder_of_pictures_however_deep(tmp_path):
    place = pictures_at(tmp_path, "A/p1/1.png", "A/p1/2.png", "A/p2/1.png")
    assert found_in(place) == (["A/p1", "A/p2"], [])


@pytest.mark.parametrize("options", [{"layout": "patient"}, {"labels": "x.csv"}])
def test_a_patient_s_folder_is_one_study(tmp_path, options):
    place = pictures_at(tmp_path, "p1/T1_1.png", "p1/T2_1.png", "p1/more/3.png", "p2/1.png")
    assert found_in(place, reader="image-folder", options=options) == (["p1", "p2"], [])


def test_lesion_masks_of_an_atlas_are_no_studies(tmp_path):
    stem = "sub-r001s001_ses-1_space-MNI"
    image, mask = f"{stem}_T1w.nii.gz", f"{stem}_label-L_desc-T1lesion_mask.nii.gz"
    for name in (image, mask):
        shutil.copy(sources() / "hu" / "patient-0001.nii.gz", tmp_path / name)
    atlas = {"reader": "atlas", "options": {}}
    studies, audit_entries = find_studies(tmp_path, "MR", atlas)
    assert [Path(study.source).name for study in studies] == [image]
    assert [Path(entry.where).name for entry in audit_entries] == [mask]
    assert len(find_studies(tmp_path, "MR", {})[0]) == 2
    with pytest.raises(InputError, match="is a lesion mask"):
        find_studies(tmp_path / mask, "MR", atlas)


class OfCT:
    """A model of CT that answers without looking."""

    def describe(self):
        return dataclasses.replace(model().describe(), modality="CT", preparation={})

    def predict(self, slices, running=False):
        return StudyProbabilities(np.float32([0.5]))


def test_damaged_operating_points_are_one_line(tmp_path):
    class Damaged(OfCT):
        def describe(self):
            points = {label: {"chosen_on": "validation"} for label in model().describe().labels}
            return dataclasses.replace(model().describe(), operating_points=points)

    with pytest.raises(InputError, match="operating points is damaged"):
        predict(Damaged(), tmp_path, workers=1)


def test_what_is_odd_about_a_dicom_study_is_said_with_it(tmp_path):
    shutil.copytree(sources() / "dicom", tmp_path / "dicom")
    examination = sorted(p for p in (tmp_path / "dicom").iterdir() if p.is_dir())[0]
    heights = {}
    for file in examination.rglob("IM*"):
        header = read_dicom_header(file)
        if "LOCALIZER" not in header.image_type:
            heights[header.frames[0].position[2]] = file
    sorted(heights.items())[2][1].unlink()
    (tmp_path / "dicom" / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n and more")
    rows = list(predict(OfCT(), tmp_path / "dicom", workers=1))
    assert len(rows) == 4
    assert not [row.error for row in rows if row.error]
    assert {row.path for row in rows} == {str(tmp_path / "dicom")}
    warned = [row for row in rows if any("missing slice positions" in w for w in row.warnings)]
    assert len(warned) == 1
    alone = list(predict(OfCT(), examination, workers=1))
    assert any("missing slice positions" in warning for warning in alone[0].warnings)


def test_an_unusable_path_stops_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    good = sources() / "patients" / "patient-0001"
    rows = list(predict(model(), tmp_path / "empty", good, tmp_path / "text.txt", workers=1))
    assert [bool(row.error) for row in rows] == [True, False, True]
    assert rows[0].error.startswith("holds no image")
    assert [Path(row.path).name for row in rows] == ["empty", "patient-0001", "text.txt"]
    assert json.loads(rows[1].to_json())["path"] == str(good)
    with pytest.raises(InputError, match="no such file"):
        predict(model(), good, tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no image"):
        predict(model(), tmp_path / "empty", tmp_path / "text.txt")


def test_a_folder_without_a_usable_series_is_left_out(tmp_path):
    files = sorted((sources() / "dicom").rglob("IM*"))[:1]
    shutil.copy(files[0], tmp_path / "one")
    rows = list(predict(OfCT(), tmp_path, workers=1))
    assert [bool(row.error) for row in rows] == [True]


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", "grpc://", ""])
def test_a_password_in_an_address_is_not_repeated(scheme):
    with pytest.raises(InputError, match="name or password") as caught:
        predict(f"{scheme}me:se/cret@host:1/v1/models/m" if scheme else "me:secret@host:1/m", "x")
    assert "cret" not in str(caught.value)


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
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(InputError, match="none that this version's export wrote"):
        open_model(tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged or cut short"):
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


# --------------------------------------------------------------------------------------- classes


@functools.cache
def class_model(costs=None):
    recipe = recipe_of(NETWORK)
    costs = costs and [list(row) for row in costs]
    description = description_of("uint8", outputs="classes", costs=costs)
    served = ServingModel(members_of([model_of(recipe, outputs="classes")], recipe), description)
    return GraphModel(served.signatures)


def costs_file(place, **dear):
    """A table in which calling a class something else costs 1, or what is said."""
    rows = [[0 if called == true else dear.get(true, 1) for called in CLASSES] for true in CLASSES]
    lines = [",".join(["true", *CLASSES])]
    lines += [",".join(map(str, [true, *row])) for true, row in zip(CLASSES, rows, strict=True)]
    file = place / "costs.csv"
    file.write_text("\n".join(lines) + "\n")
    return file, tuple(map(tuple, rows))


def test_of_classes_there_is_one_prediction_a_study():
    rows = list(predict(class_model(), sources() / "patients", running=True, workers=1))
    assert len(rows) == 4
    for row in rows:
        assert row.label == COLUMN
        assert list(row.probabilities) == list(row.calibrated_probabilities) == CLASSES
        assert row.called == max(row.probabilities, key=row.probabilities.get)
        assert row.probability == row.probabilities[row.called]
        assert row.calibrated == row.calibrated_probabilities[row.called]
        assert sum(row.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert row.threshold is row.positive is row.expected_cost is None
        assert list(row.running) == CLASSES
        after_each_slice = np.array(list(row.running.values()))
        assert after_each_slice.shape == (3, row.slices)
        np.testing.assert_allclose(after_each_slice.sum(axis=0), 1, rtol=0, atol=1e-6)
        assert after_each_slice[:, -1] == pytest.approx(list(row.probabilities.values()), abs=1e-5)
    found = json.loads(rows[0].to_json())
    assert found["called"] in CLASSES
    assert found["probabilities"] == rows[0].probabilities
    assert len(found["running"][CLASSES[0]]) == rows[0].slices
    assert list(pd.DataFrame(rows)["called"]) == [row.called for row in rows]


def test_costs_decide_the_call_and_those_given_come_first(tmp_path):
    patients = sources() / "patients"
    plain = list(predict(class_model(), patients, workers=1))
    rare = min(plain[0].probabilities, key=plain[0].probabilities.get)
    file, costs = costs_file(tmp_path, **{rare: 10**12})
    for rows in (
        list(predict(class_model(), patients, workers=1, costs=file)),
        list(predict(class_model(costs), patients, workers=1)),
    ):
        assert [row.probabilities for row in rows] == [row.probabilities for row in plain]
        assert {row.called for row in rows} == {rare}
        assert rows[0].expected_cost == pytest.approx(1 - rows[0].probability, abs=1e-6)
    file, _ = costs_file(tmp_path)
    rows = list(predict(class_model(costs), patients, workers=1, costs=file))
    assert [row.called for row in rows] == [row.called for row in plain]


def test_costs_of_other_classes_are_one_line_that_lists_both(tmp_path):
    file = tmp_path / "costs.csv"
    file.write_text("true,glioma,cyst\nglioma,0,1\ncyst,1,0\n")
    with pytest.raises(InputError, match=r"glioma, cyst.*glioma, meningioma, pituitary") as caught:
        predict(class_model(), sources() / "patients", costs=file)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="costs are of classes that exclude each other"):
        predict(model(), sources() / "patients", costs=file)


def test_a_table_of_classes(tmp_path, with_bad_studies):
    file, _ = costs_file(tmp_path, pituitary=10**12)
    lines = list(
        table(predict(class_model(), with_bad_studies, running=True, workers=1, costs=file))
    )
    assert re.match(r"study +label +probability +call +slices$", lines[0])
    called = [re.search(rf"patient-\d+ +{COLUMN} +(0\.\d{{4}})  (\w+) +(\d+)$", x) for x in lines]
    assert [match[2] for match in called if match] == ["pituitary"] * 3
    assert sum("left out: no slice can be read" in line for line in lines) == 1
    steps = [line.split() for line in lines if line.startswith("  after each slice: ")]
    assert [float(x[-1]) for x in steps] == pytest.approx(
        [float(match[1]) for match in called if match], abs=1e-3
    )
    assert lines[-1] == f"{COLUMN}: {CALLED_BY_COST}"
    without_costs = list(table(predict(class_model(), sources() / "patients", workers=1)))
    assert without_costs[-1] == f"{COLUMN}: {CALLED}"


def test_classes_whose_probabilities_do_not_add_up_are_left_out():
    class Wrong:
        describe = class_model().describe

        def predict(self, slices, running=False):
            return StudyProbabilities(np.float32([0.5, 0.5, 0.5]))

    rows = list(predict(Wrong(), sources() / "patients", workers=1))
    assert {row.error for row in rows} == {
        "the model's probability is 1.5 over all classes, which exclude each other: it should be 1"
    }


# ----------------------------------------------------------------------- classes, from end to end


def participants(place, names, ages=(20, 40, 60, 80)):
    file = place / "participants.csv"
    rows = [f"{n},{'MF'[i % 2]},{ages[i]}" for i, n in enumerate(names)]
    file.write_text("\n".join(["patient_id,sex,age", *rows]) + "\n")
    return file


@functools.cache
def class_roads():
    """The probabilities of four patients with covariates, by road, and of a run without them."""
    patients = sources() / "patients"
    table_of = participants(folder(), ["patient-0001", "patient-0002", "patient-0003"])
    loaded = tf.saved_model.load(str(exported_classes().path))
    with serving(with_grpc=True, signatures=loaded.signatures) as server:
        models = {
            "run": class_run(),
            "SavedModel": exported_classes().path,
            "http": server.address(),
            "grpc": f"grpc://127.0.0.1:{server.grpc_port}/{NAME}",
        }
        roads = {
            road: list(predict(any_model, patients, running=True, workers=1, participants=table_of))
            for road, any_model in models.items()
        }
    return roads, list(predict(class_run(), patients, workers=1))


def test_one_number_of_each_class_by_every_road():
    roads, plain = class_roads()
    for rows in roads.values():
        assert not [row.error for row in rows if row.error]
        for row, other, without in zip(rows, roads["run"], plain, strict=True):
            assert (row.label, row.called) == ("lesion", other.called)
            assert list(row.probabilities) == ["hemorrhage", "ischemia", "mass"]
            for name, probability in row.probabilities.items():
                assert probability == pytest.approx(other.probabilities[name], abs=1e-5)
                assert row.running[name][-1] == pytest.approx(probability, abs=1e-5)
            has_row = "patient-0004" not in row.study
            differs = row.probabilities["mass"] != pytest.approx(
                without.probabilities["mass"], abs=1e-5
            )
            assert differs == has_row
            assert any("covariates missing" in w for w in row.warnings) != has_row


def test_a_model_that_reads_covariates_says_that_it_was_told_none(capsys):
    predict(class_run(), sources() / "patients", workers=1)
    assert "the model reads sex, age; without participants they are missing" in (
        capsys.readouterr().err
    )


def test_participants_of_dicom_are_told_by_their_ids(monkeypatch):
    asked = []

    class OfPatients(OfCT):
        def describe(self):
            return dataclasses.replace(super().describe(), covariates=COVARIATES)

        def predict(self, slices, running=False, covariates=None):
            asked.append(covariates)
            return StudyProbabilities(np.float32([0.5]))

    by_id = sorted(
        (study.patient, study.source)
        for study in find_studies(sources() / "dicom", "CT", {"reader": "dicom"})[0]
    )
    file = participants(folder() / "sources", [patient for patient, _ in by_id])
    rows = list(predict(OfPatients(), sources() / "dicom", workers=1, participants=file))
    age = {source: str(20 * (i + 1)) for i, (_, source) in enumerate(by_id)}
    assert [covariates["age"] for covariates in asked] == [age[row.study] for row in rows]
    assert not [w for row in rows for w in row.warnings if "covariates" in w]


def test_it_is_a_function_of_the_package():
    assert medseq_tf.predict is predict
    assert callable(medseq_tf.export)


def test_an_mlflow_uri(monkeypatch, tmp_path):
    monkeypatch.setattr(mlflow_store, "download_saved_model", lambda uri: exported().path)
    same(numbers(predict("models:/lesion/1", sources() / "volumes", workers=1)), prepared_road())
