"""Probabilities of studies: means over their sequences, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
from small_run import SMALL

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.batches import evaluation_batches
from medseq_tf.input.slice_store import SliceStore


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture
def small_model():
    recipe = recipes.load(recipes.Experiment(), SMALL)
    return models.build(recipe.model, (32, 32, 1), labels=1, seed=0)


def test_a_study_of_several_sequences_gets_their_mean_probability(prepared, small_model):
    recipe = recipes.load(
        recipes.Experiment(), [*SMALL, "sequence.policy=paper", "sequence.evaluation.policy=paper"]
    )
    store, rows = SliceStore(prepared, recipe), np.array([5, 2, 9])
    expected = {int(row): [] for row in rows}
    for inputs, _, owners in evaluation_batches(prepared, rows, recipe, batch_size=1, store=store):
        logit = float(small_model(inputs)[0, 0])
        expected[int(owners[0])].append(1 / (1 + np.exp(-logit)))
    assert max(map(len, expected.values())) > 1
    found = study_probabilities(small_model, store, rows, recipe)
    np.testing.assert_allclose(found[:, 0], [np.mean(expected[int(r)]) for r in rows], atol=1e-5)


def test_batch_mates_and_order_change_no_probability(prepared, small_model):
    recipe = recipes.load(recipes.Experiment(), [*SMALL, "sequence.evaluation.policy=all"])
    store, rows = SliceStore(prepared, recipe), np.arange(len(prepared))
    together = study_probabilities(small_model, store, rows, recipe)
    alone = [study_probabilities(small_model, store, [row], recipe)[0] for row in rows[::-1]]
    np.testing.assert_allclose(together, alone[::-1], atol=1e-5)


@pytest.mark.parametrize("policy", ["paper", "even"])
def test_mirrored_slices_count_as_much_as_those_that_they_mirror(prepared, small_model, policy):
    settings = [*SMALL, "sequence.policy=even", f"sequence.evaluation.policy={policy}"]
    plain = recipes.load(recipes.Experiment(), settings)
    recipe = recipes.load(plain, ["sequence.evaluation.mirrored=true"])
    store, rows = SliceStore(prepared, recipe), np.array([5, 2, 9])
    expected = {int(row): [] for row in rows}
    for inputs, _, owners in evaluation_batches(prepared, rows, plain, batch_size=1, store=store):
        for slices in (inputs["slices"], inputs["slices"][:, :, :, ::-1]):
            logit = float(small_model({**inputs, "slices": slices})[0, 0])
            expected[int(owners[0])].append(1 / (1 + np.exp(-logit)))
    found = study_probabilities(small_model, store, rows, recipe)
    np.testing.assert_allclose(found[:, 0], [np.mean(expected[int(r)]) for r in rows], atol=1e-5)
    assert (found != study_probabilities(small_model, store, rows, plain)).all()
