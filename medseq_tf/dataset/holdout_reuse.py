"""Reuse of the holdout: how often the test patients of a data set have answered for a figure.

Test patients who are read once say how good one recipe is. Read again and again, recipe after
recipe, the best of these is too good, whether a search chose it or a person did. So every figure
of test patients is counted in the data set's folder, in `test_reads.jsonl`, one line a read: which
studies, and a hash of the recipe. Where the folder cannot be written, that is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from medseq_tf.dataset.prepared import READS as FILE
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.recipe import Experiment

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Reads:
    """How often some patients have answered for figures, this time included.

    Attributes:
        patients: how many they are.
        times: reads of any of them.
        recipes: different recipes, seeds included, that read them.
        counted: whether the data set's folder could be written, so that the next read counts this.
    """

    patients: int
    times: int
    recipes: int
    counted: bool = True

    def text(self) -> str:
        """Return the count in words."""
        often = "once" if self.times == 1 else f"{self.times} times"
        words = f"the {self.patients} test patients have been read {often}"
        if self.times > 1:
            words += f", by {self.recipes} recipe{'s' * (self.recipes > 1)}"
        if self.recipes > 1:
            words += ": the best of these recipes is too good"
        if not self.counted:
            words += (
                f" (the data set's folder cannot be written: reads from there are not counted in "
                f"its {FILE})"
            )
        return words


def record(prepared: Prepared, studies: Iterable[str], recipe: Experiment) -> Reads:
    """Count a read of some studies, by their ids, for a recipe; return all reads of them."""
    row_of = {study: row for row, study in enumerate(prepared.studies["study_id"])}
    rows = np.array(sorted({row_of[study] for study in studies}), np.int64)
    identity = json.dumps(recipe.identity(), sort_keys=True).encode()  # all that decides a training
    this_read = {
        "data": prepared.fingerprint[:16],
        "studies": _packed(rows, len(row_of)),
        "recipe": hashlib.sha256(identity).hexdigest()[:12],
    }
    path, counted = prepared.path / FILE, True
    try:
        with open(path, "ab+") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            before = file.read()
            torn = b"" if not before or before.endswith(b"\n") else b"\n"  # a kill, in mid-line
            file.write(torn + json.dumps(this_read).encode() + b"\n")
    except OSError:
        before, counted = b"", False
        with contextlib.suppress(OSError):
            before = path.read_bytes()
    reads = [this_read]
    for line in _lines(before):
        is_of_this_data = line.get("data") == this_read["data"]
        if is_of_this_data and np.intersect1d(_unpacked(line.get("studies")), rows).size:
            reads.append(line)
    patients = prepared.studies["patient_id"].iloc[rows].nunique()
    return Reads(patients, len(reads), len({line.get("recipe") for line in reads}), counted)


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the reads of a file; what is no read, such as half a line, is passed over."""
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _packed(rows: np.ndarray, studies: int) -> str:
    """Return rows as a bit a study, in hexadecimal digits."""
    bits = np.zeros(studies, bool)
    bits[rows] = True
    return np.packbits(bits).tobytes().hex()


def _unpacked(text: Any) -> np.ndarray:
    try:
        return np.flatnonzero(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)))
    except (TypeError, ValueError):
        return np.empty(0, np.int64)
