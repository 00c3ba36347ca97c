"""The threshold of each label, and on what it stands.

Of a single split the threshold is chosen on validation, and the test studies measure it. Of a
cross-validated run the mean of all models is what is exported, and no patient is unseen by all of
them. Its threshold is chosen on every patient's held-out predictions (their mean over the repeats),
and measured with each fold left out of the choice in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.metrics.interval_text import with_interval
from medseq_tf.evaluation.metrics.point_metrics import Array, class_counts

FEW = 25
"""Patients of a class; a threshold that stands on fewer has a note."""

STANDS_ON = "stands on"
OTHERS_GIVE = f"below {FEW} of a class, other patients may give quite another one"

DEFAULT_RULE = "youden"

Rate = tuple[float, float, float]
"""A rate, and the bounds of its 95% interval."""

VALIDATION = "the validation patients"
HELD_OUT = "the held-out predictions of all patients"


@dataclass(frozen=True)
class OperatingPoint:
    """A label's threshold, who chose it, and what it was measured to do.

    Attributes:
        label: its name.
        threshold: of the probability: positive from there on.
        chosen_on: in words; empty where nothing could choose, and the threshold is 0.5.
        positives: number of patients with a positive study behind it.
        negatives: number of patients with a negative study behind it.
        models: how many models' mean was measured at a time, where folds chose it; 0: what an
            automatic choice predicted, fold by fold.
        members: how many models' mean the run exports; 0: nothing.
        sensitivity: value, low, high (95%, nan where the recipe was chosen on these patients), with
            each fold left out of the choice; None of a single split, which its test studies
            measure.
        specificity: the same.
        note: why the threshold is 0.5.
    """

    label: str
    threshold: float = 0.5
    chosen_on: str = ""
    positives: int = 0
    negatives: int = 0
    models: int = 1
    members: int = 1
    sensitivity: Rate | None = None
    specificity: Rate | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What `metrics.json` keeps of it."""
        return asdict(self)


def of_nothing(labels: Sequence[str]) -> dict[str, OperatingPoint]:
    """Thresholds of 0.5, for want of validation."""
    note = "no validation studies: the thresholds are 0.5"
    return {label: OperatingPoint(label, note=note) for label in labels}


def of_validation(
    truth: Array,
    probabilities: Array,
    patients: Array,
    labels: Sequence[str],
    rule: str = DEFAULT_RULE,
) -> dict[str, OperatingPoint]:
    """Choose thresholds on validation studies by a recipe's rule; 0.5 for a label of one class.

    Truth and probabilities are (studies, labels), patients (studies,).
    """
    points = {}
    for number, label in enumerate(labels):
        threshold, note = _choose(truth[:, number], probabilities[:, number], label, rule)
        points[label] = OperatingPoint(
            label,
            threshold,
            "" if note else _by(rule, VALIDATION),
            *_patients(truth[:, number], patients),
            note=note,
        )
    return points


def _by(rule: str, chosen_on: str) -> str:
    """On whom a threshold is chosen, and by which rule, if not by the usual one."""
    return chosen_on if rule == DEFAULT_RULE else f"{chosen_on} by {rule}"


def _choose(truth: Array, probabilities: Array, label: str, rule: str) -> tuple[float, str]:
    """Return a label's threshold, and why it is 0.5 where it has one class only."""
    truth = np.asarray(truth, float)
    if (truth == 0).any() and (truth == 1).any():
        return metrics.choose_threshold(truth, probabilities, rule), ""
    return 0.5, f"{label}: {class_counts(truth)}, so the threshold is 0.5"


def _patients(truth: Array, patients: Array) -> tuple[int, int]:
    """How many patients have a positive, and how many a negative study."""
    positive, negative = (len(np.unique(np.asarray(patients)[truth == kind])) for kind in (1, 0))
    return positive, negative


def unseen(predictions: pd.DataFrame) -> pd.DataFrame:
    """Each study's mean over the repeats of what models said that had not seen it.

    Args:
        predictions: of the test studies of all folds: `study`, `patient`, `label`, `truth`,
            `probability`, `fold` and `repeat`.

    Returns:
        One row a study and label; its fold is that of the first repeat.
    """
    ordered = predictions.sort_values("repeat", kind="stable")
    columns = {name: (name, "first") for name in ("patient", "truth", "fold")}
    grouped = ordered.groupby(["study", "label"], sort=True)
    # The first of a group passes over missing values, so that an unknown truth stays one.
    return grouped.agg(**columns, probability=("probability", "mean")).reset_index()


def of_folds(
    predictions: pd.DataFrame,
    labels: Sequence[str],
    rule: str = DEFAULT_RULE,
    exported: int | None = None,
) -> dict[str, OperatingPoint]:
    """Choose thresholds on all patients, and measure them with each fold left out of the choice.

    The predictions are as for `unseen`, the rule is `fit.threshold` of the recipe, and `exported`
    how many models' mean the run exports, if it is not one a fold.
    """
    table = unseen(predictions).assign(threshold=0.5, split="test", repeat=1)
    points = {}
    for label in labels:
        own = table["label"] == label
        truth, probability, fold = (
            table.loc[own, name].to_numpy() for name in ("truth", "probability", "fold")
        )
        threshold, note = _choose(truth, probability, label, rule)
        rest = {number: fold != number for number in np.unique(fold)}
        left_out = {
            number: _choose(truth[others], probability[others], label, rule)[0]
            for number, others in rest.items()
        }
        table.loc[own, "threshold"] = [left_out[number] for number in fold]
        points[label] = OperatingPoint(
            label,
            threshold,
            "" if note else _by(rule, HELD_OUT),
            *_patients(truth, table.loc[own, "patient"].to_numpy()),
            models=int(predictions["repeat"].nunique()) if exported is None else 0,
            members=int(predictions["fold"].nunique()) if exported is None else exported,
            note=note,
        )
    held_out = cross_validation.held_out(table, labels)
    measured = cross_validation.evaluate_folds(held_out).set_index(["label", "metric"])

    def rate(label: str, metric: str) -> Rate:
        value, low, high = map(float, measured.loc[(label, metric), ["value", "low", "high"]])
        return value, low, high

    return {
        label: replace(
            point, sensitivity=rate(label, "recall"), specificity=rate(label, "specificity")
        )
        for label, point in points.items()
    }


def without_intervals(points: Mapping[str, OperatingPoint]) -> dict[str, OperatingPoint]:
    """The same points of folds, for a recipe that was chosen on the patients who measured them."""

    def value_of(rate: Rate | None) -> Rate | None:
        return rate and (rate[0], float("nan"), float("nan"))

    return {
        label: replace(
            point,
            sensitivity=value_of(point.sensitivity),
            specificity=value_of(point.specificity),
        )
        for label, point in points.items()
    }


def notes(points: Mapping[str, OperatingPoint]) -> list[str]:
    """What is to be said of thresholds, in words."""
    remarks = []
    for label, point in points.items():
        if point.note:
            remarks.append(point.note)
            continue
        if point.sensitivity is not None:
            remarks.append(f"{label}: {measured(point.to_dict())}")
        if min(point.positives, point.negatives) < FEW:
            remarks.append(
                f"{label}: the threshold {point.threshold:.3f} {STANDS_ON} {point.positives} "
                f"positive and {point.negatives} negative patients; {OTHERS_GIVE}"
            )
    return list(dict.fromkeys(remarks))


def notes_of_folds(points: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What is to be said of the folds' own thresholds, at which their test studies are called.

    The points of each fold are by label, as `metrics.json` keeps them.
    """
    remarks = []
    for label in points[0] if points else ():
        own = [fold[label] for fold in points if fold.get(label, {}).get("chosen_on")]
        counts = {name: [point[name] for point in own] for name in ("positives", "negatives")}
        if own and min(min(values) for values in counts.values()) < FEW:
            words = " and ".join(f"{_range(values)} {name[:-1]}" for name, values in counts.items())
            remarks.append(f"{label}: each fold's own threshold {STANDS_ON} {words} patients")
    return remarks


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def measured(point: Mapping[str, Any]) -> str:
    """How a threshold (as `metrics.json` keeps it) was chosen and measured; empty if not known."""
    if not point or not point["chosen_on"]:
        return ""
    words = (
        f"threshold {point['threshold']:.3f}, chosen on {point['chosen_on']} "
        f"({point['positives']} positive, {point['negatives']} negative)"
    )
    if point["sensitivity"] is None:
        return words
    rates = ", ".join(
        f"{name} {with_interval(value, low, high, decimals=2)}"
        for name in ("sensitivity", "specificity")
        for value, low, high in [point[name]]
        if value is not None
    )
    members, models = point["members"], point["models"]
    one = "one model at a time" if models == 1 else f"the mean of {models} models at a time"
    if not models:
        one = "what is chosen without them"
    found = f"{words}; with each fold left out of the choice: {rates}. That is of {one}"
    if not members:
        return f"{found}; none is exported"
    if not models:
        return f"{found}: what is exported, chosen with all patients, was not measured itself"
    exported = f"mean of all {members}" if members != 1 else "one that learned from all patients"
    return f"{found}: the {exported}, which is exported, was not measured itself"
