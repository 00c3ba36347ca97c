"""The loss against plain NumPy in float64, and what unknown labels do to it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import losses
from medseq_tf.models.head import log_odds


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


# ------------------------------------------------------------------------------------- classes

WEIGHTS = [2.0, 0.5, 1.0, 3.0]


@pytest.fixture
def of_classes(rng):
    """One-hot classes (9, 4), the numbers they stand for, and what a last layer gives."""
    numbers = np.array([0, 1, 2, 3, 1, 1, 0, 2, 3])
    return np.eye(4, dtype="float32")[numbers], numbers, rng.normal(0, 3, (9, 4)).astype("float32")


def class_reference(targets, scores, weights=1.0, gamma=0.0):
    log_p = log_softmax(scores.astype("float64"), axis=-1)
    return -(targets * weights * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_classes_is_the_formula(of_classes, gamma, smoothing):
    classes, _, scores = of_classes
    loss = losses.ClassLoss(WEIGHTS, gamma, smoothing)
    found, known = loss.elementwise(classes, log_odds(scores))
    expected = class_reference(classes * (1 - smoothing) + smoothing / 4, scores, WEIGHTS, gamma)
    assert found.shape == known.shape == (9, 1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=2e-5, atol=1e-6)
    assert float(loss(classes, log_odds(scores))) == pytest.approx(expected.mean(), rel=1e-5)


def test_unweighted_it_is_the_log_loss_of_scikit_learn_and_keras(of_classes):
    classes, numbers, scores = of_classes
    found = float(losses.ClassLoss()(classes, log_odds(scores)))
    assert found == pytest.approx(log_loss(numbers, softmax(scores, axis=1)), rel=1e-5)
    smooth = float(losses.ClassLoss(label_smoothing=0.1)(classes, log_odds(scores)))
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    assert smooth == pytest.approx(float(keras_loss(classes, scores)), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_pytorch(of_classes, smoothing):
    """But for the mean: PyTorch divides by the sum of the studies' weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    classes, numbers, scores = of_classes
    theirs = torch.tensor(scores, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(numbers), torch.tensor(WEIGHTS), reduction="none",
        label_smoothing=smoothing,
    )  # fmt: skip
    expected.sum().backward()
    ours = tf.Variable(scores)
    with tf.GradientTape() as tape:
        found, _ = losses.ClassLoss(WEIGHTS, 0.0, smoothing).elementwise(classes, log_odds(ours))
        total = tf.reduce_sum(found)
    np.testing.assert_allclose(found[:, 0], expected.detach().numpy(), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, ours), theirs.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_gradient_in_the_scores_is_the_softmax_less_the_class(of_classes, scale):
    classes, numbers, scores = of_classes
    scores = scores * scale
    variable = tf.Variable(scores)
    with tf.GradientTape() as tape:
        found, _ = losses.ClassLoss(WEIGHTS).elementwise(classes, log_odds(variable))
        total = tf.reduce_sum(found)
    expected = np.array(WEIGHTS)[numbers, None] * (softmax(scores.astype(float), 1) - classes)
    np.testing.assert_allclose(tape.gradient(total, variable), expected, atol=1e-5)


def test_an_unknown_class_has_no_loss_and_no_gradient(of_classes):
    classes, _, scores = of_classes
    classes[[2, 5]] = np.nan
    known = np.isfinite(classes).all(axis=1)
    variable = tf.Variable(scores)
    loss = losses.ClassLoss(WEIGHTS, gamma=1.0, label_smoothing=0.1)
    with tf.GradientTape() as tape:
        elements, counted = loss.elementwise(classes, log_odds(variable))
        total = tf.reduce_sum(elements)
    gradient = tape.gradient(total, variable).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()
    np.testing.assert_array_equal(counted[:, 0], known)
    alone, _ = loss.elementwise(classes[known], log_odds(scores[known]))
    assert float(total) == pytest.approx(float(tf.reduce_sum(alone)), rel=1e-6)


def test_sure_classes_stay_finite():
    loss = losses.ClassLoss(gamma=2.0)
    sure = log_odds(np.float32([[500, 0, -500], [-500, 0, 500]]))
    found, _ = loss.elementwise(np.float32([[1, 0, 0], [1, 0, 0]]), sure)
    np.testing.assert_allclose(found[:, 0], [0, 1000], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_order_of_the_classes_does_not_matter(of_classes, gamma):
    classes, _, scores = of_classes
    order = [3, 1, 0, 2]
    weights = np.array(WEIGHTS)
    first = losses.ClassLoss(WEIGHTS, gamma, 0.1)(classes, log_odds(scores))
    second = losses.ClassLoss(weights[order].tolist(), gamma, 0.1)(
        classes[:, order], log_odds(scores[:, order])
    )
    assert float(first) == pytest.approx(float(second), rel=1e-6)


def test_balanced_weights_of_classes_are_those_of_scikit_learn():
    numbers = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    classes = np.concatenate([np.eye(3)[numbers], np.full((2, 3), np.nan)])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=numbers)
    np.testing.assert_allclose(losses.class_weights(classes, "balanced"), expected)
    without = np.insert(classes, 1, np.where(np.isnan(classes[:, 0]), np.nan, 0), axis=1)
    np.testing.assert_allclose(
        losses.class_weights(without, "balanced"), np.insert(expected, 1, 1.0)
    )


def test_other_weights_of_classes():
    classes = np.eye(3)[[0, 0, 0, 0, 1, 1, 2, 2]]
    np.testing.assert_allclose(losses.class_weights(classes, "chexnet"), [0.5, 0.75, 0.75])
    np.testing.assert_allclose(losses.class_weights(classes, "none"), 1)
    np.testing.assert_allclose(losses.class_weights(classes, [3.0, 1.0, 2.0]), [3, 1, 2])
    for weights in ("none", "chexnet", "balanced"):
        alone = losses.class_weights(classes[:4], weights)
        np.testing.assert_allclose(alone, 1, err_msg="one class alone")
        np.testing.assert_allclose(losses.class_weights(np.full((2, 3), np.nan), weights), 1)


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
def test_a_recipe_names_the_loss_of_classes(of_classes, outputs):
    classes, _, scores = of_classes
    settings = recipes.Loss(name="focal", weights=WEIGHTS, label_smoothing=0.1, gamma=1.5)
    loss = losses.build(settings, classes, outputs)
    assert isinstance(loss, losses.ClassLoss)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    assert float(again(classes, scores)) == float(loss(classes, scores))
    assert losses.build(recipes.Loss(gamma=1.5), classes, outputs).gamma == 0
    with pytest.raises(
        InputError, match="has 1 weights, the data set 4 classes; give one weight a"
    ):
        losses.build(recipes.Loss(weights=[1.0]), classes, outputs)


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
