"""From one vector for each study to logits."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_checks import check_round_trip
from scipy.special import expit, log_softmax, logsumexp

from medseq_tf.models import Head
from medseq_tf.models.head import log_odds


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


# ------------------------------------------------------------------------------------- classes


def head_of(outputs, classes=4, **changes):
    settings = {"units": [5], "activation": "tanh", "dropout": 0.1, "seed": 3, **changes}
    return Head(classes, outputs=outputs, **settings)


def scores(head, vectors):
    """What the last layer gives, before it is made log-odds."""
    for layer in head.hidden:
        vectors = layer(vectors)
    return np.asarray(head.logits(vectors), "float64")


@pytest.mark.parametrize("classes", [2, 4, 100])
def test_the_sigmoids_of_classes_are_the_softmax(rng, classes):
    head, vectors = head_of("classes", classes), rng.normal(size=(3, 7, 6)).astype("float32")
    logits = np.asarray(head(vectors), "float64")
    assert logits.shape == head.compute_output_shape(vectors.shape) == (3, 7, classes)
    expected = np.exp(log_softmax(scores(head, vectors), axis=-1))
    np.testing.assert_allclose(expit(logits), expected, rtol=2e-6)
    np.testing.assert_allclose(expit(logits).sum(-1), 1, rtol=1e-6)


def test_log_odds_keep_every_digit_of_a_sure_class(rng):
    sure = np.array([[100, 0, -100], [0, -300, 0.5], [1e4, 1e4, 0], [-80, -80, -80]], "float32")
    found = np.asarray(log_odds(sure))
    for row, logits in zip(sure.astype("float64"), found, strict=True):
        others = [logsumexp(np.delete(row, k)) for k in range(3)]
        np.testing.assert_allclose(logits, row - others, rtol=1e-6, atol=1e-6)
    shifted = rng.normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(log_odds(shifted + 8), log_odds(shifted), atol=1e-5)


def test_two_classes_are_one_yes_or_no(rng):
    logits = np.asarray(head_of("classes", 2)(rng.normal(size=(9, 6)).astype("float32")))
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1], atol=1e-6)


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
def test_classes_are_float32_in_mixed_precision(rng, outputs):
    vectors = rng.normal(size=(64, 6))
    for policy, tolerance in [("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)]:
        exact, mixed = head_of(outputs), head_of(outputs, dtype=policy)
        expected = expit(np.asarray(exact(vectors.astype("float32"))))
        logits = mixed(vectors.astype(mixed.compute_dtype))
        assert logits.dtype == "float32"
        np.testing.assert_allclose(expit(np.asarray(logits)).sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(expit(np.asarray(logits)), expected, atol=tolerance)


def test_a_permutation_of_the_last_weights_permutes_the_classes(rng):
    head, vectors = head_of("classes"), rng.normal(size=(8, 6)).astype("float32")
    before, order = np.asarray(head(vectors)), [2, 0, 3, 1]
    kernel, bias = head.logits.get_weights()
    head.logits.set_weights([kernel[:, order], bias[order]])
    np.testing.assert_allclose(head(vectors), before[:, order], atol=1e-6)


@pytest.mark.parametrize("outputs", ["classes", "ordered"])
def test_classes_round_trip(rng, outputs):
    check_round_trip(head_of(outputs), rng.normal(size=(3, 6)).astype("float32"))


def test_a_head_of_an_earlier_file_is_one_of_labels():
    config = Head(2, [3], "relu", 0.0).get_config()
    del config["outputs"]
    assert Head.from_config(config).outputs == "labels"


def test_a_class_has_another_one_beside_it():
    with pytest.raises(ValueError, match="1 class: there are at least 2"):
        head_of("classes", 1)
    with pytest.raises(ValueError, match="outputs is one of labels, classes, ordered"):
        head_of("grades")


# ------------------------------------------------------------------------------- ordered classes


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_ordered_classes_are_the_cumulative_logit_model(rng, classes):
    head, vectors = head_of("ordered", classes), rng.normal(size=(40, 6)).astype("float32")
    logits = head(vectors)
    np.testing.assert_allclose(expit(np.asarray(head.cutpoints)), np.arange(1, classes) / classes,
                               rtol=1e-6)  # fmt: skip
    head.lowest.assign([-1.3])
    head.steps.assign(rng.normal(0, 2, classes - 2))
    logits, score = np.asarray(head(vectors), "float64"), scores(head, vectors)
    cutpoints = np.asarray(head.cutpoints, "float64")
    assert (np.diff(cutpoints) > 0).all()
    below = np.concatenate([np.zeros((40, 1)), expit(cutpoints - score), np.ones((40, 1))], axis=1)
    np.testing.assert_allclose(expit(logits), np.diff(below, axis=1), atol=1e-6)
    order = np.argsort(score[:, 0])
    expected_grade = (expit(logits) * np.arange(classes)).sum(-1)[order]
    assert (np.diff(expected_grade) > -1e-6).all(), "the higher the score, the higher the class"


def test_ordered_classes_stay_finite_with_a_gradient_far_out():
    """Far from every cutpoint, and with cutpoints so close that float32 cannot tell them apart."""
    head = head_of("ordered", 4, units=[])
    vectors = tf.constant([[-100.0], [100.0], [0.3], [1e4]])
    head(vectors)
    head.logits.set_weights([np.ones((1, 1), "float32")])
    head.steps.assign([-60.0, 5.0])
    with tf.GradientTape() as tape:
        logits = head(vectors)
        truth = tf.one_hot([3, 0, 1, 2], 4)
        loss = tf.reduce_sum(truth * tf.math.softplus(-logits))
    gradients = tape.gradient(loss, [v.value for v in head.trainable_variables])
    assert np.isfinite(np.asarray(logits)).all()
    assert all(np.isfinite(g).all() for g in gradients)
    assert abs(gradients[0].numpy()[0]) > 1
    np.testing.assert_allclose(expit(np.asarray(logits)).sum(-1), 1, rtol=1e-6)


def test_the_gradient_of_ordered_classes_is_that_of_finite_differences(rng):
    head = head_of("ordered", 4, units=[])
    vectors = rng.normal(size=(5, 3)).astype("float32")
    truth = np.eye(4)[[0, 1, 2, 3, 1]]
    head(vectors)
    head.steps.assign([0.4, -1.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(truth.astype("float32") * tf.math.softplus(-head(vectors)))
    found = tape.gradient(loss, [v.value for v in head.trainable_variables])
    first = np.log(1 / 3)
    even = np.log(np.expm1(np.diff([first, 0, -first])))

    def reference(lowest, steps, kernel):
        cutpoints = first + lowest[0] + np.cumsum([0, *np.logaddexp(0, steps + even)])
        below = expit(cutpoints - vectors.astype("float64") @ kernel)
        below = np.concatenate([np.zeros((5, 1)), below, np.ones((5, 1))], axis=1)
        return -(truth * np.log(np.diff(below, axis=1))).sum()

    values = [np.asarray(v, "float64") for v in head.trainable_variables]
    assert float(loss) == pytest.approx(reference(*values), rel=1e-5)
    for value, gradient in zip(values, found, strict=True):
        for place in np.ndindex(value.shape):
            ends = []
            for step in (1e-5, -1e-5):
                value[place] += step
                ends.append(reference(*values))
                value[place] -= step
            assert gradient.numpy()[place] == pytest.approx(
                (ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4
            )


def test_cutpoints_stay_ascending_under_any_update(rng):
    head, vectors = head_of("ordered", 5), rng.normal(size=(16, 6)).astype("float32")
    head(vectors)
    optimizer = keras.optimizers.AdamW(0.3, weight_decay=0.1)
    for _ in range(30):
        truth = tf.one_hot(rng.integers(0, 5, 16), 5)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(truth * tf.math.softplus(-head(vectors)))
        variables = head.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        assert (np.diff(np.asarray(head.cutpoints)) > 0).all()


def test_probabilities_of_large_scores_add_up_to_1(rng):
    """Five scores a unit apart, all far from 0, as an overconfident network gives them."""
    for far in (1, 50, 1000):
        near = (far * rng.normal(size=(2000, 1)) + rng.normal(size=(2000, 5))).astype("float32")
        total = expit(np.asarray(log_odds(near), "float64")).sum(axis=-1)
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
