"""Trials side by side: the same as one after the other, and nobody waits for one who is gone."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
from trials import SINGLE, command, outcome, wait_for

from medseq_tf.tuning import trial, workers
from medseq_tf.tuning.search import Search


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

    workers.train_trials(scheduler, {"data": "d"}, [train] * 4)
    assert sorted(scheduler.found) == [f"{number:04d}" for number in range(40)]
    assert scheduler.found["0007"]["score"] == 0.07
    assert jobs[tmp_path / "trials" / "0007"] == {"rate": 0.1, "data": "d"}


def test_so_many_trials_are_in_flight_as_there_are_workers(tmp_path):
    together = threading.Barrier(3)

    def train(folder, job, seconds_left):
        together.wait(30)  # passed by three at a time, or never
        return outcome(0.5)

    scheduler = Scheduler(tmp_path, 6)
    workers.train_trials(scheduler, {}, [train] * 3)
    assert len(scheduler.found) == 6


def test_who_finds_nothing_to_do_asks_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PAUSE", 0.01)
    scheduler = Scheduler(tmp_path, 2, pauses=5)
    workers.train_trials(scheduler, {}, [lambda *_: outcome(0.5)] * 2)
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
        workers.train_trials(scheduler, {}, [train] * 2)
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


def test_gpus_that_are_named_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    dealt = [variables["CUDA_VISIBLE_DEVICES"] for variables in workers._devices(3)]
    assert dealt == ["2", "3", "2"]
    assert workers._devices(1) == [{}], "which takes them all"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES" not in workers._devices(2)[1]


# -------------------------------------------------------------------------- the real command


def trials_of(process):
    """Return the processes of the trials that a command has in training."""
    try:
        children = process.children()
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if "medseq_tf.tuning.trial" in child.cmdline()]


@pytest.mark.slow
def test_stopped_or_killed_with_two_in_flight_it_ends_as_one_after_the_other(demo_data, no_server):
    """SIGTERM, then kill -9, each with two trials in training; no trial outlives them."""
    quiet = ["--no-base", "--no-retrain", "--no-track", "--set", "fit.epochs=3", "--trials", "4"]
    (no_server / "one").mkdir()
    one = command(SINGLE, demo_data, no_server / "one" / "search", *quiet)
    subprocess.run(one, cwd=no_server, check=True, capture_output=True)
    out = no_server / "search"
    words = command(SINGLE, demo_data, out, *quiet, "--workers", "2")
    for end, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9), (None, 0)):
        running = psutil.Popen(
            words, cwd=no_server, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if end is not None:
            checkpoints = len([*out.glob("trials/*/run/checkpoint.npz")])
            wait_for(
                lambda running=running, before=checkpoints: (
                    running.poll() is not None
                    or (
                        len(trials_of(running)) == 2
                        and len([*out.glob("trials/*/run/checkpoint.npz")]) > before
                    )
                )
            )
            trials = trials_of(running)
            running.send_signal(end)
        _, errors = running.communicate(timeout=300)
        assert running.returncode == status, errors
        wait_for(lambda trials=trials: not any(one.is_running() for one in trials), 20)
    found, alone = Search.load(out), Search.load(no_server / "one" / "search")
    assert found.trials["status"].tolist() == ["finished"] * 4
    for name in found.trials["trial"]:
        results = [
            json.loads((search.path / "trials" / name / "result.json").read_text("utf-8"))
            for search in (found, alone)
        ]
        assert results[0]["held_out"] == results[1]["held_out"], name
