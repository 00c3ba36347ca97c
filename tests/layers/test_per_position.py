"""Slice 1 through the first position's weights, slice 2 through the second's, and so on."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from model_checks import (
    check_one_trace,
    check_padding,
    check_round_trip,
    randomize_moving_statistics,
)
from references import (
    ConvolutionBlock,
    FeatureSimilarity,
    convolve,
    feature_similarity,
    normalize_by_batch,
    position_of,
)

from medseq_tf.errors import InputError
from medseq_tf.layers import PerPosition

LENGTHS = np.array([4, 1, 3], "int32")
REAL = np.arange(4) < LENGTHS[:, None]


@pytest.fixture
def slices(rng):
    return rng.normal(size=(3, 4, 6, 6, 12)).astype("float32")


def test_each_slice_meets_the_weights_of_its_position(slices):
    module = FeatureSimilarity(positions=4, seed=1)
    layer = PerPosition(module)
    layer.build(slices.shape)
    randomize_moving_statistics(layer)
    outputs = layer(slices, lengths=LENGTHS)
    assert outputs.shape == slices.shape
    for study, length, output in zip(slices, LENGTHS, outputs, strict=True):
        for step in range(4):
            expected = feature_similarity(study[step], module, step) if step < length else 0.0
            np.testing.assert_allclose(output[step], expected, rtol=1e-4, atol=1e-4)


def test_a_stage_shares_its_batch_statistics_over_the_real_slices(slices):
    block = ConvolutionBlock(2, 3, padding=0, positions=4, seed=1)
    outputs = np.asarray(PerPosition(block)(slices, lengths=LENGTHS, training=True))
    kernel, bias = block.convolution.kernel, block.convolution.bias
    maps = np.array(
        [
            convolve(study[step], position_of(kernel, step, 4), position_of(bias, step, 4))
            for study, length in zip(slices, LENGTHS, strict=True)
            for step in range(length)
        ]
    )
    expected, mean, variance = normalize_by_batch(maps, np.ones(2), np.zeros(2))
    np.testing.assert_allclose(outputs[REAL], np.maximum(expected, 0), atol=1e-4)
    np.testing.assert_allclose(block.normalization.moving_mean, 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(block.normalization.moving_variance, 0.9 + 0.1 * variance, atol=1e-5)


@pytest.mark.parametrize("make", [FeatureSimilarity, lambda **k: ConvolutionBlock(3, 3, **k)])
@pytest.mark.parametrize("training", [False, True])
def test_padding_and_batch_mates_change_nothing(slices, make, training):
    layer = PerPosition(make(positions=7, seed=1))
    check_padding(
        lambda x, n: layer(x, lengths=n, training=training),
        slices,
        LENGTHS,
        longest=7,
        each_alone=not training,
    )


def test_fewer_steps_than_positions_without_lengths(slices):
    layer = PerPosition(ConvolutionBlock(3, 3, positions=6, seed=1))
    np.testing.assert_array_equal(layer(slices), layer(slices, lengths=np.full(3, 4)))


def test_one_trace_for_all_lengths_and_batches():
    layer = PerPosition(ConvolutionBlock(3, 3, positions=7, seed=1))
    check_one_trace(lambda x, n: layer(x, lengths=n), 6, 6, 2)


def test_more_steps_than_positions_are_refused(slices):
    layer = PerPosition(ConvolutionBlock(3, 3, positions=3, seed=1))
    message = "weights for 3 positions takes sequences of at most 3 slices"
    with pytest.raises(InputError, match=f"{message}, got 4"):
        layer(slices)
    layer.build((None, None, 6, 6, 12))
    free = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 6, 6, 12))])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        free(slices)


def test_round_trip(slices):
    layer = PerPosition(ConvolutionBlock(3, 3, positions=5, seed=1, activation="gelu"))
    check_round_trip(layer, slices, lengths=LENGTHS)
