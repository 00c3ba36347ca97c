"""Paper 2's presets: their weights, counted layer by layer, and their settings."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from medseq_tf import models
from medseq_tf import recipe as recipes


def convolution(side, inputs, outputs, bias=True):
    return side * side * inputs * outputs + bias * outputs


def dense(inputs, outputs):
    return inputs * outputs + outputs


def lstm(inputs, units):
    """Four gates, each of the input, of the state and with a bias."""
    return 4 * (inputs * units + units * units + units)


# VGG19 (Simonyan and Zisserman 2015, table 1, column E) up to fc2: 16 convolutions of 3 x 3, whose
# pictures of 224 pixels are halved 5 times, then two dense layers.
VGG19_TO_FC2 = (
    convolution(3, 3, 64)
    + convolution(3, 64, 64)
    + convolution(3, 64, 128)
    + convolution(3, 128, 128)
    + convolution(3, 128, 256)
    + 3 * convolution(3, 256, 256)
    + convolution(3, 256, 512)
    + 3 * convolution(3, 512, 512)
    + 4 * convolution(3, 512, 512)
    + dense(7 * 7 * 512, 4096)
    + dense(4096, 4096)
)
BETWEEN = dense(4096, 512) + dense(512, 512)


def scale_and_offset(channels):
    """The trainable weights of a batch normalisation; it has as many moving statistics."""
    return 2 * channels


def dense_layer(inputs):
    """(convolutions, normalised channels) of a layer of DenseNet: 1 x 1 to 128, 3 x 3 to 32."""
    return convolution(1, inputs, 128, False) + convolution(3, 128, 32, False), inputs + 128


def densenet121():
    """(convolutions, normalised channels) of the first 50 layers of Keras's list, and of the rest.

    Huang et al. 2017, table 1: a convolution of 7 x 7, four blocks of 6, 12, 24 and 16 layers with
    growth 32, transitions that halve the channels, one last normalisation. The list begins with
    input, padding, convolution, normalisation, activation, padding, pooling (0 to 6), has 7 for
    each layer of the first block (7 to 48), and as number 49 the normalisation of the transition.
    """
    first, rest = np.zeros(2, int), np.zeros(2, int)
    first += (convolution(7, 3, 64, False), 64)
    channels = 64
    for number, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            (first if number == 0 else rest)[:] += dense_layer(channels)
            channels += 32
        if number == 3:
            rest += (0, channels)
        else:  # a transition: normalisation, then a convolution of 1 x 1
            (first if number == 0 else rest)[:] += (0, channels)
            rest += (convolution(1, channels, channels // 2, False), 0)
            channels //= 2
    assert channels == 1024
    return first, rest


def count(weights):
    return sum(int(np.prod(w.shape)) for w in weights)


def build(preset, labels):
    recipe = recipes.load(preset, ["model.encoder.weights=none"])
    return models.build(recipe.model, (recipe.input.size,) * 2 + (1,), labels, recipe.seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "recurrent"),
    [
        ("vgg19_lstm", lstm(512, 600) + dense(600, 1)),
        ("vgg19_bilstm", 2 * lstm(512, 600) + dense(1200, 1)),
    ],
)
def test_weights_of_vgg19_with_an_lstm(preset, recurrent):
    model = build(preset, labels=1)
    assert count(model.trainable_weights) == BETWEEN + recurrent
    assert count(model.non_trainable_weights) == VGG19_TO_FC2 == 139_570_240
    assert {"vgg19_lstm": 5_032_121, "vgg19_bilstm": 7_703_921}[preset] == BETWEEN + recurrent
    slices = np.random.default_rng(0).uniform(size=(1, 2, 224, 224, 1)).astype("float32")
    features = np.asarray(model.extract(slices, np.array([2])))
    assert features.shape == (1, 2, 4096)
    if preset == "vgg19_lstm":
        # The network itself, with its last layer.
        itself = keras.applications.VGG19(weights=None)
        for ours, theirs in zip(model.encoder.network.model.layers, itself.layers, strict=False):
            theirs.set_weights(ours.get_weights())
        to_fc2 = keras.Model(itself.input, itself.get_layer("fc2").output)
        pictures = keras.applications.vgg19.preprocess_input(np.repeat(255 * slices[0], 3, -1))
        np.testing.assert_allclose(features[0], to_fc2(pictures), rtol=1e-3, atol=1e-4)


def test_weights_of_densenet121_with_an_lstm():
    model = build("densenet121_lstm", labels=5)
    (first, first_channels), (rest, rest_channels) = densenet121()
    added = dense(1024, 512) + lstm(512, 512) + dense(512, 5)
    trainable = rest + scale_and_offset(rest_channels) + added
    frozen = first + scale_and_offset(first_channels)
    moving = 2 * (first_channels + rest_channels)
    assert count(model.trainable_weights) == trainable == 9_235_333
    assert count(model.non_trainable_weights) == frozen + moving
    statistics = [w for w in model.non_trainable_weights if "moving" in w.path]
    assert count(statistics) == moving == 83_648
    assert frozen == 345_088


def test_settings_of_the_paper():
    hemorrhage, several, both_ways = (
        recipes.load(name) for name in ("vgg19_lstm", "densenet121_lstm", "vgg19_bilstm")
    )
    for recipe in (hemorrhage, several):
        assert (recipe.fit.batch_size, recipe.fit.accumulate) == (1, 8)
        assert recipe.model.aggregator.readout == "last"
    for recipe in (hemorrhage, several, both_ways):
        sequence = recipe.sequence
        assert (sequence.policy, sequence.length, sequence.over) == ("all", 50, "leave_out")
        assert (sequence.order, sequence.evaluation.policy) == ("shuffled", "all")
        assert recipe.augment.rotation.degrees == 10
        assert recipe.augment.resized_crop.scale == (0.4, 1.0)
        assert recipe.input.channels == 1
        assert recipe.fit.patience is None
    assert (hemorrhage.fit.epochs, several.fit.epochs) == (120, 300)
    assert (hemorrhage.loss.weights, several.loss.weights) == ("chexnet", "none")
    assert hemorrhage.uses_features
    assert not several.uses_features
    assert both_ways.fit.batch_size == 8
    assert both_ways.uses_features
    assert (both_ways.model.aggregator.bidirectional, both_ways.model.aggregator.readout) == (
        True,
        "concat",
    )
    changed = {
        key for key, value in both_ways.flat().items() if value != hemorrhage.flat().get(key)
    }
    assert changed == {
        "name",
        "description",
        "model.aggregator.bidirectional",
        "model.aggregator.readout",
        "fit.batch_size",
        "fit.accumulate",
    }
