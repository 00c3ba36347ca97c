"""Prepare: a source that a reader understands becomes a data set, decoded once.

The studies are read in worker processes (`shards`), everything is written beside the target and
renamed at the end (`publication`), and the same source and settings give the same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import inspect
import io
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from medseq_tf.dataset import other_columns
from medseq_tf.dataset.preparation import Preparation, digest
from medseq_tf.dataset.prepared import FORMAT_VERSION, Prepared, audit_text
from medseq_tf.dataset.publication import (
    check_target,
    partial_folder,
    preparing,
    publish,
    write_whole,
)
from medseq_tf.dataset.records import STORAGE, Aspect
from medseq_tf.dataset.shards import Shard, refuse_left_out, write_shards
from medseq_tf.errors import InputError, Unreachable, did_you_mean
from medseq_tf.execution.executor import check_workers, executor_for
from medseq_tf.execution.processes import cores, start_server
from medseq_tf.files import destination
from medseq_tf.phantom.reader import index_demo
from medseq_tf.readers import AuditEntry, SourceIndex, natural_key
from medseq_tf.readers.atlas import index_atlas
from medseq_tf.readers.columns import OtherColumns
from medseq_tf.readers.dicom.archive_study import index_dicomweb
from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.image_folder import index_image_folder
from medseq_tf.readers.labels import TableOptions
from medseq_tf.readers.storage import is_url, modules_for
from medseq_tf.readers.study import kinds_text
from medseq_tf.readers.volumes import index_volumes

__all__ = ["Prepared", "prepare"]

SMALLEST_SIZE, LARGEST_SIZE = 8, 1024

READERS: dict[str, Callable[..., SourceIndex]] = {
    "image-folder": index_image_folder,
    "volumes": index_volumes,
    "atlas": index_atlas,
    "dicom": index_dicom,
    "dicomweb": index_dicomweb,
    "demo": index_demo,
}
"""Name -> reader; the demo reads no files."""

UNITS = {"photograph": "grey level", "CT": "HU", "MR": "arbitrary"}

Row = dict[str, Any]
"""A row of `studies.parquet`, with `slice_names`."""


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
    ray: str | None = None,
    **options: Any,
) -> Prepared:
    """Read a source once and write it as a prepared data set.

    With several workers, call it under `if __name__ == "__main__":` in a script.

    Args:
        reader: one of `READERS`.
        source: what the reader reads, a path or a URL of s3://, gs:// or http(s)://; of `dicomweb`
            the archive's; `demo` needs none.
        out: the folder to make.
        labels: for the reader: a CSV of labels, or its URL; for `demo` the number of labels.
        size: side of the stored slices in pixels, 8 to 1024. Slices shrink by area, grow linearly.
        aspect: `pad` keeps the aspect ratio by padding to a square, `stretch` does not.
        workers: processes; default: one a core, or two where the source is a URL, for which they
            wait. 1: this process, which a damaged file that crashes its decoder then ends.
        strict: a study that would be left out is an error.
        overwrite: replace `out` where it is a prepared data set, and holds nothing else.
        progress: show a progress bar on standard error.
        ray: let the nodes of a Ray cluster read and write, see `execution.ray_cluster.connected`;
            `source` and `out` lie on storage that all of them see. `workers` are then pieces of
            work at a time; default: as many as there is room for.
        **options: for the reader.

    Raises:
        InputError: for settings, a source or a cluster that cannot be used, or when `out` exists.
    """
    if is_url(out):
        raise InputError("out is a URL; a data set is written into a folder: give a path")
    is_link, out = Path(out).is_symlink(), destination(out).absolute()
    _check_settings(size, aspect, workers)
    if workers is None and is_url(source) and not ray:
        workers = 2 * cores()
    _check_place(out, source)
    check_target(out, overwrite, is_link)
    if workers != 1 and not ray:
        start_server(*_imported_by_workers(reader, source))
    if ray and source is not None and not is_url(source):
        source = Path(source).absolute()
    with executor_for(workers, ray) as executor:
        settings = {"size": size, "workers": None if ray else workers}
        index = _index(reader, source, labels, settings, options)
        if strict:
            refuse_left_out(index.audit_entries)
        if not index.studies:
            found = _found_text(index.audit_entries)
            raise InputError(f"{source or reader} holds no study that can be used{found}")
        preparation = Preparation.of(reader, {"labels": labels, **options}, index, size, aspect)
        with preparing(out):
            check_target(out, overwrite, is_link)  # it may have come since
            folder = partial_folder(out, preparation.key())
            try:
                shards = write_shards(folder, preparation, executor, strict, progress)
                _write_metadata(folder, preparation, shards, source or reader)
            except Unreachable:
                raise
            except InputError:
                shutil.rmtree(folder, ignore_errors=executor.shared)  # a worker may still write
                raise
            check_target(out, overwrite, is_link)
            publish(folder, out)
    return Prepared.load(out)


def _imported_by_workers(reader: str, source: str | Path | None) -> list[str]:
    """Name the modules that every worker needs, so that one process imports them for all."""
    modules = ["medseq_tf.dataset.records"]
    if reader in READERS:
        modules.append(READERS[reader].__module__)
    if reader in ("volumes", "atlas"):
        modules.append("medseq_tf.readers.simpleitk_volume")
    return [*modules, *(["requests"] if reader == "dicomweb" else modules_for(source))]


def _check_settings(size: int, aspect: str, workers: int | None) -> None:
    if not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise InputError(
            f"size={size!r} is not a whole number of pixels from {SMALLEST_SIZE} to {LARGEST_SIZE}"
        )
    if aspect not in ("pad", "stretch"):
        raise InputError(f"aspect={aspect!r} is unknown; valid: pad, stretch")
    check_workers(workers)


def _check_place(out: Path, source: str | Path | None) -> None:
    if source is not None and not is_url(source):
        target, folder = out.resolve(), Path(source).resolve()
        if target.is_relative_to(folder) or folder.is_relative_to(target):
            raise InputError(f"out={out} and the source lie in one another; choose a folder apart")


def _index(
    reader: str,
    source: str | Path | None,
    labels: str | Path | int | None,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> SourceIndex:
    """List the studies of a source by the reader's name, once its options are known to be its.

    Args:
        reader: one of `READERS`.
        source: what it reads.
        labels: see `prepare`.
        settings: those of `prepare` itself that a reader may want to know.
        options: of the reader.
    """
    if reader not in READERS:
        hint = did_you_mean(reader, READERS)
        raise InputError(f"reader {reader!r} is unknown{hint}; valid: {', '.join(READERS)}")
    parameters = inspect.signature(READERS[reader]).parameters
    arguments = {**options} if labels is None else {"labels": labels, **options}
    known = _option_names(parameters.values())
    for name in arguments:
        if name not in known:
            valid = ", ".join(p for p in known if p not in ("source", *settings))
            raise InputError(f"{name} is not an option of reader {reader}; valid: {valid}")
    if source is None and parameters["source"].default is inspect.Parameter.empty:
        raise InputError(f"reader {reader} needs a source, the folder to read")
    arguments |= {name: value for name, value in settings.items() if name in parameters}
    return READERS[reader](source, **arguments)


def _option_names(parameters: Iterable[inspect.Parameter]) -> list[str]:
    """Name the options of a reader; what it takes as `**` are those of the table of labels."""
    return [
        name
        for parameter in parameters
        for name in (
            TableOptions.__annotations__
            if parameter.kind == inspect.Parameter.VAR_KEYWORD
            else [parameter.name]
        )
    ]


# ------------------------------------------------------- what a data set says of itself


def _write_metadata(
    folder: Path, preparation: Preparation, shards: list[Shard], source: str | Path
) -> None:
    """Write everything beside the shards into the partial folder.

    Raises:
        InputError: no study of the source could be read.
    """
    index = preparation.index
    audit_entries = [
        *index.audit_entries,
        *itertools.chain.from_iterable(shard.audit_entries for shard in shards),
    ]
    rows = [row for shard in shards for row in shard.rows]
    if not rows:
        raise InputError(f"{source} holds no slice that can be read{_found_text(audit_entries)}")
    others = other_columns.other_values(preparation, [row["source"] for row in rows])
    rows = [row | values for row, values in zip(rows, others, strict=True)]
    if index.columns:
        audit_entries += other_columns.audit_entries(index.columns, rows)
    counts = _counts(rows, index.label_names)
    studies = _parquet(rows, index.columns)
    audit = _audit([*audit_entries, *_rare_classes(rows, index), *_copies(rows)], counts)
    info = {
        "format_version": FORMAT_VERSION,
        "label_names": index.label_names,
        **({"classes": index.classes.to_json()} if index.classes else {}),
        **({"columns": index.columns.to_json()} if index.columns else {}),
        **({"series": index.series.to_json()} if index.series else {}),
        "modality": index.modality,
        "unit": UNITS[index.modality],
        "size": preparation.storage.size,
        "storage": STORAGE[index.dtype],
        "counts": counts,
        "fingerprint": _fingerprint(preparation, rows),
        "preparation": preparation.settings,
        "studies": {"bytes": len(studies), "sha256": hashlib.sha256(studies).hexdigest()},
        "shards": {s.name: {"bytes": s.bytes, "sha256": s.sha256} for s in shards if s.rows},
    }
    write_whole(folder / "audit.json", _json(audit))
    write_whole(folder / "audit.txt", audit_text(audit).encode())
    write_whole(folder / "studies.parquet", studies)
    write_whole(folder / "dataset.json", _json(info))


def _found_text(audit_entries: list[AuditEntry]) -> str:
    """Return what to add to an error that a source holds nothing: what there was instead."""
    counted = kinds_text(audit_entries)
    return f"; found: {counted}" if counted else ""


def _audit(audit_entries: list[AuditEntry], counts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `audit.json`, its entries by kind, then by where in natural order."""
    ordered = sorted(audit_entries, key=lambda e: (e.kind, natural_key(e.where), e.detail))
    return {
        "data_set": {name: counts[name] for name in ("studies", "patients", "slices")},
        "counts": dict(collections.Counter(entry.kind for entry in ordered)),
        "entries": [dataclasses.asdict(entry) for entry in ordered],
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


_ARROW = {"text": pa.string(), "whole": pa.int64(), "numbers": pa.float64()}


def _parquet(rows: list[Row], columns: OtherColumns | None) -> bytes:
    studies = pd.DataFrame(rows).drop(columns="slice_names")
    others = other_columns.kinds(columns) if columns else {}
    for name, kind in others.items():
        if kind != "text":
            studies[name] = studies[name].astype("Int64" if kind == "whole" else np.float64)
    buffer = io.BytesIO()
    schema = pa.Schema.from_pandas(studies, preserve_index=False)
    types = {"split": pa.string(), "slice_hashes": pa.list_(pa.string())}
    types |= {name: _ARROW[kind] for name, kind in others.items()}
    for name, arrow in types.items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, arrow))
    studies.to_parquet(buffer, index=False, schema=schema)
    return buffer.getvalue()


def _counts(rows: list[Row], label_names: list[str]) -> dict[str, Any]:
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


def _fingerprint(preparation: Preparation, rows: list[Row]) -> str:
    """Hash content, labels, splits, who shares a patient, and storage; not names or places."""
    index = preparation.index
    patients: dict[str, int] = {}
    studies = [
        (
            row["content_hash"],
            [row[f"label.{name}"] for name in index.label_names],
            row["split"],
            patients.setdefault(row["patient_id"], len(patients)),
        )
        for row in rows
    ]
    read = ("reader", "options", "resolved")  # what came of it is in the content
    stored = {k: v for k, v in preparation.settings.items() if k not in read}
    content: tuple[Any, ...] = (FORMAT_VERSION, index.label_names, index.dtype, stored, studies)
    if index.classes:
        content = (*content, index.classes.to_json())
    if index.columns:
        content = (*content, *other_columns.content(index.columns, rows))
    if index.series:
        of_slices = [list(row.get("series", ())) for row in rows]
        content = (*content, index.series.to_json(), of_slices)
    return digest(repr(content))


def _rare_classes(rows: list[Row], index: SourceIndex) -> list[AuditEntry]:
    """Find classes that no split can have in two of its parts."""
    audit_entries = []
    for name in index.label_names if index.classes else ():
        patients = {row["patient_id"] for row in rows if row[f"label.{name}"] == 1}
        if len(patients) < 2:
            count = "1 patient" if patients else "no patient"
            audit_entries.append(AuditEntry("class of fewer than two patients", name, count))
    return audit_entries


def _copies(rows: list[Row]) -> list[AuditEntry]:
    """Find slices whose pixels were seen before; two patients who share one may leak."""
    first: dict[str, tuple[Row, int]] = {}
    audit_entries = []
    for row in rows:
        for place, slice_hash in enumerate(row["slice_hashes"]):
            if slice_hash is None:
                continue
            other, other_place = first.setdefault(slice_hash, (row, place))
            if other is row and other_place == place:
                continue
            if other is row:
                kind = "copy of a slice in its study"
            elif other["patient_id"] == row["patient_id"]:
                kind = "copy of a slice in another study of its patient"
            else:
                kind = "copy of a slice in another patient"
            detail = f"same picture as {_slice_name(other, other_place)}"
            audit_entries.append(AuditEntry(kind, _slice_name(row, place), detail))
    return audit_entries


def _slice_name(row: Row, place: int) -> str:
    names = row["slice_names"]
    return names[place] if names else f"{row['source']} slice {place + 1}"
