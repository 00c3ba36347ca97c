"""The whole procedure on patients who took part in none of its choices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.automl.procedure import CandidatePredictions, procedure

STUDIES, FOLDS = 48, 4


class Named(NamedTuple):
    name: str
    complexity: int = 0
    kind: str = "linear"
    role: str = "candidate"


CANDIDATES = [Named("a", 0), Named("b", 1), Named("c", 2), Named("net", 5, "network")]


def a_cohort(seed, strength=1.0, repeats=2, names="a b c net"):
    """Truth, patients of two studies each, folds, and predictions of some strength."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(STUDIES) // 2 % 2).astype(float)[:, None]
    patients = np.arange(STUDIES) // 2
    of_patient = np.stack([_stratified(rng) for _ in range(repeats)])
    fold_of = of_patient[:, patients]

    def told(shape):
        logits = strength * rng.random() * (2 * truth - 1) + rng.normal(size=shape)
        return 1 / (1 + np.exp(-logits))

    predictions = []
    for repeat in range(repeats):
        own = {}
        for name in names.split():
            inner = told((FOLDS, STUDIES, 1))
            inner[fold_of[repeat], np.arange(STUDIES)] = np.nan
            own[name] = CandidatePredictions(told((STUDIES, 1)), inner)
        predictions.append(own)
    return truth, patients, fold_of, predictions


def _stratified(rng):
    folds = np.empty(STUDIES // 2, int)
    for kind in (0, 1):
        of_kind = np.flatnonzero(np.arange(STUDIES // 2) % 2 == kind)
        folds[of_kind] = rng.permutation(len(of_kind)) % FOLDS
    return folds


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, FOLDS - 1))
def test_a_folds_own_patients_decide_nothing_in_it(seed, fold):
    truth, patients, fold_of, predictions = a_cohort(seed)
    before = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    own = fold_of[0] == fold
    rng = np.random.default_rng(seed + 1)
    other_truth = np.where(own[:, None], 1 - truth, truth)
    for one in predictions[0].values():
        one.inner[fold, own] = rng.random((own.sum(), 1))
        one.outer[own] = rng.random((own.sum(), 1))
    after = procedure(other_truth, patients, fold_of, predictions, CANDIDATES, "labels")
    assert after.choices[0][fold] == before.choices[0][fold]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_patients_and_candidates_changes_nothing(seed):
    truth, patients, fold_of, predictions = a_cohort(seed)
    before = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    order = np.random.default_rng(seed).permutation(STUDIES)
    shuffled = [
        {
            name: CandidatePredictions(own[name].outer[order], own[name].inner[:, order])
            for name in reversed(own)
        }
        for own in predictions
    ]
    after = procedure(
        truth[order], patients[order], fold_of[:, order], shuffled, CANDIDATES[::-1], "labels"
    )
    np.testing.assert_allclose(after.outer, before.outer[:, order], rtol=1e-12)
    assert after.final.weights == pytest.approx(before.final.weights)
    assert after.auroc.value == pytest.approx(before.auroc.value)


def test_every_study_is_predicted_by_what_its_own_fold_chose():
    truth, patients, fold_of, predictions = a_cohort(3)
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    for repeat, own in enumerate(predictions):
        for study in range(STUDIES):
            weights = found.choices[repeat][fold_of[repeat, study]].weights
            mean = sum(share * own[name].outer[study] for name, share in weights.items())
            np.testing.assert_allclose(found.outer[repeat, study], mean)


def test_repeats_count_in_which_all_candidates_are_whole():
    truth, patients, fold_of, predictions = a_cohort(0)
    del predictions[1]["net"]
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    assert np.isfinite(found.outer[0]).all()
    assert np.isnan(found.outer[1]).all()
    assert [len(choices) for choices in found.choices] == [FOLDS, 0]
    del predictions[0]["net"]
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    assert np.isfinite(found.outer).all()


def test_a_candidate_that_is_whole_in_no_repeat_does_not_compete():
    truth, patients, fold_of, predictions = a_cohort(0)
    for own in predictions:
        own["b"].outer[5] = np.nan
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    assert np.isfinite(found.outer).all()
    names = {score.name for of in found.choices for choice in of for score in choice.scores}
    assert "b" not in names
    assert {"a", "c"} <= names
    with pytest.raises(ValueError, match="no repeat"):
        procedure(truth, patients, fold_of, predictions, [Named("b")], "labels")


def test_a_reference_competes_in_no_fold():
    truth, patients, fold_of, predictions = a_cohort(0)
    for own in predictions:
        own["scanner"] = CandidatePredictions(truth, np.tile(truth, (FOLDS, 1, 1)))
    candidates = [*CANDIDATES, Named("scanner", -1, role="reference")]
    before = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    after = procedure(truth, patients, fold_of, predictions, candidates, "labels")
    np.testing.assert_array_equal(after.outer, before.outer)


def test_where_nothing_beats_chance_nothing_is_deployed_and_the_best_linear_one_is_named():
    truth, patients, fold_of, predictions = a_cohort(1, strength=0.0)
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    assert found.auroc.low <= 0.5
    assert found.final.weights == {}
    assert found.final.reason.startswith("nothing beats chance")
    assert found.linear.weights
    assert "net" not in found.linear.weights


def test_what_is_clear_is_deployed():
    truth, patients, fold_of, predictions = a_cohort(1, strength=6.0)
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "labels")
    assert found.auroc.low > 0.5
    assert sum(found.final.weights.values()) == pytest.approx(1)


def test_classes_are_chosen_among_alike():
    rng = np.random.default_rng(0)
    numbers = np.arange(STUDIES) % 3
    truth, patients = np.eye(3)[numbers], np.arange(STUDIES)
    fold_of = (np.arange(STUDIES) // 3 % FOLDS)[None]

    def told(strength, shape):
        odds = np.exp(strength * truth + rng.normal(size=shape))
        return odds / odds.sum(axis=-1, keepdims=True)

    predictions = [
        {
            name: CandidatePredictions(
                told(strength, (STUDIES, 3)), told(strength, (FOLDS, STUDIES, 3))
            )
            for name, strength in (("a", 0.2), ("b", 3.0))
        }
    ]
    found = procedure(truth, patients, fold_of, predictions, CANDIDATES, "classes")
    np.testing.assert_allclose(found.outer.sum(axis=-1), 1)
    assert found.final.weights.get("b", 0) > 0.8
    assert found.auroc.low > 0.5
