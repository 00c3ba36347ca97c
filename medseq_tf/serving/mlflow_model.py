"""An exported model as `mlflow models serve` asks it.

MLflow stores the name of this module with the model and calls `_load_pyfunc`: no pickle. A row of
a request is a study: `slices`, its JPEG or PNG files in scan order, in base64, and perhaps `study`,
its name, and its covariates, where the model reads some, each in a column `covariate.NAME`, and
`series`, where it reads several one after the other, the name of each slice's; these may be absent.
A row of the answer is a study and label, or, of classes, a study, with the probability
of each class in a column `probability.NAME`.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.errors import InputError
from medseq_tf.runs import mlflow_store
from medseq_tf.serving.class_call import ClassCall
from medseq_tf.serving.client import refuse_cmyk
from medseq_tf.serving.description import Description
from medseq_tf.serving.open_model import Model, open_saved_model
from medseq_tf.serving.refusals import RequestRefused

SLICES, STUDY, COVARIATE, SERIES = "slices", "study", "covariate.", "series"


def columns_of(description: Description) -> dict[str, str]:
    """Return the columns of a model's answers, with MLflow's names of their types."""
    columns = {"study": "string", "label": "string", "probability": "double"}
    if description.classes:
        columns |= {"called": "string"}
        columns |= {} if description.costs is None else {"expected_cost": "double"}
        columns |= {f"probability.{name}": "double" for name in description.labels}
    else:
        columns |= {"threshold": "double", "positive": "boolean"}
    return {**columns, "error": "string"}


def further_inputs_of(description: Description) -> dict[str, str]:
    """Return the columns that requests may have besides, with MLflow's names of their types.

    A list of strings is called `mlflow_store.TEXTS`.
    """
    columns = {
        f"{COVARIATE}{covariate['name']}": "string" if "categories" in covariate else "double"
        for covariate in description.covariates or []
    }
    return {**columns, **({SERIES: mlflow_store.TEXTS} if description.series_in_turn else {})}


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
        study (its name, or its place), label, probability, threshold, positive and error; of
        classes, with one row per study, the called one and the probability of each in place of
        threshold and positive.
        """
        rows: list[dict[str, Any]] = []
        for place, row in enumerate(model_input.to_dict(orient="records")):
            name = _name(row.get(STUDY), place)
            try:
                rows += self._rows(name, _files(row[SLICES]), self._told(row))
            except InputError as error:
                rows.append({"study": name, "error": str(error)})
        columns = list(columns_of(self.description))
        return pd.DataFrame(rows, columns=columns).astype(object).replace({float("nan"): None})

    def _told(self, row: dict[str, Any]) -> dict[str, Any]:
        wanted = [name for name in further_inputs_of(self.description) if name in row]
        covariates = [name for name in wanted if name != SERIES]
        told: dict[str, Any] = {
            "covariates": {name.removeprefix(COVARIATE): row[name] for name in covariates}
        }
        if SERIES in wanted and not _is_missing(row[SERIES]):
            told["series"] = _listed(row[SERIES], "series is not a list of their names")
        return told

    def _rows(self, name: str, files: list[bytes], told: dict[str, Any]) -> list[dict[str, Any]]:
        refuse_cmyk(files)
        labels, thresholds = self.description.labels, self.description.thresholds
        predicted = self.model.predict(files, **told)
        predicted = predicted.checked(len(files), self.description)
        call = ClassCall.of(self.description, predicted.probability)
        if call:
            row: dict[str, Any] = {"study": name, "label": call.column, "called": call.called}
            row |= {"probability": call.probabilities[call.called]}
            row |= {"expected_cost": call.expected_cost}
            return [row | {f"probability.{name}": p for name, p in call.probabilities.items()}]
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
    return str(place if _is_missing(name) or name == "" else name)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _files(slices: Any) -> list[bytes]:
    return [_file(text) for text in _listed(slices, "slices is not a list of files in base64")]


def _listed(values: Any, otherwise: str) -> list[Any]:
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise RequestRefused(otherwise)
    return list(values)


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
