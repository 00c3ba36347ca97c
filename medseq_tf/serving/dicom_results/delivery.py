"""Gives the results of studies, as they are predicted, to a folder and to archives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from medseq_tf.dataset.records import StudyRecord
from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.archive import Archive
from medseq_tf.readers.dicom.study import DicomStudy
from medseq_tf.readers.storage import UnavailableStudy
from medseq_tf.readers.study import StudySource, UnreadableStudy
from medseq_tf.serving.dicom_results.answer import Answer, ModelIdentity, answer_of
from medseq_tf.serving.dicom_results.maps import slice_maps
from medseq_tf.serving.dicom_results.results import (
    check_installed,
    results,
    results_folder,
    store,
    told_plainly,
    write,
)
from medseq_tf.serving.dicom_results.segmentation import SegmentationKind, refusal
from medseq_tf.serving.study_prediction import FoundStudy, Prediction, Predictor


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Where the results of studies go.

    Attributes:
        folder: that they are written to.
        archives: that they are stored in, by the path in which the study was found.
        seg: of what kind their segmentations are.
    """

    folder: Path | None
    archives: Mapping[str, Archive]
    seg: SegmentationKind = "binary"

    @classmethod
    def to(
        cls,
        dicom_out: str | os.PathLike | None,
        archives: Mapping[str, Archive],
        dicom_seg: SegmentationKind = "binary",
    ) -> Delivery | None:
        """Return where results go; None where they go nowhere.

        Args:
            dicom_out: a folder.
            archives: see `archives`.
            dicom_seg: see `seg`.

        Raises:
            InputError: one cannot be used, or the library is missing that makes results.
        """
        if dicom_seg not in get_args(SegmentationKind):
            expected = " or ".join(get_args(SegmentationKind))
            raise InputError(f"dicom_seg = {dicom_seg!r}: expected {expected}")
        if dicom_out is None and not archives:
            return None
        check_installed()
        folder = None if dicom_out is None else results_folder(dicom_out)
        return cls(folder, archives, dicom_seg)

    def given(
        self, predictor: Predictor, model: ModelIdentity, found: FoundStudy, record: StudyRecord
    ) -> list[Prediction]:
        """Predict a study, give its results away, and return the predictions that say so."""
        predictions = predictor.of(found, record)
        if any(prediction.error for prediction in predictions):
            return predictions
        told: dict[str, Any] = {}
        try:
            answer = answered(predictor, model, found, record, predictions)
            made = results(answer, seg=self.seg)
            if why := refusal(answer):
                told["warnings"] = (*predictions[0].warnings, why)
            if self.folder is not None:
                told["results"] = tuple(map(str, write(made, self.folder)))
            if found.path in self.archives:
                store(made, self.archives[found.path])
                told["stored"] = len(made)
        except (InputError, UnavailableStudy, UnreadableStudy) as error:
            told["results_error"] = str(error)
        except OSError as error:
            told["results_error"] = f"its results cannot be written ({error.strerror})"
        return [dataclasses.replace(prediction, **told) for prediction in predictions]


def answered(
    predictor: Predictor,
    model: ModelIdentity,
    found: FoundStudy,
    record: StudyRecord,
    predictions: list[Prediction],
) -> Answer:
    """Return all that the objects tell of a study that was predicted.

    Raises:
        InputError: it cannot be told.
        UnavailableStudy: the headers of its files cannot be had.
        UnreadableStudy: they cannot be read.
    """
    with told_plainly():
        maps = slice_maps(found, record, predictor.model, predictions)
        return answer_of(found, record, predictions, predictor, model, maps)


def check_dicom(studies: Iterable[StudySource]) -> None:
    """Raise an InputError for the first study of which no results can be made."""
    for study in studies:
        if not isinstance(study, DicomStudy):
            raise InputError(
                f"{study.source}: is no DICOM study of one series; results (--dicom-out, --store) "
                "are made of nothing else"
            )
