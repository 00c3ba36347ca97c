"""A run of several models: the weighted mean of their probabilities, each reading its own way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from automatic_run import SENTENCE, emptied

from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.comparison import compare
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.inference import weighted_mean
from medseq_tf.evaluation.predictions import predict_split


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Strangers to the run, prepared alike."""
    return unseen(tmp_path_factory.mktemp("others") / "demo")


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory):
    return unseen(tmp_path_factory.mktemp("others") / "classes", kind="classes")


def unseen(out, **settings):
    settings |= {"patients": 6, "size": 32, "difficulty": 0.0, "seed": 5}
    return prepare("demo", out=out, workers=1, progress=False, **settings)


def wide(predictions):
    return predictions.pivot(index="study", columns="label", values="probability")


@pytest.mark.parametrize("kind", ["labels", "classes"])
def test_new_data_get_the_weighted_mean_of_the_members(
    request, automatic, automatic_classes, others, other_classes, kind
):
    run, data = (automatic, others) if kind == "labels" else (automatic_classes, other_classes)
    found = predict_split(run, data, "all")
    apart = [wide(predict_split(one, data, "all")) for one, _ in run.members]
    expected = sum(weight * own for own, (_, weight) in zip(apart, run.members, strict=True))
    pd.testing.assert_frame_equal(wide(found), expected, rtol=1e-6)
    assert np.ptp(apart, axis=0).max() > 1e-3  # so that weights matter
    assert "cut_sensitivity_at_90_specificity" not in found
    if kind == "labels":
        assert set(found["threshold"]) == {run.thresholds["lesion"]}
    else:
        np.testing.assert_allclose(wide(found).sum(axis=1), 1, rtol=1e-6)
    scale = run.temperatures[run.classes.column if run.classes else "lesion"]
    assert scale == 1.25
    assert (found["calibrated"] != found["probability"]).all()


def test_its_own_data_get_the_out_of_fold_predictions_that_it_keeps(automatic, demo_data):
    found = predict_split(automatic, Prepared.load(demo_data), "test")
    stored = automatic.predictions
    pd.testing.assert_frame_equal(found.reset_index(drop=True), stored)
    evaluation = evaluate(automatic, demo_data, resamples=50)
    own = automatic.metrics.set_index(["label", "metric"])["value"]
    again = evaluation.table.set_index(["label", "metric"])["value"]
    pd.testing.assert_series_equal(again, own)
    assert SENTENCE in evaluation.notes
    with pytest.raises(InputError, match=r"an automatic run has no validation studies"):
        predict_split(automatic, Prepared.load(demo_data), "validation")


def test_its_own_patients_are_no_new_data(automatic, demo_data, others):
    with pytest.raises(InputError, match="are of the data set that the run was trained on"):
        predict_split(automatic, Prepared.load(demo_data), "all")
    with pytest.raises(InputError, match="is not the data set of the run"):
        predict_split(automatic, others, "test")


def test_calls_follow_the_costs_that_are_given(automatic_classes, class_data):
    prepared, names = Prepared.load(class_data), automatic_classes.classes.names
    costs = np.ones((len(names), len(names)))
    costs[:, 0] = 0  # whatever is true, calling the first costs nothing
    found = predict_split(automatic_classes, prepared, "test", costs)
    assert set(found.loc[found["positive"], "label"]) == {names[0]}


def test_it_is_compared_by_what_it_keeps(automatic, demo_data):
    other = automatic.members[0].run.path.parent
    compared = compare([automatic, other], resamples=50)
    assert set(compared.table["model"]) == {"auto", "sequence"}
    assert np.isfinite(compared.differences["low"]).any()


def test_a_run_of_no_members_predicts_nothing(automatic, others, tmp_path):
    run = emptied(automatic, tmp_path)
    with pytest.raises(InputError, match=r"has no model \(nothing beats chance\)"):
        predict_split(run, others, "all")
    assert len(run.metrics)


def test_a_mean_of_equal_weights_is_the_plain_mean_to_the_last_bit(rng):
    values = rng.random((7, 5, 2))
    np.testing.assert_array_equal(weighted_mean(values, [1 / 7] * 7), values.mean(axis=0))
    weights = [0.5, 0.2, 0.3]
    found = weighted_mean(list(values[:3]), weights)
    np.testing.assert_allclose(found, np.average(values[:3], axis=0, weights=weights), rtol=1e-14)
    values[0, 0] = np.nan
    assert np.isnan(weighted_mean(values[:3], weights)[0]).all()
