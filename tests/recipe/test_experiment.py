"""Experiments: round trips, and one line for whatever is none."""

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


def test_a_setting_that_came_later_tells_no_recipes_apart_at_its_default():
    recipe = recipes.load(recipes.Experiment())
    assert "fit.threshold" not in recipe.identity()
    assert "threshold" not in recipe.to_yaml(identity=True)
    assert "threshold: youden" in recipe.to_yaml()
    changes = {
        "fit.threshold": "f1",
        "model.initial_weights": "paper.npz",
        "model.ordered": "softmax",
        "model.covariates": ["age"],
        "split.by": "site",
        "model.series_mark": True,
    }
    other = recipes.load(recipe, [f"{key}={value}" for key, value in changes.items()])
    assert other.identity() == {**recipe.identity(), **changes}
    assert other.to_yaml(identity=True) == other.to_yaml()


def depths(output):
    return recipes.load("vgg19_lstm", [f"model.encoder.output={output}"])


def test_an_encoder_has_one_output_or_several():
    assert depths("max").model.encoder.output == "max"
    assert depths("[max]").model.encoder.output == "max"
    several = depths("[block3_pool, average]")
    assert several.model.encoder.output == ["block3_pool", "average"]
    assert recipes.load(several, ["model.encoder.output.1=max"]).model.encoder.output == [
        "block3_pool",
        "max",
    ]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("[]", "at least 1 item"),
        ("[max, average, max]", "max stands in it twice"),
        ("[3, max]", r"model\.encoder\.output"),
        ("{a: b}", r"model\.encoder\.output"),
    ],
)
def test_outputs_that_cannot_be_are_one_line(output, message):
    with pytest.raises(InputError, match=message) as caught:
        depths(output)
    assert "\n" not in str(caught.value)
