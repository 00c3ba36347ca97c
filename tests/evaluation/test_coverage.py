"""Intervals of one test set hold the truth as often as they claim, tests keep their level.

By simulation through the public functions; `benchmarks/coverage.py` has other methods beside them.
The standard error of a coverage of 0.95 is 0.005 with 2,000 draws and 0.011 with 400.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from medseq_tf.evaluation import metrics, scoring

pytestmark = pytest.mark.slow
CUT = 0.4


def shift_of(auroc):
    return np.sqrt(2) * stats.norm.ppf(auroc)


def draw(rng, patients, prevalence, auroc, several=False, sharpness=1.0):
    """Labels, probabilities, owners; scores normal within a class, those of a patient alike."""
    while True:
        owner = np.repeat(np.arange(patients), rng.integers(1, 5, patients) if several else 1)
        labels = (rng.random(patients) < prevalence).astype(float)[owner]
        if several:
            labels[rng.random(len(owner)) < 0.25] = 0
        if min(len(set(owner[labels == kind])) for kind in (0, 1)) >= 2:
            break
    scores = rng.normal(size=len(owner))
    if several:
        scores = np.sqrt(0.7) * rng.normal(size=patients)[owner] + np.sqrt(0.3) * scores
    shift = shift_of(auroc)
    logits = shift * (scores + shift * labels) - shift**2 / 2 + special.logit(prevalence)
    return labels, special.expit(sharpness * logits), owner


@pytest.mark.parametrize(
    ("patients", "prevalence"), [(20, 0.5), (30, 0.3), (48, 0.5), (100, 0.15), (200, 0.3)]
)
def test_the_auroc(patients, prevalence):
    """Normal scores, from chance to near separation, where plain DeLong covers in 0.84 and less."""
    rng, positives = np.random.default_rng(patients), round(patients * prevalence)
    labels = (np.arange(patients) < positives).astype(float)
    covered = []
    for auroc in (0.5, 0.7, 0.85, 0.96, 0.98):
        scores = rng.normal(size=(1000, patients)) + shift_of(auroc) * labels
        found = [metrics.delong_interval(labels, row) for row in scores]
        covered.append(np.mean([e.low <= auroc <= e.high for e in found]))
    assert min(covered) > 0.925, covered
    assert 0.935 < np.mean(covered) < 0.98, covered
    assert max(covered[:4]) < 0.985, covered


def test_the_auroc_of_other_shapes():
    """Exponential scores, of which the variance is greater than of normal ones."""
    rng, labels = np.random.default_rng(0), np.repeat([1.0, 0.0], [30, 70])
    for auroc in (0.7, 0.85, 0.96):
        scale = np.where(labels == 1, auroc / (1 - auroc), 1.0)
        rows = rng.exponential(scale, (1000, 100))
        found = [metrics.delong_interval(labels, row) for row in rows]
        assert 0.92 < np.mean([e.low <= auroc <= e.high for e in found]) < 0.98


@pytest.mark.parametrize(("patients", "auroc"), [(30, 0.7), (30, 0.9), (48, 0.8), (100, 0.7)])
def test_equal_models_are_told_apart_no_more_often_than_claimed(patients, auroc):
    rng, labels = np.random.default_rng(1), np.arange(patients) % 3 == 0
    rejected = []
    for _ in range(1500):
        common, *own = rng.normal(size=(3, patients))
        a, b = (np.sqrt(0.5) * (common + part) + shift_of(auroc) * labels for part in own)
        rejected.append(metrics.delong_test(labels, a, b).p < 0.05)
    assert np.mean(rejected) < 0.06


MEASURED = [
    # Of few patients, figures near 1 jump from one value to the next: more room.
    ((30, 0.3, 0.85), False, (0.90, 0.99)),
    ((48, 0.5, 0.9), False, (0.92, 0.99)),
    ((100, 0.2, 0.8), False, (0.92, 0.98)),
    ((60, 0.4, 0.85), True, (0.91, 0.98)),
]


@pytest.mark.parametrize(("setting", "several", "room"), MEASURED)
def test_every_metric_of_the_table(setting, several, room):
    """Recall, precision, F1, Brier ... of one label, at a threshold and at a cut from elsewhere."""
    labels, probabilities, _ = draw(np.random.default_rng(9), 100_000, *setting[1:], several)
    true = {k: float(v) for k, v in metrics.all_metrics(labels, probabilities, CUT).items()}
    cuts = {"sensitivity_at_90_specificity": 0.6, "specificity_at_90_sensitivity": 0.2}
    true["sensitivity_at_90_specificity"] = metrics.confusion(labels, probabilities, 0.6).recall
    true["specificity_at_90_sensitivity"] = metrics.confusion(
        labels, probabilities, 0.2
    ).specificity
    rng, covered = np.random.default_rng(10), []
    for _ in range(400):
        labels, probabilities, owner = draw(rng, *setting, several)
        table = metrics.evaluate_predictions(
            labels[:, None], probabilities[:, None], ["a"], CUT, owner, cuts=cuts
        ).set_index("metric")
        value = pd.Series(true)
        low, high = table["low"][value.index] - 1e-9, table["high"][value.index] + 1e-9
        covered.append(((low <= value) & (value <= high)).where(low.notna()).astype(float))
    share = pd.concat(covered, axis=1).mean(axis=1)
    assert share.between(*room).all(), share
    assert 0.935 < share.mean() < 0.97, share


def test_the_mean_over_labels():
    rng, setting = np.random.default_rng(11), (48, 0.35, 0.85)
    true = []
    for shift in (0.75, 0.9):
        labels, probabilities, _ = draw(np.random.default_rng(9), 100_000, 0.35, shift)
        true.append(
            {k: float(v) for k, v in metrics.all_metrics(labels, probabilities, CUT).items()}
        )
    value, covered = pd.DataFrame(true).mean(), []
    for _ in range(300):
        parts = [draw(rng, *setting[:2], auroc)[:2] for auroc in (0.75, 0.9)]
        labels, probabilities = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
        table = metrics.evaluate_predictions(labels, probabilities, ["a", "b"], CUT)
        rows = table[table["label"] == "macro"].set_index("metric").loc[value.index]
        inside = (rows["low"] <= value) & (value <= rows["high"])
        covered.append(inside.where(rows["low"].notna()).astype(float))
    share = pd.concat(covered, axis=1).mean(axis=1)
    assert share.between(0.90, 0.985).all(), share
    assert 0.935 < share.mean() < 0.97, share


def test_differences_of_two_models():
    """A better and a worse model on the same patients, their scores related."""

    def pair(rng, patients):
        labels = (rng.random(patients) < 0.4).astype(float)
        common, *own = rng.normal(size=(3, patients))
        scores = [
            np.sqrt(0.5) * (common + part) + shift_of(auroc) * labels
            for part, auroc in zip(own, (0.9, 0.8), strict=True)
        ]
        return labels, tuple(
            special.expit(shift_of(a) * (s - shift_of(a) / 2) - 0.4)
            for s, a in zip(scores, (0.9, 0.8), strict=True)
        )

    labels, both = pair(np.random.default_rng(9), 100_000)
    first, second = (metrics.all_metrics(labels, part, CUT) for part in both)
    value = pd.Series({name: float(first[name] - second[name]) for name in first})
    rng, covered = np.random.default_rng(12), []
    for _ in range(300):
        labels, both = pair(rng, 60)
        columns = tuple(part[:, None] for part in both)
        table = metrics.compare_predictions(labels[:, None], columns, ["a"], (CUT, CUT))
        rows = table.set_index("metric").loc[value.index]
        covered.append((rows["low"] <= value) & (value <= rows["high"]))
    share = pd.concat(covered, axis=1).mean(axis=1)
    assert share.between(0.915, 0.985).all(), share
    assert 0.94 < share.mean() < 0.975, share


@pytest.mark.parametrize("several", [False, True])
def test_calibration(several):
    """Of a model that is too sure of itself, through the table of `evaluate`."""
    setting = {"prevalence": 0.4, "auroc": 0.85, "several": several, "sharpness": 1.5}
    labels, probabilities, _ = draw(np.random.default_rng(9), 150_000, **setting)
    logits = special.logit(probabilities)

    def loss(found):
        return np.logaddexp(0, -(2 * labels - 1) * (found[0] + found[1] * logits)).mean()

    def excess(intercept):
        return (labels - special.expit(logits + intercept)).mean()

    true = {
        "observed_expected": labels.mean() / probabilities.mean(),
        "calibration_intercept": optimize.brentq(excess, -5, 5),
        "calibration_slope": optimize.minimize(loss, [0.0, 1.0]).x[1],
        "brier": metrics.brier(labels, probabilities),
    }
    rng, covered = np.random.default_rng(13), []
    for _ in range(300):
        labels, probabilities, owner = draw(rng, 60, **setting)
        predictions = pd.DataFrame(
            {"split": "test", "label": "a", "study": range(len(labels)), "truth": labels,
             "patient": owner, "probability": probabilities, "calibrated": probabilities}
        )  # fmt: skip
        rows = scoring.calibration_table(predictions).set_index("metric").loc[list(true)]
        value = pd.Series(true)
        covered.append((rows["before_low"] <= value) & (value <= rows["before_high"]))
    share = pd.concat(covered, axis=1).mean(axis=1)
    assert share.between(0.90, 0.985).all(), share
    assert 0.92 < share.mean() < 0.975, share


def test_lesion_pixels():
    """Means over studies whose Dice is 0 where the lesion is missed."""

    def counts(rng, patients):
        area = rng.integers(20, 400, patients).astype(float)
        area[rng.random(patients) < 0.4] = 0
        share = np.where(rng.random(patients) < 0.2, 0, rng.beta(6, 3, patients))
        return np.round(share * area), np.round(rng.exponential(20, patients)), area

    def figures(found, false, area):
        return found, false, area - found

    true = metrics.pixel_metrics(*figures(*counts(np.random.default_rng(9), 200_000)))
    value, rng, covered = pd.Series(true).astype(float), np.random.default_rng(14), []
    for _ in range(300):
        table = metrics.evaluate_pixels(*figures(*counts(rng, 40)), "lesion").set_index("metric")
        covered.append((table["low"] <= value) & (value <= table["high"]))
    share = pd.concat(covered, axis=1).mean(axis=1)
    assert share.between(0.90, 0.985).all(), share
