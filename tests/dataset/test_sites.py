"""What a site tells of the diagnosis: said where it is no chance, held to SciPy and pandas."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from study_tables import TUMOURS, make_class_studies, make_studies

from medseq_tf.dataset import subgroups
from medseq_tf.dataset.sites import cramers_v, site_confounding


def cohort(studies, classes=None):
    names = [name.removeprefix("label.") for name in studies if name.startswith("label.")]
    return SimpleNamespace(studies=studies, classes=classes, label_names=names)


def test_a_site_of_one_class_is_named_with_its_patients():
    called = ["glioma"] * 18 + ["meningioma"] * 58 + ["pituitary"] * 45 + ["glioma"] * 31
    studies = make_class_studies(called, site=["A"] * 121 + ["B"] * 31)
    first, second = site_confounding(cohort(studies, TUMOURS))
    assert first.startswith(
        "all 31 patients of site B are of class 'glioma' (elsewhere 18 of 121): "
    )
    assert "by the site alone 89 of 152 patients would be called right, without it 58" in second
    twice = pd.concat([studies, studies.assign(study_id=studies["study_id"] + "b")])
    assert site_confounding(cohort(twice, TUMOURS)) == [first, second]  # patients are counted


def test_a_label_is_said_by_its_side():
    studies = make_studies([0] * 40 + [1] * 20).assign(site=["A"] * 30 + ["B"] * 30)
    first, second = site_confounding(cohort(studies))
    assert first.startswith("all 30 patients of site A are negative for 'stroke' (elsewhere 10 of")
    assert second.startswith("stroke differs by site (Cramer's V 0.70): by the site alone 50 of 60")


def test_sites_that_are_alike_say_nothing():
    said = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        called = rng.choice(TUMOURS.names, 90)
        studies = make_class_studies(called, site=rng.choice(["A", "B", "C"], 90))
        said += bool(site_confounding(cohort(studies, TUMOURS)))
    assert said <= 2  # one in a thousand is to be expected, for some of its sites


@pytest.mark.parametrize("site", [None, "A", [None] * 3 + ["A"] * 27])
def test_without_several_sites_nothing_is_said(site):
    studies = make_class_studies(list(TUMOURS.names) * 10)
    studies = studies if site is None else studies.assign(site=site)
    assert site_confounding(cohort(studies, TUMOURS)) == []
    assert subgroups.sites(cohort(studies, TUMOURS)).empty


def test_few_patients_of_one_class_are_chance():
    called = list(TUMOURS.names) * 20 + ["glioma"] * 3
    studies = make_class_studies(called, site=["A"] * 60 + ["B"] * 3)
    assert site_confounding(cohort(studies, TUMOURS)) == []


def test_cramers_v_is_about_0_without_and_1_with_a_bond():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(300):
        counts = rng.multinomial(60, np.full(9, 1 / 9)).reshape(3, 3)
        chi_square = stats.chi2_contingency(counts).statistic
        values.append(cramers_v(counts, chi_square) ** 2)
        plain = np.sqrt(chi_square / 60 / 2)
        assert cramers_v(counts, chi_square) <= plain
    assert np.mean(values) < 0.02  # the plain one squared is 0.033 on average
    assert cramers_v(np.diag([20, 20, 20]), 120.0) == pytest.approx(1.0)


def test_sites_are_subgroups_by_their_names_the_smallest_as_one_and_last():
    studies = make_class_studies(
        list(TUMOURS.names) * 10, site=["B"] * 12 + ["A"] * 15 + [None] * 3
    )
    groups = subgroups.standing(cohort(studies, TUMOURS))
    assert groups["site"].value_counts().to_dict() == {"A": 15, "B": 12}
    assert list(groups["site"].cat.categories) == ["A", "B"]
    assert groups.index.tolist() == studies["study_id"].tolist()
    many = np.repeat([f"clinic {i:02}" for i in range(25)], 2)
    studies = make_studies(np.arange(50) % 2).assign(site=many)
    sites = subgroups.sites(cohort(studies))["site"]
    assert sites.cat.categories[-1] == "6 smaller sites"
    named = sites.value_counts()
    assert len(named) == subgroups.MOST_SITES
    assert named["6 smaller sites"] == 12
