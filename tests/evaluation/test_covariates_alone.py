"""What covariates alone reach: held to a pipeline of scikit-learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from covariate_columns import age_and_sex, with_covariates
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from medseq_tf.evaluation import covariates_alone

TRAIN, TEST = np.arange(30), np.arange(30, 40)


@pytest.fixture(scope="module")
def prepared(demo_data):
    return age_and_sex(demo_data)


def pipeline():
    def parts(of_known):
        return FeatureUnion([("known", of_known), ("missing", MissingIndicator(features="all"))])

    number = make(StandardScaler(), SimpleImputer())
    words = OneHotEncoder(categories=[["f", "m"]], handle_unknown="ignore")
    missing = MissingIndicator(features="all", missing_values=None)
    category = FeatureUnion([("known", words), ("missing", missing)])
    columns = [("age", parts(number), ["covariate.age"]), ("sex", category, ["covariate.sex"])]
    return make(ColumnTransformer(columns), LogisticRegression(C=1.0, max_iter=10_000))


def make(*steps):
    return Pipeline([(str(number), step) for number, step in enumerate(steps)])


def test_probabilities_are_those_of_scikit_learn(prepared):
    table = prepared.studies[["covariate.age", "covariate.sex"]].astype({"covariate.sex": object})
    table["covariate.sex"] = table["covariate.sex"].where(table["covariate.sex"].notna(), None)
    truth = prepared.labels[:, 0].astype(int)
    expected = pipeline().fit(table.iloc[TRAIN], truth[TRAIN]).predict_proba(table)[:, 1]
    found = covariates_alone.probabilities(prepared, TRAIN)
    assert found.shape == (40, 1)
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-5)


def test_studies_that_are_not_trained_on_change_nothing(prepared):
    studies = prepared.studies.copy()
    studies.loc[TEST[1:], "covariate.age"] = 1e5
    studies.loc[TEST[1:], f"label.{prepared.label_names[0]}"] = np.nan
    wild = dataclasses.replace(prepared, studies=studies)
    kept = [*TRAIN, TEST[0]]
    expected = covariates_alone.probabilities(prepared, TRAIN)[kept]
    np.testing.assert_array_equal(covariates_alone.probabilities(wild, TRAIN)[kept], expected)


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_one_answer_alone_is_predicted(prepared, only):
    studies = prepared.studies.assign(**{f"label.{prepared.label_names[0]}": only})
    found = covariates_alone.probabilities(dataclasses.replace(prepared, studies=studies), TRAIN)
    np.testing.assert_array_equal(found, only)


def test_what_is_missing_everywhere_or_never_varies_tells_nothing(demo_data):
    told = with_covariates(demo_data, age=[np.nan] * 40, height=[1.7] * 40)
    found = covariates_alone.probabilities(told, TRAIN)
    np.testing.assert_allclose(found, told.labels[TRAIN].mean(), atol=0.05)
    assert np.ptp(found) == 0
