"""Recipes: round trips, overrides, and one clear line for everything that is wrong."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError


def test_every_preset_loads_and_survives_yaml(preset):
    recipe = recipes.load(preset)
    assert recipe.name == preset
    assert recipe.description
    assert recipes.from_values(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.fixture(params=recipes.presets())
def preset(request):
    return request.param


def test_yaml_holds_every_value(tmp_path):
    written = yaml.safe_load(recipes.Experiment().to_yaml())
    assert written["optimizer"] == {
        "name": "adamw",
        "learning_rate": 0.001,
        "weight_decay": 0.01,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-08,
        "schedule": "constant",
        "warmup": 0.0,
        "clip_norm": None,
    }


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not valid YAML at line"),
        (b"- a\n- b\n", "holds no recipe"),
        (b"", "holds no recipe"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"model: {encoder: {kernel: 3}}", "unknown key model.encoder.kernel"),
        (b"fit: 3", "fit = 3"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.yaml") as caught:
        recipes.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=r"did you mean fsm_bilstm\?.*presets: .*fsm_bilstm_paper"):
        recipes.load("fsm_bilstn")


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        recipes.load("nowhere.yaml")


keys = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
groups = st.sampled_from([*recipes.Experiment.model_fields, "modle"])


@given(st.dictionaries(groups, plain, max_size=3))
def test_any_plain_values_are_a_recipe_or_one_line(values):
    try:
        recipe, problem = recipes.from_values(values), "one line"
    except InputError as error:
        recipe, problem = recipes.Experiment(), str(error)
    assert len(problem.splitlines()) == 1
    assert recipes.from_values(yaml.safe_load(recipe.to_yaml())) == recipe
