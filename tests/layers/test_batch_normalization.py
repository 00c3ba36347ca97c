"""Batch normalisation: statistics of the real slices, shared by positions or one set each."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from model_checks import check_round_trip, randomize_moving_statistics
from references import BatchNormalization, normalize, normalize_by_batch

REAL = np.array(
    [[True, True, False], [True, False, False], [True, True, True], [True, True, False]]
)


@pytest.fixture
def maps(rng):
    """Four studies of three positions, 5 x 4, two channels each: `(4, 3, 5, 4, 2)`."""
    return rng.normal(3, 2, (4, 3, 5, 4, 2)).astype("float32")


def packed(maps):
    batch, positions, height, width, channels = maps.shape
    return maps.transpose(0, 2, 3, 1, 4).reshape(batch, height, width, positions * channels)


def unpacked(outputs, positions=3):
    batch, height, width, _ = outputs.shape
    outputs = np.asarray(outputs).reshape(batch, height, width, positions, -1)
    return outputs.transpose(0, 3, 1, 2, 4)


def layer_with(gamma, beta, **arguments):
    layer = BatchNormalization(positions=3, **arguments)
    layer.build((None, 5, 4, 6))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    return layer


@pytest.mark.parametrize("all_real", [True, False])
def test_shared_statistics_are_those_of_the_real_slices_of_all_positions(maps, all_real):
    real = np.ones_like(REAL) if all_real else REAL
    gamma, beta = np.array([1.5, 0.5]), np.array([0.1, -0.2])
    layer = layer_with(gamma, beta)
    outputs = layer(packed(maps), real=None if all_real else real, training=True)
    expected, mean, variance = normalize_by_batch(maps[real], gamma, beta)
    np.testing.assert_allclose(unpacked(outputs)[real], expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, atol=1e-5)


@pytest.mark.parametrize("all_real", [True, False])
def test_separate_statistics_are_those_of_each_position(maps, all_real, rng):
    real = np.ones_like(REAL) if all_real else REAL
    gamma, beta = rng.uniform(0.5, 1.5, 6), rng.normal(size=6)
    layer = layer_with(gamma, beta, shared=False)
    outputs = unpacked(layer(packed(maps), real=None if all_real else real, training=True))
    for position in range(3):
        of_position = slice(2 * position, 2 * position + 2)
        rows = real[:, position]
        expected, mean, variance = normalize_by_batch(
            maps[rows, position], gamma[of_position], beta[of_position]
        )
        np.testing.assert_allclose(outputs[rows, position], expected, atol=1e-5)
        np.testing.assert_allclose(layer.moving_mean[of_position], 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(
            layer.moving_variance[of_position], 0.9 + 0.1 * variance, atol=1e-5
        )


@pytest.mark.parametrize("shared", [True, False])
def test_what_padding_holds_has_no_effect(maps, shared):
    results = []
    for filler in (0.0, 1e6, np.nan):
        layer = BatchNormalization(positions=3, shared=shared)
        filled = np.where(REAL[:, :, None, None, None], maps, np.float32(filler))
        outputs = unpacked(layer(packed(filled), real=REAL, training=True))[REAL]
        results.append([outputs, np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_position_that_no_study_reaches_keeps_its_moving_statistics(maps):
    layer = BatchNormalization(positions=3, shared=False)
    real = np.repeat([[True, True, False]], 4, axis=0)
    layer(packed(maps), real=real, training=True)
    np.testing.assert_array_equal(layer.moving_mean[4:], [0, 0])
    np.testing.assert_array_equal(layer.moving_variance[4:], [1, 1])
    assert (np.asarray(layer.moving_mean[:4]) != 0).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_uses_the_moving_statistics(maps, frozen):
    layer = layer_with([1.5, 0.5], [0.1, -0.2])
    randomize_moving_statistics(layer)
    layer.trainable = not frozen
    before = layer.get_weights()
    outputs = unpacked(layer(packed(maps), training=frozen))
    statistics = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    expected = normalize(maps.astype("float64"), *(np.asarray(s, "float64") for s in statistics))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    for got, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, kept)


def test_one_position_equals_the_layer_of_keras(maps):
    ours, theirs = BatchNormalization(), keras.layers.BatchNormalization(-1, 0.9, 1e-5)
    for _ in range(2):
        np.testing.assert_allclose(
            ours(maps[0], training=True), theirs(maps[0], training=True), atol=1e-5
        )
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=1e-6)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, atol=1e-6)


def test_round_trip(maps):
    layer = BatchNormalization(positions=3, shared=False, momentum=0.8, epsilon=1e-2)
    layer.build((None, 5, 4, 6))
    randomize_moving_statistics(layer)
    check_round_trip(layer, packed(maps))
