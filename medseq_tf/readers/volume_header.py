"""Takes a NIfTI, NRRD or MetaImage file; gives what its header declares, without reading voxels.

The header is read in Python and checked before the file is handed to SimpleITK, so that a small
file that declares a huge volume, a file that is cut short, one of another kind than its name says,
or one that points at data outside its folder costs nothing and opens nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
LARGEST_VOXELS = 2**29
LARGEST_SIDE = 8192
SMALLEST_FILE_PER_BYTE = 1032
"""Deflate makes a file at most this many times smaller."""

_HEADER_BYTES = 64 * 1024
_NIFTI_BYTES = 544
_SAMPLE_BYTES = 4 * 2**20


class UnreadableVolume(ValueError):
    """A file that is not one usable volume; the message is the reason."""


class VolumeHeader(NamedTuple):
    """What a volume file declares.

    Attributes:
        size: voxels along each axis of the file; a fourth axis and those after it hold volumes.
        dtype: of the voxels as stored, with its byte order.
        slope: intensity = stored * slope + intercept.
        intercept: see `slope`.
        channels: values a voxel.
        data: the file that holds the voxels: itself, or one in the same folder.
        offset: where they start in the file, unpacked if the file is packed as a whole.
        packing: of the voxels: `none`, `gzip` (the whole file), `deflate` or `other`.
    """

    size: tuple[int, ...]
    dtype: np.dtype
    slope: float
    intercept: float
    channels: int
    data: Path
    offset: int
    packing: str

    @property
    def is_8_bit(self) -> bool:
        """Whether the intensities are stored as bytes from 0 to 255."""
        return self.dtype == np.uint8 and (self.slope, self.intercept) == (1.0, 0.0)


def without_extension(name: str) -> str:
    """A file name or path without its volume extension: `a/b.nii.gz` becomes `a/b`."""
    lower = name.lower()
    longest = max((e for e in EXTENSIONS if lower.endswith(e)), key=len, default="")
    return name[: len(name) - len(longest)]


def read_header(path: Path) -> VolumeHeader:
    """Reads and checks what a volume file declares.

    Raises:
        UnreadableVolume: if the file is not of the kind that its name says, declares no volume of
            real numbers, one of more than 2**29 voxels or 8192 a side, or more than it holds.
    """
    name = path.name.lower()
    try:
        start, is_gzip = _start_of(path)
        if not start:
            raise UnreadableVolume("an empty file")
        if name.endswith((".nii", ".nii.gz")):
            header = _nifti(start, path, is_gzip)
        elif name.endswith((".nrrd", ".nhdr")):
            header = _nrrd(start, path)
        else:
            header = _meta(start, path)
    except (OSError, EOFError, zlib.error):
        raise UnreadableVolume("damaged or cut short") from None
    except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, UnreadableVolume):
            raise
        raise UnreadableVolume("its header is damaged") from None
    _check(header)
    return header


def first_intensities(path: Path, header: VolumeHeader) -> np.ndarray:
    """The finite intensities of the first voxels of a file, up to 4 MiB; none if none is read."""
    try:
        data = _first_voxels(header)
    except (OSError, EOFError, zlib.error):
        return np.empty(0)
    size = header.dtype.itemsize
    values = np.frombuffer(data[: len(data) // size * size], header.dtype).astype(np.float64)
    return values[np.isfinite(values)] * header.slope + header.intercept


def _first_voxels(header: VolumeHeader) -> bytes:
    if header.packing == "other":
        return b""
    with open(header.data, "rb") as file:
        if header.packing == "gzip":
            with gzip.open(file) as unpacked:
                unpacked.seek(header.offset)
                return unpacked.read(_SAMPLE_BYTES)
        file.seek(header.offset)
        data = file.read(_SAMPLE_BYTES)
    if header.packing == "deflate":
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, _SAMPLE_BYTES)
    return data


def _start_of(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked; and whether it is packed as a whole."""
    with open(path, "rb", buffering=0) as file:
        data = file.read(_HEADER_BYTES)
    is_gzip = data.startswith(b"\x1f\x8b")
    if is_gzip:
        data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, _NIFTI_BYTES)
        if not data:
            raise EOFError
    return data, is_gzip


def _check(header: VolumeHeader) -> None:
    declared = " x ".join(map(str, header.size))
    voxels = math.prod(header.size)
    if not 2 <= len(header.size) <= 7 or min(header.size) < 1:
        raise UnreadableVolume(f"declares {declared or 'no'} voxels")
    if max(header.size[:3]) > LARGEST_SIDE or voxels > LARGEST_VOXELS:
        raise UnreadableVolume(
            f"declares {declared} voxels; at most {LARGEST_SIDE} a side and {LARGEST_VOXELS} in all"
        )
    if header.channels != 1 or header.dtype.kind not in "iuf":
        raise UnreadableVolume("holds colour, vectors or complex numbers, not intensities")
    needed = header.offset + voxels * header.dtype.itemsize
    held = header.data.stat().st_size
    if header.packing != "none":
        held *= SMALLEST_FILE_PER_BYTE
    if header.packing == "gzip" and held >= needed:
        held = _unpacked_bytes(header.data, needed)
    if held < needed and header.packing != "other":
        raise UnreadableVolume(f"cut short: declares {declared} voxels and holds fewer")


def _unpacked_bytes(path: Path, needed: int) -> int:
    """How many bytes a gzip file holds, counted up to those needed.

    SimpleITK does not say that a file ends too early. The last four bytes of one that is whole, and
    in one piece, are its length; it is only unpacked here where they are something else.
    """
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(), "little") == needed % 2**32:
            return needed
        file.seek(0)
        held = 0
        with contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile), gzip.open(file) as whole:
            while held < needed and (part := whole.read(_SAMPLE_BYTES)):
                held += len(part)
    return held


# ------------------------------------------------------------------------------------------- NIfTI

_NIFTI_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_NIFTI_1, _NIFTI_2 = 348, 540


def _nifti(start: bytes, path: Path, is_gzip: bool) -> VolumeHeader:
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", start)[0] in (348, 540)), None)
    if order is None:
        raise UnreadableVolume("not a NIfTI file")
    if struct.unpack_from(f"{order}i", start)[0] == _NIFTI_1:
        dims = struct.unpack_from(f"{order}8h", start, 40)
        (kind,) = struct.unpack_from(f"{order}h", start, 70)
        offset, slope, intercept = struct.unpack_from(f"{order}3f", start, 108)
        magic = start[344:348]
    else:
        dims = struct.unpack_from(f"{order}8q", start, 16)
        (kind,) = struct.unpack_from(f"{order}h", start, 12)
        offset, slope, intercept = struct.unpack_from(f"{order}q2d", start, 168)
        magic = start[4:8]
    if magic[:3] not in (b"n+1", b"n+2"):
        raise UnreadableVolume("not a NIfTI file with its voxels in it")
    if not 1 <= dims[0] <= 7:
        raise UnreadableVolume("its header is damaged")
    size = dims[1 : dims[0] + 1]
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    is_scaled = math.isfinite(slope) and math.isfinite(intercept) and slope != 0
    return VolumeHeader(
        size=size,
        dtype=np.dtype(order + _NIFTI_DTYPES.get(kind, "V1")),
        slope=slope if is_scaled else 1.0,
        intercept=intercept if is_scaled else 0.0,
        channels=math.prod(size[4:]),
        data=path,
        offset=int(offset),
        packing="gzip" if is_gzip else "none",
    )


# ------------------------------------------------------------------------------ NRRD and MetaImage

_NRRD_DTYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_NRRD_PACKINGS = {"raw": "none", "gzip": "deflate", "gz": "deflate"}
_META_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def _nrrd(start: bytes, path: Path) -> VolumeHeader:
    if not start.startswith(b"NRRD000"):
        raise UnreadableVolume("not an NRRD file")
    text, length = _text_until(start, (b"\n\n", b"\r\n\r\n"))
    lines = [line for line in text.splitlines()[1:] if ":" in line and not line.startswith("#")]
    fields = {
        key.strip().lower(): value.strip()
        for key, value in (line.split(":", 1) for line in lines if ":=" not in line)
    }
    size = tuple(map(int, fields["sizes"].split()))
    kinds = fields.get("kinds", "").lower().split()
    if any(kind not in ("domain", "space", "time", "???", "none", "scalar") for kind in kinds):
        raise UnreadableVolume("holds colour, vectors or complex numbers, not intensities")
    name = fields.get("data file", fields.get("datafile"))
    skipped = any(int(fields.get(k, 0)) for k in ("byte skip", "byteskip", "line skip", "lineskip"))
    packing = _NRRD_PACKINGS.get(fields["encoding"].lower(), "other")
    return VolumeHeader(
        size=size,
        dtype=_ordered(_NRRD_DTYPES[fields["type"].lower()], fields.get("endian", "") == "big"),
        slope=1.0,
        intercept=0.0,
        channels=1,
        data=_beside(path, name) if name else path,
        offset=0 if name else length,
        packing="other" if skipped else packing,
    )


def _meta(start: bytes, path: Path) -> VolumeHeader:
    at = start.find(b"ElementDataFile")
    if at < 0 or b"DimSize" not in start[:at]:
        raise UnreadableVolume("not a MetaImage file")
    end = start.find(b"\n", at)
    end = len(start) if end < 0 else end + 1
    lines = start[:end].decode("latin-1").splitlines()
    fields = {
        k.strip(): v.strip() for k, v in (line.split("=", 1) for line in lines if "=" in line)
    }
    name = fields["ElementDataFile"]
    is_local = name.upper() == "LOCAL"
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "")).lower()
    packing = "deflate" if fields.get("CompressedData", "").lower() == "true" else "none"
    plain = fields.get("BinaryData", "True").lower() == "true"
    skipped = int(fields.get("HeaderSize", 0)) != 0
    return VolumeHeader(
        size=tuple(map(int, fields["DimSize"].split())),
        dtype=_ordered(_META_DTYPES[fields["ElementType"]], big == "true"),
        slope=1.0,
        intercept=0.0,
        channels=int(fields.get("ElementNumberOfChannels", 1)),
        data=path if is_local else _beside(path, name),
        offset=end if is_local else 0,
        packing=packing if plain and not skipped else "other",
    )


def _text_until(start: bytes, ends: tuple[bytes, ...]) -> tuple[str, int]:
    found = [(at, len(end)) for end in ends if (at := start.find(end)) >= 0]
    at, length = min(found, default=(len(start), 0))
    return start[:at].decode("latin-1"), at + length


def _ordered(kind: str, is_big: bool) -> np.dtype:
    return np.dtype((">" if is_big else "<") + kind)


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names; only a plain file in the header's own folder is taken."""
    data = path.parent / name
    if Path(name).name != name or not data.is_file() or data.is_symlink():
        raise UnreadableVolume("its voxels are not in one file beside it")
    return data
