"""Takes what a run has to say; gives it to MLflow, and never lets the work fail because of it.

The only module that imports mlflow. Runs go to `MLFLOW_TRACKING_URI`, or to `sqlite:///mlflow.db`
in the working directory. When tracking fails, that is said once, and everything that could not
be sent is kept in the run folder's `tracking_unsent.jsonl`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DEFAULT_URI = "sqlite:///mlflow.db"
UNSENT = "tracking_unsent.jsonl"


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
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        experiment: str = "medseq_tf",
        parent: str | None = None,
        run_id: str | None = None,
        enabled: bool = True,
    ):
        self.folder, self.run_id = folder, run_id
        self._enabled, self._client, self._said = enabled, None, False
        if enabled:
            self._try("start", {"name": name}, lambda: self._start(name, experiment, parent))

    def _start(self, name: str, experiment: str, parent: str | None) -> None:
        for variable, value in {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
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

    def end(self, status: str = "FINISHED") -> None:
        """Mark the run as FINISHED, FAILED or KILLED."""
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
