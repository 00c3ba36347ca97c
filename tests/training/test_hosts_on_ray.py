"""A training of several hosts that Ray starts: its nodes are in this machine."""

from __future__ import annotations

import numpy as np
import pytest
from host_processes import refuse_on_the_second
from ray_nodes import two_nodes  # noqa: F401 - a fixture
from small_run import run_small

from medseq_tf.errors import InputError, Stopped
from medseq_tf.execution import ray_cluster
from medseq_tf.runs.run import Run
from medseq_tf.training import train as training
from medseq_tf.training.loop import CHECKPOINT


def test_hosts_go_with_ray_and_without_folds(demo_data, tmp_path):
    with pytest.raises(InputError, match="hosts = 2: goes with ray"):
        run_small(demo_data, tmp_path / "run", hosts=2)
    with pytest.raises(InputError, match=r"hosts = 2: goes with ray.*without folds"):
        run_small(demo_data, tmp_path / "run", hosts=2, ray="auto", folds=3)
    with pytest.raises(InputError, match=r"hosts = 2: goes with ray.*without folds"):
        run_small(demo_data, tmp_path / "run", hosts=2, ray="auto", repeats=3)


def test_hosts_are_told_how_many_devices_to_take(demo_data, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(training, "on_ray", lambda train, arguments, *_: told.append(arguments))
    run_small(demo_data, tmp_path / "run", hosts=2, ray="auto", devices=3)
    assert told[0]["devices"] == 3


@pytest.mark.slow
def test_two_nodes_train_as_one_device(demo_data, tmp_path, two_nodes, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    one = run_small(demo_data, tmp_path / "one")
    two = run_small(demo_data, "two", ray=two_nodes, hosts=2, verbose=True)
    assert two.path == tmp_path / "two"
    assert two.info["devices"] == 2
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(two.history[name], one.history[name], rtol=1e-3)
    assert "Epoch 2 - " in capsys.readouterr().out


@pytest.mark.slow
def test_when_one_host_fails_the_others_do_not_wait_for_it(two_nodes, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ray_cluster, "SECONDS_TO_FOLLOW", 2)
    with pytest.raises(InputError, match=r"^a study cannot be read$"):
        ray_cluster.on_hosts(two_nodes, 2, refuse_on_the_second)


@pytest.mark.slow
def test_what_a_host_refuses_is_one_line_here_and_a_stop_saves(demo_data, tmp_path, two_nodes):  # noqa: F811
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError, match="is in use and holds no run"):
        run_small(demo_data, tmp_path / "taken", ray=two_nodes, hosts=2)
    with pytest.raises(InputError, match="has no 3 nodes with 1 CPUs free on each"):
        run_small(demo_data, tmp_path / "run", ray=two_nodes, hosts=3)
    folder = tmp_path / "stopped"
    more = ("fit.epochs=500", "fit.patience=null")
    stop = (folder / "history.csv").is_file
    with pytest.raises(Stopped, match="--resume goes on"):
        run_small(demo_data, folder, *more, ray=two_nodes, hosts=2, stop=stop)
    assert Run.open(folder).info["status"] == "stopped"
    assert (folder / CHECKPOINT).is_file()
