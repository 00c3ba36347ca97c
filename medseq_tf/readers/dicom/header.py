"""What the header of a DICOM file says about its picture or pictures, which are not decoded.

Part 10 files and bare data sets are read, of every transfer syntax. Frames of an enhanced
multi-frame image get the positions, orientations and rescaling of their functional groups (PS3.3,
C.7.6.16). Names and dates are not even decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from medseq_tf.readers.dicom.elements import (
    DEFLATED,
    Elements,
    PixelData,
    UnreadableDicom,
    quiet_pydicom,
    read_elements,
)
from medseq_tf.readers.dicom.encoding import UNCOMPRESSED, pixel_format, why_unread
from medseq_tf.readers.dicom.frame import Frame, PixelFormat
from medseq_tf.readers.study import LARGEST_SIDE, LARGEST_VOXELS

CT, MR = "CT", "MR"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MODALITY_OF_SOP_CLASS = {
    "1.2.840.10008.5.1.4.1.1.2": CT,
    "1.2.840.10008.5.1.4.1.1.2.1": CT,
    "1.2.840.10008.5.1.4.1.1.2.2": CT,
    "1.2.840.10008.5.1.4.1.1.4": MR,
    "1.2.840.10008.5.1.4.1.1.4.1": MR,
    "1.2.840.10008.5.1.4.1.1.4.4": MR,
}

MANUFACTURER = "medseq_tf"
"""Of the results that are made of a study: beside it, they change nothing of what is read."""

ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Images that must say how they are rescaled, or else are no Hounsfield units."""

_MOST_FRAMES = 2**16
"""Of one file; the longest series of enhanced MR have some ten thousand."""
_LARGEST_PER_BYTE = 1032
"""Deflate makes a file at most this many times smaller."""
_NO_CONCATENATION = ("", 0, 0)
_OTHER_GROUPS = "functional groups of other frames than it has"
_FRAGMENT_BYTES = 8
"""Of each fragment of packed pixels, before its data; a frame has one at least."""
_FUNCTIONAL_GROUPS = (
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRImageFrameTypeSequence",
)


class DicomHeader(NamedTuple):
    """What a file says about its picture or pictures; text is "" where it says nothing.

    Attributes:
        format: how its pixels are stored.
        unread: why they are not read; "" where they are.
        has_groups: whether each frame has functional groups, and so its own position.
        concatenation: of the file, where it is a part of one: its UID, the part's number, and how
            many there are (0: it does not say).
        padding: the smallest and largest stored value that mean no pixel; None where the file names
            none.
    """

    patient_id: str
    accession_number: str
    study_uid: str
    series_uid: str
    series_description: str
    series_number: int
    acquisition_number: int
    instance_number: int
    sop_instance: str
    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    is_burned_in: bool
    samples: int
    rows: int
    columns: int
    frames: tuple[Frame, ...]
    format: PixelFormat
    unread: str
    has_groups: bool
    concatenation: tuple[str, int, int]
    padding: tuple[int, int] | None


def read_dicom_header(path: str | Path, size: int | None = None) -> DicomHeader | None:
    """Read the header of a DICOM file.

    Args:
        path: the file.
        size: of the file in bytes, where the path may lead to no more than its start.

    Returns:
        The header; None for an index of a medium (DICOMDIR), for objects without a picture, and for
        the results that this package makes of studies.

    Raises:
        NotDicom: if it is not a DICOM file.
        UnreadableDicom: if it is damaged, cut short, or declares a picture that is too large.
    """
    with quiet_pydicom():
        return header_of(*read_elements(path, size))


def header_of(elements: Elements, pixels: PixelData | None, file_bytes: int) -> DicomHeader | None:
    """Make a header of a file's elements, where its pixels lie, and its size; see above."""
    if pixels is None or _is_result(elements):
        sop_class = elements.text("SOPClassUID") or elements.text("MediaStorageSOPClassUID")
        if not sop_class or sop_class in MODALITY_OF_SOP_CLASS:
            raise UnreadableDicom("damaged or cut short: holds no pixels")
        return None
    unread = why_unread(elements, pixels)
    _check_size(elements, pixels, file_bytes, not unread)
    try:
        return _header(elements, pixels, unread)
    except Exception:  # whatever a damaged sequence makes of pydicom's many
        raise UnreadableDicom("damaged or cut short") from None


def _is_result(elements: Elements) -> bool:
    is_picture = elements.text("SOPClassUID") in MODALITY_OF_SOP_CLASS
    return not is_picture and elements.text("Manufacturer") == MANUFACTURER


def _header(elements: Elements, pixels: PixelData, unread: str) -> DicomHeader:
    sop_class = elements.text("SOPClassUID")
    image_type = elements.text("ImageType").split("\\")
    groups = elements.sequence("PerFrameFunctionalGroupsSequence")
    frames = _frames(elements, groups)
    return DicomHeader(
        patient_id=elements.decoded("PatientID"),
        accession_number=elements.decoded("AccessionNumber"),
        study_uid=elements.text("StudyInstanceUID"),
        series_uid=elements.text("SeriesInstanceUID"),
        series_description=elements.decoded("SeriesDescription"),
        series_number=elements.integer("SeriesNumber"),
        acquisition_number=elements.integer("AcquisitionNumber"),
        instance_number=elements.integer("InstanceNumber"),
        sop_instance=elements.text("SOPInstanceUID"),
        sop_class=sop_class,
        modality=MODALITY_OF_SOP_CLASS.get(sop_class, elements.text("Modality")),
        image_type=tuple(value.strip().upper() for value in image_type),
        is_burned_in=elements.text("BurnedInAnnotation").upper() == "YES",
        samples=elements.binary("SamplesPerPixel", default=1),
        rows=elements.binary("Rows"),
        columns=elements.binary("Columns"),
        frames=tuple(frames),
        format=pixel_format(elements, pixels),
        unread=unread or (_OTHER_GROUPS if groups and len(groups) != len(frames) else ""),
        has_groups=bool(groups),
        concatenation=_concatenation(elements),
        padding=_padding(elements),
    )


def _concatenation(elements: Elements) -> tuple[str, int, int]:
    """The file's part in a concatenation (PS3.3, C.7.6.16.2.2.4)."""
    uid = elements.text("ConcatenationUID")
    if not uid:
        return _NO_CONCATENATION
    number, total = "InConcatenationNumber", "InConcatenationTotalNumber"
    return uid, elements.binary(number), elements.binary(total)


def _padding(elements: Elements) -> tuple[int, int] | None:
    """The range of stored values that are padding (PS3.3, C.7.5.1.1.2)."""
    if not elements.raw("PixelPaddingValue"):
        return None
    form = "h" if elements.binary("PixelRepresentation") else "H"
    value = elements.binary("PixelPaddingValue", form)
    limit = elements.binary("PixelPaddingRangeLimit", form, default=value)
    return min(value, limit), max(value, limit)


def _frames(elements: Elements, groups: list[Elements]) -> list[Frame]:
    count = max(elements.integer("NumberOfFrames", 1), 1)
    of_all = _merged(elements, elements.sequence("SharedFunctionalGroupsSequence"))
    if len(groups) != count:
        return [_frame(of_all)] * count
    return [_frame_of_group(of_all, group) for group in groups]


def _merged(elements: Elements, groups: list[Elements]) -> Elements:
    """The elements, and over them those of the first item of each functional group."""
    merged = type(elements)(elements)
    for group in groups:
        for keyword in _FUNCTIONAL_GROUPS:
            for item in group.sequence(keyword)[:1]:
                merged.update(item)
    return merged


def _frame_of_group(of_all: Elements, group: Elements) -> Frame:
    elements = _merged(of_all, [group])
    frame = _frame(elements)
    component = elements.text("ComplexImageComponent")
    order = (
        component not in ("", "MAGNITUDE", "MIXED"),
        *frame.order,
        float(elements.binary("DiffusionBValue", "d")),
        component,
        elements.indices("DimensionIndexValues"),
    )
    return frame._replace(order=order)


def _frame(elements: Elements) -> Frame:
    spacing = elements.floats("PixelSpacing", 2)
    slope, intercept = elements.floats("RescaleSlope", 1), elements.floats("RescaleIntercept", 1)
    has_slope, has_intercept = (
        bool(elements.text(keyword)) or elements.text("SOPClassUID") in ENHANCED_CT
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    (temporal,) = elements.floats("TemporalPositionIdentifier", 1) or (0.0,)
    (echo,) = elements.floats("EchoTime", 1) or (0.0,)
    return Frame(
        position=elements.floats("ImagePositionPatient", 3) or (),
        orientation=elements.floats("ImageOrientationPatient", 6) or (),
        pixel_spacing=spacing if spacing and min(spacing) > 0 else (1.0, 1.0),
        slope=slope[0] if slope and slope[0] else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        order=(
            float(elements.binary("TemporalPositionIndex", "I", temporal)),
            float(elements.binary("EffectiveEchoTime", "d", echo)),
        ),
        is_rescalable=(not has_slope or bool(slope and slope[0]))
        and (not has_intercept or intercept is not None),
        unit=elements.text("RescaleType").upper(),
    )


def _check_size(elements: Elements, pixels: PixelData, file_bytes: int, is_read: bool) -> None:
    """Hold what a header declares against the bytes of its file, before any of it is believed."""
    rows, columns = elements.binary("Rows"), elements.binary("Columns")
    frames = max(elements.integer("NumberOfFrames", 1), 1)
    if not (elements.text("NumberOfFrames") or "1").removeprefix("+").isdecimal():
        raise UnreadableDicom("its number of frames is no number")
    if frames > _MOST_FRAMES:
        raise UnreadableDicom(f"declares {frames} frames; at most {_MOST_FRAMES} a file")
    if min(rows, columns) < 1 or max(rows, columns) > LARGEST_SIDE:
        raise UnreadableDicom(
            f"declares {columns} x {rows} pixels; 1 to {LARGEST_SIDE} a side can be used"
        )
    if frames * rows * columns > LARGEST_VOXELS:
        raise UnreadableDicom(
            f"declares {frames} frames of {columns} x {rows}; at most {LARGEST_VOXELS} voxels"
        )
    wanted = rows * columns * frames * elements.binary("BitsAllocated", default=16) // 8
    syntax = elements.text("TransferSyntaxUID")
    if syntax not in UNCOMPRESSED:
        is_short = pixels.start + frames * _FRAGMENT_BYTES > file_bytes
    elif not is_read:  # perhaps of another size
        is_short = False
    elif syntax == DEFLATED:
        is_short = pixels.length < wanted or pixels.length > file_bytes * _LARGEST_PER_BYTE
    else:
        is_short = pixels.length < wanted or pixels.start + pixels.length > file_bytes
    if is_short:
        raise UnreadableDicom("cut short: declares more pixels than it holds")
