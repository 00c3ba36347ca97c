"""Covariates as numbers: places of categories, what is missing, and another data set's columns."""

from __future__ import annotations

import numpy as np
import pytest
from covariate_columns import with_covariates

from medseq_tf.dataset.covariate_values import covariate_values, read_as
from medseq_tf.errors import InputError

COUNT = 40
AGE = [63.5, None, -2.0, 1e4, *[50.0] * (COUNT - 4)]
SEX = ["m", "f", None, "m", *["f"] * (COUNT - 4)]


@pytest.fixture
def prepared(demo_data):
    return with_covariates(demo_data, age=AGE, sex=SEX)


def test_values_are_as_they_stand_and_categories_by_their_place(prepared):
    values = covariate_values(prepared, ["sex", "age"])
    assert values.dtype == "float32"
    nan = np.nan
    np.testing.assert_array_equal(values[:4], [[1, 63.5], [0, nan], [nan, -2], [1, 1e4]])
    assert covariate_values(prepared, []).shape == (COUNT, 0)


def test_an_unknown_name_is_told_what_there_is(prepared, demo_data):
    with pytest.raises(InputError, match=r"'weight'.* has the covariates age, sex; .*--covariates"):
        covariate_values(prepared, ["age", "weight"])
    with pytest.raises(InputError, match=r"'weight'.* has no covariates; .*--covariates"):
        covariate_values(with_covariates(demo_data), ["weight"])


def test_a_number_beyond_float32_is_named(demo_data):
    prepared = with_covariates(demo_data, platelets=[1e39, *[1.0] * (COUNT - 1)])
    with pytest.raises(InputError, match="covariate platelets has a value too large for float32"):
        covariate_values(prepared, ["platelets"])


def test_another_data_set_is_read_as_the_model_knows_it(prepared, demo_data, capsys):
    other = with_covariates(demo_data, sex=["x", "y", "m", None, *["f"] * (COUNT - 4)])
    read = read_as(other, prepared.covariates, ["age", "sex"])
    assert read.covariates == prepared.covariates
    values = covariate_values(read, ["age", "sex"])
    assert np.isnan(values[:, 0]).all()
    nan = np.nan
    np.testing.assert_array_equal(values[:5, 1], [nan, nan, 1, nan, 0])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "has no covariate age; the model takes it as missing" in lines[0]
    assert "sex is x, y in 2 studies, which the model does not know (f, m)" in lines[1]


def test_categories_in_another_order_keep_their_meaning(prepared, demo_data):
    reordered = with_covariates(demo_data, age=AGE, sex=SEX)
    reordered.info["columns"]["covariates"]["sex"]["categories"] = ["m", "f", "x"]
    read = read_as(reordered, prepared.covariates, ["sex", "age"])
    np.testing.assert_array_equal(*(covariate_values(p, ["sex", "age"]) for p in (read, prepared)))


def test_a_number_that_is_a_category_elsewhere_is_refused(prepared, demo_data):
    other = with_covariates(demo_data, age=["old"] * COUNT, sex=SEX)
    with pytest.raises(InputError, match="age is a category, the model knows it as a number"):
        read_as(other, prepared.covariates, ["sex", "age"])
