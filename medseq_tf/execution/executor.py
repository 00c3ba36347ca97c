"""Where pieces of work run: in this process, in a pool of processes, or on the nodes of Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from medseq_tf.errors import InputError
from medseq_tf.execution.processes import cores, isolated_map
from medseq_tf.execution.ray_cluster import MOST_DEATHS, RayExecutor
from medseq_tf.execution.work import SECONDS_AN_ITEM, Item, Result, Work


class Executor(Protocol):
    """Maps a function over pieces; a context manager that gives back what it holds.

    Pieces, functions and results are picklable and small: paths and numbers, no slices.

    """

    @property
    def workers(self) -> int:
        """How many pieces are worked on at once, about; it may change."""

    @property
    def shared(self) -> bool:
        """Whether pieces run on other machines.

        Then every path in them is absolute, and on storage that all machines see.
        """

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        stand_in: Callable[[Item], Result],
        *,
        name: str,
        together: int = 1,
        initializer: Callable[[], None] | None = None,
        setup: Callable[[], Any] | None = None,
        seconds: float = SECONDS_AN_ITEM,
        deaths: int = MOST_DEATHS,
    ) -> Generator[Result]:
        """Yield the results in the order of the items, with few in flight; closed, it drops those.

        An exception of the function's is raised here when it is that item's turn. Threads may map
        at the same time; a thread that wants one piece done maps over one item.

        Args:
            function: of an item; with `setup`, of what that gave and an item.
            items: read as they are needed.
            stand_in: gives, in this process, the result of an item that cannot be worked on.
            name: what Ray's dashboard calls a piece (`prepare`, `predict`, `encode`, `trial`,
                `candidate`, `fold`); nothing of a patient, and no path.
            together: items that a worker is given at a time; more for short work.
            initializer: called once in each worker process.
            setup: the same, and what it gives (a model) is kept in the process for the maps of this
                executor, and handed to the function with every item.
            seconds: the longest that one item may take; `math.inf`: any time.
            deaths: of an item's worker; after so many `stand_in` answers, until then another worker
                tries again. A pool of this machine has its own rule, see `processes`.
        """

    def close(self) -> None:
        """Give back what it holds; pieces in flight end."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...


class LocalExecutor:
    """This process, where one worker is asked for, or else a pool of worker processes beside it.

    In this process nothing stands in for what ends it, nothing limits the time of an item, and no
    initializer is called.

    Args:
        workers: processes, at most; default: one a core.
    """

    shared = False

    def __init__(self, workers: int | None = None):
        self.workers = workers or cores()
        self._is_this_process = workers == 1

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        stand_in: Callable[[Item], Result],
        *,
        name: str,
        together: int = 1,
        initializer: Callable[[], None] | None = None,
        setup: Callable[[], Any] | None = None,
        seconds: float = SECONDS_AN_ITEM,
        deaths: int = MOST_DEATHS,
    ) -> Generator[Result]:
        """Map as an `Executor` does."""
        if self._is_this_process:
            return _here(function, items, setup)
        work: Work[Item, Result] = Work(function, setup=setup)
        of_item = work.of_item if setup else function
        return isolated_map(of_item, items, stand_in, self.workers, seconds, initializer, together)

    def close(self) -> None:
        """Do nothing: processes end with the map that they were started for."""

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _here(
    function: Callable[..., Result], items: Iterable[Item], setup: Callable[[], Any] | None
) -> Generator[Result]:
    """Map in this process, which keeps nothing when the map ends."""
    yield from map(functools.partial(function, setup()) if setup else function, items)


def refuse_without_ray(ray: str | None, cpus: float, gpus: float, piece: str = "task") -> None:
    """Raise an InputError for what a piece of work is to have of a node, where there is none."""
    if ray is None and (cpus, gpus) != (1.0, 0.0):
        raise InputError(f"cpus_per_{piece}, gpus_per_{piece}: go with --ray")


def check_workers(workers: int | None) -> None:
    """Raise an InputError if that is no number of processes."""
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise InputError(f"workers={workers!r} is not a number of processes, 1 or more")


def executor_for(
    workers: int | None, ray: str | None, *, cpus: float = 1.0, gpus: float = 0.0
) -> Executor:
    """Return where pieces run.

    Args:
        workers: pieces at once, at most; default: one a core of this machine, or with Ray as many
            as its nodes have room for.
        ray: of a Ray cluster, see `ray_cluster.connected`; None: this machine, also where
            `RAY_ADDRESS` is set.
        cpus: of a node that a piece takes, on Ray.
        gpus: the same; a fraction shares one.

    Raises:
        InputError: the cluster cannot be used, or `workers` is no number of them.
    """
    check_workers(workers)
    if ray is None:
        return LocalExecutor(workers)
    return RayExecutor(ray, workers, cpus, gpus)
