"""Convolutions with weights of each position's own, as one grouped convolution."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from model_checks import check_round_trip, randomize_moving_statistics
from references import ConvolutionBlock, block, convolve, position_of

from medseq_tf.errors import InputError
from medseq_tf.layers import PerPositionConv2D, kernels


@pytest.mark.parametrize(
    ("positions", "kernel_size", "strides", "padding"),
    [(1, 3, 1, "same"), (1, 5, 2, 1), (4, 3, 2, 0), (4, 1, 1, "same"), (3, 5, 2, 1)],
)
def test_equals_a_loop_over_positions(rng, positions, kernel_size, strides, padding):
    layer = PerPositionConv2D(3, kernel_size, strides, padding, positions, seed=1)
    inputs = rng.normal(size=(2, 9, 7, positions * 2)).astype("float32")
    layer.build(inputs.shape)
    layer.bias.assign(rng.normal(size=layer.bias.shape))
    outputs = layer(inputs)
    assert outputs.shape == layer.compute_output_shape(inputs.shape)
    margin = kernel_size // 2 if padding == "same" else padding
    for image, output in zip(inputs, outputs, strict=True):
        for position in range(positions):
            expected = convolve(
                position_of(image, position, positions),
                position_of(layer.kernel, position, positions),
                position_of(layer.bias, position, positions),
                strides,
                margin,
            )
            np.testing.assert_allclose(
                position_of(output, position, positions), expected, atol=1e-5
            )


@pytest.mark.parametrize("native", [True, False])
def test_gradients_equal_those_of_a_loop(rng, monkeypatch, native):
    if native and not kernels._grouped_gradient_works():
        pytest.skip("TensorFlow has no gradient of a grouped convolution on this machine")
    monkeypatch.setattr(kernels, "_grouped_gradient_works", lambda: native)
    inputs = tf.constant(rng.normal(size=(2, 9, 9, 6)).astype("float32"))
    kernel = tf.constant(rng.normal(size=(3, 3, 2, 12)).astype("float32"))

    def loop(inputs, kernel):
        pairs = zip(tf.split(inputs, 3, axis=-1), tf.split(kernel, 3, axis=-1), strict=True)
        sides = [[0, 0], [1, 1], [1, 1], [0, 0]]
        return tf.concat([tf.nn.conv2d(x, k, 2, sides) for x, k in pairs], axis=-1)

    def gradients(convolution):
        with tf.GradientTape() as tape:
            tape.watch((inputs, kernel))
            loss = tf.reduce_sum(tf.sin(convolution(inputs, kernel)))
        return tape.gradient(loss, (inputs, kernel))

    ours = gradients(tf.function(lambda x, k: kernels.convolution(x, k, 2, 1, groups=3)))
    for got, expected in zip(ours, gradients(loop), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_initial_weights_do_not_depend_on_the_number_of_positions():
    bounds = []
    for positions in (1, 8):
        layer = PerPositionConv2D(16, 5, positions=positions, seed=0)
        layer.build((None, 9, 9, positions * 4))
        bounds.append(np.abs(layer.kernel).max())
    np.testing.assert_allclose(bounds, 1 / np.sqrt(5 * 5 * 4), rtol=0.02)


def test_a_slice_smaller_than_the_kernel_is_refused():
    with pytest.raises(InputError, match="a slice of 4 pixels a side, with padding 1"):
        PerPositionConv2D(2, 7, padding=1).build((None, 4, 4, 1))


def test_block_is_convolution_normalisation_activation(rng):
    layer = ConvolutionBlock(3, 3, positions=2, shared_normalization=False)
    inputs = rng.normal(size=(2, 6, 6, 4)).astype("float32")
    layer.build(inputs.shape)
    randomize_moving_statistics(layer)
    for image, output in zip(inputs, layer(inputs), strict=True):
        for position in range(2):
            expected = block(position_of(image, position, 2), layer, position)
            np.testing.assert_allclose(position_of(output, position, 2), expected, atol=1e-5)


def test_round_trips(rng):
    inputs = rng.normal(size=(2, 9, 9, 4)).astype("float32")
    check_round_trip(PerPositionConv2D(3, 5, strides=2, padding=1, positions=2, seed=4), inputs)
    block_ = ConvolutionBlock(
        3,
        5,
        strides=2,
        padding=1,
        positions=2,
        shared_normalization=False,
        activation="selu",
        momentum=0.8,
        epsilon=1e-2,
        seed=4,
    )
    block_.build(inputs.shape)
    randomize_moving_statistics(block_)
    check_round_trip(block_, inputs)
