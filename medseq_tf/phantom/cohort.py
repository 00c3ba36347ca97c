"""Takes a few settings; gives a synthetic cohort of head CTs with lesions, and their true masks.

Every patient is drawn from a generator seeded by (seed, patient) alone: a head (scalp, skull, grey
and white matter, ventricles, falx, sinuses, symmetric about its midline but for small variation) of
its own size, shape, tilt, brightness, noise and number of slices, none of which depends on the
labels. Positive patients get lesions on consecutive slices. It is nobody's data, for trying things
out and for tests; it is no model of disease.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.readers.study import Slices, SourceIndex, StudySource

LABELS = {
    1: ("lesion",),
    5: ("hemorrhage", "ischemia", "fracture", "mass", "edema"),
}
FIELD_OF_VIEW_MM = 230.0
HEAD_HEIGHT_MM = 150.0
BRAIN_WINDOW = (40.0, 60.0)
"""Centre and width in HU of the photographs' grey scale."""

AIR, FAT, BONE, FLUID, WHITE, GREY, VENOUS = -1000.0, -60.0, 900.0, 8.0, 26.0, 38.0, 62.0


class Study(NamedTuple):
    """A rendered patient.

    Attributes:
        volume: (T, H, W) int16 in HU, from the base of the skull up, nose at the top of a slice.
        mask: (T, H, W) uint8, 1 where there is a lesion.
        labels: label -> 0.0 or 1.0.
        spacing: mm between slices, rows and columns.
    """

    volume: np.ndarray
    mask: np.ndarray
    labels: dict[str, float]
    spacing: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class DemoCohort:
    """A synthetic cohort; the same settings give the same pictures.

    Attributes:
        patients: how many.
        seed: of all that is random.
        labels: 1 (`lesion`: a bright blob in a dark rim) or 5 (`hemorrhage`: bright blob,
            `ischemia`: dark wedge, `fracture`: gap in the skull, `mass`: ring that pushes the
            midline, `edema`: diffuse darkening).
        prevalence: chance of each label; default: 0.5 for one label, 0.25 for five.
        size: pixels a side.
        slices: fewest and most slices of a patient.
        difficulty: 0 to 1; lesions get smaller and fainter, noise stronger, and, above 0.5, healthy
            heads get symmetric pairs of the same blobs.
        lesion_size: multiplies the lesions' radii.
        contrast: multiplies the lesions' difference in HU.
    """

    patients: int = 240
    seed: int = 0
    labels: int = 1
    prevalence: float | None = None
    size: int = 64
    slices: tuple[int, int] = (12, 30)
    difficulty: float = 0.2
    lesion_size: float = 1.0
    contrast: float = 1.0

    def __post_init__(self):
        few, many = self.slices
        checks = {
            "patients": (self.patients >= 1, "1 or more"),
            "seed": (self.seed >= 0, "0 or more"),
            "labels": (self.labels in LABELS, "1 or 5"),
            "prevalence": (0 <= self.chance <= 1, "0 to 1"),
            "size": (16 <= self.size <= 1024, "16 to 1024"),
            "slices": (3 <= few <= many, "fewest and most, 3 or more"),
            "difficulty": (0 <= self.difficulty <= 1, "0 to 1"),
            "lesion_size": (0.2 <= self.lesion_size <= 2, "0.2 to 2"),
            "contrast": (self.contrast > 0, "above 0"),
        }
        for name, (valid, wanted) in checks.items():
            if not valid:
                raise InputError(f"demo: {name}={getattr(self, name)!r} is not {wanted}")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels."""
        return LABELS[self.labels]

    @property
    def chance(self) -> float:
        """The prevalence of each label."""
        if self.prevalence is None:
            return 0.5 if self.labels == 1 else 0.25
        return self.prevalence

    def labels_of(self, patient: int) -> dict[str, float]:
        """The patient's labels, without rendering."""
        draws = self._generator(patient, 0).random(len(self.label_names))
        return {n: float(d < self.chance) for n, d in zip(self.label_names, draws, strict=True)}

    def render(self, patient: int) -> Study:
        """Renders one patient."""
        head = _Head(self, self._generator(patient, 1))
        lesions = self._generator(patient, 2)
        labels = self.labels_of(patient)
        for name, present in labels.items():
            if present:
                _LESIONS[name](head, lesions)
            elif self.difficulty > 0.5 and name in _BLOBS:
                _symmetric_distractor(head, lesions)
        volume = head.finish(self._generator(patient, 3))
        return Study(volume, head.mask, labels, head.spacing)

    def _generator(self, patient: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, patient, stream))


def photographs(volume: np.ndarray) -> np.ndarray:
    """(T, H, W) HU as uint8 grey levels in the brain window."""
    centre, width = BRAIN_WINDOW
    grey = (volume.astype(np.float32) - (centre - width / 2)) * (255 / width)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------ reader


@dataclasses.dataclass(frozen=True)
class DemoStudy(StudySource):
    """A patient of a demo cohort, rendered when it is read."""

    cohort: DemoCohort
    number: int

    def read(self) -> Slices:
        """Renders the patient's photographs and lesion masks."""
        study = self.cohort.render(self.number)
        return Slices(list(photographs(study.volume)), list(study.mask))


def index_demo(
    source: None = None,
    patients: int = 240,
    seed: int = 0,
    labels: int | str = 1,
    prevalence: float | None = None,
    size: int = 64,
    slices: tuple[int, int] = (12, 30),
    difficulty: float = 0.2,
    lesion_size: float = 1.0,
    contrast: float = 1.0,
) -> SourceIndex:
    """The studies of a `DemoCohort` with these settings; there is no source to read.

    Raises:
        InputError: for a source, or a setting out of range.
    """
    if source is not None:
        raise InputError("reader demo makes its own data; leave out the source")
    cohort = DemoCohort(
        patients,
        seed,
        int(labels) if str(labels).isdecimal() else labels,
        prevalence,
        size,
        tuple(slices),
        difficulty,
        lesion_size,
        contrast,
    )
    studies = [
        DemoStudy(name, name, cohort.labels_of(number), None, cohort, number)
        for number, name in enumerate(patient_names(cohort))
    ]
    return SourceIndex(
        studies,
        list(cohort.label_names),
        listing=[(repr(cohort), 0)],
        resolved={"modality": "photograph"},
    )


def patient_names(cohort: DemoCohort) -> list[str]:
    """What the patients of a cohort are called: `patient-0001`, ..."""
    return [f"patient-{number + 1:04}" for number in range(cohort.patients)]


def write_image_folder(
    cohort: DemoCohort, folder: str | Path, layout: Literal["class", "patient"] = "class"
) -> Path:
    """Writes a cohort as PNG photographs in a layout that `image-folder` reads.

    Args:
        cohort: with one label for `class`.
        folder: made if it is not there.
        layout: `class` (`Normal/1 (1).png`, `Lesion/2 (1).png`) or `patient` (`patient-0001/1.png`
            and `labels.csv`).
    """
    folder = Path(folder)
    if layout not in ("class", "patient"):
        raise InputError(f"layout={layout!r} is unknown; valid: class, patient")
    if layout == "class" and cohort.labels != 1:
        raise InputError("layout=class holds one label; write five labels with layout=patient")
    names = patient_names(cohort)
    for number, name in enumerate(names):
        study = cohort.render(number)
        if layout == "class":
            pattern = f"{'Lesion' if study.labels['lesion'] else 'Normal'}/{number + 1} ({{}}).png"
        else:
            pattern = f"{name}/{{}}.png"
        for slice_number, image in enumerate(photographs(study.volume), start=1):
            path = folder / pattern.format(slice_number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    if layout == "patient":
        write_labels(cohort, names, folder / "labels.csv")
    return folder


def write_labels(cohort: DemoCohort, names: list[str], path: Path) -> None:
    """Writes a cohort's labels as a CSV, one row a patient."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", *cohort.label_names])
        for number, name in enumerate(names):
            labels = cohort.labels_of(number).values()
            writer.writerow([name, *(int(value) for value in labels)])


# ---------------------------------------------------------------------------------------- the head


class _Head:
    """One patient's head, in coordinates of its own.

    `x` (T, H, W) runs from -1 at the patient's right to 1, `y` from the nose backwards, `z` (T, 1,
    1) from the base of the skull (0) to the vertex (1). `depth` is how deep a voxel lies inside the
    skull. Lesions paint on the head; `finish` draws the anatomy, then what they painted.
    """

    def __init__(self, cohort: DemoCohort, rng: np.random.Generator):
        self.cohort, self.size = cohort, cohort.size
        self.length = int(rng.integers(cohort.slices[0], cohort.slices[1] + 1))
        bottom, top = rng.uniform(0.03, 0.12), rng.uniform(0.86, 0.94)
        self.z = np.linspace(bottom, top, self.length, dtype=np.float32)[:, None, None]
        pixel = FIELD_OF_VIEW_MM / self.size
        between = HEAD_HEIGHT_MM * (top - bottom) / (self.length - 1)
        self.spacing = (float(between), pixel, pixel)
        self._place(rng)
        self._shape(rng)
        self.pushed_x = self.x
        self.mask = np.zeros((self.length, self.size, self.size), np.uint8)
        self.paints: list[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = []
        self._rng = rng

    def _place(self, rng: np.random.Generator) -> None:
        """Tilts and shifts the head in the picture, a little more or less from slice to slice."""
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
        self.depth = self._outside(1) - self.scalp - self.skull

    def _outside(self, contour: float) -> np.ndarray:
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

    def paint(self, alpha: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds a lesion: blends `change(HU)` in where `alpha` is above 0."""
        self.mask |= alpha > 0.5
        self.paints.append((alpha, change))

    def finish(self, rng: np.random.Generator) -> np.ndarray:
        """Draws the anatomy, the lesions and the scanner's noise; gives (T, H, W) int16 HU."""
        brain = self._brain(rng)
        for alpha, change in self.paints:
            brain += alpha * (change(brain) - brain)
        volume = self._skull(brain)
        for alpha, change in self.paints:
            if change is _soft_tissue:
                volume += alpha * (change(volume) - volume)
        harder = 1 + self.cohort.difficulty
        noise = rng.standard_normal(volume.shape, dtype=np.float32) * np.float32(3 * harder)
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

        def blend(alpha, value):
            nonlocal volume
            volume = volume + alpha * (value - volume)

        self._deep_structures(rng, blend)
        atrophy = rng.uniform(0.0, 0.03)
        sulci = np.maximum(folds - rng.uniform(0.3, 0.7), 0) * 0.14
        blend(0.85 * self.edge(0.012 + atrophy + sulci - self.depth), FLUID)
        self._ventricles(rng, blend)
        self._bright_structures(rng, blend)
        return volume.astype(np.float32)

    def _deep_structures(self, rng: np.random.Generator, blend) -> None:
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

    def _ventricles(self, rng: np.random.Generator, blend) -> None:
        size = rng.uniform(0.6, 1.6)
        middle = rng.uniform(0.53, 0.58)
        side = np.abs(self.pushed_x + 0.012 * rng.normal())
        bend = 0.055 + 0.03 * size + 0.9 * (self.y - 0.02) ** 2
        width = 0.05 * size * np.exp(-(((self.z - middle) / 0.12) ** 2))
        taper = np.sqrt(np.clip(1 - ((self.y - 0.02) / 0.36) ** 2, 0, 1))
        blend(self.edge(width * taper - np.abs(side - bend) - 0.008), FLUID)
        third = self.edge(0.018 * size - side) * (np.abs(self.y - 0.03) < 0.12)
        blend(third * (np.abs(self.z - 0.43) < 0.06), FLUID)

    def _bright_structures(self, rng: np.random.Generator, blend) -> None:
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
        """Puts the brain into skull, scalp and air; at the base also petrous bone and orbits."""
        volume = np.full_like(brain, AIR)
        outer = self._outside(1)
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


# ------------------------------------------------------------------------------------- the lesions


def _soft_tissue(hu: np.ndarray) -> np.ndarray:
    return np.full_like(hu, 38.0)


def _strength(head: _Head, rng: np.random.Generator, low: float, high: float) -> float:
    """A difference in HU, fainter where the cohort is more difficult."""
    return rng.uniform(low, high) * head.cohort.contrast * (1 - 0.6 * head.cohort.difficulty)


def _radius(head: _Head, rng: np.random.Generator, low: float, high: float) -> float:
    return rng.uniform(low, high) * head.cohort.lesion_size * (1 - 0.4 * head.cohort.difficulty)


def _site(
    head: _Head, rng: np.random.Generator, outermost: float = 0.66
) -> tuple[float, float, float]:
    """A place in one hemisphere, at the height of a slice."""
    side = rng.choice([-1.0, 1.0])
    distance, angle = rng.uniform(0.30, outermost), rng.uniform(-1.15, 1.15)
    heights = head.z.ravel()
    candidates = heights[(heights > 0.33) & (heights < 0.78)]
    z = float(rng.choice(candidates if len(candidates) else heights))
    at = head.radius.ravel()[np.abs(heights - z).argmin()] * distance
    return side * 0.62 * at * np.cos(angle), 0.8 * at * np.sin(angle), z


def _height(head: _Head, rng: np.random.Generator) -> float:
    """Half of a lesion's height: it spans three slices or more."""
    between = head.spacing[0] / HEAD_HEIGHT_MM
    return max(rng.uniform(0.14, 0.22), 1.6 * between)


def _irregular_ellipsoid(head: _Head, rng: np.random.Generator, radius: float) -> np.ndarray:
    """(T, H, W) distance from the centre of a lesion, 1 on its surface."""
    longer = rng.uniform(1.0, 1.5)
    radii = (radius / np.sqrt(longer), radius * np.sqrt(longer), _height(head, rng))
    distance = head.blob(_site(head, rng), radii)
    return distance * (1 + 0.12 * head.field(rng, 8, asymmetry=1.0))


def _irregular_blob(head: _Head, rng: np.random.Generator, radius: float) -> np.ndarray:
    distance = _irregular_ellipsoid(head, rng, radius)
    return np.clip((1.15 - distance) / 0.3, 0, 1) * head.edge(head.depth)


def _hemorrhage(head: _Head, rng: np.random.Generator) -> None:
    bright = _strength(head, rng, 26, 40)
    head.paint(_irregular_blob(head, rng, _radius(head, rng, 0.15, 0.26)), lambda hu: hu + bright)


def _lesion(head: _Head, rng: np.random.Generator) -> None:
    """The single label: a bleeding in a dark rim of edema, so that no mean intensity tells."""
    radius = _radius(head, rng, 0.25, 0.35)
    bright, dark = _strength(head, rng, 65, 80), _strength(head, rng, 30, 38)
    distance = _irregular_ellipsoid(head, rng, radius)
    inside = head.edge(head.depth)
    head.paint(inside * np.clip((1.1 - distance) / 0.2, 0, 1), lambda hu: hu - dark)
    core = inside * np.clip((0.75 - distance) / 0.2, 0, 1)
    head.paint(core, lambda hu: hu + dark + bright)


def _ischemia(head: _Head, rng: np.random.Generator) -> None:
    """A dark wedge from the depth to the cortex: a vessel's territory."""
    x, y, z = _site(head, rng)
    turn = np.angle(np.exp(1j * (np.arctan2(head.y, head.x) - np.arctan2(y, x))))
    half_angle = _radius(head, rng, 0.35, 0.60)
    wedge = np.clip((half_angle - np.abs(turn)) / 0.12 + 0.5, 0, 1)
    wedge *= np.clip((np.hypot(head.x, head.y) - 0.22) / 0.08, 0, 1)
    wedge *= np.clip((1.1 - np.abs(head.z - z) / _height(head, rng)) / 0.2, 0, 1)
    dark = _strength(head, rng, 16, 24)
    head.paint(wedge * head.edge(head.depth), lambda hu: hu - dark)


def _fracture(head: _Head, rng: np.random.Generator) -> None:
    """A gap in the skull under a swollen scalp."""
    x, y, z = _site(head, rng)
    turn = np.angle(np.exp(1j * (np.arctan2(head.y, head.x) - np.arctan2(y, x))))
    along = np.abs(turn) * np.hypot(head.x, head.y)
    level = np.clip((1.1 - np.abs(head.z - z) / _height(head, rng)) / 0.2, 0, 1)
    gap = head.edge(_radius(head, rng, 0.05, 0.09) - along)
    outer = head._outside(1)
    bone = head.edge(outer) * (1 - head.edge(head.depth))
    swelling = head.edge(0.18 - along, 4) * head.edge(outer + 0.05) * head.edge(head.scalp - outer)
    head.paint(level * np.maximum(gap * bone, 0.9 * swelling), _soft_tissue)


def _mass(head: _Head, rng: np.random.Generator) -> None:
    """A bright ring around a dark core, which pushes the midline to the other side."""
    centre = _site(head, rng, outermost=0.5)
    radius = _radius(head, rng, 0.20, 0.28)
    distance = head.blob(centre, (radius, radius, _height(head, rng)))
    bright, dark = _strength(head, rng, 26, 38), _strength(head, rng, 14, 20)
    inside = head.edge(head.depth)
    head.paint(inside * np.clip((1.1 - distance) / 0.2, 0, 1), lambda hu: hu + bright)
    head.paint(inside * np.clip((0.65 - distance) / 0.2, 0, 1), lambda hu: hu - bright - dark)
    reach = np.exp(-((distance / 3) ** 2))
    head.pushed_x = head.pushed_x + np.sign(centre[0]) * 0.35 * radius * reach


def _edema(head: _Head, rng: np.random.Generator) -> None:
    """A wide, faint darkening without a border."""
    radius = _radius(head, rng, 0.40, 0.55)
    distance = head.blob(_site(head, rng), (radius, radius * 1.2, 1.5 * _height(head, rng)))
    dark = _strength(head, rng, 14, 20)
    head.paint(np.exp(-(distance**2)) * head.edge(head.depth), lambda hu: hu - dark)


def _symmetric_distractor(head: _Head, rng: np.random.Generator) -> None:
    """The same blob on both sides, in a head without the label: looks alike, but is not one."""
    x, y, z = _site(head, rng)
    radius, height = _radius(head, rng, 0.10, 0.18), _height(head, rng)
    change = _strength(head, rng, 15, 25) * rng.choice([-1.0, 1.0])
    alpha = np.zeros_like(head.rho)
    for side in (-1, 1):
        distance = head.blob((side * x, y, z), (radius, radius, height))
        alpha = np.maximum(alpha, np.clip((1.15 - distance) / 0.3, 0, 1))
    head.paints.append((alpha * head.edge(head.depth), lambda hu: hu + change))


_LESIONS = {
    "lesion": _lesion,
    "hemorrhage": _hemorrhage,
    "ischemia": _ischemia,
    "fracture": _fracture,
    "mass": _mass,
    "edema": _edema,
}
_BLOBS = ("lesion", "hemorrhage")
