"""The studies of a run: which model explains them, and what the subset of no slice is worth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explain import Explained, explain_study
from medseq_tf.evaluation.explain.explainer import Explainer, _explaining_runs
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.input import sampling


def test_of_repeated_folds_the_first_to_test_a_study_explains_it():
    folds = [SimpleNamespace(splits={"test": names}) for names in (["a"], ["b"], ["b", "a"])]
    parts = _explaining_runs(SimpleNamespace(folds=folds), ["a", "b"])
    assert parts == {"a": folds[0], "b": folds[1]}


def test_the_base_value_is_the_mean_prediction_for_the_validation_studies(run, demo_data):
    name = run.splits["test"][0]
    found = explain_study(run, demo_data, name)
    table = run.predictions
    base = table[table["split"] == "validation"]["probability"].mean()
    assert found.base_values == {"lesion": pytest.approx(base)}
    shown = found.shown_slices()
    assert found.subsets == 2**6 - 1
    np.testing.assert_array_equal(shown["importance_low"], shown["importance"])
    assert f"no slice: {base:.3f}" in Explained([found], []).text()


def test_without_validation_studies_the_base_is_the_mean_of_the_others(
    run, demo_data, prepared, monkeypatch
):
    table = run.predictions
    table = table[table["split"] == "test"]
    monkeypatch.setattr(type(run), "predictions", table)
    every = Explainer(run, prepared, run.splits["test"][:1])
    base, note = every.base_values(run)
    assert base == {"lesion": pytest.approx(table["probability"].mean())}
    assert "no validation studies" in note
    monkeypatch.setattr(type(run), "predictions", table[:0])
    assert every.base_values(run)[0] == {"lesion": 0.5}


def test_the_importance_of_an_only_slice_is_the_prediction_less_the_base_value(
    run, demo_data, monkeypatch
):
    monkeypatch.setattr(sampling, "evaluation_sequences", lambda length, settings: [np.array([4])])
    found = explain_study(run, demo_data, run.splits["test"][0])
    (row,) = found.shown_slices().to_dict(orient="records")
    expected = found.probabilities["lesion"] - found.base_values["lesion"]
    assert row["importance"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(row["occlusion"])


def test_a_long_study_has_intervals_and_says_which_slices_are_not_told_apart(
    run, demo_data, monkeypatch
):
    """Three slices of equal weight are ahead of the others."""
    monkeypatch.setattr(
        sampling, "evaluation_sequences", lambda length, settings: [np.arange(length)]
    )

    def predict(self, parts):
        rng = np.random.default_rng([len(parts), len(parts[0])])
        lesion = np.array([[float(np.isin([2, 5, 9], part).sum())] for part in parts])
        return 0.2 * lesion + rng.normal(0, 0.1, (len(parts), 1))

    monkeypatch.setattr(ShownStudy, "probabilities_of", predict)
    found = explain_study(run, demo_data, run.splits["test"][0], pixels=[])
    assert sorted([*found.top(1)["slice"], *found.ties["lesion"]]) == [2, 5, 9]
    shown = found.shown_slices().set_index("slice")
    assert (shown["importance_low"] < shown["importance"]).all()
    assert (shown["importance_high"] > shown["importance"]).all()
    assert any("cannot be told apart from" in note for note in found.notes)
    assert " to +0.2" in Explained([found], []).text()
    assert "not told apart" in found.alternative()
    assert found.curves().axes


def test_predictions_that_are_no_numbers_are_no_negative_ones(run, demo_data, monkeypatch):
    logits = ShownStudy._logits
    monkeypatch.setattr(ShownStudy, "_logits", lambda *arguments: logits(*arguments) * np.nan)
    name = run.splits["test"][0]
    with pytest.raises(InputError, match=f"{name}.*no numbers"):
        explain_study(run, demo_data, name)
