"""Takes a model and the files of studies without labels; gives each study's probabilities.

Studies are read and brought to their prepared size as `prepare` does, in worker processes; the
model, whatever it is and wherever it runs, is asked with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from medseq_tf.dataset.records import StorageSpec, StudyRecord, start_worker, study_record_of
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, decode_example
from medseq_tf.errors import InputError, printable
from medseq_tf.evaluation import metrics, operating_points
from medseq_tf.execution.processes import cores, isolated_map, start_server
from medseq_tf.readers.study import AuditEntry, Slices, StudySource, UnreadableStudy, kinds_text
from medseq_tf.readers.unlabelled import find_studies, study_of
from medseq_tf.runs.run import Run
from medseq_tf.serving.client import RequestRefused, check_answer, refuse_credentials
from medseq_tf.serving.open_model import Model, open_model
from medseq_tf.serving.wire import Description

DTYPES = {"photograph": "uint8", "CT": "int16", "MR": "uint16"}
LEFT_OUT = "study left out"
NAMED = 20
"""How many audit entries of a kind on a study are named; the others are counted."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one label of one study; or, with `error`, why it says nothing.

    Attributes:
        study: its path; of a DICOM study a hash.
        label: name of the label.
        probability: of the label.
        calibrated: the probability after temperature scaling.
        threshold: of the probability.
        operating_point: how the threshold was chosen, on how many patients, and what it does.
        positive: the call at the threshold.
        slices: number of slices that could be read.
        warnings: what was odd about the study; of the first study of a path also what was odd about
            the path and is no study's: links, files and folders that were not read.
        running: the probability after each slice, where it was asked for.
        error: why the study was left out.
        path: the one of the paths given in which the study was found.
    """

    study: str
    label: str | None = None
    probability: float | None = None
    calibrated: float | None = None
    threshold: float | None = None
    positive: bool | None = None
    slices: int = 0
    warnings: tuple[str, ...] = ()
    running: tuple[float, ...] | None = None
    error: str | None = None
    path: str | None = None
    operating_point: str | None = None

    def to_json(self) -> str:
        """One line; what is not there is left out."""
        values = dataclasses.asdict(self)
        return json.dumps({key: value for key, value in values.items() if value is not None})


def predict(
    model: str | os.PathLike | Run | Model,
    *paths: str | os.PathLike,
    running: bool = False,
    workers: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Iterator[Prediction]:
    """Predict studies one after the other, as they are read.

    A study that cannot be read, or that the model refuses, is a `Prediction` with an `error`, and
    the next one follows; so is one of several paths that holds nothing for this model.
    `pandas.DataFrame(predict(...))` is a table. With several workers, call it under
    `if __name__ == "__main__":` in a script.

    Args:
        model: a run, an exported model, `models:/NAME/1` of MLflow, or the address of a served one;
          see `answering.open_model`.
        paths: files and folders of studies; see `readers.unlabelled`.
        running: also give the probability after each slice.
        workers: processes that read; default: one a core. 1: this process, which a damaged file
          that crashes its decoder then ends.
        strict: a study that would be left out is an error.
        progress: show a progress bar on standard error.

    Returns:
        One prediction a study and label, in the order of the paths.

    Raises:
        InputError: the model or a path cannot be used; later, the model's server went away, or,
          with `strict`, a study is left out.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: is not a number of processes, 1 or more")
    if not paths:
        raise InputError("no path of a study is given")
    if workers != 1:
        start_server(study_record_of.__module__)
    if isinstance(model, str):
        refuse_credentials(model)
    asked = open_model(model)
    description = asked.describe()
    studies = _found(paths, description)
    return _predictions(asked, description, studies, running, workers, strict, progress)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A study, the given path that it is in, and what was odd about it before it was read."""

    study: StudySource
    path: str
    audit_entries: tuple[AuditEntry, ...] = ()


def _found(paths: Sequence[str | os.PathLike], description: Description) -> list[_Found]:
    """Return the studies of all paths; a path without one is a study that cannot be read.

    Raises:
        InputError: a path does not exist, or none can be used.
    """
    studies, unusable = [], []
    for path in map(os.fspath, paths):
        try:
            found, audit_entries = find_studies(path, description.modality, description.preparation)
        except InputError as error:
            if len(paths) == 1 or not os.path.exists(path):
                raise
            unusable.append(error)
            reason = str(error).removeprefix(f"{Path(path)}: ")
            studies.append(_left_out(path, reason, path))
        else:
            studies += _of_path(path, found, audit_entries)
    if len(unusable) == len(paths):
        raise unusable[0]
    return studies


def _of_path(
    path: str, studies: list[StudySource], audit_entries: list[AuditEntry]
) -> list[_Found]:
    odd: dict[str | None, list[AuditEntry]] = defaultdict(list)
    for entry in audit_entries:
        if entry.kind != LEFT_OUT:
            about = study_of(entry, studies)
            odd[about.source if about else None].append(entry)
    found = [_Found(study, path, tuple(odd[study.source])) for study in studies]
    found += [
        _left_out(entry.where, entry.detail, path)
        for entry in audit_entries
        if entry.kind == LEFT_OUT
    ]
    if not found:
        kinds = kinds_text(audit_entries)
        found.append(_left_out(path, f"no study that can be used ({kinds})", path))
    of_path = tuple(odd[None])
    found[0] = dataclasses.replace(found[0], audit_entries=of_path + found[0].audit_entries)
    return found


def _left_out(source: str, reason: str, path: str) -> _Found:
    return _Found(_Unreadable(source, "", {}, None, reason), path)


@dataclasses.dataclass(frozen=True)
class _Unreadable(StudySource):
    """A study that was found, and of which nothing can be used."""

    reason: str

    def read(self) -> Slices:
        raise UnreadableStudy(self.reason)


def _predictions(
    model: Model,
    description: Description,
    studies: list[_Found],
    running: bool,
    workers: int | None,
    strict: bool,
    progress: bool,
) -> Iterator[Prediction]:
    sources = [found.study for found in studies]
    recipe = StorageSpec((), DTYPES[description.modality], description.size, description.aspect)
    bar = click.progressbar(
        length=len(studies), label="Predicting", file=sys.stderr, hidden=not progress
    )
    with bar, contextlib.closing(_records(sources, recipe, workers)) as records:
        for found, record in zip(studies, records, strict=True):
            for prediction in _of_study(model, description, found, record, running):
                if strict and prediction.error:
                    raise InputError(f"{prediction.study}: {prediction.error}")
                yield prediction
            bar.update(1)


def _records(
    studies: list[StudySource], recipe: StorageSpec, workers: int | None
) -> Iterator[StudyRecord]:
    """Yield what `prepare` would store of each study, in order."""
    tasks = [(study, "", recipe) for study in studies]
    if workers == 1:
        yield from map(study_record_of, tasks)
    else:
        workers = min(workers or cores(), len(tasks))
        yield from isolated_map(study_record_of, tasks, _ended, workers, initializer=start_worker)


def _ended(task: tuple[StudySource, str, StorageSpec]) -> StudyRecord:
    reason = "reading it ended its process, or took too long"
    return StudyRecord(audit_entries=[AuditEntry(LEFT_OUT, task[0].source, reason)])


def _of_study(
    model: Model, description: Description, found: _Found, record: StudyRecord, running: bool
) -> Iterator[Prediction]:
    audit_entries = [*found.audit_entries, *record.audit_entries]
    left_out = [f.detail for f in audit_entries if f.kind == LEFT_OUT]
    warnings = _warnings([f for f in audit_entries if f.kind != LEFT_OUT])
    blank = Prediction(found.study.source, warnings=warnings, path=found.path)
    if not record.framed:
        yield dataclasses.replace(blank, error=(left_out or ["unreadable"])[0])
        return
    files = decode_example(record.framed[HEADER_BYTES:-FOOTER_BYTES])["slices"]
    try:
        answer = model.predict(files, running)
        check_answer(answer, len(files), len(description.labels))
    except RequestRefused as error:
        yield dataclasses.replace(blank, slices=len(files), error=str(error))
        return
    for number, label in enumerate(description.labels):
        probability = float(answer.probability[number])
        threshold = description.thresholds[label]
        steps = answer.running[: len(files), number] if running else None
        yield dataclasses.replace(
            blank,
            label=label,
            probability=probability,
            calibrated=float(metrics.scale(probability, description.temperatures[label])),
            threshold=threshold,
            positive=probability >= threshold,
            slices=len(files),
            running=None if steps is None else tuple(map(float, steps)),
            operating_point=operating_points.measured(description.operating_points.get(label, {}))
            or None,
        )


def _warnings(audit_entries: list[AuditEntry]) -> tuple[str, ...]:
    """A line an audit entry; of many of one kind the first, and how many more there are."""
    by_kind: dict[str, list[AuditEntry]] = defaultdict(list)
    for entry in audit_entries:
        by_kind[entry.kind].append(entry)
    lines = []
    for kind, found in by_kind.items():
        lines += map(_text, found[:NAMED])
        if len(found) > NAMED:
            lines.append(f"{kind}: {len(found) - NAMED} more")
    return tuple(lines)


def _text(entry: AuditEntry) -> str:
    return f"{entry.kind} ({entry.where})" + (f": {entry.detail}" if entry.detail else "")


# ------------------------------------------------------------------------------------- for people


def table(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield the lines of a table, as the predictions come; names are made printable."""
    yield from map(printable, _lines(iter(predictions)))


def _lines(predictions: Iterator[Prediction]) -> Iterator[str]:
    first = next(predictions, None)
    if first is None:
        return
    width = max(24, len(first.study)) + 2
    yield f"{'study':<{width}}{'label':<14}{'probability':>11}  {'call':<10}{'slices':>6}"
    points = {}
    for row in itertools.chain([first], predictions):
        if row.operating_point:
            points[row.label] = row.operating_point
        if row.error:
            yield f"{row.study:<{width}}left out: {row.error}"
        else:
            call = "positive" if row.positive else "negative"
            numbers = f"{row.probability:11.4f}  {call:<10}{row.slices:>6}"
            yield f"{row.study:<{width}}{row.label:<14}{numbers}"
        if row.running:
            yield "  after each slice: " + " ".join(f"{value:.3f}" for value in row.running)
        yield from (f"  warning: {warning}" for warning in row.warnings)
    yield from (f"{label}: {words}" for label, words in points.items())
