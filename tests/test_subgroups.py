"""Subgroups: thirds that cover every study, sources that say something, CSV files matched."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf import subgroups
from medseq_tf.errors import InputError


class Cohort:
    def __init__(self, sources, labels=None):
        count = len(sources)
        self.path, self.label_names = "cohort", ["lesion"]
        self.studies = pd.DataFrame(
            {
                "study_id": [f"s{i}" for i in range(count)],
                "patient_id": [f"p{i}" for i in range(count)],
                "source": sources,
                "label.lesion": labels if labels is not None else np.arange(count) % 2.0,
            }
        )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_thirds_are_in_order_and_hold_every_study(counts):
    groups = subgroups.thirds(pd.Series(counts))
    assert groups.notna().all()
    assert groups.nunique() <= 3
    ends = [tuple(map(int, name.split(" to "))) for name in groups.cat.categories]
    assert [low for low, *_ in ends] == sorted(low for low, *_ in ends)
    for count, name in zip(counts, groups, strict=True):
        low, *high = map(int, name.split(" to "))
        assert low <= count <= (high[0] if high else low)
    assert all(a[-1] < b[0] for a, b in itertools.pairwise(ends))


def test_thirds_of_different_numbers_are_of_equal_size():
    sizes = subgroups.thirds(pd.Series(np.arange(90))).value_counts()
    assert sizes.tolist() == [30, 30, 30]


def test_a_source_is_a_subgroup_unless_it_gives_the_label_away():
    mixed = subgroups.sources(Cohort(["a/1", "a/2", "b/1", "b/2"]))
    assert mixed["source"].tolist() == ["a", "a", "b", "b"]
    classes = subgroups.sources(Cohort(["ill/1", "ill/2", "well/1", "well/2"], [1, 1, 0, 0]))
    assert classes.empty
    assert subgroups.sources(Cohort(["1", "2", "3", "4"])).empty


def write(path, text):
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    "rows",
    ["study_id,sex\ns0,f\ns2,m\n", "patient_id,sex\np0,f\np2,m\n", "id;sex\n1;f\n3.nii;m\n",
     "source,sex\na/1,f\na/3.nii,m\n"],
)  # fmt: skip
def test_rows_are_matched_by_whatever_names_the_study(tmp_path, rows):
    cohort = Cohort(["a/1", "a/2", "a/3.nii"])
    found = subgroups.read(write(tmp_path / "groups.csv", rows), cohort)
    assert found["sex"].fillna("").tolist() == ["f", "", "m"]
    assert found.index.tolist() == ["s0", "s1", "s2"]


def test_many_numbers_become_thirds_and_few_stay(tmp_path):
    cohort = Cohort([str(i) for i in range(12)])
    lines = "\n".join(f"s{i},{40 + i},{i % 2}" for i in range(12))
    found = subgroups.read(write(tmp_path / "g.csv", f"study_id,age,side\n{lines}\n"), cohort)
    assert found["age"].unique().tolist() == ["40 to 43", "44 to 47", "48 to 51"]
    assert sorted(found["side"].unique()) == ["0", "1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("name,sex\nx,f\n", "a key .* and at least one other column are needed"),
        ("study_id\ns0\n", "at least one other column"),
        ("study_id,sex\nsecret-name,f\n", "names none of the 3 studies"),
        ("study_id,sex\ns0,f\ns0,m\n", "1 rows repeat a study_id"),
    ],
)
def test_what_cannot_be_used_is_said_without_the_keys(tmp_path, rows, message):
    path = write(tmp_path / "g.csv", rows)
    with pytest.raises(InputError, match=message) as caught:
        subgroups.read(path, Cohort(["a/1", "a/2", "a/3"]))
    assert not re.search("secret-name", str(caught.value))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        subgroups.read(tmp_path / "no.csv", Cohort(["a"]))
