"""By simulation: intervals of cross-validated recipes of classes cover.

What the learners, cohorts and truths are is in `benchmarks/coverage_class_folds.py`, which prints
more of them.
"""

from __future__ import annotations

import pytest
from benchmark_modules import benchmark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulation():
    with benchmark("coverage_class_folds") as module:
        yield module


@pytest.mark.parametrize("name", ["nothing to learn", "hard", "many features"])
def test_intervals_hold_what_the_recipe_does_on_average(simulation, name):
    design = next(one for one in simulation.DESIGNS if one.name == name)
    found = simulation.coverage(design, 152, (5,), cohorts=60, seed=3).set_index("metric")
    assert (found["covered"] >= 0.92).all(), found
    for metric, widest in (("accuracy", 0.26), ("auroc", 0.25), ("kappa", 0.45)):
        assert found.loc[metric, "width"] < widest, metric
