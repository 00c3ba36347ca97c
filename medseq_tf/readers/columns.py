"""Columns of a table that are no labels: the site, the date and covariates of a study.

They stand in the table of labels, or in one of their own, the participants (as `participants.tsv`
of BIDS): one row a patient, whose key is the labels' patient. Empty, nan, na and n/a are missing.

    site         a name (`names`)
    date         all of a column as 2024-01-31 (a time of day may follow and says nothing) or
                 20240131, or all numbers; of them the data set keeps the order alone
    covariate    a number where all known values are finite numbers, else one of a few names

A covariate whose values are dates is refused: it would keep them. What a row says holds for its
key: a patient may have two values only where rows are of studies, with a column that is their key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from medseq_tf.errors import InputError
from medseq_tf.readers.names import (
    MOST_NAMES,
    alphabetically,
    listed,
    read_names,
    refuse_misspelt,
    what_is_wrong,
)
from medseq_tf.readers.storage import Place
from medseq_tf.readers.table import (
    PATIENT_COLUMNS,
    Table,
    column_name,
    is_unknown,
    number_of,
    read_table,
)

COVARIATE = "covariate."

SiteNames = Literal["keep", "hash"]
Values = dict[str, Any]
"""What the columns say of a study: `site`, `date` and `covariate.<name>`; None where missing."""

_ISO = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ]\d{2}(?::?\d{2}){0,2}(?:\.\d+)?(?:Z|[+-]\d{2}:?\d{2})?)?"
)
_DICOM = re.compile(r"(?:19|20)\d{6}")


class ColumnOptions(TypedDict, total=False):
    """Which columns of a table are no labels.

    Attributes:
        participants: another table that holds them, one row a patient. Default: that of labels.
        site: the column of sites.
        site_names: `keep` the names, by which reports then call the sites, or `hash` them, salted
            as ids are. Default: `keep`: a place is nobody's name, and tables by site are read by
            those who know the sites.
        date: the column of dates; the data set keeps their order alone.
        covariates: columns of numbers or of a few names, such as age and sex.
    """

    participants: Place | None
    site: str | None
    site_names: SiteNames | None
    date: str | None
    covariates: str | Sequence[str] | None


@dataclass(frozen=True)
class OtherColumns:
    """The columns of a data set that are no labels.

    Attributes:
        site: what the table calls the column of sites; None: there is none.
        site_names: whether their names are kept.
        date: what it calls that of dates.
        covariates: name -> `{"kind": "number"}` or `{"kind": "category", "categories": [...]}`.
    """

    site: str | None = None
    site_names: SiteNames = "keep"
    date: str | None = None
    covariates: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What they are called in `studies.parquet`."""
        single = {"site": self.site, "date": self.date}
        return [
            *(name for name, column in single.items() if column is not None),
            *(f"{COVARIATE}{name}" for name in self.covariates),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return what `dataset.json` says of them."""
        stored: dict[str, Any] = {}
        if self.site is not None:
            stored["site"] = {"column": self.site, "names": self.site_names}
        if self.date is not None:
            stored["date"] = {"column": self.date}
        if self.covariates:
            stored["covariates"] = dict(self.covariates)
        return stored


class ColumnValues(NamedTuple):
    """What the columns of a table say.

    Attributes:
        columns: which they are.
        table: where they stand.
        by_key: the values of each key's row.
    """

    columns: OtherColumns
    table: Table
    by_key: dict[str, Values]

    def of(self, key: str) -> Values:
        """What is said of a key; of one without a row everything is missing."""
        return self.by_key.get(key) or dict.fromkeys(self.columns.names)


class Named(NamedTuple):
    """The columns that options name: of sites (kept by name or hashed), dates, each covariate."""

    site: str | None
    site_names: SiteNames
    date: str | None
    covariates: list[str]

    @property
    def all(self) -> list[str]:
        """All of them, in the order of `OtherColumns.names`."""
        return [*filter(None, (self.site, self.date)), *self.covariates]


def columns_named(options: ColumnOptions) -> Named:
    """Name the columns that are no labels.

    Raises:
        InputError: one is named twice, or an option has no column.
    """
    single = (options.get("site"), options.get("date"))
    site, day = (None if name is None else column_name(name) for name in single)
    covariates = [column_name(name) for name in listed(options.get("covariates") or ())]
    named = Named(site, options.get("site_names") or "keep", day, covariates)
    if twice := [name for name in named.all if named.all.count(name) > 1]:
        raise InputError(f"column {twice[0]!r} is named twice; it is one of site, date, covariates")
    if options.get("participants") is not None and not named.all:
        raise InputError(
            "participants are read for their columns; name them: site, date, covariates"
        )
    if named.site_names not in get_args(SiteNames):
        raise InputError(f"site_names={named.site_names!r} is unknown; valid: keep, hash")
    if named.site_names != "keep" and site is None:
        raise InputError("site_names says how sites are called; name their column with site")
    return named


def read_columns(options: ColumnOptions, labels: Table | None = None) -> ColumnValues | None:
    """Read the columns that are no labels; None where none is asked for.

    Args:
        options: which, and from where.
        labels: the table of labels, which holds them where there are no participants.

    Raises:
        InputError: the table has no such column, or one that is another thing.
    """
    named, participants = columns_named(options), options.get("participants")
    if not named.all:
        return None
    if participants is not None:
        what = "participants is a CSV or TSV file, one row a patient"
        table = read_table(participants, what=what)
    elif labels is not None:
        table = labels
    else:
        raise InputError(f"no table has the column {named.all[0]}; give participants, a CSV")
    _refuse_absent(table, named.all)
    by_name: dict[str, dict[int, Any]] = {}
    if named.site is not None:
        by_name["site"] = _sites(table, named.site)
    if named.date is not None:
        by_name["date"] = _days(table, named.date)
    covariates: dict[str, dict[str, Any]] = {}
    for name in named.covariates:
        covariates[name], by_name[f"{COVARIATE}{name}"] = _covariate(table, name)
    columns = OtherColumns(named.site, named.site_names, named.date, covariates)
    return ColumnValues(columns, table, _by_key(table, named.all, by_name))


def _refuse_absent(table: Table, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.header or name in {*table.reserved, *PATIENT_COLUMNS}:
            raise InputError(
                f"{table.path} has no column {name} to be a site, date or covariate; its columns: "
                f"{table.columns}"
            )
        if wrong := what_is_wrong(name):
            raise InputError(f"{table.path}: column {name!r} cannot be kept by its name: {wrong}")


def _by_key(
    table: Table, columns: Sequence[str], by_name: Mapping[str, Mapping[int, Any]]
) -> dict[str, Values]:
    """The values of each key's row.

    Raises:
        InputError: two rows of a key give two values of a column.
    """
    first = table.first_lines
    by_key: dict[str, Values] = {}
    for line in table.lines:
        values = {name: values[line.number] for name, values in by_name.items()}
        before = by_key.setdefault(line.key, values)
        for column, name in zip(columns, values, strict=True):
            if values[name] != before[name]:
                raise InputError(
                    f"{table.path} lines {first[line.key]} and {line.number} give one patient, or "
                    f"study, two values in column {table.column(column)}; one row a patient, or "
                    "one a study with a column that is its key"
                )
    return by_key


def _known(table: Table, column: str, kind: str) -> dict[int, str]:
    """The known values of a column, by line."""
    texts = {line.number: line.values[column].strip() for line in table.lines}
    known = {number: text for number, text in texts.items() if not is_unknown(text)}
    if not known:
        raise InputError(f"{table.where(column)} has no {kind} in any row")
    return known


def _sites(table: Table, column: str) -> dict[int, str | None]:
    _known(table, column, "site")
    names = read_names(table, column, "site")
    refuse_misspelt(table.where(column), filter(None, names.values()), "site")
    return names


def _days(table: Table, column: str) -> dict[int, float | None]:
    """A number that grows with the date, by line; None where it is missing."""
    days: dict[int, float | None] = dict.fromkeys(line.number for line in table.lines)
    known = _known(table, column, "date")
    read = _day if _day(next(iter(known.values()))) is not None else number_of
    for number, text in known.items():
        days[number] = read(text)
        if days[number] is None:
            raise InputError(
                f"{table.where(column, number)} is no date, or none as the first is; write all as "
                "2024-01-31 or 20240131, or all as numbers"
            )
    return days


def _day(text: str) -> float | None:
    """The number of the day that a date is of, from the year 1 on; None for another text."""
    found = _ISO.fullmatch(text)
    if found is None and not _DICOM.fullmatch(text):
        return None
    try:
        return float(date.fromisoformat(found[1] if found else text).toordinal())
    except ValueError:
        return None


def _covariate(table: Table, column: str) -> tuple[dict[str, Any], dict[int, float | str | None]]:
    """What a covariate is, and its value by line."""
    values: dict[int, float | str | None] = dict.fromkeys(line.number for line in table.lines)
    known = _known(table, column, "value")
    where = table.where(column)
    if 2 * sum(_day(text) is not None for text in known.values()) > len(known):
        raise InputError(f"{where} holds dates, which are not kept; give it as date")
    numbers = {number: number_of(text) for number, text in known.items()}
    if None not in numbers.values():
        return {"kind": "number"}, {**values, **numbers}
    line = next(number for number, value in numbers.items() if value is None)
    count, most = len(set(known.values())), MOST_NAMES["category"]
    if count > most:
        raise InputError(
            f"{where} is no number in line {line}, and has {count} different values, of which a "
            f"category has {most} at most; leave unknown numbers empty"
        )
    names = read_names(table, column, "category")
    categories = alphabetically(filter(None, names.values()))
    refuse_misspelt(where, categories, "category")
    return {"kind": "category", "categories": categories}, {**values, **names}
