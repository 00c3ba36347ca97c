"""One training run: a split, a folder, a model, and what they leave: metrics and the report."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medseq_tf.dataset import holdout_reuse, selection, sites, subgroups
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import missing_test_classes
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import Stopped
from medseq_tf.evaluation import covariates_alone, cross_validation, operating_points
from medseq_tf.evaluation.inference import Predictions, study_predictions
from medseq_tf.evaluation.operating_points import OperatingPoint
from medseq_tf.evaluation.predictions import (
    calibrated,
    choose_cuts,
    choose_operating_points,
    fit_temperatures,
    predictions_table,
)
from medseq_tf.evaluation.scoring import mark_selection, score
from medseq_tf.evaluation.unseen_data import audit_splits
from medseq_tf.execution.ray_cluster import RayExecutor
from medseq_tf.files import atomic, write_json
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Experiment
from medseq_tf.reporting import model_card, report
from medseq_tf.runs.run import COVARIATES_ALONE, OF_CANDIDATES, SLICES, Run
from medseq_tf.runs.tracking import AnyTracker, Section, Tracker
from medseq_tf.training.beginning import Request
from medseq_tf.training.distribution import Distribution
from medseq_tf.training.fitting import Fitting
from medseq_tf.training.linear_fitting import LinearFitting
from medseq_tf.training.loop import CHECKPOINT, Fitter

LOGGED = (
    "experiment.yaml",
    "model.keras",
    "splits.json",
    "history.csv",
    "metrics.json",
    "predictions.parquet",
    COVARIATES_ALONE,
    "report.html",
    "model_card.md",
)
"""Files of the run folder that MLflow gets."""


class Results(NamedTuple):
    """What was predicted, and how it is called.

    Attributes:
        predictions: one row per study and label; with `fold`, of a cross-validation.
        points: how each label's threshold was chosen; empty of classes, which have none.
        temperatures: of each label, or of the classes together.
        notes: where validation says too little.
        alone: what is predicted from covariates alone, of the same studies; None without any.
    """

    predictions: pd.DataFrame
    points: Mapping[str, OperatingPoint]
    temperatures: Mapping[str, float]
    notes: list[str]
    alone: pd.DataFrame | None = None


@dataclass(frozen=True)
class Options:
    """What changes nothing in the result of a training.

    Attributes:
        name: the run's name.
        track: log to MLflow; a tracker: into its run, which is not ended.
        verbose: show progress.
        features: where features of a network that is frozen whole are kept: a folder, or a
            `FeaturePlace`.
        parent: what names the MLflow run that this one belongs to.
        stop: asked after every update; once true, training stops as after Ctrl-C.
        distribution: the devices that a model is trained on.
        executor: the cluster whose workers train the folds; None: this process does.
    """

    name: str
    track: bool | AnyTracker
    verbose: bool
    features: os.PathLike | None
    parent: str | None = None
    stop: Callable[[], bool] = lambda: False
    distribution: Distribution = field(default_factory=Distribution)
    executor: RayExecutor | None = None


def train_one(request: Request, store: SliceStore, split: Rows, options: Options) -> None:
    """Train, choose thresholds, predict and report one split into the request's folder."""
    recipe, prepared = request.recipe, store.prepared
    counts = {f"{part}_studies": len(rows) for part, rows in split.items()}
    with tracked(request.folder, options) as tracker:
        tracker.params({**recipe.flat(), **class_params(prepared)})
        profile = {**prepared.info["counts"], **counts}
        tracker.dataset(prepared.path.name, prepared.fingerprint, profile)
        if recipe.fit.seeds > 1:
            _train_seeds(request, store, split, options, tracker)
            return
        fitter = (Fitter if recipe.fit.solver == "gradient" else LinearFitting)(
            recipe,
            store,
            split,
            request.folder,
            tracker,
            options.verbose,
            options.features,
            options.stop,
            options.distribution,
        )
        fitter.run()
        finish(fitter)
    (request.folder / CHECKPOINT).unlink(missing_ok=True)


def _train_seeds(
    request: Request, store: SliceStore, split: Rows, options: Options, tracker: AnyTracker
) -> None:
    """Train a model a seed; choose thresholds by their mean, predict and report it."""
    recipe, prepared, whole = request.recipe, store.prepared, Run(request.folder)
    shown = ("loss", "val_loss", f"val_{recipe.fit.monitor}")
    section = tracker if isinstance(tracker, Section) else Section(tracker, shown)
    runs = []
    for number in range(1, recipe.fit.seeds + 1):
        folder = request.folder / f"seed_{number}"
        one = Request(folder, of_seed(recipe, number), prepared, resume=True)
        earlier = one.earlier()
        if not earlier:
            one.begin(split)
        if earlier.get("status") != "finished":
            if options.stop():
                raise Stopped(f"{folder}: stopped before it began; --resume goes on")
            if options.verbose:
                print(f"Seed {number}/{recipe.fit.seeds}", flush=True)
            train_one(one, store, split, replace(options, track=section.within(f"seed_{number}/")))
            gc.collect()
        runs.append(Run(folder))
    weight = 1 / len(runs)
    whole.update_info(members=[{"run": run.path.name, "weight": weight} for run in runs])
    predicted = _mean_predictions([run.predictions for run in runs], prepared, split)
    _conclude(whole, prepared, split, predicted, recipe.fit.threshold, tracker)


def of_seed(recipe: Experiment, number: int) -> Experiment:
    """Return the recipe of one model of several; the first has the recipe's own seed."""
    seed = recipe.seed if number == 1 else derived_seed(recipe.seed, 0, number)
    fit = recipe.fit.model_copy(update={"seeds": 1})
    return recipe.model_copy(update={"seed": seed, "fit": fit})


def derived_seed(*numbers: int) -> int:
    """Return a recipe's seed that follows from numbers, the first of which is a recipe's, too."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) % 2**31


def _mean_predictions(
    tables: Sequence[pd.DataFrame], prepared: Prepared, split: Rows
) -> dict[str, Predictions]:
    """Return the mean of what several models predict for the studies of validation and test."""
    studies, names = prepared.studies["study_id"], prepared.label_names
    means = {}
    for part in ("validation", "test"):
        if not len(split[part]):
            continue
        of_part = [
            table[table["split"] == part]
            .pivot(index="study", columns="label", values="probability")
            .loc[studies.iloc[split[part]], names]
            .to_numpy()
            for table in tables
        ]
        means[part] = Predictions(np.mean(of_part, axis=0))
    return means


def follow(request: Request, store: SliceStore, split: Rows, options: Options) -> None:
    """Train along with the chief, which alone validates, predicts, reports and writes."""
    silent = Tracker(request.folder, options.name, enabled=False)
    Fitter(
        request.recipe,
        store,
        split,
        request.folder,
        silent,
        verbose=False,
        features=options.features,
        stop=options.stop,
        distribution=options.distribution,
    ).run()


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


def finish(fitter: Fitting) -> None:
    """Choose thresholds on validation, predict validation and test, score, report."""
    prepared, split = fitter.store.prepared, fitter.split
    predicted = {
        name: study_predictions(
            fitter.model, fitter.store, split[name], fitter.recipe, fitter.features
        )
        for name in ("validation", "test")
        if len(split[name])
    }
    rule, run = fitter.recipe.fit.threshold, Run(fitter.folder)
    _conclude(run, prepared, split, predicted, rule, fitter.tracker)


def _conclude(
    run: Run,
    prepared: Prepared,
    split: Rows,
    predicted: Mapping[str, Predictions],
    rule: str,
    tracker: AnyTracker,
) -> None:
    """Choose thresholds on validation, score and report what is predicted."""
    points, predictions = _called(prepared, split, predicted, rule)
    unranked = missing_test_classes(prepared.studies, split, prepared.classes)
    notes = operating_points.notes(points) + unranked
    temperatures, unscaled = fit_temperatures(predictions, prepared.classes)
    scaled = calibrated(predictions, temperatures, prepared.classes)
    alone = None
    if prepared.covariates and not isinstance(tracker, Section):
        told = covariates_alone.probabilities(prepared, split["train"])
        of_split = {name: Predictions(told[split[name]]) for name in predicted}
        _, alone = _called(prepared, split, of_split, rule)
    results = Results(scaled, points, temperatures, notes + unscaled, alone)
    write_results(run, prepared, results, tracker)


def _called(
    prepared: Prepared, split: Rows, predicted: Mapping[str, Predictions], rule: str
) -> tuple[dict[str, OperatingPoint], pd.DataFrame]:
    """Return operating points that validation chooses by a rule, and the table of predictions."""
    nothing = Predictions(np.empty((0, len(prepared.label_names))))
    points = {} if prepared.classes else operating_points.of_nothing(prepared.label_names)
    if points and "validation" in predicted:
        points = choose_operating_points(
            prepared, split["validation"], predicted["validation"].probabilities, rule
        )
    thresholds = {label: point.threshold for label, point in points.items()}
    tables = [
        predictions_table(prepared, rows, predicted.get(name, nothing), name, thresholds)
        for name, rows in split.items()
        if name != "train"
    ]
    return points, pd.concat(tables, ignore_index=True)


def write_results(run: Run, prepared: Prepared, results: Results, tracker: AnyTracker) -> None:
    """Write predictions, metrics and report into a run folder, and log them."""
    predictions = results.predictions
    with atomic(run.path / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    # A patient is validated in several folds, by models of different thresholds: nothing to pool.
    has_folds = "fold" in predictions
    scored = predictions[predictions["split"] == "test"] if has_folds else predictions
    table = score(scored, prepared.label_names, classes=prepared.classes)
    table = mark_selection(table, run.experiment, scored, run.contents)
    confounded = [] if _is_part(run) else sites.site_confounding(prepared)
    content: dict[str, Any] = {
        "question": cross_validation.question(scored) if has_folds else cross_validation.FITTED,
        "thresholds": {label: point.threshold for label, point in results.points.items()},
        "operating_points": {label: point.to_dict() for label, point in results.points.items()},
        "temperatures": dict(results.temperatures),
        **({} if has_folds or prepared.classes else {"cuts": choose_cuts(predictions)}),
        "notes": [*results.notes, *selection.origins(run.experiment), *confounded],
        "table": table.to_dict(orient="records"),
    }
    if results.alone is not None:
        with atomic(run.path / COVARIATES_ALONE) as temporary:
            results.alone.to_parquet(temporary, index=False)
        content |= covariates_alone.compare(run, prepared, predictions, results.alone)
    write_json(run.path / "metrics.json", content)
    _count_reads(run, prepared, scored)
    if not isinstance(tracker, Section):
        audit = audit_splits(run, prepared)
        if audit.slices is not None:
            with atomic(run.path / SLICES) as temporary:
                audit.slices.to_parquet(temporary, index=False)
        report.write(run, audit, subgroups.sites(prepared))
        model_card.write(run, audit)
        tracker.tags(_tags(table))
    tracker.metrics(_named_metrics(table, prepared))
    if alone := content.get("covariates_alone"):
        named = _named_metrics(pd.DataFrame(alone), prepared)
        tracker.metrics({f"covariates_alone/{name}": value for name, value in named.items()})
    for name in LOGGED:
        if (run.path / name).is_file():
            tracker.artifact(run.path / name)


def _named_metrics(table: pd.DataFrame, prepared: Prepared) -> dict[str, float]:
    """Return the metrics of a table by the names that MLflow gets."""
    return {
        ("used_for_selection/" if row["split"] == "validation" else "")
        + f"{row['split']}_{row['metric']}{name_of_label(row['label'], prepared)}": row["value"]
        for row in table.to_dict(orient="records")
    }


def name_of_label(label: str, prepared: Prepared) -> str:
    """Return what a label, or a class, adds to the names of its metrics.

    Nothing for the only label, and for all classes together, of whose metrics no class may take the
    name: the F1 of a class `macro` is `f1_of_macro`, and no `f1_macro`.
    """
    if prepared.classes:
        return "" if label == prepared.classes.column else f"_of_{label}"
    return "" if len(prepared.label_names) == 1 else f"_{label}"


def class_params(prepared: Prepared) -> dict[str, Any]:
    """Return what MLflow is told of the classes; nothing of yes/no labels."""
    classes = prepared.classes
    if classes is None:
        return {}
    names = {"classes": list(classes.names), "classes_column": classes.column}
    return {**names, "classes_ordered": classes.ordered}


def _tags(table: pd.DataFrame) -> dict[str, str]:
    """Return by split which metrics were used for selection, for MLflow."""
    used = table[table["note"].fillna("").str.contains(selection.LABEL)]
    return {f"medseq_tf.{split}": selection.noted_in(rows) for split, rows in used.groupby("split")}


def _count_reads(run: Run, prepared: Prepared, scored: pd.DataFrame) -> None:
    """Note in `run.json` how often the test patients have been read; not for a part alone."""
    tested = scored.loc[scored["split"] == "test", "study"]
    if tested.empty or _is_part(run):
        return
    run.update_info(test_reads=asdict(holdout_reuse.record(prepared, tested, run.experiment)))


def _is_part(run: Run) -> bool:
    """Whether a run is one of a cross-validation, of several seeds, or of an automatic choice."""
    whole = run.path.parent
    if whole.parent.name == OF_CANDIDATES:
        whole = whole.parents[1]
    above = whole / "run.json"
    if not above.is_file():
        return False
    return bool(Run(whole).info["folds"]) or Run(whole).experiment.fit.seeds > 1
