"""The results of a study as DICOM objects: made, written to a folder, stored in an archive.

Their UIDs derive from the model and the source, so that the same answer twice is the same objects,
and the same files. What goes wrong is told without a word of the header.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseq_tf.errors import InputError
from medseq_tf.files import atomic, destination, remove_abandoned
from medseq_tf.readers.dicom.elements import quiet_pydicom
from medseq_tf.readers.storage import UnavailableStudy
from medseq_tf.readers.study import UnreadableStudy

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medseq_tf.readers.dicom.archive import Archive
    from medseq_tf.serving.dicom_results.answer import Answer
    from medseq_tf.serving.dicom_results.segmentation import SegmentationKind

REPORT = "report"
KINDS = (REPORT, "segmentation", "contact sheet")
"""In the order in which they are made; a model that maps no lesions gives no segmentation."""


def check_installed() -> None:
    """Raise an InputError if the library is missing that makes the objects."""
    if importlib.util.find_spec("highdicom") is None:
        raise InputError("results as DICOM objects need highdicom: pip install 'medseq_tf[dicom]'")


def results(
    answer: Answer, kinds: Sequence[str] = KINDS, seg: SegmentationKind = "binary"
) -> list[Dataset]:
    """Make the DICOM objects of what a model says of a study.

    Args:
        answer: what it says.
        kinds: which of `KINDS`.
        seg: of what kind a segmentation is.

    Raises:
        InputError: they cannot be made of this study.
    """
    makers = _makers(seg)
    with told_plainly(), _quiet():
        made = [makers[kind](answer) for kind in KINDS if kind in kinds]
    return [data_set for data_set in made if data_set is not None]


def _makers(seg: SegmentationKind) -> dict[str, Callable[[Answer], Dataset | None]]:
    from medseq_tf.serving.dicom_results.contact_sheet import contact_sheet
    from medseq_tf.serving.dicom_results.segmentation import segmentation
    from medseq_tf.serving.dicom_results.structured_report import structured_report

    segmented = functools.partial(segmentation, kind=seg)
    return dict(zip(KINDS, (structured_report, segmented, contact_sheet), strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what pydicom and highdicom say of a header from the log and from warnings."""
    log = logging.getLogger("highdicom")
    level = log.level
    with quiet_pydicom():
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Make an InputError of what libraries raise for a study that is odd: they quote its header."""
    try:
        yield
    except (InputError, UnavailableStudy, UnreadableStudy, MemoryError):
        raise
    except Exception as error:  # each library has its own, of many kinds
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not pydicom's
            raise
        reason = type(error).__name__
        raise InputError(f"no DICOM object can be made of this study ({reason})") from None


def results_folder(folder: str | os.PathLike) -> Path:
    """Make the folder that results are written to, if it is not there; return its path.

    Raises:
        InputError: a file stands there, or on the way, or nothing can be written there.
    """
    path = destination(folder, "--dicom-out")
    if path.is_file():
        raise InputError(f"--dicom-out {folder}: is a file, not a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--dicom-out {folder}: cannot be made ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"--dicom-out {folder}: cannot be written to")
    remove_abandoned(path)
    return path


def write(data_sets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write objects to a folder, all of them or none; return their files.

    A file is called by the object's modality and a hash of its UID. One that is there already is
    replaced, as a whole. The first, a report, is written last: where it is, all are.
    """
    contents = {folder / _file_name(data_set): _bytes(data_set) for data_set in data_sets}
    new: list[Path] = []
    try:
        for path, content in reversed(contents.items()):
            new += [] if path.exists() else [path]
            with atomic(path) as temporary:
                temporary.write_bytes(content)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    return list(contents)


def store(data_sets: Sequence[Dataset], archive: Archive) -> None:
    """Store objects in an archive, the first of them, a report, last.

    Raises:
        InputError: it does not take one of them.
        Unreachable: it does not answer.
    """
    archive.store([_bytes(data_set) for data_set in reversed(data_sets)])


def _file_name(data_set: Dataset) -> str:
    digest = hashlib.sha256(data_set.SOPInstanceUID.encode()).hexdigest()[:16]
    return f"{data_set.Modality.lower()}-{digest}.dcm"


def _bytes(data_set: Dataset) -> bytes:
    """The whole file of an object."""
    buffer = io.BytesIO()
    with told_plainly(), _quiet():
        data_set.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
