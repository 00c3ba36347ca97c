"""All that DICOM objects tell of a study: predictions, their model, the slices and which counted.

Such an object is made of its model and its source alone: it has no clock, no number drawn, and its
UID follows from both (`derived_uid`), so that the same answer twice is the same object.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np

from medseq_tf.dataset.records import StudyRecord
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.errors import InputError, printable
from medseq_tf.reporting.rendering import LIMITS_OF_CLASSES, LIMITS_OF_USE
from medseq_tf.runs.run import Run
from medseq_tf.serving.covariates import Values
from medseq_tf.serving.description import Description
from medseq_tf.serving.dicom_results import key_slices
from medseq_tf.serving.open_model import GraphModel, Model
from medseq_tf.serving.study_prediction import FoundStudy, Prediction, Predictor

if TYPE_CHECKING:
    from pydicom import Dataset

LAYOUT = "1"
"""Of the objects; another one makes other objects of the same answers."""
MOST_KEY_SLICES, LEAST_IMPORTANCE = 5, 0.001
"""Of a label: how many slices are named, and from which importance on."""
MOST_OF_A_STATEMENT = 1024
"""Letters of a model card's statement of use."""

_QUOTED = re.compile(r"^> (.+)(?:\n> (.+))*", re.MULTILINE)
_ESCAPED = re.compile(r"\\(?=[^\w\s])")


class ModelIdentity(NamedTuple):
    """Which model predicted.

    Attributes:
        name: of the run that it is, or was exported from.
        version: of an exported or registered model its number; else the first of its `sha256`.
        sha256: of a run's model file; of several files, of their names and SHA-256, one a line as
            `sha256sum` writes them; of a served model, of what it says of itself.
        intended_use: what it may be used for, and for what not, in words.
        calls: SHA-256 of how its probabilities are called: by what thresholds, costs, temperatures.
    """

    name: str
    version: str
    sha256: str
    intended_use: str
    calls: str = ""

    @property
    def uid(self) -> str:
        """The UID of the model as a device."""
        return derived_uid("device", self, ())


class KeySlice(NamedTuple):
    """A slice that counted.

    Attributes:
        slice: its number among those of the study that the model was given, from 0.
        importance: in probability: how much it adds, see `key_slices`.
        picture: its number among the study's `pictures`.
    """

    slice: int
    importance: float
    picture: int


class SliceMaps(NamedTuple):
    """A value of each pixel of each slice.

    Attributes:
        values: float32 (T, size, size) in [0, 1], in the frame of the prepared slices.
        kind: `lesion`, the probability that a pixel is of a lesion; `heat`, how much it counted.
        label: the label or class that they are of.
    """

    values: np.ndarray
    kind: Literal["lesion", "heat"]
    label: str


@dataclass(frozen=True)
class Answer:
    """What a model predicts of a DICOM study, and all that objects tell of it.

    Attributes:
        predictions: one a label; of classes one.
        description: of the model, and how it is to call.
        model: which it is.
        study: the study; its `pictures` are what `headers` and key slices count.
        headers: of the file of each of the study's pictures, without pixels.
        pictures: which of them each slice is; None where slices lie between pictures.
        slices: as the model was given them: (size, size) uint8 or uint16, (size, size, channels)
            where series are channels. Intensity = value + `description.offset`.
        key_slices: by label or class, the most important slice first; nothing where `pictures` are
            not known.
        maps: of the slices' pixels, where the model tells.
        covariates: that the model was told, by name.
        warnings: what was odd about the study, whatever lay beside it and however it was called.
    """

    predictions: list[Prediction]
    description: Description
    model: ModelIdentity
    study: Any
    headers: list[Dataset]
    pictures: tuple[int, ...] | None
    slices: list[np.ndarray]
    key_slices: dict[str, list[KeySlice]] = field(default_factory=dict)
    maps: SliceMaps | None = None
    covariates: Values | None = None
    warnings: tuple[str, ...] = ()

    @property
    def error(self) -> str | None:
        """Why there is no prediction."""
        return next((one.error for one in self.predictions if one.error), None)

    def frame(self, picture: int) -> int | None:
        """Return which frame of its file a picture is, from 1; None of a file that has one."""
        has_several = int(self.headers[picture].get("NumberOfFrames") or 1) > 1
        return self.study.pictures[picture].place + 1 if has_several else None

    def uid(self, kind: str) -> str:
        """Return the UID of the answer's object of a kind, or of the series that it is in."""
        sources = [str(header.SOPInstanceUID) for header in self.headers]
        told = [f"{name}={value}" for name, value in sorted((self.covariates or {}).items())]
        return derived_uid(kind, self.model, sources, *told)


def derived_uid(kind: str, model: ModelIdentity, sources: Sequence[str], *more: str) -> str:
    """Return the UID of an object of a kind that a model makes of source instances.

    It is a name-based UUID (RFC 9562, section 5.5) under 2.25 (PS3.5, section B.2): of the same
    model and sources, in whatever order, the same, and of others another.

    Args:
        kind: of the object: `report`, `series of reports`, ...
        model: that predicted.
        sources: the SOP instance UIDs that it was given.
        more: what else the object depends on.
    """
    parts = [LAYOUT, kind, model.sha256, model.calls, *more, *sorted(set(sources))]
    name = "\0".join(f"{len(part)} {part}" for part in parts)
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


# ---------------------------------------------------------------------------------------- model


def model_identity(
    model: str | os.PathLike | Run | Model, opened: Model, description: Description
) -> ModelIdentity:
    """Return which model was opened.

    Args:
        model: what was given to `open_model`: the version may stand in its name.
        opened: the model.
        description: how it calls.
    """
    folder = opened.folder if isinstance(opened, GraphModel) else None
    name = printable(description.name)
    calls = _digest(description.to_json().encode())
    limits = LIMITS_OF_CLASSES if description.classes else LIMITS_OF_USE
    if folder is not None and (folder / "experiment.yaml").is_file():
        files = [member.run.path / "model.keras" for member in Run(folder).require_members()]
        sha256 = _digest_of_files(folder, files)
        intended_use = _statement_of(folder / "model_card.md") or limits
        return ModelIdentity(name, sha256[:12], sha256, intended_use, calls)
    places, sha256 = [str(model)], calls
    if folder is not None:
        weights = sorted(folder.glob("variables/variables.*"))
        sha256 = _digest_of_files(folder, [folder / "saved_model.pb", *weights])
        places.append(str(folder.resolve()))
    version = next(filter(None, map(_number_in, places)), sha256[:12])
    return ModelIdentity(name, version, sha256, limits, calls)


def _number_in(place: str) -> str:
    """Return the number that a place ends in as a folder of its own, such as `lesion/3`."""
    last = place.rstrip("/").rpartition("/")[2]
    return last if last.isdecimal() else ""


def _statement_of(card: Path) -> str:
    """Return the first quotation of a model card, which says what the model may be used for."""
    try:
        text = card.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    quoted = _QUOTED.search(text)
    lines = quoted.group().splitlines() if quoted else []
    words = " ".join(" ".join(line.removeprefix("> ") for line in lines).split())
    return _ESCAPED.sub("", words)[:MOST_OF_A_STATEMENT]


def _digest_of_files(folder: Path, paths: Sequence[Path]) -> str:
    digests = {path: _digest_of_file(path) for path in paths}
    if len(digests) == 1:
        return digests[paths[0]]
    lines = [f"{digest}  {path.relative_to(folder)}\n" for path, digest in digests.items()]
    return _digest("".join(lines).encode())


def _digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --------------------------------------------------------------------------------------- answer


def answer_of(
    found: FoundStudy,
    record: StudyRecord,
    predictions: list[Prediction],
    predictor: Predictor,
    model: ModelIdentity,
    maps: SliceMaps | None = None,
) -> Answer:
    """Return all that objects tell of a study that was predicted.

    The model is asked again, for the study without each of its slices, see `key_slices`.

    Args:
        found: the study, of DICOM files.
        record: of it, as it was predicted.
        predictions: of it.
        predictor: that made them.
        model: which model it asks.
        maps: of the study's slices, if there are any.

    Raises:
        InputError: the study is none of DICOM files, or they are no more to be read.
    """
    if not hasattr(found.study, "source_headers"):
        raise InputError(f"{found.study.source}: is no DICOM series; results are of such alone")
    pictures = record.pictures
    answer = Answer(
        predictions,
        predictor.description,
        model,
        found.study,
        found.study.source_headers(),
        pictures,
        _decoded(record),
        maps=maps,
        covariates=found.covariates,
        warnings=_warnings(found, record),
    )
    if answer.error or pictures is None:
        return answer
    importance = key_slices.importance(found, record, predictor)
    return replace(answer, key_slices=_key_slices(answer, pictures, importance))


def _warnings(found: FoundStudy, record: StudyRecord) -> tuple[str, ...]:
    """Return what is known of the study itself, each once."""
    entries = [*found.audit_entries, *record.audit_entries]
    own = [entry for entry in entries if entry.where.startswith(found.study.source)]
    lines = (f"{e.kind}: {e.detail}" if e.detail else e.kind for e in own)
    return tuple(dict.fromkeys(lines))


def _key_slices(
    answer: Answer, pictures: Sequence[int], importance: np.ndarray
) -> dict[str, list[KeySlice]]:
    """Return the slices that counted for each label, or for the class that is called."""
    called = [one.called or one.label for one in answer.predictions]
    by_label = zip(answer.description.labels, importance.T, strict=True)
    return {
        label: [
            KeySlice(int(place), float(values[place]), pictures[place])
            for place in np.argsort(-values, kind="stable")[:MOST_KEY_SLICES]
            if values[place] >= LEAST_IMPORTANCE
        ]
        for label, values in by_label
        if label in called
    }


def _decoded(record: StudyRecord) -> list[np.ndarray]:
    """Return the slices of a record."""
    files = decode_example(record.example)["slices"] if record.framed else []
    images: list[Any] = [
        cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_UNCHANGED) for f in files
    ]
    return images
