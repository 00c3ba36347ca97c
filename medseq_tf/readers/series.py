"""Series: the several stacks of pictures that one study may have, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medseq_tf.errors import InputError

SeriesAs = Literal["channels", "sequence", "separate"]

MOST_CHANNELS = 4
"""Series that may stand in one picture, as a PNG holds them."""
MOST_SERIES = 100
NO_SERIES = -1
"""Stands where a slice's series is not known, or there is no slice."""


@dataclass(frozen=True)
class Series:
    """The series that the studies of a data set have, where one study holds several.

    Attributes:
        names: of the series, such as `axial` or `adc`, in the order in which they are read.
        read_as: `sequence`: one after the other, each slice with a mark of its series; `channels`:
            of one place in the body, side by side in each slice.
    """

    names: tuple[str, ...]
    read_as: Literal["channels", "sequence"]

    @property
    def in_turn(self) -> bool:
        """Whether they follow one another, so that a slice is of one of them."""
        return self.read_as == "sequence"

    @property
    def channels(self) -> int:
        """The channels of a slice."""
        return len(self.names) if self.read_as == "channels" else 1

    def to_json(self) -> dict[str, Any]:
        """Return what `dataset.json` says of them."""
        return {"names": list(self.names), "read_as": self.read_as}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Series:
        """Read what `to_json` wrote.

        Raises:
            LookupError, TypeError or ValueError: it is something else.
        """
        names, read_as = values["names"], values["read_as"]
        most = {"channels": MOST_CHANNELS, "sequence": MOST_SERIES}[read_as]
        if not (are_texts(names) and 2 <= len(set(names)) == len(names) <= most):
            raise ValueError("series have names")
        return cls(tuple(names), read_as)


def are_texts(values: Any) -> bool:
    """Whether a value of a JSON file is a list of texts."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def series_text(series: Series | None) -> str:
    """Return what the slices of a study are, in words."""
    if series is None:
        return "one stack each"
    return f"series {', '.join(series.names)} as {'a sequence' if series.in_turn else 'channels'}"


def checked_series(names: Sequence[str], read_as: SeriesAs) -> Series | None:
    """Return the series of a source, if they can be read so; None where each is a study.

    Raises:
        InputError: they are too few or too many, or not told apart.
    """
    if read_as not in get_args(SeriesAs):
        raise InputError(
            f"series_as={read_as!r} is unknown; valid: {', '.join(get_args(SeriesAs))}"
        )
    most = MOST_CHANNELS if read_as == "channels" else MOST_SERIES
    if read_as != "separate" and not 2 <= len(names) <= most:
        raise InputError(
            f"series_as={read_as} needs 2 to {most} series, got {len(names)}"
            + (f": {', '.join(names[:10])}" if names else "")
            + "; name them with series="
        )
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(name.casefold(), name)) != name:
            raise InputError(f"series {other} and {name} differ only in capitals; call them alike")
    if len(first) < len(names):
        raise InputError(f"series names one twice: {', '.join(names)}")
    return None if read_as == "separate" else Series(tuple(names), read_as)
