"""What is to be prepared: a source's studies, how they are stored, and what their ids become."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from medseq_tf.dataset.prepared import FORMAT_VERSION, LABELS_FILE
from medseq_tf.dataset.records import Aspect, StorageSpec
from medseq_tf.readers import SourceIndex, StudySource
from medseq_tf.readers.study import source_salt

STUDIES_PER_SHARD = 16


@dataclasses.dataclass(frozen=True)
class Preparation:
    """One preparation of a source.

    Attributes:
        index: the source's studies.
        storage: how their slices are stored.
        settings: what `dataset.json` says of the preparation.
        salt: of the ids.
    """

    index: SourceIndex
    storage: StorageSpec
    settings: dict[str, Any]
    salt: bytes

    @classmethod
    def of(
        cls, reader: str, options: dict[str, Any], index: SourceIndex, size: int, aspect: Aspect
    ) -> Preparation:
        """Settle how a source is prepared, from what the user asked for and its reader resolved."""
        channels = index.series.channels if index.series else 1
        storage = StorageSpec(tuple(index.label_names), index.dtype, size, aspect, channels)
        tables = ("labels", "participants") if index.root else ()
        given = [name for name in tables if options.get(name) is not None]
        options = options | dict.fromkeys(given, LABELS_FILE)  # its name may say whose it is
        options = options | dict(index.shown_options)
        settings = {
            "reader": reader,
            "options": {k: _plain(v) for k, v in sorted(options.items()) if v is not None},
            "resolved": {k: _plain(v) for k, v in sorted(index.resolved.items())},
            "size": size,
            "aspect": aspect,
            "padding": 0 if index.dtype == "uint8" else "minimum",
            "shrinking": "area",
            "growing": "linear",
            "studies_per_shard": STUDIES_PER_SHARD,
        }
        return cls(index, storage, settings, source_salt(index.listing))

    def study_id(self, study: StudySource) -> str:
        """Return the salted hash that names a study."""
        return digest(self.salt, "study", study.source)[:16]

    def patient_id(self, study: StudySource) -> str:
        """Return the salted hash that names a study's patient."""
        return digest(self.salt, "patient", study.patient)[:16]

    def chunks(self) -> list[Sequence[StudySource]]:
        """Return the studies of each shard; one that is left out does not move the others."""
        studies = self.index.studies
        starts = range(0, len(studies), STUDIES_PER_SHARD)
        return [studies[start : start + STUDIES_PER_SHARD] for start in starts]

    def key(self) -> str:
        """Return what changes with anything that shards depend on, modification times included."""
        studies = [
            (study.source, self.patient_id(study), sorted(study.labels.items()), study.split)
            for study in self.index.studies
        ]
        root, versions = self.index.root, self.index.versions
        files = [
            (name, size, versions.get(name) or _modified(root, name))
            for name, size in self.index.listing
        ]
        classes = self.index.classes and self.index.classes.to_json()
        labels = (self.index.label_names, classes) if classes else self.index.label_names
        content = (FORMAT_VERSION, cv2.__version__, self.settings, labels)
        return digest(self.salt, repr((content, studies, files)))[:12]


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of some parts, each with its length."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace")
        sha256.update(len(data).to_bytes(8, "little") + data)
    return sha256.hexdigest()


def _plain(value: Any) -> Any:
    """Return an option as JSON holds it."""
    return list(value) if isinstance(value, (tuple, set)) else value


def _modified(root: str | Path | None, name: str) -> int:
    try:
        return 0 if root is None else os.stat(os.path.join(root, name)).st_mtime_ns
    except OSError:
        return 0
