"""Takes a CSV file of labels; gives its rows by patient (or by study), checked.

One row a patient: a patient column (`patient_id`, `patient`, `id`, or else the first), one or more
columns of 0, 1 or empty (unknown), and perhaps `split` (train, validation or test). A reader whose
patients may have several studies also takes one row a study. Errors name lines and columns, never
what stands in them: it may identify someone.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medseq_tf.errors import InputError

PATIENT_COLUMNS = ("patient_id", "patient", "id")
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}

_UNKNOWN = {"", "nan", "na", "n/a"}


class LabelRow(NamedTuple):
    """One row: its line in the file, its labels, its split, and its patient where a column says."""

    line: int
    labels: dict[str, float]
    split: str | None
    patient: str | None

    @property
    def is_unknown(self) -> bool:
        """Whether not one label is known."""
        return all(map(math.isnan, self.labels.values()))


class LabelTable(NamedTuple):
    """The labels of a data set.

    Attributes:
        path: the file.
        names: the label columns.
        rows: by the value of the key column.
        repeated: lines that say again what an earlier one says.
    """

    path: Path
    names: list[str]
    rows: dict[str, LabelRow]
    repeated: list[int]

    @property
    def listing(self) -> tuple[str, int]:
        """(name, size in bytes) of the file."""
        return self.path.name, self.path.stat().st_size


def read_labels(
    path: str | Path,
    columns: Sequence[str] | None = None,
    study_columns: Sequence[str] = (),
) -> LabelTable:
    """Reads a CSV file of labels.

    Args:
        path: the file: UTF-8; comma, semicolon or tab.
        columns: the label columns. Default: all but patient, study and split.
        study_columns: names, in lower case, of a column that says which study a row is of; where
            one is there it is the key, and the patient column only says whose study it is.

    Raises:
        InputError: if the file cannot be used, or puts a patient in two splits.
    """
    path = Path(path)
    special = (*study_columns, *PATIENT_COLUMNS, "split")
    header, lines = _read_csv(path, special)
    patient_column = next((name for name in PATIENT_COLUMNS if name in header), None)
    key_column = next((name for name in study_columns if name in header), None)
    key_column = key_column or patient_column or header[0]
    not_labels = {patient_column, key_column, "split"} | set(study_columns)
    names = list(columns or [column for column in header if column not in not_labels])
    absent = [name for name in names if name not in header or name in not_labels]
    if absent or not names:
        raise InputError(
            f"{path} has no label column {', '.join(absent)}".rstrip()
            + f"; its columns: {', '.join(header)}"
        )
    rows, repeated = {}, []
    for line, values in lines:
        key = values[key_column].strip()
        if not key:
            raise InputError(f"{path} line {line} has no value in column {key_column!r}")
        row = LabelRow(
            line,
            {name: _label(values[name], path, line, name) for name in names},
            _split(values.get("split", ""), path, line),
            (values.get(patient_column) or "").strip() or None,
        )
        if key in rows:
            _refuse_contradiction(path, rows[key], row)
            repeated.append(line)
        else:
            rows[key] = row
    _refuse_patients_in_two_splits(path, rows)
    return LabelTable(path, names, rows, repeated)


def _read_csv(
    path: Path, special: Sequence[str]
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names in lower case but for labels' own spelling, and the rows with their lines."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; labels is a CSV file, one row a patient"
        ) from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read as a CSV file in UTF-8") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return _header_and_rows(path, reader, special)
    except csv.Error:
        raise InputError(f"{path} line {reader.line_num} cannot be read as CSV") from None


def _header_and_rows(path: Path, reader, special: Sequence[str]):
    header = [_column(name, special) for name in next(reader, [])]
    if len(header) < 2 or len(set(header)) < len(header) or "" in header:
        raise InputError(
            f"{path} needs a header of distinct column names: a patient column and 0/1 columns"
        )
    rows = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise InputError(
                f"{path} line {reader.line_num} has {len(values)} values for {len(header)} columns"
            )
        rows.append((reader.line_num, dict(zip(header, values, strict=True))))
    return header, rows


def _column(name: str, special: Sequence[str]) -> str:
    name = name.strip()
    return name.lower() if name.lower() in special else name


def _label(value: str, path: Path, line: int, column: str) -> float:
    if value.strip().lower() in _UNKNOWN:
        return math.nan
    try:
        number = float(value)
    except ValueError:
        number = math.inf
    if number not in (0.0, 1.0):
        raise InputError(
            f"{path} line {line}, column {column!r} is not 0, 1 or empty; "
            f"if it is not a label, name the label columns with columns="
        )
    return number


def _split(value: str, path: Path, line: int) -> str | None:
    value = value.strip().lower()
    if not value:
        return None
    if value not in SPLITS:
        raise InputError(f"{path} line {line}: split is none of train, validation, test")
    return SPLITS[value]


def _refuse_contradiction(path: Path, first: LabelRow, second: LabelRow) -> None:
    both = f"{path} lines {first.line} and {second.line}"
    if first.split != second.split:
        raise InputError(f"{both} put one patient in two splits; one split a patient")
    if repr(first.labels) != repr(second.labels):
        raise InputError(f"{both} give one patient two labels; one row a patient")


def _refuse_patients_in_two_splits(path: Path, rows: dict[str, LabelRow]) -> None:
    first: dict[str, LabelRow] = {}
    for row in rows.values():
        if row.patient is None:
            continue
        other = first.setdefault(row.patient, row)
        if other.split != row.split:
            raise InputError(
                f"{path} lines {other.line} and {row.line} put one patient in two splits; "
                f"one split a patient"
            )
