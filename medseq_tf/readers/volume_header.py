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
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

EXTENSIONS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
LARGEST_VOXELS = 2**29
LARGEST_SIDE = 8192
SMALLEST_FILE_PER_BYTE = 1032
"""Deflate makes a file at most this many times smaller."""

SAMPLE_BYTES = 4 * 2**20

_TEXT_BYTES = 2**20
_NIFTI_BYTES = 544
_PACKED_NIFTI_BYTES = 64 * 1024
_LARGEST_OFFSET = 64 * 2**20


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
                return unpacked.read(SAMPLE_BYTES)
        file.seek(header.offset)
        data = file.read(SAMPLE_BYTES)
    if header.packing == "deflate":
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, SAMPLE_BYTES)
    return data


def _start_of(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked; and whether it is packed as a whole."""
    with open(path, "rb", buffering=0) as file:
        is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
        data = file.read(_PACKED_NIFTI_BYTES if is_nifti else _TEXT_BYTES)
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
            while held < needed and (part := whole.read(SAMPLE_BYTES)):
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
    is_scaled = slope != 0 and not math.isnan(slope)
    if is_scaled and not (math.isfinite(slope) and math.isfinite(intercept)):
        raise UnreadableVolume(f"its scaling is no number: scl_slope {slope}, inter {intercept}")
    if not 0 <= offset <= _LARGEST_OFFSET:
        raise UnreadableVolume("its header is damaged")
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
    lines, length = _lines(start)
    if lines[-1] and len(start) == _TEXT_BYTES:
        raise UnreadableVolume(f"its header has more than {_TEXT_BYTES} bytes")
    if any("\r" in line for line in lines):  # which ends a line, for some
        raise UnreadableVolume("its header is damaged")
    fields = _fields((line for line in lines[1:] if not _is_comment(line)), ":")
    size = tuple(map(int, fields["sizes"].split()))
    kinds = fields.get("kinds", "").lower().split()
    if any(kind not in ("domain", "space", "time", "???", "none", "scalar") for kind in kinds):
        raise UnreadableVolume("holds colour, vectors or complex numbers, not intensities")
    if "data file" in fields and "datafile" in fields:
        raise UnreadableVolume("its header is damaged")
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
    lines, end = _lines(start, last="ElementDataFile")
    fields = _fields((line for line in lines if line), "=")
    if not {"elementdatafile", "dimsize"} <= set(fields):
        raise UnreadableVolume("not a MetaImage file")
    name = fields["elementdatafile"]
    is_local = name.upper() == "LOCAL"
    big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "")).lower()
    packing = "deflate" if fields.get("compresseddata", "").lower() == "true" else "none"
    plain = fields.get("binarydata", "True").lower() == "true"
    skipped = int(fields.get("headersize", 0)) != 0
    data = path if is_local else _beside(path, name)
    if int(fields.get("compresseddatasize", 0)) > data.stat().st_size:
        raise UnreadableVolume("cut short: declares more packed bytes than it holds")
    return VolumeHeader(
        size=tuple(map(int, fields["dimsize"].split())),
        dtype=_ordered(_META_DTYPES[fields["elementtype"]], big == "true"),
        slope=1.0,
        intercept=0.0,
        channels=int(fields.get("elementnumberofchannels", 1)),
        data=data,
        offset=end if is_local else 0,
        packing=packing if plain and not skipped else "other",
    )


def _lines(start: bytes, last: str = "") -> tuple[list[str], int]:
    """The lines of a text header, as the C++ libraries divide it, and where its voxels start.

    Args:
        start: of the file.
        last: what the last line of a header starts with; default: an empty line ends it.
    """
    lines, at = [], 0
    while at < len(start):
        end = start.find(b"\n", at)
        end = len(start) if end < 0 else end
        line = start[at:end].removesuffix(b"\r").decode("latin-1")
        lines.append(line)
        at = end + 1
        if line.startswith(last) if last else not line:
            break
    return lines, min(at, len(start))


def _is_comment(line: str) -> bool:
    """Whether an NRRD line is a comment or a `key:=value` of the writer's own, not a field."""
    name, _, value = line.partition(":")
    own = value.startswith("=") and name.strip().lower() not in ("data file", "datafile")
    return line.startswith("#") or own


def _fields(lines: Iterable[str], separator: str) -> dict[str, str]:
    """The fields of a text header by their names in lower case; none may stand there twice."""
    fields: dict[str, str] = {}
    for line in lines:
        name, found, value = line.partition(separator)
        name = name.strip().lower()
        if found and name in fields:
            raise UnreadableVolume("its header is damaged: a field stands there twice")
        if found:
            fields[name] = value.strip()
    return fields


def _ordered(kind: str, is_big: bool) -> np.dtype:
    return np.dtype((">" if is_big else "<") + kind)


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names; only a plain file in the header's own folder is taken."""
    data = path.parent / name
    means_several = name.upper().startswith("LIST") or "%" in name
    if means_several or Path(name).name != name or not data.is_file() or data.is_symlink():
        raise UnreadableVolume("its voxels are not in one file beside it")
    return data
