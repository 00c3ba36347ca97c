"""Perceptual hashes of slices: what they look like, so that a re-encoded copy is known again.

The hash is the signs of the 255 lowest frequencies of the slice's cosine transform, brought to
64 x 64 (after Zauner 2010, section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError

LEAST_CONTRAST = 8.0
"""Standard deviation, on the scale 0..255, below which a slice says too little to be compared."""

SOFT_TISSUE = (-160.0, 240.0)
SIDE, FREQUENCIES = 64, 16
WORDS = FREQUENCIES**2 // 64
"""Numbers of 64 bits that a hash takes."""


@dataclass(frozen=True)
class PerceptualHashes:
    """The slices that say something: where each stands and what it looks like.

    Attributes:
        rows: row of the data set, `(slices,)`.
        slices: position in its study, `(slices,)`.
        bits: the hash, `(slices, 4)` uint64.
        frequencies: unit vectors of the low frequencies, `(slices, 255)` float16.
        blank: number of slices that say too little.
        unreadable: studies that could not be read.
    """

    rows: np.ndarray
    slices: np.ndarray
    bits: np.ndarray
    frequencies: np.ndarray
    blank: int
    unreadable: list[str]


def perceptual_hashes(prepared: Prepared, rows: Sequence[int] | np.ndarray) -> PerceptualHashes:
    """Hash all slices of some studies; each study is decoded once."""
    owners: list[int] = []
    positions: list[int] = []
    vectors: list[np.ndarray] = []
    unreadable: list[str] = []
    blank = 0
    for row in map(int, rows):
        try:
            images = _to_grey(prepared.slices(row), prepared.info)
        except InputError:
            unreadable.append(str(prepared.studies["study_id"].iat[row]))
            continue
        telling = np.flatnonzero(images.std(axis=(1, 2)) >= LEAST_CONTRAST)
        blank += len(images) - len(telling)
        vectors += [_low_frequencies(images[i]) for i in telling]
        positions += telling.tolist()
        owners += [row] * len(telling)
    frequencies = np.array(vectors, np.float16).reshape(-1, FREQUENCIES**2 - 1)
    bits = np.packbits(np.pad(frequencies > 0, ((0, 0), (0, 1))), axis=1).view(np.uint64)
    return PerceptualHashes(
        np.array(owners, np.int64),
        np.array(positions, np.int64),
        bits,
        frequencies,
        blank,
        unreadable,
    )


def _to_grey(images: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    """Bring intensities `(T, H, W)` to 0..255: HU by a soft-tissue window, MRI by its range."""
    if images.dtype == np.uint8:
        return images.astype(np.float32)
    low, high = SOFT_TISSUE if info["unit"] == "HU" else np.quantile(images, [0.01, 0.99])
    return np.clip((images - low) * (255 / max(high - low, 1)), 0, 255).astype(np.float32)


def _low_frequencies(image: np.ndarray) -> np.ndarray:
    """Return the unit vector `(255,)` of the lowest frequencies without the mean."""
    method = cv2.INTER_AREA if min(image.shape) > SIDE else cv2.INTER_LINEAR
    image = cv2.resize(image, (SIDE, SIDE), interpolation=method)
    vector = cv2.dct(image)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def near(bits: np.ndarray, others: np.ndarray, distance: int) -> tuple[np.ndarray, ...]:
    """Find all pairs of hashes that differ in at most `distance` bits.

    Args:
        bits: `(n, words)` uint64.
        others: `(m, words)` uint64.
        distance: most bits.

    Returns:
        Positions in `bits` and in `others`, and the number of bits, `(pairs,)` each.
    """
    a, b = np.nonzero(np.bitwise_count(bits[:, None, 0] ^ others[None, :, 0]) <= distance)
    differing = np.bitwise_count(bits[a] ^ others[b]).sum(axis=1)
    kept = differing <= distance
    return a[kept], b[kept], differing[kept]
