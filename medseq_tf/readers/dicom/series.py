"""Which series of a study is read, and its slices in order.

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
ImageOrientationPatient; file names and InstanceNumber are not looked at. Frames of a multi-frame
file are slices like others, and so are those of a concatenation, an image in several files; without
functional groups, which say where each lies, they keep the file's order. Also handled, and named in
the audit:

    several orientations or sizes   the largest group of one orientation, size and pixel spacing
    duplicate positions             the first in time, echo, acquisition, then instance number; of
                                    frames of enhanced images the magnitude, the first in time and
                                    echo, the smallest b-value, then the first along the file's own
                                    dimensions
    parts of a concatenation lack   the others
    missing positions               nothing is filled in
    variable spacing                slices as acquired
    gantry tilt                     slices as acquired, in tilted planes
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom
from medseq_tf.readers.dicom.frame import Frame, Picture, places
from medseq_tf.readers.dicom.header import CT, MR, SECONDARY_CAPTURE, DicomHeader, read_dicom_header
from medseq_tf.readers.folder import Folder, resolved_places
from medseq_tf.readers.matching import normal_id
from medseq_tf.readers.orientation import plane_of
from medseq_tf.readers.storage import Place, headers, name_of, place_in
from medseq_tf.readers.study import AuditEntry

FIRST_FILE = 1
"""The number of a source's first file, as audit entries call it."""
SMALLEST_TILT_DEGREES = 0.5
SAME_POSITION_MM = 0.01
VARIES_BY = 0.05
NO_SERIES = "no series that can be used"

_LOCALISER = re.compile(
    r"\b(locali[sz]er|scout|topogram|surview|scano(gram)?|survey|3[- ]?plane)\b", re.IGNORECASE
)
_OTHER_UNITS = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
"""Of the rescale types (PS3.3, C.11.1.1.2) those that are none of a usual CT: material maps."""
_SCREEN = {"SCREEN SAVE", "SCREEN_CAPTURE", "SCREENSHOT"}


class DicomFile(NamedTuple):
    """A file with a picture or pictures, by its number and its path in the source."""

    number: int
    path: str
    header: DicomHeader


Studies = dict[str, dict[str, list[DicomFile]]]
"""Study -> SeriesInstanceUID -> files."""


class Stack(NamedTuple):
    """A series that can be used: its pictures in order, and what is known of it.

    Attributes:
        name: of its study, without anything of the patient.
        patient: PatientID, or else StudyInstanceUID.
        identifiers: what a row of the labels may call it, by the rule.
        series_uid: SeriesInstanceUID.
        modality: `CT` or `MR`.
        rank: the greatest is the best of a study's.
        description: of the series.
        pictures: one a position.
        audit_entries: what was odd about them.
    """

    name: str
    patient: str
    identifiers: dict[str, tuple[str, ...]]
    series_uid: str
    modality: str
    rank: tuple
    description: str
    pictures: tuple[Picture, ...]
    audit_entries: list[AuditEntry]


# --------------------------------------------------------------------------------- files to series


def files_by_study(
    folder: Folder, tables: Collection[Place], audit_entries: list[AuditEntry]
) -> Studies:
    """Group the files with pictures by study, then by series; name others than tables in the audit.

    The tables, of labels and the like, are resolved.
    """
    by_study: Studies = defaultdict(lambda: defaultdict(list))
    names = set(map(name_of, tables))
    numbers = {
        file.name: number
        for number, file in enumerate(folder.files, start=FIRST_FILE)
        if name_of(file.name) not in names
        or resolved_places([place_in(folder.root, file.name)]).isdisjoint(tables)
    }
    sizes = {file.name: file.size for file in folder.files if file.name in numbers}
    for name, header in headers(str(folder.root), sizes, _header, UnreadableDicom):
        where = f"file {numbers[name]}"
        if isinstance(header, NotDicom):
            audit_entries.append(AuditEntry("odd file", where, str(header)))
        elif isinstance(header, Exception):
            audit_entries.append(AuditEntry("unreadable image", where, str(header)))
        elif header is None:
            continue
        elif not header.study_uid or not header.series_uid:
            audit_entries.append(AuditEntry("odd file", where, "no study or series UID"))
        else:
            study = by_study[f"{header.study_uid} {header.patient_id}"]
            study[header.series_uid].append(DicomFile(numbers[name], name, header))
    return by_study


def _header(path: str, size: int) -> DicomHeader | NotDicom | None:
    try:
        return read_dicom_header(path, size)
    except NotDicom as error:
        return error


# ------------------------------------------------------------------------------- series to be used


def choose_series(
    by_study: Studies,
    hashed: Callable[[str], str],
    series: str,
    modality: str | None,
    fewest_slices: int,
    audit_entries: list[AuditEntry],
) -> Iterator[Stack]:
    """Choose what is read of each study, as the module's words say.

    Args:
        by_study: the files.
        hashed: gives the hash by which a UID is named.
        series: `best`, `all`, or a pattern of the series' description.
        modality: series of another one are not used; None: those of both are.
        fewest_slices: of a series that is used.
        audit_entries: what is left out is added.
    """
    settings = (modality, fewest_slices, audit_entries, series == "all")
    for name, stacks in usable_series(by_study, hashed, *settings):
        if series == "all":
            yield from stacks
        elif best := best_of(stacks, "*" if series == "best" else series):
            yield best
        else:
            audit_entries.append(AuditEntry("study left out", name, NO_SERIES))


def usable_series(
    by_study: Studies,
    hashed: Callable[[str], str],
    modality: str | None,
    fewest_slices: int,
    audit_entries: list[AuditEntry],
    apart: bool = False,
) -> Iterator[tuple[str, list[Stack]]]:
    """Give each study's name, and the series of it that can be used.

    They are called as the study or, where they are `apart`, by a name each. The other arguments are
    those of `choose_series`.
    """
    for study, by_series in by_study.items():
        name = f"study-{hashed(study)}"
        usable = []
        for series_uid, files in by_series.items():
            series_name = f"{name}/series-{hashed(series_uid)}"
            called = series_name if apart else name
            stack = stack_of(files, called, series_name, audit_entries)
            if stack and len(stack.pictures) < fewest_slices:
                detail = f"{len(stack.pictures)} slices, fewer than {fewest_slices}"
                audit_entries.append(AuditEntry("series of few slices", series_name, detail))
            elif stack and modality in (None, stack.modality):
                usable.append(stack)
        yield name, usable


def stack_of(
    files: list[DicomFile], name: str, series_name: str, audit_entries: list[AuditEntry]
) -> Stack | None:
    """Return the slices of a series' files; None where there are none."""
    slices = _images_of_slices(files, series_name, audit_entries)
    return _stack(slices, name) if slices else None


def best_of(stacks: Iterable[Stack], pattern: str) -> Stack | None:
    """Return the best of the series whose description fits a pattern; None where none does."""
    pattern = pattern.casefold()
    fitting = [s for s in stacks if fnmatch.fnmatchcase(s.description.casefold(), pattern)]
    return max(fitting, key=lambda stack: stack.rank, default=None)


def _images_of_slices(
    files: list[DicomFile], name: str, audit_entries: list[AuditEntry]
) -> list[DicomFile]:
    """The files of a series that are pictures of slices; the others are counted by reason."""
    reasons: Counter[str] = Counter()
    slices = []
    for file in files:
        reason = why_no_slice(file.header)
        if reason:
            reasons[reason] += 1
        else:
            slices.append(file)
    audit_entries += [
        AuditEntry(reason, name, f"{count} images left out") for reason, count in reasons.items()
    ]
    return slices


def why_no_slice(header: DicomHeader) -> str:
    """Return why a file's pictures are no slices, as an audit entry calls it; "" where they are."""
    kinds, frames = set(header.image_type), header.frames
    is_localiser = "LOCALIZER" in kinds or _LOCALISER.search(header.series_description)
    is_secondary = header.sop_class.startswith(SECONDARY_CAPTURE) or kinds & _SCREEN
    reasons = {
        "secondary capture": is_secondary,
        "neither CT nor MR": header.modality not in (CT, MR),
        "localiser": is_localiser,
        "text burned into the image": header.is_burned_in,
        header.unread: bool(header.unread),
        "mosaic of slices": "MOSAIC" in kinds,
        "image without orientation": not all(f.orientation and f.is_orthonormal for f in frames),
        "image without position": not all(f.position for f in frames),
        "image with an impossible rescale slope or intercept": not all(
            f.is_rescalable for f in frames
        ),
        "CT of other units than Hounsfield's": header.modality == CT
        and any(f.unit in _OTHER_UNITS for f in frames),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


# ----------------------------------------------------------------------------- a series to a stack


def _stack(files: list[DicomFile], name: str) -> Stack:
    """A series' pictures in order, one a position, and what was odd about them."""
    audit_entries = _missing_parts(files, name)
    groups: dict[tuple, list[Picture]] = defaultdict(list)
    for file in files:
        for picture in pictures_of(file):
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
    audit_entries += _oddities_of_spacing(pictures, name)
    inverted = sum(file.header.format.is_inverted for file in files)
    if inverted:
        audit_entries.append(AuditEntry("MONOCHROME1", name, f"{inverted} images inverted"))
    rescalings = {(p.frame.slope, p.frame.intercept) for p in pictures}
    if len(rescalings) > 1:
        detail = f"{len(rescalings)} pairs of slope and intercept; each image is given its own"
        audit_entries.append(AuditEntry("several rescalings in a series", name, detail))
    header = files[0].header
    is_axial = plane_of(pictures[0].frame.cosines) == "axial"
    is_original = header.image_type[:2] == ("ORIGINAL", "PRIMARY")
    folders = {file.path.partition("/")[0] for file in files if "/" in file.path}
    return Stack(
        name=name,
        patient=normal_id(header.patient_id) or header.study_uid,
        identifiers={
            "study_instance_uid": (header.study_uid,),
            "accession_number": (header.accession_number,),
            "patient_id": (header.patient_id,),
            "folder": tuple(sorted(folders)),
        },
        series_uid=header.series_uid,
        modality=header.modality,
        rank=(is_axial, is_original, len(pictures), -header.series_number, header.series_uid),
        description=header.series_description,
        pictures=tuple(pictures),
        audit_entries=audit_entries,
    )


def _missing_parts(files: list[DicomFile], name: str) -> list[AuditEntry]:
    """What lacks of multi-frame images that lie in several files (concatenations)."""
    numbers: dict[str, set[int]] = defaultdict(set)
    totals: dict[str, int] = defaultdict(int)
    for uid, number, total in (file.header.concatenation for file in files):
        if uid:
            numbers[uid].add(number)
            totals[uid] = max(totals[uid], number, total)
    missing = sum(max(totals[uid] - len(numbers[uid]), 0) for uid in numbers)
    detail = f"{missing} of {sum(totals.values())} files are not there"
    return [AuditEntry("incomplete concatenation", name, detail)] if missing else []


def pictures_of(file: DicomFile) -> Iterator[Picture]:
    """Give a file's frames as pictures, in its order."""
    header = file.header
    has_positions = header.has_groups or len(header.frames) == 1
    for place, frame in enumerate(header.frames):
        if not has_positions:
            frame = _in_file_order(frame, place)
        yield Picture(
            number=file.number,
            path=file.path,
            place=place,
            frame=frame,
            shape=(header.rows, header.columns),
            format=header.format,
            padding=header.padding,
            tie=(
                frame.order,
                header.acquisition_number,
                header.instance_number,
                header.sop_instance,
                place,
            ),
        )


def _in_file_order(frame: Frame, place: int) -> Frame:
    """A frame without a position of its own, put 1 mm after the one before it."""
    position = np.array(frame.position) + place * frame.slice_axis
    return frame._replace(position=tuple(position.tolist()))


def _geometry(picture: Picture) -> tuple:
    frame = picture.frame
    orientation = tuple(round(value, 2) + 0.0 for value in frame.orientation)
    spacing = tuple(round(value, 3) for value in frame.pixel_spacing)
    return orientation, spacing, picture.shape


def _one_a_position(pictures: list[Picture]) -> tuple[list[Picture], int]:
    """The pictures in order, the first of each position, and how many others there are."""
    heights = places([picture.frame for picture in pictures])
    order = sorted(range(len(pictures)), key=lambda i: (heights[i], pictures[i].tie))
    groups: list[list[int]] = []
    for index in order:
        if groups and heights[index] - heights[groups[-1][0]] < SAME_POSITION_MM:
            groups[-1].append(index)
        else:
            groups.append([index])
    kept = [pictures[min(group, key=lambda i: pictures[i].tie)] for group in groups]
    return kept, len(pictures) - len(kept)


def _oddities_of_spacing(pictures: Sequence[Picture], name: str) -> list[AuditEntry]:
    frames = [picture.frame for picture in pictures]
    if len(frames) < 2:
        return []
    audit_entries = []
    steps = np.diff(places(frames))
    typical = float(np.median(steps))
    multiples = np.rint(steps / typical)
    is_gap = (multiples >= 2) & (np.abs(steps / typical - multiples) < 0.1)
    if is_gap.any():
        missing = int((multiples[is_gap] - 1).sum())
        after = ", ".join(str(place + 1) for place in np.flatnonzero(is_gap)[:10])
        audit_entries.append(
            AuditEntry("missing slice positions", name, f"{missing} missing, after slice {after}")
        )
    without_gaps = steps[~is_gap]
    if without_gaps.size and np.ptp(without_gaps) > VARIES_BY * typical:
        detail = f"{without_gaps.min():.2f} to {without_gaps.max():.2f} mm between slices"
        audit_entries.append(AuditEntry("variable slice spacing", name, detail))
    step = np.array(frames[-1].position) - np.array(frames[0].position)
    cosine = abs(step @ frames[0].normal) / np.linalg.norm(step)
    tilt = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if tilt > SMALLEST_TILT_DEGREES:
        audit_entries.append(AuditEntry("gantry tilt", name, f"{tilt:.1f} degrees"))
    return audit_entries
