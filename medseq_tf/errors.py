"""The exceptions for what is wrong with the user's input; the command line prints one line each."""

import difflib
import sys
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and what would be right. It never
    holds a patient's name, birth date or raw identifier.
    """


class Unreachable(InputError):
    """A source or a node of a cluster cannot be used meanwhile; work can be gone on with later."""


class Diverged(InputError):
    """Training reached a loss that is no number; the message names the epoch and the batch."""


class HostLost(InputError):
    """Another host of a distributed training has died; the message names it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, Python's own or TensorFlow's."""
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


class Stopped(Exception):
    """The user interrupted a run (Ctrl-C); its state is saved and `--resume` continues it."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return what to add to an error about an unknown name: the nearest valid one, if any is."""
    by_lower_case = {other.lower(): other for other in valid}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f" (did you mean {by_lower_case[close[0]]}?)" if close else ""


def printable(text: object) -> str:
    r"""Turn foreign text into one line that does nothing to a terminal.

    Whatever is not printable (escape codes, line breaks, marks that turn the direction of writing,
    halves of characters) stands in it by its code, such as `\x1b`.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def printable_lines(text: str) -> str:
    """Make each line of a text `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def is_interactive() -> bool:
    """Tell whether someone watches standard output: a terminal, or a notebook."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def note(message: str) -> None:
    """Say something on standard error that the user should know, and that stops nothing."""
    print(f"medseq-tf: note: {printable(message)}", file=sys.stderr)
