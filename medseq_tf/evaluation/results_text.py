"""Tables of scores as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from medseq_tf.dataset import selection
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.class_scoring import PATIENTS_ALONE
from medseq_tf.evaluation.metrics.interval_text import interval, number, with_interval
from medseq_tf.evaluation.scoring import REPORTED_METRICS, fold_names, fold_summary, fold_table
from medseq_tf.readers.classes import Classes

ANY_POSITIVE = (
    "By patient: a patient is positive if one of the studies is, and is called positive if one of "
    "them is called so. The other figures are of studies."
)
"""What a table of calls by patient counts."""


SITE_METRICS = ("accuracy", "balanced_accuracy", "auroc", "recall", "specificity")
"""What is printed of each site that was left out, as far as it is measured."""

ALL_STUDIES = "Studies by true class (a row each) and called class, with the share of the row:"


def metrics_text(table: pd.DataFrame, classes: Classes | None = None) -> str:
    """Return a table of metrics as text, what is to be said of them below it."""
    shown = reported(table, classes)
    notes = list(dict.fromkeys(note for note in shown["note"] if note))
    width = _width(shown["label"], 10)
    head = f"{'split':<12}{'label':<{width}}{'metric':<31}{'value':>6}   {'95% interval':<17}"
    lines = [head + "studies (positive)"]
    for row in shown.itertuples():
        count = "" if row.label == "macro" else _studies(row, classes)
        mark = f"  [{notes.index(row.note) + 1}]" if row.note else ""
        line = (
            f"{row.split:<12}{row.label:<{width}}{row.metric:<31}{number(row.value):>6}   "
            f"{interval(row.low, row.high):<17}"
        )
        lines.append((line + count + mark).rstrip())
    lines += [f"[{i}] {note}" for i, note in enumerate(notes, start=1)]
    having = shown[shown["low"].notna()]
    questions = having["question"].dropna().unique() if "question" in having else []
    lines += [f"intervals of: {question}" for question in questions]
    return "\n".join(filter(None, [*lines, metrics.multiplicity(len(having))]))


def headline_text(table: pd.DataFrame, classes: Classes | None = None) -> str:
    """Return the AUROC on test patients, of all labels or classes together, with its interval."""
    rows = table[(table["split"] == "test") & (table["metric"] == "auroc")]
    together = rows["label"].isin(("macro", classes.column if classes else ""))
    row = (rows[together] if together.any() else rows).iloc[0]
    return f"AUROC {with_interval(row['value'], row['low'], row['high'])}: {row['label']}"


def folds_text(predictions: pd.DataFrame, classes: Classes | None = None) -> str:
    """Return the folds' own test metrics as text: mean and standard deviation."""
    tested = predictions[predictions["split"] == "test"]
    summary = fold_summary(tested, classes)
    width = _width(summary["label"], 12)
    of = "sites" if "site" in tested else "folds"
    lines = [f"{'test ' + of:<11}{'label':<{width}}{'metric':<31}{'mean':>6}   sd over {of}"]
    for row in reported(summary, classes).itertuples():
        lines.append(f"{'':<11}{row.label:<{width}}{row.metric:<31}{row.mean:6.3f}   {row.sd:.3f}")
    return "\n".join(lines + (_sites_lines(tested, classes) if of == "sites" else []))


def _sites_lines(tested: pd.DataFrame, classes: Classes | None) -> list[str]:
    """Return how well each site was predicted by the model that was trained without it."""
    table = fold_table(tested, classes)
    names = [f"{fold_names(tested)[fold]}" for fold in table["fold"]]
    shown = [name for name in SITE_METRICS if name in table]
    site, label = _width(pd.Series(names), 12), _width(table["label"], 8)
    heads = "".join(f"{name:>19}" for name in shown)
    lines = ["", f"{'left out':<{site}}{'label':<{label}}{'studies':>7}{heads}"]
    for name, row in zip(names, table.to_dict("records"), strict=True):
        values = "".join(f"{number(row[metric]):>19}" for metric in shown)
        lines.append(f"{name:<{site}}{row['label']:<{label}}{row['studies']:>7}{values}")
    return lines


def covariates_alone_text(table: pd.DataFrame, beyond: Mapping[str, Any]) -> str:
    """Return the AUROC of covariates alone, and the model's minus it, as text.

    The arguments are `Run.covariates_alone` and `Run.beyond_covariates`.
    """
    lines = [f"covariates alone ({', '.join(beyond['names'])}; logistic regression):"]
    differences = {
        row["label"]: with_interval(row["difference"], row["low"], row["high"], "+")
        for row in beyond["differences"]
        if row["metric"] == "auroc"
    }
    for row in table[table["metric"] == "auroc"].itertuples():
        line = f"    {row.label}: AUROC {with_interval(row.value, row.low, row.high)}"
        if row.label in differences:
            line += f"; the model minus it: {differences[row.label]}"
        lines.append(line)
    return "\n".join([*lines, *(f"    {note}" for note in beyond["notes"])])


def calibration_text(calibration: pd.DataFrame, classes: Classes | None = None) -> str:
    """Return a calibration table as text, before and after temperature scaling."""
    width = _width(calibration["label"], 10)
    rows = calibration.to_dict(orient="records")
    before, after = (
        [number(row[when]) + calibration_range(row, when) for row in rows]
        for when in ("before", "after")
    )
    wide = max(24, *map(len, before)) + 2
    lines = [
        f"{'calibration':<12}{'label':<{width}}{'metric':<28}{'as predicted':<{wide}}after scaling"
    ]
    for row, *cells in zip(rows, before, after, strict=True):
        name = f"{row['split']:<12}{row['label']:<{width}}{row['metric']:<28}"
        lines.append(f"{name}{cells[0]:<{wide}}{cells[1]}".rstrip())
    if calibration["note"].str.contains(PATIENTS_ALONE, regex=False).any():
        lines.append(PATIENTS_ALONE)
    if classes:
        lines.append(f"{classes.column}: the most probable class, and whether it is the right one")
    lines.append(
        "right: O/E 1, intercept 0, slope 1 (below: too extreme); 95% intervals in brackets"
    )
    return "\n".join(lines)


def calibration_range(row: Mapping[str, float], when: str) -> str:
    """Return the interval of a row of a calibration table, or what right probabilities have."""
    low, high = row[f"{when}_low"], row[f"{when}_high"]
    if not pd.isna(low):
        return f" ({interval(low, high)})"
    null = row[f"{when}_null"]
    return "" if pd.isna(null) else f" (if right {null:.3f}, to {row[f'{when}_null_high']:.3f})"


def confusion_text(confusion: pd.DataFrame, classes: Classes | None = None) -> str:
    """Return patients by truth and call as text, a small table a split and label."""
    if classes:
        return _class_confusion_text(confusion, classes)
    lines = [ANY_POSITIVE]
    for row in confusion.itertuples():
        lines += [
            f"{row.label}, {row.patients} {row.split} patients{'called positive':>22}   negative"
            + (f"   ({selection.LABEL})" if row.split == "validation" else ""),
            f"    {'positive':<30}{row.true_positives:>15g}{row.false_negatives:>11g}",
            f"    {'negative':<30}{row.false_positives:>15g}{row.true_negatives:>11g}",
        ]
    return "\n".join(lines)


def _class_confusion_text(confusion: pd.DataFrame, classes: Classes) -> str:
    """Return studies by true and called class as text, a matrix a split."""
    names = list(classes.names)
    first = max(map(len, names)) + 2
    wide = max(15, first)
    lines = [ALL_STUDIES]
    for split, cells in confusion.groupby("split", sort=False):
        count = cells["count"].sum()
        chosen = f"   ({selection.LABEL})" if split == "validation" else ""
        part = "" if split == "all" else f" {split}"
        lines.append(f"{classes.column}, {count:.0f}{part} studies{chosen}")
        lines.append(f"    {'':<{first}}" + "".join(f"{name:>{wide}}" for name in names))
        for true, row in cells.groupby("true", sort=False):
            of = row.set_index("called")
            words = (f"{of['count'][n]:.10g} ({number(of['share'][n])})" for n in names)
            lines.append(f"    {true:<{first}}" + "".join(f"{word:>{wide}}" for word in words))
    return "\n".join(lines)


def subgroup_text(table: pd.DataFrame, classes: Classes | None = None) -> str:
    """Return the metrics of subgroups as text."""
    width, labels = _width(table["subgroup"] + " " + table["group"], 12), _width(table["label"], 12)
    name_of = _width(table["metric"], 12)
    head = f"{'subgroup':<{width}}{'label':<{labels}}{'metric':<{name_of}}"
    lines = [f"{head}{'value':>6}   95% interval"]
    for row in table.itertuples():
        name = f"{row.subgroup} {row.group}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(
            f"{name:<{width}}{row.label:<{labels}}{row.metric:<{name_of}}{number(row.value):>6}   "
            f"{interval(row.low, row.high):<17}{_studies(row, classes)}{note}"
        )
    return "\n".join(filter(None, [*lines, metrics.multiplicity(int(table["low"].count()))]))


def comparison_text(
    table: pd.DataFrame,
    differences: pd.DataFrame,
    notes: list[str],
    classes: Classes | None = None,
) -> str:
    """Return the metrics of several models and their differences as text."""
    width, labels = _width(table["model"], 5), _width(table["label"], 5)
    lines = [f"{'model':<{width}}{'label':<{labels}}{'metric':<31}{'value':>6}   95% interval"]
    for row in reported(table, classes).itertuples():
        lines.append(
            f"{row.model:<{width}}{row.label:<{labels}}{row.metric:<31}"
            f"{number(row.value):>6}   {interval(row.low, row.high)}"
        )
    lines += ["", "differences, on the same patients"]
    tests = int(differences["p"].notna().sum())
    for row in reported(differences, classes).itertuples():
        p = "" if pd.isna(row.p) else f"   p = {row.p:.3f}"
        if p and row.p_adjusted != row.p:
            p += f", {row.p_adjusted:.3f} adjusted for {tests} tests"
        note = f"   ({row.note})" if row.note else ""
        lines.append(
            f"{row.model} - {row.other}  {row.label:<{labels}}{row.metric:<31}"
            f"{number(row.difference, '+'):>6}   {interval(row.low, row.high, '+')}"
            f"   {row.method}{p}{note}"
        )
    return "\n".join(lines + notes)


def reported(table: pd.DataFrame, classes: Classes | None = None) -> pd.DataFrame:
    """Return the rows of a table whose metric is printed and reported; all those of classes."""
    if classes:
        return table
    return table[table["metric"].isin(REPORTED_METRICS)]


def _studies(row: Any, classes: Classes | None) -> str:
    """Return how many studies a row of a table of metrics is of, and how many are positive."""
    together = classes is not None and row.label == classes.column
    return f"{row.n:.0f}" + ("" if together else f" ({row.positives:.0f})")


def _width(names: pd.Series, least: int) -> int:
    """Return how wide a column of names is."""
    return max(least, *names.str.len()) + 2
