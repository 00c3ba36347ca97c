"""A study of picture files, and the series that its pictures may be of, a folder each."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.readers.joined_study import chosen_series, series_of
from medseq_tf.readers.names import listed
from medseq_tf.readers.pictures import UnreadablePicture, decode_picture
from medseq_tf.readers.series import SeriesAs
from medseq_tf.readers.silence import silenced
from medseq_tf.readers.storage import local_files, read_ahead
from medseq_tf.readers.study import (
    MOST_SLICES,
    AuditEntry,
    Slices,
    SourceIndex,
    StudySource,
    UnreadableStudy,
    natural_key,
)

LARGEST_FILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PictureStudy(StudySource):
    """A study whose slices are picture files under `root`, a folder or URL, in scan order."""

    root: str
    files: tuple[str, ...]

    def read_ahead(self) -> None:
        """Begin to read files behind a URL."""
        read_ahead(self.root, self.files)

    def read(self) -> Slices:
        """Decode every file that can be decoded; the others become audit entries."""
        if len(self.files) > MOST_SLICES:
            raise UnreadableStudy(f"{len(self.files)} images; a study has at most {MOST_SLICES}")
        images, names, places, audit_entries = [], [], [], []
        with silenced(), local_files(self.root, self.files) as path_of:
            for place, name in enumerate(self.files):
                try:
                    images.append(decode_picture(_read_bytes(path_of(name))))
                    names.append(name)
                    places.append(place)
                except UnreadablePicture as error:
                    audit_entries.append(AuditEntry("unreadable image", name, str(error)))
        if not images:
            raise UnreadableStudy("no slice can be read", audit_entries)
        return Slices(images, audit_entries=audit_entries, names=names, grid=np.array(places))


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE_BYTES:
                raise UnreadablePicture(f"larger than {LARGEST_FILE_BYTES >> 20} MiB")
            return file.readall()
    except OSError as error:
        raise UnreadablePicture(f"cannot be opened ({error.strerror})") from None


def in_series(
    index: SourceIndex,
    read_as: SeriesAs,
    wanted: str | Sequence[str] | None,
    all_there: bool = True,
) -> SourceIndex:
    """Return a source of which each study's files are told apart by the folder of their series.

    Args:
        index: the source, of picture files.
        read_as: how the series are read.
        wanted: which, in order; None: all.
        all_there: whether one that no study has is an error.

    Raises:
        InputError: no patient has a folder of a series that is wanted, or they cannot be read so.
    """
    of_series = _one_series_each(index)
    found = {series_of(study) for study in of_series.studies}
    asked = None if wanted is None else listed(wanted)
    absent = [name for name in asked or () if name not in found]
    if absent and all_there:
        raise InputError(
            f"no patient of {index.root} has a folder {', '.join(absent)} for a series; there are "
            f"{', '.join(sorted(found, key=natural_key)[:20]) or 'none'}"
        )
    return chosen_series(of_series, asked or sorted(found, key=natural_key), read_as)


def _one_series_each(index: SourceIndex) -> SourceIndex:
    """Return the studies of a source by the folder in the patient's that their files lie in."""
    studies: list[StudySource] = []
    for study in index.studies:
        if not isinstance(study, PictureStudy):
            continue
        by_series: dict[str, list[str]] = defaultdict(list)
        for file in study.files:
            folder, _, rest = file.removeprefix(f"{study.source}/").partition("/")
            if rest:
                by_series[folder].append(file)
            else:
                index.audit_entries.append(AuditEntry("picture of no series", file, "left out"))
        studies += [
            dataclasses.replace(
                study, source=f"{study.source}/{name}".lstrip("/"), files=tuple(files)
            )
            for name, files in by_series.items()
        ]
    return dataclasses.replace(index, studies=studies)
