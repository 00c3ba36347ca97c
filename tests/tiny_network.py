"""A stand-in for the networks of keras.applications: 6 features of a slice in a millisecond."""

from __future__ import annotations

import keras

from medseq_tf import recipe as recipes
from medseq_tf.models import applications

SETTINGS = (
    "input.size=32",
    "input.mean=0",
    "input.std=1",
    "model.encoder.name=keras_application",
    "model.encoder.network=MobileNetV3Small",  # which takes pictures in 0..255 as they are
    "model.encoder.weights=none",
    "model.encoder.dense=[{units: 5}]",
    "model.aggregator.units=6",
    "model.aggregator.layers=1",
    "model.head.units=[4]",
    "sequence.policy=window",
    "sequence.length=6",
    "fit.epochs=2",
    "fit.batch_size=4",
)


def network(name, output, input_shape, weights=None, seed=None):
    """One convolution and the mean of its maps."""
    slices = keras.Input(input_shape)
    kernel = keras.initializers.RandomNormal(stddev=0.003, seed=seed or 0)
    maps = keras.layers.Conv2D(6, 5, 4, activation="relu", kernel_initializer=kernel)(slices)
    model = keras.Model(slices, keras.layers.GlobalAveragePooling2D()(maps))
    return model, model.layers


def install(monkeypatch=None):
    """Let every recipe's network be this one, for a test or for good."""
    if monkeypatch is None:
        applications.network = network
    else:
        monkeypatch.setattr(applications, "network", network)


def recipe(*overrides):
    return recipes.load(recipes.Experiment(), [*SETTINGS, *overrides])
