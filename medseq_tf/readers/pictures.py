"""The bytes of a JPEG, PNG, BMP or TIFF file as one 8-bit greyscale slice.

The size is read from the file's header before anything is decoded, so that a small file that
declares a huge picture costs nothing. The kind of file is told by its first bytes, not its name.
"""

from __future__ import annotations

import io
import re
import struct
from typing import NamedTuple

import cv2
import numpy as np
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, TiffImagePlugin

from medseq_tf.readers.study import LARGEST_SIDE

LARGEST_PIXELS = 64 * 2**20

_PNG = b"\x89PNG\r\n\x1a\n"
_FORMATS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8": JpegImagePlugin.JpegImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
}
"""What a file starts with -> what reads its header. `Image.open` would refuse a huge picture
before it says how large it is, and Pillow a PNG for its colour profile or a comment."""


class UnreadablePicture(ValueError):
    """A file that is not one usable 8-bit picture; the message is the reason."""


class PictureHeader(NamedTuple):
    """What a picture file declares.

    Attributes:
        width: in pixels.
        height: in pixels.
        is_cmyk: whether it is in four colours of ink.
        is_alone: whether it is the only picture in the file.
    """

    width: int
    height: int
    is_cmyk: bool = False
    is_alone: bool = True


def decode_picture(data: bytes) -> np.ndarray:
    """Decode a picture as it is stored; an orientation in EXIF is not applied.

    Colour becomes luma; a JPEG decodes as `tf.io.decode_jpeg(channels=1,
    dct_method="INTEGER_ACCURATE")` does.

    Returns:
        (H, W) uint8.

    Raises:
        UnreadablePicture: for data that is cut short or of another kind, more than 8 bits a sample,
            several pictures in one file, or a declared size above 8192 a side or 64 Mi pixels.
    """
    header = read_header(data)
    width, height = header.width, header.height
    if not header.is_alone:
        raise UnreadablePicture("several pictures in one file; one slice a file is wanted")
    if width < 1 or height < 1:
        raise UnreadablePicture(f"declares {width} x {height} pixels")
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_PIXELS:
        raise UnreadablePicture(
            f"declares {width} x {height} pixels; at most {LARGEST_SIDE} a side"
        )
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape != (height, width):
        raise UnreadablePicture("damaged or cut short")
    if image.dtype != np.uint8:
        raise UnreadablePicture(f"{8 * image.itemsize} bits a sample; a photograph has 8")
    return image


def read_header(data: bytes) -> PictureHeader:
    """Read what a picture file declares, without decoding it.

    Raises:
        UnreadablePicture: if the data is not a JPEG, PNG, BMP or TIFF file.
    """
    if not data:
        raise UnreadablePicture("an empty file")
    if data.startswith(_PNG):
        if len(data) < 24:
            raise UnreadablePicture("damaged or cut short")
        return PictureHeader(*struct.unpack_from(">II", data, 16))
    image_file = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if image_file is None:
        raise UnreadablePicture("not a JPEG, PNG, BMP or TIFF file")
    try:
        with image_file(io.BytesIO(data)) as image:
            return PictureHeader(image.width, image.height, image.mode == "CMYK", _is_alone(image))
    except Exception as error:  # damaged data makes Pillow raise what it happens to
        if bits := re.search(r"(\d+)-bit layers", str(error)):  # of a JPEG
            raise UnreadablePicture(f"{bits[1]} bits a sample; a photograph has 8") from None
        raise UnreadablePicture("damaged or cut short") from None


def _is_alone(image: ImageFile.ImageFile) -> bool:
    """Whether a file holds one picture; of the formats here only TIFF may hold more."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    try:
        image.seek(1)
    except EOFError:
        return True
    return False
