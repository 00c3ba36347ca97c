"""The median rule: who is stopped, by an independent computation, and what becomes of him."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pandas as pd
import pytest
from trials import outcome

from medseq_tf.tuning.hopeless import FEWEST_EPOCHS, FEWEST_FINISHED, MedianRule


def keep(folder, folds, monitor="auroc", status=None):
    """Write what a trial's folder holds: the epochs of its folds, and its result."""
    for name, values in folds.items():
        place = folder / "run" / name
        place.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame({"epoch": range(1, len(values) + 1), f"val_{monitor}": values})
        table.to_csv(place / "history.csv", index=False)
    if status:
        found = {**outcome(0.5), "status": status}
        (folder / "result.json").write_text(json.dumps(found))


@pytest.fixture
def finished(tmp_path):
    """Five finished trials of two folds, whose curves rise to 0.6, 0.65, ... 0.8."""
    for number in range(FEWEST_FINISHED):
        top = 0.6 + number * 0.05
        folds = {f"fold_{fold}": np.linspace(0.5, top, 8) for fold in (1, 2)}
        keep(tmp_path / f"{number:04d}", folds, status="finished")
    return tmp_path


def expected(folder, fold, own):
    """The rule of section 3.2.2, epoch by epoch, in plain Python."""
    for step in range(FEWEST_EPOCHS, len(own) + 1):
        means = []
        for number in range(FEWEST_FINISHED):
            curve = pd.read_csv(folder / f"{number:04d}" / "run" / fold / "history.csv")
            means.append(statistics.fmean(curve["val_auroc"][:step]))
        if max(own[:step]) < statistics.median(means):
            return step
    return None


def test_it_is_the_rule_of_the_paper(finished):
    rng = np.random.default_rng(0)
    stopped = []
    for number in range(60):
        own = np.clip(rng.normal(0.56, 0.03, 8), 0, 1).round(6)
        folder = finished / f"own_{number}"
        keep(folder, {"fold_1": own})
        step = expected(finished, "fold_1", own.tolist())
        why = MedianRule(folder, "auroc")()
        assert (why is None) == (step is None), own
        if why is not None:
            assert why.startswith(f"hopeless at epoch {step} of fold 1: ")
        stopped.append(step)
    assert None in stopped
    assert len(set(stopped)) > 2, "else little was compared"


def test_it_says_the_same_when_asked_after_each_epoch(finished):
    own = [0.62, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    rule, folder = MedianRule(finished / "own", "auroc"), finished / "own"
    said = []
    for epoch in range(1, len(own) + 1):
        keep(folder, {"fold_1": [0.9] * 8, "fold_2": own[:epoch]})
        said.append(rule())
        assert rule() is None, "asked again, nothing is new"
    assert said == [None] * len(own), "its best counts, however it went on"
    keep(folder, {"fold_1": [0.9] * 8, "fold_2": [0.51] * 8})
    assert MedianRule(folder, "auroc")() == (
        "hopeless at epoch 3 of fold 2: its best auroc is 0.510, the median of 5 trials was "
        "0.529 by then"
    )


def test_of_losses_the_smaller_is_the_better(tmp_path):
    for number in range(FEWEST_FINISHED):
        keep(tmp_path / f"{number:04d}", {"": [0.7, 0.6, 0.5]}, "loss", "finished")
    keep(tmp_path / "good", {"": [0.7, 0.6, 0.55]}, "loss")
    keep(tmp_path / "bad", {"": [0.9, 0.8, 0.7]}, "loss")
    assert MedianRule(tmp_path / "good", "loss")() is None
    assert MedianRule(tmp_path / "bad", "loss")() == (
        "hopeless at epoch 3: its best loss is 0.700, the median of 5 trials was 0.600 by then"
    )


@pytest.mark.parametrize("status", ["failed", "stopped", "finished"])
def test_finished_trials_alone_count(finished, status):
    keep(finished / "0000", {}, status=status)
    keep(finished / "own", {"fold_1": [0.1] * 8})
    assert (MedianRule(finished / "own", "auroc")() is None) == (status != "finished")


def test_the_first_epochs_and_what_is_not_known_say_nothing(finished):
    folder = finished / "own"
    assert MedianRule(folder, "auroc")() is None, "it has not begun"
    keep(folder, {"fold_1": [0.1] * (FEWEST_EPOCHS - 1)})
    assert MedianRule(folder, "auroc")() is None
    keep(folder, {"fold_1": [np.nan] * 8})
    assert MedianRule(folder, "auroc")() is None
    assert MedianRule(folder, "accuracy")() is None
    keep(folder, {"fold_1": [np.nan] * 7 + [0.1]})
    assert "hopeless at epoch 8 of fold 1" in MedianRule(folder, "auroc")()


def test_a_trial_that_ended_early_counts_with_what_it_had(tmp_path):
    for number in range(FEWEST_FINISHED):
        keep(tmp_path / f"{number:04d}", {"": [0.6] * 3}, status="finished")
    keep(tmp_path / "own", {"": [0.4] * 3 + [0.61]})
    assert "epoch 3" in MedianRule(tmp_path / "own", "auroc")()
    keep(tmp_path / "later", {"": [0.61] + [0.4] * 9})
    assert MedianRule(tmp_path / "later", "auroc")() is None
