"""The presets: numbers of weights, by hand from the paper's figures."""

from __future__ import annotations

import numpy as np
import pytest

from medseq_tf import models
from medseq_tf import recipe as recipes


def convolution(size, channels, filters):
    return size * size * channels * filters + filters


def block(size, channels, filters):
    """Convolution with bias, and scale and offset of its batch normalisation."""
    return convolution(size, channels, filters) + 2 * filters


STAGES = convolution(11, 1, 16) + convolution(5, 16, 32) + convolution(5, 32, 48)
STAGE_NORMALISATION = 2 * (16 + 32 + 48)
# 3x3 to 48 // 3 = 16; theta, phi, g to 16 // 2 = 8; back to 16; 3x3 to 48.
SIMILARITY = block(3, 48, 16) + 3 * block(1, 16, 8) + block(1, 8, 16) + block(3, 16, 48)


def bidirectional_lstm(features, units=64):
    return 2 * 4 * units * (features + units + 1)


LSTM = bidirectional_lstm(5 * 5 * 48) + 2 * bidirectional_lstm(2 * 64)


def head(features):
    return features * 32 + 32 + 32 * 1 + 1


PAPER = 15 * (STAGES + SIMILARITY) + STAGE_NORMALISATION + LSTM + head(64)
SHARED = STAGES + SIMILARITY + STAGE_NORMALISATION + LSTM + head(2 * 64)


@pytest.mark.parametrize(
    ("preset", "by_hand", "published"),
    [("fsm_bilstm_paper", PAPER, 1_865_817), ("fsm_bilstm", SHARED, 917_545)],
)
def test_number_of_trainable_weights(preset, by_hand, published):
    model = models.build(recipes.load(preset).model, (64, 64, 1), labels=1, seed=0)
    counted = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert counted == by_hand == published


def test_pytorch_counts_one_more_bias_for_each_gate():
    """The public code has 1,867,353: two bias vectors of 4 x 64, 2 directions, 3 layers."""
    assert PAPER + 4 * 64 * 2 * 3 == 1_867_353


@pytest.mark.parametrize("preset", ["fsm_bilstm_paper", "fsm_bilstm"])
def test_the_presets_are_the_papers_where_it_says_something(preset):
    recipe = recipes.load(preset)
    assert recipe.name == preset
    assert recipe.description
    assert (recipe.input.size, recipe.input.mean, recipe.input.std) == (64, 0.5, 0.3)
    assert recipe.sequence.length == 15
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("adamw", 1e-3)
    assert recipe.optimizer.weight_decay == 0.01
    assert recipe.fit.batch_size == 16
    assert recipe.model.aggregator.layers == 3
    assert recipe.model.aggregator.units == 64


def test_the_papers_preset():
    recipe = recipes.load("fsm_bilstm_paper")
    assert recipe.sequence.policy == recipe.sequence.evaluation.policy == "paper"
    assert recipe.model.encoder.weights == "per_position"
    assert recipe.model.encoder.fsm.attention == "none"
    assert recipe.model.aggregator.readout == "last_backward"
    assert (recipe.fit.monitor, recipe.fit.patience, recipe.fit.epochs) == ("accuracy", 5, 20)
    assert recipe.augment.coarse_dropout.after_normalisation
    assert recipe.augment.rotation is None


def test_figure_8s_softmax_is_a_setting_away():
    recipe = recipes.load("fsm_bilstm_paper", ["model.encoder.fsm.attention=softmax"])
    model = models.build(recipe.model, (64, 64, 1), labels=1, seed=0)
    assert model.encoder.slices_to_features.layer.fsm.attention == "softmax"


def test_studies_of_any_length(rng):
    model = models.build(recipes.load("fsm_bilstm").model, (64, 64, 1), labels=1, seed=0)
    for steps in (1, 40):
        slices = rng.normal(size=(2, steps, 64, 64, 1)).astype("float32")
        logits = model({"slices": slices, "lengths": np.array([steps, 1])})
        assert np.isfinite(logits).all()
