"""Takes the bytes of a JPEG, PNG, BMP or TIFF file; gives one 8-bit greyscale slice.

The size is read from the file's header before anything is decoded, so that a small file that
declares a huge picture costs nothing. The kind of file is told by its first bytes, not its name.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import cv2
import numpy as np

LARGEST_SIDE = 8192
LARGEST_PIXELS = 64 * 2**20

_NOT_A_FRAME_HEADER = (0xC4, 0xC8, 0xCC)
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258
_TIFF_FORMATS = {1: "B", 3: "H", 4: "I"}
_TIFF_LARGEST_DIRECTORY_COUNT = 2


class UnreadablePicture(ValueError):
    """A file that is not one usable 8-bit picture; the message is the reason."""


class Header(NamedTuple):
    """What a picture declares: size in pixels, bits a sample, pictures in the file."""

    width: int
    height: int
    bits: int = 8
    pages: int = 1


def decode_picture(data: bytes) -> np.ndarray:
    """Decodes a picture as it is stored; an orientation in EXIF is not applied.

    Colour becomes luma; a JPEG decodes as `tf.io.decode_jpeg(channels=1,
    dct_method="INTEGER_ACCURATE")` does.

    Returns:
        (H, W) uint8.

    Raises:
        UnreadablePicture: for data that is cut short or of another kind, more than 8 bits a sample,
            several pictures in one file, or a declared size above 8192 a side or 64 Mi pixels.
    """
    header = read_header(data)
    _check(header)
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape != (header.height, header.width):
        raise UnreadablePicture("damaged or cut short")
    return image


def read_header(data: bytes) -> Header:
    """Reads what the picture declares, without decoding it.

    Raises:
        UnreadablePicture: if the data is not a JPEG, PNG, BMP or TIFF file.
    """
    if not data:
        raise UnreadablePicture("an empty file")
    for magic, read in _READERS.items():
        if data.startswith(magic):
            try:
                return read(data)
            except (struct.error, IndexError):
                raise UnreadablePicture("damaged or cut short") from None
    raise UnreadablePicture("not a JPEG, PNG, BMP or TIFF file")


def _check(header: Header) -> None:
    if header.pages > 1:
        raise UnreadablePicture("several pictures in one file; one slice a file is wanted")
    if header.bits > 8:
        raise UnreadablePicture(f"{header.bits} bits a sample; a photograph has 8")
    if header.width < 1 or header.height < 1:
        raise UnreadablePicture(f"declares {header.width} x {header.height} pixels")
    if (
        max(header.width, header.height) > LARGEST_SIDE
        or header.width * header.height > LARGEST_PIXELS
    ):
        raise UnreadablePicture(
            f"declares {header.width} x {header.height} pixels; at most {LARGEST_SIDE} a side"
        )


def _jpeg(data: bytes) -> Header:
    position = 2
    while True:
        (fill, marker) = struct.unpack_from(">BB", data, position)
        if fill != 0xFF:
            raise UnreadablePicture("damaged or cut short")
        if marker == 0xFF:
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NOT_A_FRAME_HEADER:
            bits, height, width = struct.unpack_from(">BHH", data, position + 4)
            return Header(width, height, bits)
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]


def _png(data: bytes) -> Header:
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    return Header(width, height, bits)


def _bmp(data: bytes) -> Header:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return Header(abs(width), abs(height))


def _tiff(data: bytes) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    first, pages = None, 0
    (position,) = struct.unpack_from(order + "I", data, 4)
    while position and pages < _TIFF_LARGEST_DIRECTORY_COUNT:
        tags, position = _tiff_directory(data, order, position)
        first = first or tags
        pages += 1
    if not first or _TIFF_WIDTH not in first or _TIFF_HEIGHT not in first:
        raise UnreadablePicture("damaged or cut short")
    return Header(first[_TIFF_WIDTH], first[_TIFF_HEIGHT], first.get(_TIFF_BITS, 1), pages)


def _tiff_directory(data: bytes, order: str, position: int) -> tuple[dict[int, int], int]:
    """The first value of each integer tag, and where the next directory lies (0: nowhere)."""
    (count,) = struct.unpack_from(order + "H", data, position)
    tags = {}
    for entry in range(position + 2, position + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        if kind in _TIFF_FORMATS:
            value = order + _TIFF_FORMATS[kind]
            inline = struct.calcsize(value) * length <= 4
            at = entry + 8 if inline else struct.unpack_from(order + "I", data, entry + 8)[0]
            if tag in tags:  # of which libraries take the one or the other
                raise UnreadablePicture("damaged or cut short")
            if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS):
                (tags[tag],) = struct.unpack_from(value, data, at)
    return tags, struct.unpack_from(order + "I", data, position + 2 + 12 * count)[0]


_READERS = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
}
