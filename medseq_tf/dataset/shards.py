"""The shards of a data set: studies read in worker processes, written by this process, in order.

So the same source and settings give the same bytes whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from medseq_tf.dataset.preparation import Preparation
from medseq_tf.dataset.publication import write_whole
from medseq_tf.dataset.records import (
    StorageSpec,
    StudyRecord,
    left_out,
    start_worker,
    study_record,
    study_record_of,
)
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES
from medseq_tf.errors import InputError
from medseq_tf.execution.processes import cores, isolated_map
from medseq_tf.files import naming
from medseq_tf.readers import AuditEntry, SourceIndex, StudySource

LEFT_OUT = ("study left out", "patient without label")
BYTES_TOGETHER = 2 * 2**20
MOST_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        name: of its file.
        bytes: its size.
        sha256: of its content.
        rows: its rows of `studies.parquet`, still with the names of their slices.
        audit_entries: what was odd about its studies.
    """

    name: str
    bytes: int
    sha256: str
    rows: list[dict[str, Any]]
    audit_entries: list[AuditEntry]

    def dump(self) -> str:
        """Return the shard as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> Shard:
        """Read what `dump` wrote.

        Raises:
            ValueError, LookupError or TypeError: it is something else.
        """
        values = json.loads(text)
        entries = [AuditEntry(**entry) for entry in values["audit_entries"]]
        return cls(**{**values, "audit_entries": entries})


def refuse_left_out(audit_entries: Iterable[AuditEntry]) -> None:
    """Raise an InputError if an entry says that a study is left out."""
    for entry in audit_entries:
        if entry.kind in LEFT_OUT:
            reason = f"{entry.where}: {entry.kind}"
            raise InputError(f"{reason} ({entry.detail}); with strict=False it is left out")


def write_shards(
    folder: Path, preparation: Preparation, workers: int | None, strict: bool, progress: bool
) -> list[Shard]:
    """Write the shards that are not there yet into a partial folder; return all, in order.

    The settings are those of `prepare`.
    """
    chunks = preparation.chunks()
    finished = [_finished_shard(folder, number) for number in range(len(chunks))]
    to_do = [s for chunk, done in zip(chunks, finished, strict=True) if not done for s in chunk]
    bar = click.progressbar(
        length=len(preparation.index.studies),
        label="Preparing",
        file=sys.stderr,
        hidden=not progress or not sys.stderr.isatty(),
    )
    shards = []
    with _records(preparation, to_do, workers) as records, bar:
        for number, (chunk, done) in enumerate(zip(chunks, finished, strict=True)):
            if done:
                bar.update(len(chunk))
            shards.append(
                done
                or _write_shard(folder, number, chunk, preparation, records, strict, bar.update)
            )
    return shards


def _finished_shard(folder: Path, number: int) -> Shard | None:
    """Return a shard that an earlier run finished, if it is whole and this version wrote it."""
    try:
        shard = Shard.load((folder / "progress" / f"{number:05}.json").read_text("utf-8"))
        data = (folder / "shards" / shard.name).read_bytes() if shard.rows else b""
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return shard if hashlib.sha256(data).hexdigest() == shard.sha256 else None


def _write_shard(
    folder: Path,
    number: int,
    studies: Sequence[StudySource],
    preparation: Preparation,
    records: Iterator[StudyRecord],
    strict: bool,
    advance: Callable[[int], None],
) -> Shard:
    name = f"{number:05}.tfrecord"
    partial = folder / "shards" / f"{name}.partial"
    sha256, offset = hashlib.sha256(), 0
    rows: list[dict[str, Any]] = []
    audit_entries: list[AuditEntry] = []
    with open(partial, "wb") as file:
        for study in studies:
            record = next(records)
            audit_entries += record.audit_entries
            if strict:
                refuse_left_out(record.audit_entries)
            if record.framed:
                rows.append(_row(preparation, study, record, name, offset))
                with naming(partial):
                    file.write(record.framed)
                    file.flush()
                sha256.update(record.framed)
                offset += len(record.framed)
            advance(1)
    if rows:
        partial.rename(folder / "shards" / name)
    else:
        partial.unlink()
    shard = Shard(name, offset, sha256.hexdigest(), rows, audit_entries)
    write_whole(folder / "progress" / f"{number:05}.json", shard.dump().encode())
    return shard


def _row(
    preparation: Preparation, study: StudySource, record: StudyRecord, shard: str, offset: int
) -> dict[str, Any]:
    """Return a study's row of `studies.parquet`, with the names of its slices."""
    return {
        "study_id": preparation.study_id(study),
        "patient_id": preparation.patient_id(study),
        "slices": len(record.slice_hashes),
        "split": study.split,
        "content_hash": record.content_hash,
        "slice_hashes": record.slice_hashes,
        "slice_names": record.slice_names,
        "source": study.source,
        "shard": shard,
        "offset": offset + HEADER_BYTES,
        "length": len(record.framed) - HEADER_BYTES - FOOTER_BYTES,
        **({"series": record.series} if record.series else {}),
        **{f"label.{name}": study.labels[name] for name in preparation.storage.label_names},
    }


Task = tuple[StudySource, str, StorageSpec]


@contextlib.contextmanager
def _records(
    preparation: Preparation, studies: list[StudySource], workers: int | None
) -> Iterator[Iterator[StudyRecord]]:
    """Give the records of some studies, in order, with few of them in flight.

    A study that ends its worker process is left out; with one worker it is read in this process.
    """
    tasks = ((study, preparation.study_id(study), preparation.storage) for study in studies)
    if workers == 1:
        yield (study_record(*task) for task in tasks)
        return
    workers = min(workers or cores(), len(preparation.index.studies))
    records = isolated_map(
        study_record_of,
        tasks,
        _left_out,
        workers,
        initializer=start_worker,
        together=_studies_together(preparation.index, workers),
    )
    with contextlib.closing(records):
        yield records


def _studies_together(index: SourceIndex, workers: int) -> int:
    """Count the studies that a worker is given at a time: several where they are small and many."""
    studies = len(index.studies)
    size = sum(size for _, size in index.listing) / studies
    small_enough = int(BYTES_TOGETHER / size) if size else 1
    return max(1, min(small_enough, MOST_TOGETHER, studies // (4 * workers)))


def _left_out(task: Task) -> StudyRecord:
    return left_out(task[0], "reading it ended its process, or took too long")
