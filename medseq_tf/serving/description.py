"""What an exported model says of itself: its labels or classes, how it calls, what it reads."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat
from pydantic.dataclasses import dataclass

from medseq_tf.errors import InputError, printable
from medseq_tf.readers.classes import Classes
from medseq_tf.readers.intensities import DTYPES
from medseq_tf.readers.series import Series
from medseq_tf.serving.covariates import Covariate, check_covariates

if TYPE_CHECKING:
    from medseq_tf.runs.run import Run

FORMAT_VERSION = 1
LARGEST_SIZE = 1024
MOST_SLICES = 512
OPTIONAL = ("classes", "costs", "covariates", "series", "shares")
"""What descriptions hold only where there is such a thing."""


def _readable(preparation: dict[str, Any]) -> dict[str, Any]:
    """Return a preparation whose settings are of the kinds that the readers expect."""
    for name in ("options", "resolved"):
        settings = preparation.get(name) or {}
        low, high = settings.get("extent", (0, 1))
        if not isinstance(settings.get("layout") or "", str) or not 0 <= low <= high <= 1:
            raise ValueError(f"{name} of another kind")
    return preparation


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Description:
    """What an exported model says of itself.

    Attributes:
        name: the run's.
        labels: or classes, in the order of the probabilities.
        thresholds: of each label's probability: positive from there on. Classes have none.
        temperatures: of each label, or of the classes' column, for the calibrated probability.
        modality: `photograph`, `CT` or `MR`.
        unit: of the intensities.
        bits: of a stored intensity: 8 (JPEG, PNG) or 16 (greyscale PNG).
        offset: intensity = stored value + offset.
        size: side in pixels of prepared slices; others are brought to it as `aspect` says.
        aspect: `pad` or `stretch`.
        most_slices: of a study.
        preparation: how the training data were read: reader, its options, and what it resolved.
        members: models whose probabilities are averaged, such as the folds of a cross-validated
            run.
        fingerprint: of the data set that the run was trained on.
        versions: of what wrote it.
        operating_points: of each label, on how many patients the threshold was chosen and what it
            was measured to do; see `operating_points.OperatingPoint`. Empty of older exports.
        classes: where the labels exclude each other, what they are; the most probable is called.
        costs: of a call, (true class, called class): the class of least expected cost is called.
        covariates: that the model reads beside slices, in order, where they are given; see
            `covariates`.
        series: that a study has, where it has several, and how they are read: as `channels` each
            slice is a PNG of them all, red, green, blue and alpha in this order (of two series
            whatever its blue is), as `sequence` they follow one another.
        shares: of an automatic run, which candidates it predicts with, and how much each counts.
    """

    name: str
    labels: Annotated[list[str], Field(min_length=1)]
    thresholds: dict[str, FiniteFloat]
    temperatures: dict[str, Annotated[FiniteFloat, Field(gt=0)]]
    modality: Literal["photograph", "CT", "MR"]
    unit: str
    bits: Literal[8, 16]
    offset: int
    size: Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
    aspect: Literal["pad", "stretch"]
    most_slices: int
    preparation: Annotated[dict[str, Any], AfterValidator(_readable)]
    members: int = 1
    fingerprint: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    operating_points: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    classes: Classes | None = None
    costs: list[list[Annotated[FiniteFloat, Field(ge=0)]]] | None = None
    covariates: Annotated[list[Covariate], AfterValidator(check_covariates)] | None = None
    series: Series | None = None
    shares: dict[str, Annotated[FiniteFloat, Field(gt=0, le=1)]] | None = None

    @classmethod
    def of_run(cls, run: Run, most_slices: int = MOST_SLICES) -> Description:
        """Return what an export of a run says of itself."""
        from medseq_tf.dataset.prepared import series_of  # pandas, which clients do without

        data = run.dataset
        labels, preparation, classes = data["label_names"], data["preparation"], run.classes
        return cls(
            name=run.name,
            labels=list(labels),
            thresholds={} if classes else {label: float(run.thresholds[label]) for label in labels},
            temperatures={
                name: run.temperatures.get(name, 1.0)
                for name in ([classes.column] if classes else labels)
            },
            operating_points=run.operating_points,
            modality=data["modality"],
            unit=data["unit"],
            bits=8 * np.dtype(data["storage"]["dtype"]).itemsize,
            offset=data["storage"]["offset"],
            size=data["size"],
            aspect=preparation["aspect"],
            most_slices=most_slices,
            preparation={key: preparation.get(key) for key in ("reader", "options", "resolved")},
            members=len(run.members),
            fingerprint=run.info["fingerprint"],
            versions=run.info["versions"],
            classes=classes,
            covariates=[
                {"name": name, **data["columns"]["covariates"][name]} for name in run.covariates
            ]
            or None,
            series=series_of(data),
            shares=run.shares or None,
        )

    def with_costs(self, file: str | os.PathLike) -> Description:
        """Return the description of the same model that calls by a table of costs.

        Raises:
            InputError: the table is none of these classes, or the model has no classes.
        """
        from medseq_tf.evaluation.metrics import read_costs  # pandas, which clients do without

        if self.classes is None:
            raise InputError(
                f"{file}: costs are of classes that exclude each other; {printable(self.name)} "
                f"predicts {len(self.labels)} yes/no labels, each with a threshold"
            )
        return dataclasses.replace(self, costs=read_costs(file, self.labels).tolist())

    @property
    def channels(self) -> int:
        """Of a slice: one each of series that are read so."""
        return self.series.channels if self.series else 1

    @property
    def series_in_turn(self) -> Series | None:
        """The series that follow one another in a study, if they do."""
        return self.series if self.series and self.series.in_turn else None

    @property
    def dtype(self) -> str:
        """NumPy's name for the type of the intensities."""
        return DTYPES[self.modality]

    def to_json(self) -> str:
        """Return the description as one JSON object; what is `OPTIONAL` may be absent."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        values["classes"] = self.classes and self.classes.to_json()
        values["series"] = self.series and self.series.to_json()
        values = {k: v for k, v in values.items() if v is not None or k not in OPTIONAL}
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Description:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is nothing of the kind, or of another version.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("not the description of a model") from None
        if not isinstance(values, dict) or values.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError("not the description of a model, or one of another version")
        try:
            if "classes" in values:
                names = tuple(values.get("labels", ()))
                values["classes"] = Classes(names=names, **values["classes"])
            if "series" in values:
                values["series"] = Series.from_json(values["series"])
            description = cls(**values)
        except (TypeError, ValueError, AttributeError, KeyError):
            raise ValueError("not the description of a model") from None
        if not description._is_whole:
            raise ValueError("not the description of a model")
        return description

    @property
    def _is_whole(self) -> bool:
        """Whether it says what has to be known of each label, or of the classes."""
        count, classes = len(self.labels), self.classes
        if classes is None:
            known = self.thresholds.keys() & self.temperatures.keys()
            return set(self.labels) <= known and self.costs is None
        return (
            isinstance(classes.column, str)
            and isinstance(classes.ordered, bool)
            and classes.column in self.temperatures
            and len(set(self.labels)) == count > 1
            and (self.costs is None or [len(row) for row in self.costs] == [count] * count)
        )
