"""By simulation: intervals of cross-validated recipes cover, and their comparison keeps its level.

What the learners, cohorts and truths are is in `benchmarks/coverage_folds.py`, which prints more of
them. Everything goes through `scoring.score` and `comparison.compare_tables`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from benchmark_modules import benchmark

from medseq_tf.evaluation import comparison, scoring

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulation():
    with benchmark("coverage_folds") as module:
        yield module


def table(scores, folds, repeats, half):
    """One cohort's predictions as a cross-validated run keeps them."""
    count = len(scores) // (2 * half)
    names = [f"p{number:03d}" for number in range(2 * half)] * count
    probability = 1 / (1 + np.exp(-np.clip(scores, -30, 30)))
    return pd.DataFrame(
        {
            "study": names,
            "patient": names,
            "split": "test",
            "label": "lesion",
            "truth": np.tile(np.repeat([1.0, 0.0], half), count),
            "probability": probability,
            "threshold": 0.5,
            "positive": probability >= 0.5,
            "fold": folds,
            "repeat": repeats,
        }
    )


@pytest.mark.parametrize(
    ("learner", "patients", "auroc"),
    [(1, 62, 0.5), (2, 40, 0.7), (1, 152, 0.7), (3, 62, 0.85)],
)
def test_an_interval_holds_what_the_recipe_does_on_average(simulation, learner, patients, auroc):
    learner, half, cohorts = simulation.LEARNERS[learner], patients // 2, 150
    gap = simulation.gap_for(learner, patients, auroc)
    truth = 0.5
    if auroc > 0.5:
        truth = simulation.expected_auroc(learner, patients, gap, 2, 3000)
    drawn = simulation.draw(cohorts, patients, gap, np.random.default_rng(patients))
    parts = simulation.cross_validate([learner], *drawn, 5, 0, [1])[0]
    for repeats in (1, 5):
        rows = repeats * 2 * half
        found = []
        for cohort in zip(*(part[:, :rows] for part in parts), strict=True):
            scored = scoring.score(table(*cohort, half), ["lesion"], resamples=2)
            found.append(scored.set_index("metric").loc["auroc", ["low", "high"]])
        low, high = np.array(found, float).T
        covered = ((low <= truth) & (truth <= high)).mean()
        assert covered >= 0.93
        if auroc == 0.5:  # claims to be better than chance
            assert (low > 0.5).mean() <= 0.035


@pytest.mark.parametrize("name", ["halves", "other seeds of a network"])
def test_equal_recipes_differ_in_few_cohorts(simulation, name):
    patients, cohorts = 62, 100
    half, both = patients // 2, simulation.equal_recipes(name, patients, 5, cohorts, 0)
    for repeats in (1, 5):
        rows, rejected = repeats * 2 * half, []
        for number in range(cohorts):
            tables = [table(*(part[number, :rows] for part in one), half) for one in both]
            found = comparison.compare_tables(
                dict(zip("ab", tables, strict=True)), ["lesion"], resamples=2
            )
            rejected.append(found.differences.set_index("metric").loc["auroc", "p"] < 0.05)
        assert np.mean(rejected) <= 0.06
