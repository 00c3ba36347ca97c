"""Takes a recipe and a prepared data set; gives a run folder: the best model and its figures."""

from __future__ import annotations

if __name__ == "__main__":  # answer --help before TensorFlow is imported
    from medseq_tf.cli import main

    main("train")

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import medseq_tf
from medseq_tf import cohort, report, tracking
from medseq_tf import experiment as recipes
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluate import choose_thresholds, fold_summary, predictions_table, score
from medseq_tf.experiment import Experiment
from medseq_tf.fitting import CHECKPOINT, Fitter
from medseq_tf.inference import study_probabilities
from medseq_tf.pipeline import SliceStore
from medseq_tf.prepared import Prepared
from medseq_tf.runs import Run, atomic, write_json


def train(
    experiment: str | os.PathLike | Experiment,
    data: str | os.PathLike | Prepared,
    out: str | os.PathLike | None = None,
    name: str | None = None,
    overrides: Iterable[str] = (),
    folds: int | None = None,
    resume: bool = False,
    track: bool = True,
    verbose: bool = True,
) -> Run:
    """Train a recipe on a prepared data set.

    Splits are by patient. After every epoch the model is scored on the validation studies; the best
    epoch by `fit.monitor` is kept, thresholds are chosen on validation, and the test studies are
    read once, at the end. One seed gives one result, bit for bit on a CPU.

    Args:
      experiment: a preset's name, a YAML file, or an `Experiment`.
      data: the folder of a prepared data set.
      out: the run folder; default `runs/<name>`.
      name: the run's name; default the recipe's.
      overrides: `dotted.key=value`, as with `--set`.
      folds: cross-validate over this many patient-level folds: one run a fold, pooled at the end.
      resume: go on with an interrupted run in `out`, to bitwise the same weights.
      track: log to MLflow.
      verbose: show progress.

    Returns:
      The finished run.

    Raises:
      InputError: the recipe or the data cannot be used, or `out` is taken.
      Diverged: the loss became NaN or infinite.
      Stopped: interrupted with Ctrl-C; `resume` goes on.
    """
    recipe = recipes.load(experiment, overrides)
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    folder = Path(out) if out is not None else Path("runs") / (name or recipe.name)
    started = _open_folder(folder, recipe, prepared, folds, resume)
    if started.get("status") == "finished":
        return Run.load(folder)
    store = SliceStore(prepared, recipe)
    if folds is None:
        split = cohort.holdout(prepared.studies, recipe.split)
        _train_one(recipe, store, split, folder, track, verbose)
    else:
        _cross_validate(recipe, store, folder, folds, track, verbose)
    return Run.load(folder)


def _open_folder(
    folder: Path, recipe: Experiment, prepared: Prepared, folds: int | None, resume: bool
) -> dict[str, Any]:
    """Make the run folder, or check that the one to resume was started with the same input."""
    asked = {"fingerprint": prepared.fingerprint, "folds": folds}
    if (folder / "run.json").is_file():
        if not resume:
            raise InputError(f"{folder}: a run is there already; choose another --out, or --resume")
        run = Run.load(folder)
        before = run.experiment.flat()
        for key, value in recipe.flat().items():
            if before.get(key) != value:
                raise InputError(
                    f"{folder}: the run to resume has {key} = {before.get(key)}, asked for "
                    f"{value}; resume with the same recipe"
                )
        for key, value in asked.items():
            if run.info.get(key) != value:
                raise InputError(
                    f"{folder}: the run to resume has {key} = {run.info.get(key)}, asked for "
                    f"{value}; resume with the same data and folds"
                )
        return run.info
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is in use and holds no run; choose another --out")
    _begin_folder(folder, recipe, prepared, asked)
    return {}


def _begin_folder(folder: Path, recipe: Experiment, prepared: Prepared, asked: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "experiment.yaml") as temporary:
        temporary.write_text(recipe.to_yaml(), "utf-8")
    write_json(folder / "dataset.json", prepared.info)
    write_json(folder / "run.json", {"status": "started", **asked, **_environment()})


def _environment() -> dict[str, Any]:
    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {
            "medseq_tf": medseq_tf.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }


def _set_info(folder: Path, **changes: Any) -> None:
    info = json.loads((folder / "run.json").read_text("utf-8"))
    write_json(folder / "run.json", {**info, **changes})


# ------------------------------------------------------------------------------ one training run


def _train_one(
    recipe: Experiment,
    store: SliceStore,
    split: Mapping[str, np.ndarray],
    folder: Path,
    track: bool,
    verbose: bool,
    parent: str | None = None,
) -> None:
    """Train, choose thresholds, predict and report one split into `folder`."""
    prepared = store.prepared
    if len(split["train"]) == 0:
        raise InputError("the split leaves no study to train on")
    write_json(folder / "splits.json", json.loads(cohort.splits_to_json(prepared.studies, split)))
    info = Run(folder).info
    tracker = tracking.Tracker(
        folder, folder.name, parent=parent, run_id=info.get("mlflow_run_id"), enabled=track
    )
    _set_info(folder, status="running", mlflow_run_id=tracker.run_id)
    tracker.params(recipe.flat())
    counts = {f"{part}_studies": len(rows) for part, rows in split.items()}
    tracker.dataset(prepared.path.name, prepared.fingerprint, {**prepared.info["counts"], **counts})
    try:
        Fitter(recipe, store, split, folder, tracker, verbose).run()
        _finish(recipe, store, split, folder, tracker)
    except Stopped:
        _set_info(folder, status="stopped")
        tracker.end("KILLED")
        raise
    except BaseException:
        _set_info(folder, status="failed")
        tracker.end("FAILED")
        raise
    (folder / CHECKPOINT).unlink(missing_ok=True)
    _set_info(folder, status="finished")
    tracker.end("FINISHED")


# ------------------------------------------------------------------------- after the last epoch


def _finish(
    recipe: Experiment,
    store: SliceStore,
    split: Mapping[str, np.ndarray],
    folder: Path,
    tracker: tracking.Tracker,
) -> None:
    """Choose thresholds on validation, predict validation and test, score, report."""
    prepared, model = store.prepared, Run(folder).model()
    probabilities = {
        part: study_probabilities(model, store, split[part], recipe)
        for part in ("validation", "test")
        if len(split[part])
    }
    thresholds = dict.fromkeys(prepared.label_names, 0.5)
    if "validation" in probabilities:
        thresholds = choose_thresholds(prepared, split["validation"], probabilities["validation"])
    tables = [
        predictions_table(prepared, split[part], values, part, thresholds)
        for part, values in probabilities.items()
    ]
    if tables:
        _write_results(folder, pd.concat(tables, ignore_index=True), prepared, thresholds, tracker)


def _write_results(
    folder: Path,
    predictions: pd.DataFrame,
    prepared: Prepared,
    thresholds: Mapping[str, float],
    tracker: tracking.Tracker,
) -> None:
    """Write predictions, metrics and report into a run folder, and log them."""
    with atomic(folder / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    table = score(predictions, prepared.label_names)
    rows = table.to_dict(orient="records")
    write_json(folder / "metrics.json", {"thresholds": dict(thresholds), "table": rows})
    report.write(Run(folder))
    named = {
        f"{row['split']}_{row['metric']}"
        + (f"_{row['label']}" if len(prepared.label_names) > 1 else ""): row["value"]
        for row in rows
    }
    tracker.metrics(named)
    for file in (
        "experiment.yaml",
        "splits.json",
        "history.csv",
        "metrics.json",
        "predictions.parquet",
        "report.html",
    ):
        if (folder / file).is_file():
            tracker.artifact(folder / file)


def _cross_validate(
    recipe: Experiment, store: SliceStore, folder: Path, folds: int, track: bool, verbose: bool
) -> None:
    """Train one run a fold and pool their test predictions, each called by its fold's threshold."""
    prepared = store.prepared
    parts = cohort.folds(prepared.studies, folds, recipe.split)
    write_json(folder / "splits.json", json.loads(cohort.splits_to_json(prepared.studies, parts)))
    info = Run(folder).info
    tracker = tracking.Tracker(folder, folder.name, run_id=info.get("mlflow_run_id"), enabled=track)
    _set_info(folder, status="running", mlflow_run_id=tracker.run_id)
    tracker.params({**recipe.flat(), "folds": folds})
    tracker.dataset(prepared.path.name, prepared.fingerprint, prepared.info["counts"])
    status = "failed"
    try:
        for number, part in enumerate(parts, start=1):
            if verbose:
                print(f"Fold {number}/{folds}")
            fold = folder / f"fold_{number}"
            started = _open_folder(fold, recipe, prepared, None, resume=True)
            if started.get("status") != "finished":
                _train_one(recipe, store, part, fold, track, verbose, parent=tracker.run_id)
        _pool(folder, prepared, tracker)
        status = "finished"
    except Stopped:
        status = "stopped"
        raise
    finally:
        _set_info(folder, status=status)
        tracker.end({"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[status])


def _pool(folder: Path, prepared: Prepared, tracker: tracking.Tracker) -> None:
    runs = Run(folder).folds
    pooled = pd.concat(
        [run.predictions.assign(fold=number) for number, run in enumerate(runs, start=1)],
        ignore_index=True,
    )
    thresholds = {
        label: float(np.mean([run.thresholds[label] for run in runs]))
        for label in prepared.label_names
    }
    _write_results(folder, pooled, prepared, thresholds, tracker)
    summary = fold_summary(pooled[pooled["split"] == "test"])
    tracker.metrics({f"test_{row.metric}_fold_mean": row.mean for row in summary.itertuples()})
    tracker.metrics({f"test_{row.metric}_fold_sd": row.sd for row in summary.itertuples()})
