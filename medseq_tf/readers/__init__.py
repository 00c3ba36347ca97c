"""Readers: files on disk become studies, each by its `index_<name>(source) -> SourceIndex`."""

from medseq_tf.readers.classes import Classes
from medseq_tf.readers.study import (
    AuditEntry,
    Slices,
    SourceIndex,
    StudySource,
    UnreadableStudy,
    natural_key,
)

__all__ = [
    "AuditEntry",
    "Classes",
    "Slices",
    "SourceIndex",
    "StudySource",
    "UnreadableStudy",
    "natural_key",
]
