"""Subgroups: the group that each study belongs to, by its source or a CSV file.

What stands in the CSV is matched in memory: only the groups' names leave this module, no key.
"""

from __future__ import annotations

import csv
import os
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.readers.matching import match_rows, normal_id
from medseq_tf.readers.names import alphabetically
from medseq_tf.readers.volume_file import without_extension

MOST_GROUPS = 6
"""Distinct numbers of a column that are groups of their own; more become thirds."""
MOST_SITES = 20
"""Sites that are groups of their own."""
_UNKNOWN = ("", "na", "n/a", "#n/a", "nan", "<na>", "null", "none")
KEYS = ("study_id", "patient_id", "source", "patient", "study", "id")


def thirds(values: pd.Series) -> pd.Series:
    """Cut numbers into thirds, named by their range, such as `19 to 27`; unknown stays unknown.

    With few distinct numbers there are fewer parts.
    """
    numbers = values.astype(float)
    known = numbers.dropna()
    if known.empty:
        return pd.Series(None, values.index, dtype=object)
    inner = np.unique(np.quantile(known, [1 / 3, 2 / 3], method="lower"))
    third = np.searchsorted(inner, numbers.to_numpy(), side="left")
    names = {}
    for number in np.unique(third[numbers.notna()]):
        members = known[third[numbers.notna()] == number]
        low, high = f"{members.min():g}", f"{members.max():g}"
        names[number] = low if low == high else f"{low} to {high}"
    named = [names[i] if ok else None for i, ok in zip(third, numbers.notna(), strict=True)]
    group = pd.Series(named, values.index, dtype=object)
    return group.astype(pd.CategoricalDtype(list(names.values()), ordered=True))


def sources(prepared: Prepared) -> pd.DataFrame:
    """Return the top folder of each study's source, by study id, where that says something.

    It does with 2 to 12 folders of several patients each that do not give a label away.
    """
    studies = prepared.studies.set_index("study_id")
    folder = studies["source"].astype(str).str.split("/").str[0]
    groups = folder.value_counts()
    nothing = pd.DataFrame(index=studies.index)
    patients = studies["patient_id"].groupby(folder).nunique()
    if not 2 <= len(groups) <= 12 or patients.min() < 2:  # a folder a patient would be its name
        return nothing
    for name in prepared.label_names:
        if (studies[f"label.{name}"].groupby(folder).nunique() <= 1).all():
            return nothing
    return nothing.assign(source=folder)


def sites(prepared: Prepared) -> pd.DataFrame:
    """Return the site of each study, by study id, where there are several.

    Of more than `MOST_SITES` the smallest are one group, which comes last.
    """
    studies = prepared.studies.set_index("study_id")
    if "site" not in studies or studies["site"].nunique() < 2:
        return pd.DataFrame(index=studies.index)
    site = studies["site"].astype(object).where(studies["site"].notna(), None)
    patients = studies["patient_id"].groupby(site).nunique()
    largest = patients.sort_index().sort_values(ascending=False, kind="stable").index
    kept, rest = largest, []
    if len(largest) > MOST_SITES:
        kept, small = largest[: MOST_SITES - 1], largest[MOST_SITES - 1 :]
        rest = [f"{len(small)} smaller sites"]
        site = site.mask(site.isin(small), rest[0])
    names = pd.CategoricalDtype([*alphabetically(kept), *rest], ordered=True)
    return pd.DataFrame({"site": site.astype(names)})


def standing(prepared: Prepared) -> pd.DataFrame:
    """Return the subgroups that need no file, by study id: sites and sources."""
    return pd.concat([sites(prepared), sources(prepared)], axis=1)


def read(path: str | os.PathLike, prepared: Prepared) -> pd.DataFrame:
    """Read groups from a CSV file.

    The key is the first of the columns `study_id`, `patient_id`, `source`, `patient`, `study` and
    `id` that is there. It holds, in all rows alike (`matching`), study ids or patient ids as in
    `studies.parquet`, what `source` names there, or the last part of that, a volume's with or
    without its extension. Every other column is a subgroup; numbers of more than six values become
    thirds.

    Returns:
        One column a subgroup, by study id; a study that the file does not name is in no group.

    Raises:
        InputError: the file cannot be read, has no key or no other column, or names no study, or
            what its keys are is in doubt.
    """
    try:
        table = pd.read_csv(path, dtype=str, sep=None, engine="python", keep_default_na=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error):
        raise InputError(f"{path}: is not a CSV file in UTF-8") from None
    key = next((name for name in KEYS if name in table.columns), None)
    columns = [name for name in table.columns if name != key]
    if key is None or not columns:
        raise InputError(
            f"{path}: has {len(table.columns)} columns; a key ({', '.join(KEYS)}) and at least one "
            "other column are needed"
        )
    table = table.fillna("").assign(**{key: table[key].fillna("").map(normal_id)})
    table = table[table[key] != ""]
    if table[key].duplicated().any():
        raise InputError(f"{path}: {table[key].duplicated().sum()} rows repeat a {key}; keep one")
    rows = table.set_index(key)
    lines = dict(zip(rows.index, table.index + 2, strict=True))
    remedy = "write study ids into the column study_id"
    taken, named = match_rows(_readings(prepared), lines, "groups", lambda _: remedy)
    if not named:
        raise InputError(
            f"{path}: column {key} names none of the {len(prepared.studies)} studies of "
            f"{prepared.path}; give ids as in its studies.parquet, or the source's names"
        )
    if taken == "name":
        _refuse_one_name_for_two_patients(path, prepared, named, lines)
    values = rows.loc[list(named.values())].set_axis(list(named), axis=0)
    return pd.DataFrame({str(name): _grouped(values[name]) for name in columns}).reindex(
        prepared.studies["study_id"]
    )


def _readings(prepared: Prepared) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the identifiers of each study, by what a table's key may be."""
    studies = prepared.studies
    names = [PurePosixPath(source).name for source in studies["source"].astype(str)]
    columns = {
        "study_id": studies["study_id"].map(lambda name: (name,)),
        "patient_id": studies["patient_id"].map(lambda name: (name,)),
        "source": studies["source"].astype(str).map(lambda name: (name,)),
        "name": [(name, without_extension(name)) for name in names],
    }
    return {
        rule: dict(zip(studies["study_id"], identifiers, strict=True))
        for rule, identifiers in columns.items()
    }


def _refuse_one_name_for_two_patients(
    path: str | os.PathLike, prepared: Prepared, named: dict[str, str], lines: dict[str, int]
) -> None:
    patients = prepared.studies.set_index("study_id")["patient_id"]
    first: dict[str, str] = {}
    for study, key in named.items():
        other = first.setdefault(key, study)
        if patients[other] != patients[study]:
            raise InputError(
                f"{path}: line {lines[key]} names studies of two patients, {other} and {study}, "
                "which lie in two folders; write the whole source"
            )


def _grouped(column: pd.Series) -> pd.Series:
    column = column.str.strip()
    column = column.mask(column.str.lower().isin(_UNKNOWN))
    numbers = pd.to_numeric(column, errors="coerce")
    if (numbers.isna() == column.isna()).all() and numbers.nunique() > MOST_GROUPS:
        return thirds(numbers).astype(object)
    return column.astype(object).where(column.notna(), None)
