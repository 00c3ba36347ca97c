"""The folder where features are kept: whose it is, what lies in it, and its limit.

    FOLDER/3f/3f9c...e1     an entry, see `feature_store`; changed when it was last used
    FOLDER/.in-use-...      locked by a process at work: entries used since its time are in use
    FOLDER/limit_gib        the limit that `medseq-tf cache --limit` set

Above the limit the entries that were not used for the longest time are removed, but none that is in
use: while runs need more than the limit together, the folder is above it, and goes back when they
end. Entries hold no name, but they were computed from patients' images.

The folder is trusted. Checksums tell what is damaged, not who wrote it: whoever may write to the
folder may put other features there. So it is made for its owner alone, a folder that anyone may
write to is refused, and one that is shared with a group is shared with those who are trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medseq_tf import files
from medseq_tf.errors import InputError

GIB = 2**30
DEFAULT_GIB = 20.0
IN_USE = ".in-use-"
LIMIT = "limit_gib"
LIMIT_VARIABLE = "MEDSEQ_TF_FEATURES_GIB"
ENTRY_NAME = re.compile(r"[0-9a-f]{64}|\.[a-z0-9_]{8}")
"""Names of entries, and of what a killed process of version 0.1 left."""
OVERHEAD = 160
"""Bytes of an entry beside its features."""


def feature_folder(place: str | os.PathLike | None = None) -> Path:
    """Return the folder for features, made if need be.

    Args:
        place: the folder; default: `MEDSEQ_TF_FEATURES`, or else `medseq_tf/features` in the user's
          cache (`XDG_CACHE_HOME` or `~/.cache`).

    Raises:
        InputError: it cannot be written to, anyone may write to it, or its limit is no number.
    """
    folder = named_folder(place)
    try:
        make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()
        mode = folder.stat().st_mode
    except OSError as error:
        raise cannot_keep(folder, error) from None
    limit_of(folder)
    if os.name == "posix" and mode & stat.S_IWOTH:
        raise InputError(
            f"{folder}: anyone on this machine may write to it, so what lies there cannot be "
            "trusted; take that right away (chmod o-w), or name another folder with --features or "
            "MEDSEQ_TF_FEATURES"
        )
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder for its owner alone: features tell of patients."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def cannot_keep(folder: Path, error: OSError) -> InputError:
    """Return the error of a folder in which features cannot be kept."""
    return InputError(
        f"{folder}: features cannot be kept there ({error.strerror or error}); name another folder "
        "with --features or MEDSEQ_TF_FEATURES"
    )


def named_folder(place: str | os.PathLike | None) -> Path:
    """Return the folder that features are kept in, by `place` or else by default; or to be made."""
    if place := place or os.environ.get("MEDSEQ_TF_FEATURES"):
        return Path(place)
    try:
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise InputError(
            "no home folder is known to keep features in; name a folder with --features or "
            "MEDSEQ_TF_FEATURES"
        ) from None
    return cache_home / "medseq_tf" / "features"


# ----------------------------------------------------------------------------------- the limit


class Limit(NamedTuple):
    """How much may lie in a folder, and where that is set."""

    bytes: int
    source: str


def limit_of(folder: Path) -> Limit:
    """Return a folder's limit: `MEDSEQ_TF_FEATURES_GIB`, or what was set, or 20 GiB.

    Raises:
        InputError: it is no number of GiB.
    """
    if value := os.environ.get(LIMIT_VARIABLE):
        return Limit(limit_bytes(value, LIMIT_VARIABLE), LIMIT_VARIABLE)
    file = folder / LIMIT
    try:
        value = file.read_text("utf-8", errors="replace")
    except OSError:
        return Limit(int(DEFAULT_GIB * GIB), "the default")
    return Limit(limit_bytes(value.strip(), str(file)), "medseq-tf cache --limit")


def limit_bytes(gib: str | float, name: str) -> int:
    """Return a number of GiB in bytes; `name` is what it is called in an error."""
    try:
        value = float(gib)
    except ValueError:
        value = math.nan
    if not 0 <= value < 2**30:
        raise InputError(f"{name} = {gib}: expected a number of GiB, such as {DEFAULT_GIB:g}")
    return int(value * GIB)


# --------------------------------------------------------------------------------- the entries


class Entry(NamedTuple):
    """Stored features of a study or a view of it: its file, size and time of last use (ns)."""

    path: Path
    bytes: int
    used: int


def entries(folder: Path) -> list[Entry]:
    """Return what lies in a folder, the least recently used first; nothing that is not ours."""
    stored = []
    for subfolder in _subfolders(folder):
        with contextlib.suppress(FileNotFoundError), os.scandir(subfolder) as inside:
            for file in inside:
                if ENTRY_NAME.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        stored.append(Entry(Path(file.path), status.st_size, status.st_mtime_ns))
    return sorted(stored, key=lambda entry: (entry.used, entry.path))


def _subfolders(folder: Path) -> list[str]:
    """Return the folders that hold entries, none behind a link."""
    try:
        with os.scandir(folder) as inside:
            return [
                item.path
                for item in inside
                if re.fullmatch("[0-9a-f]{2}", item.name) and item.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []


def touch(path: Path) -> None:
    """Note that an entry is used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[Path]:
    """Keep what is used from now on from being removed; a kill ends that too.

    Yields:
        A file; when it is touched, what was used before is let go.
    """
    with contextlib.ExitStack() as held:
        while True:
            file = folder / f"{IN_USE}{secrets.token_hex(6)}"
            try:
                held.enter_context(files.locked(file, f"{file}: is taken"))
                break
            except InputError:
                continue  # taken for a killed process's before it could be locked
        os.chmod(file, stat.S_IMODE(folder.stat().st_mode) & 0o666)  # to be asked by all its users
        touch(file)
        yield file


def users(folder: Path) -> list[int]:
    """Return since when (ns) each process at work uses the folder, killed ones forgotten."""
    since = []
    for file in folder.glob(f"{IN_USE}*"):
        with contextlib.suppress(FileNotFoundError):
            used = file.stat().st_mtime_ns
            try:
                with files.locked(file, "in use"):  # and with it removed
                    pass
            except (InputError, PermissionError):
                since.append(used)
    return since


def make_room(folder: Path, most: int) -> tuple[int, int]:
    """Remove the least recently used entries until at most `most` bytes are left, or in use.

    Returns:
        How many bytes are left, and how many entries were removed.
    """
    for subfolder in _subfolders(folder):
        files.remove_abandoned(subfolder)
    stored = entries(folder)
    left, removed = sum(entry.bytes for entry in stored), 0
    oldest_in_use = min(users(folder), default=math.inf)
    for entry in stored:
        if left <= most or entry.used >= oldest_in_use:
            break
        try:
            if entry.path.stat().st_mtime_ns != entry.used:
                continue  # used since
            entry.path.unlink()
        except FileNotFoundError:
            pass  # removed by another process
        except PermissionError:
            continue  # another user's, who does not share it
        left, removed = left - entry.bytes, removed + 1
    return left, removed


def size_text(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.1f} MiB"


# ------------------------------------------------------------------------- what lies in an entry


class FeatureFiles:
    """Entries in a folder by key, arrays (L, F) of one width and dtype, in use until this ends.

    Args:
        folder: the folder, as `feature_folder` gives it.
        width: of the features.
        dtype: of the features.

    Attributes:
        mark: the file that is there while they are in use.
    """

    def __init__(self, folder: Path, width: int, dtype: np.dtype):
        self.folder, self.width, self.dtype = folder, width, dtype
        held = contextlib.ExitStack()
        try:
            self.mark = held.enter_context(in_use(folder))
        except OSError as error:
            raise cannot_keep(folder, error) from None
        weakref.finalize(self, _leave, held, folder)

    def path(self, key: str) -> Path:
        """Return the file of an entry."""
        return self.folder / key[:2] / key

    def read(self, key: str, length: int) -> np.ndarray | None:
        """Return an entry, or None if there is none or it is not what was written."""
        try:
            content = self.path(key).read_bytes()
            body, checksum = content[:-32], content[-32:]
            if _checksum(key, body) != checksum:
                return None
            array = np.load(io.BytesIO(body), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != (length, self.width) or array.dtype != self.dtype:
            return None
        touch(self.path(key))
        return array

    def mapped(self, key: str) -> np.ndarray | None:
        """Return an entry as memory of the file, read when it is used; None if it is gone."""
        try:
            return np.load(self.path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def write(self, key: str, array: np.ndarray) -> None:
        """Write an entry, whole or not at all, whoever else writes it."""
        body = io.BytesIO()
        np.save(body, array, allow_pickle=False)
        try:
            try:
                self._write(key, body.getbuffer())
            except FileNotFoundError:  # the folder was taken away meanwhile
                make_folder(self.folder)
                self._write(key, body.getbuffer())
        except OSError as error:
            raise cannot_keep(self.folder, error) from None

    def _write(self, key: str, body: memoryview) -> None:
        # Who may read and write the folder may do so with all in it, and nobody else.
        mode = stat.S_IMODE(self.folder.stat().st_mode)
        if not self.path(key).parent.is_dir():
            self.path(key).parent.mkdir(exist_ok=True)
            self.path(key).parent.chmod(mode)
        with files.atomic(self.path(key)) as temporary, open(temporary, "wb") as file:
            os.chmod(temporary, mode & 0o666)
            file.write(body)
            file.write(_checksum(key, body))
            file.flush()
            os.fsync(file.fileno())

    def keep_only(self, keys: Iterable[str]) -> None:
        """Let go of all entries that were used so far, except these."""
        touch(self.mark)
        for key in keys:
            touch(self.path(key))

    def make_room(self, lengths: Sequence[int]) -> str:
        """Remove what is neither in use nor fits beside entries of these lengths.

        Returns:
            What is to be said of a folder that stays above its limit; empty where it does not.

        Raises:
            InputError: the disk has no room for them.
        """
        folder, limit = self.folder, limit_of(self.folder)
        needed = sum(length * self.width * self.dtype.itemsize + OVERHEAD for length in lengths)
        try:
            make_folder(folder)  # which may have been taken away
            left, _ = make_room(folder, limit.bytes - needed)
            free = shutil.disk_usage(folder).free
            if needed > free:
                make_room(folder, left - (needed - free))
                free = shutil.disk_usage(folder).free
        except OSError as error:
            raise cannot_keep(folder, error) from None
        if needed > free:
            raise InputError(
                f"{folder}: {needed / GIB:.1f} GiB of features are to be kept there, "
                f"{free / GIB:.1f} GiB are free; name another folder with --features, or "
                "set fewer features.views or features.dtype=float16"
            )
        if left + needed <= limit.bytes:
            return ""
        return (
            f"features: {size_text(left + needed)} are in use, above the limit of "
            f"{size_text(limit.bytes)} ({limit.source}), which holds again when the run "
            "is over"
        )


def _checksum(key: str, body: bytes | memoryview) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + body).digest()


def _leave(held: contextlib.ExitStack, folder: Path) -> None:
    """Let the folder's entries go, and bring it back to its limit."""
    with contextlib.suppress(OSError, InputError):
        held.close()
        make_room(folder, limit_of(folder).bytes)
