"""Several hosts make the updates of one, and end together; processes on 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import numpy as np
import pytest
from host_processes import Hosts
from runs_compared import assert_same_weights, weights
from small_run import SMALL, run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.input.sampling import Part
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training import hosts as training_hosts
from medseq_tf.training.distribution import Distribution
from medseq_tf.training.loop import CHECKPOINT, Fitter, arrays_of, bytes_of
from medseq_tf.training.train import train

ONE_UPDATE = (
    *("fit.epochs=1", "fit.batch_size=5", "optimizer.name=sgd", "loss.weights=balanced"),
    *("sequence.policy=all", "sequence.length=30", "model.encoder.dropout=0.2"),
    *("model.aggregator.dropout=0.2", "model.head.dropout=0.2"),
)
"""Of sequences of several lengths, with noise that is drawn for the whole padded batch."""
MEASURED = (
    "input.size=32",
    "fit.solver=gradient",
    "fit.epochs=2",
    "fit.batch_size=4",
    "fit.accumulate=3",
)
RECIPES = {
    "trained whole": ("fsm_bilstm", (*SMALL, "optimizer.name=sgd")),
    "stored features": ("handcrafted", MEASURED),
    "features of each batch": ("handcrafted", (*MEASURED, "features.use=never")),
}
LONG = ("--set", "fit.epochs=500", "--set", "fit.patience=null")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("hosts") / "demo"
    prepare("demo", out=out, patients=24, size=32, workers=1, progress=False)
    return out


def alone(data, out, preset, settings):
    """Train by one process what `Hosts` train."""
    return train(preset, data, out, overrides=settings, track=False, verbose=False)


def options(settings):
    return [word for setting in settings for word in ("--set", setting)]


def has_row(folder):
    return lambda: (folder / "history.csv").is_file()


def test_a_recipe_of_one_device_is_refused(data, tmp_path, monkeypatch):
    told = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    monkeypatch.setenv("TF_CONFIG", told)
    with pytest.raises(InputError, match=r"TF_CONFIG: fit\.jit=true takes one device"):
        run_small(data, tmp_path / "run", "fit.jit=true")


@pytest.mark.slow
def test_updates_are_those_of_one_device_and_the_chief_alone_writes(data, tmp_path):
    one = alone(data, tmp_path / "one", "fsm_bilstm", (*SMALL, *ONE_UPDATE))
    with Hosts(tmp_path / "two", data, *options(ONE_UPDATE)) as hosts:
        assert hosts.ended() == [0, 0]
        assert "the run is the chief's" in hosts.said(1)
        assert "report:" in hosts.said(0)
        assert "report:" not in hosts.said(1)
    two = Run.open(tmp_path / "two")
    for theirs, ours in zip(weights(one), weights(two), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert two.info["devices"] == 2
    assert sorted(p.name for p in two.path.iterdir()) == sorted(p.name for p in one.path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("trained whole", 2), ("stored features", 2), ("features of each batch", 3)],
)
def test_an_epoch_is_that_of_one_device_and_the_same_each_time(
    data, tmp_path, monkeypatch, name, count
):
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path / "features"))
    preset, small = RECIPES[name]
    one = alone(data, tmp_path / "one", preset, small)
    how = {"count": count, "preset": preset, "small": small}
    with Hosts(tmp_path / "first", data, **how) as first:
        assert first.ended() == [0] * count
    with Hosts(tmp_path / "second", data, **how) as second:
        assert second.ended() == [0] * count
    runs = [Run.open(tmp_path / place) for place in ("first", "second")]
    for run in runs:
        for column in ("loss", "val_loss"):
            np.testing.assert_allclose(run.history[column], one.history[column], rtol=1e-3)
    assert_same_weights(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_host_dies_the_other_ends_and_the_run_goes_on_with_one(data, tmp_path, killed):
    folder = tmp_path / "run"
    words = [*LONG, "--set", "fit.checkpoint_minutes=0.001"]
    with Hosts(folder, data, *words) as hosts:
        hosts.wait_for(has_row(folder))
        hosts.processes[killed].kill()
        died = time.monotonic()
        other = 1 - killed
        assert hosts.processes[other].wait(60) == 2
        assert time.monotonic() - died < 60
        [line] = [line for line in hosts.said(other).splitlines() if "error" in line]
        assert f"host {killed + 1} of 2" in line
        assert "--resume goes on" in line
        assert "Traceback" not in hosts.said(other)
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 3

    recipe = Run.open(folder).experiment
    epochs = len(Run.open(folder).history)
    with pytest.raises(Stopped):
        train(recipe, data, folder, resume=True, track=False, verbose=False, stop=stop)
    assert len(Run.open(folder).history) in (epochs - 1, epochs)


@pytest.mark.slow
def test_hosts_that_are_told_to_stop_do_so_together_and_go_on_with_another_number(data, tmp_path):
    folder = tmp_path / "run"
    words = ["--set", "fit.epochs=12", "--set", "fit.patience=null"]
    with Hosts(folder, data, *words) as hosts:
        hosts.wait_for(has_row(folder))
        os.kill(hosts.processes[1].pid, signal.SIGTERM)  # the other hears of it
        assert hosts.ended(60) == [130, 143]
        assert all("--resume goes on" in hosts.said(place) for place in range(2))
    assert Run.open(folder).info["status"] == "stopped"
    assert (folder / CHECKPOINT).is_file()
    done = len(Run.open(folder).history)
    with Hosts(folder, data, *words, "--resume", count=3) as hosts:
        assert hosts.ended() == [0, 0, 0]
    with Hosts(tmp_path / "whole", data, *words) as hosts:
        assert hosts.ended() == [0, 0]
    resumed, whole = Run.open(folder), Run.open(tmp_path / "whole")
    assert len(resumed.history) == 12
    assert not (folder / CHECKPOINT).exists()
    np.testing.assert_array_equal(resumed.history["loss"][:done], whole.history["loss"][:done])
    after = slice(done, done + 2)  # rounding then grows from update to update
    np.testing.assert_allclose(resumed.history["loss"][after], whole.history["loss"][after], 1e-3)


@pytest.mark.slow
def test_hosts_with_other_data_and_what_the_chief_refuses_end_all(data, demo_data, tmp_path):
    with Hosts(tmp_path / "run", [data, demo_data]) as hosts:
        assert hosts.ended(120) == [2, 2]
        for place in range(2):
            assert "host 2 of 2" in hosts.said(place)
            assert "has another data set than host 1 of 2" in hosts.said(place)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with Hosts(tmp_path / "taken", data) as hosts:
        assert hosts.ended(120) == [2, 2]
        for place in range(2):
            assert "is in use and holds no run" in hosts.said(place)
    with Hosts(tmp_path / "weights", data, "--set", "loss.weights=[1, 2]") as hosts:
        assert hosts.ended(120) == [2, 2]
        for place in range(2):
            assert "loss.weights has 2 weights" in hosts.said(place)


def test_a_host_begins_with_the_chiefs_weights(data, tmp_path):
    """Its own may come from another file of the same name."""

    class Second(Distribution):
        chief, part = False, Part(1, 2)

        def from_chief(self, make):
            return bytes_of([values + 1 for values in arrays_of(make())])

    recipe = recipes.load(recipes.Experiment(), SMALL)
    store, tracker = SliceStore(Prepared.load(data), recipe), Tracker(tmp_path, "x", enabled=False)
    split = {"train": np.arange(8), "validation": np.arange(8, 12)}
    fitter = Fitter(recipe, store, split, tmp_path, tracker, False, distribution=Second())
    before = [variable.numpy() for variable in fitter.variables]
    fitter._begin_alike()
    for values, variable in zip(before, fitter.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), values + 1)


@pytest.mark.parametrize(("theirs", "raised"), [(False, None), (True, "another host was told")])
def test_what_one_host_stops_all_stop(theirs, raised):
    """So none waits in a sum for one that has left."""
    hosts = training_hosts.Hosts.__new__(training_hosts.Hosts)
    told = []

    def any_of_all(mine):
        told.append(mine)
        return mine or theirs

    def stopped():
        raise Stopped("stopped here")

    hosts.any = any_of_all
    with pytest.raises(Stopped, match="stopped here"):
        hosts.alike(stopped)
    with pytest.raises(Stopped, match=raised) if raised else contextlib.nullcontext():
        hosts.alike(lambda: None)
    assert told == [True, False]
