"""Workers train the trials of a search side by side: a thread of this process for each.

A trial that a thread has trained is a process of its own, see `trial.run`; the oracle and the
booking of results stay in this process.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

from medseq_tf.tuning import trial
from medseq_tf.tuning.hopeless import MedianRule
from medseq_tf.tuning.scheduler import TrialScheduler

PAUSE = 0.5
"""Seconds until a worker that found nothing to do asks again."""

SecondsLeft = Callable[[], float]
Outcome = dict[str, Any] | None
Train = Callable[[Path, dict[str, Any], SecondsLeft], Outcome]
"""Trains the trial of a folder by its job; the last says how many seconds it may still take."""


def train_trials(scheduler: TrialScheduler, here: dict[str, Any], team: Sequence[Train]) -> None:
    """Train the trials of a search until there are no more.

    Args:
        scheduler: hands them out and takes their results.
        here: what jobs need to know of this machine: `data`, `splits` and `features`, paths.
        team: what trains them, for each worker.

    Raises:
        KeyboardInterrupt: passed on after the trials in flight have saved their state; of a second
            one, at once.
    """
    ending = trial.Ending()
    with ThreadPoolExecutor(len(team), "worker") as pool:
        threads = [
            pool.submit(_work, scheduler, f"worker {number}", here, train, ending)
            for number, train in enumerate(team, start=1)
        ]
        try:
            for thread in as_completed(threads):
                thread.result()
        except BaseException:
            ending.ask(trial.SAVE_SECONDS)
            try:
                wait(threads)
            finally:
                ending.ask(0)
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


def team_here(count: int) -> list[Train]:
    """Return so many workers on this machine."""
    return [_trained_here(variables) for variables in _devices(count)]


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
    """Return variables by worker: the GPUs named by CUDA_VISIBLE_DEVICES are dealt out."""
    if count == 1:
        return [{}]
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    shared = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if len(named) < 2:
        return [shared] * count
    return [{**shared, "CUDA_VISIBLE_DEVICES": named[i % len(named)]} for i in range(count)]
