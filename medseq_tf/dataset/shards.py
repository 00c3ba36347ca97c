"""The shards of a data set: the same source and settings give the same bytes, whoever writes them.

On one machine worker processes read the studies and this process writes them, in order. On Ray a
shard is one piece of work: a worker reads its studies and writes it, so that no slices travel. A
shard whose workers have died twice, by a study or with their nodes, is written here, of studies
that are read one a piece; one that ends its worker three times by itself is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import secrets
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from medseq_tf.dataset.preparation import Preparation
from medseq_tf.dataset.records import (
    StorageSpec,
    StudyRecord,
    left_out,
    start_worker,
    study_record_of,
)
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES
from medseq_tf.errors import InputError
from medseq_tf.execution.executor import Executor
from medseq_tf.execution.processes import bound_memory
from medseq_tf.execution.work import SECONDS_AN_ITEM, each_within, require_seen
from medseq_tf.files import naming
from medseq_tf.readers import AuditEntry, SourceIndex, StudySource
from medseq_tf.readers.storage import Place

LEFT_OUT = ("study left out", "patient without label")
BYTES_TOGETHER = 2 * 2**20
MOST_TOGETHER = 8
DEATHS_OF_A_SHARD = 2
"""Workers that a shard may end before its studies are read one a piece."""

SEEN = "source and out"
"""What all nodes are to see."""

PARTIAL = ".partial"

Task = tuple[StudySource, str, StorageSpec]


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


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """What goes into a shard; small, and picklable for workers.

    Attributes:
        number: of the shard.
        studies: those that it holds, unless they are left out.
        study_ids: their ids.
        patient_ids: those of their patients.
        storage: how their slices are stored.
    """

    number: int
    studies: Sequence[StudySource]
    study_ids: list[str]
    patient_ids: list[str]
    storage: StorageSpec

    @property
    def tasks(self) -> list[Task]:
        """What a record is made of, for each study."""
        pairs = zip(self.studies, self.study_ids, strict=True)
        return [(study, study_id, self.storage) for study, study_id in pairs]


def write_shards(
    folder: Path,
    preparation: Preparation,
    executor: Executor,
    strict: bool,
    progress: bool,
) -> list[Shard]:
    """Write the shards that are not there yet into a partial folder; return all, in order.

    The settings are those of `prepare`.
    """
    _remove_partial(folder)
    chunks = preparation.chunks()
    finished = [_finished_shard(folder, number) for number in range(len(chunks))]
    plans = (
        ShardPlan(
            number,
            chunk,
            [preparation.study_id(study) for study in chunk],
            [preparation.patient_id(study) for study in chunk],
            preparation.storage,
        )
        for number, chunk in enumerate(chunks)
        if not finished[number]
    )
    bar = click.progressbar(
        length=len(preparation.index.studies),
        label="Preparing",
        file=sys.stderr,
        hidden=not progress or not sys.stderr.isatty(),
    )
    with bar:
        if executor.shared:
            written = _written_elsewhere(plans, folder, preparation.index, executor, strict)
        else:
            written = _written_here(plans, folder, preparation.index, executor, strict, bar.update)
        shards = []
        with contextlib.closing(written):
            for chunk, done in zip(chunks, finished, strict=True):
                shards.append(done or next(written))
                if done or executor.shared:
                    bar.update(len(chunk))
    return shards


def _written_here(
    plans: Iterable[ShardPlan],
    folder: Path,
    index: SourceIndex,
    executor: Executor,
    strict: bool,
    advance: Callable[[int], None],
) -> Generator[Shard]:
    """Write shards in this process, of studies that are read in others, unless one is asked for.

    A study that ends its worker process is left out.
    """
    of_tasks, plans = itertools.tee(plans)
    records = executor.map(
        study_record_of,
        (task for plan in of_tasks for task in plan.tasks),
        _left_out,
        name="prepare",
        initializer=start_worker,
        together=_studies_together(index, executor.workers),
    )

    def counted() -> Iterator[StudyRecord]:
        for record in records:
            yield record
            advance(1)

    with contextlib.closing(records):
        one_by_one = counted()
        for plan in plans:
            yield _write_shard(folder, plan, one_by_one, strict)


def _written_elsewhere(
    plans: Iterable[ShardPlan], folder: Path, index: SourceIndex, executor: Executor, strict: bool
) -> Generator[Shard]:
    """Let workers on other machines write shards."""

    def by_study(plan: ShardPlan) -> Shard:
        records = executor.map(
            study_record_of,
            plan.tasks,
            _left_out,
            name="prepare",
            initializer=_start_elsewhere,
        )
        with contextlib.closing(records):
            return _write_shard(folder, plan, records, strict)

    return executor.map(
        functools.partial(_write_seen, folder, index.root, _first_file(index), strict),
        plans,
        by_study,
        name="prepare",
        initializer=_start_elsewhere,
        seconds=math.inf,  # each of its studies has its own time
        deaths=DEATHS_OF_A_SHARD,
    )


def _start_elsewhere() -> None:
    """Let a worker of Ray have one thread and so much memory as one beside this process has."""
    start_worker()
    bound_memory()


def _first_file(index: SourceIndex) -> str:
    return index.listing[0][0] if index.listing else ""


def _write_seen(
    folder: Path, root: Place | None, first_file: str, strict: bool, plan: ShardPlan
) -> Shard:
    """Write a shard on a machine, if it sees where from, the first file of it too, and where to.

    Raises:
        Unreachable: it does not.
        InputError: with `strict`, a study is left out.
    """
    require_seen(folder / "progress", SEEN)
    if isinstance(root, Path):
        require_seen(root, SEEN, first_file)
    records = each_within(SECONDS_AN_ITEM, study_record_of, _with_reads_ahead(plan.tasks))
    return _write_shard(folder, plan, records, strict)


def _finished_shard(folder: Path, number: int) -> Shard | None:
    """Return a shard that an earlier run finished, if it is whole and this version wrote it."""
    try:
        shard = Shard.load((folder / "progress" / f"{number:05}.json").read_text("utf-8"))
        data = (folder / "shards" / shard.name).read_bytes() if shard.rows else b""
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return shard if hashlib.sha256(data).hexdigest() == shard.sha256 else None


def _write_shard(
    folder: Path, plan: ShardPlan, records: Iterator[StudyRecord], strict: bool
) -> Shard:
    """Write a shard, and that it is finished; two that write the same one do no harm.

    Its studies' records are the next of `records`.
    """
    name = f"{plan.number:05}.tfrecord"
    sha256, offset = hashlib.sha256(), 0
    rows: list[dict[str, Any]] = []
    audit_entries: list[AuditEntry] = []
    with _partial(folder / "shards" / name) as partial:
        with open(partial, "wb") as file:
            for place in range(len(plan.studies)):
                record = next(records)
                audit_entries += record.audit_entries
                if strict:
                    refuse_left_out(record.audit_entries)
                if record.framed:
                    rows.append(_row(plan, place, record, name, offset))
                    file.write(record.framed)
                    file.flush()
                    sha256.update(record.framed)
                    offset += len(record.framed)
        if not rows:
            partial.unlink()
    shard = Shard(name, offset, sha256.hexdigest(), rows, audit_entries)
    with _partial(folder / "progress" / f"{plan.number:05}.json") as partial:
        partial.write_text(shard.dump(), "utf-8")
    return shard


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yield where to write a file of the partial folder that then takes its place, if it is there.

    Nobody else writes there, and what a kill leaves there goes with the folder of progress.
    """
    partial = path.parent.with_name("progress") / f"{path.name}.{secrets.token_hex(6)}{PARTIAL}"
    try:
        with naming(path, instead_of=partial):
            yield partial
            if partial.exists():
                partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_partial(folder: Path) -> None:
    """Remove the files that killed processes were writing into a partial folder."""
    for place in ("shards", "progress"):
        for path in (folder / place).glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)


def _row(
    plan: ShardPlan, place: int, record: StudyRecord, shard: str, offset: int
) -> dict[str, Any]:
    """Return a study's row of `studies.parquet`, with the names of its slices."""
    study = plan.studies[place]
    return {
        "study_id": plan.study_ids[place],
        "patient_id": plan.patient_ids[place],
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
        **{f"label.{name}": study.labels[name] for name in plan.storage.label_names},
    }


def _with_reads_ahead(tasks: Sequence[Task]) -> Iterator[Task]:
    """Give tasks, the study of the one that follows being read ahead where that takes waiting."""
    for place, task in enumerate(tasks):
        for study, _, _ in tasks[place + 1 : place + 2]:
            study.read_ahead()
        yield task


def _studies_together(index: SourceIndex, workers: int) -> int:
    """Count the studies that a worker is given at a time: several where they are small and many."""
    studies = len(index.studies)
    size = sum(size for _, size in index.listing) / studies
    small_enough = int(BYTES_TOGETHER / size) if size else 1
    return max(1, min(small_enough, MOST_TOGETHER, studies // (4 * workers)))


def _left_out(task: Task) -> StudyRecord:
    return left_out(task[0], "reading it ended its process, or took too long")
