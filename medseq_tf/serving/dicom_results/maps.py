"""Where in a study's slices a prediction comes from, told by the models that can.

A segmenter says of each pixel how probable a lesion is. Of other runs it is Grad-CAM of what is
called, as `explain` shows it. An exported model that is no segmenter, and a served one, do not say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import StudyRecord
from medseq_tf.dataset.tfrecord import decode_example
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.graphs import ModelGraphs, last_feature_maps
from medseq_tf.evaluation.explain.pixel_maps import grad_cam
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.serving.covariates import Values, covariate_vector
from medseq_tf.serving.description import Description
from medseq_tf.serving.dicom_results.answer import SliceMaps
from medseq_tf.serving.model import LoadedRun
from medseq_tf.serving.open_model import GraphModel, Model
from medseq_tf.serving.study_prediction import FoundStudy, Prediction


def slice_maps(
    found: FoundStudy,
    record: StudyRecord,
    model: Model,
    predictions: Sequence[Prediction] = (),
) -> SliceMaps | None:
    """Return a study's maps; None where its model has none.

    Args:
        found: the study.
        record: its slices, as they are stored for the model.
        model: the model that predicted it.
        predictions: its predictions, which say what Grad-CAM is of; without: the first label.
    """
    if not isinstance(model, GraphModel):
        return None
    description = model.describe()
    lesion = model.lesion_map(list(decode_example(record.example)["slices"]))
    if lesion is not None:
        return SliceMaps(lesion, "lesion", description.labels[0])
    if model.loaded is None:
        return None
    label = told_label(description, predictions)
    heat = _heat(model.loaded, record, description.labels.index(label), found.covariates)
    return None if heat is None else SliceMaps(heat, "heat", label)


def told_label(description: Description, predictions: Sequence[Prediction]) -> str:
    """Return the label whose probability is most above its threshold, or the class called."""
    if predictions and predictions[0].called:
        return predictions[0].called
    above = {
        one.label: one.probability - one.threshold
        for one in predictions
        if one.label and one.probability is not None and one.threshold is not None
    }
    return max(above, key=above.__getitem__) if above else description.labels[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _OneStudy(Prepared):
    """A study's record as a data set of its own, of the kind that a run was trained on."""

    example: bytes = b""

    @classmethod
    def of(cls, loaded: LoadedRun, record: StudyRecord) -> _OneStudy:
        values = decode_example(record.example)
        row = {"study_id": bytes(values["study_id"][0]).decode(), "slices": len(values["slices"])}
        table = pd.DataFrame([row])
        if record.series:
            table["series"] = [record.series]
        return cls(loaded.run.path, loaded.run.dataset, table, record.example)

    def record(self, row: int) -> bytes:
        return self.example


def _heat(
    loaded: LoadedRun, record: StudyRecord, label: int, covariates: Values | None
) -> np.ndarray | None:
    """Return Grad-CAM of a label, float32 (T, size, size) in [0, 1]; None where no member has any.

    Each member's is a share of its greatest in the study; it is the mean of those, by the members'
    weights, of the members that are shown a slice, and nan where none is.
    """
    study, size = _OneStudy.of(loaded, record), loaded.description.size
    maps, weights = [], []
    for member, graphs in zip(loaded.members, loaded.graphs, strict=True):
        if not _has_feature_maps(graphs):
            continue
        shown = ShownStudy(graphs, SliceStore(study, member.recipe), 0)
        if covariates and "covariates" in shown.told:
            names = member.recipe.model.covariates
            shown.told["covariates"] = _covariates(loaded.description, names, covariates)
        heat = _at_size(grad_cam(shown, label), size)
        greatest = np.nanmax(heat)
        maps.append(heat / greatest if greatest > 0 else heat)
        weights.append(member.weight)
    if not maps:
        return None
    weighed = np.reshape(weights, (-1, 1, 1, 1)) * np.isfinite(maps)
    with np.errstate(invalid="ignore"):
        mean = (weighed * np.nan_to_num(maps)).sum(axis=0) / weighed.sum(axis=0)
    return mean.astype(np.float32)


def _has_feature_maps(graphs: ModelGraphs) -> bool:
    try:
        last_feature_maps(graphs.model.encoder)
    except InputError:
        return False
    return True


def _covariates(description: Description, names: Sequence[str], values: Values) -> np.ndarray:
    """Return what a model is told of a study's covariates, (1, covariates)."""
    known = description.covariates or []
    by_name = dict(zip((c["name"] for c in known), covariate_vector(known, values), strict=True))
    return np.array([[by_name[name] for name in names]], np.float32)


def _at_size(maps: np.ndarray, size: int) -> np.ndarray:
    """Return maps (T, H, W) as (T, size, size)."""
    method = cv2.INTER_AREA if maps.shape[1] > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(one, (size, size), interpolation=method) for one in maps])
