"""The recurrent layer against those of Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_checks import check_one_trace, check_padding, check_round_trip

from medseq_tf.layers import RecurrentLayer

LENGTHS = np.array([5, 1, 3], "int32")
MASK = np.arange(5) < LENGTHS[:, None]
CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


@pytest.fixture
def features(rng):
    return rng.normal(size=(3, 5, 6)).astype("float32")


def built(cell, bidirectional, features=6):
    layer = RecurrentLayer(4, cell, bidirectional, seed=1)
    layer.build((None, None, features))
    rng = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return layer


def of_keras(layer):
    """The same weights in the layers of Keras."""
    reference = CELLS[layer.cell](4, return_sequences=True)
    if layer.bidirectional:
        reference = keras.layers.Bidirectional(reference)
    reference.build((None, None, 6))
    weights = []
    for d in range(layer.directions):
        weights += [layer.kernel[:, d], layer.recurrent_kernel[d], layer.bias[d]]
    reference.set_weights([np.asarray(w) for w in weights])
    return reference


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_keras(features, cell, bidirectional):
    layer = built(cell, bidirectional)
    reference = of_keras(layer)
    np.testing.assert_allclose(layer(features), reference(features), atol=1e-6)
    got = np.asarray(layer(features, lengths=LENGTHS))
    expected = np.asarray(reference(features, mask=MASK))
    np.testing.assert_allclose(got[MASK], expected[MASK], atol=1e-6)
    assert not got[~MASK].any()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_equal_those_of_keras(features, cell):
    layer = built(cell, bidirectional=True)
    reference = of_keras(layer)
    inputs = tf.constant(features)
    gradients = []
    for call in (lambda: layer(inputs, lengths=LENGTHS), lambda: reference(inputs, mask=MASK)):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(tf.sin(call()) * MASK[..., None])
        gradients.append(tape.gradient(loss, inputs))
    np.testing.assert_allclose(*gradients, atol=1e-5)
    assert not np.asarray(gradients[0])[~MASK].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_and_batch_mates_change_nothing(features, cell, bidirectional):
    layer = built(cell, bidirectional)
    check_padding(lambda x, n: layer(x, lengths=n), features, LENGTHS)


@pytest.mark.parametrize("cell", CELLS)
def test_one_trace_for_all_lengths_and_batches(cell):
    layer = built(cell, bidirectional=True)
    check_one_trace(lambda x, n: layer(x, lengths=n), 6)


def test_initial_weights():
    layer = RecurrentLayer(8, "lstm", bidirectional=True, seed=1)
    layer.build((None, None, 50))
    kernel, recurrent_kernel, bias = (np.asarray(v) for v in layer.trainable_variables)
    np.testing.assert_allclose(np.abs(kernel).max(), np.sqrt(6 / (50 + 32)), rtol=0.02)
    assert (kernel[:, 0] != kernel[:, 1]).all()
    for direction in recurrent_kernel:
        np.testing.assert_allclose(direction @ direction.T, np.eye(8), atol=1e-5)
    np.testing.assert_array_equal(bias, np.repeat([[0, 1, 0, 0]] * 2, 8, axis=1))


def test_half_precision_closes_the_gates_too(features):
    layer = RecurrentLayer(4, "lstm", bidirectional=True, seed=1, dtype="mixed_float16")
    check_padding(lambda x, n: layer(x, lengths=n), features, LENGTHS, tolerance=5e-3)


def test_a_wrong_cell_is_refused():
    with pytest.raises(ValueError, match="lstm, gru, got 'rnn'"):
        RecurrentLayer(4, "rnn", False)


@pytest.mark.parametrize("cell", CELLS)
def test_round_trip(features, cell):
    check_round_trip(RecurrentLayer(4, cell, bidirectional=True, seed=9), features, lengths=LENGTHS)
