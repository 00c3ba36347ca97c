"""The linear candidates' predictions: by models that saw neither fold, as an independent fit's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from covariate_columns import age_and_sex
from linear_recipe import linear_recipe
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from medseq_tf.automl import linear
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.execution.executor import executor_for
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.training.linear_head import study_vectors
from medseq_tf.training.train import train

FOLDS = 4


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture
def fold_of(rng, prepared):
    return rng.permutation(np.arange(len(prepared)) % FOLDS)


@pytest.fixture
def vectors(rng, prepared):
    """Seven features of which two tell something."""
    noise = rng.normal(size=(len(prepared), 7)).astype(np.float32)
    noise[:, :2] += prepared.labels
    return noise


def linear_predictions(recipe, prepared, folds, *vectors):
    """Return what is predicted in a single repeat."""
    (found,) = linear.linear_predictions(recipe, prepared, folds[None], np.stack(vectors))
    return found


def with_labels(prepared, labels):
    studies = prepared.studies.assign(**{"label.lesion": labels})
    return dataclasses.replace(prepared, studies=studies)


def test_predictions_are_those_of_scikit_learn(prepared, fold_of, vectors):
    found = linear_predictions(linear_recipe("fit.strength=0.3"), prepared, fold_of, vectors)

    def fitted(*left_out):
        rows = ~np.isin(fold_of, left_out)
        scaler = StandardScaler().fit(vectors[rows].astype(float))
        model = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000)
        model.fit(scaler.transform(vectors[rows].astype(float)), prepared.labels[rows, 0])
        return model.predict_proba(scaler.transform(vectors.astype(float)))[:, 1:]

    for fold in range(FOLDS):
        own = fold_of == fold
        np.testing.assert_allclose(found.outer[own], fitted(fold)[own], atol=1e-5)
        assert np.isnan(found.inner[fold, own]).all()
        for other in set(range(FOLDS)) - {fold}:
            there = fold_of == other
            both = fitted(fold, other)
            np.testing.assert_allclose(found.inner[fold, there], both[there], atol=1e-5)


def test_further_sequences_are_averaged_and_not_learned_from(prepared, fold_of, vectors):
    recipe, further = linear_recipe("fit.strength=0.3"), vectors[:, ::-1]
    plain = linear_predictions(recipe, prepared, fold_of, vectors)
    same = linear_predictions(recipe, prepared, fold_of, vectors, vectors)
    np.testing.assert_array_equal(plain.outer, same.outer)
    both = linear_predictions(recipe, prepared, fold_of, vectors, further)
    thrice = linear_predictions(recipe, prepared, fold_of, vectors, further, further)
    # (3 x thrice - 2 x both) is what is predicted of the further ones alone.
    np.testing.assert_allclose(3 * thrice.outer - 2 * both.outer + plain.outer, 2 * both.outer)


@pytest.mark.parametrize("strength", ["auto", "1.0"])
def test_what_a_fold_is_told_depends_on_no_truth_of_it(prepared, fold_of, vectors, strength):
    settings = linear_recipe(f"fit.strength={strength}")
    found = linear_predictions(settings, prepared, fold_of, vectors)
    fold, own = 1, fold_of == 1
    labels = np.where(own, 1 - prepared.labels[:, 0], prepared.labels[:, 0])
    turned = linear_predictions(settings, with_labels(prepared, labels), fold_of, vectors)
    np.testing.assert_array_equal(turned.outer[own], found.outer[own])
    np.testing.assert_array_equal(turned.inner[fold], found.inner[fold])
    assert (turned.outer[~own] != found.outer[~own]).any()


def test_who_takes_no_part_is_neither_learned_from_nor_predicted(prepared, fold_of, vectors):
    aside, lost = np.arange(len(prepared)) < 3, np.arange(len(prepared)) == 7
    folds = np.where(aside, -1, fold_of)
    vectors[lost] = np.nan
    found = linear_predictions(linear_recipe(), prepared, folds, vectors)
    assert np.isnan(found.outer[aside | lost]).all()
    assert np.isfinite(found.outer[~(aside | lost)]).all()
    labels = np.where(aside | lost, 1 - prepared.labels[:, 0], prepared.labels[:, 0])
    turned = linear_predictions(linear_recipe(), with_labels(prepared, labels), folds, vectors)
    np.testing.assert_array_equal(turned.outer, found.outer)
    np.testing.assert_array_equal(turned.inner, found.inner)


def test_missing_covariates_are_what_a_run_that_is_trained_takes_them_for(
    demo_data, fold_of, tmp_path
):
    """So that what is measured is what would be deployed."""
    told = age_and_sex(demo_data)
    encoder = "model.encoder={name: handcrafted, features: [shape]}"
    recipe = linear_recipe("model.covariates=[age, sex]", encoder, "fit.strength=1.0")
    vectors = study_vectors(recipe, SliceStore(told, recipe))
    assert np.isnan(vectors).any()
    found = linear_predictions(recipe, told, fold_of, *vectors)
    split = {
        "train": np.flatnonzero(fold_of != 2),
        "validation": np.empty(0, np.int64),
        "test": np.flatnonzero(fold_of == 2),
    }
    run = train(recipe, told, tmp_path / "run", splits=split, track=False, verbose=False)
    expected = run.predictions.set_index("study")["probability"]
    own = pd.Series(found.outer[:, 0], index=told.studies["study_id"])[expected.index]
    np.testing.assert_allclose(own, expected, atol=1e-4)


@pytest.fixture(params=["here", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request):
    ray = request.getfixturevalue("two_nodes") if request.param == "ray" else None
    with executor_for(2, ray) as executor:
        yield executor


def test_others_come_to_the_same_to_the_last_bit(prepared, rng, vectors, executor, tmp_path):
    """Whatever BLAS does with threads there."""
    fold_of = np.stack([rng.permutation(np.arange(len(prepared)) % FOLDS) for _ in range(2)])
    fold_of[:, 5] = -1
    wide = np.concatenate([vectors, rng.normal(size=(len(prepared), 60))], axis=1)
    wide = np.stack([wide, wide[:, ::-1]]).astype(np.float32)
    wide[:, 7] = np.nan
    given = linear_recipe(), prepared, fold_of, wide
    here = list(linear.linear_predictions(*given))
    there = list(linear.linear_predictions(*given, executor, tmp_path / "candidate"))
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.outer, other.outer)
        np.testing.assert_array_equal(one.inner, other.inner)
    assert not list((tmp_path / "candidate").iterdir()), "what they read is removed"


def test_more_threads_change_no_bit(prepared, fold_of, vectors):
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(linear_predictions(linear_recipe(), prepared, fold_of, vectors))
    np.testing.assert_array_equal(found[0].outer, found[1].outer)
    np.testing.assert_array_equal(found[0].inner, found[1].inner)


class Broken:
    """An executor all of whose workers die, or see another storage."""

    def __init__(self, sees):
        self.sees = sees

    def map(self, function, items, stand_in, **_):
        for item in items:
            yield stand_in(item) if self.sees else function(item._replace(file="/not/there"))


@pytest.mark.parametrize(
    ("sees", "words"), [(True, "ended its worker, again and again"), (False, "not see /not/there")]
)
def test_a_lost_fit_is_one_line(prepared, fold_of, vectors, tmp_path, sees, words):
    given = linear_recipe(), prepared, fold_of[None], vectors[None]
    with pytest.raises(InputError, match=words):
        list(linear.linear_predictions(*given, Broken(sees), tmp_path))
    assert not list(tmp_path.iterdir())
