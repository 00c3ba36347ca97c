"""How a DICOM file stores its pixels, and which ways of it are read (PS3.5, chapter 8).

    uncompressed, deflated      8, 16 and 32 bits, signed or not, in either byte order
    RLE, JPEG, JPEG-LS,         decoded by GDCM, in SimpleITK: JPEG of 8 and 12 bits, lossless JPEG
    JPEG 2000                   of up to 16; what it does not decode, by pydicom's plugins
    others                      where pydicom has a plugin, as pylibjpeg-openjpeg for HTJ2K

Grey pictures are read, one whole number a pixel. Others are named and left out: colour, palettes,
bit masks, floating point, a table in place of slope and intercept, and other transfer syntaxes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from medseq_tf.readers.dicom.elements import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    UNKNOWN_LENGTH,
    Elements,
    PixelData,
    has_decoder,
    name_of_uid,
)
from medseq_tf.readers.dicom.frame import PixelFormat

if TYPE_CHECKING:
    import numpy as np

UNSTATED = ""
"""The transfer syntax of a bare data set."""
RLE = "1.2.840.10008.1.2.5"
UNCOMPRESSED = (UNSTATED, IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED)
COMPRESSED = (
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # extended
    "1.2.840.10008.1.2.4.53",  # spectral selection
    "1.2.840.10008.1.2.4.55",  # full progression
    "1.2.840.10008.1.2.4.57",  # lossless
    "1.2.840.10008.1.2.4.70",  # lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.81",  # near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",
    RLE,
)
_OTHER_SYNTAX = "transfer syntax that is not read"
_INVERTED, _GREY = "MONOCHROME1", ("MONOCHROME1", "MONOCHROME2", "")


def pixel_format(elements: Elements, pixels: PixelData) -> PixelFormat:
    """Return how the values of a file's pictures are stored, where `why_unread` names no reason."""
    allocated, bits, high_bit = _bits(elements)
    syntax = elements.text("TransferSyntaxUID")
    order = ">" if syntax == EXPLICIT_BIG else "<"
    kind = "i" if elements.binary("PixelRepresentation") else "u"
    return _shared(
        syntax=syntax,
        offset=pixels.start,
        frames=max(elements.integer("NumberOfFrames", 1), 1),
        dtype=f"{order}{kind}{allocated // 8}",
        bits=bits,
        high_bit=high_bit,
        is_inverted=elements.text("PhotometricInterpretation") == _INVERTED,
        is_compressed=syntax not in UNCOMPRESSED,
    )


def why_unread(elements: Elements, pixels: PixelData) -> str:
    """Return why a file's pixels are not read, as an audit entry calls it; "" where they are."""
    allocated, bits, high_bit = _bits(elements)
    syntax, photometric = (
        elements.text(keyword) for keyword in ("TransferSyntaxUID", "PhotometricInterpretation")
    )
    is_compressed = syntax not in UNCOMPRESSED
    reasons = {
        "colour image": elements.binary("SamplesPerPixel", default=1) != 1,
        "palette colour image": photometric == "PALETTE COLOR",
        "image neither grey nor colour": photometric not in _GREY,
        "pixels in floating point": pixels.is_float,
        _OTHER_SYNTAX: (syntax not in (*UNCOMPRESSED, *COMPRESSED) and not has_decoder(syntax)),
        "pixels that their transfer syntax does not fit": (
            is_compressed != (pixels.length == UNKNOWN_LENGTH)
        ),
        "pixels of 1 bit": allocated == 1,
        f"pixels of {allocated} bits": allocated not in (8, 16, 32),
        "pixels of 8 bits in big-endian words": (
            syntax == EXPLICIT_BIG and allocated == 8 and pixels.kind == "OW"
        ),
        "impossible bits of pixels": not 0 < bits <= high_bit + 1 <= allocated,
        "compressed pixels with bits to spare below": is_compressed and high_bit != bits - 1,
        "MONOCHROME1 with signed pixels": (
            photometric == _INVERTED and bool(elements.binary("PixelRepresentation"))
        ),
        "modality LUT instead of slope and intercept": "ModalityLUTSequence" in elements,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    if reason == _OTHER_SYNTAX:
        return f"{reason}: {name_of_uid(syntax) or 'none of the standard'}"
    return reason


def own_bits(values: np.ndarray, stored: PixelFormat) -> np.ndarray:
    """Return values without the bits around those that are stored, which may hold an overlay."""
    allocated = 8 * values.itemsize
    if stored.bits == allocated:
        return values
    return (values << (allocated - 1 - stored.high_bit)) >> (allocated - stored.bits)


_shared = functools.lru_cache(maxsize=256)(PixelFormat)
"""Files of one scanner store pixels alike, and a cohort has millions."""


def _bits(elements: Elements) -> tuple[int, int, int]:
    """Of a value: the bits that it takes, those that are stored, and the number of the highest."""
    allocated = elements.binary("BitsAllocated", default=16)
    stored = elements.binary("BitsStored", default=allocated)
    return allocated, stored, elements.binary("HighBit", default=stored - 1)
