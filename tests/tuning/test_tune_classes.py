"""A search on classes that exclude each other: what it may aim at, and what it finds."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from class_predictions import class_predictions
from sklearn import metrics as reference
from trials import SPACE, in_this_process

from medseq_tf.errors import InputError
from medseq_tf.evaluation import scoring
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run
from medseq_tf.tuning import optimism, trial, tune
from medseq_tf.tuning.space import Space

CLASSES = Classes("tumour", ("glioma", "meningioma", "pituitary"))
SPACE = {**SPACE, "space": {"optimizer.learning_rate": {"float": [1e-4, 1e-1], "log": True}}}


def aiming_at(metric, **objective):
    return {**SPACE, "objective": {"metric": metric, **objective}}


def search(data, out, space, **arguments):
    settings = {"tuner": "random", "track": False, "verbose": False, **arguments}
    return tune.tune(space, data, out=out, **settings)


@pytest.fixture(scope="module")
def found(class_data, tmp_path_factory):
    """A search of the recipe as it is and one trial more, each one training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "run", in_this_process)
        patch.setattr(trial, "end_with_parent", lambda: None)
        out = tmp_path_factory.mktemp("search") / "found"
        space = aiming_at("log_loss", validation=True)
        return search(class_data, out, space, trials=1, retrain=False)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("metric", "overrides", "words"),
    [
        ("recall", [], "objective.metric = recall means nothing of classes"),
        ("kappa_quadratic", [], "classes that are not ordered"),
        ("kappa", ["fit.monitor=f1"], "fit.monitor = f1 means nothing of classes"),
    ],
)
def test_an_aim_without_meaning_is_refused_before_a_search(
    class_data, tmp_path, metric, overrides, words
):
    with pytest.raises(InputError, match=words):
        search(class_data, tmp_path / "out", aiming_at(metric), overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_the_losses_of_classes_are_to_be_small():
    for metric in ("log_loss", "brier", "mean_absolute_error"):
        assert Space.load(aiming_at(metric)).objective.direction == "min"
    for metric in ("auroc", "kappa", "kappa_quadratic", "balanced_accuracy", "auroc_pairwise"):
        assert Space.load(aiming_at(metric)).objective.direction == "max"


# -------------------------------------------------------------------------------- what it finds


def test_a_trial_is_scored_by_all_classes_together(found):
    for name in ("base", "0000"):
        folder = found.path / "trials" / name
        run = Run.open(folder / "run")
        held_out = ClassTable.of(run.predictions.query("split == 'validation'"), run.classes)
        truth = held_out.truth.argmax(axis=1)
        kept = json.loads((folder / "result.json").read_text("utf-8"))
        told = np.take_along_axis(held_out.probabilities, truth[:, None], axis=1)
        assert kept["score"] == pytest.approx(-np.log(told).mean())
        assert kept["metrics"]["accuracy"] == pytest.approx(np.mean(truth == held_out.called))
        kappa = reference.cohen_kappa_score(truth, held_out.called)
        assert kept["metrics"]["kappa"] == pytest.approx(kappa)


def test_the_best_is_that_of_the_smallest_loss_and_says_how_good_it_looks(found):
    scores = found.trials.set_index("trial")["log_loss"]
    assert found.winner["trial"] == scores.idxmin()
    assert found.classes.names == ("hemorrhage", "ischemia", "mass")
    assert "log_loss" in found.text()
    assert np.isfinite(found.corrected.corrected)


@pytest.mark.slow
def test_nested_evaluation_tests_on_patients_who_chose_nothing(class_data, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "run", in_this_process)
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    space = aiming_at("accuracy", folds=2)
    nested = search(class_data, tmp_path / "nested", space, trials=1, nested=2)
    table = pd.DataFrame(nested.nested["table"])
    row = table[table["metric"] == "accuracy"]
    assert row[["label", "n"]].to_numpy().tolist() == [["lesion", 40]]
    assert row["low"].item() < row["value"].item() < row["high"].item()
    assert "nested evaluation over 2 folds: accuracy" in nested.text()
    assert nested.champion.metrics["label"].iloc[0] == "lesion"


# ------------------------------------------------------------------------------ too good a best


def trials_of(count, patients, sharpness=1.0):
    """Held-out predictions of trials that are all alike."""
    tables = {}
    for number in range(count):
        table = class_predictions(
            CLASSES, patients, seed=number, sharpness=sharpness, folds=5, repeats=2
        )
        tables[f"{number:04d}"] = optimism.held_out(table.assign(patient=table["study"]))
    return tables


def accuracy(table):
    return scoring.fold_table(table, CLASSES)["accuracy"].mean()


def test_the_best_of_equal_trials_is_corrected_towards_what_they_are():
    trials = trials_of(12, 60)
    scores = [accuracy(table) for table in trials.values()]
    corrected, why = optimism.correct(trials, "accuracy", classes=CLASSES)
    assert why == ""
    assert corrected < max(scores) - 0.01
    assert abs(corrected - np.mean(scores)) < abs(max(scores) - np.mean(scores))


def test_of_one_trial_nothing_was_chosen():
    trials = trials_of(1, 150)
    for metric in ("auroc", "kappa", "log_loss"):
        expected = scoring.fold_table(trials["0000"], CLASSES)[metric].mean()
        corrected, _ = optimism.correct(trials, metric, classes=CLASSES)
        assert corrected == pytest.approx(expected, abs=0.03)


def test_a_class_of_one_patient_and_an_unknown_metric_say_why():
    trials = trials_of(2, 60)
    first = next(iter(trials.values()))
    gliomas = first.query("label == 'glioma' and truth == 1")["study"].unique()
    few = {name: table[~table["study"].isin(gliomas[1:])] for name, table in trials.items()}
    assert "two patients of each class" in optimism.correct(few, "kappa", classes=CLASSES)[1]
    assert "not resampled" in optimism.correct(trials, "recall", classes=CLASSES)[1]
