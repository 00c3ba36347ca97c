"""Backbones of KerasHub from a preset's folder: what it computes, what is saved, what is refused.

Where KerasHub is not installed a stand-in takes its place, with two small backbones.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import keras
import numpy as np
import pytest
from model_checks import check_padding

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import HubNetwork
from medseq_tf.runs.model_file import load_model_file

SIZE = 28
LENGTHS = np.array([5, 1, 3], "int32")
SCALING = {"class_name": "ImageConverter", "config": {"scale": [0.01, 0.02, 0.03], "offset": -1.0}}


class Backbone(keras.Model):
    """As of KerasHub: a model that is made of the arguments it keeps."""


class TokensBackbone(Backbone):
    """Patches of 14 x 14 as tokens, by one layer; its input has a name."""

    def __init__(self, width, image_shape=(None, None, 3), **kwargs):
        pictures = keras.Input(image_shape, name="images")
        maps = keras.layers.Conv2D(width, 14, 14, name="patches")(pictures)
        tokens = keras.layers.Reshape((-1, width), name="tokens")(maps)
        super().__init__({"images": pictures}, keras.layers.Activation("gelu")(tokens), **kwargs)
        self.pyramid_outputs = {"stage1": maps}
        self.arguments = {"width": width, "image_shape": image_shape}

    def get_config(self):
        return {"name": self.name, "trainable": True, "dtype": "float32", **self.arguments}


class TwoPicturesBackbone(Backbone):
    """Takes two pictures, as no encoder of slices does."""

    def __init__(self, **kwargs):
        pictures = [keras.Input((None, None, 3)) for _ in range(2)]
        super().__init__(pictures, keras.layers.Add()(pictures), **kwargs)


def write_preset(folder, backbone, scaling=SCALING):
    folder.mkdir()
    described = {"class_name": type(backbone).__name__, "config": backbone.get_config()}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "image_converter.json").write_text(json.dumps(scaling))
    backbone.save_weights(folder / "model.weights.h5")
    return folder


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    standing_in = types.ModuleType("keras_hub")
    standing_in.__version__ = "0"
    standing_in.models = types.SimpleNamespace(
        Backbone=Backbone,
        TokensBackbone=TokensBackbone,
        TwoPicturesBackbone=TwoPicturesBackbone,
        Task=keras.Model,
    )
    monkeypatch.setitem(sys.modules, "keras_hub", standing_in)
    return standing_in


@pytest.fixture
def preset(tmp_path):
    keras.utils.set_random_seed(0)
    return write_preset(tmp_path / "preset", TokensBackbone(8, (SIZE, SIZE, 3)))


@pytest.fixture
def slices(rng):
    return rng.uniform(size=(3, 5, SIZE, SIZE, 1)).astype("float32")


def build(preset, shape=(SIZE, SIZE, 1), **encoder):
    values = {"name": "keras_application", "network": "keras_hub", "weights": str(preset)}
    settings = recipes.Model(
        encoder={**values, **encoder},
        aggregator={"units": 4, "layers": 1, "readout": "concat"},
        head={"units": []},
    )
    return models.build(settings, shape, 2, 0)


@pytest.mark.parametrize(
    ("output", "width"), [("average", 8), ("max", 8), ("stage1", 8), (["stage1", "max"], 16)]
)
def test_features_are_those_of_the_backbone(preset, slices, output, width):
    network = build(preset, output=output).encoder.network
    itself = TokensBackbone(8, (SIZE, SIZE, 3))
    itself.load_weights(preset / "model.weights.h5")
    pictures = np.repeat(255 * slices[0], 3, -1) * [0.01, 0.02, 0.03] - 1
    tokens = np.asarray(itself({"images": pictures.astype("float32")}))
    patches = np.asarray(
        keras.Model(itself.input, itself.pyramid_outputs["stage1"])(
            {"images": pictures.astype("float32")}
        )
    )
    known = {"average": tokens.mean(1), "max": tokens.max(1), "stage1": patches.mean((1, 2))}
    names = [output] if isinstance(output, str) else output
    expected = np.concatenate([known[name] for name in names], axis=-1)
    found = network(slices[0])
    assert found.shape == (5, width)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_another_size_than_that_of_the_preset(preset):
    network = build(preset, (42, 42, 1)).encoder.network
    assert network(np.ones((1, 42, 42, 1), "float32")).shape == (1, 8)


def test_padding_and_batch_mates_change_nothing(preset, slices):
    model = build(preset)
    check_padding(lambda x, n: model({"slices": x, "lengths": n}), slices, LENGTHS, tolerance=1e-4)


def test_a_saved_model_needs_no_preset(preset, slices, tmp_path):
    model = build(preset, output=["stage1", "average"], frozen="all")
    assert not model.encoder.network.trainable_variables
    inputs = {"slices": slices, "lengths": LENGTHS}
    expected = model(inputs)
    model.save(tmp_path / "model.keras")
    for file in preset.iterdir():
        file.unlink()
    loaded = load_model_file(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), expected)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    assert loaded.encoder.network.made_by == model.encoder.network.made_by


def test_what_scales_pictures_and_the_version_belong_to_the_features_name(preset, hub):
    before = build(preset).encoder.network.made_by
    (preset / "image_converter.json").write_text(json.dumps({**SCALING, "config": {}}))
    network = build(preset).encoder.network
    assert network.made_by != before
    assert (network.scale, network.offset) == (1.0, 0.0)
    before = network.made_by
    hub.__version__ = "1"
    assert network.made_by != before


# ------------------------------------------------------------------------------------ refused


def line(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        build(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keras_hub_that_is_missing(preset, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    assert "pip install keras-hub" in line(preset)


@pytest.mark.parametrize("weights", ["imagenet", "none", "dinov2_base"])
def test_nothing_is_ever_downloaded(weights):
    assert "no such folder; network keras_hub takes the folder of a preset" in line(weights)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "OtherBackbone", "config": {}}, "has no backbone OtherBackbone"),
        ({"class_name": "Task", "config": {}}, "has no backbone Task"),
        ({"class_name": "Backbone", "config": {}}, "has no backbone Backbone"),
        ({"class_name": "__doc__", "config": {}}, "has no backbone __doc__"),
        ({"class_name": ["x"], "config": {}}, "config.json is not as KerasHub writes it"),
        ({"class_name": "TokensBackbone"}, "config.json is not as KerasHub writes it"),
        ([1], "config.json is not as KerasHub writes it"),
        (
            {"class_name": "TokensBackbone", "config": {"encoder": {"class_name": "os.system"}}},
            r"is made of other models (encoder)",
        ),
        ({"class_name": "TokensBackbone", "config": {"depth": 3}}, "do not fit TokensBackbone"),
        ({"class_name": "TwoPicturesBackbone", "config": {}}, "does not take one picture of 28"),
        ({"class_name": "TokensBackbone", "config": {"width": 9}}, "does not fit TokensBackbone"),
    ],
)
def test_a_preset_that_is_none_of_a_backbone_for_pictures(preset, config, message):
    (preset / "config.json").write_text(json.dumps(config))
    assert message in line(preset)


@pytest.mark.parametrize("file", ["config.json", "image_converter.json", "model.weights.h5"])
def test_a_preset_that_is_not_whole(preset, file):
    (preset / file).unlink()
    assert file in line(preset)
    (preset / file).write_text("[" * 100_000)
    assert file in line(preset)


def test_an_output_and_a_size_that_it_does_not_have(preset):
    assert "no such output (did you mean stage1?)" in line(preset, output="stage2")
    assert "slices of 8 x 8 do not fit TokensBackbone" in line(preset, (8, 8, 1))


# ---------------------------------------------------------------------------- KerasHub itself


@pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None, reason="keras-hub is missing")
def test_dinov2_from_a_preset_of_another_size(tmp_path, monkeypatch, slices):
    monkeypatch.delitem(sys.modules, "keras_hub")
    import keras_hub

    dino = keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(56, 56, 3),
        position_embedding_shape=(56, 56, 3),
    )
    dino.save_to_preset(str(tmp_path / "dino"))
    converter = keras_hub.layers.DINOV2ImageConverter(scale=0.01, offset=[-1.0, -2.0, -3.0])
    converter.save_to_preset(str(tmp_path / "dino"))
    itself = keras_hub.models.Backbone.from_preset(
        str(tmp_path / "dino"), image_shape=(SIZE, SIZE, 3)
    )
    pictures = np.repeat(255 * slices[0], 3, -1) * 0.01 + [-1.0, -2.0, -3.0]
    expected = np.asarray(itself({"images": pictures.astype("float32")})).mean(1)
    model = build(tmp_path / "dino")
    found = model.encoder.network(slices[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model.encoder.network, HubNetwork)
    model.save(tmp_path / "model.keras")
    inputs = {"slices": slices, "lengths": LENGTHS}
    loaded = load_model_file(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
