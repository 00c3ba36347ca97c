"""Names in a column of a table, of which many rows have the same: classes, sites, categories.

They stand in files, reports and figures, so a name is one line of printable text, of at most 60
characters, and no path, no date, and nothing that a spreadsheet takes for a formula. Names are
compared without the spaces at their ends and in one Unicode form. Two that differ from each other
in capitals, spaces or leading zeros alone are taken for one that is misspelt, and refused.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from medseq_tf.errors import InputError
from medseq_tf.readers.matching import alike
from medseq_tf.readers.table import Table, is_unknown, number_of

MOST_CHARACTERS = 60
MOST_NAMES = {"class": 100, "site": 1000, "category": 20}
"""What there may be names of -> how many a column has at most."""
_DATE = re.compile(
    r"(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}|\d{1,2}/\d{1,2}/\d{2})(?:\D.*)?"
)
FEW_ROWS = 10
"""So many may all have names of their own; of more, half at most."""


def read_names(table: Table, column: str, kind: str) -> dict[int, str | None]:
    """Read a column of names.

    Args:
        table: the table.
        column: its column.
        kind: what they are names of, one of `MOST_NAMES`.

    Returns:
        The name in each line, by its number; None where it is unknown.

    Raises:
        InputError: one is no name, or there are so many that they are ids or measurements.
    """
    texts = {line.number: line.values[column] for line in table.lines}
    names = {n: None if is_unknown(text) else normal_name(text) for n, text in texts.items()}
    for number, name in names.items():
        if name is not None and (wrong := what_is_wrong(name)):
            raise InputError(f"{table.where(column, number)} is no name of a {kind}: {wrong}")
    known = [name for name in names.values() if name is not None]
    refuse_as_many_as_rows(table.where(column), known, kind)
    return names


def normal_name(text: str) -> str:
    """A name in the one form that is compared."""
    return unicodedata.normalize("NFC", text).strip()


def what_is_wrong(name: str) -> str | None:
    """Say why a text is no name; None where it is one."""
    if not name:
        return "it is empty"
    if len(name) > MOST_CHARACTERS:
        return f"it has {len(name)} characters, of {MOST_CHARACTERS} at most"
    if not name.isprintable():
        return "it holds a line break or another character that is not printable"
    if name[0] in "=+-@" and number_of(name) is None:
        return "it begins like a formula of a spreadsheet, with = + - or @"
    if any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)):
        return "it reads like a path"
    if _DATE.fullmatch(name):
        return "it is a date"
    if name.count("$") > 1:
        return "it holds two $, between which figures set a formula"
    return None


def refuse_as_many_as_rows(where: str, names: Sequence[str], kind: str) -> None:
    """Raise an InputError if a column holds too many names for so many rows."""
    distinct, most = len(set(names)), MOST_NAMES[kind]
    if distinct > most or (len(names) > FEW_ROWS and distinct > len(names) / 2):
        raise InputError(
            f"{where} holds {distinct} different values in {len(names)} rows, as ids or "
            f"measurements do; names of a {kind} are {most} at most, and half as many as "
            f"rows where these are more than {FEW_ROWS}"
        )


def refuse_misspelt(where: str, names: Iterable[str], kind: str) -> None:
    """Raise an InputError if two names differ in capitals, spaces or leading zeros alone."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(alike("".join(name.split())), name)
        if other != name:
            raise InputError(
                f"{where} holds {other!r} and {name!r}, which differ only in capitals, spaces or "
                f"leading zeros; write one {kind} in one way"
            )


def number_text(number: float) -> str:
    """A number as a name: the shortest text that is it.

    >>> number_text(2.0), number_text(0.5), number_text(1e300)
    ('2', '0.5', '1e+300')
    """
    return repr(number).removesuffix(".0") if number else "0"


def by_value(names: Iterable[str]) -> Mapping[str, str] | None:
    """Names that are all numbers -> what each is called, in order; None where one is no number.

    >>> by_value(["10", "2.0", "2"])
    {'2.0': '2', '2': '2', '10': '10'}
    """
    numbers = {name: number_of(name) for name in names}
    known = {name: number for name, number in numbers.items() if number is not None}
    if len(known) < len(numbers):
        return None
    return {name: number_text(known[name]) for name in sorted(known, key=known.__getitem__)}


def alphabetically(names: Iterable[str]) -> list[str]:
    """The different names, in an order that does not heed capitals."""
    return sorted(set(names), key=lambda name: (name.casefold(), name))


def listed(value: str | Iterable[str]) -> list[str]:
    """What a user lists, in one text with commas, as a line of CSV, or one by one.

    Raises:
        InputError: the text is no such line.

    >>> listed('age, "a, b"'), listed(["x"])
    (['age', 'a, b'], ['x'])
    """
    if not isinstance(value, str):
        return [normal_name(str(item)) for item in value]
    try:
        items = next(csv.reader([value], skipinitialspace=True), [])
    except csv.Error:
        raise InputError(f"{value!r} is no list with commas, in one line") from None
    return [normal_name(item) for item in items]
