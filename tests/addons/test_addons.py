"""What replaced each TensorFlow addon, against the addon's own numbers (make_golden.py)."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import cohen_kappa_score

from medseq_tf import recipe as recipes
from medseq_tf.evaluation import metrics
from medseq_tf.input import augment
from medseq_tf.models.losses import LabelLoss
from medseq_tf.training.updates import build_optimizer


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).with_name("golden.npz"), allow_pickle=False) as file:
        return dict(file)


def test_adamw(golden):
    """The addon subtracts decay * w, Keras and the paper rate * decay * w."""
    rate, decay = 1e-2, 1e-4
    settings = recipes.Optimizer(
        name="adamw", learning_rate=rate, weight_decay=decay / rate, epsilon=1e-8
    )
    optimizer = build_optimizer(settings)
    variable = keras.Variable(golden["adamw.start"])
    for gradient, expected in zip(golden["adamw.gradients"], golden["adamw.steps"], strict=True):
        optimizer.apply([tf.constant(gradient)], [variable])
        np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)


def test_focal_loss(golden):
    loss = LabelLoss(positive_weight=0.25, negative_weight=0.75, gamma=2.0)
    losses, known = loss.elementwise(golden["focal.labels"], golden["focal.logits"])
    np.testing.assert_allclose(losses, golden["focal.losses"], atol=1e-6)
    assert np.asarray(known).all()


def test_f1_of_two_classes(golden):
    counts = metrics.confusion(
        golden["f1.truth"].astype(float), golden["f1.probability"].astype(float), 0.5
    )
    assert counts.f1_macro == pytest.approx(golden["f1.macro"], abs=1e-6)


def test_f1_by_label(golden):
    for label, expected in enumerate(golden["f1.by_label"]):
        counts = metrics.confusion(
            golden["f1.labels"][:, label].astype(float),
            golden["f1.probabilities"][:, label].astype(float),
            0.5,
        )
        assert counts.f1 == pytest.approx(expected, abs=1e-6)


def test_weighted_kappa(golden):
    kappa = cohen_kappa_score(golden["kappa.truth"], golden["kappa.called"], weights="quadratic")
    assert kappa == pytest.approx(golden["kappa.kappa"], abs=1e-6)


@pytest.mark.parametrize("size", [11, 13, 15])
def test_gaussian_filter(golden, size):
    """For sizes up to 9 OpenCV, and so ours, takes binomial tables in place of a Gaussian."""
    settings = recipes.GaussianBlur(kernel=(size, size), p=1.0)
    parameters = augment.draw_gaussian_blur(2, tf.constant([1, 2]), settings)
    blurred = augment.AUGMENTATIONS["gaussian_blur"].apply(golden["image.images"], parameters)
    np.testing.assert_allclose(blurred, golden[f"image.blur_{size}"], atol=1e-6)


def test_cutout(golden):
    """The addon is given the centre of the hole, ours the share of the free play before it."""
    side, free = 6, 16 - 6
    centres = np.float32([[5, 9], [8, 4]])
    starts = centres - side / 2
    parameters = {
        "size": tf.constant([side, side]),
        "y": tf.constant((starts[:, :1] + 0.5) / (free + 1)),
        "x": tf.constant((starts[:, 1:] + 0.5) / (free + 1)),
    }
    holes = augment.AUGMENTATIONS["coarse_dropout"].apply(
        tf.constant(golden["image.images"]), parameters
    )
    np.testing.assert_array_equal(holes, golden["image.cutout"])


def test_dense_image_warp(golden):
    """Beyond the border the addon repeats the last pixel and ours mirrors: only pixels whose
    source lies inside are compared."""
    y, x = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    source = np.float32(np.stack([y, x], -1)) - golden["image.flow"]
    warped = augment._sample(
        tf.constant(golden["image.images"]),
        tf.constant(source[..., 0]),
        tf.constant(source[..., 1]),
    )
    inside = ((source >= 0) & (source <= 15)).all(-1)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(
        np.asarray(warped)[inside], golden["image.warped"][inside], atol=2e-6
    )


def test_rotate(golden):
    parameters = {"radians": tf.constant(golden["image.radians"])}
    rotated = augment.AUGMENTATIONS["rotation"].apply(
        tf.constant(golden["image.images"]), parameters
    )
    np.testing.assert_allclose(rotated, golden["image.rotated"], atol=2e-6)


def test_translate(golden):
    """Keras's own affine transform, which takes the way back from output to input."""
    shifts = np.float32([[2.5, -1.0], [-3.0, 0.25]])
    transforms = [[1, 0, -x, 0, 1, -y, 0, 0] for x, y in shifts]
    translated = keras.ops.image.affine_transform(
        golden["image.images"],
        np.float32(transforms),
        interpolation="bilinear",
        fill_mode="constant",
        data_format="channels_last",
    )
    np.testing.assert_allclose(translated, golden["image.translated"], atol=2e-6)
