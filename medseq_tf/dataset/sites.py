"""Where and when studies were made: the columns `site` and `date` of a prepared data set.

A site is a name or a hash, a date the rank of a day among those of the cohort, 0 for the oldest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medseq_tf.errors import InputError


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
