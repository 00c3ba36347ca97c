"""The check of an exported model: the Keras model's probabilities, and an error for garbage."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import StorageSpec, png_channels, study_record
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.errors import InputError, printable
from medseq_tf.evaluation.inference import study_probabilities, weighted_mean
from medseq_tf.input.slice_store import SliceStores
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.readers.classes import Classes
from medseq_tf.readers.pictures import decode_picture
from medseq_tf.readers.series import NO_SERIES, series_text
from medseq_tf.readers.study import Slices, StudySource
from medseq_tf.serving.description import Description
from medseq_tf.serving.further_inputs import further_inputs, further_names, signature_with
from medseq_tf.serving.model import LoadedRun

TOLERANCE = 1e-5
TOLERANCE_WHERE_OPENCV_VARIES = 1e-3
"""16-bit slices that are enlarged: there OpenCV rounds as the processor's own library does."""

STUDIES_CHECKED = 8


@dataclass(frozen=True)
class CheckStudy:
    """A study to predict: its files, the same as it stands in a prepared data set, and what else.

    What the model reads of covariates and is not among them is missing; `series` is by slice, and
    not known where there is none.
    """

    files: list[bytes]
    record: bytes
    covariates: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    series: Sequence[int] | None = None

    def further(self, description: Description) -> dict[str, np.ndarray]:
        """Return what the model takes of it besides its files, of one row."""
        return further_inputs(description, len(self.files), self.covariates, self.series)


def check(folder: Path, loaded: LoadedRun, studies: list[CheckStudy]) -> float:
    """Return how far a written model's probabilities are from the Keras model's.

    Raises:
        InputError: too far, probabilities of classes that do not add up to 1, or it predicts from
            garbage.
    """
    expected = _keras_probabilities(loaded, studies)
    signatures = tf.saved_model.load(str(folder)).signatures
    whole = signatures["serving_default"]
    alone = [_probability(whole, [study.files]) for study in studies]
    all_files = [study.files for study in studies]
    merged, lean = (_probability(ask, all_files) for ask in (whole, signatures["probability"]))
    predicted = np.stack([np.concatenate(alone), merged, lean])
    difference = float(np.max(np.abs(predicted - expected)))
    description = loaded.description
    if further := further_names(description):
        told = _keras_probabilities(loaded, studies, told=True)
        inputs = _further(description, studies)
        asked = [
            _ask(signatures[signature_with(further, running)], all_files, inputs)["probability"]
            for running in (True, False)
        ]
        difference = max(difference, float(np.max(np.abs(np.stack(asked) - told))))
    largest = max(member.recipe.input.size for member in loaded.members)
    is_enlarged = description.bits == 16 and largest > description.size
    allowed = TOLERANCE_WHERE_OPENCV_VARIES if is_enlarged else TOLERANCE
    if not difference <= allowed:
        raise InputError(
            f"{loaded.run.path}: the exported model's probabilities differ from the Keras model's "
            f"by {difference:.1e}, more than {allowed:.0e}; nothing was written"
        )
    if description.classes:
        _check_sums(whole, all_files, description.classes)
    _check_refusals(whole, studies[0].files)
    return difference


def _probability(signature: Any, studies: list[list[bytes]]) -> np.ndarray:
    """Return (B, labels) of studies."""
    return _ask(signature, studies)["probability"].numpy()


def _further(description: Description, studies: list[CheckStudy]) -> dict[str, tf.Tensor]:
    """Return what a model takes of studies besides files, padded as TF Serving pads."""
    rows = [study.further(description) for study in studies]
    padded = {name: [row[name][0] for row in rows] for name in rows[0]}
    if "series" in padded:
        longest = max(len(study.files) for study in studies)
        beyond = padded["series"][0][0]
        padded["series"] = [
            np.pad(row, (0, longest - len(row)), constant_values=beyond) for row in padded["series"]
        ]
    return {name: tf.constant(np.stack(values)) for name, values in padded.items()}


def _ask(
    signature: Any, studies: list[list[bytes]], further: Mapping[str, tf.Tensor] = {}
) -> dict[str, tf.Tensor]:
    """Return what a signature gives of studies, padded as TF Serving pads: by the first slice."""
    longest = max(map(len, studies))
    rows = [files + [studies[0][0]] * (longest - len(files)) for files in studies]
    image_bytes = tf.constant(rows, tf.string)
    lengths = tf.constant([len(files) for files in studies], tf.int32)
    return signature(image_bytes=image_bytes, lengths=lengths, **further)


def _check_sums(signature: Any, studies: list[list[bytes]], classes: Classes) -> None:
    """Raise an InputError unless the probabilities of classes add up to 1, after each slice too."""
    predicted = _ask(signature, studies)
    after_each_slice = predicted["running_probability"].numpy().sum(axis=-1)
    sums = [predicted["probability"].numpy().sum(axis=-1)]
    sums += [row[: len(files)] for row, files in zip(after_each_slice, studies, strict=True)]
    for total in np.concatenate(sums):
        if not abs(total - 1) <= TOLERANCE:
            raise InputError(
                f"the exported model's probabilities of {printable(classes.column)} add up to "
                f"{total:.6f}, not 1; nothing was written"
            )


def _check_refusals(signature: Any, files: list[bytes]) -> None:
    """Raise an InputError unless garbage is refused."""
    file = files[0]
    garbage: dict[str, tuple[Any, list[int]]] = {
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
            signature(image_bytes=tf.constant(image_bytes, tf.string), lengths=tf.constant(lengths))
        except tf.errors.InvalidArgumentError:
            continue
        raise InputError(f"the exported model answers {name} with a probability; nothing written")


# --------------------------------------------------------------------- the Keras model's own road


class _InMemory(Prepared):
    """Studies that were prepared and not written; their ids are their own."""

    def record(self, row: int) -> bytes:
        """Return the study's example."""
        return self.studies["record"].iat[row]

    def _example(self, row: int) -> dict:
        return decode_example(self.record(row))


def _keras_probabilities(
    loaded: LoadedRun, studies: list[CheckStudy], told: bool = False
) -> np.ndarray:
    """Return what the Keras models predict of prepared studies, `(studies, labels)`.

    They are `told` the studies' covariates and series, or none.
    """
    table = pd.DataFrame(
        {
            "study_id": [f"check-{i}" for i in range(len(studies))],
            "slices": [len(decode_example(study.record)["slices"]) for study in studies],
            "shard": "",
            "record": [study.record for study in studies],
            **{f"label.{name}": np.nan for name in loaded.description.labels},
        }
    )
    if loaded.description.series_in_turn:
        table["series"] = [
            study.series if told and study.series is not None else [NO_SERIES] * len(study.files)
            for study in studies
        ]
    for covariate in (loaded.description.covariates or []) if told else []:
        name = covariate["name"]
        table[f"covariate.{name}"] = [study.covariates.get(name) for study in studies]
    stores = SliceStores(_InMemory(loaded.run.path, loaded.run.dataset, table))
    rows = np.arange(len(studies))
    by_member = [
        study_probabilities(model, stores.of(recipe), rows, recipe)
        for model, recipe, _ in loaded.members
    ]
    return weighted_mean(by_member, [member.weight for member in loaded.members])


# ----------------------------------------------------------------------------- studies to check on


def prepared_studies(
    data: str | os.PathLike | Prepared, description: Description
) -> list[CheckStudy]:
    """Return a few studies of a prepared data set, of different numbers of slices.

    Raises:
        InputError: it is prepared otherwise than the data of the run, or its studies are too long.
    """
    prepared = Prepared.open(data)
    storage = prepared.info["storage"]
    stored = (
        prepared.info["size"],
        prepared.info["preparation"]["aspect"],
        8 * np.dtype(storage["dtype"]).itemsize,
        storage["offset"],
    )
    wanted = (description.size, description.aspect, description.bits, description.offset)
    if stored != wanted:
        raise InputError(
            f"{prepared.path}: is prepared otherwise than the data of the run; its slices would "
            f"have to be {description.size} pixels wide, {description.bits} bits, --aspect "
            f"{description.aspect}"
        )
    if prepared.series != description.series:
        raise InputError(
            f"{prepared.path}: its studies are {series_text(prepared.series)}, those of the run "
            f"{series_text(description.series)}; prepare it as those"
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
    return [
        CheckStudy(
            prepared.encoded_slices(row),
            prepared.record(row),
            _covariates(prepared, row, description),
            prepared.series_of(row).tolist() if prepared.marked_series else None,
        )
        for row in rows
    ]


def _covariates(prepared: Prepared, row: int, description: Description) -> dict[str, Any]:
    """Return a study's covariates; a category that the model does not know is missing."""
    values = {}
    for covariate in description.covariates or []:
        name = covariate["name"]
        column = prepared.studies.get(f"covariate.{name}")
        value = None if column is None else column.iat[row]
        if pd.notna(value) and value in covariate.get("categories", [value]):
            values[name] = value
    return values


@dataclass(frozen=True)
class _Drawn(StudySource):
    """A study that is there already."""

    images: list[np.ndarray]

    def read(self) -> Slices:
        """Return its slices."""
        return Slices(self.images)


def synthetic_studies(loaded: LoadedRun) -> list[CheckStudy]:
    """Return studies of the run's modality, of each number of slices that matters.

    One of them is of JPEG files, where the model reads photographs.
    """
    description = loaded.description
    dtype, size = description.dtype, description.size
    counts = dict.fromkeys([1, 2])
    for sequence in (member.recipe.sequence for member in loaded.members):
        length = sequence.evaluation.length or sequence.length
        counts |= dict.fromkeys([max(1, length - 1), length, length + 2, 2 * length + 5])
    cohort = DemoCohort(patients=2, size=min(1024, max(16, 2 * size + 3)), slices=(30, 30))
    volumes = [_intensities(cohort.render(patient).volume, dtype) for patient in range(2)]
    channels, in_turn = description.channels, description.series_in_turn
    spec = StorageSpec((), dtype, size, description.aspect, channels)
    studies = []
    for number, count in enumerate(counts):
        volume = volumes[number % 2]
        images = [np.ascontiguousarray(image[:, number:]) for image in volume]
        images = [images[i % len(images)] for i in range(count)]
        if channels > 1:
            shifted = [np.roll(np.stack(images), 3 * c, axis=2) for c in range(channels)]
            images = list(np.stack(shifted, axis=-1))
        as_jpeg = number == 3 and dtype == "uint8" and channels == 1
        files = [_file(image, as_jpeg) for image in images]
        if as_jpeg:
            images = [decode_picture(file) for file in files]
        source = _Drawn("made-up", "nobody", {}, None, images)
        example = study_record(source, "made-up", spec).example
        series = sorted(i % len(in_turn.names) for i in range(count)) if in_turn else None
        covariates = _made_up_covariates(description, number)
        studies.append(CheckStudy(files, example, covariates, series))
    return studies


def _made_up_covariates(description: Description, number: int) -> dict[str, Any]:
    """Return covariates of a study: each category in turn; of the first study all are missing."""
    known = (description.covariates or []) if number else []
    places = {c["name"]: c.get("categories", [20.5 * number]) for c in known}
    return {name: values[number % len(values)] for name, values in places.items()}


def _intensities(volume: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "uint8":
        return photographs(volume)
    return volume if dtype == "int16" else np.clip(volume + 1024, 0, None).astype(np.uint16)


def _file(image: np.ndarray, as_jpeg: bool) -> bytes:
    if image.dtype == np.int16:
        image = (image.astype(np.int32) + 2**15).astype(np.uint16)
    if image.ndim == 3:
        image = image[..., png_channels(image.shape[-1])]
    return cv2.imencode(".jpg" if as_jpeg else ".png", image)[1].tobytes()
