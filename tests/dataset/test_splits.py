"""Splits by patient: disjoint, complete, stratified, repeatable, and never through a group."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_tables import assert_sound, ids, make_studies

from medseq_tf.dataset.splits import (
    SPLITS,
    check_leakage,
    check_training,
    make_folds,
    make_holdout,
    missing_test_classes,
    splits_from_json,
    splits_to_json,
)
from medseq_tf.errors import InputError
from medseq_tf.recipe import Split

examples = settings(max_examples=30, deadline=None)
HALVES = Split(test=0.25, validation=0.25)


def balanced(n=40):
    return make_studies(np.arange(n) % 2)


def patients_of(studies, rows):
    """One row a patient of some rows, with the labels."""
    return studies.iloc[rows].groupby("patient_id").max(numeric_only=True)


@st.composite
def cohorts(draw):
    """Random cohorts: several studies a patient, shared slices, unknown labels."""
    n_patients = draw(st.integers(30, 60))
    n_labels = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    patients = np.concatenate([np.arange(n_patients), rng.integers(n_patients, size=15)])
    rng.shuffle(patients)
    halves = np.arange(n_patients) % 2
    labels = np.stack([rng.permutation(halves) for _ in range(n_labels)], axis=1)[patients]
    labels = labels.astype(float)
    labels[rng.random(labels.shape) < 0.05] = np.nan
    shared = draw(st.integers(0, 8))
    hashes = [[f"own {i}", None] for i in range(len(patients))]
    for copy in range(shared):
        for row in rng.choice(len(patients), 2, replace=False):
            hashes[row] = [*hashes[row], f"copy {copy}"]
    return make_studies(labels, patients, hashes)


# -------------------------------------------------------------------------------------- sound


@examples
@given(cohorts(), st.integers(0, 100))
def test_holdout_is_disjoint_complete_and_parts_no_group(studies, seed):
    rows = make_holdout(studies, Split(seed=seed))
    assert_sound(studies, rows)
    assert all(len(rows[name]) for name in SPLITS)


@examples
@given(cohorts(), st.integers(2, 5), st.integers(0, 100))
def test_folds_test_every_study_once(studies, k, seed):
    splits = make_folds(studies, k, Split(seed=seed))
    assert len(splits) == k
    for rows in splits:
        assert_sound(studies, rows)
        assert all(len(rows[name]) for name in SPLITS)
    tested = np.concatenate([rows["test"] for rows in splits])
    assert sorted(tested) == list(range(len(studies)))


@examples
@given(cohorts(), st.integers(0, 100))
def test_splits_do_not_depend_on_the_order_of_the_rows(studies, seed):
    shuffled = studies.sample(frac=1, random_state=seed)
    assert ids(studies, make_holdout(studies, Split())) == ids(
        shuffled, make_holdout(shuffled, Split())
    )
    for one, other in zip(
        make_folds(studies, 3, Split()), make_folds(shuffled, 3, Split()), strict=True
    ):
        assert ids(studies, one) == ids(shuffled, other)


def test_the_seed_decides():
    studies = balanced()
    first, again = (ids(studies, make_holdout(studies, Split(seed=1))) for _ in range(2))
    assert first == again
    assert first != ids(studies, make_holdout(studies, Split(seed=2)))
    folds = [ids(studies, make_folds(studies, 4, Split(seed=s))[0]) for s in (1, 1, 3)]
    assert folds[0] == folds[1] != folds[2]


# --------------------------------------------------------------------------------- stratified


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "positives"), [(82, 31), (10, 5), (9, 4), (200, 12), (101, 90)])
def test_one_label_is_as_common_in_every_split(n, positives, seed):
    studies = make_studies(np.arange(n) < positives)
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    rows = make_holdout(studies, Split(seed=seed))
    for name, share in shares.items():
        inside = studies.iloc[rows[name]]["label.stroke"]
        assert abs(len(inside) - share * n) <= 1
        assert abs(inside.sum() - share * positives) <= 1
        assert 0 < inside.sum() < len(inside)


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_even_in_size_and_class(seed):
    studies = make_studies(np.arange(82) < 31)
    for rows in make_folds(studies, 5, Split(seed=seed)):
        tested = studies.iloc[rows["test"]]["label.stroke"]
        assert len(tested) in (16, 17)
        assert tested.sum() in (6, 7)
        validation = studies.iloc[rows["validation"]]["label.stroke"]
        assert abs(len(validation) - 0.2 * (82 - len(tested))) <= 1
        assert abs(validation.sum() - 0.2 * (31 - tested.sum())) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_are_as_common_in_every_split(seed):
    # Prevalences of the five audit entries of paper 2.
    prevalence = np.array([0.283, 0.112, 0.0715, 0.0187, 0.154])
    labels = np.random.default_rng(seed).random((715, 5)) < prevalence
    studies = make_studies(labels)
    rows = make_holdout(studies, Split(seed=seed))
    for name, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert abs(len(rows[name]) - share * 715) <= 1
        assert np.abs(labels[rows[name]].sum(axis=0) - share * labels.sum(axis=0)).max() <= 2


def test_patients_are_counted_not_studies():
    patients = np.repeat(np.arange(20), np.arange(20) % 4 + 1)
    studies = make_studies(patients % 2, patients)
    rows = make_holdout(studies, HALVES)
    counts = {name: len(patients_of(studies, part)) for name, part in rows.items()}
    assert counts == {"train": 10, "validation": 5, "test": 5}


def test_a_patient_with_one_positive_study_is_positive():
    patients = np.repeat(np.arange(12), 2)
    labels = np.zeros(24)
    labels[1:12:2] = 1  # the second study of patients 0 to 5
    studies = make_studies(labels, patients)
    rows = make_holdout(studies, Split(test=1 / 3, validation=1 / 3))
    for part in rows.values():
        assert patients_of(studies, part)["label.stroke"].tolist().count(1) == 2


def test_unknown_labels_are_neutral():
    labels = np.concatenate([np.zeros(10), np.ones(10), np.full(20, np.nan)])
    studies = make_studies(labels)
    for name, part in make_holdout(studies, HALVES).items():
        inside = labels[part]
        expected = 5 if name == "train" else 2.5
        assert abs((inside == 1).sum() - expected) <= 0.5
        assert abs((inside == 0).sum() - expected) <= 0.5
        assert len(part) == 4 * expected


def test_a_share_of_zero_is_an_empty_split():
    studies = balanced()
    rows = make_holdout(studies, Split(test=0.5, validation=0))
    assert [len(rows[name]) for name in SPLITS] == [20, 0, 20]
    rows = make_holdout(studies, Split(test=0, validation=0))
    assert [len(rows[name]) for name in SPLITS] == [40, 0, 0]
    for rows in make_folds(studies, 4, Split(validation=0)):
        assert [len(rows[name]) for name in SPLITS] == [30, 0, 10]


def test_patients_who_share_slices_stay_together_through_others():
    hashes = [[f"own {i}"] for i in range(40)]
    hashes[0] += ["x"]
    hashes[2] += ["x", "y"]
    hashes[4] += ["y"]
    studies = make_studies(np.arange(40) % 2, hashes=[np.array(h, dtype=object) for h in hashes])
    for seed in range(10):
        for rows in [
            make_holdout(studies, Split(seed=seed)),
            *make_folds(studies, 5, Split(seed=seed)),
        ]:
            assert sum({0, 2, 4} <= set(part) for part in rows.values()) == 1


def test_slices_that_say_nothing_link_no_one():
    studies = make_studies(np.arange(20) % 2, hashes=[[None, None]] * 20)
    assert_sound(studies, make_holdout(studies, HALVES))


# --------------------------------------------------------------------------------- too few


@pytest.mark.parametrize(
    ("labels", "split", "message"),
    [
        (
            [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            Split(),
            "label 'stroke' has 2 positive patients, too few for train, validation and test: "
            "at least 3 are needed",
        ),
        ([1, 0, 0, 1], Split(), "4 patients are too few .* raise split.validation to at least"),
        ([0.0] * 10, Split(), "label 'stroke' has 0 positive patients"),
        ([1.0] * 9 + [0.0], Split(validation=0), "label 'stroke' has 1 negative patient, "),
        ([np.nan] * 10, Split(), "label 'stroke' has 0 positive patients"),
        ([1, 0] * 5, Split(test=0.05), "raise split.test to at least 0.1, or set it to 0"),
    ],
)
def test_too_few_patients_for_a_holdout(labels, split, message):
    with pytest.raises(InputError, match=message) as error:
        make_holdout(make_studies(labels), split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([1, 0] * 10, 1, "needs at least 2"),
        ([1] * 4 + [0] * 16, 5, "label 'stroke' has 4 positive patients, too few for 5 folds"),
        ([1, 0] * 3, 9, "6 patients are too few for 9 folds.*take at most 6 folds"),
        ([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], 2, "has 1 positive patient, .*outside the test fold 1"),
    ],
)
def test_too_few_patients_for_folds(labels, k, message):
    with pytest.raises(InputError, match=message):
        make_folds(make_studies(labels), k, Split())


def test_groups_that_leave_a_split_empty_are_named():
    hashes = [["same slice"]] * 20
    with pytest.raises(InputError, match="would be empty: patients who share a slice"):
        make_holdout(make_studies(np.arange(20) % 2, hashes=hashes), Split())


def test_a_rare_label_among_several_does_not_stop_the_split():
    labels = np.zeros((30, 2))
    labels[::2, 0] = 1
    labels[3, 1] = 1
    rows = make_holdout(make_studies(labels), Split())
    assert 3 in rows["train"]
    with pytest.raises(InputError, match=r"label 'label1' has 1 positive patient, .* 5 folds"):
        make_folds(make_studies(labels), 5, Split())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("n", [40, 100])
def test_every_split_has_both_classes_of_every_label_where_possible(n, seed):
    """Five labels, of which some are rare: none is without a patient in a small validation."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, 5))
    for number, positives in enumerate([3, 4, 8, n // 4, n - 8]):
        labels[rng.choice(n, positives, replace=False), number] = 1
    studies = make_studies(labels)
    rows = make_holdout(studies, Split(seed=seed))
    for part in rows.values():
        counts = np.stack([labels[part].sum(axis=0), (1 - labels[part]).sum(axis=0)])
        assert counts.min() >= 1
        assert counts[:, 2:].min() >= 2
    for rows in make_folds(studies, 3, Split(seed=seed)):
        for part in rows.values():
            counts = np.stack([labels[part].sum(axis=0), (1 - labels[part]).sum(axis=0)])
            assert counts[:, 2:].min() >= 1
        assert labels[rows["test"]].sum(axis=0).min() >= 1


def test_exchanges_keep_patients_and_sizes():
    rng = np.random.default_rng(3)
    labels = (rng.random((60, 5)) < [0.1, 0.1, 0.3, 0.5, 0.9]).astype(float)
    patients = np.arange(60) // 2
    studies = make_studies(labels, patients)
    rows = make_holdout(studies, Split(test=0.2, validation=0.2))
    assert_sound(studies, rows)
    assert [len(set(patients[part])) for part in rows.values()] == [18, 6, 6]


def test_repeats_divide_anew_and_the_first_is_as_without():
    studies = balanced(60)
    once, thrice = make_folds(studies, 3, Split()), make_folds(studies, 3, Split(), 3)
    assert len(thrice) == 9
    for first, second in zip(once, thrice, strict=False):
        assert all((first[name] == second[name]).all() for name in SPLITS)
    for start in (0, 3, 6):
        tested = np.concatenate([rows["test"] for rows in thrice[start : start + 3]])
        assert sorted(tested) == list(range(60))
        for rows in thrice[start : start + 3]:
            assert_sound(studies, rows)
    tests = {tuple(rows["test"]) for rows in thrice}
    assert len(tests) == 9
    with pytest.raises(InputError, match="repeats = 0"):
        make_folds(studies, 3, Split(), 0)


@pytest.mark.parametrize(("kind", "value"), [("positive", 0), ("negative", 1)])
def test_a_given_split_of_one_class_in_training_is_refused_by_name(kind, value):
    labels = np.stack([np.arange(20) % 2, np.arange(20) // 2 % 2], axis=1)
    labels[:10, 1] = value
    split = ["train"] * 10 + ["validation"] * 4 + ["test"] * 6
    studies = make_studies(labels, split=split)
    rows = make_holdout(studies, Split())
    with pytest.raises(InputError, match=f"no {kind} patient of label 'label1'.*split.given=false"):
        check_training(studies, rows)


def test_what_a_given_test_split_cannot_judge_is_said():
    labels = np.arange(20) % 2
    labels[14:] = 0
    split = ["train"] * 10 + ["validation"] * 4 + ["test"] * 6
    studies = make_studies(labels, split=split)
    rows = make_holdout(studies, Split())
    assert missing_test_classes(studies, rows) == [
        "stroke: the test split has no positive patient, so its ranking cannot be evaluated"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[:0], "holds no study"),
        (lambda table: table.drop(columns="label.stroke"), "has no label"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "study0000 stands twice"),
    ],
)
def test_tables_that_cannot_be_split(change, message):
    with pytest.raises(InputError, match=message):
        make_holdout(change(balanced()), Split())


# -------------------------------------------------------------------------------- given splits


def test_a_given_split_is_used_as_it_is():
    names = ["test", "train", "validation", "train"] * 5
    studies = make_studies(np.arange(20) % 2, split=names)
    rows = make_holdout(studies, Split())
    for name in SPLITS:
        assert rows[name].tolist() == [i for i in range(20) if names[i] == name]
    other = make_holdout(studies, Split(given=False))
    assert other["test"].tolist() != rows["test"].tolist()


def test_no_given_test_means_no_test():
    studies = make_studies(np.arange(20) % 2, split=["train", "validation"] * 10)
    rows = make_holdout(studies, Split())
    assert [len(rows[name]) for name in SPLITS] == [10, 10, 0]


def test_validation_comes_out_of_the_given_training_patients():
    studies = make_studies(np.arange(40) // 2 % 2, split=["train", "test"] * 20)
    rows = make_holdout(studies, Split(validation=0.3))
    assert rows["test"].tolist() == list(range(1, 40, 2))
    assert [len(rows[name]) for name in SPLITS] == [14, 6, 20]
    assert_sound(studies, rows)
    none = make_holdout(studies, Split(validation=0))
    assert len(none["validation"]) == 0


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_a_half_given_split_names_the_first_study_without(missing):
    studies = make_studies(np.arange(20) % 2, split=["train"] * 19 + ["test"])
    studies["split"] = studies["split"].astype(object)
    studies.loc[[3, 7], "split"] = missing
    with pytest.raises(InputError, match="2 of 20 studies have no split, first study0003"):
        make_holdout(studies, Split())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train", "dev"], "unknown split 'dev': expected one of train, validation, test"),
        (["test", "validation"], "no study is given to the split 'train'"),
    ],
)
def test_given_splits_that_make_no_sense(names, message):
    with pytest.raises(InputError, match=message):
        make_holdout(make_studies(np.arange(20) % 2, split=names * 10), Split())


def test_a_given_split_that_parts_a_patient_is_refused():
    studies = make_studies([0, 1, 0, 1], [0, 1, 2, 2], split=["train", "test", "train", "test"])
    with pytest.raises(InputError, match="patient patient0002 is in train and in test"):
        make_holdout(studies, Split())


# ------------------------------------------------------------------------------------- leakage


def rows(**splits):
    return {name: np.array(part, dtype=np.int64) for name, part in splits.items()}


def test_leakage_names_what_is_in_two_splits():
    hashes = [["a", None], ["b", None], ["c", "a"], [None]]
    studies = make_studies([0, 1, 0, 1], [0, 1, 2, 1], hashes)
    check_leakage(studies, rows(train=[0, 2], test=[1, 3]))
    with pytest.raises(InputError, match="patient patient0001 is in train and in test"):
        check_leakage(studies, rows(train=[0, 1, 2], test=[3]))
    with pytest.raises(
        InputError, match="study0000 in train and study study0002 in test hold the same slice"
    ):
        check_leakage(studies, rows(train=[0], test=[2]))
    with pytest.raises(InputError, match="study study0000 is in train and in validation"):
        check_leakage(studies, rows(train=[0], validation=[0]))
    with pytest.raises(InputError, match="study0000 is in train twice"):
        check_leakage(studies, rows(train=[0, 0]))


# ---------------------------------------------------------------------------------------- JSON


def test_splits_come_back_from_json():
    studies = balanced()
    holdout, folds = make_holdout(studies, Split()), make_folds(studies, 4, Split())
    text = splits_to_json(studies, holdout)
    assert json.loads(text)["test"][0] in set(studies["study_id"])
    shuffled = studies.sample(frac=1, random_state=0)
    back = splits_from_json(shuffled, text)
    assert ids(shuffled, back) == ids(studies, holdout)
    several = splits_from_json(studies, splits_to_json(studies, folds))
    for one, other in zip(several, folds, strict=True):
        assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in other.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"train": []}', "exactly the lists train, validation, test"),
        ("[3]", "exactly the lists train, validation, test"),
        ('{"train": 3, "validation": [], "test": []}', "train is not a list"),
        ('{"train": ["who"], "validation": [], "test": []}', "1 unknown studies, first 'who'"),
        ('{"train": ["study0000"], "validation": [], "test": []}', "3 studies are in no split"),
        (
            '{"train": ["study0000", "study0001"], "validation": [],'
            ' "test": ["study0002", "study0003", "study0001"]}',
            "study0001 is in train and in test",
        ),
    ],
)
def test_splits_for_other_data_are_refused(content, message):
    with pytest.raises(InputError, match=message):
        splits_from_json(make_studies([0, 1, 0, 1]), content)


# ----------------------------------------------------------------------------------- real data

DATA = Path(
    os.environ.get("MEDSEQ_TF_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
)


@pytest.mark.skipif(not (DATA / "stroke_ct").is_dir(), reason="the CT slices are not here")
def test_the_ct_slices_fall_into_even_folds():
    contents = {}
    for file in sorted((DATA / "stroke_ct").glob("*/*.jpg")):
        key = (file.parent.name, file.name.split(" ")[0])
        contents.setdefault(key, []).append(hashlib.sha256(file.read_bytes()).hexdigest())
    labels = [name == "Stroke" for name, _ in contents]
    studies = make_studies(labels, hashes=list(contents.values()))
    for split in make_folds(studies, 5, Split()):
        assert_sound(studies, split)
        assert abs(len(split["test"]) - len(studies) / 5) <= 1
        assert abs(studies.iloc[split["test"]]["label.stroke"].sum() - sum(labels) / 5) <= 1


def test_patients_with_studies_of_both_classes_are_split_like_any():
    """ATLAS's protocol: each subject gives a lesion and a lesion-free sequence."""
    patients = np.repeat(np.arange(20), 2)
    studies = make_studies(np.tile([1, 0], 20), patients=patients)
    rows = make_holdout(studies, Split(test=0.2, validation=0.2))
    assert {name: len(part) for name, part in rows.items()} == {
        "train": 24,
        "validation": 8,
        "test": 8,
    }
    for part in rows.values():
        assert studies["label.stroke"].iloc[part].mean() == 0.5
