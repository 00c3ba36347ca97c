"""Metrics against scikit-learn, SciPy, R's pROC, and their definitions written out."""

from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics, operating_points
from medseq_tf.evaluation.metrics import auc_intervals, proportions, resampling

examples = settings(max_examples=60, deadline=None)

# Serum S100B (ug/l) of 113 patients with a subarachnoid haemorrhage by outcome (0 good, 1 poor) and
# WFNS grade, as measured by Turck et al. 2010 (doi:10.1007/s00134-009-1641-y).
HAEMORRHAGE = {
    (0, 1): "4 4 4 4 5 5 6 6 7 7 7 7 8 8 8 8 9 9 9 9 10 10 10 10 11 11 13 13 14 14 14 15 16 18 19"
    " 48 50",
    (0, 2): "4 7 8 8 9 9 10 10 10 11 11 13 14 15 15 15 16 17 19 43",
    (0, 3): "5 7 33",
    (0, 4): "16 17 28 32 34 38 45 47",
    (0, 5): "24 46 47 50",
    (1, 1): "7 8",
    (1, 2): "7 7 9 9 10 10 11 14 25 30 41 58",
    (1, 3): "13",
    (1, 4): "13 16 23 26 27 48 71 96",
    (1, 5): "3 12 22 32 33 35 44 44 49 52 56 70 71 74 77 82 86 207",
}


@pytest.fixture(scope="module")
def haemorrhage():
    rows = [
        (outcome, grade, int(value) / 100)
        for (outcome, grade), values in HAEMORRHAGE.items()
        for value in values.split()
    ]
    return np.array(rows).T


def sample(n=60, seed=0, decimals=2, effect=1.0, prevalence=0.4):
    """Labels and probabilities of n studies, both classes present, with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(float)
    labels[:2] = [0, 1]
    logits = rng.normal(size=n) + effect * (labels - 0.5)
    return labels, (1 / (1 + np.exp(-logits))).round(decimals)


@st.composite
def predictions(draw, least=2):
    """Labels with both classes, and probabilities with many ties."""
    n = draw(st.integers(least, 40))
    labels = np.array(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)))
    labels[:2] = [0, 1]
    scores = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 16)))
    return labels, scores / 16


# ------------------------------------------------------------------------------------- points


@examples
@given(predictions())
def test_rank_metrics_equal_scikit_learn(given_predictions):
    labels, probabilities = given_predictions
    assert metrics.auroc(labels, probabilities) == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, probabilities)
    )
    assert metrics.average_precision(labels, probabilities) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, probabilities)
    )


@examples
@given(predictions(), st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
def test_decisions_equal_scikit_learn(given_predictions, threshold):
    labels, probabilities = given_predictions
    calls = (probabilities >= threshold).astype(int)
    counts = metrics.confusion(labels, probabilities, threshold)
    tn, fp, fn, tp = sklearn_metrics.confusion_matrix(labels, calls).ravel()
    assert (counts.true_negatives, counts.false_positives) == (tn, fp)
    assert (counts.false_negatives, counts.true_positives) == (fn, tp)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, calls),
        "recall": sklearn_metrics.recall_score(labels, calls),
        "specificity": sklearn_metrics.recall_score(labels, calls, pos_label=0),
        "f1": sklearn_metrics.f1_score(labels, calls),
        "f1_macro": sklearn_metrics.f1_score(labels, calls, average="macro"),
        "recall_macro": sklearn_metrics.recall_score(labels, calls, average="macro"),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, calls),
    }
    nothing = {"zero_division": np.nan}
    expected["precision"] = sklearn_metrics.precision_score(labels, calls, **nothing)
    if len(set(calls)) == 2:
        expected["precision_macro"] = sklearn_metrics.precision_score(
            labels, calls, average="macro"
        )
    else:
        assert np.isnan(counts.precision_macro)
    for name, value in expected.items():
        assert getattr(counts, name) == pytest.approx(value, nan_ok=True), name


def test_auroc_is_the_share_of_concordant_pairs():
    labels, probabilities = sample(decimals=1)
    pairs = itertools.product(probabilities[labels == 1], probabilities[labels == 0])
    concordant = [(a > b) + (a == b) / 2 for a, b in pairs]
    assert metrics.auroc(labels, probabilities) == pytest.approx(np.mean(concordant))


@examples
@given(predictions(), st.randoms(use_true_random=False))
def test_metrics_depend_on_neither_the_order_nor_the_scale(given_predictions, random):
    labels, probabilities = given_predictions
    order = list(range(len(labels)))
    random.shuffle(order)
    before = metrics.all_metrics(labels, probabilities, 0.5)
    after = metrics.all_metrics(labels[order], probabilities[order], 0.5)
    for name in metrics.METRICS:
        assert after[name] == pytest.approx(before[name], nan_ok=True), name
    for metric in (metrics.auroc, metrics.average_precision):
        assert metric(labels, np.exp(3 * probabilities) - 7) == metric(labels, probabilities)
    assert metrics.auroc(1 - labels, -probabilities) == pytest.approx(before["auroc"])


@examples
@given(predictions(), st.data())
def test_weights_are_how_often_a_study_stands_in_the_sample(given_predictions, data):
    labels, probabilities = given_predictions
    counts = st.integers(0, 3)
    weights = data.draw(hnp.arrays(np.int64, (2, len(labels)), elements=counts))
    together = metrics.all_metrics(labels, probabilities, 0.5, weights)
    for row, weight in enumerate(weights):
        repeated = np.repeat(labels, weight), np.repeat(probabilities, weight)
        alone = metrics.all_metrics(*repeated, 0.5)
        for name in metrics.METRICS:
            assert together[name][row] == pytest.approx(alone[name], nan_ok=True), name
    error = metrics.expected_calibration_error(labels, probabilities, weights=weights[0])
    repeated = np.repeat(labels, weights[0]), np.repeat(probabilities, weights[0])
    assert error == pytest.approx(metrics.expected_calibration_error(*repeated), nan_ok=True)


def test_unknown_labels_are_left_out_whatever_their_probability():
    labels, probabilities = sample()
    more_labels = np.concatenate([labels, [np.nan, np.nan]])
    more_probabilities = np.concatenate([probabilities, [0.9, np.nan]])
    assert metrics.all_metrics(more_labels, more_probabilities) == metrics.all_metrics(
        labels, probabilities
    )
    assert metrics.bootstrap(metrics.auroc, more_labels, more_probabilities, resamples=50) == (
        metrics.bootstrap(metrics.auroc, labels, probabilities, resamples=50)
    )


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [0.1], "do not fit"),
        ([0, 2], [0.1, 0.2], "label 2 of study 1"),
        ([0, 1], [0.1, np.nan], "probability nan of study 1"),
        ([0, 1], [0.1, 1.5], "probability 1.5 of study 1"),
    ],
)
def test_impossible_input_is_named(labels, probabilities, message):
    with pytest.raises(InputError, match=message):
        metrics.brier(np.array(labels), np.array(probabilities))


# ------------------------------------------------------------------------------------- curves


@examples
@given(predictions())
def test_curves_equal_scikit_learn(given_predictions):
    labels, probabilities = given_predictions
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    roc = metrics.roc_points(labels, probabilities)
    np.testing.assert_allclose(roc["false_positive_rate"], fpr, atol=1e-12)
    np.testing.assert_allclose(roc["sensitivity"], tpr)
    np.testing.assert_array_equal(roc["threshold"], thresholds)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, probabilities)
    points = metrics.precision_recall_points(labels, probabilities)
    np.testing.assert_allclose(points["precision"], precision[-2::-1])
    np.testing.assert_allclose(points["recall"], recall[-2::-1])


@pytest.mark.parametrize("least", [0.0, 0.5, 0.9, 1.0])
def test_sensitivity_at_fixed_specificity_is_the_best_of_all_thresholds(least):
    labels, probabilities = sample(decimals=1)
    counts = [
        metrics.confusion(labels, probabilities, cut) for cut in [*np.unique(probabilities), 2]
    ]
    found = metrics.sensitivity_at_specificity(labels, probabilities, least)
    assert found == max(c.recall for c in counts if c.specificity >= least)
    kept = metrics.specificity_at_sensitivity(labels, probabilities, least)
    assert kept == pytest.approx(max(c.specificity for c in counts if c.recall >= least))


def test_bands_hold_the_curve_and_span_the_corners():
    labels, probabilities = sample(n=80)
    roc = metrics.roc_band(labels, probabilities, resamples=200, points=21)
    assert roc["sensitivity"].is_monotonic_increasing
    assert roc["sensitivity"].iloc[-1] == 1
    assert ((roc["low"] <= roc["sensitivity"]) & (roc["sensitivity"] <= roc["high"])).mean() > 0.9
    for rate, sensitivity in zip(roc["false_positive_rate"], roc["sensitivity"], strict=True):
        assert sensitivity == metrics.sensitivity_at_specificity(labels, probabilities, 1 - rate)
    curve = metrics.precision_recall_band(labels, probabilities, resamples=200, points=21)
    assert curve["precision"].iloc[-1] >= labels.mean()
    inside = (curve["low"] <= curve["precision"]) & (curve["precision"] <= curve["high"])
    assert inside.mean() > 0.8


def test_bands_without_a_class_are_nan():
    labels, probabilities = np.zeros(6), np.linspace(0, 1, 6)
    assert metrics.roc_band(labels, probabilities, resamples=20)["low"].isna().all()
    curve = metrics.precision_recall_band(labels, probabilities, resamples=20)
    assert curve[["precision", "low", "high"]].isna().all(axis=None)
    assert np.isnan(metrics.sensitivity_at_specificity(labels, probabilities))
    assert np.isnan(metrics.specificity_at_sensitivity(1 - labels, probabilities))


# ---------------------------------------------------------------------------------- thresholds


def all_cuts(labels, probabilities):
    """Every way to cut, as (confusion, lowest probability called positive)."""
    cuts = [*np.unique(probabilities), np.inf]
    return [(metrics.confusion(labels, probabilities, cut), cut) for cut in cuts]


@pytest.mark.parametrize(
    ("rule", "score"),
    [
        ("youden", lambda c: c.recall + c.specificity),
        ("f1", lambda c: c.f1),
        ("f1_macro", lambda c: c.f1_macro),
        ("accuracy", lambda c: c.accuracy),
        ("sensitivity>=0.9", lambda c: c.specificity if c.recall >= 0.9 else -1),
        ("specificity >= 0.8", lambda c: c.recall if c.specificity >= 0.8 else -1),
    ],
)
@examples
@given(given_predictions=predictions())
def test_the_threshold_is_the_best_of_all_cuts(rule, score, given_predictions):
    labels, probabilities = given_predictions
    threshold = metrics.choose_threshold(labels, probabilities, rule)
    chosen = score(metrics.confusion(labels, probabilities, threshold))
    assert chosen == pytest.approx(max(score(c) for c, _ in all_cuts(labels, probabilities)))
    assert 0 <= threshold <= np.nextafter(1, 2)
    if 0 < threshold < 1:
        assert threshold not in probabilities


def test_the_threshold_lies_halfway_and_ties_go_to_the_lower():
    assert metrics.choose_threshold([0, 0, 1, 1], [0.1, 0.3, 0.5, 0.9]) == pytest.approx(0.4)
    # Both 0.2 and 0.6 give a Youden index of 0.5.
    assert metrics.choose_threshold([0, 1, 0, 1], [0.1, 0.3, 0.5, 0.7]) == pytest.approx(0.2)
    assert metrics.choose_threshold([1, 0], [0.4, 0.8], "sensitivity>=1") == pytest.approx(0.2)


def test_the_threshold_splits_neighbouring_floats():
    low = 0.3
    high = np.nextafter(low, 1)
    threshold = metrics.choose_threshold([0, 1], [low, high])
    assert low < threshold <= high
    assert metrics.choose_threshold([0, 1], [0.0, 1.0]) == 0.5
    assert metrics.choose_threshold([1, 0], [1.0, 1.0], "specificity>=1") > 1


@pytest.mark.parametrize("rule", ["best", "sensitivity>=2", "sensitivity=0.9", "f2"])
def test_an_unknown_rule_lists_the_known_ones(rule):
    with pytest.raises(InputError, match="expected one of youden, f1, f1_macro, accuracy"):
        metrics.choose_threshold([0, 1], [0.1, 0.2], rule)


def test_one_class_gives_no_threshold_and_several_labels_say_so():
    with pytest.raises(InputError, match="0 positive and 2 negative"):
        metrics.choose_threshold([0, 0, np.nan], [0.1, 0.2, 0.3])
    labels = np.array([[0, 1], [0, 0], [0, np.nan]])
    probabilities = np.array([[0.1, 0.9], [0.2, 0.2], [0.3, 0.3]])
    points = operating_points.of_validation(
        labels, probabilities, np.arange(3), ["mass", "oedema"], "sensitivity>=0.9"
    )
    assert [points[name].threshold for name in ("mass", "oedema")] == pytest.approx([0.5, 0.55])
    reason = "mass: 0 positive and 3 negative studies, so the threshold is 0.5"
    assert operating_points.notes(points)[0] == points["mass"].note == reason
    assert points["mass"].chosen_on == ""


# --------------------------------------------------------------------------------- calibration


@examples
@given(predictions())
def test_brier_equals_scikit_learn(given_predictions):
    labels, probabilities = given_predictions
    expected = sklearn_metrics.brier_score_loss(labels, probabilities)
    assert metrics.brier(labels, probabilities) == pytest.approx(expected)


def test_calibration_error_is_the_mean_gap_of_the_bins():
    labels, probabilities = sample(n=200, decimals=3)
    gaps = []
    for low in np.arange(10) / 10:
        inside = (probabilities >= low) & (probabilities < low + 0.1)
        if inside.any():
            gap = abs(labels[inside].mean() - probabilities[inside].mean())
            gaps.append(gap * inside.sum() / 200)
    error = metrics.expected_calibration_error(labels, probabilities)
    assert error == pytest.approx(sum(gaps))
    curve = metrics.reliability_curve(labels, probabilities)
    weighted = (curve["observed"] - curve["probability"]).abs() * curve["n"]
    assert error == pytest.approx(weighted.sum() / 200)
    assert curve["n"].sum() == 200
    assert (curve["low_edge"] <= curve["probability"]).all()
    assert (curve["probability"] <= curve["high_edge"]).all()


def recalibrated(labels, logits):
    """Intercept and slope by Newton's steps on the likelihood, written out."""
    found = np.zeros(2)
    design = np.stack([np.ones_like(logits), logits])
    for _ in range(50):
        p = 1 / (1 + np.exp(-found @ design))
        hessian = (design * p * (1 - p)) @ design.T
        found = found + np.linalg.solve(hessian, design @ (labels - p))
    return found


def test_calibration_equals_logistic_recalibration_written_out():
    labels, probabilities = sample(n=120, effect=1.5, decimals=4)
    logits = np.log(probabilities / (1 - probabilities))
    slope = metrics.calibration_slope(labels, probabilities)
    expected = recalibrated(labels, logits)[1]
    assert slope.value == pytest.approx(expected, rel=1e-5)

    def loss(b):
        intercepts = np.linspace(-5, 5, 20_001)[:, None]
        scaled = (2 * labels - 1) * (intercepts + b * logits)
        return np.logaddexp(0, -scaled).sum(axis=1).min()

    freedom = 4 * (probabilities * (1 - probabilities)).sum() - 2
    for bound in (slope.low, slope.high):  # where the likelihood ratio is F's with these
        ratio = 2 * (loss(bound) - loss(expected))
        assert ratio == pytest.approx(stats.f.ppf(0.95, 1, freedom), rel=1e-3)
    intercept = metrics.calibration_intercept(labels, probabilities)
    total = (1 / (1 + np.exp(-logits - intercept.value))).sum()
    assert total == pytest.approx(labels.sum())
    assert intercept.low < intercept.value < intercept.high
    ratio = metrics.observed_expected(labels, probabilities)
    assert ratio.value == pytest.approx(labels.sum() / probabilities.sum())
    assert ratio.low < ratio.value < ratio.high


def test_calibration_says_what_it_can_at_the_ends():
    apart = metrics.calibration_slope([0, 0, 1, 1] * 5, [0.2, 0.3, 0.6, 0.8] * 5)
    assert apart.value == apart.high == np.inf
    assert 0.5 < apart.low < 5
    assert "one bound only" in apart.note
    turned = metrics.calibration_slope([1, 1, 0, 0] * 5, [0.2, 0.3, 0.6, 0.8] * 5)
    assert turned.value == turned.low == -np.inf
    assert turned.high < 0
    for measure in (metrics.calibration_slope, metrics.calibration_intercept):
        nothing = measure([0, 0, 0], [0.2, 0.4, 0.6])
        assert np.isnan([nothing.value, nothing.low]).all()
        assert nothing.note == "no positive patient"
    none = metrics.observed_expected([0.0] * 20, [0.1] * 20)
    assert none.value == none.low == 0
    assert 1 < none.high < 2
    same = metrics.calibration_slope([0, 1, 0, 1], [0.4] * 4)
    assert same.note == "all probabilities are the same"


def test_copies_of_a_study_calibrate_nothing():
    labels, probabilities = sample(n=60, effect=1.5, decimals=4)
    copies = [np.repeat(part, 3) for part in (labels, probabilities, np.arange(60))]
    for measure in (
        metrics.calibration_slope,
        metrics.calibration_intercept,
        metrics.observed_expected,
        metrics.brier_interval,
    ):
        single, several = measure(labels, probabilities), measure(*copies)
        assert several.value == pytest.approx(single.value, rel=1e-6)
        width = (several.high - several.low) / (single.high - single.low)
        assert 0.9 < width < 1.15, measure


def test_the_calibration_error_of_right_probabilities_is_what_chance_makes_it():
    rng = np.random.default_rng(0)
    probabilities = rng.random(30)
    errors = [
        metrics.expected_calibration_error((rng.random(30) < probabilities) * 1.0, probabilities)
        for _ in range(2000)
    ]
    median, high = metrics.null_calibration_error(probabilities)
    assert median == pytest.approx(np.median(errors), abs=0.01)
    assert high == pytest.approx(np.quantile(errors, 0.95), abs=0.015)
    assert median > 0.1  # a model that is right, too
    assert metrics.null_calibration_error(probabilities[::-1]) == (median, high)
    repeated, studies = np.tile(probabilities, 5), np.tile(np.arange(len(probabilities)), 5)
    again = metrics.null_calibration_error(repeated, studies=studies)
    assert again == pytest.approx((median, high), rel=0.1), "a study has one label, however often"
    assert metrics.null_calibration_error(repeated)[0] < 0.6 * median


def test_wilson_interval_equals_scipy():
    for count, n in [(0, 5), (3, 7), (20, 20)]:
        expected = stats.binomtest(count, n).proportion_ci(method="wilson")
        assert metrics.wilson_interval(count, n) == pytest.approx(tuple(expected), abs=1e-12)


def test_temperature_recovers_what_the_logits_were_multiplied_by():
    rng = np.random.default_rng(0)
    true_logits = rng.normal(size=20_000) * 1.5
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-true_logits))).astype(float)
    assert metrics.fit_temperature(labels, 3 * true_logits) == pytest.approx(3, rel=0.05)
    assert metrics.fit_temperature(labels, true_logits / 2) == pytest.approx(0.5, rel=0.05)


def test_temperature_is_the_likeliest_and_keeps_the_ranking():
    labels, probabilities = sample(n=150, effect=2.0, decimals=4)
    logits = 4 * np.log(probabilities / (1 - probabilities))

    def loss(temperature):
        scaled = special.expit(logits / temperature)
        prior = np.log(temperature) ** 2 / (2 * 0.5**2)  # log T ~ N(0, 0.5^2)
        return sklearn_metrics.log_loss(labels, scaled, normalize=False) + prior

    temperature = metrics.fit_temperature(labels, logits)
    assert all(loss(temperature) <= loss(other) for other in np.geomspace(0.1, 10, 200))
    assert loss(temperature) < loss(1)
    scaled = special.expit(logits / temperature)
    assert metrics.auroc(labels, scaled) == metrics.auroc(labels, logits)


def test_temperature_is_below_one_where_validation_is_told_apart_and_needs_both_classes():
    apart = metrics.fit_temperature([0, 0, 1, 1], [-2, -1, 1, 2])
    surer = metrics.fit_temperature([0, 0, 1, 1] * 20, [-2, -1, 1, 2] * 20)
    assert 0.2 < surer < apart < 1
    wrong_way = metrics.fit_temperature([1, 1, 0, 0], [-2, -1, 1, 2])
    assert 1 < wrong_way < 20
    with pytest.raises(InputError, match="both classes are needed"):
        metrics.fit_temperature([1, 1, np.nan], [0.2, 0.3, 0.1])


def test_temperature_makes_right_models_hardly_worse_and_keeps_the_gain_of_overconfident_ones():
    """Expected log loss per study against T = 1, over draws of 30 validation studies."""
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * stats.norm.ppf(0.85)

    def draw(n, factor):
        labels = (rng.random(n) < 0.4).astype(float)
        scores = rng.normal(size=n) + shift * labels
        right = shift * scores - shift**2 / 2 + np.log(0.4 / 0.6)
        return labels, factor * right

    def changes(factor):
        many, test = draw(20_000, factor)
        signed = (2 * many - 1) * test
        change = []
        for _ in range(120):
            temperature = metrics.fit_temperature(*draw(30, factor))
            change.append(np.mean(np.logaddexp(0, -signed / temperature)
                                  - np.logaddexp(0, -signed)))  # fmt: skip
        return np.array(change)

    right, overconfident = changes(1.0), changes(2.5)
    assert (right > 1e-4).mean() < 0.35  # of maximum likelihood: 0.9
    assert right.mean() < 0.01  # of maximum likelihood: 0.03
    assert overconfident.mean() < -0.10  # the best temperature: -0.15
    assert (overconfident > 0).mean() < 0.05


def test_net_benefit_is_its_definition_and_meets_the_extremes():
    labels, probabilities = sample(n=90)
    curve = metrics.decision_curve(labels, probabilities, resamples=100)
    for row in curve.iloc[::10].itertuples():
        counts = metrics.confusion(labels, probabilities, row.threshold)
        odds = row.threshold / (1 - row.threshold)
        expected = (counts.true_positives - counts.false_positives * odds) / 90
        assert row.model == pytest.approx(expected)
        everyone = labels.mean() - (1 - labels.mean()) * odds
        assert row.everyone == pytest.approx(everyone)
    assert (curve["no_one"] == 0).all()
    assert (curve["low"] <= curve["high"]).all()
    at_zero = metrics.net_benefit(labels, probabilities, np.array([0.0]))
    assert at_zero == pytest.approx(labels.mean())


# -------------------------------------------------------------------------------------- DeLong


def test_delongs_variance_equals_proc(haemorrhage):
    outcome, grade, s100b = haemorrhage
    assert len(outcome) == 113
    for score, expected in [
        (s100b, (0.6301182, 0.7313686, 0.8326189)),
        (grade, (0.7485, 0.8236789, 0.8988)),
    ]:
        placed = auc_intervals.Placements.of(outcome, [score], None)
        half = stats.norm.ppf(0.975) * np.sqrt(placed.covariance[0, 0])
        value = placed.aurocs[0]
        assert (value - half, value, value + half) == pytest.approx(expected, abs=5e-5)
        interval = metrics.delong_interval(outcome, score)  # farther down, less far up
        assert interval.value == pytest.approx(expected[1], abs=5e-5)
        assert expected[0] - 0.03 < interval.low < expected[0]
        assert expected[1] < interval.high < expected[2]


def test_the_interval_of_the_auroc_is_newcombes_where_the_variance_is_his():
    """Bounds by Newcombe (2006, method 5), whose equation is written out and solved on a grid."""
    auroc, m, n, z = 0.8, 20, 30, 1.959964
    true = np.linspace(1e-6, 1 - 1e-6, 1_000_001)
    others = (m + n) / 2 - 1
    variance = true * (1 - true) / (m * n)
    variance *= 1 + others * (1 - true) / (2 - true) + others * true / (1 + true)
    held = true[np.abs(auroc - true) <= z * np.sqrt(variance)]
    at = np.argmin(np.abs(true - auroc))
    bounds = auc_intervals.auroc_bounds(auroc, variance[at], m, n, z)
    assert bounds == pytest.approx((held[0], held[-1]), abs=1e-5)


def test_complete_separation_has_a_bound_on_one_side():
    for m, n in [(9, 9), (24, 24), (3, 40)]:
        labels = np.repeat([1, 0], [m, n])
        up = metrics.delong_interval(labels, labels + np.linspace(0, 0.1, m + n))
        down = metrics.delong_interval(labels, -labels + np.linspace(0, 0.1, m + n))
        assert (up.value, up.high, down.value, down.low) == (1, 1, 0, 0)
        assert 0.4 < up.low < 0.95
        assert (up.low, down.high) == pytest.approx((1 - down.high, 1 - up.low))
        # The more patients, the nearer: three of a class bound it no better than three can.
    wide, narrow = (metrics.delong_interval(np.repeat([1, 0], n), np.arange(2 * n)[::-1]).low
                    for n in (10, 100))  # fmt: skip
    assert wide < 0.9 < narrow < 1


def test_the_paired_delong_test_equals_proc_but_for_the_degrees_of_freedom(haemorrhage):
    outcome, grade, s100b = haemorrhage
    test = metrics.delong_test(outcome, grade, s100b)
    assert test.z == pytest.approx(2.20898359144091)
    assert 0.0271757822291882 < test.p < 0.0310  # by the normal distribution, by t with some 60
    assert 0 < test.low < 0.0104061769564846
    assert 0.174214419249478 < test.high < 0.180
    back = metrics.delong_test(outcome, s100b, grade)
    assert (back.z, back.p) == pytest.approx((-test.z, test.p))


def test_the_degrees_of_freedom_are_those_of_welchs_test():
    """With placements as the observations, DeLong's test is Welch's of two samples."""
    labels, first = sample(n=30, decimals=1)
    _, second = sample(n=30, seed=1, decimals=1)
    kernel = [
        (np.sign(score[labels == 1][:, None] - score[labels == 0]) + 1) / 2
        for score in (first, second)
    ]
    of_positive, of_negative = (kernel[0].mean(axis) - kernel[1].mean(axis) for axis in (1, 0))
    # Welch's test subtracts: the mean of `of_positive` is that of both, so one is turned about.
    expected = stats.ttest_ind(of_positive, -of_negative, equal_var=False)
    test = metrics.delong_test(labels, first, second)
    p = 2 * stats.t.sf(abs(test.z), expected.df)
    assert test.p == pytest.approx(p)


def test_delong_variance_is_that_of_the_placements_written_out():
    labels, first = sample(n=40, decimals=1)
    _, second = sample(n=40, seed=1, decimals=1)

    def placements(score):
        kernel = np.array(
            [[(p > q) + (p == q) / 2 for q in score[labels == 0]] for p in score[labels == 1]]
        )
        return kernel.mean(axis=1), kernel.mean(axis=0)

    (a10, a01), (b10, b01) = placements(first), placements(second)
    variance = np.cov(a10 - b10) / len(a10) + np.cov(a01 - b01) / len(a01)
    test = metrics.delong_test(labels, first, second)
    assert test.difference == pytest.approx(a10.mean() - b10.mean())
    assert test.z == pytest.approx(test.difference / np.sqrt(variance))


def test_delong_over_patients_does_not_take_copies_for_evidence():
    labels, probabilities = sample(n=50)
    _, other = sample(n=50, seed=3)
    patients = np.arange(50)
    twice = [np.tile(part, 2) for part in (labels, probabilities, other, patients)]
    single = metrics.delong_interval(labels, probabilities)
    clustered = metrics.delong_interval(twice[0], twice[1], patients=twice[3])
    naive = metrics.delong_interval(twice[0], twice[1])
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    assert naive.high - naive.low < 0.8 * (single.high - single.low)
    test = metrics.delong_test(*twice[:3], patients=twice[3])
    assert test.p == pytest.approx(metrics.delong_test(labels, probabilities, other).p)


def test_delong_says_what_it_cannot_tell():
    nothing = metrics.delong_interval([1, 1, 1], [0.1, 0.2, 0.3])
    assert np.isnan([nothing.value, nothing.low]).all()
    assert nothing.note == "no negative patient"
    one = metrics.delong_interval([0, 0, 1], [0.1, 0.3, 0.2])
    assert (one.value, one.note) == (0.5, "no interval: one positive patient")
    perfect = metrics.delong_interval([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    assert (perfect.value, perfect.high, perfect.note) == (1, 1, "")
    assert 0 < perfect.low < 0.6
    alike = metrics.delong_test([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.6], [0.1, 0.4, 0.3, 0.6])
    assert (alike.p, alike.note) == (1.0, "the two rank alike")
    assert "one positive patient" in metrics.delong_test([0, 0, 1], [1, 2, 3], [3, 2, 1]).note


# ----------------------------------------------------------------------------------- bootstrap


def resampled(labels, patients=None, resamples=300):
    return np.concatenate(list(resampling.bootstrap_weights(labels, patients, resamples, 0)))


def test_resamples_draw_as_many_patients_as_there_are():
    labels = np.array([1, 0, 0, 1, 0, np.nan, 0, 1.0])
    weights = resampled(labels)
    assert weights.shape == (300, 8)
    assert (weights.sum(axis=1) == 7).all()
    assert not weights[:, 5].any()
    assert weights[:, labels == 1].mean() == pytest.approx(1, abs=0.05)


def test_resamples_draw_whole_patients():
    labels = np.array([1, 0, 0, 1, 0, 0, 1])
    patients = np.array(["a", "a", "b", "c", "d", "b", "c"])
    weights = resampled(labels, patients)
    for patient in "abcd":
        own = weights[:, patients == patient]
        assert (own == own[:, :1]).all()
    assert (weights[:, [0, 3, 2, 4]].sum(axis=1) == 4).all()


def test_the_bootstrap_equals_scipys_bca():
    """Drawn by themselves, so equal but for the draws."""
    labels, probabilities = sample(n=40)
    found = metrics.bootstrap(metrics.brier, labels, probabilities, resamples=20_000)
    losses = (probabilities - labels) ** 2
    expected = stats.bootstrap((losses,), np.mean, n_resamples=20_000, rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.003)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.auroc,
        metrics.average_precision,
        metrics.sensitivity_at_specificity,
        metrics.specificity_at_sensitivity,
        metrics.brier,
        metrics.expected_calibration_error,
        lambda labels, probabilities, w: metrics.confusion(labels, probabilities, 0.5, w).recall,
    ],
)
def test_the_bootstrap_takes_every_metric_that_it_promises_to(metric):
    labels, probabilities = sample(n=40)
    found = metrics.bootstrap(metric, labels, probabilities, resamples=100)
    assert found.low < found.high
    assert found.low - 0.1 < found.value < found.high + 0.1
    if "weights" in metric.__code__.co_varnames:
        assert found.value == metric(labels, probabilities)


def test_prevalence_varies_from_resample_to_resample():
    labels, _ = sample(n=40)
    drawn = resampled(labels, resamples=500)
    assert (drawn.sum(axis=1) == 40).all()
    positives = drawn[:, labels == 1].sum(axis=1)
    share = labels.mean()
    assert positives.std() == pytest.approx(np.sqrt(40 * share * (1 - share)), rel=0.1)


def test_intervals_are_repeatable_and_follow_the_seed_alone():
    labels, probabilities = sample(n=50)
    order = np.random.default_rng(1).permutation(50)
    patients = np.array([f"p{i // 2}" for i in range(50)])
    for ids, shuffled in [(None, None), (patients, patients[order])]:
        first = metrics.bootstrap(metrics.auroc, labels, probabilities, ids, resamples=200)
        again = metrics.bootstrap(
            metrics.auroc, labels[order], probabilities[order], shuffled, resamples=200
        )
        assert (first.low, first.high) == pytest.approx((again.low, again.high))
    other = metrics.bootstrap(metrics.auroc, labels, probabilities, patients, resamples=200, seed=1)
    assert (other.low, other.high) != (first.low, first.high)


def test_copies_of_a_patients_study_do_not_narrow_the_interval():
    labels, probabilities = sample(n=60)
    single = metrics.bootstrap(metrics.auroc, labels, probabilities, np.arange(60), resamples=500)
    copies = [np.repeat(part, 3) for part in (labels, probabilities, np.arange(60))]
    clustered = metrics.bootstrap(metrics.auroc, *copies, resamples=500)
    naive = metrics.bootstrap(metrics.auroc, *copies[:2], resamples=500)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    assert naive.high - naive.low < 0.7 * (single.high - single.low)


def test_intervals_cover_the_truth_about_as_often_as_they_claim():
    truth = stats.norm.cdf(1 / np.sqrt(2))  # two normals one standard deviation apart
    bootstrap, delong = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0.0, 1.0], 40)
        scores = rng.normal(size=80) + labels
        interval = metrics.bootstrap(metrics.auroc, labels, scores, resamples=300, seed=seed)
        bootstrap.append(interval.low <= truth <= interval.high)
        interval = metrics.delong_interval(labels, scores)
        delong.append(interval.low <= truth <= interval.high)
    assert 0.89 <= np.mean(bootstrap) <= 0.995
    assert 0.89 <= np.mean(delong) <= 0.995


# ---------------------------------------------------------------------------------- the table


def two_labels(n=60):
    columns = [sample(n, seed=seed) for seed in (0, 1)]
    return tuple(np.stack(part, axis=1) for part in zip(*columns, strict=True))


def table(labels, probabilities, **options):
    names = [f"label {i}" for i in range(labels.shape[1])]
    result = metrics.evaluate_predictions(labels, probabilities, names, **options)
    return result.set_index(["label", "metric"])


def test_the_table_holds_each_label_and_their_mean():
    labels, probabilities = two_labels()
    labels[:5, 0] = np.nan
    result = table(labels, probabilities, thresholds=np.array([0.4, 0.6]))
    assert list(result.index.unique("label")) == ["label 0", "label 1", "macro"]
    assert list(result.loc["macro"].index) == list(metrics.CATALOGUE)
    columns = ["value", "low", "high", "interval", "n", "positives", "patients", "threshold"]
    assert list(result.columns) == [*columns, "note"]
    for i, threshold in enumerate([0.4, 0.6]):
        expected = metrics.all_metrics(labels[:, i], probabilities[:, i], threshold)
        for name in metrics.METRICS:
            assert result.loc[(f"label {i}", name), "value"] == pytest.approx(expected[name])
    means = result.loc[["label 0", "label 1"], "value"].groupby("metric").mean()
    pd.testing.assert_series_equal(
        result.loc["macro", "value"], means, check_like=True, check_names=False
    )
    said = result[~result.index.isin(metrics.TRADE_OFFS, level="metric")]
    assert (said["low"] <= said["value"]).all()
    assert (said["value"] <= said["high"]).all()
    assert (said["note"] == "").all()
    assert result.loc[("label 0", "recall"), ["n", "patients"]].tolist() == [55, 55]
    assert result.loc[("label 1", "recall"), "threshold"] == 0.6
    assert np.isnan(result.loc[("label 1", "auroc"), "threshold"])


def test_the_interval_of_the_mean_keeps_the_labels_together():
    labels, probabilities = two_labels()
    cuts = dict.fromkeys(metrics.TRADE_OFFS, 0.6)
    twice = table(labels[:, [0, 0]], probabilities[:, [0, 0]], cuts=cuts)
    # The mean of a label with itself is as unsure as the label; drawn apart, it would be surer.
    width = twice["high"] - twice["low"]
    ratio = width["macro"] / width["label 0"]
    assert ratio.to_numpy() == pytest.approx(1)
    apart = table(labels, probabilities, cuts=cuts)
    width = apart["high"] - apart["low"]
    assert (width["macro"] < 0.9 * (width["label 0"] + width["label 1"]) / 2).all()


def test_every_interval_names_its_method():
    labels, probabilities = sample()
    cuts = {"sensitivity_at_90_specificity": 0.7, "specificity_at_90_sensitivity": 0.3}
    result = table(labels[:, None], probabilities[:, None], cuts=cuts).loc["label 0"]
    expected = metrics.delong_interval(labels, probabilities)
    assert result.loc["auroc", ["low", "high"]].tolist() == [expected.low, expected.high]
    methods = {
        "DeLong": ["auroc"],
        "score, jackknife": ["average_precision", "brier"],
        "Wilson": [*cuts, "accuracy", "recall", "specificity", "precision", "f1"],
        "combined": ["balanced_accuracy", "recall_macro", "precision_macro", "f1_macro"],
    }
    for method, names in methods.items():
        assert (result.loc[names, "interval"] == method).all(), method
    assert sum(map(len, methods.values())) == len(result)
    copies = [np.repeat(part, 2, axis=0) for part in (labels[:, None], probabilities[:, None])]
    several = table(*copies, patients=np.repeat(np.arange(60), 2)).loc["label 0"]
    assert several.loc["recall", "interval"] == "Wilson, effective n"


def test_shares_have_wilsons_interval_of_their_denominator():
    """By SciPy: nine of nine found is not 1 to 1."""
    labels = np.repeat([1.0, 0.0], [9, 30])
    probabilities = np.repeat([0.9, 0.9, 0.1], [9, 6, 24])
    result = table(labels[:, None], probabilities[:, None]).loc["label 0"]
    shares = {
        "recall": (9, 9), "specificity": (24, 30), "accuracy": (33, 39), "precision": (9, 15)
    }  # fmt: skip
    for name, (count, n) in shares.items():
        expected = stats.binomtest(count, n).proportion_ci(method="wilson")
        assert result.loc[name, ["low", "high"]].tolist() == pytest.approx(list(expected)), name
    assert result.loc["recall", "low"] == pytest.approx(0.7008, abs=1e-4)
    hits = stats.binomtest(9, 15).proportion_ci(method="wilson")  # of all called or positive
    expected = [2 * s / (1 + s) for s in hits]
    assert result.loc["f1", ["low", "high"]].tolist() == pytest.approx(expected)


def test_a_difference_of_shares_has_newcombes_interval():
    """Table II of Newcombe 1998 (Statist. Med. 17:873), example 56/70 and 48/80: method 10."""
    value, low, high = proportions.combine(
        [1, -1],
        [56 / 70, 48 / 80],
        *np.transpose([metrics.wilson_interval(56, 70), metrics.wilson_interval(48, 80)]),
        np.eye(2),
    )
    assert (value, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_copies_of_a_study_narrow_no_interval():
    labels, probabilities = two_labels()
    cuts = dict.fromkeys(metrics.TRADE_OFFS, 0.6)
    single = table(labels, probabilities, cuts=cuts)
    copies = [np.repeat(part, 3, axis=0) for part in (labels, probabilities)]
    patients = np.repeat(np.arange(len(labels)), 3)
    clustered = table(*copies, patients=patients, cuts=cuts)
    narrower = (clustered["high"] - clustered["low"]) / (single["high"] - single["low"])
    assert narrower.between(0.97, 1.10).all(), narrower
    naive = table(*copies, cuts=cuts)
    assert ((naive["high"] - naive["low"]) / (single["high"] - single["low"]) < 0.7).all()


def test_a_cut_chosen_elsewhere_is_a_plain_share_and_one_chosen_here_says_so():
    labels, probabilities = sample(n=80)
    cuts = {"sensitivity_at_90_specificity": 0.62, "specificity_at_90_sensitivity": np.nan}
    result = table(labels[:, None], probabilities[:, None], cuts=cuts).loc["label 0"]
    row = result.loc["sensitivity_at_90_specificity"]
    counts = metrics.confusion(labels, probabilities, 0.62)
    assert row["value"] == pytest.approx(counts.recall)
    assert row["threshold"] == 0.62
    assert row["note"] == (
        f"cut 0.620, chosen on validation; specificity here {counts.specificity:.3f}"
    )
    expected = metrics.wilson_interval(counts.true_positives, (labels == 1).sum())
    assert (row["low"], row["high"]) == pytest.approx(expected)
    row = result.loc["specificity_at_90_sensitivity"]
    assert row["value"] == metrics.specificity_at_sensitivity(labels, probabilities)
    assert np.isnan(row["low"])
    assert "chosen on these studies: too good" in row["note"]


def test_few_patients_are_described_and_nothing_is_concluded():
    labels, probabilities = sample(n=40, effect=4.0)
    labels[np.flatnonzero(labels == 1)[7:]] = np.nan
    result = table(labels[:, None], probabilities[:, None]).loc["label 0"]
    with_interval = result[result["low"].notna()]
    assert len(with_interval) > 10
    expected = "7 positive patients: these figures describe them, nothing is concluded"
    assert (with_interval["note"] == expected).all()
    other = np.random.default_rng(0).random(40)
    arguments = labels[:, None], (probabilities[:, None], other[:, None]), ["a"]
    compared = metrics.compare_predictions(*arguments)
    assert compared["p"].isna().all()
    assert expected in compared.set_index("metric").loc["auroc", "note"]
    labels, probabilities = sample(n=60, effect=4.0)
    other = np.random.default_rng(0).random(60)
    arguments = labels[:, None], (probabilities[:, None], other[:, None]), ["a"]
    assert metrics.compare_predictions(*arguments).set_index("metric").loc["auroc", "p"] < 0.05


def test_a_label_of_one_positive_patient_says_the_same_alone_and_in_a_comparison():
    labels, probabilities = two_labels()
    labels[np.flatnonzero(labels[:, 1] == 1)[1:], 1] = 0
    alone = table(labels, probabilities).loc["macro"]
    other = np.clip(probabilities + 0.1, 0, 1)
    compared = metrics.compare_predictions(labels, (probabilities, other), ["a", "b"])
    compared = compared[compared["label"] == "macro"].set_index("metric")
    for metric in ("auroc", "average_precision", "recall"):
        assert np.isnan(alone.loc[metric, "low"])
        assert np.isnan(compared.loc[metric, "low"])
        assert "one positive patient" in alone.loc[metric, "note"]
        assert "no interval: b has none" in compared.loc[metric, "note"]
        one, two = (table(labels, p).loc[("macro", metric), "value"]
                    for p in (probabilities, other))  # fmt: skip
        assert compared.loc[metric, "difference"] == pytest.approx(one - two)
    assert alone.loc["specificity", "low"] < alone.loc["specificity", "value"]
    assert np.isfinite(compared.loc["specificity", "low"])


def test_scaling_by_temperature_keeps_every_call():
    _, probabilities = sample()
    probabilities[:3] = [0.0, 1.0, 0.42]
    for temperature in (0.3, 1.0, 4.0):
        scaled = metrics.scale(probabilities, temperature)
        calls = scaled >= metrics.scale(0.42, temperature)
        np.testing.assert_array_equal(calls, probabilities >= 0.42)
    np.testing.assert_allclose(metrics.scale(probabilities, 1.0), probabilities, atol=2e-7)


def test_every_study_may_have_the_threshold_of_its_own_fold():
    labels, probabilities = sample()
    cuts = np.where(np.arange(60) < 30, 0.3, 0.7)
    result = table(labels[:, None], probabilities[:, None], thresholds=cuts[:, None])
    expected = sklearn_metrics.accuracy_score(labels, probabilities >= cuts)
    assert result.loc[("label 0", "accuracy"), "value"] == pytest.approx(expected)
    assert np.isnan(result.loc[("label 0", "accuracy"), "threshold"])


def test_the_table_does_not_depend_on_the_order():
    labels, probabilities = two_labels()
    order = np.random.default_rng(0).permutation(60)
    patients = np.array([f"patient {i // 2}" for i in range(60)])
    first = table(labels, probabilities, patients=patients)
    again = table(labels[order], probabilities[order], patients=patients[order])
    pd.testing.assert_frame_equal(first, again)
    assert (first["patients"] == 30).all()
    alone = table(labels, probabilities)
    shuffled = table(labels[order], probabilities[order])
    pd.testing.assert_frame_equal(alone, shuffled)


def test_one_class_gives_what_can_be_said():
    probabilities = np.array([[0.1], [0.3], [0.4], [0.8]])
    result = table(np.zeros((4, 1)), probabilities).loc["label 0"]
    assert result.loc["specificity", "value"] == 0.75
    assert result.loc["specificity", "low"] < 0.75 < result.loc["specificity", "high"]
    assert result.loc["accuracy", "value"] == 0.75
    for metric in ("auroc", "average_precision", "recall", "balanced_accuracy"):
        assert np.isnan(result.loc[metric, "value"])
        assert "no positive patient" in result.loc[metric, "note"]
    assert result.drop("specificity")[["low", "high"]].isna().all(axis=None)


def test_one_patient_of_a_class_gives_no_interval_where_it_matters():
    labels = np.array([[0.0], [0], [0], [1], [1]])
    probabilities = np.array([[0.1], [0.6], [0.3], [0.8], [0.7]])
    patients = np.array(["a", "b", "c", "d", "d"])
    result = table(labels, probabilities, patients=patients).loc["label 0"]
    assert result.loc["auroc", "value"] == 1
    assert result.loc["auroc", "note"] == "no interval: one positive patient"
    assert np.isnan(result.loc["recall", "low"])
    assert result.loc["specificity", ["low", "high"]].notna().all()


def test_what_is_undefined_says_why():
    labels, probabilities = np.array([[0.0], [0], [1], [1]]), np.full((4, 1), 0.2)
    result = table(labels, probabilities).loc["label 0"]
    assert np.isnan(result.loc["precision", "value"])
    assert result.loc["precision", "note"] == "undefined: a class is never called"
    assert result.loc["recall", "value"] == 0
    assert result.loc["recall", "low"] == 0 < 0.5 < result.loc["recall", "high"]


def test_a_label_without_both_classes_is_left_out_of_the_mean_and_named():
    labels, probabilities = two_labels()
    labels[:, 1] = 0
    result = table(labels, probabilities)
    assert result.loc[("macro", "auroc"), "value"] == result.loc[("label 0", "auroc"), "value"]
    assert result.loc[("macro", "auroc"), "note"] == "without label 1: not both classes"
    labels[:] = np.nan
    result = table(labels, probabilities)
    assert result["value"].isna().all()
    assert (result["n"] == 0).all()
    assert (result.loc["macro", "note"] == "no label has both classes").all()


def test_no_study_at_all_is_a_table_of_nan():
    result = table(np.empty((0, 1)), np.empty((0, 1)))
    assert result["value"].isna().all()
    assert (result["note"] != "").all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": ["a", "b"]}, "expected both .studies, 2."),
        ({"patients": np.arange(3)}, "patients .3,. do not fit 60 studies"),
    ],
)
def test_arrays_that_do_not_fit_are_named(options, message):
    labels, probabilities = sample()
    arguments = {"label_names": ["a"]} | options
    with pytest.raises(InputError, match=message):
        metrics.evaluate_predictions(labels[:, None], probabilities[:, None], **arguments)


# -------------------------------------------------------------------------------- lesion pixels


def pixel_counts(truths, calls):
    """`found`, `false` and `missed` of pairs of masks."""
    pairs = [(np.asarray(t, bool), np.asarray(c, bool)) for t, c in zip(truths, calls, strict=True)]
    return np.array([[(t & c).sum(), (~t & c).sum(), (t & ~c).sum()] for t, c in pairs], float).T


def test_pixel_metrics_equal_scikit_learn(rng):
    truths = rng.random((6, 50)) < 0.3
    calls = truths ^ (rng.random((6, 50)) < 0.2)
    found = metrics.pixel_metrics(*pixel_counts(truths, calls))
    score = {
        "dice": sklearn_metrics.f1_score,
        "iou": sklearn_metrics.jaccard_score,
        "pixel_recall": sklearn_metrics.recall_score,
        "pixel_precision": sklearn_metrics.precision_score,
    }
    for name, metric in score.items():
        by_study = [metric(t, c) for t, c in zip(truths, calls, strict=True)]
        assert found[name] == pytest.approx(np.mean(by_study))
        assert found[f"{name}_pooled"] == pytest.approx(metric(truths.ravel(), calls.ravel()))


def test_empty_masks_are_left_out_of_the_means_and_count_in_the_pool():
    lesion, empty, half = [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]
    found = metrics.pixel_metrics(*pixel_counts([lesion, empty], [half, lesion]))
    assert found["dice"] == pytest.approx(2 / 3)
    assert found["dice_pooled"] == pytest.approx(2 / 5)
    assert found["pixel_precision"] == 1
    assert found["pixel_precision_pooled"] == pytest.approx(1 / 3)
    nothing_found = metrics.pixel_metrics(*pixel_counts([lesion], [empty]))
    assert all(nothing_found[name] == 0 for name in metrics.PIXEL_METRICS)
    nothing_at_all = metrics.pixel_metrics(*pixel_counts([empty], [empty]))
    assert np.isnan(list(nothing_at_all.values())).all()


def test_unknown_masks_are_left_out():
    counts = pixel_counts([[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]])
    unknown = np.concatenate([counts, np.full((3, 1), np.nan)], axis=1)
    assert metrics.pixel_metrics(*unknown) == metrics.pixel_metrics(*counts)


def test_intervals_of_pixel_metrics_are_over_patients(rng):
    counts = rng.integers(0, 20, (3, 30)).astype(float)
    counts[0, :10] = counts[2, :10] = 0
    patients = np.repeat(np.arange(15), 2)
    table = metrics.evaluate_pixels(*counts, "lesion", patients)
    rows = table.set_index("metric")
    assert list(rows.index) == [
        *metrics.PIXEL_METRICS,
        *(f"{m}_pooled" for m in metrics.PIXEL_METRICS),
    ]
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    assert (rows["n"] == 30).all()
    assert (rows["positives"] == 20).all()
    assert (rows["patients"] == 15).all()
    none = metrics.evaluate_pixels(*np.zeros((3, 4)), "lesion")
    assert none["value"].isna().all()
    assert (none["note"] == "no positive patient").all()
