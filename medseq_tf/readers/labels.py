"""The labels of a cohort, a CSV file of one row a patient or study, read and checked.

One row a patient: a patient column (`patient_id`, `patient`, `id`, `participant_id`, or else the
first), one or more columns of 0, 1 or empty (unknown), and perhaps `split` (train, validation or
test). In place of the columns of 0 and 1 there may be one of names that exclude each other: the
classes. A reader whose patients may have several studies also takes one row a study. Errors name
lines and columns, never what stands in them (`table`), but for names of classes, which the user
asked for; nor does the file's name go into audits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes, find_classes
from medseq_tf.readers.columns import (
    ColumnOptions,
    ColumnValues,
    OtherColumns,
    columns_named,
    read_columns,
)
from medseq_tf.readers.names import read_names
from medseq_tf.readers.participants import check_participants
from medseq_tf.readers.storage import Place, is_file, name_of, place_in
from medseq_tf.readers.study import AuditEntry
from medseq_tf.readers.table import (
    PATIENT_COLUMNS,
    SPLITS,
    Line,
    Table,
    column_name,
    is_unknown,
    read_table,
    refuse_rivals,
)


class TableOptions(ColumnOptions, total=False):
    """What the columns of a table of labels are, beside those of 0 and 1.

    Attributes:
        classes: the column of names (or numbers) that exclude each other.
        ordered: its names, the lowest first, where they are grades.

    The others are those of `ColumnOptions`.
    """

    classes: str | None
    ordered: str | Sequence[str] | None


class LabelRow(NamedTuple):
    """One row of a table of labels.

    Attributes:
        line: in the file.
        labels: label -> 0.0, 1.0 or nan.
        split: `train`, `validation`, `test` or None.
        patient: whose it is, where a column says.
        others: what columns that are no labels say, see `columns.Values`.
    """

    line: int
    labels: dict[str, float]
    split: str | None
    patient: str | None
    others: dict[str, Any]

    @property
    def is_unknown(self) -> bool:
        """Whether not one label is known."""
        return all(map(math.isnan, self.labels.values()))


class LabelTable(NamedTuple):
    """The labels of a data set.

    Attributes:
        path: the file.
        bytes: its size.
        names: the label columns, or the classes.
        rows: by the value of the key column, as `normal_id` writes it.
        repeated: lines that say again what an earlier one says.
        key: the name of the key column; "" where the first is taken, whatever its name.
        rivals: where the first is taken, other columns that could be ids (no two values are
            equal): value -> line.
        classes: what the names are, where they exclude each other.
        columns: which columns are no labels.
        participants: what was odd about those of them that stand in another table.
    """

    path: Place
    bytes: int
    names: list[str]
    rows: dict[str, LabelRow]
    repeated: list[int]
    key: str = ""
    rivals: Sequence[dict[str, int]] = ()
    classes: Classes | None = None
    columns: OtherColumns | None = None
    participants: Sequence[AuditEntry] = ()

    def refuse_rivals(self, identifiers: Iterable[str]) -> None:
        """Refuse a key column that nothing names if another column fits, see `table`.

        Args:
            identifiers: of the studies, by the rule that is taken.

        Raises:
            InputError: if an identifier stands in another column, on another line.
        """
        refuse_rivals(self.lines, self.rivals, identifiers)

    @property
    def listing(self) -> tuple[str, int]:
        """(name, size in bytes) of the file."""
        return name_of(self.path), self.bytes

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
            *self.participants,
        ]


def labels_in(root: Place) -> Place | None:
    """Return the place of `labels.csv` in a source; None where there is none."""
    place = place_in(root, "labels.csv")
    return place if is_file(place) else None


def read_labels(
    path: Place,
    columns: Sequence[str] | None = None,
    study_columns: Sequence[str] = (),
    keys: Sequence[str] | None = None,
    **options: Unpack[TableOptions],
) -> LabelTable:
    """Read a CSV file of labels.

    Args:
        path: the file, or its URL: UTF-8; comma, semicolon or tab.
        columns: the label columns. Default: all but patient, study, split, and those that the
            options name.
        study_columns: names, in lower case, of a column that says which study a row is of; where
            one is there it is the key, and the patient column only says whose study it is.
        keys: those of them that may be the key; default: all.
        **options: see `TableOptions`.

    Raises:
        InputError: if the file cannot be used, has no header, or puts a patient in two splits.
    """
    classes, ordered = options.get("classes"), options.get("ordered")
    _refuse_what_excludes_each_other(columns, classes, ordered)
    table, beside = read_table(path, study_columns, keys), columns_named(options).all
    if classes is not None:
        columns = [classes]
    elif not columns:
        no_labels = {*table.reserved, *study_columns, *PATIENT_COLUMNS, *beside}
        columns = [name for name in table.header if name not in no_labels]
    chosen = [column_name(name) for name in columns]
    _refuse_what_are_no_labels(table, chosen, beside, "label" if classes is None else "class")
    values = read_columns(options, table)
    if classes is None:
        found, names = None, chosen
        labels = {line.number: _labels(table, line, names) for line in table.lines}
    else:
        found, labels = _classes(table, chosen[0], ordered)
        names = list(found.names)
    rows, repeated = _rows(table, labels, values)
    _refuse_patients_in_two_splits(table.path, rows)
    return LabelTable(
        table.path,
        table.bytes,
        names,
        rows,
        repeated,
        table.key,
        rivals=table.rivals((*chosen, *beside)),
        classes=found,
        columns=values and values.columns,
        participants=_participants_entries(values, table, rows),
    )


def _participants_entries(
    values: ColumnValues | None, table: Table, rows: Mapping[str, LabelRow]
) -> list[AuditEntry]:
    if values is None or values.table is table:
        return []
    first: dict[str, str] = {}
    for key, row in rows.items():
        first.setdefault(row.patient or key, f"labels line {row.line}")
    return check_participants(values, first)


def _refuse_what_excludes_each_other(
    columns: Sequence[str] | None, classes: str | None, ordered: object
) -> None:
    if classes is not None and columns:
        raise InputError(
            "columns are of 0 and 1, classes is one column of names that exclude each other; give "
            "one of the two"
        )
    if ordered is not None and classes is None:
        raise InputError("ordered is the order of classes; name their column with classes")


def _refuse_what_are_no_labels(
    table: Table, names: Sequence[str], beside: Collection[str], kind: str
) -> None:
    absent = [name for name in names if name not in table.header or name in table.reserved]
    if absent or not names:
        raise InputError(
            f"{table.path} has no {kind} column {', '.join(absent)}".rstrip()
            + f"; its columns: {table.columns}"
        )
    if len(set(names)) < len(names):
        raise InputError(f"columns names a label column twice: {', '.join(names)}")
    if both := [name for name in names if name in beside]:
        raise InputError(f"column {both[0]!r} is a label, and named as site, date or covariate")


_Labels = dict[int, dict[str, float]]
"""The labels in each line, by its number."""


def _labels(table: Table, line: Line, names: Sequence[str]) -> dict[str, float]:
    return {name: _label(table, line, name) for name in names}


def _classes(
    table: Table, column: str, ordered: str | Sequence[str] | None
) -> tuple[Classes, _Labels]:
    """The classes in a column, and the labels in each line: one-hot."""
    names = read_names(table, column, "class")
    known = [name for name in names.values() if name is not None]
    classes, called = find_classes(table.where(column), column, known, ordered)
    one_hot = {
        number: classes.one_hot(None if name is None else called[name])
        for number, name in names.items()
    }
    return classes, one_hot


def _rows(
    table: Table, labels: _Labels, values: ColumnValues | None
) -> tuple[dict[str, LabelRow], list[int]]:
    """The rows by the value of the key column, and the lines that say one again."""
    rows: dict[str, LabelRow] = {}
    repeated = []
    for line in table.lines:
        split, key = _split(table.path, line), line.key
        if values is not None and values.table is not table:
            key = line.patient or key
        others = {} if values is None else values.of(key)
        row = LabelRow(line.number, labels[line.number], split, line.patient, others)
        if line.key in rows:
            _refuse_contradiction(table.path, rows[line.key], row)
            repeated.append(line.number)
        else:
            rows[line.key] = row
    return rows, repeated


def _label(table: Table, line: Line, name: str) -> float:
    if is_unknown(line.values[name]):
        return math.nan
    try:
        number = float(line.values[name])
    except ValueError:
        number = math.inf
    if number not in (0.0, 1.0):
        raise InputError(
            f"{table.where(name, line.number)} is not 0, 1 or empty; if it is not a label, name "
            "the label columns with columns=; one column of names that exclude each other is given "
            "by --classes NAME"
        )
    return number


def _split(path: Place, line: Line) -> str | None:
    value = line.values.get("split", "").strip().lower()
    if not value:
        return None
    if value not in SPLITS:
        raise InputError(f"{path} line {line.number}: split is none of train, validation, test")
    return SPLITS[value]


def _refuse_contradiction(path: Place, first: LabelRow, second: LabelRow) -> None:
    both = f"{path} lines {first.line} and {second.line}"
    if first.split != second.split:
        raise InputError(f"{both} put one patient in two splits; one split a patient")
    if first.patient != second.patient:
        raise InputError(f"{both} give one study two patients; one row a study")
    if repr(first.labels) != repr(second.labels):
        raise InputError(f"{both} give one patient two labels; one row a patient")


def _refuse_patients_in_two_splits(path: Place, rows: dict[str, LabelRow]) -> None:
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
