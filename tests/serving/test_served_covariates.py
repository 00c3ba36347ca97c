"""The covariates of a study as a served model reads them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_models import COVARIATES

from medseq_tf.errors import InputError
from medseq_tf.serving.covariates import check_covariates, covariate_vector


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"age": 63, "sex": "M"}, [63, 1]),
        ({"sex": "F", "age": "63.5"}, [63.5, 0]),
        ({"age": np.float64(7), "sex": " F "}, [7, 0]),
        ({}, [np.nan, np.nan]),
        ({"age": None, "sex": ""}, [np.nan, np.nan]),
        ({"age": float("nan"), "sex": "n/a"}, [np.nan, np.nan]),
        ({"age": pd.NA, "sex": None}, [np.nan, np.nan]),
    ],
)
def test_a_number_as_it_is_a_category_by_its_place(values, expected):
    vector = covariate_vector(COVARIATES, values)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, np.float32(expected))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sex": "secret"}, "covariate sex is none of F, M"),
        ({"age": "secret"}, "covariate age is no number"),
        ({"age": True}, "covariate age is no number"),
        ({"age": 1e60}, "covariate age is no number"),
        ({"age": "inf"}, "covariate age is no number"),
        ({"agee": 3}, r"reads no covariate 'agee' \(did you mean age\?\); it reads age, sex"),
    ],
)
def test_what_a_covariate_may_not_have_is_an_error_that_does_not_repeat_it(values, words):
    with pytest.raises(InputError, match=words) as caught:
        covariate_vector(COVARIATES, values)
    assert "secret" not in str(caught.value)


def test_a_model_without_covariates_takes_none():
    with pytest.raises(InputError, match="it reads none"):
        covariate_vector([], {"age": 3})


def test_a_list_of_covariates():
    assert check_covariates(COVARIATES) is COVARIATES


NUMBER = {"name": "age", "kind": "number"}
CATEGORY = {"name": "sex", "kind": "category", "categories": ["F", "M"]}


@pytest.mark.parametrize(
    "covariates",
    [
        [],
        [NUMBER, NUMBER],
        [{"name": 3, "kind": "number"}],
        [{"name": "age"}],
        [{"name": "age", "kind": "date"}],
        [{"name": "age", "kind": ["number"]}],
        [{**NUMBER, "categories": ["F"]}],
        [{**NUMBER, "unit": "years"}],
        [{"name": "sex", "kind": "category"}],
        [{**CATEGORY, "categories": []}],
        [{**CATEGORY, "categories": "FM"}],
        [{**CATEGORY, "categories": ["F", "F"]}],
        [{**CATEGORY, "categories": ["F", 1]}],
        [{**CATEGORY, "categories": ["F", ["M"]]}],
    ],
)
def test_nonsense_is_no_list_of_covariates(covariates):
    with pytest.raises(ValueError, match="no list of covariates"):
        check_covariates(covariates)
