"""Takes a function and items; gives its results, in order, from worker processes that may die.

Workers are forked, where the system can, from a server process that has imported the modules they
need and nothing else: the first is there after one import, each of the others at once. The calling
process itself is never forked: it may hold threads, locks and TensorFlow.

Decoders written in C or C++ can end their process on a damaged file, or never come back. Here that
costs one item: the items that were in flight are tried again, each in a process of its own, and the
one that ends its process, takes longer than the limit, or wants more memory than half of the
machine's, is answered by a stand-in.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import TypeVar

from medseq_tf.errors import InputError

try:
    import resource
except ImportError:  # not on Windows
    resource = None

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_AN_ITEM = 600.0
IN_FLIGHT_A_WORKER = 3
LEAST_BYTES_A_WORKER = 2 * 2**30

_HAS_SERVER = "forkserver" in multiprocessing.get_all_start_methods()
_START_METHOD = "forkserver" if _HAS_SERVER else "spawn"

# Threads that BLAS starts when it is imported would not survive a fork. What is freed is kept for
# the next study: to map a volume's pages anew each time costs a fifth of the time to read it.
_SERVER_ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**29)),
}


def isolated_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    stand_in: Callable[[Item], Result],
    workers: int | None = None,
    seconds: float = SECONDS_AN_ITEM,
    initializer: Callable[[], None] | None = None,
    together: int = 1,
) -> Iterator[Result]:
    """Maps a function over items in worker processes, few at a time.

    Args:
        function: picklable; its module is what worker processes import.
        items: picklable; read as they are needed.
        stand_in: gives, in this process, the result of an item that cannot be worked on.
        workers: processes, at most; default: one a core. No more start than there is work for.
        seconds: the longest that one item may take.
        initializer: run once in each worker process.
        together: items that a worker is given at a time; more for short work.

    Raises:
        InputError: if no worker process can be started.
    """
    workers = workers or cores()
    start_server(function.__module__)
    items, waiting = iter(items), collections.deque()
    first = list(itertools.islice(items, workers * together))
    workers = min(workers, max(1, math.ceil(len(first) / together)))
    items = itertools.chain(first, items)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_pool(workers, initializer))
        while True:
            room = workers * IN_FLIGHT_A_WORKER - len(waiting)
            for _ in range(room):
                group = list(itertools.islice(items, together))
                if group:
                    waiting.append((group, _submit(pool, function, group, seconds)))
            if not waiting:
                return
            try:
                results = waiting[0][1].result()
            except BrokenProcessPool:
                stack.close()
                groups = [group for group, _ in waiting]
                waiting.clear()
                for item in itertools.chain.from_iterable(groups):
                    yield _alone(function, item, stand_in, seconds, initializer)
                pool = stack.enter_context(_pool(workers, initializer))
            except MemoryError:
                for item in waiting.popleft()[0]:
                    yield _alone(function, item, stand_in, seconds, initializer)
            else:
                waiting.popleft()
                yield from results


def start_server(*modules: str) -> None:
    """Starts the process that workers are forked from, and does not wait until it is there.

    Called early, its imports run beside what the caller does next. The server ends with this
    process; once it runs, another call changes nothing.

    Args:
        modules: what it imports.
    """
    if _START_METHOD != "forkserver":
        return
    multiprocessing.get_context(_START_METHOD).set_forkserver_preload(list(modules))
    with _environment(**_SERVER_ENVIRONMENT):
        forkserver.ensure_running()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets variables of the environment that what is started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone(function, item, stand_in, seconds: float, initializer):
    try:
        with _pool(1, initializer) as pool:
            return _submit(pool, function, [item], seconds).result()[0]
    except (BrokenProcessPool, MemoryError):
        return stand_in(item)


@contextlib.contextmanager
def _pool(workers: int, initializer: Callable[[], None] | None) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context(_START_METHOD)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (initializer,))
    # All workers start with the first item. Left to itself, the pool starts one whenever an item
    # finds none idle; one that starts just when another has died is missed by what ends the others
    # and not by what waits for them, and `shutdown` waits for ever (seen in Python 3.11).
    pool._safe_to_dynamically_spawn_children = False
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


def _submit(pool: ProcessPoolExecutor, function, group: list, seconds: float) -> Future:
    """A future of the results of a group of items, broken already if the pool is."""
    try:
        return pool.submit(_each_within, seconds, function, group)
    except BrokenProcessPool as error:
        future = Future()
        future.set_exception(error)
        return future


def _each_within(seconds: float, function, group: list) -> list:
    """Ends the process, by an alarm that no code of ours or others' catches, when time is up."""
    if not hasattr(signal, "setitimer"):
        return [function(item) for item in group]
    results = []
    try:
        for item in group:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            results.append(function(item))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return results


def _do_nothing() -> None:
    pass


def _start_worker(initializer: Callable[[], None] | None) -> None:
    """Ctrl-C is the parent's to answer; a worker ends with its parent."""
    if initializer:
        initializer()
    _bound_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _bound_memory() -> None:
    """What a damaged file makes a decoder ask for is refused it, before the machine runs out."""
    if resource is None or not hasattr(os, "sysconf"):
        return
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = max(LEAST_BYTES_A_WORKER, machine // 2)
    if hard == resource.RLIM_INFINITY or bound < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
