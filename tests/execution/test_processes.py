"""Worker processes may die; that costs the item that killed one, and nothing else."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import time

from medseq_tf.execution.processes import isolated_map


def work(item):
    """Double the item; -1 ends its process, -2 never ends."""
    if item == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    while item == -2:
        time.sleep(0.1)
    return 2 * item


def worker_of():
    return os.getpid()


def work_or_call(item):
    return item() if callable(item) else work(item)


def test_results_are_in_order_and_items_that_kill_get_a_stand_in():
    items = [1, 2, -1, 3, 4, -1, 5]
    results = list(isolated_map(work, iter(items), lambda item: "lost", workers=2))
    assert results == [2, 4, "lost", 6, 8, "lost", 10]


def test_an_item_that_kills_is_the_only_one_lost_of_those_it_came_with():
    items = list(range(1, 12))
    items[4] = -1
    results = list(isolated_map(work, iter(items), lambda item: "lost", workers=2, together=4))
    assert results == ["lost" if item == -1 else 2 * item for item in items]


def test_the_other_workers_go_on_when_one_dies():
    """What kills is given to one worker; the others keep their process to the end."""
    items = [worker_of, *[-1] * 3, *[worker_of] * 20]
    results = list(isolated_map(work_or_call, items, lambda item: "lost", workers=3))
    assert results[1:4] == ["lost"] * 3
    counts = collections.Counter(results[4:])
    assert len(counts) <= 6


def test_a_worker_that_dies_while_others_start_is_not_waited_for():
    """A pool that starts a process just when another dies would end only some, and wait for all."""
    for _ in range(5):
        results = list(isolated_map(work, [-1] * 6 + [1], lambda item: "lost", workers=6))
        assert results == ["lost"] * 6 + [2]


def test_few_items_start_few_workers():
    before = set(multiprocessing.active_children())
    for count, together, workers in [(0, 1, 1), (1, 1, 1), (2, 1, 2), (9, 1, 3), (5, 4, 2)]:
        results = isolated_map(work, range(count), str, 3, together=together)
        first = next(results, None)
        assert first == (0 if count else None)
        if count:
            assert len(set(multiprocessing.active_children()) - before) == workers
        assert list(results) == [2 * item for item in range(1, count)]
    assert set(multiprocessing.active_children()) <= before


def environment(item):
    """A variable of a worker's environment, and whether it is a process of its own."""
    return os.environ.get(item), os.getpid()


def test_the_environment_of_this_process_stays_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    ((_, worker),) = isolated_map(environment, ["HOME"], lambda item: "lost", workers=1)
    assert worker != os.getpid()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_an_item_that_never_ends_gets_a_stand_in():
    results = list(isolated_map(work, [1, -2], lambda item: "lost", workers=1, seconds=1.0))
    assert results == [2, "lost"]


def test_nothing_to_do():
    assert list(isolated_map(work, [], lambda item: "lost", workers=1)) == []
