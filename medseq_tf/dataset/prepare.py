"""Takes a source that a reader understands; gives a prepared data set, decoded once.

The work is done study by study in worker processes; this process writes the shards, in order, so
that the same source and settings give the same bytes whatever the number of workers. Everything is
written beside the target, in `OUT.partial-<key>`, and renamed at the end. A run that was killed
leaves its finished shards there; the next run with the same source and settings goes on from them.
One process at a time prepares for a target, and what is there is replaced only with `overwrite`,
if it is a prepared data set and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import cv2
import pandas as pd
import pyarrow as pa

from medseq_tf import readers
from medseq_tf.dataset.audit import audit_text, build_audit
from medseq_tf.dataset.prepared import FORMAT_VERSION, LABELS_FILE, READS, Prepared
from medseq_tf.dataset.records import (
    STORAGE,
    Aspect,
    StorageSpec,
    StudyRecord,
    start_worker,
    study_record,
    study_record_of,
)
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES
from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.execution.processes import cores, isolated_map, start_server
from medseq_tf.files import destination, locked, naming
from medseq_tf.phantom.reader import index_demo
from medseq_tf.readers import AuditEntry, SourceIndex, StudySource
from medseq_tf.readers.study import kinds_text, source_salt

__all__ = ["Prepared", "prepare"]

STUDIES_PER_SHARD = 16
SMALLEST_SIZE, LARGEST_SIZE = 8, 1024
UNITS = {"photograph": "grey level", "CT": "HU", "MR": "arbitrary"}
FILES = ("dataset.json", "studies.parquet", "audit.json", "audit.txt", READS)
"""What a prepared data set's folder holds beside its shards."""
REPLACED = ".replaced"
LEFT_OUT = ("study left out", "patient without label")
BYTES_TOGETHER = 2 * 2**20
MOST_TOGETHER = 8
FILES_SYNCED_TOGETHER = 4

READERS = {**readers.READERS, "demo": index_demo}
"""Name -> reader; the demo reads no files."""

_IMPORTED_BY_WORKERS = ("medseq_tf.dataset.records",)
_IMPORTED_BY_READERS_WORKERS = dict.fromkeys(
    ("volumes", "atlas"), ("medseq_tf.readers.simpleitk_volume",)
)


def prepare(
    reader: str,
    source: str | Path | None = None,
    *,
    out: str | Path,
    labels: str | Path | int | None = None,
    size: int = 64,
    aspect: Aspect = "pad",
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options,
) -> Prepared:
    """Reads a source once and writes it as a prepared data set.

    With several workers, call it under `if __name__ == "__main__":` in a script.

    Args:
        reader: one of `READERS`.
        source: what the reader reads; `demo` needs none.
        out: the folder to make.
        labels: for the reader: a CSV of labels; for `demo` the number of labels.
        size: side of the stored slices in pixels, 8 to 1024. Slices shrink by area, grow linearly.
        aspect: `pad` keeps the aspect ratio by padding to a square, `stretch` does not.
        workers: processes; default: one a core. 1: this process, which a damaged file that crashes
            its decoder then ends.
        strict: a study that would be left out is an error.
        overwrite: replace `out` where it is a prepared data set, and holds nothing else.
        progress: show a progress bar on standard error.
        **options: for the reader.

    Raises:
        InputError: for settings or a source that cannot be used, or when `out` exists.
    """
    is_link, out = Path(out).is_symlink(), destination(out).absolute()
    _check_settings(size, aspect, workers)
    _check_place(out, source)
    _check_target(out, overwrite, is_link)
    if workers != 1:
        start_server(*_IMPORTED_BY_WORKERS, *_IMPORTED_BY_READERS_WORKERS.get(reader, ()))
    scan = _scan(reader, source, labels, size, options)
    if strict:
        _refuse_left_out(scan.audit_entries)
    if not scan.studies:
        raise InputError(
            f"{source or reader} holds no study that can be used{_kinds(scan.audit_entries)}"
        )
    job = _Job.of(reader, {"labels": labels, **options}, scan, size, aspect)
    with _preparing(out):
        _check_target(out, overwrite, is_link)  # it may have come since
        folder = _partial_folder(out, job.key())
        try:
            _write_all(folder, job, workers, strict, progress, source or reader)
        except InputError:
            shutil.rmtree(folder)
            raise
        _check_target(out, overwrite, is_link)
        _publish(folder, out)
    return Prepared.load(out)


# ------------------------------------------------------------------------------ what the user gave


def _check_settings(size: int, aspect: str, workers: int | None) -> None:
    if not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise InputError(
            f"size={size!r} is not a whole number of pixels from {SMALLEST_SIZE} to {LARGEST_SIZE}"
        )
    if aspect not in ("pad", "stretch"):
        raise InputError(f"aspect={aspect!r} is unknown; valid: pad, stretch")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise InputError(f"workers={workers!r} is not a number of processes, 1 or more")


def _check_place(out: Path, source: str | Path | None) -> None:
    if source is not None:
        inside, holds = out.resolve(), Path(source).resolve()
        if inside.is_relative_to(holds) or holds.is_relative_to(inside):
            raise InputError(f"out={out} and the source lie in one another; choose a folder apart")


def _check_target(out: Path, overwrite: bool, is_link: bool) -> None:
    """Raises an InputError if `out` exists and is not to be replaced: whatever is not of ours."""
    if not out.exists():
        return
    if not overwrite:
        raise InputError(
            f"{out} exists; choose another out, or overwrite=True (--overwrite) to replace it"
        )
    if is_link:
        raise InputError(f"out is a symbolic link; to replace what it points to, give {out} itself")
    if (out / "experiment.yaml").exists() or (out / "run.json").exists():
        raise InputError(f"{out} is the folder of a run, so it is not overwritten")
    if not (out / "dataset.json").is_file() or not (out / "shards").is_dir():
        raise InputError(f"{out} is not a prepared data set, so it is not overwritten")
    if foreign := next(iter(_foreign(out)), None):
        raise InputError(
            f"{out} holds more than a prepared data set, so it is not overwritten: move "
            f"{foreign.relative_to(out)} elsewhere first"
        )


def _foreign(data_set: Path) -> Iterator[Path]:
    """Gives what `prepare` did not write into a data set's folder."""
    for path in sorted(data_set.iterdir()):
        if path.name == "shards":
            yield from (s for s in sorted(path.iterdir()) if s.suffix != ".tfrecord")
        elif path.name not in FILES or not path.is_file():
            yield path


def _scan(reader: str, source: str | Path | None, labels, size: int, options: dict) -> SourceIndex:
    if reader not in READERS:
        guess = did_you_mean(reader, READERS)
        raise InputError(f"reader {reader!r} is unknown{guess}; valid: {', '.join(READERS)}")
    scan = READERS[reader]
    parameters = inspect.signature(scan).parameters
    given = {**options} if labels is None else {"labels": labels, **options}
    for name in given:
        if name not in parameters:
            valid = ", ".join(p for p in parameters if p not in ("source", "size"))
            raise InputError(f"{name} is not an option of reader {reader}; valid: {valid}")
    if source is None and parameters["source"].default is inspect.Parameter.empty:
        raise InputError(f"reader {reader} needs a source, the folder to read")
    if "size" in parameters:
        given["size"] = size
    return scan(source, **given)


def _refuse_left_out(audit_entries: Iterable[AuditEntry]) -> None:
    for entry in audit_entries:
        if entry.kind in LEFT_OUT:
            reason = f"{entry.where}: {entry.kind}"
            raise InputError(f"{reason} ({entry.detail}); with strict=False it is left out")


def _kinds(audit_entries: Iterable[AuditEntry]) -> str:
    counted = kinds_text(audit_entries)
    return f"; found: {counted}" if counted else ""


# --------------------------------------------------------------------------------- what to be done


@dataclasses.dataclass(frozen=True)
class _Job:
    """A scan, how it is to be stored, and the salt of its ids."""

    scan: SourceIndex
    recipe: StorageSpec
    preparation: dict
    salt: bytes

    @classmethod
    def of(cls, reader: str, options: dict, scan: SourceIndex, size: int, aspect: Aspect) -> _Job:
        recipe = StorageSpec(tuple(scan.label_names), scan.dtype, size, aspect)
        if options.get("labels") is not None and scan.root:
            options = options | {"labels": LABELS_FILE}  # its name may say whose it is
        preparation = {
            "reader": reader,
            "options": {k: _plain(v) for k, v in sorted(options.items()) if v is not None},
            "resolved": {k: _plain(v) for k, v in sorted(scan.resolved.items())},
            "size": size,
            "aspect": aspect,
            "padding": 0 if scan.dtype == "uint8" else "minimum",
            "shrinking": "area",
            "growing": "linear",
            "studies_per_shard": STUDIES_PER_SHARD,
        }
        return cls(scan, recipe, preparation, source_salt(scan.listing))

    def study_id(self, study: StudySource) -> str:
        return _digest(self.salt, "study", study.source)[:16]

    def patient_id(self, study: StudySource) -> str:
        return _digest(self.salt, "patient", study.patient)[:16]

    def chunks(self) -> list[list[StudySource]]:
        """The studies of each shard; one that is left out does not move the others."""
        studies = self.scan.studies
        starts = range(0, len(studies), STUDIES_PER_SHARD)
        return [studies[start : start + STUDIES_PER_SHARD] for start in starts]

    def key(self) -> str:
        """Changes with anything that the shards depend on, modification times included."""
        studies = [
            (s.source, self.patient_id(s), sorted(s.labels.items()), s.split)
            for s in self.scan.studies
        ]
        files = [(name, size, _modified(self.scan.root, name)) for name, size in self.scan.listing]
        content = (FORMAT_VERSION, cv2.__version__, self.preparation, self.scan.label_names)
        return _digest(self.salt, repr((content, studies, files)))[:12]


def _plain(value):
    """An option as JSON."""
    return list(value) if isinstance(value, (tuple, set)) else value


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _modified(root: Path | None, name: str) -> int:
    try:
        return 0 if root is None else os.stat(os.path.join(root, name)).st_mtime_ns
    except OSError:
        return 0


def _write_all(
    folder: Path, job: _Job, workers: int | None, strict: bool, progress: bool, source: str | Path
) -> None:
    """Writes the data set into the partial folder."""
    with _executor(workers, job.scan) as executor:
        shards = list(_shards(folder, job, executor, strict, progress))
    audit_entries = [
        *job.scan.audit_entries,
        *itertools.chain.from_iterable(s.audit_entries for s in shards),
    ]
    rows = [row for shard in shards for row in shard.rows]
    if not rows:
        raise InputError(f"{source} holds no slice that can be read{_kinds(audit_entries)}")
    _write_data_set(folder, job, shards, rows, audit_entries)


# ------------------------------------------------------------------------------- the partial folder


@contextlib.contextmanager
def _preparing(out: Path) -> Iterator[None]:
    """Keeps other processes from preparing for the same target; a kill frees it.

    What killed processes left for the target is removed, but for what can be gone on from; a data
    set that one of them was about to replace stands in its place again.
    """
    lock = out.with_name(f".{out.name}.preparing")
    with locked(lock, f"{out} is being prepared by another process; wait for it to end"):
        for replaced in _left(out, REPLACED):
            if out.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(out)
        yield


def _left(out: Path, end: str = "") -> list[Path]:
    """The folders that runs have left beside their target."""
    name = re.compile(rf"{re.escape(out.name)}\.partial-[0-9a-f]{{12}}{re.escape(end)}")
    return [path for path in out.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def _partial_folder(out: Path, key: str) -> Path:
    """Makes the folder that is written to; an interrupted run's is gone on from.

    What runs with another source or other settings left for this target is removed.
    """
    folder = out.with_name(f"{out.name}.partial-{key}")
    for name in ("shards", "progress"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "lock").unlink(missing_ok=True)  # of version 0.1.0
    for other in _left(out):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _publish(folder: Path, out: Path) -> None:
    """Gives the folder its name once all of it is on the disk.

    Until then nothing waits for the disk: what a power cut left half written of a shard, the next
    run finds by its hash. Many files at a time share the disk's waits.
    """
    shutil.rmtree(folder / "progress")
    with ThreadPoolExecutor(FILES_SYNCED_TOGETHER) as threads:
        list(threads.map(_sync, [*folder.rglob("*"), folder]))
    if out.exists():
        replaced = out.with_name(f"{folder.name}{REPLACED}")
        out.rename(replaced)
        if (replaced / READS).is_file():  # the patients have been read, whatever is prepared anew
            shutil.copyfile(replaced / READS, folder / READS)
        folder.rename(out)
        shutil.rmtree(replaced)
    else:
        folder.rename(out)
    _sync(out.parent)


def _write(path: Path, data: bytes) -> None:
    """Writes a file so that it is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    with naming(path, instead_of=partial):
        partial.write_bytes(data)
        partial.rename(path)


def _sync(path: Path) -> None:
    """Waits until a file is on the disk; of a folder its names, where the system can."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------------------- the shards


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A finished shard: its rows of `studies.parquet`, still with the names of their slices."""

    name: str
    bytes: int
    sha256: str
    rows: list[dict]
    audit_entries: list[AuditEntry]

    def dump(self) -> bytes:
        audit_entries = [vars(entry) for entry in self.audit_entries]
        return json.dumps({**vars(self), "audit_entries": audit_entries}).encode()

    @classmethod
    def load(cls, data: bytes) -> _Shard:
        values = json.loads(data)
        values["audit_entries"] = [AuditEntry(**entry) for entry in values["audit_entries"]]
        return cls(**values)


def _shards(
    folder: Path, job: _Job, executor: _Executor, strict: bool, progress: bool
) -> Iterator[_Shard]:
    """Writes the shards that are not there yet; gives all, in order."""
    chunks = job.chunks()
    finished = [_finished_shard(folder, number) for number in range(len(chunks))]
    to_do = [s for chunk, done in zip(chunks, finished, strict=True) if not done for s in chunk]
    records = executor((study, job.study_id(study), job.recipe) for study in to_do)
    bar = click.progressbar(
        length=len(job.scan.studies),
        label="Preparing",
        file=sys.stderr,
        hidden=not progress or not sys.stderr.isatty(),
    )
    with bar:
        for number, (chunk, done) in enumerate(zip(chunks, finished, strict=True)):
            if done:
                bar.update(len(chunk))
            yield done or _write_shard(folder, number, chunk, job, records, strict, bar.update)


def _finished_shard(folder: Path, number: int) -> _Shard | None:
    """A shard that an earlier run finished, if it is whole."""
    try:
        shard = _Shard.load((folder / "progress" / f"{number:05}.json").read_bytes())
        data = (folder / "shards" / shard.name).read_bytes() if shard.rows else b""
    except (OSError, ValueError, TypeError):
        return None
    return shard if hashlib.sha256(data).hexdigest() == shard.sha256 else None


def _write_shard(
    folder: Path,
    number: int,
    chunk: list[StudySource],
    job: _Job,
    records: Iterator[StudyRecord],
    strict: bool,
    advance: Callable[[int], None],
) -> _Shard:
    name = f"{number:05}.tfrecord"
    partial = folder / "shards" / f"{name}.partial"
    digest, offset, rows, audit_entries = hashlib.sha256(), 0, [], []
    with open(partial, "wb") as file:
        for study in chunk:
            record = next(records)
            audit_entries += record.audit_entries
            if strict:
                _refuse_left_out(record.audit_entries)
            if record.framed:
                rows.append(_row(job, study, record, name, offset))
                with naming(partial):
                    file.write(record.framed)
                    file.flush()
                digest.update(record.framed)
                offset += len(record.framed)
            advance(1)
    if rows:
        partial.rename(folder / "shards" / name)
    else:
        partial.unlink()
    shard = _Shard(name, offset, digest.hexdigest(), rows, audit_entries)
    _write(folder / "progress" / f"{number:05}.json", shard.dump())
    return shard


def _row(job: _Job, study: StudySource, record: StudyRecord, shard: str, offset: int) -> dict:
    labels = {name: study.labels[name] for name in job.recipe.label_names}
    return {
        "study_id": job.study_id(study),
        "patient_id": job.patient_id(study),
        "slices": len(record.slice_hashes),
        "split": study.split,
        "content_hash": record.content_hash,
        "slice_hashes": record.slice_hashes,
        "slice_names": record.slice_names,
        "source": study.source,
        "shard": shard,
        "offset": offset + HEADER_BYTES,
        "length": len(record.framed) - HEADER_BYTES - FOOTER_BYTES,
        **{f"label.{name}": value for name, value in labels.items()},
    }


# ----------------------------------------------------------------------------- the worker processes

_Task = tuple[StudySource, str, StorageSpec]
_Executor = Callable[[Iterable[_Task]], Iterator[StudyRecord]]


@contextlib.contextmanager
def _executor(workers: int | None, scan: SourceIndex) -> Iterator[_Executor]:
    """Maps `study_record` over tasks, in order, with few studies in flight.

    A study that ends its worker process is left out; with one worker it is read in this process.
    """
    if workers == 1:
        yield lambda tasks: (study_record(*task) for task in tasks)
        return
    workers = min(workers or cores(), len(scan.studies))
    together = _studies_together(scan, workers)
    with contextlib.ExitStack() as stack:
        yield lambda tasks: stack.enter_context(
            contextlib.closing(
                isolated_map(
                    study_record_of,
                    tasks,
                    _left_out,
                    workers,
                    initializer=start_worker,
                    together=together,
                )
            )
        )


def _studies_together(scan: SourceIndex, workers: int) -> int:
    """How many studies a worker is given at a time: several where they are small and many."""
    studies = len(scan.studies)
    size = sum(size for _, size in scan.listing) / studies
    small_enough = int(BYTES_TOGETHER / size) if size else 1
    return max(1, min(small_enough, MOST_TOGETHER, studies // (4 * workers)))


def _left_out(task: _Task) -> StudyRecord:
    reason = "reading it ended its process, or took too long"
    return StudyRecord(audit_entries=[AuditEntry("study left out", task[0].source, reason)])


# ------------------------------------------------------------------------- the data set's own files


def _write_data_set(
    folder: Path, job: _Job, shards: list[_Shard], rows: list[dict], audit_entries: list[AuditEntry]
) -> None:
    """Writes everything beside the shards."""
    audit_entries = audit_entries + _copies(rows)
    counts = _counts(rows, job.scan.label_names)
    studies = _parquet(rows)
    audit = build_audit(audit_entries, {k: counts[k] for k in ("studies", "patients", "slices")})
    info = {
        "format_version": FORMAT_VERSION,
        "label_names": job.scan.label_names,
        "modality": job.scan.modality,
        "unit": UNITS[job.scan.modality],
        "size": job.recipe.size,
        "storage": STORAGE[job.scan.dtype],
        "counts": counts,
        "fingerprint": _fingerprint(job, rows),
        "preparation": job.preparation,
        "studies": {"bytes": len(studies), "sha256": hashlib.sha256(studies).hexdigest()},
        "shards": {s.name: {"bytes": s.bytes, "sha256": s.sha256} for s in shards if s.rows},
    }
    _write(folder / "audit.json", _json(audit))
    _write(folder / "audit.txt", audit_text(audit).encode())
    _write(folder / "studies.parquet", studies)
    _write(folder / "dataset.json", _json(info))


def _json(value: dict) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def _parquet(rows: list[dict]) -> bytes:
    studies = pd.DataFrame(rows).drop(columns="slice_names")
    buffer = io.BytesIO()
    schema = pa.Schema.from_pandas(studies, preserve_index=False)
    for name, kind in (("split", pa.string()), ("slice_hashes", pa.list_(pa.string()))):
        position = schema.get_field_index(name)
        schema = schema.set(position, pa.field(name, kind))
    studies.to_parquet(buffer, index=False, schema=schema)
    return buffer.getvalue()


def _counts(rows: list[dict], label_names: list[str]) -> dict:
    values = {name: [row[f"label.{name}"] for row in rows] for name in label_names}
    return {
        "studies": len(rows),
        "patients": len({row["patient_id"] for row in rows}),
        "slices": sum(row["slices"] for row in rows),
        "labels": {
            name: {
                "positive": sum(v == 1 for v in known),
                "negative": sum(v == 0 for v in known),
                "unknown": sum(math.isnan(v) for v in known),
            }
            for name, known in values.items()
        },
    }


def _fingerprint(job: _Job, rows: list[dict]) -> str:
    """Of content, labels, splits, who shares a patient, and storage; not of names or places."""
    patients: dict[str, int] = {}
    studies = [
        (
            row["content_hash"],
            [row[f"label.{name}"] for name in job.scan.label_names],
            row["split"],
            patients.setdefault(row["patient_id"], len(patients)),
        )
        for row in rows
    ]
    read = ("reader", "options", "resolved")  # what came of it is in the content
    stored = {k: v for k, v in job.preparation.items() if k not in read}
    return _digest(repr((FORMAT_VERSION, job.scan.label_names, job.scan.dtype, stored, studies)))


def _copies(rows: list[dict]) -> list[AuditEntry]:
    """Slices whose pixels were seen before; where two patients share one, one of them may leak."""
    first: dict[str, tuple[dict, int]] = {}
    audit_entries = []
    for row in rows:
        for place, digest in enumerate(row["slice_hashes"]):
            if digest is None:
                continue
            if digest not in first:
                first[digest] = (row, place)
                continue
            other, other_place = first[digest]
            if other is row:
                kind = "copy of a slice in its study"
            elif other["patient_id"] == row["patient_id"]:
                kind = "copy of a slice in another study of its patient"
            else:
                kind = "copy of a slice in another patient"
            detail = f"same picture as {_slice_name(other, other_place)}"
            audit_entries.append(AuditEntry(kind, _slice_name(row, place), detail))
    return audit_entries


def _slice_name(row: dict, place: int) -> str:
    names = row["slice_names"]
    return names[place] if names else f"{row['source']} slice {place + 1}"
