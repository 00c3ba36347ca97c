"""A training of several hosts that are nodes of a Ray cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.execution.ray_cluster import on_hosts
from medseq_tf.runs.mlflow_store import tracking_uri
from medseq_tf.runs.run import Run
from medseq_tf.training.fitting import interrupts

VARIABLE = "MLFLOW_TRACKING_URI"


def on_ray(
    train: Callable[[dict[str, Any], Callable[[], bool]], None],
    arguments: dict[str, Any],
    ray: str,
    hosts: int,
    cpus: float,
    gpus: float,
    stop: Callable[[], bool],
    verbose: bool,
) -> Run:
    """Train on several nodes at the same time, and show here what the chief notes of each epoch.

    Args:
        train: trains as one host; picklable.
        arguments: of `train`, with absolute paths.
        ray: see `ray_cluster.connected`.
        hosts: how many nodes.
        cpus: of a node.
        gpus: the same.
        stop: once true, all stop, as after Ctrl-C.
        verbose: show progress.

    Returns:
        The finished run.

    Raises:
        InputError: the cluster cannot be used, or as `train` raises it.
        HostLost: a host died.
        Stopped: interrupted; `resume` goes on.
    """
    if hosts < 1:
        raise InputError(f"hosts = {hosts}: expected at least 1")
    if not isinstance(arguments["track"], bool):
        raise InputError("track: expected True or False with hosts, which are other processes")
    run = Run(arguments["out"])
    work = functools.partial(_as_here, tracking_uri(), Path.cwd(), train, arguments)
    shown = _Shown(run, verbose)
    with interrupts(stop) as interrupted:
        on_hosts(
            ray,
            hosts,
            work,
            cpus=cpus,
            gpus=gpus,
            stopped=interrupted,
            meanwhile=shown.further,
        )
    if not run.path.is_dir():
        raise InputError(
            f"{run.path}: the run is on the chief's node, and cannot be seen from here; let --out "
            "lie on storage that all nodes see"
        )
    return Run.open(run.path)


def _as_here(
    uri: str,
    folder: Path,
    train: Callable[[dict[str, Any], Callable[[], bool]], None],
    arguments: dict[str, Any],
    stop: Callable[[], bool],
) -> None:
    """Track to where the driver does, whose folder a local store is relative to."""
    os.environ[VARIABLE] = uri
    if folder.is_dir():
        os.chdir(folder)
    train(arguments, stop)


class _Shown:
    """The epochs that have been shown."""

    def __init__(self, run: Run, verbose: bool):
        self.run, self.verbose = run, verbose
        self.count = self._rows() if verbose else 0

    def _rows(self) -> int:
        return len(self.run.history) if (self.run.path / "history.csv").is_file() else 0

    def further(self) -> None:
        """Print a line for each epoch that has come to the run's history since."""
        if not self.verbose or self._rows() <= self.count:
            return
        rows = self.run.history.to_dict(orient="records")[self.count :]
        self.count += len(rows)
        for row in rows:
            told = [f"{key}: {row[key]:.4f}" for key in ("loss", "val_loss") if key in row]
            print(f"Epoch {int(row['epoch'])} - {row['seconds']:.0f}s - {' - '.join(told)}")
