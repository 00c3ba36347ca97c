"""Files that lie behind a URL: listed once, then read several at a time, ahead of their use.

    s3://BUCKET/FOLDER      gs://BUCKET/FOLDER      listed by the store
    http(s)://HOST/FOLDER                           listed by `files.csv` in it, columns name, size

A study's files become nameless copies in memory while it is read, so that a process that is killed
leaves nothing of a patient behind. A read that fails is tried again, with pauses. Where it still
fails and the source answers otherwise, that study is unavailable; where the source does not, the
work ends, to be gone on with later. Credentials are what the libraries find in the environment. A
URL that may hold some is refused, and what a library says of an error, which may, is not passed on.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import io
import itertools
import os
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from medseq_tf.errors import InputError, Unreachable
from medseq_tf.readers.volume_file import without_extension

Place = str | Path
"""A path, or a URL as text."""
Result = TypeVar("Result")

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
"""What a URL starts with -> the library that reads it, through fsspec."""
INDEX = "files.csv"
READS_AHEAD = 32
"""Files of a study that are read at a time, or wait in memory to be used."""
LARGE_READS_AHEAD = 2
"""The same where files hold several pictures each, and may be large."""
START_BYTES = 64 * 1024
"""Read of a file for its header; few are longer."""
LONGEST_NAME = 1024
LONGEST_SILENCE = 30
"""Seconds that a web server may take for the next bytes."""
SECONDS_BETWEEN_TRIES = (0.5, 2.0, 5.0)

_begun: dict[tuple[str, str], Future[bytes]] = {}
"""Reads of whole files by root and name, begun for who asks next."""
_SAFE = "%/:[]!$&'()*+,;=~"
"""What stands for itself in a URL that may be quoted already."""


class StoredFile(NamedTuple):
    """A file behind a URL: its name relative to it, its size, and what tells its versions apart."""

    name: str
    size: int
    version: str = ""


class UnavailableStudy(Exception):
    """A study whose files cannot be fetched from where they lie; the message is the reason.

    No series of a study goes on without one that is there, and cannot be had.
    """


class StorageError(Exception):
    """A file or folder behind a URL cannot be read; the message is the reason."""


class NotThere(StorageError):
    """There is no such file or folder."""


class TryLater(Exception):
    """Who is asked fails, and may not fail for ever.

    Attributes:
        pause: seconds until it is worth asking again, at least.
    """

    pause: float = 0.0


# ------------------------------------------------------------------------------------------- URLs


def is_url(place: object) -> bool:
    """Whether a place is a URL and not a path."""
    return isinstance(place, str) and "://" in place


def root_of(source: Place) -> Place:
    """Return a source as a path, or as a URL that has been checked.

    Raises:
        InputError: it is a URL that is not read, or one that may hold a password.
    """
    return checked_url(source) if isinstance(source, str) and is_url(source) else Path(source)


def checked_url(url: str) -> str:
    """Return a URL without a slash at its end.

    Raises:
        InputError: it is of another kind than those that are read, or may hold a password.
    """
    kind, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    if kind not in LIBRARIES:
        shown = kind if kind.isalnum() else ""  # what stands before :// may be a password, too
        raise InputError(
            f"{shown}://... is not read; valid: a path, or a URL that starts with "
            f"{', '.join(f'{known}://' for known in LIBRARIES)}"
        )
    if "@" in host or set("?#") & set(rest):
        raise InputError(
            f"{kind}://... has a name, password or query in it, which may be a secret and is not "
            "taken; leave it out, and let the environment hold credentials"
        )
    if not host or not rest.isprintable():
        raise InputError(f"{kind}://... names no bucket or host, or holds unprintable characters")
    url = url.rstrip("/")
    return urllib.parse.quote(url, safe=_SAFE) if _is_http(url) else url


def _is_http(place: Place) -> bool:
    """Whether a place is a web server's, where names are quoted."""
    return str(place).startswith(("http://", "https://"))


def place_in(root: Place, name: str) -> Place:
    """Return the place of a file in a folder."""
    return _url_in(root, name) if isinstance(root, str) else root / name


def _url_in(root: str, name: str) -> str:
    return f"{root}/{urllib.parse.quote(name) if _is_http(root) else name}"


def folder_of(place: Place) -> Place:
    """Return the place that a file lies in."""
    return place.rpartition("/")[0] if isinstance(place, str) else place.parent


def name_of(place: Place) -> str:
    """Return what a file is called where it lies."""
    name = str(place).rpartition("/")[2]
    return urllib.parse.unquote(name) if _is_http(place) else name


# ------------------------------------------------------------------------ what is asked for, once


def read_whole(url: str) -> bytes:
    """Read a file.

    Raises:
        InputError: the URL is refused, or leads to nothing that can be read.
    """
    url = checked_url(url)
    try:
        return tried(lambda: _file_system(url).cat_file(url))
    except StorageError as error:
        raise InputError(f"{url} cannot be read: {error}") from None


def is_file(place: Place) -> bool:
    """Whether a path or checked URL leads to a file.

    Raises:
        Unreachable: nothing tells of a URL.
    """
    if isinstance(place, Path):
        return place.is_file()
    try:
        return _asked_for(place)
    except NotThere:
        return False
    except StorageError as error:
        raise Unreachable(f"{place} cannot be looked for: {error}") from None


def listing(root: str) -> list[StoredFile]:
    """List the files behind a checked URL, of whatever depth; a name ends in / where it is none's.

    Raises:
        InputError: there are none, or they cannot be listed.
    """
    if _is_http(root):
        return _indexed(root)
    try:
        found = tried(lambda: _file_system(root).find(root, detail=True))
    except StorageError as error:
        raise InputError(f"{root} cannot be listed: {error}") from None
    start = f"{root.partition('://')[2]}/"
    files = [
        StoredFile(path.removeprefix(start), int(info["size"]), _version(info))
        for path, info in found.items()
        if path.startswith(start) and path != start
    ]
    if not files:
        raise InputError(f"{root} is not a folder that holds files; give the one of the images")
    return files


def _version(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("LastModified") or "")


def _indexed(root: str) -> list[StoredFile]:
    where = f"{root}/{INDEX}"
    try:
        text = read_whole(where).decode("utf-8-sig")
    except InputError as error:
        raise InputError(
            f"{error}; it lists the source, a line a file, with the columns name and size (bytes)"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{where} is not a CSV file in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        files = [_listed_in(row) for row in reader]
    except (csv.Error, AttributeError, LookupError, TypeError, ValueError):
        raise InputError(
            f"{where} line {reader.line_num}: is not name and size in bytes, as its header says"
        ) from None
    return [file for file in dict.fromkeys(files) if file.name != INDEX]


def _listed_in(row: Mapping[str, str]) -> StoredFile:
    """The file in a row; a ValueError, a LookupError or the like where there is none."""
    file = StoredFile(row["name"].removeprefix("./"), int(row["size"]))
    if file.size < 0 or not 0 < len(file.name) <= LONGEST_NAME:
        raise ValueError("no size or no name")
    return file


# ----------------------------------------------------------------------- files of studies, copied


@contextlib.contextmanager
def local_files(root: str, names: Sequence[str]) -> Iterator[Callable[[str], str]]:
    """Give what says under which path each file of a study can be opened.

    Args:
        root: the folder; of a URL's files there are copies, read ahead.
        names: of the files in it, in the order and as often as they are asked for. A path holds
            until the next is asked for, or longer, while its file is still to be asked for.

    Raises:
        UnavailableStudy: where a file is asked for, and cannot be read.
        Unreachable: the source itself does not answer.
    """
    if not is_url(root):
        yield functools.partial(os.path.join, root)
        return

    def begun(name: str) -> Future[bytes]:
        return _begun.pop((root, name), None) or _threads().submit(_read, root, name)

    try:
        with _Copies(root, names, begun) as copies:
            yield copies.path
    finally:
        for name in names:  # of a study that was given up
            _begun.pop((root, name), None)


def headers(
    root: str,
    sizes: Mapping[str, int],
    read: Callable[[str, int], Result],
    unreadable: type[Exception],
) -> Iterator[tuple[str, Result | Exception]]:
    """Give each file's name and its header, or why it cannot be read.

    Of a file behind a URL the start is read; the whole where its header is longer, or damaged.

    Args:
        root: the folder.
        sizes: of the files by name, in bytes.
        read: makes a header of a path, at which there may be no more than the file's start, and of
            the file's size.
        unreadable: what `read` raises where it cannot.
    """
    with _local_starts(root, sizes) as path_of:
        for name, size in sizes.items():
            header: Result | Exception
            try:
                header = read(path_of(name), size)
            except UnavailableStudy as error:
                header = error
            except unreadable as error:
                is_whole = not is_url(root) or size <= START_BYTES
                header = error if is_whole else _header_of_whole(root, name, size, read, unreadable)
            yield name, header


def _header_of_whole(
    root: str,
    name: str,
    size: int,
    read: Callable[[str, int], Result],
    unreadable: type[Exception],
) -> Result | Exception:
    try:
        with local_files(root, [name]) as path_of:
            return read(path_of(name), size)
    except (unreadable, UnavailableStudy) as error:
        return error


@contextlib.contextmanager
def _local_starts(root: str, sizes: Mapping[str, int]) -> Iterator[Callable[[str], str]]:
    """Give what `local_files` gives; of a URL's files the copies hold no more than their start."""
    if not is_url(root):
        yield functools.partial(os.path.join, root)
        return

    def start(name: str) -> bytes:
        end = min(sizes[name], START_BYTES)
        return _read(root, name, start=0, end=end)[:end] if end else b""

    with _Copies(root, list(sizes), lambda name: _threads().submit(start, name)) as copies:
        yield copies.path


def read_ahead(root: str, names: Sequence[str]) -> None:
    """Begin to read the first files of a study for whom they are soon `local_files`, here.

    Args:
        root: the folder; of one that is no URL nothing is read.
        names: of the files, as they are asked for.
    """
    if not is_url(root):
        return
    for name in itertools.islice(dict.fromkeys(names), _most_ahead(names)):
        _begun[root, name] = _threads().submit(_read, root, name)
    for place in list(_begun)[: -2 * READS_AHEAD]:
        _begun.pop(place).cancel()


def _most_ahead(names: Sequence[str]) -> int:
    return READS_AHEAD if len(set(names)) == len(names) else LARGE_READS_AHEAD


@contextlib.contextmanager
def nameless_file(data: bytes) -> Iterator[str]:
    """Give a path that leads to some bytes: in memory, or where that cannot be, in a file."""
    if hasattr(os, "memfd_create"):
        descriptor = in_memory(data)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="medseq_tf-") as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        yield str(path)


class _Copies:
    """Nameless files in memory, each made ahead of its use and gone after it."""

    def __init__(self, root: str, names: Sequence[str], begin: Callable[[str], Future[bytes]]):
        self._root = root
        self._uses = collections.Counter(names)
        self._ahead = _most_ahead(names)
        self._waiting = iter(dict.fromkeys(names))
        self._begin = begin
        self._reads: dict[str, Future[bytes]] = {}
        self._open: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Copies:
        return self

    def __exit__(self, *exception: object) -> None:
        for future in self._reads.values():
            future.cancel()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._stack.close()

    def path(self, name: str) -> str:
        """Return the path of a file's copy."""
        for other in [other for other in self._open if not self._uses[other]]:
            os.close(self._open.pop(other))
        if name not in self._open:
            self._open[name] = in_memory(self._content(name))
        self._uses[name] -= 1
        path = f"/proc/self/fd/{self._open[name]}"
        ending = name[len(without_extension(name)) :]
        return self._called(path, ending) if ending else path

    def _content(self, name: str) -> bytes:
        while len(self._reads) < self._ahead or name not in self._reads:
            following = next(self._waiting, None)
            if following is None:
                break
            self._reads[following] = self._begin(following)
        try:
            return self._reads.pop(name).result()
        except StorageError as error:
            _check_answers(self._root)
            raise UnavailableStudy(f"a file of it cannot be read: {error}") from None

    def _called(self, path: str, ending: str) -> str:
        """Return a link to a path that ends as the file's name does, which says what it holds."""
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="medseq_tf-"))
        link = os.path.join(folder, f"file{ending}")
        os.symlink(path, link)
        return link


def in_memory(data: bytes) -> int:
    """Return the descriptor of a file that has no name and holds some bytes."""
    if not hasattr(os, "memfd_create"):
        raise InputError("files behind a URL are read on Linux alone; copy them into a folder")
    descriptor = os.memfd_create("medseq_tf")
    with open(descriptor, "wb", buffering=0, closefd=False) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) or 0 :]
    return descriptor


def _read(root: str, name: str, **part: int) -> bytes:
    return tried(lambda: _file_system(root).cat_file(_url_in(root, name), **part))


def _asked_for(url: str) -> bool:
    """Ask for a file or folder, and return whether it is a file; a NotThere says that it is none.

    What asks a web server for no more than its header takes any error for an absent file.
    """
    if _is_http(url):
        tried(lambda: _file_system(url).cat_file(url, start=0, end=1))
        return True
    return bool(tried(lambda: _file_system(url).info(url))["type"] == "file")


def _check_answers(root: str) -> None:
    """Raise Unreachable if a source no longer answers."""
    asked = f"{root}/{INDEX}" if _is_http(root) else root
    try:
        _asked_for(asked)
    except NotThere:
        return
    except StorageError as error:
        raise Unreachable(
            f"{root} no longer answers: {error}; run the same command again later"
        ) from None


# ---------------------------------------------------------------------------------- the libraries


def modules_for(place: object) -> list[str]:
    """Name the modules that read a place, which a process does well to have before it is asked."""
    if not is_url(place):
        return []
    library = LIBRARIES.get(str(place).partition("://")[0])
    return ["fsspec", library] if library else []


@functools.lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READS_AHEAD, "medseq_tf-read")


def _file_system(url: str) -> Any:
    return _file_system_of(url.partition("://")[0])


@functools.lru_cache(maxsize=len(LIBRARIES))
def _file_system_of(kind: str) -> Any:
    """Make the file system of a kind of URL, one a process."""
    # Or else gcsfs asks of each bucket, by another library, whether it is of a kind that is new.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec

        return fsspec.filesystem(
            kind, skip_instance_cache=True, use_listings_cache=False, **_options(kind)
        )
    except ImportError:
        raise InputError(
            f"{kind}://... needs libraries that are not installed: pip install 'medseq_tf[remote]'"
        ) from None


def _options(kind: str) -> dict[str, Any]:
    """Return what its library is told, beside what it finds in the environment."""
    if kind == "s3":  # with more at a time, s3fs asks for the size of each object first
        connections = {"max_pool_connections": 2 * READS_AHEAD}
        return {"max_concurrency": 1, "config_kwargs": connections}
    if kind == "gs":
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(None, sock_connect=LONGEST_SILENCE, sock_read=LONGEST_SILENCE)
    return {
        "encoded": True,
        "headers": {"Accept-Encoding": "identity"},  # a packed file stays as it lies there
        "client_kwargs": {"auto_decompress": False, "trust_env": True, "timeout": timeout},
    }


def tried(call: Callable[[], Result]) -> Result:
    """Call a library, again after a pause where it fails and may not fail for ever.

    Raises:
        StorageError: it failed each time.
    """
    for seconds in (*SECONDS_BETWEEN_TRIES, None):
        try:
            return call()
        except (InputError, StorageError):
            raise
        except Exception as error:  # each library has its own, of many kinds
            _refuse_final(error)
            if seconds is None:
                raise StorageError(f"no whole answer ({_name_of(error)})") from None
            time.sleep(max(seconds, error.pause) if isinstance(error, TryLater) else seconds)
    raise AssertionError


def _name_of(error: Exception) -> str:
    """Call an error by what can hold no secret."""
    status = getattr(error, "status", None)
    return type(error).__name__ + (f", {status}" if isinstance(status, int) else "")


def _refuse_final(error: Exception) -> None:
    """Raise a StorageError for what will always fail."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        raise NotThere("it is not there") from None
    if isinstance(error, PermissionError) or status in (401, 403):
        raise StorageError("access is denied to the credentials of the environment") from None
    if "Credentials" in type(error).__name__:
        raise StorageError("the environment holds no credentials for it") from None
