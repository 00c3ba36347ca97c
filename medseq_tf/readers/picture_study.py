"""A study of picture files, and the series that its pictures may be of, a folder each."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.readers.names import listed
from medseq_tf.readers.pictures import UnreadablePicture, decode_picture
from medseq_tf.readers.series import Series, SeriesAs, checked_series
from medseq_tf.readers.silence import silenced
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
NOT_REGISTERED = "series are not of one place, slice by slice"


@dataclass(frozen=True)
class PictureStudy(StudySource):
    """A study whose slices are picture files under `root`, in the order of the scan.

    Attributes:
        root: the folder.
        files: paths in it; of series that are channels, those of each slice side by side.
        series: of each file the number of its series; empty without.
        channels: how many files make a slice.
    """

    root: str
    files: tuple[str, ...]
    series: tuple[int, ...] = ()
    channels: int = 1

    def read(self) -> Slices:
        """Decode every file that can be decoded; the others become audit entries."""
        if len(self.files) > MOST_SLICES:
            raise UnreadableStudy(f"{len(self.files)} images; a study has at most {MOST_SLICES}")
        slices = self._read_files()
        if self.channels == 1:
            return slices
        return self._with_channels(slices)

    def _read_files(self) -> Slices:
        slices = Slices([])
        with silenced():
            for number, name in enumerate(self.files):
                try:
                    slices.images.append(decode_picture(_read_bytes(os.path.join(self.root, name))))
                except UnreadablePicture as error:
                    slices.audit_entries.append(AuditEntry("unreadable image", name, str(error)))
                else:
                    slices.names.append(name)
                    slices.series.extend(self.series[number : number + 1])
        if not slices.images:
            raise UnreadableStudy("no slice can be read", slices.audit_entries)
        return slices

    def _with_channels(self, pictures: Slices) -> Slices:
        """Put the pictures of each slice side by side; a slice that lacks one is left out."""
        of_name = dict(zip(pictures.names, pictures.images, strict=True))
        slices = Slices([], audit_entries=pictures.audit_entries)
        for start in range(0, len(self.files), self.channels):
            names = self.files[start : start + self.channels]
            images = [of_name[name] for name in names if name in of_name]
            if len(images) < self.channels:
                continue
            if len({image.shape for image in images}) > 1:
                sizes = ", ".join(f"{image.shape[1]} x {image.shape[0]}" for image in images)
                raise UnreadableStudy(f"{NOT_REGISTERED}: {sizes}", slices.audit_entries)
            slices.images.append(np.stack(images, axis=-1))
            slices.names.append(names[0])
        if not slices.images:
            raise UnreadableStudy("no slice can be read in all series", slices.audit_entries)
        return slices


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE_BYTES:
                raise UnreadablePicture(f"larger than {LARGEST_FILE_BYTES >> 20} MiB")
            return file.readall()
    except OSError as error:
        raise UnreadablePicture(f"cannot be opened ({error.strerror})") from None


def in_series(
    index: SourceIndex, read_as: SeriesAs, wanted: str | Sequence[str] | None
) -> SourceIndex:
    """Return a source of which each study's files are told apart by the folder of their series."""
    sources = [study for study in index.studies if isinstance(study, PictureStudy)]
    found = {name for study in sources for name in _files_by_series(study)}
    asked = None if wanted is None else listed(wanted)
    absent = [name for name in asked or () if name not in found]
    if absent:
        raise InputError(
            f"no patient of {index.root} has a folder {', '.join(absent)} for a series; there are "
            f"{', '.join(sorted(found, key=natural_key)[:20]) or 'none'}"
        )
    names = asked or sorted(found, key=natural_key)
    series = checked_series(names, read_as)
    studies: list[PictureStudy] = []
    for study in sources:
        by_series = _files_by_series(study)
        others = [file for file in study.files if _series_of(file) not in names]
        for file in others:
            index.audit_entries.append(AuditEntry("picture of no series", file, "left out"))
        try:
            studies += _read_as(study, {n: by_series[n] for n in names if n in by_series}, series)
        except UnreadableStudy as error:
            index.audit_entries.append(AuditEntry("study left out", study.source, error.reason))
            continue
        absent = [name for name in names if name not in by_series]
        if absent:
            detail = f"has no {', '.join(absent)}"
            index.audit_entries.append(AuditEntry("study without a series", study.source, detail))
    resolved = index.resolved | {"series_as": read_as, "series": names}
    return dataclasses.replace(index, studies=studies, series=series, resolved=resolved)


def _series_of(file: str) -> str:
    """Return the folder of a series that a patient's file lies in; "" for none."""
    parts = file.split("/")
    return parts[1] if len(parts) > 2 else ""


def _files_by_series(study: PictureStudy) -> dict[str, list[str]]:
    by_series: dict[str, list[str]] = defaultdict(list)
    for file in study.files:
        if name := _series_of(file):
            by_series[name].append(file)
    return by_series


def _read_as(
    study: PictureStudy, by_series: dict[str, list[str]], series: Series | None
) -> list[PictureStudy]:
    """Return what a study becomes, its files by series in their order.

    Raises:
        UnreadableStudy: its series cannot be channels of one study.
    """
    if series is None:
        return [
            dataclasses.replace(study, source=f"{study.source}/{name}", files=tuple(files))
            for name, files in by_series.items()
        ]
    if not by_series:
        raise UnreadableStudy("has no picture of a series")
    if series.read_as == "sequence":
        files = tuple(file for of_series in by_series.values() for file in of_series)
        numbers = tuple(
            series.names.index(name) for name, of_series in by_series.items() for _ in of_series
        )
        return [dataclasses.replace(study, files=files, series=numbers)]
    counts = {name: len(by_series.get(name, ())) for name in series.names}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UnreadableStudy(f"{NOT_REGISTERED}: {shown}")
    files = tuple(itertools.chain.from_iterable(zip(*by_series.values(), strict=True)))
    return [dataclasses.replace(study, files=files, channels=series.channels)]
