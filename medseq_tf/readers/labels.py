"""The labels of a cohort, a CSV file of one row a patient or study, read and checked.

One row a patient: a patient column (`patient_id`, `patient`, `id`, or else the first), one or more
columns of 0, 1 or empty (unknown), and perhaps `split` (train, validation or test). A reader whose
patients may have several studies also takes one row a study. Errors name lines and columns, never
what stands in them: it may identify someone. Where no column has one of those names, the first
line may be a patient's, and columns are named by number; nor does the file's name go into audits.

Keys are compared as `matching.normal_id` writes them. Two that only then become equal are an error.
"""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medseq_tf.errors import InputError
from medseq_tf.readers.matching import normal_id
from medseq_tf.readers.study import AuditEntry

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
        rows: by the value of the key column, as `normal_id` writes it.
        repeated: lines that say again what an earlier one says.
        key: the name of the key column; "" where the first is taken, whatever its name.
        rivals: where the first is taken, other columns that could be ids (no two values are
            equal): value -> line.
    """

    path: Path
    names: list[str]
    rows: dict[str, LabelRow]
    repeated: list[int]
    key: str = ""
    rivals: Sequence[dict[str, int]] = ()

    def refuse_rivals(self, identifiers: Iterable[str]) -> None:
        """Refuse a key column that nothing names if another column fits what it is matched to.

        Args:
            identifiers: of the studies, by the rule that is taken.

        Raises:
            InputError: if an identifier stands in another column, on another line.
        """
        if not self.rivals:
            return
        lines = self.lines
        for identifier in map(normal_id, identifiers):
            for rival in self.rivals:
                line, other = lines.get(identifier), rival.get(identifier)
                if other is not None and line != other:
                    raise InputError(
                        f"the key of line {other} of the labels may be its first column or another "
                        "one, which also fits; call the column of ids patient_id"
                    )

    @property
    def listing(self) -> tuple[str, int]:
        """(name, size in bytes) of the file."""
        return self.path.name, self.path.stat().st_size

    @property
    def lines(self) -> dict[str, int]:
        """The line of each key's row."""
        return {key: row.line for key, row in self.rows.items()}

    def audit_entries(self, used: Collection[str]) -> list[AuditEntry]:
        """What is odd about the rows, given the keys of those that belong to a study."""
        unused = [row.line for key, row in self.rows.items() if key not in used]
        return [
            *(AuditEntry("label for an unknown patient", f"labels line {line}") for line in unused),
            *(AuditEntry("row given twice", f"labels line {line}") for line in self.repeated),
        ]


def read_labels(
    path: str | Path,
    columns: Sequence[str] | None = None,
    study_columns: Sequence[str] = (),
    keys: Sequence[str] | None = None,
) -> LabelTable:
    """Read a CSV file of labels.

    Args:
        path: the file: UTF-8; comma, semicolon or tab.
        columns: the label columns. Default: all but patient, study and split.
        study_columns: names, in lower case, of a column that says which study a row is of; where
            one is there it is the key, and the patient column only says whose study it is.
        keys: those of them that may be the key; default: all.

    Raises:
        InputError: if the file cannot be used, has no header, or puts a patient in two splits.
    """
    path = Path(path)
    special = dict.fromkeys((*study_columns, *PATIENT_COLUMNS, "split"))
    header, lines = _read_csv(path, special)
    patient_column = next((name for name in PATIENT_COLUMNS if name in header), None)
    keys = study_columns if keys is None else keys
    key = next((name for name in keys if name in header), None) or patient_column
    reserved = {key or header[0], patient_column, "split"}
    if columns:
        names = [_column(name, ()) for name in columns]
    else:
        names = [name for name in header if name not in reserved and name not in special]
    absent = [name for name in names if name not in header or name in reserved]
    if absent or not names:
        raise InputError(
            f"{path} has no label column {', '.join(absent)}".rstrip()
            + f"; its columns: {_shown(header, has_key=key is not None)}"
        )
    if len(set(names)) < len(names):
        raise InputError(f"columns names a label column twice: {', '.join(names)}")
    rows, repeated = _rows(path, header, lines, names, key, patient_column)
    _refuse_patients_in_two_splits(path, rows)
    others = [] if key else [name for name in header[1:] if name not in (*names, *reserved)]
    return LabelTable(path, names, rows, repeated, key or "", _columns_of_ids(lines, others))


_Lines = list[tuple[int, dict[str, str]]]
"""The lines of a file by number, each with its values by column."""


def _rows(
    path: Path,
    header: Sequence[str],
    lines: _Lines,
    names: Sequence[str],
    key: str | None,
    patient_column: str | None,
) -> tuple[dict[str, LabelRow], list[int]]:
    """The rows by the value of the key column, and the lines that say one again."""
    rows: dict[str, LabelRow] = {}
    repeated = []
    spellings: dict[tuple[str, str], tuple[str, int]] = {}
    for line, values in lines:
        identifier = _identifier(path, spellings, line, "key", values[key or header[0]])
        patient = _identifier(
            path, spellings, line, "patient", values.get(patient_column or "", "")
        )
        if not identifier:
            column = f"column {key!r}" if key else "its first column"
            raise InputError(f"{path} line {line} has no value in {column}")
        labels = {
            name: _label(values[name], path, line, repr(name) if key else header.index(name) + 1)
            for name in names
        }
        if patient_column and not patient:
            raise InputError(f"{path} line {line} has no value in column {patient_column!r}")
        row = LabelRow(line, labels, _split(values.get("split", ""), path, line), patient or None)
        if identifier in rows:
            _refuse_contradiction(path, rows[identifier], row)
            repeated.append(line)
        else:
            rows[identifier] = row
    return rows, repeated


def _columns_of_ids(lines: _Lines, names: Sequence[str]) -> list[dict[str, int]]:
    """The columns whose values are all there and all differ: value -> line."""
    columns = [{normal_id(values[name]): line for line, values in lines} for name in names]
    return [column for column in columns if len(column) == len(lines) and "" not in column]


def _shown(header: Sequence[str], has_key: bool) -> str:
    """The columns as errors name them: by number where the first line may be a patient's."""
    if has_key:
        return ", ".join(header)
    return f"{len(header)}, none of them called {' or '.join(PATIENT_COLUMNS)}"


def _identifier(
    path: Path,
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


def _read_csv(path: Path, special: Collection[str]) -> tuple[list[str], _Lines]:
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
        return _header_and_lines(path, reader, special)
    except csv.Error:
        raise InputError(f"{path} line {reader.line_num} cannot be read as CSV") from None


def _header_and_lines(
    path: Path, reader: Any, special: Collection[str]
) -> tuple[list[str], _Lines]:
    header = [_column(name, special) for name in next(reader, [])]
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
    return bool(rest) and (empty or any(map(_is_number, rest)))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _column(name: str, special: Collection[str]) -> str:
    name = unicodedata.normalize("NFC", name).strip()
    return name.lower() if name.lower() in special else name


def _label(value: str, path: Path, line: int, column: str | int) -> float:
    if value.strip().lower() in _UNKNOWN:
        return math.nan
    try:
        number = float(value)
    except ValueError:
        number = math.inf
    if number not in (0.0, 1.0):
        raise InputError(
            f"{path} line {line}, column {column} is not 0, 1 or empty; "
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
    if first.patient != second.patient:
        raise InputError(f"{both} give one study two patients; one row a study")
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
