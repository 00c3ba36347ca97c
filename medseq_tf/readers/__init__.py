"""Readers: files on disk become studies, `READERS[name](source) -> SourceIndex`."""

from __future__ import annotations

from collections.abc import Callable

from medseq_tf.readers.atlas import index_atlas
from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.image_folder import index_image_folder
from medseq_tf.readers.study import (
    AuditEntry,
    Slices,
    SourceIndex,
    StudySource,
    UnreadableStudy,
    natural_key,
)
from medseq_tf.readers.volumes import index_volumes

__all__ = [
    "READERS",
    "AuditEntry",
    "Slices",
    "SourceIndex",
    "StudySource",
    "UnreadableStudy",
    "natural_key",
]

READERS: dict[str, Callable[..., SourceIndex]] = {
    "image-folder": index_image_folder,
    "volumes": index_volumes,
    "atlas": index_atlas,
    "dicom": index_dicom,
}
