"""A cohort of phantoms: synthetic head CTs with lesions and their true masks, from a few settings.

Every patient is drawn from a generator seeded by (seed, patient) alone: a head (scalp, skull, grey
and white matter, ventricles, falx, sinuses, symmetric about its midline but for small variation) of
its own size, shape, tilt, brightness, noise and number of slices, none of which depends on the
labels. Positive patients get lesions on consecutive slices. It is nobody's data, for trying things
out and for tests; it is no model of disease.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.phantom.head import Head
from medseq_tf.phantom.lesions import Lesions
from medseq_tf.readers.classes import Classes
from medseq_tf.readers.columns import OtherColumns

Kind = Literal["labels", "classes", "grades"]
LABELS = {
    1: ("lesion",),
    5: ("hemorrhage", "ischemia", "fracture", "mass", "edema"),
}
CLASSES = ("hemorrhage", "ischemia", "mass")
"""Kinds of lesion that exclude each other."""
GRADES = {"mild": 0.5, "moderate": 1.0, "severe": 1.8}
"""Grades of a lesion, and what they multiply its radii by."""
SEXES = ("F", "M")
AGE_RISE = 12.0
"""Years that patients with a lesion are older than those without, or of one class than another."""
DAYS = 1000
"""In which the patients of a cohort with sites are examined."""
BRAIN_WINDOW = (40.0, 60.0)
"""Centre and width in HU of the photographs' grey scale."""

_BLOBS = ("lesion", "hemorrhage")


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
        kind: `labels`, of which a patient may have none or several; `classes`: each has one of
            three kinds of lesion; `grades`: each has a lesion, mild, moderate or severe by its
            size. Classes and grades are equally frequent.
        sites: hospitals that patients come from, of which pictures show nothing. Above 0 a patient
            also has a date, a sex (missing in a twentieth) and an age (missing in a tenth), which
            is higher with a lesion, of classes with each later one.
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
    kind: Kind = dataclasses.field(default="labels", repr=False)
    sites: int = dataclasses.field(default=0, repr=False)

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
            "sites": (self.sites >= 0, "0 or more"),
            "kind": (self.kind in get_args(Kind), "labels, classes or grades"),
        }
        if self.kind != "labels" and (self.labels != 1 or self.prevalence is not None):
            raise InputError(
                f"demo: labels and prevalence are of yes/no labels, and kind={self.kind!r} has none"
            )
        for name, (valid, wanted) in checks.items():
            if not valid:
                raise InputError(f"demo: {name}={getattr(self, name)!r} is not {wanted}")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels, classes or grades."""
        if self.kind == "labels":
            return LABELS[self.labels]
        return CLASSES if self.kind == "classes" else tuple(GRADES)

    @property
    def classes(self) -> Classes | None:
        """What the names are, where they exclude each other."""
        if self.kind == "labels":
            return None
        column, ordered = ("lesion", False) if self.kind == "classes" else ("grade", True)
        return Classes(column, self.label_names, ordered)

    @property
    def columns(self) -> OtherColumns | None:
        """What `columns_of` draws, where there are sites."""
        if not self.sites:
            return None
        covariates: dict[str, dict[str, Any]] = {
            "age": {"kind": "number"},
            "sex": {"kind": "category", "categories": list(SEXES)},
        }
        return OtherColumns(site="site", date="date", covariates=covariates)

    @property
    def chance(self) -> float:
        """The prevalence of each label."""
        if self.prevalence is None:
            return 0.5 if self.labels == 1 else 0.25
        return self.prevalence

    def labels_of(self, patient: int) -> dict[str, float]:
        """Draw the patient's labels, without rendering."""
        if classes := self.classes:
            return classes.one_hot(self._generator(patient, 0).choice(classes.names))
        draws = self._generator(patient, 0).random(len(self.label_names))
        return {n: float(d < self.chance) for n, d in zip(self.label_names, draws, strict=True)}

    def columns_of(self, patient: int) -> dict[str, float | str | None]:
        """Draw the patient's site, date (a number of days), age and sex, without rendering."""
        rng = self._generator(patient, 4)
        labels = list(self.labels_of(patient).values())
        rise = labels.index(1.0) if self.kind != "labels" else float(any(labels))
        site, day = f"hospital {rng.integers(self.sites) + 1}", float(rng.integers(DAYS))
        age = float(np.clip(np.rint(rng.normal(55 + AGE_RISE * rise, 12)), 18, 99))
        sex = str(rng.choice(SEXES))
        no_age, no_sex = rng.random(2) < (0.1, 0.05)
        return {
            "site": site,
            "date": day,
            "covariate.age": None if no_age else age,
            "covariate.sex": None if no_sex else sex,
        }

    def render(self, patient: int) -> Study:
        """Render one patient."""
        head = Head(self.size, self.slices, self._generator(patient, 1))
        labels = self.labels_of(patient)
        grade = next((GRADES[name] for name in GRADES if labels.get(name)), 1.0)
        lesions = Lesions(
            head,
            self._generator(patient, 2),
            size=self.lesion_size * grade,
            contrast=self.contrast,
            difficulty=self.difficulty,
        )
        for name, present in labels.items():
            if present:
                lesions.add("lesion" if name in GRADES else name)
            elif self.difficulty > 0.5 and name in _BLOBS:
                lesions.add_symmetric_distractor()
        volume = head.finish(self._generator(patient, 3), self.difficulty)
        return Study(volume, head.mask, labels, head.spacing)

    def _generator(self, patient: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, patient, stream))


def photographs(volume: np.ndarray) -> np.ndarray:
    """(T, H, W) HU as uint8 grey levels in the brain window."""
    centre, width = BRAIN_WINDOW
    grey = (volume.astype(np.float32) - (centre - width / 2)) * (255 / width)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def patient_names(cohort: DemoCohort) -> list[str]:
    """Name the patients of a cohort: `patient-0001`, ..."""
    return [f"patient-{number + 1:04}" for number in range(cohort.patients)]
