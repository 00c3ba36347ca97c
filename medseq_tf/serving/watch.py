"""Watches an archive: each new study is predicted, and its results are stored beside it.

The archive's own content is the memory. The UID of a study's report follows from the model and the
study's images, so the archive is asked for it: it is there, or the study is to be answered. The
report is stored last; a process that dies before leaves the study to the next one, and of two that
answer it at a time the objects are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from medseq_tf.dataset.records import study_record_of
from medseq_tf.errors import InputError, Unreachable
from medseq_tf.execution.processes import start_server
from medseq_tf.readers.dicom.archive import Archive, Query
from medseq_tf.readers.dicom.archive_study import ArchiveStudy, name_in_archive
from medseq_tf.readers.storage import UnavailableStudy
from medseq_tf.readers.study import UnreadableStudy, kinds_text
from medseq_tf.readers.unlabelled import PHOTOGRAPH, Wanted, find_studies
from medseq_tf.runs.run import Run
from medseq_tf.serving.client import refuse_credentials
from medseq_tf.serving.dicom_results.answer import ModelIdentity, derived_uid, model_identity
from medseq_tf.serving.dicom_results.delivery import answered, check_dicom
from medseq_tf.serving.dicom_results.results import REPORT, check_installed, results, store
from medseq_tf.serving.open_model import Model
from medseq_tf.serving.predict import predictor_of, records, studies_of_path
from medseq_tf.serving.refusals import ServingError
from medseq_tf.serving.study_prediction import FoundStudy, Predictor
from medseq_tf.serving.watch_loop import Clock, Found, NothingToRead, StudyFailed, Watcher
from medseq_tf.serving.watch_status import HOST, Log, Status, serving

_READ_BY = (study_record_of.__module__, "medseq_tf.readers.dicom.archive_study", "pydicom")
"""What a process that reads a study needs, and has at once where the server has it."""

MOST_SECONDS = 30 * 86400.0
"""That a watcher can be told to wait."""


def watch(
    model: str | os.PathLike | Run | Model,
    url: str,
    *,
    query: str | None = None,
    store: bool = False,
    every: float = 30.0,
    stable: float = 60.0,
    once: bool = False,
    port: int = 0,
    log: str | os.PathLike | None = None,
    costs: str | os.PathLike | None = None,
    insecure_tls: bool = False,
) -> Status:
    """Answer the studies of an archive as they arrive, until SIGTERM or Ctrl-C.

    A study is answered when the archive holds no report of this model on its images. The one in
    hand is finished before it ends. `/health` and `/metrics` (Prometheus) are answered on 127.0.0.1
    meanwhile.

    Args:
        model: a run, an exported model, `models:/NAME/1` of MLflow, or the address of a served one;
            see `open_model`.
        url: of the archive's DICOMweb services, such as `https://pacs/dicom-web`.
        query: which studies, see `archive.Query`; default: all.
        store: store the results in the archive. There is no other way to know what is answered, so
            it has to be said.
        every: seconds from one look at the archive to the next.
        stable: seconds for which a study has not grown before it is answered.
        once: try every study that is there once, and end.
        port: of `/health` and `/metrics`; 0: a free one, which the log tells.
        log: a file that lines of JSON are added to; default: standard error.
        costs: as of `predict`.
        insecure_tls: take any certificate of the archive's.

    Returns:
        What was done.

    Raises:
        InputError: the model, the archive or an argument cannot be used, or, with `once`, the
            archive is away.
    """
    if not store:
        raise InputError(
            "watch needs --store: results go into the archive, where they also say what is answered"
        )
    if isinstance(model, str):
        refuse_credentials(model)
    for name, value in (("every", every), ("stable", stable)):
        if not 0 <= value <= MOST_SECONDS or (name == "every" and value == 0):
            least = "more than 0" if name == "every" else "0"
            raise InputError(f"{name}={value:g}: expected seconds, {least} to {MOST_SECONDS:.0f}")
    check_installed()
    asked, archive = Query.parse(query), Archive.open(url, insecure_tls=insecure_tls)
    clock, status = Clock(), Status()
    with (
        contextlib.closing(archive),
        contextlib.closing(Log(log, clock.time)) as lines,
        lines.takes_warnings(),
    ):
        start_server(*_READ_BY)
        predictor = predictor_of(model, costs=costs)
        if predictor.description.modality == PHOTOGRAPH:
            raise InputError("the model reads photographs, and an archive holds none")
        if predictor.description.series is not None:
            raise InputError(
                "the model reads several series of a study, and results are made of one"
            )
        identity = model_identity(model, predictor.model, predictor.description)
        work = ArchiveWork(archive, asked, predictor, identity, insecure_tls)
        tries = {"tries": 1} if once else {}
        watcher = Watcher(work, clock, status, lines, every, stable, **tries)
        told: dict[str, Any] = {"archive": archive.url, "query": str(asked), "model": identity.name}
        if covariates := predictor.description.covariates:
            told["missing"] = [covariate["name"] for covariate in covariates]
        with clock.ended_by_signals():
            if once:
                lines.info("looking once", **told)
                watcher.run_once()
            else:
                with serving(status, clock.now, port) as found:
                    lines.info("watching", health=f"http://{HOST}:{found}/health", **told)
                    watcher.run()
        lines.info("ended", reason=status.text())
    return status


@dataclasses.dataclass
class ArchiveWork:
    """A watcher's work with a real archive and model.

    Attributes:
        archive: where studies are found, and results stored.
        query: which studies.
        predictor: that is asked.
        model: which model it asks.
        insecure_tls: take any certificate of the archive's.
    """

    archive: Archive
    query: Query
    predictor: Predictor
    model: ModelIdentity
    insecure_tls: bool = False

    def found(self) -> Iterator[Found]:
        """Yield the studies that the query finds."""
        for found in self.archive.studies(self.query):
            instances = found.instances
            if instances is None:  # an archive that does not count
                try:
                    instances = len(self.archive.instances(found.study_uid))
                except UnavailableStudy:
                    continue
            yield Found(found.study_uid, found.series or 0, instances)

    def name(self, study_uid: str) -> str:
        """Return what a study is called in logs."""
        return name_in_archive(self.archive.url, study_uid)

    def answer(self, study_uid: str) -> int:
        """Answer a study, unless the archive holds its answer."""
        stored = 0
        try:
            for found in self._studies(study_uid):
                study = found.study
                if not isinstance(study, ArchiveStudy):
                    continue
                if not self.archive.has_instance(study_uid, self._report_uid(study)):
                    stored += self._answer(found)
        except (UnavailableStudy, UnreadableStudy) as error:
            raise StudyFailed(str(error)) from None
        except ServingError as error:
            raise Unreachable(str(error)) from None
        return stored

    def _studies(self, study_uid: str) -> list[FoundStudy]:
        """Return what the model reads of a study: one series or, if it was trained so, several."""
        description = self.predictor.description
        wanted = Wanted((study_uid,), None, self.insecure_tls)
        url = f"dicomweb+{self.archive.url}"
        studies, audit_entries = find_studies(
            url, description.modality, description.preparation, wanted
        )
        if not studies:
            failed = [e.detail for e in audit_entries if e.detail.startswith("the archive")]
            if failed:  # what it could not give now, it may give later
                raise StudyFailed(failed[0])
            raise NothingToRead(kinds_text(audit_entries))
        check_dicom(studies)
        return studies_of_path(url, studies, audit_entries)

    def _report_uid(self, study: ArchiveStudy) -> str:
        return derived_uid(REPORT, self.model, study.sop_uids)

    def _answer(self, found: FoundStudy) -> int:
        """Predict a study and store its results, the report last."""
        (record,) = records([found.study], self.predictor.storage)
        predictions = self.predictor.of(found, record)
        if error := next((one.error for one in predictions if one.error), None):
            raise StudyFailed(error)
        report, *others = results(answered(self.predictor, self.model, found, record, predictions))
        if others:
            store(others, self.archive)
        store([report], self.archive)
        return 1 + len(others)
