"""The loss against plain NumPy in float64, and what unknown labels do to it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.models import losses


@pytest.fixture
def batch(rng):
    labels = (rng.random((7, 3)) < 0.4).astype(np.float32)
    return labels, rng.normal(0, 3, (7, 3)).astype(np.float32)


def reference(labels, logits, positive=1.0, negative=1.0, gamma=0.0):
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -positive * labels * (1 - probability) ** gamma * np.log(probability) - negative * (
        1 - labels
    ) * probability**gamma * np.log(1 - probability)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_values_are_the_formula(batch, gamma):
    labels, logits = batch
    loss = losses.LabelLoss([2.0, 0.5, 1.0], [1.0, 3.0, 0.1], gamma)
    found, known = loss.elementwise(labels, logits)
    expected = reference(labels, logits, np.array([2, 0.5, 1]), np.array([1, 3, 0.1]), gamma)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_array_equal(known, 1)
    assert float(loss(labels, logits)) == pytest.approx(expected.mean(), rel=1e-5)


def test_unweighted_it_is_keras_cross_entropy(batch):
    labels, logits = batch
    expected = keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)
    assert float(losses.LabelLoss()(labels, logits)) == pytest.approx(float(expected), rel=1e-6)


def test_label_smoothing_is_keras_label_smoothing(batch):
    labels, logits = batch
    expected = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    found = losses.LabelLoss(label_smoothing=0.2)(labels, logits)
    assert float(found) == pytest.approx(float(expected(labels, logits)), rel=1e-6)


def test_unknown_labels_have_no_loss_and_no_gradient(batch):
    labels, logits = batch
    labels[2, 1] = labels[5] = np.nan
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        elements, known = losses.LabelLoss(gamma=1.0).elementwise(labels, variable)
        total = tf.reduce_sum(elements)
    gradient = tape.gradient(total, variable).numpy()
    unknown = np.isnan(labels)
    assert np.isfinite(gradient).all()
    assert (gradient[unknown] == 0).all()
    assert (gradient[~unknown] != 0).all()
    np.testing.assert_array_equal(known, ~unknown)
    assert np.isfinite(float(losses.LabelLoss()(labels, logits)))


def test_extreme_logits_stay_finite():
    loss = losses.LabelLoss(gamma=2.0)
    found, _ = loss.elementwise(np.float32([[1, 0]]), np.float32([[-500, 500]]))
    np.testing.assert_allclose(found, [[500, 500]])


def test_chexnet_weights_are_the_other_class_share_by_label():
    labels = np.array([[1, 0], [0, np.nan], [0, 1], [0, 0]], float)
    positive, negative = losses.label_weights(labels, "chexnet")
    np.testing.assert_allclose(positive, [3 / 4, 2 / 3])
    np.testing.assert_allclose(negative, [1 / 4, 1 / 3])


def test_other_weights():
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], float)
    np.testing.assert_allclose(losses.label_weights(labels, "balanced")[0], [3, 1])
    np.testing.assert_allclose(losses.label_weights(labels, "none"), np.ones((2, 2)))
    np.testing.assert_allclose(losses.label_weights(labels, [2.0, 5.0])[0], [2, 5])


def test_config_keeps_every_setting(batch):
    labels, logits = batch
    loss = losses.build(
        recipes.Loss(name="focal", weights=[2.0, 3.0, 4.0], label_smoothing=0.1, gamma=1.5), labels
    )
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    assert float(again(labels, logits)) == float(loss(labels, logits))


# ------------------------------------------------------------------------------------- pixels


@pytest.fixture
def masks(rng):
    """Masks and logits (2, 3, 4, 4); the second study's last slice is unknown."""
    masks = (rng.random((2, 3, 4, 4)) < 0.3).astype(np.float32)
    masks[1, 2, 0, 0] = np.nan
    return masks, rng.normal(0, 2, masks.shape).astype(np.float32)


@pytest.mark.parametrize("gamma", [0.0, 1.1])
def test_pixel_loss_is_cross_entropy_by_slice_and_dice_of_the_batch(masks, gamma):
    masks, logits = masks
    found, known = losses.PixelLoss(gamma)(masks, logits), ~np.isnan(masks).any(axis=(2, 3))
    truth, scores = masks[known], logits[known]
    probability = 1 / (1 + np.exp(-scores.astype(float)))
    dice = (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    expected = reference(truth, scores, gamma=gamma).mean(axis=(1, 2)) + 1 - dice
    by_slice, counted = losses.PixelLoss(gamma).elementwise(masks, logits)
    np.testing.assert_allclose(np.asarray(by_slice)[known], expected, rtol=1e-4)
    np.testing.assert_array_equal(counted, known)
    assert float(found) == pytest.approx((expected[:3].mean() + expected[3:].mean()) / 2, rel=1e-4)


def test_an_unknown_mask_has_no_loss_and_no_gradient(masks):
    masks, logits = masks
    logits = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(losses.PixelLoss().elementwise(masks, logits)[0])
    gradient = tape.gradient(total, logits).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[1, 2].any()
    assert gradient[0, 0].all()


def test_no_lesion_and_none_found_is_no_loss():
    nothing = np.zeros((1, 2, 4, 4), np.float32)
    assert float(losses.PixelLoss()(nothing, nothing - 30)) == pytest.approx(0, abs=1e-6)
    false = nothing - 30
    false[0, 0, 0, :2] = 30
    assert float(losses.PixelLoss()(nothing, false)) > 0.5


def test_a_batch_without_lesion_has_the_cross_entropy_alone(rng):
    nothing = np.zeros((2, 3, 4, 4), np.float32)
    logits = rng.normal(0, 2, nothing.shape).astype(np.float32)
    found = float(losses.PixelLoss()(nothing, logits))
    assert found == pytest.approx(reference(nothing, logits).mean(), rel=1e-5)


def test_a_recipe_names_the_pixel_loss():
    labels = np.zeros((3, 1))
    focal = losses.build(recipes.Loss(name="dice_focal", gamma=1.5), labels)
    plain = losses.build(recipes.Loss(name="dice_cross_entropy", gamma=1.5), labels)
    assert isinstance(focal, losses.PixelLoss)
    assert (focal.gamma, plain.gamma) == (1.5, 0.0)
    assert losses.PixelLoss.from_config(focal.get_config()).gamma == 1.5
