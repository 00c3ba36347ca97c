"""Scores of predictions: metrics, folds, unknown labels, calls by patient and subgroups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from prediction_tables import prediction_table
from sklearn.metrics import f1_score, roc_auc_score
from small_run import run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.scoring import (
    confusion_table,
    fold_summary,
    point_metrics,
    score,
    subgroup_table,
)


def test_scores_are_those_of_scikit_learn(rng):
    truth, probability = np.arange(60) % 2, rng.random(60)
    table = score(prediction_table(truth, probability), ["lesion"], resamples=50)
    values = table.set_index("metric")["value"]
    assert values["auroc"] == pytest.approx(roc_auc_score(truth, probability))
    calls = probability >= 0.5
    assert values["f1_macro"] == pytest.approx(f1_score(truth, calls, average="macro"))
    assert set(table["split"]) == {"test"}


def test_pooled_folds_are_each_called_at_their_own_threshold():
    truth = [1, 0, 1, 0]
    table = prediction_table(truth, [0.9, 0.6, 0.3, 0.1], [1, 1, 2, 2], [0.7, 0.7, 0.2, 0.2])
    values = score(table, ["lesion"], resamples=20).set_index("metric")["value"]
    assert values["accuracy"] == 1
    assert values["auroc"] == 1  # the mean over the folds, each ranked by its own model


def test_fold_summary_is_the_mean_over_folds():
    table = prediction_table([1, 0, 1, 0], [0.9, 0.6, 0.1, 0.3], [1, 1, 2, 2])
    summary = fold_summary(table).set_index("metric")
    assert summary.loc["auroc", "mean"] == 0.5
    assert summary.loc["auroc", "sd"] == pytest.approx(np.std([1, 0], ddof=1))


def test_point_metrics_leave_out_unknown_labels_and_labels_of_one_class():
    labels = np.array([[1, 1], [0, 1], [np.nan, 1], [0, 1]], float)
    values = point_metrics(labels, np.array([[0.9, 0.1]] * 2 + [[0.2, 0.1]] * 2))
    expected = metrics.all_metrics(labels[:, 0], np.array([0.9, 0.9, 0.2, 0.2]))
    assert values == {name: float(value) for name, value in expected.items()}


def test_every_monitor_of_a_recipe_is_measured():
    of_labels = {*metrics.METRICS, "loss", "dice", "iou"}
    assert set(recipes.MONITORS_OF["labels"]) == of_labels
    for outputs in ("classes", "ordered"):
        names = metrics.class_metric_names(outputs == "ordered", costs=False)
        of_classes = {*names, "loss"} - {"expected_calibration_error"}
        assert set(recipes.MONITORS_OF[outputs]) == of_classes
        of_labels |= of_classes
    assert set(recipes.MONITORS) == of_labels


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


def test_confusion_counts_patients_who_are_positive_if_one_study_is():
    table = prediction_table([1, 0, 0, 0, 1, np.nan], [0.2, 0.9, 0.1, 0.8, 0.7, 0.9])
    table["patient"] = ["a", "a", "b", "c", "d", "e"]
    table["positive"] = table["probability"] >= 0.5
    row = confusion_table(table).iloc[0]
    counts = ["true_positives", "false_negatives", "false_positives", "true_negatives"]
    assert row[["patients", *counts]].tolist() == [4, 2, 0, 1, 1]


def test_subgroups_are_scored_by_themselves(rng):
    table = prediction_table(np.arange(90) % 2, rng.random(90)).assign(slices=np.arange(90))
    groups = pd.DataFrame({"sex": ["f", "m", None] * 30}, index=table["study"])
    found = subgroup_table(table, ["lesion"], groups, resamples=50)
    assert found.drop_duplicates(["subgroup", "group"])[["subgroup", "group"]].values.tolist() == [
        ["slices", "0 to 29"],
        ["slices", "30 to 59"],
        ["slices", "60 to 89"],
        ["sex", "f"],
        ["sex", "m"],
    ]
    rows = found.set_index(["subgroup", "group", "metric"])
    women = table[np.arange(90) % 3 == 0]
    expected = roc_auc_score(women["truth"], women["probability"])
    assert rows.loc[("sex", "f", "auroc"), "value"] == pytest.approx(expected)
    assert rows.loc[("sex", "f", "auroc"), "n"] == 30


def test_a_cut_chosen_in_each_fold_has_no_interval(rng):
    """Sensitivity at 90% specificity is that of cuts chosen on each fold's own studies."""
    truth = np.arange(80) % 2
    probability = np.clip(0.3 * truth + 0.7 * rng.random(80), 0, 1)
    table = prediction_table(truth, probability, fold=np.arange(80) // 20 + 1)
    rows = score(table, ["lesion"], resamples=50).set_index("metric")
    for name in metrics.TRADE_OFFS:
        assert np.isnan(rows.loc[name, "low"])
        assert "cut chosen on each fold's own test studies: too good" in rows.loc[name, "note"]
