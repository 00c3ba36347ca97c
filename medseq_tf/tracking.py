"""Takes what a run has to say; gives it to MLflow, and never lets the work fail because of it.

The only module that imports mlflow. Runs go to `MLFLOW_TRACKING_URI`, or to `sqlite:///mlflow.db`
in the working directory. When tracking fails, that is said once, and everything that could not
be sent is kept in the run folder's `tracking_unsent.jsonl`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseq_tf.errors import InputError

DEFAULT_URI = "sqlite:///mlflow.db"
UNSENT = "tracking_unsent.jsonl"
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

    Args:
      folder: the run folder; unsent records are kept there.
      name: the run's name.
      experiment: the MLflow experiment's name.
      parent: MLflow run id of the run that this one belongs to.
      run_id: an earlier MLflow run to go on with (`--resume`).
      enabled: False tracks nothing.
      system_metrics: sample processor, memory, disk, network and, where there is one, GPU.
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
        self.folder, self.run_id = folder, run_id
        self._enabled, self._client, self._said = enabled, None, False
        self._monitor: Any = None
        if enabled:
            self._try("start", {"name": name}, lambda: self._start(name, experiment, parent))
        if system_metrics and self._client is not None:
            self._try("system metrics", {}, self._watch_system)

    def _start(self, name: str, experiment: str, parent: str | None) -> None:
        for variable, value in {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }.items():
            os.environ.setdefault(variable, value)
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.tracking.context.registry import resolve_tags

        client = MlflowClient(tracking_uri())
        if self.run_id and self._goes_on(client):
            self._client = client
            return
        experiment_id = _experiment_id(client, experiment)
        tags = resolve_tags({"mlflow.parentRunId": parent} if parent else {})
        run = client.create_run(experiment_id, run_name=name, tags=tags)
        self.run_id, self._client = run.info.run_id, client

    def _goes_on(self, client: Any) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            client.update_run(self.run_id, status="RUNNING")
        except MlflowException:
            return False
        return True

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

    @property
    def connected(self) -> bool:
        """Whether what is logged arrives."""
        return self._client is not None

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings, such as the recipe's dotted keys."""
        from_values = {key: _text(value) for key, value in values.items()}

        def send() -> None:
            from mlflow.entities import Param

            items = [Param(key, value) for key, value in from_values.items()]
            for start in range(0, len(items), 100):
                self._client.log_batch(self.run_id, params=items[start : start + 100])

        self._send("params", from_values, send)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; values that are no number are left out.

        What MLflow allows in no name of a metric becomes an underscore.
        """
        finite = {
            re.sub(r"[^\w\-./ ]", "_", key): float(value)
            for key, value in values.items()
            if value is not None and math.isfinite(value)
        }

        def send() -> None:
            import time

            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            metrics = [Metric(key, value, now, step) for key, value in finite.items()]
            self._client.log_batch(self.run_id, metrics=metrics)

        self._send("metrics", {"step": step, **finite}, send)

    def announce(self, name: str) -> None:
        """Log a metric that is not known yet, as NaN: MLflow lists metrics as they come."""
        self._send(
            "announce",
            {"name": name},
            lambda: self._client.log_metric(self.run_id, name, math.nan),
        )

    def dataset(self, name: str, fingerprint: str, profile: Mapping[str, Any]) -> None:
        """Log which data set the run reads, by its fingerprint."""

        def send() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            data = Dataset(
                name=name,
                digest=fingerprint[:36],
                source_type="medseq_tf",
                source=json.dumps({"fingerprint": fingerprint}),
                profile=json.dumps(dict(profile)),
            )
            context = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, [context])])

        self._send("dataset", {"name": name, "fingerprint": fingerprint}, send)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file of the run folder."""
        self._send(
            "artifact",
            {"path": path.name, "folder": folder},
            lambda: self._client.log_artifact(self.run_id, str(path), folder),
        )

    def figure(self, figure: Any, path: str) -> None:
        """Log a Matplotlib figure as a picture, such as `figures/curves.png`."""
        self._send(
            "figure", {"path": path}, lambda: self._client.log_figure(self.run_id, figure, path)
        )

    def tags(self, values: Mapping[str, str]) -> None:
        """Log what is said of the run as a whole."""

        def send() -> None:
            for key, value in values.items():
                self._client.set_tag(self.run_id, key, value)

        self._send("tags", values, send)

    def end(self, status: str = "FINISHED") -> None:
        """Mark the run as FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
        self._send(
            "end", {"status": status}, lambda: self._client.set_terminated(self.run_id, status)
        )

    def _send(self, kind: str, payload: Mapping[str, Any], send: Callable[[], None]) -> None:
        if not self._enabled:
            return
        if self._client is None:
            self._keep(kind, payload)
        else:
            self._try(kind, payload, send)

    def _try(self, kind: str, payload: Mapping[str, Any], send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:  # whatever tracking does, the work goes on
            self._client = None
            self._keep(kind, payload)
            if not self._said:
                self._said = True
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                print(
                    f"medseq-tf: MLflow at {public_uri()} cannot be used "
                    f"({_public(reason)[:160]}); the run goes on, its records are kept in "
                    f"{self.folder / UNSENT}",
                    file=sys.stderr,
                )

    def _keep(self, kind: str, payload: Mapping[str, Any]) -> None:
        with open(self.folder / UNSENT, "a", encoding="utf-8") as unsent:
            unsent.write(json.dumps({"kind": kind, **payload}) + "\n")


# ------------------------------------------------------------------------------- exported models

SCORING = "medseq_tf.mlflow_scoring"
"""The module that MLflow asks about a registered model."""


def register_saved_model(
    path: Path,
    name: str,
    run_id: str | None,
    version: str,
    example: Mapping[str, Any] | None = None,
) -> str:
    """Log an exported SavedModel to MLflow and register it, for `mlflow models serve`.

    Args:
      path: the SavedModel's folder.
      name: of the registered model.
      run_id: the MLflow run that it belongs to; None, or one that is not there: a new one.
      version: of this package.
      example: a study to show how to ask; never a patient's, for it is kept with the model.

    Returns:
      The model's URI, `models:/name/1`.

    Raises:
      InputError: MLflow cannot be used, or does not take the name.
    """
    mlflow = _mlflow()
    import pandas
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    texts = ColSpec(Array(DataType.string), "slices"), ColSpec("string", "study", required=False)
    told = {"study": "string", "label": "string", "probability": "double", "threshold": "double"}
    told |= {"positive": "boolean", "error": "string"}
    outputs = Schema([ColSpec(kind, column, required=False) for column, kind in told.items()])
    try:
        client = mlflow.MlflowClient()
        run_id = run_id if _is_there(client, run_id) else None
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stderr(io.StringIO()),
            mlflow.start_run(run_id=run_id, run_name=None if run_id else name),
        ):
            logged = mlflow.pyfunc.log_model(
                name="model",
                loader_module=SCORING,
                data_path=str(path),
                signature=ModelSignature(Schema(list(texts)), outputs),
                input_example=None if example is None else pandas.DataFrame([example]),
                pip_requirements=[f"medseq_tf=={version}"],
                registered_model_name=name,
            )
    except MlflowException as error:
        raise InputError(
            f"MLflow at {public_uri()} does not register {name!r}: {first_line(error)}"
        ) from None
    return f"models:/{name}/{logged.registered_model_version}"


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
    found = sorted(folder.rglob("saved_model.pb")) if folder.is_dir() else []
    if not found:
        raise InputError(f"{uri}: holds no exported model; export --register NAME makes one")
    return found[0].parent


def _mlflow() -> Any:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow


def _is_there(client: Any, run_id: str | None) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return run_id is not None and client.get_run(run_id) is not None
    except MlflowException:
        return False


def first_line(error: Exception) -> str:
    """Return an error's first line, without user name and password."""
    return _public(str(error).splitlines()[0][:200] if str(error) else type(error).__name__)


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
