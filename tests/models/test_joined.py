"""Hand-made features beside a frozen network's: what each part makes by itself, in one vector."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_network
from model_checks import check_padding, check_round_trip, encoder

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import HandcraftedFeatures, JoinedFeatures, KerasNetwork

SIZE = 32
NETWORK = {"network": "MobileNetV3Small", "weights": "none"}
PARTS = {"handcrafted": {"features": ["shape", "histogram"], "bins": 4}}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    tiny_network.install(monkeypatch)


@pytest.fixture
def slices(rng):
    return rng.uniform(size=(6, SIZE, SIZE, 1)).astype("float32")


def parts():
    measures = HandcraftedFeatures(["shape", "histogram"], 4)
    return measures, KerasNetwork("MobileNetV3Small", "average", "all", seed=0)


def test_both_parts_stand_side_by_side(slices):
    measures, network = parts()
    joined = JoinedFeatures(measures, network)
    expected = np.concatenate([measures(slices), network(slices)], axis=1)
    np.testing.assert_array_equal(joined(slices), expected)
    assert joined.compute_output_shape(slices.shape) == expected.shape
    assert joined.weights == network.weights


def test_gradients_reach_the_slices_through_the_network(slices):
    joined = JoinedFeatures(*parts())
    joined.build(slices.shape)
    images = tf.constant(slices)
    with tf.GradientTape() as tape:
        tape.watch(images)
        features = joined.with_gradient(images)
        total = tf.reduce_sum(features[:, -6:])
    np.testing.assert_allclose(features, joined(slices), atol=1e-6)
    assert np.abs(tape.gradient(total, images)).max() > 0


def test_padding_and_batch_mates_change_nothing(slices):
    layer = encoder("joined", **PARTS, keras_application=NETWORK)
    check_padding(layer, slices.reshape(2, 3, SIZE, SIZE, 1), np.array([3, 1], "int32"))
    assert not layer.trainable_weights


def test_round_trips(slices):
    check_round_trip(JoinedFeatures(*parts()), slices)


def test_a_saved_model_gives_the_same(slices, tmp_path):
    settings = recipes.Model(
        encoder={"name": "joined", **PARTS, "keras_application": NETWORK},
        aggregator={"name": "statistics"},
        head={"units": []},
    )
    model = models.build(settings, (SIZE, SIZE, 1), labels=1, seed=0)
    inputs = {"slices": slices.reshape(2, 3, SIZE, SIZE, 1), "lengths": np.array([3, 2], "int32")}
    expected = np.asarray(model(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(inputs), expected)


def test_half_precision_is_the_networks_alone(slices):
    with_half = encoder("joined", **PARTS, keras_application=NETWORK)
    exact = with_half(slices[None], np.array([6], "int32"))
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        half = encoder("joined", **PARTS, keras_application=NETWORK)
        rounded = half(slices[None], np.array([6], "int32"))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    layers = [one.backbone.layer for one in (with_half, half)]
    assert layers[0].made_by != layers[1].made_by
    np.testing.assert_allclose(np.asarray(rounded, "float32"), exact, atol=0.2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("keras_application.frozen=none", "set keras_application.frozen=all, dense=.. and dropout"),
        ("keras_application.dropout=0.1", "set keras_application.frozen=all, dense=.. and dropout"),
        ("keras_application.netwrk=x", "netwrk .did you mean network"),
        ("handcrafted.features=[edges]", "handcrafted.features.0 = 'edges'"),
    ],
)
def test_settings_that_mean_nothing_are_one_line(setting, message):
    with pytest.raises(InputError, match=message):
        recipes.load("joined_linear", [f"model.encoder.{setting}"])


def test_its_input_is_that_of_both_parts():
    with pytest.raises(InputError, match=r"joined takes slices in \[0, 1\] as they are"):
        recipes.load("joined_linear", ["input.std=0.3"])
    with pytest.raises(InputError, match="joined takes 1 or 3 channels"):
        recipes.load("joined_linear", ["input.neighbours=2"])
    assert recipes.load("joined_linear").uses_features
