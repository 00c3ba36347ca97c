"""The linear head that is solved, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medseq_tf.training import linear_head
from medseq_tf.training.linear_head import STRENGTHS, fit_linear


def cohort(rng, studies=60, features=200, classes=2):
    """Vectors of few directions and noise, of different scales, and the class of each study."""
    kind = np.arange(studies) % classes
    directions = rng.normal(size=(studies, 4))
    directions[:, 0] += kind
    vectors = directions @ rng.normal(size=(4, features)) + rng.normal(size=(studies, features))
    vectors = vectors * rng.uniform(0.01, 10, features) + rng.normal(0, 5, features)
    return vectors.astype("float32"), kind


def patients(studies):
    return np.array([f"p{number:03d}" for number in range(studies)])


def reference(vectors, kind, strength, known=None, class_weight=None):
    """The probabilities by scikit-learn, of vectors standardised by all of them."""
    standardised = StandardScaler().fit_transform(vectors.astype("float64"))
    known = np.ones(len(kind), bool) if known is None else known
    model = LogisticRegression(C=strength, class_weight=class_weight, tol=1e-9, max_iter=10_000)
    model.fit(standardised[known], kind[known])
    return model.predict_proba(standardised)


@pytest.mark.parametrize("features", [7, 200], ids=["few features", "many features"])
@pytest.mark.parametrize("strength", [1e-4, 0.01, 1.0, 100.0])
def test_the_fit_of_a_label_is_that_of_scikit_learn(rng, features, strength):
    vectors, kind = cohort(rng, features=features)
    fit = fit_linear(vectors, kind[:, None], "labels", patients(60), strength)
    assert fit.strength == (strength,)
    expected = reference(vectors, kind, strength)[:, 1:]
    np.testing.assert_allclose(fit.probabilities(vectors), expected, atol=1e-5)
    np.testing.assert_allclose(expit(fit.logits(vectors)), expected, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("features", [7, 200], ids=["few features", "many features"])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_fit_of_classes_is_that_of_scikit_learn(rng, features, strength, count):
    vectors, kind = cohort(rng, features=features, classes=count)
    fit = fit_linear(vectors, np.eye(count)[kind], "classes", patients(60), strength)
    expected = reference(vectors, kind, strength)
    np.testing.assert_allclose(fit.probabilities(vectors), expected, atol=1e-5)


def test_each_label_is_fitted_to_the_studies_of_which_it_is_known(rng):
    vectors, kind = cohort(rng)
    labels = np.stack([kind, rng.integers(0, 2, 60)], 1).astype(float)
    labels[:20, 1] = np.nan
    fit = fit_linear(vectors, labels, "labels", patients(60), 0.01)
    for number, known in enumerate([np.arange(60) >= 0, np.arange(60) >= 20]):
        expected = reference(vectors, labels[:, number], 0.01, known)[:, 1]
        np.testing.assert_allclose(fit.probabilities(vectors)[:, number], expected, atol=1e-5)


def test_a_study_of_an_unknown_class_teaches_nothing(rng):
    vectors, kind = cohort(rng, classes=3)
    classes, known = np.eye(3)[kind], np.arange(60) >= 20
    classes[~known] = np.nan
    fit = fit_linear(vectors, classes, "classes", patients(60), 0.01)
    expected = reference(vectors, kind, 0.01, known)
    np.testing.assert_allclose(fit.probabilities(vectors), expected, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_balanced_weights_are_those_of_the_loss(rng, count):
    vectors, kind = cohort(rng, classes=count)
    kind[:15] = 0
    fit = fit_linear(vectors, np.eye(count)[kind], "classes", patients(60), 0.01, "balanced")
    expected = reference(vectors, kind, 0.01, class_weight="balanced")
    np.testing.assert_allclose(fit.probabilities(vectors), expected, atol=1e-5)
    of_label = fit_linear(vectors, (kind == 0)[:, None], "labels", patients(60), 0.01, "balanced")
    ratio = {0: 1.0, 1: (kind != 0).sum() / (kind == 0).sum()}
    expected = reference(vectors, (kind == 0).astype(int), 0.01, class_weight=ratio)[:, 1:]
    np.testing.assert_allclose(of_label.probabilities(vectors), expected, atol=1e-5)


def test_features_that_do_not_vary_count_for_nothing(rng):
    vectors, kind = cohort(rng)
    constant = np.tile(np.float32([0.0, 3.0, -1e20]), (60, 1))
    more = np.concatenate([constant, vectors], axis=1)
    fit = fit_linear(more, kind[:, None], "labels", patients(60))
    assert not fit.kernel[:3].any()
    alone = fit_linear(vectors, kind[:, None], "labels", patients(60))
    assert fit.strength == alone.strength
    np.testing.assert_allclose(fit.probabilities(more), alone.probabilities(vectors), atol=1e-9)


def test_vectors_that_are_all_the_same_leave_the_share_of_each_class():
    kind = np.arange(60) % 3 % 2
    fit = fit_linear(np.ones((60, 4)), kind[:, None], "labels", patients(60))
    np.testing.assert_allclose(fit.probabilities(np.ones((2, 4))), 1 / 3, atol=1e-6)


# -------------------------------------------------------------------- the strength by itself


def left_out_loss(vectors, classes, folds, strength):
    """The log loss of the studies that are left out, by scikit-learn, standardised once."""
    kind, standardised = classes.argmax(1), StandardScaler().fit_transform(vectors.astype(float))
    losses = []
    for fold in range(folds.max() + 1):
        out = folds == fold
        model = LogisticRegression(C=strength, tol=1e-5, max_iter=10_000)
        model.fit(standardised[~out], kind[~out])
        scores = log_softmax(model.predict_log_proba(standardised[out]), axis=1)
        losses.append(-scores[np.arange(out.sum()), kind[out]])
    return np.concatenate(losses).sum()


@pytest.mark.parametrize("count", [2, 3])
def test_the_strength_has_the_least_loss_of_patients_left_out_and_the_best_prior(rng, count):
    vectors, kind = cohort(rng, features=100, classes=count)
    by_kind = np.argsort(kind, kind="stable")
    vectors, kind, owners = vectors[by_kind], kind[by_kind], np.repeat(patients(30), 2)
    classes = np.eye(count)[kind]
    fit = fit_linear(vectors, classes, "classes", owners, seed=3)
    folds = linear_head._inner_folds(kind, owners, seed=3)
    losses = [left_out_loss(vectors, classes, folds, c) for c in STRENGTHS / 100]
    prior = stats.norm.logpdf(np.log10(STRENGTHS), loc=0.5, scale=0.5)
    (strength,) = fit.strength
    assert strength == pytest.approx(STRENGTHS[np.argmin(losses - prior)] / 100)
    fixed = fit_linear(vectors, classes, "classes", owners, strength)
    np.testing.assert_array_equal(fit.kernel, fixed.kernel)


def test_few_patients_leave_the_strength_near_the_default_and_many_do_not(rng):
    def chosen(studies):
        vectors, kind = rng.normal(size=(studies, 50)), np.arange(studies) % 2
        fit = fit_linear(vectors, kind[:, None], "labels", patients(studies))
        return fit.strength[0] * 50

    assert 0.5 < np.exp(np.mean([np.log(chosen(16)) for _ in range(20)])) < 5
    assert chosen(900) == pytest.approx(STRENGTHS[0]), "noise"


def test_inner_folds_keep_patients_whole_and_classes_shared_out(rng):
    owners = rng.permutation(np.repeat(patients(43), 2))
    kind = np.array([int(name[1:]) % 3 for name in owners])
    kind[owners == "p001"] = -1
    folds = linear_head._inner_folds(kind, owners, seed=0)
    of_patient = {name: set(folds[owners == name]) for name in owners}
    assert all(len(held) == 1 for held in of_patient.values())
    assert of_patient["p001"] == {-1}
    for number in range(3):
        counts = np.bincount(folds[kind == number], minlength=5)
        assert np.ptp(counts) <= 2, "two studies a patient"
    again = linear_head._inner_folds(kind, owners, seed=0)
    np.testing.assert_array_equal(folds, again)
    assert (linear_head._inner_folds(kind, owners, seed=1) != folds).any()


def test_the_only_patient_of_a_class_is_never_left_out(rng):
    kind = np.array([0] * 10 + [1] * 3 + [2])
    folds = linear_head._inner_folds(kind, patients(14), seed=0)
    assert folds[-1] == -1
    assert (folds[:-1] >= 0).all()
    assert len(set(folds[10:13])) == 3, "no fold leaves out all that is known of a class"
    vectors, _ = cohort(rng, studies=14, classes=3)
    fit = fit_linear(vectors, np.eye(3)[kind], "classes", patients(14))
    assert np.isfinite(fit.kernel).all()
    assert np.isclose(fit.strength[0] * 200, STRENGTHS).any()


def test_sites_of_all_classes_are_left_out_whole(rng):
    sites, kind = np.repeat(["a", "b", "c", "d", "e", "f", "g"], 10), rng.integers(0, 2, 70)
    kind[:10], kind[10:20] = 0, -1
    folds = linear_head._inner_folds(kind, sites, seed=0)
    assert all(len(set(folds[sites == site])) == 1 for site in sites)
    assert (folds[10:20] == -1).all(), "nothing is known of the site"
    assert set(folds) == {-1, 0, 1, 2, 3, 4}
    only_here = np.where(sites == "c", 2, kind)
    folds = linear_head._inner_folds(only_here, sites, seed=0)
    assert set(folds[sites == "c"]) == {-1}, "nobody else is of the class"
    assert linear_head._inner_folds(kind[20:40], sites[20:40], seed=0) is not None
    assert linear_head._inner_folds(kind[20:30], sites[20:30], seed=0) is None


@pytest.mark.parametrize("kind", [[0, 1], [0, 0, 0, 0, 1], [0, 1, 2]])
def test_too_few_patients_give_the_default_strength(rng, kind):
    vectors, _ = cohort(rng, studies=len(kind), classes=3)
    fit = fit_linear(vectors, np.eye(3)[kind], "classes", patients(len(kind)))
    assert fit.strength == pytest.approx((10**0.5 / 200,))
    assert np.isfinite(fit.probabilities(vectors)).all()
    np.testing.assert_allclose(fit.probabilities(vectors).sum(1), 1)


@pytest.mark.parametrize("strength", ["auto", 0.01])
def test_a_class_without_a_study_gets_half_a_studys_share(rng, strength):
    vectors, kind = cohort(rng, classes=3)
    classes = np.zeros((60, 5))
    classes[np.arange(60), 2 * kind] = 1
    fit = fit_linear(vectors, classes, "classes", patients(60), strength)
    found = fit.probabilities(vectors)
    assert (found[:, [1, 3]] < 0.02).all()
    np.testing.assert_allclose(np.exp(np.log(found[:, 1]).mean()), 0.5 / 61, rtol=0.02)
    expected = reference(vectors, kind, fit.strength[0])
    among = found[:, [0, 2, 4]] / found[:, [0, 2, 4]].sum(1, keepdims=True)
    np.testing.assert_allclose(among, expected, atol=1e-5)


def test_a_label_of_which_one_side_is_known_gets_half_a_study_of_the_other(rng):
    vectors, _ = cohort(rng, studies=9)
    labels = np.array([[1.0, 0.0, np.nan]] * 9)
    fit = fit_linear(vectors, labels, "labels", patients(9))
    assert not fit.kernel.any()
    np.testing.assert_allclose(fit.probabilities(vectors[:1]), [[0.95, 0.05, 0.5]])
    one_class = fit_linear(vectors, np.eye(3)[[1] * 9], "classes", patients(9))
    shares = np.array([0.5, 9.0, 0.5]) / 10
    np.testing.assert_allclose(one_class.probabilities(vectors[:1]), shares[None])
    unknown = fit_linear(vectors, np.full((9, 3), np.nan), "classes", patients(9))
    np.testing.assert_allclose(unknown.probabilities(vectors[:1]), 1 / 3)
