"""Tuning over which covariates a model reads."""

from __future__ import annotations

import pytest
from trials import SINGLE, SPACE, in_this_process

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError
from medseq_tf.tuning import trial, tune

CHOICES = {**SINGLE, "space": {"model.covariates": {"choice": [[], ["age", "sex"]]}}}
OPTIONS = {"trials": 2, "tuner": "grid", "base": False, "track": False, "verbose": False}


@pytest.fixture(scope="module")
def with_sites(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "sites"
    options = {"patients": 20, "size": 32, "difficulty": 0.0, "workers": 1, "progress": False}
    return prepare("demo", out=out, sites=2, **options).path


def test_each_choice_is_trained_and_the_best_is_a_recipe(with_sites, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "run", in_this_process)
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    search = tune.tune(CHOICES, with_sites, out=tmp_path / "search", retrain=False, **OPTIONS)
    assert (search.trials["status"] == "finished").all()
    assert set(search.trials["model.covariates"]) == {"[]", '["age", "sex"]'}
    best = recipes.load(search.path / "best.yaml")
    assert best.model.covariates in ([], ["age", "sex"])


def test_a_name_that_the_data_set_lacks_is_said_before_a_trial(with_sites, tmp_path):
    wrong = {**SPACE, "space": {"model.covariates": {"choice": [["age"], ["height"]]}}}
    with pytest.raises(InputError, match=r"names 'height', but .* has the covariates age, sex"):
        tune.tune(wrong, with_sites, out=tmp_path / "search", **OPTIONS)
    assert not (tmp_path / "search").exists()
