"""Models of series that follow one another: what they are told of each slice, and how."""

from __future__ import annotations

import functools
import json

import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from served import pictures, serving
from small_models import (
    COVARIATES,
    LABELS,
    NETWORK,
    SERIES,
    SIZE,
    WITH_COVARIATES,
    Drawn,
    InMemory,
    description_of,
    members_of,
    model_of,
    recipe_of,
)

from medseq_tf import models
from medseq_tf.dataset.records import STORAGE, StorageSpec, png_channels, study_record
from medseq_tf.errors import InputError
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.readers.series import Series
from medseq_tf.serving.client import ServingClient
from medseq_tf.serving.description import Description
from medseq_tf.serving.mlflow_model import Scorer, further_inputs_of
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import GraphModel

MARKED = {**NETWORK, "model.series_mark": True, "input.neighbours": 1}
NUMBERS = [[0, 0, 1], [1], [0, 0, 0, 1, 1, -1, 0, 1, 1]]


@functools.cache
def served(policy="all", with_covariates=False):
    recipe = {**MARKED, "sequence.evaluation.policy": policy}
    recipe |= WITH_COVARIATES if with_covariates else {}
    covariates = COVARIATES if with_covariates else None
    description = description_of("uint16", series=SERIES, covariates=covariates)
    recipe = recipe_of(recipe)
    return ServingModel(
        members_of([model_of(recipe, seed) for seed in (0, 1)], recipe), description
    )


@functools.cache
def files():
    return [pictures(len(row), seed=len(row), dtype=np.uint16) for row in NUMBERS]


def request(studies, numbers, extra=0):
    """Padded as TF Serving pads: with the first element."""
    width = max(map(len, studies)) + extra
    images = [row + [studies[0][0]] * (width - len(row)) for row in studies]
    series = [row + [numbers[0][0]] * (width - len(row)) for row in numbers]
    return {
        "image_bytes": tf.constant(images),
        "lengths": tf.constant([len(row) for row in studies]),
        "series": tf.constant(series, tf.int32),
    }


@pytest.mark.parametrize("policy", ["all", "paper", "even"])
def test_series_stay_with_their_slices(policy):
    model = served(policy)
    merged = model.with_series(**request(files(), NUMBERS, extra=2))
    lean = model.probability_with_series(**request(files(), NUMBERS))
    np.testing.assert_allclose(merged["probability"], lean["probability"], rtol=0, atol=1e-5)
    for i, (study, numbers) in enumerate(zip(files(), NUMBERS, strict=True)):
        alone = model.with_series(**request([study], [numbers]))
        np.testing.assert_allclose(merged["probability"][i], alone["probability"][0], atol=1e-5)
        running = merged["running_probability"][i, : len(study)]
        np.testing.assert_allclose(running, alone["running_probability"][0], atol=1e-5)
        other = model.with_series(**request([study], [[1 - abs(n) for n in numbers]]))
        assert np.abs(other["probability"] - alone["probability"]).max() > 1e-4


def test_without_series_none_is_known():
    told = request(files(), [[-1] * len(row) for row in NUMBERS])
    plain = {name: told[name] for name in ("image_bytes", "lengths")}
    expected = served().with_series(**told)
    for name, values in served().serving_default(**plain).items():
        np.testing.assert_array_equal(values, expected[name])


WRONG = {
    "too few": ([[0, 1]], "series holds 1 x 2 numbers, image_bytes 1 x 3 slices"),
    "two studies": ([[0, 0, 1]] * 2, "series holds 2 x 3 numbers, image_bytes 1 x 3 slices"),
    "beyond": ([[0, 2, 1]], r"series\[0, 1\] is no number from 0 to 1, nor -1"),
    "below": ([[0, 0, -2]], r"series\[0, 2\] is no number from 0 to 1, nor -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_series_are_an_error_that_says_what(name):
    numbers, words = WRONG[name]
    asked = request(files()[:1], NUMBERS[:1]) | {"series": tf.constant(numbers)}
    for ask in (served().with_series, served().probability_with_series):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            ask(**asked)


def test_covariates_and_series_come_together():
    model = GraphModel(served(with_covariates=True).signatures)
    study, names = files()[0], ["axial", "axial", "coronal"]
    whole = {"covariates": {"age": 63, "sex": "M"}, "series": names}
    found = {
        chosen: model.predict(study, **{name: whole[name] for name in chosen}).probability
        for chosen in ((), ("covariates",), ("series",), ("covariates", "series"))
    }
    asked = request([study], [[0, 0, 1]])
    asked["covariates"] = tf.constant([[63.0, 1.0]])
    expected = served(with_covariates=True).probability_with_covariates_and_series(**asked)
    np.testing.assert_allclose(found["covariates", "series"], expected["probability"][0], atol=1e-6)
    values = np.stack(list(found.values()))
    assert all(np.abs(values - row).max(axis=1).astype(bool).sum() == 3 for row in values)


def test_a_client_tells_the_series():
    study, names = files()[0], ["axial", "axial", "coronal"]
    expected = GraphModel(served().signatures).predict(study, running=True, series=names)
    signatures = {name: ask.get_concrete_function() for name, ask in served().signatures.items()}
    with serving(signatures=signatures, with_grpc=True) as server:
        for address in (server.address(), f"grpc://127.0.0.1:{server.grpc_port}/lesion"):
            client = ServingClient(address)
            for told in (names, [0, 0, 1], np.int32([0, 0, 1])):
                found = client.predict(study, running=True, series=told)
                np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
                np.testing.assert_allclose(found.running, expected.running, atol=1e-6)
            with pytest.raises(InputError, match=r"none of axial, coronal \(did you mean coronal"):
                client.predict(study, series=["axial", "axial", "coronel"])


def test_series_are_a_column_that_may_be_absent():
    model = GraphModel(served().signatures)
    assert further_inputs_of(model.describe()) == {"series": "texts"}
    study = files()[0]
    frame = pd.DataFrame({"study": list("abc"), "slices": [study] * 3})
    names = ["axial", "axial", "coronal"]
    found = Scorer(model).predict(frame.assign(series=[names, None, ["axial"]]))
    told, without = (model.predict(study, series=s).probability for s in (names, None))
    assert list(found["probability"][:4]) == pytest.approx([*told, *without], abs=1e-6)
    assert "series has 1 entries, the study 3 slices" in found["error"][4]
    plain = Scorer(model).predict(frame)
    assert list(plain["probability"][:2]) == pytest.approx(list(without), abs=1e-6)


def test_a_description_keeps_its_series():
    description = description_of("uint8", series=SERIES)
    assert Description.from_json(description.to_json()) == description
    assert "series" not in json.loads(description_of("uint8").to_json())


@pytest.mark.parametrize(
    "series",
    [5, [], {}, {"names": ["a", "b"]}, {"names": ["a"], "read_as": "sequence"},
     {"names": ["a", "a"], "read_as": "channels"}, {"names": [1, 2], "read_as": "channels"},
     {"names": ["a", "b"], "read_as": "other"}, {"names": ["a", "b"], "read_as": []}],
)  # fmt: skip
def test_a_description_of_no_series_is_refused(series):
    values = json.loads(description_of("uint8", series=SERIES).to_json())
    with pytest.raises(ValueError, match="not the description of a model"):
        Description.from_json(json.dumps({**values, "series": series}))


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_channels_give_the_prepared_road_s_number(rng, dtype, channels):
    series = Series(tuple("abcd"[:channels]), "channels")
    windows = {"input.windows": [[0, 20000], [5000, 60000]]} if dtype == "int16" else {}
    recipe = recipe_of({**NETWORK, **windows, "input.neighbours": 1})
    shape = recipe.input.slice_shape(channels)
    model = models.build(recipe.model, shape, len(LABELS), seed=0)
    limits = np.iinfo(dtype)
    size = (30, 22, channels)
    images = [rng.integers(limits.min, limits.max, size).astype(dtype) for _ in range(7)]
    how = StorageSpec((), dtype, SIZE, "pad", channels)
    record = study_record(Drawn(images), "study", how).example
    table = pd.DataFrame({"study_id": ["study"], "slices": [7], "shard": "", "record": [record]})
    for name in LABELS:
        table[f"label.{name}"] = np.nan
    description = description_of(dtype, series=series)
    info = {
        "label_names": LABELS,
        "size": SIZE,
        "storage": STORAGE[dtype],
        "modality": description.modality,
        "series": series.to_json(),
    }
    store = SliceStore(InMemory("memory", info, table), recipe)
    expected = study_probabilities(model, store, np.arange(1), recipe)[0]
    files = []
    for image in images:
        stored = image if dtype != "int16" else (image.astype(int) + 2**15).astype(np.uint16)
        files.append(cv2.imencode(".png", stored[..., png_channels(channels)])[1].tobytes())
    found = GraphModel(ServingModel(members_of([model], recipe), description).signatures).predict(
        files
    )
    np.testing.assert_allclose(found.probability, expected, rtol=0, atol=1e-5)
