"""Splits of whole sites and by date: nothing is parted, and the shares are as near as can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_tables import TUMOURS, assert_sound, ids, make_class_studies, make_studies

from medseq_tf.dataset.splits import SPLITS, make_folds, make_holdout, missing_test_classes
from medseq_tf.dataset.whole_groups import place_by_date, place_whole
from medseq_tf.errors import InputError
from medseq_tf.recipe import Split

examples = settings(max_examples=10, deadline=None)
SITES = Split(by="site")
DATES = Split(by="date")
LETTERS = np.array([f"site {letter}" for letter in "ABCDEFGHIJKL"], object)


@st.composite
def hospitals(draw, classes=True):
    """Patients of several sites of unequal size, some with two studies or a shared slice."""
    sites = draw(st.integers(6, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    patients = np.repeat(np.arange(sites * 8), rng.integers(1, 3, sites * 8))
    site = LETTERS[rng.permutation(np.arange(sites * 8) % sites)[patients]]
    first_too = rng.random(len(site)) < 0.3
    site = np.where(first_too, LETTERS[0], site) if draw(st.booleans()) else site
    site = site[np.searchsorted(patients, patients)]  # a patient is at one site
    hashes = [[f"own {i}"] for i in range(len(patients))]
    if draw(st.booleans()):
        for row in rng.choice(len(patients), 2, replace=False):
            hashes[row] = [*hashes[row], "copy"]
    if classes:
        called = np.array(TUMOURS.names, object)[patients % 3]
        return make_class_studies(called, patients, hashes, site=site)
    return make_studies(patients % 2, patients, hashes).assign(site=site)


def parts_of(studies, rows, column="site"):
    return {name: set(studies[column].iloc[part]) for name, part in rows.items()}


# --------------------------------------------------------------------------------- whole sites


@examples
@given(hospitals(), st.integers(0, 20))
def test_no_site_is_in_two_splits(studies, seed):
    split = Split(by="site", seed=seed)
    for rows in [
        make_holdout(studies, split, TUMOURS),
        *make_folds(studies, 3, split, classes=TUMOURS),
    ]:
        assert_sound(studies, rows)
        parts = parts_of(studies, rows)
        assert all(parts.values())
        assert all(not a & b for a, b in itertools.combinations(parts.values(), 2))


@examples
@given(hospitals(classes=False), st.integers(0, 20))
def test_sites_of_one_label_stay_whole_whatever_the_order_of_rows(studies, seed):
    shuffled = studies.sample(frac=1, random_state=seed)
    rows = make_holdout(studies, SITES)
    assert_sound(studies, rows)
    assert ids(studies, rows) == ids(shuffled, make_holdout(shuffled, SITES))
    folds = make_folds(studies, 4, SITES)
    tested = [parts_of(studies, fold)["test"] for fold in folds]
    assert set.union(*tested) == set(studies["site"])
    assert sum(map(len, tested)) == studies["site"].nunique()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("train", [0, -1])
def test_no_other_division_of_the_sites_is_nearer_to_the_shares(seed, train):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(1, 12, (7, 2))
    sizes, shares = kinds.sum(axis=1), np.array([0.6, 0.2, 0.2]) if train == 0 else np.ones(3) / 3

    def far(places):
        total = 0.0
        for split, share in enumerate(shares):
            inside = np.asarray(places) == split
            if not inside.any():
                return np.inf
            held = kinds[inside].sum(axis=0) / kinds.sum(axis=0)
            total += (sizes[inside].sum() / sizes.sum() - share) ** 2
            total += ((held - share) ** 2).mean()
        return total

    best = min(map(far, itertools.product(range(3), repeat=len(sizes))))
    assert far(place_whole(kinds, sizes, shares, rng, train)) == pytest.approx(best)


def test_equal_sites_are_divided_evenly_with_every_class_in_every_split():
    site = np.repeat(LETTERS[:10], 6)
    studies = make_class_studies(list(TUMOURS.names) * 20, site=site)
    rows = make_holdout(studies, SITES, TUMOURS)
    assert [len(parts_of(studies, rows)[name]) for name in SPLITS] == [6, 2, 2]
    for fold in make_folds(studies, 5, SITES, classes=TUMOURS):
        assert len(fold["test"]) == 12


def test_training_gets_the_site_that_alone_has_a_class():
    called = ["glioma", "meningioma"] * 15 + ["pituitary"] * 6
    site = [*np.repeat(LETTERS[:5], 6), *[LETTERS[5]] * 6]
    studies = make_class_studies(called, site=site)
    for seed in range(5):
        rows = make_holdout(studies, Split(by="site", seed=seed), TUMOURS)
        assert LETTERS[5] in parts_of(studies, rows)["train"]
        assert missing_test_classes(studies, rows, TUMOURS) == [
            "pituitary: the test split has no such patient, so its ranking cannot be evaluated"
        ]
    with pytest.raises(InputError, match=r"training outside fold . would have no patient of class"):
        make_folds(studies, 3, SITES, classes=TUMOURS)


def test_sites_that_share_a_patient_are_one():
    studies = make_class_studies(list(TUMOURS.names) * 8, site=np.repeat(LETTERS[:4], 6))
    studies.loc[6, "patient_id"] = studies.loc[0, "patient_id"]
    linked = {"site A", "site B"}
    rows = make_holdout(studies, SITES, TUMOURS)
    assert all(len(part & linked) != 1 for part in parts_of(studies, rows).values())
    folds = make_folds(studies, "site", Split(), classes=TUMOURS)
    tested = [parts_of(studies, rows)["test"] for rows in folds]
    assert tested == [linked, {"site C"}, {"site D"}]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (None, "has no site of its studies.*prepare it again with --site COLUMN"),
        ([None] * 24, "has no site of its studies"),
        (["A"] * 12 + ["B"] * 12, "2 sites are too few for train, validation and test: at least 3"),
        (["A"] * 24, "1 site is too few for train, validation and test.*split.by=patient"),
        (["A"] * 10 + ["B"] * 10 + [None] * 4, "4 of 24 studies have no site, first study0020"),
    ],
)
def test_sites_that_cannot_be_divided(site, message):
    studies = make_class_studies(list(TUMOURS.names) * 8)
    studies = studies if site is None else studies.assign(site=site)
    with pytest.raises(InputError, match=message) as error:
        make_holdout(studies, SITES, TUMOURS)
    assert "\n" not in str(error.value)


def test_a_study_without_a_site_is_where_the_patient_has_others():
    patients = np.arange(24) // 2
    site = np.repeat(np.array(["A", "B", "C"], object), 8)
    site[1::4] = None
    studies = make_class_studies(np.repeat(TUMOURS.names * 4, 2), patients, site=site)
    rows = make_holdout(studies, SITES, TUMOURS)
    assert sorted(len(part) for part in rows.values()) == [8, 8, 8]


def test_a_given_split_goes_first_and_has_to_keep_sites_whole():
    given = ["train"] * 12 + ["validation"] * 6 + ["test"] * 6
    called, site = list(TUMOURS.names) * 8, ["A"] * 12 + ["B"] * 6 + ["C"] * 6
    studies = make_class_studies(called, split=given, site=site)
    assert len(make_holdout(studies, SITES, TUMOURS)["test"]) == 6
    parted = studies.assign(site=["A"] * 11 + ["B"] * 7 + ["C"] * 6)
    with pytest.raises(InputError, match=r"split.by=site: site B is in train and in validation; "):
        make_holdout(parted, SITES, TUMOURS)


# ---------------------------------------------------------------------------- one site left out


def test_each_fold_is_one_site_and_every_site_is_one():
    site = ["C"] * 6 + ["A"] * 12 + ["B"] * 9
    studies = make_class_studies(list(TUMOURS.names) * 9, site=site)
    folds = make_folds(studies, "site", Split(), classes=TUMOURS)
    assert [parts_of(studies, rows)["test"] for rows in folds] == [{"A"}, {"B"}, {"C"}]
    for rows in folds:
        assert_sound(studies, rows)
        others = parts_of(studies, rows)
        assert not others["test"] & (others["train"] | others["validation"])
        assert len(rows["validation"]) == pytest.approx(0.2 * (27 - len(rows["test"])), abs=1)
    whole = make_folds(studies, "site", SITES, classes=TUMOURS)
    for rows in whole:
        parts = parts_of(studies, rows)
        assert [len(parts[name]) for name in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"site": "A"}, {"k": "site"}, "all studies are of A, and to leave one out takes 2 sites"),
        ({}, {"k": "site", "repeats": 2}, "repeats = 2: whole sites are divided in one way"),
        ({}, {"k": 2, "repeats": 2, "split": SITES}, "whole sites are divided in one way"),
        ({}, {"k": "site", "split": DATES}, "split.by=date tests on the latest patients alone"),
        ({}, {"k": 3, "split": DATES}, "leave the folds out, or set split.by=patient"),
        ({"split": "train"}, {"k": "site"}, "a split of its own"),
        ({"site": None}, {"k": "site"}, "with --site COLUMN"),
    ],
)
def test_folds_that_make_no_sense(change, arguments, message):
    studies = make_class_studies(list(TUMOURS.names) * 8, site=np.repeat(["A", "B"], 12))
    studies = studies.assign(**change)
    with pytest.raises(InputError, match=message):
        make_folds(studies, **{"split": Split(), "classes": TUMOURS, **arguments})


def test_a_site_of_one_class_is_tested_and_has_to_leave_every_class_to_learn_from():
    called = list(TUMOURS.names) * 8 + ["glioma"] * 6
    studies = make_class_studies(called, site=["A"] * 12 + ["B"] * 12 + ["C"] * 6)
    folds = make_folds(studies, "site", Split(), classes=TUMOURS)
    assert len(missing_test_classes(studies, folds[2], TUMOURS)) == 3
    two = studies.assign(site=["A"] * 24 + ["B"] * 6)
    with pytest.raises(InputError, match=r"class 'meningioma' has 0 patients outside site A, "):
        make_folds(two, "site", Split(), classes=TUMOURS)


# -------------------------------------------------------------------------------------- by date


@examples
@given(st.integers(0, 2**16), st.integers(3, 40))
def test_the_latest_patients_test_and_the_oldest_train(seed, days):
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(60), rng.integers(60, size=20)])
    dates = np.concatenate([rng.integers(days, size=60), rng.integers(days, size=20)])
    dates[:9] = np.repeat([0, days // 2, days - 1], 3)  # the oldest patients have every class
    studies = make_class_studies(np.array(TUMOURS.names)[patients % 3], patients, date=dates)
    rows = make_holdout(studies, DATES, TUMOURS)
    assert_sound(studies, rows)
    latest = studies.groupby("patient_id")["date"].transform("max")
    for earlier, later in itertools.pairwise(SPLITS):
        assert latest.iloc[rows[earlier]].max() < latest.iloc[rows[later]].min()
    shuffled = studies.sample(frac=1, random_state=seed)
    assert ids(studies, rows) == ids(shuffled, make_holdout(shuffled, DATES, TUMOURS))


def test_dates_of_their_own_give_each_split_its_share():
    studies = make_class_studies(list(TUMOURS.names) * 10, date=np.arange(30)[::-1])
    rows = make_holdout(studies, DATES, TUMOURS)
    assert rows["test"].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows["validation"].tolist() == [6, 7, 8, 9, 10, 11]
    none = make_holdout(studies, Split(by="date", validation=0, test=0.5), TUMOURS)
    assert [len(none[name]) for name in SPLITS] == [15, 0, 15]


@pytest.mark.parametrize(
    ("dates", "starts"),
    [
        ([0] * 6 + [1] * 2 + [2] * 2, [6, 8]),
        ([0] * 5 + [1] * 4 + [2], [5, 9]),
        ([0] + [1] * 8 + [2], [1, 9]),
        ([0] * 3 + [1] * 4 + [2] * 2 + [3], [7, 9]),
        ([0] * 4 + [1] * 2 + [2] * 4, [4, 6]),
    ],
)
def test_a_day_is_not_parted(dates, starts):
    places = place_by_date(np.array(dates), np.ones(10, int), np.array([0.6, 0.2, 0.2]))
    assert np.searchsorted(places, [1, 2]).tolist() == starts


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        (None, "has no date of its studies.*prepare it again with --date COLUMN"),
        ([0] * 12 + [1] * 12, "2 dates are too few for train, validation and test"),
        ([0] * 12 + [1] * 11 + [np.nan], "1 of 24 studies have no date, first study0023"),
    ],
)
def test_dates_that_cannot_be_divided(dates, message):
    studies = make_class_studies(list(TUMOURS.names) * 8)
    studies = studies if dates is None else studies.assign(date=dates)
    with pytest.raises(InputError, match=message):
        make_holdout(studies, DATES, TUMOURS)


def test_training_by_date_needs_every_class():
    called = ["glioma", "meningioma"] * 12 + ["pituitary"] * 6
    studies = make_class_studies(called, date=np.arange(30))
    with pytest.raises(InputError, match=r"train would have no patient of class 'pituitary'"):
        make_holdout(studies, DATES, TUMOURS)


def test_a_given_split_by_date_may_not_train_on_the_latest():
    given = ["test"] * 6 + ["train"] * 24
    studies = make_class_studies(list(TUMOURS.names) * 10, split=given, date=np.arange(30))
    with pytest.raises(InputError, match="a patient in validation has a later study than one"):
        make_holdout(studies, DATES, TUMOURS)
    turned = studies.assign(date=np.arange(30)[::-1])
    rows = make_holdout(turned, DATES, TUMOURS)
    assert [len(rows[name]) for name in SPLITS] == [19, 5, 6]
