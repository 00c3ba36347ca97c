"""Hands out the trials of a search to its workers, and records their results."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseq_tf.dataset import selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, printable_lines
from medseq_tf.files import atomic, write_json, write_text
from medseq_tf.recipe import Experiment
from medseq_tf.runs.tracking import Tracker
from medseq_tf.tuning import trial
from medseq_tf.tuning.champion import best_yaml
from medseq_tf.tuning.search import BASE, Search, line
from medseq_tf.tuning.space import Space
from medseq_tf.tuning.trial_store import Assignment, TrialStore

HOPELESS = 8
"""Failed trials, with none that has ever finished, after which a search gives up."""


class TrialScheduler:
    """Hands out the search's trials as jobs, and books their results; thread-safe."""

    def __init__(
        self,
        search: Search,
        prepared: Prepared,
        store: TrialStore,
        tracker: Tracker,
        track: bool,
        verbose: bool,
    ):
        self.search, self.space, self.prepared = search, search.space, prepared
        self.store, self.tracker = store, tracker
        self._track, self._verbose = track, verbose
        self._lock = threading.Lock()
        self._ever = (search.trials["status"] == "finished").any()
        self._failures: list[str] = []

    def say(self, text: str) -> None:
        """Print, if the search is to be seen."""
        if self._verbose:
            print(printable_lines(text), flush=True)

    def next(self, worker: str) -> dict[str, Any]:
        """Return `{"kind": "run", "trial": name, "job": ...}`, or of kind `wait` or `stop`."""
        while not self._hopeless:
            assignment = self.store.next(worker)
            if assignment.kind != "run":
                return {"kind": assignment.kind}
            if job := self._job(assignment):
                return {"kind": "run", "trial": assignment.trial, "job": job}
        return {"kind": "stop"}

    def _job(self, assignment: Assignment) -> dict[str, Any] | None:
        """Return what to train, or book the trial as failed where the settings are impossible."""
        recipe, reason = None, ""
        try:
            recipe = self.space.experiment(assignment.values)
        except InputError as error:
            reason = str(error)
        if recipe is not None and assignment.epochs is not None:
            fit = recipe.fit.model_copy(update={"epochs": assignment.epochs})
            recipe = recipe.model_copy(update={"fit": fit})
        folder = self.search.path / "trials" / assignment.trial
        params = _params(self.space, assignment.trial, recipe, assignment.values)
        if not (folder / "trial.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            plain = recipe.model_dump(mode="json") if recipe is not None else None
            about = {"trial": assignment.trial, "values": assignment.values, "params": params}
            write_json(folder / "trial.json", {**about, "recipe": plain})
        if recipe is None:
            self.report(assignment.trial, trial.failure(reason))
            return None
        return {
            "title": f"{self.search.space.name} {assignment.trial}",
            "recipe": recipe.model_dump(mode="json"),
            "fingerprint": self.prepared.fingerprint,
            "metric": self.space.objective.metric,
            "repeats": self.space.objective.repeats or 1,
            "params": params,
            "track": self._track,
            "mlflow_parent": self.tracker.reference,
        }

    def report(self, name: str, result: dict[str, Any]) -> None:
        """Book a result: in the folder, with the tuner, in MLflow and on the screen."""
        folder = self.search.path / "trials" / name
        if trial.result(folder) is None:
            write_json(folder / trial.RESULT, result)
        with self._lock:
            if not self.store.finish(name, result["score"], result["reason"]):
                return
            if result["status"] == "finished":
                self._ever = True
            else:
                self._tell_reason(folder, name, result)
            if result["status"] == "failed":
                self._failures.append(f"{name}: {result['reason']}")
            self._show(name)

    def _tell_reason(self, folder: Path, name: str, result: dict[str, Any]) -> None:
        params = json.loads((folder / "trial.json").read_text("utf-8"))["params"]
        run = Tracker(
            self.search.path,
            f"{self.space.name} {name}",
            parent=self.tracker.reference,
            run_id=result.get("mlflow_run_id"),
            enabled=self.tracker.enabled,
        )
        run.params(params)
        run.tags({"medseq_tf.reason": result["reason"]})
        run.end("FAILED" if result["status"] == "failed" else "KILLED")

    def _show(self, name: str) -> None:
        table = self.search.trials
        row = table[table["trial"] == name].iloc[0]
        best = self.search.best_trial
        mark = "  <- best" if best is not None and best["trial"] == name else ""
        self.say(line(self.space, row) + mark)
        with atomic(self.search.path / "trials.csv") as temporary:
            table.drop(columns="run").to_csv(temporary, index=False)
        if best is not None:
            metric, done = self.space.objective.metric, (table["status"] != "running").sum()
            self.tracker.metrics({f"best_{metric}": best[metric]}, step=int(done))
            write_text(self.search.path / "best.yaml", best_yaml(self.search))

    @property
    def _hopeless(self) -> bool:
        return not self._ever and len(self._failures) >= HOPELESS

    def raise_if_hopeless(self) -> None:
        """Raise an InputError if no trial has finished, however many were tried."""
        if not self._ever and self._failures:
            raise InputError(
                f"{self.search.path}: all {len(self._failures)} trials failed, the last of them "
                f"with: {self._failures[-1]}"
            )

    def sum_up(self) -> None:
        """Log what the search found; MLflow shows the table on the run's own page."""
        if self._ever:
            best, metric = self.search.corrected, self.space.objective.metric
            self.search.note(best=asdict(best))
            self.tracker.metrics({f"best_{metric}_corrected": best.corrected})
            self.tracker.tags({"medseq_tf.selection": f"{selection.LABEL}: {best.text(metric)}"})
            self.tracker.tags({"mlflow.note.content": f"```\n{self.search.text(most=30)}\n```"})
        importance = self.search.importance()
        self.tracker.metrics(
            {f"importance/{row.setting}": row.importance for row in importance.itertuples()}
        )
        for name in ("trials.csv", "best.yaml"):
            if (self.search.path / name).is_file():
                self.tracker.artifact(self.search.path / name)


def _params(space: Space, name: str, recipe: Experiment | None, values: dict[str, Any]) -> dict:
    """Return what a trial's MLflow run is compared by: its own settings, by the recipe's keys."""
    if name == BASE and recipe is not None:
        flat = recipe.flat()
        values = {
            setting.name: value if setting.kind != "choice" else _label(setting, value)
            for setting in space.settings
            if (value := flat.get(setting.name)) is not None
        }
    return {"trial": name, "recipe": space.base.name, **values}


def _label(setting: Any, value: Any) -> str:
    """Return what a choice calls a value of the recipe."""
    known = (label for label, v in setting.alternatives.items() if v == {setting.name: value})
    return next(known, value if isinstance(value, str) else json.dumps(value))
