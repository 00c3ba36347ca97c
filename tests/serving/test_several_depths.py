"""A run on features of several depths of a frozen network: explained, exported and served."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_network

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.explain.explain import explain
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run
from medseq_tf.serving.export import export
from medseq_tf.serving.open_model import open_model
from medseq_tf.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    settings = (
        *tiny_network.SETTINGS,
        "model.encoder.network=EfficientNetLite0",
        "model.encoder.output=[stage_2, stage_4, average]",
        "model.encoder.dense=[]",
        "fit.epochs=1",
    )
    folder = tmp_path_factory.mktemp("depths")
    options = {"track": False, "verbose": False, "features": folder / "features"}
    train(recipes.Experiment(), demo_data, folder / "run", overrides=settings, **options)
    return Run.open(folder / "run")


def test_a_run_keeps_its_depths(run):
    assert run.experiment.model.encoder.output == ["stage_2", "stage_4", "average"]
    encoder = run.model().encoder
    assert encoder.network.output_name == ["stage_2", "stage_4", "average"]
    assert encoder.compute_output_shape((None, None, 32, 32, 1))[-1] == 24 + 80 + 1280


def test_what_is_served_is_what_was_trained(run, demo_data, tmp_path):
    done = export(run.path, tmp_path / "model", data=demo_data)
    assert done.difference <= 1e-5
    prepared = Prepared.load(demo_data)
    store = SliceStore(prepared, run.experiment)
    expected = study_probabilities(run.model(), store, np.array([3]), run.experiment)[0]
    served = open_model(done.path).predict(prepared.encoded_slices(3)).probability
    np.testing.assert_allclose(served[0], expected, atol=1e-5)


def test_grad_cam_takes_the_deepest_maps(run, demo_data):
    assert explain(run.path, demo_data, pixels=["grad_cam"]).text()
