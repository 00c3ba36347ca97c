"""The participants: a table of columns that are no labels, matched to the patients of a source."""

from __future__ import annotations

from collections.abc import Mapping

from medseq_tf.errors import InputError
from medseq_tf.readers.columns import ColumnValues
from medseq_tf.readers.matching import lines_alike, why_unmatched
from medseq_tf.readers.study import AuditEntry
from medseq_tf.readers.table import PATIENT_COLUMNS, refuse_rivals


def check_participants(values: ColumnValues, patients: Mapping[str, str]) -> list[AuditEntry]:
    """Say which patients have no row among the participants, and which rows no patient.

    Args:
        values: what the participants' columns say.
        patients: keys -> what audit entries call their patients, such as `labels line 3`.

    Raises:
        InputError: no row is of one of them.
    """
    if not patients.keys() & values.by_key.keys():
        raise InputError(
            f"{values.table.path}: no row is of a patient with a label; its first column, or one "
            f"of {', '.join(PATIENT_COLUMNS)}, must name the patients as the labels do"
        )
    table = values.table
    lines = table.first_lines
    refuse_rivals(lines, table.rivals(), patients, "participants")
    repeated = [line.number for line in table.lines if line.number != lines[line.key]]
    near = lines_alike(lines)
    return [
        *(
            AuditEntry("patient without row", where, why_unmatched((key,), near, "participants"))
            for key, where in patients.items()
            if key not in lines
        ),
        *(
            AuditEntry("row for an unknown patient", f"participants line {line}")
            for key, line in lines.items()
            if key not in patients
        ),
        *(AuditEntry("row given twice", f"participants line {line}") for line in repeated),
    ]
