"""Aggregators that take no notice of order, against NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_checks import aggregator
from scipy.special import logsumexp, softmax

from medseq_tf.models.applications import dtype_policy
from medseq_tf.models.pooling import Pooling, Statistics

LENGTHS = np.array([5, 1, 3], "int32")
ORDER_BLIND = {
    "mean": {},
    "max": {},
    "sum": {},
    "log_sum_exp": {"sharpness": 3.0},
    "statistics": {"of": ["std", "count", "mean"]},
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


STATISTICS = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "std": lambda x: x.std(0),
    "count": lambda x: [len(x)],
}


@pytest.mark.parametrize("of", [["mean", "max", "std"], ["count", "std", "max"], ["std"]])
def test_statistics_are_those_of_the_real_slices_in_the_order_that_is_asked_for(features, of):
    got = np.asarray(aggregator("statistics", of=of)(features, LENGTHS))
    for study, length, vector in zip(features, LENGTHS, got, strict=True):
        expected = np.concatenate([STATISTICS[name](study[:length]) for name in of])
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_features_that_do_not_vary_have_a_deviation_of_0_and_a_finite_gradient(features):
    features[2] = features[2, 0]
    layer = aggregator("statistics", of=["std"])
    with tf.GradientTape() as tape:
        studies = tf.constant(features)
        tape.watch(studies)
        deviations = layer(studies, LENGTHS)
    assert not np.asarray(deviations)[1].any(), "one slice"
    np.testing.assert_allclose(np.asarray(deviations)[2], 0, atol=1e-6)
    gradient = np.asarray(tape.gradient(deviations, studies))
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()


def test_a_deviation_does_not_overflow_in_half_precision(features):
    with dtype_policy(keras.DTypePolicy("mixed_float16")):
        layer = aggregator("statistics", of=["std"])
    got = np.asarray(layer(features * 1e3, LENGTHS), "float32")
    np.testing.assert_allclose(got[0], 1e3 * features[0].std(0), rtol=5e-3)


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
    with pytest.raises(ValueError, match="of is one of mean, max, std, count, got 'median'"):
        Statistics(["mean", "median"])
