"""A stack of DICOM slices made upright, and made even.

gantry tilt        `tilt="correct"`: each slice is shifted in its plane, by linear interpolation
variable spacing   `spacing` resamples at even steps
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from medseq_tf.readers.dicom.frame import Frame, places
from medseq_tf.readers.orientation import in_plane, world_axes
from medseq_tf.readers.study import LARGEST_SIDE, LARGEST_VOXELS, UnreadableStudy


def upright(images: Sequence[np.ndarray], frames: Sequence[Frame]) -> list[np.ndarray]:
    """Shift slices in their planes so that their first pixels stand on one line along the normal.

    The middle slice stays; what is shifted in takes the stack's smallest value.

    Args:
        images: (H, W) each.
        frames: their geometry.
    """
    lowest = float(min(image.min() for image in images))
    return shifted(images, shifts(frames), lowest)


def shifts(frames: Sequence[Frame]) -> np.ndarray:
    """Return by how many pixels `upright` shifts each slice along its columns and rows, (T, 2)."""
    normal = frames[0].normal
    positions = np.array([frame.position for frame in frames])
    from_middle = positions - positions[len(positions) // 2]
    in_plane = from_middle - np.outer(from_middle @ normal, normal)
    rows_mm, columns_mm = frames[0].pixel_spacing
    across = in_plane @ np.array(frames[0].orientation[:3]) / columns_mm
    down = in_plane @ np.array(frames[0].orientation[3:]) / rows_mm
    return np.column_stack([across, down])


def shifted(images: Sequence[np.ndarray], by: np.ndarray, beyond: float) -> list[np.ndarray]:
    """Shift images (H, W) by (T, 2) pixels, linearly; what is shifted in is `beyond`."""
    return [
        cv2.warpAffine(
            image,
            np.array([[1, 0, x], [0, 1, y]], np.float64),
            image.shape[::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=beyond,
        )
        for image, (x, y) in zip(images, by, strict=True)
    ]


def evenly_spaced(
    slices: list[np.ndarray],
    frames: Sequence[Frame],
    plane: str,
    spacing: tuple[float, float, float],
) -> list[np.ndarray]:
    """Resample slices at even steps from the first to the last, between neighbours linearly.

    Args:
        slices: (H, W) each, turned to the plane.
        frames: their geometry.
        plane: one of `orientation.PLANES`.
        spacing: mm along the patient's left, back and head; 0 keeps one.

    Raises:
        UnreadableStudy: if that would be too many voxels.
    """
    rows_mm, columns_mm = frames[0].pixel_spacing
    slices_world, rows_world, columns_world = world_axes(plane)
    between_rows, between_columns = in_plane(columns_mm, rows_mm, frames[0].cosines)
    along, down, across = (spacing[w] for w in (slices_world, rows_world, columns_world))
    height, width = slices[0].shape
    height = max(1, round(height * between_rows / down)) if down else height
    width = max(1, round(width * between_columns / across)) if across else width
    heights = places(frames)
    count = (heights[-1] - heights[0]) / along + 1 if along else len(heights)
    if max(height, width) > LARGEST_SIDE or count * height * width > LARGEST_VOXELS:
        raise UnreadableStudy(f"would have more than {LARGEST_VOXELS} voxels at that spacing")
    if slices[0].shape != (height, width):
        slices = [
            cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
            for image in slices
        ]
    if not along or len(heights) < 2:
        return slices
    wanted = np.arange(heights[0], heights[-1] + 1e-6, along)
    after = np.clip(np.searchsorted(heights, wanted), 1, len(heights) - 1)
    shares = (wanted - heights[after - 1]) / (heights[after] - heights[after - 1])
    return [
        cv2.addWeighted(slices[i - 1], 1 - share, slices[i], share, 0)
        for i, share in zip(after, shares, strict=True)
    ]
