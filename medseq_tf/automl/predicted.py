"""What all candidates of a plan predict, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medseq_tf.automl.plan import Plan
from medseq_tf.automl.procedure import CandidatePredictions, Outcome, procedure
from medseq_tf.dataset.prepared import Prepared


@dataclass
class Candidates:
    """What the candidates of a plan predict, by repeat.

    Attributes:
        plan: the plan.
        prepared: the data set.
        fold_of: (repeats, studies) from 0; -1 for a study that takes no part.
        predictions: by repeat and candidate.
        notes: what is to be said of candidates, by name.
    """

    plan: Plan
    prepared: Prepared
    fold_of: np.ndarray
    predictions: list[dict[str, CandidatePredictions]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.predictions = [{} for _ in self.fold_of]

    def add(self, name: str, predictions: Sequence[CandidatePredictions], note: str = "") -> None:
        """Add a candidate's predictions, of as many repeats as it has."""
        for own, one in zip(self.predictions, predictions, strict=False):
            own[name] = one
        self.notes |= {name: note} if note else {}

    @property
    def repeats(self) -> int:
        """In how many repeats, from the first, some candidate predicts."""
        return sum(map(bool, self.predictions))

    def keep_common(self) -> None:
        """Forget the repeats that not all of the candidates have, and say how many are left."""
        names = set().union(*self.predictions)
        self.predictions = [own if own.keys() == names else {} for own in self.predictions]
        if self.repeats < len(self.predictions):
            self.notes["linear candidates"] = (
                f"there was time for {self.repeats} of {len(self.predictions)} repeats of the folds"
            )

    @property
    def part(self) -> np.ndarray:
        """Which studies take part and are read by every linear candidate, (studies,) bool."""
        part = self.fold_of[0] >= 0
        for candidate in self.plan.candidates:
            if candidate.kind == "linear":
                part &= np.isfinite(self.predictions[0][candidate.name].outer).all(axis=1)
        return part

    def left_out(self) -> list[str]:
        """Say which studies take part and are not read by every linear candidate."""
        left_out = (self.fold_of[0] >= 0) & ~self.part
        names = self.prepared.studies["study_id"][left_out].tolist()
        words = f"{len(names)} studies are left out, which not every candidate reads"
        return [f"{words}: {', '.join(names[:5])}"] if names else []

    def choose(self) -> Outcome:
        """Choose in every fold and at last, and measure that; of all studies again."""
        prepared, part = self.prepared, self.part
        outcome = procedure(
            prepared.labels[part],
            prepared.studies["patient_id"].to_numpy()[part],
            self.fold_of[:, part],
            [
                {
                    name: CandidatePredictions(one.outer[part], one.inner[:, part])
                    for name, one in own.items()
                }
                for own in self.predictions
            ],
            self.plan.candidates,
            prepared.outputs,
        )
        outer = np.full((len(outcome.outer), *prepared.labels.shape), np.nan)
        outer[:, part] = outcome.outer
        return outcome._replace(outer=outer)
