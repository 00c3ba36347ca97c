"""Entries of features on disk: whole or not there, in use while a process is at work."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.evaluation import feature_folder as folders
from medseq_tf.files import atomic

OVERHEAD = 160
"""Bytes of an entry beside its features."""


class FeatureFiles:
    """Entries in a folder by key, arrays (L, F) of one width and dtype, in use until this ends.

    Args:
        folder: the folder, as `feature_folder` gives it.
        width: of the features.
        dtype: of the features.
    """

    def __init__(self, folder: Path, width: int, dtype: np.dtype):
        self.folder, self.width, self.dtype = folder, width, dtype
        in_use = contextlib.ExitStack()
        try:
            self._in_use = in_use.enter_context(folders.in_use(folder))
        except OSError as error:
            raise folders.cannot_keep(folder, error) from None
        weakref.finalize(self, _leave, in_use, folder)

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
        folders.touch(self.path(key))
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
                folders.make_folder(self.folder)
                self._write(key, body.getbuffer())
        except OSError as error:
            raise folders.cannot_keep(self.folder, error) from None

    def _write(self, key: str, body: memoryview) -> None:
        # Who may read and write the folder may do so with all in it, and nobody else.
        mode = stat.S_IMODE(self.folder.stat().st_mode)
        if not self.path(key).parent.is_dir():
            self.path(key).parent.mkdir(exist_ok=True)
            self.path(key).parent.chmod(mode)
        with atomic(self.path(key)) as temporary, open(temporary, "wb") as file:
            os.chmod(temporary, mode & 0o666)
            file.write(body)
            file.write(_checksum(key, body))
            file.flush()
            os.fsync(file.fileno())

    def keep_only(self, keys: Iterable[str]) -> None:
        """Let go of all entries that were used so far, except these."""
        folders.touch(self._in_use)
        for key in keys:
            folders.touch(self.path(key))

    def make_room(self, lengths: Sequence[int]) -> str:
        """Remove what is neither in use nor fits beside entries of these lengths.

        Returns:
            What is to be said of a folder that stays above its limit; empty where it does not.

        Raises:
            InputError: the disk has no room for them.
        """
        folder, limit = self.folder, folders.limit_of(self.folder)
        needed = sum(length * self.width * self.dtype.itemsize + OVERHEAD for length in lengths)
        try:
            folders.make_folder(folder)  # which may have been taken away
            left, _ = folders.make_room(folder, limit.bytes - needed)
            free = shutil.disk_usage(folder).free
            if needed > free:
                folders.make_room(folder, left - (needed - free))
                free = shutil.disk_usage(folder).free
        except OSError as error:
            raise folders.cannot_keep(folder, error) from None
        if needed > free:
            raise InputError(
                f"{folder}: {needed / folders.GIB:.1f} GiB of features are to be kept there, "
                f"{free / folders.GIB:.1f} GiB are free; name another folder with --features, or "
                "set fewer features.views or features.dtype=float16"
            )
        if left + needed <= limit.bytes:
            return ""
        return (
            f"features: {folders.size_text(left + needed)} are in use, above the limit of "
            f"{folders.size_text(limit.bytes)} ({limit.source}), which holds again when the run "
            "is over"
        )


def _checksum(key: str, body: bytes | memoryview) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + body).digest()


def _leave(in_use: contextlib.ExitStack, folder: Path) -> None:
    """Let the folder's entries go, and bring it back to its limit."""
    with contextlib.suppress(OSError, InputError):
        in_use.close()
        folders.make_room(folder, folders.limit_of(folder).bytes)
