"""The command `tune`: search a space of recipes on a prepared data set.

The test patients are set aside before the first trial, and no trial sees them. Over the others each
trial is scored on patients who are not its training's. Every trial has a process, a folder and an
MLflow run of its own. The same command again goes on with a search that was interrupted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseq_tf import recipe as recipes
from medseq_tf.dataset import selection
from medseq_tf.dataset.covariate_values import check_covariates
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import check_requirements
from medseq_tf.errors import InputError, Stopped, note
from medseq_tf.evaluation import scoring
from medseq_tf.execution.hosts import require_one_host
from medseq_tf.files import destination, write_json, write_text
from medseq_tf.runs.environment import environment
from medseq_tf.runs.run import Run, locked
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training.one_run import class_params
from medseq_tf.tuning import trial
from medseq_tf.tuning.champion import retrain as retrain_best
from medseq_tf.tuning.oracles import TUNERS
from medseq_tf.tuning.patients import decide_objective, outer_folds, scored_studies, set_aside
from medseq_tf.tuning.scheduler import TrialScheduler
from medseq_tf.tuning.search import BASE, Search, header, nested_text
from medseq_tf.tuning.settings import Objective
from medseq_tf.tuning.space import Space
from medseq_tf.tuning.trial_store import TrialStore
from medseq_tf.tuning.workers import Team, teams, train_trials

TRIALS = 20
"""How many, where neither trials nor minutes are given and the tuner has no end of its own."""
MOST_KEYS = 10_000
"""Of patients that `best.yaml` names, to stay a file that is read: of more, as good as a random
part."""


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
    workers: int | None = None,
    features: str | os.PathLike | None = None,
    track: bool = True,
    verbose: bool = True,
    nested: int | None = None,
    stop_hopeless: bool = False,
    ray: str | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    cluster: str | int | None = None,
) -> Search:
    """Search a space of recipes on a prepared data set.

    The same call again goes on with an interrupted search, or with more trials. The test patients
    of the recipe's split, or of the data set's own, are set aside; the best recipe, trained anew
    at the end, is the first of the search to read them.

    The best of many trials is too good: beside its score stands what it is when corrected for the
    choice (`medseq_tf.tuning.optimism`), and `best.yaml` carries on whom it was chosen. Where the
    space's objective does not say on whom trials are scored, these are the patients of two times
    five patient-level folds while fewer than 200 take part, and the validation patients of the
    recipe's split otherwise.

    Args:
        space: a YAML file, or its content; see `medseq_tf.tuning.space`.
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
        workers: how many trials are trained at a time; default: one after the other, on a Ray
          cluster as many as it has room for.
        features: the folder where features of a network that is frozen whole are kept.
        track: log to MLflow: a run for the search, a child of it for every trial.
        verbose: print a line for every finished trial.
        nested: also search anew without each of this many patient-level folds, and test what is
          found on that fold: the figure of the searched recipe that no choice has made too good, at
          the cost of as many searches. It stands in `nested.json` and in `Search.nested`.
        stop_hopeless: end a trial whose best monitored value is worse than what half of the
          finished trials had on average by the same epoch; see `medseq_tf.tuning.hopeless`.
        ray: the address of a Ray cluster whose nodes train the trials; `auto`: that of
          `RAY_ADDRESS` or of this machine; `local`: one for the time of the search. All nodes see
          `data` and `out` under the same paths.
        cpus_per_trial: of a node, with `ray`: how many trials it is given at a time.
        gpus_per_trial: of a node, with `ray`; a fraction shares a GPU.
        cluster: no longer known; see `workers` and `ray`.

    Returns:
        The search.

    Raises:
        InputError: the space or the data cannot be used, the folder holds another search, or the
          first trials have all failed.
        Stopped: interrupted with Ctrl-C; the same call goes on.
    """
    require_one_host("tune")
    if cluster is not None:
        raise InputError(
            "cluster: is no longer known; --workers N trains N trials at a time on this machine, "
            "--ray ADDRESS on the nodes of a Ray cluster"
        )
    space = Space.load(space, overrides)
    prepared = Prepared.open(data)
    folder = destination(out if out is not None else Path("runs") / f"{space.name}-search")
    features = None if features is None else str(Path(features).resolve())
    for words in check_requirements(space.base, prepared):
        note(words)
    recipes.check_meaning("objective.metric", space.objective.metric, prepared.outputs)
    recipes.check_meaning("fit.monitor", space.base.fit.monitor, prepared.outputs)
    check_covariates(prepared, _covariates(space))
    space = decide_objective(space, prepared, folder)
    _check(space, tuner, trials, minutes, workers, stop_hopeless)
    outer = [] if nested is None else outer_folds(space, prepared, nested)
    if trials is None and minutes is None and tuner in ("bayesian", "random"):
        trials = TRIALS
    prepared.verify()
    plan = set_aside(space, prepared)
    with teams(workers, ray, cpus_per_trial, gpus_per_trial) as team:
        how = _How(
            tuner, seed, trials, minutes, base, features, track, verbose, stop_hopeless, team
        )
        search = _search(space, prepared, plan, folder, how, retrain)
        for number, fold in enumerate(outer, start=1):
            place_of_fold = folder / "nested" / f"fold_{number}"
            if verbose:
                print(f"nested evaluation, fold {number} of {nested}", flush=True)
            _search(space, prepared, fold, place_of_fold, how, retrain=True, register=False)
    if outer:
        result = nested_result(folder, prepared, space.objective, len(outer))
        write_json(folder / "nested.json", result)
        if verbose:
            print(nested_text(result), flush=True)
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
    stop_hopeless: bool
    team: Callable[[Path], Team]


def _covariates(space: Space) -> list[str]:
    """Return the covariates that any recipe of a space reads."""
    names = [*space.base.model.covariates]
    for setting in space.settings:
        for values in setting.alternatives.values():
            names += values.get("model.covariates", ())
    return names


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
            store = TrialStore(
                space, folder, how.tuner, how.seed, how.trials, how.minutes, how.base, done
            )
            scheduler = TrialScheduler(search, prepared, store, tracker, how.track, how.verbose)
            scheduler.say(_greeting(search, plan, how.trials, how.minutes))
            here = {
                "data": str(prepared.path.resolve()),
                "splits": str((folder / "splits.json").resolve()),
                "features": how.features,
                **({"stop_hopeless": True} if how.stop_hopeless else {}),
            }
            train_trials(scheduler, here, how.team(folder))
            scheduler.raise_if_hopeless()
            if retrain and search.best_trial is not None:
                retrain_best(search, prepared, tracker, how.features, scheduler.say, register)
            scheduler.sum_up()
    return search


def _check(
    space: Space,
    tuner: str,
    trials: int | None,
    minutes: float | None,
    workers: int | None,
    stop_hopeless: bool,
) -> None:
    if tuner not in TUNERS:
        raise InputError(f"tuner = {tuner!r}: one of {', '.join(TUNERS)}")
    for name, value in (("trials", trials), ("minutes", minutes), ("workers", workers)):
        if value is not None and value <= 0:
            raise InputError(f"{name} = {value}: should be above 0")
    if tuner == "hyperband" and stop_hopeless:
        raise InputError("hyperband ends hopeless trials itself: leave --stop-hopeless out")
    if tuner == "hyperband" and any("fit.epochs" in setting.keys for setting in space.settings):
        raise InputError("hyperband sets fit.epochs itself; leave it out of the space")
    if tuner == "hyperband" and space.base.fit.solver == "lbfgs":
        raise InputError(
            "hyperband sets fit.epochs, of which fit.solver=lbfgs has none: take another tuner"
        )


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
    others = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    if not others <= {"space.yaml", "recipe.yaml", "splits.json"}:
        raise InputError(f"{folder}: is in use and holds no search; choose another --out")
    write_text(folder / "recipe.yaml", space.base.to_yaml())
    write_text(folder / "space.yaml", space.to_yaml("recipe.yaml"))
    write_json(folder / "splits.json", plan)
    scored = scored_studies(prepared, plan)
    about = {
        "scored": int(scored["patient_id"].nunique()),
        "patients": " ".join(sorted(selection.patient_keys(scored))[:MOST_KEYS]),
        **({"classes": asdict(prepared.classes)} if prepared.classes else {}),
    }
    write_json(folder / "search.json", {**asked, **about, "status": "started", **environment()})


def _greeting(
    search: Search, plan: dict[str, Any], trials: int | None, minutes: float | None
) -> str:
    aside, there = len(plan["set_aside"]), len(search.trials)
    limits = [f"{trials} trials"] if trials else []
    limits += [f"{minutes:g} minutes"] if minutes else []
    budget = " and ".join(limits)
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
            Search(folder).note(status=status)
        finally:
            tracker.end(tracked)
        Search(folder).note(mlflow_run_id=tracker.run_id)


def _tracker(
    folder: Path, space: Space, tuner: str, seed: int, prepared: Prepared, track: bool
) -> Tracker:
    """Return the search's MLflow run, the one that it began with."""
    before = Search(folder).info.get("mlflow_run_id")
    tracker = Tracker(folder, f"search {space.name}", run_id=before, enabled=track)
    Search(folder).note(status="running", mlflow_run_id=tracker.run_id)
    tracker.params(
        {
            **class_params(prepared),
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


def nested_result(
    folder: Path, prepared: Prepared, objective: Objective, count: int
) -> dict[str, Any]:
    """Return what the `count` searches of a nested evaluation found on folds they did not see.

    Returns:
        `folds`: of each, the winner, its score in the search and on the fold; `table`: the metrics
        of all folds with intervals, as of a cross-validated run; `metric`.
    """
    tables, folds = [], []
    for number in range(1, count + 1):
        search = Search(folder / "nested" / f"fold_{number}")
        tested = Run(search.path / "champion" / search.winner["trial"]).predictions
        tested = tested[tested["split"] == "test"].assign(fold=number)
        tables.append(tested)
        outer = scoring.fold_table(tested, prepared.classes)[objective.metric].mean()
        folds.append(
            {
                "fold": number,
                "trial": search.winner["trial"],
                "inside": float(search.winner[objective.metric]),
                "outside": float(outer),
            }
        )
    everyone = pd.concat(tables, ignore_index=True)
    table = scoring.score(everyone, prepared.label_names, classes=prepared.classes)
    return {"metric": objective.metric, "folds": folds, "table": table.to_dict(orient="records")}
