"""The phantom's lesions, one kind a label: each changes the head's HU and marks its mask."""

from __future__ import annotations

import numpy as np

from medseq_tf.phantom.head import HEAD_HEIGHT_MM, Head, soft_tissue


class Lesions:
    """Draws lesions into one head.

    Args:
        head: the head.
        rng: draws their place, size and strength.
        size: multiplies their radii.
        contrast: multiplies their difference in HU.
        difficulty: 0 to 1; makes them smaller and fainter.
    """

    def __init__(
        self,
        head: Head,
        rng: np.random.Generator,
        size: float,
        contrast: float,
        difficulty: float,
    ):
        self.head = head
        self.rng = rng
        self.size = size
        self.contrast = contrast
        self.difficulty = difficulty

    def add(self, label: str) -> None:
        """Draw the lesion of a label."""
        {
            "lesion": self._bleeding_in_edema,
            "hemorrhage": self._hemorrhage,
            "ischemia": self._ischemia,
            "fracture": self._fracture,
            "mass": self._mass,
            "edema": self._edema,
        }[label]()

    def add_symmetric_distractor(self) -> None:
        """Draw the same blob on both sides, of a head without the label: it only looks alike."""
        x, y, z = self._site()
        radius, height = self._radius(0.10, 0.18), self._height()
        change = self._strength(15, 25) * self.rng.choice([-1.0, 1.0])
        alpha = np.zeros_like(self.head.rho)
        for side in (-1, 1):
            distance = self.head.blob((side * x, y, z), (radius, radius, height))
            alpha = np.maximum(alpha, np.clip((1.15 - distance) / 0.3, 0, 1))
        self.head.paints.append((alpha * self.head.edge(self.head.depth), lambda hu: hu + change))

    def _hemorrhage(self) -> None:
        """A bright blob."""
        bright = self._strength(26, 40)
        self.head.paint(self._irregular_blob(self._radius(0.15, 0.26)), lambda hu: hu + bright)

    def _bleeding_in_edema(self) -> None:
        """A bleeding in a dark rim, so that no mean intensity tells."""
        radius = self._radius(0.25, 0.35)
        bright, dark = self._strength(65, 80), self._strength(30, 38)
        distance = self._irregular_ellipsoid(radius)
        inside = self.head.edge(self.head.depth)
        self.head.paint(inside * np.clip((1.1 - distance) / 0.2, 0, 1), lambda hu: hu - dark)
        core = inside * np.clip((0.75 - distance) / 0.2, 0, 1)
        self.head.paint(core, lambda hu: hu + dark + bright)

    def _ischemia(self) -> None:
        """A dark wedge from the depth to the cortex: a vessel's territory."""
        x, y, z = self._site()
        turn = np.angle(np.exp(1j * (np.arctan2(self.head.y, self.head.x) - np.arctan2(y, x))))
        half_angle = self._radius(0.35, 0.60)
        wedge = np.clip((half_angle - np.abs(turn)) / 0.12 + 0.5, 0, 1)
        wedge *= np.clip((np.hypot(self.head.x, self.head.y) - 0.22) / 0.08, 0, 1)
        wedge *= np.clip((1.1 - np.abs(self.head.z - z) / self._height()) / 0.2, 0, 1)
        dark = self._strength(16, 24)
        self.head.paint(wedge * self.head.edge(self.head.depth), lambda hu: hu - dark)

    def _fracture(self) -> None:
        """A gap in the skull under a swollen scalp."""
        x, y, z = self._site()
        turn = np.angle(np.exp(1j * (np.arctan2(self.head.y, self.head.x) - np.arctan2(y, x))))
        along = np.abs(turn) * np.hypot(self.head.x, self.head.y)
        level = np.clip((1.1 - np.abs(self.head.z - z) / self._height()) / 0.2, 0, 1)
        gap = self.head.edge(self._radius(0.05, 0.09) - along)
        outer = self.head.outside(1)
        bone = self.head.edge(outer) * (1 - self.head.edge(self.head.depth))
        swelling = self.head.edge(0.18 - along, 4) * self.head.edge(outer + 0.05)
        swelling = swelling * self.head.edge(self.head.scalp - outer)
        self.head.paint(level * np.maximum(gap * bone, 0.9 * swelling), soft_tissue)

    def _mass(self) -> None:
        """A bright ring around a dark core, which pushes the midline to the other side."""
        centre = self._site(outermost=0.5)
        radius = self._radius(0.20, 0.28)
        distance = self.head.blob(centre, (radius, radius, self._height()))
        bright, dark = self._strength(26, 38), self._strength(14, 20)
        inside = self.head.edge(self.head.depth)
        self.head.paint(inside * np.clip((1.1 - distance) / 0.2, 0, 1), lambda hu: hu + bright)
        core = inside * np.clip((0.65 - distance) / 0.2, 0, 1)
        self.head.paint(core, lambda hu: hu - bright - dark)
        reach = np.exp(-((distance / 3) ** 2))
        self.head.pushed_x = self.head.pushed_x + np.sign(centre[0]) * 0.35 * radius * reach

    def _edema(self) -> None:
        """A wide, faint darkening without a border."""
        radius = self._radius(0.40, 0.55)
        distance = self.head.blob(self._site(), (radius, radius * 1.2, 1.5 * self._height()))
        dark = self._strength(14, 20)
        inside = self.head.edge(self.head.depth)
        self.head.paint(np.exp(-(distance**2)) * inside, lambda hu: hu - dark)

    def _strength(self, low: float, high: float) -> float:
        """A difference in HU, fainter where the cohort is more difficult."""
        return self.rng.uniform(low, high) * self.contrast * (1 - 0.6 * self.difficulty)

    def _radius(self, low: float, high: float) -> float:
        """A radius, smaller where the cohort is more difficult."""
        return self.rng.uniform(low, high) * self.size * (1 - 0.4 * self.difficulty)

    def _site(self, outermost: float = 0.66) -> tuple[float, float, float]:
        """A place in one hemisphere, at the height of a slice."""
        side = self.rng.choice([-1.0, 1.0])
        distance, angle = self.rng.uniform(0.30, outermost), self.rng.uniform(-1.15, 1.15)
        heights = self.head.z.ravel()
        candidates = heights[(heights > 0.33) & (heights < 0.78)]
        z = float(self.rng.choice(candidates if len(candidates) else heights))
        at = self.head.radius.ravel()[np.abs(heights - z).argmin()] * distance
        return side * 0.62 * at * np.cos(angle), 0.8 * at * np.sin(angle), z

    def _height(self) -> float:
        """Half of a lesion's height: it spans three slices or more."""
        between = self.head.spacing[0] / HEAD_HEIGHT_MM
        return max(self.rng.uniform(0.14, 0.22), 1.6 * between)

    def _irregular_ellipsoid(self, radius: float) -> np.ndarray:
        """(T, H, W) distance from the centre of a lesion, 1 on its surface."""
        longer = self.rng.uniform(1.0, 1.5)
        radii = (radius / np.sqrt(longer), radius * np.sqrt(longer), self._height())
        distance = self.head.blob(self._site(), radii)
        return distance * (1 + 0.12 * self.head.field(self.rng, 8, asymmetry=1.0))

    def _irregular_blob(self, radius: float) -> np.ndarray:
        distance = self._irregular_ellipsoid(radius)
        return np.clip((1.15 - distance) / 0.3, 0, 1) * self.head.edge(self.head.depth)
