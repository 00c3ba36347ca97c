"""A function mapped over items, in order, by worker processes that may die.

Workers are forked, where the system can, from a server process that has imported the modules they
need and nothing else: the first is there after one import, each of the others at once. The calling
process itself is never forked: it may hold threads, locks and TensorFlow.

Decoders written in C or C++ can end their process on a damaged file, or never come back. Here that
costs one item: what its worker had been given is tried again, each item in a process of its own,
and the one that ends its process, takes longer than the limit, or wants more memory than half of
the machine's, is answered by a stand-in. The other workers go on.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Generic

from medseq_tf.errors import InputError
from medseq_tf.execution.work import SECONDS_AN_ITEM, Item, Result, each_within

IN_FLIGHT_A_WORKER = 3
"""Groups of items that are read ahead of the one whose results are next, for each worker."""

LEAST_BYTES_A_WORKER = 2 * 2**30

ENDED = "reading it ended the process, or took too long"
"""Why the result of an item is a stand-in."""

_START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

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
) -> Generator[Result, None, None]:
    """Map a function over items in worker processes, few at a time.

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
    start_server(function.__module__)
    items = iter(items)
    groups = iter(lambda: list(itertools.islice(items, together)), [])
    first = list(itertools.islice(groups, workers or cores()))
    groups = itertools.chain(first, groups)
    call = functools.partial(_each_within, seconds, function)
    team: list[_Worker[Item, Result]] = []
    waiting: collections.deque[tuple[list[Item], Future[list[Result]]]] = collections.deque()
    with contextlib.ExitStack() as stack:
        for _ in range(max(len(first), 1)):
            team.append(stack.enter_context(_Worker(call, initializer)))
        for worker in team:
            worker.check_started()
        while True:
            _hand_out(groups, team, waiting)
            if not waiting:
                return
            group, results = waiting[0]
            if not results.done():
                wait([future for _, future in waiting if not future.done()], None, FIRST_COMPLETED)
                continue
            waiting.popleft()
            try:
                yield from results.result()
            except (BrokenProcessPool, MemoryError):
                for item in group:
                    yield _alone(call, item, stand_in, initializer)


def mapped(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    stand_in: Callable[[Item], Result],
    workers: int | None = None,
    together: int = 1,
) -> Iterator[Result]:
    """Map a function as `isolated_map` does, but in this process where there is one worker."""
    if workers == 1:
        return map(function, items)
    return isolated_map(function, items, stand_in, workers, together=together)


def start_server(*modules: str) -> None:
    """Start the process that workers are forked from, and do not wait until it is there.

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
    """Set variables of the environment that what is started meanwhile inherits."""
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
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hand_out(groups: Iterator[list], team: list[_Worker], waiting: collections.deque) -> None:
    """Give the next groups to the workers that have least to do, as far as may be read ahead."""
    while len(waiting) < len(team) * IN_FLIGHT_A_WORKER:
        worker = min(team, key=_Worker.unfinished)
        if worker.unfinished() > 1:
            return
        group = next(groups, None)
        if group is None:
            return
        waiting.append((group, worker.submit(group)))


def _alone(
    call: Callable[[list[Item]], list[Result]],
    item: Item,
    stand_in: Callable[[Item], Result],
    initializer: Callable[[], None] | None,
) -> Result:
    """Work on one item in a process of its own."""
    try:
        with _Worker(call, initializer) as worker:
            worker.check_started()
            return worker.submit([item]).result()[0]
    except (BrokenProcessPool, MemoryError):
        return stand_in(item)


class _Worker(Generic[Item, Result]):
    """One worker process, started again when it has died.

    It is a pool of one. A pool of several starts a process whenever an item finds none idle; one
    that starts just when another has died is missed by what ends the others and not by what waits
    for them, and `shutdown` waits for ever (seen in Python 3.11).

    Args:
        call: what is done with a group of items.
        initializer: run when the process starts.
    """

    def __init__(
        self,
        call: Callable[[list[Item]], list[Result]],
        initializer: Callable[[], None] | None,
    ):
        self.call = call
        self.initializer = initializer
        self._given: list[Future[list[Result]]] = []
        self._start()

    def __enter__(self) -> _Worker[Item, Result]:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> None:
        context = multiprocessing.get_context(_START_METHOD)
        self._pool = ProcessPoolExecutor(1, context, _start_worker, (self.initializer,))
        self._started = self._pool.submit(_do_nothing)

    def check_started(self) -> None:
        """Wait until the process is there.

        Raises:
            InputError: if it cannot be started.
        """
        try:
            self._started.result()
        except BrokenProcessPool:
            raise InputError(
                "no worker process can be started: too little memory, or a script that works "
                'outside `if __name__ == "__main__":`'
            ) from None

    def unfinished(self) -> int:
        """Count the groups of items that the worker has been given and not finished."""
        self._given = [future for future in self._given if not future.done()]
        return len(self._given)

    def submit(self, group: list[Item]) -> Future[list[Result]]:
        """Give the worker a group of items; the future's error is that the process died."""
        try:
            future = self._pool.submit(self.call, group)
        except BrokenProcessPool:
            self._pool.shutdown()
            self._start()
            self.check_started()
            future = self._pool.submit(self.call, group)
        self._given.append(future)
        return future


def _each_within(
    seconds: float, function: Callable[[Item], Result], group: list[Item]
) -> list[Result]:
    return list(each_within(seconds, function, group))


def _do_nothing() -> None:
    pass


def _start_worker(initializer: Callable[[], None] | None) -> None:
    """Prepare a worker: Ctrl-C is its parent's to answer, and it ends with its parent."""
    if initializer:
        initializer()
    bound_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def bound_memory() -> None:
    """Bound what a decoder may ask for, before a damaged file makes it take the whole machine."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = max(LEAST_BYTES_A_WORKER, machine // 2)
    if hard == resource.RLIM_INFINITY or bound < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
