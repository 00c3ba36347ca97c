"""Pieces in this process or in a pool beside it; on Ray they are in `test_ray_cluster`."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import pytest

import medseq_tf
from medseq_tf.errors import InputError
from medseq_tf.execution.executor import LocalExecutor, executor_for
from medseq_tf.execution.work import Work


def double_or_die(item):
    """Double the item; a negative one ends its process."""
    if item < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def make():
    return [os.getpid()]


def made_and(made, item):
    """What the process was made ready with, with what it was given until now."""
    made.append(item)
    return made[0], os.getpid(), len(made)


def lost(item):
    return "lost"


def test_one_worker_is_this_process():
    with executor_for(1, None) as executor:
        assert executor.workers == 1
        assert not executor.shared
        assert list(executor.map(double_or_die, range(3), lost, name="test")) == [0, 2, 4]
        ready = list(executor.map(made_and, "ab", lost, name="test", setup=make))
    assert ready == [(os.getpid(), os.getpid(), 2), (os.getpid(), os.getpid(), 3)]


def test_several_workers_are_processes_that_may_die():
    with executor_for(2, None) as executor:
        items = [1, -1, 2, 3]
        results = executor.map(double_or_die, items, lost, name="test", together=2)
        assert list(results) == [2, "lost", 4, 6]
        ready = list(executor.map(made_and, range(8), lost, name="test", setup=make))
    assert all(maker == worker != os.getpid() for maker, worker, _ in ready)
    assert max(count for *_, count in ready) > 2  # the second of a process found what the first had


def test_a_cluster_in_the_environment_is_nobodys_unless_asked_for(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    assert isinstance(executor_for(None, None), LocalExecutor)


def test_what_was_made_for_one_executor_is_forgotten_for_the_next():
    """A model of the same path may be another by then."""
    works = [Work(made_and, setup=make, of=of) for of in ("one", "one", "two", "one")]
    assert [work.of_item("a")[2] for work in works] == [2, 3, 2, 2]


def test_without_a_limit_no_alarm_is_set():
    work = Work(lambda item: signal.getitimer(signal.ITIMER_REAL)[0], seconds=math.inf)
    assert work.of_group([1]) == [0.0]
    (left,) = Work(work.function, seconds=50.0).of_group([1])
    assert 0 < left <= 50
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("module", ["medseq_tf.execution.executor", "medseq_tf.cli"])
def test_ray_is_imported_by_what_asks_for_it_alone(module):
    check = f"import {module}, sys; print([m for m in ('ray', 'grpc') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("shares", [{"cpus_per_task": 2}, {"gpus_per_task": 0.5}])
@pytest.mark.parametrize("command", ["train", "auto", "predict"])
def test_shares_of_a_node_go_with_ray(demo_data, command, shares):
    words = {"train": ("fsm_bilstm", demo_data), "auto": (demo_data,), "predict": ("model", "path")}
    with pytest.raises(InputError, match="cpus_per_task, gpus_per_task: go with --ray"):
        getattr(medseq_tf, command)(*words[command], **shares)
