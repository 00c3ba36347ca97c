"""The command `auto`: from a prepared data set to the best honest model, by itself.

What is tried, on which folds, stands in the plan before anything is learned. All linear candidates
are fitted on all folds, networks are trained as far as the time goes; then the choice is made in
every fold anew, measured on the patients of that fold, and made once more with all of them. That
choice is deployed: a linear model, trained on all patients, unless something is ahead of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseq_tf.automl.budget import Budget
from medseq_tf.automl.candidates import Candidate
from medseq_tf.automl.conclusion import conclude
from medseq_tf.automl.kept import Kept
from medseq_tf.automl.linear import linear_predictions
from medseq_tf.automl.networks import Cluster, network_predictions, share_of, total_seconds
from medseq_tf.automl.pace import SPARE
from medseq_tf.automl.plan import Plan, check_weights, load_plan, make_plan
from medseq_tf.automl.predicted import Candidates
from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import check_requirements
from medseq_tf.errors import InputError, Stopped, note
from medseq_tf.evaluation.feature_workers import feature_place
from medseq_tf.execution.executor import (
    Executor,
    check_workers,
    executor_for,
    refuse_without_ray,
)
from medseq_tf.execution.hosts import require_one_host
from medseq_tf.files import destination, write_text
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import PLAN, Run, locked
from medseq_tf.runs.tracking import AnyTracker, Tracker
from medseq_tf.training.linear_head import study_vectors
from medseq_tf.training.one_run import Options, class_params, tracked

MINUTES = 60.0
SEED = 0
END_SHARE, END_SECONDS, MOST_END_SHARE = 0.05, 20.0, 0.3
"""Of the minutes, kept for what ends the run: the choice, the members and the report; at least so
many seconds, of few minutes not above the last."""


def auto(
    data: str | os.PathLike | Prepared,
    out: str | os.PathLike | None = None,
    minutes: float | None = None,
    plan: str | os.PathLike | Plan | None = None,
    seed: int | None = None,
    folds: int | None = None,
    repeats: int | None = None,
    resume: bool = False,
    plan_only: bool = False,
    deploy_anyway: bool = False,
    features: str | os.PathLike | None = None,
    track: bool = True,
    verbose: bool = True,
    workers: int | None = None,
    ray: str | None = None,
    cpus_per_task: float = 1.0,
    gpus_per_task: float = 0.0,
) -> Run | None:
    """Find, measure and deploy the best model for a prepared data set.

    The plan says which candidates are tried; it is made from the data set's fingerprint, without a
    look at any outcome, and may be edited. Each candidate predicts every patient by models that
    were not trained on him. The figure of the run is that of the whole procedure, its choice among
    candidates included. No outcome decides what is computed: time alone does.

    Args:
        data: the folder of a prepared data set.
        out: the run's new folder; default `runs/auto`.
        minutes: that the whole command may take, over all its resumptions; default: 60. Linear
          candidates are fitted in any case, in one repeat of the folds at least.
        plan: a YAML file, such as `--plan-only` writes, in place of the plan that would be made;
          then `minutes`, `seed`, `folds` and `repeats` are the plan's, and others are refused.
        seed: of the folds and the candidates; default: 0.
        folds: default: 5, or 4 where the rarest class has fewer than 25 patients.
        repeats: of the folds; default: 5, or 1 where sites are kept whole.
        resume: go on with an interrupted run in `out`, to the same result.
        plan_only: print the plan, write it into `out` and do nothing else.
        deploy_anyway: where nothing beats chance, deploy the best linear candidate all the same.
        features: the folder where features of frozen networks are kept, for this run and others;
          default: `MEDSEQ_TF_FEATURES`, or else the user's cache.
        track: log to MLflow: a run, and a child of it for every candidate.
        verbose: show what runs and what is left.
        workers: processes that fit linear candidates at a time, to the same result; default: this
          one alone, with `ray` as many as there is room for.
        ray: the address of a Ray cluster, whose workers compute the features of frozen networks and
          the measures of slices, fit linear candidates, and train the folds of networks side by
          side; see `train`. `out`, too, lies on storage that all nodes see.
        cpus_per_task: of a node that a worker takes, with `ray`.
        gpus_per_task: the same; a fraction shares one.

    Returns:
        The finished run; None with `plan_only`.

    Raises:
        InputError: the data or the plan cannot be used, or `out` is taken.
        Stopped: interrupted with Ctrl-C; `resume` goes on.
    """
    require_one_host("auto")
    refuse_without_ray(ray, cpus_per_task, gpus_per_task)
    check_workers(workers)
    prepared = Prepared.open(data)
    folder = destination(out if out is not None else Path("runs") / "auto")
    asked = {"minutes": minutes, "seed": seed, "folds": folds, "repeats": repeats}
    made = _plan(plan, folder, prepared, resume, asked)
    kept = Kept(folder)
    begun = kept.has_begun(made, prepared, resume)
    if plan_only:
        print(made.text(), flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PLAN, made.to_yaml())
        return None
    if begun and _is_whole(kept.run, deploy_anyway):
        return Run.open(folder)
    prepared.verify()
    to_know: list[str] = []
    for candidate in made.candidates:
        to_know += check_requirements(candidate.experiment(), prepared)
        check_weights(candidate)
    for words in dict.fromkeys(to_know):
        note(words)
    fold_of = made.fold_of(prepared)
    uses_features = any(c.experiment().uses_features for c in made.candidates)
    with contextlib.ExitStack() as held:
        place = None
        if uses_features:
            place = held.enter_context(
                feature_place(features, ray, cpus=cpus_per_task, gpus=gpus_per_task)
            )
        executor = None
        if ray is not None or (workers or 1) > 1:
            executor = held.enter_context(executor_for(workers, ray, cpus=cpus_per_task))
        cluster = None
        if ray is not None:
            room = held.enter_context(
                executor_for(None, ray, cpus=cpus_per_task, gpus=gpus_per_task)
            ).workers
            told = {"ray": ray, "cpus_per_task": cpus_per_task, "gpus_per_task": gpus_per_task}
            cluster = Cluster(room, told)
        options = Options(folder.name, track, verbose, place)
        held.enter_context(locked(folder))
        if not begun and kept.has_begun(made, prepared, resume):
            raise InputError(f"{folder}: a run came there meanwhile; choose another --out")
        if not begun:
            kept.begin(made, prepared, fold_of)
        budget = Budget(made.minutes, kept.auto["seconds"])
        budget.reserve = _reserve(made.minutes)
        with tracked(folder, options) as tracker, _noting_time(kept, budget):
            work = _Work(made, prepared, fold_of, kept, budget, tracker, options, executor, cluster)
            work.begin()
            predictions = work.candidates()
            work.say("the choice, what it deploys, and the report")
            conclude(kept, predictions, tracker, options, deploy_anyway)
    return Run.open(folder)


def _reserve(minutes: float) -> float:
    """Return how many seconds are kept for what ends the run."""
    return 60 * minutes * max(END_SHARE, min(END_SECONDS / (60 * minutes), MOST_END_SHARE))


def _plan(
    given: str | os.PathLike | Plan | None,
    folder: Path,
    prepared: Prepared,
    resume: bool,
    asked: dict[str, Any],
) -> Plan:
    """Return the plan that is given, that of the run to resume, or a new one."""
    if given is None and resume and (folder / PLAN).is_file():
        given = folder / PLAN
    if given is None:
        given_ones = {name: value for name, value in asked.items() if value is not None}
        return make_plan(prepared, **{"minutes": MINUTES, "seed": SEED, **given_ones})
    plan = given if isinstance(given, Plan) else load_plan(given)
    for name, value in asked.items():
        if value is not None and value != getattr(plan, name):
            raise InputError(
                f"{name} = {value}: the plan {'' if isinstance(given, Plan) else f'{given} '}has "
                f"{getattr(plan, name)}; leave it out, or change the plan"
            )
    plan.check(prepared)
    return plan


def _is_whole(run: Run, deploy_anyway: bool) -> bool:
    """Whether a run is finished, and has what is asked for."""
    info = run.info
    return info["status"] == "finished" and (bool(info["members"]) or not deploy_anyway)


@contextlib.contextmanager
def _noting_time(kept: Kept, budget: Budget) -> Iterator[None]:
    """Keep what time is gone, however the block ends, and say how an interrupted run goes on."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        raise Stopped(f"{kept.folder}: stopped; --resume goes on") from None
    finally:
        kept.note(seconds=round(budget.used, 1))


@dataclass(frozen=True)
class _Work:
    """The computing of what all candidates predict."""

    plan: Plan
    prepared: Prepared
    fold_of: np.ndarray
    kept: Kept
    budget: Budget
    tracker: AnyTracker
    options: Options
    executor: Executor | None
    cluster: Cluster | None

    def say(self, text: str) -> None:
        """Print a line of progress."""
        if self.options.verbose:
            print(text, flush=True)

    def begin(self) -> None:
        """Say what will be done, and log it."""
        plan, prepared = self.plan, self.prepared
        self.say(plan.text())
        about = plan.model_dump(mode="json", include={"seed", "folds", "repeats", "by", "minutes"})
        names = [candidate.name for candidate in plan.candidates]
        self.tracker.params(
            {**class_params(prepared), **about, "plan": plan.digest(), "candidates": names}
        )
        if isinstance(self.tracker, Tracker):
            self.tracker.tags({"medseq_tf.kind": "auto"})
        self.tracker.dataset(prepared.path.name, prepared.fingerprint, prepared.info["counts"])
        self.tracker.artifact(self.kept.folder / PLAN)

    def candidates(self) -> Candidates:
        """Return what every candidate predicts in every repeat, as far as time allows."""
        found: Candidates = Candidates(self.plan, self.prepared, self.fold_of)
        linear = [c for c in self.plan.candidates if c.kind == "linear"]
        networks = [c for c in self.plan.candidates if c.kind == "network"]
        for number, candidate in enumerate([*linear, *networks], start=1):
            with self._step(f"{number}/{len(self.plan.candidates)} {candidate.name}"):
                if candidate.kind == "linear":
                    found.add(candidate.name, self._linear(candidate, len(linear) - number + 1))
                else:
                    found.add(candidate.name, *self._network(candidate, 1, networks))
            if number == len(linear):
                found.keep_common()
        self._further_repeats(found, networks)
        return found

    def _further_repeats(self, found: Candidates, networks: Sequence[Candidate]) -> None:
        """Add repeats of all networks together, while time is left for them."""
        part = [candidate for candidate in networks if candidate.name in found.predictions[0]]
        most = min((candidate.repeats for candidate in part), default=0)
        for repeats in range(2, min(most, found.repeats) + 1):
            asked = {c.name: self.kept.auto["rounds"][c.name]["asked"] for c in part}
            to_come = [c for c in part if asked[c.name] < repeats]
            seconds = sum(total_seconds(self.kept.place(c.name)) for c in part) / (repeats - 1)
            if to_come and (self.kept.auto.get("decided") or SPARE * seconds > self.budget.left):
                break
            for candidate in part:
                with self._step(f"{candidate.name}, repeat {repeats} of {candidate.repeats}"):
                    found.add(candidate.name, *self._network(candidate, repeats, to_come))
            if not all(candidate.name in found.predictions[repeats - 1] for candidate in part):
                break
        self.kept.note(decided=True)

    @contextlib.contextmanager
    def _step(self, title: str) -> Iterator[None]:
        """Say what runs, and afterwards what time is left."""
        began = time.monotonic()
        self.say(title)
        yield
        self.kept.note(seconds=round(self.budget.used, 1))
        self.say(
            f"    {time.monotonic() - began:.0f} s; {max(self.budget.left, 0) / 60:.1f} of "
            f"{self.plan.minutes:g} minutes are left for candidates"
        )
        gc.collect()

    def _linear(self, candidate: Candidate, candidates: int) -> list[CandidatePredictions]:
        """Return a linear candidate's predictions: of the first repeat, and of others in time.

        Time is shared among the linear candidates that are to come, this one among them.
        """
        decided: dict[str, int] = self.kept.auto.get("linear", {})
        fewest = min(decided.values(), default=self.plan.repeats)  # which all have, or will have
        repeats = decided.get(candidate.name, fewest)
        kept = [self.kept.predictions(candidate.name, repeat) for repeat in range(repeats)]
        to_come = [repeat for repeat, one in enumerate(kept) if one is None]
        if to_come:
            ends = time.monotonic() + self.budget.left / candidates
            recipe, place = candidate.experiment(), self.kept.place(candidate.name)
            with self._child(candidate):
                vectors, folds = self._vectors(recipe), self.fold_of[to_come]
                began = time.monotonic()
                with contextlib.closing(
                    linear_predictions(recipe, self.prepared, folds, vectors, self.executor, place)
                ) as found:
                    for done, (repeat, one) in enumerate(zip(to_come, found, strict=True), 1):
                        self.kept.keep(candidate.name, repeat, one)
                        kept[repeat] = one
                        now = time.monotonic()
                        if now + SPARE * (now - began) / done > ends:
                            break
        predictions = [one for one in kept if one is not None]
        self.kept.note(linear={**decided, candidate.name: len(predictions)})
        return predictions

    def _vectors(self, recipe: Experiment) -> np.ndarray:
        """Return `study_vectors` of all studies; NaN of those that take no part."""
        rows, options = np.flatnonzero(self.fold_of[0] >= 0), self.options
        store = SliceStore(self.prepared, recipe)
        own = study_vectors(recipe, store, options.features, rows, options.verbose)
        vectors = np.full((len(own), len(self.prepared), own.shape[2]), np.nan, np.float32)
        vectors[:, rows] = own
        return vectors

    def _network(
        self, candidate: Candidate, repeats: int, to_come: Sequence[Candidate]
    ) -> tuple[list[CandidatePredictions], str]:
        """Return a network's predictions in the repeats that it had time for, and what to say.

        Time is shared among those that are to come, this one first.
        """
        rounds: dict[str, dict[str, Any]] = self.kept.auto["rounds"]
        before = rounds.get(candidate.name, {"asked": 0, "repeats": 0})
        if before["asked"] < repeats:
            with self._child(candidate) as child:
                done = network_predictions(
                    candidate.model_copy(update={"repeats": repeats}),
                    self.prepared,
                    self.fold_of,
                    self.kept.place(candidate.name),
                    lambda: self.budget.left,
                    share_of(candidate, to_come, self.budget.left),
                    tracker=child,
                    features=self.options.features,
                    say=lambda text: self.say(f"    {text}"),
                    cluster=self.cluster,
                )
            for repeat, one in enumerate(done.predictions):
                self.kept.keep(candidate.name, repeat, one)
            before = {
                "asked": repeats,
                "repeats": max(len(done.predictions), before["repeats"]),
                "note": done.note if done.predictions else before.get("note", done.note),
            }
            self.kept.note(rounds={**rounds, candidate.name: before})
            self.say(f"    {done.note}")
        kept = [self.kept.predictions(candidate.name, r) for r in range(before["repeats"])]
        return [one for one in kept if one is not None], before["note"]

    @contextlib.contextmanager
    def _child(self, candidate: Candidate) -> Iterator[Tracker]:
        """Yield a candidate's MLflow run, the one that it began with."""
        runs: dict[str, str | None] = self.kept.auto.get("mlflow", {})
        folder = self.kept.place(candidate.name)
        folder.mkdir(parents=True, exist_ok=True)
        child = Tracker(
            folder,
            f"{self.options.name} {candidate.name}",
            parent=self.tracker.reference,
            run_id=runs.get(candidate.name),
            enabled=bool(self.options.track),
        )
        status = "FAILED"
        try:
            self.kept.note(mlflow={**runs, candidate.name: child.run_id})
            child.params({**candidate.experiment().flat(), "role": candidate.role})
            yield child
            status = "FINISHED"
        except (Stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            child.end(status)
