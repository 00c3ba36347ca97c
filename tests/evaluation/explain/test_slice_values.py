"""Banzhaf values: those of the definition, with intervals that hold them where they are sampled."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medseq_tf.evaluation.explain import slice_values
from medseq_tf.evaluation.explain.slice_values import banzhaf, not_told_apart


def by_definition(worth, slices, base_value):
    """The mean of what each slice adds over all subsets of the others, one by one."""
    found = []
    for slice_ in range(slices):
        others = [other for other in range(slices) if other != slice_]
        added = []
        for count in range(slices):
            for subset in itertools.combinations(others, count):
                before = worth(set(subset)) if subset else base_value
                added.append(worth({*subset, slice_}) - before)
        found.append(np.mean(added))
    return np.array(found)


def game(worth):
    """Tell what is predicted for subsets, and refuse that of no slice as models do."""

    def predict(subsets):
        assert subsets.any(axis=1).all()
        return np.array([[worth(set(np.flatnonzero(subset)))] for subset in subsets], float)

    return predict


def values(worth, slices, base, seed=0):
    found = banzhaf(game(worth), slices, np.array([base]), np.random.default_rng(seed))
    return found.values[:, 0]


def test_one_slice_adds_its_prediction_to_the_base_value():
    np.testing.assert_allclose(values(lambda subset: 0.9, 1, 0.3), [0.6])


def test_two_slices_each_enough_alone_share_what_they_add():
    """1 - 0.2 beside nothing, 0 beside the other: 0.4 on average."""
    np.testing.assert_allclose(values(lambda subset: 1.0, 2, 0.2), [0.4, 0.4])


def test_two_slices_both_needed_share_as_well():
    """From 0.2 alone the one loses 0.2 to the prediction 0, beside the other it adds 1."""
    np.testing.assert_allclose(values(lambda subset: float(len(subset) == 2), 2, 0.2), [0.4, 0.4])


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 7])
def test_they_are_those_of_the_definition(slices):
    table = np.random.default_rng(slices).random(2**slices)
    worth = lambda subset: table[sum(2**i for i in subset)]  # noqa: E731
    expected = by_definition(worth, slices, 0.37)
    np.testing.assert_allclose(values(worth, slices, 0.37), expected, atol=1e-12)


def test_up_to_ten_slices_every_subset_is_shown_once():
    seen = []

    def predict(subsets):
        seen.extend(map(tuple, subsets.tolist()))
        return np.zeros((len(subsets), 1))

    found = banzhaf(predict, 10, np.zeros(1), np.random.default_rng(0))
    assert len(seen) == len(set(seen)) == found.subsets == 2**10 - 1
    assert not found.covariance.any()


def voters(seed, slices, labels=1):
    """A game whose prediction is a logistic function of slices and of pairs of them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1.2, (labels, slices))
    pairs = rng.normal(0, 0.4, (labels, slices, slices))

    def predict(subsets):
        logits = subsets @ weights.T + np.einsum("pi,lij,pj->pl", subsets, pairs, subsets) - 0.5
        return 1 / (1 + np.exp(-logits))

    return predict


def exactly(predict, slices, base):
    every = (np.arange(2**slices)[:, None] >> np.arange(slices)) % 2 == 1
    worth = np.concatenate([base[None], predict(every[1:])])
    return np.where(every, 1, -1).T @ worth / 2 ** (slices - 1)


def test_the_intervals_of_sampled_values_cover_them():
    """95% intervals, after as many looks as it took, over 12 games of 14 slices and 30 draws."""
    covered, wrong, unsure = [], [], 0
    for seed in range(12):
        predict, base = voters(seed, 14), np.array([0.4])
        truth = exactly(predict, 14, base)[:, 0]
        for draw in range(30):
            found = banzhaf(predict, 14, base, np.random.default_rng([draw, seed]))
            column, matrix = found.values[:, 0], found.covariance[0]
            covered.append(np.abs(column - truth) <= 1.96 * np.sqrt(np.diag(matrix)))
            rivals = not_told_apart(column, matrix)
            unsure += len(rivals) > 0
            wrong.append(np.argmax(truth) not in {np.argmax(column), *rivals})
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(wrong) < 0.02
    assert 0 < unsure < 0.6 * len(wrong)


def test_subsets_are_shown_until_the_first_slice_is_told_apart():
    def clear(subsets):
        return 0.5 * subsets[:, :1] + 0.1 * subsets[:, 1:2] * subsets[:, 2:3]

    def narrow(subsets):
        return 0.5 * (subsets[:, :3].all(1) | subsets[:, 3:6].all(1))[:, None]

    few = banzhaf(clear, 14, np.zeros(1), np.random.default_rng(0))
    many = banzhaf(narrow, 14, np.zeros(1), np.random.default_rng(0))
    assert few.subsets == slice_values.FIRST_SUBSETS
    assert many.subsets == slice_values.MOST_SUBSETS
    assert len(not_told_apart(few.values[:, 0], few.covariance[0])) == 0
    rivals = not_told_apart(many.values[:, 0], many.covariance[0])
    assert {int(np.argmax(many.values)), *rivals} == set(range(6))


def test_one_seed_one_result_and_another_one_another():
    predict, base = voters(0, 15, labels=2), np.array([0.3, 0.6])
    first, again, other = (
        banzhaf(predict, 15, base, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.values != other.values).all()
    error = np.sqrt(np.diagonal(first.covariance, axis1=1, axis2=2)).T
    assert (np.abs(first.values - other.values) < 6 * error).all()


def test_slices_of_equal_value_are_not_told_apart():
    equal = np.array([0.2, 0.5, 0.5, 0.1])
    assert not_told_apart(equal, np.zeros((4, 4))).tolist() == [2]
    assert not_told_apart(equal[[0, 1, 3]], np.zeros((3, 3))).tolist() == []


def test_every_subset_is_shown_where_that_is_no_more_than_drawing_on():
    narrow = lambda subsets: 0.5 * (subsets[:, :3].all(1) | subsets[:, 3:6].all(1))[:, None]  # noqa: E731
    found = banzhaf(narrow, 11, np.zeros(1), np.random.default_rng(0))
    assert found.subsets == 2**11 - 1
    np.testing.assert_allclose(found.values, exactly(narrow, 11, np.zeros(1)), atol=1e-12)
