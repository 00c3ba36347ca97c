"""What an exported model says of itself: its labels, thresholds and how its slices are stored."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medseq_tf.readers.intensities import DTYPES

if TYPE_CHECKING:
    from medseq_tf.runs.run import Run

FORMAT_VERSION = 1
LARGEST_SIZE = 1024
MOST_SLICES = 512


@dataclasses.dataclass(frozen=True)
class Description:
    """What an exported model says of itself.

    Attributes:
        name: the run's.
        labels: in the order of the probabilities.
        thresholds: of each label's probability: positive from there on.
        temperatures: of each label, for the calibrated probability.
        modality: `photograph`, `CT` or `MR`.
        unit: of the intensities.
        bits: of a stored intensity: 8 (JPEG, PNG) or 16 (greyscale PNG).
        offset: intensity = stored value + offset.
        size: side in pixels of prepared slices; others are brought to it as `aspect` says.
        aspect: `pad` or `stretch`.
        most_slices: of a study.
        preparation: how the training data were read: reader, its options, and what it resolved.
        members: models whose probabilities are averaged, the folds of a cross-validated run.
        fingerprint: of the data set that the run was trained on.
        versions: of what wrote it.
        operating_points: of each label, on how many patients the threshold was chosen and what it
            was measured to do; see `operating_points.OperatingPoint`. Empty of older exports.
    """

    name: str
    labels: list[str]
    thresholds: dict[str, float]
    temperatures: dict[str, float]
    modality: str
    unit: str
    bits: int
    offset: int
    size: int
    aspect: Literal["pad", "stretch"]
    most_slices: int
    preparation: dict[str, Any]
    members: int = 1
    fingerprint: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    operating_points: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_run(cls, run: Run, most_slices: int = MOST_SLICES) -> Description:
        """Return what an export of a run says of itself."""
        data = run.dataset
        labels, preparation = data["label_names"], data["preparation"]
        return cls(
            name=run.name,
            labels=list(labels),
            thresholds={label: float(run.thresholds[label]) for label in labels},
            temperatures={label: run.temperatures.get(label, 1.0) for label in labels},
            operating_points=run.operating_points,
            modality=data["modality"],
            unit=data["unit"],
            bits=8 * np.dtype(data["storage"]["dtype"]).itemsize,
            offset=data["storage"]["offset"],
            size=data["size"],
            aspect=preparation["aspect"],
            most_slices=most_slices,
            preparation={key: preparation.get(key) for key in ("reader", "options", "resolved")},
            members=len(run.folds or [run]),
            fingerprint=run.info["fingerprint"],
            versions=run.info["versions"],
        )

    @property
    def dtype(self) -> str:
        """NumPy's name for the type of the intensities."""
        return DTYPES[self.modality]

    def to_json(self) -> str:
        """Return the description as one JSON object."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
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
            description = cls(**values)
            is_whole = description._is_whole()
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the description of a model: {error}") from None
        if not is_whole:
            raise ValueError("not the description of a model")
        return description

    def _is_whole(self) -> bool:
        return bool(
            isinstance(self.labels, list)
            and self.labels
            and all(isinstance(label, str) for label in self.labels)
            and all(math.isfinite(self.thresholds[label]) for label in self.labels)
            and all(0 < self.temperatures[label] < math.inf for label in self.labels)
            and self.modality in DTYPES
            and self.bits in (8, 16)
            and isinstance(self.offset, int)
            and isinstance(self.size, int)
            and 1 <= self.size <= LARGEST_SIZE
            and self.aspect in ("pad", "stretch")
            and isinstance(self.preparation, dict)
            and isinstance(self.preparation.get("options") or {}, dict)
            and isinstance(self.preparation.get("resolved") or {}, dict)
        )
