"""The 3-D network: resampling against TensorFlow's, padding, and the road through the commands."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from model_checks import (
    check_one_trace,
    check_padding,
    check_round_trip,
    randomize_moving_statistics,
)

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.models.volume import VolumeNetwork, resampling_weights
from medseq_tf.serving import open_model as answering
from medseq_tf.serving.export import export
from medseq_tf.training.train import train

LENGTHS = np.array([5, 1, 3], "int32")
SHAPE = (12, 12, 2)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 13, 40])
def test_resampling_is_tensorflows_antialiased_one(rng, length):
    """Along one axis, whether stacks get longer or shorter."""
    depth, stack = 6, rng.normal(size=(length, 4)).astype("float32")
    weights = np.asarray(resampling_weights(np.array([length]), length + 3, depth))[0]
    expected = tf.image.resize(stack[None, :, :, None], (depth, 4), antialias=True)[0, ..., 0]
    np.testing.assert_allclose(weights[:, :length] @ stack, expected, atol=1e-6)
    assert not weights[:, length:].any()
    if length == depth:
        np.testing.assert_array_equal(weights[:, :length], np.eye(depth))


@pytest.mark.parametrize("length", [7, 13, 40])
def test_every_slice_of_a_longer_study_counts(length):
    weights = np.asarray(resampling_weights(np.array([length]), length, 6))[0]
    assert (weights.sum(axis=0) > 0).all()


def network(**arguments):
    statistics = {"momentum": 0.9, "epsilon": 1e-5}
    settings = {"depth": 4, "filters": (3, 6), "pooling": "average", "seed": 0, **statistics}
    settings |= arguments
    return VolumeNetwork((4, 5, 2), **settings)


def test_the_network_against_a_convolution_written_out(rng):
    """One stage on a study of `depth` slices, in NumPy."""
    layer = network(depth=3, filters=(2,), pooling="max")
    slices = rng.normal(size=(1, 3, 40)).astype("float32")
    got = np.asarray(layer(slices, np.array([3])))[0]
    kernel = layer.stages[0].convolution.kernel.numpy()
    padded = np.pad(slices.reshape(3, 4, 5, 2), ((1, 1), (1, 1), (1, 1), (0, 0)))
    found = [
        np.einsum("zyxc,zyxcf->f", padded[z : z + 3, y : y + 3, x : x + 3], kernel)
        for z in range(3)
        for y in range(4)
        for x in range(5)
    ]
    expected = np.maximum(found, 0).max(axis=0) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_layer(rng, pooling):
    layer, features = network(pooling=pooling), rng.normal(size=(3, 5, 40)).astype("float32")
    layer(features, LENGTHS)
    randomize_moving_statistics(layer)
    assert layer(features, LENGTHS).shape == layer.compute_output_shape(features.shape)
    check_padding(layer, features, LENGTHS)
    check_one_trace(layer, 40)
    check_round_trip(network(pooling=pooling, momentum=0.8, epsilon=1e-3), features, LENGTHS)


def test_padding_changes_nothing_in_training(rng):
    features = rng.normal(size=(3, 5, 40)).astype("float32")
    check_padding(lambda x, n: network()(x, n, training=True), features, LENGTHS, each_alone=False)


def test_wrong_arguments_are_refused(rng):
    with pytest.raises(ValueError, match="pooling is one of average, max, got 'flatten'"):
        network(pooling="flatten")
    with pytest.raises(ValueError, match=r"slices of \[4, 5, 2\] have 40 values, got 6"):
        network()(np.zeros((1, 2, 6), "float32"), np.array([2]))


def test_model(rng):
    settings = recipes.Model(
        encoder={"name": "pixels"},
        aggregator={"name": "cnn_3d", "depth": 4, "filters": [3, 5]},
        head={"units": [4]},
    )
    model = models.build(settings, SHAPE, 2, seed=0)
    randomize_moving_statistics(model)
    slices = rng.normal(size=(3, 5, *SHAPE)).astype("float32")
    call = lambda x, n: model({"slices": x, "lengths": n})  # noqa: E731
    check_padding(call, slices, LENGTHS)
    features = np.asarray(model.extract(slices, LENGTHS))
    np.testing.assert_array_equal(features[0], slices[0].reshape(5, -1))
    running = np.asarray(model.running({"slices": slices, "lengths": LENGTHS}))
    for count in (1, 4, 5):
        alone = call(slices[:1, :count], np.array([count]))
        np.testing.assert_allclose(running[0, count - 1], alone[0], atol=1e-5)


def test_it_reads_pixels_alone():
    with pytest.raises(InputError, match=r"not features of conv_fsm; set model\.encoder\.name=pix"):
        recipes.load(recipes.Experiment(), ["model.aggregator.name=cnn_3d"])


# -------------------------------------------------------------- baselines through the commands

SMALL = (
    "input.size=16",
    "fit.epochs=1",
    "fit.patience=null",
    "augment={}",
    "sequence.length=6",
    "fit.batch_size=8",
)
BASELINES = {
    "slice_classifier": (
        "model.encoder.name=pixels",
        "sequence.evaluation={policy: even}",
        "model.aggregator.pooling=max",
    ),
    "cnn_3d": (
        "model.aggregator.filters=[3, 4]",
        "model.aggregator.depth=4",
        "sequence.evaluation.length=6",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", BASELINES)
def test_a_baseline_trains_evaluates_explains_and_exports(preset, demo_data, tmp_path):
    overrides = (*SMALL, *BASELINES[preset])
    run = train(
        preset, demo_data, tmp_path / "run", overrides=overrides, track=False, verbose=False
    )
    prepared = Prepared.load(demo_data)
    tested = evaluate(run, demo_data).predictions.iloc[0]
    explained = explain_study(run, prepared, tested["study"])
    slices = explained.shown_slices("lesion")
    assert slices[["importance", "alone", "running"]].notna().all(axis=None)
    assert explained.probabilities["lesion"] == pytest.approx(tested["probability"], abs=1e-5)
    assert slices["running"].iloc[-1] == pytest.approx(tested["probability"], abs=1e-5)
    if preset == "slice_classifier":
        assert slices["alone"].max() == pytest.approx(tested["probability"], abs=1e-5)
        row = prepared.studies["study_id"].tolist().index(tested["study"])
        answer = answering.open_model(run).predict(prepared.encoded_slices(row), running=True)
        assert answer.probability[0] == pytest.approx(tested["probability"], abs=1e-5)
    else:
        with pytest.raises(InputError, match="no feature maps for grad_cam"):
            explain_study(run, prepared, tested["study"], pixels=["grad_cam"])
        assert export(run, tmp_path / "served").difference <= 1e-5
