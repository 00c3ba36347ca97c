"""The transformer over slices, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import aggregator, check_padding, check_round_trip
from scipy.special import softmax

from medseq_tf.models.transformer import SelfAttention, TransformerBlock

LENGTHS = np.array([5, 1, 3], "int32")
SMALL = {"units": 8, "heads": 2, "feed_forward": 6}


@pytest.fixture
def features(rng):
    return rng.normal(size=(3, 5, 6)).astype("float32")


def test_positions_tell_the_order(features):
    layer = aggregator("transformer", **SMALL, positions=True)
    forward = np.asarray(layer(features[:1], LENGTHS[:1]))
    check_padding(layer, features, LENGTHS)
    backward = np.asarray(layer(features[:1, ::-1], LENGTHS[:1]))
    assert np.abs(forward - backward).max() > 1e-3


def normalise(x, gamma, beta):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * gamma + beta


def test_a_block_is_the_equation_of_the_paper(features):
    """One study, all in NumPy: pre-LN, scaled dot products by head, exact GELU."""
    from scipy.stats import norm

    layer = aggregator("transformer", layers=1, **SMALL)
    got = np.asarray(layer(features, LENGTHS))[2]
    weights = {v.path.split("/", 1)[1]: np.asarray(v, float) for v in layer.weights}
    block = {k.split("/", 1)[1]: v for k, v in weights.items() if k.startswith("block_1")}

    def dense(x, name, of=block):
        return x @ of[f"{name}/kernel"] + of[f"{name}/bias"]

    x = dense(features[2, :3].astype(float), "projection", weights)
    y = normalise(x, block["norm_1/gamma"], block["norm_1/beta"])
    q, k, v = (dense(y, f"attention/{name}") for name in ("query", "key", "value"))
    heads = [
        softmax(q[:, h] @ k[:, h].T / np.sqrt(4), axis=1) @ v[:, h]
        for h in (slice(0, 4), slice(4, 8))
    ]
    x = x + dense(np.concatenate(heads, 1), "attention/output")
    y = dense(normalise(x, block["norm_2/gamma"], block["norm_2/beta"]), "hidden")
    x = x + dense(y * norm.cdf(y), "dense")
    expected = normalise(x, weights["norm/gamma"], weights["norm/beta"]).mean(0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_heads_have_to_share_the_units():
    with pytest.raises(ValueError, match="multiple of heads"):
        SelfAttention(10, heads=4)


def test_query_and_key_do_not_start_alike(features):
    layer = aggregator("transformer", **SMALL)
    layer(features, LENGTHS)
    query, key, value = (p.kernel.numpy() for p in layer.blocks[0].attention.projections)
    assert np.abs(query - key).max() > 0.1
    assert np.abs(query - value).max() > 0.1


def test_round_trips_of_its_parts(rng):
    vectors = rng.normal(size=(3, 5, 6)).astype("float32")
    check_round_trip(SelfAttention(6, 3, seed=2), vectors, LENGTHS)
    check_round_trip(TransformerBlock(6, 2, 5, 0.3, seed=2), vectors, LENGTHS)
