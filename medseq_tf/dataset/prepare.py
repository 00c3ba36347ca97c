"""Prepare: a source that a reader understands becomes a data set, decoded once.

The studies are read in worker processes (`shards`), everything is written beside the target and
renamed at the end (`publication`), and the same source and settings give the same bytes.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseq_tf import readers
from medseq_tf.dataset.metadata import found_text, write_metadata
from medseq_tf.dataset.preparation import Preparation
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.publication import check_target, partial_folder, preparing, publish
from medseq_tf.dataset.records import Aspect
from medseq_tf.dataset.shards import refuse_left_out, write_shards
from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.execution.processes import start_server
from medseq_tf.files import destination
from medseq_tf.phantom.reader import index_demo
from medseq_tf.readers import SourceIndex

__all__ = ["Prepared", "prepare"]

SMALLEST_SIZE, LARGEST_SIZE = 8, 1024

READERS: dict[str, Callable[..., SourceIndex]] = {**readers.READERS, "demo": index_demo}
"""Name -> reader; the demo reads no files."""

_IMPORTED_BY_WORKERS = ("medseq_tf.dataset.records",)
_IMPORTED_BY_READERS_WORKERS = dict.fromkeys(
    ("volumes", "atlas"), ("medseq_tf.readers.simpleitk_volume",)
)


def prepare(
    reader: str,
    source: str | Path | None = None,
    *,
    out: str | Path,
    labels: str | Path | int | None = None,
    size: int = 64,
    aspect: Aspect = "pad",
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Prepared:
    """Read a source once and write it as a prepared data set.

    With several workers, call it under `if __name__ == "__main__":` in a script.

    Args:
        reader: one of `READERS`.
        source: what the reader reads; `demo` needs none.
        out: the folder to make.
        labels: for the reader: a CSV of labels; for `demo` the number of labels.
        size: side of the stored slices in pixels, 8 to 1024. Slices shrink by area, grow linearly.
        aspect: `pad` keeps the aspect ratio by padding to a square, `stretch` does not.
        workers: processes; default: one a core. 1: this process, which a damaged file that crashes
            its decoder then ends.
        strict: a study that would be left out is an error.
        overwrite: replace `out` where it is a prepared data set, and holds nothing else.
        progress: show a progress bar on standard error.
        **options: for the reader.

    Raises:
        InputError: for settings or a source that cannot be used, or when `out` exists.
    """
    is_link, out = Path(out).is_symlink(), destination(out).absolute()
    _check_settings(size, aspect, workers)
    _check_place(out, source)
    check_target(out, overwrite, is_link)
    if workers != 1:
        start_server(*_IMPORTED_BY_WORKERS, *_IMPORTED_BY_READERS_WORKERS.get(reader, ()))
    index = _index(reader, source, labels, {"size": size, "workers": workers}, options)
    if strict:
        refuse_left_out(index.audit_entries)
    if not index.studies:
        raise InputError(
            f"{source or reader} holds no study that can be used{found_text(index.audit_entries)}"
        )
    preparation = Preparation.of(reader, {"labels": labels, **options}, index, size, aspect)
    with preparing(out):
        check_target(out, overwrite, is_link)  # it may have come since
        folder = partial_folder(out, preparation.key())
        try:
            shards = write_shards(folder, preparation, workers, strict, progress)
            write_metadata(folder, preparation, shards, source or reader)
        except InputError:
            shutil.rmtree(folder)
            raise
        check_target(out, overwrite, is_link)
        publish(folder, out)
    return Prepared.load(out)


def _check_settings(size: int, aspect: str, workers: int | None) -> None:
    if not isinstance(size, int) or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise InputError(
            f"size={size!r} is not a whole number of pixels from {SMALLEST_SIZE} to {LARGEST_SIZE}"
        )
    if aspect not in ("pad", "stretch"):
        raise InputError(f"aspect={aspect!r} is unknown; valid: pad, stretch")
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise InputError(f"workers={workers!r} is not a number of processes, 1 or more")


def _check_place(out: Path, source: str | Path | None) -> None:
    if source is not None:
        target, folder = out.resolve(), Path(source).resolve()
        if target.is_relative_to(folder) or folder.is_relative_to(target):
            raise InputError(f"out={out} and the source lie in one another; choose a folder apart")


def _index(
    reader: str,
    source: str | Path | None,
    labels: str | Path | int | None,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> SourceIndex:
    """List the studies of a source by the reader's name, once its options are known to be its.

    Args:
        reader: one of `READERS`.
        source: what it reads.
        labels: see `prepare`.
        settings: those of `prepare` itself that a reader may want to know.
        options: of the reader.
    """
    if reader not in READERS:
        hint = did_you_mean(reader, READERS)
        raise InputError(f"reader {reader!r} is unknown{hint}; valid: {', '.join(READERS)}")
    parameters = inspect.signature(READERS[reader]).parameters
    arguments = {**options} if labels is None else {"labels": labels, **options}
    for name in arguments:
        if name not in parameters:
            valid = ", ".join(p for p in parameters if p not in ("source", *settings))
            raise InputError(f"{name} is not an option of reader {reader}; valid: {valid}")
    if source is None and parameters["source"].default is inspect.Parameter.empty:
        raise InputError(f"reader {reader} needs a source, the folder to read")
    arguments |= {name: value for name, value in settings.items() if name in parameters}
    return READERS[reader](source, **arguments)
