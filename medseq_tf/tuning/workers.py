"""Workers train the trials of a search side by side: a thread of this process for each.

A thread has its trial trained in a process of its own, see `trial.run`, on this machine or on a
node of a Ray cluster. The oracle and the booking of results stay in this process.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from medseq_tf.execution.executor import refuse_without_ray
from medseq_tf.execution.ray_cluster import MOST_DEATHS, RayExecutor
from medseq_tf.execution.work import require_seen
from medseq_tf.runs.mlflow_store import absolute_uri
from medseq_tf.tuning import trial
from medseq_tf.tuning.hopeless import MedianRule
from medseq_tf.tuning.scheduler import TrialScheduler

PAUSE = 0.5
"""Seconds until a worker that found nothing to do asks again."""

LOST = f"the worker that trained it was lost, {MOST_DEATHS} times"
STOP = ".stop"
"""A file of a search's folder that tells workers on other nodes to end."""

SecondsLeft = Callable[[], float]
Outcome = dict[str, Any] | None
Train = Callable[[Path, dict[str, Any], SecondsLeft], Outcome]
"""Trains the trial of a folder by its job; the last says how many seconds it may still take."""


@dataclass(frozen=True)
class Team:
    """Workers, and how they are told to end.

    Attributes:
        members: what has a trial trained, for each worker.
        end: ends what is in flight, saved or not, once the time to save is over.
        ending: asks them to save and to end.
    """

    members: Sequence[Train]
    end: Callable[[], None] = lambda: None
    ending: trial.Ending = field(default_factory=trial.Ending)


def train_trials(scheduler: TrialScheduler, here: dict[str, Any], team: Team) -> None:
    """Train the trials of a search until there are no more.

    Args:
        scheduler: hands them out and takes their results.
        here: what jobs need to know of this machine: `data`, `splits` and `features`, paths.
        team: who trains them.

    Raises:
        KeyboardInterrupt: passed on after the trials in flight have saved their state; of a second
            one, at once.
    """
    with ThreadPoolExecutor(len(team.members), "worker") as pool:
        threads = []
        try:
            for number, train in enumerate(team.members, start=1):
                name = f"worker {number}"
                threads.append(pool.submit(_work, scheduler, name, here, train, team.ending))
            for thread in as_completed(threads):
                thread.result()
        except BaseException:
            team.ending.ask(trial.SAVE_SECONDS)
            try:
                wait(threads, trial.SAVE_SECONDS)
            finally:
                team.ending.ask(0)
                team.end()
            raise


def _work(
    scheduler: TrialScheduler, worker: str, here: dict[str, Any], train: Train, ending: trial.Ending
) -> None:
    """Train one trial after the other."""
    while ending.seconds_left() == math.inf:
        order = scheduler.next(worker)
        if order["kind"] == "stop":
            return
        if order["kind"] == "wait":
            time.sleep(PAUSE)
            continue
        name = order["trial"]
        folder, job = scheduler.search.path / "trials" / name, {**order["job"], **here}
        if (found := train(folder, job, ending.seconds_left)) is not None:
            scheduler.report(name, found)


@contextlib.contextmanager
def teams(
    workers: int | None, ray: str | None, cpus: float, gpus: float
) -> Iterator[Callable[[Path], Team]]:
    """Yield what returns the workers of the search in a folder.

    Args:
        workers: trials at a time; default: one, on a Ray cluster as many as it has room for.
        ray: the address of the cluster; None: this machine.
        cpus: of a node, that a trial takes.
        gpus: the same.

    Raises:
        InputError: the cluster cannot be used.
    """
    refuse_without_ray(ray, cpus, gpus, "trial")
    if ray is None:
        yield lambda folder: _team_here(workers or 1)
        return
    with RayExecutor(ray, workers, cpus, gpus) as executor:
        count = workers or executor.workers
        yield lambda folder: _team_on(executor, count, folder)


# ------------------------------------------------------------------------------ on this machine


def _team_here(count: int) -> Team:
    """Return so many workers on this machine."""
    return Team([_trained_here(variables) for variables in _devices(count)])


def _trained_here(variables: dict[str, str]) -> Train:
    def train(folder: Path, job: dict[str, Any], seconds_left: SecondsLeft) -> Outcome:
        return trial.run(folder, job, variables, seconds_left, _hopeless(folder, job))

    return train


def _hopeless(folder: Path, job: dict[str, Any]) -> Callable[[], str | None]:
    """Return what says of a trial that it is hopeless, if the job asks for that."""
    if not job.get("stop_hopeless"):
        return lambda: None
    return MedianRule(folder, job["recipe"]["fit"]["monitor"])


def _devices(count: int) -> list[dict[str, str]]:
    """Return variables by worker: the GPUs that are visible are dealt out, one a worker."""
    if count == 1:
        return [{}]
    shared, gpus = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}, _visible_gpus()
    if len(gpus) < 2:
        return [shared] * count
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]


def _visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES calls the GPUs that it names, or else all of them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    import tensorflow as tf

    return [str(number) for number in range(len(tf.config.list_physical_devices("GPU")))]


# ------------------------------------------------------------------------- on the nodes of Ray


class _Piece(NamedTuple):
    """A trial as a node is given it."""

    folder: str
    job: dict[str, Any]
    variables: dict[str, str]


class _SharedEnding(trial.Ending):
    """An ending of which a file tells those on other nodes."""

    def __init__(self, file: Path):
        super().__init__()
        self._file = file
        file.unlink(missing_ok=True)

    def ask(self, seconds: float) -> None:
        """Ask all to end, within so many seconds at most."""
        super().ask(seconds)
        self._file.touch()


def _team_on(executor: RayExecutor, count: int, folder: Path) -> Team:
    """Return so many workers whose trials are trained on a Ray cluster.

    Args:
        executor: the cluster.
        count: trials at a time.
        folder: the search's, which all nodes see.
    """
    variables = {"MLFLOW_TRACKING_URI": absolute_uri()}

    def train(place: Path, job: dict[str, Any], _: SecondsLeft) -> Outcome:
        piece = _Piece(str(place.resolve()), job, variables)
        found = executor.map(_trained_there, [piece], _lost, name="trial", seconds=math.inf)
        return next(iter(found))

    return Team([train] * count, executor.end, _SharedEnding(folder / STOP))


def _lost(piece: _Piece) -> Outcome:
    return trial.failure(LOST, Path(piece.folder))


def _trained_there(piece: _Piece) -> Outcome:
    """Train a trial on a node, for a driver that may be on another."""
    folder, stop = Path(piece.folder), trial.Ending()
    for path in (folder, Path(piece.job["data"])):
        require_seen(path, "data and out")

    def seconds_left() -> float:
        if (folder.parents[1] / STOP).exists():
            stop.ask(trial.SAVE_SECONDS)
        return stop.seconds_left()

    hopeless = _hopeless(folder, piece.job)
    return trial.run(folder, piece.job, piece.variables, seconds_left, hopeless)
