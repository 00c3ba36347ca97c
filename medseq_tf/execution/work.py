"""What a process does with the pieces it is given: made ready once, then one after the other."""

from __future__ import annotations

import dataclasses
import math
import pickle
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from medseq_tf.errors import Unreachable

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_AN_ITEM = 600.0

_done: dict[tuple[str, bytes], Any] = {}
"""What functions that a process calls once have given, by whose they are and their pickles."""


@dataclasses.dataclass(frozen=True)
class Work(Generic[Item, Result]):
    """A function with what a process needs before its first call; picklable.

    Attributes:
        function: of an item; with `setup` of what that gave and an item.
        initializer: called once in a process.
        setup: the same, and its result stays in the process for all calls.
        seconds: the longest that one item may take; `math.inf`: any time.
        of: whose work it is; what was made for another is forgotten.
    """

    function: Callable[..., Result]
    initializer: Callable[[], None] | None = None
    setup: Callable[[], Any] | None = None
    seconds: float = SECONDS_AN_ITEM
    of: str = ""

    def ready(self) -> Callable[[Item], Result]:
        """Make this process ready; return the function of an item."""
        if self.initializer:
            _once(self.initializer, self.of)
        if self.setup is None:
            return self.function
        made = _once(self.setup, self.of)
        return lambda item: self.function(made, item)

    def of_item(self, item: Item) -> Result:
        """Work on one item; its time is not limited here."""
        return self.ready()(item)

    def of_group(self, group: list[Item]) -> list[Result]:
        """Work on items, each within its time."""
        return list(each_within(self.seconds, self.ready(), group))


def each_within(
    seconds: float, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Work on items; an alarm that no code of ours or others' catches ends one that takes long."""
    if not hasattr(signal, "setitimer") or math.isinf(seconds):
        yield from map(function, items)
        return
    try:
        for item in items:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            result = function(item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            yield result
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def require_seen(path: Path, what: str, holds: str = "") -> None:
    """Refuse to work where a path is not seen.

    Args:
        path: a folder or a file.
        what: what is to lie on storage that all nodes see, such as `source and out`.
        holds: the name of a file in the folder, by which it is told from another one of its name;
            it may be a patient's, and is not said.

    Raises:
        Unreachable: this machine, a node of a cluster, does not see it.
    """
    if not (path / holds).exists():
        as_here = " as this machine does" if path.exists() else ""
        raise Unreachable(
            f"node {socket.gethostname()} of the Ray cluster does not see {path}{as_here}; {what} "
            "are to lie on storage that all nodes see, under the same path"
        )


def _once(function: Callable[[], Any], of: str) -> Any:
    """Return what a function gave when this process first called it for that work."""
    key = of, pickle.dumps(function)
    if key not in _done:
        for other in [done for done in _done if done[0] != of]:
            del _done[other]
        _done[key] = function()
    return _done[key]
