"""Which class a study is called: the most probable one, or the one of least expected cost."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.point_metrics import Array

TRUE_COLUMN = "true"
"""The column of a table of costs that names the true class."""


def call(probabilities: Array, costs: Array | None = None) -> Array:
    """Return the number of each study's called class, (studies,) int64.

    The class of the greatest probability, or with `costs` (true, called) the one whose cost, each
    true class's times its probability, is least (Elkan 2001, equation 1). Of equal ones it is the
    first.

    Args:
        probabilities: (studies, classes).
        costs: (classes, classes), what a study of the row's class costs when called the column's.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    if costs is None:
        return np.argmax(probabilities, axis=1)
    # Rounded, so that equal costs that are added in another order stay equal.
    return np.argmin((probabilities @ np.asarray(costs, dtype=float)).round(12), axis=1)


def read_costs(path: str | os.PathLike, names: Sequence[str]) -> Array:
    """Read what a wrong call costs from a CSV file: (classes, classes), true by called.

    Its header is `true` and the called classes; each row is a true class with its costs. Rows and
    columns may stand in any order.

    Raises:
        InputError: no such file, a class that is missing, unknown or there twice, or a cost that is
            no finite number of 0 or more.
    """
    path, names = Path(path), list(names)
    try:
        lines = [row for row in csv.reader(path.read_text("utf-8-sig").splitlines()) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no table of costs can be read: {error}") from None
    header, *rows = [[cell.strip() for cell in row] for row in lines] or [[""]]
    if header[0] != TRUE_COLUMN:
        raise InputError(
            f"{path}: the header is {','.join(header)!r}: expected {TRUE_COLUMN},{','.join(names)}"
        )
    _check_names(path, "column", header[1:], names)
    _check_names(path, "row", [row[0] for row in rows], names)
    costs = np.zeros((len(names), len(names)))
    for row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}: the row {row[0]!r} has {len(row) - 1} costs, the header {len(names)}"
            )
        for called, cell in zip(header[1:], row[1:], strict=True):
            place = (names.index(row[0]), names.index(called))
            costs[place] = _cost(path, row[0], called, cell)
    return costs


def _check_names(path: Path, kind: str, found: list[str], names: list[str]) -> None:
    """Refuse rows or columns of costs that are not each class once."""
    if sorted(found) != sorted(names):
        raise InputError(
            f"{path}: a {kind} for each of {', '.join(found) or 'no class'}: expected one for each "
            f"of {', '.join(names)}"
        )


def _cost(path: Path, true: str, called: str, cell: str) -> float:
    """One cell of a table of costs as a number."""
    try:
        cost = float(cell)
    except ValueError:
        cost = float("nan")
    if not (np.isfinite(cost) and cost >= 0):
        raise InputError(
            f"{path}: {true!r} called {called!r} costs {cell!r}: expected a finite number of 0 or "
            "more"
        )
    return cost
