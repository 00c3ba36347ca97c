"""Whole models: every encoder with every aggregator, through what a model here has to hold."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_checks import check_one_trace, check_padding, randomize_moving_statistics

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError

SHAPE = (20, 20, 1)
LENGTHS = np.array([5, 1, 3], "int32")
SMALL = {
    "encoder": {
        "positions": 8,
        "filters": [3, 6],
        "kernels": [5, 3],
        "strides": [2, 2],
        "paddings": [0, 1],
    },
    "aggregator": {"units": 4, "layers": 2},
    "head": {"units": [5]},
}


def settings(encoder=None, aggregator=None, head=None):
    changes = {"encoder": encoder, "aggregator": aggregator, "head": head}
    return recipes.Model(**{part: {**SMALL[part], **(changes[part] or {})} for part in changes})


VARIANTS = {
    "shared": settings(),
    "per_position": settings({"weights": "per_position"}),
    "no_fsm_average": settings({"fsm": None, "pooling": "average", "activation": "selu"}),
    "gru_concat_max": settings({"pooling": "max"}, {"name": "gru", "readout": "concat"}),
    "mirrored_lesion_map": settings(
        {"mirrored": True, "pooling": "lesion_map", "fsm": None}, None, {"units": []}
    ),
    "one_way": settings(
        {"fsm": {"attention": "scaled"}, "dropout": 0.2},
        {"bidirectional": False, "readout": "last", "layers": 1},
        {"units": []},
    ),
}


def build(variant, labels=2, seed=0):
    model = models.build(VARIANTS[variant], SHAPE, labels, seed)
    randomize_moving_statistics(model)
    return model


def of_tensors(model):
    return lambda slices, lengths: model({"slices": slices, "lengths": lengths})


@pytest.fixture
def slices(rng):
    return rng.normal(size=(3, 5, *SHAPE)).astype("float32")


@pytest.fixture(params=VARIANTS)
def model(request):
    return build(request.param)


def test_logits(model, slices):
    logits = model({"slices": slices, "lengths": LENGTHS})
    assert logits.shape == (3, 2)
    assert logits.dtype == "float32"
    assert np.ptp(logits, axis=0).all()
    features = model.encode(slices, LENGTHS)
    assert features.shape == model.encoder.compute_output_shape(slices.shape)
    np.testing.assert_array_equal(model.classify(features, {"lengths": LENGTHS}), logits)


def test_padding_and_batch_mates_change_no_logit(model, slices):
    check_padding(of_tensors(model), slices, LENGTHS)
    check_padding(model.encode, slices, LENGTHS)


@pytest.mark.parametrize("variant", ["shared", "per_position"])
def test_padding_changes_nothing_in_training(variant, slices):
    moving = []

    def features(slices, lengths):
        model = build(variant)
        features = model.encode(slices, lengths, training=True)
        moving.append(np.concatenate([np.ravel(v) for v in model.non_trainable_variables]))
        return features

    check_padding(features, slices, LENGTHS, each_alone=False)
    for other in moving[1:]:
        np.testing.assert_allclose(other, moving[0], atol=1e-5)


def test_one_trace_for_all_lengths_and_batches(model):
    check_one_trace(of_tensors(model), *SHAPE)


def test_a_black_slice_is_a_slice(slices):
    model = build("shared")
    black = slices.copy()
    black[0, 4] = 0
    with_it = model({"slices": black, "lengths": LENGTHS})
    without_it = model({"slices": black, "lengths": LENGTHS - [1, 0, 0]})
    assert np.abs(with_it - without_it)[0].max() > 1e-6


def test_a_saved_model_gives_bitwise_the_same_logits(model, slices, tmp_path):
    inputs = {"slices": slices, "lengths": LENGTHS}
    expected = model(inputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(inputs), expected)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


def test_one_seed_gives_one_model():
    first, again, other = (build("shared", seed=seed) for seed in (3, 3, 4))
    for ours, same, different in zip(
        first.trainable_variables,
        again.trainable_variables,
        other.trainable_variables,
        strict=True,
    ):
        np.testing.assert_array_equal(ours, same)
        if ours.path.endswith("kernel"):
            assert (np.asarray(ours) != np.asarray(different)).any()


def test_no_two_kernels_of_a_model_are_drawn_alike():
    model = build("shared")
    kernels = [np.ravel(v)[:8] for v in model.trainable_variables if v.path.endswith("kernel")]
    scaled = [np.round(kernel / np.abs(kernel).max(), 5).tobytes() for kernel in kernels]
    assert len(set(scaled)) == len(scaled)


def gradients(model, slices, lengths):
    with tf.GradientTape() as tape:
        logits = model({"slices": slices, "lengths": lengths}, training=True)
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(logits), logits))
    return loss, tape.gradient(loss, model.trainable_variables)


def test_every_trainable_weight_has_a_finite_gradient(model, slices):
    _, found = gradients(model, slices, LENGTHS)
    for variable, gradient in zip(model.trainable_variables, found, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path


def test_padding_changes_no_gradient(slices):
    def found(padded):
        model = build("shared")
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        return gradients(model, padded, LENGTHS)[1]

    noisy = np.pad(slices, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0)), constant_values=99)
    for got, expected in zip(found(noisy), found(slices), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_variables_hold_the_state_of_dropout(slices):
    """Restored variables continue bit for bit, which the weights alone would not."""
    model = build("one_way")
    state = [v.numpy() for v in model.variables]
    first, _ = gradients(model, slices, LENGTHS)
    moved, _ = gradients(model, slices, LENGTHS)
    assert first != moved
    assert len(model.variables) > len(model.weights)
    for variable, value in zip(model.variables, state, strict=True):
        variable.assign(value)
    again, _ = gradients(model, slices, LENGTHS)
    assert again == first


def test_it_learns_the_training_sequences(slices):
    model = build("shared", labels=1)
    targets = np.array([[1.0], [0.0], [1.0]], "float32")
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.BinaryCrossentropy(from_logits=True))
    inputs = {"slices": slices, "lengths": LENGTHS}
    losses = [model.train_on_batch(inputs, targets) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(slices, precision):
    expected = build("shared")({"slices": slices, "lengths": LENGTHS})
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = build("shared")
    finally:
        keras.config.set_dtype_policy(policy)
    assert model.encode(slices, LENGTHS).dtype == model.compute_dtype != "float32"
    logits = model({"slices": slices, "lengths": LENGTHS})
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, expected, atol=0.02)
    loss, found = gradients(model, slices, LENGTHS)
    assert np.isfinite(loss)
    assert all(gradient.dtype == "float32" for gradient in found)


def test_slices_that_are_too_small_are_refused():
    with pytest.raises(InputError, match="a slice of 9 pixels a side"):
        models.build(recipes.Model(), (9, 9, 1), labels=1)


def test_more_slices_than_positions_are_refused(slices):
    model = build("per_position")
    with pytest.raises(InputError, match="at most 8 slices, got 10"):
        model({"slices": np.concatenate([slices, slices], axis=1), "lengths": LENGTHS})
