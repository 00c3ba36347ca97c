"""The model behind a name: a run, a SavedModel, an MLflow URI or the address of a server.

Whatever it is, it predicts from the bytes of a study's JPEG or PNG files and says what it is
(`Description`). A run predicts through the graph that `export` writes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from medseq_tf.errors import InputError
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.run import Run, RunOrPath
from medseq_tf.serving.client import ServingClient, StudyProbabilities
from medseq_tf.serving.covariates import Values
from medseq_tf.serving.description import Description
from medseq_tf.serving.further_inputs import Told, asked, further_inputs
from medseq_tf.serving.model import LoadedRun
from medseq_tf.serving.refusals import RequestRefused, readable
from medseq_tf.serving.saved_graph import check_saved_model

SERVERS = ("http://", "https://", "grpc://")
MLFLOW = ("models:/", "runs:/")


@runtime_checkable
class Model(Protocol):
    """Something that predicts studies."""

    def describe(self) -> Description:
        """Return what the model says of itself."""

    def predict(
        self,
        slices: Sequence[bytes],
        running: bool = False,
        covariates: Values | None = None,
        series: Told | None = None,
    ) -> StudyProbabilities:
        """Predict a study from its files, in scan order; covariates and series, if it takes some.

        Raises:
            RequestRefused: there is no prediction for this study.
        """


class GraphModel:
    """The signatures of a `ServingModel`, by name, in memory or loaded.

    Attributes:
        folder: of the run or SavedModel that it is of; None of one in memory.
        loaded: the run that it is; None of an exported model.
    """

    def __init__(
        self,
        signatures: Mapping[str, Any],
        folder: Path | None = None,
        loaded: LoadedRun | None = None,
    ):
        self._signatures, self.folder, self.loaded = signatures, folder, loaded

    @classmethod
    def of_run(cls, run: RunOrPath) -> GraphModel:
        """Build the graph of a finished run, of its folds if it is cross-validated."""
        loaded = LoadedRun.open(run)
        return cls(loaded.serving_model().signatures, loaded.run.path, loaded)

    def describe(self) -> Description:
        """Return what the model says of itself."""
        return self._description

    @functools.cached_property
    def _description(self) -> Description:
        outputs = self._signatures["describe"](question=tf.constant([b""]))
        return Description.from_json(outputs["description"].numpy()[0])

    def predict(
        self,
        slices: Sequence[bytes],
        running: bool = False,
        covariates: Values | None = None,
        series: Told | None = None,
    ) -> StudyProbabilities:
        """Predict a study from its files, in scan order; or raise RequestRefused."""
        told = (covariates, series)
        name, further = asked(lambda: self._description, len(slices), running, *told)
        outputs = self._outputs(name, slices, further)
        after_each_slice = outputs["running_probability"].numpy()[0] if running else None
        probabilities = StudyProbabilities(outputs["probability"].numpy()[0], after_each_slice)
        return probabilities.checked(len(slices))

    def lesion_map(self, slices: Sequence[bytes]) -> np.ndarray | None:
        """Return the probability (T, size, size) that a pixel of a study's files is lesion.

        Only segmenters tell. Raises RequestRefused as `predict` does.
        """
        if "lesion_map" not in self._signatures:
            return None
        return self._outputs("lesion_map", slices, {})["lesion_map"].numpy()[0]

    def without_each(
        self,
        slices: Sequence[bytes],
        covariates: Values | None = None,
        series: Told | None = None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a study's probabilities (labels,), and those without each slice (T, labels).

        It takes little longer than to `predict`. None of a model that cannot tell so quickly: an
        older export, or one that encodes a slice by its place. Raises RequestRefused as `predict`.
        """
        if "without_each" not in self._signatures:
            return None
        further = further_inputs(self._description, len(slices), covariates, series)
        outputs = self._outputs("without_each", slices, further)
        return outputs["probability"].numpy()[0], outputs["probability_without"].numpy()[0]

    def _outputs(
        self, signature: str, slices: Sequence[bytes], further: Mapping[str, np.ndarray]
    ) -> dict[str, tf.Tensor]:
        """Ask a signature about one study."""
        files = tf.reshape(tf.constant(list(slices), tf.string), (1, -1))
        inputs = {"image_bytes": files, "lengths": tf.constant([len(slices)])}
        inputs |= {key: tf.constant(value) for key, value in further.items()}
        try:
            return self._signatures[signature](**inputs)
        except tf.errors.OpError as error:
            raise RequestRefused(readable(error.message)) from None


def open_model(model: str | os.PathLike | Run | Model) -> Model:
    """Open a model by its name.

    Args:
        model: a run folder; a SavedModel's folder, or the one above it with its versions, of which
            the highest is taken; `models:/NAME/1` or `runs:/ID/model` of MLflow; the address of a
            served model, see `client`.

    Raises:
        InputError: there is no such model, or it is none of these.
    """
    if isinstance(model, Run):
        return GraphModel.of_run(model)
    if isinstance(model, Model):
        return model
    name = os.fspath(model)
    if name.startswith(SERVERS):
        return ServingClient(name)
    if name.startswith(MLFLOW):
        return open_saved_model(mlflow_store.download_saved_model(name))
    folder = Path(name)
    if (folder / "experiment.yaml").is_file():
        return GraphModel.of_run(folder)
    if (folder / "saved_model.pb").is_file():
        return open_saved_model(folder)
    versions = [p.parent for p in folder.glob("*/saved_model.pb") if p.parent.name.isdecimal()]
    if versions:
        return open_saved_model(max(versions, key=lambda p: int(p.name)))
    raise InputError(
        f"{name}: is no model; right would be a run folder, the folder of an exported model, "
        "models:/NAME/1, http://host:8501/v1/models/NAME or grpc://host:8500/NAME"
    )


def open_saved_model(folder: str | os.PathLike) -> GraphModel:
    """Load a SavedModel that `export` wrote.

    A stranger's is refused before it is loaded where its graph could read or write files, call
    Python or open a connection; see `saved_graph`.

    Raises:
        InputError: it cannot be loaded, is another model, or does more than to compute.
    """
    try:
        check_saved_model(folder)
        model = GraphModel(tf.saved_model.load(os.fspath(folder)).signatures, Path(folder))
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
