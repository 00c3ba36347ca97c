"""Takes one run or several and a prepared data set; gives their metrics by patient, compared.

The unit is the study; intervals are over patients, with all their studies. Thresholds and
temperatures come from the run: they were chosen on its validation studies. Of a cross-validated
run each study is judged by the model that has not seen it: what ranks studies is the mean over the
folds, for probabilities of two models do not rank each other's studies; what judges single calls
and probabilities is over all studies at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from medseq_tf.dataset import leakage, reuse, selection, subgroups
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import reading
from medseq_tf.errors import InputError, note
from medseq_tf.evaluation import cross_validation, metrics, operating_points
from medseq_tf.evaluation.inference import Predictions, study_predictions
from medseq_tf.evaluation.operating_points import OperatingPoint
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import METRICS_COLUMNS, Run

SHOWN = (
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
"""The metrics of the printed table, in its order."""

PIXELS = ("found", "false", "missed")
"""Columns of a segmenter's predictions: pixels of the lesion, called or not, and others called."""

ANY_POSITIVE = (
    "By patient: a patient is positive if one of the studies is, and is called positive if one of "
    "them is called so. The other figures are of studies."
)
"""What a table of calls by patient counts."""

SUBGROUP_METRICS = ("auroc", "recall", "specificity")
SPLIT_NAMES = ("validation", "test", "all")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        table: one row a split, label and metric: value, low, high (95% interval), interval (its
          method: see `medseq_tf.metric_intervals`, or `cross_validation`), n, positives, patients,
          threshold, note, question. With folds, `auroc_pooled` and `average_precision_pooled`
          besides; of a segmenter, those of `metrics.pixel_metrics`.
        predictions: one row a study and label: study, patient, slices (their number), split, label,
          truth, probability, calibrated (after temperature scaling), threshold (of `probability`),
          positive (the call), cuts of other operating points (see `with_operating_points`) and, for
          cross-validated runs, fold; of a segmenter, the lesion's pixels `found`, `false` and
          `missed`.
        calibration: see `calibration_table`.
        confusion: one row a split and label: patients by truth and call. A patient is positive, or
          called positive, if one of the studies is.
        subgroups: one row a split, subgroup, group, label and metric of `SUBGROUP_METRICS`.
        audit: what the run's splits share, if asked for.
        comparison: with other runs, if asked for.
        reads: how often the test patients have answered for figures, if they are test patients.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    calibration: pd.DataFrame
    confusion: pd.DataFrame
    subgroups: pd.DataFrame
    audit: leakage.Audit | None = None
    comparison: Comparison | None = None
    reads: reuse.Reads | None = None

    def text(self) -> str:
        """Return all of it for a terminal."""
        parts = [text(self.table), _calibration_text(self.calibration)]
        parts.append(_confusion_text(self.confusion))
        if len(self.subgroups):
            parts.append(_subgroup_text(self.subgroups))
        if self.comparison is not None:
            parts.append(self.comparison.text())
        if self.audit is not None:
            parts.append(self.audit.text())
        if self.reads is not None:
            parts.append(f"test reads: {self.reads.text()}")
        return "\n\n".join(parts)

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
        lines = []
        for name, table in tables.items():
            table = table.assign(table=name)[["table", *table.columns]]
            lines.append(table.to_json(orient="records", lines=True).rstrip())
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda v: f"{v:.3f}")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        table: as `Evaluation.table`, with the column `model` in front, over the studies that every
          model was tested on.
        differences: one row a label, metric and pair of models: `model`, `other`, `difference`, its
          95% interval, `p` (two-sided), `p_adjusted` (Holm's, for all tests of the table),
          `method`, `note`.
        notes: studies that are left out.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    notes: list[str]

    def text(self) -> str:
        """Return the comparison for a terminal."""
        width = max(5, *self.table["model"].str.len()) + 2
        labels = max(5, *self.table["label"].str.len()) + 2
        head = f"{'model':<{width}}{'label':<{labels}}{'metric':<31}{'value':>6}   95% interval"
        lines = [head]
        for row in self.table[self.table["metric"].isin(SHOWN)].itertuples():
            lines.append(
                f"{row.model:<{width}}{row.label:<{labels}}{row.metric:<31}"
                f"{_number(row.value):>6}   {_interval(row.low, row.high)}"
            )
        lines.append("")
        lines.append("differences, on the same patients")
        tests = int(self.differences["p"].notna().sum())
        for row in self.differences[self.differences["metric"].isin(SHOWN)].itertuples():
            p = "" if pd.isna(row.p) else f"   p = {row.p:.3f}"
            if p and row.p_adjusted != row.p:
                p += f", {row.p_adjusted:.3f} adjusted for {tests} tests"
            note = f"   ({row.note})" if row.note else ""
            lines.append(
                f"{row.model} - {row.other}  {row.label:<{labels}}{row.metric:<31}"
                f"{_number(row.difference, '+'):>6}   {_interval(row.low, row.high, '+')}"
                f"   {row.method}{p}{note}"
            )
        return "\n".join(lines + self.notes)

    def _repr_html_(self) -> str:
        return self.differences.to_html(index=False, float_format=lambda v: f"{v:.3f}")


# ---------------------------------------------------------------------------------- one run


def evaluate(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    split: str = "test",
    resamples: int = 2000,
    subgroups: str | os.PathLike | None = None,
    audit: bool = False,
    compare: Sequence[str | os.PathLike | Run] = (),
) -> Evaluation:
    """Predict the studies of one split and score them by patient.

    Args:
        run: a run folder. A cross-validated run is scored on each fold's own studies; with
          `split="all"` its folds' probabilities are averaged.
        data: the prepared data set of the run; for `split="all"` one that the run has never seen.
        split: `validation`, `test` or `all`.
        resamples: of the bootstrap over patients, by which intervals of folds are found.
        subgroups: a CSV file, one row a study or patient, whose other columns are subgroups; see
          `dataset.subgroups.read`. Thirds by the number of slices, and sources, are always there.
        audit: look for patients and slices that the run's splits share; with `split="all"`, for
          copies of the run's slices in the data set.
        compare: other runs, tested on the same patients.

    Raises:
        InputError: the data set does not fit the run or the split.
    """
    if resamples < 1:
        raise InputError(f"resamples = {resamples}: the bootstrap needs at least 1")
    run = Run.open(run)
    others = [Run.open(other) for other in compare]
    prepared = data if isinstance(data, Prepared) else Prepared.load(data)
    groups = _groups(prepared, subgroups)
    predictions = predict_split(run, prepared, split)
    result = evaluate_predictions(predictions, prepared.label_names, resamples, groups)
    tables = ("table", "calibration", "subgroups")
    contents = dict(
        zip(prepared.studies["study_id"], prepared.studies["content_hash"], strict=True)
    )
    marked = {
        name: selection_marked(getattr(result, name), run.experiment, predictions, contents)
        for name in tables
    }
    result = replace(result, **marked)
    looked = audit_unseen if split == "all" else audit_splits
    found = looked(run, prepared) if audit else None
    comparison = reads = None
    if split != "validation":
        for model in (*others, run):
            reads = reuse.record(prepared, predictions["study"], model.experiment)
    if others:
        tables = [predictions, *(predict_split(other, prepared, split) for other in others)]
        names = _distinct_names([run, *others])
        by_name = dict(zip(names, tables, strict=True))
        comparison = compare_tables(by_name, prepared.label_names, resamples)
        recipes = [model.experiment for model in (run, *others)]
        comparison = _selected(comparison, by_name, recipes, contents)
    return replace(result, audit=found, comparison=comparison, reads=reads)


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
    _check_data(run, prepared, split)
    parts = run.folds or [run]
    per_repeat = len(parts) // run.repeats
    store = SliceStore(prepared, parts[0].experiment)
    if split == "all":
        predictions = _ensemble(run, store)
    else:
        predictions = pd.concat(
            [
                predict_rows(part, store, _rows(part, prepared, split), split).assign(
                    **(
                        {"fold": number, "repeat": (number - 1) // per_repeat + 1}
                        if run.folds
                        else {}
                    )
                )
                for number, part in enumerate(parts, start=1)
            ],
            ignore_index=True,
        )
    if predictions.empty:
        raise InputError(f"{run.path}: the run has no {split} study; choose another --split")
    return predictions


def evaluate_predictions(
    predictions: pd.DataFrame,
    label_names: Sequence[str],
    resamples: int = 2000,
    groups: pd.DataFrame | None = None,
) -> Evaluation:
    """Return all figures of a table of predictions, which may hold several splits.

    Args:
        predictions: as `Evaluation.predictions`.
        label_names: the labels.
        resamples: of the bootstrap over patients, by which intervals of folds are found.
        groups: subgroups by study id, a column each; see `dataset.subgroups`.
    """
    label_names = list(label_names)
    return Evaluation(
        score(predictions, label_names, resamples),
        predictions,
        calibration_table(predictions),
        confusion_table(predictions),
        subgroup_table(predictions, label_names, groups, resamples),
    )


def selection_marked(
    table: pd.DataFrame,
    recipe: Experiment,
    predictions: pd.DataFrame,
    contents: Mapping[str, str],
) -> pd.DataFrame:
    """Return metrics by split, labelled where the recipe was chosen on the patients themselves.

    Args:
        table: one row a split and metric.
        recipe: of the model.
        predictions: that the metrics are of.
        contents: the content hash of each study, by id.
    """
    if not len(table) or not recipe.chosen:
        return table
    for split, part in predictions.groupby("split", sort=False):
        if words := selection.note(recipe, _identities(part, contents)):
            table = selection.without_intervals(table, table["split"] == split, words)
    return table


def _identities(predictions: pd.DataFrame, contents: Mapping[str, str]) -> pd.DataFrame:
    """Return `patient_id` and `content_hash` of the studies in a table of predictions."""
    studies = predictions.drop_duplicates("study")
    hashes = studies["study"].map(dict(contents))
    return pd.DataFrame({"patient_id": studies["patient"], "content_hash": hashes})


def _selected(
    comparison: Comparison,
    predictions: Mapping[str, pd.DataFrame],
    recipes: Sequence[Experiment],
    contents: Mapping[str, str],
) -> Comparison:
    """Return a comparison that concludes nothing of recipes chosen on the patients compared."""
    table, differences, notes = comparison.table, comparison.differences, [*comparison.notes]
    for (name, part), recipe in zip(predictions.items(), recipes, strict=True):
        if words := selection.note(recipe, _identities(part, contents)):
            notes.append(f"{name}: {words}")
            table = selection.without_intervals(table, table["model"] == name, selection.LABEL)
            rows = (differences["model"] == name) | (differences["other"] == name)
            differences = selection.without_intervals(differences, rows, selection.LABEL)
    return Comparison(table, differences, notes)


def audit_splits(run: Run, prepared: Prepared) -> leakage.Audit:
    """Return what the splits, or the folds, of a run share."""
    _check_data(run, prepared, "test")
    if not run.folds:
        return leakage.audit(prepared, run.splits)
    repeats = [
        leakage.audit(prepared, [fold.splits for fold in run.of_repeat(repeat)])
        for repeat in range(1, run.repeats + 1)
    ]
    first, rest = repeats[0], repeats[1:]
    if not rest:
        return first
    parts = [audit.parts.assign(repeat=i) for i, audit in enumerate(repeats, start=1)]
    of_any = [audit.pairs for audit in repeats if len(audit.pairs)] or [first.pairs]
    return replace(
        first,
        parts=pd.concat(parts, ignore_index=True),
        shared_patients=sorted({name for audit in repeats for name in audit.shared_patients}),
        pairs=pd.concat(of_any, ignore_index=True),
    )


def audit_unseen(run: Run, prepared: Prepared) -> leakage.Audit:
    """Return what a data set that a run has not seen shares with the run's own.

    Raises:
        InputError: the run does not say which slices it was trained on.
    """
    known = run.slices
    if known is None:
        raise InputError(
            f"{run.path}: was trained by a version that kept no hashes of slices, so nothing can "
            "be compared with them; train it again, or leave out --audit"
        )
    return leakage.audit_unseen(known, prepared)


def _check_data(run: Run, prepared: Prepared, split: str) -> None:
    trained_on = run.dataset
    if trained_on["label_names"] != prepared.label_names:
        raise InputError(
            f"{prepared.path}: has the labels {', '.join(prepared.label_names)}, the run "
            f"{run.path} predicts {', '.join(trained_on['label_names'])}"
        )
    if split == "all":
        _refuse_other_reading(run, prepared)
        _refuse_seen(run, prepared)
    elif trained_on["fingerprint"] != prepared.fingerprint or not set(run.contents) <= set(
        prepared.studies["study_id"]
    ):
        raise InputError(
            f"{prepared.path}: is not the data set of the run {run.path} (another fingerprint), so "
            f"it has no {split} split; --split all evaluates the whole of it"
        )


def _refuse_other_reading(run: Run, prepared: Prepared) -> None:
    """Raise an InputError for data that were read otherwise than the run's own."""
    trained, given = reading(run.dataset), reading(prepared.info)
    differ = [
        name
        for name in trained
        if None not in (trained[name], given[name]) and trained[name] != given[name]
    ]
    words = ", ".join(f"{name} {given[name]} instead of {trained[name]}" for name in differ)
    says = f"{prepared.path}: is prepared otherwise than the data of the run {run.path}: {words}"
    if {"modality", "unit", "axis"} & set(differ):
        raise InputError(f"{says}; prepare it again as those were")
    if differ:
        note(says)


def _refuse_seen(run: Run, prepared: Prepared) -> None:
    """Raise an InputError if the run knows a study, a slice or a patient of a data set."""
    only = "--split all is for studies that it has never seen"
    contents = prepared.studies["content_hash"]
    seen = prepared.studies.loc[contents.isin(set(run.contents.values())), "study_id"]
    if len(seen):
        raise InputError(
            f"{prepared.path}: {len(seen)} of its {len(prepared)} studies are of the data set "
            f"that the run was trained on (such as {seen.iloc[0]}); {only}"
        )
    known = run.slices
    if known is None:
        note(
            f"{run.path}: was trained by a version that kept no hashes of slices; whether single "
            "slices of its studies are among these was not checked, whole studies are not"
        )
        return
    shared = leakage.seen_before(known, prepared)
    if len(shared):
        first = shared.iloc[0]
        count = int((shared["study"] == first["study"]).sum())
        raise InputError(
            f"{prepared.path}: {shared['study'].nunique()} of its {len(prepared)} studies hold "
            f"slices of the data set that the run was trained on (study {first['study']} of "
            f"patient {first['patient']} has {count}, such as slice {first['slice']}, which is "
            f"slice {first['other_slice']} of study {first['other_study']}, patient "
            f"{first['other_patient']}); {only}"
        )
    patients = sorted(set(known["patient"]) & set(prepared.studies["patient_id"]))
    if patients:
        raise InputError(
            f"{prepared.path}: {len(patients)} of its patients have the id of a patient whom the "
            f"run was trained on (such as {patients[0]}); {only}; where they are others, prepare "
            "with another MEDSEQ_TF_SALT"
        )


def _rows(run: Run, prepared: Prepared, split: str) -> np.ndarray:
    row = {study: i for i, study in enumerate(prepared.studies["study_id"])}
    return np.array([row[study] for study in run.splits[split]], np.int64)


def predict_rows(run: Run, store: SliceStore, rows: np.ndarray, split: str) -> pd.DataFrame:
    """Return the predictions of a run's best model for some rows of a prepared data set."""
    answers = study_predictions(run.model(), store, rows, run.experiment)
    table = predictions_table(store.prepared, rows, answers, split, run.thresholds)
    return with_cuts(calibrated(table, run.temperatures), stored_cuts(run))


def stored_cuts(run: Run) -> dict[str, dict[str, float]]:
    """Return a run's cuts of `CUTS` by label; of an old run from its validation predictions."""
    return run.cuts or choose_cuts(run.predictions)


def _ensemble(run: Run, store: SliceStore) -> pd.DataFrame:
    """Return the mean of a run's models, at the run's own thresholds, as `export` writes it."""
    rows, parts = np.arange(len(store.prepared)), run.folds or [run]
    answers = [study_predictions(part.model(), store, rows, part.experiment) for part in parts]
    if len(answers) > 1:  # there is no mask that the folds have in common
        answers = [Predictions(np.mean([part.probabilities for part in answers], axis=0))]
    table = predictions_table(store.prepared, rows, answers[0], "all", run.thresholds)
    cuts = {} if run.folds else stored_cuts(run)
    return with_cuts(calibrated(table, run.temperatures), cuts)


def predictions_table(
    prepared: Prepared,
    rows: np.ndarray,
    answers: Predictions,
    split: str,
    thresholds: Mapping[str, float],
) -> pd.DataFrame:
    """Return one row a study and label; studies that the recipe leaves out are left out.

    Args:
        prepared: the data set.
        rows: its rows, `(studies,)`.
        answers: the model's.
        split: the split's name, kept as a column.
        thresholds: by label.
    """
    studies = prepared.studies.iloc[rows]
    pixels = {}
    if answers.pixels is not None:
        pixels = dict(zip(PIXELS, answers.pixels.T, strict=True))
    tables = [
        pd.DataFrame(
            {
                "study": studies["study_id"].to_numpy(),
                "patient": studies["patient_id"].to_numpy(),
                "slices": studies["slices"].to_numpy(),
                "split": split,
                "label": label,
                "truth": prepared.labels[rows, i],
                "probability": answers.probabilities[:, i],
                "threshold": thresholds[label],
                **pixels,
            }
        )
        for i, label in enumerate(prepared.label_names)
    ]
    table = pd.concat(tables, ignore_index=True)
    table["positive"] = table["probability"] >= table["threshold"]
    return table[table["probability"].notna()].reset_index(drop=True)


def choose_operating_points(
    prepared: Prepared, rows: np.ndarray, probabilities: np.ndarray
) -> dict[str, OperatingPoint]:
    """Return each label's threshold by Youden's index on validation studies.

    A label that validation cannot judge, having one class only, gets 0.5 and a note.
    """
    scored = ~np.isnan(probabilities).any(1)
    patients = prepared.studies["patient_id"].to_numpy()[rows][scored]
    values = (prepared.labels[rows][scored], probabilities[scored])
    return operating_points.of_validation(*values, patients, prepared.label_names)


CUTS = {
    "sensitivity_at_90_specificity": "specificity>=0.9",
    "specificity_at_90_sensitivity": "sensitivity>=0.9",
}
"""The metrics of an operating point beside the threshold, and the rule that chooses it."""


def choose_cuts(predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return, by label, the cut of each metric of `CUTS`, chosen on the validation studies.

    A label that validation cannot judge, having one class only, has none.
    """
    cuts: dict[str, dict[str, float]] = {}
    for label, part in predictions.groupby("label", sort=False):
        part = part[(part["split"] == "validation") & part["truth"].notna()]
        truth, probability = part["truth"].to_numpy(float), part["probability"].to_numpy(float)
        if len(np.unique(truth)) == 2:
            cuts[label] = {
                name: metrics.choose_threshold(truth, probability, rule)
                for name, rule in CUTS.items()
            }
    return cuts


def with_cuts(predictions: pd.DataFrame, cuts: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return a table of predictions with the cuts of `choose_cuts`, a column each.

    Args:
        predictions: as `Evaluation.predictions`.
        cuts: by label and metric; what is not there is not known.
    """
    if not any(cuts.values()):
        return predictions
    columns = {
        f"cut_{name}": [cuts.get(label, {}).get(name, np.nan) for label in predictions["label"]]
        for name in CUTS
    }
    return predictions.assign(**columns)


def fit_temperatures(predictions: pd.DataFrame) -> tuple[dict[str, float], list[str]]:
    """Return each label's temperature, fitted on the validation studies, and notes.

    It is 1, with a note, where validation has one class only, and 1 where validation does not speak
    against the probabilities as they are; see `metrics.fit_temperature`.
    """
    temperatures, notes = {}, []
    for label, part in predictions.groupby("label", sort=False):
        part = part[(part["split"] == "validation") & part["truth"].notna()]
        truth, probability = part["truth"].to_numpy(float), part["probability"].to_numpy(float)
        if len(np.unique(truth)) < 2:
            temperatures[label] = 1.0
            reason = "validation does not have both classes"
            notes.append(f"{label}: {reason}, so probabilities are not scaled")
        else:
            temperatures[label] = metrics.fit_temperature(truth, metrics.logits(probability))
    return temperatures, notes


def calibrated(predictions: pd.DataFrame, temperatures: Mapping[str, float]) -> pd.DataFrame:
    """Return a table of predictions with the column `calibrated`: probabilities after scaling.

    Temperature scaling is increasing, so that it changes no call.
    """
    scaled = pd.Series(np.nan, predictions.index)
    for label, part in predictions.groupby("label", sort=False):
        scaled[part.index] = metrics.scale(part["probability"], temperatures.get(label, 1.0))
    at = predictions.columns.get_loc("probability") + 1
    columns = list(predictions.drop(columns="calibrated", errors="ignore").columns)
    columns.insert(at, "calibrated")
    return predictions.assign(calibrated=scaled)[columns]


def score(
    predictions: pd.DataFrame, label_names: Sequence[str], resamples: int = 2000
) -> pd.DataFrame:
    """Return the metrics of each split in a table of predictions, with intervals over patients."""
    label_names, tables = list(label_names), []
    if "fold" not in predictions and not _cut_columns(predictions):
        predictions = with_cuts(predictions, choose_cuts(predictions))
    for split, part in predictions.groupby("split", sort=False):
        if "fold" in part:
            of_folds = cross_validation.held_out(part, label_names)
            table = cross_validation.evaluate_folds(of_folds, resamples)
            table["question"] = cross_validation.RECIPE
        else:
            wide = _wide(part)
            table = metrics.evaluate_predictions(
                wide["truth"][label_names].to_numpy(float),
                wide["probability"][label_names].to_numpy(float),
                label_names,
                thresholds=wide["threshold"][label_names].to_numpy(float),
                patients=wide.index.get_level_values("patient").to_numpy(),
                resamples=resamples,
                cuts={} if split == "validation" else _cuts(wide, label_names),
            )
            table["question"] = cross_validation.FITTED
        if set(PIXELS) <= set(part):
            pixels = part.groupby(["patient", "study"], as_index=False)[list(PIXELS)].mean()
            of_pixels = metrics.evaluate_pixels(
                *(pixels[name] for name in PIXELS), part["label"].iloc[0], pixels["patient"]
            ).assign(question=cross_validation.FITTED)
            table = pd.concat([table, of_pixels], ignore_index=True)
        table.insert(0, "split", split)
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=METRICS_COLUMNS)
    return selection.labelled(pd.concat(tables, ignore_index=True))


def _cut_columns(predictions: pd.DataFrame) -> list[str]:
    return [f"cut_{name}" for name in CUTS if f"cut_{name}" in predictions]


def _cuts(wide: pd.DataFrame, label_names: list[str]) -> dict[str, np.ndarray]:
    """Return the cuts of a table of `_wide`, `(studies, labels)`, by metric."""
    return {
        name: wide[f"cut_{name}"].reindex(columns=label_names).to_numpy(float)
        for name in CUTS
        if f"cut_{name}" in wide.columns.get_level_values(0)
    }


def _wide(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a study; columns truth, probability and threshold by label."""
    values = ["truth", "probability", "threshold", *_cut_columns(predictions)]
    return predictions.pivot(index=["patient", "study"], columns="label", values=values)


CALIBRATION = {
    "observed_expected": metrics.observed_expected,
    "calibration_intercept": metrics.calibration_intercept,
    "calibration_slope": metrics.calibration_slope,
    "brier": metrics.brier_interval,
    "expected_calibration_error": None,
}
"""The rows of `calibration_table`, in its order."""


PATIENTS_ALONE = "of folds: the interval is over patients; what training varies by is not counted"
"""Of calibration."""


def calibration_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return how well probabilities are calibrated before and after temperature scaling.

    O/E, the share of positives over the mean probability (1 is right); the intercept, what is to be
    added to the logits (0 is right); the slope, what they are to be multiplied by (1 is right); the
    Brier score; and the expected calibration error, which right probabilities have too: its `null`
    columns say what they would have by chance, and there is no interval of it.

    Returns:
        One row a split, label and metric: `before`, `before_low`, `before_high`, `after`,
        `after_low`, `after_high` (95%, over patients), `before_null`, `before_null_high`,
        `after_null`, `after_null_high` (median and 95th percentile of right probabilities), `note`.
    """
    rows = []
    for (split, label), part in predictions.groupby(["split", "label"], sort=False):
        part = part[part["truth"].notna()]
        truth, patients = part["truth"].to_numpy(float), part["patient"].to_numpy()
        for name, measure in CALIBRATION.items():
            row = {"split": split, "label": label, "metric": name}
            of_folds = measure is not None and "fold" in part and part["fold"].nunique() > 1
            notes = [PATIENTS_ALONE] if of_folds else []
            for when, column in (("before", "probability"), ("after", "calibrated")):
                probability = part[column].to_numpy(float)
                null = (np.nan, np.nan)
                if measure is None:
                    value = metrics.expected_calibration_error(truth, probability)
                    found = metrics.Estimate(float(value))
                    studies = part["study"].to_numpy()
                    null = metrics.null_calibration_error(probability, studies=studies)
                else:
                    found = measure(truth, probability, patients)
                row |= {when: found.value, f"{when}_low": found.low, f"{when}_high": found.high}
                row |= {f"{when}_null": null[0], f"{when}_null_high": null[1]}
                notes.append(found.note)
            rows.append({**row, "note": "; ".join(filter(None, dict.fromkeys(notes)))})
    return selection.labelled(pd.DataFrame(rows))


def confusion_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return patients by truth and call, one row a split and label.

    A patient is positive, or called positive, if one of the studies is. Over repeats of folds the
    counts are means.
    """
    rows = []
    known = predictions[predictions["truth"].notna()]
    if "repeat" in known and known["repeat"].nunique() > 1:
        keys = ["split", "label"]
        of_repeats = [confusion_table(part) for _, part in known.groupby("repeat")]
        mean = pd.concat([part.drop(columns="repeat", errors="ignore") for part in of_repeats])
        means = mean.groupby(keys, sort=False).mean().round(1).reset_index()
        return means.astype({"patients": int})
    for (split, label), part in known.groupby(["split", "label"], sort=False):
        patients = part.groupby("patient").agg(truth=("truth", "max"), called=("positive", "any"))
        positive, called = patients["truth"] == 1, patients["called"]
        rows.append(
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
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------- subgroups


def _groups(prepared: Prepared, csv: str | os.PathLike | None) -> pd.DataFrame:
    own = subgroups.sources(prepared)
    if csv is None:
        return own
    given = subgroups.read(csv, prepared)
    return pd.concat([own.drop(columns=given.columns, errors="ignore"), given], axis=1)


def subgroup_table(
    predictions: pd.DataFrame,
    label_names: Sequence[str],
    groups: pd.DataFrame | None = None,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Return the metrics of `SUBGROUP_METRICS` in parts of the studies.

    Args:
        predictions: as `Evaluation.predictions`.
        label_names: the labels.
        groups: subgroups by study id, a column each; thirds by the number of slices come first.
        resamples: of the bootstrap over patients, by which intervals of folds are found.
    """
    counts = predictions.drop_duplicates("study").set_index("study")["slices"]
    columns = {"slices": subgroups.thirds(counts)}
    for name in [] if groups is None else groups.columns:
        columns[str(name)] = groups[name].reindex(counts.index)
    tables = []
    for subgroup, column in columns.items():
        groups_of = column.dropna().unique()
        for group in getattr(groups_of, "sort_values", groups_of.tolist)():
            members = predictions[predictions["study"].isin(column.index[column == group])]
            table = score(members, label_names, resamples)
            table = table[table["metric"].isin(SUBGROUP_METRICS) & (table["label"] != "macro")]
            tables.append(table.assign(subgroup=subgroup, group=str(group)))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    front = ["split", "subgroup", "group"]
    table = table[front + [name for name in table.columns if name not in front]]
    order = table.groupby(["split", "subgroup"], sort=False).ngroup()
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


# ------------------------------------------------------------------------------ several runs


def compare(
    runs: Sequence[str | os.PathLike | Run],
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
    runs = [Run.open(run) for run in runs]
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run given: a comparison needs at least two")
    labels = runs[0].dataset["label_names"]
    for run in runs[1:]:
        if run.dataset["label_names"] != labels:
            raise InputError(
                f"{run.path}: predicts {', '.join(run.dataset['label_names'])}, the run "
                f"{runs[0].path} predicts {', '.join(labels)}"
            )
    if data is None:
        if split == "all":
            raise InputError("split = 'all' needs data that no run has seen")
        tables = [_stored(run, split) for run in runs]
    else:
        prepared = data if isinstance(data, Prepared) else Prepared.load(data)
        tables = [predict_split(run, prepared, split) for run in runs]
    by_name = dict(zip(_distinct_names(runs), tables, strict=True))
    contents = runs[0].contents
    if data is not None:
        studies = prepared.studies
        contents = dict(zip(studies["study_id"], studies["content_hash"], strict=True))
        if split != "validation":
            for run, table in zip(runs, tables, strict=True):
                reuse.record(prepared, table["study"], run.experiment)
    comparison = compare_tables(by_name, labels, resamples)
    return _selected(comparison, by_name, [run.experiment for run in runs], contents)


def _stored(run: Run, split: str) -> pd.DataFrame:
    """Return the predictions of one split that a run holds, with its cuts."""
    predictions = run.predictions
    part = predictions[predictions["split"] == split]
    return part if run.folds else with_cuts(part, stored_cuts(run))


def _distinct_names(runs: Sequence[Run]) -> list[str]:
    """The runs' names, or their paths where two have the same name."""
    paths = [run.path.resolve() for run in runs]
    if repeated := [run.path for run in runs if paths.count(run.path.resolve()) > 1]:
        raise InputError(f"{repeated[0]}: a run is compared with other runs, not with itself")
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def compare_tables(
    predictions: Mapping[str, pd.DataFrame], label_names: Sequence[str], resamples: int = 2000
) -> Comparison:
    """Compare tables of predictions, by the models' names, on the studies in all of them.

    Raises:
        InputError: no study in common, or two tables that disagree on its label.
    """
    label_names = list(label_names)
    shared = set.intersection(*(set(table["study"]) for table in predictions.values()))
    if not shared:
        raise InputError(
            f"{', '.join(predictions)}: no study was tested by all of them; train them on the same "
            "split (split.seed), or with --folds"
        )
    notes = [
        f"{name}: {left_out} of its studies were not tested by all models and are left out"
        for name, table in predictions.items()
        if (left_out := table["study"].nunique() - len(shared))
    ]
    parts = {name: table[table["study"].isin(shared)] for name, table in predictions.items()}
    of_studies = ["study", "label", "patient", "truth"]
    first = None
    for name, part in parts.items():
        facts = part[of_studies].drop_duplicates().sort_values(["study", "label"])
        first = facts.reset_index(drop=True) if first is None else first
        if not facts.reset_index(drop=True).equals(first):
            raise InputError(f"{name}: its studies have other labels or patients than the others'")
    tables = [
        score(part.assign(split="shared"), label_names, resamples)
        .drop(columns="split")
        .assign(model=name)
        for name, part in parts.items()
    ]
    differences = [
        _difference(parts[a], parts[b], label_names, resamples).assign(model=a, other=b)
        for a, b in combinations(parts, 2)
    ]
    table, differences = (pd.concat(rows, ignore_index=True) for rows in (tables, differences))
    differences = _adjusted(differences)
    if all((rows["split"] == "validation").any() for rows in predictions.values()):
        notes.append(selection.VALIDATION)
        table, differences = (
            selection.without_intervals(rows, np.ones(len(rows), bool), selection.LABEL)
            for rows in (table, differences)
        )
    return Comparison(
        _in_front(table, ["model"]),
        _in_front(differences, ["label", "metric", "model", "other"]),
        notes,
    )


def _difference(
    a: pd.DataFrame, b: pd.DataFrame, label_names: list[str], resamples: int
) -> pd.DataFrame:
    """Return the differences of two models on the same studies."""
    if "fold" in a or "fold" in b:
        both = [cross_validation.held_out(part, label_names) for part in (a, b)]
        table = _described(cross_validation.compare_folds(*both, resamples), a)
        return table.assign(question=cross_validation.RECIPE)
    wide = [_wide(part) for part in (a, b)]
    arrays = {
        name: tuple(part[name][label_names].to_numpy(float) for part in wide)
        for name in ("truth", "probability", "threshold")
    }
    table = metrics.compare_predictions(
        arrays["truth"][0],
        arrays["probability"],
        label_names,
        arrays["threshold"],
        wide[0].index.get_level_values("patient").to_numpy(),
        cuts=tuple(_cuts(part, label_names) for part in wide),
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


def _in_front(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    return table[names + [name for name in table.columns if name not in names]]


# ---------------------------------------------------------------------------------- folds


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
    lines = [f"{'test folds':<11}{'label':<14}{'metric':<31}{'mean':>6}   sd over folds"]
    for row in summary[summary["metric"].isin(SHOWN)].itertuples():
        lines.append(f"{'':<11}{row.label:<14}{row.metric:<31}{row.mean:6.3f}   {row.sd:.3f}")
    return "\n".join(lines)


# --------------------------------------------------------------------------- for a terminal


def text(table: pd.DataFrame) -> str:
    """Return a table of metrics for a terminal, what is to be said of them below it."""
    shown = table[table["metric"].isin(SHOWN)]
    notes = list(dict.fromkeys(note for note in shown["note"] if note))
    width = max(10, *shown["label"].str.len()) + 2
    head = f"{'split':<12}{'label':<{width}}{'metric':<31}{'value':>6}   {'95% interval':<17}"
    lines = [head + "studies (positive)"]
    for row in shown.itertuples():
        count = "" if row.label == "macro" else f"{row.n:.0f} ({row.positives:.0f})"
        mark = f"  [{notes.index(row.note) + 1}]" if row.note else ""
        line = (
            f"{row.split:<12}{row.label:<{width}}{row.metric:<31}{_number(row.value):>6}   "
            f"{_interval(row.low, row.high):<17}"
        )
        lines.append((line + count + mark).rstrip())
    lines += [f"[{i}] {note}" for i, note in enumerate(notes, start=1)]
    having = shown[shown["low"].notna()]
    questions = having["question"].dropna().unique() if "question" in having else []
    lines += [f"intervals of: {question}" for question in questions]
    return "\n".join(lines + _several(shown))


def _several(table: pd.DataFrame) -> list[str]:
    """Return what is to be said of a table of many intervals."""
    return list(filter(None, [metrics.multiplicity(int(table["low"].notna().sum()))]))


def _calibration_text(calibration: pd.DataFrame) -> str:
    width = max(10, *calibration["label"].str.len()) + 2
    rows = calibration.to_dict(orient="records")
    before, after = (
        [_number(row[when]) + calibration_range(row, when) for row in rows]
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
    lines.append(
        "right: O/E 1, intercept 0, slope 1 (below: too extreme); 95% intervals in brackets"
    )
    return "\n".join(lines)


def calibration_range(row: Mapping[str, float], when: str) -> str:
    """Return the interval of a row of `calibration_table`, or what right probabilities have."""
    low, high = row[f"{when}_low"], row[f"{when}_high"]
    if not pd.isna(low):
        return f" ({_bound(low)} to {_bound(high)})"
    null = row[f"{when}_null"]
    return "" if pd.isna(null) else f" (if right {null:.3f}, to {row[f'{when}_null_high']:.3f})"


def _bound(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "no bound"


def _confusion_text(confusion: pd.DataFrame) -> str:
    lines = [ANY_POSITIVE]
    for row in confusion.itertuples():
        lines += [
            f"{row.label}, {row.patients} {row.split} patients{'called positive':>22}   negative"
            + (f"   ({selection.LABEL})" if row.split == "validation" else ""),
            f"    {'positive':<30}{row.true_positives:>15g}{row.false_negatives:>11g}",
            f"    {'negative':<30}{row.false_positives:>15g}{row.true_negatives:>11g}",
        ]
    return "\n".join(lines)


def _subgroup_text(table: pd.DataFrame) -> str:
    width = max(12, *(table["subgroup"] + " " + table["group"]).str.len()) + 2
    lines = [f"{'subgroup':<{width}}{'label':<14}{'metric':<14}{'value':>6}   95% interval"]
    for row in table.itertuples():
        name = f"{row.subgroup} {row.group}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(
            f"{name:<{width}}{row.label:<14}{row.metric:<14}{_number(row.value):>6}   "
            f"{_interval(row.low, row.high):<17}{row.n} ({row.positives}){note}"
        )
    return "\n".join(lines + _several(table))


def _number(value: float | None, sign: str = "") -> str:
    return "-" if pd.isna(value) else f"{value:{sign}.3f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "-" if pd.isna(low) else f"{low:{sign}.3f} to {high:{sign}.3f}"
