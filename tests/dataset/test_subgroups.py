"""Subgroups: thirds that cover every study, sources that say something, CSV files matched."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf.dataset import subgroups
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


def test_one_rule_matches_all_rows(tmp_path):
    """Source 2/1 is not the study called 1 where 1/1 may be, nor is the folder 2 the source 1/2."""
    cohort = Cohort(["1/1", "1/2", "2/1", "2/2"])
    with pytest.raises(InputError, match="line 2 names studies of two patients, s0 and s2"):
        subgroups.read(write(tmp_path / "g.csv", "id,sex\n1,f\n2,m\n"), cohort)
    mixed = write(tmp_path / "m.csv", "id,sex\ns0,f\n1/2,m\n")
    with pytest.raises(InputError, match="one rule holds for all"):
        subgroups.read(mixed, cohort)


def test_keys_are_compared_as_text_whatever_their_spelling(tmp_path):
    cohort = Cohort(["e\u0301", "NA", "007", "7"])
    rows = "id,sex\n\u00e9 ,f\nNA,m\n7,f\n"
    found = subgroups.read(write(tmp_path / "g.csv", rows), cohort)
    assert found["sex"].fillna("").tolist() == ["f", "m", "", "f"]


def test_a_volume_is_named_with_or_without_its_extension(tmp_path):
    found = subgroups.read(write(tmp_path / "g.csv", "id,sex\na,f\n"), Cohort(["d/a.nii.gz"]))
    assert found["sex"].tolist() == ["f"]


def test_many_numbers_become_thirds_and_few_stay(tmp_path):
    cohort = Cohort([str(i) for i in range(12)])
    lines = "\n".join(f"s{i},{40 + i},{i % 2}" for i in range(12))
    found = subgroups.read(write(tmp_path / "g.csv", f"study_id,age,side\n{lines}\n"), cohort)
    assert found["age"].unique().tolist() == ["40 to 43", "44 to 47", "48 to 51"]
    assert sorted(found["side"].unique()) == ["0", "1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "is not a CSV file"),
        ("name,sex\nx,f\n", "a key .* and at least one other column are needed"),
        ("study_id\ns0\n", "at least one other column"),
        ("study_id,sex\nsecret-name,f\n", "names none of the 3 studies"),
        ("study_id,sex\ns0,f\ns0,m\n", "1 rows repeat a study_id"),
        ("\n\n\n", "is not a CSV file"),
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
