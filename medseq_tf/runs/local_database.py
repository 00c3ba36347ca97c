"""The local sqlite database of MLflow: made whole or not at all."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

from medseq_tf.files import atomic, locked, remove_abandoned


def file_of(uri: str) -> Path | None:
    """Return the file of a local sqlite database; None for any other address."""
    match = re.fullmatch(r"sqlite:///([^?]+)", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None


def make(file: Path, create_tables: Callable[[Path], None]) -> None:
    """Make a database if it is not there: whole or not at all, and once.

    Left to itself, MLflow makes its tables one by one, and a kill on the way leaves a file that it
    never opens again.
    """
    if file.exists():
        return
    with locked(file.with_name(f".{file.name}.lock"), "", wait=True):
        if file.exists():
            return
        remove_abandoned(file.parent)
        with contextlib.suppress(FileExistsError), atomic(file) as temporary:
            create_tables(temporary)
            if file.exists():  # made meanwhile by another program
                raise FileExistsError(file)


def remedy(uri: str) -> str:
    """Return what to do about a local database that a kill left half made; nothing if it is not."""
    file = file_of(uri)
    if file is None or not file.is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
            count = "SELECT count(*) FROM runs"
            runs = base.execute(count).fetchone() if "runs" in tables else (0,)
    except sqlite3.OperationalError:  # locked, or not to be read
        return ""
    except sqlite3.DatabaseError:
        return f"; {file} is no database: move it away, and the next run makes a new one"
    if runs != (0,):
        return ""
    return f"; {file} holds no run and is half made: remove it, and the next run makes it anew"
