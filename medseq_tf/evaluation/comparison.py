"""Comparison of models on the same patients, with paired tests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from medseq_tf.dataset import holdout_reuse, selection
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.predictions import by_study, cut_arrays, predict_split, stored_predictions
from medseq_tf.evaluation.results_text import comparison_text
from medseq_tf.evaluation.scoring import columns_in_front, score, selection_note
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run, RunOrPath


@dataclass(frozen=True)
class Comparison:
    """Metrics of several models on the studies that all of them were tested on.

    Attributes:
        table: as `Evaluation.table`, with the column `model` in front.
        differences: one row a label, metric and pair of models: `model`, `other`, `difference`, its
            95% interval, `p` (two-sided), `p_adjusted` (Holm's, for all tests of the table),
            `method`, `note`.
        notes: studies that are left out.
        classes: what is told apart; None of yes/no labels.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    notes: list[str]
    classes: Classes | None = None

    def text(self) -> str:
        """Return the comparison for a terminal."""
        return comparison_text(self.table, self.differences, self.notes, self.classes)

    def _repr_html_(self) -> str:
        return self.differences.to_html(index=False, float_format=lambda v: f"{v:.3f}")


def compare(
    runs: Sequence[RunOrPath],
    data: str | os.PathLike | Prepared | None = None,
    split: str = "test",
    resamples: int = 2000,
) -> Comparison:
    """Compare runs on the studies that all of them were tested on.

    Args:
        runs: at least two run folders.
        data: a prepared data set to predict anew; None: the predictions that the runs hold.
        split: `test` or `validation`, or `all` of a data set that no run has seen.
        resamples: of the bootstrap over patients, by which intervals of folds are found.

    Raises:
        InputError: fewer than two runs, other labels, or no study in common.
    """
    opened = [Run.open(run) for run in runs]
    if len(opened) < 2:
        raise InputError(f"{len(opened)} run given: a comparison needs at least two")
    shared_labels(opened)
    by_name = name_runs(opened)
    if data is None:
        if split == "all":
            raise InputError("split = 'all' needs data that no run has seen")
        tables = [stored_predictions(run, split) for run in opened]
        return compare_runs(by_name, tables, opened[0].contents, resamples)
    prepared = Prepared.open(data)
    tables = [predict_split(run, prepared, split) for run in opened]
    compared = compare_runs(by_name, tables, prepared.contents, resamples)
    if split != "validation":
        for run, table in zip(opened, tables, strict=True):
            holdout_reuse.record(prepared, table["study"], run.experiment)
    return compared


def shared_labels(runs: Sequence[Run]) -> tuple[list[str], Classes | None]:
    """Return the labels that all runs predict, and what classes they are, if they are.

    Classes are brought together by name: they may stand in another order, which means something of
    ordered ones alone.

    Raises:
        InputError: a run predicts other labels or classes than the first, or grades of another
            order.
    """
    first = max(runs, key=lambda run: run.classes is not None and run.classes.ordered)
    for run in runs:
        if _told_apart(run, first) != _told_apart(first, run):
            raise InputError(
                f"{run.path}: predicts {_in_words(run)}, the run {first.path} predicts "
                f"{_in_words(first)}"
            )
    return first.dataset["label_names"], first.classes


def _told_apart(run: Run, other: Run) -> tuple[bool, list[str]]:
    """Return whether a run predicts classes, and which; in their order where both have one."""
    names, has_order = run.dataset["label_names"], True
    if run.classes and other.classes:
        has_order = run.classes.ordered and other.classes.ordered
    return run.classes is not None, names if has_order else sorted(names)


def _in_words(run: Run) -> str:
    names = run.dataset["label_names"]
    if run.classes is None:
        return ", ".join(names)
    return f"one of {' < '.join(names) if run.classes.ordered else ', '.join(names)}"


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Return runs by name, or by path where two have the same name.

    Raises:
        InputError: a run is named twice.
    """
    paths = [run.path.resolve() for run in runs]
    if repeated := [run.path for run in runs if paths.count(run.path.resolve()) > 1]:
        raise InputError(f"{repeated[0]}: a run is compared with other runs, not with itself")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return dict(zip(names, runs, strict=True))


def compare_runs(
    runs: Mapping[str, Run],
    predictions: Sequence[pd.DataFrame],
    contents: Mapping[str, str],
    resamples: int = 2000,
    costs: np.ndarray | None = None,
) -> Comparison:
    """Compare the predictions of runs; of recipes chosen on these patients nothing is concluded.

    The runs are by name, as `name_runs` gives them, `contents` the studies' content hashes, by id,
    and `costs` (true, called) in the order of the first run's classes.

    Raises:
        InputError: see `shared_labels` and `compare_tables`.
    """
    tables = dict(zip(runs, predictions, strict=True))
    labels, classes = shared_labels([*runs.values()])
    if costs is not None:
        names = next(iter(runs.values())).dataset["label_names"]
        order = [names.index(name) for name in labels]
        costs = costs[np.ix_(order, order)]
    compared = compare_tables(tables, labels, resamples, classes, costs)
    table, differences, notes = compared.table, compared.differences, [*compared.notes]
    for name, run in runs.items():
        if words := selection_note(run.experiment, tables[name], contents):
            notes.append(f"{name}: {words}")
            table = selection.without_intervals(table, table["model"] == name, selection.LABEL)
            rows = (differences["model"] == name) | (differences["other"] == name)
            differences = selection.without_intervals(differences, rows, selection.LABEL)
    return Comparison(table, differences, notes, classes)


def compare_tables(
    predictions: Mapping[str, pd.DataFrame],
    label_names: Sequence[str],
    resamples: int = 2000,
    classes: Classes | None = None,
    costs: np.ndarray | None = None,
) -> Comparison:
    """Compare tables of predictions, by the models' names, on the studies in all of them.

    `classes` are what the labels are, if they exclude each other, and `costs` (true, called) those
    of their calls.

    Raises:
        InputError: no study in common, or two tables that disagree on its label.
    """
    label_names = list(label_names)
    shared, notes = _shared_studies(predictions)
    tables = [
        score(rows.assign(split="shared"), label_names, resamples, classes, costs)
        .drop(columns="split")
        .assign(model=name)
        for name, rows in shared.items()
    ]
    pairs = []
    for a, b in combinations(shared, 2):
        if classes:
            differences = _class_differences(shared[a], shared[b], classes, resamples, costs)
        else:
            differences = _differences(shared[a], shared[b], label_names, resamples)
        pairs.append(differences.assign(model=a, other=b))
    table = pd.concat(tables, ignore_index=True)
    differences = _adjusted(pd.concat(pairs, ignore_index=True))
    if all((rows["split"] == "validation").any() for rows in predictions.values()):
        notes.append(selection.of_validation(classes))
        table, differences = (
            selection.without_intervals(rows, np.ones(len(rows), bool), selection.LABEL)
            for rows in (table, differences)
        )
    return Comparison(
        columns_in_front(table, ["model"]),
        columns_in_front(differences, ["label", "metric", "model", "other"]),
        notes,
        classes,
    )


def auroc_differences(
    predictions: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    label_names: Sequence[str],
    classes: Classes | None = None,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Return how far a cross-validated run's AUROC is above those of others, on the same folds.

    Args:
        predictions: of the run, as `Evaluation.predictions`, of its test studies.
        others: by name, `study`, `label`, `fold` and `probability` of the same folds.
        label_names: the labels.
        classes: what they are, if they exclude each other.
        resamples: of the bootstrap over patients.

    Returns:
        One row for each of the others: `other`, `label`, `difference`, `low`, `high`, `note`; of
        several labels their mean.
    """
    keys, rows = ["study", "label", "fold"], []
    for name, table in others.items():
        own = predictions.drop(columns="positive", errors="ignore")
        both = own.merge(table[[*keys, "probability"]], on=keys, suffixes=("", "_other"))
        other = both.assign(probability=both["probability_other"])
        if classes:
            differences = _class_differences(both, other, classes, resamples, None)
        else:
            differences = _differences(both, other, list(label_names), resamples)
        of_auroc = differences[differences["metric"] == "auroc"]
        several = of_auroc["label"].isin(["macro", *([classes.column] if classes else [])])
        rows.append((of_auroc[several] if several.any() else of_auroc).assign(other=name))
    columns = ["other", "label", "difference", "low", "high", "note"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def _shared_studies(
    predictions: Mapping[str, pd.DataFrame],
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return the rows of the studies that stand in all tables, and notes on those left out."""
    in_all = set.intersection(*(set(table["study"]) for table in predictions.values()))
    if not in_all:
        raise InputError(
            f"{', '.join(predictions)}: no study was tested by all of them; train them on the same "
            "split (split.seed), or with --folds"
        )
    notes = [
        f"{name}: {left_out} of its studies were not tested by all models and are left out"
        for name, table in predictions.items()
        if (left_out := table["study"].nunique() - len(in_all))
    ]
    shared = {name: table[table["study"].isin(in_all)] for name, table in predictions.items()}
    facts = {
        name: rows[["study", "label", "patient", "truth"]]
        .drop_duplicates()
        .sort_values(["study", "label"])
        .reset_index(drop=True)
        for name, rows in shared.items()
    }
    first = next(iter(facts.values()))
    for name, own in facts.items():
        if not own.equals(first):
            raise InputError(f"{name}: its studies have other labels or patients than the others'")
    return shared, notes


def _differences(
    a: pd.DataFrame, b: pd.DataFrame, label_names: list[str], resamples: int
) -> pd.DataFrame:
    """Return the differences of two models on the same studies."""
    if "fold" in a or "fold" in b:
        first, second = (cross_validation.held_out(rows, label_names) for rows in (a, b))
        table = _described(cross_validation.compare_folds(first, second, resamples), a)
        return table.assign(question=cross_validation.question(a if "site" in b else b))
    first, second = by_study(a), by_study(b)
    probabilities, thresholds = (
        tuple(studies[name][label_names].to_numpy(float) for studies in (first, second))
        for name in ("probability", "threshold")
    )
    table = metrics.compare_predictions(
        first["truth"][label_names].to_numpy(float),
        probabilities,
        label_names,
        thresholds,
        first.index.get_level_values("patient").to_numpy(),
        cuts=(cut_arrays(first, label_names), cut_arrays(second, label_names)),
    )
    return table.assign(question=cross_validation.FITTED)


def _class_differences(
    a: pd.DataFrame,
    b: pd.DataFrame,
    classes: Classes,
    resamples: int,
    costs: np.ndarray | None,
) -> pd.DataFrame:
    """Return the differences of two models of classes, those of all classes together first."""
    first, second = (ClassTable.of(rows, classes).known for rows in (a, b))
    if "fold" in a or "fold" in b:
        table = cross_validation.compare_class_folds(first, second, resamples, costs)
        return table.assign(question=cross_validation.question(a if "site" in b else b))
    table = metrics.compare_classes(
        first.truth,
        (first.probabilities, second.probabilities),
        classes,
        (first.called, second.called),
        first.patients,
        costs,
    )
    return table.assign(question=cross_validation.FITTED)


def _described(differences: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Return differences without a p-value where the rarer class has few patients, and say so."""
    known = predictions[predictions["truth"].notna()]
    counts = (
        known.groupby(["label", "truth"])["patient"].nunique().unstack(fill_value=0).min(axis=1)
    )
    if len(counts) > 1 and (counts > 0).any():
        counts["macro"] = counts[counts > 0].min()
    few = differences["label"].isin(counts.index[counts < metrics.FEW_PATIENTS])
    few &= differences["p"].notna()
    note = differences["note"].fillna("")
    remark = differences["label"].map(
        lambda name: f"{counts.get(name)} patients of the rarer class"
    )
    remark = note.where(note == "", note + "; ") + remark + f": {metrics.DESCRIBED}"
    return differences.assign(p=differences["p"].mask(few), note=note.mask(few, remark))


def _adjusted(differences: pd.DataFrame) -> pd.DataFrame:
    """Return differences with Holm's p-values for all tests of the table, behind their own."""
    at = differences.columns.get_loc("p") + 1
    adjusted = differences.copy()
    adjusted.insert(at, "p_adjusted", metrics.holm(differences["p"]))
    return adjusted
