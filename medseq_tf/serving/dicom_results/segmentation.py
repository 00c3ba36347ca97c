"""Lesion maps as a DICOM segmentation, in the geometry of the study's pictures.

A map is in the frame of the prepared slices: turned to the plane, put into a square, resized. All
of that is undone, and a shift of the gantry's tilt too, so that each pixel of the segmentation lies
on the pixel of the source that it is told of. It has a frame for each slice that the model read,
with no lesion as well as with one.

    binary       the pixels whose probability is above 0.5: the lesion whose area the model goes by
    fractional   the probability, in 255ths
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medseq_tf.dataset.records import Aspect, from_square
from medseq_tf.readers.dicom.frame import places
from medseq_tf.readers.dicom.header import MANUFACTURER
from medseq_tf.readers.dicom.resampling import shifted, shifts
from medseq_tf.readers.orientation import plane_of, to_plane
from medseq_tf.serving.dicom_results.answer import Answer
from medseq_tf.serving.dicom_results.source import (
    RESEARCH,
    long_string,
    references,
    settle,
    source_of,
)

if TYPE_CHECKING:
    from pydicom import Dataset

SegmentationKind = Literal["binary", "fractional"]
SERIES_NUMBER = 9902
LARGEST_FRACTION = 255


def refusal(answer: Answer) -> str | None:
    """Return why a lesion map cannot be told as a segmentation; None where it can, or is none."""
    if answer.maps is None or answer.maps.kind != "lesion":
        return None
    if answer.pictures is None or answer.study.spacing is not None:
        return "no segmentation: slices were resampled, and lie between the pictures of the source"
    headers = [answer.headers[number] for number in answer.pictures]
    spaces = {str(header.get("FrameOfReferenceUID") or "") for header in headers}
    if "" in spaces:
        return "no segmentation: the source names no frame of reference that it would lie in"
    if len(spaces) > 1:
        return "no segmentation: the source's pictures lie in several frames of reference"
    if answer.frame(answer.pictures[0]) and not headers[0].get("PerFrameFunctionalGroupsSequence"):
        return "no segmentation: the source does not say where each of its frames lies"
    return None


def segmentation(answer: Answer, kind: SegmentationKind = "binary") -> Dataset | None:
    """Return the segmentation of an answer; None without a lesion map, or with a `refusal`."""
    maps, pictures = answer.maps, answer.pictures
    if maps is None or pictures is None or maps.kind != "lesion" or refusal(answer):
        return None
    values = in_source(answer, maps.values, pictures)
    pixels = values[..., None] if kind == "fractional" else (values > 0.5).astype(np.uint8)
    return _segmentation(answer, maps.label, pictures, pixels, kind)


# -------------------------------------------------------------------------------------- geometry


def in_source(answer: Answer, values: np.ndarray, pictures: Sequence[int]) -> np.ndarray:
    """Return values of prepared slices at the pixels of the source.

    Args:
        answer: of the study.
        values: (T, size, size) in [0, 1].
        pictures: which of the study's pictures each slice is.

    Returns:
        float32 (T, rows, columns) in [0, 1].
    """
    study, aspect = answer.study, answer.description.aspect
    frames = [study.pictures[number].frame for number in pictures]
    shape = study.pictures[pictures[0]].shape
    turned = [_turned_back(one, shape, frames[0].cosines, aspect) for one in values]
    if study.tilt == "correct":
        turned = shifted(turned, -shifts(frames), 0.0)
    return np.clip(np.stack(turned), 0, 1)


def _turned_back(
    values: np.ndarray, shape: tuple[int, int], cosines: np.ndarray, aspect: Aspect
) -> np.ndarray:
    """Return values (size, size) of a prepared slice at the pixels (rows, columns) of a picture."""
    pixels = np.arange(shape[0] * shape[1]).reshape(shape)
    turned = to_plane(pixels.T[:, :, None], cosines, plane_of(cosines))[0]
    height, width = turned.shape
    of_pixels = np.empty(pixels.size, np.float32)
    of_pixels[turned.ravel()] = from_square(values, height, width, aspect).ravel()
    return of_pixels.reshape(shape)


# ---------------------------------------------------------------------------------------- object


def _segmentation(
    answer: Answer,
    label: str,
    pictures: tuple[int, ...],
    pixels: np.ndarray,
    kind: SegmentationKind,
) -> Dataset:
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    model, header = answer.model, answer.headers[pictures[0]]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=long_string(model.name),
        family=codes.DCM.ArtificialIntelligence,
        version=long_string(model.version),
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=long_string(label),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_string("red"),
    )
    result = highdicom.seg.Segmentation(
        source_images=_sources(answer, pictures),
        pixel_array=pixels,
        segmentation_type=kind.upper(),
        segment_descriptions=[segment],
        series_instance_uid=answer.uid("series of segmentations"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=answer.uid(f"{kind} segmentation"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=long_string(model.name),
        software_versions=long_string(model.version),
        device_serial_number=model.sha256[:64],
        fractional_type="PROBABILITY",
        max_fractional_value=LARGEST_FRACTION,
        transfer_syntax_uid=RLELossless if kind == "fractional" else ExplicitVRLittleEndian,
        content_label="LESION",
        content_description=RESEARCH,
        series_description=long_string(f"Lesions by {model.name}: research use only"),
        omit_empty_frames=False,
    )
    _refer(result, answer, pictures)
    organization = answer.uid("dimensions of a segmentation")
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return settle(result, header)


def _sources(answer: Answer, pictures: tuple[int, ...]) -> list[Dataset]:
    """Return a source of one frame for each slice, whose UID is the picture's number.

    So a picture of a file of many is told as one of its own, and its place by what the reader read.
    """
    from pydicom import Dataset
    from pydicom.valuerep import DS

    sources = []
    common = source_of(answer.headers[pictures[0]])
    orientation = answer.study.pictures[pictures[0]].frame.orientation
    thickness = _thickness(answer, pictures[0])
    for number in pictures:
        picture, source = answer.study.pictures[number], Dataset()
        source.update(common)
        source.add_new("SOPInstanceUID", "UI", f"1.{number}")
        source.add_new("SliceThickness", "DS", thickness)
        source.add_new("Rows", "US", picture.shape[0])
        source.add_new("Columns", "US", picture.shape[1])
        for name, values in (
            ("ImagePositionPatient", picture.frame.position),
            ("ImageOrientationPatient", orientation),
            ("PixelSpacing", picture.frame.pixel_spacing),
        ):
            source.add_new(name, "DS", [DS(value, auto_format=True) for value in values])
        sources.append(source)
    return sources


def _thickness(answer: Answer, number: int) -> Any:
    """Return how thick a picture is in mm, or else how far the next one is."""
    header = answer.headers[number]
    shared = header.get("SharedFunctionalGroupsSequence") or []
    of_frames = header.get("PerFrameFunctionalGroupsSequence") or []
    own = of_frames[answer.study.pictures[number].place :][:1]
    measures = [m for group in (*own, *shared) for m in group.get("PixelMeasuresSequence", ())]
    told = [one.get("SliceThickness") for one in (header, *measures)]
    steps = np.diff(places([picture.frame for picture in answer.study.pictures]))
    return next(filter(None, told), f"{np.median(steps) if len(steps) else 1:.10g}")


def _refer(result: Dataset, answer: Answer, pictures: tuple[int, ...]) -> None:
    """Let a segmentation refer to the instances, and their frames, that its sources stand for."""
    by_uid = {f"1.{number}": number for number in pictures}
    for groups in result.PerFrameFunctionalGroupsSequence:
        for item in groups.DerivationImageSequence[0].SourceImageSequence:
            number = by_uid[item.ReferencedSOPInstanceUID]
            header = answer.headers[number]
            item.ReferencedSOPClassUID = header.SOPClassUID
            item.ReferencedSOPInstanceUID = header.SOPInstanceUID
            if frame := answer.frame(number):
                item.ReferencedFrameNumber = frame
    headers = [answer.headers[number] for number in pictures]
    result.SourceImageSequence = references(headers)
    result.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references(headers)
