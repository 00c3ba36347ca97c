"""Comparison of models: on the same patients, by paired tests, and refused where it cannot be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from prediction_tables import prediction_table

from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.comparison import compare, compare_tables


def test_two_models_are_compared_on_the_same_patients(rng):
    truth = np.arange(80) % 2
    a = prediction_table(truth, np.clip(0.5 * truth + rng.random(80) / 1.5, 0, 1))
    b = prediction_table(truth, np.clip(0.2 * truth + rng.random(80) / 1.5, 0, 1))
    shuffled = b.sample(frac=1, random_state=0)
    found = compare_tables({"a": a, "b": shuffled.iloc[:70]}, ["lesion"], resamples=200)
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
    again = compare_tables({"a": a, "b": shuffled.iloc[:70]}, ["lesion"], resamples=200)
    pd.testing.assert_frame_equal(found.differences, again.differences)


def test_a_paired_bootstrap_is_surer_than_an_unpaired_one(rng):
    truth = np.arange(100) % 2
    probability = np.clip(0.3 * truth + 0.7 * rng.random(100), 0, 1)
    near = np.clip(probability + rng.normal(0, 0.01, 100), 0, 1)
    tables = {"a": prediction_table(truth, probability), "b": prediction_table(truth, near)}
    found = compare_tables(tables, ["lesion"], resamples=200)
    row = found.differences.set_index("metric").loc["brier"]
    alone = found.table.set_index(["model", "metric"]).loc[("a", "brier")]
    assert row["high"] - row["low"] < 0.5 * (alone["high"] - alone["low"])


def test_what_cannot_be_compared_is_said(rng):
    a = prediction_table([0, 1, 0, 1], rng.random(4))
    b = a.assign(study=[f"other{i}" for i in range(4)])
    with pytest.raises(InputError, match="no study was tested by all of them"):
        compare_tables({"a": a, "b": b}, ["lesion"])
    with pytest.raises(InputError, match="other labels or patients"):
        compare_tables({"a": a, "b": a.assign(truth=1 - a["truth"])}, ["lesion"])
    with pytest.raises(InputError, match="needs at least two"):
        compare([])


def test_few_patients_of_folds_get_no_p_value(rng):
    truth = (np.arange(60) < 8).astype(int)
    tables = {
        name: prediction_table(truth, rng.random(60), fold=np.arange(60) % 2 + 1)
        for name in ("a", "b")
    }
    row = compare_tables(tables, ["lesion"], 50).differences.set_index("metric")
    assert row["p"].isna().all()
    assert f"8 patients of the rarer class: {metrics.DESCRIBED}" in row.loc["auroc", "note"]
