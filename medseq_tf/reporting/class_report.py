"""What a report says of a run of classes that exclude each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.explain.explanation import Explanation
from medseq_tf.evaluation.metrics.interval_text import number, with_interval
from medseq_tf.evaluation.scoring import mark_selection, score
from medseq_tf.readers.classes import Classes
from medseq_tf.reporting import class_figures, class_tables, tables
from medseq_tf.reporting.class_tables import short_name, together
from medseq_tf.reporting.rendering import LIMITS_OF_CLASSES, picture
from medseq_tf.runs.run import Run

KEY_METRICS = ("accuracy", "balanced_accuracy", "auroc", "kappa", "log_loss")
KEY_METRICS_OF_GRADES = (*KEY_METRICS[:3], "kappa_quadratic", "mean_absolute_error")
ONE_OF_THESE = (
    "Every study is called one of these classes, also one that has none of them: the probabilities "
    "add up to 1 whatever the images show."
)


def sentences(classes: Classes) -> dict[str, str]:
    """Return what reports and model cards say of any model of these classes."""
    order = f"The classes of {classes.column} exclude each other and have no order."
    if classes.ordered:
        order = f"The classes of {classes.column} are ordered: {' < '.join(classes.names)}."
    return {
        "order": order,
        "call_rule": "The most probable class is called.",
        "one_of_these": ONE_OF_THESE,
        "limits_of_use": LIMITS_OF_CLASSES,
    }


def calls_of(table: ClassTable) -> dict[str, str]:
    """Return the called class by study; of repeated folds that of the first repeat."""
    names = pd.Series(np.array(table.classes.names, object)[table.called], table.studies["study"])
    return names[~names.index.duplicated()].to_dict()


def with_scores(
    run: Run,
    classes: Classes,
    predictions: pd.DataFrame,
    scores: pd.DataFrame,
    costs: np.ndarray | None,
) -> pd.DataFrame:
    """Return the metrics of other calls than the run's own; without costs they are its own."""
    if costs is None or predictions.empty:
        return scores
    again = score(predictions, classes.names, classes=classes, costs=costs)
    return mark_selection(again, run.experiment, predictions, run.contents)


def data(
    run: Run,
    classes: Classes,
    predictions: pd.DataFrame,
    split: str,
    costs: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the classes, how many studies each has, and how one of them is called."""
    counts = run.dataset["counts"]["labels"]
    by_cost = {"call_rule": "The class of least expected cost is called."}
    return {
        **sentences(classes),
        **({} if costs is None else by_cost),
        "cost_table": class_tables.costs(costs, classes),
        "label_counts": class_tables.class_counts(counts, predictions, split, classes),
        "class_lines": class_figures.lines(classes),
    }


def summary(scores: pd.DataFrame, tested: ClassTable) -> dict[str, Any]:
    """Return the key metrics, the sentence of the result, and what is to be said of chance.

    `tested` are the predictions of known class.
    """
    rows = together(scores, tested.classes)
    shown = [*(KEY_METRICS_OF_GRADES if tested.classes.ordered else KEY_METRICS)]
    shown += rows.index.intersection(["expected_cost"]).tolist()
    patients = _patients_by_class(tested)
    few = any(0 < of < metrics.FEW_PATIENTS for of in patients.values())
    return {
        "key_metrics": [tables.key_metric(short_name(name), rows.loc[name]) for name in shown],
        "result": _result(rows, tested, patients),
        "chance": tables.against_chance(rows.loc["auroc"], few),
        "auroc_note": rows.loc["auroc", "note"],
        "few_patients": metrics.FEW_PATIENTS,
        "untested_classes": [name for name, of in patients.items() if not of],
    }


def _patients_by_class(tested: ClassTable) -> dict[str, int]:
    """Return how many patients have a study of each class."""
    patients = pd.Series(tested.patients)
    return {
        name: patients[has].nunique()
        for name, has in zip(tested.classes.names, tested.truth.T == 1, strict=True)
    }


def _result(rows: pd.DataFrame, tested: ClassTable, patients: dict[str, int]) -> dict[str, Any]:
    """Return how many calls are right, of whom, and what one call for all would be."""
    figures = rows[["value", "low", "high"]].astype(float)
    by_class = pd.DataFrame(tested.truth).groupby(tested.studies["study"]).first().sum()
    studies = tested.studies["study"].nunique()
    most = int(by_class.to_numpy().argmax())
    return {
        **{metric: with_interval(*figures.loc[metric]) for metric in figures.index},
        "studies": studies,
        "patients": tested.studies["patient"].nunique(),
        "by_class": patients,
        "most_frequent": tested.classes.names[most],
        "share_of_most_frequent": number(by_class[most] / studies),
    }


def metric_tables(
    run: Run, classes: Classes, scores: pd.DataFrame, predictions: pd.DataFrame
) -> dict[str, Any]:
    """Return the tables of metrics: of all classes, by class, and by fold."""
    return {
        "metric_table": class_tables.metric_rows(together(scores, classes)),
        "class_metric_table": class_tables.by_class(scores, classes),
        "interval_methods": class_tables.interval_methods(scores, classes),
        "fold_table": class_tables.folds(predictions, classes) if run.cross_validated else None,
    }


def calls(
    run: Run,
    table: ClassTable,
    predictions: pd.DataFrame,
    groups: pd.DataFrame | None,
    selected: str,
) -> dict[str, Any]:
    """Return what is said of the calls: the confusion matrix, calibration, subgroups, studies.

    `table` are the predictions as arrays.
    """
    classes = table.classes
    by_group = tables.subgroup_scores(predictions, classes.names, groups, selected, classes)
    fitted = [model.temperatures.get(classes.column, 1.0) for model in run.folds or [run]]
    return {
        "confusion_matrix": class_tables.confusion(predictions, classes, selected),
        "worst_table": class_tables.worst(table),
        "temperatures": [f"{temperature:.2f}" for temperature in fitted],
        "calibration_table": tables.calibration(predictions, selected, classes),
        "subgroup_table": class_tables.subgroups(by_group, classes),
        "subgroup_multiplicity": tables.multiplicity(by_group),
        "patient_table": class_tables.studies(table),
    }


def explained(explanation: Explanation, called: str, images: bool) -> dict[str, Any]:
    """Return what is shown of a chosen study: its call, what led to it, slice by slice."""
    return {
        "id": explanation.study,
        "call": called,
        "probability": number(explanation.probabilities[called], decimals=2),
        "truth": explanation.true_class or "unknown",
        "labels": [
            _explained_class(explanation, label, called, images) for label in explanation.labels
        ],
        "notes": explanation.notes,
    }


def _explained_class(
    explanation: Explanation, label: str, called: str, images: bool
) -> dict[str, Any]:
    drawing, sheet = class_figures.slices(explanation, label, called), None
    if images:
        figure = explanation.sheet(label)
        figure.suptitle("")  # what it says stands above, in any script
        sheet = picture(figure, explanation.alternative(label), "", "png")
    return {
        "label": label,
        "sheet": sheet,
        "curves": picture(drawing.figure, drawing.words, drawing.words),
    }
