"""One training run: a split, a folder, a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import Stopped
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run
from medseq_tf.runs.tracking import AnyTracker, Tracker
from medseq_tf.training.beginning import Request
from medseq_tf.training.loop import CHECKPOINT, Fitter
from medseq_tf.training.results import finish


@dataclass(frozen=True)
class Options:
    """What changes nothing in the result of a training.

    Attributes:
        name: the run's name.
        track: log to MLflow; a tracker: into its run, which is not ended.
        verbose: show progress.
        features: where features of a network that is frozen whole are kept.
        parent: what names the MLflow run that this one belongs to.
    """

    name: str
    track: bool | AnyTracker
    verbose: bool
    features: Path | None
    parent: str | None = None


def train_one(request: Request, store: SliceStore, split: Rows, options: Options) -> None:
    """Train, choose thresholds, predict and report one split into the request's folder."""
    recipe, prepared = request.recipe, store.prepared
    counts = {f"{part}_studies": len(rows) for part, rows in split.items()}
    with tracked(request.folder, options) as tracker:
        tracker.params(recipe.flat())
        profile = {**prepared.info["counts"], **counts}
        tracker.dataset(prepared.path.name, prepared.fingerprint, profile)
        fitter = Fitter(
            recipe, store, split, request.folder, tracker, options.verbose, options.features
        )
        fitter.run()
        finish(fitter)
    (request.folder / CHECKPOINT).unlink(missing_ok=True)


@contextmanager
def tracked(folder: Path, options: Options) -> Iterator[AnyTracker]:
    """Yield the run's tracker; note in `run.json` and in MLflow how the block ended."""
    run, track = Run(folder), options.track
    tracker = (
        track
        if not isinstance(track, bool)
        else Tracker(
            folder,
            options.name,
            parent=options.parent,
            run_id=run.info.get("mlflow_run_id"),
            enabled=track,
            system_metrics=options.parent is None,
        )
    )
    status, mlflow_status = "failed", "FAILED"
    try:
        run.update_info(status="running", mlflow_run_id=tracker.run_id)
        yield tracker
        status, mlflow_status = "finished", "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status, mlflow_status = "stopped", "KILLED"
        raise
    finally:
        try:
            run.update_info(status=status)
        finally:
            if isinstance(tracker, Tracker) and tracker is not track:
                tracker.end(mlflow_status)
        run.update_info(mlflow_run_id=tracker.run_id)
