"""Takes a function and items; gives its results, in order, from worker processes that may die.

Decoders written in C or C++ can end their process on a damaged file, or never come back. Here that
costs one item: the items that were in flight are tried again, each in a process of its own, and the
one that ends its process, or takes longer than the limit, is answered by a stand-in.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from medseq_tf.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_AN_ITEM = 600.0
IN_FLIGHT_A_WORKER = 3


def isolated_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    stand_in: Callable[[Item], Result],
    workers: int | None = None,
    seconds: float = SECONDS_AN_ITEM,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Maps a function over items in worker processes, few at a time.

    Args:
        function: picklable.
        items: picklable; read as they are needed.
        stand_in: gives, in this process, the result of an item that cannot be worked on.
        workers: processes; default: one a core.
        seconds: the longest that one item may take.
        initializer: run once in each worker process.

    Raises:
        InputError: if no worker process can be started.
    """
    workers = workers or cores()
    items, waiting = iter(items), collections.deque()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_pool(workers, initializer))
        while True:
            room = workers * IN_FLIGHT_A_WORKER - len(waiting)
            for item in itertools.islice(items, room):
                waiting.append((item, _submit(pool, function, item, seconds)))
            if not waiting:
                return
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool:
                stack.close()
                while waiting:
                    item = waiting.popleft()[0]
                    yield _alone(function, item, stand_in, seconds, initializer)
                pool = stack.enter_context(_pool(workers, initializer))
            else:
                waiting.popleft()
                yield result


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone(function, item, stand_in, seconds: float, initializer):
    try:
        with _pool(1, initializer) as pool:
            return _submit(pool, function, item, seconds).result()
    except BrokenProcessPool:
        return stand_in(item)


@contextlib.contextmanager
def _pool(workers: int, initializer: Callable[[], None] | None) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (initializer,))
    try:
        pool.submit(_do_nothing).result()
    except BrokenProcessPool:
        raise InputError(
            "no worker process can be started: too little memory, or a script that works outside "
            '`if __name__ == "__main__":`'
        ) from None
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function, item, seconds: float):
    """A future of the item, broken already if the pool is."""
    try:
        return pool.submit(_within, seconds, function, item)
    except BrokenProcessPool as error:
        future = Future()
        future.set_exception(error)
        return future


def _within(seconds: float, function, item):
    """Ends the process, by an alarm that no code of ours or others' catches, when time is up."""
    if not hasattr(signal, "setitimer"):
        return function(item)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _do_nothing() -> None:
    pass


def _start_worker(initializer: Callable[[], None] | None) -> None:
    """Ctrl-C is the parent's to answer; a worker ends with its parent."""
    if initializer:
        initializer()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
