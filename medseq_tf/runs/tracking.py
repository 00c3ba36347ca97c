"""The tracker of a run: it tells MLflow, and never lets the work fail because of it.

When tracking fails, that is said once, and everything that could not be sent is kept in the run
folder until it can be, see `Tracker`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from medseq_tf.errors import InputError
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.mlflow_store import NOT_YET, tracking_uri
from medseq_tf.runs.unsent import FIGURES, VERSION_0_1, Unsent, new_tracker

FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds between two tries to send what waits: they double."""
SHARE = 20
"""And so many times as long as the last try took: no more than a twentieth of the time is lost."""
LAST_TRIES = 3
"""When MLflow fails for the first time as the run ends."""


class Tracker:
    """One MLflow run.

    What cannot be sent is kept in the folder's `tracking_unsent.jsonl`, and tried again with the
    next thing to log, after waits that double; the last time when the run ends. What is left is
    sent by the next tracker of the run, or by `medseq-tf track`, once and in order.

    Args:
        folder: the run folder; unsent records are kept there.
        name: the run's name.
        experiment: the MLflow experiment's name.
        parent: `reference` of the run that this one belongs to.
        run_id: an earlier MLflow run to go on with (`--resume`).
        enabled: False tracks nothing.
        system_metrics: sample processor, memory, disk, network and, where there is one, GPU.

    Attributes:
        enabled: whether anything is tracked.
        run_id: of the MLflow run; None as long as MLflow has not given it one.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        experiment: str = "medseq_tf",
        parent: str | None = None,
        run_id: str | None = None,
        enabled: bool = True,
        system_metrics: bool = False,
    ):
        self.folder, self.run_id, self.enabled = Path(folder), run_id, enabled
        self._name = name
        self._system_metrics = system_metrics
        self._client: Any = None
        self._monitor: Any = None
        self._lock = threading.RLock()
        if not enabled:
            return
        self._unsent = Unsent(self.folder)
        earlier = self._unsent.earlier(name, run_id)
        self._waiting = earlier is not None
        self._key = earlier["tracker"] if earlier else new_tracker()
        self.run_id = run_id or (earlier or {}).get("run_id")
        self._send("start", experiment=experiment, parent=parent, tags=mlflow_store.source_tags())

    @property
    def reference(self) -> str | None:
        """What names this run as another's parent, whether or not MLflow knows it yet."""
        return self.run_id or (f"{NOT_YET}{self._key}" if self.enabled else None)

    @property
    def connected(self) -> bool:
        """Whether what is logged arrives."""
        return self.enabled and self._client is not None and not self._waiting

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings, such as the recipe's dotted keys."""
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        self._send("params", values=texts)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; values that are no number are left out.

        What MLflow allows in no name of a metric becomes an underscore.
        """
        finite = {
            re.sub(r"[^\w\-./ ]", "_", key): float(value)
            for key, value in values.items()
            if value is not None and math.isfinite(value)
        }
        self._send("metrics", step=step, values=finite)

    def announce(self, name: str) -> None:
        """Log a metric that is not known yet, as NaN: MLflow lists metrics as they come."""
        self._send("announce", name=name)

    def dataset(self, name: str, fingerprint: str, profile: Mapping[str, Any]) -> None:
        """Log which data set the run reads, by its fingerprint."""
        self._send("dataset", name=name, fingerprint=fingerprint, profile=dict(profile))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file of the run folder."""
        path = Path(path).absolute()
        with contextlib.suppress(ValueError):
            path = path.relative_to(self.folder.absolute())
        self._send("artifact", path=str(path), folder=folder)

    def figure(self, figure: Any, path: str) -> None:
        """Log a Matplotlib figure as a picture, such as `figures/curves.png`."""
        if not self.enabled:
            return
        kept = Path(FIGURES) / self._key / path
        try:
            (self.folder / kept).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.folder / kept)
        except OSError as error:
            self._say(error)
            return
        self._send("artifact", path=str(kept), folder=str(Path(path).parent), remove=True)

    def tags(self, values: Mapping[str, str]) -> None:
        """Log what is said of the run as a whole."""
        self._send("tags", values=dict(values))

    def end(self, status: str = "FINISHED") -> None:
        """Mark the run as FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            with contextlib.suppress(Exception):
                self._monitor.finish()
        self._send("end", status=status, tries=LAST_TRIES)
        if self.enabled and self._waiting and self.run_id is not None:
            with contextlib.suppress(Exception):  # what waits may wait for something else
                mlflow_store.connect().set_terminated(self.run_id, status)

    def _send(self, kind: str, tries: int = 1, **values: Any) -> None:
        """Send a record, behind those that wait; or keep it. Whatever happens, the work goes on."""
        if not self.enabled:
            return
        record = {"kind": kind, "tracker": self._key, "run": self._name, "run_id": self.run_id}
        record |= {"time": int(time.time() * 1000), **values}
        outage, began = _outage(), time.monotonic()
        with self._lock:
            try:
                if not self._waiting:
                    try:
                        self._deliver(record)
                        return
                    except Exception:
                        self._waiting = True
                        self._unsent.append(record)
                        if tries == 1:
                            raise
                else:
                    self._unsent.append(record)
                    if tries == 1 and began < outage.next_try:
                        return
                self._send_waiting(tries)
            except Exception as error:
                self._client = None
                outage.note(time.monotonic() - began)
                self._say(error)

    def _send_waiting(self, tries: int) -> None:
        """Send what waits, in so many tries; raise the last one's error."""
        waiting = len(self._unsent.read())
        for number in range(tries):
            try:
                sent = self._unsent.send(self._key, self._deliver)
            except Exception:
                self._client = None
                left = len(self._unsent.read())
                if number == tries - 1 or (left == waiting and _outage().next_try):
                    raise  # the last try, or it did not answer before either
                waiting = left
                time.sleep(FIRST_WAIT * 2**number)
            else:
                break
        self._waiting = False
        outage = _outages.pop(tracking_uri(), None)
        if outage is not None and outage.said:
            text = f"MLflow can be used again; {sent} records that were kept are sent"
            print(f"medseq-tf: {text}", file=sys.stderr)

    def _deliver(self, record: Mapping[str, Any]) -> str:
        if self._client is None:
            self._client = mlflow_store.connect()
        self.run_id = mlflow_store.deliver(self._client, self.folder, record)
        if self._system_metrics and self._monitor is None and record["kind"] != "end":
            with contextlib.suppress(Exception):
                self._monitor = mlflow_store.watch_system(self.run_id)
        return self.run_id

    def _say(self, error: Exception) -> None:
        if _outage().begin():
            print(
                f"medseq-tf: {mlflow_store.cannot_be_used(error, 160)}; the run goes on, its "
                f"records are kept: `medseq-tf track {self.folder}` sends them",
                file=sys.stderr,
            )


class Section:
    """A part of a run, such as a fold: its metrics by epoch join the run's under a prefix.

    It stands where a `Tracker` would, and passes on nothing else.

    Args:
        tracker: the run.
        names: the metrics that are passed on.
        prefix: such as `fold_1/`.
    """

    def __init__(self, tracker: Tracker, names: Sequence[str], prefix: str = ""):
        self._tracker, self._names, self._prefix = tracker, tuple(names), prefix

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id."""
        return self._tracker.run_id

    @property
    def reference(self) -> str | None:
        """What names the run as another's parent."""
        return self._tracker.reference

    def within(self, prefix: str) -> Section:
        """Return a part of this part."""
        return Section(self._tracker, self._names, f"{self._prefix}{prefix}")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of an epoch; those without one are of the part alone."""
        kept = {self._prefix + name: values[name] for name in self._names if name in values}
        if step and kept:
            self._tracker.metrics(kept, step)

    def _pass_on_nothing(self, *values: Any, **settings: Any) -> None:
        """Leave it to the run, which has its own."""

    params = dataset = artifact = _pass_on_nothing


AnyTracker: TypeAlias = Tracker | Section


class _Outage:
    """What is known of an address where MLflow cannot be used, by all trackers of the process.

    Attributes:
        next_try: when it is to be asked again, on the clock of `time.monotonic`.
        said: whether the user knows.
    """

    def __init__(self):
        self.next_try = 0.0
        self._wait, self.said = FIRST_WAIT, False

    def note(self, seconds: float) -> None:
        """Note that it did not answer, after so long."""
        self.next_try = time.monotonic() + max(self._wait, SHARE * seconds)
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def begin(self) -> bool:
        """Return whether it has still to be said."""
        is_first, self.said = not self.said, True
        return is_first


_outages: dict[str, _Outage] = {}


def _outage() -> _Outage:
    return _outages.setdefault(tracking_uri(), _Outage())


def send_unsent(folder: Path, run_id: str | None = None) -> tuple[int, dict[str, str]]:
    """Send what waits in the folder of a run, a search or a trial, once and in order.

    Records of version 0.1.0, which name no MLflow run, are of `run_id`.

    Returns:
        How many records were sent, and the ids of their MLflow runs by the runs' names.

    Raises:
        InputError: MLflow cannot be used; what was not sent waits on.
    """
    unsent, sent = Unsent(folder), 0
    runs: dict[str, str] = {}

    def send(record: Mapping[str, Any]) -> str:
        if record["tracker"] == VERSION_0_1 and not record.get("run_id"):
            record = {**record, "run_id": run_id}
        runs[record.get("run", "")] = sent_to = mlflow_store.deliver(client, folder, record)
        return sent_to

    try:
        trackers = unsent.trackers()
        client = mlflow_store.connect() if trackers else None
        for tracker in trackers:
            sent += unsent.send(tracker, send)
    except Exception as error:
        waiting = f"{len(unsent.read())} records wait on"
        raise InputError(f"{folder}: {mlflow_store.cannot_be_used(error)}; {waiting}") from None
    return sent, runs
