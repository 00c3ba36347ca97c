"""Covariates of studies, such as age and sex, as the numbers that a model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, note
from medseq_tf.readers.columns import COVARIATE


def check_covariates(prepared: Prepared, names: Sequence[str]) -> None:
    """Raise an InputError unless a data set has the covariates that a recipe names."""
    stored = list(prepared.covariates)
    for name in names:
        if name not in stored:
            has = f"has the covariates {', '.join(stored)}" if stored else "has no covariates"
            raise InputError(
                f"model.covariates names {name!r}, but {prepared.path} {has}; `medseq-tf prepare "
                "--covariates` stores them"
            )


def covariate_values(prepared: Prepared, names: Sequence[str]) -> np.ndarray:
    """Return covariates of all studies, a number each.

    Returns:
        float32 (studies, names): a number as it is, a category by its place in the data set's list
        of them, from 0; nan where it is missing, which a category outside that list is, too.

    Raises:
        InputError: the data set does not have a covariate, or a number is too large for float32.
    """
    check_covariates(prepared, names)
    values = np.full((len(prepared), len(names)), np.nan, np.float32)
    for place, name in enumerate(names):
        column = prepared.studies.get(f"{COVARIATE}{name}")
        if column is None:
            continue
        if categories := prepared.covariates[name].get("categories"):
            column = column.map({category: i for i, category in enumerate(categories)})
        with np.errstate(over="ignore"):
            values[:, place] = column.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(values).any():
        name = names[int(np.flatnonzero(np.isinf(values).any(axis=0))[0])]
        raise InputError(f"{prepared.path}: covariate {name} has a value too large for float32")
    return values


def read_as(
    prepared: Prepared, known: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> Prepared:
    """Return a data set whose covariates are read as a model knows them.

    A covariate that it lacks, or a category that the model does not know, is missing, and noted.

    Args:
        prepared: the data set.
        known: covariates of the data set that the model was trained on.
        names: those of them that the model reads.

    Raises:
        InputError: a number there is a category here, or the other way round.
    """
    own = prepared.covariates
    for name in names:
        if name not in own:
            note(f"{prepared.path}: has no covariate {name}; the model takes it as missing")
            continue
        if own[name]["kind"] != known[name]["kind"]:
            raise InputError(
                f"{prepared.path}: covariate {name} is a {own[name]['kind']}, the model knows it "
                f"as a {known[name]['kind']}; prepare the data set again, with such values"
            )
        others = set(own[name].get("categories", ())) - set(known[name].get("categories", ()))
        count = int(prepared.studies[f"{COVARIATE}{name}"].isin(others).sum())
        if count:
            note(
                f"{prepared.path}: covariate {name} is {', '.join(sorted(others))} in {count} "
                f"studies, which the model does not know ({', '.join(known[name]['categories'])}); "
                "it takes them as missing"
            )
    columns = {**prepared.info.get("columns", {}), "covariates": dict(known)}
    return dataclasses.replace(prepared, info={**prepared.info, "columns": columns})
