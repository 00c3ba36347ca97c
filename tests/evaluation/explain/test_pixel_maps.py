"""Maps of pixels: they add up, are those known by hand, and leave the model as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from direct_predictions import logits, probability
from small_run import SMALL

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.evaluation.explain.graphs import ModelGraphs, last_feature_maps
from medseq_tf.evaluation.explain.pixel_maps import grad_cam, integrated_gradients


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("shared", 64),
        ("per position", 64),
        ("small frozen", 64),
        pytest.param("frozen", 512, marks=pytest.mark.slow),
    ],
)
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(shown_studies, kind, steps):
    study = shown_studies(kind)
    sequence = study.sequences[0]
    heat, missed = integrated_gradients(study, 0, steps=steps)
    black = tf.zeros_like(study.inputs) + study.black
    ends = [logits(study, tf.gather(part, sequence))[0] for part in (study.inputs, black)]
    difference = float(ends[0] - ends[1])
    assert np.nansum(heat) == pytest.approx(difference, rel=0.1, abs=2e-3)
    assert missed == pytest.approx(abs(np.nansum(heat) - difference) / abs(difference), abs=0.02)
    assert np.isnan(np.delete(heat, sequence, axis=0)).all()


@pytest.mark.parametrize("kind", ["shared", "per position", "frozen"])
def test_every_slice_shown_has_a_heat_map(shown_studies, kind):
    study = shown_studies(kind)
    heat = grad_cam(study, 0)
    assert heat.shape == tuple(study.inputs.shape[:3])
    shown = heat[study.sequences[0]]
    assert np.isfinite(shown).all()
    assert (shown >= 0).all()
    assert np.isnan(np.delete(heat, study.sequences[0], axis=0)).all()


def test_grad_cam_of_a_linear_model_is_its_weighted_maps(shown_studies):
    """Average pooling, mean over slices, one linear layer: the weights are known by hand."""
    overrides = ("model.encoder.pooling=average", "model.aggregator.name=mean",
                 "model.head.units=[]")  # fmt: skip
    base = tuple(s for s in SMALL if "aggregator" not in s and "head" not in s)
    recipe = recipes.load(recipes.Experiment(), (*base, *overrides))
    model = models.build(recipe.model, (32, 32, 1), labels=1, seed=2)
    images = np.random.default_rng(0).random((4, 32, 32, 1)).astype(np.float32)
    network = ModelGraphs(model, recipe)
    maps, gradient = network.maps_and_gradient(images, 0, {})
    kernel = model.head.logits.kernel.numpy()[:, 0]
    places = maps.shape[1] * maps.shape[2]
    expected = np.broadcast_to(kernel / (4 * places), maps.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    pooled = maps.numpy().mean(axis=(0, 1, 2)) @ kernel + model.head.logits.bias.numpy()
    np.testing.assert_allclose(network.whole_logits(images[None], {})[0], pooled, atol=1e-5)


def test_the_maps_of_a_keras_network_are_those_of_its_last_convolution(shown_studies):
    study = shown_studies("frozen")
    network = study.model.encoder.network
    images = tf.gather(study.inputs, study.sequences[0])
    maps, _ = study.graphs.maps_and_gradient(images, 0, {})
    layer = last_feature_maps(study.model.encoder)
    inside = keras.Model(network.model.inputs, [layer.output, network.model.output])
    expected, _ = inside(network.preprocess(255.0 * tf.repeat(images, 3, axis=-1)), training=False)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)
    assert maps.shape[1] > 1


def test_the_model_is_as_before(shown_studies):
    """What records the maps leaves no trace in the layers."""
    study = shown_studies("shared")
    layer = last_feature_maps(study.model.encoder)
    before = probability(study, study.sequences[0])
    grad_cam(study, 0)
    assert "call" not in vars(layer)
    np.testing.assert_array_equal(probability(study, study.sequences[0]), before)
