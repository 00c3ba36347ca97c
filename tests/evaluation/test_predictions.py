"""What validation studies choose: temperatures and the cuts of operating points."""

from __future__ import annotations

import numpy as np
import pytest
from prediction_tables import prediction_table, two_splits
from sklearn.metrics import brier_score_loss

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.predictions import calibrated, choose_cuts, fit_temperatures
from medseq_tf.evaluation.scoring import calibration_table, score


def test_temperature_is_fitted_on_validation_and_changes_no_call(rng):
    table = two_splits(rng)
    temperatures, notes = fit_temperatures(table)
    validation = table[table["split"] == "validation"]
    logit = np.log(validation["probability"] / (1 - validation["probability"]))
    expected = metrics.fit_temperature(validation["truth"], logit)
    assert temperatures == {"lesion": pytest.approx(expected)}
    assert expected > 1.2
    assert not notes
    scaled = calibrated(table, temperatures)
    threshold = metrics.scale(0.4, temperatures["lesion"])
    np.testing.assert_array_equal(scaled["calibrated"] >= threshold, scaled["positive"])
    rows = calibration_table(scaled).set_index(["split", "metric"])
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
    table = prediction_table([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]).assign(split="validation")
    temperatures, notes = fit_temperatures(table)
    assert temperatures == {"lesion": 1.0}
    assert notes == [
        "lesion: validation does not have both classes, so probabilities are not scaled"
    ]


def test_validation_told_apart_without_error_is_scaled_too():
    table = prediction_table([0, 0, 1, 1] * 5, [0.2, 0.4, 0.6, 0.8] * 5).assign(split="validation")
    temperatures, notes = fit_temperatures(table)
    assert 0.2 < temperatures["lesion"] < 0.9
    assert not notes


def test_the_cut_of_another_operating_point_is_chosen_on_validation(rng):
    """Sensitivity at 90% specificity is a plain share of the test studies."""
    table = two_splits(rng, count=200)
    points = choose_cuts(table)["lesion"]
    validation, test = (table[table["split"] == split] for split in ("validation", "test"))
    negative = validation.loc[validation["truth"] == 0, "probability"]
    cut = points["sensitivity_at_90_specificity"]
    assert (negative < cut).mean() >= 0.9
    row = score(table, ["lesion"]).set_index(["split", "metric"])
    row = row.loc[("test", "sensitivity_at_90_specificity")]
    positive = test.loc[test["truth"] == 1, "probability"]
    assert row["value"] == pytest.approx((positive >= cut).mean())
    low, high = metrics.wilson_interval((positive >= cut).sum(), len(positive))
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    kept = (test.loc[test["truth"] == 0, "probability"] < cut).mean()
    assert f"specificity here {kept:.3f}" in row["note"]
    alone = score(test, ["lesion"]).set_index("metric")
    alone = alone.loc["sensitivity_at_90_specificity"]
    assert np.isnan(alone["low"])
    assert "too good" in alone["note"]
