"""Voxels turned by their direction cosines into slices as a radiologist sees them.

World axes are DICOM's, LPS: x grows to the patient's left, y to the back, z to the head. An image
axis belongs to the world axis that it is nearest to, so that an oblique volume is shown in its own
planes and nothing is resampled. Whatever the order and sense in which a file stores its axes:

    plane      slices go from      rows go from        columns go from
    axial      feet to head        front to back       the patient's right to left
    coronal    front to back       head to feet        the patient's right to left
    sagittal   right to left       head to feet        front to back
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

PLANES = ("axial", "coronal", "sagittal")

_NORMAL = {"axial": 2, "coronal": 1, "sagittal": 0}
_ARRANGEMENT = {  # world axis and sense of (slices, rows, columns)
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}


def nearest_axes(direction: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Assign to every world axis the image axis nearest to it.

    Args:
        direction: (3, 3) direction cosines; column j is image axis j in world coordinates (LPS).

    Returns:
        For x, y and z: the image axis, and 1 or -1, whether it runs with or against the world axis.
    """
    strength = np.abs(direction)
    axes = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(strength[world, axis] for world, axis in enumerate(axes)),
    )
    signs = tuple(-1 if direction[world, axis] < 0 else 1 for world, axis in enumerate(axes))
    return axes, signs


def plane_of(direction: np.ndarray) -> str:
    """The plane whose normal is nearest to the third image axis."""
    axes, _ = nearest_axes(direction)
    world = axes.index(2)
    return next(plane for plane, normal in _NORMAL.items() if normal == world)


def to_plane(voxels: np.ndarray, direction: np.ndarray, plane: str) -> np.ndarray:
    """Arrange voxels as slices of a plane; a view, nothing is copied or resampled.

    Args:
        voxels: (I, J, K), the axes in the order of the columns of `direction`.
        direction: (3, 3) direction cosines, see `nearest_axes`.
        plane: one of `PLANES`.

    Returns:
        (T, H, W).
    """
    axes, signs = nearest_axes(direction)
    arrangement = _ARRANGEMENT[plane]
    turned = voxels.transpose([axes[world] for world, _ in arrangement])
    steps = [slice(None, None, sense * signs[world]) for world, sense in arrangement]
    return turned[tuple(steps)]


def in_plane(along_columns: Any, along_rows: Any, direction: np.ndarray) -> tuple[Any, Any]:
    """Return what is told along a picture's growing columns and rows along those of its plane.

    Args:
        along_columns: such as mm between columns, or how many there are.
        along_rows: the same of rows.
        direction: (3, 3) direction cosines, see `nearest_axes`.

    Returns:
        What is along the growing rows of the slices that `to_plane` gives, and along their columns.
    """
    axes, _ = nearest_axes(direction)
    told = (along_columns, along_rows)
    _, rows_world, columns_world = world_axes(plane_of(direction))
    return told[axes[rows_world]], told[axes[columns_world]]


def world_axes(plane: str) -> tuple[int, ...]:
    """The world axes (0 to 2) that slices, rows and columns of a plane run along."""
    return tuple(world for world, _ in _ARRANGEMENT[plane])
