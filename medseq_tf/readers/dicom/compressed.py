"""Pixels in fragments, compressed one way or another, decoded by GDCM or else by pydicom's plugins.

Each is given the fragments and what it needs to decode them, so that nothing else in the header can
change the values: they are those that are stored.
"""

from __future__ import annotations

import struct

import numpy as np

from medseq_tf.readers.dicom.elements import UNKNOWN_LENGTH, decoded_by_plugins
from medseq_tf.readers.dicom.encoding import COMPRESSED
from medseq_tf.readers.dicom.frame import PixelFormat
from medseq_tf.readers.storage import nameless_file

_SECONDARY_CAPTURE = b"1.2.840.10008.5.1.4.1.1.7.3\0"


def compressed_frames(path: str, stored: PixelFormat, shape: tuple[int, int]) -> np.ndarray | None:
    """Decode the pictures of a file.

    Args:
        path: the file.
        stored: how its values are stored.
        shape: rows and columns.

    Returns:
        (frames, H, W) stored values; None where nothing gives as many.
    """
    from medseq_tf.readers.simpleitk_volume import read_dicom_frames

    try:
        with open(path, "rb") as file:
            file.seek(stored.offset)
            fragments = file.read()
    except OSError:
        return None
    dtype, expected = np.dtype(stored.dtype), (stored.frames, *shape)
    frames = None
    if stored.syntax in COMPRESSED:
        with nameless_file(_grey_file(stored, shape, fragments)) as alone:
            frames = read_dicom_frames(alone)
    if frames is None:
        frames = decoded_by_plugins(fragments, stored.syntax, expected, dtype, stored.bits)
    is_right = frames is not None and frames.shape == expected and frames.dtype.kind in "iu"
    return frames if is_right else None


def _grey_file(stored: PixelFormat, shape: tuple[int, int], fragments: bytes) -> bytes:
    """A file of grey pictures (PS3.10, 7.1), and nothing of the patient."""
    dtype = np.dtype(stored.dtype)
    meta = _element(0x0002, 0x0002, b"UI", _SECONDARY_CAPTURE)
    meta += _element(0x0002, 0x0010, b"UI", _even(stored.syntax.encode(), b"\0"))
    numbers = (1, *shape, 8 * dtype.itemsize, stored.bits, stored.high_bit, dtype.kind == "i")
    samples, rows, columns, *bits = (struct.pack("<H", number) for number in numbers)
    parts = [
        bytes(128) + b"DICM" + _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))),
        meta,
        _element(0x0008, 0x0016, b"UI", _SECONDARY_CAPTURE),
        _element(0x0028, 0x0002, b"US", samples),
        _element(0x0028, 0x0004, b"CS", b"MONOCHROME2 "),
        _element(0x0028, 0x0008, b"IS", _even(str(stored.frames).encode(), b" ")),
        _element(0x0028, 0x0010, b"US", rows),
        _element(0x0028, 0x0011, b"US", columns),
        *(_element(0x0028, 0x0100 + place, b"US", value) for place, value in enumerate(bits)),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, UNKNOWN_LENGTH),
        fragments,
    ]
    return b"".join(parts)


def _element(group: int, element: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, kind, len(value)) + value


def _even(value: bytes, filler: bytes) -> bytes:
    return value + filler * (len(value) % 2)
