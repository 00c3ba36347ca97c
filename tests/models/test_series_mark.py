"""A learned mark of each slice's series."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import check_round_trip

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import SeriesMark
from medseq_tf.runs.model_file import load_model_file

SHAPE = (20, 20, 1)
NAMES = ("axial", "coronal")
ENCODER = {"filters": [3], "kernels": [5], "strides": [2], "paddings": [0]}
AGGREGATORS = {
    "bilstm": {"name": "lstm", "units": 4, "layers": 1},
    "one_way": {"name": "gru", "units": 4, "bidirectional": False, "readout": "last"},
    "slice_scores": {"name": "slice_scores"},
}


def classifier(aggregator="bilstm", mark=True):
    encoder = recipes.ConvFSM(**ENCODER)
    settings = recipes.Model(encoder=encoder, aggregator=AGGREGATORS[aggregator], series_mark=mark)
    model = models.build(settings, SHAPE, labels=2, seed=0, series=NAMES if mark else ())
    if mark:
        marks = np.random.default_rng(1).normal(size=model.series_mark.marks.shape)
        model.series_mark.marks.assign(marks)
    return model


@pytest.fixture
def inputs(rng):
    return {
        "slices": rng.normal(size=(3, 5, *SHAPE)).astype("float32"),
        "lengths": np.array([5, 1, 3], "int32"),
        "series": np.array([[0, 0, 1, 1, 1], [1, -1, -1, -1, -1], [0, 1, 1, -1, -1]], "int32"),
    }


def test_each_slice_gets_the_vector_of_its_series(rng):
    features = rng.normal(size=(2, 3, 4)).astype("float32")
    layer = SeriesMark(["a", "b"])
    layer.build(features.shape)
    series = np.array([[0, 1, -1], [1, 1, 0]])
    np.testing.assert_array_equal(layer(features, series), features)
    marks = rng.normal(size=(2, 4)).astype("float32")
    layer.marks.assign(marks)
    added = np.where(series[..., None] >= 0, marks[series], 0.0)
    np.testing.assert_allclose(layer(features, series), features + added, atol=1e-6)


def test_round_trip(rng):
    features = rng.normal(size=(2, 3, 4)).astype("float32")
    check_round_trip(SeriesMark(["a", "b"]), features, np.array([[0, 1, 1], [1, -1, 0]]))


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_padding_and_batch_mates_change_nothing(aggregator, inputs):
    model = classifier(aggregator)
    together = np.asarray(model(inputs))
    for i, length in enumerate(inputs["lengths"]):
        alone = {
            "slices": inputs["slices"][i : i + 1, :length],
            "lengths": inputs["lengths"][i : i + 1],
            "series": inputs["series"][i : i + 1, :length],
        }
        np.testing.assert_allclose(model(alone)[0], together[i], atol=1e-5)
    elsewhere = {**inputs, "series": np.where(inputs["series"] < 0, 1, inputs["series"])}
    np.testing.assert_allclose(model(elsewhere), together, atol=1e-5)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_the_mark_tells_and_without_series_there_is_none(aggregator, inputs):
    model, plain = classifier(aggregator), classifier(aggregator, mark=False)
    without = {name: inputs[name] for name in ("slices", "lengths")}
    np.testing.assert_array_equal(model(without), plain(without))
    unknown = {**inputs, "series": np.full((3, 5), -1)}
    np.testing.assert_allclose(model(unknown), plain(without), atol=1e-6)
    assert np.abs(np.asarray(model(inputs)) - np.asarray(plain(without))).max() > 1e-3


@pytest.mark.parametrize("aggregator", ["bilstm", "one_way"])
def test_after_the_last_slice_the_running_prediction_is_the_study_s(aggregator, inputs):
    model = classifier(aggregator)
    running, whole = np.asarray(model.running(inputs)), np.asarray(model(inputs))
    for i, length in enumerate(inputs["lengths"]):
        np.testing.assert_allclose(running[i, length - 1], whole[i], atol=1e-5)
        beginning = {
            "slices": inputs["slices"][i : i + 1, :1],
            "lengths": np.ones(1, "int32"),
            "series": inputs["series"][i : i + 1, :1],
        }
        np.testing.assert_allclose(running[i, 0], model(beginning)[0], atol=1e-5)


def test_features_of_the_network_are_marked_as_slices_are(inputs):
    model = classifier()
    features = model.extract(inputs["slices"], inputs["lengths"])
    others = {name: inputs[name] for name in ("lengths", "series")}
    np.testing.assert_allclose(model({"features": features, **others}), model(inputs), atol=1e-5)


def test_a_saved_model_keeps_its_marks(inputs, tmp_path):
    model = classifier()
    model.save(tmp_path / "model.keras")
    loaded = load_model_file(tmp_path / "model.keras")
    assert loaded.series_mark.names == list(NAMES)
    np.testing.assert_array_equal(loaded(inputs), model(inputs))


def test_a_data_set_that_tells_no_series_apart_is_one_line():
    settings = recipes.Model(series_mark=True)
    with pytest.raises(InputError, match="prepare with --series-as sequence"):
        models.build(settings, (64, 64, 1), labels=1)


def test_slices_without_features_are_not_marked():
    with pytest.raises(InputError, match="pixels gives none"):
        recipes.load("cnn_3d", ["model.series_mark=true"])
