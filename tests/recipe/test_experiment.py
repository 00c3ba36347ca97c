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
        "sequence.evaluation.mirrored": True,
    }
    other = recipes.load(recipe, [f"{key}={value}" for key, value in changes.items()])
    assert other.identity() == {**recipe.identity(), **changes}
    left_out = set(other.to_yaml().splitlines()) - set(other.to_yaml(identity=True).splitlines())
    assert left_out == {"  solver: gradient", "  strength: auto", "  seeds: 1"}


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


LBFGS = {
    "input": {"mean": 0, "std": 1},
    "model": {
        "encoder": {"name": "keras_application"},
        "aggregator": {"name": "statistics"},
        "head": {"units": [], "dropout": 0},
    },
    "sequence": {"policy": "all", "evaluation": {"policy": "all"}},
    "fit": {"solver": "lbfgs"},
}


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("model.encoder.frozen=none", "set an encoder in which nothing is trained, handcrafted, j"),
        ("model.encoder.frozen=50", "set an encoder in which nothing is trained"),
        ("model.encoder.dense=[{units: 4}]", "set an encoder in which nothing is trained"),
        ("model.encoder.dropout=0.1", "set an encoder in which nothing is trained"),
        ("model.encoder.name=conv_fsm", "set an encoder in which nothing is trained"),
        ("model.aggregator.name=attention", "set model.aggregator.name to one without weights"),
        ("model.aggregator.name=slice_scores", "set model.aggregator.name to one without weights"),
        ("model.head.units=[4]", r"set model\.head\.units=\[\]"),
        ("model.head.dropout=0.1", r"set model\.head\.dropout=0"),
        ("model.series_mark=true", r"set model\.series_mark=false"),
        ("loss.name=focal", r"set loss\.name=binary_cross_entropy"),
        ("loss.label_smoothing=0.1", r"set loss\.label_smoothing=0"),
        ("augment.flip.p=0.5", "set augment to null"),
        ("sequence.policy=window", "set sequence.policy and sequence.evaluation.policy both"),
        ("sequence.evaluation.policy=even", "set sequence.policy and sequence.evaluation.policy"),
        ("fit.strength=0", "greater than 0"),
        ("fit.strength=best", "should be 'auto'"),
    ],
)
def test_what_contradicts_a_head_that_is_solved_is_one_line(override, remedy):
    recipe = recipes.from_values(LBFGS)
    with pytest.raises(InputError, match=remedy) as caught:
        recipes.load(recipe, [override])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("aggregator", ["mean", "max", "sum", "log_sum_exp", "statistics"])
def test_a_head_is_solved_on_what_has_no_weights(aggregator):
    recipe = recipes.load(recipes.from_values(LBFGS), [f"model.aggregator.name={aggregator}"])
    assert recipes.from_values(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe.identity()["fit.solver"] == "lbfgs"
    assert "fit.strength" not in recipe.identity()
    stronger = recipes.load(recipe, ["fit.strength=0.1"])
    assert stronger.identity() == {**recipe.identity(), "fit.strength": 0.1}


def test_a_strength_is_of_a_head_that_is_solved():
    with pytest.raises(InputError, match=r"fit\.strength is for fit\.solver=lbfgs"):
        recipes.load(recipes.Experiment(), ["fit.strength=0.1"])
