"""Scores of a table of predictions: metrics, calibration, calls by patient, folds and subgroups.

The unit is the study; intervals are over patients, with all their studies. Of a cross-validated
run each study is scored by the model that has not seen it: what ranks studies is the mean over the
folds, for probabilities of two models do not rank each other's studies; what scores single calls
and probabilities is over all studies at once.

Of classes, which exclude each other, `classes` names what is told apart: the rows by their names
are of one against the rest, those by the name of their column of all together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.dataset import selection, subgroups
from medseq_tf.evaluation import class_scoring, cross_validation, metrics
from medseq_tf.evaluation.class_scoring import PATIENTS_ALONE
from medseq_tf.evaluation.predictions import (
    PIXEL_COLUMNS,
    by_study,
    choose_cuts,
    cut_arrays,
    cut_columns,
    with_cuts,
)
from medseq_tf.readers.classes import LABELS, ORDERED, Classes
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import METRICS_COLUMNS

REPORTED_METRICS = (
    "auroc",
    "auroc_pooled",
    "average_precision",
    "sensitivity_at_90_specificity",
    "specificity_at_90_sensitivity",
    "accuracy",
    "recall",
    "specificity",
    "precision",
    "f1",
    "f1_macro",
    "brier",
    *metrics.PIXEL_METRICS,
    "dice_pooled",
)
"""The metrics of printed tables, reports and model cards, in their order."""

SUBGROUP_METRICS = ("auroc", "recall", "specificity")


def score(
    predictions: pd.DataFrame,
    label_names: Sequence[str],
    resamples: int = 2000,
    classes: Classes | None = None,
    costs: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the metrics of each split in a table of predictions, with intervals over patients.

    `costs` (true, called) are what a wrong call of a class costs, for its expectation.
    """
    label_names, tables = list(label_names), []
    if not classes and "fold" not in predictions and not cut_columns(predictions):
        predictions = with_cuts(predictions, choose_cuts(predictions))
    for split, rows in predictions.groupby("split", sort=False):
        if classes:
            table = class_scoring.score_classes(rows, classes, resamples, costs)
        elif "fold" in rows:
            of_folds = cross_validation.held_out(rows, label_names)
            table = cross_validation.evaluate_folds(of_folds, resamples)
            table["question"] = cross_validation.question(rows)
        else:
            table = _score_studies(by_study(rows), label_names, split == "validation")
        if set(PIXEL_COLUMNS) <= set(rows):
            table = pd.concat([table, _score_pixels(rows)], ignore_index=True)
        table.insert(0, "split", split)
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=METRICS_COLUMNS)
    return selection.labelled(pd.concat(tables, ignore_index=True), classes)


def _score_studies(studies: pd.DataFrame, label_names: list[str], chose_cuts: bool) -> pd.DataFrame:
    """Return the metrics of one model, of the rows of `by_study`."""
    table = metrics.evaluate_predictions(
        studies["truth"][label_names].to_numpy(float),
        studies["probability"][label_names].to_numpy(float),
        label_names,
        thresholds=studies["threshold"][label_names].to_numpy(float),
        patients=studies.index.get_level_values("patient").to_numpy(),
        cuts={} if chose_cuts else cut_arrays(studies, label_names),
    )
    return table.assign(question=cross_validation.FITTED)


def _score_pixels(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return how well a segmenter finds the pixels of lesions."""
    columns = list(PIXEL_COLUMNS)
    studies = predictions.groupby(["patient", "study"], as_index=False)[columns].mean()
    found, false, missed = (studies[name] for name in columns)
    table = metrics.evaluate_pixels(
        found, false, missed, predictions["label"].iloc[0], studies["patient"]
    )
    return table.assign(question=cross_validation.FITTED)


def point_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray | float = 0.5,
    outputs: str = LABELS,
) -> dict[str, float]:
    """Return every metric as its mean over the labels that have both classes, without intervals.

    Labels and probabilities are `(studies, labels)`, thresholds one, `(labels,)` or as those.
    `outputs` says what the labels are; the metrics of classes are of all of them together.
    """
    if outputs != LABELS:
        values = metrics.class_point_metrics(labels, probabilities, ordered=outputs == ORDERED)
        return {name: float(value) for name, value in values.items()}
    thresholds = np.broadcast_to(thresholds, labels.shape)
    by_label = [
        metrics.all_metrics(labels[:, i], probabilities[:, i], thresholds[:, i])
        for i in range(labels.shape[1])
        if {0.0, 1.0} <= set(labels[:, i])
    ]
    return {
        name: float(np.mean([values[name] for values in by_label])) if by_label else float("nan")
        for name in metrics.METRICS
    }


def fold_table(predictions: pd.DataFrame, classes: Classes | None = None) -> pd.DataFrame:
    """Return one row a fold and label with its metrics: each fold's own, not pooled.

    Of classes there is one row a fold, of all of them together.
    """
    if classes:
        return class_scoring.class_fold_table(predictions, classes)
    scored = []
    for (fold, label), rows in predictions.groupby(["fold", "label"], sort=True):
        truth, probability, threshold = (
            rows[name].to_numpy(float)[:, None] for name in ("truth", "probability", "threshold")
        )
        values: Mapping[str, Any] = point_metrics(truth, probability, threshold)
        if "site" in rows:  # which may have patients of one kind only
            values = metrics.all_metrics(truth[:, 0], probability[:, 0], threshold[:, 0])
        scored.append({"fold": fold, "label": label, "studies": len(rows), **values})
    return pd.DataFrame(scored)


def fold_names(predictions: pd.DataFrame) -> dict[int, str]:
    """Return what each fold is called: by its number, or by the site that was left out."""
    if "site" in predictions:
        return ("site " + predictions.groupby("fold")["site"].first()).to_dict()
    return {fold: f"fold {fold}" for fold in sorted(predictions["fold"].unique())}


def fold_summary(predictions: pd.DataFrame, classes: Classes | None = None) -> pd.DataFrame:
    """Return mean and standard deviation over the folds of every label and metric."""
    long = fold_table(predictions, classes).melt(["fold", "label", "studies"], var_name="metric")
    grouped = long.groupby(["label", "metric"], sort=False)["value"]
    return grouped.agg(mean="mean", sd="std", folds="count").reset_index()


def mark_selection(
    table: pd.DataFrame,
    recipe: Experiment,
    predictions: pd.DataFrame,
    contents: Mapping[str, str],
) -> pd.DataFrame:
    """Return metrics by split, labelled where the recipe was chosen on the patients themselves.

    `predictions` are those that the metrics are of, `contents` the studies' content hashes, by id.
    """
    if not len(table) or not recipe.chosen:
        return table
    for split, rows in predictions.groupby("split", sort=False):
        if words := selection_note(recipe, rows, contents):
            table = selection.without_intervals(table, table["split"] == split, words)
    return table


def selection_note(
    recipe: Experiment, predictions: pd.DataFrame, contents: Mapping[str, str]
) -> str:
    """Return what is to be said of a recipe that was chosen on some of the studies predicted."""
    studies = predictions.drop_duplicates("study")
    hashes = studies["study"].map(dict(contents))
    return selection.note(
        recipe, pd.DataFrame({"patient_id": studies["patient"], "content_hash": hashes})
    )


# ---------------------------------------------------------------------- calibration and calls


def calibration_table(predictions: pd.DataFrame, classes: Classes | None = None) -> pd.DataFrame:
    """Return how well probabilities are calibrated before and after temperature scaling.

    O/E, the share of positives over the mean probability (1 is right); the intercept, what is to be
    added to the logits (0 is right); the slope, what they are to be multiplied by (1 is right); the
    Brier score; and the expected calibration error, which right probabilities have too: its `null`
    columns say what they would have by chance, and there is no interval of it.

    Returns:
        One row a split, label and metric: `before`, `before_low`, `before_high`, `after`,
        `after_low`, `after_high` (95%, over patients), `before_null`, `before_null_high`,
        `after_null`, `after_null_high` (median and 95th percentile of right probabilities), `note`.
        Of classes see `class_scoring.class_calibration_table`.
    """
    if classes:
        table = class_scoring.class_calibration_table(predictions, classes)
        return selection.labelled(table, classes)
    rows = [
        {"split": split, "label": label, "metric": metric, **_calibration_row(metric, studies)}
        for (split, label), studies in predictions.groupby(["split", "label"], sort=False)
        for metric in metrics.CALIBRATION_MEASURES
    ]
    return selection.labelled(pd.DataFrame(rows))


def _calibration_row(metric: str, predictions: pd.DataFrame) -> dict[str, float | str]:
    """Return one measure of calibration of one label's predictions, before and after scaling."""
    known = predictions[predictions["truth"].notna()]
    truth = known["truth"].to_numpy(float)
    arrays = (known["patient"].to_numpy(), known["study"].to_numpy())
    has_interval = metrics.CALIBRATION_MEASURES[metric] is not None
    of_folds = "fold" in known and known["fold"].nunique() > 1
    row: dict[str, float] = {}
    notes = [PATIENTS_ALONE] if has_interval and of_folds else []
    for when, column in (("before", "probability"), ("after", "calibrated")):
        probability = known[column].to_numpy(float)
        estimate, null = metrics.measure_calibration(metric, truth, probability, *arrays)
        row |= {when: estimate.value, f"{when}_low": estimate.low, f"{when}_high": estimate.high}
        row |= {f"{when}_null": null[0], f"{when}_null_high": null[1]}
        notes.append(estimate.note)
    return {**row, "note": "; ".join(filter(None, dict.fromkeys(notes)))}


def confusion_table(predictions: pd.DataFrame, classes: Classes | None = None) -> pd.DataFrame:
    """Return patients by truth and call, one row a split and label.

    A patient is positive, or called positive, if one of the studies is. Over repeats of folds the
    counts are means. Of classes see `class_scoring.class_confusion_table`.
    """
    if classes:
        return class_scoring.class_confusion_table(predictions, classes)
    known = predictions[predictions["truth"].notna()]
    if "repeat" in known and known["repeat"].nunique() > 1:
        counts = pd.concat([confusion_table(rows) for _, rows in known.groupby("repeat")])
        means = counts.groupby(["split", "label"], sort=False).mean().round(1).reset_index()
        return means.astype({"patients": int})
    table = []
    for (split, label), rows in known.groupby(["split", "label"], sort=False):
        patients = rows.groupby("patient").agg(truth=("truth", "max"), called=("positive", "any"))
        positive, called = patients["truth"] == 1, patients["called"]
        table.append(
            {
                "split": split,
                "label": label,
                "patients": len(patients),
                "true_positives": int((positive & called).sum()),
                "false_negatives": int((positive & ~called).sum()),
                "false_positives": int((~positive & called).sum()),
                "true_negatives": int((~positive & ~called).sum()),
            }
        )
    return pd.DataFrame(table)


# -------------------------------------------------------------------------------- subgroups


def subgroup_table(
    predictions: pd.DataFrame,
    label_names: Sequence[str],
    groups: pd.DataFrame | None = None,
    resamples: int = 2000,
    classes: Classes | None = None,
) -> pd.DataFrame:
    """Return the metrics of `SUBGROUP_METRICS` in subgroups of the studies.

    Of classes they are those of all together that `class_scoring.SUBGROUP_METRICS` names.

    `groups` are subgroups by study id, a column each; thirds by the number of slices come first.
    """
    counts = predictions.drop_duplicates("study").set_index("study")["slices"]
    columns = {"slices": subgroups.thirds(counts)}
    if groups is not None:
        columns |= {str(name): groups[name].reindex(counts.index) for name in groups.columns}
    tables = []
    for subgroup, column in columns.items():
        names = column.dropna().unique()
        for group in getattr(names, "sort_values", names.tolist)():
            members = predictions[predictions["study"].isin(column.index[column == group])]
            table = score(members, label_names, resamples, classes)
            table = table[_is_of_subgroups(table, classes)]
            tables.append(table.assign(subgroup=subgroup, group=str(group)))
    if not tables:
        return pd.DataFrame()
    table = columns_in_front(pd.concat(tables, ignore_index=True), ["split", "subgroup", "group"])
    order = table.groupby(["split", "subgroup"], sort=False).ngroup()
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _is_of_subgroups(table: pd.DataFrame, classes: Classes | None) -> pd.Series:
    """Return which rows of a table of metrics stand in a table of subgroups."""
    if classes:
        together = table["label"] == classes.column
        return table["metric"].isin(class_scoring.SUBGROUP_METRICS) & together
    return table["metric"].isin(SUBGROUP_METRICS) & (table["label"] != "macro")


def columns_in_front(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a table with these columns first."""
    return table[[*names, *(name for name in table.columns if name not in names)]]
