"""Readers: files on disk become studies, `READERS[name](source) -> Scan`."""

from __future__ import annotations

from medseq_tf.readers.atlas import scan_atlas
from medseq_tf.readers.dicom import scan_dicom
from medseq_tf.readers.image_folder import scan_image_folder
from medseq_tf.readers.study import (
    Finding,
    Scan,
    Slices,
    StudySource,
    UnreadableStudy,
    natural_key,
)
from medseq_tf.readers.volumes import scan_volumes

__all__ = [
    "READERS",
    "Finding",
    "Scan",
    "Slices",
    "StudySource",
    "UnreadableStudy",
    "natural_key",
]

READERS = {
    "image-folder": scan_image_folder,
    "volumes": scan_volumes,
    "atlas": scan_atlas,
    "dicom": scan_dicom,
}
