"""Takes the folder where features are kept; gives what lies in it, and keeps it within a limit.

    FOLDER/3f/3f9c...e1     an entry, see `features`; its time of change is when it was last used
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
import math
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medseq_tf import files
from medseq_tf.errors import InputError

GIB = 2**30
DEFAULT_GIB = 20.0
IN_USE = ".in-use-"
LIMIT = "limit_gib"
VARIABLE = "MEDSEQ_TF_FEATURES_GIB"
OURS = re.compile(r"[0-9a-f]{64}|\.[a-z0-9_]{8}")
"""Names of entries, and of what a killed process of version 0.1 left."""


def feature_folder(place: str | os.PathLike | None = None) -> Path:
    """Return the folder for features, made if need be.

    Args:
        place: the folder; default: `MEDSEQ_TF_FEATURES`, or else `medseq_tf/features` in the user's
          cache (`XDG_CACHE_HOME` or `~/.cache`).

    Raises:
        InputError: it cannot be written to, anyone may write to it, or its limit is no number.
    """
    folder = _named(place)
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


def _named(place: str | os.PathLike | None) -> Path:
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
    if value := os.environ.get(VARIABLE):
        return Limit(_bytes(value, VARIABLE), VARIABLE)
    file = folder / LIMIT
    try:
        value = file.read_text("utf-8", errors="replace")
    except OSError:
        return Limit(int(DEFAULT_GIB * GIB), "the default")
    return Limit(_bytes(value.strip(), str(file)), "medseq-tf cache --limit")


def _bytes(gib: str | float, name: str) -> int:
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
    found = []
    for part in _parts(folder):
        with contextlib.suppress(FileNotFoundError), os.scandir(part) as files_there:
            for file in files_there:
                if OURS.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        about = file.stat(follow_symlinks=False)
                        found.append(Entry(Path(file.path), about.st_size, about.st_mtime_ns))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def _parts(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as inside:
            return [
                part.path
                for part in inside
                if re.fullmatch("[0-9a-f]{2}", part.name) and part.is_dir(follow_symlinks=False)
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


def _users(folder: Path) -> list[int]:
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
    for part in _parts(folder):
        files.remove_abandoned(part)
    there = entries(folder)
    left, removed = sum(entry.bytes for entry in there), 0
    oldest_in_use = min(_users(folder), default=math.inf)
    for entry in there:
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


# --------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Cache:
    """What lies in a folder of features.

    Attributes:
        folder: the folder.
        entries: how many studies and views of them have features there.
        bytes: their size.
        limit: the folder's limit in bytes.
        limit_source: where the limit is set.
        users: how many processes use the folder now.
        oldest: when the least recently used entry was used, seconds since 1970; None: no entry.
        removed: how many entries were removed.
    """

    folder: Path
    entries: int
    bytes: int
    limit: int
    limit_source: str
    users: int
    oldest: float | None
    removed: int = 0

    def text(self) -> str:
        """For a terminal."""
        unused = ""
        if self.oldest is not None:
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.oldest))
            unused = f", the least recently used one at {day}"
        lines = [
            f"folder: {self.folder}",
            f"size:   {size_text(self.bytes)} in {self.entries:,} entries{unused}",
            f"limit:  {self.limit / GIB:.4g} GiB ({self.limit_source})",
        ]
        if self.users:
            lines.append(f"in use: by {self.users} at work; what they use stays")
        if self.removed:
            lines.append(f"{self.removed:,} entries removed")
        return "\n".join(lines)


def cache(
    features: str | os.PathLike | None = None, limit: float | None = None, clear: bool = False
) -> Cache:
    """Show what is kept of frozen networks' features, limit it, or remove it.

    Args:
        features: the folder; default: `MEDSEQ_TF_FEATURES`, or else the user's cache.
        limit: GiB that may be kept from now on; the least recently used entries above it are
          removed.
        clear: remove all entries. What a process at work uses stays.

    Raises:
        InputError: the limit is no number of GiB, or the folder cannot be changed.
    """
    folder, removed = _named(features), 0
    try:
        if limit is not None:
            if VARIABLE in os.environ:
                raise InputError(f"{VARIABLE} is set and goes before --limit; change it instead")
            most = _bytes(limit, "limit")
            make_folder(folder)
            with files.atomic(folder / LIMIT) as temporary:
                temporary.write_text(f"{limit:g}\n", "utf-8")
            removed += make_room(folder, most)[1]
        if clear:
            removed += make_room(folder, -1)[1]
        there, users = entries(folder), _users(folder)
    except OSError as error:
        verb = "read" if limit is None and not clear else "changed"
        raise InputError(f"{folder}: cannot be {verb} ({error.strerror or error})") from None
    most, source = limit_of(folder)
    return Cache(
        folder,
        len(there),
        sum(entry.bytes for entry in there),
        most,
        source,
        len(users),
        there[0].used / 1e9 if there else None,
        removed,
    )


def size_text(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.1f} MiB"
