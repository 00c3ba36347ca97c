"""Runs on hand-made features: trained, kept on disk, explained and served."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explain import explain_study
from medseq_tf.evaluation.feature_folder import feature_folder
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.evaluation.feature_views import frozen_network
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import HandcraftedFeatures
from medseq_tf.serving.export import export
from medseq_tf.training.beginning import new_model
from medseq_tf.training.linear_head import study_vectors
from medseq_tf.training.train import train

SMALL = ["input.size=32", "fit.strength=0.01"]
QUIET = {"track": False, "verbose": False}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def finished(demo_data, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "measured"
    return train("handcrafted", demo_data, out, overrides=SMALL, features=features, **QUIET)


def store_of(prepared, folder, *overrides):
    recipe = recipes.load("handcrafted", [*SMALL, *overrides])
    model = new_model(recipe, prepared, seed=0)
    return FeatureStore(model, SliceStore(prepared, recipe), recipe, folder)


def by_hand(prepared, row):
    """Mean and deviation of the measures of a study's slices, as the preset has them."""
    slices = prepared.slices(row)[..., None] / np.float32(255)
    found = np.asarray(
        HandcraftedFeatures(["histogram", "asymmetry", "texture", "shape"], 16)(slices)
    )
    return np.concatenate([found.mean(0), found.std(0)])


def test_the_preset_is_a_regression_on_the_measures(finished, demo_data):
    prepared = Prepared.open(demo_data)
    vectors = np.stack([by_hand(prepared, row) for row in range(len(prepared))])
    rows = np.flatnonzero(prepared.studies["study_id"].isin(finished.splits["train"]))
    scaler = StandardScaler().fit(vectors[rows])
    regression = LogisticRegression(C=0.01, tol=1e-8, max_iter=10_000)
    regression.fit(scaler.transform(vectors[rows]), prepared.labels[rows, 0])
    expected = pd.Series(
        regression.predict_proba(scaler.transform(vectors))[:, 1], prepared.studies["study_id"]
    )
    found = finished.predictions.set_index("study")["probability"]
    np.testing.assert_allclose(found, expected[found.index], atol=2e-3)
    assert np.ptp(found) > 0.01
    assert any("62 head CTs" in note for note in finished.notes)


def test_features_are_kept_under_a_name_that_tells_how_they_are_measured(
    finished, features, demo_data
):
    prepared = Prepared.open(demo_data)
    kept = feature_folder(features)
    again = store_of(prepared, kept)
    again.prepare((row, None) for row in range(len(prepared)))
    assert again.computed == 0
    (found,) = study_vectors(again.experiment, again.slices, kept)
    np.testing.assert_allclose(found[3], by_hand(prepared, 3), atol=2e-4)
    others = ("model.encoder.bins=8", "model.encoder.features=[texture, histogram]")
    keys = {store_of(prepared, kept, *other).views.key(0) for other in [(), *zip(others)]}
    assert len(keys) == 3
    model = finished.model()
    assert frozen_network(model) is model.encoder.backbone.layer
    assert not model.encoder.weights


def test_pixels_are_explained_by_gradients(finished, demo_data):
    study = finished.splits["test"][0]
    explanation = explain_study(finished, Prepared.open(demo_data), study)
    ((method, _),) = explanation.heat
    heat = explanation.heat[method, explanation.labels[0]]
    assert method == "integrated_gradients"
    assert np.isfinite(heat).all()
    assert np.abs(heat).max() > 0
    with pytest.raises(InputError, match="handcrafted has no feature maps for grad_cam; use int"):
        explain_study(finished, Prepared.open(demo_data), study, pixels=["grad_cam"])


@pytest.mark.slow
def test_it_is_served_as_it_is(finished, tmp_path):
    assert export(finished, tmp_path / "served").difference <= 1e-5


def test_what_scanners_leave_is_a_preset_with_the_number_of_slices(demo_data, features, tmp_path):
    run = train(
        "acquisition", demo_data, tmp_path / "run", overrides=SMALL, features=features, **QUIET
    )
    width = len(HandcraftedFeatures(["acquisition"], 16).feature_names())
    assert run.model().head.logits.kernel.shape == (2 * width + 1, 1)
    assert np.isfinite(run.predictions["probability"]).all()


def test_it_is_trained_by_gradients_too(demo_data, features, tmp_path):
    overrides = ["fit.solver=gradient", "fit.strength=auto", "model.aggregator.name=attention"]
    overrides += ["input.size=32", "fit.epochs=1", "sequence.length=4"]
    run = train(
        "handcrafted", demo_data, tmp_path / "run", overrides=overrides, features=features, **QUIET
    )
    assert np.isfinite(run.predictions["probability"]).all()
