"""Evaluation of runs: averages over sequences and folds, unknown labels, tables for people."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from small_run import SMALL, run_small

from medseq_tf import evaluate as evaluation
from medseq_tf import experiment as recipes
from medseq_tf import metrics, models
from medseq_tf.inference import study_probabilities
from medseq_tf.pipeline import SliceStore, evaluation_batches
from medseq_tf.prepare import prepare
from medseq_tf.prepared import Prepared


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture
def small_model():
    recipe = recipes.load(recipes.Experiment(), SMALL)
    return models.build(recipe.model, (32, 32, 1), labels=1, seed=0)


def test_a_study_of_several_sequences_gets_their_mean_probability(prepared, small_model):
    recipe = recipes.load(
        recipes.Experiment(), [*SMALL, "sequence.policy=paper", "sequence.evaluation.policy=paper"]
    )
    store, rows = SliceStore(prepared, recipe), np.array([5, 2, 9])
    expected = {int(row): [] for row in rows}
    for inputs, _, owners in evaluation_batches(prepared, rows, recipe, batch_size=1, store=store):
        logit = float(small_model(inputs)[0, 0])
        expected[int(owners[0])].append(1 / (1 + np.exp(-logit)))
    assert max(map(len, expected.values())) > 1
    found = study_probabilities(small_model, store, rows, recipe)
    np.testing.assert_allclose(found[:, 0], [np.mean(expected[int(r)]) for r in rows], atol=1e-5)


def test_batch_mates_and_order_change_no_probability(prepared, small_model):
    recipe = recipes.load(recipes.Experiment(), [*SMALL, "sequence.evaluation.policy=all"])
    store, rows = SliceStore(prepared, recipe), np.arange(len(prepared))
    together = study_probabilities(small_model, store, rows, recipe)
    alone = [study_probabilities(small_model, store, [row], recipe)[0] for row in rows[::-1]]
    np.testing.assert_allclose(together, alone[::-1], atol=1e-5)


def predictions(truth, probability, fold=None, threshold=0.5):
    count = len(truth)
    table = pd.DataFrame(
        {
            "study": [f"s{i}" for i in range(count)],
            "patient": [f"p{i}" for i in range(count)],
            "slices": 3,
            "split": "test",
            "label": "lesion",
            "truth": np.asarray(truth, float),
            "probability": probability,
            "threshold": threshold,
        }
    )
    return table if fold is None else table.assign(fold=fold)


def test_scores_are_those_of_scikit_learn(rng):
    truth, probability = np.arange(60) % 2, rng.random(60)
    table = evaluation.score(predictions(truth, probability), ["lesion"], resamples=50)
    values = table.set_index("metric")["value"]
    assert values["auroc"] == pytest.approx(roc_auc_score(truth, probability))
    calls = probability >= 0.5
    assert values["f1_macro"] == pytest.approx(f1_score(truth, calls, average="macro"))
    assert set(table["split"]) == {"test"}


def test_pooled_folds_are_each_called_at_their_own_threshold():
    truth = [1, 0, 1, 0]
    table = predictions(truth, [0.9, 0.6, 0.3, 0.1], [1, 1, 2, 2], [0.7, 0.7, 0.2, 0.2])
    values = evaluation.score(table, ["lesion"], resamples=20).set_index("metric")["value"]
    assert values["accuracy"] == 1
    assert values["auroc"] == 0.75


def test_fold_summary_is_the_mean_over_folds():
    table = predictions([1, 0, 1, 0], [0.9, 0.6, 0.1, 0.3], [1, 1, 2, 2])
    summary = evaluation.fold_summary(table).set_index("metric")
    assert summary.loc["auroc", "mean"] == 0.5
    assert summary.loc["auroc", "sd"] == pytest.approx(np.std([1, 0], ddof=1))


def test_point_metrics_leave_out_unknown_labels_and_labels_of_one_class():
    labels = np.array([[1, 1], [0, 1], [np.nan, 1], [0, 1]], float)
    values = evaluation.point_metrics(labels, np.array([[0.9, 0.1]] * 2 + [[0.2, 0.1]] * 2))
    expected = metrics.all_metrics(labels[:, 0], np.array([0.9, 0.9, 0.2, 0.2]))
    assert values == {name: float(value) for name, value in expected.items()}


def test_every_monitor_of_a_recipe_is_measured():
    assert set(recipes.MONITORS) == {*metrics.METRICS, "loss"}


def test_text_has_a_line_a_metric_and_each_note_once(rng):
    table = evaluation.score(predictions([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]), ["lesion"], 50)
    lines = evaluation.text(table).splitlines()
    assert lines[0].startswith("split")
    assert len([line for line in lines if line.startswith("test")]) == len(evaluation.SHOWN)
    notes = [line for line in lines if line.startswith("[")]
    assert notes
    assert len(notes) == len(set(notes))


@pytest.mark.slow
def test_five_labels_some_unknown_from_data_to_metrics(tmp_path):
    """Labels are weighted, scored and thresholded one by one; the macro row is their mean."""
    data = prepare(
        "demo", out=tmp_path / "five", patients=60, size=32, labels=5, workers=1, progress=False
    )
    data.studies.loc[data.studies.index[:10], "label.edema"] = np.nan
    run = run_small(data, tmp_path / "run", "fit.epochs=1", "loss.weights=chexnet")
    table = run.metrics
    assert set(run.thresholds) == set(data.label_names)
    assert set(table["label"]) == {*data.label_names, "macro"}
    auroc = table[(table["split"] == "test") & (table["metric"] == "auroc")].set_index("label")
    known = auroc["value"].drop("macro").astype(float)
    assert auroc.loc["macro", "value"] == pytest.approx(known.mean())
    assert run.predictions["truth"].isna().sum() <= 10
