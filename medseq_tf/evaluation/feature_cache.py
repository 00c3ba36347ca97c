"""The command `cache`: what lies in the folder of features, and its limit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from medseq_tf.errors import InputError
from medseq_tf.evaluation.feature_folder import (
    GIB,
    LIMIT,
    LIMIT_VARIABLE,
    entries,
    limit_bytes,
    limit_of,
    make_folder,
    make_room,
    named_folder,
    size_text,
    users,
)
from medseq_tf.files import write_text


@dataclass(frozen=True)
class CacheContent:
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
        """Return it for a terminal."""
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
) -> CacheContent:
    """Show what is kept of frozen networks' features, limit it, or remove it.

    Args:
        features: the folder; default: `MEDSEQ_TF_FEATURES`, or else the user's cache.
        limit: GiB that may be kept from now on; the least recently used entries above it are
            removed.
        clear: remove all entries. What a process at work uses stays.

    Raises:
        InputError: the limit is no number of GiB, or the folder cannot be changed.
    """
    folder, removed = named_folder(features), 0
    try:
        if limit is not None:
            if LIMIT_VARIABLE in os.environ:
                raise InputError(
                    f"{LIMIT_VARIABLE} is set and goes before --limit; change it instead"
                )
            most = limit_bytes(limit, "limit")
            make_folder(folder)
            write_text(folder / LIMIT, f"{limit:g}\n")
            removed += make_room(folder, most)[1]
        if clear:
            removed += make_room(folder, -1)[1]
        stored, at_work = entries(folder), users(folder)
    except OSError as error:
        verb = "read" if limit is None and not clear else "changed"
        raise InputError(f"{folder}: cannot be {verb} ({error.strerror or error})") from None
    most, source = limit_of(folder)
    return CacheContent(
        folder,
        len(stored),
        sum(entry.bytes for entry in stored),
        most,
        source,
        len(at_work),
        stored[0].used / 1e9 if stored else None,
        removed,
    )
