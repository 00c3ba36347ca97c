"""By simulation: intervals of classes hold the truth, and equal models are told apart seldom.

What is drawn is in `benchmarks/coverage_classes.py`, which prints more settings and other methods.
The standard error of a coverage of 0.95 is 0.013 with 300 draws and 0.022 with 100.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_modules import benchmark

from medseq_tf.evaluation import metrics


@pytest.fixture(scope="module")
def simulation():
    with benchmark("coverage_classes") as module:
        yield module


def check(tables, floor, mean):
    """Every figure has an interval in every draw, which covers in each setting and in all."""
    for table in tables:
        covered = table.set_index("figure")["coverage"]
        assert len(covered) == 11
        assert (table["said"] == 1).all(), table
        assert covered.min() >= floor, table
    figures = [table.set_index("figure")["coverage"] for table in tables]
    assert np.mean(figures) >= mean, figures


def test_intervals_cover_in_two_settings(simulation):
    settings = [simulation.Setting(57, 3, 2.0, grades=True), simulation.Setting(40, 3, 3.0)]
    check([simulation.coverage(setting, 100) for setting in settings], 0.88, 0.935)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"grades": True}, {"skewed": True}, {"several": True}])
@pytest.mark.parametrize("classes", [3, 5])
def test_intervals_cover(simulation, kind, classes):
    sizes = (30 if classes == 3 else 60, 150)
    settings = [
        simulation.Setting(size, classes, shift, **kind) for size in sizes for shift in (1.5, 3.0)
    ]
    check([simulation.coverage(setting, 300) for setting in settings], 0.9, 0.94)


@pytest.mark.slow
def test_intervals_of_a_model_that_is_too_sure_cover(simulation):
    settings = [simulation.Setting(57, 3, shift, sure=True) for shift in (1.5, 3.0)]
    check([simulation.coverage(setting, 300) for setting in settings], 0.9, 0.94)


def different(tables):
    """How often each figure of equal models is said to differ, on average over settings."""
    return np.mean([table.set_index("figure")["apart"] for table in tables], axis=0)


def test_equal_models_seldom_differ(simulation):
    table = simulation.difference_coverage(simulation.Setting(40), 60, (1.5, 1.5))
    assert table["apart"].mean() <= 0.08, table
    assert table["p"].max() <= 0.12, table


@pytest.mark.slow
def test_equal_models_differ_no_more_often_than_claimed(simulation):
    tables = [
        simulation.difference_coverage(setting, 300, (setting.shift,) * 2)
        for setting in (
            simulation.Setting(57, 3, 1.5),
            simulation.Setting(57, 3, 3.0),
            simulation.Setting(60, 5, 1.5, skewed=True),
            simulation.Setting(40, 3, 1.5, several=True),
        )
    ]
    assert different(tables).max() <= 0.06
    for table in tables:
        assert not (table["p"] > 0.06).any()  # McNemar's is exact


@pytest.mark.slow
def test_differences_of_unequal_models_cover(simulation):
    tables = [
        simulation.difference_coverage(setting, 300, (setting.shift, 0.7 * setting.shift))
        for setting in (simulation.Setting(57, 3, 2.0), simulation.Setting(60, 5, 2.0, grades=True))
    ]
    check(tables, 0.9, 0.94)


@pytest.mark.slow
def test_rows_of_the_confusion_table_cover(simulation):
    setting = simulation.Setting(60, 3, 1.5, several=True)
    truth, (probabilities,), _ = simulation.draw(
        simulation.Setting(50_000, 3, 1.5, several=True), np.random.default_rng(9)
    )
    called = metrics.call(probabilities)
    true = metrics.confusion_table(truth, called, setting.names)["share"]
    rng, covered = np.random.default_rng(10), []
    for _ in range(300):
        truth, (probabilities,), owner = simulation.draw(setting, rng)
        called = metrics.call(probabilities)
        table = metrics.confusion_table(truth, called, setting.names, owner)
        covered.append((table["low"] <= true) & (true <= table["high"]))
    share = np.mean(covered, axis=0)
    assert share.min() >= 0.92, share
    assert 0.935 <= share.mean() <= 0.98, share
