"""Takes a DICOM file; gives what its header says about an image, without decoding it.

Part 10 files and bare data sets, explicit or implicit, of either byte order or deflated, are walked
element by element up to the pixel data (PS3.5, chapter 7). Frames of an enhanced multi-frame image
get the positions, orientations and rescaling of their functional groups (PS3.3, C.7.6.16). Names,
dates and other text are not even decoded. No code in C or C++ sees the file here.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

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

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_UNPACKED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN)
_LONG_LENGTH = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR"} | {
    b"UT",
    b"UV",
}
_READ_FIRST = (64 * 1024, 2 * 2**20, 128 * 2**20)
_MOST_UNPACKED = 32 * 2**20
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_GROUP = 0x7FE0
_PIXEL_DATA = 0x7FE00010
_DEEPEST = 16
_MOST_FRAMES = 2**16
"""Of one file; the longest series of enhanced MR have some ten thousand."""
_LARGEST_PER_BYTE = 1032
"""Deflate makes a file at most this many times smaller."""
_FRAGMENT_BYTES = 8
"""Of each fragment of packed pixels, before its data; a frame has one at least."""

_SEQUENCES = {
    0x00209111: "frame_content",
    0x00209113: "plane_position",
    0x00209116: "plane_orientation",
    0x00289110: "pixel_measures",
    0x00289145: "pixel_value_transformation",
    0x00189114: "mr_echo",
    0x52009229: "shared_groups",
    0x52009230: "frame_groups",
}
_ELEMENTS = {
    0x00020002: "media_class",
    0x00020010: "transfer_syntax",
    0x00080005: "character_set",
    0x00080008: "image_type",
    0x00080016: "sop_class",
    0x00080018: "sop_instance",
    0x00080050: "accession_number",
    0x00080060: "modality",
    0x0008103E: "series_description",
    0x00100020: "patient_id",
    0x00180081: "echo_time",
    0x00189082: "effective_echo_time",
    0x0020000D: "study_uid",
    0x0020000E: "series_uid",
    0x00200011: "series_number",
    0x00200012: "acquisition_number",
    0x00200013: "instance_number",
    0x00200032: "position",
    0x00200037: "orientation",
    0x00200100: "temporal_position",
    0x00209128: "temporal_index",
    0x00280002: "samples",
    0x00280004: "photometric",
    0x00280008: "frames",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280030: "pixel_spacing",
    0x00280100: "bits_allocated",
    0x00280101: "bits_stored",
    0x00280102: "high_bit",
    0x00280103: "is_signed",
    0x00280301: "burned_in",
    0x00281052: "intercept",
    0x00281053: "slope",
}
_BINARY_NUMBERS = {
    "temporal_index": "I",
    "effective_echo_time": "d",
    "samples": "H",
    "rows": "H",
    "columns": "H",
    "bits_allocated": "H",
    "bits_stored": "H",
    "high_bit": "H",
    "is_signed": "H",
}


class NotDicom(ValueError):
    """A file of another kind."""


class UnreadableDicom(ValueError):
    """A DICOM file that cannot be used; the message is the reason."""


class Frame(NamedTuple):
    """One picture of a file, in the patient's coordinates (LPS, mm).

    Attributes:
        position: (x, y, z) of the centre of the first pixel; None where the file does not say.
        orientation: direction of growing columns, then of growing rows; None likewise.
        pixel_spacing: mm between rows, and between columns.
        slope: intensity = stored * slope + intercept.
        intercept: see `slope`.
        order: what tells pictures of one position apart: temporal position, echo time.
        is_rescalable: whether slope and intercept, where they are given, are numbers, and the
            slope is not 0.
    """

    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float]
    slope: float
    intercept: float
    order: tuple[float, ...]
    is_rescalable: bool = True


class PlainPixels(NamedTuple):
    """Where the stored values of an unpacked picture lie in its file.

    Attributes:
        offset: of the first frame, in bytes.
        dtype: of a stored value as it lies in the file.
        unused_bits: of each value, above those that are stored.
    """

    offset: int
    dtype: str
    unused_bits: int


class DicomHeader(NamedTuple):
    """What a file says about its picture or pictures; text is "" where it says nothing."""

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
    is_inverted: bool
    rows: int
    columns: int
    frames: tuple[Frame, ...]
    plain: PlainPixels | None


def read_dicom_header(path: Path) -> DicomHeader | None:
    """Reads the header of a DICOM file.

    Returns:
        The header; None for an index of a medium (DICOMDIR) and for objects without a picture.

    Raises:
        NotDicom: if it is not a DICOM file.
        UnreadableDicom: if it is damaged, cut short, or declares a picture that is too large.
    """
    try:
        with open(path, "rb") as file:
            held = os.fstat(file.fileno()).st_size
            elements = _read_elements(file, held)
    except OSError:
        raise UnreadableDicom("cannot be opened") from None
    except (struct.error, zlib.error, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, NotDicom | UnreadableDicom):
            raise
        raise UnreadableDicom("damaged or cut short") from None
    if "pixel_data" not in elements:
        sop_class = elements.get("sop_class") or elements.get("media_class", "")
        if not sop_class or sop_class in MODALITY_OF_SOP_CLASS:
            raise UnreadableDicom("damaged or cut short")
        return None
    _check_size(elements, held)
    return _header(elements)


class _CutShort(ValueError):
    """More of the file is needed."""


def _read_elements(file, held: int) -> dict[str, Any]:
    if not held:
        raise UnreadableDicom("an empty file")
    for most in _READ_FIRST:
        file.seek(0)
        data = file.read(most)
        try:
            return _parse(data, most, is_whole=len(data) >= held)
        except (_CutShort, struct.error):
            continue
    raise UnreadableDicom("damaged or cut short")


def _parse(data: bytes, most: int, is_whole: bool) -> dict[str, Any]:
    """The elements in a file's first bytes, of which deflated ones are unpacked up to `most`."""
    start = 132 if data[128:132] == b"DICM" else 0
    if not start and not _looks_bare(data):
        raise NotDicom("not a DICOM file")
    meta, start = _meta(data, start)
    syntax = meta.get("transfer_syntax", "")
    if syntax == _DEFLATED:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        data, start = unpack.decompress(data[start:], min(most, _MOST_UNPACKED)), 0
        is_whole = is_whole and unpack.eof
    walk = _Walk(data, ">" if syntax == _BIG_ENDIAN else "<")
    is_explicit = data[start + 4 : start + 6].isalpha() and data[start + 4 : start + 6].isupper()
    elements, _ = walk.dataset(start, len(data), is_explicit)
    if "pixel_data" not in elements and not is_whole:
        raise _CutShort
    return {**meta, **elements, "transfer_syntax": syntax}


def _looks_bare(data: bytes) -> bool:
    """Whether a file without preamble starts with an element of group 2 or 8."""
    if len(data) < 8:
        return False
    group, element, length = struct.unpack_from("<HHI", data)
    is_explicit = data[4:6].isalpha() and data[4:6].isupper()
    return group in (2, 8) and element < 0x100 and (is_explicit or length < 0x10000)


def _meta(data: bytes, start: int) -> tuple[dict[str, Any], int]:
    """The file meta information (group 2), always explicit and little-endian."""
    walk = _Walk(data, "<")
    return walk.dataset(start, len(data), True, only_group=2)


class _Walk:
    """Goes through the elements of a buffer in one byte order."""

    def __init__(self, data: bytes, order: str):
        self.data = data
        self.order = order

    def dataset(
        self,
        at: int,
        end: int,
        explicit: bool,
        depth: int = 0,
        is_delimited: bool = False,
        only_group: int | None = None,
    ) -> tuple[dict[str, Any], int]:
        """Wanted elements by name, and where the next thing after the data set starts."""
        found: dict[str, Any] = {}
        while at + 8 <= end:
            group, element = struct.unpack_from(self.order + "HH", self.data, at)
            tag = group << 16 | element
            if only_group is not None and group != only_group:
                return found, at
            if tag == _ITEM_END:
                return found, at + 8
            kind, length, start = self._length(at, explicit and group != 0xFFFE)
            if group == _PIXEL_GROUP and not depth:
                if tag == _PIXEL_DATA:
                    found["pixel_data"] = (start, length)
                return found, at
            if length == _UNDEFINED or (kind in (b"SQ", b"") and tag in _SEQUENCES):
                stop = end if length == _UNDEFINED else start + length
                if stop > end:
                    raise _CutShort
                is_inner_explicit = explicit and kind != b"UN"
                items, at = self._items(
                    start, stop, is_inner_explicit, depth + 1, length == _UNDEFINED
                )
                if tag in _SEQUENCES:
                    found[_SEQUENCES[tag]] = items
                continue
            at = start + length
            if at > end:
                raise _CutShort
            if tag in _ELEMENTS:
                found[_ELEMENTS[tag]] = self._value(_ELEMENTS[tag], self.data[start:at])
        if is_delimited:
            raise _CutShort
        return found, at

    def _length(self, at: int, explicit: bool) -> tuple[bytes, int, int]:
        """The value representation (b"" if implicit), the length, and where the value starts."""
        if not explicit:
            return b"", struct.unpack_from(self.order + "I", self.data, at + 4)[0], at + 8
        kind = self.data[at + 4 : at + 6]
        if kind in _LONG_LENGTH:
            return kind, struct.unpack_from(self.order + "I", self.data, at + 8)[0], at + 12
        if not (kind.isalpha() and kind.isupper()):
            raise UnreadableDicom("damaged or cut short")
        return kind, struct.unpack_from(self.order + "H", self.data, at + 6)[0], at + 8

    def _items(
        self, at: int, end: int, explicit: bool, depth: int, is_delimited: bool
    ) -> tuple[list[dict[str, Any]], int]:
        if depth > _DEEPEST:
            raise UnreadableDicom("damaged or cut short")
        items = []
        while at + 8 <= end:
            group, element, length = struct.unpack_from(self.order + "HHI", self.data, at)
            tag = group << 16 | element
            if tag == _SEQUENCE_END:
                return items, at + 8
            if tag != _ITEM:
                raise UnreadableDicom("damaged or cut short")
            has_length = length != _UNDEFINED
            stop = at + 8 + length if has_length else end
            if stop > end:
                raise _CutShort
            item, after = self.dataset(at + 8, stop, explicit, depth, not has_length)
            items.append(item)
            at = stop if has_length else after
        if is_delimited:
            raise _CutShort
        return items, at

    def _value(self, name: str, value: bytes) -> Any:
        if name in _BINARY_NUMBERS:
            kind = self.order + _BINARY_NUMBERS[name]
            return struct.unpack_from(kind, value)[0] if len(value) >= struct.calcsize(kind) else 0
        if name in ("patient_id", "accession_number"):
            return value
        return value.decode("latin-1").strip(" \0")


# ----------------------------------------------------------------------------- elements to a header


def _header(elements: dict[str, Any]) -> DicomHeader:
    sop_class = elements.get("sop_class", "")
    charset = elements.get("character_set", "")
    return DicomHeader(
        patient_id=_text(elements.get("patient_id", b""), charset),
        accession_number=_text(elements.get("accession_number", b""), charset),
        study_uid=elements.get("study_uid", ""),
        series_uid=elements.get("series_uid", ""),
        series_description=elements.get("series_description", ""),
        series_number=_integer(elements.get("series_number", "")),
        acquisition_number=_integer(elements.get("acquisition_number", "")),
        instance_number=_integer(elements.get("instance_number", "")),
        sop_instance=elements.get("sop_instance", ""),
        sop_class=sop_class,
        modality=MODALITY_OF_SOP_CLASS.get(sop_class, elements.get("modality", "")),
        image_type=tuple(
            part.strip().upper() for part in elements.get("image_type", "").split("\\")
        ),
        is_burned_in=elements.get("burned_in", "").upper() == "YES",
        samples=elements.get("samples", 1),
        is_inverted=elements.get("photometric", "") == "MONOCHROME1",
        rows=elements.get("rows", 0),
        columns=elements.get("columns", 0),
        frames=tuple(_frames(elements)),
        plain=_plain_pixels(elements),
    )


def _plain_pixels(elements: dict[str, Any]) -> PlainPixels | None:
    """Where the values lie, if they are unpacked, little-endian, grey and 8 or 16 bits wide."""
    allocated = elements.get("bits_allocated", 16)
    stored = elements.get("bits_stored", allocated)
    is_plain = (
        elements["transfer_syntax"] in _UNPACKED
        and elements["transfer_syntax"] != _BIG_ENDIAN
        and elements.get("photometric", "") == "MONOCHROME2"
        and elements.get("samples", 1) == 1
        and allocated in (8, 16)
        and 0 < stored <= allocated
        and elements.get("high_bit", stored - 1) == stored - 1
    )
    if not is_plain:
        return None
    dtype = ("<i" if elements.get("is_signed") else "<u") + str(allocated // 8)
    return PlainPixels(elements["pixel_data"][0], dtype, allocated - stored)


def _text(value: bytes, charset: str) -> str:
    is_utf_8 = "192" in charset
    return value.decode("utf-8" if is_utf_8 else "latin-1", "backslashreplace").strip(" \0")


def _integer(text: str) -> int:
    try:
        return int(text.split("\\")[0])
    except ValueError:
        return 0


def _frames(elements: dict[str, Any]) -> list[Frame]:
    count = max(_integer(elements.get("frames", "1")), 1)
    plain = {name: elements[name] for name in _FRAME_ELEMENTS if name in elements}
    for group in elements.get("shared_groups", []):
        plain.update(_flat(group))
    groups = elements.get("frame_groups", [])
    if len(groups) != count:
        return [_frame(plain)] * count
    return [_frame({**plain, **_flat(group)}) for group in groups]


_FRAME_ELEMENTS = (
    "position",
    "orientation",
    "pixel_spacing",
    "slope",
    "intercept",
    "temporal_position",
    "echo_time",
)


def _flat(group: dict[str, Any]) -> dict[str, Any]:
    """The elements of the first item of each functional group."""
    flat: dict[str, Any] = {}
    for items in group.values():
        if isinstance(items, list) and items:
            flat.update(items[0])
    return flat


def _frame(elements: dict[str, Any]) -> Frame:
    spacing = _floats(elements.get("pixel_spacing", ""), 2)
    slope = _floats(elements.get("slope", ""), 1)
    intercept = _floats(elements.get("intercept", ""), 1)
    temporal = _floats(elements.get("temporal_position", ""), 1)
    echo = _floats(elements.get("echo_time", ""), 1)
    return Frame(
        position=_floats(elements.get("position", ""), 3),
        orientation=_floats(elements.get("orientation", ""), 6),
        pixel_spacing=spacing if spacing and min(spacing) > 0 else (1.0, 1.0),
        slope=slope[0] if slope and slope[0] else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        order=(
            float(elements.get("temporal_index", temporal[0] if temporal else 0)),
            float(elements.get("effective_echo_time", echo[0] if echo else 0)),
        ),
        is_rescalable=(not elements.get("slope") or bool(slope and slope[0]))
        and (not elements.get("intercept") or intercept is not None),
    )


def _floats(text: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(map(float, text.split("\\")))
    except ValueError:
        return None
    is_sane = len(values) >= count and all(abs(value) < 1e6 for value in values)
    return values[:count] if is_sane else None


def _check_size(elements: dict[str, Any], held: int) -> None:
    """Hold what a header declares against the bytes of its file, before any of it is believed."""
    rows, columns = elements.get("rows", 0), elements.get("columns", 0)
    frames = max(_integer(elements.get("frames", "1")), 1)
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
    start, length = elements["pixel_data"]
    bits = elements.get("samples", 1) * elements.get("bits_allocated", 16)
    wanted = rows * columns * frames * bits // 8
    syntax = elements["transfer_syntax"]
    if syntax == _DEFLATED:
        is_short = length < wanted or length > held * _LARGEST_PER_BYTE
    elif syntax in _UNPACKED:
        is_short = length < wanted or start + length > held
    else:
        is_short = start + frames * _FRAGMENT_BYTES > held
    if is_short:
        raise UnreadableDicom("cut short: declares more pixels than it holds")
