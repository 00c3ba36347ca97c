"""A cohort that workers read and predict: what one process predicts, whatever becomes of them."""

from __future__ import annotations

import dataclasses
import os

import pytest
from command_line import run_command
from odd_studies import Deadly
from served import class_run, exported, small_run

from medseq_tf.errors import InputError
from medseq_tf.execution.executor import LocalExecutor, executor_for
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_image_folder
from medseq_tf.serving.cohort import Opening, cohort_predictions, shared_name
from medseq_tf.serving.open_model import open_model
from medseq_tf.serving.predict import predict
from medseq_tf.serving.study_prediction import FoundStudy, Predictor

COHORT = DemoCohort(patients=9, size=40, slices=(4, 9), difficulty=0.0, prevalence=0.5)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Nine studies, one of them without a slice that can be read."""
    place = tmp_path_factory.mktemp("cohort") / "scans"
    write_image_folder(COHORT, place, "patient")
    for file in (place / "patient-0004").iterdir():
        file.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (place / "patient-0006" / "0.png").write_bytes(b"no picture")
    return place


def opening_of(paths, **changes):
    """How workers open the small run, and the run itself."""
    opened = open_model(small_run())
    points = dict.fromkeys(opened.describe().labels)
    predictor = Predictor(opened, opened.describe(), points)
    opening = Opening.of(shared_name(small_run()), predictor, paths)
    return dataclasses.replace(opening, **changes), predictor


# ------------------------------------------------------------------------------------- in workers


def test_a_worker_opens_the_model_as_this_process_has(studies):
    opening, predictor = opening_of([os.fspath(studies)])
    found = opening()
    assert found.description == predictor.description
    assert found.storage == predictor.storage


def test_a_worker_that_sees_something_else_is_refused(studies, tmp_path):
    opening, _ = opening_of([os.fspath(studies)])
    other = dataclasses.replace(opening, model=os.fspath(class_run().path))
    gone = dataclasses.replace(opening, model=os.fspath(tmp_path / "run"))
    unseen = dataclasses.replace(opening, paths=(os.fspath(tmp_path / "scans"),))
    elsewhere = dataclasses.replace(opening, paths=("scans",), folder=os.fspath(tmp_path / "no"))
    for one, message in (
        (other, r"class.*: node \S+ sees another model there"),
        (gone, r"node \S+: .*run: is no model"),
        (unseen, r"node \S+ .* does not see \S+scans; model and studies are to lie on storage"),
        (elsewhere, r"node \S+ .* does not see \S+no; model"),
    ):
        with pytest.raises(InputError, match=message):
            one()


def test_a_model_that_is_open_has_no_name_for_workers():
    with pytest.raises(InputError, match="ray: the workers open the model by themselves"):
        shared_name(open_model(exported().path))
    assert shared_name(small_run()) == os.fspath(small_run().path)
    assert shared_name("http://127.0.0.1:8501/v1/models/x") == "http://127.0.0.1:8501/v1/models/x"


def test_relative_names_are_made_absolute(monkeypatch):
    monkeypatch.chdir(small_run().path.parent)
    assert shared_name(small_run().path.name) == os.fspath(small_run().path)


def test_studies_are_taken_as_they_are_predicted(studies):
    taken = []

    class Counting(LocalExecutor):
        def map(self, function, items, stand_in, **settings):
            items = (taken.append(item) or item for item in items)
            return super().map(function, items, stand_in, **settings)

    opening, predictor = opening_of([os.fspath(studies)])
    many = [FoundStudy(Deadly(f"study {number}", "/dev/null"), ".") for number in range(10_000)]
    predictions = cohort_predictions(Counting(1), opening, predictor, many)
    for number in range(3):
        assert [row.study for row in next(predictions)] == [f"study {number}"]
    assert len(taken) == 3


# ------------------------------------------------------------------------------------------- Ray


@pytest.mark.parametrize("model", ["run", "export"])
def test_two_nodes_predict_what_one_process_does(studies, two_nodes, model):
    """To the last bit, in the order of the studies, those that are left out among them."""
    path = small_run().path if model == "run" else exported().path.parent
    expected = list(predict(path, studies, running=True, workers=1))
    assert list(predict(path, studies, running=True, ray=two_nodes)) == expected
    assert [bool(row.error) for row in expected].count(True) == 1
    assert any(row.warnings for row in expected)


def test_classes_costs_and_covariates_go_with_them(two_nodes, tmp_path):
    place = tmp_path / "scans"
    write_image_folder(dataclasses.replace(COHORT, patients=3), place, "patient")
    run, costs, people = class_run(), tmp_path / "costs.csv", tmp_path / "people.csv"
    names = run.classes.names
    lines = [",".join(["true", *names])]
    lines += [",".join([name, *("0" if name == o else "5" for o in names)]) for name in names]
    costs.write_text("\n".join(lines) + "\n")
    people.write_text("patient,age,sex\npatient-0001,50,F\npatient-0003,81,M\n")
    settings = {"costs": costs, "participants": people}
    expected = list(predict(run.path, place, workers=1, **settings))
    assert list(predict(run.path, place, ray=two_nodes, **settings)) == expected
    assert {row.called for row in expected} <= set(names)
    assert any("covariates missing" in warning for row in expected for warning in row.warnings)


def test_relative_paths_mean_the_same_to_workers(studies, two_nodes, monkeypatch):
    monkeypatch.chdir(studies.parent)
    model = os.path.relpath(small_run().path)
    expected = list(predict(model, "scans", workers=1))
    assert expected[0].study == "scans/patient-0001"
    assert list(predict(model, "scans", ray=two_nodes)) == expected


def test_strict_stops_at_the_first_that_is_left_out(studies, two_nodes):
    with pytest.raises(InputError, match="patient-0004: no slice can be read"):
        list(predict(small_run().path, studies, strict=True, ray=two_nodes))


def test_a_killed_worker_costs_its_studies_nothing(studies, two_nodes, tmp_path):
    """One ends its worker once, one every time: that one alone is left out."""
    found = [FoundStudy(Deadly(str(number), "/dev/null"), ".") for number in range(12)]
    found[3] = FoundStudy(Deadly("once", os.fspath(tmp_path / "died")), ".")
    found[7] = FoundStudy(Deadly("always"), ".")
    opening, predictor = opening_of([])
    with executor_for(None, two_nodes) as executor:
        rows = [row for (row,) in cohort_predictions(executor, opening, predictor, found)]
    assert [row.study for row in rows] == [one.study.source for one in found]
    assert [row.error for row in rows if row.error] == ["it ended its process, or took too long"]
    assert rows[7].error
    assert {row.probability for row in rows if not row.error} == {rows[0].probability}
    assert (tmp_path / "died").is_file()


def test_the_command_line_says_the_same(studies, two_nodes, monkeypatch, capsys):
    words = ["predict", exported().path, studies, "--json"]
    alone = run_command(monkeypatch, capsys, *words, "--workers", "1")
    assert run_command(monkeypatch, capsys, *words, "--ray", two_nodes) == alone
    assert alone[0] == 1
    assert alone[2].endswith("1 studies left out\n")


def test_a_cluster_that_is_not_there_is_one_line(studies):
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        predict(small_run().path, studies, ray="127.0.0.1:1")
