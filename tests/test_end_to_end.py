"""From each kind of source to a trained and evaluated run."""

from __future__ import annotations

import numpy as np
import pytest
from small_run import run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.phantom import writers as demo_files
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cohort():
    return DemoCohort(
        patients=16, seed=3, size=32, slices=(40, 44), prevalence=1.0, lesion_size=1.4, difficulty=0
    )


def test_atlas_sequences_of_a_subject_never_part(cohort, tmp_path):
    demo_files.write_atlas(cohort, tmp_path / "atlas")
    data = prepare(
        "atlas",
        tmp_path / "atlas",
        out=tmp_path / "data",
        length=4,
        size=32,
        workers=1,
        progress=False,
    )
    run = run_small(data.path, tmp_path / "run", "sequence.length=4", "fit.epochs=1")
    owner = data.studies.set_index("study_id")["patient_id"]
    patients = [set(owner[studies]) for studies in run.splits.values()]
    assert sum(map(len, patients)) == data.studies["patient_id"].nunique()
    assert run.predictions["truth"].nunique() == 2


def test_hounsfield_units_train_through_three_windows(tmp_path):
    mixed = DemoCohort(patients=16, seed=4, size=32, slices=(6, 9), difficulty=0)
    demo_files.write_volumes(mixed, tmp_path / "nifti")
    data = prepare(
        "volumes", tmp_path / "nifti", out=tmp_path / "data", size=32, workers=1, progress=False
    )
    assert data.info["unit"] == "HU"
    windows = "input.windows=[[40, 80], [80, 200], [600, 2800]]"
    run = run_small(data.path, tmp_path / "run", windows, "fit.epochs=1")
    assert run.model().slice_shape == (32, 32, 3)
    assert np.isfinite(run.history["loss"]).all()


@pytest.mark.parametrize("network", ["xnet", "unet", "dunet"])
def test_segmenters_learn_to_find_lesions_on_few_slices(network, tmp_path):
    """A slice in four shows a lesion, so that a third of the batches of four show none."""
    brains = DemoCohort(patients=32, seed=1, size=32)
    demo_files.write_atlas(brains, tmp_path / "atlas")
    data = prepare(
        "atlas",
        tmp_path / "atlas",
        out=tmp_path / "data",
        whole=True,
        extent=(0.0, 1.0),
        size=32,
        workers=1,
        progress=False,
    )
    settings = (
        "input.size=32",
        "model.encoder.width=8",
        "optimizer.learning_rate=3e-3",
        "fit.batch_size=4",
        "fit.epochs=8",
        "fit.patience=null",
    )
    recipe = recipes.load(network, settings)
    run = train(recipe, data, tmp_path / "run", track=False, verbose=False)
    test = run.metrics[run.metrics["split"] == "test"].set_index("metric")["value"]
    assert test["dice"] > 0.3
    assert run.history["val_dice"].iloc[-1] > 0.3
