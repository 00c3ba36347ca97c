"""Folds and repeats: what is averaged, what is pooled, what an interval and a comparison count."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from medseq_tf.evaluation import comparison, cross_validation, metrics, scoring


def predictions(truth, probability, fold, repeat=None, patient=None, threshold=0.5, label="lesion"):
    """A table as a cross-validated run keeps it; a study a row unless repeats say otherwise."""
    truth = np.asarray(truth, float)
    repeat = np.ones(len(truth), int) if repeat is None else np.asarray(repeat)
    study = pd.Series(repeat).groupby(repeat).cumcount().to_numpy()
    table = pd.DataFrame(
        {
            "study": [f"s{i:03d}" for i in study],
            "patient": [f"p{i:03d}" for i in (study if patient is None else patient)],
            "slices": 5,
            "split": "test",
            "label": label,
            "truth": truth,
            "probability": np.asarray(probability, float),
            "threshold": threshold,
            "fold": fold,
            "repeat": repeat,
        }
    )
    return table.assign(positive=table["probability"] >= table["threshold"])


def drawn(rng, n=60, repeats=1, gap=1.0, k=3):
    """Scores of a fixed quality: each repeat adds noise of its own."""
    truth = np.arange(n) % 2
    base = gap * truth + rng.normal(size=n)
    rows = []
    for repeat in range(repeats):
        fold = rng.permutation(n // 2).repeat(2) % k + 1 + repeat * k
        score = 1 / (1 + np.exp(-(base + 0.3 * rng.normal(size=n) - gap / 2)))
        rows.append(predictions(truth, score, fold, np.full(n, repeat + 1)))
    return pd.concat(rows, ignore_index=True)


def by_metric(table):
    return table.set_index("metric")


def test_folds_are_ranked_apart_and_called_together(rng):
    table = drawn(rng, n=90)
    shifted = table.assign(probability=(table["probability"] + table["fold"]) / 4)
    result = by_metric(scoring.score(shifted, ["lesion"], 200))
    aurocs = [
        sklearn_metrics.roc_auc_score(part["truth"], part["probability"])
        for _, part in shifted.groupby("fold")
    ]
    assert result.loc["auroc", "value"] == pytest.approx(np.mean(aurocs))
    accuracy = sklearn_metrics.accuracy_score(shifted["truth"], shifted["probability"] >= 0.5)
    assert result.loc["accuracy", "value"] == pytest.approx(accuracy)
    inside = result.dropna(subset="low")
    assert ((inside["low"] <= inside["value"]) & (inside["value"] <= inside["high"])).all()
    assert (inside["interval"] == "cross-validation").all()
    assert set(result["question"]) == {cross_validation.RECIPE}


def test_folds_are_pooled_only_where_their_probabilities_are_alike(rng):
    table = drawn(rng, n=90)
    alike = by_metric(scoring.score(table, ["lesion"], 20))
    pooled = sklearn_metrics.roc_auc_score(table["truth"], table["probability"])
    assert alike.loc["auroc_pooled", "value"] == pytest.approx(pooled)
    shifted = table.assign(probability=(table["probability"] + table["fold"]) / 4)
    assert "auroc_pooled" not in scoring.score(shifted, ["lesion"], 20)["metric"].tolist()


def test_a_recipe_is_less_sure_than_its_fitted_models(rng):
    """The interval counts the spread of training; that of the fitted models does not."""
    table = drawn(rng, n=80)
    recipe = by_metric(scoring.score(table, ["lesion"], 500)).loc["auroc"]
    plain = metrics.delong_interval(table["truth"], table["probability"])
    assert recipe["high"] - recipe["low"] > 1.15 * (plain.high - plain.low)


def test_a_fold_that_failed_widens_the_interval(rng):
    table = drawn(rng, n=100, gap=3.0, k=5)
    failed = table.copy()
    mine = failed["fold"] == 1
    failed.loc[mine, "probability"] = 1 - failed.loc[mine, "probability"]
    low, high = (
        by_metric(scoring.score(part, ["lesion"], 50)).loc["auroc"] for part in (failed, table)
    )
    assert low["high"] - low["low"] > 3 * (high["high"] - high["low"])


def test_repeats_are_averaged_and_a_study_counts_once(rng):
    table = drawn(rng, repeats=3)
    result = by_metric(scoring.score(table, ["lesion"], 100))
    aurocs = [
        metrics.auroc(part["truth"], part["probability"]) for _, part in table.groupby("fold")
    ]
    assert len(aurocs) == 9
    assert result.loc["auroc", "value"] == pytest.approx(np.mean(aurocs))
    recalls = [
        sklearn_metrics.recall_score(part["truth"], part["positive"])
        for _, part in table.groupby("repeat")
    ]
    assert result.loc["recall", "value"] == pytest.approx(np.mean(recalls))
    assert (result["n"] == 60).all()
    assert (result["patients"] == 60).all()
    assert (result["positives"] == 30).all()


def test_repeating_the_same_folds_makes_no_one_surer(rng):
    once = drawn(rng)
    again = once.assign(repeat=2, fold=once["fold"] + 3)
    narrow, wide = (
        by_metric(scoring.score(part, ["lesion"], 200)).loc["auroc"]
        for part in (once, pd.concat([once, again], ignore_index=True))
    )
    assert wide["value"] == pytest.approx(narrow["value"])
    assert wide["high"] - wide["low"] >= narrow["high"] - narrow["low"]


def test_rows_in_any_order_say_the_same(rng):
    table = drawn(rng, repeats=2)
    shuffled = table.sample(frac=1, random_state=1)
    first, second = (scoring.score(part, ["lesion"], 50) for part in (table, shuffled))
    pd.testing.assert_frame_equal(first, second)


def test_a_table_without_repeats_is_one_repeat(rng):
    table = drawn(rng)
    first, second = (
        scoring.score(part, ["lesion"], 50) for part in (table, table.drop(columns="repeat"))
    )
    pd.testing.assert_frame_equal(first, second)


def test_studies_of_a_patient_do_not_make_surer(rng):
    """Each study twice is no more patients."""
    once = drawn(rng)
    copies = once.assign(study=once["study"] + "b")
    table = pd.concat([once, copies], ignore_index=True)
    alone, both = (by_metric(scoring.score(part, ["lesion"], 400)) for part in (once, table))
    for metric, tolerance in {"auroc": 1e-9, "recall": 0.05, "brier": 0.05}.items():
        widths = [part.loc[metric, "high"] - part.loc[metric, "low"] for part in (alone, both)]
        assert widths[1] == pytest.approx(widths[0], rel=tolerance)
    assert both.loc["auroc", "n"] == 120
    assert both.loc["auroc", "patients"] == 60


def test_a_fold_that_cannot_be_ranked_is_left_out_and_named(rng):
    table = drawn(rng)
    table.loc[table["fold"] == 2, "truth"] = 0
    row = by_metric(scoring.score(table, ["lesion"], 50)).loc["auroc"]
    assert row["note"] == "without fold 2: not both classes"
    parts = [part for fold, part in table.groupby("fold") if fold != 2]
    expected = np.mean([metrics.auroc(part["truth"], part["probability"]) for part in parts])
    assert row["value"] == pytest.approx(expected)
    assert row["low"] < row["value"] < row["high"]


def test_folds_of_one_positive_patient_each_have_an_interval(rng):
    truth = np.zeros(40)
    truth[:5] = 1
    fold = np.arange(40) % 5 + 1
    probability = np.clip(0.3 * truth + 0.6 * rng.random(40), 0, 1)
    row = by_metric(scoring.score(predictions(truth, probability, fold), ["lesion"], 50))
    assert row.loc["auroc", "low"] < row.loc["auroc", "value"] < row.loc["auroc", "high"]


def test_separation_and_full_recall_have_a_lower_bound():
    truth = np.arange(40) % 2
    fold = np.arange(40) // 2 % 5 + 1
    table = predictions(truth, 0.1 + 0.8 * truth, fold)
    result = by_metric(scoring.score(table, ["lesion"], 50))
    for metric in ("auroc", "recall", "specificity", "accuracy", "precision", "f1"):
        assert result.loc[metric, "value"] == 1
        assert 0.5 < result.loc[metric, "low"] < 0.95
        assert result.loc[metric, "high"] == pytest.approx(1)


def test_one_positive_patient_has_no_interval():
    table = predictions([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], [1, 1, 2, 2])
    result = by_metric(scoring.score(table, ["lesion"], 20))
    assert np.isnan(result.loc["auroc", "low"])
    assert "one positive patient" in result.loc["auroc", "note"]


def test_labels_and_their_mean(rng):
    tables = [drawn(rng).assign(label=name) for name in ("a", "b")]
    nothing = tables[0].assign(label="c", truth=0.0)
    result = scoring.score(pd.concat([*tables, nothing]), ["a", "b", "c"], 100)
    auroc = result[result["metric"] == "auroc"].set_index("label")
    assert auroc.loc["macro", "value"] == pytest.approx(auroc.loc[["a", "b"], "value"].mean())
    assert auroc.loc["macro", "note"] == "without c: not both classes"
    assert auroc.loc["macro", "low"] < auroc.loc["macro", "value"] < auroc.loc["macro", "high"]
    assert np.isnan(auroc.loc["c", "value"])


# ------------------------------------------------------------------------------- two recipes


def test_a_comparison_is_paired_by_patient(rng):
    a = drawn(rng, n=120, repeats=2)
    b = a.assign(probability=np.clip(a["probability"] + rng.normal(0, 0.02, len(a)), 0, 1))
    found = comparison.compare_tables({"a": a, "b": b}, ["lesion"], 200)
    row = by_metric(found.differences).loc["auroc"]
    alone = by_metric(found.table[found.table["model"] == "a"]).loc["auroc"]
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["high"] - row["low"] < 0.4 * (alone["high"] - alone["low"])
    assert 0 <= row["p"] <= 1
    assert row["question"] == cross_validation.RECIPE


def test_a_recipe_compared_with_itself_is_alike(rng):
    table = drawn(rng)
    found = comparison.compare_tables({"a": table, "b": table}, ["lesion"], 50).differences
    row = by_metric(found).loc["auroc"]
    assert (row["difference"], row["p"]) == (0, 1)


def test_other_folds_and_repeats_are_compared_by_patient(rng):
    a, b = drawn(rng, repeats=1), drawn(rng, repeats=2, k=5)
    single = drawn(rng).drop(columns=["fold", "repeat"])
    for other in (b, single):
        found = comparison.compare_tables({"a": a, "b": other}, ["lesion"], 100).differences
        row = by_metric(found).loc["auroc"]
        assert row["low"] < row["difference"] < row["high"]
        assert 0 <= row["p"] <= 1


def test_folds_of_the_same_numbers_that_divide_the_patients_otherwise_are_other_folds(rng):
    a = drawn(rng, n=94, k=5)
    other = a.assign(fold=rng.permutation(94) % 5 + 1)
    assert len({(part["truth"] == 1).sum() for _, part in other.groupby("fold")}) > 1
    renamed = other.assign(fold=other["fold"] + 5)
    found, expected = (
        comparison.compare_tables({"a": a, "b": b}, ["lesion"], 100).differences
        for b in (other, renamed)
    )
    pd.testing.assert_frame_equal(found, expected)
    row = by_metric(found).loc["auroc"]
    assert row["low"] < row["difference"] < row["high"]


def test_few_patients_are_described_and_nothing_concluded(rng):
    truth = np.arange(60) % 10 == 0
    tables = [
        predictions(truth, rng.random(60), np.arange(60) // 10 % 3 + 1, label=label)
        for label in ("a", "b")
    ]
    table = pd.concat(tables, ignore_index=True)
    rows = scoring.score(table, ["a", "b"], 100).set_index(["label", "metric"])
    assert rows.loc[("a", "auroc"), "note"] == f"6 positive patients: {metrics.DESCRIBED}"
    better = table.assign(probability=(table["probability"] + table["truth"]) / 2)
    found = comparison.compare_tables({"x": table, "y": better}, ["a", "b"], 100).differences
    aurocs = found[found["metric"] == "auroc"].set_index("label")
    assert aurocs["p"].isna().all()
    assert metrics.DESCRIBED in aurocs.loc["macro", "note"]


def test_a_far_better_recipe_is_found(rng):
    a, b = drawn(rng, n=100, gap=3.0), drawn(rng, n=100, gap=0.0)
    row = by_metric(comparison.compare_tables({"a": a, "b": b}, ["lesion"], 100).differences)
    assert row.loc["auroc", "p"] < 0.001
    assert row.loc["auroc", "low"] > 0


def test_how_common_the_label_is_counts_in_precision(rng):
    """Where all are called positive, precision is the share of positive patients."""
    truth = np.arange(80) % 4 == 0
    table = predictions(truth, 0.6 + 0.3 * rng.random(80), np.arange(80) // 4 % 5 + 1)
    row = by_metric(scoring.score(table, ["lesion"], 400)).loc["precision"]
    low, high = metrics.wilson_interval(20, 80)
    assert row["value"] == 0.25
    assert row["high"] - row["low"] >= high - low


def test_the_mean_over_nine_perfect_labels_has_an_interval_whatever_its_rounding():
    truth, names = np.arange(40) % 2, [f"label {number}" for number in range(9)]
    fold = np.arange(40) // 2 % 2 + 1
    table = pd.concat([predictions(truth, truth, fold, label=name) for name in names])
    rows = cross_validation.evaluate_folds(cross_validation.held_out(table, names), 20)
    accuracy = rows.set_index(["label", "metric"]).loc[("macro", "accuracy")]
    assert accuracy["value"] == pytest.approx(1)
    assert accuracy["low"] < 1
    assert accuracy["note"] == ""
