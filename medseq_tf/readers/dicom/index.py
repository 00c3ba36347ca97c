"""The studies of a folder of DICOM files, with labels or without: one an examination.

`series` says which images are read, and in what order; they are turned as `orientation` says: an
axial series goes from the feet up. `pixels` says what their values are, `identity` whose they are.
Where CT and MR stand side by side, the one with more studies is read unless `modality` says which.

Privacy. Text of the header, and file names, which may hold a name, go into no audit entry or error.
Files are called by number, which `list_files` explains on the machine where they lie. A study is
called by a hash of its StudyInstanceUID and PatientID. Its patient is PatientID or, where that is
empty, the study itself (an audit entry), unless the labels say whose it is; `prepare` hashes it.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.header import CT, MR
from medseq_tf.readers.dicom.identity import RULES, STUDY_COLUMNS, Match, match_labels
from medseq_tf.readers.dicom.series import (
    FIRST_FILE,
    NO_SERIES,
    Stack,
    Studies,
    best_of,
    choose_series,
    files_by_study,
    usable_series,
)
from medseq_tf.readers.dicom.study import DicomStudy, Tilt
from medseq_tf.readers.folder import Folder, resolved_places
from medseq_tf.readers.intensities import DTYPES
from medseq_tf.readers.joined_study import chosen_series
from medseq_tf.readers.labels import LabelRow, LabelTable, TableOptions, labels_in, read_labels
from medseq_tf.readers.names import listed
from medseq_tf.readers.series import SeriesAs, checked_series
from medseq_tf.readers.storage import Place, root_of
from medseq_tf.readers.study import AuditEntry, SourceIndex, StudySource, kinds_text, source_salt
from medseq_tf.readers.volumes import Spacing, checked_spacing


def index_dicom(
    source: Place,
    labels: Place | None = None,
    columns: Sequence[str] | None = None,
    series: str = "best",
    modality: str | None = None,
    fewest_slices: int = 3,
    tilt: Tilt = "keep",
    spacing: float | tuple[float, float, float] | None = None,
    match: Match | None = None,
    series_as: SeriesAs | None = None,
    **table_options: Unpack[TableOptions],
) -> SourceIndex:
    """Find the studies under a folder that have labels.

    Args:
        source: the folder, or its URL (see `storage`).
        labels: CSV of labels, see `labels.read_labels`. Default: `labels.csv` in the source.
        columns: the label columns. Default: all but patient, study and split.
        series: `best`, `all`, or a pattern of the series' description with `*` and `?`; with
            `series_as` several patterns, with commas: of each the best series of a study.
        modality: `CT` or `MR`; default: what there is more of.
        fewest_slices: of a series that is used.
        tilt: `keep` or `correct`.
        spacing: mm to resample to, one number or x, y, z (left, back, head; 0 keeps one). Default:
            nothing is resampled.
        match: what a row's key is of a study: `study_instance_uid`, `accession_number`,
            `patient_id` or `folder`. Default: what the key column is called, or else the one that
            fits.
        series_as: how these series are read: as `channels` of one place in the body, as one
            `sequence`, one after the other, each slice with a mark, or `separate`, each as a study.
        **table_options: see `labels.TableOptions`.

    Raises:
        InputError: if the source, the labels or a setting cannot be used, or if what belongs to
            what is in doubt.
    """
    root = root_of(source)
    wanted = SeriesWanted.checked(series, modality, fewest_slices, tilt, spacing, series_as)
    check_match(match)
    labels = labels_in(root) if labels is None else labels
    folder = Folder(root)
    if labels is None:
        raise InputError("dicom needs labels, a CSV with one row a patient or study")
    table = label_table(labels, columns, match, table_options)
    audit_entries = _without_names(folder.audit_entries)
    tables = resolved_places([labels, table_options.get("participants")])
    by_study = files_by_study(folder, tables, audit_entries)
    listing = [*folder.listing, table.listing]
    found = FilesFound(root, by_study, listing, folder.versions, audit_entries)
    return labelled_index(found, table, wanted, match, functools.partial(_study, str(root)))


class SeriesWanted(NamedTuple):
    """Which series are read, and how; see `index_dicom`."""

    patterns: list[str]
    modality: str | None
    fewest_slices: int
    tilt: Tilt
    spacing: Spacing
    series_as: SeriesAs | None

    @classmethod
    def checked(
        cls,
        series: str | Sequence[str],
        modality: str | None,
        fewest_slices: int,
        tilt: Tilt,
        spacing: float | tuple[float, float, float] | None,
        series_as: SeriesAs | None,
    ) -> SeriesWanted:
        """Return the settings of a user.

        Raises:
            InputError: one cannot be used.
        """
        grid = checked_spacing(spacing)
        _check_settings(modality, fewest_slices, tilt)
        patterns = _patterns(series, series_as)
        return cls(patterns, modality, fewest_slices, tilt, grid, series_as)


class FilesFound(NamedTuple):
    """The DICOM files of a source.

    Attributes:
        root: the source.
        by_study: the files.
        listing: see `SourceIndex`.
        versions: see `SourceIndex`.
        audit_entries: what was odd; more is added.
    """

    root: Place
    by_study: Studies
    listing: list[tuple[str, int]]
    versions: Mapping[str, str]
    audit_entries: list[AuditEntry]

    def hashing(self) -> Callable[[str], str]:
        """Return what gives the salted hash by which a UID is named."""
        return functools.partial(_hash, source_salt(self.listing))


Make = Callable[[Stack, str, LabelRow | None, SeriesWanted], DicomStudy]
"""Makes a study of a series, its patient, the row of its labels, and how it is read."""


def check_match(match: str | None) -> None:
    """Raise an InputError for a rule that is none."""
    if match not in (None, *RULES):
        raise InputError(f"match={match!r} is unknown; valid: {', '.join(RULES)}")


def label_table(
    labels: Place,
    columns: Sequence[str] | None,
    match: str | None,
    table_options: TableOptions,
) -> LabelTable:
    """Read labels of DICOM studies; see `index_dicom`."""
    keys = match and (match, "study")
    return read_labels(labels, columns, STUDY_COLUMNS, keys, **table_options)


def labelled_index(
    found: FilesFound, table: LabelTable, wanted: SeriesWanted, match: str | None, make: Make
) -> SourceIndex:
    """Make the source index of those studies that have labels; see `index_dicom`."""
    root, audit_entries = found.root, found.audit_entries
    stacks = _stacks(found, wanted)
    if not stacks:
        instead = kinds_text(audit_entries) or "no file"
        raise InputError(f"{root} holds no DICOM series of CT or MR that can be used; {instead}")
    modality = wanted.modality or _most_frequent_modality(stacks, audit_entries)
    rule, labelled = match_labels(stacks, modality, table, root, match, audit_entries)
    studies: list[StudySource] = [
        make(stack, patient, row, wanted) for stack, row, patient in labelled
    ]
    for stack, _, _ in labelled:
        audit_entries += stack.audit_entries
    resolved = {
        "modality": modality,
        "series": ",".join(wanted.patterns),
        "fewest_slices": wanted.fewest_slices,
        "tilt": wanted.tilt,
        "spacing": wanted.spacing and list(wanted.spacing),
        "match": rule,
    }
    index = SourceIndex(
        studies,
        table.names,
        modality,
        audit_entries,
        found.listing,
        root,
        DTYPES[modality],
        resolved,
        table.classes,
        table.columns,
        versions=found.versions,
    )
    if wanted.series_as is None:
        return index
    return chosen_series(index, wanted.patterns, wanted.series_as)


def _patterns(series: str | Sequence[str], series_as: SeriesAs | None) -> list[str]:
    """Return the patterns of the series that are read; one where a study is one series.

    Raises:
        InputError: they cannot be read so.
    """
    if series_as is None:
        return [str(series)]
    patterns = listed(series)
    if {"best", "all"} & set(patterns) or any("/" in pattern for pattern in patterns):
        raise InputError(
            f"series_as={series_as} needs series, patterns of the series' descriptions with "
            f"commas, such as DWI*,ADC*; got {series}"
        )
    checked_series(patterns, series_as)
    return patterns


def _stacks(found: FilesFound, wanted: SeriesWanted) -> list[Stack]:
    """Return the series that are read, of several each by its study and pattern."""
    patterns, audit_entries, hashed = wanted.patterns, found.audit_entries, found.hashing()
    settings = (wanted.modality, wanted.fewest_slices, audit_entries)
    if wanted.series_as is None:
        return list(choose_series(found.by_study, hashed, patterns[0], *settings))
    stacks: list[Stack] = []
    for name, usable in usable_series(found.by_study, hashed, *settings):
        best = {pattern: best_of(usable, pattern) for pattern in patterns}
        of_study = {pattern: stack for pattern, stack in best.items() if stack}
        if not of_study:
            audit_entries.append(AuditEntry("study left out", name, NO_SERIES))
        elif len({stack.pictures[0].number for stack in of_study.values()}) == len(of_study):
            stacks += [s._replace(name=f"{name}/{pattern}") for pattern, s in of_study.items()]
        else:
            detail = f"{' and '.join(of_study)} are one series; give patterns that tell them apart"
            audit_entries.append(AuditEntry("study left out", name, detail))
    return stacks


def find_dicom_studies(
    source: Place,
    series: str | Sequence[str] = "best",
    modality: str | None = None,
    fewest_slices: int = 3,
    tilt: Tilt = "keep",
    spacing: float | tuple[float, float, float] | None = None,
    series_as: SeriesAs | None = None,
) -> tuple[list[StudySource], list[AuditEntry]]:
    """Find the studies under a folder, without labels: those to be predicted.

    Args:
        source: the folder, or its URL.
        series: see `index_dicom`, as the other arguments.
        modality: studies of another one are left out.
        fewest_slices: of a series that is used.
        tilt: `keep` or `correct`.
        spacing: mm to resample to.
        series_as: see `index_dicom`.

    Returns:
        The studies, and audit entries on what is left out.

    Raises:
        InputError: if the source or a setting cannot be used.
    """
    root = root_of(source)
    wanted = SeriesWanted.checked(series, modality, fewest_slices, tilt, spacing, series_as)
    folder = Folder(root)
    audit_entries = _without_names(folder.audit_entries)
    by_study = files_by_study(folder, (), audit_entries)
    found = FilesFound(root, by_study, folder.listing, folder.versions, audit_entries)
    return unlabelled_studies(found, wanted, functools.partial(_study, str(root)))


def unlabelled_studies(
    found: FilesFound, wanted: SeriesWanted, make: Make
) -> tuple[list[StudySource], list[AuditEntry]]:
    """Make the studies of some files; see `find_dicom_studies`."""
    audit_entries = found.audit_entries
    studies: list[StudySource] = []
    for stack in _stacks(found, wanted):
        audit_entries += stack.audit_entries
        studies.append(make(stack, stack.patient, None, wanted))
    if wanted.series_as is None:
        return studies, audit_entries
    index = chosen_series(
        SourceIndex(studies, [], audit_entries=audit_entries), wanted.patterns, wanted.series_as
    )
    return list(index.studies), index.audit_entries


def _study(
    root: str, stack: Stack, patient: str, row: LabelRow | None, wanted: SeriesWanted
) -> DicomStudy:
    return DicomStudy(
        stack.name,
        patient,
        row.labels if row else {},
        row.split if row else None,
        root,
        stack.pictures,
        stack.modality,
        wanted.tilt,
        wanted.spacing,
        others=row.others if row else {},
    )


def list_files(source: Place) -> Iterator[tuple[int, str]]:
    """Give the number by which audit entries call each file of a source, and its path in it.

    Raises:
        InputError: if the source is not a folder.
    """
    return enumerate((file.name for file in Folder(root_of(source)).files), start=FIRST_FILE)


def _check_settings(modality: Any, fewest_slices: Any, tilt: Any) -> None:
    if modality not in (None, CT, MR):
        raise InputError(f"modality={modality!r} is unknown; valid: {CT}, {MR}")
    if not isinstance(fewest_slices, int) or fewest_slices < 1:
        raise InputError(f"fewest_slices={fewest_slices!r} is not a whole number, 1 or more")
    if tilt not in ("keep", "correct"):
        raise InputError(f"tilt={tilt!r} is unknown; valid: keep, correct")


def _without_names(audit_entries: Sequence[AuditEntry]) -> list[AuditEntry]:
    return [AuditEntry(e.kind, "name withheld", e.detail) for e in audit_entries]


def _hash(salt: bytes, uid: str) -> str:
    return hashlib.sha256(salt + uid.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _most_frequent_modality(stacks: Sequence[Stack], audit_entries: list[AuditEntry]) -> str:
    (modality, most), *others = Counter(stack.modality for stack in stacks).most_common()
    for other, count in others:
        if count == most:
            raise InputError(
                f"{most} studies are {modality} and {count} are {other}; give --modality"
            )
        detail = f"{most} studies are, {count} are {other}; give --modality {other} for those"
        audit_entries.append(AuditEntry("modality taken", modality, detail))
    return modality
