"""Splits of classes that exclude each other: every split has its share of every class."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold
from study_tables import TUMOURS, assert_sound, ids, make_class_studies

from medseq_tf.dataset.class_shares import round_table, wanted_of_class
from medseq_tf.dataset.splits import (
    SPLITS,
    check_training,
    make_folds,
    make_holdout,
    missing_test_classes,
)
from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes
from medseq_tf.recipe import Split

examples = settings(max_examples=40, deadline=None)
LETTERS = tuple("abcdefgh")


def of_counts(counts, names=TUMOURS.names, **columns):
    """One patient a study, so many of each class, in mixed order."""
    called = np.repeat(np.array([*names, None], object)[: len(counts)], counts)
    return make_class_studies(np.random.default_rng(0).permutation(called), names=names, **columns)


def counted(studies, rows, names=TUMOURS.names):
    """Patients of each class among some rows."""
    return np.array([(studies.iloc[rows][f"label.{name}"] == 1).sum() for name in names])


class_counts = st.lists(st.integers(5, 40), min_size=2, max_size=8)
shares = st.sampled_from([(0.2, 0.2), (0.1, 0.1), (0.3, 0.15), (0.25, 0.0), (0.33, 0.33)])


# ----------------------------------------------------------------------------------- its share


@examples
@given(class_counts, shares, st.integers(0, 50))
def test_every_split_has_its_share_of_every_class(counts, held_out, seed):
    names = LETTERS[: len(counts)]
    studies = of_counts(counts, names)
    test, validation = held_out
    split = Split(test=test, validation=validation, seed=seed)
    rows = make_holdout(studies, split, Classes("kind", names))
    assert_sound(studies, rows)
    share_of = {"train": 1 - test - validation, "validation": validation, "test": test}
    for name, share in share_of.items():
        inside = counted(studies, rows[name], names)
        assert np.abs(inside - share * np.array(counts)).max() <= 1 + 1e-9
        if share:
            assert inside.min() >= 1
    low_shares_are_raised = min(test, validation or 1) * min(counts) < 1
    if not low_shares_are_raised:
        for name, share in share_of.items():
            assert abs(len(rows[name]) - share * len(studies)) < 1 + 1e-9


@examples
@given(class_counts, st.integers(2, 5), st.integers(0, 50))
def test_folds_have_the_counts_of_stratified_k_fold(counts, k, seed):
    names = LETTERS[: len(counts)]
    studies = of_counts(counts, names)
    number = studies[[f"label.{name}" for name in names]].to_numpy().argmax(axis=1)
    reference = StratifiedKFold(k, shuffle=True, random_state=seed).split(number, number)
    expected = [np.bincount(number[test], minlength=len(names)) for _, test in reference]
    folds = make_folds(studies, k, Split(seed=seed), classes=Classes("kind", names))
    found = [counted(studies, fold["test"], names) for fold in folds]
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(expected, axis=0))
    assert {len(fold["test"]) for fold in folds} <= {sum(counts) // k, -(-sum(counts) // k)}
    for fold in folds:
        assert_sound(studies, fold)
        others = np.array(counts) - counted(studies, fold["test"], names)
        validation = counted(studies, fold["validation"], names)
        assert np.abs(validation - 0.2 * others).max() <= 1


def test_many_small_classes_take_nothing_from_the_largest():
    names = tuple("abcdefghij")
    studies = of_counts([6] * 9 + [50], names)
    rows = make_holdout(studies, Split(), Classes("kind", names))
    assert [len(rows[name]) for name in SPLITS] == pytest.approx([62.4, 20.8, 20.8], abs=1)
    assert [counted(studies, rows[name], names)[-1] for name in SPLITS] == [30, 10, 10]


def test_studies_of_unknown_class_are_shared_out_too():
    studies = of_counts([20, 20, 20, 30])
    rows = make_holdout(studies, Split(), TUMOURS)
    for name, count in {"train": 18, "validation": 6, "test": 6}.items():
        assert studies.iloc[rows[name]]["label.glioma"].isna().sum() == count


# --------------------------------------------------------------------------- depends on nothing


@st.composite
def cohorts(draw):
    """Several studies a patient, perhaps of two classes, shared slices, unknown classes."""
    patients = draw(st.integers(24, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    owners = np.concatenate([np.arange(patients), rng.integers(patients, size=12)])
    called = np.array(TUMOURS.names, object)[np.arange(patients) % 3][owners]
    called[rng.random(len(called)) < 0.05] = "glioma"
    called[rng.random(len(called)) < 0.05] = None
    hashes = [[f"own {i}"] for i in range(len(owners))]
    for copy in range(draw(st.integers(0, 5))):
        for row in rng.choice(len(owners), 2, replace=False):
            hashes[row] = [*hashes[row], f"copy {copy}"]
    return make_class_studies(called, owners, hashes)


@examples
@given(cohorts(), st.integers(0, 50))
def test_splits_of_any_cohort_are_sound_and_teach_every_class(studies, seed):
    folds = make_folds(studies, 3, Split(seed=seed), classes=TUMOURS)
    assert sorted(np.concatenate([rows["test"] for rows in folds])) == list(range(len(studies)))
    for rows in [make_holdout(studies, Split(seed=seed), TUMOURS), *folds]:
        assert_sound(studies, rows)
        assert counted(studies, rows["train"]).min() > 0
        check_training(studies, rows, TUMOURS)


@examples
@given(cohorts(), st.integers(0, 50))
def test_neither_the_order_of_rows_nor_names_nor_order_of_classes_matter(studies, seed):
    shuffled = studies.sample(frac=1, random_state=seed)
    old, new = TUMOURS.names, ("zeta", "alpha", "mu")
    renamed = studies.rename(
        columns={f"label.{a}": f"label.{b}" for a, b in zip(old, new, strict=True)}
    )
    others = [column for column in renamed if not column.startswith("label.")]
    turned = renamed[[*others, *(f"label.{name}" for name in sorted(new))]]
    renamed_classes = Classes("diagnosis", tuple(sorted(new)))
    split = Split(seed=seed)
    for other, classes in ((shuffled, TUMOURS), (turned, renamed_classes)):
        assert ids(studies, make_holdout(studies, split, TUMOURS)) == ids(
            other, make_holdout(other, split, classes)
        )
        folds = make_folds(studies, 3, split, classes=TUMOURS)
        same = make_folds(other, 3, split, classes=classes)
        assert [ids(studies, rows) for rows in folds] == [ids(other, rows) for rows in same]


def test_the_seed_decides_who():
    studies = of_counts([20, 20, 20])
    tested = [ids(studies, make_holdout(studies, Split(seed=s), TUMOURS)) for s in (1, 1, 2)]
    assert tested[0] == tested[1] != tested[2]


# ------------------------------------------------------------------------------------ too few


def test_a_class_of_few_patients_is_trained_on_first():
    studies = of_counts([1, 2, 30])
    for seed in range(5):
        rows = make_holdout(studies, Split(test=0.3, validation=0.3, seed=seed), TUMOURS)
        assert counted(studies, rows["train"]).min() == 1
        notes = missing_test_classes(studies, rows, TUMOURS)
        assert (
            "glioma: the test split has no such patient, so its ranking cannot be evaluated"
            in notes
        )


@pytest.mark.parametrize(
    ("counts", "folds", "message"),
    [
        ([0, 20, 20], None, r"class 'glioma' has 0 patients, too few for train, validation and"),
        ([1, 20, 20], 5, r"class 'glioma' has 1 patient, too few for 5 folds: at least 2 are n"),
        ([20, 20, 0, 20], 2, r"class 'pituitary' has 0 patients.*join the class with another"),
        ([2, 2, 2], 9, "6 patients are too few for 9 folds"),
    ],
)
def test_too_few_patients_of_a_class_are_named(counts, folds, message):
    studies = of_counts(counts)
    make = make_holdout if folds is None else partial(make_folds, k=folds)
    with pytest.raises(InputError, match=message) as error:
        make(studies, split=Split(), classes=TUMOURS)
    assert "label" not in str(error.value)
    assert "positive" not in str(error.value)


def test_two_patients_of_a_class_are_enough_for_folds():
    studies = of_counts([2, 20, 20])
    for rows in make_folds(studies, 5, Split(), classes=TUMOURS):
        assert counted(studies, rows["train"]).min() >= 1


def test_a_given_training_split_without_a_class_is_refused_by_its_name():
    called = ["glioma", "meningioma"] * 5 + ["pituitary"] * 4
    studies = make_class_studies(called, split=["train"] * 10 + ["test"] * 4)
    rows = make_holdout(studies, Split(validation=0), TUMOURS)
    with pytest.raises(InputError, match=r"has no patient of class 'pituitary', of which nothing"):
        check_training(studies, rows, TUMOURS)


def test_a_test_split_of_one_class_says_that_nothing_can_be_ranked():
    called = ["glioma", "meningioma", "pituitary"] * 4 + ["glioma"] * 4
    studies = make_class_studies(called, split=["train"] * 12 + ["test"] * 4)
    notes = missing_test_classes(studies, make_holdout(studies, Split(), TUMOURS), TUMOURS)
    assert [note.split(":")[0] for note in notes] == ["meningioma", "pituitary", "glioma"]
    assert "no patient of another class" in notes[-1]


# ------------------------------------------------------------------------------------ rounding


@examples
@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**16))
def test_a_table_is_rounded_with_its_sums(rows, columns, seed):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(columns), rows) * rng.integers(0, 30, rows)[:, None]
    rounded = round_table(table, rng)
    assert np.abs(rounded - table).max() < 1
    np.testing.assert_array_equal(rounded.sum(axis=1), np.rint(table.sum(axis=1)))
    assert np.abs(rounded.sum(axis=0) - table.sum(axis=0)).max() < 1 + 1e-6


def test_a_class_wants_its_share_and_one_if_possible():
    shares = np.array([0.8, 0.1, 0.1])
    np.testing.assert_allclose(wanted_of_class(100, shares), [80, 10, 10])
    np.testing.assert_allclose(wanted_of_class(4, shares), [2, 1, 1])
    np.testing.assert_allclose(wanted_of_class(2, shares), [1.6, 0.2, 0.2])
    thirds = np.array([0.3, 0.4, 0.3])
    np.testing.assert_allclose(wanted_of_class(1, thirds, train=0), [1, 0, 0])
    np.testing.assert_allclose(wanted_of_class(2, thirds, train=0), [1, 4 / 7, 3 / 7])
    np.testing.assert_allclose(wanted_of_class(0, thirds, train=0), [0, 0, 0])
