"""What reaches MLflow: records of a run, its end, and models for the registry.

This module alone imports mlflow. Runs go to `MLFLOW_TRACKING_URI`, or to `sqlite:///mlflow.db` in
the working directory.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseq_tf.errors import InputError, printable
from medseq_tf.files import atomic, locked, remove_abandoned
from medseq_tf.runs.environment import pinned_requirements
from medseq_tf.runs.unsent import REFUSED, Unsent, points_of

DEFAULT_URI = "sqlite:///mlflow.db"
KEY, PARENT_KEY = "medseq_tf.tracker", "medseq_tf.parent_tracker"
"""Tags by which a run is known again that was begun, and the answer lost."""
NOT_YET = "unsent:"
"""How the reference of a run begins that MLflow does not know yet."""
SYSTEM_SECONDS = 5
"""Between two samples of the system's metrics; `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` first."""
TEXTS = "texts"
"""The type of a column of which each cell is a list of strings."""
SCORING = "medseq_tf.serving.mlflow_model"
"""The module that MLflow asks about a registered model."""


def public_uri() -> str:
    """Return `tracking_uri()` without user name and password."""
    return _public(tracking_uri())


def tracking_uri() -> str:
    """Return where runs are tracked: `MLFLOW_TRACKING_URI`, or a local sqlite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def absolute_uri() -> str:
    """Return `tracking_uri()` as it holds in any working folder."""
    uri = tracking_uri()
    file = _database_file(uri)
    return uri if file is None else uri.replace(str(file), str(file.absolute()), 1)


def _public(text: str) -> str:
    """Leave user name, password and the options of an address out of a text."""
    return re.sub(r"(//\S+?)\?[^\s'\"]*", r"\1", re.sub(r"//\S*@", "//", text))


def first_line(error: Exception) -> str:
    """Return an error's first line, without user name and password."""
    lines = str(error).strip().splitlines()
    return printable(_public(lines[0])[:200] if lines else type(error).__name__)


def cannot_be_used(error: Exception, most: int = 200) -> str:
    """Say that MLflow cannot be used, why (cut short), and what to do about a half-made file."""
    reason, advice = first_line(error)[:most], remedy(tracking_uri())
    return f"MLflow at {public_uri()} cannot be used ({reason}){advice}"


def connect() -> Any:
    """Return MLflow's client; a local database that is not there yet is made."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; a model may take longer
    _make_ready("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def _make_ready(*noisy: str) -> None:
    """Make MLflow fail soon and quietly (what it prints holds the password); make its database."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in noisy:
        logging.getLogger(name).setLevel(logging.WARNING)
    make_database(tracking_uri())


def make_database(uri: str) -> None:
    """Make the local database of MLflow if it is not there: whole or not at all, and once.

    Left to itself, MLflow makes its tables one by one, and a kill on the way leaves a file that it
    never opens again.
    """
    file = _database_file(uri)
    if file is None or file.exists():
        return
    with locked(file.with_name(f".{file.name}.lock"), "", wait=True):
        if file.exists():
            return
        remove_abandoned(file.parent)
        with contextlib.suppress(FileExistsError), atomic(file) as temporary:
            _create_tables(temporary)
            if file.exists():  # made meanwhile by another program
                raise FileExistsError(file)


def _database_file(uri: str) -> Path | None:
    """Return the file of a local sqlite database; None for any other address."""
    match = re.fullmatch(r"sqlite:///([^?]+)", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None


def remedy(uri: str) -> str:
    """Return what to do about a local database that a kill left half made; nothing if it is not."""
    file = _database_file(uri)
    if file is None or not file.is_file():
        return ""
    try:
        address = f"{file.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as base:
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


def _create_tables(file: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{file}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)._dispose_engine()


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
        raise InputError(cannot_be_used(error)) from None
    return True


def source_tags() -> dict[str, str]:
    """Return what MLflow says of the process that begins a run, such as its user and script."""
    try:
        from mlflow.tracking.context.registry import resolve_tags

        return dict(resolve_tags())
    except Exception:
        return {}


def watch_system(run_id: str) -> Any:
    """Begin to sample processor, memory, disk, network and GPU; return what ends it, `finish()`."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=SYSTEM_SECONDS, resume_logging=True, tracking_uri=tracking_uri()
    )
    monitor.start()
    return monitor


def deliver(client: Any, folder: Path, record: Mapping[str, Any]) -> str:
    """Send a record; sent twice, it stands there once. Return the MLflow run's id.

    What MLflow does not take as it is, today or tomorrow, is kept apart and not tried again.
    """
    from mlflow.exceptions import MlflowException

    if record["kind"] == "start":
        return _begin(client, record)
    run_id = record.get("run_id") or _begin(client, {**record, "parent": None})
    try:
        _log(client, run_id, record, folder)
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


def _log(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    """Log what a record holds, by its kind."""
    from mlflow.entities import Metric, Param

    match record["kind"]:
        case "params":
            params = [Param(key, value) for key, value in record["values"].items()]
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
        case "metrics":
            metrics = [Metric(*point) for point in points_of(record)]
            for start in range(0, len(metrics), 1000):
                client.log_batch(run_id, metrics=metrics[start : start + 1000])
        case "announce":
            client.log_metric(run_id, record["name"], math.nan, timestamp=record["time"])
        case "dataset":
            _log_dataset(client, run_id, record)
        case "artifact":
            _log_artifact(client, run_id, record, folder)
        case "tags":
            for key, value in record["values"].items():
                client.set_tag(run_id, key, value)
        case "end":
            client.set_terminated(run_id, record["status"], record["time"])
        case "figure" | "system metrics":
            pass  # of version 0.1.0, which kept of a figure only its name
        case unknown:
            raise ValueError(f"records of kind {unknown} are not known")


def _log_dataset(client: Any, run_id: str, record: Mapping[str, Any]) -> None:
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


def _log_artifact(client: Any, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
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


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if experiment := client.get_experiment_by_name(name):
        return experiment.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        if experiment := client.get_experiment_by_name(name):  # another run has just made it
            return experiment.experiment_id
        raise


def register_saved_model(
    path: Path,
    name: str,
    run_id: str | None,
    columns: Mapping[str, str],
    example: Mapping[str, Any] | None = None,
    further: Mapping[str, str] | None = None,
) -> str:
    """Log a SavedModel's folder to MLflow and register it; return its URI, `models:/name/1`.

    It belongs to the MLflow run `run_id`, or to a new one where there is none. The `columns` are
    those of its answer, with MLflow's names of their types, `further` ones those that it may be
    asked with besides slices (`TEXTS`: a list of strings). The `example` shows how to ask; it is
    never a patient's study, for it is kept with the model.

    Raises:
        InputError: MLflow cannot be used, or does not take the name.
    """
    mlflow = _mlflow()
    import pandas
    from mlflow.exceptions import MlflowException

    before = None
    try:
        client = mlflow.MlflowClient()
        run_id = run_id if is_there(client, run_id) else None
        before = client.get_run(run_id).info if run_id else None
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stderr(io.StringIO()),
            mlflow.start_run(run_id=run_id, run_name=None if run_id else name),
        ):
            logged = mlflow.pyfunc.log_model(
                name="model",
                loader_module=SCORING,
                data_path=str(path),
                signature=_signature(columns, further or {}),
                input_example=None if example is None else pandas.DataFrame([example]),
                pip_requirements=pinned_requirements(),
                code_paths=[str(Path(__file__).parents[1])],
                registered_model_name=name,
            )
    except MlflowException as error:
        raise InputError(
            f"MLflow at {public_uri()} does not register {name!r}: {first_line(error)}"
        ) from None
    finally:
        if before is not None:  # MLflow ends the run anew: now, and as failed if this did
            with contextlib.suppress(MlflowException):
                client.set_terminated(run_id, before.status, before.end_time)
    return f"models:/{name}/{logged.registered_model_version}"


def _signature(columns: Mapping[str, str], further: Mapping[str, str]) -> Any:
    """Return what a registered model is asked with and answers: a row of texts, these columns."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    inputs = [ColSpec(Array(DataType.string), "slices"), ColSpec("string", "study", required=False)]
    texts = {TEXTS: Array(DataType.string)}
    inputs += [ColSpec(texts.get(k, k), column, required=False) for column, k in further.items()]
    outputs = [ColSpec(kind, column, required=False) for column, kind in columns.items()]
    return ModelSignature(Schema(inputs), Schema(outputs))


def crown(uri: str, alias: str, description: str) -> None:
    """Give a registered model's version an alias, such as `champion`, and a description.

    Args:
        uri: as `register_saved_model` returned it.
        alias: it leaves the version that had it.
        description: Markdown, such as a model card.

    Raises:
        InputError: MLflow cannot be used.
    """
    client = _mlflow().MlflowClient()
    from mlflow.exceptions import MlflowException

    _, name, version = uri.rsplit("/", 2)
    try:
        client.set_registered_model_alias(name, alias, version)
        client.update_model_version(name, version, description)
    except MlflowException as error:
        raise InputError(f"MLflow at {public_uri()}: {first_line(error)}") from None


def download_saved_model(uri: str) -> Path:
    """Return the folder of the SavedModel behind an MLflow model's URI.

    Raises:
        InputError: MLflow has no such model, or it is none that `export` registered.
    """
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: MLflow at {public_uri()} has none: {first_line(error)}") from None
    graphs = sorted(folder.rglob("saved_model.pb")) if folder.is_dir() else []
    if not graphs:
        raise InputError(f"{uri}: holds no exported model; export --register NAME makes one")
    return graphs[0].parent


def _mlflow() -> Any:
    _make_ready("alembic", "mlflow")
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow
