"""How a command ends: its exit status, and the one line that says why.

Bad input exits with 2, with `--debug` after its traceback; what Ctrl-C interrupts with 130; what a
SIGTERM ends, in the same way, with 143.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from medseq_tf.errors import InputError, Stopped, is_out_of_memory, printable, printable_lines

_GOES_ON = {
    "prepare": "the same command goes on",
    "train": "--resume goes on",
    "tune": "the same command goes on",
    "auto": "--resume goes on",
    "track": "the same command goes on",
    "export": "nothing was written",
}
"""What is to be said of a command that was interrupted."""


_NO_WORDS = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click raises for a group without a command; before 8.2 it prints the help itself."""


class _Interrupted(Exception):
    """Ctrl-C, as click would not catch it: it prints an empty line."""


class DebugCommand(click.Command):
    """A command, or a group of commands, that takes `--debug`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C comes out as an exception that click does not print."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


class DebugGroup(DebugCommand, click.Group):
    """A group of commands that take `--debug`, as it does itself."""

    command_class = DebugCommand
    group_class = type


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=lambda context, option, value: _asked.update(debug=True) if value else None,
        help="Show where an error comes from.",
    )


_asked = {"debug": False}


def run_and_exit(entry: click.Command, command: str | None = None) -> NoReturn:
    """Run a command, or the group of all, on the words of the command line, and exit.

    Args:
        entry: the command.
        command: its name, where it stands for the first word (`python -m medseq_tf.tune`).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # failures raise; the rest is chatter
    program = f"python -m medseq_tf.{command}" if command else "medseq-tf"
    _asked["debug"] = False
    with _noted_signals() as signals:
        try:
            entry.main(sys.argv[1:], program, standalone_mode=False)
        except click.ClickException as error:
            if isinstance(error, _NO_WORDS):
                error.show()  # the help, as it is
                sys.exit(2)
            _fail(" ".join(error.format_message().split()))
        except InputError as error:
            _fail(str(error))
        except (_Interrupted, KeyboardInterrupt, click.Abort, Stopped) as stop:
            _stop(stop, command, signals)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            where = (error.filename, error.strerror or error)
            hint = "" if _asked["debug"] else " (--debug shows where this comes from)"
            _fail(": ".join(str(part) for part in where if part) + hint)
        except Exception as error:
            if signals:  # TensorFlow makes an error of its own of what stops a trace
                _stop(error, command, signals)
            if not is_out_of_memory(error):
                raise
            _fail("out of memory; a smaller fit.batch_size or sequence.length may help")
    sys.exit(0)


def _stop(stop: BaseException, command: str | None, signals: list[int]) -> NoReturn:
    words = [command, *sys.argv[1:]]
    hint = next((f"; {_GOES_ON[word]}" for word in words if word in _GOES_ON), "")
    text = str(stop) if isinstance(stop, Stopped) else f"interrupted{hint}"
    print(f"medseq-tf: {printable(text)}", file=sys.stderr)
    sys.exit(143 if signal.SIGTERM in signals else 130)


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Let a SIGTERM do what Ctrl-C does, so that work is saved; yield the signals that came.

    Where Ctrl-C is ignored, as in what a shell runs in the background, a SIGTERM still interrupts.
    """
    came: list[int] = []

    def interrupt(signum: int, frame: Any) -> None:
        came.append(signum)
        handler = signal.getsignal(signal.SIGINT)
        if handler is interrupt or not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def import_tensorflow_quietly() -> None:
    """Import TensorFlow without its greetings on standard error; they come back if it fails."""
    with tempfile.TemporaryFile() as greetings:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(greetings.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
            tf.get_logger().setLevel("ERROR")  # a model a fold is no needless retracing
        except Exception:
            greetings.seek(0)
            os.write(stderr, greetings.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def say(text: str) -> None:
    """Print lines to standard output; what a file or a server named does nothing to the screen."""
    click.echo(printable_lines(text))


def _fail(message: str) -> NoReturn:
    if _asked["debug"]:
        traceback.print_exc()
    print(f"medseq-tf: error: {printable(message)}", file=sys.stderr)
    sys.exit(2)
