"""The tables of a report: what stands in their columns, and the notes below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medseq_tf.dataset import selection
from medseq_tf.evaluation import metrics, results_text, scoring
from medseq_tf.evaluation.metrics import interval_text
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run

NAMES = {
    "auroc": "AUROC",
    "auroc_pooled": "AUROC, all folds ranked together",
    "average_precision": "average precision",
    "average_precision_pooled": "average precision, all folds together",
    "sensitivity_at_90_specificity": "sensitivity at 90% specificity",
    "specificity_at_90_sensitivity": "specificity at 90% sensitivity",
    "recall": "sensitivity (recall)",
    "precision": "precision (positive predictive value)",
    "f1": "F1",
    "f1_macro": "F1, mean of both classes",
    "brier": "Brier score",
    "expected_calibration_error": "expected calibration error",
    "observed_expected": "O/E, observed over expected",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
}
"""Of metrics; others are called by their key."""

MISSING = "–"
MOST_PROBABLE = "the most probable class"


class Table(NamedTuple):
    """A table of a page."""

    columns: list[tuple[str, bool]]  # name, and whether it holds words, which stand to the left
    rows: list[tuple]
    notes: list[str]  # what the numbers in the last column refer to


class PatientTable(NamedTuple):
    """The calls of all studies: the wrong ones first, the surest of them on top."""

    columns: list[tuple[str, bool]]  # as of a `Table`
    rows: list[tuple[bool, list[str]]]  # whether the call is wrong, and the cells
    wrong: int
    known: int  # of known truth


def table(frame: pd.DataFrame) -> Table:
    """Lay out a frame; what stands in its column `note` is numbered and goes below."""
    notes: list[str] = []
    if "note" in frame:
        notes = list(dict.fromkeys(note for note in frame["note"] if note))
        marks = [f"[{notes.index(note) + 1}]" if note else "" for note in frame["note"]]
        frame = frame.assign(note=marks) if notes else frame.drop(columns="note")
    numbers = r"[-–\d.\s to()]*"
    columns = [(name, not frame[name].astype(str).str.fullmatch(numbers).all()) for name in frame]
    return Table(columns, list(frame.itertuples(index=False, name=None)), notes)


def metric_name(metric: str) -> str:
    """Return what a metric is called."""
    return NAMES.get(metric, metric.replace("_", " "))


def number(value: float | None) -> str:
    """Write a figure."""
    return interval_text.number(value, missing=MISSING)


def interval(low: float, high: float) -> str:
    """Write an interval, which no line break divides."""
    words = interval_text.interval(low, high, missing=MISSING)
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def intervals(frame: pd.DataFrame) -> list[str]:
    """Write the interval of each row."""
    return [interval(low, high) for low, high in frame[["low", "high"]].astype(float).to_numpy()]


def key_metric(name: str, row: pd.Series) -> dict[str, str]:
    """Return what stands in the box of a key metric."""
    has_interval = not pd.isna(row["low"])
    words = interval(row["low"], row["high"]) if has_interval else "no interval"
    return {"name": name, "value": number(row["value"]), "interval": words}


def against_chance(auroc: pd.Series, few: bool) -> str:
    """Return how an AUROC compares with chance, as far as it can be said of `few` patients."""
    if pd.isna(auroc["value"]):
        return "unknown"
    if pd.isna(auroc["low"]):
        return "no interval"
    if few:
        return "few"
    if auroc["low"] <= 0.5 <= auroc["high"]:
        return "not better"
    return "worse" if auroc["high"] < 0.5 else "better"


def labels(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Count positive, negative and unknown studies by label."""
    return table(pd.DataFrame([{"label": name, **count} for name, count in counts.items()]))


def splits(run: Run) -> Table:
    """Count the studies of each split, or the test studies of each fold."""
    if run.cross_validated:
        names = [f"site {site}" for site in run.fold_sites]
        tested = [len(fold["test"]) for fold in run.splits_by_fold]
        names = names or [f"fold {number}" for number in range(1, len(tested) + 1)]
        rows = list(zip(names, tested, strict=True))
    else:
        rows = [(split, len(studies)) for split, studies in run.splits.items()]
    return table(pd.DataFrame(rows, columns=["part", "studies"]))


def metric_rows(scores: pd.DataFrame) -> Table:
    """List a run's metrics with their intervals."""
    shown = results_text.reported(scores)
    return table(pd.DataFrame({"label": shown["label"], **metric_columns(shown, metric_name)}))


def metric_columns(scores: pd.DataFrame, name: Callable[[str], str]) -> dict[str, Any]:
    """Return metrics by their `name` with their intervals, a column each of a table."""
    return {
        "metric": scores["metric"].map(name),
        "value": scores["value"].map(number),
        "95% interval": intervals(scores),
        "method": scores["interval"].fillna(""),
        "note": scores["note"].fillna(""),
    }


def beside_covariates(
    scores: pd.DataFrame, alone: pd.DataFrame, name: Callable[[str], str] = metric_name
) -> Table:
    """List metrics beside those of a model of the covariates alone."""
    both = scores.merge(alone, on=["label", "metric"], suffixes=("", "_alone"))
    columns = {"label": both["label"], "metric": both["metric"].map(name)}
    for model, end in (("this model", ""), ("covariates alone", "_alone")):
        values = both[[f"{column}{end}" for column in ("value", "low", "high")]].astype(float)
        columns[model] = [
            interval_text.with_interval(value, low, high, missing=MISSING)
            for value, low, high in values.to_numpy()
        ]
    return table(pd.DataFrame({**columns, "note": both["note_alone"].fillna("")}))


def folds(predictions: pd.DataFrame) -> Table:
    """List one row per label and metric, one column per fold, then mean and standard deviation.

    Of repeated folds there is one column per repeat, the mean of its folds.
    """
    tested = predictions[predictions["split"] == "test"]
    shown = [name for name in scoring.REPORTED_METRICS if name in metrics.METRICS]
    by_fold = scoring.fold_table(tested).melt(["fold", "label"], shown, var_name="metric")
    wide = by_fold.pivot_table("value", ["label", "metric"], "fold", sort=False, dropna=False)
    summary = scoring.fold_summary(tested).set_index(["label", "metric"])
    wide = by_fold_or_repeat(wide, tested)
    wide = wide.assign(mean=summary["mean"], sd=summary["sd"]).map(number).reset_index()
    return table(wide.assign(metric=wide["metric"].map(metric_name)))


def by_fold_or_repeat(values: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Name the columns of values by fold; of repeated folds take the mean of each repeat."""
    repeat_of = predictions.groupby("fold")["repeat"].first() if "repeat" in predictions else None
    if repeat_of is not None and repeat_of.nunique() > 1:
        means = values.T.groupby(repeat_of).mean().T
        return means.set_axis([f"repeat {repeat}" for repeat in means.columns], axis=1)
    return values.rename(columns=scoring.fold_names(predictions))


def calibration(predictions: pd.DataFrame, selected: str, classes: Classes | None = None) -> Table:
    """List calibration before and after temperature scaling; `selected`: why without intervals."""
    scores = without_intervals(scoring.calibration_table(predictions, classes), selected)
    if classes:
        scores["label"] = scores["label"].replace(classes.column, MOST_PROBABLE)
    rows = pd.DataFrame({"label": scores["label"], "metric": scores["metric"].map(metric_name)})
    for when, name in (("before", "as predicted"), ("after", "scaled")):
        rows[name] = scores[when].map(number)
        ranges = (results_text.calibration_range(row, when) for row in scores.to_dict("records"))
        rows["95% interval" + " " * (when == "after")] = [words.strip(" ()") for words in ranges]
    return table(rows.assign(note=scores["note"].fillna("")))


def subgroups(scores: pd.DataFrame) -> Table:
    """List one row per subgroup and label, one column per metric."""
    rows = []
    for (subgroup, group, label), of_group in scores.groupby(
        ["subgroup", "group", "label"], sort=False
    ):
        count = f"{of_group['n'].iat[0]} ({of_group['positives'].iat[0]})"
        row = {"subgroup": subgroup, "group": group, "label": label, "studies (positive)": count}
        rows.append(row | group_cells(of_group, metric_name))
    return table(pd.DataFrame(rows))


def group_cells(scores: pd.DataFrame, name: Callable[[str], str]) -> dict[str, str]:
    """Return a subgroup's metrics by their `name`, and what is to be said of them."""
    of_group = zip(scores.to_dict("records"), intervals(scores), strict=True)
    cells = {name(row["metric"]): f"{number(row['value'])} ({words})" for row, words in of_group}
    notes = dict.fromkeys(note for note in scores["note"] if note)
    return {**cells, "note": "; ".join(notes)}


def subgroup_scores(
    predictions: pd.DataFrame,
    label_names: Sequence[str],
    groups: pd.DataFrame | None,
    selected: str,
    classes: Classes | None = None,
) -> pd.DataFrame:
    """Score the subgroups; those of studies used for selection get no intervals."""
    scores = scoring.subgroup_table(predictions, label_names, groups, classes=classes)
    return without_intervals(scores, selected)


def multiplicity(scores: pd.DataFrame) -> str:
    """Return what to expect of the intervals of scores."""
    return metrics.multiplicity(0 if scores.empty else int(scores["low"].notna().sum()))


def without_intervals(scores: pd.DataFrame, selected: str) -> pd.DataFrame:
    """Return scores without intervals where their studies were `selected` by, which says how."""
    every = np.full(len(scores), bool(selected))
    return scores if scores.empty else selection.without_intervals(scores, every, selected)


def patients(predictions: pd.DataFrame) -> PatientTable:
    """List every study's call."""
    calls = predictions.assign(
        wrong=(predictions["positive"] != (predictions["truth"] == 1))
        & predictions["truth"].notna(),
        distance=(predictions["probability"] - predictions["threshold"]).abs(),
    ).sort_values(["wrong", "distance", "study"], ascending=[False, False, True])
    fold = ["fold"] if "fold" in calls else []
    names = ["study", "label", *fold, "slices", "truth", "probability", "scaled", "threshold"]
    return PatientTable(
        [(name, name in ("study", "label")) for name in [*names, "call"]],
        list(_patient_rows(calls, fold)),
        int(calls["wrong"].sum()),
        int(calls["truth"].notna().sum()),
    )


def _patient_rows(calls: pd.DataFrame, fold: list[str]) -> Iterator[tuple[bool, list[str]]]:
    for row in calls.to_dict("records"):
        yield (
            row["wrong"],
            [
                *(str(row[name]) for name in ("study", "label", *fold, "slices")),
                "" if np.isnan(row["truth"]) else str(int(row["truth"])),
                *(f"{row[name]:.3f}" for name in ("probability", "calibrated", "threshold")),
                ("positive" if row["positive"] else "negative") + ", wrong" * row["wrong"],
            ],
        )
