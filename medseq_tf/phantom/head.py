"""The phantom's head: scalp, skull, brain, ventricles, falx and sinuses, in Hounsfield units."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

FIELD_OF_VIEW_MM = 230.0
HEAD_HEIGHT_MM = 150.0

AIR, FAT, BONE, FLUID, WHITE, GREY, VENOUS = -1000.0, -60.0, 900.0, 8.0, 26.0, 38.0, 62.0

Change = Callable[[np.ndarray], np.ndarray]
"""What a lesion makes of the HU where it lies."""

Blend = Callable[[np.ndarray, float], None]
"""Mix a value into the brain, with a weight from 0 to 1."""


def soft_tissue(hu: np.ndarray) -> np.ndarray:
    """(T, H, W) of soft tissue, as a swelling is; it also lies over the skull."""
    return np.full_like(hu, 38.0)


class Head:
    """One patient's head, in coordinates of its own.

    `x` (T, H, W) runs from -1 at the patient's right to 1, `y` from the nose backwards, `z` (T, 1,
    1) from the base of the skull (0) to the vertex (1). `depth` is how deep a voxel lies inside the
    skull. Lesions paint on the head; `finish` draws the anatomy, then what they painted.

    Args:
        size: pixels a side.
        slices: fewest and most.
        rng: draws the head's shape and place.
    """

    def __init__(self, size: int, slices: tuple[int, int], rng: np.random.Generator):
        self.size = size
        self.length = int(rng.integers(slices[0], slices[1] + 1))
        bottom, top = rng.uniform(0.03, 0.12), rng.uniform(0.86, 0.94)
        self.z = np.linspace(bottom, top, self.length, dtype=np.float32)[:, None, None]
        pixel = FIELD_OF_VIEW_MM / self.size
        between = HEAD_HEIGHT_MM * (top - bottom) / (self.length - 1)
        self.spacing = (float(between), pixel, pixel)
        self._place(rng)
        self._shape(rng)
        self.pushed_x = self.x
        self.mask = np.zeros((self.length, self.size, self.size), np.uint8)
        self.paints: list[tuple[np.ndarray, Change]] = []

    def _place(self, rng: np.random.Generator) -> None:
        """Tilt and shift the head in the picture, a little more or less from slice to slice."""
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) * (2 / self.size) - 1
        tilt = np.deg2rad(rng.normal(0, 5))
        shift = rng.normal(0, 0.03, 2)
        drift = rng.normal(0, 0.03, 2) * (self.z - 0.5)[..., None]
        x = axis[None, None, :] - (shift[0] + drift[..., 0])
        y = axis[None, :, None] - (shift[1] + drift[..., 1])
        self.x = (np.cos(tilt) * x + np.sin(tilt) * y).astype(np.float32)
        self.y = (np.cos(tilt) * y - np.sin(tilt) * x).astype(np.float32)

    def _shape(self, rng: np.random.Generator) -> None:
        """The contour: an egg, wider behind, narrower towards base and vertex."""
        half_width, half_length = rng.uniform(0.63, 0.72), rng.uniform(0.78, 0.88)
        widest = rng.uniform(0.40, 0.46)
        height = np.where(self.z > widest, 0.66, 0.80)
        self.radius = np.sqrt(1 - ((self.z - widest) / height) ** 2).astype(np.float32)
        egg = 1 + rng.uniform(0.03, 0.10) * self.y
        across, along = self.x / (half_width * egg), self.y / half_length
        angle = np.arctan2(along, across)
        waves = rng.normal(0, [0.012, 0.008, 0.006, 0.004]).astype(np.float32)
        turns = rng.normal(0, 0.4, 4).astype(np.float32)
        contour = sum(
            w * np.cos(k * (angle - np.pi / 2) + t)
            for k, (w, t) in enumerate(zip(waves, turns, strict=True), start=2)
        )
        self.rho = np.hypot(across, along) / (1 + contour) / self.radius
        self.angle = angle
        self.scale = (half_width + half_length) / 2
        self.scalp = rng.uniform(0.035, 0.06)
        self.skull = rng.uniform(0.065, 0.10)
        self.depth = self.outside(1) - self.scalp - self.skull

    def outside(self, contour: float) -> np.ndarray:
        """Signed distance to a contour, about in units of the field of view's half; inside > 0."""
        return (contour - self.rho) * self.radius * self.scale

    def edge(self, distance: np.ndarray, pixels: float = 1.5) -> np.ndarray:
        """A soft step over some pixels: 0 where the distance is negative, 1 where positive."""
        return np.clip(0.5 + distance * np.float32(self.size / (2 * pixels)), 0, 1)

    def field(self, rng: np.random.Generator, cells: int, asymmetry: float = 0.25) -> np.ndarray:
        """(T, H, W) smooth noise of unit variance, nearly the same on both sides."""
        symmetric = self._noise(rng, cells, np.abs(self.x[0]))
        return (1 - asymmetry) * symmetric + asymmetry * self._noise(rng, cells, self.x[0])

    def _noise(self, rng: np.random.Generator, cells: int, x: np.ndarray) -> np.ndarray:
        levels = max(2, cells // 2)
        coarse = rng.standard_normal((levels, cells + 2, cells + 2), dtype=np.float32) * 1.6
        columns = (np.clip(x, -1, 1) + 1) * ((cells + 1) / 2)
        rows = (np.clip(self.y[0], -1, 1) + 1) * ((cells + 1) / 2)
        maps = columns.astype(np.float32), rows.astype(np.float32)
        planes = np.stack([cv2.remap(c, *maps, cv2.INTER_LINEAR) for c in coarse])
        at = self.z.ravel() * (levels - 1)
        weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(levels))).astype(np.float32)
        with _blas().limit(limits=1):  # with more threads it rounds otherwise, now and then
            return np.tensordot(weights, planes, 1)

    def blob(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> np.ndarray:
        """(T, H, W) distance from the centre of an ellipsoid, 1 on its surface."""
        x, y, z = (
            (grid - c) / r
            for grid, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True)
        )
        return np.sqrt(x * x + y * y + z * z)

    def paint(self, alpha: np.ndarray, change: Change) -> None:
        """Add a lesion: blend `change(HU)` in where `alpha` is above 0."""
        self.mask |= alpha > 0.5
        self.paints.append((alpha, change))

    def finish(self, rng: np.random.Generator, difficulty: float) -> np.ndarray:
        """Draw the anatomy, the lesions and the scanner's noise: (T, H, W) int16 HU."""
        brain = self._brain(rng)
        for alpha, change in self.paints:
            brain += alpha * (change(brain) - brain)
        volume = self._skull(brain)
        for alpha, change in self.paints:
            if change is soft_tissue:
                volume += alpha * (change(volume) - volume)
        deviation = np.float32(3 * (1 + difficulty))
        noise = rng.standard_normal(volume.shape, dtype=np.float32) * deviation
        for plane in noise:
            cv2.GaussianBlur(plane, (3, 3), 0.6, dst=plane)
        inside = volume > -200
        gain, offset = rng.normal(1, 0.08), rng.normal(0, 3.5)
        volume = np.where(inside, volume * gain + offset, volume) + noise
        return np.clip(np.rint(volume), -1024, 3071).astype(np.int16)

    def _brain(self, rng: np.random.Generator) -> np.ndarray:
        """Grey and white matter, fluid spaces and the bright structures of a healthy brain."""
        folds, broad = self.field(rng, 20), self.field(rng, 4)
        ribbon = 0.11 + 0.05 * folds
        volume = WHITE + (GREY - WHITE) * self.edge(ribbon - self.depth, 2) + 1.0 * broad

        def blend(alpha: np.ndarray, value: float) -> None:
            nonlocal volume
            volume = volume + alpha * (value - volume)

        self._deep_structures(rng, blend)
        atrophy = rng.uniform(0.0, 0.03)
        sulci = np.maximum(folds - rng.uniform(0.3, 0.7), 0) * 0.14
        blend(0.85 * self.edge(0.012 + atrophy + sulci - self.depth), FLUID)
        self._ventricles(rng, blend)
        self._bright_structures(rng, blend)
        return volume.astype(np.float32)

    def _deep_structures(self, rng: np.random.Generator, blend: Blend) -> None:
        side = np.abs(self.pushed_x)
        for across, along, z, radii in (
            (0.20, -0.06, 0.47, (0.08, 0.15, 0.11)),
            (0.11, 0.12, 0.47, (0.09, 0.12, 0.10)),
        ):
            size = rng.uniform(0.85, 1.15)
            far = np.sqrt(
                ((side - across) / (radii[0] * size)) ** 2
                + ((self.y - along) / (radii[1] * size)) ** 2
                + ((self.z - z) / radii[2]) ** 2
            )
            blend(np.clip((1.15 - far) / 0.3, 0, 1), GREY)
        low = np.clip((0.30 - self.z) / 0.06, 0, 1)
        cistern = self.blob((0, 0.02, 0.15), (0.24, 0.20, 0.14))
        blend(low * np.clip((1.1 - cistern) / 0.2, 0, 1), FLUID)
        stem = self.blob((0, 0.10, 0.15), (0.14, 0.15, 0.5))
        blend(low * np.clip((1.1 - stem) / 0.2, 0, 1), WHITE + 3)
        fourth = self.blob((0, 0.30, 0.20), (0.06, 0.05, 0.07))
        blend(np.clip((1.2 - fourth) / 0.4, 0, 1), FLUID)

    def _ventricles(self, rng: np.random.Generator, blend: Blend) -> None:
        size = rng.uniform(0.6, 1.6)
        middle = rng.uniform(0.53, 0.58)
        side = np.abs(self.pushed_x + 0.012 * rng.normal())
        bend = 0.055 + 0.03 * size + 0.9 * (self.y - 0.02) ** 2
        width = 0.05 * size * np.exp(-(((self.z - middle) / 0.12) ** 2))
        taper = np.sqrt(np.clip(1 - ((self.y - 0.02) / 0.36) ** 2, 0, 1))
        blend(self.edge(width * taper - np.abs(side - bend) - 0.008), FLUID)
        third = self.edge(0.018 * size - side) * (np.abs(self.y - 0.03) < 0.12)
        blend(third * (np.abs(self.z - 0.43) < 0.06), FLUID)

    def _bright_structures(self, rng: np.random.Generator, blend: Blend) -> None:
        """Falx, venous sinuses and calcifications: bright as blood, but where they belong."""
        side = np.abs(self.pushed_x)
        inner_edge = self.edge(0.10 - self.depth, 2)
        high = np.clip((self.z - 0.55) / 0.1, 0, 1)
        falx = np.maximum(high, inner_edge) * self.edge(0.014 - side, 1)
        blend(0.8 * falx * (self.z > 0.35), 50)
        bright, wide = rng.normal(VENOUS, 8), rng.uniform(0.03, 0.10)
        behind = self.edge(wide * 1.3 - self.depth) * self.edge(wide - side) * (self.y > 0)
        blend(behind * (self.z > 0.30), bright)
        torcula = np.exp(-(((self.z - 0.30) / 0.05) ** 2)) * (self.y > 0.25)
        blend(torcula * self.edge(wide - self.depth), bright)
        across, along = rng.uniform(0.14, 0.2), rng.uniform(0.18, 0.26)
        calcium, radius = rng.uniform(40, 90), rng.uniform(0.015, 0.07)
        plexus = np.hypot(side - across, self.y - along) / radius
        level = np.exp(-(((self.z - 0.52) / 0.06) ** 2))
        blend(level * np.clip((1.2 - plexus) / 0.5, 0, 1), calcium)
        pineal = self.blob((0, 0.14, 0.45), (0.03, 0.04, 0.04))
        blend(np.clip((1.2 - pineal) / 0.5, 0, 1), rng.uniform(40, 110))

    def _skull(self, brain: np.ndarray) -> np.ndarray:
        """Put the brain into skull, scalp and air; at the base also petrous bone and orbits."""
        volume = np.full_like(brain, AIR)
        outer = self.outside(1)
        low = np.clip((0.24 - self.z) / 0.05, 0, 1)
        layers = (
            (self.edge(outer), 35.0),
            (self.edge(outer - self.scalp / 2), FAT),
            (self.edge(outer - self.scalp), BONE),
            (self.edge(self.depth), brain),
        )
        for alpha, value in layers:
            volume += alpha * (value - volume)
        side = np.abs(self.x)
        ridge = self.edge(0.05 - np.abs(self.y + 0.05 - 0.25 * side)) * self.edge(side - 0.16)
        anterior = self.edge(-0.34 - self.y)
        bones = low * np.maximum(ridge, 0.6 * anterior) * self.edge(self.depth)
        volume += bones * (BONE * 0.7 - volume)
        nose = low * self.edge(0.10 - np.hypot(self.x, (self.y + 0.56) * 0.6))
        volume += nose * (AIR - volume)
        orbit = low * self.edge(0.14 - np.hypot(side - 0.26, self.y + 0.58))
        volume += orbit * (FAT - volume)
        eye = low * self.edge(0.09 - np.hypot(side - 0.26, self.y + 0.62))
        volume += eye * (15.0 - volume)
        return volume


@functools.cache
def _blas() -> ThreadpoolController:
    """Return what sets the threads of NumPy's products."""
    return ThreadpoolController()
