"""Layers whose configuration is what their constructor was given."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from model_checks import check_round_trip

from medseq_tf.layers import Layer
from medseq_tf.layers.layer import check_choice, dense


@keras.saving.register_keras_serializable(package="tests")
class Scaled(Layer):
    def __init__(self, inner, factor, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner
        self.factor = factor

    def build(self, inputs_shape):
        if not self.inner.built:  # a loaded layer comes built
            self.inner.build(inputs_shape)

    def call(self, inputs):
        return self.factor * self.inner(inputs)


@keras.saving.register_keras_serializable(package="tests")
class Halved(Scaled):
    """It has the constructor of its parent."""

    def call(self, inputs):
        return super().call(inputs) / 2


@pytest.mark.parametrize("kind", [Scaled, Halved])
def test_a_layer_within_is_read_back_with_it(rng, kind):
    layer = kind(dense(3, 1, "inner", "tanh"), 0.7, dtype="mixed_bfloat16", name="outer")
    check_round_trip(layer, rng.normal(size=(2, 4)).astype("float32"))
    copy = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    )
    assert (copy.name, copy.factor, copy.inner.units) == ("outer", 0.7, 3)
    assert copy.dtype_policy == layer.dtype_policy


def test_a_choice_is_checked():
    check_choice("mode", "mean", ("mean", "max"))
    with pytest.raises(ValueError, match="mode is one of mean, max, got 'sum'"):
        check_choice("mode", "sum", ("mean", "max"))


def test_a_dense_layer_is_drawn_by_its_seed():
    first, again, other = (dense(3, seed, "dense") for seed in (1, 1, 2))
    for layer in (first, again, other):
        layer.build((None, 4))
    np.testing.assert_array_equal(first.kernel, again.kernel)
    assert (np.asarray(first.kernel) != np.asarray(other.kernel)).all()
