"""The covariates of a study, such as age and sex, as the numbers that a served model reads.

A model's description lists them in order: `{"name": "age", "kind": "number"}` or `{"name": "sex",
"kind": "category", "categories": ["F", "M"]}`. Each is one float32: a number as it is, a category
by its place in the list, from 0; NaN where it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseq_tf.errors import InputError, did_you_mean, printable
from medseq_tf.readers.names import normal_name
from medseq_tf.readers.table import is_unknown, number_of

Covariate = dict[str, Any]
Values = Mapping[str, Any]
"""Covariate -> number or category; one that is absent, None, nan or an empty text is missing."""

LARGEST = float(np.finfo(np.float32).max)
_KEYS = {"number": {"name", "kind"}, "category": {"name", "kind", "categories"}}


def check_covariates(covariates: list[Covariate]) -> list[Covariate]:
    """Return a model's list of covariates as it is; a ValueError if it is none."""
    names = [covariate.get("name") for covariate in covariates]
    categories = [covariate.get("categories", ["one"]) for covariate in covariates]
    of_text = [name for name in names if isinstance(name, str)]
    if (
        any(_KEYS.get(str(c.get("kind"))) != c.keys() for c in covariates)
        or not names
        or len(set(of_text)) < len(names)
        or not all(isinstance(names, list) and names for names in categories)
        or any(not isinstance(name, str) for names in categories for name in names)
        or any(len(set(names)) < len(names) for names in categories)
    ):
        raise ValueError("no list of covariates")
    return covariates


def covariate_vector(covariates: Sequence[Covariate], values: Values) -> np.ndarray:
    """Return the covariates of a study as a model reads them.

    Args:
        covariates: of the model.
        values: of the study.

    Returns:
        float32 (covariates,).

    Raises:
        InputError: a value is of a covariate that the model does not read, or none that it may
            have. It is not repeated.
    """
    names = [covariate["name"] for covariate in covariates]
    for name in values:
        if name not in names:
            known = f"it reads {', '.join(map(printable, names))}" if names else "it reads none"
            raise InputError(
                f"the model reads no covariate {printable(name)!r}{did_you_mean(name, names)}; "
                f"{known}"
            )
    numbers = [_number(covariate, values.get(covariate["name"])) for covariate in covariates]
    return np.array(numbers, np.float32)


def _number(covariate: Covariate, value: Any) -> float:
    """Return a covariate's value as the model reads it."""
    if value is None or is_unknown(str(value)) or str(value) == "<NA>":
        return math.nan
    name = printable(covariate["name"])
    if categories := covariate.get("categories"):
        text = normal_name(str(value))
        if text in categories:
            return float(categories.index(text))
        raise InputError(
            f"covariate {name} is none of {', '.join(map(printable, categories))}; leave it out "
            "where it is unknown"
        )
    number = None if isinstance(value, bool) else number_of(str(value))
    if number is None or abs(number) > LARGEST:
        raise InputError(f"covariate {name} is no number; leave it out where it is unknown")
    return number
