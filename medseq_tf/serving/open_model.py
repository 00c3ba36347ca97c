"""Takes what names a model (run, SavedModel, MLflow URI, address of a server); gives its answers.

Whatever it is, it is asked with the bytes of a study's JPEG or PNG files and says what it is
(`Description`). A run is asked through the graph that `export` writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf

from medseq_tf.errors import InputError
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.run import Run
from medseq_tf.serving.client import Answer, RequestRefused, ServingClient, check_answer, readable
from medseq_tf.serving.export import describe
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.saved_graph import check_saved_model
from medseq_tf.serving.wire import Description

SERVERS = ("http://", "https://", "grpc://")
MLFLOW = ("models:/", "runs:/")


class Model(Protocol):
    """Something that answers for a study."""

    def describe(self) -> Description:
        """What the model says of itself."""

    def predict(self, slices: Sequence[bytes], running: bool = False) -> Answer:
        """What it says of a study, from its files in scan order.

        Raises:
            RequestRefused: the study cannot be answered for.
        """


class GraphModel:
    """The signatures of a `ServingModel`, in memory or loaded.

    Args:
        signatures: by name.
    """

    def __init__(self, signatures: Mapping[str, Any]):
        self._signatures = signatures

    def describe(self) -> Description:
        """What the model says of itself."""
        answer = self._signatures["describe"](question=tf.constant([b""]))
        return Description.from_json(answer["description"].numpy()[0])

    def predict(self, slices: Sequence[bytes], running: bool = False) -> Answer:
        """What it says of a study, from its files in scan order.

        Raises:
            RequestRefused: the study cannot be answered for.
        """
        ask = self._signatures["serving_default" if running else "probability"]
        files = tf.reshape(tf.constant(list(slices), tf.string), (1, -1))
        try:
            answer = ask(image_bytes=files, lengths=tf.constant([len(slices)]))
        except tf.errors.OpError as error:
            raise RequestRefused(readable(error.message)) from None
        after_each = answer["running_probability"].numpy()[0] if running else None
        return check_answer(Answer(answer["probability"].numpy()[0], after_each), len(slices))


def open_model(model: str | os.PathLike | Run | Model) -> Model:
    """Open a model by its name.

    Args:
        model: a run folder; a SavedModel's folder, or the one above it with its versions, of which
          the highest is taken; `models:/NAME/1` or `runs:/ID/model` of MLflow; the address of a
          served model, see `serving_client`.

    Raises:
        InputError: there is no such model, or it is none of these.
    """
    if isinstance(model, Run):
        return _of_run(model)
    if hasattr(model, "predict") and hasattr(model, "describe"):
        return model
    name = os.fspath(model)
    if name.startswith(SERVERS):
        return ServingClient(name)
    if name.startswith(MLFLOW):
        return open_saved_model(mlflow_store.download_saved_model(name))
    folder = Path(name)
    if (folder / "experiment.yaml").is_file():
        return _of_run(Run.open(folder))
    if (folder / "saved_model.pb").is_file():
        return open_saved_model(folder)
    versions = [p.parent for p in folder.glob("*/saved_model.pb") if p.parent.name.isdecimal()]
    if versions:
        return open_saved_model(max(versions, key=lambda p: int(p.name)))
    raise InputError(
        f"{name}: is no model; right would be a run folder, the folder of an exported model, "
        "models:/NAME/1, http://host:8501/v1/models/NAME or grpc://host:8500/NAME"
    )


def _of_run(run: Run) -> GraphModel:
    run.require_finished()
    parts = run.folds or [run]
    models, recipe = [part.model() for part in parts], parts[0].experiment
    return GraphModel(ServingModel(models, recipe, describe(run)).signatures)


def open_saved_model(folder: str | os.PathLike) -> GraphModel:
    """Load a SavedModel that `export` wrote.

    A stranger's is refused before it is loaded where its graph could read or write files, call
    Python or open a connection; see `saved_graph`.

    Raises:
        InputError: it cannot be loaded, is another model, or does more than to compute.
    """
    try:
        check_saved_model(folder)
        model = GraphModel(tf.saved_model.load(os.fspath(folder)).signatures)
        model.describe()
    except InputError:
        raise
    except KeyError:
        raise InputError(
            f"{folder}: is a SavedModel, but none that this version's export wrote"
        ) from None
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise InputError(f"{folder}: cannot be loaded ({readable(str(error))})") from None
    except (TypeError, AttributeError, LookupError, AssertionError):
        raise InputError(f"{folder}: cannot be loaded (damaged, or made otherwise)") from None
    return model
