"""Data that a run has never seen: its own slices are known again, and copies of them found."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import cv2
import pandas as pd
import pytest
from small_run import run_small

from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.unseen_data import with_labels_of
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_image_folder
from medseq_tf.runs.run import SLICES, Run

COHORT = DemoCohort(patients=16, size=48, slices=(4, 7), difficulty=0.0, prevalence=0.5)


def made(place, name, source, size=32, **options):
    options = {"workers": 1, "progress": False, **options}
    return prepare("image-folder", source, out=place / name, size=size, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("unseen")
    write_image_folder(COHORT, place / "source", "patient")
    write_image_folder(dataclasses.replace(COHORT, seed=9), place / "others", "patient")
    return place


@pytest.fixture(scope="module")
def trained(place):
    return run_small(made(place, "data", place / "source"), place / "run", "fit.epochs=1")


@pytest.fixture(scope="module")
def others(place):
    return made(place, "other data", place / "others")


def score(run, data, **options):
    return evaluate(run, data, split="all", resamples=20, **options)


def test_a_run_keeps_hashes_of_its_slices_and_no_pictures(trained):
    kept = pd.read_parquet(trained.path / SLICES)
    assert list(kept) == ["study", "patient", "slice", "content", "bits"]
    assert kept["study"].nunique() == 16
    assert {len(bits) for bits in kept["bits"].dropna()} == {32}
    assert len(kept) == Prepared.load(trained.path.parent / "data").studies["slices"].sum()


@pytest.mark.parametrize("stored", [{}, {"size": 48, "aspect": "stretch"}, {"salt": "another"}])
def test_studies_of_one_slice_less_are_known_again(place, trained, tmp_path, monkeypatch, stored):
    shutil.copytree(place / "source", tmp_path / "source")
    for patient in (tmp_path / "source").glob("patient-*"):
        sorted(patient.glob("*.png"))[0].unlink()
    if "salt" in stored:
        monkeypatch.setenv("MEDSEQ_TF_SALT", stored["salt"])
    options = {name: value for name, value in stored.items() if name != "salt"}
    data = made(tmp_path, "data", tmp_path / "source", **options)
    with pytest.raises(InputError, match="16 of its 16 studies hold slices") as caught:
        score(trained, data)
    message = str(caught.value)
    assert "\n" not in message
    assert "patient-00" not in message
    assert any(study in message for study in data.studies["study_id"])
    assert any(patient in message for patient in data.studies["patient_id"])
    assert any(study in message for study in trained.contents)


def test_one_slice_among_strangers_is_known_again(place, trained, tmp_path):
    shutil.copytree(place / "others", tmp_path / "source")
    slices = sorted((place / "source" / "patient-0003").glob("*.png"))
    shutil.copy(slices[len(slices) // 2], tmp_path / "source" / "patient-0005" / "99.png")
    with pytest.raises(InputError, match=r"1 of its 16 studies hold slices .* has 1, such as"):
        score(trained, made(tmp_path, "data", tmp_path / "source"))


def test_strangers_are_evaluated_and_audited(trained, others):
    found = score(trained, others, audit=True)
    assert len(found.predictions) == 16
    assert found.audit.is_clean
    assert "near duplicates across parts: 0" in found.text()
    assert list(found.audit.parts["studies"]) == [16, 16]


@pytest.mark.parametrize("kind", [".jpg", "smaller.png"])
def test_copies_that_were_made_again_are_found_by_the_audit(place, trained, tmp_path, kind):
    for file in (place / "source").rglob("*.png"):
        path = tmp_path / "source" / file.parent.name / f"{file.stem}{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        if kind != ".jpg":
            image = cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA)
        assert cv2.imwrite(str(path), image)
    shutil.copy(place / "source" / "labels.csv", tmp_path / "source")
    data = made(tmp_path, "data", tmp_path / "source")
    audit = score(trained, data, audit=True).audit
    assert not audit.is_clean
    pairs = audit.pairs[audit.pairs["kind"] == "near duplicate"]
    named = dict(zip(data.studies["study_id"], data.studies["source"], strict=True))
    own = Prepared.load(place / "data").studies
    theirs = dict(zip(own["study_id"], own["source"], strict=True))
    found = {
        named[row.study] for row in pairs.itertuples()
        if named[row.study] == theirs[row.other_study]
    }  # fmt: skip
    assert len(found) >= 15
    assert "bits" in audit.text()


def test_a_run_of_an_older_version_says_what_was_not_checked(trained, others, tmp_path, capsys):
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / SLICES).unlink()
    assert len(score(tmp_path / "run", others).predictions) == 16
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "was not checked" in err
    with pytest.raises(InputError, match="kept no hashes of slices"):
        score(tmp_path / "run", others, audit=True)


def test_a_patient_of_the_run_is_known_by_the_id_of_one_salt(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_SALT", "one of ours")
    run = run_small(made(tmp_path, "data", place / "source"), tmp_path / "run", "fit.epochs=1")
    later = made(tmp_path, "later", place / "others")
    with pytest.raises(InputError, match="16 of its patients have the id of a patient"):
        score(run, later)


def test_data_that_were_read_otherwise_are_refused(trained, others):
    for name, value in (("modality", "CT"), ("unit", "HU")):
        info = {**others.info, name: value}
        with pytest.raises(InputError, match=f"{name} {value} instead of"):
            score(trained, dataclasses.replace(others, info=info))


def test_data_of_another_size_are_noted(place, trained, tmp_path, capsys):
    score(trained, made(tmp_path, "data", place / "others", size=40, aspect="stretch"))
    assert "size 40 instead of 32, aspect stretch instead of pad" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_know_their_slices_too(place, trained, tmp_path):
    data = Prepared.load(place / "data")
    run = run_small(data, tmp_path / "run", "fit.epochs=1", folds=2)
    for part in (run, *run.folds):
        assert part.slices["study"].nunique() == 16
        with pytest.raises(InputError, match="are of the data set that the run was trained on"):
            score(part, data)


# ------------------------------------------------------------------------------- other labels


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    out = tmp_path_factory.mktemp("classes")
    options = {"patients": 12, "size": 16, "workers": 1, "progress": False}
    return {kind: prepare("demo", out=out / kind, kind=kind, **options) for kind in KINDS}


KINDS = ("labels", "classes", "grades")


def a_run_on(prepared, **changes):
    return SimpleNamespace(path="the run", dataset={**prepared.info, **changes})


def test_classes_are_brought_into_the_order_of_the_run(of_classes):
    data = of_classes["classes"]
    names = ["mass", "abscess", "hemorrhage", "ischemia"]
    found = with_labels_of(a_run_on(data, label_names=names), data)
    assert found.label_names == names
    pd.testing.assert_frame_equal(
        found.studies[[f"label.{name}" for name in data.label_names]],
        data.studies[[f"label.{name}" for name in data.label_names]],
    )
    assert (found.studies["label.abscess"] == 0).all()


def test_series_are_those_of_the_run(of_classes):
    data = of_classes["labels"]
    series = {"names": ["dwi", "adc"], "read_as": "channels"}
    with pytest.raises(InputError, match="are one stack each, those that the model knows series"):
        with_labels_of(a_run_on(data, series=series), data)


def test_whether_classes_are_ordered_is_the_run_s_to_say(of_classes):
    data = of_classes["grades"]
    changed = {"classes": {"column": "grade", "ordered": False}}
    assert with_labels_of(a_run_on(data, **changed), data).outputs == "classes"


@pytest.mark.parametrize(
    ("of_run", "of_data", "message"),
    [
        ("classes", "grades", "has the classes mild, moderate, severe, the model knows hemorr"),
        ("classes", "labels", r"has yes/no labels \(lesion\), not classes that exclude"),
        ("labels", "grades", "classes that exclude each other, mild, moderate, severe, the run"),
    ],
)
def test_labels_of_another_kind_are_refused(of_classes, of_run, of_data, message):
    with pytest.raises(InputError, match=message):
        with_labels_of(a_run_on(of_classes[of_run]), of_classes[of_data])


# --------------------------------------------------------------------------- no probability


@pytest.fixture(scope="module")
def of_no_numbers(trained, place):
    """A run whose model's last bias is NaN."""
    shutil.copytree(trained.path, place / "broken")
    run = Run.open(place / "broken")
    model = run.model()
    for weight in model.head.trainable_variables:
        weight.assign(weight * float("nan"))
    model.save(run.path / "model.keras")
    return run


def test_a_model_that_gives_no_numbers_is_an_error_in_every_road(
    of_no_numbers, place, others, tmp_path
):
    from medseq_tf.evaluation.explain.explain import explain
    from medseq_tf.serving.export import export
    from medseq_tf.serving.mlflow_model import Scorer
    from medseq_tf.serving.model import LoadedRun
    from medseq_tf.serving.open_model import open_model
    from medseq_tf.serving.predict import predict

    run, data = of_no_numbers, Prepared.load(place / "data")
    with pytest.raises(InputError, match="no numbers") as caught:
        evaluate(run, data)
    assert any(study in str(caught.value) for study in data.studies["study_id"])
    with pytest.raises(InputError, match="no numbers"):
        score(run, others)
    with pytest.raises(InputError, match="no numbers"):
        explain(run, data, study=data.studies["study_id"].iat[0])
    with pytest.raises(InputError, match="no number"):
        export(run, tmp_path / "out")
    rows = list(predict(run, place / "source" / "patient-0001", workers=1, running=True))
    assert [row.positive for row in rows] == [None]
    assert "study 0 is no number" in rows[0].error
    files = [p.read_bytes() for p in sorted((place / "source" / "patient-0001").glob("*.png"))]
    scored = Scorer(open_model(run)).predict(pd.DataFrame({"slices": [files]}))
    assert scored["positive"][0] is None
    assert "no number" in scored["error"][0]
    served = LoadedRun.open(run).serving_model()
    assert set(served.signatures) >= {"serving_default", "probability"}


def test_mlflow_s_scorer_calls_nothing_that_is_no_probability():
    import numpy as np

    from medseq_tf.serving.client import StudyProbabilities
    from medseq_tf.serving.description import Description
    from medseq_tf.serving.mlflow_model import Scorer

    class Model:
        answers = iter([[float("nan")], [7.5], [0.5, 0.5], [0.75]])

        def describe(self):
            return Description(
                name="lesion",
                labels=["lesion"],
                thresholds={"lesion": 0.5},
                temperatures={"lesion": 1.0},
                modality="photograph",
                unit="grey level",
                bits=8,
                offset=0,
                size=32,
                aspect="pad",
                most_slices=512,
                preparation={"reader": "image-folder", "options": {}, "resolved": {}},
            )

        def predict(self, slices, running=False, **further):
            return StudyProbabilities(np.float32(next(self.answers)))

    found = Scorer(Model()).predict(pd.DataFrame({"slices": [["", ""]] * 4}))
    assert [error is None for error in found["error"]] == [False, False, False, True]
    assert list(found["positive"]) == [None, None, None, True]
