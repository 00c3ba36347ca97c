"""Tables of predictions, one row a study and label: a run's, and what validation studies choose.

Validation studies choose each label's thresholds (`choose_operating_points`, `choose_cuts`) and the
temperature of its probabilities (`fit_temperatures`). Classes, which exclude each other, have one
row a study and class, no thresholds, and one temperature for all: the called class is the most
probable one, or the one of which a wrong call is expected to cost least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics, operating_points
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.inference import Predictions, study_predictions, weighted_mean
from medseq_tf.evaluation.operating_points import OperatingPoint
from medseq_tf.evaluation.unseen_data import fitting
from medseq_tf.input.slice_store import SliceStore, SliceStores
from medseq_tf.readers.classes import Classes
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import Run

SPLIT_NAMES = ("validation", "test", "all")

PIXEL_COLUMNS = ("found", "false", "missed")
"""Columns of a segmenter's predictions: pixels of the lesion, called or not, and others called."""


def predictions_table(
    prepared: Prepared,
    rows: np.ndarray,
    predictions: Predictions,
    split: str,
    thresholds: Mapping[str, float],
    costs: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return a model's predictions of rows of a data set, one row a study and label.

    Studies that the recipe leaves out are left out. Thresholds are by label; classes have none, and
    are called by what a wrong call costs, `costs` (true, called), if that is given.
    """
    studies = prepared.studies.iloc[rows]
    pixels = {}
    if predictions.pixels is not None:
        pixels = dict(zip(PIXEL_COLUMNS, predictions.pixels.T, strict=True))
    tables = [
        pd.DataFrame(
            {
                "study": studies["study_id"].to_numpy(),
                "patient": studies["patient_id"].to_numpy(),
                "slices": studies["slices"].to_numpy(),
                "split": split,
                "label": label,
                "truth": prepared.labels[rows, i],
                "probability": predictions.probabilities[:, i],
                "threshold": np.nan if prepared.classes else thresholds[label],
                **pixels,
            }
        )
        for i, label in enumerate(prepared.label_names)
    ]
    table = pd.concat(tables, ignore_index=True)
    table["positive"] = table["probability"] >= table["threshold"]
    if prepared.classes:
        table["positive"] = _is_called(predictions.probabilities, costs).T.ravel()
    return table[table["probability"].notna()].reset_index(drop=True)


def _is_called(probabilities: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """Return `(studies, classes)` bool, true for the class that is called; NaN calls none."""
    is_called = np.zeros(probabilities.shape, bool)
    known = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    is_called[known, metrics.call(probabilities[known], costs)] = True
    return is_called


def with_calls(
    predictions: pd.DataFrame, classes: Classes | None, costs: np.ndarray | None
) -> pd.DataFrame:
    """Return predictions with the calls of least expected cost; as they are without costs."""
    if costs is None or classes is None:
        return predictions
    table = ClassTable.of(predictions, classes)
    is_called = _is_called(table.probabilities, costs)
    return predictions.assign(positive=table.spread(is_called, predictions))


def by_study(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a study; columns truth, probability, threshold and cuts, by label."""
    values = ["truth", "probability", "threshold", *cut_columns(predictions)]
    return predictions.pivot(index=["patient", "study"], columns="label", values=values)


# ------------------------------------------------------------------- what validation studies choose


def choose_operating_points(
    prepared: Prepared, rows: np.ndarray, probabilities: np.ndarray, rule: str
) -> dict[str, OperatingPoint]:
    """Return each label's threshold by a rule (`fit.threshold`) on validation studies.

    A label of one class only gets 0.5 and a note.
    """
    scored = ~np.isnan(probabilities).any(1)
    patients = prepared.studies["patient_id"].to_numpy()[rows][scored]
    values = (prepared.labels[rows][scored], probabilities[scored])
    return operating_points.of_validation(*values, patients, prepared.label_names, rule)


def choose_cuts(predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return, by label, the cut of each metric of `metrics.TRADE_OFFS`.

    They are chosen on the validation studies; a label of one class only has none.
    """
    return {
        label: {
            name: metrics.choose_threshold(truth, probability, rule)
            for name, rule in metrics.TRADE_OFFS.items()
        }
        for label, truth, probability in _validation(predictions)
        if len(np.unique(truth)) == 2
    }


def fit_temperatures(
    predictions: pd.DataFrame, classes: Classes | None = None
) -> tuple[dict[str, float], list[str]]:
    """Return each label's temperature, fitted on the validation studies, and notes.

    It is 1, with a note, where validation has one class only, and 1 where validation does not speak
    against the probabilities as they are; see `metrics.fit_temperature`. Classes have one, by the
    name of their column.
    """
    if classes:
        return _fit_class_temperature(predictions, classes)
    temperatures, notes = {}, []
    for label, truth, probability in _validation(predictions):
        if len(np.unique(truth)) < 2:
            temperatures[label] = 1.0
            reason = "validation does not have both classes"
            notes.append(f"{label}: {reason}, so probabilities are not scaled")
        else:
            temperatures[label] = metrics.fit_temperature(truth, metrics.logits(probability))
    return temperatures, notes


def _fit_class_temperature(
    predictions: pd.DataFrame, classes: Classes
) -> tuple[dict[str, float], list[str]]:
    chosen_by = predictions[(predictions["split"] == "validation") & predictions["truth"].notna()]
    if chosen_by.loc[chosen_by["truth"] == 1, "label"].nunique() < 2:
        reason = "validation does not have two classes"
        return {classes.column: 1.0}, [
            f"{classes.column}: {reason}, so probabilities are not scaled"
        ]
    known = ClassTable.of(chosen_by, classes)
    return {classes.column: metrics.fit_class_temperature(known.truth, known.probabilities)}, []


def _validation(predictions: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each label with the known truth of its validation studies and their probabilities."""
    for label, rows in predictions.groupby("label", sort=False):
        known = rows[(rows["split"] == "validation") & rows["truth"].notna()]
        yield label, known["truth"].to_numpy(float), known["probability"].to_numpy(float)


def with_cuts(predictions: pd.DataFrame, cuts: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return a table with the cuts of `choose_cuts`, a column each; nan where one is not known."""
    if not any(cuts.values()):
        return predictions
    columns = {
        f"cut_{name}": [cuts.get(label, {}).get(name, np.nan) for label in predictions["label"]]
        for name in metrics.TRADE_OFFS
    }
    return predictions.assign(**columns)


def cut_columns(predictions: pd.DataFrame) -> list[str]:
    """Return the names of the columns that `with_cuts` has added to a table."""
    return [f"cut_{name}" for name in metrics.TRADE_OFFS if f"cut_{name}" in predictions]


def cut_arrays(studies: pd.DataFrame, label_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the cuts of a table of `by_study`, `(studies, labels)`, by metric."""
    return {
        name: studies[f"cut_{name}"].reindex(columns=label_names).to_numpy(float)
        for name in metrics.TRADE_OFFS
        if f"cut_{name}" in studies.columns.get_level_values(0)
    }


def calibrated(
    predictions: pd.DataFrame, temperatures: Mapping[str, float], classes: Classes | None = None
) -> pd.DataFrame:
    """Return a table of predictions with the column `calibrated`: probabilities after scaling.

    Temperature scaling is increasing, so that it changes no call: of classes it leaves their order
    as it is.
    """
    scaled = pd.Series(np.nan, predictions.index)
    if classes:
        table = ClassTable.of(predictions, classes)
        temperature = temperatures.get(classes.column, 1.0)
        scaled[:] = table.spread(
            metrics.scale_classes(table.probabilities, temperature), predictions
        )
    else:
        for label, rows in predictions.groupby("label", sort=False):
            scaled[rows.index] = metrics.scale(rows["probability"], temperatures.get(label, 1.0))
    at = predictions.columns.get_loc("probability") + 1
    columns = list(predictions.drop(columns="calibrated", errors="ignore").columns)
    columns.insert(at, "calibrated")
    return predictions.assign(calibrated=scaled)[columns]


# ------------------------------------------------------------------------------ those of a run


def predict_split(
    run: Run, prepared: Prepared, split: str = "test", costs: np.ndarray | None = None
) -> pd.DataFrame:
    """Return a run's predictions, as `Evaluation.predictions`, of one split of a data set.

    Those of an automatic run for its own data are the out-of-fold ones that it keeps.
    Classes are called by what a wrong call costs, `costs` (true, called), if that is given.

    Raises:
        InputError: the data set does not fit the run or the split.
    """
    if split not in SPLIT_NAMES:
        raise InputError(f"split = {split!r}: expected one of {', '.join(SPLIT_NAMES)}")
    run.require_finished()
    if run.cross_validated and split == "validation":
        overlap = "the folds' validation studies overlap"
        if run.automatic is not None:
            overlap = "an automatic run has no validation studies, its choice is in test's figures"
        instead = f"; evaluate a fold by itself, such as {run.path / 'fold_1'}" if run.folds else ""
        raise InputError(f"{run.path}: {overlap}{instead}")
    prepared = fitting(run, prepared, split)
    if split == "all":
        predictions = _predict_all(run, prepared, costs)
    elif not run.cross_validated:
        store = SliceStore(prepared, run.experiment)
        predictions = _predict_own(run, store, split, costs)
    elif run.folds:
        predictions = _predict_folds(run, SliceStore(prepared, run.experiment), split, costs)
    else:
        predictions = with_calls(stored_predictions(run, split), run.classes, costs)
    if predictions.empty:
        raise InputError(f"{run.path}: the run has no {split} study; choose another --split")
    return predictions


def stored_predictions(run: Run, split: str) -> pd.DataFrame:
    """Return the predictions of one split that a run keeps, with its cuts."""
    predictions = run.predictions
    of_split = predictions[predictions["split"] == split]
    return of_split if run.cross_validated else with_cuts(of_split, stored_cuts(run))


def stored_cuts(run: Run) -> dict[str, dict[str, float]]:
    """Return a run's cuts by label; of an old run from its validation predictions."""
    return run.cuts or ({} if run.classes else choose_cuts(run.predictions))


def _predict_folds(
    run: Run, store: SliceStore, split: str, costs: np.ndarray | None
) -> pd.DataFrame:
    """Return the predictions of each fold's model for the fold's own studies."""
    return of_folds([_predict_own(fold, store, split, costs) for fold in run.folds], run)


def of_folds(tables: Sequence[pd.DataFrame], run: Run) -> pd.DataFrame:
    """Return tables of a run's folds, in order, as one.

    It has their `fold`, `repeat` and, where each leaves a site out, `site`.
    """
    per_repeat, sites = len(tables) // run.repeats, run.fold_sites
    numbered = [
        table.assign(fold=number, repeat=(number - 1) // per_repeat + 1)
        for number, table in enumerate(tables, start=1)
    ]
    table = pd.concat(numbered, ignore_index=True)
    if not sites:
        return table
    return table.assign(site=table["fold"].map(dict(enumerate(sites, start=1))))


def _predict_own(run: Run, store: SliceStore, split: str, costs: np.ndarray | None) -> pd.DataFrame:
    """Return the predictions of a run's models for the studies of one of its splits."""
    row_of = {study: i for i, study in enumerate(store.prepared.studies["study_id"])}
    rows = np.array([row_of[study] for study in run.splits[split]], np.int64)
    predictions = _mean_of_members(run, lambda recipe: store, rows)
    table = predictions_table(store.prepared, rows, predictions, split, run.thresholds, costs)
    return with_cuts(calibrated(table, run.temperatures, run.classes), stored_cuts(run))


def _mean_of_members(
    run: Run, store_of: Callable[[Experiment], SliceStore], rows: np.ndarray
) -> Predictions:
    """Return the weighted mean of what a run's members predict for some studies."""
    members = run.require_members()
    predicted = []
    for member, _ in members:
        recipe = member.experiment
        predicted.append(study_predictions(member.model(), store_of(recipe), rows, recipe))
    if len(members) == 1:
        return predicted[0]
    weights = [member.weight for member in members]  # there is no mask that they have in common
    return Predictions(weighted_mean([one.probabilities for one in predicted], weights))


def _predict_all(run: Run, prepared: Prepared, costs: np.ndarray | None) -> pd.DataFrame:
    """Return the weighted mean of a run's members, at its own thresholds, as `export` writes it."""
    rows = np.arange(len(prepared))
    mean = _mean_of_members(run, SliceStores(prepared).of, rows)
    table = predictions_table(prepared, rows, mean, "all", run.thresholds, costs)
    cuts = {} if run.cross_validated else stored_cuts(run)
    return with_cuts(calibrated(table, run.temperatures, run.classes), cuts)
