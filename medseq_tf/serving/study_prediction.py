"""What a model predicts of one study: a row a label, or why there is nothing."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medseq_tf.dataset.records import StorageSpec, StudyRecord
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.evaluation import metrics
from medseq_tf.readers.study import AuditEntry, StudySource
from medseq_tf.serving.class_call import ClassCall
from medseq_tf.serving.client import StudyProbabilities
from medseq_tf.serving.covariates import Values
from medseq_tf.serving.description import Description
from medseq_tf.serving.open_model import Model
from medseq_tf.serving.refusals import RequestRefused

LEFT_OUT = "study left out"
NAMED = 20
"""How many audit entries of a kind on a study are named; the others are counted."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model predicts of one label of one study; or, with `error`, why there is nothing.

    Of classes, which exclude each other, it is all that a model predicts of the study.

    Attributes:
        study: its path; of a DICOM study a hash.
        label: name of the label, or of what the classes are the classes of.
        probability: of the label, or of the called class.
        calibrated: the probability after temperature scaling.
        threshold: of the probability. Classes have none.
        operating_point: how the threshold was chosen, on how many patients, and what it does.
        positive: the call at the threshold.
        slices: number of slices that could be read.
        warnings: what was odd about the study; of the first study of a path also what was odd about
            the path and is no study's: links, files and folders that were not read.
        running: the probability after each slice, where it was asked for; of classes, by class.
        error: why the study was left out.
        path: the one of the paths given in which the study was found.
        called: the class that is called.
        probabilities: of every class; they add up to 1.
        calibrated_probabilities: the same after temperature scaling.
        expected_cost: of the call, where the class of least expected cost is called; else that of
            the greatest probability is.
        results: the files of its results as DICOM objects, where they were asked for.
        stored: how many of them were stored in the archive that the study is from.
        results_error: why they were not all written or stored.
    """

    study: str
    label: str | None = None
    probability: float | None = None
    calibrated: float | None = None
    threshold: float | None = None
    positive: bool | None = None
    slices: int = 0
    warnings: tuple[str, ...] = ()
    running: tuple[float, ...] | dict[str, tuple[float, ...]] | None = None
    error: str | None = None
    path: str | None = None
    operating_point: str | None = None
    called: str | None = None
    probabilities: dict[str, float] | None = None
    calibrated_probabilities: dict[str, float] | None = None
    expected_cost: float | None = None
    results: tuple[str, ...] | None = None
    stored: int | None = None
    results_error: str | None = None

    def to_json(self) -> str:
        """Return the prediction as one line of JSON; what is not there is left out."""
        values = dataclasses.asdict(self)
        return json.dumps({key: value for key, value in values.items() if value is not None})


@dataclasses.dataclass(frozen=True)
class FoundStudy:
    """A study that was found in a path, and what is known of it before it is read.

    Attributes:
        study: the study.
        path: the one of the paths given that it is in.
        audit_entries: what was odd about it, and, of the first of a path, about the path.
        covariates: by name, where the model reads some and they are known.
    """

    study: StudySource
    path: str
    audit_entries: tuple[AuditEntry, ...] = ()
    covariates: Values | None = None


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model that is asked about one study after the other.

    Attributes:
        model: the model.
        description: what it says of itself, and how it is to call.
        points: what is known of each label's operating point, in words.
        running: also give the probability after each slice.
    """

    model: Model
    description: Description
    points: Mapping[str, str | None]
    running: bool = False

    @property
    def storage(self) -> StorageSpec:
        """How a study is stored for the model, as `prepare` does it."""
        of = self.description
        return StorageSpec((), of.dtype, of.size, of.aspect, of.channels)

    def of(self, found: FoundStudy, record: StudyRecord) -> list[Prediction]:
        """Return the predictions of a study by its record, or the one that says why not."""
        entries = [*found.audit_entries, *record.audit_entries]
        reasons = [entry.detail for entry in entries if entry.kind == LEFT_OUT]
        warnings = _warnings([entry for entry in entries if entry.kind != LEFT_OUT])
        blank = Prediction(found.study.source, warnings=warnings, path=found.path)
        if not record.framed:
            return [dataclasses.replace(blank, error=(reasons or ["unreadable"])[0])]
        files = list(decode_example(record.example)["slices"])
        blank = dataclasses.replace(blank, slices=len(files))
        try:
            predicted = self.model.predict(files, self.running, **told_of(found, record))
            predicted = predicted.checked(len(files), self.description)
        except RequestRefused as error:
            return [dataclasses.replace(blank, error=str(error))]
        return list(self._called(blank, predicted))

    def _called(self, blank: Prediction, predicted: StudyProbabilities) -> Iterator[Prediction]:
        """Yield a study's probabilities as its predictions, each called."""
        description, steps = self.description, None
        if self.running and predicted.running is not None:
            by_label = zip(description.labels, predicted.running[: blank.slices].T, strict=True)
            steps = {label: tuple(map(float, after)) for label, after in by_label}
        call = ClassCall.of(description, predicted.probability)
        if call:
            yield dataclasses.replace(
                blank,
                label=call.column,
                called=call.called,
                probability=call.probabilities[call.called],
                calibrated=call.calibrated[call.called],
                probabilities=call.probabilities,
                calibrated_probabilities=call.calibrated,
                expected_cost=call.expected_cost,
                running=steps,
            )
            return
        for number, label in enumerate(description.labels):
            probability = float(predicted.probability[number])
            threshold, temperature = description.thresholds[label], description.temperatures[label]
            yield dataclasses.replace(
                blank,
                label=label,
                probability=probability,
                calibrated=float(metrics.scale(np.asarray(probability), temperature)),
                threshold=threshold,
                positive=probability >= threshold,
                running=steps and steps[label],
                operating_point=self.points[label],
            )


def told_of(found: FoundStudy, record: StudyRecord) -> dict[str, Any]:
    """Return what a model is told of a study besides its slices, as arguments of `predict`."""
    told: dict[str, Any] = {"covariates": found.covariates} if found.covariates else {}
    return {**told, "series": record.series} if record.series else told


def _warnings(audit_entries: list[AuditEntry]) -> tuple[str, ...]:
    """Return a line an audit entry; of many of one kind the first, and how many more there are."""
    by_kind: dict[str, list[AuditEntry]] = defaultdict(list)
    for entry in audit_entries:
        by_kind[entry.kind].append(entry)
    lines: list[str] = []
    for kind, entries in by_kind.items():
        lines += map(_text, entries[:NAMED])
        if len(entries) > NAMED:
            lines.append(f"{kind}: {len(entries) - NAMED} more")
    return tuple(lines)


def _text(entry: AuditEntry) -> str:
    return f"{entry.kind} ({entry.where})" + (f": {entry.detail}" if entry.detail else "")
