"""Synthetic lesions in neighbouring slices of a healthy head.

They are known pixel by pixel, where a diagnosis is known for the patient alone. A lesion is an
ellipsoid with a ragged, soft edge, darker than the tissue around it (ischaemia, an old infarct) or,
more rarely, brighter (blood); in half of them the tissue's texture fades too. It lies inside the
skull and in tissue: in what the grey-level window shows as neither black nor white.
"""

from __future__ import annotations

import cv2
import numpy as np

from medseq_tf.recipe import SyntheticLesions

SKULL = 5
"""Pixels that are taken off a head's outline, for scalp and skull, of a slice of 64."""
FEWEST_PIXELS = 50
"""Of tissue, in a slice of 64 x 64: with fewer, there is no place for a lesion."""


def tissue(slices: np.ndarray) -> np.ndarray:
    """Return which pixels are tissue inside the skull.

    Args:
        slices: float32 `(T, H, W)`, the grey-level window as 0 to 1.

    Returns:
        float32 `(T, H, W)`, 0 or 1.
    """
    reach = max(1, round(SKULL * slices.shape[1] / 64))
    kernel = np.ones((2 * (reach // 2) + 1,) * 2, np.uint8)
    return np.stack([_inside(image, kernel) for image in slices]) * (
        (slices > 0) & (slices < 1)
    ).astype(np.float32)


def _inside(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the filled outline of the largest thing that is not black, eroded."""
    empty = np.zeros(image.shape, np.uint8)
    outlines, _ = cv2.findContours(
        (image > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    if not outlines:
        return empty.astype(np.float32)
    head = cv2.drawContours(empty, [max(outlines, key=cv2.contourArea)], -1, 1, -1)
    return cv2.erode(head, kernel, borderValue=0).astype(np.float32)


def add_lesion(
    slices: np.ndarray, settings: SyntheticLesions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Add one or two lesions to neighbouring slices.

    Args:
        slices: float32 `(T, H, W)`, neighbours in the order of the study, the grey-level window as
            0 to 1, not clipped.
        settings: sizes, contrasts.
        rng: what is drawn from.

    Returns:
        The slices, changed, and float32 `(T, H, W)`: 1 where a lesion is, else 0. Without tissue
        nothing is added.
    """
    where = tissue(slices)
    changed, mask = slices.copy(), np.zeros_like(slices)
    for _ in range(rng.choice([1, 1, 2])):
        share = _lesion(where, settings, rng)
        bright = rng.random() < settings.bright
        contrast = rng.uniform(*settings.contrast) * (1 if bright else -1)
        if rng.random() < 0.5:
            smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in changed])
            changed += 0.6 * share * (smooth - changed)
        changed += contrast * share
        mask = np.maximum(mask, share > 0.4)
    return changed, mask.astype(np.float32)


def _lesion(where: np.ndarray, settings: SyntheticLesions, rng: np.random.Generator) -> np.ndarray:
    """Return float32 `(T, H, W)`: how much of each pixel is lesion, 0 outside of the tissue."""
    steps, height, width = where.shape
    middle = rng.integers(steps)
    places = np.argwhere(where[middle])
    if len(places) < FEWEST_PIXELS * height * width / 64**2:
        return np.zeros_like(where)
    y, x = places[rng.integers(len(places))]
    radii = rng.uniform(*settings.radius, 2) * width
    depth, angle = rng.uniform(*settings.depth), rng.uniform(0, np.pi)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    along = (xs - x) * np.cos(angle) + (ys - y) * np.sin(angle)
    across = (ys - y) * np.cos(angle) - (xs - x) * np.sin(angle)
    ragged = cv2.GaussianBlur(
        rng.normal(size=(height, width)).astype(np.float32), (0, 0), 3 * width / 64
    )
    distance = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 + 0.3 * ragged / ragged.std()
    beyond = ((np.arange(steps) - middle) / depth) ** 2
    steepness = rng.uniform(2, 8)
    edge = np.clip(steepness * (distance[None] + beyond[:, None, None] - 1), -30, 30)
    return (where / (1 + np.exp(edge))).astype(np.float32)


def vary(
    slices: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror, turn, scale and shift slices and their mask alike; vary contrast, level and noise.

    Args:
        slices: float32 `(T, H, W)`, the grey-level window as 0 to 1.
        mask: float32 `(T, H, W)`.
        rng: what is drawn from.
    """
    if rng.random() < 0.5:
        slices, mask = slices[:, :, ::-1], mask[:, :, ::-1]
    height, width = slices.shape[1:]
    turn = cv2.getRotationMatrix2D(
        ((width - 1) / 2, (height - 1) / 2), rng.uniform(-10, 10), rng.uniform(0.92, 1.08)
    )
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * width
    black = float(slices.min())

    def warped(images: np.ndarray, method: int, border: float) -> np.ndarray:
        return np.stack(
            [
                cv2.warpAffine(
                    np.ascontiguousarray(image), turn, (width, height), flags=method,
                    borderValue=border,
                )
                for image in images
            ]
        )  # fmt: skip

    slices = warped(slices, cv2.INTER_LINEAR, black)
    mask = warped(mask, cv2.INTER_NEAREST, 0.0)
    slices = (slices - 0.5) * rng.uniform(0.85, 1.15) + 0.5 + rng.uniform(-0.06, 0.06)
    noise = rng.normal(scale=rng.uniform(0, 0.06), size=slices.shape)
    return (slices + noise).astype(np.float32), mask
