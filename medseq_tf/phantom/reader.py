"""The reader of a cohort of phantoms, which are drawn as they are read."""

from __future__ import annotations

import dataclasses

from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, Kind, patient_names, photographs
from medseq_tf.readers.study import Slices, SourceIndex, StudySource


@dataclasses.dataclass(frozen=True)
class DemoStudy(StudySource):
    """A phantom, rendered when it is read."""

    cohort: DemoCohort
    number: int

    def read(self) -> Slices:
        """Render the patient's photographs and lesion masks."""
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
    kind: Kind | None = None,
    sites: int | None = None,
) -> SourceIndex:
    """List the patients of a `DemoCohort` with these settings; there is no source to read.

    Without `kind` they have labels, without `sites` no columns beside those.

    Raises:
        InputError: for a source, or a setting out of range.
    """
    if source is not None:
        raise InputError("reader demo makes its own data; leave out the source")
    if not str(labels).isdecimal():
        raise InputError(f"demo: labels={labels!r} is not 1 or 5")
    fewest, most = slices
    cohort = DemoCohort(
        patients,
        seed,
        int(labels),
        prevalence,
        size,
        (fewest, most),
        difficulty,
        lesion_size,
        contrast,
        kind or "labels",
        sites or 0,
    )
    studies = [
        DemoStudy(
            name,
            name,
            cohort.labels_of(number),
            None,
            cohort,
            number,
            others=cohort.columns_of(number) if sites else {},
        )
        for number, name in enumerate(patient_names(cohort))
    ]
    return SourceIndex(
        studies,
        list(cohort.label_names),
        listing=[(repr(cohort) if cohort.kind == "labels" else f"{cohort!r} {kind}", 0)],
        resolved={"modality": "photograph"},
        classes=cohort.classes,
        columns=cohort.columns,
    )
