"""The page for contributors: the metric that it adds stands in every table, with its interval."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medseq_tf.evaluation import cross_validation, metrics

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
SECTION = re.compile(r"^## Add a metric\n.*?```python\n(.*?)```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def name():
    section = SECTION.search(PAGE.read_text("utf-8"))
    if section is None:
        pytest.skip("CONTRIBUTING.md has no section 'Add a metric' yet")
    before = dict(metrics.CATALOGUE)
    try:
        exec(section[1], {})
        (added,) = metrics.CATALOGUE.keys() - before.keys()
        yield added
    finally:
        metrics.CATALOGUE.clear()
        metrics.CATALOGUE.update(before)


def test_a_metric_of_the_page_stands_in_every_table(name, rng):
    truth = (np.arange(80) % 3 == 0).astype(float)
    first, second = (1 / (1 + np.exp(-(2 * truth - 1 + rng.normal(size=80)))) for _ in "ab")
    columns = truth[:, None], first[:, None]
    row = metrics.evaluate_predictions(*columns, ["lesion"]).set_index("metric").loc[name]
    expected = metrics.all_metrics(truth, first, names=[name])[name]
    assert row["value"] == expected
    assert row["low"] < row["value"] < row["high"]
    assert row["interval"] == "score, jackknife"
    both = (first[:, None], second[:, None])
    row = (
        metrics.compare_predictions(truth[:, None], both, ["lesion"]).set_index("metric").loc[name]
    )
    assert row["low"] < row["difference"] < row["high"]
    names = [f"s{number:02d}" for number in range(80)]
    table = pd.DataFrame(
        {"study": names, "patient": names, "label": "lesion", "truth": truth, "probability": first,
         "threshold": 0.5, "fold": np.arange(80) // 3 % 4 + 1}
    )  # fmt: skip
    held_out = cross_validation.held_out(table, ["lesion"])
    row = cross_validation.evaluate_folds(held_out, 200).set_index("metric").loc[name]
    assert row["value"] == pytest.approx(expected)
    assert row["low"] < row["value"] < row["high"]


def test_a_metric_of_the_page_is_of_weighted_studies(name, rng):
    truth, probability = (np.arange(40) % 2).astype(float), rng.random(40)
    weights = rng.integers(0, 3, (5, 40))
    together = metrics.all_metrics(truth, probability, 0.5, weights, [name])[name]
    for value, weight in zip(together, weights, strict=True):
        repeated = np.repeat(truth, weight), np.repeat(probability, weight)
        assert value == pytest.approx(metrics.all_metrics(*repeated, 0.5, names=[name])[name])


def test_a_metric_that_leaves_0_to_1_has_no_interval_and_says_why(monkeypatch, rng):
    below = metrics.Metric("decision", lambda counts: counts.recall - 1.5)
    monkeypatch.setitem(metrics.CATALOGUE, "below", below)
    truth, probability = (np.arange(80) % 2).astype(float), rng.random(80)
    single = metrics.evaluate_predictions(truth[:, None], probability[:, None], ["lesion"])
    names = [f"s{number:02d}" for number in range(80)]
    table = pd.DataFrame(
        {"study": names, "patient": names, "label": "lesion", "truth": truth, "threshold": 0.5,
         "probability": probability, "fold": np.arange(80) // 2 % 4 + 1}
    )  # fmt: skip
    folds = cross_validation.evaluate_folds(cross_validation.held_out(table, ["lesion"]), 50)
    for scored in (single, folds):
        row = scored.set_index("metric").loc["below"]
        assert row["value"] < 0
        assert np.isnan(row["low"])
        assert row["note"] == "no interval: not in [0, 1]"
