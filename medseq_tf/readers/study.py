"""What a reader finds, in one shape for every file format: studies, slices, audit entries.

A reader is a function `index_<name>(source, ...) -> SourceIndex`. It only lists files; pixels are
decoded later, study by study and in worker processes, by `StudySource.read`.
"""

from __future__ import annotations

import abc
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseq_tf.readers.classes import Classes
from medseq_tf.readers.columns import OtherColumns
from medseq_tf.readers.series import Series

MODALITIES = ("photograph", "CT", "MR")
MOST_SLICES = 10_000
"""Of a study; more are no examination, and are counted, not read."""

LARGEST_SIDE = 8192
LARGEST_VOXELS = 2**29
"""Of a picture, and of a volume or series: what declares more is refused before it is decoded."""

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class AuditEntry:
    """One entry of the audit: a kind (`unreadable image`), where (a relative path), and why."""

    kind: str
    where: str
    detail: str = ""


def kinds_text(audit_entries: Iterable[AuditEntry]) -> str:
    """Say how many audit entries of each kind there are, and why the first of each."""
    by_kind: dict[str, list[str]] = {}
    for entry in audit_entries:
        by_kind.setdefault(entry.kind, []).append(entry.detail)
    texts = []
    for kind, details in by_kind.items():
        why = next(filter(None, details), "")
        texts.append(f"{len(details)} {kind}" + (f" ({why})" if why else ""))
    return ", ".join(texts)


class UnreadableStudy(Exception):
    """A study of which no slice can be used; carries the audit entries made while reading it."""

    def __init__(self, reason: str, audit_entries: list[AuditEntry] | None = None):
        super().__init__(reason)
        self.reason = reason
        self.audit_entries = audit_entries or []

    def __reduce__(self):
        return UnreadableStudy, (self.reason, self.audit_entries)


@dataclass(frozen=True)
class Slices:
    """The decoded slices of one study, in scan order.

    Attributes:
        images: T arrays (H, W), uint8 for photographs, int16 (HU) or uint16 otherwise, native size;
            (H, W, channels) where series are channels.
        masks: T arrays (H, W) uint8 of 0 and 1 on the grid of their image, or None.
        audit_entries: what was odd while reading, such as an unreadable image.
        names: what each image is called in the audit (its source-relative path); empty: its number.
        series: which of `SourceIndex.series` each is of; empty where they are no sequence.
        grid: where the slices lie in the patient, by which series are known to be registered: mm
            and cosines, (numbers,), or each picture's place in the scan; None where nothing tells.
        pictures: which of the study's pictures each is, where it is one: of DICOM studies whose
            slices are not resampled.
    """

    images: list[np.ndarray]
    masks: list[np.ndarray] | None = None
    audit_entries: list[AuditEntry] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    grid: np.ndarray | None = None
    pictures: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StudySource(abc.ABC):
    """One examination that a reader found; small, and picklable for worker processes.

    Attributes:
        source: unique source-relative posix path that names the study, such as `Stroke/58`.
        patient: the raw patient key, hashed by `prepare`. It reaches no run; where it is the name
            of a folder or file, `source` holds it.
        labels: label -> 0.0, 1.0 or nan (unknown).
        split: `train`, `validation`, `test`, or None where the source says nothing.
        others: what columns that are no labels say, see `columns.Values`; it reaches no record.
    """

    source: str
    patient: str
    labels: dict[str, float]
    split: str | None
    others: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def read_ahead(self) -> None:
        """Begin to read what takes waiting; `read` follows in this process, soon."""
        return

    @abc.abstractmethod
    def read(self) -> Slices:
        """Decode the study.

        Raises:
            UnreadableStudy: if not one slice can be used.
            UnavailableStudy: if its files lie behind a URL, and one cannot be read there.
        """


@dataclass
class SourceIndex:
    """What a reader found under a source, without decoding a pixel.

    Attributes:
        studies: in natural order of `source`.
        label_names: the labels, in the order of the label vector.
        modality: `photograph`, `CT` or `MR`.
        audit_entries: what was odd, counted and named in the audit.
        listing: (relative path, size in bytes) of every file that it relies on.
        root: the folder or URL that the listing is relative to; None for studies without files.
        dtype: what `Slices.images` hold: `uint8`, `int16` or `uint16`.
        resolved: what the reader settled, as JSON holds it: every option that is needed to read
            files of this kind alike (`layout`, `modality`, `axis`, ...), and how labels were
            matched (`match`). No path and nothing of a patient.
        classes: where the labels exclude each other, what they are; their names are `label_names`.
        columns: which columns beside labels the studies have.
        series: where a study holds several series, which, and how they are read.
        versions: of files behind a URL, by name: what changes with their content.
        shown_options: options as `dataset.json` may show them, where they may tell of a patient.
    """

    studies: Sequence[StudySource]
    label_names: list[str]
    modality: str = "photograph"
    audit_entries: list[AuditEntry] = field(default_factory=list)
    listing: list[tuple[str, int]] = field(default_factory=list)
    root: str | Path | None = None
    dtype: str = "uint8"
    resolved: dict[str, Any] = field(default_factory=dict)
    classes: Classes | None = None
    columns: OtherColumns | None = None
    series: Series | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    shown_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.studies = sorted(self.studies, key=lambda study: natural_key(study.source))


def source_salt(listing: list[tuple[str, int]]) -> bytes:
    """Return the salt of a source's hashed ids: the same source gives the same ids.

    It is `MEDSEQ_TF_SALT` from the environment, or else made from the listing of the source's
    files, which whoever holds the source can make again: set the variable where that is too little.
    """
    chosen = os.environ.get("MEDSEQ_TF_SALT")
    return (chosen or hashlib.sha256(repr(sorted(listing)).encode()).hexdigest()).encode()


def natural_key(name: str) -> tuple:
    """Make a sort key that reads runs of digits as numbers: `slice 2` comes before `slice 10`.

    >>> sorted(["58 (10)", "58 (9)", "6 (1)"], key=natural_key)
    ['6 (1)', '58 (9)', '58 (10)']
    """
    parts = _DIGITS.split(name.casefold())
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts), name
