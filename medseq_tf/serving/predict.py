"""The predictions of a model for studies without labels, of files or of an archive.

Studies are read and brought to their prepared size as `prepare` does, in worker processes; the
model, whatever it is and wherever it runs, is asked with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

import click

from medseq_tf.dataset.records import (
    StorageSpec,
    StudyRecord,
    left_out,
    start_worker,
    study_record_of,
)
from medseq_tf.errors import InputError, note, printable
from medseq_tf.evaluation import operating_points
from medseq_tf.execution.executor import check_workers, executor_for, refuse_without_ray
from medseq_tf.execution.processes import cores, isolated_map, start_server
from medseq_tf.readers.dicom.archive import SCHEMES, Archive, is_archive
from medseq_tf.readers.storage import is_url, modules_for, root_of
from medseq_tf.readers.study import AuditEntry, Slices, StudySource, UnreadableStudy, kinds_text
from medseq_tf.readers.unlabelled import NOTHING, Wanted, find_studies, study_of
from medseq_tf.runs.run import Run
from medseq_tf.serving.client import refuse_credentials
from medseq_tf.serving.cohort import Opening, cohort_predictions, shared_name
from medseq_tf.serving.description import Description
from medseq_tf.serving.dicom_results.answer import model_identity
from medseq_tf.serving.dicom_results.delivery import Delivery, check_dicom
from medseq_tf.serving.dicom_results.segmentation import SegmentationKind
from medseq_tf.serving.open_model import Model, open_model
from medseq_tf.serving.participants import read_participants
from medseq_tf.serving.study_prediction import LEFT_OUT, FoundStudy, Prediction, Predictor


def predict(
    model: str | os.PathLike | Run | Model,
    *paths: str | os.PathLike,
    running: bool = False,
    workers: int | None = None,
    strict: bool = False,
    costs: str | os.PathLike | None = None,
    participants: str | os.PathLike | None = None,
    progress: bool = False,
    ray: str | None = None,
    cpus_per_task: float = 1.0,
    gpus_per_task: float = 0.0,
    study: Sequence[str] = (),
    query: str | None = None,
    insecure_tls: bool = False,
    dicom_out: str | os.PathLike | None = None,
    store: bool = False,
    dicom_seg: SegmentationKind = "binary",
) -> Iterator[Prediction]:
    """Predict studies one after the other, as they are read.

    A study that cannot be read, or that the model refuses, is a `Prediction` with an `error`, and
    the next one follows; so is one of several paths that holds nothing for this model. Where the
    results of a study cannot be written or stored, its predictions have a `results_error`.
    `pandas.DataFrame(predict(...))` is a table. With several workers, call it under
    `if __name__ == "__main__":` in a script.

    Args:
        model: a run, an exported model, `models:/NAME/1` of MLflow, or the address of a served one;
          see `open_model`.
        paths: files and folders of studies, or their URLs; see `readers.unlabelled`. An archive is
            `dicomweb+https://HOST/dicom-web`; of it `study` or `query` says which studies.
        running: also give the probability after each slice.
        workers: processes that read; default: one a core. 1: this process, which a damaged file
          that crashes its decoder then ends. With `ray`: processes that read and predict; default:
          as many as there is room for.
        strict: a study that would be left out, or whose results would, is an error.
        costs: of classes, a CSV file of what each call costs where each class is true, see
            `metrics.read_costs`; the class of least expected cost is then called. Default: the
            costs that the model was exported with, if any.
        participants: of a model that reads covariates, a CSV file of them, one row a patient, see
            `participants`. Those of studies without a row are missing, as all are without a file.
        progress: show a progress bar on standard error.
        ray: the address of a Ray cluster, see `execution.ray_cluster.connected`: studies are read
          and predicted by its workers, each of which opens the model. Model and studies lie on
          storage that all nodes see.
        cpus_per_task: of a node that a worker takes, with `ray`.
        gpus_per_task: the same; a fraction shares one.
        study: StudyInstanceUIDs of studies of the archive.
        query: which studies of the archive: `Modality=CT,StudyDate=20260101-20260131`, see
            `readers.dicom.archive.Query`.
        insecure_tls: do not ask whether the archive is what it says it is.
        dicom_out: write the results of each DICOM study to this folder, as DICOM objects: a
            structured report, a contact sheet and, of a model that maps lesions, a segmentation;
            see `serving.dicom_results`.
        store: store these objects in the archive that the study is from.
        dicom_seg: of what kind a segmentation is: `binary`, the pixels that are lesion by more
            than half, which every viewer shows; or `fractional`, how probable that is.

    Returns:
        One prediction a study and label, or, of classes, a study, in the order of the paths.

    Raises:
        InputError: the model, a path, the costs, the participants, the cluster, or where results
          go, cannot be used, or results are asked for of a study that is not DICOM; later, the
          model's server went away, a node does not see what it should, or, with `strict`, a study
          is left out.
    """
    check_workers(workers)
    if not paths:
        raise InputError("no path of a study is given")
    given = [os.fspath(path) for path in paths]
    refuse_without_ray(ray, cpus_per_task, gpus_per_task)
    wanted = Wanted.of(study, query, insecure_tls)
    archives = _archives(given, wanted, store, dicom_out, ray)
    if isinstance(model, str):
        refuse_credentials(model)
    delivery = Delivery.to(dicom_out, archives if store else {}, dicom_seg)
    with contextlib.ExitStack() as connection:
        for archive in archives.values():
            connection.callback(archive.close)
        executor, name = None, ""
        if ray is not None:
            model = name = shared_name(model)
            executor = connection.enter_context(
                executor_for(workers, ray, cpus=cpus_per_task, gpus=gpus_per_task)
            )
        elif workers != 1:
            start_server(study_record_of.__module__, *itertools.chain(*map(modules_for, paths)))
        predictor = predictor_of(model, running, costs)
        studies = _studies_of_paths(given, predictor.description, wanted)
        if delivery is not None:
            check_dicom(s.study for s in studies if not isinstance(s.study, _Unreadable))
        if participants is not None:
            studies = _with_covariates(participants, predictor.description, studies)
        elif covariates := predictor.description.covariates:
            names = ", ".join(covariate["name"] for covariate in covariates)
            note(f"the model reads {names}; without participants they are missing for every study")
        if executor is None:
            answer: _Answering = predictor.of
            if delivery is not None:
                identity = model_identity(model, predictor.model, predictor.description)
                answer = functools.partial(delivery.given, predictor, identity)
            by_study = _predicted_here(answer, predictor.storage, studies, workers)
        else:
            opening = Opening.of(name, predictor, given)
            by_study = cohort_predictions(executor, opening, predictor, studies)
        return _predictions(by_study, len(studies), strict, progress, connection.pop_all())


def predictor_of(
    model: str | os.PathLike | Run | Model,
    running: bool = False,
    costs: str | os.PathLike | None = None,
) -> Predictor:
    """Open a model, to be asked about studies; the arguments are those of `predict`."""
    opened = open_model(model)
    description = opened.describe()
    if costs is not None:
        description = description.with_costs(costs)
    return Predictor(opened, description, _points(description), running)


def _points(description: Description) -> dict[str, str | None]:
    """Return what is known of each label's operating point, in words."""
    try:
        return {
            label: operating_points.measured(description.operating_points.get(label, {})) or None
            for label in description.labels
        }
    except (LookupError, TypeError, ValueError):
        raise InputError(
            f"{printable(description.name)}: the model's description of its operating points is "
            "damaged; export the run again"
        ) from None


# ------------------------------------------------------------------------------- finding studies


def _archives(
    paths: Sequence[str],
    wanted: Wanted,
    store: bool,
    dicom_out: str | os.PathLike | None,
    ray: str | None,
) -> dict[str, Archive]:
    """Return the archives among paths.

    Raises:
        InputError: one cannot be used, or paths and what is asked of them do not go together.
    """
    archives = {
        path: Archive.open(path, insecure_tls=wanted.insecure_tls)
        for path in paths
        if is_archive(path)
    }
    others = [path for path in paths if path not in archives]
    if any(path.lower().startswith("dicomweb") and is_url(path) for path in others):
        raise InputError(f"the address of an archive begins with {' or '.join(SCHEMES)}")
    if archives and not wanted.is_said:
        raise InputError(
            f"{next(iter(archives))}: which of its studies? give --study UID, or --query such as "
            "Modality=CT,StudyDate=20260101-20260131"
        )
    if wanted != NOTHING and not archives:
        raise InputError(
            "--study, --query and --insecure-tls ask an archive, whose path begins with "
            f"{SCHEMES[0]}; none is given"
        )
    if store and others:
        raise InputError(
            "--store gives results to the archive that a study is from, and "
            f"{root_of(others[0])} is none; --dicom-out DIR writes them to a folder"
        )
    if ray is not None and (archives or dicom_out is not None):
        raise InputError(
            "--ray goes neither with archives nor with --dicom-out; without it the cores of this "
            "machine read"
        )
    return archives


def _studies_of_paths(
    paths: Sequence[str], description: Description, wanted: Wanted
) -> list[FoundStudy]:
    """Return the studies of all paths; a path without one is a study that cannot be read.

    Raises:
        InputError: a path does not exist, or none can be used.
    """
    studies: list[FoundStudy] = []
    unusable: list[InputError] = []
    for path in paths:
        try:
            sources, audit_entries = find_studies(
                path, description.modality, description.preparation, wanted
            )
        except InputError as error:
            place = path if is_archive(path) else root_of(path)
            if len(paths) == 1 or (isinstance(place, Path) and not place.exists()):
                raise
            unusable.append(error)
            reason = str(error).removeprefix(f"{place}: ")
            studies.append(_left_out(path, reason, path))
        else:
            studies += studies_of_path(path, sources, audit_entries)
    if len(unusable) == len(paths):
        raise unusable[0]
    return studies


def studies_of_path(
    path: str, sources: list[StudySource], audit_entries: list[AuditEntry]
) -> list[FoundStudy]:
    """Return what was found in a path: its studies, each with what was odd about it.

    One that was left out is there too, and cannot be read.
    """
    by_source: dict[str | None, list[AuditEntry]] = defaultdict(list)
    for entry in audit_entries:
        if entry.kind != LEFT_OUT:
            about = study_of(entry, sources)
            by_source[about.source if about else None].append(entry)
    studies = [FoundStudy(source, path, tuple(by_source[source.source])) for source in sources]
    studies += [
        _left_out(entry.where, entry.detail, path)
        for entry in audit_entries
        if entry.kind == LEFT_OUT
    ]
    if not studies:
        kinds = kinds_text(audit_entries)
        studies.append(_left_out(path, f"no study that can be used ({kinds})", path))
    first, of_path = studies[0], tuple(by_source[None])
    studies[0] = dataclasses.replace(first, audit_entries=of_path + first.audit_entries)
    return studies


def _with_covariates(
    participants: str | os.PathLike, description: Description, studies: list[FoundStudy]
) -> list[FoundStudy]:
    """Return studies with the covariates of their rows; one without a row gets an audit entry."""
    usable = [s.study for s in studies if not isinstance(s.study, _Unreadable)]
    known = read_participants(participants, description, usable)
    with_covariates = []
    for study in studies:
        source, entries = study.study.source, study.audit_entries
        if source not in known and not isinstance(study.study, _Unreadable):
            detail = "no row in the participants"
            entries = (*entries, AuditEntry("covariates missing", source, detail))
        values = known.get(source)
        with_covariates.append(dataclasses.replace(study, audit_entries=entries, covariates=values))
    return with_covariates


def _left_out(source: str, reason: str, path: str) -> FoundStudy:
    return FoundStudy(_Unreadable(source, "", {}, None, reason), path)


@dataclasses.dataclass(frozen=True)
class _Unreadable(StudySource):
    """A study that was found, and of which nothing can be used."""

    reason: str

    def read(self) -> Slices:
        """Say why nothing can be used."""
        raise UnreadableStudy(self.reason)


# ------------------------------------------------------------------------------------ predicting


def _predictions(
    by_study: Generator[list[Prediction]],
    studies: int,
    strict: bool,
    progress: bool,
    connection: contextlib.ExitStack,
) -> Iterator[Prediction]:
    bar = click.progressbar(
        length=studies, label="Predicting", file=sys.stderr, hidden=not progress
    )
    with connection, bar, contextlib.closing(by_study):
        for of_study in by_study:
            for prediction in of_study:
                if strict and (error := prediction.error or prediction.results_error):
                    raise InputError(f"{prediction.study}: {error}")
                yield prediction
            bar.update(1)


_Answering = Callable[[FoundStudy, StudyRecord], list[Prediction]]


def _predicted_here(
    answer: _Answering, storage: StorageSpec, studies: list[FoundStudy], workers: int | None
) -> Generator[list[Prediction]]:
    sources = [found.study for found in studies]
    with contextlib.closing(records(sources, storage, workers)) as made:
        for found, record in zip(studies, made, strict=True):
            yield answer(found, record)


def records(
    sources: list[StudySource], spec: StorageSpec, workers: int | None = None
) -> Generator[StudyRecord]:
    """Yield what `prepare` would store of each study, in order, read by worker processes.

    Args:
        sources: the studies.
        spec: how they are stored.
        workers: how many; default: one a core. 1: this process reads.
    """
    tasks = [(source, "", spec) for source in sources]
    if workers == 1:
        yield from map(study_record_of, tasks)
    else:
        workers = min(workers or cores(), len(tasks))
        yield from isolated_map(study_record_of, tasks, _ended, workers, initializer=start_worker)


def _ended(task: tuple[StudySource, str, StorageSpec]) -> StudyRecord:
    return left_out(task[0], "reading it ended its process, or took too long")


# ------------------------------------------------------------------------------------- for people


_NONE_OF_THEM = "is called, also of a study that has none of the classes"
CALLED = f"the most probable class {_NONE_OF_THEM}"
CALLED_BY_COST = f"the class of least expected cost {_NONE_OF_THEM}"
"""What is said below a table of calls of classes."""


def table(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Yield the lines of a table, as the predictions come; names are made printable."""
    yield from map(printable, _lines(iter(predictions)))


def _lines(predictions: Iterator[Prediction]) -> Iterator[str]:
    first = next(predictions, None)
    if first is None:
        return
    width, names = max(24, len(first.study)) + 2, first.probabilities or {}
    wide = max(8, *map(len, names)) + 2 if names else 10
    yield f"{'study':<{width}}{'label':<14}{'probability':>11}  {'call':<{wide}}{'slices':>6}"
    points, last = {}, None
    for row in itertools.chain([first], predictions):
        if row.operating_point:
            points[row.label] = row.operating_point
        if row.called:
            points[row.label] = CALLED if row.expected_cost is None else CALLED_BY_COST
        if row.error:
            yield f"{row.study:<{width}}left out: {row.error}"
        else:
            call = row.called or ("positive" if row.positive else "negative")
            numbers = f"{row.probability:11.4f}  {call:<{wide}}{row.slices:>6}"
            yield f"{row.study:<{width}}{row.label:<14}{numbers}"
        running = row.running
        if isinstance(running, dict):
            running = running[row.called or ""]
        if running:
            yield "  after each slice: " + " ".join(f"{value:.3f}" for value in running)
        yield from (f"  warning: {warning}" for warning in row.warnings)
        if row.study != last:
            yield from _results_lines(row)
        last = row.study
    yield from (f"{label}: {words}" for label, words in points.items())


def _results_lines(row: Prediction) -> Iterator[str]:
    if row.results:
        yield f"  results: {', '.join(row.results)}"
    if row.stored:
        yield f"  results: {row.stored} stored in the archive"
    if row.results_error:
        yield f"  no results: {row.results_error}"
