"""A study of several series, each read by itself, then joined: as channels or one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseq_tf.readers.series import SeriesAs, checked_series
from medseq_tf.readers.study import (
    MOST_SLICES,
    AuditEntry,
    Slices,
    SourceIndex,
    StudySource,
    UnreadableStudy,
)

NOT_REGISTERED = "series are not of one place, slice by slice"
SAME_GRID = 0.01
"""Millimetres, and parts of a cosine, by which grids of one place may differ."""


@dataclass(frozen=True)
class JoinedStudy(StudySource):
    """A study in several series.

    Attributes:
        parts: the series that it has, each as a study.
        numbers: the place of each in the names of the data set's series.
        channels: how many series are side by side in a slice; 1: they follow one another.
    """

    parts: tuple[StudySource, ...]
    numbers: tuple[int, ...]
    channels: int = 1

    def read_ahead(self) -> None:
        """Begin to read the first series."""
        self.parts[0].read_ahead()

    def read(self) -> Slices:
        """Decode all series; one that cannot be read is left out, unless they are channels."""
        read: list[tuple[int, Slices]] = []
        audit_entries: list[AuditEntry] = []
        for number, part in zip(self.numbers, self.parts, strict=True):
            try:
                read.append((number, part.read()))
            except UnreadableStudy as error:
                audit_entries += error.audit_entries
                audit_entries.append(AuditEntry("series left out", part.source, error.reason))
            else:
                audit_entries += read[-1][1].audit_entries
        if not read or (self.channels > 1 and len(read) < self.channels):
            missing = "no series can be read" if not read else "a series cannot be read"
            raise UnreadableStudy(missing, audit_entries)
        if self.channels > 1:
            return self._side_by_side([slices for _, slices in read], audit_entries)
        images = [image for _, slices in read for image in slices.images]
        if len(images) > MOST_SLICES:
            reason = f"{len(images)} images; a study has at most {MOST_SLICES}"
            raise UnreadableStudy(reason, audit_entries)
        return Slices(
            images,
            audit_entries=audit_entries,
            names=[name for _, slices in read for name in slices.names],
            series=[number for number, slices in read for _ in slices.images],
        )

    def _side_by_side(self, series: Sequence[Slices], audit_entries: list[AuditEntry]) -> Slices:
        first, *others = series
        shapes = [[image.shape for image in slices.images] for slices in series]
        if any(shape != shapes[0] for shape in shapes):
            counts = ", ".join(_counted(of_series) for of_series in shapes)
            raise UnreadableStudy(f"{NOT_REGISTERED}: {counts}", audit_entries)
        for slices in others:
            if not _same_grid(first.grid, slices.grid):
                raise UnreadableStudy(f"{NOT_REGISTERED}: positions differ", audit_entries)
        images = zip(*(slices.images for slices in series), strict=True)
        return Slices(
            [np.stack(channels, axis=-1) for channels in images],
            audit_entries=audit_entries,
            names=first.names,
        )


def _counted(shapes: Sequence[tuple[int, ...]]) -> str:
    sizes = dict.fromkeys(f"{width} x {height}" for height, width in shapes)
    return f"{len(shapes)} of {' and '.join(sizes)}"


def _same_grid(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and np.allclose(first, second, rtol=0, atol=SAME_GRID)


def series_of(study: StudySource) -> str:
    """Return the name of the series that a study is, the last part of its source."""
    return study.source.rpartition("/")[2]


def chosen_series(index: SourceIndex, names: Sequence[str], read_as: SeriesAs) -> SourceIndex:
    """Return a source whose studies are one series each with those that are chosen, read so.

    Args:
        index: the source; of each study the last part of its `source` names the series.
        names: the series that are read, in this order.
        read_as: how.

    Raises:
        InputError: they are too few or too many to be read so.
    """
    series = checked_series(names, read_as)
    resolved = index.resolved | {"series_as": read_as, "series": list(names)}
    parts: dict[str, dict[str, StudySource]] = {}
    for study in index.studies:
        of_study = parts.setdefault(study.source.rpartition("/")[0], {})
        if (name := series_of(study)) in names:
            of_study[name] = study
    for name in [name for name, by_series in parts.items() if not by_series]:
        index.audit_entries.append(AuditEntry("study left out", name, "has none of the series"))
        del parts[name]
    if series is None:
        studies = [study for by_series in parts.values() for study in by_series.values()]
        return dataclasses.replace(index, studies=studies, resolved=resolved)
    studies = []
    for name, by_series in parts.items():
        absent = [other for other in series.names if other not in by_series]
        detail = f"has no {', '.join(absent)}"
        if absent and series.read_as == "channels":
            detail = f"{NOT_REGISTERED}: {detail}"
            index.audit_entries.append(AuditEntry("study left out", name, detail))
            continue
        if absent:
            index.audit_entries.append(AuditEntry("study without a series", name, detail))
        present = [other for other in series.names if other in by_series]
        one = by_series[present[0]]
        joined = JoinedStudy(
            name,
            one.patient,
            one.labels,
            one.split,
            parts=tuple(by_series[other] for other in present),
            numbers=tuple(series.names.index(other) for other in present),
            channels=series.channels,
            others=one.others,
        )
        studies.append(joined)
    return dataclasses.replace(index, studies=studies, series=series, resolved=resolved)
