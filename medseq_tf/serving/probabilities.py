"""What a model predicts of one study, checked: a probability for every label."""

from __future__ import annotations

import dataclasses

import numpy as np

from medseq_tf.serving.refusals import RequestRefused


@dataclasses.dataclass(frozen=True)
class StudyProbabilities:
    """What a model predicts of a study.

    Attributes:
        probability: float32 (labels,).
        running: float32 (T, labels): after each slice; None where it was not asked for.
    """

    probability: np.ndarray
    running: np.ndarray | None = None

    def checked(self, slices: int, labels: int | None = None) -> StudyProbabilities:
        """Return them as they are, if they are probabilities of this study.

        Args:
            slices: of the study.
            labels: how many the model has; None where that is not known.

        Raises:
            RequestRefused: a value is no number from 0 to 1, or the shape is another.
        """
        _check("probability", np.asarray(self.probability), labels)
        if self.running is not None:
            _check("running_probability", np.asarray(self.running), labels, slices)
            if self.running.shape[-1] != self.probability.shape[-1]:
                words = "probability and running_probability differ in labels"
                raise RequestRefused(f"the model's {words}")
        return self


def _check(name: str, values: np.ndarray, labels: int | None, slices: int | None = None) -> None:
    dimensions = 1 if slices is None else 2
    if values.dtype.kind != "f" or values.ndim != dimensions or not values.size:
        problem = "no table of numbers of one study"
    elif labels is not None and values.shape[-1] != labels:
        problem = f"of {values.shape[-1]} labels, the model has {labels}"
    elif slices is not None and len(values) < slices:
        problem = f"of {len(values)} slices, the study has {slices}"
    else:
        values = values if slices is None else values[:slices]
        wrong = values[~((values >= 0) & (values <= 1))]  # NaN is neither
        if not wrong.size:
            return
        problem = f"{wrong.flat[0]:g}, which is no probability: a number from 0 to 1"
    raise RequestRefused(f"the model's {name} is {problem}")
