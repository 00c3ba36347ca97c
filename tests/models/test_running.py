"""The answer after each slice equals that of the first slices by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from model_checks import (
    check_one_trace,
    check_padding,
    fill_padding,
    randomize_moving_statistics,
)

from medseq_tf import models
from medseq_tf import recipe as recipes

SHAPE = (20, 20, 1)
LENGTHS = np.array([5, 1, 3], "int32")
CONVOLUTIONS = {
    "filters": [3],
    "kernels": [5],
    "strides": [2],
    "paddings": [0],
    "pooling": "average",
    "positions": 6,
}
ONE_WAY = {"bidirectional": False, "readout": "last", "units": 4, "layers": 2}
BOTH_WAYS = {"readout": "concat", "units": 4, "layers": 2}
AGGREGATORS = {
    "lstm": {"name": "lstm", **ONE_WAY},
    "gru": {"name": "gru", **ONE_WAY},
    "bilstm": {"name": "lstm", **BOTH_WAYS},
    "bigru": {"name": "gru", **BOTH_WAYS},
    "last_backward": {"name": "lstm", **BOTH_WAYS, "readout": "last_backward"},
    "lstm_mean": {"name": "lstm", **ONE_WAY, "readout": "mean"},
    "bilstm_max": {"name": "lstm", **BOTH_WAYS, "readout": "max"},
    "log_sum_exp": {"name": "log_sum_exp"},
    "attention": {"name": "attention", "units": 4},
    "transformer": {"name": "transformer", "units": 8, "heads": 2, "positions": True},
}
ENCODERS = {
    "shared": {"name": "conv_fsm", **CONVOLUTIONS},
    "per_position": {"name": "conv_fsm", **CONVOLUTIONS, "weights": "per_position"},
    "pretrained": {
        "name": "keras_application",
        "network": "MobileNet",
        "weights": "none",
        "dense": [{"units": 6, "activation": "tanh"}],
    },
}


def build(aggregator, encoder="shared", labels=3, shape=SHAPE):
    settings = recipes.Model(
        encoder=ENCODERS[encoder], aggregator=AGGREGATORS[aggregator], head={"units": [5]}
    )
    model = models.build(settings, shape, labels, seed=0)
    if encoder != "pretrained":
        randomize_moving_statistics(model)
    return model


def check_running(model, kind, padded, lengths):
    """Every prefix by itself, whatever stands in the padding, and zeros after the end."""
    padded = fill_padding(padded, lengths, np.random.default_rng(4))
    running = np.asarray(model.running({kind: padded, "lengths": lengths}))
    assert running.dtype == "float32"
    assert running.shape == (*padded.shape[:2], model.head.labels)
    for row, length in enumerate(lengths):
        assert not running[row, length:].any()
        for count in range(1, length + 1):
            alone = model({kind: padded[row : row + 1, :count], "lengths": np.array([count])})
            np.testing.assert_allclose(running[row, count - 1], alone[0], atol=1e-5)
        assert length == 1 or np.ptp(running[row, :length], axis=0).all()
    whole = model({kind: padded, "lengths": lengths})
    np.testing.assert_allclose(running[np.arange(len(lengths)), lengths - 1], whole, atol=1e-5)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_each_beginning_by_itself(rng, aggregator):
    model = build(aggregator)
    slices = rng.normal(size=(3, 5, *SHAPE)).astype("float32")
    check_running(model, "slices", slices, LENGTHS)
    check_running(model, "features", np.array(model.extract(slices, LENGTHS)), LENGTHS)


@pytest.mark.parametrize("aggregator", ["lstm", "bilstm"])
@pytest.mark.parametrize("encoder", ["per_position", "pretrained"])
def test_each_beginning_with_every_encoder(rng, aggregator, encoder):
    shape = (32, 32, 1) if encoder == "pretrained" else SHAPE
    model = build(aggregator, encoder, shape=shape)
    slices = rng.uniform(size=(3, 5, *shape)).astype("float32")
    check_running(model, "slices", slices, LENGTHS)
    check_running(model, "features", np.array(model.extract(slices, LENGTHS)), LENGTHS)


@pytest.mark.parametrize("aggregator", ["gru", "bigru", "attention"])
def test_padding_batch_mates_and_traces(rng, aggregator):
    model = build(aggregator)
    call = lambda slices, lengths: model.running({"slices": slices, "lengths": lengths})  # noqa: E731
    check_padding(call, rng.normal(size=(3, 5, *SHAPE)).astype("float32"), LENGTHS)
    check_one_trace(call, *SHAPE)


def test_more_beginnings_than_pass_at_once(rng):
    model = build("bilstm")
    features = rng.normal(size=(3, 24, 3)).astype("float32")
    lengths = np.array([24, 1, 20], "int32")
    assert features.shape[0] * features.shape[1] > model.aggregator.at_once
    check_running(model, "features", features, lengths)
    graph = tf.function(
        lambda features, lengths: model.running({"features": features, "lengths": lengths}),
        input_signature=[tf.TensorSpec((None, None, 3)), tf.TensorSpec((None,), tf.int32)],
    )
    expected = model.running({"features": features, "lengths": lengths})
    np.testing.assert_allclose(graph(features, lengths), expected, atol=1e-6)


def test_slices_pass_through_the_encoder_once(rng, monkeypatch):
    model = build("bilstm")
    slices = rng.normal(size=(3, 5, *SHAPE)).astype("float32")
    seen, stack = [], model.encoder.backbone.layer
    call = stack.call
    monkeypatch.setattr(stack, "call", lambda x, **kwargs: seen.append(len(x)) or call(x))
    model.running({"slices": slices, "lengths": LENGTHS})
    assert seen == [LENGTHS.sum()]
