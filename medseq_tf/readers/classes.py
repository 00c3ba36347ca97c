"""Classes: the names of which every study has exactly one, such as three kinds of tumour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
