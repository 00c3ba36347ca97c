"""The folder of a data set: made beside its target, by one process at a time, whole or absent.

Everything is written into `OUT.partial-<key>` and renamed at the end. A run that was killed leaves
its finished shards there; the next run with the same source and settings goes on from them. What is
there already is replaced only where it is a prepared data set and holds nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medseq_tf.dataset.prepared import READS
from medseq_tf.errors import InputError
from medseq_tf.files import locked, naming

FILES = ("dataset.json", "studies.parquet", "audit.json", "audit.txt", READS)
"""What a prepared data set's folder holds beside its shards."""
REPLACED = ".replaced"
FILES_SYNCED_TOGETHER = 4


def check_target(out: Path, overwrite: bool, is_link: bool) -> None:
    """Raise an InputError if `out` exists, but for a prepared data set that is to be overwritten.

    Nothing is replaced through a symbolic link (`is_link`) by which the user named it.
    """
    if not out.exists():
        return
    if not overwrite:
        raise InputError(
            f"{out} exists; choose another out, or overwrite=True (--overwrite) to replace it"
        )
    if is_link:
        raise InputError(f"out is a symbolic link; to replace what it points to, give {out} itself")
    if (out / "experiment.yaml").exists() or (out / "run.json").exists():
        raise InputError(f"{out} is the folder of a run, so it is not overwritten")
    if not (out / "dataset.json").is_file() or not (out / "shards").is_dir():
        raise InputError(f"{out} is not a prepared data set, so it is not overwritten")
    if foreign := next(iter(_foreign(out)), None):
        raise InputError(
            f"{out} holds more than a prepared data set, so it is not overwritten: move "
            f"{foreign.relative_to(out)} elsewhere first"
        )


def _foreign(data_set: Path) -> Iterator[Path]:
    """Yield what `prepare` did not write into a data set's folder."""
    for path in sorted(data_set.iterdir()):
        if path.name == "shards":
            yield from (s for s in sorted(path.iterdir()) if s.suffix != ".tfrecord")
        elif path.name not in FILES or not path.is_file():
            yield path


@contextlib.contextmanager
def preparing(out: Path) -> Iterator[None]:
    """Keep other processes from preparing for the same target; a kill frees it.

    What killed processes left for the target is removed, but for what can be gone on from; a data
    set that one of them was about to replace stands in its place again.
    """
    lock = out.with_name(f".{out.name}.preparing")
    with locked(lock, f"{out} is being prepared by another process; wait for it to end"):
        for replaced in _left(out, REPLACED):
            if out.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(out)
        yield


def _left(out: Path, end: str = "") -> list[Path]:
    """Return the folders that runs have left beside their target."""
    name = re.compile(rf"{re.escape(out.name)}\.partial-[0-9a-f]{{12}}{re.escape(end)}")
    return [path for path in out.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def partial_folder(out: Path, key: str) -> Path:
    """Make the folder that is written to; an interrupted run's is gone on from.

    What runs with another source or other settings left for this target is removed.
    """
    folder = out.with_name(f"{out.name}.partial-{key}")
    for name in ("shards", "progress"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "lock").unlink(missing_ok=True)  # of version 0.1.0
    for other in _left(out):
        if other != folder:
            shutil.rmtree(other)
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of the partial folder so that it is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    with naming(path, instead_of=partial):
        partial.write_bytes(data)
        partial.rename(path)


def publish(folder: Path, out: Path) -> None:
    """Give the partial folder its name once all of it is on the disk.

    Until then nothing waits for the disk: what a power cut left half written of a shard, the next
    run finds by its hash. Many files at a time share the disk's waits.
    """
    shutil.rmtree(folder / "progress")
    with ThreadPoolExecutor(FILES_SYNCED_TOGETHER) as threads:
        list(threads.map(_sync, [*folder.rglob("*"), folder]))
    if out.exists():
        replaced = out.with_name(f"{folder.name}{REPLACED}")
        out.rename(replaced)
        if (replaced / READS).is_file():  # the patients have been read, whatever is prepared anew
            shutil.copyfile(replaced / READS, folder / READS)
        folder.rename(out)
        shutil.rmtree(replaced)
    else:
        folder.rename(out)
    _sync(out.parent)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk; of a folder its names, where the system can."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
