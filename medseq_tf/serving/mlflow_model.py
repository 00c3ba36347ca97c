"""Takes an exported model that MLflow holds; gives what `mlflow models serve` asks.

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

from medseq_tf.serving.client import RequestRefused, check_answer, refuse_cmyk
from medseq_tf.serving.open_model import Model, open_saved_model

SLICES, STUDY = "slices", "study"


class Scorer:
    """Answers tables of studies.

    Args:
        model: what is asked.
    """

    def __init__(self, model: Model):
        self.model = model
        self.description = model.describe()

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None):
        """Give one row a study and label, or one with an `error` for a study that is refused.

        Args:
            model_input: one row a study, see the module.
            params: none are known.

        Returns:
            Columns study (its name, or its place), label, probability, threshold, positive, error.
        """
        rows = []
        for place, row in enumerate(model_input.to_dict(orient="records")):
            name = _name(row.get(STUDY), place)
            try:
                files = _files(row[SLICES])
                refuse_cmyk(files)
                answer = self.model.predict(files)
                check_answer(answer, len(files), len(self.description.labels))
            except RequestRefused as error:
                rows.append({"study": name, "error": str(error)})
                continue
            for label, probability in zip(
                self.description.labels, answer.probability.tolist(), strict=True
            ):
                threshold = self.description.thresholds[label]
                rows.append(
                    {
                        "study": name,
                        "label": label,
                        "probability": probability,
                        "threshold": threshold,
                        "positive": probability >= threshold,
                        "error": None,
                    }
                )
        columns = ["study", "label", "probability", "threshold", "positive", "error"]
        return pd.DataFrame(rows, columns=columns).astype(object).replace({float("nan"): None})


def _name(given: Any, place: int) -> str:
    is_missing = given is None or given == "" or (isinstance(given, float) and math.isnan(given))
    return str(place if is_missing or given is pd.NA else given)


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
    """Called by MLflow with the folder of the SavedModel."""
    return Scorer(open_saved_model(path))
