"""A table of predictions of classes, which exclude each other, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from medseq_tf.evaluation.metrics.calls import call
from medseq_tf.readers.classes import Classes

_KEYS = ("split", "repeat", "fold", "patient", "study", "slices")
"""The columns that a study's rows have in common, where they are there."""


@dataclass(frozen=True)
class ClassTable:
    """A table of predictions of classes, a row a study (of a split, repeat and fold).

    Attributes:
        classes: what is told apart.
        studies: one row each: `patient`, `study` and, where the table has them, `split`, `repeat`,
            `fold`, `slices`.
        truth: `(rows, classes)` one-hot, or nan for an unknown class.
        probabilities: `(rows, classes)`.
        calibrated: `(rows, classes)`, after temperature scaling; nan where the table has none.
        called: `(rows,)` the number of the called class; the most probable, if there are no
            calls.
    """

    classes: Classes
    studies: pd.DataFrame
    truth: np.ndarray
    probabilities: np.ndarray
    calibrated: np.ndarray
    called: np.ndarray

    @classmethod
    def of(cls, predictions: pd.DataFrame, classes: Classes) -> ClassTable:
        """Read a table of predictions; the order of its rows changes nothing."""
        columns = ("truth", "probability", "calibrated", "positive")
        missing = {name: np.nan for name in columns if name not in predictions}
        keys = [name for name in _KEYS if name in predictions]
        rows = predictions.assign(**missing)
        wide = [rows.pivot(index=keys, columns="label", values=name) for name in columns]
        truth, probabilities, calibrated, positive = (
            table.reindex(columns=list(classes.names)).to_numpy(float) for table in wide
        )
        called = positive.argmax(axis=1) if "positive" not in missing else call(probabilities)
        studies = wide[0].index.to_frame(index=False)
        return cls(classes, studies, truth, probabilities, calibrated, called)

    def spread(self, values: np.ndarray, predictions: pd.DataFrame) -> np.ndarray:
        """Give each row of the table of predictions that this is of its own of (rows, classes)."""
        keys = predictions[list(self.studies.columns)]
        row = pd.MultiIndex.from_frame(self.studies).get_indexer(pd.MultiIndex.from_frame(keys))
        number = predictions["label"].map({name: i for i, name in enumerate(self.classes.names)})
        return values[row, number.to_numpy(int)]

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def patients(self) -> np.ndarray:
        """The owner of each row."""
        return self.studies["patient"].to_numpy()

    @property
    def is_known(self) -> np.ndarray:
        """`(rows,)` bool, whether the study's class is known."""
        return ~np.isnan(self.truth).any(axis=1)

    @property
    def known(self) -> ClassTable:
        """The rows of which the class is known."""
        rows = self.is_known
        arrays = (self.truth, self.probabilities, self.calibrated, self.called)
        studies = self.studies[rows].reset_index(drop=True)
        return ClassTable(self.classes, studies, *(array[rows] for array in arrays))
