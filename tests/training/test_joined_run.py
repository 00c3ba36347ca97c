"""Runs on joined features: trained, each part kept on disk by itself, explained and served."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_network

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.evaluation.feature_folder import feature_folder
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.serving.export import export
from medseq_tf.training.beginning import new_model
from medseq_tf.training.linear_head import study_vectors
from medseq_tf.training.train import train

QUIET = {"track": False, "verbose": False}
NETWORK = ("network=MobileNetV3Small", "weights=none", "output=average")
SHOWN = ("input.size=32", "fit.strength=0.01")
MEASURES = "features=[shape, histogram]"
JOINED = (
    *SHOWN,
    f"model.encoder.handcrafted.{MEASURES}",
    *(f"model.encoder.keras_application.{setting}" for setting in NETWORK),
)
ALONE = {
    "handcrafted": (*SHOWN, f"model.encoder.{MEASURES}", "model.aggregator.of=[mean, max, std]"),
    "frozen_linear": (*SHOWN, *(f"model.encoder.{setting}" for setting in NETWORK)),
}


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        tiny_network.install(patch)
        yield


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def finished(demo_data, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "joined"
    return train("joined_linear", demo_data, out, overrides=JOINED, features=features, **QUIET)


def entries(folder):
    return [path for path in folder.glob("*/*") if not path.name.startswith(".")]


def vectors(preset, overrides, prepared):
    recipe = recipes.load(preset, overrides)
    return study_vectors(recipe, SliceStore(prepared, recipe))[0]


def test_its_vectors_are_those_of_both_recipes_side_by_side(demo_data):
    prepared = Prepared.load(demo_data)
    joined = vectors("joined_linear", JOINED, prepared)
    parts = [vectors(preset, settings, prepared) for preset, settings in ALONE.items()]
    of_statistics = [np.split(part, 3, axis=1) for part in parts]
    expected = [np.concatenate(statistic, axis=1) for statistic in zip(*of_statistics, strict=True)]
    np.testing.assert_allclose(joined, np.concatenate(expected, axis=1), rtol=1e-5, atol=1e-5)


def test_a_recipe_of_one_part_finds_its_features(finished, features, demo_data):
    prepared, kept = Prepared.load(demo_data), feature_folder(features)
    written = entries(kept)
    assert len(written) == 2 * len(prepared)
    for preset, settings in ALONE.items():
        recipe = recipes.load(preset, settings)
        model = new_model(recipe, prepared, seed=recipe.seed)
        store = FeatureStore(model, SliceStore(prepared, recipe), recipe, kept)
        store.prepare((row, None) for row in range(len(prepared)))
        assert store.computed == 0


def test_what_one_part_left_is_computed_by_the_other_alone(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    for preset, settings, count in (("handcrafted", ALONE["handcrafted"], 1),
                                    ("joined_linear", JOINED, 2)):  # fmt: skip
        recipe = recipes.load(preset, settings)
        model = new_model(recipe, prepared, seed=0)
        store = FeatureStore(model, SliceStore(prepared, recipe), recipe, tmp_path)
        store.prepare([(0, None)])
        assert len(entries(tmp_path)) == count
    whole = FeatureStore(model, SliceStore(prepared, recipe), recipe)
    np.testing.assert_array_equal(store.of(0), whole.of(0))


def test_pixels_are_explained_by_gradients_through_the_network(finished, demo_data):
    study = finished.splits["test"][0]
    explanation = explain_study(finished, Prepared.load(demo_data), study)
    ((method, _),) = explanation.heat
    heat = explanation.heat[method, explanation.labels[0]]
    assert method == "integrated_gradients"
    assert np.isfinite(heat).all()
    assert np.abs(heat).max() > 0


@pytest.mark.slow
def test_it_is_served_as_it_is(finished, tmp_path):
    assert export(finished, tmp_path / "served").difference <= 1e-5
