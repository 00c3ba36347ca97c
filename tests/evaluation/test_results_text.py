"""Scores as text: every metric and note once, columns apart, and what intervals are of."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from prediction_tables import prediction_table

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.comparison import compare_tables
from medseq_tf.evaluation.evaluate import evaluate_predictions
from medseq_tf.evaluation.results_text import metrics_text, subgroup_text
from medseq_tf.evaluation.scoring import PATIENTS_ALONE, REPORTED_METRICS, score


def test_text_has_a_line_a_metric_and_each_note_once(rng):
    table = score(prediction_table([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]), ["lesion"], 50)
    lines = metrics_text(table).splitlines()
    assert lines[0].startswith("split")
    assert len([line for line in lines if line.startswith("test")]) == len(
        set(REPORTED_METRICS) & set(metrics.CATALOGUE)
    )
    notes = [line for line in lines if line.startswith("[")]
    assert notes
    assert len(notes) == len(set(notes))


def test_columns_of_calibration_stand_apart_however_long_they_are(rng):
    truth = np.arange(20) % 2.0
    table = prediction_table(truth, np.clip(0.5 + rng.normal(0, 0.001, 20), 0, 1), threshold=0.5)
    table["positive"] = table["probability"] >= 0.5
    words = evaluate_predictions(table.assign(calibrated=table["probability"]), ["lesion"]).text()
    rows = [line for line in words.splitlines() if "calibration_" in line]
    assert any(len(line) > 100 for line in rows)
    assert all(len(re.split(r"\) {2,}", line)) == 2 for line in rows)


def test_intervals_of_calibration_say_that_training_is_not_in_them(rng):
    truth = np.arange(24) % 2.0
    table = prediction_table(truth, rng.uniform(0.3, 0.7, 24), fold=np.repeat([1, 2, 3], 8))
    table["calibrated"], table["positive"] = table["probability"], table["probability"] >= 0.5
    said = PATIENTS_ALONE
    assert evaluate_predictions(table, ["lesion"], resamples=50).text().count(said) == 1
    alone = evaluate_predictions(table.drop(columns="fold"), ["lesion"])
    assert said not in alone.text()


def test_a_table_without_intervals_does_not_say_of_what_they_are(rng):
    truth = np.arange(20) % 2.0
    table = score(prediction_table(truth, rng.random(20), threshold=0.5), ["lesion"])
    assert "intervals of: " in metrics_text(table)
    assert "intervals of: " not in metrics_text(table.assign(low=np.nan, high=np.nan))


def test_many_intervals_and_many_tests_say_so(rng):
    truth = np.arange(120) % 2
    tables = {
        name: prediction_table(truth, np.clip(strength * truth + rng.random(120), 0, 2) / 2)
        for name, strength in (("a", 0.9), ("b", 0.5), ("c", 0.4))
    }
    found = compare_tables(tables, ["lesion"]).differences
    p = found.set_index("metric").loc["auroc", ["p", "p_adjusted"]].astype(float)
    order = p["p"].to_numpy().argsort()
    steps = p["p"].to_numpy()[order] * [3, 2, 1]
    expected = np.minimum(np.maximum.accumulate(steps), 1)
    np.testing.assert_allclose(p["p_adjusted"].to_numpy()[order], expected)
    assert "adjusted for 3 tests" in compare_tables(tables, ["lesion"]).text()
    groups = pd.DataFrame({"ward": np.arange(120) // 20}, index=tables["a"]["study"]).astype(str)
    table = tables["a"].assign(slices=np.arange(120), calibrated=tables["a"]["probability"])
    table["positive"] = table["probability"] >= table["threshold"]
    words = evaluate_predictions(table, ["lesion"], groups=groups).text()
    assert "27 intervals at 95%: one is expected to miss." in words
    assert "called positive if one of them is called so" in words


def test_a_long_label_does_not_touch_the_next_column():
    row = {"subgroup": "site", "group": "A", "label": "intracranial_hemorrhage", "metric": "auroc"}
    row |= {"value": 0.8, "low": 0.7, "high": 0.9, "n": 20, "positives": 9, "note": ""}
    head, line = subgroup_text(pd.DataFrame([row])).splitlines()
    assert line.index("auroc") == head.index("metric")
    assert "intracranial_hemorrhage  auroc" in line
