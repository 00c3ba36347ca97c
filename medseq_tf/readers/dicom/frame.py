"""One picture of a DICOM file: where it lies in the patient, and where its pixels lie in the file.

Coordinates are LPS, in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """One picture of a file in the patient's coordinates.

    Attributes:
        position: (x, y, z) of the centre of the first pixel; () where the file does not say.
        orientation: direction of growing columns, then of growing rows; () likewise.
        pixel_spacing: mm between rows, and between columns.
        slope: intensity = stored * slope + intercept.
        intercept: see `slope`.
        order: what tells pictures of one position apart, of which the least is used: temporal
            position, echo time; of enhanced images first whether it is no magnitude, and after
            those the b-value and the place along the file's own dimensions.
        is_rescalable: whether slope and intercept, where they are given, are numbers, and the
            slope is not 0; an enhanced CT must give them.
        unit: of rescaled values, as DICOM calls it; "" where the file does not say.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    slope: float
    intercept: float
    order: tuple
    is_rescalable: bool = True
    unit: str = ""

    @property
    def normal(self) -> np.ndarray:
        """(3,) the normal of the picture's plane."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def slice_axis(self) -> np.ndarray:
        """(3,) the normal, turned to run along the world axis nearest to it: slices' order."""
        normal = self.normal
        return (-1 if normal[np.argmax(np.abs(normal))] < 0 else 1) * normal

    @property
    def cosines(self) -> np.ndarray:
        """(3, 3) directions of growing columns, growing rows, and slices as they are ordered."""
        return np.column_stack([self.orientation[:3], self.orientation[3:], self.slice_axis])

    @property
    def is_orthonormal(self) -> bool:
        """Whether the two directions have length 1 and stand at right angles, to a hundredth."""
        row, column = self.orientation[:3], self.orientation[3:]
        off = (_dot(row, row) - 1, _dot(column, column) - 1, _dot(row, column))
        return all(abs(value) <= 0.01 for value in off)


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def places(frames: Sequence[Frame]) -> np.ndarray:
    """(T,) mm along the slice axis of the first frame."""
    return np.array([frame.position for frame in frames]) @ frames[0].slice_axis


class PixelFormat(NamedTuple):
    """How the stored values of a file's pictures lie in it.

    Attributes:
        syntax: the transfer syntax.
        offset: of the pixel data in bytes, once the data set is unpacked.
        frames: how many there are.
        dtype: of a stored value, as it lies in the file where it is not compressed.
        bits: of each value that are stored.
        high_bit: the highest of them.
        is_inverted: whether the smallest value is white (MONOCHROME1).
        is_compressed: whether they lie in fragments, which SimpleITK decodes.
    """

    syntax: str
    offset: int
    frames: int
    dtype: str
    bits: int
    high_bit: int
    is_inverted: bool
    is_compressed: bool


class Picture(NamedTuple):
    """One frame of one file, and all that is needed to decode and order it.

    Attributes:
        number: of the file, as audit entries call it.
        path: of the file, relative to the source.
        place: of the frame in the file.
        frame: the frame.
        shape: rows and columns.
        format: how its values are stored.
        padding: the smallest and largest stored value that mean no pixel.
        tie: what orders pictures of one position.
    """

    number: int
    path: str
    place: int
    frame: Frame
    shape: tuple[int, int]
    format: PixelFormat
    padding: tuple[int, int] | None
    tie: tuple
