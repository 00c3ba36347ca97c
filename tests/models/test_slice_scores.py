"""Slices that are scored one by one: their pool against NumPy, and what training makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from interrupted import killed_after
from model_checks import (
    check_one_trace,
    check_padding,
    check_round_trip,
    fill_padding,
    randomize_moving_statistics,
)
from scipy.special import expit, logit, logsumexp

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.input.batches import training_batches
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import losses
from medseq_tf.models.pooling import SliceScores
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training.loop import Fitter

LENGTHS = np.array([5, 1, 3], "int32")
SHAPE = (16, 16, 1)
POOLINGS = {
    "mean": lambda x: logit(expit(x).mean(0)),
    "max": lambda x: x.max(0),
    "log_sum_exp": lambda x: (logsumexp(2 * x, axis=0) - np.log(len(x))) / 2,
}


@pytest.fixture
def scores(rng):
    return rng.normal(size=(3, 5, 2)).astype("float32")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_pool_is_that_of_the_real_slices(scores, pooling):
    got = np.asarray(SliceScores(pooling, 2.0, "slice")(scores, LENGTHS))
    for study, length, pooled in zip(scores.astype(float), LENGTHS, got, strict=True):
        np.testing.assert_allclose(pooled, POOLINGS[pooling](study[:length]), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_neither_padding_nor_order_changes_anything(scores, pooling, rng):
    layer = SliceScores(pooling, 2.0, "slice")
    check_padding(layer, scores, LENGTHS)
    check_one_trace(layer, 2)
    shuffled = scores.copy()
    for study, length in zip(shuffled, LENGTHS, strict=True):
        study[:length] = study[rng.permutation(length)]
    np.testing.assert_allclose(layer(shuffled, LENGTHS), layer(scores, LENGTHS), atol=1e-5)
    check_round_trip(SliceScores(pooling, 2.0, "study"), scores, LENGTHS)


def test_sure_slices_stay_finite_and_have_a_gradient():
    scores = tf.constant([[[200.0], [150.0], [np.nan]], [[-200.0], [3.0], [0.0]]])
    lengths = np.array([2, 3], "int32")
    with tf.GradientTape() as tape:
        tape.watch(scores)
        pooled = SliceScores("mean", 5.0, "slice")(scores, lengths)
    slopes = tape.gradient(pooled, scores).numpy()
    np.testing.assert_allclose(pooled[0], np.log(2) - np.log(np.exp(-150)), rtol=1e-5)
    np.testing.assert_allclose(pooled[1], logit(expit([-200.0, 3.0, 0.0]).mean()), rtol=1e-5)
    assert np.isfinite(slopes).all()
    assert (slopes[0, :2] >= 0).all()
    assert slopes[0, 2] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "median"}, "pooling is one of mean, max, log_sum_exp, got 'median'"),
        ({"target": "pixel"}, "target is one of slice, study, got 'pixel'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SliceScores(**{"pooling": "mean", "sharpness": 5.0, "target": "slice", **arguments})


# ------------------------------------------------------------------------------------ the model


def build(labels=2, **aggregator):
    settings = recipes.Model(
        encoder={"filters": [3], "kernels": [5], "strides": [2], "paddings": [0], "fsm": None},
        aggregator={"name": "slice_scores", **aggregator},
        head={"units": [4], "dropout": 0.0},
    )
    model = models.build(settings, SHAPE, labels, seed=0)
    randomize_moving_statistics(model)
    return model


@pytest.fixture
def slices(rng):
    return rng.normal(size=(3, 5, *SHAPE)).astype("float32")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_study_is_the_pool_of_its_slices_alone(slices, pooling):
    model = build(pooling=pooling, sharpness=2.0)
    got = np.asarray(model({"slices": slices, "lengths": LENGTHS}))
    for study, length, pooled in zip(slices, LENGTHS, got, strict=True):
        alone = model({"slices": study[:length, None], "lengths": np.ones(length, "int32")})
        expected = POOLINGS[pooling](np.asarray(alone, float))
        np.testing.assert_allclose(pooled, expected, atol=1e-5)
    check_padding(lambda x, n: model({"slices": x, "lengths": n}), slices, LENGTHS)


def test_every_slice_is_trained_on_its_studys_known_labels(slices):
    labels = np.array([[1, np.nan], [0, 1], [0, 0]], "float32")
    padded = fill_padding(slices, LENGTHS, np.random.default_rng(2))
    logits, judged = build().examples({"slices": padded, "lengths": LENGTHS}, labels)
    assert logits.shape == judged.shape == (3, 5, 2)
    for study, length in enumerate(LENGTHS):
        expected = np.broadcast_to(labels[study], (length, 2))
        np.testing.assert_array_equal(judged[study, :length], expected)
        assert np.isnan(judged[study, length:]).all()
    loss = losses.LabelLoss(positive_weight=[3.0, 1.0], negative_weight=[1.0, 2.0])
    elements, known = loss.elementwise(judged, logits)
    total, count = 0.0, 0
    for study, length in enumerate(LENGTHS):
        for p in expit(np.asarray(logits, float))[study, :length]:
            for k, (up, down) in enumerate(((3, 1), (1, 2))):
                if not np.isnan(y := labels[study, k]):
                    total -= up * np.log(p[k]) if y else down * np.log(1 - p[k])
                    count += 1
    assert float(np.sum(known)) == count == 2 * 9 - 5
    np.testing.assert_allclose(np.sum(elements), total, rtol=1e-5)


def gradients(model, slices, lengths, labels):
    with tf.GradientTape() as tape:
        logits, judged = model.examples({"slices": slices, "lengths": lengths}, labels)
        loss = tf.reduce_sum(losses.LabelLoss().elementwise(judged, logits)[0])
    return tape.gradient(loss, model.trainable_variables)


@pytest.mark.parametrize("target", ["slice", "study"])
def test_padding_changes_no_gradient(slices, target):
    labels = np.array([[1, np.nan], [0, 1], [0, 0]], "float32")
    noisy = np.pad(slices, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0)), constant_values=99)
    found = gradients(build(target=target), noisy, LENGTHS, labels)
    expected = gradients(build(target=target), slices, LENGTHS, labels)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_target_study_trains_the_pooled_score(slices):
    model, labels = build(target="study"), np.ones((3, 2), "float32")
    inputs = {"slices": slices, "lengths": LENGTHS}
    logits, judged = model.examples(inputs, labels)
    assert judged is labels
    np.testing.assert_array_equal(logits, build(target="study")(inputs, training=True))


# ------------------------------------------------------------------------------------- training

SPLIT = {"train": np.arange(10), "validation": np.arange(0), "test": np.arange(0)}
SETTINGS = (
    "input.size=16",
    "model.encoder.name=pixels",  # no batch statistics: an update can be written out
    "model.aggregator.name=slice_scores",
    "model.head.units=[3]",
    "model.head.dropout=0",
    "sequence.policy=all",
    "fit.batch_size=3",
    "fit.accumulate=2",
    "fit.epochs=2",
    "optimizer.name=sgd",
    "optimizer.weight_decay=0",
    "optimizer.learning_rate=0.05",
)


def fitter(data, folder, *overrides):
    recipe = recipes.load(recipes.Experiment(), [*SETTINGS, *overrides])
    folder.mkdir(exist_ok=True)
    prepared = Prepared.load(data)
    tracker = Tracker(folder, "x", enabled=False)
    return Fitter(recipe, SliceStore(prepared, recipe), SPLIT, folder, tracker, False)


def test_an_update_is_the_mean_over_all_slices_of_the_group(demo_data, tmp_path):
    made = fitter(demo_data, tmp_path / "a", "fit.epochs=1", "optimizer.beta_1=0")
    other = fitter(demo_data, tmp_path / "b", "fit.epochs=1")
    made.run()
    variables, loss = other.model.trainable_variables, other.loss
    batches = list(training_batches(Prepared.load(demo_data), SPLIT["train"], other.recipe, 0))
    assert len(batches) == 4
    for group in (batches[:2], batches[2:]):
        with tf.GradientTape() as tape:
            total, slices = 0.0, 0
            for inputs, labels in group:
                for study, length, label in zip(*inputs.values(), labels, strict=True):
                    one = {"slices": study[:length, None], "lengths": tf.ones(length, tf.int32)}
                    logits = other.model(one, training=True)
                    total += tf.reduce_sum(loss.call(tf.tile(label[None], (length, 1)), logits))
                    slices += int(length)
        for variable, slope in zip(variables, tape.gradient(total, variables), strict=True):
            variable.assign_sub(0.05 * slope / slices)
    for got, expected in zip(made.model.trainable_variables, variables, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_it_resumes_to_the_same_bits(demo_data, tmp_path, monkeypatch):
    settings = ("fit.checkpoint_minutes=0", "model.head.dropout=0.5")
    whole = fitter(demo_data, tmp_path / "whole", *settings)
    whole.run()
    cut = fitter(demo_data, tmp_path / "cut", *settings)
    with killed_after(monkeypatch, 3):
        cut.run()
    again = fitter(demo_data, tmp_path / "cut", *settings)
    again.run()
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    for got, expected in zip(again.model.variables, whole.model.variables, strict=True):
        np.testing.assert_array_equal(got, expected)
