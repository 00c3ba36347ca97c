"""Covariates of a prepared data set, put beside it in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared


def with_covariates(prepared, **columns):
    """The data set with these covariates, by name a value a study; words are categories."""
    prepared = Prepared.open(prepared)
    described, studies = {}, prepared.studies.copy()
    for name, values in columns.items():
        values = pd.Series(values)
        if values.dtype == object or isinstance(values.dtype, pd.StringDtype):
            known = sorted({value for value in values if isinstance(value, str)})
            described[name] = {"kind": "category", "categories": known}
        else:
            described[name] = {"kind": "number"}
            values = values.astype(float)
        studies[f"covariate.{name}"] = values.to_numpy()
    info = {**prepared.info, "columns": {"covariates": described}}
    return dataclasses.replace(prepared, info=info, studies=studies)


def age_and_sex(prepared, seed=0):
    """The data set with an age and a sex that tell nothing, missing here and there."""
    rng = np.random.default_rng(seed)
    count = len(Prepared.open(prepared))
    age = np.where(rng.random(count) < 0.2, np.nan, rng.normal(60, 12, count))
    sex = [str(s) if s != "?" else None for s in rng.choice(["f", "m", "?"], count)]
    return with_covariates(prepared, age=age, sex=sex)
