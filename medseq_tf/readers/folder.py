"""A source folder: the files in it that a reader wants, and audit entries on the others.

No file outside the source is read: a symbolic link that leads out of it is left out and named. A
folder behind a URL is listed by `storage`; of the same files it gives the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from medseq_tf.errors import InputError
from medseq_tf.readers import storage
from medseq_tf.readers.storage import Place, is_url, name_of, place_in
from medseq_tf.readers.study import AuditEntry, natural_key


class File(NamedTuple):
    """A file by its path relative to the source, parted by `/`, and its size in bytes."""

    name: str
    size: int

    @property
    def path(self) -> PurePosixPath:
        """The name as a path; to make one takes longer than to read a small file."""
        return PurePosixPath(self.name)


class Folder:
    """The files under a root, in natural order, and audit entries on everything else.

    Attributes:
        root: the source, a path or a URL.
        files: those with a wanted extension; all where none is named.
        folders: names of the folders directly under the root.
        audit_entries: what was found and left out.
        versions: of files behind a URL, by name: what changes with their content.
    """

    def __init__(
        self,
        root: Place,
        extensions: tuple[str, ...] = (),
        ignored: Place | Iterable[Place | None] | None = None,
    ):
        """Walk the folder.

        Args:
            root: the source, see `storage.root_of`.
            extensions: wanted endings of file names, in lower case; empty: every file.
            ignored: a file or files in the source, such as the labels, that are none of its images.

        Raises:
            InputError: if the root is not a folder.
        """
        self.root = root
        self.audit_entries: list[AuditEntry] = []
        self.folders: list[str] = []
        self.versions: dict[str, str] = {}
        self._extensions = extensions
        files = [ignored] if isinstance(ignored, (str, Path)) else ignored or ()
        self._ignored = resolved_places(files)
        if isinstance(root, str):
            self.files = list(self._listed(root))
            return
        if not root.is_dir():
            raise InputError(f"{root} is not a folder; give the folder that holds the images")
        self._resolved = root.resolve()
        self.files = list(self._walk())

    @property
    def listing(self) -> list[tuple[str, int]]:
        """(relative path, size in bytes) of every wanted file."""
        return [(file.name, file.size) for file in self.files]

    def add_entry(self, kind: str, where: PurePosixPath | str, detail: str = "") -> None:
        """Add an audit entry."""
        self.audit_entries.append(AuditEntry(kind, str(where), detail))

    def _listed(self, root: str) -> Iterator[File]:
        """Every wanted file behind a URL, in the order of a walk."""
        found = {file.name: file for file in storage.listing(root)}
        inner = {name[: at + 1] for name in found for at, c in enumerate(name[:-1]) if c == "/"}
        self.folders = sorted(
            {name.partition("/")[0] for name in (*found, *inner) if "/" in name}, key=natural_key
        )
        for name in sorted(found, key=lambda name: list(map(natural_key, name.split("/")))):
            parts = name.removesuffix("/").split("/")
            if {"", ".", ".."} & set(parts) or "\0" in name:
                self.add_entry("odd file", name, "name is no path")
            elif name.endswith("/"):
                if name not in inner:
                    self.add_entry("empty folder", name.removesuffix("/"))
            elif place_in(root, name) not in self._ignored and self._has_extension(parts[-1], name):
                self.versions[name] = found[name].version
                yield File(name, found[name].size)

    def holds(self, name: str) -> bool:
        """Whether a relative path leads to something inside the source."""
        try:
            return Path(self.root, name).resolve(strict=True).is_relative_to(self._resolved)
        except (OSError, RuntimeError):
            return False

    def _walk(self) -> Iterator[File]:
        """Every wanted file; the folders on the way wait on a stack, however deep they lie."""
        waiting = [self._entries("")]
        while waiting:
            name, entry = next(waiting[-1], ("", None))
            if entry is None:
                waiting.pop()
            elif not _is_unicode(entry.name):
                self.add_entry("odd file", _escaped(name), "name is not UTF-8")
            elif entry.is_symlink() and not self.holds(name):
                self.add_entry("symbolic link out of the source", name)
            elif entry.is_dir(follow_symlinks=False):
                if len(waiting) == 1:
                    self.folders.append(entry.name)
                waiting.append(self._entries(name))
            elif self._is_wanted(entry, name):
                yield File(name, entry.stat().st_size)

    def _entries(self, folder: str) -> Iterator[tuple[str, os.DirEntry]]:
        """Name and entry of what lies in a folder, in natural order."""
        try:
            entries = sorted(os.scandir(Path(self.root, folder)), key=lambda e: natural_key(e.name))
        except OSError as error:
            self.add_entry("odd file", folder, f"folder cannot be opened ({error.strerror})")
            return
        if not entries and folder:
            self.add_entry("empty folder", folder)
        for entry in entries:
            yield f"{folder}/{entry.name}" if folder else entry.name, entry

    def _is_wanted(self, entry: os.DirEntry, name: str) -> bool:
        may_be_ignored = entry.is_symlink() or entry.name in map(name_of, self._ignored)
        if may_be_ignored and Path(entry.path).resolve() in self._ignored:
            return False
        if entry.is_dir():
            self.add_entry("odd file", name, "symbolic link to a folder")
        elif not entry.is_file():
            self.add_entry("odd file", name, "not a regular file")
        else:
            return self._has_extension(entry.name, name)
        return False

    def _has_extension(self, last: str, name: str) -> bool:
        if self._extensions and not last.lower().endswith(self._extensions):
            self.add_entry("odd file", name, f"not one of {' '.join(self._extensions)}")
            return False
        return True


def resolved_places(places: Iterable[Place | None]) -> set[Place]:
    """Return some files' places, each in the one form that is compared."""
    return {place if is_url(place) else Path(place).resolve() for place in places if place}


def _is_unicode(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
