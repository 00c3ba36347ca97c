"""What a data set says of itself: its counts, fingerprint, table of studies, and audit."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from medseq_tf.dataset.preparation import Preparation, digest
from medseq_tf.dataset.prepared import FORMAT_VERSION, audit_text
from medseq_tf.dataset.publication import write_whole
from medseq_tf.dataset.records import STORAGE
from medseq_tf.dataset.shards import Shard
from medseq_tf.errors import InputError
from medseq_tf.readers import AuditEntry, natural_key
from medseq_tf.readers.study import kinds_text

UNITS = {"photograph": "grey level", "CT": "HU", "MR": "arbitrary"}

Row = dict[str, Any]
"""A row of `studies.parquet`, with `slice_names`."""


def write_metadata(
    folder: Path, preparation: Preparation, shards: list[Shard], source: str | Path
) -> None:
    """Write everything beside the shards.

    Args:
        folder: the partial folder, whose shards are there.
        preparation: what was prepared.
        shards: all of them, in order.
        source: what the user calls the source.

    Raises:
        InputError: no study could be read.
    """
    index = preparation.index
    audit_entries = [
        *index.audit_entries,
        *itertools.chain.from_iterable(shard.audit_entries for shard in shards),
    ]
    rows = [row for shard in shards for row in shard.rows]
    if not rows:
        raise InputError(f"{source} holds no slice that can be read{found_text(audit_entries)}")
    counts = _counts(rows, index.label_names)
    studies = _parquet(rows)
    audit = _audit([*audit_entries, *_copies(rows)], counts)
    info = {
        "format_version": FORMAT_VERSION,
        "label_names": index.label_names,
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


def found_text(audit_entries: list[AuditEntry]) -> str:
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


def _parquet(rows: list[Row]) -> bytes:
    studies = pd.DataFrame(rows).drop(columns="slice_names")
    buffer = io.BytesIO()
    schema = pa.Schema.from_pandas(studies, preserve_index=False)
    for name, kind in (("split", pa.string()), ("slice_hashes", pa.list_(pa.string()))):
        position = schema.get_field_index(name)
        schema = schema.set(position, pa.field(name, kind))
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
    return digest(repr((FORMAT_VERSION, index.label_names, index.dtype, stored, studies)))


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
