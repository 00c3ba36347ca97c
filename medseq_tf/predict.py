"""Takes a model and the files of studies without labels; gives each study's probabilities.

Studies are read and brought to their prepared size as `prepare` does, in worker processes; the
model, whatever it is and wherever it runs, is asked with the same bytes.
"""

from __future__ import annotations

if __name__ == "__main__":  # answer --help before TensorFlow is imported
    from medseq_tf.cli import main

    main("predict")

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator

import click

from medseq_tf import metrics
from medseq_tf.answering import Model, open_model
from medseq_tf.errors import InputError
from medseq_tf.readers.processes import cores, isolated_map, start_server
from medseq_tf.readers.study import Finding, Slices, StudySource, UnreadableStudy
from medseq_tf.readers.unlabelled import find_studies
from medseq_tf.runs import Run
from medseq_tf.serving_client import RequestRefused
from medseq_tf.serving_wire import Description
from medseq_tf.study_record import Recipe, StudyRecord, start_worker, study_record_of
from medseq_tf.tfrecord import FOOTER_BYTES, HEADER_BYTES, decode_example

DTYPES = {"photograph": "uint8", "CT": "int16", "MR": "uint16"}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one label of one study; or, with `error`, why it says nothing.

    Attributes:
        study: its path; of a DICOM study a hash.
        label: name of the label.
        probability: of the label.
        calibrated: the probability after temperature scaling.
        threshold: of the probability, chosen on the run's validation studies.
        positive: the call at the threshold.
        slices: number of slices that could be read.
        warnings: what was odd about the study.
        running: the probability after each slice, where it was asked for.
        error: why the study was left out.
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
    the next one follows. `pandas.DataFrame(predict(...))` is a table. With several workers, call it
    under `if __name__ == "__main__":` in a script.

    Args:
      model: a run, an exported model, `models:/NAME/1` of MLflow, or the address of a served one;
        see `answering.open_model`.
      paths: files and folders of studies; see `readers.unlabelled`.
      running: also give the probability after each slice.
      workers: processes that read; default: one a core. 1: this process, which a damaged file that
        crashes its decoder then ends.
      strict: a study that would be left out is an error.
      progress: show a progress bar on standard error.

    Returns:
      One prediction a study and label, in the order of the paths.

    Raises:
      InputError: the model or a path cannot be used; later, the model's server went away, or, with
        `strict`, a study is left out.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: is not a number of processes, 1 or more")
    if not paths:
        raise InputError("no path of a study is given")
    if workers != 1:
        start_server(study_record_of.__module__)
    asked = open_model(model)
    description = asked.describe()
    studies = _found(paths, description)
    return _predictions(asked, description, studies, running, workers, strict, progress)


def _found(paths: Iterable[str | os.PathLike], description: Description) -> list[StudySource]:
    """Return the studies of all paths."""
    studies = []
    for path in paths:
        found, findings = find_studies(path, description.modality, description.preparation)
        studies += found
        for finding in findings:
            if finding.kind == "study left out":
                studies.append(_Unreadable(finding.where, "", {}, None, finding.detail))
    return studies


@dataclasses.dataclass(frozen=True)
class _Unreadable(StudySource):
    """A study that was found, and of which nothing can be used."""

    reason: str

    def read(self) -> Slices:
        raise UnreadableStudy(self.reason)


def _predictions(
    model: Model,
    description: Description,
    studies: list[StudySource],
    running: bool,
    workers: int | None,
    strict: bool,
    progress: bool,
) -> Iterator[Prediction]:
    recipe = Recipe((), DTYPES[description.modality], description.size, description.aspect)
    bar = click.progressbar(
        length=len(studies), label="Predicting", file=sys.stderr, hidden=not progress
    )
    with bar, contextlib.closing(_records(studies, recipe, workers)) as records:
        for study, record in zip(studies, records, strict=True):
            for prediction in _of_study(model, description, study, record, running):
                if strict and prediction.error:
                    raise InputError(f"{prediction.study}: {prediction.error}")
                yield prediction
            bar.update(1)


def _records(
    studies: list[StudySource], recipe: Recipe, workers: int | None
) -> Iterator[StudyRecord]:
    """Yield what `prepare` would store of each study, in order."""
    tasks = [(study, "", recipe) for study in studies]
    if workers == 1:
        yield from map(study_record_of, tasks)
    else:
        workers = min(workers or cores(), len(tasks))
        yield from isolated_map(study_record_of, tasks, _ended, workers, initializer=start_worker)


def _ended(task: tuple[StudySource, str, Recipe]) -> StudyRecord:
    reason = "reading it ended its process, or took too long"
    return StudyRecord(findings=[Finding("study left out", task[0].source, reason)])


def _of_study(
    model: Model, description: Description, study: StudySource, record: StudyRecord, running: bool
) -> Iterator[Prediction]:
    left_out = [f.detail for f in record.findings if f.kind == "study left out"]
    warnings = tuple(_text(f) for f in record.findings if f.kind != "study left out")
    if not record.framed:
        yield Prediction(study.source, warnings=warnings, error=(left_out or ["unreadable"])[0])
        return
    files = decode_example(record.framed[HEADER_BYTES:-FOOTER_BYTES])["slices"]
    try:
        answer = model.predict(files, running)
    except RequestRefused as error:
        yield Prediction(study.source, slices=len(files), warnings=warnings, error=str(error))
        return
    for number, label in enumerate(description.labels):
        probability = float(answer.probability[number])
        threshold = description.thresholds[label]
        steps = answer.running[: len(files), number] if running else None
        yield Prediction(
            study=study.source,
            label=label,
            probability=probability,
            calibrated=float(metrics.scale(probability, description.temperatures[label])),
            threshold=threshold,
            positive=probability >= threshold,
            slices=len(files),
            warnings=warnings,
            running=None if steps is None else tuple(map(float, steps)),
        )


def _text(finding: Finding) -> str:
    return f"{finding.kind} ({finding.where})" + (f": {finding.detail}" if finding.detail else "")


# ------------------------------------------------------------------------------------- for people


def table(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield the lines of a table, as the predictions come."""
    predictions = iter(predictions)
    first = next(predictions, None)
    if first is None:
        return
    width = max(24, len(first.study)) + 2
    yield f"{'study':<{width}}{'label':<14}{'probability':>11}  {'call':<10}{'slices':>6}"
    for row in itertools.chain([first], predictions):
        if row.error:
            yield f"{row.study:<{width}}left out: {row.error}"
        else:
            call = "positive" if row.positive else "negative"
            numbers = f"{row.probability:11.4f}  {call:<10}{row.slices:>6}"
            yield f"{row.study:<{width}}{row.label:<14}{numbers}"
        if row.running:
            yield "  after each slice: " + " ".join(f"{value:.3f}" for value in row.running)
        yield from (f"  warning: {warning}" for warning in row.warnings)
