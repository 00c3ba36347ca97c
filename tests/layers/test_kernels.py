"""Rows in chunks: the same outputs, every row once, never more than so many at a time."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from medseq_tf.layers import kernels

SIZE = 4


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
