"""Evaluation of runs: averages over sequences and folds, unknown labels, tables for people."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
from small_run import SMALL, run_small

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import evaluate as evaluation
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.batches import evaluation_batches
from medseq_tf.input.slice_store import SliceStore


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
    assert values["auroc"] == 1  # the mean over the folds, each ranked by its own model


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
    assert set(recipes.MONITORS) == {*metrics.METRICS, "loss", "dice", "iou"}


def test_text_has_a_line_a_metric_and_each_note_once(rng):
    table = evaluation.score(predictions([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]), ["lesion"], 50)
    lines = evaluation.text(table).splitlines()
    assert lines[0].startswith("split")
    assert len([line for line in lines if line.startswith("test")]) == len(
        set(evaluation.SHOWN) & set(metrics.TABLE)
    )
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


# ------------------------------------------------------------- calibration, confusion, subgroups


def test_columns_of_calibration_stand_apart_however_long_they_are(rng):
    truth = np.arange(20) % 2.0
    table = predictions(truth, np.clip(0.5 + rng.normal(0, 0.001, 20), 0, 1), threshold=0.5)
    table["positive"] = table["probability"] >= 0.5
    words = evaluation.judge(table.assign(calibrated=table["probability"]), ["lesion"]).text()
    rows = [line for line in words.splitlines() if "calibration_" in line]
    assert any(len(line) > 100 for line in rows)
    assert all(len(re.split(r"\) {2,}", line)) == 2 for line in rows)


def test_intervals_of_calibration_say_that_training_is_not_in_them(rng):
    truth = np.arange(24) % 2.0
    table = predictions(truth, rng.uniform(0.3, 0.7, 24), fold=np.repeat([1, 2, 3], 8))
    table["calibrated"], table["positive"] = table["probability"], table["probability"] >= 0.5
    said = evaluation.PATIENTS_ALONE
    assert evaluation.judge(table, ["lesion"], resamples=50).text().count(said) == 1
    alone = evaluation.judge(table.drop(columns="fold"), ["lesion"])
    assert said not in alone.text()


def test_a_table_without_intervals_does_not_say_of_what_they_are(rng):
    truth = np.arange(20) % 2.0
    table = evaluation.score(predictions(truth, rng.random(20), threshold=0.5), ["lesion"])
    assert "intervals of: " in evaluation.text(table)
    assert "intervals of: " not in evaluation.text(table.assign(low=np.nan, high=np.nan))


def two_splits(rng, count=120, sharpness=2.5):
    """Overconfident predictions of validation and test studies."""
    truth = rng.integers(0, 2, count)
    logit = sharpness * rng.normal(0.8 * (2 * truth - 1), 1)
    table = predictions(truth, 1 / (1 + np.exp(-logit)), threshold=0.4)
    table["split"] = np.where(np.arange(count) < count // 2, "validation", "test")
    table["positive"] = table["probability"] >= table["threshold"]
    return table


def test_temperature_is_fitted_on_validation_and_changes_no_call(rng):
    table = two_splits(rng)
    temperatures, notes = evaluation.fit_temperatures(table)
    validation = table[table["split"] == "validation"]
    logit = np.log(validation["probability"] / (1 - validation["probability"]))
    expected = metrics.fit_temperature(validation["truth"], logit)
    assert temperatures == {"lesion": pytest.approx(expected)}
    assert expected > 1.2
    assert not notes
    scaled = evaluation.calibrated(table, temperatures)
    threshold = metrics.scale(0.4, temperatures["lesion"])
    np.testing.assert_array_equal(scaled["calibrated"] >= threshold, scaled["positive"])
    rows = evaluation.calibration_table(scaled).set_index(["split", "metric"])
    brier = brier_score_loss(validation["truth"], validation["probability"])
    assert rows.loc[("validation", "brier"), "before"] == pytest.approx(brier)
    assert rows.loc[("validation", "brier"), "after"] < brier
    with_interval = rows.drop("expected_calibration_error", level="metric")
    assert (with_interval["after_low"] < with_interval["after_high"])["test"].all()
    slopes = rows.loc[("validation", "calibration_slope")]
    assert slopes["after"] == pytest.approx(slopes["before"] * expected, rel=1e-4)
    assert abs(slopes["after"] - 1) < abs(slopes["before"] - 1)
    errors = rows.loc[("validation", "expected_calibration_error")]
    assert errors[["before_low", "before_high"]].isna().all()
    assert errors["before_null_high"] < errors["before"]  # far worse than chance makes it
    assert 0 < errors["after_null"] < errors["after_null_high"]


def test_a_validation_of_one_class_scales_nothing():
    table = predictions([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]).assign(split="validation")
    temperatures, notes = evaluation.fit_temperatures(table)
    assert temperatures == {"lesion": 1.0}
    assert notes == [
        "lesion: validation does not have both classes, so probabilities are not scaled"
    ]


def test_validation_told_apart_without_error_is_scaled_too():
    table = predictions([0, 0, 1, 1] * 5, [0.2, 0.4, 0.6, 0.8] * 5).assign(split="validation")
    temperatures, notes = evaluation.fit_temperatures(table)
    assert 0.2 < temperatures["lesion"] < 0.9
    assert not notes


def test_the_cut_of_another_operating_point_is_chosen_on_validation(rng):
    """Sensitivity at 90% specificity is a plain share of the test studies."""
    table = two_splits(rng, count=200)
    points = evaluation.choose_cuts(table)["lesion"]
    validation, test = (table[table["split"] == split] for split in ("validation", "test"))
    negative = validation.loc[validation["truth"] == 0, "probability"]
    cut = points["sensitivity_at_90_specificity"]
    assert (negative < cut).mean() >= 0.9
    row = evaluation.score(table, ["lesion"]).set_index(["split", "metric"])
    row = row.loc[("test", "sensitivity_at_90_specificity")]
    positive = test.loc[test["truth"] == 1, "probability"]
    assert row["value"] == pytest.approx((positive >= cut).mean())
    low, high = metrics.wilson_interval((positive >= cut).sum(), len(positive))
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    kept = (test.loc[test["truth"] == 0, "probability"] < cut).mean()
    assert f"specificity here {kept:.3f}" in row["note"]
    alone = evaluation.score(test, ["lesion"]).set_index("metric")
    alone = alone.loc["sensitivity_at_90_specificity"]
    assert np.isnan(alone["low"])
    assert "too good" in alone["note"]


def test_many_intervals_and_many_tests_say_so(rng):
    truth = np.arange(120) % 2
    tables = {
        name: predictions(truth, np.clip(strength * truth + rng.random(120), 0, 2) / 2)
        for name, strength in (("a", 0.9), ("b", 0.5), ("c", 0.4))
    }
    found = evaluation.compare_tables(tables, ["lesion"]).differences
    p = found.set_index("metric").loc["auroc", ["p", "p_adjusted"]].astype(float)
    order = p["p"].to_numpy().argsort()
    steps = p["p"].to_numpy()[order] * [3, 2, 1]
    expected = np.minimum(np.maximum.accumulate(steps), 1)
    np.testing.assert_allclose(p["p_adjusted"].to_numpy()[order], expected)
    assert "adjusted for 3 tests" in evaluation.compare_tables(tables, ["lesion"]).text()
    groups = pd.DataFrame({"ward": np.arange(120) // 20}, index=tables["a"]["study"]).astype(str)
    table = tables["a"].assign(slices=np.arange(120), calibrated=tables["a"]["probability"])
    table["positive"] = table["probability"] >= table["threshold"]
    words = evaluation.judge(table, ["lesion"], groups=groups).text()
    assert "27 intervals at 95%: one is expected to miss." in words
    assert "called positive if one of them is called so" in words


def test_confusion_counts_patients_who_are_positive_if_one_study_is():
    table = predictions([1, 0, 0, 0, 1, np.nan], [0.2, 0.9, 0.1, 0.8, 0.7, 0.9])
    table["patient"] = ["a", "a", "b", "c", "d", "e"]
    table["positive"] = table["probability"] >= 0.5
    row = evaluation.confusion_table(table).iloc[0]
    counts = ["true_positives", "false_negatives", "false_positives", "true_negatives"]
    assert row[["patients", *counts]].tolist() == [4, 2, 0, 1, 1]


def test_subgroups_are_scored_by_themselves(rng):
    table = predictions(np.arange(90) % 2, rng.random(90)).assign(slices=np.arange(90))
    groups = pd.DataFrame({"sex": ["f", "m", None] * 30}, index=table["study"])
    found = evaluation.subgroup_table(table, ["lesion"], groups, resamples=50)
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


# ---------------------------------------------------------------------------------- comparison


def test_two_models_are_compared_on_the_same_patients(rng):
    truth = np.arange(80) % 2
    a = predictions(truth, np.clip(0.5 * truth + rng.random(80) / 1.5, 0, 1))
    b = predictions(truth, np.clip(0.2 * truth + rng.random(80) / 1.5, 0, 1))
    shuffled = b.sample(frac=1, random_state=0)
    found = evaluation.compare_tables({"a": a, "b": shuffled.iloc[:70]}, ["lesion"], resamples=200)
    common = b.loc[sorted(shuffled.index[:70])]
    expected = metrics.delong_test(
        common["truth"], a.loc[common.index, "probability"], common["probability"]
    )
    row = found.differences.set_index("metric").loc["auroc"]
    assert (row["model"], row["other"], row["method"]) == ("a", "b", "DeLong")
    np.testing.assert_allclose(
        row[["difference", "low", "high", "p"]].astype(float),
        [expected.difference, expected.low, expected.high, expected.p],
    )
    assert found.notes == ["a: 10 of its studies were not tested by all models and are left out"]
    precision = found.differences.set_index("metric").loc["average_precision"]
    assert precision["low"] < precision["difference"] < precision["high"]
    assert precision["method"] == "combined"
    assert "p = " in found.text()
    again = evaluation.compare_tables({"a": a, "b": shuffled.iloc[:70]}, ["lesion"], resamples=200)
    pd.testing.assert_frame_equal(found.differences, again.differences)


def test_a_paired_bootstrap_is_surer_than_an_unpaired_one(rng):
    truth = np.arange(100) % 2
    probability = np.clip(0.3 * truth + 0.7 * rng.random(100), 0, 1)
    near = np.clip(probability + rng.normal(0, 0.01, 100), 0, 1)
    tables = {"a": predictions(truth, probability), "b": predictions(truth, near)}
    found = evaluation.compare_tables(tables, ["lesion"], resamples=200)
    row = found.differences.set_index("metric").loc["brier"]
    alone = found.table.set_index(["model", "metric"]).loc[("a", "brier")]
    assert row["high"] - row["low"] < 0.5 * (alone["high"] - alone["low"])


def test_what_cannot_be_compared_is_said(rng):
    a = predictions([0, 1, 0, 1], rng.random(4))
    b = a.assign(study=[f"other{i}" for i in range(4)])
    with pytest.raises(InputError, match="no study was tested by all of them"):
        evaluation.compare_tables({"a": a, "b": b}, ["lesion"])
    with pytest.raises(InputError, match="other labels or patients"):
        evaluation.compare_tables({"a": a, "b": a.assign(truth=1 - a["truth"])}, ["lesion"])
    with pytest.raises(InputError, match="needs at least two"):
        evaluation.compare([])


@pytest.mark.slow
def test_a_cross_validated_run_from_data_to_comparison(prepared, tmp_path):
    """Folds, temperatures, subgroups, audit, comparison and JSON, through the functions."""
    first = run_small(prepared, tmp_path / "first", "fit.epochs=1", folds=2)
    second = run_small(prepared, tmp_path / "second", "fit.epochs=1", "seed=1", folds=2)
    ages = prepared.studies["study_id"] + "," + (np.arange(len(prepared)) % 2).astype(str)
    (tmp_path / "groups.csv").write_text("study_id,ward\n" + "\n".join(ages), "utf-8")
    found = evaluation.evaluate(
        first,
        prepared,
        resamples=50,
        subgroups=tmp_path / "groups.csv",
        audit=True,
        compare=[second],
    )
    stored = first.predictions
    stored = stored[stored["split"] == "test"].sort_values("study")
    np.testing.assert_allclose(
        found.predictions.sort_values("study")[["probability", "calibrated"]],
        stored[["probability", "calibrated"]],
        atol=1e-5,
    )
    assert len(found.predictions) == len(prepared)
    assert found.audit.is_clean
    assert found.audit.parts["studies"].sum() == len(prepared)
    assert set(found.subgroups["subgroup"]) == {"slices", "ward"}
    by_fold = [
        roc_auc_score(part["truth"], part["probability"]) for _, part in stored.groupby("fold")
    ]
    values = found.table.set_index("metric")["value"]
    assert values["auroc"] == pytest.approx(np.mean(by_fold), abs=1e-6)
    rows = [json.loads(line) for line in found.json_lines().splitlines()]
    tables = {row["table"] for row in rows}
    assert {"metric", "calibration", "confusion", "subgroup", "difference", "part"} <= tables
    assert "differences, on the same patients" in found.text()
    alone = evaluation.compare([first, second], resamples=50)
    assert alone.differences["difference"].notna().any()
    with pytest.raises(InputError, match="not with itself"):
        evaluation.compare([first, first])


def test_a_cut_chosen_in_each_fold_has_no_interval(rng):
    """Sensitivity at 90% specificity is that of cuts chosen on each fold's own studies."""
    truth = np.arange(80) % 2
    probability = np.clip(0.3 * truth + 0.7 * rng.random(80), 0, 1)
    table = predictions(truth, probability, fold=np.arange(80) // 20 + 1)
    rows = evaluation.score(table, ["lesion"], resamples=50).set_index("metric")
    for name in metrics.TRADE_OFFS:
        assert np.isnan(rows.loc[name, "low"])
        assert "cut chosen on each fold's own test studies: too good" in rows.loc[name, "note"]


def test_few_patients_of_folds_get_no_p_value(rng):
    truth = (np.arange(60) < 8).astype(int)
    tables = {
        name: predictions(truth, rng.random(60), fold=np.arange(60) % 2 + 1) for name in ("a", "b")
    }
    row = evaluation.compare_tables(tables, ["lesion"], 50).differences.set_index("metric")
    assert row["p"].isna().all()
    assert f"8 patients of the rarer class: {metrics.DESCRIBED}" in row.loc["auroc", "note"]
