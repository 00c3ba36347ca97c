"""What the pictures of a cohort look like: their intensities, and whether a skull is around them.

A few middle slices are looked at, the same ones whenever the same data set is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from medseq_tf.dataset.prepared import Prepared

STUDIES = 24
"""That are looked at, evenly spread over the table."""
BRIGHT, FAINT = 0.9, 0.1
"""Of the range of a slice: what bone reaches in CT, and what is no background."""
RIM, INSIDE = 0.07, 0.12
"""Of a slice's side: how far from the outline the rim reaches, and where the inside begins."""
LEAST_PIXELS = 50
SHELL = (0.15, 0.1)
"""The least share of bright pixels in the rim, and the most inside, where there is a skull."""
BONE = 1.4
"""So much brighter is a skull, at least, than what is inside it."""
HEAD_WINDOW = (-100.0, 300.0)
"""HU that are seen as black and as white."""


class Pictures(NamedTuple):
    """What a cohort's slices look like.

    Attributes:
        intensities: the 1st, 50th and 99th percentile of all that was looked at; of binary slices
            both intensities, the median between them.
        binary: whether no slice has more than two intensities.
        inside: the median and the range of the middle 80% of what is inside a bright shell, as
            shares of a slice's range; None where most slices show no such shell.
    """

    intensities: tuple[float, float, float]
    binary: bool
    inside: tuple[float, float] | None


def look_at(prepared: Prepared, rows: np.ndarray) -> Pictures:
    """Look at the middle slice of some of these studies."""
    some = np.unique(np.linspace(0, len(rows) - 1, STUDIES).astype(int))
    slices = [_middle(prepared, int(row)) for row in rows[some]]
    binary = all(len(np.unique(one)) < 3 for one in slices)
    ends = (0, 100) if binary else (1, 99)  # of shapes, however small they are
    low, high, median = np.percentile(np.stack(slices), [*ends, 50]).round(1).tolist()
    shells = [shell for shell in (_inside(one, prepared.info["unit"]) for one in slices) if shell]
    inside = None
    if 2 * len(shells) > len(slices):
        centre, spread = np.median(shells, axis=0).round(3).tolist()
        inside = (centre, spread)
    return Pictures((low, median, high), binary, inside)


def _middle(prepared: Prepared, row: int) -> np.ndarray:
    """Return the middle slice of a study, (H, W), the first of several channels."""
    slices = prepared.slices(row, [int(prepared.studies["slices"].iat[row]) // 2])
    return slices[0] if slices.ndim == 3 else slices[0, ..., 0]


def _inside(picture: np.ndarray, unit: str) -> tuple[float, float] | None:
    """Return the median and the spread inside a bright shell; None without one."""
    low, high = HEAD_WINDOW if unit == "HU" else (0.0, max(float(picture.max()), 1.0))
    shown = np.clip((picture.astype(np.float32) - low) / (high - low), 0, 1)
    outline = _filled(shown > FAINT).astype(np.uint8)
    outline = cv2.morphologyEx(outline, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    depth: Any = cv2.distanceTransform(outline, cv2.DIST_L2, 5) / len(picture)
    rim, inside = shown[(depth > 0) & (depth < RIM)], shown[depth > INSIDE]
    if min(len(rim), len(inside)) < LEAST_PIXELS:
        return None
    if (rim > BRIGHT).mean() < SHELL[0] or (inside > BRIGHT).mean() > SHELL[1]:
        return None
    low, median, high = np.percentile(inside, [10, 50, 90])
    if median * BONE > 1:
        return None
    return float(median), float(high - low)


def _filled(shape: np.ndarray) -> np.ndarray:
    """Return what is enclosed by a shape from all four sides."""
    by = np.maximum.accumulate
    rows = by(shape, 1) & by(shape[:, ::-1], 1)[:, ::-1]
    return rows & by(shape, 0) & by(shape[::-1], 0)[::-1]
