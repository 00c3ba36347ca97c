"""Takes a recipe and a prepared data set; gives a run folder: the best model and its figures."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset import reuse, selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import check_requirements
from medseq_tf.dataset.splits import (
    SPLITS,
    Rows,
    check_leakage,
    check_training,
    make_folds,
    make_holdout,
    missing_test_classes,
    splits_from_json,
    splits_to_json,
)
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation import cross_validation, operating_points
from medseq_tf.evaluation.feature_folder import feature_folder
from medseq_tf.evaluation.inference import Predictions, study_predictions
from medseq_tf.evaluation.operating_points import OperatingPoint
from medseq_tf.evaluation.predictions import (
    calibrated,
    choose_cuts,
    choose_operating_points,
    fit_temperatures,
    predictions_table,
)
from medseq_tf.evaluation.scoring import fold_summary, mark_selection, score
from medseq_tf.evaluation.unseen_data import audit_splits
from medseq_tf.files import atomic, destination, write_json
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import losses
from medseq_tf.recipe import Experiment
from medseq_tf.reporting import model_card, report
from medseq_tf.runs.environment import environment
from medseq_tf.runs.run import SLICES, Run, locked
from medseq_tf.runs.tracking import Section, Tracker
from medseq_tf.training.loop import CHECKPOINT, Fitter
from medseq_tf.training.pretraining import healthy

BEGINNING = ("experiment.yaml", "dataset.json", "studies.json", "splits.json")


def train(
    experiment: str | os.PathLike | Experiment,
    data: str | os.PathLike | Prepared,
    out: str | os.PathLike | None = None,
    name: str | None = None,
    overrides: Iterable[str] = (),
    folds: int | None = None,
    repeats: int = 1,
    splits: Rows | list[Rows] | None = None,
    resume: bool = False,
    features: str | os.PathLike | None = None,
    track: bool | Tracker | Section = True,
    verbose: bool = True,
) -> Run:
    """Train a recipe on a prepared data set.

    Splits are by patient. After every epoch the model is scored on the validation studies; the best
    epoch by `fit.monitor` is kept, thresholds are chosen on validation, and the test studies are
    read at the end, which is counted in the data set (`reuse`). One seed gives one result,
    bit for bit on a CPU.

    Args:
        experiment: a preset's name, a YAML file, or an `Experiment`.
        data: the folder of a prepared data set.
        out: the run folder; default `runs/<name>`.
        name: the run's name; default the recipe's.
        overrides: `dotted.key=value`, as with `--set`.
        folds: cross-validate over this many patient-level folds: one run a fold, pooled at the end.
          All folds of a repeat start from the same weights.
        repeats: divide the patients into folds anew this many times, each time from other weights,
          so that the figures are means over the luck of the folds and of the start.
        splits: rows of the data set's studies by split, in place of the recipe's; a list of them is
          cross-validated, with `repeats` those of one repeat after the other (as many as there are
          where each divides the patients at random). Studies that are in none are left alone.
        resume: go on with an interrupted run in `out`, to bitwise the same weights.
        features: the folder where features of a network that is frozen whole are kept, for this run
          and others; default: `MEDSEQ_TF_FEATURES`, or else the user's cache.
        track: log to MLflow; a tracker: into its run, which is not ended.
        verbose: show progress.

    Returns:
        The finished run.

    Raises:
        InputError: the recipe or the data cannot be used, or `out` is taken.
        Diverged: the loss became NaN or infinite.
        Stopped: interrupted with Ctrl-C; `resume` goes on.
    """
    recipe = recipes.load(experiment, overrides)
    prepared = Prepared.open(data)
    folder = destination(out if out is not None else Path("runs") / (name or recipe.name))
    if splits is not None:
        if folds is not None:
            raise InputError("folds and splits: give one of them")
        folds = _check_splits(prepared, splits, repeats)
    if repeats < 1 or (repeats > 1 and folds is None):
        raise InputError(
            f"repeats = {repeats}: "
            + ("expected at least 1" if repeats < 1 else "goes with folds, which it repeats")
        )
    before = _before(folder, recipe, prepared, folds, resume, splits, repeats)
    if before.get("status") == "finished":
        return Run.open(folder)
    prepared.verify()
    if not before:
        check_requirements(recipe, prepared)
    store = SliceStore(prepared, recipe)
    splits = _splits(folder, recipe, prepared, folds, repeats) if splits is None else splits
    place = feature_folder(features) if recipe.uses_features else None
    if not before:
        for split in [splits] if folds is None else splits:
            if not recipe.segments:  # a segmenter learns from pixels
                check_training(prepared.studies, split)
        _check_model(recipe, prepared, splits if folds is None else splits[0])
        gc.collect()  # a model is a cycle, and a pretrained one is large
    work = _train_one if folds is None else _cross_validate
    with locked(folder):
        now = _before(folder, recipe, prepared, folds, resume, splits, repeats)
        if now.get("status") == "finished":
            return Run.open(folder)
        if now and not before:
            raise InputError(f"{folder}: a run came there meanwhile; choose another --out")
        if not now:
            _begin(folder, recipe, prepared, splits, folds, repeats)
        work(recipe, store, splits, folder, name or folder.name, track, verbose, place)
    return Run.open(folder)


def _before(
    folder: Path,
    recipe: Experiment,
    prepared: Prepared,
    folds: int | None,
    resume: bool,
    splits: Rows | list[Rows] | None = None,
    repeats: int = 1,
) -> dict[str, Any]:
    """Return what is known of the run to resume, nothing for a new one; refuse any other folder."""
    if not (folder / "run.json").is_file():
        # run.json is written last: without it, the others are of a run that never began.
        taken = not folder.is_dir() or any(
            f.name not in BEGINNING and not f.name.startswith(".") for f in folder.iterdir()
        )
        if folder.exists() and taken:
            raise InputError(f"{folder}: is in use and holds no run; choose another --out")
        return {}
    if not resume:
        raise InputError(f"{folder}: a run is there already; choose another --out, or --resume")
    run = Run.open(folder)
    stored, asked = run.experiment.flat(), recipe.flat()
    stored |= {"data": run.info["fingerprint"], "folds": run.info["folds"]}
    asked |= {"data": prepared.fingerprint, "folds": folds}
    stored["repeats"], asked["repeats"] = run.repeats, repeats
    for key, value in asked.items():
        if stored.get(key) != value and not key.startswith("requires."):
            raise InputError(
                f"{folder}: the run to resume has {key} = {stored.get(key)}, asked for {value}; "
                "resume with the same recipe, data and folds"
            )
    if splits is not None and run.splits != _named(prepared, splits):
        raise InputError(f"{folder}: the run to resume has other splits; resume with the same")
    return run.info


def _check_splits(prepared: Prepared, splits: Rows | list[Rows], repeats: int = 1) -> int | None:
    """Raise an InputError for leakage in given splits; return how many folds they are, if any."""
    parts = splits if isinstance(splits, list) else [splits]
    for split in parts:
        if set(split) != set(SPLITS) or not len(split["train"]):
            raise InputError(
                f"splits: each needs rows for {', '.join(SPLITS)}, of which train has some"
            )
        check_leakage(prepared.studies, split)
    if isinstance(splits, list) and len(splits) < 2:
        raise InputError(f"splits: a list of {len(splits)}; cross-validation needs at least 2")
    if not isinstance(splits, list):
        return None
    if repeats < 1 or len(splits) % repeats:
        raise InputError(f"splits: a list of {len(splits)} is not {repeats} repeats of equal folds")
    folds = len(splits) // repeats
    for start in range(0, len(splits), folds):
        tested = np.concatenate([split["test"] for split in splits[start : start + folds]])
        if len(np.unique(tested)) < len(tested):
            raise InputError("splits: two folds of a repeat test the same study")
    return folds


def _named(prepared: Prepared, splits: Rows | list[Rows]) -> Any:
    """Return splits as a run folder keeps them: study ids."""
    return json.loads(splits_to_json(prepared.studies, splits))


def _splits(
    folder: Path, recipe: Experiment, prepared: Prepared, folds: int | None, repeats: int
) -> Any:
    """Return the split, or one a fold; those of a run to resume are the ones that it began with."""
    stored = folder / "splits.json"
    if (folder / "run.json").is_file():
        return splits_from_json(prepared.studies, stored.read_text("utf-8"))
    if folds is None:
        return make_holdout(prepared.studies, recipe.split)
    return make_folds(prepared.studies, folds, recipe.split, repeats)


def _check_model(recipe: Experiment, prepared: Prepared, split: Mapping[str, np.ndarray]) -> None:
    """Raise an InputError for what the data and the model do not agree on, before a run begins."""
    size, labels = recipe.input.size, prepared.labels
    if recipe.segments and all(prepared.masks(row, [0]) is None for row in split["train"]):
        raise InputError(
            f"{prepared.path}: has no lesion masks, from which a segmenter learns; the readers "
            "atlas and demo store them"
        )
    if recipe.pretraining:
        healthy(prepared, split["train"])
    losses.build(recipe.loss, labels[split["train"]])
    models.build(recipe.model, (size, size, recipe.input.channels), labels.shape[1])


def _begin(
    folder: Path,
    recipe: Experiment,
    prepared: Prepared,
    splits: Any,
    folds: int | None,
    repeats: int = 1,
) -> None:
    """Write what a run begins with, `run.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "experiment.yaml") as temporary:
        temporary.write_text(recipe.to_yaml(), "utf-8")
    write_json(folder / "dataset.json", prepared.info)
    write_json(folder / "studies.json", prepared.contents)
    write_json(folder / "splits.json", _named(prepared, splits))
    write_json(
        folder / "run.json",
        {
            "status": "started",
            "fingerprint": prepared.fingerprint,
            "folds": folds,
            "repeats": repeats,
            **environment(),
        },
    )


def _set_info(folder: Path, **changes: Any) -> None:
    info = json.loads((folder / "run.json").read_text("utf-8"))
    write_json(folder / "run.json", {**info, **changes})


# ------------------------------------------------------------------------------ one training run


def _train_one(
    recipe: Experiment,
    store: SliceStore,
    split: Mapping[str, np.ndarray],
    folder: Path,
    name: str,
    track: bool | Tracker | Section,
    verbose: bool,
    features: Path | None,
    parent: str | None = None,
) -> None:
    """Train, choose thresholds, predict and report one split into `folder`."""
    prepared = store.prepared
    counts = {f"{part}_studies": len(rows) for part, rows in split.items()}
    with _tracked(folder, name, track, parent) as tracker:
        tracker.params(recipe.flat())
        tracker.dataset(
            prepared.path.name, prepared.fingerprint, {**prepared.info["counts"], **counts}
        )
        fitter = Fitter(recipe, store, split, folder, tracker, verbose, features)
        fitter.run()
        _finish(fitter)
    (folder / CHECKPOINT).unlink(missing_ok=True)


@contextmanager
def _tracked(
    folder: Path, name: str, track: bool | Tracker | Section, parent: str | None = None
) -> Iterator[Tracker | Section]:
    """Yield the run's tracker; note in `run.json` and in MLflow how the block ended."""
    if not isinstance(track, bool):
        tracker = track
    else:
        before = Run(folder).info.get("mlflow_run_id")
        tracker = Tracker(
            folder, name, parent=parent, run_id=before, enabled=track, system_metrics=parent is None
        )
    status, tracked = "failed", "FAILED"
    try:
        _set_info(folder, status="running", mlflow_run_id=tracker.run_id)
        yield tracker
        status, tracked = "finished", "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status, tracked = "stopped", "KILLED"
        raise
    finally:
        try:
            _set_info(folder, status=status)
        finally:
            if tracker is not track:
                tracker.end(tracked)
        _set_info(folder, mlflow_run_id=tracker.run_id)


# ------------------------------------------------------------------------- after the last epoch


def _finish(fitter: Fitter) -> None:
    """Choose thresholds on validation, predict validation and test, score, report."""
    prepared, split = fitter.store.prepared, fitter.split
    nothing = Predictions(np.empty((0, len(prepared.label_names))))
    answers = {
        part: study_predictions(
            fitter.model, fitter.store, split[part], fitter.recipe, fitter.features
        )
        for part in ("validation", "test")
        if len(split[part])
    }
    points = operating_points.of_nothing(prepared.label_names)
    if "validation" in answers:
        points = choose_operating_points(
            prepared, split["validation"], answers["validation"].probabilities
        )
    notes = operating_points.notes(points) + missing_test_classes(prepared.studies, split)
    thresholds = {label: point.threshold for label, point in points.items()}
    tables = [
        predictions_table(prepared, rows, answers.get(part, nothing), part, thresholds)
        for part, rows in split.items()
        if part != "train"
    ]
    predictions = pd.concat(tables, ignore_index=True)
    temperatures, unscaled = fit_temperatures(predictions)
    predictions, notes = calibrated(predictions, temperatures), notes + unscaled
    _write_results(
        fitter.folder, predictions, prepared, points, temperatures, notes, fitter.tracker
    )


def _write_results(
    folder: Path,
    predictions: pd.DataFrame,
    prepared: Prepared,
    points: Mapping[str, OperatingPoint],
    temperatures: Mapping[str, float],
    notes: list[str],
    tracker: Tracker,
) -> None:
    """Write predictions, metrics and report into a run folder, and log them."""
    with atomic(folder / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    # A patient is validated in several folds, by models of different thresholds: nothing to pool.
    scored = predictions[predictions["split"] == "test"] if "fold" in predictions else predictions
    run = Run(folder)
    table = score(scored, prepared.label_names)
    table = mark_selection(table, run.experiment, scored, run.contents)
    rows = table.to_dict(orient="records")
    folds = "fold" in predictions
    results = {
        "question": cross_validation.RECIPE if folds else cross_validation.FITTED,
        "thresholds": {label: point.threshold for label, point in points.items()},
        "operating_points": {label: point.to_dict() for label, point in points.items()},
        "temperatures": dict(temperatures),
    }
    if not folds:
        results["cuts"] = choose_cuts(predictions)
    notes = [*notes, *selection.origins(run.experiment)]
    write_json(folder / "metrics.json", {**results, "notes": notes, "table": rows})
    _count_reads(run, prepared, scored)
    if not isinstance(tracker, Section):
        audit = audit_splits(run, prepared)
        with atomic(folder / SLICES) as temporary:
            audit.slices.to_parquet(temporary, index=False)
        report.write(run, audit)
        model_card.write(run, audit)
        tracker.tags(_tags(table))
    named = {
        ("used_for_selection/" if row["split"] == "validation" else "")
        + f"{row['split']}_{row['metric']}"
        + (f"_{row['label']}" if len(prepared.label_names) > 1 else ""): row["value"]
        for row in rows
    }
    tracker.metrics(named)
    for file in (
        "experiment.yaml",
        "model.keras",
        "splits.json",
        "history.csv",
        "metrics.json",
        "predictions.parquet",
        "report.html",
        "model_card.md",
    ):
        if (folder / file).is_file():
            tracker.artifact(folder / file)


def _tags(table: pd.DataFrame) -> dict[str, str]:
    """Return by split which figures were used for selection, for MLflow."""
    used = table[table["note"].fillna("").str.contains(selection.LABEL)]
    return {f"medseq_tf.{split}": selection.noted_in(rows) for split, rows in used.groupby("split")}


def _count_reads(run: Run, prepared: Prepared, scored: pd.DataFrame) -> None:
    """Note in `run.json` how often the test patients have been read; not for a fold alone."""
    tested = scored.loc[scored["split"] == "test", "study"]
    above = run.path.parent / "run.json"
    if tested.empty or (above.is_file() and Run(above.parent).info["folds"]):
        return
    reads = reuse.record(prepared, tested, run.experiment)
    _set_info(run.path, test_reads=asdict(reads))


def _cross_validate(
    recipe: Experiment,
    store: SliceStore,
    splits: list[Mapping[str, np.ndarray]],
    folder: Path,
    name: str,
    track: bool | Tracker | Section,
    verbose: bool,
    features: Path | None,
) -> None:
    """Train one run a fold and pool their test predictions, each called by its fold's threshold."""
    prepared, repeats = store.prepared, Run(folder).repeats
    folds = len(splits) // repeats
    with _tracked(folder, name, track) as tracker:
        tracker.params({**recipe.flat(), "folds": folds, "repeats": repeats})
        tracker.dataset(prepared.path.name, prepared.fingerprint, prepared.info["counts"])
        for number, split in enumerate(splits, start=1):
            repeat = (number - 1) // folds + 1
            if verbose:
                words = f"Fold {number - (repeat - 1) * folds}/{folds}"
                print(words if repeats == 1 else f"Repeat {repeat}/{repeats}, {words.lower()}")
            own = of_repeat(recipe, repeat)
            fold = folder / f"fold_{number}"
            before = _before(fold, own, prepared, None, resume=True)
            if not before:
                _begin(fold, own, prepared, split, None)
            if before.get("status") != "finished":
                title, parent = f"{name} fold {number}", tracker.reference
                part = isinstance(track, Section)
                where = track.within(f"fold_{number}/") if part else bool(track)
                _train_one(own, store, split, fold, title, where, verbose, features, parent)
                gc.collect()
        _pool(folder, prepared, tracker)


def _by_fold(notes: list[list[str]]) -> list[str]:
    """Return what is to be said of single folds, each note once, but not of their thresholds."""
    folds: dict[str, list[str]] = {}
    for number, of_fold in enumerate(notes, start=1):
        for note in of_fold:
            if operating_points.STANDS_ON not in note:
                folds.setdefault(note, []).append(str(number))
    return [
        f"fold{'s' * (len(which) > 1)} {', '.join(which)}: {note}" for note, which in folds.items()
    ]


def of_repeat(recipe: Experiment, repeat: int) -> Experiment:
    """Return a recipe with the seed of a repeat, so that each starts from weights of its own.

    The first has the recipe's own seed.
    """
    if repeat == 1:
        return recipe
    seed = int(np.random.SeedSequence([recipe.seed, repeat]).generate_state(1)[0]) % 2**31
    return recipe.model_copy(update={"seed": seed})


def _pool(folder: Path, prepared: Prepared, tracker: Tracker) -> None:
    whole = Run(folder)
    runs, folds = whole.folds, whole.info["folds"]
    pooled = pd.concat(
        [
            run.predictions.assign(fold=number, repeat=(number - 1) // folds + 1)
            for number, run in enumerate(runs, start=1)
        ],
        ignore_index=True,
    )
    tested = pooled[pooled["split"] == "test"]
    points = operating_points.of_folds(tested, prepared.label_names)
    studies = prepared.studies[prepared.studies["study_id"].isin(tested["study"])]
    if selection.note(whole.experiment, studies):
        points = operating_points.without_intervals(points)
    unseen = operating_points.unseen(tested).assign(split="validation")
    temperatures, unscaled = fit_temperatures(unseen)
    origins = set(selection.origins(whole.experiment))
    notes = [
        *operating_points.notes(points),
        *operating_points.notes_of_folds([run.operating_points for run in runs]),
        *(note.replace("validation's", "the held-out patients'") for note in unscaled),
        *_by_fold([[note for note in run.notes if note not in origins] for run in runs]),
    ]
    _write_results(folder, pooled, prepared, points, temperatures, notes, tracker)
    summary = fold_summary(pooled[pooled["split"] == "test"])
    several = len(prepared.label_names) > 1
    for row in summary.itertuples():
        name = f"test_{row.metric}" + (f"_{row.label}" if several else "")
        tracker.metrics({f"{name}_fold_mean": row.mean, f"{name}_fold_sd": row.sd})
