"""Takes an exported model; gives it to MLflow's registry, with this package, and gives it back."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.runs.tracking import first_line, is_there, make_database, public_uri, tracking_uri

SCORING = "medseq_tf.serving.mlflow_model"
"""The module that MLflow asks about a registered model."""


def register_saved_model(
    path: Path,
    name: str,
    run_id: str | None,
    example: Mapping[str, Any] | None = None,
) -> str:
    """Log an exported SavedModel to MLflow and register it, for `mlflow models serve`.

    Args:
        path: the SavedModel's folder.
        name: of the registered model.
        run_id: the MLflow run that it belongs to; None, or one that is not there: a new one.
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
                signature=ModelSignature(Schema(list(texts)), outputs),
                input_example=None if example is None else pandas.DataFrame([example]),
                pip_requirements=requirements(),
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


def requirements() -> list[str]:
    """Return the libraries that this package needs, each in the version that is here.

    This package itself is none of them: it goes with the model, and PyPI's name is not ours.
    """
    from packaging.requirements import Requirement

    try:
        needed = importlib.metadata.requires("medseq_tf") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        lines = (Path(__file__).parents[2] / "requirements.txt").read_text("utf-8").splitlines()
        needed = [line for line in lines if line.strip() and not line.startswith("#")]
    pinned = []
    for requirement in map(Requirement, needed):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            pinned.append(f"{requirement.name}=={importlib.metadata.version(requirement.name)}")
        except importlib.metadata.PackageNotFoundError:
            pinned.append(str(requirement))
    return pinned


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

    make_database(tracking_uri())
    mlflow.set_tracking_uri(tracking_uri())
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow
