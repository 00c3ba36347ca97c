"""The covariates of studies that are predicted, of a table of one row a patient.

Its columns are those of `prepare --participants`. A row's key is the PatientID of a DICOM study, or
the name of the file or folder that a study is, with or without its extension; or all of its path,
as it is given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath

from medseq_tf.errors import InputError
from medseq_tf.readers.matching import match_rows
from medseq_tf.readers.study import StudySource
from medseq_tf.readers.table import Line, Table, read_table
from medseq_tf.readers.volume_file import without_extension
from medseq_tf.serving.covariates import Values, covariate_vector
from medseq_tf.serving.description import Description


def read_participants(
    file: str | os.PathLike, description: Description, studies: Sequence[StudySource]
) -> dict[str, Values]:
    """Return the covariates of each study that the table has a row of, by the study's source.

    Raises:
        InputError: the model reads no covariates; or the table lacks one, has a value that is none,
            or no row of one of the studies.
    """
    covariates = description.covariates or []
    names = [covariate["name"] for covariate in covariates]
    if not names:
        raise InputError(f"{file}: the model reads no covariates, so it needs no participants")
    what = "participants is a CSV or TSV file, one row a patient"
    table = read_table(os.fspath(file), what=what)
    if missing := [name for name in names if name not in table.header]:
        raise InputError(
            f"{table.path} has no column {missing[0]}, which the model reads (cells may be empty); "
            f"its columns: {table.columns}"
        )
    values: dict[str, Values] = {}
    for line in table.lines:
        own = values.setdefault(line.key, _values(table, line, description))
        if own != {name: line.values[name] for name in names}:
            raise InputError(
                f"{table.path} line {line.number}: a row above has other values of its patient"
            )
    lines = {line.key: line.number for line in reversed(table.lines)}
    rules = {
        "path": {study.source: [study.source] for study in studies},
        "name": {study.source: _names(study.source) for study in studies},
        "PatientID": {s.source: [s.patient] for s in studies if s.patient not in ("", s.source)},
    }
    found = match_rows(rules, lines, "participants", lambda _: "name studies in one way")
    if found.rule == "name":
        _refuse_one_name_twice(table, found.keys, lines)
    if not found.keys:
        raise InputError(
            f"{table.path}: no row is of a study that is predicted; its first column, or "
            "patient_id, must name their files or folders, or the PatientIDs of DICOM studies"
        )
    return {source: values[key] for source, key in found.keys.items()}


def _refuse_one_name_twice(table: Table, keys: dict[str, str], lines: dict[str, int]) -> None:
    first: dict[str, str] = {}
    for source, key in keys.items():
        other = first.setdefault(key, source)
        if other != source:
            raise InputError(
                f"{other} and {source} are both {table.path} line {lines[key]} by their names; "
                "name them by their paths there"
            )


def _values(table: Table, line: Line, description: Description) -> Values:
    """Return the covariates that a row tells, if they are such."""
    covariates = description.covariates or []
    values = {covariate["name"]: line.values[covariate["name"]] for covariate in covariates}
    try:
        covariate_vector(covariates, values)
    except InputError as error:
        raise InputError(f"{table.path} line {line.number}: {error}") from None
    return values


def _names(source: str) -> list[str]:
    name = PurePath(source).name
    return [name, without_extension(name)]
