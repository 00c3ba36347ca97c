"""The export of a run: a SavedModel that predicts from the bytes of JPEG and PNG files, checked.

    OUT/<version>/                 for TF Serving: saved_model.pb, variables/
      assets/description.json      labels or classes, how it calls, how slices are stored, limits
      assets/experiment.yaml       the recipe, of an automatic run that of its heaviest member
      assets.extra/tf_serving_warmup_requests   with `warmup`
    OUT/batching.config            with `batching`: TF Serving's --batching_parameters_file

The version appears whole or not at all. Before it does, it has given the Keras model's
probabilities.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.tfrecord import frame
from medseq_tf.errors import InputError
from medseq_tf.files import (
    PARTIAL,
    locked,
    naming,
    output_folder,
    remove_abandoned,
    write_text,
)
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.run import RunOrPath
from medseq_tf.serving.description import MOST_SLICES, Description
from medseq_tf.serving.export_check import CheckStudy, check, prepared_studies, synthetic_studies
from medseq_tf.serving.further_inputs import further_inputs, further_names, signature_with
from medseq_tf.serving.messages import encode_predict_request, encode_prediction_log
from medseq_tf.serving.mlflow_model import columns_of, further_inputs_of
from medseq_tf.serving.model import LoadedRun

DESCRIPTION, RECIPE = "description.json", "experiment.yaml"
BATCHING = "batching.config"
WARMUP = "tf_serving_warmup_requests"

BATCHING_CONFIG = """\
# For tensorflow_model_server --enable_batching --batching_parameters_file=...
# Requests of several patients wait up to 5 ms for each other and are answered together. Slices are
# padded with a request's first one; its lengths say what is real, so the predictions do not change.
max_batch_size { value: 8 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 128 }
num_batch_threads { value: 2 }  # batches answered side by side; each uses all cores
pad_variable_length_inputs: true
"""


@dataclass(frozen=True)
class Exported:
    """A written SavedModel.

    Attributes:
        path: its folder, `OUT/<version>`.
        version: its number.
        studies: that it was checked on.
        difference: the largest between a probability of its own and the Keras model's.
        uri: where MLflow registered it, or None.
    """

    path: Path
    version: int
    studies: int
    difference: float
    uri: str | None = None


def export(
    run: RunOrPath,
    out: str | os.PathLike,
    version: int | None = None,
    batching: bool = False,
    warmup: bool = False,
    data: str | os.PathLike | Prepared | None = None,
    most_slices: int = MOST_SLICES,
    register: str | None = None,
    costs: str | os.PathLike | None = None,
) -> Exported:
    """Write a run as a SavedModel for TF Serving, from the bytes of a study to its probabilities.

    It is written, loaded again and asked before it gets its place: on real studies of every number
    of slices that the recipe treats apart, alone and merged with padding, it has to give the Keras
    model's probabilities to 1e-5; to garbage it has to answer with an error.

    Args:
        run: a run folder. Of a cross-validated run the folds' probabilities are averaged, of an
            automatic run those of its members, by their weights.
        out: the model's folder; its name is what TF Serving calls the model.
        version: the number of the version; default: the next one.
        batching: also write a batching configuration for TF Serving beside the versions.
        warmup: add requests that TF Serving sends itself when it loads the model.
        data: a prepared data set to check the model on, the run's own or one prepared alike;
            default: studies of the synthetic cohort.
        most_slices: of a study; more are refused.
        register: a name to register the model under in MLflow, for `mlflow models serve`.
        costs: of classes, a CSV file of what each call costs where each class is true, see
            `metrics.read_costs`; the class of least expected cost is then called.

    Returns:
        What was written.

    Raises:
        InputError: the run is not finished, the version exists, or the check failed.
    """
    if most_slices < 1:
        raise InputError(f"most_slices = {most_slices}: a study has at least 1")
    loaded = LoadedRun.open(run, most_slices, costs)
    if data is None:
        studies = synthetic_studies(loaded)
    else:
        studies = prepared_studies(data, loaded.description)
    studies = [study for study in studies if len(study.files) <= most_slices]
    folder = output_folder(out)
    with locked(folder / ".exporting", "", wait=True):
        _remove_abandoned(folder)
        number = _next_version(folder, version)
        path = folder / str(number)
        with _appearing_whole(path) as temporary:
            with _naming_what_fails(path):
                _save(loaded, temporary)
                if warmup:
                    _write_warmup(temporary, folder.name, studies, loaded.description)
            difference = check(temporary, loaded, studies)
        if batching:
            write_text(folder / BATCHING, BATCHING_CONFIG)
    uri = _register(path, register, loaded) if register is not None else None
    return Exported(path, number, len(studies), difference, uri)


def _remove_abandoned(out: Path) -> None:
    """Remove what killed exports left half written; to be called under the folder's lock."""
    remove_abandoned(out)
    for folder in out.glob(f"{PARTIAL}????????????"):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _next_version(out: Path, wanted: int | None) -> int:
    taken = [int(path.name) for path in out.iterdir() if path.name.isdecimal()]
    if wanted is None:
        return max(taken, default=0) + 1
    if wanted < 1:
        raise InputError(f"version = {wanted}: TF Serving's versions are numbers from 1 up")
    if wanted in taken:
        raise InputError(f"{out / str(wanted)} exists already; choose another version")
    return wanted


@contextlib.contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    """Give a temporary folder that gets its name at the end, or is removed after an error."""
    temporary = path.parent / f"{PARTIAL}{secrets.token_hex(6)}"
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            raise InputError(f"{path} exists already; export again") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _naming_what_fails(path: Path) -> Iterator[None]:
    """Say in one line why a model cannot be written, such as to a full disk."""
    try:
        with naming(path):
            yield
    except tf.errors.OpError as error:
        raise InputError(f"{path}: cannot be written ({mlflow_store.first_line(error)})") from error


def _save(loaded: LoadedRun, folder: Path) -> None:
    model = loaded.serving_model()
    with tempfile.TemporaryDirectory() as scratch:
        texts = {DESCRIPTION: loaded.description.to_json(), RECIPE: loaded.run.experiment.to_yaml()}
        for name, text in texts.items():
            Path(scratch, name).write_text(text, "utf-8")
        model.assets = [tf.saved_model.Asset(os.path.join(scratch, name)) for name in texts]
        tf.saved_model.save(model, str(folder), signatures=model.signatures)


def _write_warmup(
    folder: Path, name: str, studies: list[CheckStudy], description: Description
) -> None:
    """Write what TF Serving asks the model before it lets clients in, the shortest study first."""
    requests = []
    for files in sorted((study.files for study in studies), key=len):
        inputs: dict[str, Any] = {
            "image_bytes": [files],
            "lengths": np.array([len(files)], np.int32),
        }
        requests.append(encode_predict_request(name, inputs))
    if further := further_names(description):
        inputs |= further_inputs(description, len(files), None, None)
        for running in (True, False):
            requests.append(encode_predict_request(name, inputs, signature_with(further, running)))
    requests.append(encode_predict_request(name, {"question": [b""]}, "describe"))
    (folder / "assets.extra").mkdir()
    records = b"".join(frame(encode_prediction_log(request)) for request in requests)
    (folder / "assets.extra" / WARMUP).write_bytes(records)


def _register(path: Path, name: str, loaded: LoadedRun) -> str:
    slices = [base64.b64encode(file).decode("ascii") for file in synthetic_studies(loaded)[1].files]
    example = {"study": "example", "slices": slices}
    try:
        return mlflow_store.register_saved_model(
            path,
            name,
            loaded.run.info.get("mlflow_run_id"),
            columns_of(loaded.description),
            example,
            further_inputs_of(loaded.description),
        )
    except InputError as error:
        raise InputError(f"{path} is written, but not registered: {error}") from None
