"""The exceptions for what is wrong with the user's input; the command line prints one line each."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and what would be right. It never
    holds a patient's name, birth date or raw identifier.
    """


class Diverged(InputError):
    """Training reached a loss that is no number; the message names the epoch and the batch."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, Python's own or TensorFlow's."""
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


class Stopped(Exception):
    """The user interrupted a run (Ctrl-C); its state is saved and `--resume` continues it."""
