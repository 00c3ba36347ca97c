"""Files and folders that are written whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseq_tf.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial-"
"""How the names of files and folders begin that are being written."""

_IS_PARTIAL = re.compile(re.escape(PARTIAL) + "[0-9a-f]{12}")
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The temporary file is locked while it is written: one without a lock is what a killed process
    left, see `remove_abandoned`. An `OSError` names `path`.
    """
    path = Path(path)
    temporary, handle = _new_file(path)
    try:
        with naming(path, instead_of=temporary):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _new_file(path: Path) -> tuple[Path, int]:
    """Make an empty file beside `path`, with the rights of any new file, and lock it."""
    while True:
        temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}{path.suffix}")
        with naming(path, instead_of=temporary):
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if _lock(handle) and _is_at(handle, temporary):
            return temporary, handle
        os.close(handle)  # taken for abandoned before it could be locked


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove the temporary files of `atomic` in a folder that killed processes left there."""
    if sys.platform == "win32":
        return
    try:
        names = [name for name in os.listdir(folder) if _IS_PARTIAL.match(name)]
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(handle)


@contextlib.contextmanager
def naming(path: str | os.PathLike, instead_of: str | os.PathLike | None = None) -> Iterator[None]:
    """Name a path in an `OSError` that names none, such as that of a full disk, or a hidden one."""
    try:
        yield
    except OSError as error:
        hidden = error.filename is None or str(error.filename) == str(instead_of)
        if not hidden or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def locked(file: str | os.PathLike, refusal: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock that one process has at a time; a kill frees it. The file is there meanwhile.

    Where the file system knows no locks, there is none.

    Args:
        file: the lock's file; its folder is made.
        refusal: what to say if another process has it.
        wait: wait until it is free instead.

    Raises:
        InputError: another process has it.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with naming(file.parent, instead_of=file):
            handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            if not _lock(handle, wait):
                raise InputError(refusal)
            if not _is_at(handle, file):  # its last owner removed it before this one had it
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file; return False if another has it."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno in _UNSUPPORTED
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one that stands at the path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def destination(out: str | os.PathLike, option: str = "--out") -> Path:
    """Return where an output goes: a symbolic link stands for the place it points to.

    Raises:
        InputError: a link that leads in a circle, or a path through a file.
    """
    path = Path(out)
    if path.is_symlink():
        try:
            path = path.resolve()
        except (OSError, RuntimeError):
            raise InputError(f"{option} {out}: is a symbolic link that leads nowhere") from None
    for parent in path.parents:
        if parent.is_file():
            raise InputError(f"{option} {out}: {parent} is a file, not a folder")
    return path


def output_folder(out: str | os.PathLike) -> Path:
    """Make the folder that an output goes to, if it is not there; return its absolute path.

    Raises:
        InputError: a file stands there, or on the way.
    """
    folder = destination(out).absolute()
    if folder.is_file():
        raise InputError(f"--out {out}: is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_parquet(source: str | os.PathLike | bytes) -> pd.DataFrame:
    """Read a table from a parquet file, or from its bytes, by this thread alone.

    Threads of Arrow's that still hold a Python object when the interpreter ends abort the process,
    now and then, after all is done.
    """
    from pyarrow.parquet import ParquetFile  # takes long to import

    place = io.BytesIO(source) if isinstance(source, bytes) else source
    with ParquetFile(place, pre_buffer=False) as file:
        return file.read(use_threads=False).to_pandas(use_threads=False)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically; floats that are no number become null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
