"""Overrides: one value of a recipe, or one clear line for what is wrong."""

from __future__ import annotations

import pytest

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.aggregator.units=96", "model.aggregator.units", 96),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("augment.rotation.degrees=30", "augment.rotation.degrees", 30.0),
        ("augment.gaussian_blur.kernel=[3, 7]", "augment.gaussian_blur.kernel", [3, 7]),
        ("model.encoder.fsm=null", "model.encoder.fsm", None),
        ("model.encoder.filters.1=64", "model.encoder.filters", [16, 64, 48]),
        ("fit.patience=null", "fit.patience", None),
        ("fit.threshold=sensitivity>=0.9", "fit.threshold", "sensitivity>=0.9"),
    ],
)
def test_an_override_changes_one_value(override, key, value):
    assert recipes.load(recipes.Experiment(), [override]).flat()[key] == value


def test_switching_on_a_group_takes_its_other_defaults():
    recipe = recipes.load(recipes.Experiment(), ["augment.rotation.p=0.4"])
    assert recipe.augment.rotation == recipes.Rotation(p=0.4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.agregator.units=3", "unknown key model.agregator (did you mean aggregator?)"),
        ("model.agregator.units=3", "valid: encoder, aggregator, head"),
        ("model.aggregator.units=-3", "model.aggregator.units = -3: should be greater than 0"),
        ("model.encoder.name=resnet", "model.encoder.name = 'resnet': should be"),
        ("loss.weights=heavy", "'none', 'chexnet' or 'balanced'"),
        ("model.encoder.filters=[8, 16]", "one entry a stage, got 2 filters, 3 kernels"),
        ("augment.gaussian_noise.variance=[7, 1]", "lower bound 7.0 is above the upper bound 1.0"),
        ("augment.gaussian_blur.kernel=[2, 4]", "kernel sizes are odd"),
        ("model.aggregator.bidirectional=false", "needs bidirectional=true"),
        ("model.encoder.weights=per_position", "model.encoder.positions = 15"),
        ("split.test=0.9", "leave no one to train"),
        ("input.std=0", "input.std = 0: should be greater than 0"),
        ("input.mean=.nan", "finite"),
        ("fit.monitor=auc", "fit.monitor = 'auc'"),
        ("fit.threshold=sensitivity>=2", "'sensitivity>=2': unknown threshold rule"),
        ("fit.epochs", "expected key=value"),
        ("fit.epochs=[1", "not valid YAML"),
        ("seed.x=3", "seed is a single value"),
        ("model.encoder.filters.9=3", "9 is no index of a list of 3"),
        ("name=../elsewhere", "name = '../elsewhere'"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(override, message):
    with pytest.raises(InputError) as caught:
        recipes.load(recipes.Experiment(), [override, "sequence.evaluation.length=20"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
