"""The class that is called of a study, from a model's probability of each."""

from __future__ import annotations

import dataclasses

import numpy as np

from medseq_tf.evaluation import metrics
from medseq_tf.serving.description import Description


@dataclasses.dataclass(frozen=True)
class ClassCall:
    """The class that is called of a study, and what is predicted of every class.

    Attributes:
        column: what the classes are the classes of.
        called: the name of the class: the most probable one, or, with costs, that of least expected
            cost.
        probabilities: by class; they add up to 1.
        calibrated: the same after temperature scaling.
        expected_cost: of the call, where the model calls by costs.
    """

    column: str
    called: str
    probabilities: dict[str, float]
    calibrated: dict[str, float]
    expected_cost: float | None = None

    @classmethod
    def of(cls, description: Description, probability: np.ndarray) -> ClassCall | None:
        """Return what a model calls, of its probabilities (classes,); None of yes/no labels."""
        if description.classes is None:
            return None
        names = description.labels
        whole = np.asarray(probability, float)[None]
        costs = None if description.costs is None else np.array(description.costs)
        (called,) = metrics.call(whole, costs)
        temperature = description.temperatures[description.classes.column]
        (calibrated,) = metrics.scale_classes(whole, temperature)
        return cls(
            column=description.classes.column,
            called=names[called],
            probabilities=dict(zip(names, whole[0].tolist(), strict=True)),
            calibrated=dict(zip(names, calibrated.tolist(), strict=True)),
            expected_cost=None if costs is None else float(whole[0] @ costs[:, called]),
        )
