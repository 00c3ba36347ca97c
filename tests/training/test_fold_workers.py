"""Folds on the nodes of a cluster are those of one process, stopped or not."""

from __future__ import annotations

import dataclasses
import pickle
import threading

import pandas as pd
import pytest
from ray_nodes import two_nodes  # noqa: F401 - a fixture
from runs_compared import assert_same_weights
from small_run import run_small

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Diverged, InputError, Stopped
from medseq_tf.runs.tracking import Section, Tracker
from medseq_tf.training import fold_workers
from medseq_tf.training.loop import CHECKPOINT

TWICE = {"folds": 2, "repeats": 2}
LONG = ("fit.epochs=16", "fit.patience=null", "fit.checkpoint_minutes=0.001")


def assert_same_runs(first, second):
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)
    assert len(first.folds) == len(second.folds)
    for one, other in zip(first.folds, second.folds, strict=True):
        assert_same_weights(one, other)


class Here:
    """A cluster whose one node is this process."""

    workers = 1

    def __init__(self, address, workers, **share):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def map(self, function, items, stand_in, **settings):
        yield from map(function, pickle.loads(pickle.dumps(items)))


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr("medseq_tf.training.train.RayExecutor", Here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


def files_of(run):
    return [sorted(file.name for file in fold.path.iterdir()) for fold in run.folds]


def test_folds_that_are_parts_of_a_run_have_what_they_have_in_one_process(
    demo_data, tmp_path, here
):
    untold = Section(Tracker(tmp_path, "all", enabled=False), ())
    settings = {"folds": 2, "track": untold}
    one = run_small(demo_data, tmp_path / "one", "fit.epochs=1", **settings)
    two = run_small(demo_data, tmp_path / "two", "fit.epochs=1", ray="here", **settings)
    assert files_of(one) == files_of(two)
    assert_same_runs(one, two)


def test_a_node_that_sees_another_data_set_trains_nothing(demo_data, tmp_path, here, monkeypatch):
    own = Prepared.load(demo_data)
    other = dataclasses.replace(own, info={**own.info, "fingerprint": "another"})
    monkeypatch.setattr(fold_workers.Prepared, "load", lambda folder: other)
    with pytest.raises(InputError, match="sees another data set"):
        run_small(own, tmp_path / "run", folds=2, ray="here")
    assert not (tmp_path / "run/fold_1/model.keras").exists()


def test_folds_on_nodes_choose_no_devices(demo_data, tmp_path, here):
    with pytest.raises(InputError, match="gpus_per_task"):
        run_small(demo_data, tmp_path / "run", folds=2, ray="here", devices=1)


@pytest.mark.slow
def test_folds_on_two_nodes_are_those_of_one_process(demo_data, tmp_path, two_nodes, capsys):  # noqa: F811
    one = run_small(demo_data, tmp_path / "one", **TWICE)
    two = run_small(demo_data, tmp_path / "two", ray=two_nodes, verbose=True, **TWICE)
    assert "4 folds on Ray, 2 at a time" in capsys.readouterr().out
    assert_same_runs(one, two)
    again = run_small(demo_data, tmp_path / "two", ray=two_nodes, resume=True, **TWICE)
    assert again.info == two.info


@pytest.mark.slow
def test_a_stop_lets_the_nodes_save_and_all_goes_on_from_there(demo_data, tmp_path, two_nodes):  # noqa: F811
    folder = tmp_path / "two"
    begun = threading.Event()

    def stop():
        """Once both nodes are at it."""
        if all((folder / f"fold_{n}" / "history.csv").is_file() for n in (1, 2)):
            begun.set()
        return begun.is_set()

    with pytest.raises(Stopped, match="--resume goes on"):
        run_small(demo_data, folder, *LONG, ray=two_nodes, folds=3, stop=stop)
    assert (folder / "fold_1" / CHECKPOINT).is_file()
    assert not (folder / fold_workers.STOP).exists()
    one = run_small(demo_data, tmp_path / "one", *LONG, folds=3)
    two = run_small(demo_data, folder, *LONG, ray=two_nodes, folds=3, resume=True)
    assert_same_runs(one, two)


@pytest.mark.slow
def test_what_a_fold_fails_of_is_said_here(demo_data, tmp_path, two_nodes):  # noqa: F811
    diverges = ("optimizer.name=sgd", "optimizer.learning_rate=1e30")
    with pytest.raises(Diverged):
        run_small(demo_data, tmp_path / "run", *diverges, ray=two_nodes, folds=2)
