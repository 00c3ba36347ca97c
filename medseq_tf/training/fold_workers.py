"""The folds of a cross-validation, trained side by side by the workers of a Ray cluster."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped, Unreachable
from medseq_tf.execution.ray_cluster import MOST_DEATHS, RayExecutor
from medseq_tf.execution.work import require_seen
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run, locked
from medseq_tf.runs.tracking import Section, Tracker
from medseq_tf.training.beginning import Request
from medseq_tf.training.distribution import distribution_for
from medseq_tf.training.one_run import Options, train_one

STOP = ".stop"
"""A file of the run's folder that tells workers on other nodes to save and to end."""

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_SAVE = 60.0


class Fold(NamedTuple):
    """A fold that has begun in its folder, as a worker is given it.

    Attributes:
        folder: of the fold's run, absolute.
        data: the data set's folder, absolute.
        name: of the run.
        features: the folder of features of frozen networks, if the recipe uses some.
        track: whether it is an MLflow run; None: a part of one, as a `Section` is.
        parent: what names the MLflow run that it belongs to.
        server: where MLflow is.
    """

    folder: str
    data: str
    name: str
    features: str | None
    track: bool | None
    parent: str | None
    server: str


def train_folds(
    executor: RayExecutor, folder: Path, folds: Sequence[Fold], stop: Callable[[], bool]
) -> None:
    """Train folds, each where there is room.

    Args:
        executor: the cluster.
        folder: of the whole run, which all nodes see.
        folds: those that are not finished.
        stop: asked every second; once true, all save and end.

    Raises:
        Stopped: they were told to; `resume` goes on.
        InputError: a fold ended its worker, again and again.
    """
    told = folder / STOP
    told.unlink(missing_ok=True)
    with ThreadPoolExecutor(1, "folds") as pool:
        work = pool.submit(
            lambda: list(executor.map(_trained, folds, _lost, name="fold", seconds=math.inf))
        )
        try:
            while not wait([work], SECONDS_BETWEEN_LOOKS).done:
                if stop():
                    told.touch()
        except BaseException:
            told.touch()
            try:
                wait([work], SECONDS_TO_SAVE)
            finally:
                executor.end()
            raise
    told.unlink(missing_ok=True)
    if not all(work.result()):
        raise Stopped(f"{folder}: stopped; --resume goes on")


def _lost(fold: Fold) -> bool:
    raise InputError(f"{fold.folder}: training it ended its worker, {MOST_DEATHS} times")


def _trained(fold: Fold) -> bool:
    """Train a fold on a node; return whether it was finished, and not stopped."""
    folder = Path(fold.folder)
    for path in (folder, Path(fold.data)):
        require_seen(path, "data and out")
    os.environ["MLFLOW_TRACKING_URI"] = fold.server
    prepared, told = Prepared.load(fold.data), folder.parent / STOP
    with locked(folder):
        run = Run(folder)
        if run.info["fingerprint"] != prepared.fingerprint:
            raise Unreachable(
                f"node {socket.gethostname()} of the Ray cluster sees another data set in "
                f"{fold.data} than this machine does"
            )
        if run.info["status"] == "finished":
            return True
        if told.exists():
            return False
        recipe = run.experiment
        request = Request(folder, recipe, prepared, resume=True)
        distribution = distribution_for(None, recipe)
        options = Options(
            fold.name,
            _untold(folder, fold.name) if fold.track is None else fold.track,
            verbose=False,
            features=None if fold.features is None else Path(fold.features),
            parent=fold.parent,
            stop=told.exists,
            distribution=distribution,
        )
        split = request.make_splits()
        if isinstance(split, list):
            raise InputError(f"{folder}: holds a cross-validation, and no fold of one")
        try:
            train_one(request, SliceStore(prepared, recipe), split, options)
        except Stopped:
            return False
    return True


def _untold(folder: Path, name: str) -> Section:
    """Return what stands for a part of an MLflow run on a node that tells nothing to it."""
    return Section(Tracker(folder, name, enabled=False), ())
