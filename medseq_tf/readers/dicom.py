"""Takes a folder of DICOM files in any shape, with any names; gives one study an examination.

Which images. Every file is looked into, so that a DICOMDIR is not needed, and not used. CT and MR
images are grouped by SeriesInstanceUID, series by StudyInstanceUID. Left out, and counted by
series: localisers (ImageType, or the series' description), secondary captures and screens, images
with text burned in, colour, mosaics of slices, images without position or orientation, and series
of fewer than `fewest_slices` slices.

Which series. `series="best"`, one a study: axial before other planes, original primary images
before derived ones, then the most slices, then the lowest series number. A pattern such as
`*brain*` chooses among the series whose description fits it, in any case. `series="all"` makes each
series a study of its patient.

Order. Slices stand by the projection of ImagePositionPatient on the normal of
ImageOrientationPatient, and are turned as `orientation` says: an axial series goes from the feet
up. File names and InstanceNumber are not looked at. Frames of a multi-frame file are slices like
others; without positions of their own they keep the file's order. Also handled, and named in the
audit:

    several orientations or sizes   the largest group of one orientation, size and pixel spacing
    duplicate positions             the first in time, echo, acquisition, then instance number
    missing positions               nothing is filled in
    variable spacing                slices as acquired; `spacing` resamples evenly
    gantry tilt                     `tilt="keep"`: slices as acquired, in tilted planes;
                                    `tilt="correct"`: each shifted in its plane, by linear
                                    interpolation, so that the stack stands upright

Intensities. Rescale slope and intercept are applied, frame by frame: HU for CT; for MR see
`intensities`. MONOCHROME1 images are inverted within the range of their stored bits first, as
SimpleITK does. Where CT and MR stand side by side, the one with more studies is read unless
`modality` says which.

Privacy. Text of the header, and file names, which may hold a name, go into no audit entry or error.
Files are called by number: `python -m medseq_tf.readers.dicom SOURCE` lists number and path. A
study is called by a hash of its StudyInstanceUID and PatientID. Its patient is PatientID or, where
that is empty, the study itself (an audit entry), unless the labels say whose it is; `prepare`
hashes it.

Labels. One rule for the whole table says what the key of a row is (`labels`, `matching`): the
StudyInstanceUID, the AccessionNumber, the PatientID, or the name of the folder directly under the
source that holds the study. `match` names it, or the key column does: `study_instance_uid`,
`accession_number` or `folder` (which come before a patient column) or `patient_id`. For a column
of another name (`study`, `patient`, `id`, the first) the identifier that fits is taken and said in
the audit; where two fit and disagree, which one is asked for. A row is of one patient: his studies
are those of a PatientID, and those that the table's patient column says are his.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

from medseq_tf.errors import InputError, printable
from medseq_tf.readers.dicom_header import (
    CT,
    MR,
    SECONDARY_CAPTURE,
    DicomHeader,
    Frame,
    NotDicom,
    PlainPixels,
    UnreadableDicom,
    read_dicom_header,
)
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.intensities import (
    DTYPES,
    beyond_range,
    count_beyond_range,
    hounsfield_units,
    stored_intensities,
)
from medseq_tf.readers.labels import PATIENT_COLUMNS, LabelRow, LabelTable, read_labels
from medseq_tf.readers.matching import lines_alike, match_rows, normal_id, why_unmatched
from medseq_tf.readers.orientation import nearest_axes, plane_of, to_plane, world_axes
from medseq_tf.readers.study import (
    LARGEST_SIDE,
    LARGEST_VOXELS,
    MOST_SLICES,
    AuditEntry,
    Slices,
    SourceIndex,
    StudySource,
    UnreadableStudy,
    kinds_text,
    source_salt,
)
from medseq_tf.readers.volumes import Spacing, checked_spacing

STUDY_COLUMNS = ("study_instance_uid", "accession_number", "folder", "study")
SMALLEST_TILT_DEGREES = 0.5
SAME_POSITION_MM = 0.01
VARIES_BY = 0.05

_LOCALISER = re.compile(
    r"\b(locali[sz]er|scout|topogram|surview|scano(gram)?|survey|3[- ]?plane)\b", re.IGNORECASE
)
_SCREEN = {"SCREEN SAVE", "SCREEN_CAPTURE", "SCREENSHOT"}

Tilt = Literal["keep", "correct"]
Match = Literal["study_instance_uid", "accession_number", "patient_id", "folder"]


class Picture(NamedTuple):
    """One frame of one file: where it lies, and all that is needed to decode and order it."""

    number: int
    path: str
    place: int
    frame: Frame
    shape: tuple[int, int]
    first_frame: Frame
    plain: PlainPixels | None
    tie: tuple


@dataclass(frozen=True)
class DicomStudy(StudySource):
    """A study in one series: its pictures in the order of their positions."""

    root: str
    pictures: tuple[Picture, ...]
    modality: str
    tilt: Tilt
    spacing: Spacing

    def read(self) -> Slices:
        """Decodes every picture that can be decoded; the others become audit entries."""
        if len(self.pictures) > MOST_SLICES:
            count = len(self.pictures)
            raise UnreadableStudy(f"{count} images; a study has at most {MOST_SLICES}")
        images, pictures, audit_entries, beyond = [], [], [], 0
        for picture, image in _decoded(self.root, self.pictures):
            if image is None:
                where = f"{self.source} file {picture.number}"
                audit_entries.append(AuditEntry("unreadable image", where, "damaged or cut short"))
            else:
                if self.modality == CT and image.dtype.kind == "i":
                    # Slice by slice it stays in the processor's cache; only fractions and MR need
                    # to see the whole study.
                    beyond += count_beyond_range(image)
                    image = hounsfield_units(image)
                images.append(image)
                pictures.append(picture)
        if not images:
            raise UnreadableStudy("no slice can be read", audit_entries)
        audit_entries += beyond_range(beyond, sum(image.size for image in images), self.source)
        images, odd = stored_intensities(np.stack(images), self.modality, self.source)
        if self.tilt == "correct":
            images = upright(images, [picture.frame for picture in pictures])
        cosines = _cosines(pictures[0].frame)
        plane = plane_of(cosines)
        slices = [to_plane(image.T[:, :, None], cosines, plane)[0] for image in images]
        if self.spacing is not None:
            slices = _evenly_spaced(slices, pictures, plane, self.spacing)
        return Slices(
            [np.ascontiguousarray(image) for image in slices], audit_entries=audit_entries + odd
        )


def index_dicom(
    source: str | Path,
    labels: str | Path | None = None,
    columns: Sequence[str] | None = None,
    series: str = "best",
    modality: str | None = None,
    fewest_slices: int = 3,
    tilt: Tilt = "keep",
    spacing: float | tuple[float, float, float] | None = None,
    match: Match | None = None,
) -> SourceIndex:
    """Finds the studies under a folder that have labels.

    Args:
        source: the folder.
        labels: CSV of labels, see `labels.read_labels`. Default: `labels.csv` in the source.
        columns: the label columns. Default: all but patient, study and split.
        series: `best`, `all`, or a pattern of the series' description with `*` and `?`.
        modality: `CT` or `MR`; default: what there is more of.
        fewest_slices: of a series that is used.
        tilt: `keep` or `correct`.
        spacing: mm to resample to, one number or x, y, z (left, back, head; 0 keeps one). Default:
            nothing is resampled.
        match: what a row's key is of a study: `study_instance_uid`, `accession_number`,
            `patient_id` or `folder`. Default: what the key column is called, or else the one that
            fits.

    Raises:
        InputError: if the source, the labels or a setting cannot be used, or if what belongs to
            what is in doubt.
    """
    root, spacing = Path(source), checked_spacing(spacing)
    _check_settings(modality, fewest_slices, tilt)
    if match not in (None, *get_args(Match)):
        raise InputError(f"match={match!r} is unknown; valid: {', '.join(get_args(Match))}")
    if labels is None and (root / "labels.csv").is_file():
        labels = root / "labels.csv"
    folder = Folder(root)
    if labels is None:
        raise InputError("dicom needs labels, a CSV with one row a patient or study")
    table = read_labels(labels, columns, STUDY_COLUMNS, match and (match, "study"))
    audit_entries = [AuditEntry(f.kind, "name withheld", f.detail) for f in folder.audit_entries]
    by_study = _grouped(folder, table.path.resolve(), audit_entries)
    listing = [*folder.listing, table.listing]
    hashed = functools.partial(_hash, source_salt(listing))
    chosen = list(_chosen_series(by_study, hashed, series, modality, fewest_slices, audit_entries))
    if not chosen:
        found = kinds_text(audit_entries) or "no file"
        raise InputError(f"{root} holds no DICOM series of CT or MR that can be used; {found}")
    modality = modality or _most_frequent_modality(chosen, audit_entries)
    studies = []
    match, matched = _matched(chosen, modality, table, folder, match, audit_entries)
    for found, row, patient in matched:
        audit_entries += found.audit_entries
        studies.append(
            DicomStudy(
                source=found.name,
                patient=patient,
                labels=row.labels,
                split=row.split,
                root=str(root),
                pictures=found.pictures,
                modality=modality,
                tilt=tilt,
                spacing=spacing,
            )
        )
    resolved = {
        "modality": modality,
        "series": series,
        "fewest_slices": fewest_slices,
        "tilt": tilt,
        "spacing": spacing and list(spacing),
        "match": match,
    }
    return SourceIndex(
        studies, table.names, modality, audit_entries, listing, root, DTYPES[modality], resolved
    )


def _most_frequent_modality(chosen: Sequence[_Found], audit_entries: list[AuditEntry]) -> str:
    (modality, most), *others = Counter(found.modality for found in chosen).most_common()
    for other, count in others:
        if count == most:
            raise InputError(
                f"{most} studies are {modality} and {count} are {other}; give --modality"
            )
        audit_entries.append(
            AuditEntry(
                "modality taken",
                modality,
                f"{most} studies are, {count} are {other}; give --modality {other} for those",
            )
        )
    return modality


def find_dicom_studies(
    source: str | Path,
    series: str = "best",
    modality: str | None = None,
    fewest_slices: int = 3,
    tilt: Tilt = "keep",
    spacing: float | tuple[float, float, float] | None = None,
) -> tuple[list[DicomStudy], list[AuditEntry]]:
    """Finds the studies under a folder, without labels: those to be predicted.

    Args:
        source: the folder.
        series: see `index_dicom`, as the other arguments.
        modality: studies of another one are left out.
        fewest_slices: of a series that is used.
        tilt: `keep` or `correct`.
        spacing: mm to resample to.

    Returns:
        The studies, and audit entries on what is left out.

    Raises:
        InputError: if the source or a setting cannot be used.
    """
    root, spacing = Path(source), checked_spacing(spacing)
    _check_settings(modality, fewest_slices, tilt)
    folder = Folder(root)
    audit_entries = [AuditEntry(f.kind, "name withheld", f.detail) for f in folder.audit_entries]
    by_study = _grouped(folder, root, audit_entries)
    hashed = functools.partial(_hash, source_salt(folder.listing))
    studies = []
    for found in _chosen_series(by_study, hashed, series, modality, fewest_slices, audit_entries):
        audit_entries += found.audit_entries
        studies.append(
            DicomStudy(
                source=found.name,
                patient=found.patient,
                labels={},
                split=None,
                root=str(root),
                pictures=found.pictures,
                modality=found.modality,
                tilt=tilt,
                spacing=spacing,
            )
        )
    return studies, audit_entries


def _check_settings(modality, fewest_slices, tilt) -> None:
    if modality not in (None, CT, MR):
        raise InputError(f"modality={modality!r} is unknown; valid: {CT}, {MR}")
    if not isinstance(fewest_slices, int) or fewest_slices < 1:
        raise InputError(f"fewest_slices={fewest_slices!r} is not a whole number, 1 or more")
    if tilt not in ("keep", "correct"):
        raise InputError(f"tilt={tilt!r} is unknown; valid: keep, correct")


# ------------------------------------------------------------------------------- files to series


class _File(NamedTuple):
    number: int
    path: str
    header: DicomHeader


_Series = list[_File]
_Studies = dict[str, dict[str, _Series]]


def _grouped(folder: Folder, labels: Path, audit_entries: list[AuditEntry]) -> _Studies:
    """The files with pictures by study, then by series."""
    by_study: _Studies = defaultdict(lambda: defaultdict(list))
    for number, file in _numbered(folder):
        path = folder.root / file.name
        if path.name == labels.name and path.resolve() == labels:
            continue
        try:
            header = read_dicom_header(path)
        except NotDicom as error:
            audit_entries.append(AuditEntry("odd file", f"file {number}", str(error)))
        except UnreadableDicom as error:
            audit_entries.append(AuditEntry("unreadable image", f"file {number}", str(error)))
        else:
            if header is None:
                continue
            if not header.study_uid or not header.series_uid:
                audit_entries.append(
                    AuditEntry("odd file", f"file {number}", "no study or series UID")
                )
                continue
            study = by_study[f"{header.study_uid} {header.patient_id}"]
            study[header.series_uid].append(_File(number, file.name, header))
    return by_study


def _numbered(folder: Folder) -> Iterator[tuple[int, object]]:
    """The files with the numbers that audit entries call them by."""
    return enumerate(folder.files, start=1)


class _Found(NamedTuple):
    """A series that can be used."""

    name: str
    patient: str
    identifiers: dict[Match, tuple[str, ...]]
    modality: str
    rank: tuple
    description: str
    pictures: tuple[Picture, ...]
    audit_entries: list[AuditEntry]


def _chosen_series(
    by_study: _Studies,
    hashed: Callable[[str], str],
    wanted: str,
    modality: str | None,
    fewest_slices: int,
    audit_entries: list[AuditEntry],
) -> Iterator[_Found]:
    for study, by_series in by_study.items():
        name = f"study-{hashed(study)}"
        usable = []
        for series_uid, files in by_series.items():
            series_name = f"{name}/series-{hashed(series_uid)}"
            files = _images_of_slices(files, series_name, audit_entries)
            found = _stack(files, name if wanted != "all" else series_name) if files else None
            if found and len(found.pictures) < fewest_slices:
                detail = f"{len(found.pictures)} slices, fewer than {fewest_slices}"
                audit_entries.append(AuditEntry("series of few slices", series_name, detail))
            elif found:
                usable.append(found)
        usable = [found for found in usable if modality in (None, found.modality)]
        if wanted == "all":
            yield from usable
            continue
        if wanted != "best":
            pattern = wanted.casefold()
            usable = [f for f in usable if fnmatch.fnmatchcase(f.description.casefold(), pattern)]
        if usable:
            yield max(usable, key=lambda found: found.rank)
        else:
            audit_entries.append(AuditEntry("study left out", name, "no series that can be used"))


def _hash(salt: bytes, uid: str) -> str:
    return hashlib.sha256(salt + uid.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _images_of_slices(files: _Series, name: str, audit_entries: list[AuditEntry]) -> _Series:
    """The files of a series that are pictures of slices; the others are counted by reason."""
    reasons: Counter[str] = Counter()
    kept = []
    for file in files:
        reason = _why_no_slice(file.header)
        if reason:
            reasons[reason] += 1
        else:
            kept.append(file)
    audit_entries += [
        AuditEntry(reason, name, f"{count} images left out") for reason, count in reasons.items()
    ]
    return kept


def _why_no_slice(header: DicomHeader) -> str:
    kinds = set(header.image_type)
    if header.sop_class.startswith(SECONDARY_CAPTURE) or kinds & _SCREEN:
        return "secondary capture"
    if header.modality not in (CT, MR):
        return "neither CT nor MR"
    if "LOCALIZER" in kinds or _LOCALISER.search(header.series_description):
        return "localiser"
    if header.is_burned_in:
        return "text burned into the image"
    if header.samples != 1:
        return "colour image"
    if "MOSAIC" in kinds:
        return "mosaic of slices"
    if header.frames[0].orientation is None or not _is_orthonormal(header.frames[0].orientation):
        return "image without orientation"
    if header.frames[0].position is None:
        return "image without position"
    if not all(frame.is_rescalable for frame in header.frames):
        return "image with an impossible rescale slope or intercept"
    return ""


def _is_orthonormal(orientation: tuple[float, ...]) -> bool:
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    off = (row @ row - 1, column @ column - 1, row @ column)
    return all(abs(value) <= 0.01 for value in off)


# ----------------------------------------------------------------------------- series to a stack


def _stack(files: _Series, name: str) -> _Found:
    """A series' pictures in order, one a position, and what was odd about them."""
    audit_entries: list[AuditEntry] = []
    groups: dict[tuple, list[Picture]] = defaultdict(list)
    for file in files:
        for picture in _pictures(file):
            groups[_geometry(picture)].append(picture)
    pictures = max(groups.values(), key=len)
    others = sum(map(len, groups.values())) - len(pictures)
    if others:
        detail = f"{others} images left out, {len(pictures)} kept"
        audit_entries.append(AuditEntry("several orientations or sizes in a series", name, detail))
    pictures, repeated = _one_a_position(pictures)
    if repeated:
        detail = f"{repeated} images left out"
        audit_entries.append(AuditEntry("duplicate slice positions", name, detail))
    audit_entries += _findings_on_spacing(pictures, name)
    inverted = sum(file.header.is_inverted for file in files)
    if inverted:
        audit_entries.append(AuditEntry("MONOCHROME1", name, f"{inverted} images inverted"))
    rescalings = {(p.frame.slope, p.frame.intercept) for p in pictures}
    if len(rescalings) > 1:
        detail = f"{len(rescalings)} pairs of slope and intercept; each image is given its own"
        audit_entries.append(AuditEntry("several rescalings in a series", name, detail))
    header = files[0].header
    is_axial = plane_of(_cosines(pictures[0].frame)) == "axial"
    is_original = header.image_type[:2] == ("ORIGINAL", "PRIMARY")
    return _Found(
        name=name,
        patient=normal_id(header.patient_id) or header.study_uid,
        identifiers={
            "study_instance_uid": (header.study_uid,),
            "accession_number": (header.accession_number,),
            "patient_id": (header.patient_id,),
            "folder": tuple(
                sorted({parts[0] for f in files if len(parts := Path(f.path).parts) > 1})
            ),
        },
        modality=header.modality,
        rank=(is_axial, is_original, len(pictures), -header.series_number, header.series_uid),
        description=header.series_description,
        pictures=tuple(pictures),
        audit_entries=audit_entries,
    )


def _pictures(file: _File) -> Iterator[Picture]:
    header = file.header
    first = header.frames[0]
    has_positions = len({frame.position for frame in header.frames}) > 1
    for place, frame in enumerate(header.frames):
        if frame.position is None or frame.orientation is None:
            continue
        if len(header.frames) > 1 and not has_positions:
            frame = _in_file_order(frame, place)
        tie = (
            *frame.order,
            header.acquisition_number,
            header.instance_number,
            header.sop_instance,
            place,
        )
        shape = (header.rows, header.columns)
        yield Picture(file.number, file.path, place, frame, shape, first, header.plain, tie)


def _in_file_order(frame: Frame, place: int) -> Frame:
    """A frame without a position of its own, put 1 mm after the one before it."""
    position = np.array(frame.position) + place * _sense(frame) * _normal(frame)
    return frame._replace(position=tuple(position.tolist()))


def _geometry(picture: Picture) -> tuple:
    frame = picture.frame
    orientation = tuple(round(value, 2) + 0.0 for value in frame.orientation)
    spacing = tuple(round(value, 3) for value in frame.pixel_spacing)
    return orientation, spacing, picture.shape


def _normal(frame: Frame) -> np.ndarray:
    return np.cross(frame.orientation[:3], frame.orientation[3:])


def _sense(frame: Frame) -> int:
    """1, or -1 where the normal runs against the world axis nearest to it."""
    normal = _normal(frame)
    return -1 if normal[np.argmax(np.abs(normal))] < 0 else 1


def _cosines(frame: Frame) -> np.ndarray:
    """(3, 3) directions of growing columns, growing rows, and slices as they are ordered."""
    return np.column_stack(
        [frame.orientation[:3], frame.orientation[3:], _sense(frame) * _normal(frame)]
    )


def _places(frames: Sequence[Frame]) -> np.ndarray:
    """(T,) mm along the normal of the first frame, in the sense of the world axis nearest to it."""
    along = _sense(frames[0]) * _normal(frames[0])
    return np.array([frame.position for frame in frames]) @ along


def _one_a_position(pictures: list[Picture]) -> tuple[list[Picture], int]:
    places = _places([picture.frame for picture in pictures])
    order = sorted(range(len(pictures)), key=lambda i: (places[i], pictures[i].tie))
    groups: list[list[int]] = []
    for index in order:
        if groups and places[index] - places[groups[-1][0]] < SAME_POSITION_MM:
            groups[-1].append(index)
        else:
            groups.append([index])
    kept = [pictures[min(group, key=lambda i: pictures[i].tie)] for group in groups]
    return kept, len(pictures) - len(kept)


def _findings_on_spacing(pictures: list[Picture], name: str) -> list[AuditEntry]:
    frames = [picture.frame for picture in pictures]
    if len(frames) < 2:
        return []
    audit_entries = []
    steps = np.diff(_places(frames))
    typical = float(np.median(steps))
    multiples = np.rint(steps / typical)
    is_gap = (multiples >= 2) & (np.abs(steps / typical - multiples) < 0.1)
    if is_gap.any():
        missing = int((multiples[is_gap] - 1).sum())
        after = ", ".join(str(place + 1) for place in np.flatnonzero(is_gap)[:10])
        audit_entries.append(
            AuditEntry("missing slice positions", name, f"{missing} missing, after slice {after}")
        )
    rest = steps[~is_gap]
    if rest.size and np.ptp(rest) > VARIES_BY * typical:
        detail = f"{rest.min():.2f} to {rest.max():.2f} mm between slices"
        audit_entries.append(AuditEntry("variable slice spacing", name, detail))
    step = np.array(frames[-1].position) - np.array(frames[0].position)
    cosine = abs(step @ _normal(frames[0])) / np.linalg.norm(step)
    tilt = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if tilt > SMALLEST_TILT_DEGREES:
        audit_entries.append(AuditEntry("gantry tilt", name, f"{tilt:.1f} degrees"))
    return audit_entries


# --------------------------------------------------------------------------------- labels to series


_COLUMNS_MEAN: dict[str, tuple[Match, ...]] = {
    "study": ("study_instance_uid", "accession_number", "folder"),
    "patient": ("patient_id", "folder"),
}
"""What the key may be where its column is called otherwise than the identifiers; else: any."""


def _rules(table: LabelTable, match: Match | None) -> tuple[Match, ...]:
    if match or table.key in get_args(Match):
        return (match or table.key,)
    return _COLUMNS_MEAN.get(table.key, get_args(Match))


def _matched(
    chosen: Iterable[_Found],
    modality: str,
    table: LabelTable,
    folder: Folder,
    match: Match | None,
    audit_entries: list[AuditEntry],
) -> tuple[Match, list[tuple[_Found, LabelRow, str]]]:
    """The identifier that keys are; the studies that have a row, with it and their patient."""
    rules = _rules(table, match)
    readings = {rule: {s.name: s.identifiers[rule] for s in chosen} for rule in rules}
    taken, keys = match_rows(readings, table.lines)
    if taken is None:
        raise InputError(
            f"no study of {folder.root} is in the labels; a row's key is the studies' "
            f"{' or '.join(rules)} (--match says which)"
        )
    table.refuse_rivals(name for s in chosen for name in s.identifiers[taken])
    if len(rules) > 1:
        audit_entries.append(AuditEntry("labels matched", "labels", f"by {taken}"))
    is_of_a_study = table.key in PATIENT_COLUMNS and taken.startswith(("study", "accession"))
    near, matched = lines_alike(table.lines), []
    for found in chosen:
        key = keys.get(found.name)
        if found.modality != modality:
            detail = f"{found.modality} in a data set of {modality}"
            audit_entries.append(AuditEntry("study left out", found.name, detail))
        elif key is None or table.rows[key].is_unknown:
            detail = "every label is empty"
            if key is None:
                detail = why_unmatched(found.identifiers[taken], near, "labels")
            audit_entries.append(
                AuditEntry("patient without label", found.name, f"{detail}; left out")
            )
        else:
            row = table.rows[key]
            matched.append((found, row._replace(patient=None) if is_of_a_study else row))
    audit_entries += table.audit_entries(set(keys.values()))
    return taken, _with_patients(matched, audit_entries)


def _with_patients(
    matched: list[tuple[_Found, LabelRow]], audit_entries: list[AuditEntry]
) -> list[tuple[_Found, LabelRow, str]]:
    """Adds to each study whose it is: as the labels say, or else by its PatientID.

    Raises:
        InputError: if the labels part the studies of a PatientID, if studies of two patients share
            a row, or if one patient is in two splits.
    """
    by_id: dict[str, tuple[_Found, LabelRow]] = {}
    by_row: dict[int, tuple[_Found, str]] = {}
    splits: dict[str, tuple[_Found, LabelRow]] = {}
    ids: dict[str, set[str]] = defaultdict(set)
    known = []
    for found, row in matched:
        has_id = normal_id(*found.identifiers["patient_id"]) != ""
        other, other_row = by_id.setdefault(found.patient, (found, row))
        if has_id and other_row.patient != row.patient:
            raise InputError(
                f"{other.name} and {found.name} have one PatientID, and labels lines "
                f"{other_row.line} and {row.line} give them two patients; correct the labels' "
                "patient column, or leave it out"
            )
        patient = row.patient or found.patient
        ids[patient] |= {found.patient} if has_id else set()
        other, owner = by_row.setdefault(row.line, (found, patient))
        if owner != patient:
            raise InputError(
                f"{other.name} and {found.name} are of two patients and both labels line "
                f"{row.line}; if they are one patient's, call the key column patient_id and give "
                "--match"
            )
        other, other_row = splits.setdefault(patient, (found, row))
        if other_row.split != row.split:
            raise InputError(
                f"labels lines {other_row.line} and {row.line} put one patient in two splits: "
                f"{other.name} and {found.name}"
            )
        if not has_id and row.patient is None:
            detail = "taken for the only study of its patient"
            audit_entries.append(AuditEntry("study without PatientID", found.name, detail))
        known.append((found, row, patient))
    joined = sum(len(own) > 1 for own in ids.values())
    if joined:
        detail = f"{joined} patients have several PatientIDs; the labels' patient column holds"
        audit_entries.append(AuditEntry("patients joined by the labels", "labels", detail))
    return known


# ---------------------------------------------------------------------------------- decoding slices


def _decoded(root: str, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, np.ndarray | None]]:
    """Each picture in order with its intensities, or None.

    Unpacked values are read from where they lie; SimpleITK decodes the others, file by file.
    """
    from medseq_tf.readers.simpleitk_volume import read_dicom_frames

    counts = Counter(picture.path for picture in pictures)
    several: dict[str, np.ndarray | None] = {}
    for picture in pictures:
        path = Path(root, picture.path)
        if picture.plain:
            yield picture, _plain_intensities(path, picture)
            continue
        if picture.path in several:
            frames = several[picture.path]
        else:
            frames = read_dicom_frames(path)
            if counts[picture.path] > 1:
                several[picture.path] = frames
        is_there = (
            frames is not None and frames.shape[1:] == picture.shape and picture.place < len(frames)
        )
        yield picture, _intensities(frames[picture.place], picture) if is_there else None


def _plain_intensities(path: Path, picture: Picture) -> np.ndarray | None:
    offset, dtype, unused_bits = picture.plain
    count = math.prod(picture.shape)
    offset += picture.place * count * np.dtype(dtype).itemsize
    try:
        values = np.fromfile(path, dtype, count, offset=offset)
    except OSError:
        return None
    if values.size < count:
        return None
    if unused_bits:  # which may hold an overlay
        values = (values << unused_bits) >> unused_bits
    values = values.reshape(picture.shape)
    slope, intercept = picture.frame.slope, picture.frame.intercept
    if slope == 1 and intercept.is_integer():
        return values + np.int32(intercept)
    return values * slope + intercept


def _intensities(image: np.ndarray, picture: Picture) -> np.ndarray:
    """Gives a frame its own slope and intercept in place of the first frame's."""
    first, frame = picture.first_frame, picture.frame
    if (first.slope, first.intercept) != (frame.slope, frame.intercept):
        image = (image - first.intercept) / first.slope * frame.slope + frame.intercept
    return image


def upright(images: Sequence[np.ndarray], frames: Sequence[Frame]) -> list[np.ndarray]:
    """Shifts slices in their planes so that their first pixels stand on one line along the normal.

    The middle slice stays; what is shifted in takes the stack's smallest value.

    Args:
        images: (H, W) each.
        frames: their geometry.
    """
    normal = _normal(frames[0])
    positions = np.array([frame.position for frame in frames])
    from_middle = positions - positions[len(positions) // 2]
    in_plane = from_middle - np.outer(from_middle @ normal, normal)
    rows_mm, columns_mm = frames[0].pixel_spacing
    across = in_plane @ np.array(frames[0].orientation[:3]) / columns_mm
    down = in_plane @ np.array(frames[0].orientation[3:]) / rows_mm
    lowest = float(min(image.min() for image in images))
    return [
        cv2.warpAffine(
            image,
            np.array([[1, 0, x], [0, 1, y]], np.float64),
            image.shape[::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=lowest,
        )
        for image, x, y in zip(images, across, down, strict=True)
    ]


def _evenly_spaced(
    slices: list[np.ndarray], pictures: list[Picture], plane: str, spacing: tuple
) -> list[np.ndarray]:
    """Slices at even steps from the first to the last, between neighbours linearly, and resized."""
    frames = [picture.frame for picture in pictures]
    rows_mm, columns_mm = frames[0].pixel_spacing
    axes, _ = nearest_axes(_cosines(frames[0]))
    slices_world, rows_world, columns_world = world_axes(plane)
    mm = (columns_mm, rows_mm)
    between_rows, between_columns = mm[axes[rows_world]], mm[axes[columns_world]]
    along, down, across = (spacing[w] for w in (slices_world, rows_world, columns_world))
    height, width = slices[0].shape
    height = max(1, round(height * between_rows / down)) if down else height
    width = max(1, round(width * between_columns / across)) if across else width
    places = _places(frames)
    count = (places[-1] - places[0]) / along + 1 if along else len(places)
    if max(height, width) > LARGEST_SIDE or count * height * width > LARGEST_VOXELS:
        raise UnreadableStudy(f"would have more than {LARGEST_VOXELS} voxels at that spacing")
    if slices[0].shape != (height, width):
        slices = [
            cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
            for image in slices
        ]
    if not along or len(places) < 2:
        return slices
    wanted = np.arange(places[0], places[-1] + 1e-6, along)
    after = np.clip(np.searchsorted(places, wanted), 1, len(places) - 1)
    shares = (wanted - places[after - 1]) / (places[after] - places[after - 1])
    return [
        cv2.addWeighted(slices[i - 1], 1 - share, slices[i], share, 0)
        for i, share in zip(after, shares, strict=True)
    ]


if __name__ == "__main__":
    for number, file in _numbered(Folder(Path(sys.argv[1]))):
        print(number, printable(file.name))
