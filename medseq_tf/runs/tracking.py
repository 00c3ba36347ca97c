"""Takes what a run has to say; gives it to MLflow, and never lets the work fail because of it.

This module and `registry` alone import mlflow. Runs go to `MLFLOW_TRACKING_URI`, or to `sqlite:///mlflow.db`
in the working directory. When tracking fails, that is said once, and everything that could not
be sent is kept in the run folder until it can be, see `Tracker`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseq_tf.errors import InputError, printable
from medseq_tf.files import atomic, locked, remove_abandoned
from medseq_tf.runs.unsent import (
    FIGURES,
    REFUSED,
    UNSENT,
    VERSION_0_1,
    Unsent,
    new_tracker,
    points_of,
)

__all__ = ["UNSENT", "Section", "Tracker"]

DEFAULT_URI = "sqlite:///mlflow.db"
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds between two tries to send what waits: they double."""
SHARE = 20
"""And so many times as long as the last try took: no more than a twentieth of the time is lost."""
LAST_TRIES = 3
"""When MLflow fails for the first time as the run ends."""
KEY, PARENT_KEY = "medseq_tf.tracker", "medseq_tf.parent_tracker"
"""Tags by which a run is known again that was begun, and the answer lost."""
NOT_YET = "unsent:"
"""How the reference of a run begins that MLflow does not know yet."""
SYSTEM_SECONDS = 5
"""Between two samples of the system's metrics; `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` first."""


def public_uri() -> str:
    """Return `tracking_uri()` without user name and password."""
    return _public(tracking_uri())


def tracking_uri() -> str:
    """Return where runs are tracked: `MLFLOW_TRACKING_URI`, or a local sqlite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


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
        self._send("start", experiment=experiment, parent=parent, tags=_source_tags())

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
        self._send("params", values={key: _text(value) for key, value in values.items()})

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
                connect().set_terminated(self.run_id, status)

    def _send(self, kind: str, tries: int = 1, **values: Any) -> None:
        """Send a record, behind those that wait; or keep it. Whatever happens, the work goes on."""
        if not self.enabled:
            return
        record = {"kind": kind, "tracker": self._key, "run": self._name, "run_id": self.run_id}
        record |= {"time": _now(), **values}
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
            self._client = connect()
        self.run_id = deliver(self._client, self.folder, record)
        if self._system_metrics and self._monitor is None and record["kind"] != "end":
            with contextlib.suppress(Exception):
                self._watch_system()
        return self.run_id

    def _watch_system(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(
            self.run_id,
            sampling_interval=SYSTEM_SECONDS,
            resume_logging=True,
            tracking_uri=tracking_uri(),
        )
        self._monitor.start()

    def _say(self, error: Exception) -> None:
        if _outage().begin():
            print(
                f"medseq-tf: MLflow at {public_uri()} cannot be used "
                f"({first_line(error)[:160]}){remedy()}; the run goes on, its records are kept: "
                f"`medseq-tf track {self.folder}` sends them",
                file=sys.stderr,
            )


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
        said, self.said = self.said, True
        return not said


_outages: dict[str, _Outage] = {}


def _outage() -> _Outage:
    return _outages.setdefault(tracking_uri(), _Outage())


def send_unsent(folder: Path, run_id: str | None = None) -> tuple[int, dict[str, str]]:
    """Send what waits in a folder, once and in order.

    Args:
        folder: of a run, a search or a trial.
        run_id: its MLflow run, where it has one, for records of version 0.1.0, which do not say.

    Returns:
        How many records were sent, and the ids of their MLflow runs by the runs' names.

    Raises:
        InputError: MLflow cannot be used; what was not sent waits on.
    """
    unsent, sent, runs = Unsent(folder), 0, {}

    def send(record: Mapping[str, Any]) -> str:
        if record["tracker"] == VERSION_0_1 and not record.get("run_id"):
            record = {**record, "run_id": run_id}
        runs[record.get("run", "")] = sent_to = deliver(client, folder, record)
        return sent_to

    try:
        trackers = unsent.trackers()
        client = connect() if trackers else None
        for tracker in trackers:
            sent += unsent.send(tracker, send)
    except Exception as error:
        raise InputError(
            f"{folder}: MLflow at {public_uri()} cannot be used ({first_line(error)}){remedy()}; "
            f"{len(unsent.read())} records wait on"
        ) from None
    return sent, runs


def terminate(run_id: str, status: str) -> bool:
    """End an MLflow run that a killed process left running; return whether there was such a one.

    Raises:
        InputError: MLflow cannot be used.
    """
    try:
        client = connect()
        if not is_there(client, run_id) or client.get_run(run_id).info.status != "RUNNING":
            return False
        client.set_terminated(run_id, status)
    except Exception as error:
        raise InputError(
            f"MLflow at {public_uri()} cannot be used ({first_line(error)}){remedy()}"
        ) from None
    return True


# ----------------------------------------------------------------------------- one record to MLflow


def connect() -> Any:
    """Return MLflow's client; a local database that is not there yet is made."""
    for variable, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(variable, value)
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    make_database(tracking_uri())
    return MlflowClient(tracking_uri())


def deliver(client: Any, folder: Path, record: Mapping[str, Any]) -> str:
    """Send a record; sent twice, it stands there once. Return the MLflow run's id.

    What MLflow does not take as it is, today or tomorrow, is kept apart and not tried again.
    """
    from mlflow.exceptions import MlflowException

    if record["kind"] == "start":
        return _begin(client, record)
    run_id = record.get("run_id") or _begin(client, {**record, "parent": None})
    try:
        _SENDERS[record["kind"]](client, run_id, record, folder)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise
        Unsent(folder).refuse(dict(record))
        print(
            f"medseq-tf: MLflow refuses {record['kind']} ({first_line(error)}); kept in "
            f"{folder / REFUSED}",
            file=sys.stderr,
        )
    return run_id


def _begin(client: Any, record: Mapping[str, Any]) -> str:
    """Begin the run of a record, or go on with it; return its id."""
    key = record["tracker"]
    if record.get("run_id") and _goes_on(client, record["run_id"]):
        return record["run_id"]
    experiment = _experiment_id(client, record.get("experiment", "medseq_tf"))
    if record.get("kept") and (there := _by_tag(client, experiment, KEY, key)):
        return there[0]  # it was sent, and the answer was lost
    tags, parent = {**record.get("tags", {}), KEY: key}, record.get("parent")
    if parent and parent.startswith(NOT_YET):
        known = _by_tag(client, experiment, KEY, parent.removeprefix(NOT_YET))
        tags |= {"mlflow.parentRunId": known[0]} if known else {PARENT_KEY: parent}
    elif parent:
        tags["mlflow.parentRunId"] = parent
    begun, name = record.get("time"), record.get("run")
    run_id = client.create_run(experiment, start_time=begun, tags=tags, run_name=name).info.run_id
    if not record.get("kept"):
        return run_id
    for child in _by_tag(client, experiment, PARENT_KEY, f"{NOT_YET}{key}"):
        client.set_tag(child, "mlflow.parentRunId", run_id)
    return run_id


def _goes_on(client: Any, run_id: str) -> bool:
    if not is_there(client, run_id) or client.get_run(run_id).info.lifecycle_stage != "active":
        return False
    client.update_run(run_id, status="RUNNING")
    return True


def _by_tag(client: Any, experiment: str, tag: str, value: str) -> list[str]:
    runs = client.search_runs([experiment], f"tags.`{tag}` = '{value}'")
    return [run.info.run_id for run in runs]


def _send_params(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    from mlflow.entities import Param

    items = [Param(key, value) for key, value in record["values"].items()]
    for start in range(0, len(items), 100):
        client.log_batch(run_id, params=items[start : start + 100])


def _send_metrics(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    from mlflow.entities import Metric

    points = [Metric(name, value, when, step) for name, value, when, step in points_of(record)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])


def _send_announcement(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    client.log_metric(run_id, record["name"], math.nan, timestamp=record["time"])


def _send_dataset(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=record["name"],
        digest=record["fingerprint"][:36],
        source_type="medseq_tf",
        source=json.dumps({"fingerprint": record["fingerprint"]}),
        profile=json.dumps(record.get("profile", {})),
    )
    context = InputTag("mlflow.data.context", "training")
    client.log_inputs(run_id, datasets=[DatasetInput(data, [context])])


def _send_artifact(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    path = Path(folder) / record["path"]
    if not path.is_file():
        print(f"medseq-tf: {path} is gone, so MLflow does not get it", file=sys.stderr)
        return
    client.log_artifact(run_id, str(path), record.get("folder"))
    if record.get("remove"):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of the folders, those that are empty now
            for above in path.relative_to(folder).parents[:-1]:
                (Path(folder) / above).rmdir()


def _send_tags(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    for key, value in record["values"].items():
        client.set_tag(run_id, key, value)


def _send_end(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    client.set_terminated(run_id, record["status"], record["time"])


def _send_nothing(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    """Of version 0.1.0, which kept of a figure only its name."""


_SENDERS = {
    "params": _send_params,
    "metrics": _send_metrics,
    "announce": _send_announcement,
    "dataset": _send_dataset,
    "artifact": _send_artifact,
    "tags": _send_tags,
    "end": _send_end,
    "figure": _send_nothing,
    "system metrics": _send_nothing,
}


def _source_tags() -> dict[str, str]:
    """Return what MLflow says of the process that begins a run, such as its user and script."""
    try:
        from mlflow.tracking.context.registry import resolve_tags

        return dict(resolve_tags())
    except Exception:
        return {}


def _now() -> int:
    return int(time.time() * 1000)


# ------------------------------------------------------------------------------ a local database


def make_database(uri: str) -> None:
    """Make the local database of MLflow if it is not there: whole or not at all, and once.

    Left to itself, MLflow makes its tables one by one, and a kill on the way leaves a file that it
    never opens again.
    """
    file = _database(uri)
    if file is None or file.exists():
        return
    with locked(file.with_name(f".{file.name}.lock"), "", wait=True):
        if file.exists():
            return
        remove_abandoned(file.parent)
        from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with contextlib.suppress(FileExistsError), atomic(file) as temporary:
            root = DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
            SqlAlchemyStore(f"sqlite:///{temporary}", root)._dispose_engine()
            if file.exists():  # made meanwhile by another program
                raise FileExistsError(file)


def remedy() -> str:
    """Return what to do about a local database that a kill left half made; nothing if it is not."""
    file = _database(tracking_uri())
    if file is None or not file.is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
            count = "SELECT count(*) FROM runs"
            runs = base.execute(count).fetchone() if "runs" in tables else (0,)
    except sqlite3.OperationalError:  # locked, or not to be read
        return ""
    except sqlite3.DatabaseError:
        return f"; {file} is no database: move it away, and the next run makes a new one"
    if runs != (0,):
        return ""
    return f"; {file} holds no run and is half made: remove it, and the next run makes it anew"


def _database(uri: str) -> Path | None:
    """Return the file of a local sqlite database."""
    found = re.fullmatch(r"sqlite:///([^?]+)", uri)
    return Path(found[1]) if found and found[1] != ":memory:" else None


def is_there(client: Any, run_id: str | None) -> bool:
    """Return whether MLflow knows a run.

    Raises:
        MlflowException: it does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        return run_id is not None and client.get_run(run_id) is not None
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # who does not answer may well have it
        return False


def first_line(error: Exception) -> str:
    """Return an error's first line, without user name and password."""
    lines = str(error).strip().splitlines()
    return printable(_public(lines[0][:200]) if lines else type(error).__name__)


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

    def params(self, values: Mapping[str, Any]) -> None:
        """Pass on nothing: the run has its own."""

    def dataset(self, name: str, fingerprint: str, profile: Mapping[str, Any]) -> None:
        """Pass on nothing: the run has its own."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Pass on nothing: the run has its own."""


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    for attempt in (1, 2):
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return client.create_experiment(name)
        except MlflowException:  # another run has made it in the meantime
            if attempt == 2:
                raise
    raise AssertionError("the loop returns or raises")


def _public(text: str) -> str:
    """Leave user name and password out of the addresses in a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
