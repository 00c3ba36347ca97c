"""Which row of the labels a DICOM study belongs to, and whose study it is.

One rule for the whole table says what the key of a row is (`readers.labels`, `readers.matching`):
the StudyInstanceUID, the AccessionNumber, the PatientID, or the name of the folder directly under
the source that holds the study. `match` names it, or the key column does: `study_instance_uid`,
`accession_number` or `folder` (which come before a patient column) or `patient_id`. For a column
of another name (`study`, `patient`, `id`, the first) the identifier that fits is taken and said in
the audit; where two fit and disagree, which one is asked for. A row is of one patient: his studies
are those of a PatientID, and those that the table's patient column says are his.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.series import Stack
from medseq_tf.readers.labels import LabelRow, LabelTable
from medseq_tf.readers.matching import lines_alike, match_rows, normal_id, why_unmatched
from medseq_tf.readers.storage import Place
from medseq_tf.readers.study import AuditEntry
from medseq_tf.readers.table import PATIENT_COLUMNS

Match = Literal["study_instance_uid", "accession_number", "patient_id", "folder"]
RULES: tuple[str, ...] = get_args(Match)
STUDY_COLUMNS = ("study_instance_uid", "accession_number", "folder", "study")

_COLUMNS_MEAN = {
    "study": ("study_instance_uid", "accession_number", "folder"),
    "patient": ("patient_id", "folder"),
}
"""What the key may be where its column is called otherwise than the identifiers; else: any."""


class LabelledStack(NamedTuple):
    """A series, the row of its study, and its patient."""

    stack: Stack
    row: LabelRow
    patient: str


def match_labels(
    stacks: Sequence[Stack],
    modality: str,
    table: LabelTable,
    root: Place,
    match: str | None,
    audit_entries: list[AuditEntry],
) -> tuple[str, list[LabelledStack]]:
    """Match series to rows by one rule.

    Args:
        stacks: one a study, or more.
        modality: those of another one are left out.
        table: the labels.
        root: the source, for errors.
        match: the rule; None: what the table's key column says, or the one that fits.
        audit_entries: what is odd is added.

    Returns:
        The rule, and the series that have a row.

    Raises:
        InputError: if no rule fits, or what belongs to what is in doubt.
    """
    rules = _rules(table, match)
    readings = {rule: {stack.name: stack.identifiers[rule] for stack in stacks} for rule in rules}
    rule, keys = match_rows(readings, table.lines)
    if rule is None:
        raise InputError(
            f"no study of {root} is in the labels; a row's key is the studies' "
            f"{' or '.join(rules)} (--match says which)"
        )
    table.refuse_rivals(name for stack in stacks for name in stack.identifiers[rule])
    if len(rules) > 1:
        audit_entries.append(AuditEntry("labels matched", "labels", f"by {rule}"))
    is_of_a_study = table.key in PATIENT_COLUMNS and rule.startswith(("study", "accession"))
    near, matched = lines_alike(table.lines), []
    for stack in stacks:
        key = keys.get(stack.name)
        if stack.modality != modality:
            detail = f"{stack.modality} in a data set of {modality}"
            audit_entries.append(AuditEntry("study left out", stack.name, detail))
        elif key is None or table.rows[key].is_unknown:
            detail = "every label is empty"
            if key is None:
                detail = why_unmatched(stack.identifiers[rule], near, "labels")
            audit_entries.append(
                AuditEntry("patient without label", stack.name, f"{detail}; left out")
            )
        else:
            row = table.rows[key]
            matched.append((stack, row._replace(patient=None) if is_of_a_study else row))
    audit_entries += table.audit_entries(set(keys.values()))
    return rule, _with_patients(matched, audit_entries)


def _rules(table: LabelTable, match: str | None) -> tuple[str, ...]:
    if match or table.key in RULES:
        return (match or table.key,)
    return _COLUMNS_MEAN.get(table.key, RULES)


def _with_patients(
    matched: list[tuple[Stack, LabelRow]], audit_entries: list[AuditEntry]
) -> list[LabelledStack]:
    """Add to each study whose it is: as the labels say, or else by its PatientID.

    Raises:
        InputError: if the labels part the studies of a PatientID, if studies of two patients share
            a row, or if one patient is in two splits.
    """
    first_of_id: dict[str, tuple[Stack, LabelRow]] = {}
    first_of_row: dict[int, tuple[Stack, str]] = {}
    first_of_patient: dict[str, tuple[Stack, LabelRow]] = {}
    ids: dict[str, set[str]] = defaultdict(set)
    labelled = []
    for stack, row in matched:
        has_id = normal_id(*stack.identifiers["patient_id"]) != ""
        other, other_row = first_of_id.setdefault(stack.patient, (stack, row))
        if has_id and other_row.patient != row.patient:
            raise InputError(
                f"{other.name} and {stack.name} have one PatientID, and labels lines "
                f"{other_row.line} and {row.line} give them two patients; correct the labels' "
                "patient column, or leave it out"
            )
        patient = row.patient or stack.patient
        ids[patient] |= {stack.patient} if has_id else set()
        other, owner = first_of_row.setdefault(row.line, (stack, patient))
        if owner != patient:
            raise InputError(
                f"{other.name} and {stack.name} are of two patients and both labels line "
                f"{row.line}; if they are one patient's, call the key column patient_id and give "
                "--match"
            )
        other, other_row = first_of_patient.setdefault(patient, (stack, row))
        if other_row.split != row.split:
            raise InputError(
                f"labels lines {other_row.line} and {row.line} put one patient in two splits: "
                f"{other.name} and {stack.name}"
            )
        if not has_id and row.patient is None:
            detail = "taken for the only study of its patient"
            audit_entries.append(AuditEntry("study without PatientID", stack.name, detail))
        labelled.append(LabelledStack(stack, row, patient))
    joined = sum(len(own) > 1 for own in ids.values())
    if joined:
        detail = f"{joined} patients have several PatientIDs; the labels' patient column holds"
        audit_entries.append(AuditEntry("patients joined by the labels", "labels", detail))
    return labelled
