"""The best of many trials: its score is corrected for having been chosen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medseq_tf.evaluation import scoring
from medseq_tf.tuning import optimism


def equal_trials(trials, patients, seed, true=0.70, folds=5, repeats=2):
    """Held-out predictions of trials that are all alike, over repeated folds."""
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    truth = np.arange(patients) % 2
    tables = {}
    for trial in range(trials):
        own = rng.normal(size=patients) + np.sqrt(2) * norm.ppf(true) * truth
        parts = []
        for repeat in range(repeats):
            fold = np.empty(patients, int)
            for kind in (0, 1):
                members = np.flatnonzero(truth == kind)
                dealt = np.random.default_rng([seed, repeat, kind]).permutation(len(members))
                fold[members] = folds * repeat + dealt % folds
            score = own + 0.3 * rng.normal(size=patients)
            parts.append(
                pd.DataFrame(
                    {
                        "study": np.arange(patients),
                        "patient": np.arange(patients),
                        "fold": fold,
                        "label": "lesion",
                        "truth": truth,
                        "probability": 1 / (1 + np.exp(-score)),
                        "threshold": 0.5,
                    }
                )
            )
        tables[f"{trial:04d}"] = pd.concat(parts, ignore_index=True)
    return tables


def score(table):
    return scoring.fold_table(table).groupby("fold")["auroc"].mean().mean()


@pytest.mark.slow
def test_the_best_of_twenty_equal_trials_is_corrected_to_what_they_are():
    best, corrected = [], []
    for seed in range(20):
        trials = equal_trials(20, 62, seed)
        best.append(max(map(score, trials.values())))
        corrected.append(optimism.correct(trials, "auroc")[0])
    print(f"true 0.70: best of 20 {np.mean(best):.3f}, corrected {np.mean(corrected):.3f}")
    assert np.mean(best) > 0.76
    assert abs(np.mean(corrected) - 0.70) < 0.025


@pytest.mark.parametrize("metric", ["auroc", "accuracy", "brier"])
def test_one_trial_alone_is_hardly_corrected(metric):
    trials = equal_trials(1, 60, 0)
    expected = scoring.fold_table(trials["0000"]).groupby("fold")[metric].mean().mean()
    value, note = optimism.correct(trials, metric)
    assert value == pytest.approx(expected, abs=0.03)
    assert note == ""


def test_a_trial_that_is_truly_better_keeps_its_score():
    trials = equal_trials(5, 80, 0) | {"good": equal_trials(1, 80, 1, true=0.95)["0000"]}
    assert optimism.correct(trials, "auroc")[0] == pytest.approx(score(trials["good"]), abs=0.02)


def test_where_it_cannot_be_corrected_that_is_said():
    one_positive = equal_trials(2, 20, 0)
    for table in one_positive.values():
        table["truth"] = (table["patient"] == 3).astype(float)
    assert "two patients of each class" in optimism.correct(one_positive, "auroc")[1]
    assert "kept its predictions" in optimism.correct({}, "auroc")[1]
    words = optimism.Corrected(0.8, float("nan"), 3, "why").text("auroc")
    assert "cannot be said: why" in words


@pytest.mark.parametrize(
    ("metric", "score", "corrected", "is_said"),
    [("auroc", 0.8, 0.7, True), ("auroc", 0.7, 0.8, False), ("brier", 0.2, 0.3, True)]
    + [("brier", 0.3, 0.2, False), ("auroc", 0.7, 0.7, False)],
)
def test_a_correction_that_makes_it_no_worse_is_no_correction(metric, score, corrected, is_said):
    words = optimism.Corrected(score, corrected, 3).text(metric)
    assert ("is too good: about" in words) == is_said
    assert ("by how much cannot be said" in words) != is_said
    assert f"{corrected:.3f} when corrected for the choice" in words
