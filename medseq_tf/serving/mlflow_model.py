"""An exported model as `mlflow models serve` asks it.

MLflow stores the name of this module with the model and calls `_load_pyfunc`: no pickle. A row of
a request is a study: `slices`, its JPEG or PNG files in scan order, in base64, and perhaps `study`,
its name.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.serving.client import refuse_cmyk
from medseq_tf.serving.open_model import Model, open_saved_model
from medseq_tf.serving.refusals import RequestRefused

SLICES, STUDY = "slices", "study"
COLUMNS = ["study", "label", "probability", "threshold", "positive", "error"]


class Scorer:
    """The predictions of a model for tables of studies."""

    def __init__(self, model: Model):
        self.model = model
        self.description = model.describe()

    def predict(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return one row per study and label, or one with an `error` for a study that is refused.

        A row of `model_input` is a study, see the module; `params` has no effect. The columns are
        study (its name, or its place), label, probability, threshold, positive and error.
        """
        rows: list[dict[str, Any]] = []
        for place, row in enumerate(model_input.to_dict(orient="records")):
            name = _name(row.get(STUDY), place)
            try:
                rows += self._rows(name, _files(row[SLICES]))
            except RequestRefused as error:
                rows.append({"study": name, "error": str(error)})
        return pd.DataFrame(rows, columns=COLUMNS).astype(object).replace({float("nan"): None})

    def _rows(self, name: str, files: list[bytes]) -> list[dict[str, Any]]:
        refuse_cmyk(files)
        labels, thresholds = self.description.labels, self.description.thresholds
        predicted = self.model.predict(files).checked(len(files), len(labels))
        return [
            {
                "study": name,
                "label": label,
                "probability": probability,
                "threshold": thresholds[label],
                "positive": probability >= thresholds[label],
                "error": None,
            }
            for label, probability in zip(labels, predicted.probability.tolist(), strict=True)
        ]


def _name(name: Any, place: int) -> str:
    is_missing = name is None or name is pd.NA or (isinstance(name, float) and math.isnan(name))
    return str(place if is_missing or name == "" else name)


def _files(slices: Any) -> list[bytes]:
    if not isinstance(slices, (list, tuple, np.ndarray)):
        raise RequestRefused("slices is not a list of files in base64")
    return [_file(text) for text in slices]


def _file(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise RequestRefused("a slice is not in base64") from None


def _load_pyfunc(path: str) -> Scorer:
    """Load what MLflow asks; it calls this with the folder of the SavedModel."""
    return Scorer(open_saved_model(path))
