"""By simulation: the number of an automatic run, and what is concluded from it, are true.

What the candidates, cohorts and truths are is in `benchmarks/automl_simulation.py`, which prints
more of them. The bounds are those of 500 cohorts, with what chance adds in fewer.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_modules import benchmark
from scipy import stats


@pytest.fixture(scope="module")
def simulation():
    with benchmark("automl_simulation") as module:
        yield module


def at_most(share, cohorts):
    """The largest share of some cohorts that a true share makes likely."""
    return stats.binom.ppf(0.995, cohorts, share) / cohorts


def test_the_truth_of_a_discriminant_is_the_one_asked_for(simulation):
    gap = simulation.gap_for(4, 62, 0.7)
    assert simulation.gap_for(4, 62, 0.5) == pytest.approx(np.zeros(4))
    cell = simulation.Cell(62, 0.7, 2)
    drawn = simulation.draw(cell, 20, [1])
    labels = np.repeat([0.0, 1.0], simulation.NEW)
    reached = [simulation.auroc(labels, new[fold]) for new in drawn.new[1] for fold in range(5)]
    assert np.mean(reached) == pytest.approx(0.7, abs=0.03)
    assert (gap > 0).all()


def test_a_candidate_sees_neither_of_the_folds_that_it_predicts_for(simulation):
    cell = simulation.Cell(40, 0.7, 1)
    drawn = simulation.draw(cell, 2, [1])
    own = drawn.folds[:, :, None] == np.arange(simulation.FOLDS)[:, None]
    np.testing.assert_array_equal(np.isnan(drawn.inner[0]), own)
    assert np.isfinite(drawn.outer[0]).all()


def test_nothing_beats_chance_where_there_is_nothing_to_learn(simulation):
    cohorts = 60
    (found,) = simulation.simulate(simulation.Cell(40, 0.5, 6), cohorts, repeats=(1,), seed=5)
    assert found.chance <= at_most(0.035, cohorts)
    assert found.covered >= 1 - at_most(0.07, cohorts)
    assert abs(found.bias) <= 0.01 + 3 * found.bias_error
    assert found.network <= at_most(0.06, cohorts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "reached", "count", "alike"),
    [
        (40, 0.5, 30, True),
        (40, 0.7, 6, False),
        (62, 0.7, 30, True),
        (62, 0.85, 6, False),
    ],
)
def test_the_number_is_true_whatever_was_chosen_among(simulation, patients, reached, count, alike):
    cohorts = 100
    cell = simulation.Cell(patients, reached, count, alike)
    for found in simulation.simulate(cell, cohorts, seed=3):
        assert abs(found.bias) <= 0.01 + 2 * found.bias_error
        assert found.covered >= 1 - at_most(0.07, cohorts)
        assert found.network <= at_most(0.06, cohorts)
        assert found.differ <= at_most(0.06, cohorts)
        if reached == 0.5:
            assert found.chance <= at_most(0.035, cohorts)
        else:  # what is deployed is no worse than what the number is about
            assert found.deployed >= found.true - 0.005
