"""Cross-validation: one run per fold, and their test predictions pooled."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Sequence

import pandas as pd

from medseq_tf.dataset import selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import Stopped
from medseq_tf.evaluation import operating_points
from medseq_tf.evaluation.predictions import fit_temperatures, of_folds
from medseq_tf.evaluation.scoring import fold_summary
from medseq_tf.execution.ray_cluster import RayExecutor
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Experiment
from medseq_tf.runs.mlflow_store import absolute_uri
from medseq_tf.runs.run import COVARIATES_ALONE, Run
from medseq_tf.runs.tracking import AnyTracker, Section
from medseq_tf.training.beginning import Request
from medseq_tf.training.fold_workers import Fold, train_folds
from medseq_tf.training.one_run import (
    Options,
    Results,
    class_params,
    derived_seed,
    name_of_label,
    tracked,
    train_one,
    write_results,
)


def cross_validate(
    request: Request, store: SliceStore, splits: Sequence[Rows], options: Options
) -> None:
    """Train one run per fold and pool their predictions, each called by its fold's threshold."""
    recipe, prepared, repeats = request.recipe, store.prepared, request.repeats
    folds, whole = len(splits) // repeats, Run(request.folder)
    with tracked(request.folder, options) as tracker:
        about = {**class_params(prepared), "folds": folds, "repeats": repeats}
        tracker.params({**recipe.flat(), **about})
        tracker.dataset(prepared.path.name, prepared.fingerprint, prepared.info["counts"])
        waiting: list[tuple[Request, Options]] = []
        for number, split in enumerate(splits, start=1):
            repeat = (number - 1) // folds + 1
            site = whole.fold_sites[number - 1] if whole.fold_sites else None
            folder = request.folder / f"fold_{number}"
            fold = Request(folder, of_repeat(recipe, repeat), prepared, resume=True, site=site)
            earlier = fold.earlier()
            if not earlier:
                fold.begin(split)
            of_fold = _of_fold(options, number, tracker)
            if options.executor is not None:
                if earlier.get("status") != "finished":
                    waiting.append((fold, of_fold))
                continue
            if options.verbose:
                words = f"Fold {number - (repeat - 1) * folds}/{folds}"
                words += f" (site {site})" if site else ""
                print(words if repeats == 1 else f"Repeat {repeat}/{repeats}, {words.lower()}")
            if earlier.get("status") != "finished":
                if options.stop():
                    raise Stopped(
                        f"{request.folder}: stopped before fold {number}; --resume goes on"
                    )
                train_one(fold, store, split, of_fold)
                gc.collect()
        if options.executor and waiting:
            _side_by_side(request, waiting, options, options.executor)
        _pool(whole, prepared, tracker)


def _side_by_side(
    request: Request,
    folds: Sequence[tuple[Request, Options]],
    options: Options,
    executor: RayExecutor,
) -> None:
    """Train folds by the workers of a cluster; what the run's tracker gets of them it gets then."""
    if options.verbose:
        print(
            f"{len(folds)} folds on Ray, {min(executor.workers, len(folds))} at a time", flush=True
        )
    there = [
        Fold(
            os.path.abspath(fold.folder),
            os.path.abspath(fold.prepared.path),
            of_fold.name,
            None if options.features is None else os.path.abspath(options.features),
            of_fold.track if isinstance(of_fold.track, bool) else None,
            of_fold.parent,
            absolute_uri(),
        )
        for fold, of_fold in folds
    ]
    try:
        train_folds(executor, request.folder, there, options.stop)
    finally:
        for fold, of_fold in folds:
            if isinstance(of_fold.track, Section) and (fold.folder / "history.csv").is_file():
                for row in Run(fold.folder).history.to_dict(orient="records"):
                    of_fold.track.metrics(row, int(row["epoch"]))


def _of_fold(options: Options, number: int, tracker: AnyTracker) -> Options:
    """Return the options of a fold's run: a part of its section, or an MLflow run of its own."""
    track = options.track
    return dataclasses.replace(
        options,
        name=f"{options.name} fold {number}",
        track=track.within(f"fold_{number}/") if isinstance(track, Section) else bool(track),
        parent=tracker.reference,
    )


def of_repeat(recipe: Experiment, repeat: int) -> Experiment:
    """Return a recipe with the seed of a repeat, so that each starts from weights of its own.

    The first has the recipe's own seed.
    """
    if repeat == 1:
        return recipe
    return recipe.model_copy(update={"seed": derived_seed(recipe.seed, repeat)})


def _pool(whole: Run, prepared: Prepared, tracker: AnyTracker) -> None:
    """Write the results of all folds together."""
    runs = whole.folds
    pooled = of_folds([run.predictions for run in runs], whole)
    origins = set(selection.origins(whole.experiment))
    notes = [
        *operating_points.notes_of_folds([run.operating_points for run in runs]),
        *_by_fold(
            [[note for note in run.notes if note not in origins] for run in runs], whole.fold_sites
        ),
    ]
    files, alone = [run.path / COVARIATES_ALONE for run in runs], None
    if all(file.is_file() for file in files):
        alone = of_folds([pd.read_parquet(file) for file in files], whole)
    write_pooled(whole, prepared, pooled, notes, alone, tracker)


def write_pooled(
    whole: Run,
    prepared: Prepared,
    pooled: pd.DataFrame,
    notes: Sequence[str],
    alone: pd.DataFrame | None,
    tracker: AnyTracker,
    exported: int | None = None,
) -> None:
    """Write the results of all folds of a run, called by its held-out predictions of all patients.

    Args:
        whole: the run.
        prepared: its data set.
        pooled: the predictions of all folds, as `of_folds` joins them.
        notes: what is to be said of them.
        alone: what is predicted from covariates alone, of the same studies.
        tracker: where figures go.
        exported: how many models' mean the run exports, if it is not one a fold.
    """
    tested = pooled[pooled["split"] == "test"]
    points = {}
    if not prepared.classes:
        rule = whole.experiment.fit.threshold
        points = operating_points.of_folds(tested, prepared.label_names, rule, exported)
    studies = prepared.studies[prepared.studies["study_id"].isin(tested["study"])]
    if selection.note(whole.experiment, studies):
        points = operating_points.without_intervals(points)
    unseen = operating_points.unseen(tested).assign(split="validation")
    temperatures, unscaled = fit_temperatures(unseen, prepared.classes)
    unscaled = [note.replace("validation's", "the held-out patients'") for note in unscaled]
    said = [*operating_points.notes(points), *unscaled, *notes]
    write_results(whole, prepared, Results(pooled, points, temperatures, said, alone), tracker)
    for row in fold_summary(tested, prepared.classes).itertuples():
        name = f"test_{row.metric}{name_of_label(row.label, prepared)}"
        tracker.metrics({f"{name}_fold_mean": row.mean, f"{name}_fold_sd": row.sd})


def _by_fold(notes: Sequence[Sequence[str]], sites: Sequence[str]) -> list[str]:
    """Return what is to be said of single folds, each note once, but not of their thresholds.

    They are called by the `sites` that they leave out, if they do.
    """
    folds: dict[str, list[str]] = {}
    for number, of_fold in enumerate(notes, start=1):
        for note in of_fold:
            if operating_points.STANDS_ON not in note:
                folds.setdefault(note, []).append(sites[number - 1] if sites else str(number))
    kind = "site" if sites else "fold"
    return [
        f"{kind}{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {note}"
        for note, numbers in folds.items()
    ]
