"""A search space: what it gives, and that nothing impossible reaches a trial."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.tuning.space import Space

SPACES = sorted((Path(__file__).parents[2] / "tuning").glob("*.yaml"))


def space(settings, **more):
    return {"name": "s", "recipe": "fsm_bilstm", "space": settings, **more}


SOME = {
    "sequence.length": {"choice": [5, 10, 15]},
    "optimizer.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "model.aggregator.layers": {"int": [1, 3], "when": {"model.aggregator.name": ["lstm", "gru"]}},
    "model.aggregator.heads": {"choice": [2, 4], "when": {"model.aggregator.name": "transformer"}},
    "model.aggregator.name": {"choice": ["lstm", "gru", "transformer", "mean"]},
    "augment.rotation": {"choice": [None, {"degrees": 20}]},
    "network": {
        "choice": {
            "small": {"model.encoder.filters": [4, 8, 8], "model.head.units": []},
            "large": {"model.encoder.filters": [32, 48, 64]},
        }
    },
}


def test_a_point_is_a_recipe():
    made = Space.load(space(SOME, set=["fit.epochs=7"]))
    recipe = made.experiment(
        {
            "sequence.length": "10",
            "optimizer.learning_rate": 3e-4,
            "model.aggregator.name": "gru",
            "model.aggregator.layers": 2,
            "augment.rotation": '{"degrees": 20}',
            "network": "small",
        }
    )
    assert recipe.sequence.length == 10
    assert recipe.optimizer.learning_rate == 3e-4
    assert (recipe.model.aggregator.name, recipe.model.aggregator.layers) == ("gru", 2)
    assert recipe.augment.rotation.degrees == 20
    assert recipe.model.encoder.filters == [4, 8, 8]
    assert recipe.model.head.units == []
    assert recipe.fit.epochs == 7
    assert made.base == recipes.load("fsm_bilstm", ["fit.epochs=7"])


def test_depths_of_an_encoder_are_a_choice():
    depths = {"model.encoder.output": {"choice": ["average", ["block3_pool", "average"]]}}
    made = Space.load(space(depths, recipe="vgg19_lstm"))
    first, second = (made.experiment({"model.encoder.output": e}) for e in made.settings[0].ends)
    assert first.model.encoder.output == "average"
    assert second.model.encoder.output == ["block3_pool", "average"]


def test_null_switches_a_setting_off():
    assert Space.load(space(SOME)).experiment({"augment.rotation": "null"}).augment.rotation is None


def test_another_kind_of_aggregator_begins_with_its_own_settings():
    aggregator = Space.load(space(SOME)).experiment({"model.aggregator.name": "mean"})
    assert aggregator.model.aggregator == recipes.Pooling()


def test_a_setting_is_drawn_only_under_its_conditions():
    made, rng = Space.load(space(SOME)), random.Random(0)
    for _ in range(50):
        values = made.sample(rng)
        kind = values["model.aggregator.name"]
        assert ("model.aggregator.layers" in values) == (kind in ("lstm", "gru"))
        assert ("model.aggregator.heads" in values) == (kind == "transformer")
        made.experiment(values)


def test_a_condition_stands_before_what_depends_on_it():
    names = [setting.name for setting in Space.load(space(SOME)).settings]
    assert names.index("model.aggregator.name") < names.index("model.aggregator.layers")


def test_written_and_read_again_it_is_the_same(tmp_path):
    made = Space.load(space(SOME, objective={"folds": 3, "metric": "brier"}, set=["fit.epochs=7"]))
    (tmp_path / "recipe.yaml").write_text(made.base.to_yaml())
    (tmp_path / "space.yaml").write_text(made.to_yaml("recipe.yaml"))
    again = Space.load(tmp_path / "space.yaml")
    assert again.key == made.key
    assert (again.settings, again.objective) == (made.settings, made.objective)


def test_overrides_hold_for_a_space_that_is_made_already():
    made = Space.load(space(SOME))
    assert Space.load(made, ["fit.epochs=7"]).key == Space.load(space(SOME), ["fit.epochs=7"]).key
    assert Space.load(made) == made


def test_the_key_tells_searches_apart():
    keys = {
        Space.load(space(SOME)).key,
        Space.load(space(SOME, set=["fit.epochs=7"])).key,
        Space.load(space(SOME), ["seed=1"]).key,
        Space.load(space(SOME, objective={"folds": 3})).key,
        Space.load(space({**SOME, "sequence.length": {"choice": [5, 10]}})).key,
    }
    assert len(keys) == 5


def one(name, setting, **more):
    return space({name: setting}, **more)


LSTM = {"model.aggregator.name": "lstm"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (one("model.agregator.units", {"choice": [8]}), "did you mean aggregator"),
        (one("model.aggregator.unit", {"choice": [8]}), "did you mean units"),
        (one("sequence.length", {"choice": [5, "ten"]}), "sequence.length = 'ten'"),
        (one("sequence.length", {"choice": [5, 0]}), "greater than 0"),
        (one("model.head.dropout", {"float": [0.1, 1.5]}), "model.head.dropout = 1.5"),
        (one("sequence.length", {"float": [1.5, 3.0]}), "sequence.length = 1.5"),
        (one("optimizer.learning_rate", {"float": [0.0, 1e-2], "log": True}), "above 0"),
        (one("optimizer.learning_rate", {"float": [1e-2, 1e-4]}), "below the upper"),
        (one("optimizer.learning_rate", {"float": ["1e-4", 1e-2]}), "1.0e-4"),
        (one("sequence.length", {"int": [1, 2.5]}), "2.5 is not a whole number"),
        (one("sequence.length", {"int": [1, 2, 3]}), "[low, high]"),
        (one("sequence.length", {"int": [1, 9], "step": 0}), "step = 0"),
        (one("sequence.length", {"choice": []}), "empty"),
        (one("sequence.length", {"choice": [5, 5]}), "twice"),
        (one("sequence.length", {"choices": [5]}), "should be one of"),
        (one("sequence.length", {"choice": [5], "whn": LSTM}), "did you mean when"),
        (one("sequence.length", {"choice": [5], "log": True}), "unknown key log"),
        (one("model.head.units", {"choice": [[4], [5]], "when": LSTM}), "does not vary"),
        (one("network", {"choice": [1]}), "unknown key network"),
        (one("model", {"choice": {"a": {"seed": 1}}}), "name of its own"),
        (one("n", {"choice": {False: {"seed": 1}}}), "quotes"),
        (one("n", {"choice": {"a": {"seed": -1}}}), "seed = -1"),
        (one("split.test", {"choice": [0.1]}), "same patients"),
        (one("name", {"choice": ["a"]}), "cannot vary"),
        (one("input.size.x", {"choice": [1]}), "single value"),
        (one("seed", {"choice": [1]}, objective={"metric": "loss"}), "brier"),
        (one("seed", {"choice": [1]}, objective={"metric": "auc"}), "one of auroc"),
        (one("seed", {"choice": [1]}, objective={"folds": 1}), "at least 2"),
        (
            one("seed", {"choice": [1]}, objective={"folds": 2, "validation": True}),
            "one or the other",
        ),
        (one("seed", {"choice": [1]}, objective={"validation": 1}), "true or false"),
        (one("seed", {"choice": [1]}, set=["fit.epoch=3"]), "did you mean epochs"),
        (one("seed", {"choice": [1]}, recipe="fsm_bilst"), "did you mean fsm_bilstm"),
        (one("seed", {"choice": [1]}, sets=[]), "did you mean set"),
        (space({}), "at least one"),
        ({"name": "s"}, "no search space"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content, words):
    with pytest.raises(InputError) as caught:
        Space.load(content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_conditions_in_a_circle_are_refused():
    circle = {
        "loss.name": {
            "choice": ["focal", "binary_cross_entropy"],
            "when": {"optimizer.name": "adam"},
        },
        "optimizer.name": {"choice": ["adam", "adamw"], "when": {"loss.name": "focal"}},
    }
    with pytest.raises(InputError, match="depend on each other"):
        Space.load(space(circle))


def test_a_condition_on_a_value_that_never_is():
    layers = {"int": [1, 2], "when": {"model.aggregator.name": ["lstmm"]}}
    wrong = {"model.aggregator.name": {"choice": ["lstm"]}, "model.aggregator.layers": layers}
    with pytest.raises(InputError, match="never lstmm; it is one of lstm"):
        Space.load(space(wrong))


def test_a_setting_of_one_kind_needs_its_condition():
    wrong = {
        "model.aggregator.name": {"choice": ["lstm", "transformer"]},
        "model.aggregator.heads": {"choice": [2, 4]},
    }
    with pytest.raises(InputError, match=r"heads.*when: \{model.aggregator.name"):
        Space.load(space(wrong))


def test_a_value_that_no_combination_makes_possible_is_refused():
    wrong = {"model.encoder.name": {"choice": ["conv_fsm", "keras_application"]}}
    with pytest.raises(InputError, match=r"possible in no combination.*input.mean=0"):
        Space.load(space(wrong))


def test_what_is_impossible_only_together_is_left_to_the_trial():
    settings = {
        "model.encoder.filters": {"choice": [[4, 8, 8], [4, 8]]},
        "model.encoder.kernels": {"choice": [[5, 3, 3], [5, 3]]},
        "model.encoder.strides": {"choice": [[2, 2, 2], [2, 2]]},
        "model.encoder.paddings": {"choice": [[0, 0, 0], [0, 0]]},
    }
    made = Space.load(space(settings))
    labels = ("[4, 8]", "[5, 3]", "[2, 2]", "[0, 0]")
    fitting = dict(zip(settings, labels, strict=True))
    assert len(made.experiment(fitting).model.encoder.filters) == 2
    with pytest.raises(InputError, match="one entry a stage"):
        made.experiment({**fitting, "model.encoder.filters": "[4, 8, 8]"})


def test_two_settings_for_one_key_are_refused():
    wrong = {
        "network": {"choice": {"a": {"model.head.units": [4]}, "b": {}}},
        "model.head.units": {"choice": [[8]]},
    }
    with pytest.raises(InputError, match="set by network and by"):
        Space.load(space(wrong))


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Space.load(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("name: [\n")
    with pytest.raises(InputError, match="not valid YAML at line"):
        Space.load(tmp_path / "broken.yaml")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_the_spaces_that_come_with_the_package(path):
    made = Space.load(path)
    assert made.name == path.stem
    rng = random.Random(0)
    for _ in range(50):
        made.experiment(made.sample(rng))
    assert Space.load(yaml.safe_load(path.read_text("utf-8"))).key == made.key


def test_every_preset_has_its_space():
    assert {path.stem for path in SPACES} >= {
        "fsm_bilstm",
        "fsm_bilstm_paper",
        "adrenal",
        "vgg19_lstm",
        "densenet121_lstm",
        "vgg19_bilstm",
        "frozen_linear",
        "handcrafted",
        "joined_linear",
    }
