"""One layer over every real slice."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_checks import check_one_trace, check_padding, check_round_trip
from references import BatchNormalization, ConvolutionBlock, normalize_by_batch

from medseq_tf.layers import TimeDistributed

LENGTHS = np.array([4, 1, 3], "int32")
REAL = np.arange(4) < LENGTHS[:, None]


@pytest.fixture
def slices(rng):
    return rng.normal(size=(3, 4, 6, 6, 2)).astype("float32")


@pytest.mark.parametrize("skip_padding", [True, False])
def test_equals_a_loop_over_studies_and_slices(slices, skip_padding):
    convolution = keras.layers.Conv2D(3, 3, activation="relu")
    outputs = TimeDistributed(convolution, skip_padding)(slices, lengths=LENGTHS)
    assert outputs.shape == (3, 4, 4, 4, 3)
    for study, length, output in zip(slices, LENGTHS, outputs, strict=True):
        for step in range(4):
            expected = convolution(study[None, step])[0] if step < length else 0.0
            np.testing.assert_allclose(output[step], expected, atol=1e-6)


def test_a_mask_says_the_same_as_lengths_and_both_are_joined(slices):
    layer = TimeDistributed(keras.layers.Conv2D(3, 3))
    by_lengths = layer(slices, lengths=LENGTHS)
    np.testing.assert_array_equal(layer(slices, mask=REAL), by_lengths)
    no_first = REAL.copy()
    no_first[0, 0] = False
    joined = np.asarray(layer(slices, mask=no_first, lengths=LENGTHS))
    assert not joined[0, 0].any()
    np.testing.assert_allclose(joined[no_first], np.asarray(by_lengths)[no_first], atol=1e-6)


def test_without_lengths_it_is_the_layer_of_keras(slices):
    convolution = keras.layers.Conv2D(3, 3)
    np.testing.assert_allclose(
        TimeDistributed(convolution)(slices),
        keras.layers.TimeDistributed(convolution)(slices),
        atol=1e-6,
    )


def test_only_real_slices_are_computed(slices):
    seen = []

    class Counting(keras.layers.Layer):
        def call(self, inputs):
            seen.append(inputs.shape[0])
            return inputs

        def compute_output_shape(self, input_shape):
            return input_shape

    TimeDistributed(Counting())(slices, lengths=LENGTHS)
    assert seen[-1] == LENGTHS.sum()


@pytest.mark.parametrize("skip_padding", [True, False])
@pytest.mark.parametrize("make", [BatchNormalization, lambda: keras.layers.BatchNormalization()])
def test_batch_statistics_are_those_of_the_real_slices(slices, skip_padding, make):
    layer = make()
    layer.momentum = 0.9
    layer.epsilon = 1e-5
    wrapped = TimeDistributed(layer, skip_padding)
    filled = np.where(REAL[..., None, None, None], slices, np.float32(1e3))
    outputs = np.asarray(wrapped(filled, lengths=LENGTHS, training=True))
    expected, mean, variance = normalize_by_batch(slices[REAL], np.ones(2), np.zeros(2))
    np.testing.assert_allclose(outputs[REAL], expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, atol=1e-5)
    assert not outputs[~REAL].any()


def test_padding_in_hidden_batch_statistics_is_refused(slices):
    inner = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()])
    layer = TimeDistributed(inner, skip_padding=False)
    layer(slices, lengths=LENGTHS)
    with pytest.raises(ValueError, match="would take padding into its batch statistics"):
        layer(slices, lengths=LENGTHS, training=True)
    inner.trainable = False
    layer(slices, lengths=LENGTHS, training=True)


@pytest.mark.parametrize("skip_padding", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_padding_and_batch_mates_change_nothing(slices, skip_padding, training):
    layer = TimeDistributed(ConvolutionBlock(3, 3, seed=0), skip_padding)
    check_padding(
        lambda x, n: layer(x, lengths=n, training=training),
        slices,
        LENGTHS,
        each_alone=not training,
    )


def test_one_trace_for_all_lengths_and_batches():
    layer = TimeDistributed(keras.layers.Conv2D(3, 3))
    check_one_trace(lambda x, n: layer(x, lengths=n), 6, 6, 2)


def test_static_shapes_are_kept():
    layer = TimeDistributed(keras.layers.Conv2D(3, 3))
    outputs = layer(keras.Input((None, 8, 8, 1)))
    assert outputs.shape == (None, None, 6, 6, 3)
    shapes = []

    @tf.function(
        input_signature=[tf.TensorSpec((None, 5, 8, 8, 1)), tf.TensorSpec((None,), tf.int32)]
    )
    def trace(slices, lengths):
        shapes.append(layer(slices, lengths=lengths).shape)

    trace.get_concrete_function()
    assert shapes[0].as_list() == [None, 5, 6, 6, 3]


def test_gradients_equal_those_without_skipping(slices):
    convolution = keras.layers.Conv2D(3, 3, activation="tanh")
    gradients = []
    for skip_padding in (True, False):
        layer = TimeDistributed(convolution, skip_padding)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(slices, lengths=LENGTHS) ** 2)
        gradients.append(tape.gradient(loss, convolution.trainable_variables))
    for got, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_round_trip(slices):
    check_round_trip(
        TimeDistributed(keras.layers.Conv2D(3, 3), skip_padding=False), slices, lengths=LENGTHS
    )
