"""Compressed pictures, decoded one by one by GDCM or else by pydicom's plugins.

Each is given a picture and what it needs to decode it, so that nothing else in the header can
change the values: they are those that are stored. A picture that states other sides than the header
does, or holds values beyond the bits that the header gives it, is not decoded. In JPEG and JPEG-LS
of whole words those bits may hold an overlay, as if they were not compressed.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from medseq_tf.readers.dicom.code_stream import CodeStream, code_stream, is_rle_of
from medseq_tf.readers.dicom.elements import UNKNOWN_LENGTH, decoded_by_plugins
from medseq_tf.readers.dicom.encoding import COMPRESSED, RLE, own_bits
from medseq_tf.readers.dicom.frame import PixelFormat
from medseq_tf.readers.storage import nameless_file

_SECONDARY_CAPTURE = b"1.2.840.10008.5.1.4.1.1.7.3\0"


def decompressed(
    pieces: tuple[bytes, ...], stored: PixelFormat, shape: tuple[int, int]
) -> np.ndarray | None:
    """Decode a picture.

    Args:
        pieces: its fragments.
        stored: how its values are stored.
        shape: rows and columns.

    Returns:
        (H, W) stored values; None where they cannot be decoded.
    """
    from medseq_tf.readers.simpleitk_volume import read_dicom_frames

    stated = _stated(b"".join(pieces), stored, shape)
    if stated is None:
        return None
    bits = max(stated.bits, stored.bits)
    values = None
    if stored.syntax in COMPRESSED:
        with nameless_file(_grey_file(stored, shape, bits, pieces)) as alone:
            values = read_dicom_frames(alone)
    if values is None:
        values = decoded_by_plugins(_in_items(pieces), stored.syntax, shape, stored.dtype, bits)
    if values is None or values.shape != (1, *shape) or values.dtype.kind not in "iu":
        return None
    if bits == 8 * values.itemsize and not stated.has_sign:
        values = own_bits(values, stored)
    low, high = 0, 2**stored.bits
    if np.dtype(stored.dtype).kind == "i":
        low, high = -high // 2, high // 2
    is_right = low <= values.min() and values.max() < high
    return values[0].astype(stored.dtype, copy=False) if is_right else None


def _stated(data: bytes, stored: PixelFormat, shape: tuple[int, int]) -> CodeStream | None:
    """What a picture states; None where it is another one than the header's."""
    dtype = np.dtype(stored.dtype)
    if stored.syntax == RLE:
        is_right = is_rle_of(data, math.prod(shape), dtype.itemsize)
        return CodeStream(shape, stored.bits, False) if is_right else None
    stated = code_stream(data)
    if stated is None or stated.shape != shape or stated.bits > 8 * dtype.itemsize:
        return None
    if stated.bits < stored.bits and dtype.kind == "i" and not stated.has_sign:
        return None
    return stated


def _grey_file(
    stored: PixelFormat, shape: tuple[int, int], bits: int, pieces: tuple[bytes, ...]
) -> bytes:
    """A file of a grey picture (PS3.10, 7.1), and nothing of the patient."""
    dtype = np.dtype(stored.dtype)
    meta = _element(0x0002, 0x0002, b"UI", _SECONDARY_CAPTURE)
    meta += _element(0x0002, 0x0010, b"UI", _even(stored.syntax.encode(), b"\0"))
    numbers = (1, *shape, 8 * dtype.itemsize, bits, bits - 1, dtype.kind == "i")
    samples, rows, columns, *format_ = (struct.pack("<H", number) for number in numbers)
    parts = [
        bytes(128) + b"DICM" + _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))),
        meta,
        _element(0x0008, 0x0016, b"UI", _SECONDARY_CAPTURE),
        _element(0x0028, 0x0002, b"US", samples),
        _element(0x0028, 0x0004, b"CS", b"MONOCHROME2 "),
        _element(0x0028, 0x0010, b"US", rows),
        _element(0x0028, 0x0011, b"US", columns),
        *(_element(0x0028, 0x0100 + place, b"US", value) for place, value in enumerate(format_)),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, UNKNOWN_LENGTH),
        _in_items(pieces),
    ]
    return b"".join(parts)


def _in_items(pieces: tuple[bytes, ...]) -> bytes:
    """The value of the pixel data element (PS3.5, A.4), without offsets."""
    items = [struct.pack("<HHI", 0xFFFE, 0xE000, len(piece)) + piece for piece in (b"", *pieces)]
    return b"".join([*items, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)])


def _element(group: int, element: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, kind, len(value)) + value


def _even(value: bytes, filler: bytes) -> bytes:
    return value + filler * (len(value) % 2)
