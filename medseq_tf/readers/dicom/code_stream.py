"""What a compressed picture says of itself: its sides, and the bits of a value.

    JPEG, JPEG-LS          the frame header (ITU-T T.81, B.2.2; T.87, C.2.2)
    JPEG 2000, HTJ2K       the SIZ marker segment (ITU-T T.800, A.5.1)
    RLE                    the number of its segments, a byte of a value each, and what each unpacks
                           to (PS3.5, annex G)

Decoders believe the DICOM header, and cut or fill where the two differ.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_JPEG_START, _J2K_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_RLE_FILLERS = b"\0\x80"
"""After a segment's last value."""


class CodeStream(NamedTuple):
    """What a compressed picture states.

    Attributes:
        shape: rows and columns.
        bits: of a value.
        has_sign: whether it says whether values are signed, and so needs no header for it.
    """

    shape: tuple[int, int]
    bits: int
    has_sign: bool


def code_stream(data: bytes) -> CodeStream | None:
    """Return what a grey JPEG, JPEG-LS or JPEG 2000 picture states; None where it is none."""
    try:
        return _jpeg(data) if data.startswith(_JPEG_START) else _jpeg_2000(data)
    except (struct.error, IndexError):
        return None


def _jpeg(data: bytes) -> CodeStream | None:
    at = len(_JPEG_START)
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a filler
            at += 1
        elif marker in _FRAME_HEADERS:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return CodeStream((rows, columns), bits, False) if samples == 1 else None
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _jpeg_2000(data: bytes) -> CodeStream | None:
    start = data.find(_J2K_START, 0, 1024)  # after boxes, where it stands in a file
    if start < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    samples, depth = struct.unpack_from(">HB", data, start + 40)
    return (
        CodeStream((bottom - top, right - left), (depth & 0x7F) + 1, True) if samples == 1 else None
    )


def is_rle_of(data: bytes, pixels: int, bytes_a_value: int) -> bool:
    """Whether a picture in RLE holds as many pixels, of values of as many bytes."""
    if len(data) < 64:
        return False
    count, *starts = struct.unpack_from("<16I", data)
    if count != bytes_a_value:
        return False
    ends = [*starts[1:count], len(data)]
    return all(
        64 <= start <= end <= len(data) and _unpacks_to(data, start, end, pixels)
        for start, end in zip(starts[:count], ends, strict=True)
    )


def _unpacks_to(data: bytes, start: int, end: int, pixels: int) -> bool:
    """Whether a segment unpacks to a byte a pixel, or to one more that makes it even."""
    unpacked, at = 0, start
    while at < end and unpacked < pixels:
        length = data[at]
        if length < 128:
            unpacked, at = unpacked + length + 1, at + length + 2
        else:
            unpacked, at = (
                unpacked + (257 - length if length > 128 else 0),
                at + 2 - (length == 128),
            )
    return pixels <= unpacked <= pixels + 1 and not data[at:end].strip(_RLE_FILLERS)
