"""Where and when studies were made: the columns `site` and `date` of a prepared data set.

A site is a name or a hash, a date the rank of a day among those of the cohort, 0 for the oldest.
Where sites differ in what their patients have, a model can tell the site in place of the disease:
`site_confounding` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError

BY_CHANCE = 1e-3
"""What happens less often in sites that do not differ is said."""
STRONG = 0.3
"""Cramer's V from which sites differ enough to be said: a medium effect (Cohen 1988) and above."""


def of_studies(studies: pd.DataFrame) -> np.ndarray:
    """Return the site of each study, (studies,) str; of one without, that of the patient's others.

    Raises:
        InputError: There is no such column, or a patient of whom no study has a site.
    """
    sites = _column(studies, "site")
    of_patient = sites.groupby(studies["patient_id"]).transform("first")
    sites = sites.where(sites.notna(), of_patient)
    _refuse_unknown(studies, sites, "site")
    return sites.to_numpy(object)


def dates(studies: pd.DataFrame) -> np.ndarray:
    """Return the rank of each study's date, (studies,) int.

    Raises:
        InputError: There is no such column, or a study without a date.
    """
    ranks = _column(studies, "date")
    _refuse_unknown(studies, ranks, "date")
    return ranks.astype(np.int64).to_numpy()


def latest_dates(studies: pd.DataFrame, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the rank of the latest date of each group of studies, (groups,) int."""
    ranks = dates(studies)
    return np.array([ranks[positions].max() for positions in groups])


def named(studies: pd.DataFrame) -> str:
    """Name the sites of some studies, such as `A + B`."""
    return " + ".join(sorted(set(of_studies(studies))))


def site_confounding(prepared: Prepared) -> list[str]:
    """Say where a site tells a label or a class, a line each; nothing without sites.

    A site is named if all its patients are of one kind, and as many drawn at random from the cohort
    would be with a probability below `BY_CHANCE` (hypergeometric). Sites as a whole are said to
    differ if a chi-square test has a p-value below that and Cramer's V, corrected for bias
    (Bergsma 2013), is `STRONG` or more.
    """
    if "site" not in prepared.studies or prepared.studies["site"].nunique() < 2:
        return []
    lines = []
    for name, kinds in _kinds(prepared).items():
        counts = pd.crosstab(kinds["site"], kinds["kind"])
        if min(counts.shape) > 1:
            lines += [*_sites_of_one_kind(counts), *_sites_that_differ(name, counts)]
    return lines


def _kinds(prepared: Prepared) -> dict[str, pd.DataFrame]:
    """Return patients by `site` and `kind` in words, by label, or of all classes together."""
    studies, classes = prepared.studies, prepared.classes
    of_names = {
        name: studies.loc[studies[f"label.{name}"] == 1, ["patient_id", "site"]]
        for name in prepared.label_names
    }
    if classes:
        called = [rows.assign(kind=f"of class {name!r}") for name, rows in of_names.items()]
        return {classes.column: pd.concat(called).dropna().drop_duplicates()}
    result = {}
    for name, positive in of_names.items():
        known = studies.loc[studies[f"label.{name}"].notna(), ["patient_id", "site"]]
        known = known.dropna().drop_duplicates()
        is_positive = known["patient_id"].isin(positive["patient_id"])
        result[name] = known.assign(
            kind=np.where(is_positive, f"positive for {name!r}", f"negative for {name!r}")
        )
    return result


def _sites_of_one_kind(counts: pd.DataFrame) -> list[str]:
    lines, everyone = [], int(counts.to_numpy().sum())
    for site, row in counts.iterrows():
        kind, patients = row.idxmax(), int(row.sum())
        of_kind = int(counts[kind].sum())
        by_chance = stats.hypergeom.pmf(patients, everyone, of_kind, patients)
        if row[kind] == patients and by_chance < BY_CHANCE:
            lines.append(
                f"all {patients} patients of site {site} are {kind} (elsewhere "
                f"{of_kind - patients} of {everyone - patients}): a model that tells the site "
                "needs no other sign of it; look at the figures of the other sites alone"
            )
    return lines


def _sites_that_differ(name: str, counts: pd.DataFrame) -> list[str]:
    test = stats.chi2_contingency(counts, correction=False)
    strength = cramers_v(counts.to_numpy(), float(test.statistic))
    if test.pvalue >= BY_CHANCE or strength < STRONG:
        return []
    everyone, right = int(counts.to_numpy().sum()), int(counts.sum().max())
    by_site, words = int(counts.max(axis=1).sum()), ""
    if by_site > right:
        words = (
            f": by the site alone {by_site} of {everyone} patients would be called right, without "
            f"it {right}"
        )
    return [
        f"{name} differs by site (Cramer's V {strength:.2f}){words}; a model may have learned the "
        "site, so look at the tables by site, and, if each is at several sites, at --folds site"
    ]


def cramers_v(counts: np.ndarray, chi_square: float) -> float:
    """Return Cramer's V of a table (sites, kinds), corrected for bias (Bergsma 2013)."""
    everyone, (rows, columns) = counts.sum(), counts.shape
    freedom = (rows - 1) * (columns - 1)
    square = max(0.0, chi_square / everyone - freedom / (everyone - 1))
    fewest = min(size - (size - 1) ** 2 / (everyone - 1) for size in (rows, columns))
    return float(np.sqrt(square / (fewest - 1))) if fewest > 1 else 0.0


def _column(studies: pd.DataFrame, name: str) -> pd.Series:
    if name not in studies or studies[name].isna().all():
        raise InputError(
            f"the data set has no {name} of its studies, by which it is to be divided: prepare it "
            f"again with --{name} COLUMN"
        )
    return studies[name]


def _refuse_unknown(studies: pd.DataFrame, values: pd.Series, name: str) -> None:
    without = studies.loc[values.isna().to_numpy(), "study_id"]
    if len(without):
        raise InputError(
            f"{len(without)} of {len(studies)} studies have no {name}, first {without.iloc[0]}, so "
            f"that they cannot be divided by it: prepare again with a {name} for each, or without "
            "these studies"
        )
