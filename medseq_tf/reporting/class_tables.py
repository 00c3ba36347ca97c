"""The tables of a report of classes that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from medseq_tf.evaluation import class_scoring
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.readers.classes import Classes
from medseq_tf.reporting import tables
from medseq_tf.reporting.tables import MISSING, PatientTable, Table, interval, number

NAMES = {
    "auroc": "AUROC, mean of each class against the rest",
    "auroc_pairwise": "AUROC, mean over pairs of classes (Hand and Till)",
    "f1_macro": "F1, mean over the classes",
    "kappa": "Cohen's kappa",
    "kappa_quadratic": "Cohen's kappa, weighted quadratically",
    "mean_absolute_error": "mean absolute error, in grades",
    "log_loss": "log loss",
    "brier": "Brier score, 0 to 2",
    "expected_calibration_error": "expected calibration error of the most probable class",
    "expected_cost": "mean cost of a call",
}
"""Of metrics of all classes together; others are called as those of a label."""

IN_SHORT = {
    "auroc": "macro AUROC",
    "kappa": "kappa",
    "kappa_quadratic": "quadratically weighted kappa",
    "mean_absolute_error": "grades off, on average",
}
"""Of the same, where there is little room."""

BY_CLASS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "recall": "sensitivity (recall)",
    "specificity": "specificity",
    "precision": "precision (PPV)",
    "f1": "F1",
}
"""The columns of `by_class`."""

WORST = 10
"""Wrong calls that `worst` lists."""

RIGHT, WRONG = (11, 110, 153), (196, 98, 45)
DEEPEST = 0.6
"""How much of these colours a cell of the confusion matrix has at most: dark text stays legible."""

_KINDS = {"studies": "study", "patients": "patient"}
_PROBABILITIES = ("probability", "scaled", "of the true class")


class Cell(NamedTuple):
    """A cell of a confusion matrix: what stands in it, and the colour behind."""

    studies: str
    share: str
    interval: str
    color: str


class ConfusionMatrix(NamedTuple):
    """Studies by true and called class.

    Attributes:
        called: names of the columns.
        rows: the true class, how many studies it has, and a cell for each called one.
    """

    called: Sequence[str]
    rows: list[tuple[str, str, list[Cell]]]


def metric_name(metric: str) -> str:
    """Return what a metric of all classes together is called."""
    return NAMES.get(metric) or tables.metric_name(metric)


def short_name(metric: str) -> str:
    """Return what it is called where there is little room."""
    return IN_SHORT.get(metric) or metric_name(metric)


def together(scores: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return the metrics of all classes together, by name."""
    return scores[scores["label"] == classes.column].set_index("metric")


def count(value: float) -> str:
    """Write a number of studies, which of repeated folds is a mean."""
    return f"{value:.1f}".removesuffix(".0")


def class_counts(
    counts: Mapping[str, Mapping[str, int]], predictions: pd.DataFrame, split: str, classes: Classes
) -> Table:
    """Count the studies of each class in the data set, and those of a split's predictions."""
    rows: list[dict[str, Any]] = []
    for name in classes.names:
        own = predictions[(predictions["label"] == name) & (predictions["truth"] == 1)]
        held_out = {f"{split} {kind}": own[key].nunique() for kind, key in _KINDS.items()}
        rows.append({"class": name, "studies": counts[name]["positive"], **held_out})
    if unknown := counts[classes.names[0]]["unknown"]:
        rows.append({**dict.fromkeys(rows[0], ""), "class": "unknown", "studies": unknown})
    return tables.table(pd.DataFrame(rows))


def metric_rows(scores: pd.DataFrame) -> Table:
    """List metrics of all classes together, as `together` gives them, with their intervals."""
    columns = tables.metric_columns(scores.reset_index(), metric_name)
    return tables.table(pd.DataFrame(columns))


def by_class(scores: pd.DataFrame, classes: Classes) -> Table:
    """List one row a class, one column a metric of it against the rest."""
    shown = scores[scores["label"].isin(classes.names) & scores["metric"].isin(BY_CLASS)]
    cells = shown.set_index(["label", "metric"])
    notes = list(dict.fromkeys(note for note in shown["note"] if note))
    columns = [("class", True), *((name, False) for name in ["studies", *BY_CLASS.values()])]
    rows = [
        (
            name,
            count(cells.loc[name, "positives"].iat[0]),
            *(_with_range(cells.loc[(name, metric)], notes) for metric in BY_CLASS),
        )
        for name in classes.names
    ]
    return Table(columns, rows, notes)


def _with_range(row: pd.Series, notes: Sequence[str]) -> Markup:
    """A figure with its interval below it, and the number of its note."""
    mark = f" [{notes.index(row['note']) + 1}]" if row["note"] else ""
    words = interval(row["low"], row["high"])
    return Markup("{}{}<br><small>{}</small>").format(number(row["value"]), mark, words)


def interval_methods(scores: pd.DataFrame, classes: Classes) -> str:
    """Say by which method the metrics of `by_class` have their intervals."""
    shown = scores[scores["label"].isin(classes.names) & scores["metric"].isin(BY_CLASS)]
    kinds = shown[shown["low"].notna()].groupby("interval", sort=False)["metric"].unique()
    return "; ".join(
        f"{kind}: {', '.join(map(BY_CLASS.__getitem__, names))}" for kind, names in kinds.items()
    )


def confusion(predictions: pd.DataFrame, classes: Classes, selected: str) -> ConfusionMatrix:
    """Lay out the studies by true and called class; over repeats the counts are means.

    `selected` says why there are no intervals, if that is so.
    """
    counts = class_scoring.class_confusion_table(predictions, classes)
    if selected:
        counts[["low", "high"]] = np.nan
    cells = counts.set_index(["true", "called"])
    rows = []
    for true in classes.names:
        own = [cells.loc[(true, called)] for called in classes.names]
        total = count(sum(cell["count"] for cell in own))
        rows.append((true, total, [_cell(cell, true) for cell in own]))
    return ConfusionMatrix(classes.names, rows)


def _cell(row: pd.Series, true: str) -> Cell:
    share, low, high = (float(row[name]) for name in ("share", "low", "high"))
    called = row.name[1]
    depth = DEEPEST * np.nan_to_num(share)
    mixed = (
        round(255 + depth * (channel - 255)) for channel in (RIGHT if called == true else WRONG)
    )
    return Cell(
        count(row["count"]),
        MISSING if np.isnan(share) else f"{share:.0%}",
        "" if np.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f}",
        f"rgb({', '.join(map(str, mixed))})",
    )


def costs(matrix: Any, classes: Classes) -> Table | None:
    """List what calls cost, a row a true class; None where no costs were given."""
    if matrix is None:
        return None
    columns = [("true", True), *((f"called {name}", False) for name in classes.names)]
    rows = [
        (name, *(f"{cost:g}" for cost in row))
        for name, row in zip(classes.names, matrix, strict=True)
    ]
    return Table(columns, rows, [])


def folds(predictions: pd.DataFrame, classes: Classes) -> Table:
    """List one row a metric, one column a fold, or a repeat of several; mean and deviation."""
    by_fold = class_scoring.class_fold_table(predictions, classes).set_index("fold")
    values = by_fold.drop(columns=["label", "studies"]).T
    summary = {"mean": values.mean(axis=1), "sd": values.std(axis=1)}
    values = tables.by_fold_or_repeat(values, predictions)
    shown = values.assign(**summary).map(number).rename_axis("metric").reset_index()
    return tables.table(shown.assign(metric=shown["metric"].map(metric_name)))


def subgroups(scores: pd.DataFrame, classes: Classes) -> Table:
    """List one row a subgroup, one column a metric of all classes together."""
    rows = []
    of_all = scores if scores.empty else scores[scores["label"] == classes.column]
    for (subgroup, group), own in of_all.groupby(["subgroup", "group"], sort=False):
        row = {"subgroup": subgroup, "group": group, "studies": count(own["n"].iat[0])}
        rows.append(row | tables.group_cells(own, short_name))
    return tables.table(pd.DataFrame(rows))


# -------------------------------------------------------------------------------- study by study


def studies(predictions: ClassTable) -> PatientTable:
    """List every study's call: the wrong ones first, the farthest off and the surest on top."""
    calls = _calls(predictions)
    fold = ["fold"] if "fold" in calls else []
    columns = ["study", *fold, "slices", "true", "called", *_PROBABILITIES]
    return PatientTable(
        [(name, name in ("study", "true", "called")) for name in columns],
        [
            (row["wrong"], [_text(row[name]) for name in columns])
            for row in calls.to_dict("records")
        ],
        int(calls["wrong"].sum()),
        int(predictions.is_known.sum()),
    )


def worst(predictions: ClassTable) -> Table:
    """List the surest wrong calls; of grades those that are farthest off come first."""
    calls = _calls(predictions)
    off = ["grades off"] if predictions.classes.ordered else []
    columns = ["study", "true", "called", *off, *_PROBABILITIES]
    return tables.table(calls.loc[calls["wrong"], columns].head(WORST).map(_text))


def _calls(predictions: ClassTable) -> pd.DataFrame:
    """Return one row a study and repeat, as `studies` orders them."""
    classes, called, known = predictions.classes, predictions.called, predictions.is_known
    rows = np.arange(len(called))
    names = np.array(classes.names, object)
    true = np.nan_to_num(predictions.truth).argmax(axis=1)
    calls = predictions.studies.assign(
        true=np.where(known, names[true], ""),
        called=names[called],
        probability=predictions.probabilities[rows, called],
        scaled=predictions.calibrated[rows, called],
        wrong=known & (true != called),
        off=np.where(known & classes.ordered, np.abs(true - called), 0),
    )
    calls["of the true class"] = np.where(known, predictions.probabilities[rows, true], np.nan)
    calls = calls.rename(columns={"off": "grades off"})
    order = ["wrong", "grades off", "probability", "study"]
    return calls.sort_values(order, ascending=[False, False, False, True])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3f}"
    return str(value)
