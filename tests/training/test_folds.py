"""Cross-validation: one run per fold, its repeats, and the predictions pooled."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from runs_compared import assert_same_weights
from small_run import run_small

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.serving.client import StudyProbabilities
from medseq_tf.serving.description import Description
from medseq_tf.serving.predict import predict, table


@pytest.fixture(scope="module")
def folded(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "cv", "fit.epochs=1", folds=2)


def test_folds_test_every_patient_once_and_pool(folded, demo_data):
    run = folded
    assert len(run.folds) == 2
    tested = [study for fold in run.folds for study in fold.splits["test"]]
    assert sorted(tested) == sorted(Prepared.load(demo_data).studies["study_id"])
    pooled = run.predictions[run.predictions["split"] == "test"]
    for number, fold in enumerate(run.folds, 1):
        own = pooled[pooled["fold"] == number]
        assert set(own["study"]) == set(fold.splits["test"])
        assert set(own["threshold"]) == {fold.thresholds["lesion"]}
    assert "Folds" in (run.path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_repeats_divide_anew_and_start_from_other_weights(folded, demo_data, tmp_path):
    run = run_small(demo_data, tmp_path / "cv", "fit.epochs=1", folds=2, repeats=2)
    once = folded
    assert (run.info["folds"], run.info["repeats"], run.repeats, once.repeats) == (2, 2, 2, 1)
    assert [fold.name for fold in run.folds] == ["fold_1", "fold_2", "fold_3", "fold_4"]
    everyone = sorted(Prepared.load(demo_data).studies["study_id"])
    for repeat in (1, 2):
        folds = run.splits_by_fold[2 * (repeat - 1) : 2 * repeat]
        tested = [name for fold in folds for name in fold["test"]]
        assert sorted(tested) == everyone
    first, second, again = run.folds[0], run.folds[2], once.folds[0]
    assert first.splits == again.splits != second.splits
    assert_same_weights(first, again)
    assert first.experiment.seed == 0 != second.experiment.seed
    assert run.folds[3].experiment.seed == second.experiment.seed
    tested = run.predictions[run.predictions["split"] == "test"]
    assert set(zip(tested["repeat"], tested["fold"], strict=True)) == {
        (1, 1), (1, 2), (2, 3), (2, 4)
    }  # fmt: skip
    assert (tested.groupby("repeat")["study"].nunique() == len(everyone)).all()
    stored = json.loads((run.path / "metrics.json").read_text("utf-8"))
    assert stored["question"] == cross_validation.RECIPE
    rows = run.metrics.set_index("metric")
    assert rows.loc["auroc", "interval"] == "cross-validation"
    assert rows.loc["auroc", "n"] == len(everyone)
    page = (run.path / "report.html").read_text("utf-8")
    assert cross_validation.RECIPE in page
    assert "repeat 2" in page
    point = run.operating_points["lesion"]
    assert (point["models"], point["members"]) == (2, 4)
    assert point["positives"] + point["negatives"] == len(everyone)
    found = evaluate(run, demo_data, resamples=20, audit=True)
    assert found.audit.is_clean
    assert found.confusion["patients"].tolist() == [len(everyone)]
    pd.testing.assert_series_equal(
        found.table.set_index("metric")["value"].drop("auroc_pooled", errors="ignore"),
        rows["value"].drop("auroc_pooled", errors="ignore"),
        atol=1e-5,
    )
    assert run_small(demo_data, run.path, "fit.epochs=1", folds=2, repeats=2, resume=True)
    with pytest.raises(InputError, match="repeats = 2, asked for 1"):
        run_small(demo_data, run.path, "fit.epochs=1", folds=2, resume=True)


def test_repeats_need_folds(demo_data, tmp_path):
    with pytest.raises(InputError, match="repeats = 2: goes with folds"):
        run_small(demo_data, tmp_path / "run", repeats=2)
    with pytest.raises(InputError, match="repeats = 0: expected at least 1"):
        run_small(demo_data, tmp_path / "run", folds=2, repeats=0)
    assert not (tmp_path / "run").exists()


def test_the_threshold_of_folds_is_chosen_on_all_patients_and_measured(folded):
    run = folded
    tested = run.predictions[run.predictions["split"] == "test"]
    point = run.operating_points["lesion"]
    assert run.thresholds["lesion"] == point["threshold"]
    expected = metrics.choose_threshold(tested["truth"], tested["probability"])
    assert point["threshold"] == pytest.approx(expected)
    calls = []
    for fold in (1, 2):
        rest, own = tested[tested["fold"] != fold], tested[tested["fold"] == fold]
        cut = metrics.choose_threshold(rest["truth"], rest["probability"])
        calls.append(own.assign(called=own["probability"] >= cut))
    calls = pd.concat(calls)
    for name, kind in (("sensitivity", 1), ("specificity", 0)):
        right = (calls["called"] == calls["truth"])[calls["truth"] == kind].mean()
        value, low, high = point[name]
        assert value == pytest.approx(right)
        assert low <= value <= high
    said = "\n".join(run.notes)
    assert "chosen on the held-out predictions of all patients" in said
    assert "20 positive and 20 negative patients" in said
    assert "was not measured itself" in (run.path / "report.html").read_text("utf-8")
    description = Description.of_run(run)
    assert description.thresholds == run.thresholds
    assert description.operating_points == run.operating_points
    assert description.temperatures == run.temperatures


def test_predictions_say_what_the_threshold_stands_on(folded, tmp_path):
    class Asked:
        def describe(self):
            return Description.of_run(folded)

        def predict(self, slices, running=False):
            return StudyProbabilities(np.array([0.7]), None)

    (tmp_path / "study").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "study" / "1.png"), grey)
    rows = list(predict(Asked(), tmp_path, workers=1))
    assert "(20 positive, 20 negative)" in rows[0].operating_point
    assert "operating_point" in json.loads(rows[0].to_json())
    assert any("with each fold left out of the choice" in line for line in table(rows))
