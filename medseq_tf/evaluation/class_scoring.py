"""Scores of predictions of classes, which exclude each other; `scoring` calls these functions.

A row by a class's name is of one against the rest, a row by the name of their column (such as
`diagnosis`) of all classes together.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.readers.classes import Classes

SUBGROUP_METRICS = ("accuracy", "balanced_accuracy", "auroc")

PATIENTS_ALONE = "of folds: the interval is over patients; what training varies by is not counted"
"""Of calibration."""


def score_classes(
    predictions: pd.DataFrame,
    classes: Classes,
    resamples: int = 2000,
    costs: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the metrics of one split, those of all classes together first.

    `costs` (true, called) are what a wrong call costs.
    """
    studies = ClassTable.of(predictions, classes).known
    if "fold" in predictions and len(studies):
        table = cross_validation.evaluate_class_folds(studies, resamples, costs)
        return table.assign(question=cross_validation.question(predictions))
    table = metrics.evaluate_classes(
        studies.truth,
        studies.probabilities,
        classes,
        called=studies.called,
        patients=studies.patients,
        costs=costs,
    )
    return table.assign(question=cross_validation.FITTED)


def class_fold_table(predictions: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return one row a fold with the metrics of all classes together: each fold's own."""
    scored = []
    for fold, rows in predictions.groupby("fold", sort=True):
        studies = ClassTable.of(rows, classes).known
        values = metrics.class_point_metrics(
            studies.truth, studies.probabilities, studies.called, classes.ordered
        )
        counts = {"fold": fold, "label": classes.column, "studies": len(studies)}
        scored.append(counts | {name: float(value) for name, value in values.items()})
    return pd.DataFrame(scored)


def class_confusion_table(predictions: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return studies by true and called class, one row a split and cell.

    Returns:
        `split`, `label` (the classes' column), `true`, `called`, `count`, `share` of the true
        class's studies, with `low` and `high` (95%, over patients). Over repeats of folds counts
        are means.
    """
    tables = []
    for split, rows in predictions.groupby("split", sort=False):
        studies = ClassTable.of(rows, classes).known
        if "fold" in rows:
            table = cross_validation.confusion_of_folds(studies)
        else:
            arrays = (studies.truth, studies.called, classes, studies.patients)
            table = metrics.confusion_table(*arrays)
        table.insert(0, "label", classes.column)
        table.insert(0, "split", split)
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def class_calibration_table(predictions: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return how well probabilities are calibrated before and after temperature scaling.

    The rows by the name of the classes' column are of the most probable class: whether it is the
    right one, and its probability.

    Returns:
        As `scoring.calibration_table`.
    """
    tables = []
    for split, rows in predictions.groupby("split", sort=False):
        studies = ClassTable.of(rows, classes).known
        keys = ["label", "metric"]
        before, after = (
            metrics.class_calibration(
                studies.truth, columns, classes, studies.patients, studies.studies["study"]
            )
            for columns in (studies.probabilities, studies.calibrated)
        )
        table = before[keys].assign(split=split)
        notes = [before["note"], after["note"]]
        if "fold" in rows and rows["fold"].nunique() > 1:
            has_interval = before["low"].notna().map({True: PATIENTS_ALONE, False: ""})
            notes.insert(0, has_interval)
        for when, measured in (("before", before), ("after", after)):
            table[when] = measured["value"]
            for name in ("low", "high", "null", "null_high"):
                table[f"{when}_{name}"] = measured[name]
        table["note"] = [
            "; ".join(filter(None, dict.fromkeys(of))) for of in zip(*notes, strict=True)
        ]
        tables.append(table[["split", *table.columns.drop("split")]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
