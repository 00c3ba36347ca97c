"""Loops: an LSTM and its gradients; rows in chunks: every row once, never too many at a time."""

from __future__ import annotations

import numpy as np
import pytest
import references
import tensorflow as tf

from medseq_tf.layers import kernels

SIZE = 4

# ------------------------------------------------------------------------------------------- LSTM


@pytest.fixture(params=[1, 2])
def of_lstm(rng, request):
    """The drive of 5 steps, 1 or 2 directions, 3 studies and 2 units, and a recurrent kernel."""
    directions = request.param
    return rng.normal(size=(5, directions, 3, 8)), rng.normal(size=(directions, 2, 8))


def test_lstm_equals_a_loop_over_steps(of_lstm):
    expected = references.lstm(*of_lstm)
    arguments = [tf.constant(array, tf.float32) for array in of_lstm]
    np.testing.assert_allclose(kernels.lstm(*arguments), expected, atol=1e-6)
    arguments = [tf.constant(array) for array in of_lstm]
    np.testing.assert_allclose(kernels.lstm(*arguments), expected, atol=1e-14)


WEIGHTS = np.cos(np.arange(30.0)).reshape(5, 1, 3, 2)
"""Of the states, so that each counts in a way of its own."""


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_of_lstm_equals_differences(of_lstm, compiled):
    drive, kernel = of_lstm
    expected = (
        references.gradient(lambda x: (WEIGHTS * references.lstm(x, kernel) ** 2).sum(), drive),
        references.gradient(lambda x: (WEIGHTS * references.lstm(drive, x) ** 2).sum(), kernel),
    )

    def gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            total = tf.reduce_sum(WEIGHTS * kernels.lstm(*arguments) ** 2)
        return tape.gradient(total, arguments)

    if compiled:  # one trace for any number of steps and studies
        free = tf.TensorSpec((None, drive.shape[1], None, 8), tf.float64)
        fixed = tf.TensorSpec(kernel.shape, tf.float64)
        gradients = tf.function(gradients, input_signature=(free, fixed))
    for got, by_differences in zip(gradients(*map(tf.constant, of_lstm)), expected, strict=True):
        np.testing.assert_allclose(got, by_differences, atol=1e-8)


def test_second_gradient_of_lstm_equals_a_difference_of_the_first(of_lstm, rng):
    drive, kernel = map(tf.constant, of_lstm)
    direction = rng.normal(size=drive.shape)

    def sine_of_first(drive):
        with tf.GradientTape() as tape:
            tape.watch(drive)
            total = tf.reduce_sum(kernels.lstm(drive, kernel) ** 2)
        return tf.reduce_sum(tf.sin(tape.gradient(total, drive)))

    with tf.GradientTape() as tape:
        tape.watch(drive)
        total = sine_of_first(drive)
    along = tf.reduce_sum(tape.gradient(total, drive) * direction)
    ahead, behind = (sine_of_first(drive + sign * 1e-6 * direction) for sign in (1, -1))
    np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-6)


def test_lstm_compiles_with_xla(of_lstm):
    drive, kernel = (tf.constant(array, tf.float32) for array in of_lstm)

    def gradients(drive, kernel):
        with tf.GradientTape() as tape:
            tape.watch(drive)
            total = tf.reduce_sum(kernels.lstm(drive, kernel) ** 2)
        return tape.gradient(total, drive)

    compiled = tf.function(gradients, jit_compile=True)
    np.testing.assert_allclose(compiled(drive, kernel), gradients(drive, kernel), atol=1e-5)


def test_each_direction_reads_in_its_order_and_back(rng):
    sequences = rng.normal(size=(4, 2, 3)).astype("float32")
    ordered = kernels.each_in_its_order(sequences)
    np.testing.assert_array_equal(ordered[:, 0], sequences[:, 0])
    np.testing.assert_array_equal(ordered[:, 1], sequences[::-1, 1])
    np.testing.assert_array_equal(kernels.each_in_its_order(ordered), sequences)


# ------------------------------------------------------------------------------------------ chunks


class Doubling:
    """Doubles rows and notes how many it got at a time."""

    def __init__(self):
        self.most = tf.Variable(0)
        self.total = tf.Variable(0)

    def __call__(self, rows):
        count = tf.shape(rows)[0]
        self.most.assign(tf.maximum(self.most, count))
        self.total.assign_add(count)
        return 2.0 * rows


def in_chunks(function, rows):
    return kernels.in_chunks(function, rows, SIZE, (3,), "float32")


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 23])
def test_every_row_passes_once_and_few_at_a_time(count):
    rows = np.arange(3.0 * count, dtype="float32").reshape(count, 3)
    for signature in (None, [tf.TensorSpec((None, 3))]):
        doubling = Doubling()
        function = lambda rows, f=doubling: in_chunks(f, rows)  # noqa: E731
        if signature:
            function = tf.function(function, input_signature=signature)
        np.testing.assert_array_equal(function(tf.constant(rows)), 2 * rows)
        assert doubling.most.numpy() == -(-count // -(-count // SIZE)) <= SIZE
        assert doubling.total.numpy() == count


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("count", [3, 9])
def test_fixed_shapes(count, jit):
    rows = np.arange(3.0 * count, dtype="float32").reshape(count, 3)
    function = tf.function(lambda rows: in_chunks(lambda x: 2.0 * x, rows), jit_compile=jit)
    np.testing.assert_array_equal(function(rows), 2 * rows)
