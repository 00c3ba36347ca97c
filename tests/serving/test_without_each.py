"""A study without each of its slices, in one go: what asking anew for each of them gives."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from served import pictures
from small_models import (
    COVARIATES,
    NETWORK,
    SERIES,
    WITH_COVARIATES,
    description_of,
    members_of,
    model_of,
    recipe_of,
)

from medseq_tf.serving.dicom_results import key_slices
from medseq_tf.serving.member_group import ServedMember
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import GraphModel, open_saved_model

ALL = {**NETWORK, "sequence.evaluation.policy": "all"}
MIRRORED = {**ALL, "sequence.evaluation.mirrored": True}
MEAN = {key: value for key, value in ALL.items() if "aggregator" not in key}
MEAN["model.aggregator.name"] = "mean"


def served(*recipes, **description):
    weights = [0.7, 0.3] if len(recipes) == 2 else [1.0]
    members = [
        ServedMember(model_of(recipe_of(recipe), seed), recipe_of(recipe), weight)
        for seed, (recipe, weight) in enumerate(zip(recipes, weights, strict=True))
    ]
    return ServingModel(members, description_of("uint8", **description))


@pytest.mark.parametrize("recipes", [[ALL], [MIRRORED], [ALL, MEAN]])
def test_it_is_what_the_study_without_the_slice_gives(recipes):
    model, files = served(*recipes), pictures(5)
    graph = GraphModel(model.signatures)
    whole, without = graph.without_each(files)
    np.testing.assert_allclose(whole, graph.predict(files).probability, rtol=0, atol=1e-6)
    expected = [graph.predict(files[:t] + files[t + 1 :]).probability for t in range(5)]
    np.testing.assert_allclose(without, expected, rtol=0, atol=1e-6)
    assert np.ptp(without, axis=0).max() > 1e-3
    np.testing.assert_allclose(
        key_slices.one_by_one(graph, files, {}), whole - without, rtol=0, atol=1e-6
    )


def test_batch_mates_and_padding_change_nothing():
    model, counts = served(ALL), (5, 1, 3)
    studies = [pictures(count, seed=count) for count in counts]
    rows = [study + [b"no picture"] * (7 - len(study)) for study in studies]
    found = model.without_each(image_bytes=tf.constant(rows), lengths=tf.constant(counts))
    graph = GraphModel(model.signatures)
    for row, study in enumerate(studies):
        whole, without = graph.without_each(study)
        here = found["probability_without"][row]
        np.testing.assert_allclose(here[: len(study)], without, rtol=0, atol=1e-6)
        np.testing.assert_allclose(here[len(study) :], [whole] * (7 - len(study)), atol=1e-6)


def test_an_only_slice_stays():
    whole, without = GraphModel(served(ALL).signatures).without_each(pictures(1))
    np.testing.assert_allclose(without, [whole], rtol=0, atol=1e-7)


def test_a_slice_that_is_not_chosen_changes_nothing():
    graph = GraphModel(served({**NETWORK, "sequence.evaluation.length": 4}).signatures)
    whole, without = graph.without_each(pictures(9))
    is_same = np.abs(without - whole).max(axis=1) < 1e-7
    assert is_same.sum() == 5


def test_further_inputs_stay_with_their_slices():
    recipe = recipe_of(
        {**ALL, "model.series_mark": True, **WITH_COVARIATES, "sequence.evaluation.policy": "all"}
    )
    description = description_of("uint8", series=SERIES, covariates=COVARIATES)
    graph = GraphModel(ServingModel(members_of([model_of(recipe)], recipe), description).signatures)
    files, series, told = pictures(5), [0, 0, 0, 1, 1], {"age": 70.0, "sex": "F"}
    whole, without = graph.without_each(files, told, series)
    assert np.abs(whole - graph.predict(files, covariates=told).probability).max() > 1e-4
    expected = [
        graph.predict(
            files[:t] + files[t + 1 :], covariates=told, series=series[:t] + series[t + 1 :]
        ).probability
        for t in range(5)
    ]
    np.testing.assert_allclose(without, expected, rtol=0, atol=1e-6)
    told = {"covariates": told, "series": series}
    lost = key_slices.one_by_one(graph, files, told)
    np.testing.assert_allclose(lost, whole - without, rtol=0, atol=1e-6)


def test_slices_encoded_by_their_place_are_asked_one_by_one():
    by_place = {"model.encoder.weights": "per_position", "model.encoder.positions": 4}
    model = served({**NETWORK, **by_place, "sequence.fill": True})
    assert GraphModel(model.signatures).without_each(pictures(3)) is None


def test_an_export_tells_the_same(tmp_path):
    model, files = served(ALL), pictures(4)
    tf.saved_model.save(model, str(tmp_path), signatures=model.signatures)
    found = open_saved_model(tmp_path).without_each(files)
    expected = GraphModel(model.signatures).without_each(files)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
