"""A trial of a search, in its folder: from `job.json` to `result.json`, its score or why it failed.

A trial is trained in a process of its own, so that memory is given back whole, and a crash, or the
kernel's killing of a process that wants too much memory, costs that trial alone. The process ends
with the one that started it.

job.json      what to train and on which studies   run/         the run folder, its models left out
result.json   score, spread, figures, or reason    log.txt      what the process said
tracking.json the MLflow run, to go on with
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import medseq_tf
from medseq_tf.errors import InputError, Stopped, is_out_of_memory
from medseq_tf.files import locked, write_json

JOB, RESULT, RUN, LOG, TRACKING = "job.json", "result.json", "run", "log.txt", "tracking.json"
HEADLINES = ("auroc", "average_precision", "accuracy", "recall", "specificity", "f1", "brier")
"""What a trial tells besides its objective, as means over its folds; of classes, all metrics."""

LOCK = ".lock"
"""Held by the process that trains it."""

SAVE_SECONDS = 60.0
"""How long a trial may take to save, once it is interrupted."""

_LEFT = 3


# ----------------------------------------------------------------- in the process that asks


def result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a trial's folder, or None if there is none yet."""
    try:
        return json.loads((folder / RESULT).read_text("utf-8"))
    except FileNotFoundError:
        return None


class Ending:
    """Tells those at work that they are to end, and how long they may take to save; thread-safe."""

    def __init__(self) -> None:
        self._deadline = math.inf

    def ask(self, seconds: float) -> None:
        """Ask all to end, within so many seconds at most."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def seconds_left(self) -> float:
        """Return how long work may go on: without end, until it is asked to end."""
        return self._deadline - time.monotonic()


def run(
    folder: Path,
    job: dict[str, Any],
    variables: dict[str, str] | None = None,
    seconds_left: Callable[[], float] = lambda: math.inf,
    hopeless: Callable[[], str | None] = lambda: None,
) -> dict[str, Any] | None:
    """Train a trial in a process of its own and return its result; one that is there is returned.

    Args:
        folder: the trial's own folder. What an interrupted process left there is gone on with.
        job: what to train; see `evaluate`.
        variables: of the environment, that differ from this process's.
        seconds_left: asked every second, how long the process may go on. Once there is an end to
            it, the process is interrupted, so that it saves its state; at the end it is killed.
        hopeless: asked every second; once there is a reason, the trial is stopped for good.

    Returns:
        The result; None of a process that was interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (outcome := result(folder)) is not None:
        return outcome
    write_json(folder / JOB, job)
    started, why, stop = time.monotonic(), None, Ending()
    process = _start(folder, variables or {})
    interrupted = False
    try:
        while not _ended(process, 1.0):
            if not interrupted and (why := hopeless()):
                stop.ask(SAVE_SECONDS)
            left = min(stop.seconds_left(), seconds_left())
            if left <= 0:
                break
            if left < math.inf and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
    finally:
        process.kill()
        process.wait()
        process.stdin.close()  # type: ignore[union-attr]
    if (outcome := result(folder)) is None and (why or not interrupted):
        seconds = time.monotonic() - started
        if why:
            outcome = unscored("stopped", why, folder, seconds)
            _remove_models(folder)
        else:
            outcome = failure(_why(process.returncode, folder), folder, seconds)
        write_json(folder / RESULT, outcome)
    return outcome


def _remove_models(folder: Path) -> None:
    """Remove what a stopped trial would have gone on with."""
    for name in ("model.keras", "checkpoint.npz"):
        for file in (folder / RUN).rglob(name):
            file.unlink()


def failure(reason: str, folder: Path | None = None, seconds: float = 0.0) -> dict[str, Any]:
    """Return the result of a trial that failed, in a folder if it has one."""
    return unscored("failed", reason, folder, seconds)


def unscored(
    status: Literal["failed", "stopped"], reason: str, folder: Path | None, seconds: float
) -> dict[str, Any]:
    """Return the result of a trial that did not come to a score, in a folder if it has one."""
    return {
        "status": status,
        "reason": " ".join(reason.split())[:500],
        "score": None,
        "seconds": round(seconds, 1),
        "mlflow_run_id": _tracked(folder) if folder is not None else None,
    }


def _tracked(folder: Path) -> str | None:
    """Return the MLflow run that a trial began, if it did."""
    kept = folder / TRACKING
    return json.loads(kept.read_text("utf-8"))["run_id"] if kept.is_file() else None


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables of a process that finds this package and says little of its own."""
    package = str(Path(medseq_tf.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path, **variables}


def _start(folder: Path, variables: dict[str, str]) -> subprocess.Popen:
    with open(folder / LOG, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "medseq_tf.tuning.trial", str(folder)],
            stdin=subprocess.PIPE,  # its end tells the process that this one has ended
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(variables),
            start_new_session=True,  # Ctrl-C reaches it once, through this process
        )


def _ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _why(status: int, folder: Path) -> str:
    """Say why a process ended without a result."""
    if status == -signal.SIGKILL:
        return "killed (signal 9), as the system does when memory runs out"
    if status < 0:
        return f"its process crashed: {signal.Signals(-status).name}; see {folder / LOG}"
    lines = (folder / LOG).read_text("utf-8", errors="replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    return f"its process ended with status {status}{last}; see {folder / LOG}"


# ----------------------------------------------------------------------- in the trial's process


def main(folder: Path) -> int:
    """Train the trial of a folder and write its result; return the exit status."""
    end_with_parent()
    try:
        with locked(folder / LOCK, "", wait=True):  # of a process that its node has lost touch with
            if result(folder) is None:
                write_json(folder / RESULT, _outcome(folder))
    except (Stopped, KeyboardInterrupt):
        return 130
    return 0


def _outcome(folder: Path) -> dict[str, Any]:
    """Train the trial of a folder and return its result."""
    started = time.monotonic()
    try:
        outcome = evaluate(folder)
    except Stopped:
        raise
    except InputError as error:
        outcome = failure(str(error), folder)
    except Exception as error:  # whatever a trial does, the search goes on
        traceback.print_exc()
        first = str(error).strip().splitlines() or [""]
        kind = type(error).__name__
        what = "out of memory" if is_out_of_memory(error) else kind
        outcome = failure(f"{what}: {first[0]}", folder)
    outcome["seconds"] = round(time.monotonic() - started, 1)
    outcome["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return outcome


def evaluate(folder: Path) -> dict[str, Any]:
    """Train a trial's recipe on its splits and return its result; `job.json` says what and how.

    The score of a split is that of its held-out studies (its `test`), by the epoch that its
    `validation` chose; without held-out studies, the validation score of that epoch.

    Raises:
        InputError: the recipe is impossible, or its loss is no number.
    """
    from medseq_tf import recipe as recipes
    from medseq_tf.dataset.prepared import Prepared
    from medseq_tf.runs.tracking import Section, Tracker
    from medseq_tf.training.one_run import class_params
    from medseq_tf.training.train import train

    job = json.loads((folder / JOB).read_text("utf-8"))
    prepared = Prepared.load(job["data"])
    if prepared.fingerprint != job["fingerprint"]:
        raise InputError(f"{job['data']}: is not the data set of the search")
    recipe = recipes.from_values(job["recipe"], job["title"])
    splits = _rows(prepared, json.loads(Path(job["splits"]).read_text("utf-8"))["splits"])
    tracker = _tracker(folder, job, Tracker)
    status = "FAILED"
    try:
        tracker.params({**job["params"], **class_params(prepared)})
        tracker.announce(job["metric"])
        tracker.dataset(Path(job["data"]).name, prepared.fingerprint, prepared.info["counts"])
        shown = dict.fromkeys(("loss", "val_loss", f"val_{recipe.fit.monitor}"))
        finished = train(
            recipe,
            prepared,
            out=folder / RUN,
            splits=splits if len(splits) > 1 else splits[0],
            repeats=job.get("repeats", 1),
            resume=(folder / RUN / "run.json").is_file(),
            features=job["features"],
            track=Section(tracker, tuple(shown | {f"val_{job['metric']}": None})),
            verbose=False,
        )
        outcome = _score(finished, job["metric"])
        _tell(tracker, finished, outcome, job["metric"])
        for part, _ in finished.members:
            (part.path / "model.keras").unlink(missing_ok=True)  # the best recipe is trained anew
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        tracker.end(status)
    return {**outcome, "mlflow_run_id": tracker.run_id}


def _rows(prepared: Any, splits: list[dict[str, list[str]]]) -> list[dict[str, Any]]:
    import numpy as np

    row = {study: i for i, study in enumerate(prepared.studies["study_id"])}
    return [
        {
            part: np.sort(np.array([row[study] for study in studies], np.int64))
            for part, studies in split.items()
        }
        for split in splits
    ]


def _tracker(folder: Path, job: dict[str, Any], kind: Any) -> Any:
    """Return the trial's MLflow run: the one that an interrupted process began, or a new one."""
    tracker = kind(
        folder,
        job["title"],
        parent=job["mlflow_parent"],
        run_id=_tracked(folder),
        enabled=job["track"],
        system_metrics=True,
    )
    write_json(folder / TRACKING, {"run_id": tracker.run_id})
    return tracker


def _score(run: Any, metric: str) -> dict[str, Any]:
    """Return a run's score, its spread over the folds, and further metrics as means."""
    from medseq_tf.evaluation.scoring import fold_table
    from medseq_tf.tuning import optimism

    held_out = optimism.held_out(run.predictions)
    by_fold = fold_table(held_out, run.classes).drop(columns="label").groupby("fold").mean()
    shown = list(by_fold.columns.drop("studies")) if run.classes else [*HEADLINES, metric]
    scores = by_fold[metric]
    if scores.isna().any():
        raise InputError(f"{metric} cannot be scored in fold {scores.index[scores.isna()][0]}")
    epochs = [int(part.history["epoch"].iloc[-1]) for part, _ in run.members]
    return {
        "status": "finished",
        "reason": "",
        "score": float(scores.mean()),
        "sd": float(scores.std(ddof=1)) if len(scores) > 1 else None,
        "folds": [float(score) for score in scores],
        "metrics": {name: float(by_fold[name].mean()) for name in shown},
        "epochs": epochs,
        "held_out": _plain(held_out),
    }


def _plain(table: Any) -> dict[str, list]:
    """Return a table as JSON holds it: its columns as lists, of probabilities seven digits."""
    return {
        name: [float(f"{value:.7g}") for value in column]
        if column.dtype.kind == "f"
        else column.tolist()
        for name, column in table.items()
    }


def _tell(tracker: Any, run: Any, outcome: dict[str, Any], metric: str) -> None:
    """Log a trial's figures: its scores by fold, pictures, predictions and the whole recipe."""
    tracker.metrics({metric: outcome["score"], **outcome["metrics"]})
    if outcome["sd"] is not None:
        tracker.metrics({f"{metric}_sd": outcome["sd"]})
        for fold, score in enumerate(outcome["folds"], start=1):
            tracker.metrics({f"{metric}_by_fold": score}, step=fold)
    log_figures(tracker, run)
    for name in ("experiment.yaml", "run.json", "splits.json", "metrics.json"):
        tracker.artifact(run.path / name)


def log_figures(tracker: Any, run: Any) -> None:
    """Log a run's curves, its ROC and precision-recall curves and its confusion as pictures.

    Of classes they are those of the report: each against the rest, and calibration.
    """
    from medseq_tf.evaluation.class_table import ClassTable
    from medseq_tf.reporting import class_figures, figures

    predictions, labels = run.predictions, run.dataset["label_names"]
    part = "test" if (predictions["split"] == "test").any() else "validation"
    scored = predictions[predictions["split"] == part].assign(selected=part == "validation")
    drawings = figures.training([member.run for member in run.members])
    if run.classes:
        drawings += class_figures.evaluation(ClassTable.of(scored, run.classes).known)
    else:
        drawings += [
            figures.roc(scored, labels),
            figures.precision_recall(scored, labels),
            figures.confusion(scored, labels),
        ]
    for figure, title, _ in drawings:
        name = re.sub(r"\W+", "_", title.lower()).strip("_")
        tracker.figure(figure, f"figures/{name}.png")


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(_LEFT)

    threading.Thread(target=wait, daemon=True).start()


def _hear_of_interrupts() -> None:
    """Let SIGINT interrupt this process: workers of Ray block it, a shell's & ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


if __name__ == "__main__":
    _hear_of_interrupts()
    sys.exit(main(Path(sys.argv[1])))
