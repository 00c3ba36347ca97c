"""Comparison of models of classes: brought together by name, by paired tests, or refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from class_predictions import class_predictions
from scipy import stats

from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.comparison import compare, compare_tables, shared_labels
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run

TUMOURS = Classes("diagnosis", ("meningioma", "glioma", "pituitary"))
REVERSED = Classes("diagnosis", TUMOURS.names[::-1])
GRADES = Classes("grade", ("low", "middle", "high"), ordered=True)


def one_study_each(table):
    return table.assign(patient=table["study"])


def test_differences_are_those_of_the_two_figures_with_paired_tests():
    sharper, duller = (
        one_study_each(class_predictions(TUMOURS, 90, seed, sharpness))
        for seed, sharpness in ((1, 2.5), (2, 0.7))
    )
    shuffled = duller.sample(frac=1, random_state=0)
    found = compare_tables({"a": sharper, "b": shuffled}, TUMOURS.names, 50, TUMOURS)
    rows = found.differences.set_index(["label", "metric"])
    values = found.table.set_index(["model", "label", "metric"])["value"]
    for key, row in rows.iterrows():
        expected = values[("a", *key)] - values[("b", *key)]
        np.testing.assert_allclose(row["difference"], expected, atol=1e-12)
    truth = sharper["truth"].to_numpy().reshape(3, -1).T.argmax(axis=1)
    right = [
        t["positive"].to_numpy().reshape(3, -1).T.argmax(axis=1) == truth for t in (sharper, duller)
    ]
    alone = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    mcnemar = stats.binomtest(alone[0], sum(alone)).pvalue
    assert rows.loc[("diagnosis", "accuracy"), "p"] == pytest.approx(mcnemar)
    of_glioma = [t[t["label"] == "glioma"] for t in (sharper, duller)]
    probabilities = (t["probability"].to_numpy() for t in of_glioma)
    delong = metrics.delong_test(of_glioma[0]["truth"].to_numpy(), *probabilities)
    assert rows.loc[("glioma", "auroc"), "p"] == pytest.approx(delong.p)
    assert list(found.differences["label"].unique()) == ["diagnosis", *TUMOURS.names]
    text = found.text()
    for words in ("balanced_accuracy", "kappa", "McNemar", "p = "):
        assert words in text


def test_the_order_of_the_classes_changes_nothing():
    tables = {name: class_predictions(TUMOURS, 60, seed) for name, seed in (("a", 1), ("b", 2))}
    found, turned = (
        compare_tables(tables, classes.names, 50, classes)
        .differences.sort_values(["label", "metric"])
        .reset_index(drop=True)
        for classes in (TUMOURS, REVERSED)
    )
    pd.testing.assert_frame_equal(found, turned)


def test_folds_are_compared_as_recipes():
    tables = {
        "a": class_predictions(TUMOURS, 90, 1, 3.0, folds=3, repeats=2),
        "b": class_predictions(TUMOURS, 90, 2, 0.5, folds=3, repeats=2),
        "single": class_predictions(TUMOURS, 90, 3, 0.5),
    }
    found = compare_tables(tables, TUMOURS.names, 100, TUMOURS)
    rows = found.differences.set_index(["model", "other", "label", "metric"])
    for other in ("b", "single"):
        row = rows.loc[("a", other, "diagnosis", "accuracy")]
        assert 0 < row["low"] < row["difference"] < row["high"]
    assert (found.differences["question"].str.len() > 0).all()


def test_calls_by_cost_have_their_difference():
    costs = np.array([[0, 1, 1], [5, 0, 1], [1, 1, 0]], float)
    tables = {name: class_predictions(TUMOURS, 60, seed) for name, seed in (("a", 1), ("b", 2))}
    found = compare_tables(tables, TUMOURS.names, 50, TUMOURS, costs)
    rows = found.differences.set_index(["label", "metric"])
    assert np.isfinite(rows.loc[("diagnosis", "expected_cost"), "difference"])


def run_of(folder, classes=None, names=()):
    """The folder of a run, as far as a comparison looks before it has predictions."""
    folder.mkdir()
    dataset = {"label_names": list(classes.names if classes else names)}
    if classes:
        dataset["classes"] = classes.to_json()
    (folder / "dataset.json").write_text(json.dumps(dataset), "utf-8")
    (folder / "experiment.yaml").write_text("", "utf-8")
    return Run(folder)


def test_same_classes_in_another_order_are_the_same(tmp_path):
    runs = [run_of(tmp_path / "a", TUMOURS), run_of(tmp_path / "b", REVERSED)]
    assert shared_labels(runs) == (list(TUMOURS.names), TUMOURS)


def test_an_order_that_one_run_has_is_that_of_both(tmp_path):
    plain = Classes("grade", ("high", "low", "middle"))
    runs = [run_of(tmp_path / "a", plain), run_of(tmp_path / "b", GRADES)]
    assert shared_labels(runs) == (list(GRADES.names), GRADES)


@pytest.mark.parametrize(
    ("other", "names", "words"),
    [
        (Classes("diagnosis", ("glioma", "pituitary")), (), "predicts one of glioma, pituitary, "),
        (None, TUMOURS.names, "predicts meningioma, glioma, pituitary, the run"),
    ],
)
def test_other_classes_are_refused_in_a_line(tmp_path, other, names, words):
    runs = [run_of(tmp_path / "a", TUMOURS), run_of(tmp_path / "b", other, names)]
    with pytest.raises(InputError, match=words) as refusal:
        compare(runs)
    assert "predicts one of meningioma, glioma, pituitary" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_grades_of_another_order_are_refused(tmp_path):
    other = Classes("grade", ("low", "high", "middle"), ordered=True)
    runs = [run_of(tmp_path / "a", GRADES), run_of(tmp_path / "b", other)]
    with pytest.raises(InputError, match="predicts one of low < high < middle, the run"):
        compare(runs)
