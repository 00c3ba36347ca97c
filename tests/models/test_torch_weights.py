"""Paper 1's PyTorch weights in the Keras model: the same logits in inference."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import torch_weights
from medseq_tf.models.torch_weights import fsm_bilstm_from_torch

GOLDEN = Path(__file__).with_name("torch_golden.npz")


def small_settings(attention="none", **changes):
    """The network of make_torch_golden.py."""
    encoder = {
        "weights": "per_position",
        "positions": 3,
        "filters": [4, 6, 8],
        "fsm": {"attention": attention},
        **changes,
    }
    return recipes.Model(encoder=encoder, aggregator={"units": 5}, head={"units": [4]})


def build(settings):
    return models.build(settings, (64, 64, 1), labels=1, seed=0)


def small_model(attention="none", **changes):
    return build(small_settings(attention, **changes))


def outputs_of(model, slices):
    """Features and logits, in PyTorch's order, for its `(batch, positions, 1, height, width)`."""
    slices = np.moveaxis(slices.astype("float32"), 2, -1)
    lengths = np.full(len(slices), slices.shape[1])
    features = model.encode(slices, lengths)
    maps = np.reshape(features, (*features.shape[:2], 5, 5, -1))
    return np.moveaxis(maps, -1, 2), np.asarray(model.classify(features, {"lengths": lengths}))


def assert_close_in_scale(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def tensors(golden):
    names = (name for name in golden if name.startswith("tensor."))
    return {name.removeprefix("tensor."): golden[name] for name in names}


@pytest.mark.parametrize("attention", ["none", "softmax", "scaled"])
def test_features_and_logits_equal_those_of_pytorch(golden, tensors, attention):
    model = small_model(attention)
    fsm_bilstm_from_torch(tensors, model)
    features, logits = outputs_of(model, golden["slices"])
    assert_close_in_scale(features, golden[f"features.{attention}"])
    np.testing.assert_allclose(logits, golden[f"logits.{attention}"], atol=1e-5)


def test_the_golden_features_tell_the_attentions_and_positions_apart(golden):
    features = [golden[f"features.{attention}"] for attention in ("none", "softmax", "scaled")]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(features[first] - features[second]).max() > 0.1
    assert np.ptp(golden["logits.none"]) > 0.04


def test_every_weight_is_set(tensors):
    model = small_model()
    before = [variable.numpy() for variable in model.weights]
    fsm_bilstm_from_torch(tensors, model)
    for variable, old in zip(model.weights, before, strict=True):
        assert np.all(variable.numpy() != old), variable.path


def test_a_prefix_before_all_names_is_left_out(golden, tensors):
    model = small_model()
    prefixed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    fsm_bilstm_from_torch({**prefixed, "loss.weight": np.ones(1)}, model)
    _, logits = outputs_of(model, golden["slices"])
    np.testing.assert_allclose(logits, golden["logits.none"], atol=1e-5)


def test_a_recipe_names_a_file_of_tensors(tensors, tmp_path):
    np.savez(tmp_path / "paper.npz", **tensors)
    expected = small_model()
    fsm_bilstm_from_torch(tensors, expected)
    model = build(small_settings().model_copy(update={"initial_weights": tmp_path / "paper.npz"}))
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file of tensors that can be read"),
        (b"text", "is no file of tensors that can be read"),
        (b"", "is no file of tensors that can be read"),
        ({"a": np.array([None])}, "is no file of tensors that can be read"),
        ({"a": np.ones(1)}, "expected the tensors of one FSM"),
    ],
)
def test_a_file_of_other_things_is_one_line(tmp_path, content, message):
    path = tmp_path / "paper.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"model.initial_weights = \S+paper.npz: {message}"):
        build(small_settings().model_copy(update={"initial_weights": path}))


def test_a_damaged_or_swollen_file_is_one_line(tensors, tmp_path, monkeypatch):
    path = tmp_path / "paper.npz"
    settings = small_settings().model_copy(update={"initial_weights": path})
    np.savez_compressed(path, **tensors)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(len(whole) - 200) + whole[-100:])
    with pytest.raises(InputError, match="is no file of tensors that can be read"):
        build(settings)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    squeezed = path.read_bytes()
    path.write_bytes(squeezed[:200] + bytes([squeezed[200] ^ 255]) + squeezed[201:])
    with pytest.raises(InputError, match="is no file of tensors that can be read"):
        build(settings)
    path.write_bytes(whole)
    monkeypatch.setattr(torch_weights, "LARGEST", 1000)
    with pytest.raises(InputError, match="is no file of tensors that can be read"):
        build(settings)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("dense.0.bias", np.array(["a"] * 4), "dense.0.bias .* not of finite numbers"),
        ("dense.0.bias", np.array([0, 0, np.nan, 0]), "not of finite numbers"),
        ("dense.0.bias", np.array([0, 0, 1e300, 0]), "not of finite numbers"),
        ("lstm.bias_hh_l0", np.ones(1), "do not fit together"),
        ("lstm.weight_ih_l0", np.float32(1), "do not fit together"),
        ("lstm.weight_hh_l1_reverse", np.ones((3, 3)), "do not fit together"),
        ("sequence_convolutions.0.convs.0.weight", np.ones(3), "do not fit together"),
        ("sequence_convolutions.0.bn.weight", np.float32(1), "do not fit together"),
    ],
)
def test_tensors_of_another_kind_or_shape_are_refused(tensors, name, tensor, message):
    model = small_model()
    before = model.get_weights()
    with pytest.raises(InputError, match=message):
        fsm_bilstm_from_torch({**tensors, name: tensor}, model)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_recipes_are_told_apart_by_their_initial_weights():
    recipe = recipes.load("fsm_bilstm_paper")
    assert "initial_weights" not in recipe.to_yaml(identity=True)
    assert recipe.flat()["model.initial_weights"] is None
    named = recipes.load(recipe, ["model.initial_weights=paper.npz"])
    assert named.identity() == {**recipe.identity(), "model.initial_weights": "paper.npz"}
    assert recipes.from_values(yaml.safe_load(named.to_yaml())) == named != recipe


def test_missing_left_over_and_misshapen_tensors_are_refused(tensors):
    model = small_model()
    before = model.get_weights()
    without = dict(tensors)
    del without["fsms.fsms.1.y_conv.layer.1.bias"]
    cases = {
        "no tensor fsms.fsms.1.y_conv.layer.1.bias": without,
        "no place for 1 tensors .* such as extra": {**tensors, "extra": np.ones(1)},
        r"dense.3.weight .* makes \(7, 1\), the model needs \(4, 1\)": {
            **tensors,
            "dense.3.weight": np.ones((1, 7)),
        },
        "found 0 of the name": {},
    }
    for message, case in cases.items():
        with pytest.raises(InputError, match=message):
            fsm_bilstm_from_torch(case, model)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "shared"}, "encoder.weights=per_position"),
        ({"fsm": None}, "encoder.weights=per_position"),
        ({"batch_norm_epsilon": 1e-3}, "batch_norm_epsilon is 0.001"),
        ({"positions": 2}, "no place for"),
    ],
)
def test_other_models_are_refused(tensors, changes, message):
    with pytest.raises(InputError, match=message):
        fsm_bilstm_from_torch(tensors, small_model(**changes))


@pytest.mark.parametrize("attention", ["none", "softmax", "scaled"])
def test_the_full_network_equals_pytorch(attention):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch_reference import Network, randomize

    network = randomize(Network(attention=attention))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_867_353
    recipe = recipes.load("fsm_bilstm_paper", [f"model.encoder.fsm.attention={attention}"])
    model = models.build(recipe.model, (64, 64, 1), labels=1, seed=0)
    fsm_bilstm_from_torch({k: v.numpy() for k, v in network.state_dict().items()}, model)
    slices = np.random.default_rng(0).normal(size=(3, 15, 1, 64, 64)).astype("float32")
    inputs = torch.from_numpy(slices)
    with torch.no_grad():
        expected = network.encode(inputs).numpy(), network(inputs).numpy()
    features, logits = outputs_of(model, slices)
    assert_close_in_scale(features, expected[0])
    np.testing.assert_allclose(logits, expected[1], atol=1e-5)
