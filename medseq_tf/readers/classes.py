"""Classes: the names of which every study has exactly one, such as three kinds of tumour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.readers.names import alphabetically, by_value, listed, refuse_misspelt, what_is_wrong

LABELS, CLASSES, ORDERED = OUTPUTS = ("labels", "classes", "ordered")
"""What a model tells of a study: yes or no to each label, one class of several, or one grade."""


@dataclass(frozen=True)
class Classes:
    """Names that exclude each other; a study has one of them, or an unknown one.

    In a data set they stand one-hot, as a column `label.<name>` each: 1 for the study's class, 0
    for the others, nan for all where it is unknown.

    Attributes:
        column: what they are the classes of, as the table calls it, such as `diagnosis`.
        names: the classes; where they are `ordered`, the lowest first.
        ordered: whether they are grades, each higher than the one before.
    """

    column: str
    names: tuple[str, ...]
    ordered: bool = False

    @property
    def outputs(self) -> str:
        """What a model of them tells: `classes` or `ordered`."""
        return ORDERED if self.ordered else CLASSES

    def one_hot(self, name: str | None) -> dict[str, float]:
        """Return what a study of a class has for each of them; None: an unknown class."""
        if name is None:
            return dict.fromkeys(self.names, math.nan)
        return {other: float(other == name) for other in self.names}

    def to_json(self) -> dict[str, Any]:
        """Return what `dataset.json` says of them, beside their names as `label_names`."""
        return {"column": self.column, "ordered": self.ordered}


def find_classes(
    where: str, column: str, names: Iterable[str], ordered: str | Sequence[str] | None = None
) -> tuple[Classes, Mapping[str, str]]:
    """Find the classes that the rows of a table, or the folders of a source, name.

    Numbers are classes in the order of their values, `2.0` is `2`; other names alphabetically.

    Args:
        where: the place, for errors.
        column: what they are the classes of.
        names: one a row, as `names.read_names` gives them.
        ordered: all classes, the lowest first; then they are grades.

    Returns:
        The classes, and what each of the names is among them.

    Raises:
        InputError: there are fewer than two, two are one misspelt, one is not in `ordered`, or one
            is called as the column is.
    """
    found = dict.fromkeys(names)
    given = None if ordered is None else _listed_classes(ordered)
    called = by_value([*found, *(given or ())])
    if called is None:
        called = {name: name for name in (*alphabetically(found), *(given or ()))}
    own = list(dict.fromkeys(called[name] for name in called if name in found))
    refuse_misspelt(where, own, "class")
    order = own if given is None else list(dict.fromkeys(called[name] for name in given))
    if given is not None and (unknown := [name for name in own if name not in order]):
        raise InputError(
            f"{where} has the classes {', '.join(own)}; ordered names {', '.join(order)}, and not "
            f"{', '.join(unknown)}"
        )
    if len(order) < 2:
        raise InputError(
            f"{where} has {'one class' if order else 'no known class'}"
            + (f", {order[0]}" if order else "")
            + "; a model needs two or more to tell apart; of a later cohort, which may lack some, "
            "name all with ordered"
        )
    if column in order:
        raise InputError(f"{where} has a class of the name of its column; rename one")
    return Classes(column, tuple(order), ordered=given is not None), called


def _listed_classes(ordered: str | Sequence[str]) -> list[str]:
    names = listed(ordered)
    for name in names:
        if wrong := what_is_wrong(name):
            raise InputError(f"ordered: {name!r} is no name of a class: {wrong}")
    refuse_misspelt("ordered", names, "class")
    if len(set(names)) < max(len(names), 2):
        raise InputError(
            f"ordered = {', '.join(names)!r}: name every class once, two or more, the lowest first"
        )
    return names
