"""The voxels of NIfTI files, as they are stored and scaled as the standard says.

SimpleITK reads where they lie in space, not the voxels: it turns those that are not a number into
0, adds the intercept where a slope of 0 says that nothing is scaled, and gives a file that is cut
short without a word.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import numpy as np

from medseq_tf.readers.volume_file import UnreadableVolume

SAMPLE_BYTES = 4 * 2**20

_LARGEST_OFFSET = 64 * 2**20
_NAMES = ("dim", "datatype", "vox_offset", "scl_slope", "scl_inter", "magic")
_HEADERS = {
    348: np.dtype(
        {
            "names": _NAMES,
            "formats": ("8i2", "i2", "f4", "f4", "f4", "S4"),
            "offsets": (40, 70, 108, 112, 116, 344),
            "itemsize": 348,
        }
    ),
    540: np.dtype(
        {
            "names": _NAMES,
            "formats": ("8i8", "i2", "i8", "f8", "f8", "S8"),
            "offsets": (16, 12, 168, 176, 184, 4),
            "itemsize": 540,
        }
    ),
}
"""The fields that are used of NIfTI-1 and NIfTI-2 headers, by the length that each starts with."""

_DTYPES = {
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


class NiftiHeader(NamedTuple):
    """What is needed to read a NIfTI file's voxels.

    Attributes:
        size: voxels along each axis of the file; a fourth axis and those after it hold volumes.
        dtype: of the voxels as stored, with its byte order.
        slope: intensity = stored * slope + intercept.
        intercept: see `slope`.
        offset: where the voxels start, in the unpacked file.
        is_packed: whether the file is packed as a whole.
    """

    size: tuple[int, ...]
    dtype: np.dtype
    slope: float
    intercept: float
    offset: int
    is_packed: bool

    @property
    def is_scaled(self) -> bool:
        """Whether intensities are other than the stored values."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def is_nifti(path: Path) -> bool:
    """Whether a file is called as NIfTI files are."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header of a NIfTI file that holds its own voxels.

    Raises:
        UnreadableVolume: if it is none, or cannot hold as many voxels as it declares.
    """
    with _reading(path) as file:
        start = file.read(max(_HEADERS))
        is_packed = isinstance(file, gzip.GzipFile)
    order: Literal["<", ">"] = "<" if int.from_bytes(start[:4], "little") in _HEADERS else ">"
    length = int.from_bytes(start[:4], "little" if order == "<" else "big")
    if length not in _HEADERS or len(start) < length:
        raise UnreadableVolume("not a NIfTI file")
    fields = np.frombuffer(start, _HEADERS[length].newbyteorder(order), 1)[0]
    if not fields["magic"].startswith((b"n+1", b"n+2")):
        raise UnreadableVolume("not a NIfTI file with its voxels in it")
    axes, offset = int(fields["dim"][0]), float(fields["vox_offset"])
    if not 1 <= axes <= 7 or not 0 <= offset <= _LARGEST_OFFSET:
        raise UnreadableVolume("its header is damaged")
    size = tuple(map(int, fields["dim"][1 : axes + 1]))
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    is_scaled = slope != 0 and not math.isnan(slope)
    if is_scaled and not (math.isfinite(slope) and math.isfinite(intercept)):
        raise UnreadableVolume(f"its scaling is no number: scl_slope {slope}, inter {intercept}")
    return NiftiHeader(
        size=size,
        dtype=np.dtype(order + _DTYPES.get(int(fields["datatype"]), "V1")),
        slope=slope if is_scaled else 1.0,
        intercept=intercept if is_scaled else 0.0,
        offset=int(offset),
        is_packed=is_packed,
    )


def read_voxels(path: Path, header: NiftiHeader) -> np.ndarray:
    """Read the first volume of a NIfTI file.

    Returns:
        (K, J, I) intensities.

    Raises:
        UnreadableVolume: if the file is damaged or ends before them.
    """
    size = [*header.size, 1][:3]
    values = _stored(path, header, math.prod(size))
    if values.size < math.prod(size):
        raise UnreadableVolume("damaged or cut short")
    if header.is_scaled:
        wide = np.float64 if header.dtype.itemsize == 8 else np.float32
        values = (values * header.slope + header.intercept).astype(wide)
    return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(size[::-1])


def first_intensities(path: Path, header: NiftiHeader) -> np.ndarray:
    """Read the finite intensities of the first voxels of a file, up to 4 MiB."""
    count = min(SAMPLE_BYTES // header.dtype.itemsize, math.prod(header.size))
    values = _stored(path, header, count).astype(np.float64)
    return values[np.isfinite(values)] * header.slope + header.intercept


def _stored(path: Path, header: NiftiHeader, count: int) -> np.ndarray:
    """The first stored values; fewer where the file ends before."""
    data = np.empty(count * header.dtype.itemsize, np.uint8)
    filled = 0
    with _reading(path) as file:
        file.seek(header.offset)
        while filled < data.size and (chunk := file.read(min(SAMPLE_BYTES, data.size - filled))):
            data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
            filled += len(chunk)
        _check_end(file)
    return data[: filled - filled % header.dtype.itemsize].view(header.dtype)


def _check_end(file: IO[bytes]) -> None:
    """Read on by one byte, which compares a packed file's checksum where its end is reached."""
    try:
        file.read(1)
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # what stands behind it is no matter
            raise


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be packed as a whole, whatever its name says."""
    try:
        with open(path, "rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else open(path, "rb") as unpacked:
            yield cast("IO[bytes]", unpacked)
    except (OSError, EOFError, zlib.error):
        raise UnreadableVolume("damaged or cut short") from None
