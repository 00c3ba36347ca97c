"""Several devices make the updates of one: to rounding, alike on all, and the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from linear_recipe import linear_recipe
from replicas_compared import CASES, VECTORS
from small_run import run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run
from medseq_tf.training.distribution import Distribution, distribution_for, share

TESTS = Path(__file__).parents[1]
QUICK = "fewer studies than devices"
EPOCHS = ("an epoch", "an epoch on three", "an epoch of Adam")


def compare(data, *names):
    """Return what the process of `replicas_compared` finds of some cases."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", TESTS / "replicas_compared.py", data, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_update(found):
    assert found["updates"] == [1, 1]
    assert found["moved"] > 1e-3
    assert found["weights"] < 1e-5
    one, several = found["losses"]
    np.testing.assert_allclose(several, one, atol=1e-5)
    assert found["alike"]


def test_an_update_is_that_of_one_device(demo_data):
    """With padding, batch statistics, dropout, a clipped gradient, and a device without studies."""
    [found] = compare(demo_data, QUICK)
    assert set(found["copies"]) == {3}
    check_update(found)


@pytest.mark.slow
def test_an_update_of_every_kind_of_model_is_that_of_one_device(demo_data):
    names = [name for name in CASES if name not in (QUICK, "mixed", *EPOCHS)]
    for found in compare(demo_data, *names):
        check_update(found)


@pytest.mark.slow
def test_an_epoch_is_that_of_one_device_and_the_same_each_time(demo_data):
    """Adam moves a bias ahead of a normalisation by the sign of rounding: validation sees that."""
    for name, found in zip(EPOCHS, compare(demo_data, *EPOCHS), strict=True):
        one, several = found["losses"]
        seen = slice(1) if name.endswith("Adam") else slice(None)
        np.testing.assert_allclose(several[seen], one[seen], rtol=1e-3)
        assert found["again"]
        assert found["alike"]


@pytest.mark.slow
def test_in_16_bits_several_devices_skip_the_updates_that_one_skips(demo_data):
    """The loss is scaled down until its gradients are finite; losses agree to the precision."""
    [found] = compare(demo_data, "mixed")
    one, several = found["updates"]
    assert 0 < one == several
    np.testing.assert_allclose(found["losses"][4:], found["losses"][:4], rtol=1e-2)
    assert found["alike"]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(demo_data):
    [found] = compare(demo_data, "resumed")
    one, both = found["losses"]
    np.testing.assert_allclose(both, one, rtol=1e-3)


@pytest.mark.slow
def test_the_command_notes_the_devices_and_its_model_runs_on_one(demo_data, tmp_path):
    out, settings = tmp_path / "run", ("model.aggregator.name=mean", "fit.epochs=1")
    words = [sys.executable, "-m", "medseq_tf", "train", "fsm_bilstm", "--data", demo_data]
    words += [word for setting in (*VECTORS, *settings) for word in ("--set", setting)]
    words += ["--out", out, "--devices", "2", "--no-track"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    run = Run.open(out)
    assert run.info["devices"] == 2
    assert run.info["status"] == "finished"
    prepared = Prepared.load(demo_data)
    store = SliceStore(prepared, run.experiment)
    tested = run.predictions[run.predictions["split"] == "test"]
    rows = np.flatnonzero(prepared.studies["study_id"].isin(tested["study"]))
    found = study_probabilities(run.model(), store, rows, run.experiment)[:, 0]
    noted = tested.set_index("study")["probability"][prepared.studies["study_id"].iloc[rows]]
    np.testing.assert_allclose(found, noted, atol=1e-5)


@pytest.mark.parametrize("studies", [1, 2, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_are_the_batch_and_whoever_has_none_goes_through_the_motions(studies, count):
    inputs = {"lengths": tf.range(studies)}
    targets = tf.range(studies, dtype=tf.float32)[:, None]
    shares = [share(inputs, targets, number, count) for number in range(count)]
    own = [part for part in shares if bool(part[2])]
    assert sum(len(part[1]) for part in own) == studies
    for part, whole in ((0, inputs["lengths"]), (1, targets)):
        found = [s[part]["lengths"] if part == 0 else s[part] for s in own]
        np.testing.assert_array_equal(tf.concat(found, 0), whole)
    sizes = [len(part[1]) for part in own]
    assert max(sizes) - min(sizes) <= 1
    for told, labels, counts in shares:
        if not counts:
            assert len(told["lengths"]) == len(labels) == 1
            assert np.isnan(labels).all()


def test_one_device_is_the_default_without_gpus():
    assert type(distribution_for(None, recipes.Experiment())) is Distribution
    assert distribution_for(1, recipes.Experiment()).devices == 1


def test_what_cannot_be_is_one_line(demo_data, tmp_path):
    recipe = recipes.Experiment()
    with pytest.raises(InputError, match="devices = 0: expected at least 1"):
        distribution_for(0, recipe)
    tf.constant(0)  # TensorFlow is in use
    with pytest.raises(InputError, match="train in a new process"):
        run_small(demo_data, tmp_path / "run", devices=2)
    assert not (tmp_path / "run").exists()
    compiled = recipes.load(recipes.Experiment(), ["fit.jit=true"])
    for setting, recipe in (("fit.jit=true", compiled), ("fit.solver=lbfgs", linear_recipe())):
        with pytest.raises(InputError, match=f"devices = 2: {setting} takes one device"):
            distribution_for(2, recipe)
        assert distribution_for(None, recipe).devices == 1


def test_devices_that_a_batch_leaves_idle_are_said(demo_data, tmp_path, monkeypatch, capsys):
    many = Distribution()
    many.devices = 9
    monkeypatch.setattr("medseq_tf.training.train.distribution_for", lambda *_: many)
    with pytest.raises(Stopped):
        run_small(demo_data, tmp_path / "run", verbose=True, stop=lambda: True)
    said = capsys.readouterr().err
    assert "of 9 devices a batch of fit.batch_size=4 fills only 4" in said
    assert Run.open(tmp_path / "run").info["devices"] == 9


def test_more_devices_than_gpus_are_refused(monkeypatch):
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{i}", "GPU") for i in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    with pytest.raises(InputError, match="devices = 3: expected 1 to 2, the visible GPUs"):
        distribution_for(3, recipes.Experiment())
