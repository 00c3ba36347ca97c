"""Recurrent aggregators against those of Keras, and their readouts."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from model_checks import aggregator, check_one_trace, check_padding, check_round_trip

from medseq_tf.models.aggregators import READOUTS, Recurrent

LENGTHS = np.array([5, 1, 3], "int32")
MASK = np.arange(5) < LENGTHS[:, None]
CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


@pytest.fixture
def features(rng):
    return rng.normal(size=(3, 5, 6)).astype("float32")


def of_keras(layers, features):
    """The last layer's outputs and the final states of its directions, by Keras's layers."""
    outputs = features
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        parts = []
        for d in range(layer.directions):
            reference = CELLS[layer.cell](
                layer.units, return_sequences=not last, go_backwards=d == 1
            )
            reference.build(outputs.shape)
            reference.set_weights(
                [np.asarray(layer.kernel[:, d]), layer.recurrent_kernel[d], layer.bias[d]]
            )
            part = np.asarray(reference(outputs, mask=MASK))
            parts.append(part[:, ::-1] if d == 1 and not last else part)
        outputs = np.concatenate(parts, axis=-1)
    return outputs


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("bidirectional", "readout"),
    [(False, "last"), (True, "last"), (True, "last_backward"), (True, "concat")],
)
def test_equals_a_stack_of_keras_layers(features, cell, layers, bidirectional, readout):
    layer = aggregator(cell, units=4, layers=layers, bidirectional=bidirectional, readout=readout)
    vectors = layer(features, LENGTHS)
    assert vectors.shape == layer.compute_output_shape(features.shape)
    states = of_keras(layer.stack, features)
    part = {"last": slice(0, 4), "last_backward": slice(4, 8), "concat": slice(0, 8)}[readout]
    np.testing.assert_allclose(vectors, states[:, part], atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("readout", ["mean", "max"])
def test_states_are_joined_over_the_real_slices(features, bidirectional, readout):
    whole = aggregator("gru", units=4, layers=2, bidirectional=bidirectional, readout=readout)
    vectors = np.asarray(whole(features, LENGTHS))
    assert vectors.shape == whole.compute_output_shape(features.shape)
    states = features
    for layer in whole.stack:
        states = np.asarray(layer(states, lengths=LENGTHS))
    join = getattr(np, readout)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(vectors[row], join(states[row, :length], axis=0), atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("readout", READOUTS)
def test_padding_and_batch_mates_change_nothing(features, name, readout):
    layer = aggregator(name, units=4, layers=2, readout=readout)
    check_padding(layer, features, LENGTHS)
    check_one_trace(layer, 6)


def test_steps_know_only_the_slices_so_far(features):
    layer = aggregator("lstm", units=4, layers=2, bidirectional=False, readout="last")
    layer(features, LENGTHS)
    steps = np.asarray(layer.steps(features, LENGTHS))
    assert steps.shape == (3, 5, 4)
    for step in range(5):
        still = step < LENGTHS
        so_far = layer(features[still, : step + 1], np.full(still.sum(), step + 1))
        np.testing.assert_allclose(steps[still, step], so_far, atol=1e-6)
        assert not steps[~still, step].any()


def test_steps_of_both_directions_are_refused(features):
    for changes in ({}, {"bidirectional": False, "readout": "mean"}):
        with pytest.raises(ValueError, match="an output a step needs bidirectional=False"):
            aggregator("lstm", **changes).steps(features, LENGTHS)


def test_dropout_stands_between_the_layers_and_is_seeded(features):
    def vectors(layers):
        layer = aggregator("lstm", units=4, layers=layers, dropout=0.5)
        return np.asarray(layer(features, LENGTHS, training=True))

    np.testing.assert_array_equal(vectors(2), vectors(2))
    one = aggregator("lstm", units=4, layers=1, dropout=0.5)
    np.testing.assert_array_equal(
        one(features, LENGTHS, training=True), one(features, LENGTHS, training=False)
    )
    two = aggregator("lstm", units=4, layers=2, dropout=0.5)
    assert np.any(two(features, LENGTHS, training=True) != two(features, LENGTHS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"readout": "sum"}, "readout is one of last, last_backward, concat, mean, max, got 'sum'"),
        ({"bidirectional": False}, "readout='last_backward' needs bidirectional=True"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recurrent(
            **{"units": 4, "layers": 1, "cell": "lstm", "bidirectional": True, "dropout": 0.0}
            | {"readout": "last_backward", **arguments}
        )


def test_round_trip(features):
    layer = aggregator("gru", 8, units=4, layers=2, dropout=0.1, readout="concat")
    check_round_trip(layer, features, LENGTHS)
