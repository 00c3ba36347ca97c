"""Keeps off standard error what C and C++ libraries print there during a block of code.

They print when a file is damaged, and quote what stands in it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Send the process's standard error nowhere; one thread at a time."""
    with _lock, contextlib.ExitStack() as stack:
        if sys.stderr:
            sys.stderr.flush()
        kept = os.dup(2)
        stack.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 2)
        stack.callback(os.dup2, kept, 2)
        yield
