"""The fingerprint of a cohort: what decides which candidates are tried on it, and at what settings.

It is read from a prepared data set before any candidate has predicted anything: counts, how slices
are stored, what else is known of the studies. Nothing in it names a patient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medseq_tf.automl.pictures import look_at
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.requirements import has_masks, reading
from medseq_tf.dataset.stratification import kinds_of, patient_groups
from medseq_tf.recipe import Settings

READ_WHOLE = ("volumes", "atlas", "dicom", "dicomweb", "demo")
"""Readers whose studies are whole stacks, in order and evenly spaced."""


class Fingerprint(Settings):
    """What is known of a cohort without asking a model.

    Attributes:
        data: the fingerprint of the prepared data set.
        outputs: what its studies have: `labels`, `classes` or `ordered` ones.
        patients: who take part.
        studies: of them.
        set_aside: patients whom the data set's own split keeps for testing; they take no part.
        kinds: patients of each class, or positive and negative for each label.
        healthy: studies that are negative for every label; 0 of classes.
        slices: of a study: fewest, quartiles, most.
        modality: `photograph`, `CT` or `MR`.
        unit: of the intensities: `grey level`, `HU` or `arbitrary`.
        size: side of the stored slices in pixels.
        channels: of a stored slice.
        intensities: percentiles 1, 50 and 99 of middle slices; of binary ones the least, the median
            and the greatest.
        binary: whether slices show a shape, in two intensities.
        inside: median and spread inside a bright shell, such as the skull in CT; None: there is
            none; see `pictures`.
        volumes: whether studies are whole stacks, evenly spaced.
        axis: how volumes are cut; None where they are not.
        masks: whether there are lesion masks.
        sites: how many there are that share no patient; 0: unknown.
        series: that follow one another in a study; empty without.
        covariates: what else is known of the studies.
    """

    data: str
    outputs: str
    patients: int
    studies: int
    set_aside: int
    kinds: dict[str, int]
    healthy: int
    slices: tuple[int, float, float, float, int]
    modality: str
    unit: str
    size: int
    channels: int
    intensities: tuple[float, float, float]
    binary: bool
    inside: tuple[float, float] | None
    volumes: bool
    axis: str | int | None
    masks: bool
    sites: int
    series: list[str]
    covariates: list[str]

    @property
    def rarest(self) -> int:
        """Patients of the rarest class, or of the rarer side of the rarest label."""
        return min(self.kinds.values())

    @property
    def median_slices(self) -> int:
        """Slices of a usual study."""
        return round(self.slices[2])

    def lines(self) -> Iterator[str]:
        """Say the fingerprint, a line for each thing that the plan depends on."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.kinds.items())
        yield f"{self.patients} patients, {self.studies} studies; patients by kind: {kinds}"
        fewest, low, median, high, most = self.slices
        channels = f", {self.channels} channels" if self.channels > 1 else ""
        yield (
            f"slices a study: {fewest} to {most}, quartiles {low:g}, {median:g} and {high:g}; "
            f"{self.modality} in {self.unit}, {self.size} pixels{channels}"
        )
        looks = ["shapes"] if self.binary else []
        looks += ["a bright shell, as a skull in CT"] if self.inside else []
        has = [*looks, "whole volumes" if self.volumes else "single slices, perhaps not all"]
        has += ["lesion masks"] if self.masks else []
        has += [f"{self.sites} sites"] if self.sites > 1 else []
        has += [f"series {', '.join(self.series)}"] if self.series else []
        has += [f"covariates {', '.join(self.covariates)}"] if self.covariates else []
        yield "; ".join(has)
        if self.set_aside:
            yield f"{self.set_aside} patients of the data set's own test split take no part"


def participants(prepared: Prepared) -> np.ndarray:
    """Whether each study takes part, (studies,) bool: not those that the data set keeps for tests.

    A patient's studies take part together, and so do patients who share a slice.
    """
    studies = prepared.studies
    part = np.ones(len(studies), bool)
    if "split" in studies and (studies["split"] != "test").any():
        for rows in patient_groups(studies):
            part[rows] = not (studies["split"].iloc[rows] == "test").any()
    return part


def fingerprint_of(prepared: Prepared) -> Fingerprint:
    """Return a prepared data set's fingerprint: the same data set gives the same one."""
    part = participants(prepared)
    studies = prepared.studies[part]
    stored = reading(prepared.info)
    labels = prepared.labels[part]
    quartiles = np.percentile(studies["slices"], [0, 25, 50, 75, 100]).round(1).tolist()
    fewest, low, median, high, most = quartiles
    return Fingerprint(
        data=prepared.fingerprint,
        outputs=prepared.outputs,
        patients=studies["patient_id"].nunique(),
        studies=len(studies),
        set_aside=prepared.studies.loc[~part, "patient_id"].nunique(),
        kinds=patients_by_kind(prepared, part),
        healthy=0 if prepared.classes else int((labels == 0).all(axis=1).sum()),
        slices=(int(fewest), low, median, high, int(most)),
        modality=stored["modality"],
        unit=stored["unit"],
        size=stored["size"],
        channels=prepared.channels,
        **look_at(prepared, np.flatnonzero(part))._asdict(),
        volumes=prepared.info["preparation"].get("reader") in READ_WHOLE,
        axis=stored["axis"],
        masks=has_masks(prepared),
        sites=_sites(studies),
        series=list(prepared.marked_series),
        covariates=list(prepared.covariates),
    )


def patients_by_kind(prepared: Prepared, part: np.ndarray) -> dict[str, int]:
    """Return how many patients are of each class, or positive and negative for each label.

    Args:
        prepared: the data set.
        part: (studies,) bool, who are counted.
    """
    studies = prepared.studies[part]
    return {
        f"{kind.name} {kind.side}".strip(): studies.loc[kind.of(studies), "patient_id"].nunique()
        for kind in kinds_of(studies, prepared.classes)
    }


def _sites(studies: pd.DataFrame) -> int:
    """Return how many sites share no patient and no slice; 0 where some patient has none."""
    if "site" not in studies or studies["site"].isna().groupby(studies["patient_id"]).all().any():
        return 0
    return len(patient_groups(studies, "site"))
