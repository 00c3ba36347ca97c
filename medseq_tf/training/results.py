"""What a run leaves after its last epoch: thresholds, predictions, metrics, the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pandas as pd

from medseq_tf.dataset import holdout_reuse, selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import missing_test_classes
from medseq_tf.evaluation import cross_validation, operating_points
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
from medseq_tf.files import atomic, write_json
from medseq_tf.reporting import model_card, report
from medseq_tf.runs.run import SLICES, Run
from medseq_tf.runs.tracking import AnyTracker, Section
from medseq_tf.training.loop import Fitter

LOGGED = (
    "experiment.yaml",
    "model.keras",
    "splits.json",
    "history.csv",
    "metrics.json",
    "predictions.parquet",
    "report.html",
    "model_card.md",
)
"""Files of the run folder that MLflow gets."""


class Results(NamedTuple):
    """What was predicted, and how it is called.

    Attributes:
        predictions: one row per study and label; with `fold`, of a cross-validation.
        points: how each label's threshold was chosen.
        temperatures: of each label.
        notes: where validation says too little.
    """

    predictions: pd.DataFrame
    points: Mapping[str, OperatingPoint]
    temperatures: Mapping[str, float]
    notes: list[str]


def finish(fitter: Fitter) -> None:
    """Choose thresholds on validation, predict validation and test, score, report."""
    prepared, split = fitter.store.prepared, fitter.split
    nothing = Predictions(np.empty((0, len(prepared.label_names))))
    predicted = {
        part: study_predictions(
            fitter.model, fitter.store, split[part], fitter.recipe, fitter.features
        )
        for part in ("validation", "test")
        if len(split[part])
    }
    points = operating_points.of_nothing(prepared.label_names)
    if "validation" in predicted:
        points = choose_operating_points(
            prepared,
            split["validation"],
            predicted["validation"].probabilities,
            fitter.recipe.fit.threshold,
        )
    notes = operating_points.notes(points) + missing_test_classes(prepared.studies, split)
    thresholds = {label: point.threshold for label, point in points.items()}
    tables = [
        predictions_table(prepared, rows, predicted.get(part, nothing), part, thresholds)
        for part, rows in split.items()
        if part != "train"
    ]
    predictions = pd.concat(tables, ignore_index=True)
    temperatures, unscaled = fit_temperatures(predictions)
    results = Results(calibrated(predictions, temperatures), points, temperatures, notes + unscaled)
    write_results(Run(fitter.folder), prepared, results, fitter.tracker)


def write_results(run: Run, prepared: Prepared, results: Results, tracker: AnyTracker) -> None:
    """Write predictions, metrics and report into a run folder, and log them."""
    predictions = results.predictions
    with atomic(run.path / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    # A patient is validated in several folds, by models of different thresholds: nothing to pool.
    has_folds = "fold" in predictions
    scored = predictions[predictions["split"] == "test"] if has_folds else predictions
    table = score(scored, prepared.label_names)
    table = mark_selection(table, run.experiment, scored, run.contents)
    content = {
        "question": cross_validation.RECIPE if has_folds else cross_validation.FITTED,
        "thresholds": {label: point.threshold for label, point in results.points.items()},
        "operating_points": {label: point.to_dict() for label, point in results.points.items()},
        "temperatures": dict(results.temperatures),
        **({} if has_folds else {"cuts": choose_cuts(predictions)}),
        "notes": [*results.notes, *selection.origins(run.experiment)],
        "table": table.to_dict(orient="records"),
    }
    write_json(run.path / "metrics.json", content)
    _count_reads(run, prepared, scored)
    if not isinstance(tracker, Section):
        audit = audit_splits(run, prepared)
        if audit.slices is not None:
            with atomic(run.path / SLICES) as temporary:
                audit.slices.to_parquet(temporary, index=False)
        report.write(run, audit)
        model_card.write(run, audit)
        tracker.tags(_tags(table))
    tracker.metrics(_named_metrics(table, len(prepared.label_names) > 1))
    for name in LOGGED:
        if (run.path / name).is_file():
            tracker.artifact(run.path / name)


def _named_metrics(table: pd.DataFrame, several_labels: bool) -> dict[str, float]:
    """Return the metrics of a table by the names that MLflow gets."""
    return {
        ("used_for_selection/" if row["split"] == "validation" else "")
        + f"{row['split']}_{row['metric']}"
        + (f"_{row['label']}" if several_labels else ""): row["value"]
        for row in table.to_dict(orient="records")
    }


def _tags(table: pd.DataFrame) -> dict[str, str]:
    """Return by split which metrics were used for selection, for MLflow."""
    used = table[table["note"].fillna("").str.contains(selection.LABEL)]
    return {f"medseq_tf.{split}": selection.noted_in(rows) for split, rows in used.groupby("split")}


def _count_reads(run: Run, prepared: Prepared, scored: pd.DataFrame) -> None:
    """Note in `run.json` how often the test patients have been read; not for a fold alone."""
    tested = scored.loc[scored["split"] == "test", "study"]
    above = run.path.parent / "run.json"
    if tested.empty or (above.is_file() and Run(above.parent).info["folds"]):
        return
    run.update_info(test_reads=asdict(holdout_reuse.record(prepared, tested, run.experiment)))
