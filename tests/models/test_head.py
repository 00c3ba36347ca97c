"""From one vector for each study to logits."""

from __future__ import annotations

import numpy as np
from model_checks import check_round_trip

from medseq_tf.models import Head


def test_equals_plain_matrices(rng):
    vectors = rng.normal(size=(3, 6)).astype("float32")
    head = Head(2, units=[5, 4], activation="tanh", dropout=0.2, seed=0)
    logits = head(vectors)
    hidden = vectors.astype("float64")
    for layer in head.hidden:
        hidden = np.tanh(hidden @ np.asarray(layer.kernel) + np.asarray(layer.bias))
    expected = hidden @ np.asarray(head.logits.kernel) + np.asarray(head.logits.bias)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    by_step = head(np.stack([vectors, vectors], axis=1))
    np.testing.assert_allclose(by_step[:, 1], expected, atol=1e-6)


def test_logits_are_float32_in_mixed_precision(rng):
    head = Head(2, [32], "relu", 0.2, dtype="mixed_float16")
    assert head(rng.normal(size=(3, 6)).astype("float16")).dtype == "float32"


def test_dropout_follows_every_hidden_layer(rng):
    head = Head(1, units=[64], activation="relu", dropout=0.5, seed=1)
    vectors = rng.normal(size=(3, 6)).astype("float32")
    assert np.any(head(vectors, training=True) != head(vectors))
    head = Head(1, units=[64], activation="relu", dropout=0.0, seed=1)
    np.testing.assert_array_equal(head(vectors, training=True), head(vectors))


def test_round_trip(rng):
    head = Head(3, units=[5, 4], activation="silu", dropout=0.1, seed=2)
    check_round_trip(head, rng.normal(size=(3, 6)).astype("float32"))
