"""The command `evaluate`: a run's metrics on a prepared data set, by patient.

Thresholds and temperatures come from the run: they were chosen on its validation studies. See
`medseq_tf.evaluation.scoring` for what is measured, and over what.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from medseq_tf.dataset import holdout_reuse, leakage, sites
from medseq_tf.dataset import subgroups as subgroup_columns
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import metrics, results_text
from medseq_tf.evaluation.comparison import Comparison, compare_runs, name_runs
from medseq_tf.evaluation.predictions import predict_split
from medseq_tf.evaluation.scoring import (
    calibration_table,
    confusion_table,
    mark_selection,
    score,
    subgroup_table,
)
from medseq_tf.evaluation.unseen_data import audit_splits, audit_unseen, with_labels_of
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run, RunOrPath


@dataclass(frozen=True)
class Evaluation:
    """The scores of a table of predictions.

    Attributes:
        table: one row a split, label and metric: value, low, high (95% interval), interval (its
            method: see `medseq_tf.evaluation.metrics`, or `cross_validation`), n, positives,
            patients, threshold, note, question. With folds, `auroc_pooled` and
            `average_precision_pooled` besides; of a segmenter, those of `metrics.pixel_metrics`.
        predictions: one row a study and label: study, patient, slices (their number), split, label,
            truth, probability, calibrated (after temperature scaling), threshold (of
            `probability`; nan of classes), positive (the call), cuts of other operating points (see
            `predictions.with_cuts`) and, for cross-validated runs, fold; of a segmenter, the
            lesion's pixels `found`, `false` and `missed`.
        calibration: see `scoring.calibration_table`.
        confusion: see `scoring.confusion_table`.
        subgroups: one row a split, subgroup, group, label and metric.
        classes: what is told apart; None of yes/no labels.
        audit: what the run's splits share, if asked for.
        comparison: with other runs, if asked for.
        reads: how often the test patients have been read for figures, if they are test patients.
        notes: how an automatic run was chosen, and where a site of the data set tells a label or a
            class.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    calibration: pd.DataFrame
    confusion: pd.DataFrame
    subgroups: pd.DataFrame
    classes: Classes | None = None
    audit: leakage.Audit | None = None
    comparison: Comparison | None = None
    reads: holdout_reuse.Reads | None = None
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return all of it for a terminal."""
        paragraphs = [
            results_text.metrics_text(self.table, self.classes),
            results_text.calibration_text(self.calibration, self.classes),
            results_text.confusion_text(self.confusion, self.classes),
        ]
        if len(self.subgroups):
            paragraphs.append(results_text.subgroup_text(self.subgroups, self.classes))
        if self.comparison is not None:
            paragraphs.append(self.comparison.text())
        if self.audit is not None:
            paragraphs.append(self.audit.text())
        if self.reads is not None:
            paragraphs.append(f"test reads: {self.reads.text()}")
        if self.notes:
            paragraphs.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(paragraphs)

    def json_lines(self) -> str:
        """Return all of it as JSON, one line a row; `table` says of which table."""
        tables = {
            "metric": self.table,
            "calibration": self.calibration,
            "confusion": self.confusion,
            "subgroup": self.subgroups,
        }
        if self.comparison is not None:
            tables |= {"model": self.comparison.table, "difference": self.comparison.differences}
        if self.audit is not None:
            tables |= {"part": self.audit.parts, "shared": self.audit.pairs}
            patients = pd.DataFrame({"patient": self.audit.shared_patients})
            tables |= {"shared_patient": patients}
        if self.reads is not None:
            tables["test_reads"] = pd.DataFrame([asdict(self.reads)])
        tables["note"] = pd.DataFrame({"note": list(self.notes)})
        lines = []
        for name, table in tables.items():
            table = table.assign(table=name)[["table", *table.columns]]
            lines.append(table.to_json(orient="records", lines=True).rstrip())
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda v: f"{v:.3f}")


def evaluate(
    run: RunOrPath,
    data: str | os.PathLike | Prepared,
    split: str = "test",
    resamples: int = 2000,
    subgroups: str | os.PathLike | None = None,
    audit: bool = False,
    compare: Sequence[RunOrPath] = (),
    costs: str | os.PathLike | None = None,
) -> Evaluation:
    """Predict the studies of one split and score them by patient.

    Args:
        run: a run folder. A cross-validated run is scored on each fold's own studies; with
            `split="all"` its folds' probabilities are averaged. Of an automatic run the predictions
            that it keeps are scored, which are those of the whole procedure; with `split="all"` its
            members' probabilities are averaged by their weights.
        data: the prepared data set of the run; for `split="all"` one that the run has never seen.
        split: `validation`, `test` or `all`.
        resamples: of the bootstrap over patients, by which intervals of folds are found.
        subgroups: a CSV file, one row a study or patient, whose other columns are subgroups; see
            `medseq_tf.dataset.subgroups.read`. Thirds by the number of slices, sites and sources
            are always there.
        audit: look for patients and slices that the run's splits share; with `split="all"`, for
            copies of the run's slices in the data set.
        compare: other runs, tested on the same patients.
        costs: a CSV file of what a wrong call of a class costs, one row a true class and one column
            a called one; the call is then the one of least expected cost, not the most probable
            class. See `metrics.read_costs`.

    Raises:
        InputError: the data set does not fit the run or the split, or the costs the classes.
    """
    if resamples < 1:
        raise InputError(f"resamples = {resamples}: the bootstrap needs at least 1")
    model = Run.open(run)
    models = name_runs([model, *map(Run.open, compare)])
    prepared = with_labels_of(model, Prepared.open(data))
    groups = _groups(prepared, subgroups)
    costs_of = read_costs(model, costs)
    predictions = predict_split(model, prepared, split, costs_of)
    evaluation = evaluate_predictions(
        predictions, prepared.label_names, resamples, groups, model.classes, costs_of
    )
    contents = prepared.contents
    marked = {
        name: mark_selection(getattr(evaluation, name), model.experiment, predictions, contents)
        for name in ("table", "calibration", "subgroups")
    }
    audited = comparison = reads = None
    if audit:
        audited = (audit_unseen if split == "all" else audit_splits)(model, prepared)
    others = list(models.values())[1:]
    if others:
        of_others = (
            predict_split(other, prepared, split, read_costs(other, costs)) for other in others
        )
        tables = [predictions, *of_others]
        comparison = compare_runs(models, tables, contents, resamples, costs_of)
    if split != "validation":
        for read_by in (*others, model):  # what was refused above has read nobody
            reads = holdout_reuse.record(prepared, predictions["study"], read_by.experiment)
    return replace(
        evaluation,
        **marked,
        audit=audited,
        comparison=comparison,
        reads=reads,
        notes=[*filter(None, [model.sentence]), *sites.site_confounding(prepared)],
    )


def evaluate_predictions(
    predictions: pd.DataFrame,
    label_names: Sequence[str],
    resamples: int = 2000,
    groups: pd.DataFrame | None = None,
    classes: Classes | None = None,
    costs: np.ndarray | None = None,
) -> Evaluation:
    """Return all scores of a table as `Evaluation.predictions`, which may hold several splits.

    `groups` are subgroups by study id, a column each; see `medseq_tf.dataset.subgroups`. `classes`
    are what the labels are, if they exclude each other, and `costs` (true, called) theirs.
    """
    label_names = list(label_names)
    return Evaluation(
        score(predictions, label_names, resamples, classes, costs),
        predictions,
        calibration_table(predictions, classes),
        confusion_table(predictions, classes),
        subgroup_table(predictions, label_names, groups, resamples, classes),
        classes,
    )


def read_costs(run: Run, path: str | os.PathLike | None) -> np.ndarray | None:
    """Return what calls of a run's classes cost, (true, called); None without a file.

    Raises:
        InputError: the run predicts yes/no labels, or see `metrics.read_costs`.
    """
    if path is None:
        return None
    if run.classes is None:
        raise InputError(f"{run.path}: predicts yes/no labels; costs are of calls of classes")
    return metrics.read_costs(path, run.classes.names)


def _groups(prepared: Prepared, csv: str | os.PathLike | None) -> pd.DataFrame:
    """Return the studies' sites and sources and a file's columns of subgroups, by study id."""
    standing = subgroup_columns.standing(prepared)
    if csv is None:
        return standing
    named = subgroup_columns.read(csv, prepared)
    return pd.concat([standing.drop(columns=named.columns, errors="ignore"), named], axis=1)
