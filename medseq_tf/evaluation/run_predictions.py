"""Predictions of a run: those of its models for a split of a data set, and those that it keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.inference import Predictions, study_predictions
from medseq_tf.evaluation.predictions import calibrated, choose_cuts, predictions_table, with_cuts
from medseq_tf.evaluation.unseen_data import check_data
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run

SPLIT_NAMES = ("validation", "test", "all")


def predict_split(run: Run, prepared: Prepared, split: str = "test") -> pd.DataFrame:
    """Return a run's predictions, as `Evaluation.predictions`, of one split of a data set.

    Raises:
        InputError: the data set does not fit the run or the split.
    """
    if split not in SPLIT_NAMES:
        raise InputError(f"split = {split!r}: expected one of {', '.join(SPLIT_NAMES)}")
    run.require_finished()
    if run.folds and split == "validation":
        raise InputError(
            f"{run.path}: the folds' validation studies overlap; evaluate a fold by itself, such "
            f"as {run.path / 'fold_1'}"
        )
    check_data(run, prepared, split)
    store = SliceStore(prepared, (run.folds or [run])[0].experiment)
    if split == "all":
        predictions = _predict_all(run, store)
    elif run.folds:
        predictions = _predict_folds(run, store, split)
    else:
        predictions = _predict_own(run, store, split)
    if predictions.empty:
        raise InputError(f"{run.path}: the run has no {split} study; choose another --split")
    return predictions


def stored_predictions(run: Run, split: str) -> pd.DataFrame:
    """Return the predictions of one split that a run keeps, with its cuts."""
    predictions = run.predictions
    of_split = predictions[predictions["split"] == split]
    return of_split if run.folds else with_cuts(of_split, stored_cuts(run))


def stored_cuts(run: Run) -> dict[str, dict[str, float]]:
    """Return a run's cuts by label; of an old run from its validation predictions."""
    return run.cuts or choose_cuts(run.predictions)


def _predict_folds(run: Run, store: SliceStore, split: str) -> pd.DataFrame:
    """Return the predictions of each fold's model for the fold's own studies."""
    per_repeat = len(run.folds) // run.repeats
    tables = [
        _predict_own(fold, store, split).assign(fold=number, repeat=(number - 1) // per_repeat + 1)
        for number, fold in enumerate(run.folds, start=1)
    ]
    return pd.concat(tables, ignore_index=True)


def _predict_own(run: Run, store: SliceStore, split: str) -> pd.DataFrame:
    """Return the predictions of a run's best model for the studies of one of its splits."""
    row_of = {study: i for i, study in enumerate(store.prepared.studies["study_id"])}
    rows = np.array([row_of[study] for study in run.splits[split]], np.int64)
    predictions = study_predictions(run.model(), store, rows, run.experiment)
    table = predictions_table(store.prepared, rows, predictions, split, run.thresholds)
    return with_cuts(calibrated(table, run.temperatures), stored_cuts(run))


def _predict_all(run: Run, store: SliceStore) -> pd.DataFrame:
    """Return the mean of a run's models, at the run's own thresholds, as `export` writes it."""
    rows = np.arange(len(store.prepared))
    members = [
        study_predictions(member.model(), store, rows, member.experiment)
        for member in run.folds or [run]
    ]
    mean = members[0]
    if len(members) > 1:  # there is no mask that the folds have in common
        mean = Predictions(np.mean([member.probabilities for member in members], axis=0))
    table = predictions_table(store.prepared, rows, mean, "all", run.thresholds)
    cuts = {} if run.folds else stored_cuts(run)
    return with_cuts(calibrated(table, run.temperatures), cuts)
