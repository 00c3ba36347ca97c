"""Takes a run; gives a SavedModel that answers from the bytes of JPEG and PNG files, checked.

    OUT/<version>/                 for TF Serving: saved_model.pb, variables/
      assets/description.json      labels, thresholds, how slices are stored, limits
      assets/experiment.yaml       the recipe
      assets.extra/tf_serving_warmup_requests   with `warmup`
    OUT/batching.config            with `batching`: TF Serving's --batching_parameters_file

The version appears whole or not at all. Before it does, it has given the Keras model's answers.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import StorageSpec, study_record
from medseq_tf.dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, decode_example, frame
from medseq_tf.errors import InputError
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.files import PARTIAL, atomic, destination, locked, naming, remove_abandoned
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.readers.study import Slices, StudySource
from medseq_tf.recipe import Experiment
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.run import Run
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.wire import Description, encode_predict_request, encode_prediction_log

DESCRIPTION, RECIPE = "description.json", "experiment.yaml"
BATCHING = "batching.config"
WARMUP = "tf_serving_warmup_requests"
MOST_SLICES = 512

TOLERANCE = 1e-5
TOLERANCE_WHERE_OPENCV_VARIES = 1e-3
"""16-bit slices that are enlarged: there OpenCV rounds as the processor's own library does."""

STUDIES_CHECKED = 8

BATCHING_CONFIG = """\
# For tensorflow_model_server --enable_batching --batching_parameters_file=...
# Requests of several patients wait up to 5 ms for each other and are answered together. Slices are
# padded with a request's first one; its lengths say what is real, so the answers do not change.
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
    run: str | os.PathLike | Run,
    out: str | os.PathLike,
    version: int | None = None,
    batching: bool = False,
    warmup: bool = False,
    data: str | os.PathLike | Prepared | None = None,
    most_slices: int = MOST_SLICES,
    register: str | None = None,
) -> Exported:
    """Write a run as a SavedModel for TF Serving, from the bytes of a study to its probabilities.

    It is written, loaded again and asked before it gets its place: on real studies of every number
    of slices that the recipe treats apart, alone and merged with padding, it has to give the Keras
    model's probabilities to 1e-5; to garbage it has to answer with an error.

    Args:
        run: a run folder. Of a cross-validated run the folds' probabilities are averaged.
        out: the model's folder; its name is what TF Serving calls the model.
        version: the number of the version; default: the next one.
        batching: also write a batching configuration for TF Serving beside the versions.
        warmup: add requests that TF Serving sends itself when it loads the model.
        data: a prepared data set to check the model on, the run's own or one prepared alike;
          default: studies of the synthetic cohort.
        most_slices: of a study; more are refused.
        register: a name to register the model under in MLflow, for `mlflow models serve`.

    Returns:
        What was written.

    Raises:
        InputError: the run is not finished, the version exists, or the check failed.
    """
    run = Run.open(run)
    run.require_finished()
    if most_slices < 1:
        raise InputError(f"most_slices = {most_slices}: a study has at least 1")
    parts = run.folds or [run]
    recipe, models = parts[0].experiment, [part.model() for part in parts]
    description = describe(run, most_slices)
    studies = _studies_of(data, description) if data is not None else _demo_studies(recipe, run)
    studies = [study for study in studies if len(study.files) <= most_slices]
    out = destination(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".exporting", "", wait=True):
        _remove_abandoned(out)
        number = _version(out, version)
        folder = out / f"{PARTIAL}{secrets.token_hex(6)}"
        folder.mkdir()
        try:
            with _writing(out / str(number)):
                _save(ServingModel(models, recipe, description), recipe, description, folder)
                if warmup:
                    _write_warmup(folder, out.name, studies)
            difference = _check(folder, models, recipe, run, description, studies)
            try:
                folder.rename(out / str(number))
            except OSError:
                raise InputError(f"{out / str(number)} exists already; export again") from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if batching:
            with atomic(out / BATCHING) as temporary:
                temporary.write_text(BATCHING_CONFIG, "utf-8")
    uri = _registered(out / str(number), register, run) if register is not None else None
    return Exported(out / str(number), number, len(studies), difference, uri)


def _remove_abandoned(out: Path) -> None:
    """Remove what killed exports left half written; to be called under the folder's lock."""
    remove_abandoned(out)
    for folder in out.glob(f"{PARTIAL}????????????"):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one line why a model cannot be written, such as to a full disk."""
    try:
        with naming(path):
            yield
    except tf.errors.OpError as error:
        raise InputError(f"{path}: cannot be written ({mlflow_store.first_line(error)})") from error


def _registered(path: Path, name: str, run: Run) -> str:
    run_id = run.info.get("mlflow_run_id")
    recipe = (run.folds or [run])[0].experiment
    example = {"study": "example", "slices": _made_up(recipe, run)}
    try:
        return mlflow_store.register_saved_model(path, name, run_id, example)
    except InputError as error:
        raise InputError(f"{path} is written, but not registered: {error}") from None


def describe(run: Run, most_slices: int = MOST_SLICES) -> Description:
    """Return what an export of a run says of itself."""
    data = run.dataset
    labels, preparation = data["label_names"], data["preparation"]
    parts = run.folds or [run]
    return Description(
        name=run.name,
        labels=list(labels),
        thresholds={label: float(run.thresholds[label]) for label in labels},
        temperatures={label: run.temperatures.get(label, 1.0) for label in labels},
        operating_points=run.operating_points,
        modality=data["modality"],
        unit=data["unit"],
        bits=8 * np.dtype(data["storage"]["dtype"]).itemsize,
        offset=data["storage"]["offset"],
        size=data["size"],
        aspect=preparation["aspect"],
        most_slices=most_slices,
        preparation={key: preparation.get(key) for key in ("reader", "options", "resolved")},
        members=len(parts),
        fingerprint=run.info["fingerprint"],
        versions=run.info["versions"],
    )


def _version(out: Path, wanted: int | None) -> int:
    taken = [int(path.name) for path in out.iterdir() if path.name.isdecimal()]
    if wanted is None:
        return max(taken, default=0) + 1
    if wanted < 1:
        raise InputError(f"version = {wanted}: TF Serving's versions are numbers from 1 up")
    if wanted in taken:
        raise InputError(f"{out / str(wanted)} exists already; choose another version")
    return wanted


def _save(model: ServingModel, recipe: Experiment, description: Description, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        texts = {DESCRIPTION: description.to_json(), RECIPE: recipe.to_yaml()}
        for name, text in texts.items():
            Path(scratch, name).write_text(text, "utf-8")
        model.assets = [tf.saved_model.Asset(os.path.join(scratch, name)) for name in texts]
        tf.saved_model.save(model, str(folder), signatures=model.signatures)


# -------------------------------------------------------------------------- studies to check on


@dataclass(frozen=True)
class _Study:
    """A study to ask about: its files, and the same as it stands in a prepared data set."""

    files: list[bytes]
    record: bytes


class _InMemory(Prepared):
    """Studies that were prepared and not written; their ids are their own."""

    def record(self, row: int) -> bytes:
        return self.studies["record"].iat[row]

    def _example(self, row: int) -> dict:
        return decode_example(self.record(row))


@dataclass(frozen=True)
class _Drawn(StudySource):
    """A study that is there already."""

    images: list[np.ndarray]

    def read(self) -> Slices:
        return Slices(self.images)


def _studies_of(data: str | os.PathLike | Prepared, description: Description) -> list[_Study]:
    """Return a few studies of a prepared data set, of different numbers of slices."""
    prepared = Prepared.open(data)
    stored = (prepared.info["size"], prepared.info["preparation"]["aspect"])
    bits = 8 * np.dtype(prepared.info["storage"]["dtype"]).itemsize
    if (*stored, bits, prepared.info["storage"]["offset"]) != (
        description.size,
        description.aspect,
        description.bits,
        description.offset,
    ):
        raise InputError(
            f"{prepared.path}: is prepared otherwise than the data of the run; its slices would "
            f"have to be {description.size} pixels wide, {description.bits} bits, --aspect "
            f"{description.aspect}"
        )
    counts = prepared.studies["slices"].to_numpy()
    usable = np.flatnonzero((counts >= 1) & (counts <= description.most_slices))
    if not len(usable):
        raise InputError(
            f"{prepared.path}: every study has more than {description.most_slices} slices; raise "
            "--most-slices"
        )
    usable = usable[np.argsort(counts[usable], kind="stable")]
    rows = usable[np.unique(np.linspace(0, len(usable) - 1, STUDIES_CHECKED).astype(int))]
    return [_Study(prepared.encoded_slices(row), prepared.record(row)) for row in rows]


def _demo_studies(recipe: Experiment, run: Run) -> list[_Study]:
    """Return made-up studies of the run's modality, of each number of slices that matters."""
    dtype = {"photograph": "uint8", "CT": "int16", "MR": "uint16"}[run.dataset["modality"]]
    size, aspect = run.dataset["size"], run.dataset["preparation"]["aspect"]
    length = recipe.sequence.evaluation.length or recipe.sequence.length
    counts = dict.fromkeys([1, 2, max(1, length - 1), length, length + 2, 2 * length + 5])
    cohort = DemoCohort(patients=2, size=min(1024, max(16, 2 * size + 3)), slices=(30, 30))
    volumes = [_intensities(cohort.render(patient).volume, dtype) for patient in range(2)]
    studies = []
    for number, count in enumerate(counts):
        volume = volumes[number % 2]
        images = [np.ascontiguousarray(image[:, number:]) for image in volume]
        images = [images[i % len(images)] for i in range(count)]
        files = [_file(image, as_jpeg=number == 3 and dtype == "uint8") for image in images]
        if number == 3 and dtype == "uint8":
            images = [_decoded(file) for file in files]
        source = _Drawn("made-up", "nobody", {}, None, images)
        framed = study_record(source, "made-up", StorageSpec((), dtype, size, aspect)).framed
        studies.append(_Study(files, framed[HEADER_BYTES:-FOOTER_BYTES]))
    return studies


def _made_up(recipe: Experiment, run: Run) -> list[str]:
    """Return a made-up study's files in base64, to show how MLflow is asked."""
    study = _demo_studies(recipe, run)[1]
    return [base64.b64encode(file).decode("ascii") for file in study.files]


def _made_up(recipe: Experiment, run: Run) -> list[str]:
    """Return a made-up study's files in base64, to show how MLflow is asked."""
    study = _demo_studies(recipe, run)[1]
    return [base64.b64encode(file).decode("ascii") for file in study.files]


def _intensities(volume: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "uint8":
        return photographs(volume)
    return volume if dtype == "int16" else np.clip(volume + 1024, 0, None).astype(np.uint16)


def _file(image: np.ndarray, as_jpeg: bool) -> bytes:
    if image.dtype == np.int16:
        image = (image.astype(np.int32) + 2**15).astype(np.uint16)
    return cv2.imencode(".jpg" if as_jpeg else ".png", image)[1].tobytes()


def _decoded(file: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE)


def _expected(
    models: Sequence[Any], recipe: Experiment, run: Run, studies: list[_Study]
) -> np.ndarray:
    """Return what the Keras models say of prepared studies, `(studies, labels)`."""
    labels = run.dataset["label_names"]
    slices = [len(decode_example(study.record)["slices"]) for study in studies]
    table = pd.DataFrame(
        {
            "study_id": [f"check-{i}" for i in range(len(studies))],
            "slices": slices,
            "shard": "",
            "record": [study.record for study in studies],
            **{f"label.{name}": np.nan for name in labels},
        }
    )
    prepared = _InMemory(run.path, run.dataset, table)
    store, rows = SliceStore(prepared, recipe), np.arange(len(studies))
    return np.mean([study_probabilities(model, store, rows, recipe) for model in models], axis=0)


# ------------------------------------------------------------------------------------- the check


def _check(
    folder: Path,
    models: Sequence[Any],
    recipe: Experiment,
    run: Run,
    description: Description,
    studies: list[_Study],
) -> float:
    """Ask the written model; return how far its probabilities are from the Keras model's."""
    loaded = tf.saved_model.load(str(folder))
    ask = loaded.signatures["serving_default"]
    expected = _expected(models, recipe, run, studies)
    requests = [[study.files] for study in studies] + [[study.files for study in studies]]
    given = [ask(**_request(files)) for files in requests]
    alone = np.concatenate([answer["probability"].numpy() for answer in given[:-1]])
    merged = given[-1]["probability"].numpy()
    lean = loaded.signatures["probability"](**_request(requests[-1]))["probability"].numpy()
    answers = np.stack([alone, merged, lean])
    difference = float(np.max(np.abs(answers - expected)))
    enlarged = description.bits == 16 and recipe.input.size > description.size
    allowed = TOLERANCE_WHERE_OPENCV_VARIES if enlarged else TOLERANCE
    if not difference <= allowed:
        raise InputError(
            f"{run.path}: the exported model's probabilities differ from the Keras model's by "
            f"{difference:.1e}, more than {allowed:.0e}; nothing was written"
        )
    _check_refusals(ask, studies[0].files)
    return difference


def _request(studies: list[list[bytes]]) -> dict[str, tf.Tensor]:
    """Return a request of several studies, padded as TF Serving pads: with the first slice."""
    longest = max(map(len, studies))
    rows = [files + [studies[0][0]] * (longest - len(files)) for files in studies]
    return {
        "image_bytes": tf.constant(rows, tf.string),
        "lengths": tf.constant([len(files) for files in studies], tf.int32),
    }


def _check_refusals(ask: Any, files: list[bytes]) -> None:
    """Raise an InputError unless garbage is refused."""
    file = files[0]
    garbage = {
        "no picture": ([[b"no picture, but long enough to be one"]], [1]),
        "nothing": ([[b""]], [1]),
        "half a file": ([[file[: len(file) // 2]]], [1]),
        "no slices": (np.zeros((1, 0), object), [0]),
        "a length of 0": ([[file]], [0]),
        "a length beyond the slices": ([[file]], [2]),
        "two lengths for one study": ([[file]], [1, 1]),
    }
    for name, (image_bytes, lengths) in garbage.items():
        try:
            ask(image_bytes=tf.constant(image_bytes, tf.string), lengths=tf.constant(lengths))
        except tf.errors.InvalidArgumentError:
            continue
        raise InputError(f"the exported model answers {name} with a probability; nothing written")


# --------------------------------------------------------------------------------------- warm-up


def _write_warmup(folder: Path, name: str, studies: list[_Study]) -> None:
    """Write what TF Serving asks the model before it lets clients in, the shortest study first."""
    files = [study.files for study in studies]
    requests = [
        encode_predict_request(name, {"image_bytes": [one], "lengths": np.int32([len(one)])})
        for one in sorted(files, key=len)
    ]
    requests.append(encode_predict_request(name, {"question": [b""]}, "describe"))
    (folder / "assets.extra").mkdir()
    records = b"".join(frame(encode_prediction_log(request)) for request in requests)
    (folder / "assets.extra" / WARMUP).write_bytes(records)
