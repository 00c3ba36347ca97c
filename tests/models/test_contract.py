"""What every aggregator and every encoder of the catalogues has to hold."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from model_checks import (
    SLICE_SHAPE,
    aggregator,
    aggregator_settings,
    check_one_trace,
    check_padding,
    check_round_trip,
    encoder,
    encoder_settings,
    other_values,
    randomize_moving_statistics,
)
from scipy.special import expit

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import AGGREGATORS, ENCODERS
from medseq_tf.models.aggregators import build_aggregator

LENGTHS = np.array([5, 1, 3], "int32")
FEATURES = int(np.prod(SLICE_SHAPE))
SIDES = (32, 32, 1)
SMALL = {
    "conv_fsm": {"filters": [3, 4, 6], "kernels": [5, 3, 3]},
    "keras_application": {"network": "MobileNet", "weights": "none", "dense": [{"units": 3}]},
    "joined": {"keras_application": {"network": "MobileNet", "weights": "none"}},
    "segmenter": {"network": "unet", "width": 2},
}
"""Encoders that are large, or not to be had offline, by their defaults."""


def names(part):
    groups = recipes.settings_in(recipes.Model.model_fields[part].annotation)
    return {name for group in groups for name in recipes.choices(group, "name")}


def test_the_catalogues_hold_what_a_recipe_can_name():
    assert set(AGGREGATORS) == names("aggregator")
    assert set(ENCODERS) == names("encoder")


# --------------------------------------------------------------------------------- aggregators


@pytest.fixture
def features(rng):
    return rng.normal(size=(3, 5, FEATURES)).astype("float32")


@pytest.mark.parametrize("name", AGGREGATORS)
def test_padding_batch_mates_and_lengths_leave_a_vector_alone(name, features):
    layer = aggregator(name)
    vectors = layer(features, LENGTHS)
    randomize_moving_statistics(layer)
    assert vectors.shape == layer.compute_output_shape(features.shape)
    check_padding(layer, features, LENGTHS)
    check_one_trace(layer, FEATURES)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_is_all_in_its_configuration(name, features):
    settings = other_values(aggregator_settings(name))
    layer = build_aggregator(settings, SLICE_SHAPE, seed=8)
    check_round_trip(layer, features, LENGTHS)
    own = settings.model_dump(by_alias=True, exclude={"name"})
    assert own.items() <= layer.get_config().items()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_model_survives_its_file_and_answers_after_each_slice(name, rng, tmp_path):
    settings = recipes.Model(encoder={"name": "pixels"}, aggregator={"name": name})
    model = models.build(settings, SLICE_SHAPE, labels=2, seed=0)
    slices = rng.normal(size=(3, 5, *SLICE_SHAPE)).astype("float32")
    inputs = {"slices": slices, "lengths": LENGTHS}
    logits = np.asarray(model(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), logits)
    running = np.asarray(model.running(inputs))
    np.testing.assert_allclose(running[range(3), LENGTHS - 1], logits, atol=1e-5)


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_probabilities_of_classes_add_up_to_one_after_every_slice(name, outputs, rng, tmp_path):
    settings = recipes.Model(encoder={"name": "pixels"}, aggregator={"name": name})
    model = models.build(settings, SLICE_SHAPE, labels=3, seed=0, outputs=outputs)
    randomize_moving_statistics(model)
    slices = 2 * rng.normal(size=(3, 5, *SLICE_SHAPE)).astype("float32")

    def probabilities(slices, lengths):
        return expit(np.asarray(model({"slices": slices, "lengths": lengths})))

    found = probabilities(slices, LENGTHS)
    assert np.ptp(found, axis=0).max() > 1e-3, "studies differ"
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    check_padding(probabilities, slices, LENGTHS)
    running = expit(np.asarray(model.running({"slices": slices, "lengths": LENGTHS})))
    real = np.arange(5) < LENGTHS[:, None]
    np.testing.assert_allclose(running[real].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(running[range(3), LENGTHS - 1], found, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    again = loaded({"slices": slices, "lengths": LENGTHS})
    np.testing.assert_array_equal(expit(np.asarray(again)), found)


@pytest.mark.parametrize("target", ["slice", "study"])
@pytest.mark.parametrize("pooling", ["mean", "max", "log_sum_exp"])
def test_scores_of_slices_by_class_add_up_to_one(pooling, target, rng):
    aggregator = {"name": "slice_scores", "pooling": pooling, "target": target}
    settings = recipes.Model(encoder={"name": "pixels"}, aggregator=aggregator, head={"dropout": 0})
    model = models.build(settings, SLICE_SHAPE, labels=3, seed=0, outputs="classes")
    slices = rng.normal(size=(3, 5, *SLICE_SHAPE)).astype("float32")
    inputs = {"slices": slices, "lengths": LENGTHS}
    found = expit(np.asarray(model(inputs)))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    of_slices = np.asarray(model.head(slices.reshape(3, 5, -1)), "float64")
    for study, length, row in zip(of_slices, LENGTHS, found, strict=True):
        pooled = {
            "mean": expit(study[:length]).mean(0),
            "max": expit(study[:length].max(0)),
            "log_sum_exp": expit(
                np.log(np.exp(model.aggregator.sharpness * study[:length]).mean(0))
                / model.aggregator.sharpness
            ),
        }[pooling]
        np.testing.assert_allclose(row, pooled / pooled.sum(), rtol=1e-5)
    logits, truth = model.examples(inputs, np.eye(3, dtype="float32"))
    assert logits.shape == truth.shape == ((3, 5, 3) if target == "slice" else (3, 3))
    np.testing.assert_allclose(expit(np.asarray(logits)).sum(-1), 1, atol=1e-5)


# ------------------------------------------------------------------------------------ encoders


@pytest.fixture
def slices(rng):
    return rng.uniform(size=(3, 5, *SIDES)).astype("float32")


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_batch_mates_and_lengths_leave_features_alone(name, slices):
    layer = encoder(name, **SMALL.get(name, {}))
    features = layer(slices, LENGTHS)
    randomize_moving_statistics(layer)
    assert features.shape == layer.compute_output_shape(slices.shape)
    check_padding(layer, slices, LENGTHS)
    check_one_trace(layer, *SIDES)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_all_in_its_configuration(name, slices):
    settings = other_values(encoder_settings(name, **SMALL.get(name, {})))
    layer = ENCODERS[name](settings, 8, True)
    check_round_trip(layer, slices, LENGTHS)


VARIANTS = {
    **{name: {"name": name, **SMALL.get(name, {})} for name in ENCODERS if name != "segmenter"},
    "per_position": {"name": "conv_fsm", **SMALL["conv_fsm"], "weights": "per_position"},
    "lesion_map": {"name": "conv_fsm", **SMALL["conv_fsm"], "pooling": "lesion_map"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_encoder_serves_classes(variant, slices):
    settings = recipes.Model(encoder=VARIANTS[variant], aggregator={"name": "mean"})
    model = models.build(settings, SIDES, labels=3, seed=0, outputs="classes")
    inputs = {"slices": slices, "lengths": LENGTHS}
    probabilities = expit(np.asarray(model(inputs)))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    running = expit(np.asarray(model.running(inputs)))
    np.testing.assert_allclose(running[range(3), LENGTHS - 1], probabilities, atol=1e-5)


def test_a_segmenter_has_no_classes():
    settings = recipes.Model(encoder={"name": "segmenter", **SMALL["segmenter"]},
                             aggregator={"name": "max"})  # fmt: skip
    with pytest.raises(InputError, match="the data set has 3 classes: prepare it with that label"):
        models.build(settings, SIDES, labels=3, outputs="classes")
