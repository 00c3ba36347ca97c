"""The studies of a DICOM archive, with labels or without, read as those of a folder are.

What the archive tells of each file in JSON says, by the rules of `series`, which series of a study
is read and which of its files are slices. When the study is read, these files come into memory, and
their own headers say the rest: the slices are those of the same files in a folder, bit for bit.

A study that the archive cannot give, or gives otherwise than it told, is left out and called by its
hash. Studies, their patients and their rows of the labels are those of `index` and `identity`;
hashes are salted by the UIDs and sizes of the files (`source_salt`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.archive import SOP_UID, Archive, Query, plain_url, text_of
from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom
from medseq_tf.readers.dicom.frame import Picture
from medseq_tf.readers.dicom.header import DicomHeader, read_dicom_header
from medseq_tf.readers.dicom.identity import Match
from medseq_tf.readers.dicom.index import (
    FilesFound,
    SeriesWanted,
    check_match,
    label_table,
    labelled_index,
    unlabelled_studies,
)
from medseq_tf.readers.dicom.metadata import header_of_metadata
from medseq_tf.readers.dicom.pixels import Decoded, decode_at
from medseq_tf.readers.dicom.series import FIRST_FILE, DicomFile, Stack, Studies, stack_of
from medseq_tf.readers.dicom.study import DicomStudy, Tilt
from medseq_tf.readers.labels import LabelRow, TableOptions
from medseq_tf.readers.series import SeriesAs
from medseq_tf.readers.storage import Place, UnavailableStudy, nameless_file
from medseq_tf.readers.study import AuditEntry, SourceIndex, StudySource, natural_key, source_salt

if TYPE_CHECKING:
    from medseq_tf.readers.dicom.elements import Dataset

STUDIES_AT_A_TIME = 4
"""Whose metadata are asked for."""
HEADER_BYTES = 2**24
"""Of a file, beside its pixels, at most."""
PACKED_AT_MOST = 2
"""Times as large as unpacked pixels compressed ones can be."""
_OF_ARCHIVES = ("00080054", "00080056", "00081190")
"""What an archive adds of itself: whence, how soon, and at which URL a file can be had."""
_PRIVATE = tuple("13579BDF")
"""What the number of a private group ends in; archives add such elements, too."""
_OTHERWISE = "its files are not what the archive tells of them"


@dataclass(frozen=True)
class ArchiveStudy(DicomStudy):
    """A study in one series of an archive; the paths of its pictures are SOPInstanceUIDs.

    Attributes:
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        most_bytes: that one of its files can have.
        insecure_tls: whether any certificate of the archive's will do.
    """

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    most_bytes: int
    insecure_tls: bool

    @property
    def sop_uids(self) -> list[str]:
        """The SOPInstanceUIDs of its files, in the order of its pictures."""
        return list(dict.fromkeys(picture.path for picture in self.pictures))

    def read_ahead(self) -> None:
        """Read nothing yet: `read` asks for several files at a time."""

    def decoded(self, audit_entries: list[AuditEntry]) -> Iterator[Decoded]:
        """Decode the pictures in order, as the headers of their files say, which are in memory.

        Raises:
            UnavailableStudy: the archive does not give a file, or gives others than it told of.
            Unreachable: it does not answer.
        """
        with contextlib.closing(self._archive()) as archive:
            wanted = (self.study_uid, self.series_uid, self.sop_uids, self.most_bytes)
            files = dict(archive.retrieve(*wanted))
        with contextlib.ExitStack() as last:
            paths: dict[str, str] = {}

            def path_of(name: str) -> str:
                if name not in paths:
                    last.close()
                    paths.clear()
                    paths[name] = last.enter_context(nameless_file(files[name]))
                return paths[name]

            numbers = {picture.path: picture.number for picture in self.pictures}
            read = []
            for name, number in numbers.items():
                where = f"{self.source} file {number}"
                if header := self._header(path_of(name), name, where, audit_entries):
                    read.append(DicomFile(number, name, header))
            stack = stack_of(read, self.source, self.source, [])
            pictures = stack.pictures if stack else ()
            self._check(pictures)
            yield from decode_at(path_of, pictures)

    def source_headers(self) -> list[Dataset]:
        """Ask for the header of each picture's file, which names the patient.

        Raises:
            UnavailableStudy: the archive does not give one.
            Unreachable: it does not answer.
        """
        with contextlib.closing(self._archive()) as archive:
            found = archive.metadata(self.study_uid, self.series_uid)
        by_uid = {str(data_set.SOPInstanceUID): data_set for data_set in found}
        try:
            return [by_uid[picture.path] for picture in self.pictures]
        except KeyError:
            raise UnavailableStudy(_OTHERWISE) from None

    def _archive(self) -> Archive:
        return Archive.open(self.root, insecure_tls=self.insecure_tls)

    def _header(
        self, path: str, name: str, where: str, audit_entries: list[AuditEntry]
    ) -> DicomHeader | None:
        """The header of a file, if it is one with pictures; refuse one of another study."""
        try:
            header = read_dicom_header(path)
        except (NotDicom, UnreadableDicom) as error:
            audit_entries.append(AuditEntry("unreadable image", where, str(error)))
            return None
        if header is None:
            raise UnavailableStudy(_OTHERWISE)
        told = (self.study_uid, self.series_uid, name)
        if (header.study_uid, header.series_uid, header.sop_instance) != told:
            raise UnavailableStudy("the archive: it gave a file of another study or series")
        return header

    def _check(self, pictures: Sequence[Picture]) -> None:
        """Refuse pictures that are others than those of the metadata, or in another order."""
        try:
            places = self.places_of(pictures)
        except KeyError:
            raise UnavailableStudy(_OTHERWISE) from None
        if list(places) != sorted(places):
            raise UnavailableStudy(_OTHERWISE)


def name_in_archive(url: str, study_uid: str) -> str:
    """Return what a study is called of which nothing but its UID is known."""
    return _named(source_salt([(plain_url(url), 0)]), study_uid)


def _named(salt: bytes, study_uid: str) -> str:
    return f"study-{hashlib.sha256(salt + study_uid.encode()).hexdigest()[:16]}"


# ------------------------------------------------------------------------------ what there is


def index_dicomweb(
    source: str,
    labels: Place | None = None,
    columns: Sequence[str] | None = None,
    series: str = "best",
    modality: str | None = None,
    fewest_slices: int = 3,
    tilt: Tilt = "keep",
    spacing: float | tuple[float, float, float] | None = None,
    match: Match | None = None,
    series_as: SeriesAs | None = None,
    query: str | None = None,
    insecure_tls: bool = False,
    **table_options: Unpack[TableOptions],
) -> SourceIndex:
    """Find the studies of an archive that have labels.

    Args:
        source: of its DICOMweb services, such as `https://pacs/dicom-web`.
        labels: CSV of labels, see `labels.read_labels`.
        columns: see `index_dicom`, as the other arguments.
        series: `best`, `all`, or a pattern of the series' description.
        modality: `CT` or `MR`; default: what there is more of.
        fewest_slices: of a series that is used.
        tilt: `keep` or `correct`.
        spacing: mm to resample to.
        match: what a row's key is of a study: `study_instance_uid`, `accession_number` or
            `patient_id`.
        series_as: how several series are read.
        query: which studies, see `archive.Query`. Default: all.
        insecure_tls: take any certificate of the archive's.
        **table_options: see `labels.TableOptions`.

    Raises:
        InputError: if the archive, the labels or a setting cannot be used, or if what belongs to
            what is in doubt.
        Unreachable: if the archive does not answer.
    """
    wanted = SeriesWanted.checked(series, modality, fewest_slices, tilt, spacing, series_as)
    check_match(match)
    if match == "folder":
        raise InputError("match=folder: an archive has no folders")
    asked = Query.parse(query)
    archive = Archive.open(source, insecure_tls=insecure_tls)
    if labels is None:
        raise InputError("dicomweb needs labels, a CSV with one row a patient or study")
    table = label_table(labels, columns, match, table_options)
    with contextlib.closing(archive):
        uids = [found.study_uid for found in archive.studies(asked)]
        listed = _listed(archive, uids)
    found = listed.found(archive.url, [table.listing])
    make = functools.partial(_study, archive.url, listed.most_bytes, insecure_tls)
    index = labelled_index(found, table, wanted, match, make)
    index.shown_options = {"query": str(asked)} if query else {}
    return index


def find_archive_studies(
    url: str,
    query: Query | str | None = None,
    study_uids: Sequence[str] = (),
    series: str | Sequence[str] = "best",
    modality: str | None = None,
    fewest_slices: int = 3,
    tilt: Tilt = "keep",
    spacing: float | tuple[float, float, float] | None = None,
    series_as: SeriesAs | None = None,
    *,
    insecure_tls: bool = False,
) -> tuple[list[StudySource], list[AuditEntry]]:
    """Find studies of an archive, without labels: those to be predicted.

    Args:
        url: see `index_dicomweb`, as the other arguments.
        query: which studies; default: all, unless there are `study_uids`.
        study_uids: these studies.
        series: `best`, `all`, or a pattern of the series' description.
        modality: studies of another one are left out.
        fewest_slices: of a series that is used.
        tilt: `keep` or `correct`.
        spacing: mm to resample to.
        series_as: how several series are read.
        insecure_tls: take any certificate of the archive's.

    Returns:
        The studies, and audit entries on what is left out.

    Raises:
        InputError: if the archive or a setting cannot be used.
        Unreachable: if the archive does not answer.
    """
    wanted = SeriesWanted.checked(series, modality, fewest_slices, tilt, spacing, series_as)
    asked = query if isinstance(query, Query) else Query.parse(query)
    with contextlib.closing(Archive.open(url, insecure_tls=insecure_tls)) as archive:
        uids = list(study_uids) or [found.study_uid for found in archive.studies(asked)]
        listed = _listed(archive, uids)
    make = functools.partial(_study, archive.url, listed.most_bytes, insecure_tls)
    return unlabelled_studies(listed.found(archive.url, []), wanted, make)


def _study(
    url: str,
    most_bytes: Mapping[str, int],
    insecure_tls: bool,
    stack: Stack,
    patient: str,
    row: LabelRow | None,
    wanted: SeriesWanted,
) -> ArchiveStudy:
    (study_uid,) = stack.identifiers["study_instance_uid"]
    return ArchiveStudy(
        stack.name,
        patient,
        row.labels if row else {},
        row.split if row else None,
        url,
        stack.pictures,
        stack.modality,
        wanted.tilt,
        wanted.spacing,
        study_uid,
        stack.series_uid,
        most_bytes[stack.series_uid],
        insecure_tls,
        others=row.others if row else {},
    )


# ------------------------------------------------------------------------- what is told of it


class _Told(NamedTuple):
    """What an archive tells of a file: its header, or why it has none; and its pixels' bytes."""

    series_uid: str
    sop_uid: str
    header: DicomHeader | UnreadableDicom
    pixel_bytes: int
    version: str

    @property
    def order(self) -> tuple:
        """Where it stands among others, in whatever order an archive gives them."""
        number = self.header.instance_number if isinstance(self.header, DicomHeader) else 0
        return natural_key(self.series_uid), number, natural_key(self.sop_uid)


@dataclass
class _Listed:
    """The files of an archive's studies, in an order that is its own.

    Attributes:
        studies: UID -> what is told of the study's files, or why nothing is.
    """

    studies: dict[str, list[_Told] | UnavailableStudy]

    @property
    def most_bytes(self) -> dict[str, int]:
        """Series -> what one of its files can have."""
        most: dict[str, int] = defaultdict(int)
        for told in self.studies.values():
            for file in [] if isinstance(told, UnavailableStudy) else told:
                size = HEADER_BYTES + PACKED_AT_MOST * file.pixel_bytes
                most[file.series_uid] = max(most[file.series_uid], size)
        return most

    def found(self, url: str, tables: Sequence[tuple[str, int]]) -> FilesFound:
        """Return the files by study and series, and what is odd about them."""
        by_study: Studies = defaultdict(lambda: defaultdict(list))
        audit_entries: list[AuditEntry] = []
        listing: list[tuple[str, int]] = []
        versions: dict[str, str] = {}
        failed = []
        for study_uid, told in self.studies.items():
            if isinstance(told, UnavailableStudy):
                failed.append((study_uid, str(told)))
                continue
            for file in told:
                name = f"{study_uid}/{file.series_uid}/{file.sop_uid}"
                number = FIRST_FILE + len(listing)
                listing.append((name, file.pixel_bytes))
                versions[name] = file.version
                if isinstance(file.header, UnreadableDicom):
                    where = f"file {number}"
                    audit_entries.append(AuditEntry("unreadable image", where, str(file.header)))
                else:
                    study = by_study[f"{study_uid} {file.header.patient_id}"]
                    of_series = study[file.series_uid]
                    of_series.append(DicomFile(number, file.sop_uid, file.header))
        listing += tables
        salt = source_salt(listing)
        audit_entries += [
            AuditEntry("study left out", _named(salt, study_uid), reason)
            for study_uid, reason in failed
        ]
        return FilesFound(url, by_study, listing, versions, audit_entries)


def _listed(archive: Archive, study_uids: Sequence[str]) -> _Listed:
    """Ask for the metadata of studies, several at a time."""
    ordered = sorted(set(study_uids), key=natural_key)
    with ThreadPoolExecutor(STUDIES_AT_A_TIME, "medseq_tf-metadata") as threads:
        try:
            told = threads.map(functools.partial(_told, archive), ordered)
            return _Listed(dict(zip(ordered, told, strict=True)))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _version(item: Mapping[str, Any]) -> str:
    """What changes with a file's header, and not with where an archive keeps it, or for whom."""
    own = {
        tag: element["Value"]
        for tag, element in item.items()
        if isinstance(element, dict)
        and "Value" in element
        and tag not in _OF_ARCHIVES
        and tag[3:4].upper() not in _PRIVATE
    }
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _told(archive: Archive, study_uid: str) -> list[_Told] | UnavailableStudy:
    """What an archive tells of the files of a study, series by series."""
    files: dict[str, _Told] = {}
    try:
        series = archive.series(study_uid)
        if not series:
            return UnavailableStudy("the archive has no such study")
        for series_uid in [str(one["SeriesInstanceUID"]).strip(" \0") for one in series]:
            for item in archive.metadata_json(study_uid, series_uid):
                sop_uid = text_of(item, SOP_UID)
                version = _version(item)
                try:
                    header, pixel_bytes = header_of_metadata(item)
                except UnreadableDicom as error:
                    told = _Told(series_uid, sop_uid, error, 0, version)
                else:
                    if header is None:  # no picture: a report, or another result
                        continue
                    header = header._replace(study_uid=study_uid)
                    told = _Told(series_uid, sop_uid, header, pixel_bytes, version)
                files.setdefault(sop_uid, told)
    except UnavailableStudy as error:
        return error
    return sorted(files.values(), key=lambda file: file.order)
