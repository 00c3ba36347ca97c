"""Tuning of a linear head that is solved."""

from __future__ import annotations

import pytest
import tiny_network
from linear_recipe import linear_recipe
from trials import in_this_process

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.tuning import trial, tune


@pytest.fixture
def space(tmp_path, monkeypatch):
    tiny_network.install(monkeypatch)
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path / "features"))
    monkeypatch.setattr(trial, "run", in_this_process)
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    (tmp_path / "linear.yaml").write_text(linear_recipe().to_yaml())
    return {
        "name": "linear",
        "recipe": str(tmp_path / "linear.yaml"),
        "objective": {"metric": "auroc", "folds": 2},
        "space": {
            "fit.strength": {"choice": ["auto", 0.01]},
            "model.aggregator.of": {"choice": [["mean"], ["mean", "std"]]},
        },
    }


OPTIONS = {"trials": 4, "base": False, "track": False, "verbose": False}


@pytest.mark.slow
def test_strength_and_statistics_are_tuned(space, demo_data, tmp_path):
    search = tune.tune(
        space, demo_data, out=tmp_path / "search", tuner="grid", retrain=False, **OPTIONS
    )
    assert (search.trials["status"] == "finished").all()
    assert len(search.trials) == 4
    assert (search.trials["epochs"] == 2).all(), "one of each fold"
    best = recipes.load(search.path / "best.yaml")
    assert best.fit.strength in ("auto", 0.01)


def test_hyperband_has_no_epochs_to_set(space, demo_data, tmp_path):
    with pytest.raises(InputError, match=r"hyperband sets fit\.epochs, of which"):
        tune.tune(space, demo_data, out=tmp_path / "search", tuner="hyperband", **OPTIONS)
