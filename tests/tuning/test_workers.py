"""Trials side by side, here and on Ray: the same as one by one, whatever is stopped or killed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import tensorflow as tf
from ray_nodes import started_nodes
from trials import SINGLE, command, outcome, wait_for

from medseq_tf.errors import InputError, Unreachable
from medseq_tf.tuning import trial, tune, workers


class Scheduler:
    """A few trials that need no training."""

    def __init__(self, folder, count, pauses=0):
        self.search = SimpleNamespace(path=folder)
        self.waiting = [f"{number:04d}" for number in range(count)]
        self.pauses, self.found = pauses, {}
        self._lock = threading.Lock()

    def next(self, worker):
        with self._lock:
            if self.pauses:
                self.pauses -= 1
                return {"kind": "wait"}
            if not self.waiting:
                return {"kind": "stop"}
            return {"kind": "run", "trial": self.waiting.pop(0), "job": {"rate": 0.1}}

    def report(self, name, found):
        with self._lock:
            assert name not in self.found
            self.found[name] = found


def test_every_trial_is_trained_once_whoever_does_it(tmp_path):
    jobs, scheduler = {}, Scheduler(tmp_path, 40)

    def train(folder, job, seconds_left):
        jobs[folder] = job
        return outcome(int(folder.name) / 100)

    workers.train_trials(scheduler, {"data": "d"}, workers.Team([train] * 4))
    assert sorted(scheduler.found) == [f"{number:04d}" for number in range(40)]
    assert scheduler.found["0007"]["score"] == 0.07
    assert jobs[tmp_path / "trials" / "0007"] == {"rate": 0.1, "data": "d"}


def test_so_many_trials_are_in_flight_as_there_are_workers(tmp_path):
    together = threading.Barrier(3)

    def train(folder, job, seconds_left):
        together.wait(30)  # passed by three at a time, or never
        return outcome(0.5)

    scheduler = Scheduler(tmp_path, 6)
    workers.train_trials(scheduler, {}, workers.Team([train] * 3))
    assert len(scheduler.found) == 6


def test_who_finds_nothing_to_do_asks_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PAUSE", 0.01)
    scheduler = Scheduler(tmp_path, 2, pauses=5)
    workers.train_trials(scheduler, {}, workers.Team([lambda *_: outcome(0.5)] * 2))
    assert len(scheduler.found) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left on device")])
def test_what_ends_one_lets_the_others_save_and_no_trial_begins(tmp_path, error):
    saved, began = [], threading.Event()

    def train(folder, job, seconds_left):
        if folder.name == "0000":
            assert began.wait(30)
            raise error
        began.set()
        while seconds_left() == math.inf:
            time.sleep(0.01)
        assert 0 < seconds_left() <= trial.SAVE_SECONDS
        saved.append(folder.name)

    scheduler = Scheduler(tmp_path, 9)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        workers.train_trials(scheduler, {}, workers.Team([train] * 2))
    assert saved == ["0001"]
    assert not scheduler.found
    assert len(scheduler.waiting) == 7


def test_an_end_that_was_asked_for_is_not_put_off():
    ending = trial.Ending()
    assert ending.seconds_left() == math.inf
    ending.ask(5)
    ending.ask(60)
    assert 4 < ending.seconds_left() <= 5
    ending.ask(0)
    assert ending.seconds_left() <= 0


def test_gpus_that_are_visible_are_dealt_out(monkeypatch):
    """Or else every trial would be trained on all of them, beside the others."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    dealt = [variables["CUDA_VISIBLE_DEVICES"] for variables in workers._devices(3)]
    assert dealt == ["2", "3", "2"]
    assert workers._devices(1) == [{}], "which takes them all"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES" not in workers._devices(2)[1]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for gpus, expected in ((3, ["0", "1"]), (1, [None, None]), (0, [None, None])):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _, gpus=gpus: ["GPU"] * gpus)
        dealt = [variables.get("CUDA_VISIBLE_DEVICES") for variables in workers._devices(2)]
        assert dealt == expected


# ------------------------------------------------------------------------- on the nodes of Ray


def piece(tmp_path, **job):
    folder = tmp_path / "search" / "trials" / "0000"
    folder.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    return workers._Piece(str(folder), {"data": str(tmp_path / "data"), **job}, {"A": "1"})


@pytest.mark.parametrize("lacks", ["search", "data"])
def test_a_node_that_does_not_see_the_storage_is_one_line(tmp_path, lacks):
    given = piece(tmp_path)
    (tmp_path / lacks).rename(tmp_path / "elsewhere")
    with pytest.raises(Unreachable, match=rf"node \S+ .* see {tmp_path}/{lacks}.*; data and out "):
        workers._trained_there(given)


def test_a_node_learns_by_a_file_that_the_search_ends(tmp_path, monkeypatch):
    told = []

    def run(folder, job, variables, seconds_left, hopeless):
        told.append(seconds_left())
        (tmp_path / "search" / workers.STOP).touch()
        told.append(seconds_left())
        assert (variables, hopeless()) == ({"A": "1"}, None)

    monkeypatch.setattr(trial, "run", run)
    assert workers._trained_there(piece(tmp_path)) is None
    assert told[0] == math.inf
    assert 0 < told[1] <= trial.SAVE_SECONDS


class Cluster:
    """Stands for a Ray cluster; `answer` says what becomes of a piece."""

    def __init__(self, answer):
        self.answer, self.ended = answer, threading.Event()

    def map(self, function, items, stand_in, *, name, seconds):
        assert (name, seconds) == ("trial", math.inf)
        for item in items:
            yield self.answer(function, item, stand_in)

    def end(self):
        self.ended.set()


def team(cluster, tmp_path, count=1):
    (tmp_path / "search").mkdir(exist_ok=True)
    return workers._team_on(cluster, count, tmp_path / "search")


def test_a_trial_whose_workers_were_lost_has_failed_with_its_reason(tmp_path):
    cluster = Cluster(lambda function, item, stand_in: stand_in(item))
    (train,) = team(cluster, tmp_path).members
    found = train(tmp_path / "search" / "trials" / "0000", {}, lambda: math.inf)
    assert found["status"] == "failed"
    assert found["reason"] == "the worker that trained it was lost, 3 times"


def test_what_a_node_is_given_holds_on_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    given = []
    (train,) = team(Cluster(lambda _, item, __: given.append(item)), tmp_path).members
    train(Path("search/trials/0000"), {}, lambda: math.inf)
    assert given[0].folder == str(tmp_path / "search" / "trials" / "0000")
    assert given[0].variables["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'here.db'}"


def test_work_that_waits_for_a_node_is_ended_too(tmp_path, monkeypatch):
    """A second Ctrl-C, or the time to save being over."""
    monkeypatch.setattr(trial, "SAVE_SECONDS", 0.2)
    began = threading.Event()

    def answer(function, item, stand_in):
        began.set()
        assert cluster.ended.wait(30)
        raise RuntimeError("ended")

    cluster = Cluster(answer)
    scheduler = Interrupted(tmp_path / "search", began)
    crew = team(cluster, tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        workers.train_trials(scheduler, {}, crew)
    assert (tmp_path / "search" / workers.STOP).exists(), "those at work are told first"
    team(cluster, tmp_path)
    assert not (tmp_path / "search" / workers.STOP).exists(), "and it is not what comes next"


class Interrupted:
    """One trial for the first worker, and Ctrl-C for the second."""

    def __init__(self, path, began):
        self.search, self.began = SimpleNamespace(path=path), began

    def next(self, worker):
        if worker == "worker 1":
            return {"kind": "run", "trial": "0000", "job": {}}
        assert self.began.wait(30)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cpus_per_trial": 2}, "go with --ray"),
        ({"gpus_per_trial": 0.5}, "go with --ray"),
        ({"ray": "nowhere"}, "--ray nowhere: is neither HOST:PORT"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(tmp_path, demo_data, arguments, words):
    with pytest.raises(InputError, match=words):
        tune.tune(SINGLE, demo_data, tmp_path / "search", track=False, verbose=False, **arguments)
    assert not (tmp_path / "search").exists()


# -------------------------------------------------------------------------- the real command

QUIET = ["--no-base", "--no-retrain", "--no-track"]


def trials_in_training(out):
    """Return the processes of a search's trials, on whatever node, by the trial's name."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "medseq_tf.tuning.trial" in words and words[-1].startswith(str(out)):
            found[Path(words[-1]).name] = process
    return found


def results(out):
    """Return what each trial of a search came to, without what a clock or a process says."""
    found = {}
    for file in sorted(out.glob("trials/*/result.json")):
        result = json.loads(file.read_text("utf-8"))
        found[file.parent.name] = {
            name: result.get(name) for name in ("status", "score", "epochs", "held_out")
        }
    return found


def two_are_in_training(out):
    """Whether two trials are, each of which has finished an epoch, now or before."""
    return len(trials_in_training(out)) == 2 and all(
        (out / "trials" / name / "run" / "history.csv").exists() for name in trials_in_training(out)
    )


def begun(words, folder):
    """Return the running command."""
    return psutil.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def alone(demo_data, tmp_path_factory):
    """What a search comes to, one trial after the other: its words, and the results."""
    folder = tmp_path_factory.mktemp("alone")
    words = [*QUIET, "--set", "fit.epochs=8", "--trials", "4"]
    out = folder / "search"
    done = subprocess.run(
        command(SINGLE, demo_data, out, *words), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return words, results(out)


@pytest.mark.slow
def test_two_nodes_come_to_the_scores_of_one_process(two_nodes, alone, demo_data, no_server):
    words, expected = alone
    out = no_server / "search"
    done = subprocess.run(
        command(SINGLE, demo_data, out, *words, "--ray", two_nodes),
        cwd=no_server,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [found["status"] for found in expected.values()] == ["finished"] * 4
    assert results(out) == expected
    assert str(demo_data) not in done.stderr


@pytest.mark.slow
def test_what_is_killed_costs_no_trial(alone, demo_data, no_server):
    """A worker, then the driver, then a node, each with two trials in training."""
    words, expected = alone
    out = no_server / "search"
    cluster = started_nodes()
    try:
        words = command(SINGLE, demo_data, out, *words, "--ray", cluster.address)
        driver = begun(words, no_server)
        wait_for(lambda: driver.poll() is not None or two_are_in_training(out))
        assert driver.poll() is None, driver.communicate()
        (_, first), *_ = trials_in_training(out).items()
        first.parent().kill()
        wait_for(lambda: not first.is_running(), 20)
        wait_for(lambda: driver.poll() is not None or two_are_in_training(out))
        assert driver.poll() is None, driver.communicate()
        both = trials_in_training(out).values()
        driver.kill()
        driver.communicate()
        wait_for(lambda: not any(process.is_running() for process in both), 30)

        driver = begun(words, no_server)
        wait_for(lambda: driver.poll() is not None or trials_in_training(out))
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        said, errors = driver.communicate(timeout=400)
        assert driver.returncode == 0, errors
        assert "goes on" in said
    finally:
        cluster.shutdown()
    assert results(out) == expected


@pytest.mark.slow
def test_sigterm_lets_trials_on_other_nodes_save(two_nodes, alone, demo_data, no_server):
    words, expected = alone
    out = no_server / "search"
    words = command(SINGLE, demo_data, out, *words, "--ray", two_nodes)
    driver = begun(words, no_server)
    wait_for(lambda: driver.poll() is not None or two_are_in_training(out))
    assert driver.poll() is None, driver.communicate()
    running = trials_in_training(out)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=trial.SAVE_SECONDS)  # or else they were killed
    assert driver.returncode == 143, errors
    assert "the same command goes on" in errors
    assert not any(process.is_running() for process in running.values())
    subprocess.run(words, cwd=no_server, check=True, capture_output=True)
    assert results(out) == expected


@pytest.mark.slow
def test_stopped_or_killed_with_two_in_flight_it_goes_on(alone, demo_data, no_server):
    """SIGTERM, then kill -9, each with two trials in training; no trial outlives them."""
    words, expected = alone
    out = no_server / "search"
    words = command(SINGLE, demo_data, out, *words, "--workers", "2")
    for end, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        running = begun(words, no_server)
        wait_for(lambda running=running: running.poll() is not None or two_are_in_training(out))
        trials = trials_in_training(out).values()
        running.send_signal(end)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == status, errors
        wait_for(lambda trials=trials: not any(one.is_running() for one in trials), 20)
    subprocess.run(words, cwd=no_server, check=True, capture_output=True)
    assert results(out) == expected
