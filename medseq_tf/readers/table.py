"""A table of a cohort, a CSV file of one row a patient or study: its header, lines and keys.

Errors name lines and columns, never what stands in them: it may identify someone. Where no column
has a name that is known, the first line may be a patient's, and columns are named by number.

Keys are compared as `matching.normal_id` writes them. Two that only then become equal are an error.
"""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from medseq_tf.errors import InputError, printable
from medseq_tf.readers.matching import normal_id
from medseq_tf.readers.storage import Place, read_whole, root_of

PATIENT_COLUMNS = ("patient_id", "patient", "id", "participant_id")
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}

_UNKNOWN = {"", "nan", "na", "n/a"}


class Line(NamedTuple):
    """A line of a table, by its number in the file: its values by column, its key, its patient."""

    number: int
    values: dict[str, str]
    key: str
    patient: str | None


class Table(NamedTuple):
    """A table as it stands in its file.

    Attributes:
        path: the file.
        header: the names of its columns.
        lines: in the file's order.
        key: the name of the key column; "" where the first is taken, whatever its name.
        patient: the name of the column that says whose a row is, if there is one.
        bytes: the size of the file.
    """

    path: Place
    header: list[str]
    lines: list[Line]
    key: str
    patient: str | None
    bytes: int

    @property
    def reserved(self) -> set[str]:
        """The columns that say which row is whose."""
        return {self.key or self.header[0], "split", *([self.patient] if self.patient else [])}

    def column(self, name: str) -> str:
        """What errors call a column: by number where the first line may be a patient's."""
        return repr(name) if self.key else str(self.header.index(name) + 1)

    def where(self, column: str, line: int | None = None) -> str:
        """What errors call the place of a column, or of its value in a line."""
        place = f" line {line}," if line is not None else ":"
        return f"{self.path}{place} column {self.column(column)}"

    @property
    def first_lines(self) -> dict[str, int]:
        """The first line of each key."""
        first: dict[str, int] = {}
        for line in self.lines:
            first.setdefault(line.key, line.number)
        return first

    @property
    def columns(self) -> str:
        """The columns as errors list them."""
        if self.key:
            return printable(", ".join(self.header))
        return f"{len(self.header)}, none of them called {' or '.join(PATIENT_COLUMNS)}"

    def rivals(self, names: Collection[str] = ()) -> list[dict[str, int]]:
        """Columns that could be the key where the first is taken: value -> line.

        Their values are all there and all differ; those with one of the names are no such columns.
        """
        if self.key:
            return []
        columns = [
            {normal_id(line.values[name]): line.number for line in self.lines}
            for name in self.header
            if name not in self.reserved and name not in names
        ]
        return [c for c in columns if len(c) == len(self.lines) and "" not in c]


def refuse_rivals(
    lines: Mapping[str, int],
    rivals: Sequence[Mapping[str, int]],
    identifiers: Iterable[str],
    table: str = "labels",
) -> None:
    """Refuse a key column that nothing names if another column fits what it is matched to.

    Args:
        lines: key -> line.
        rivals: see `Table.rivals`.
        identifiers: of the studies or patients, by the rule that is taken.
        table: what errors call the table.

    Raises:
        InputError: an identifier stands in another column, on another line.
    """
    for identifier in map(normal_id, identifiers if rivals else ()):
        for rival in rivals:
            line, other = lines.get(identifier), rival.get(identifier)
            if other is not None and line != other:
                raise InputError(
                    f"the key of line {other} of the {table} may be its first column or another "
                    "one, which also fits; call the column of ids patient_id"
                )


def is_unknown(value: str) -> bool:
    """Whether a value says that nothing is known: it is empty, nan, na or n/a."""
    return value.strip().lower() in _UNKNOWN


def column_name(name: str, special: Collection[str] = ()) -> str:
    """The name of a column as it is compared: in lower case where it is a special one's."""
    name = unicodedata.normalize("NFC", name).strip()
    return name.lower() if name.lower() in special else name


def read_table(
    path: Place,
    study_columns: Sequence[str] = (),
    keys: Sequence[str] | None = None,
    what: str = "labels is a CSV file, one row a patient",
) -> Table:
    """Read a CSV file.

    Args:
        path: the file, or its URL: UTF-8; comma, semicolon or tab.
        study_columns: names, in lower case, of a column that says which study a row is of; where
            one is there it is the key, and the patient column only says whose study it is.
        keys: those of them that may be the key; default: all.
        what: what the file should be.

    Raises:
        InputError: if the file cannot be used or has no header, or a row no key.
    """
    path = root_of(path)
    special = dict.fromkeys((*study_columns, *PATIENT_COLUMNS, "split"))
    data = _content(path, what)
    header, lines = _read_csv(path, data, special)
    patient = next((name for name in PATIENT_COLUMNS if name in header), None)
    keys = study_columns if keys is None else keys
    key = next((name for name in keys if name in header), None) or patient or ""
    with_keys = list(_with_keys(path, header, lines, key, patient))
    return Table(path, header, with_keys, key, patient, len(data))


def _with_keys(
    path: Place, header: Sequence[str], lines: _Lines, key: str, patient_column: str | None
) -> Iterator[Line]:
    spellings: dict[tuple[str, str], tuple[str, int]] = {}
    for line, values in lines:
        identifier = _identifier(path, spellings, line, "key", values[key or header[0]])
        patient = _identifier(
            path, spellings, line, "patient", values.get(patient_column or "", "")
        )
        if not identifier:
            column = f"column {key!r}" if key else "its first column"
            raise InputError(f"{path} line {line} has no value in {column}")
        if patient_column and not patient:
            raise InputError(f"{path} line {line} has no value in column {patient_column!r}")
        yield Line(line, values, identifier, patient or None)


_Lines = list[tuple[int, dict[str, str]]]
"""The lines of a file by number, each with its values by column."""


def _identifier(
    path: Place,
    spellings: dict[tuple[str, str], tuple[str, int]],
    line: int,
    kind: str,
    text: str,
) -> str:
    """An id as it is compared; one that is written in two ways in one column is refused."""
    identifier = normal_id(text)
    first, first_line = spellings.setdefault((kind, identifier), (text, line))
    if identifier and first != text:
        raise InputError(
            f"{path} lines {first_line} and {line} have one {kind} in two spellings, which differ "
            "in spaces or in the Unicode form of letters; write both alike, or two ids"
        )
    return identifier


def _content(path: Place, what: str) -> bytes:
    if isinstance(path, str):
        return read_whole(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {what}") from None
    except OSError:
        raise InputError(f"{path} cannot be read as a CSV file in UTF-8") from None


def _read_csv(path: Place, data: bytes, special: Collection[str]) -> tuple[list[str], _Lines]:
    """Column names in lower case but for labels' own spelling, and the rows with their lines."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} cannot be read as a CSV file in UTF-8") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return _header_and_lines(path, reader, special)
    except csv.Error:
        raise InputError(f"{path} line {reader.line_num} cannot be read as CSV") from None


def _header_and_lines(
    path: Place, reader: Any, special: Collection[str]
) -> tuple[list[str], _Lines]:
    header = [column_name(name, special) for name in next(reader, [])]
    if _is_data(header, special):
        raise InputError(
            f"{path} has no header line: its first line looks like a patient's; put column names "
            "above it, such as patient_id and the label's name"
        )
    is_no_key = header[:1] == ["split"] or "".join(header[:1]).startswith("Unnamed:")
    if len(header) < 2 or len(set(header)) < len(header) or "" in header or is_no_key:
        raise InputError(
            f"{path} needs a header of distinct column names: a patient column and 0/1 columns"
        )
    lines = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise InputError(
                f"{path} line {reader.line_num} has {len(values)} values for {len(header)} columns"
            )
        lines.append((reader.line_num, dict(zip(header, values, strict=True))))
    return header, lines


def _is_data(header: Sequence[str], special: Collection[str]) -> bool:
    """Whether a first line is a row: no column has a name that is known, and one is a number.

    A line of nothing but splits and missing values beside its first is one, too.
    """
    if set(header) & set(special):
        return False
    rest = [name.strip().lower() for name in header[1:]]
    empty = all(name in _UNKNOWN or name in SPLITS for name in rest)
    return bool(rest) and (empty or any(number_of(name) is not None for name in rest))


def number_of(text: str) -> float | None:
    """The finite number that a text is; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
