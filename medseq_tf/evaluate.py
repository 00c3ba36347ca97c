"""Takes a run and a prepared data set; gives its metrics by patient, with intervals.

The unit is the study; the bootstrap draws patients, with all their studies. Thresholds come from
the run: they were chosen on its validation studies.
"""

from __future__ import annotations

if __name__ == "__main__":  # answer --help before TensorFlow is imported
    from medseq_tf.cli import main

    main("evaluate")

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medseq_tf import metrics
from medseq_tf.errors import InputError
from medseq_tf.inference import study_probabilities
from medseq_tf.pipeline import SliceStore
from medseq_tf.prepared import Prepared
from medseq_tf.runs import METRICS_COLUMNS, Run

SHOWN = (
    "auroc",
    "average_precision",
    "accuracy",
    "recall",
    "specificity",
    "precision",
    "f1",
    "f1_macro",
)
"""The metrics of the printed table, in its order."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
      table: one row a split, label and metric: value, low, high (95% interval), n, positives, note.
      predictions: one row a study and label: study, patient, slices (their number), split, label,
        truth, probability, threshold, positive (the call at the threshold) and, for cross-validated
        runs, fold.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda v: f"{v:.3f}")


def evaluate(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    split: str = "test",
    resamples: int = 2000,
) -> Evaluation:
    """Predict the studies of one split and score them by patient.

    Args:
      run: a run folder. A cross-validated run is scored on each fold's own studies, pooled; with
        `split="all"` its folds' probabilities are averaged.
      data: the prepared data set of the run; for `split="all"` one that the run has never seen.
      split: `validation`, `test` or `all`.
      resamples: of the bootstrap over patients.

    Raises:
      InputError: the data set does not fit the run or the split.
    """
    if resamples < 1:
        raise InputError(f"resamples = {resamples}: the bootstrap needs at least 1")
    run = Run.load(run)
    run.require_finished()
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    _check_data(run, prepared, split)
    parts = run.folds or [run]
    store = SliceStore(prepared, parts[0].experiment)
    if split == "all":
        predictions = _ensemble(parts, store)
    else:
        predictions = pd.concat(
            [
                predict_rows(part, store, _rows(part, prepared, split), split).assign(
                    **({"fold": number} if run.folds else {})
                )
                for number, part in enumerate(parts, start=1)
            ],
            ignore_index=True,
        )
    if predictions.empty:
        raise InputError(f"{run.path}: the run has no {split} study; choose another --split")
    return Evaluation(score(predictions, prepared.label_names, resamples), predictions)


def _check_data(run: Run, prepared: Prepared, split: str) -> None:
    trained_on = run.dataset
    if trained_on["label_names"] != prepared.label_names:
        raise InputError(
            f"{prepared.path}: has the labels {', '.join(prepared.label_names)}, the run "
            f"{run.path} predicts {', '.join(trained_on['label_names'])}"
        )
    if split == "all":
        contents = prepared.studies["content_hash"]
        seen = prepared.studies.loc[contents.isin(set(run.contents.values())), "study_id"]
        if len(seen):
            raise InputError(
                f"{prepared.path}: {len(seen)} of its {len(prepared)} studies are of the data set "
                f"that the run was trained on (such as {seen.iloc[0]}); --split all is for studies "
                "that it has never seen"
            )
    elif trained_on["fingerprint"] != prepared.fingerprint or not set(run.contents) <= set(
        prepared.studies["study_id"]
    ):
        raise InputError(
            f"{prepared.path}: is not the data set of the run {run.path} (another fingerprint), so "
            f"it has no {split} split; --split all evaluates the whole of it"
        )


def _rows(run: Run, prepared: Prepared, split: str) -> np.ndarray:
    row = {study: i for i, study in enumerate(prepared.studies["study_id"])}
    return np.array([row[study] for study in run.splits[split]], np.int64)


def predict_rows(run: Run, store: SliceStore, rows: np.ndarray, split: str) -> pd.DataFrame:
    """Return the predictions of a run's best model for some rows of a prepared data set."""
    probabilities = study_probabilities(run.model(), store, rows, run.experiment)
    return predictions_table(store.prepared, rows, probabilities, split, run.thresholds)


def _ensemble(parts: list[Run], store: SliceStore) -> pd.DataFrame:
    rows = np.arange(len(store.prepared))
    probabilities = np.mean(
        [study_probabilities(part.model(), store, rows, part.experiment) for part in parts], axis=0
    )
    thresholds = {
        label: float(np.mean([part.thresholds[label] for part in parts]))
        for label in store.prepared.label_names
    }
    return predictions_table(store.prepared, rows, probabilities, "all", thresholds)


def predictions_table(
    prepared: Prepared,
    rows: np.ndarray,
    probabilities: np.ndarray,
    split: str,
    thresholds: Mapping[str, float],
) -> pd.DataFrame:
    """Return one row a study and label; studies that the recipe leaves out are left out.

    Args:
      prepared: the data set.
      rows: its rows, `(studies,)`.
      probabilities: `(studies, labels)`.
      split: the split's name, kept as a column.
      thresholds: by label.
    """
    studies = prepared.studies.iloc[rows]
    tables = [
        pd.DataFrame(
            {
                "study": studies["study_id"].to_numpy(),
                "patient": studies["patient_id"].to_numpy(),
                "slices": studies["slices"].to_numpy(),
                "split": split,
                "label": label,
                "truth": prepared.labels[rows, i],
                "probability": probabilities[:, i],
                "threshold": thresholds[label],
            }
        )
        for i, label in enumerate(prepared.label_names)
    ]
    table = pd.concat(tables, ignore_index=True)
    table["positive"] = table["probability"] >= table["threshold"]
    return table[table["probability"].notna()].reset_index(drop=True)


def choose_thresholds(
    prepared: Prepared, rows: np.ndarray, probabilities: np.ndarray
) -> tuple[dict[str, float], list[str]]:
    """Return each label's threshold by Youden's index on validation studies, and notes.

    A label that validation cannot judge, having one class only, gets 0.5 and a note.
    """
    scored = ~np.isnan(probabilities).any(1)
    thresholds, notes = metrics.choose_thresholds(
        prepared.labels[rows][scored], probabilities[scored], prepared.label_names
    )
    return dict(zip(prepared.label_names, map(float, thresholds), strict=True)), notes


def score(predictions: pd.DataFrame, label_names: list[str], resamples: int = 2000) -> pd.DataFrame:
    """Return the metrics of each split in a table of predictions, with intervals over patients."""
    keys = ["patient", "study"] + (["fold"] if "fold" in predictions else [])
    tables = []
    for split, part in predictions.groupby("split", sort=False):
        wide = part.pivot(index=keys, columns="label", values=["truth", "probability", "threshold"])
        table = metrics.evaluate_predictions(
            wide["truth"][label_names].to_numpy(float),
            wide["probability"][label_names].to_numpy(float),
            label_names,
            thresholds=wide["threshold"][label_names].to_numpy(float),
            patients=wide.index.get_level_values("patient").to_numpy(),
            resamples=resamples,
        )
        table.insert(0, "split", split)
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=METRICS_COLUMNS)


def point_metrics(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray | float = 0.5
) -> dict[str, float]:
    """Return every metric as its mean over the labels that have both classes, without intervals.

    Args:
      labels: `(studies, labels)`, 1, 0 or NaN where unknown.
      probabilities: `(studies, labels)`.
      thresholds: one, `(labels,)` or `(studies, labels)`.
    """
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


def fold_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a fold and label with its metrics: each fold's own figures, not pooled."""
    rows = []
    for (fold, label), part in predictions.groupby(["fold", "label"], sort=True):
        columns = (part[c].to_numpy(float)[:, None] for c in ("truth", "probability", "threshold"))
        rows.append({"fold": fold, "label": label, "studies": len(part), **point_metrics(*columns)})
    return pd.DataFrame(rows)


def fold_summary(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over the folds of every label and metric."""
    long = fold_table(predictions).melt(
        ["fold", "label", "studies"], list(metrics.METRICS), var_name="metric"
    )
    grouped = long.groupby(["label", "metric"], sort=False)["value"]
    return grouped.agg(mean="mean", sd="std", folds="count").reset_index()


def fold_text(predictions: pd.DataFrame) -> str:
    """Return the folds' own test figures for a terminal: mean and standard deviation."""
    summary = fold_summary(predictions[predictions["split"] == "test"])
    lines = [f"{'test folds':<11}{'label':<14}{'metric':<19}{'mean':>6}   sd over folds"]
    for row in summary[summary["metric"].isin(SHOWN)].itertuples():
        lines.append(f"{'':<11}{row.label:<14}{row.metric:<19}{row.mean:6.3f}   {row.sd:.3f}")
    return "\n".join(lines)


def text(table: pd.DataFrame) -> str:
    """Return a table of metrics for a terminal, what is to be said of them below it."""
    shown = table[table["metric"].isin(SHOWN)]
    notes = list(dict.fromkeys(note for note in shown["note"] if note))
    width = max(10, *shown["label"].str.len()) + 2
    head = f"{'split':<12}{'label':<{width}}{'metric':<19}{'value':>6}   {'95% interval':<17}"
    lines = [head + "studies (positive)"]
    for row in shown.itertuples():
        value = "   -  " if pd.isna(row.value) else f"{row.value:6.3f}"
        interval = "-" if pd.isna(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        count = "" if row.label == "macro" else f"{row.n:.0f} ({row.positives:.0f})"
        mark = f"  [{notes.index(row.note) + 1}]" if row.note else ""
        line = f"{row.split:<12}{row.label:<{width}}{row.metric:<19}{value}   {interval:<17}"
        lines.append((line + count + mark).rstrip())
    return "\n".join(lines + [f"[{i}] {note}" for i, note in enumerate(notes, start=1)])
