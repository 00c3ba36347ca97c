"""The encoder of paper 1: from slices to features."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import check_padding, check_round_trip, encoder, randomize_moving_statistics

from medseq_tf.layers import PerPosition, TimeDistributed
from medseq_tf.models import ConvFSMStack, Encoder

LENGTHS = np.array([3, 1], "int32")


@pytest.fixture
def slices(rng):
    return rng.normal(size=(2, 3, 12, 12, 2)).astype("float32")


def stack(**changes):
    arguments = {"filters": [3, 6], "kernels": [5, 3], "strides": [2, 1], "paddings": [0, 1]}
    arguments |= {"attention": "softmax", "pooling": "flatten", "positions": 1, "mirrored": False}
    arguments |= {"activation": "relu", "momentum": 0.9, "epsilon": 1e-5, "seed": 1}
    layer = ConvFSMStack(**{**arguments, **changes})
    layer.build((None, 12, 12, 2 * layer.positions))
    randomize_moving_statistics(layer)
    return layer


def test_outputs_per_slice_are_those_of_figure_6():
    whole = encoder("conv_fsm")
    layer = whole.slices_to_features.layer
    shape, shapes = (None, 64, 64, 1), []
    for stage in layer.stages:
        shape = stage.compute_output_shape(shape)
        shapes.append(shape[1:])
    assert shapes == [(27, 27, 16), (13, 13, 32), (5, 5, 48)]
    assert whole.compute_output_shape((None, None, 64, 64, 1)) == (None, None, 1200)


@pytest.mark.parametrize("pooling", ["flatten", "average", "max"])
def test_positions_with_equal_weights_give_what_shared_weights_give(slices, pooling):
    shared, apart = stack(pooling=pooling), stack(pooling=pooling, positions=3)
    for ours, theirs in zip(apart.variables, shared.variables, strict=True):
        times = ours.shape[-1] // theirs.shape[-1]
        ours.assign(np.tile(theirs, times))
    np.testing.assert_allclose(
        PerPosition(apart)(slices, lengths=LENGTHS),
        TimeDistributed(shared)(slices, lengths=LENGTHS),
        atol=1e-5,
    )


def test_flattened_features_are_in_the_order_height_width_channel(slices):
    layer = stack(attention=None)
    maps = slices[0]
    for stage in layer.stages:
        maps = stage(maps)
    np.testing.assert_allclose(layer(slices[0]), np.reshape(maps, (3, -1)), atol=1e-6)
    pooled = stack(attention=None, pooling="max")
    np.testing.assert_allclose(pooled(slices[0]), np.max(maps, axis=(1, 2)), atol=1e-6)


def test_dropout_of_features_is_seeded(slices):
    def features():
        layer = Encoder(TimeDistributed(stack()), dropout=0.5, seed=7)
        return np.asarray(layer(slices, LENGTHS, training=True))

    first = features()
    np.testing.assert_array_equal(features(), first)
    assert (first[0] == 0).mean() > 0.3


@pytest.mark.parametrize("weights", ["shared", "per_position"])
def test_padding_and_batch_mates_change_nothing(slices, weights):
    layer = encoder("conv_fsm", weights=weights, positions=6, kernels=[5, 3, 3])
    big = np.kron(slices, np.ones((1, 1, 3, 3, 1), "float32"))
    check_padding(layer, big, LENGTHS)


def test_skip_padding_is_handed_on():
    for skip_padding in (True, False):
        layer = encoder("conv_fsm", skip_padding=skip_padding)
        assert layer.slices_to_features.skip_padding is skip_padding


def test_a_wrong_pooling_is_refused():
    with pytest.raises(ValueError, match="flatten, average, max, lesion_map, got 'sum'"):
        stack(pooling="sum")


def test_round_trips(slices):
    layer = stack(
        attention="scaled",
        pooling="average",
        positions=3,
        activation="elu",
        momentum=0.7,
        epsilon=1e-3,
    )
    packed = slices.transpose(0, 2, 3, 1, 4).reshape(2, 12, 12, 6)
    check_round_trip(layer, packed)
    check_round_trip(stack(attention=None), slices[0])
    wrapped = TimeDistributed(stack(pooling="max"), skip_padding=False)
    check_round_trip(Encoder(wrapped, dropout=0.4, seed=3), slices, LENGTHS)
