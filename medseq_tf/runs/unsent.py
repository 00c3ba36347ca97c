"""Records that could not be sent to MLflow and wait, in order, in a folder's file.

A record is a line of JSON: what is to be logged (`kind` and its values), when that was (`time`, in
milliseconds), of which tracker (`tracker`) and run (`run`, its name), and the MLflow run's id where
that is known (`run_id`).
Whoever sends takes them out one by one, so that what is sent once is not sent again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseq_tf.files import locked, write_text

UNSENT = "tracking_unsent.jsonl"
REFUSED = "tracking_refused.jsonl"
FIGURES = "tracking_unsent"
"""The folder of figures that wait."""

VERSION_0_1 = "0.1.0"
"""Stands for the tracker of records of that version."""

MOST_METRICS = 500
"""In one request; MLflow takes 1000."""

Record = dict[str, Any]


class Unsent:
    """The records that wait in a folder.

    Args:
        folder: of a run or a search.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = Path(folder), Path(folder) / UNSENT

    def read(self) -> list[Record]:
        """Return the records that wait, in order; a line that a kill cut short is left out."""
        try:
            lines = self.path.read_text("utf-8", errors="replace").splitlines()
            written = int(self.path.stat().st_mtime * 1000)
        except FileNotFoundError:
            return []
        records = [record for record in map(_record, lines) if record]
        return [r if "tracker" in r else _of_version_0_1(r, written) for r in records]

    def trackers(self) -> list[str]:
        """Return whose records wait, in order."""
        return list(dict.fromkeys(record["tracker"] for record in self.read()))

    def earlier(self, name: str, run_id: str | None) -> Record | None:
        """Return a record that waits for this MLflow run, or for the run of this name."""
        for record in self.read():
            if record.get("run") == name or (run_id and record.get("run_id") == run_id):
                return record
        return None

    def append(self, record: Record) -> None:
        """Add a record."""
        with self._lock():
            self._append(self.path, {**record, "kept": True})

    def refuse(self, record: Record) -> None:
        """Keep a record that MLflow does not take, apart from those that wait."""
        self._append(self.folder / REFUSED, record)

    def send(self, tracker: str, deliver: Callable[[Record], str]) -> int:
        """Deliver a tracker's records in order and take out each that is; return how many.

        Args:
            tracker: whose.
            deliver: sends a record and returns the MLflow run's id.

        Raises:
            Exception: whatever stopped it; that record and those behind it wait on.
        """
        with self._lock():
            records, sent = self.read(), 0
            while mine := [record for record in records if record["tracker"] == tracker]:
                together = _together(mine)
                run_id = deliver(together[0] if len(together) == 1 else _joined(together))
                sent += len(together)
                gone = {id(record) for record in together}
                records = [record for record in records if id(record) not in gone]
                for record in records:
                    if record["tracker"] == tracker:
                        record["run_id"] = run_id
                self._write(records)
        return sent

    def _write(self, records: list[Record]) -> None:
        if not records:
            self.path.unlink(missing_ok=True)
            return
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in records))

    def _append(self, path: Path, record: Record) -> None:
        with open(path, "a+b") as file:
            if file.tell() and not _ends_with_a_line(file):  # a kill cut the last one short
                file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")

    def _lock(self) -> Any:
        return locked(self.folder / f".{UNSENT}.lock", "", wait=True)


def new_tracker() -> str:
    """Return the name of a new tracker, unlike any other."""
    return uuid.uuid4().hex


def _ends_with_a_line(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def _of_version_0_1(record: Record, written: int) -> Record:
    """Return a record of version 0.1.0, which named no tracker and no time, in this one's form."""
    about = {"kind": record["kind"], "tracker": VERSION_0_1, "kept": True, "time": written}
    values = {key: value for key, value in record.items() if key not in ("kind", "step")}
    if record["kind"] in ("params", "tags", "metrics"):
        return {**about, "step": record.get("step", 0), "values": values}
    return {**about, **values}


def _together(records: list[Record]) -> list[Record]:
    """Return the first record, or the first few where they are metrics, for one request."""
    count, metrics = 0, 0
    for record in records:
        if record["kind"] != "metrics":
            break
        metrics += len(record["values"])
        if count and metrics > MOST_METRICS:
            break
        count += 1
    return records[: max(count, 1)]


def _joined(records: Sequence[Mapping[str, Any]]) -> Record:
    """Return several records of metrics as one, of `points`."""
    points = [point for record in records for point in points_of(record)]
    return {**records[0], "points": points}


def points_of(record: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """Return (name, value, time, step) of the metrics of a record."""
    if "points" in record:
        return record["points"]
    time, step = record["time"], record["step"]
    return [(name, value, time, step) for name, value in record["values"].items()]
