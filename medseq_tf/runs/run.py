"""The folder of a training run, and `Run`, which opens it.

experiment.yaml      every value, as used          dataset.json   the data set it was trained on
model.keras          the best epoch                history.csv    one row per epoch
splits.json          study ids by split            metrics.json   thresholds, temperatures, metrics
studies.json         content hash by study id, to know them again elsewhere
slices.parquet       hashes of every slice, to know it and its copies again elsewhere
predictions.parquet  study, patient, split, label, truth, probability, calibrated, fold, repeat
covariates_alone.parquet   the same, of a regression on the data set's covariates, if it has any
run.json             status, MLflow run id, versions
report.html          figures to look at            model_card.md   what it is and is not for
fold_1/ ...          with --folds: one such run per fold, of all repeats, the pooled figures above
seed_1/ ...          with fit.seeds: one such run per seed, `members` in run.json, with the models
plan.yaml            of an automatic run: what it tried; the runs that it predicts with are
                     `members` in its run.json, and lie below it
candidates.parquet   of an automatic run: out-of-fold probabilities of every candidate
used_for_selection.csv   of an automatic run: the scores that chose
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import pandas as pd

from medseq_tf import files
from medseq_tf import recipe as recipes
from medseq_tf.dataset import selection
from medseq_tf.dataset.holdout_reuse import Reads
from medseq_tf.dataset.prepared import classes_of, forget_labels_file
from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.model_file import load_model_file

SLICES = "slices.parquet"
COVARIATES_ALONE = "covariates_alone.parquet"
PLAN = "plan.yaml"
SELECTION = "used_for_selection.csv"
CANDIDATES = "candidates.parquet"
OF_CANDIDATES = "candidates"
"""The folder of an automatic run in which its candidates' runs lie, each in one of its name."""
METRICS_COLUMNS = [
    *("split", "label", "metric", "value", "low", "high", "interval", "n", "positives"),
    *("patients", "threshold", "note", "question"),
]
"""Of a table of metrics, one row per split, label and metric."""


class Member(NamedTuple):
    """One of the models that a run predicts with.

    Attributes:
        run: it, a run with a model of its own.
        weight: its share of the run's probability; those of all members add up to 1.
    """

    run: Run
    weight: float


@dataclass(frozen=True)
class Run:
    """A training run on disk."""

    path: Path

    @classmethod
    def open(cls, run: RunOrPath) -> Run:
        """Open a run folder; one that is open already is returned as it is.

        Raises:
            InputError: the folder is no run folder.
        """
        if isinstance(run, Run):
            return run
        folder = Path(run)
        if not (folder / "experiment.yaml").is_file():
            near = sorted(p.parent.name for p in folder.parent.glob("*/experiment.yaml"))
            known = f"; runs there: {', '.join(near[:8])}" if near else ""
            raise InputError(f"{folder}: no run folder (experiment.yaml is missing){known}")
        return cls(folder)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def experiment(self) -> recipes.Experiment:
        """The recipe, as used."""
        return recipes.load(self.path / "experiment.yaml")

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: status, fingerprint of the data, MLflow run id, versions."""
        return self._json("run.json")

    def update_info(self, **changes: Any) -> None:
        """Write changes into `run.json`.

        Raises:
            OSError: the folder is gone.
        """
        file = self.path / "run.json"
        files.write_json(file, {**json.loads(file.read_text("utf-8")), **changes})

    @property
    def dataset(self) -> dict[str, Any]:
        """`dataset.json` of the data set that the run was trained on."""
        dataset = self._json("dataset.json")
        forget_labels_file(dataset.get("preparation", {}))
        return dataset

    @property
    def classes(self) -> Classes | None:
        """The classes that the run tells apart; None for yes/no labels."""
        return classes_of(self.dataset)

    @property
    def folds(self) -> list[Run]:
        """The runs of a cross-validation, in order, repeat by repeat; empty for a single run."""
        folders = (file.parent for file in self.path.glob("fold_*/experiment.yaml"))
        number = {folder: folder.name.removeprefix("fold_") for folder in folders}
        own = [folder for folder in number if number[folder].isdecimal()]
        return [Run(folder) for folder in sorted(own, key=lambda folder: int(number[folder]))]

    @property
    def cross_validated(self) -> bool:
        """Whether its predictions are out of folds, each by a model that had not seen the study."""
        return bool(self.info.get("folds"))

    @property
    def automatic(self) -> dict[str, Any] | None:
        """How `auto` chose what the run predicts with; None of a run that was trained otherwise."""
        return self.info.get("auto")

    @property
    def sentence(self) -> str:
        """Why an automatic run predicts with what it does; empty of another."""
        return (self.automatic or {}).get("sentence") or ""

    @property
    def shares(self) -> dict[str, float]:
        """The candidates that an automatic run predicts with, and their shares; else empty."""
        return ((self.automatic or {}).get("choice") or {}).get("weights") or {}

    @property
    def members(self) -> list[Member]:
        """The models whose probabilities, weighted and added up, are the run's.

        Itself of a single run, those of its seeds where it has several, those of the folds of a
        cross-validated one, each as much as any other; of an automatic run those that were chosen,
        none where nothing was better than chance. They may read slices each in its own way, but
        predict the same labels, or classes.

        Raises:
            InputError: `run.json` names something else.
        """
        parts = self.parts
        if parts is None:
            folds = self.folds
            if not folds:
                return [Member(self, 1.0)]
            parts = [Member(fold, 1 / len(folds)) for fold in folds]
        return [
            Member(member.run, part.weight * member.weight)
            for part in parts
            for member in part.run.members
        ]

    @property
    def heaviest(self) -> Run:
        """A member of what has the largest share; of equal ones, such as folds, the first."""
        if parts := self.parts:
            return max(parts, key=lambda part: part.weight).run.heaviest
        return self.require_members()[0].run

    def require_members(self) -> list[Member]:
        """Return the members; an InputError if the run has none."""
        if members := self.members:
            return members
        reason = self.sentence.rstrip(".") or "nothing better than chance was found"
        raise InputError(
            f"{self.path}: has no model ({reason}); auto --resume --deploy-anyway deploys a linear "
            "one"
        )

    @property
    def parts(self) -> list[Member] | None:
        """The runs below this one that `run.json` names as its members, if it names any."""
        named = self.info.get("members")
        if named is None:
            return None
        try:
            weights = {str(part["run"]): float(part["weight"]) for part in named}
            sound = not named or math.isclose(sum(weights.values()), 1, abs_tol=1e-6)
            sound &= all(weight > 0 for weight in weights.values())
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound or not all(_lies_below(self.path, place) for place in weights):
            raise InputError(
                f"{self.path / 'run.json'}: is damaged; its members should be runs below it with "
                "weights that add up to 1"
            )
        return [Member(Run.open(self.path / place), weight) for place, weight in weights.items()]

    @property
    def covariates(self) -> list[str]:
        """The names of the covariates that a member reads, in the order of the members."""
        read = (name for one in self.members for name in one.run.experiment.model.covariates)
        return list(dict.fromkeys(read))

    @property
    def fold_sites(self) -> list[str]:
        """The site that each fold leaves out; empty where folds are of patients."""
        return self.info.get("fold_sites") or []

    @property
    def repeats(self) -> int:
        """How often the patients were divided into folds."""
        return int(self.info.get("repeats") or 1)

    @property
    def splits(self) -> dict[str, list[str]]:
        """Study ids by `train`, `validation` and `test`, of a single run."""
        return self._json("splits.json")

    @property
    def splits_by_fold(self) -> list[dict[str, list[str]]]:
        """The splits of each fold, in order, repeat by repeat; of a single run its own alone."""
        stored = self._json("splits.json")
        return stored if isinstance(stored, list) else [stored]

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: loss, validation metrics, learning rate, seconds."""
        return self._table("history.csv", pd.read_csv)

    @property
    def metrics(self) -> pd.DataFrame:
        """Metrics by split and label, with intervals over patients; validation last, with none."""
        return _metrics_table(self._json("metrics.json")["table"], self.classes)

    @property
    def covariates_alone(self) -> pd.DataFrame | None:
        """Metrics of a model of the covariates without a slice, as `metrics`; None without one."""
        rows = self._json("metrics.json").get("covariates_alone")
        return None if rows is None else _metrics_table(rows, self.classes)

    @property
    def beyond_covariates(self) -> dict[str, Any]:
        """How far the model is above `covariates_alone`, see `evaluation.covariates_alone`."""
        return self._json("metrics.json").get("beyond_covariates", {})

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each label: on validation, of folds on their held-out patients.

        Classes have none: the most probable one is called.
        """
        return self._json("metrics.json")["thresholds"]

    @property
    def operating_points(self) -> dict[str, dict[str, Any]]:
        """How each label's threshold was chosen and measured; empty of runs that did not say."""
        return self._json("metrics.json").get("operating_points", {})

    @property
    def question(self) -> str:
        """What the intervals of the run's metrics are about; empty of runs that did not say."""
        return self._json("metrics.json").get("question", "")

    @property
    def temperatures(self) -> dict[str, float]:
        """The temperature of each label; 1, or none, scales nothing.

        It is fitted on validation, of folds on all held-out predictions.
        Classes have one for all, by the name of their column.
        """
        return self._json("metrics.json").get("temperatures", {})

    @property
    def cuts(self) -> dict[str, dict[str, float]]:
        """By label, cuts of sensitivity at 90% specificity and the like, chosen on validation."""
        return self._json("metrics.json").get("cuts", {})

    @property
    def notes(self) -> list[str]:
        """What is to be said of thresholds and temperatures, where validation says too little."""
        return self._json("metrics.json").get("notes", [])

    @property
    def reads(self) -> Reads | None:
        """How often its test patients had been read when it was finished; None: not counted."""
        counted = self.info.get("test_reads")
        return None if counted is None else Reads(**counted)

    @property
    def contents(self) -> dict[str, str]:
        """The content hash of every study of the data set that the run was trained on, by id."""
        return self._json("studies.json")

    @property
    def slices(self) -> pd.DataFrame | None:
        """What it keeps to know its studies again, see `leakage.known_slices`; None before 0.2."""
        is_there = (self.path / SLICES).is_file()
        return self._table(SLICES, files.read_parquet) if is_there else None

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per study and label: truth and probability."""
        table = self._table("predictions.parquet", files.read_parquet)
        if "calibrated" not in table:  # the first runs of 0.1.0 have no temperatures
            table["calibrated"] = table["probability"]
        return table

    @property
    def candidates(self) -> pd.DataFrame:
        """Of an automatic run: every candidate's own out-of-fold probabilities."""
        return self._table(CANDIDATES, files.read_parquet)

    def model(self) -> Any:
        """Load the Keras model of the best epoch.

        Raises:
            InputError: the file is damaged, or no model that `train` wrote.
        """
        return load_model_file(self._file("model.keras"))

    def require_finished(self) -> None:
        """Raise an InputError unless the run, and all of its members, were trained to their end."""
        if self.automatic is not None:
            status = self.info["status"]
            if status != "finished":
                raise InputError(f"{self.path}: the run is {status}; auto --resume finishes it")
            for part in self.parts or []:
                part.run.require_finished()
            return
        missing = [run for run in (self, *self.folds) if run.info["status"] != "finished"]
        if missing or len(self.folds) != (self.info.get("folds") or 0) * self.repeats:
            status = missing[0].info["status"] if missing else "without some of its folds"
            raise InputError(
                f"{self.path}: the run is {status}; train --resume with the same recipe, data and "
                "folds finishes it"
            )

    def _file(self, name: str) -> Path:
        path = self.path / name
        if path.is_file():
            return path
        if name == "run.json":
            raise InputError(f"{path} is missing: the folder is no whole run")
        if self.folds:
            raise InputError(f"{path}: a cross-validated run has none; take one of its folds")
        if self.automatic is not None:
            raise InputError(f"{path}: an automatic run has none; take one of its members")
        if self.info.get("members"):
            raise InputError(f"{path}: a run of several seeds has none; take one of its seeds")
        raise InputError(
            f"{path} is missing; the run's status is {self.info['status']}: finish it with train "
            "--resume"
        )

    def _table(self, name: str, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
        path = self._file(name)
        try:
            return read(path)
        except (ValueError, OSError):
            reason = f"{path}: is damaged; it should be the table that train wrote"
            raise InputError(reason) from None

    def _json(self, name: str) -> Any:
        path = self._file(name)
        try:
            return json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            reason = f"{path}: is damaged; it should be the JSON that train wrote"
            raise InputError(reason) from None

    def _repr_html_(self) -> str:
        title = f"{html.escape(self.name)} ({self.info['status']})"
        return f"<h4>{title}</h4>{self.metrics.to_html(index=False)}"


def _lies_below(root: Path, place: str) -> bool:
    """Whether a path names a folder inside another, wherever links on the way lead."""
    folder = PurePosixPath(place)
    if folder.is_absolute() or not folder.parts or ".." in folder.parts:
        return False
    return (root / folder).resolve().is_relative_to(root.resolve())


def _metrics_table(rows: list[dict[str, Any]], classes: Classes | None) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=METRICS_COLUMNS)
    words = ["interval", "note", "question"]  # the first runs of 0.1.0 have none of these
    return selection.labelled(table.astype(dict.fromkeys(words, object)), classes)


RunOrPath: TypeAlias = str | os.PathLike[str] | Run
"""What a function that needs a run takes: an opened one, or its folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder; a kill frees the lock.

    What killed processes left half written there is removed.

    Raises:
        InputError: another process is at work in the folder.
    """
    with files.locked(folder / ".lock", f"{folder}: another process is training there"):
        for place, _, _ in os.walk(folder):
            files.remove_abandoned(place)
        yield
