"""Takes a search space and a prepared data set; gives a `Search`: trials, and the best recipe.

The test patients are set aside before the first trial, and no trial sees them. Over the others each
trial is scored on patients who are not its training's. Every trial has a process, a folder and an
MLflow run of its own. The same command again goes on with a search that was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.dataset import selection
from medseq_tf.dataset import splits as cohort
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import check_requirements
from medseq_tf.errors import InputError, Stopped, printable_lines
from medseq_tf.evaluation import evaluate
from medseq_tf.files import atomic, destination, write_json
from medseq_tf.recipe import Experiment
from medseq_tf.runs.registry import crown
from medseq_tf.runs.run import Run, locked
from medseq_tf.runs.tracking import Tracker, first_line
from medseq_tf.serving.export import export
from medseq_tf.training.train import environment, train
from medseq_tf.tuning import cluster as clusters
from medseq_tf.tuning import trial
from medseq_tf.tuning.oracles import TUNERS, Ledger, Order
from medseq_tf.tuning.search import BASE, Search, header, line, nested_text
from medseq_tf.tuning.space import Objective, Space

TRIALS = 20
"""How many, where neither trials nor minutes are given and the tuner has no end of its own."""
HOPELESS = 8
"""Failed trials, with none that has ever finished, after which a search gives up."""
WORKER_MINUTES = 10
"""How long a chief with trials left waits for a first, or another, worker."""
FEW_PATIENTS = 200
"""Fewer that take part are divided into folds, where the objective does not say otherwise."""
FOLDS, REPEATS = 5, 2
"""How they are divided."""
MOST_KEYS = 10_000
"""Of patients that `best.yaml` names, to stay a file that is read: of more, as good as a random
part."""
HELD_OUT = 0.2
"""Share of the patients that a repeat holds out, where the recipe has no test share."""


def tune(
    space: str | os.PathLike | Mapping[str, Any] | Space,
    data: str | os.PathLike | Prepared,
    out: str | os.PathLike | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    tuner: str = "bayesian",
    seed: int = 0,
    overrides: Iterable[str] = (),
    base: bool = True,
    retrain: bool = True,
    cluster: str | int | None = None,
    features: str | os.PathLike | None = None,
    track: bool = True,
    verbose: bool = True,
    nested: int | None = None,
) -> Search:
    """Search a space of recipes on a prepared data set.

    The same call again goes on with an interrupted search, or with more trials. The test patients
    of the recipe's split, or of the data set's own, are set aside; the best recipe, trained anew
    at the end, is the first of the search to read them.

    The best of many trials is too good: beside its score stands what it is when corrected for the
    choice (`medseq_tf.optimism`), and `best.yaml` carries on whom it was chosen. Where the space's
    objective does not say on whom trials are scored, these are the patients of two times five
    patient-level folds while fewer than 200 take part, and the validation patients of the recipe's
    split otherwise.

    Args:
        space: a YAML file, or its content; see `medseq_tf.space`.
        data: the folder of a prepared data set.
        out: the search's folder; default `runs/<name>-search`.
        trials: how many in all, besides the recipe as it is; default 20, or as many as the minutes
          allow; a grid ends with its last combination, Hyperband with its last bracket.
        minutes: after this time no new trial begins.
        tuner: `bayesian`, `random`, `hyperband` (which sets fit.epochs) or `grid`.
        seed: decides what is tried.
        overrides: `dotted.key=value`, fixed for all trials.
        base: score the recipe as it is, first, to see what the search gains.
        retrain: train the best recipe on the training and validation patients, evaluate it on the
          test patients, and register its model, when no trial is left.
        cluster: how many workers on this machine; or `chief:HOST:PORT`, to serve trials there; or
          `worker:HOST:PORT`, to train those of that chief. Default: one trial after the other here.
        features: the folder where features of a network that is frozen whole are kept.
        track: log to MLflow: a run for the search, a child of it for every trial.
        verbose: print a line for every finished trial.
        nested: also search anew without each of this many patient-level folds, and test what is
          found on that fold: the figure of the searched recipe that no choice has made too good, at
          the cost of as many searches. It stands in `nested.json` and in `Search.nested`.

    Returns:
        The search.

    Raises:
        InputError: the space or the data cannot be used, the folder holds another search, or the
          first trials have all failed.
        Stopped: interrupted with Ctrl-C; the same call goes on.
    """
    space = Space.load(space, overrides)
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    folder = destination(out if out is not None else Path("runs") / f"{space.name}-search")
    features = None if features is None else str(Path(features).resolve())
    role, place = _cluster(cluster)
    if role != "worker":
        check_requirements(space.base, prepared)
    space = _decided(space, prepared, folder)
    if role == "worker":
        name = f"{socket.gethostname()}-{os.getpid()}"
        clusters.work_for_chief(place, name, prepared.path, folder, features, space.key)
        return Search(folder)
    _check(space, tuner, trials, minutes)
    outer = None if nested is None else _outer_folds(space, prepared, nested, role)
    if trials is None and minutes is None and tuner in ("bayesian", "random"):
        trials = TRIALS
    prepared.verify()
    how = _How(tuner, seed, trials, minutes, base, features, track, verbose, role, place)
    plan = set_aside(space, prepared)
    if outer is None:
        return _search(space, prepared, plan, folder, how, retrain)
    search = _search(space, prepared, plan, folder, how, retrain)
    for number, fold in enumerate(outer, start=1):
        place_of_fold = folder / "nested" / f"fold_{number}"
        if verbose:
            print(f"nested evaluation, fold {number} of {nested}", flush=True)
        _search(space, prepared, fold, place_of_fold, how, retrain=True, register=False)
    write_json(folder / "nested.json", nested_result(folder, prepared, space.objective))
    if verbose:
        print(nested_text(search.nested), flush=True)
    return search


@dataclass(frozen=True)
class _How:
    """What `tune` was asked for, beside the space and the data."""

    tuner: str
    seed: int
    trials: int | None
    minutes: float | None
    base: bool
    features: str | None
    track: bool
    verbose: bool
    role: str
    place: str


def _search(
    space: Space,
    prepared: Prepared,
    plan: dict[str, Any],
    folder: Path,
    how: _How,
    retrain: bool,
    register: bool = True,
) -> Search:
    """Search in a folder, with the patients of a plan; see `set_aside`."""
    with locked(folder):
        _begin(folder, space, prepared, plan, how.tuner, how.seed)
        search = Search(folder)
        tracker = _tracker(folder, space, how.tuner, how.seed, prepared, how.track)
        with _ending(tracker, folder):
            done = trial.result(folder / "trials" / BASE) is not None
            ledger = Ledger(
                space, folder, how.tuner, how.seed, how.trials, how.minutes, how.base, done
            )
            desk = _Desk(search, prepared, ledger, tracker, how.track, how.verbose)
            desk.say(_greeting(search, plan, how.trials, how.minutes))
            here = {
                "data": str(prepared.path.resolve()),
                "splits": str((folder / "splits.json").resolve()),
                "features": how.features,
            }
            if how.role == "alone":
                clusters.work(desk, "local", folder, here)
            else:
                _serve(desk, how.role, how.place, here, how.features)
            desk.raise_if_hopeless()
            if retrain and search.best_trial is not None:
                _retrain(search, prepared, tracker, how.features, desk, register)
            desk.sum_up()
    return search


def _check(space: Space, tuner: str, trials: int | None, minutes: float | None) -> None:
    if tuner not in TUNERS:
        raise InputError(f"tuner = {tuner!r}: one of {', '.join(TUNERS)}")
    for name, value in (("trials", trials), ("minutes", minutes)):
        if value is not None and value <= 0:
            raise InputError(f"{name} = {value}: should be above 0")
    if tuner == "hyperband" and any("fit.epochs" in setting.keys for setting in space.settings):
        raise InputError("hyperband sets fit.epochs itself; leave it out of the space")


def _cluster(cluster: str | int | None) -> tuple[str, str]:
    """Return the role (`alone`, `local`, `chief` or `worker`) and how many, or the address."""
    if cluster is None:
        return "alone", ""
    text = str(cluster)
    if re.fullmatch(r"[1-9]\d*", text):
        return "local", text
    if found := re.fullmatch(r"(chief|worker):([^:\s]+:\d+)", text):
        return found[1], found[2]
    raise InputError(
        f"cluster = {text}: should be a number of workers, chief:HOST:PORT or worker:HOST:PORT"
    )


# --------------------------------------------------------------------------------- the patients


def _decided(space: Space, prepared: Prepared, folder: Path) -> Space:
    """Return a space whose objective says on whom trials are scored.

    Where it does not, a search that is there goes on as it began; else few patients are divided
    into folds, for one small validation split is mostly chance.
    """
    if space.objective.is_decided:
        return space
    if (folder / "search.json").is_file():
        before = Search(folder).space.objective
        return replace(space, objective=replace(before, metric=space.objective.metric))
    studies, split = prepared.studies, space.base.split
    own = cohort.holdout(studies, split)
    rest = studies.iloc[np.sort(np.concatenate([own["train"], own["validation"]]))]
    if rest["patient_id"].nunique() < FEW_PATIENTS:
        for count in range(FOLDS, 1, -1):
            objective = replace(space.objective, folds=count, repeats=REPEATS)
            with contextlib.suppress(InputError):  # too few patients of a class for so many
                _divisions(rest.reset_index(drop=True), split, objective)
                return replace(space, objective=objective)
    return replace(space, objective=replace(space.objective, validation=True))


def _outer_folds(space: Space, prepared: Prepared, count: int, role: str) -> list[dict[str, Any]]:
    """Return the plan of each search of a nested evaluation: a fold is set aside in each.

    Test patients that the data set itself names are left alone, as by every search.
    """
    if role != "alone":
        raise InputError("nested: goes without --cluster, one trial after the other here")
    if count < 2:
        raise InputError(f"nested = {count}: it takes at least 2 folds")
    studies, split = prepared.studies, space.base.split
    own = cohort.holdout(studies, split)
    named = split.given and "split" in studies and (studies["split"] == "test").any()
    rows = np.sort(np.concatenate([own["train"], own["validation"]]))
    rows = rows if named else np.arange(len(studies))
    everyone = studies.iloc[rows].reset_index(drop=True)
    outer = cohort.folds(everyone, count, split.model_copy(update={"given": False}))
    ids = everyone["study_id"].to_numpy()
    plans = []
    for fold in outer:
        inside = np.sort(np.concatenate([fold["train"], fold["validation"]]))
        inner = _divisions(everyone.iloc[inside].reset_index(drop=True), split, space.objective)
        plans.append(
            {
                "set_aside": ids[fold["test"]].tolist(),
                "splits": [
                    {part: ids[fold[part]].tolist() for part in ("train", "validation")}
                    | {"test": []}
                ]
                if inner is None
                else [
                    {part: ids[inside[of]].tolist() for part, of in division.items()}
                    for division in inner
                ],
                "champion": {part: ids[of].tolist() for part, of in fold.items()},
            }
        )
    return plans


def set_aside(space: Space, prepared: Prepared) -> dict[str, Any]:
    """Return the studies that no trial sees, and the splits of the others that it is scored on.

    Returns:
        `set_aside`: study ids; `splits`: a list of study ids by `train`, `validation` (chooses the
        epoch) and `test` (held out, scored; empty without folds and repeats).

    Raises:
        InputError: too few patients.
    """
    studies, split, objective = prepared.studies, space.base.split, space.objective
    own = cohort.holdout(studies, split)
    rest = np.sort(np.concatenate([own["train"], own["validation"]]))
    splits = _divisions(studies.iloc[rest].reset_index(drop=True), split, objective)
    ids = studies["study_id"].to_numpy()
    if splits is None:
        if not len(own["validation"]):
            raise InputError(
                f"{space.base.name}: split.validation is 0, so there is no one to score a trial "
                "on; raise it, or give objective.folds"
            )
        named = [{part: ids[own[part]].tolist() for part in ("train", "validation")} | {"test": []}]
    else:
        named = [
            {part: ids[rest[rows]].tolist() for part, rows in division.items()}
            for division in splits
        ]
    return {"set_aside": ids[own["test"]].tolist(), "splits": named}


def _divisions(studies: Any, split: Any, objective: Objective) -> list[cohort.Rows] | None:
    if objective.folds:
        everyone = split.model_copy(update={"given": False})
        return cohort.folds(studies, objective.folds, everyone, objective.repeats or 1)
    if not objective.repeats:
        return None
    held_out = split.test or HELD_OUT
    return [
        cohort.holdout(
            studies,
            split.model_copy(
                update={
                    "given": False,
                    "test": held_out,
                    "validation": split.validation * (1 - held_out),
                    "seed": split.seed + 1 + repeat,
                }
            ),
        )
        for repeat in range(objective.repeats)
    ]


# ------------------------------------------------------------------------------- its own folder


def _begin(
    folder: Path, space: Space, prepared: Prepared, plan: dict[str, Any], tuner: str, seed: int
) -> None:
    """Write what a search begins with, `search.json` last; refuse the folder of another."""
    asked = {
        "space": space.name,
        "objective": str(space.objective),
        "recipe": space.base.name,
        "settings": space.key,
        "data": prepared.fingerprint,
        "tuner": tuner,
        "seed": seed,
    }
    if (folder / "search.json").is_file():
        search = Search(folder)
        # What a newer version adds to recipes with a default makes no other space of it.
        stored = {**search.info, "settings": search.space.key}
        for name, value in asked.items():
            if stored.get(name) != value:
                was, wanted = (
                    ("", "") if name == "settings" else (f" ({stored.get(name)})", f" ({value})")
                )
                raise InputError(
                    f"{folder}: holds a search with other {name}{was} than asked for{wanted}; "
                    "choose another --out, or ask for the same to go on"
                )
        return
    if any(not found.name.startswith(".") for found in folder.iterdir()):
        known = {"space.yaml", "recipe.yaml", "splits.json"}
        if not {f.name for f in folder.iterdir() if not f.name.startswith(".")} <= known:
            raise InputError(f"{folder}: is in use and holds no search; choose another --out")
    _write(folder / "recipe.yaml", space.base.to_yaml())
    _write(folder / "space.yaml", space.to_yaml("recipe.yaml"))
    write_json(folder / "splits.json", plan)
    scored = _scored(prepared, plan)
    about = {
        "scored": int(scored["patient_id"].nunique()),
        "patients": " ".join(sorted(selection.keys(scored))[:MOST_KEYS]),
    }
    write_json(folder / "search.json", {**asked, **about, "status": "started", **environment()})


def _scored(prepared: Prepared, plan: dict[str, Any]) -> pd.DataFrame:
    """Return the studies that trials are scored on."""
    ids = {study for split in plan["splits"] for study in (split["test"] or split["validation"])}
    return prepared.studies[prepared.studies["study_id"].isin(ids)]


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")


def _note(folder: Path, **changes: Any) -> None:
    write_json(folder / "search.json", {**Search(folder).info, **changes})


def _greeting(
    search: Search, plan: dict[str, Any], trials: int | None, minutes: float | None
) -> str:
    aside, there = len(plan["set_aside"]), len(search.trials)
    budget = " and ".join(
        filter(None, [trials and f"{trials} trials", minutes and f"{minutes:g} minutes"])
    )
    return "\n".join(
        [
            f"search: {search.path}" + (f" goes on; {there} trials are there" if there else ""),
            f"{len(search.space.settings)} settings of {search.space.base.name}; "
            f"{search.space.objective}; {budget or 'until the tuner has no more'}; "
            f"{aside} test studies are set aside",
            header(search.space),
        ]
    )


@contextlib.contextmanager
def _ending(tracker: Tracker, folder: Path) -> Iterator[None]:
    """Note in the folder and in MLflow how the search ended."""
    status, tracked = "failed", "FAILED"
    try:
        yield
        status, tracked = "finished", "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status, tracked = "stopped", "KILLED"
        done = (Search(folder).trials["status"] != "running").sum()
        raise Stopped(
            f"{folder}: stopped, {done} trials are done; the same command goes on"
        ) from None
    finally:
        try:
            _note(folder, status=status)
        finally:
            tracker.end(tracked)
        _note(folder, mlflow_run_id=tracker.run_id)


# ------------------------------------------------------------------------------------- tracking


def _tracker(
    folder: Path, space: Space, tuner: str, seed: int, prepared: Prepared, track: bool
) -> Tracker:
    """Return the search's MLflow run, the one that it began with."""
    before = Search(folder).info.get("mlflow_run_id")
    tracker = Tracker(folder, f"search {space.name}", run_id=before, enabled=track)
    _note(folder, status="running", mlflow_run_id=tracker.run_id)
    tracker.params(
        {
            "recipe": space.base.name,
            "objective": str(space.objective),
            "tuner": tuner,
            "seed": seed,
            "settings": ", ".join(setting.name for setting in space.settings),
        }
    )
    tracker.tags({"medseq_tf.kind": "search"})
    tracker.dataset(prepared.path.name, prepared.fingerprint, prepared.info["counts"])
    for name in ("space.yaml", "recipe.yaml", "search.json"):
        tracker.artifact(folder / name)
    return tracker


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


# ----------------------------------------------------------------------------------- the trials


class _Desk:
    """Hands out the search's trials as jobs, and books their results; see `cluster.Source`."""

    def __init__(
        self,
        search: Search,
        prepared: Prepared,
        ledger: Ledger,
        tracker: Tracker,
        track: bool,
        verbose: bool,
    ):
        self.search, self.space, self.prepared = search, search.space, prepared
        self.ledger, self.tracker = ledger, tracker
        self._track, self._verbose = track, verbose
        self._lock = threading.Lock()
        self._ever = (search.trials["status"] == "finished").any()
        self._failures: list[str] = []

    def say(self, text: str) -> None:
        """Print, if the search is to be seen."""
        if self._verbose:
            print(printable_lines(text), flush=True)

    def next(self, worker: str) -> dict[str, Any]:
        """Return what a worker is to do next."""
        while not self._hopeless:
            order = self.ledger.next(worker)
            if order.kind != "run":
                return {"kind": order.kind}
            if job := self._job(order):
                return {"kind": "run", "trial": order.trial, "job": job}
        return {"kind": "stop"}

    def _job(self, order: Order) -> dict[str, Any] | None:
        """Return what to train, or book the trial as failed where the settings are impossible."""
        recipe, reason = None, ""
        try:
            recipe = self.space.experiment(order.values)
        except InputError as error:
            reason = str(error)
        if recipe is not None and order.epochs is not None:
            fit = recipe.fit.model_copy(update={"epochs": order.epochs})
            recipe = recipe.model_copy(update={"fit": fit})
        folder = self.search.path / "trials" / order.trial
        params = _params(self.space, order.trial, recipe, order.values)
        if not (folder / "trial.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            plain = recipe.model_dump(mode="json") if recipe is not None else None
            about = {"trial": order.trial, "values": order.values, "params": params}
            write_json(folder / "trial.json", {**about, "recipe": plain})
        if recipe is None:
            self.report(order.trial, trial.failure(reason))
            return None
        return {
            "title": f"{self.search.space.name} {order.trial}",
            "recipe": recipe.model_dump(mode="json"),
            "fingerprint": self.prepared.fingerprint,
            "metric": self.space.objective.metric,
            "repeats": self.space.objective.repeats or 1,
            "params": params,
            "track": self._track,
            "mlflow_parent": self.tracker.reference,
        }

    def report(self, name: str, found: dict[str, Any]) -> None:
        """Book a result: in the folder, with the tuner, in MLflow and on the screen."""
        status = self.ledger.status(name)
        if status == "unknown":
            raise clusters.Refused(f"trial {name[:40]!r} was never handed out")
        if status == "done":
            return
        folder = self.search.path / "trials" / name
        if trial.result(folder) is None:
            write_json(folder / trial.RESULT, found)
        with self._lock:
            if not self.ledger.finish(name, found["score"], found["reason"]):
                return
            if found["status"] == "failed":
                self._failures.append(f"{name}: {found['reason']}")
                self._tell_failure(folder, name, found)
            else:
                self._ever = True
            self._show(name)

    def lost(self, worker: str) -> None:
        """Hand a lost worker's trial to another, or give it up if it was lost before."""
        taken = self.ledger.lost(worker)
        if taken is None:
            if not self.over:
                self.say(f"{worker} is gone; it had no trial")
            return
        name, given_up = taken
        self.say(f"{worker} is gone with trial {name}" + ("" if given_up else "; another takes it"))
        if given_up:
            self.report(name, trial.failure("two workers were lost with it"))

    def _tell_failure(self, folder: Path, name: str, found: dict[str, Any]) -> None:
        params = json.loads((folder / "trial.json").read_text("utf-8"))["params"]
        run = Tracker(
            self.search.path,
            f"{self.space.name} {name}",
            parent=self.tracker.reference,
            run_id=found.get("mlflow_run_id"),
            enabled=self.tracker.enabled,
        )
        run.params(params)
        run.tags({"medseq_tf.reason": found["reason"]})
        run.end("FAILED")

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
            _write(self.search.path / "best.yaml", best_yaml(self.search))

    @property
    def _hopeless(self) -> bool:
        return not self._ever and len(self._failures) >= HOPELESS

    @property
    def over(self) -> bool:
        """Whether there is nothing more to hand out or to wait for."""
        return self._hopeless or self.ledger.over

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
            _note(self.search.path, best=asdict(best))
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


def _serve(desk: _Desk, role: str, place: str, here: dict[str, Any], features: str | None) -> None:
    """Serve the trials to workers until the last result is in; never wait for what cannot come."""
    host, port = ("127.0.0.1", 0) if role == "local" else place.rsplit(":", 1)
    info = desk.search.info
    greeting = {
        "key": desk.space.key,
        "fingerprint": info["data"],
        "splits": desk.search.splits,
    }
    server = clusters.Server(desk, greeting, host, int(port))
    local = None
    try:
        if role == "local":
            address = f"127.0.0.1:{server.port}"
            local = clusters.LocalWorkers(
                int(place), address, Path(here["data"]), desk.search.path, features
            )
        else:
            desk.say(f"waiting for workers at {host}:{server.port}")
        _watch(desk, server, local)
        if local is not None:
            local.stop(seconds=10)
    except KeyboardInterrupt:
        if local is not None:
            local.stop(seconds=60, interrupt=True)
        raise
    finally:
        if local is not None:
            local.stop()
        server.stop()


def _watch(desk: _Desk, server: clusters.Server, local: clusters.LocalWorkers | None) -> None:
    farewell = None
    while True:
        time.sleep(0.2)
        if server.failure is not None:
            raise server.failure
        for worker in [*server.silent(), *(local.ended() if local is not None else [])]:
            server.forget(worker)
            desk.lost(worker)
        if desk.over:  # let the workers hear of it, but do not wait for those that cannot
            farewell = farewell or time.monotonic()
            if not server.workers or time.monotonic() - farewell > 2 * clusters.BEAT:
                return
        elif local is not None and not local.count:
            raise InputError(
                f"{desk.search.path}: all workers have ended, see its folder workers; the same "
                "command goes on"
            )
        elif local is None and server.quiet_seconds > 60 * WORKER_MINUTES:
            raise InputError(
                f"{desk.search.path}: no worker has been heard of for {WORKER_MINUTES} minutes; "
                "the same command goes on"
            )


# ----------------------------------------------------------------------------- what was found


def best_yaml(search: Search) -> str:
    """Return the best recipe as YAML that `train` takes, where it comes from in comments."""
    best, info, trials, recipe = search.best_trial, search.info, search.trials, search.best
    objective, space = search.space.objective, search.space
    metric = objective.metric
    sd = "" if np.isnan(best["sd"]) else f" ± {best['sd']:.3f}"
    folds = ", ".join(f"{score:.3f}" for score in best["folds"])
    changed = space.overrides(_values(search, best["trial"]))
    commit = info.get("medseq_tf_git_commit")
    base = trials[(trials["trial"] == BASE) & (trials["status"] == "finished")]
    lines = [
        f"Found by a search: space {space.name}, trial {best['trial']}, the best of "
        f"{(trials['status'] == 'finished').sum()} finished of {len(trials)} "
        f"({info['tuner']}, seed {info['seed']}).",
        f"{objective}: {best[metric]:.3f}{sd}" + (f" ({folds})" if folds else ""),
        f"{selection.LABEL}: {recipe.chosen[-1].score}.",
    ]
    if len(base) and best["trial"] != BASE:
        lines.append(f"{space.base.name} as it was: {base.iloc[0][metric]:.3f}")
    lines += [
        "Train it on other patients, or on those set aside; whoever trains it on the same is told.",
        "How good searching is, test patients or none: medseq-tf tune --nested 5.",
        f"Data set fingerprint {info['data'][:16]}.",
        ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        f"git commit of medseq_tf {commit}" if commit else "",
        "What differs from the recipe that it began with:",
        *(f"  {text}" for text in changed or ["nothing"]),
    ]
    comments = "\n".join(f"# {text}" for text in lines if text)
    return f"{comments}\n{recipe.to_yaml()}"


def _values(search: Search, name: str) -> dict[str, Any]:
    text = (search.path / "trials" / name / "trial.json").read_text("utf-8")
    return json.loads(text)["values"]


def _retrain(
    search: Search,
    prepared: Prepared,
    tracker: Tracker,
    features: str | None,
    desk: _Desk,
    register: bool = True,
) -> None:
    """Train the best recipe on training and validation patients, evaluate it on the test's.

    Its model goes to MLflow's registry. What is done already is not done again.
    """
    name = search.best_trial["trial"]
    folder = search.path / "champion" / name
    known = search.info.get("champions", {}).get(name, {})
    finished = search.champion is not None and search.champion.info["status"] == "finished"
    if finished and (known.get("model") or not tracker.connected or not register):
        return
    folder.parent.mkdir(exist_ok=True)
    champion = Tracker(
        search.path,
        f"{search.space.name} champion ({name})",
        parent=tracker.reference,
        run_id=known.get("run_id"),
        enabled=tracker.enabled,
        system_metrics=True,
    )
    _note_champion(search, name, run_id=champion.run_id)
    status = "FAILED"
    try:
        if not finished:
            desk.say(f"training the best recipe, trial {name}, anew")
        run = train(
            search.best,
            prepared,
            out=folder,
            splits=_rows_of(search, prepared),
            resume=(folder / "run.json").is_file(),
            features=features,
            track=champion,
            verbose=False,
        )
        trial.log_figures(champion, run)
        if champion.connected and register:
            _note_champion(search, name, model=_registered(search, run, desk))
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        champion.end(status)


def _rows_of(search: Search, prepared: Prepared) -> cohort.Rows | None:
    """Return the split of the best recipe's training, where it is not the recipe's own."""
    named = search.splits.get("champion")
    if named is None:
        return None
    row = {study: i for i, study in enumerate(prepared.studies["study_id"])}
    return {part: np.sort([row[study] for study in studies]) for part, studies in named.items()}


def nested_result(folder: Path, prepared: Prepared, objective: Objective) -> dict[str, Any]:
    """Return what the searches of a nested evaluation found on the folds that they did not see.

    Returns:
        `folds`: of each, the winner, its score in the search and on the fold; `table`: the metrics
        of all folds with intervals, as of a cross-validated run; `metric`.
    """
    tables, folds = [], []
    searches = sorted((folder / "nested").glob("fold_*"), key=lambda path: int(path.name[5:]))
    for number, path in enumerate(searches, start=1):
        search = Search(path)
        tested = search.champion.predictions
        tested = tested[tested["split"] == "test"].assign(fold=number)
        tables.append(tested)
        outer = evaluate.fold_table(tested)[objective.metric].mean()
        folds.append(
            {
                "fold": number,
                "trial": search.best_trial["trial"],
                "inside": float(search.best_trial[objective.metric]),
                "outside": float(outer),
            }
        )
    table = evaluate.score(pd.concat(tables, ignore_index=True), prepared.label_names)
    return {"metric": objective.metric, "folds": folds, "table": table.to_dict(orient="records")}


def _note_champion(search: Search, name: str, **changes: Any) -> None:
    champions = search.info.get("champions", {})
    champions[name] = {**champions.get(name, {}), **changes}
    _note(search.path, champions=champions)


def _registered(search: Search, run: Run, desk: _Desk) -> str | None:
    """Put a run's model into MLflow's registry, to be served, as `champion`; return its URI."""
    card = run.path / "model_card.md"
    described = card.read_text("utf-8") if card.is_file() else best_yaml(search)
    try:
        exported = export(run, search.path / "champion" / "exported", register=search.space.name)
        crown(exported.uri, "champion", described)
    except Exception as error:  # whatever tracking does, the search is done
        desk.say(f"the best model is not registered: {first_line(error)}")
        return None
    desk.say(f"registered: {exported.uri}, models:/{search.space.name}@champion")
    return exported.uri
