"""Runs of classes that exclude each other: what they leave, and what they refuse."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from interrupted import killed_after
from runs_compared import assert_same_weights
from scipy import special
from sklearn import metrics as reference
from small_run import SMALL, run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import make_holdout
from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.recipe import MONITORS_OF
from medseq_tf.runs.run import Run
from medseq_tf.training.train import train

NAMES = ["hemorrhage", "ischemia", "mass"]


@pytest.fixture(scope="module")
def finished(class_data, tmp_path_factory):
    return run_small(class_data, tmp_path_factory.mktemp("runs") / "classes")


@pytest.fixture(scope="module")
def folded(class_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "folds"
    return run_small(class_data, out, "fit.epochs=1", folds=2)


def arrays(run, split="test"):
    predictions = run.predictions
    return ClassTable.of(predictions[predictions["split"] == split], run.classes)


def values(run, split="test"):
    table = run.metrics
    return table[table["split"] == split].set_index(["label", "metric"])["value"]


def test_probabilities_add_up_to_one_and_the_most_probable_class_is_called(finished):
    table = finished.predictions
    assert table["threshold"].isna().all()
    by_study = table.groupby(["split", "study"])
    np.testing.assert_allclose(by_study["probability"].sum(), 1, atol=1e-6)
    np.testing.assert_allclose(by_study["calibrated"].sum(), 1, atol=1e-6)
    assert (by_study["positive"].sum() == 1).all()
    called = table[table["positive"]].set_index(["split", "study"])["probability"]
    pd.testing.assert_series_equal(called, by_study["probability"].max(), check_like=True)


def test_there_is_one_temperature_and_no_threshold(finished):
    assert (finished.thresholds, finished.operating_points, finished.cuts) == ({}, {}, {})
    assert list(finished.temperatures) == ["lesion"]
    studies = arrays(finished)
    scaled = special.softmax(
        np.log(studies.probabilities) / finished.temperatures["lesion"], axis=1
    )
    np.testing.assert_allclose(studies.calibrated, scaled, atol=1e-6)


def test_metrics_are_those_of_the_predictions(finished):
    studies, found = arrays(finished), values(finished)
    truth, told = studies.truth.argmax(axis=1), studies.probabilities
    expected = {
        "accuracy": reference.accuracy_score(truth, studies.called),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, studies.called),
        "auroc": reference.roc_auc_score(truth, told, multi_class="ovr"),
        "auroc_pairwise": reference.roc_auc_score(truth, told, multi_class="ovo"),
        "f1_macro": reference.f1_score(truth, studies.called, average="macro"),
        "kappa": reference.cohen_kappa_score(truth, studies.called),
        "log_loss": -np.log(np.take_along_axis(told, truth[:, None], axis=1)).mean(),
        "brier": ((told - studies.truth) ** 2).sum(axis=1).mean(),
    }
    together = found["lesion"].drop("expected_calibration_error")
    assert set(together.index) == set(expected)
    for name, value in expected.items():
        assert together[name] == pytest.approx(value, abs=1e-6), name
    for number, name in enumerate(NAMES):
        own, called = truth == number, studies.called == number
        assert found[name, "auroc"] == pytest.approx(reference.roc_auc_score(own, told[:, number]))
        assert found[name, "recall"] == pytest.approx(reference.recall_score(own, called))
    assert list(found.index.get_level_values("label").unique()) == ["lesion", *NAMES]


def test_every_epoch_has_the_metrics_that_may_be_watched(finished):
    last = finished.history.iloc[-1]
    for monitor in MONITORS_OF["classes"]:
        assert np.isfinite(last[f"val_{monitor}"])
    assert last["val_loss"] == pytest.approx(last["val_log_loss"], abs=1e-5)
    assert not {"val_recall", "val_kappa_quadratic"} & set(last.index)


def with_names(data, new):
    """The data set whose classes are called otherwise."""
    prepared = Prepared.load(data)
    names = dict(zip(NAMES, new, strict=True))
    columns = {f"label.{name}": f"label.{new}" for name, new in names.items()}
    counts = prepared.info["counts"]
    labels = {names[name]: count for name, count in counts["labels"].items()}
    info = {**prepared.info, "label_names": list(names.values())}
    info["counts"] = {**counts, "labels": labels}
    return dataclasses.replace(
        prepared, info=info, studies=prepared.studies.rename(columns=columns)
    )


def test_the_names_of_classes_change_nothing_else(finished, class_data, tmp_path):
    names = dict(zip(NAMES, "zxy", strict=True))
    run = run_small(with_names(class_data, names.values()), tmp_path / "run")
    assert_same_weights(run, finished)
    pd.testing.assert_series_equal(values(run), values(finished).rename(index=names))


def test_killed_it_resumes_to_the_same_bits(finished, class_data, tmp_path, monkeypatch):
    settings = ("fit.checkpoint_minutes=0",)
    with killed_after(monkeypatch, 3):
        run_small(class_data, tmp_path / "run", *settings)
    assert not (tmp_path / "run" / "model.keras").exists()
    resumed = run_small(class_data, tmp_path / "run", *settings, resume=True)
    assert_same_weights(resumed, finished)
    pd.testing.assert_frame_equal(resumed.predictions, finished.predictions)
    assert resumed.temperatures == finished.temperatures


def test_a_study_of_unknown_class_is_predicted_and_not_scored(class_data, tmp_path):
    prepared = Prepared.load(class_data)
    split = make_holdout(prepared.studies, recipes.Experiment().split)
    studies = prepared.studies.copy()
    unknown = [split["train"][0], split["validation"][0], split["test"][0]]
    studies.loc[studies.index[unknown], [f"label.{name}" for name in NAMES]] = np.nan
    partly = dataclasses.replace(prepared, studies=studies)
    run = run_small(partly, tmp_path / "run", "loss.weights=balanced", splits=split)
    tested = arrays(run)
    assert len(tested) == len(split["test"]) == tested.is_known.sum() + 1
    assert np.isfinite(tested.probabilities).all()
    known = tested.known
    right = known.truth.argmax(axis=1) == known.called
    assert values(run)["lesion", "accuracy"] == pytest.approx(right.mean())
    assert run.metrics.query("split == 'test'")["n"].eq(len(known)).all()


def test_without_held_out_studies_there_are_no_figures_and_it_says_so(class_data, tmp_path):
    run = run_small(
        class_data, tmp_path / "run", "split.test=0", "split.validation=0", "fit.epochs=1"
    )
    assert len(run.metrics) == len(run.predictions) == 0
    assert run.temperatures == {"lesion": 1.0}
    assert any("probabilities are not scaled" in note for note in run.notes)


# ------------------------------------------------------------------------------------- folds


def test_folds_are_ranked_apart_and_called_together(folded, class_data):
    studies, found = arrays(folded), values(folded)
    truth = studies.truth.argmax(axis=1)
    assert len(studies) == len(Prepared.load(class_data))
    assert found["lesion", "accuracy"] == pytest.approx((truth == studies.called).mean())
    expected = reference.cohen_kappa_score(truth, studies.called)
    assert found["lesion", "kappa"] == pytest.approx(expected)
    fold = studies.studies["fold"].to_numpy()
    ranked = [
        reference.roc_auc_score(truth[own], studies.probabilities[own], multi_class="ovr")
        for own in (fold == number for number in (1, 2))
    ]
    assert found["lesion", "auroc"] == pytest.approx(np.mean(ranked))
    assert (folded.thresholds, folded.operating_points) == ({}, {})
    assert not any("threshold" in note for note in folded.notes)


def test_the_temperature_of_folds_is_fitted_on_all_held_out_patients(folded):
    studies = arrays(folded)
    expected = metrics.fit_class_temperature(studies.truth, studies.probabilities)
    assert folded.temperatures == pytest.approx({"lesion": expected})


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("monitor", ["recall", "kappa_quadratic"])
def test_a_monitor_without_meaning_is_refused_before_a_folder_is_made(
    class_data, tmp_path, monitor
):
    expected = f"fit.monitor = {monitor} means nothing of classes that are not ordered, .*: one of"
    with pytest.raises(InputError, match=expected):
        run_small(class_data, tmp_path / "run", f"fit.monitor={monitor}")
    assert not (tmp_path / "run").exists()


def test_a_monitor_of_classes_means_nothing_of_labels(demo_data, tmp_path):
    with pytest.raises(InputError, match="kappa means nothing of yes/no labels"):
        run_small(demo_data, tmp_path / "run", "fit.monitor=kappa")


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        ("unet", ("requires=null",), "a segmenter tells only whether there is a lesion"),
        ("fsm_bilstm_ct", ("requires=null",), "of classes .lesion. every study has one"),
    ],
)
def test_what_needs_labels_is_refused(class_data, tmp_path, preset, settings, words):
    with pytest.raises(InputError, match=words):
        train(preset, class_data, tmp_path / "run", overrides=settings, track=False, verbose=False)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- MLflow


def test_mlflow_is_told_of_the_classes_and_their_metrics(class_data, no_server):
    """A class called as a mean over the classes is does not take its place."""
    import mlflow

    out = no_server / "run"
    overrides = (*SMALL, "fit.epochs=1")
    macro = with_names(class_data, [*NAMES[:2], "macro"])
    run = train(recipes.Experiment(), macro, out, overrides=overrides, verbose=False)
    mlflow.set_tracking_uri(f"sqlite:///{no_server}/mlflow.db")
    logged = mlflow.get_run(run.info["mlflow_run_id"]).data
    assert json.loads(logged.params["classes"]) == [*NAMES[:2], "macro"]
    assert logged.params["classes_column"] == "lesion"
    found = values(run)
    for key in ("accuracy", "auroc", "f1_macro"):
        assert logged.metrics[f"test_{key}"] == pytest.approx(found["lesion", key])
    for key in ("auroc", "f1"):
        assert logged.metrics[f"test_{key}_of_macro"] == pytest.approx(found["macro", key])


def test_a_run_knows_its_classes(finished):
    assert Run.open(finished.path).classes.names == tuple(NAMES)
