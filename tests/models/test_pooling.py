"""Aggregators that take no notice of order, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import aggregator
from scipy.special import logsumexp, softmax

from medseq_tf.models.pooling import Pooling

LENGTHS = np.array([5, 1, 3], "int32")
ORDER_BLIND = {
    "mean": {},
    "max": {},
    "sum": {},
    "log_sum_exp": {"sharpness": 3.0},
    "attention": {"units": 4, "dropout": 0.5},
    "transformer": {"units": 8, "heads": 2, "feed_forward": 6},
}


@pytest.fixture
def features(rng):
    return rng.normal(size=(3, 5, 6)).astype("float32")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", lambda x: x.mean(0)),
        ("max", lambda x: x.max(0)),
        ("sum", lambda x: x.sum(0)),
        ("log_sum_exp", lambda x: (logsumexp(3 * x, axis=0) - np.log(len(x))) / 3),
    ],
)
def test_pooling_is_that_of_the_real_slices(features, mode, expected):
    got = np.asarray(Pooling(mode, 3.0)(features, LENGTHS))
    for study, length, vector in zip(features, LENGTHS, got, strict=True):
        np.testing.assert_allclose(vector, expected(study[:length]), atol=1e-6)


def test_log_sum_exp_does_not_overflow(features):
    got = Pooling("log_sum_exp", 50.0)(features * 1e4, LENGTHS)
    np.testing.assert_allclose(got, Pooling("max")(features * 1e4, LENGTHS), rtol=1e-4)


def test_gated_attention_is_the_equation_of_the_paper(features):
    layer = aggregator("attention", units=4)
    vectors = np.asarray(layer(features, LENGTHS))
    weights = np.asarray(layer.attention_weights(features, LENGTHS))
    kernel, bias, w = (np.asarray(v) for v in layer.get_weights())
    for study, length, vector, weight in zip(features, LENGTHS, vectors, weights, strict=True):
        h = study[:length]
        v, u = np.split(h @ kernel + bias, 2, axis=1)
        a = softmax((np.tanh(v) / (1 + np.exp(-u))) @ w[:, 0])
        np.testing.assert_allclose(weight[:length], a, atol=1e-6)
        assert not weight[length:].any()
        np.testing.assert_allclose(vector, a @ h, atol=1e-6)


@pytest.mark.parametrize("name", ORDER_BLIND)
def test_order_changes_nothing(features, name, rng):
    layer = aggregator(name, **ORDER_BLIND[name])
    shuffled = features.copy()
    for study, length in zip(shuffled, LENGTHS, strict=True):
        study[:length] = study[rng.permutation(length)]
    np.testing.assert_allclose(layer(shuffled, LENGTHS), layer(features, LENGTHS), atol=1e-5)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode is one of mean, max, sum, log_sum_exp"):
        Pooling("median")
