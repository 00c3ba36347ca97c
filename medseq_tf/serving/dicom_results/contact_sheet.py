"""A study's slices on one picture, with what the model predicts and where it looked.

It is a secondary capture, for viewers that show neither reports nor segmentations: the slices in
order with their numbers, those that counted most framed, the map over them in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from medseq_tf.dataset.records import from_square
from medseq_tf.errors import printable
from medseq_tf.evaluation.explain.explanation import HEAT
from medseq_tf.readers.dicom.header import MANUFACTURER
from medseq_tf.readers.orientation import in_plane, plane_of
from medseq_tf.serving.dicom_results.answer import Answer, KeySlice
from medseq_tf.serving.dicom_results.maps import told_label
from medseq_tf.serving.dicom_results.source import (
    RESEARCH,
    long_string,
    references,
    settle,
    source_of,
)
from medseq_tf.serving.study_prediction import Prediction

if TYPE_CHECKING:
    from pydicom import Dataset

SERIES_NUMBER = 9903
WIDTH, MARGIN, LINE = 1200, 14, 22
"""Pixels: of the sheet, around its parts, and from one line of text to the next."""
MOST_SLICES, MOST_COLUMNS = 60, 10
LARGEST_TILE, BETWEEN = 240, 4
CT_WINDOW = (40.0, 80.0)
"""HU, centre and width, where the source names none."""
QUANTILES = (0.01, 0.995)
"""Of the intensities of others: what is black and what is white."""
FRAME = (90, 200, 250)
"""The colour around slices that counted."""
MOST_LETTERS, MOST_LINES = 130, 8

ORIENTATION = {"axial": ("L", "P"), "coronal": ("L", "F"), "sagittal": ("P", "F")}
"""Where rows and columns of slices of a plane run to, see `readers.orientation`."""


def contact_sheet(answer: Answer) -> Dataset | None:
    """Return the contact sheet of an answer; None of a study without a prediction."""
    import highdicom

    if answer.error:
        return None
    header, model = answer.headers[0], answer.model
    source = source_of(header)
    result = highdicom.sc.SCImage(
        sheet(answer),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=ORIENTATION[plane_of(answer.study.pictures[0].frame.cosines)],
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=answer.uid("series of contact sheets"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=answer.uid("contact sheet"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=long_string(model.name),
        software_versions=long_string(model.version),
        device_serial_number=model.sha256[:64],
        series_description=long_string(f"Contact sheet by {model.name}: research use only"),
        specific_character_set=source.get("SpecificCharacterSet"),
        patient_id=source.PatientID,
        patient_name=source.PatientName,
        patient_birth_date=source.PatientBirthDate,
        patient_sex=source.PatientSex,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate,
        study_time=source.StudyTime,
        referring_physician_name=source.ReferringPhysicianName,
    )
    result.copy_patient_and_study_information(source)
    result.ConversionType = "WSD"
    del result.DateOfSecondaryCapture, result.TimeOfSecondaryCapture
    result.Laterality = None
    result.BurnedInAnnotation = "NO"  # nothing of the patient, who may have a face
    result.RecognizableVisualFeatures = header.get("RecognizableVisualFeatures") or "YES"
    result.DerivationDescription = f"Slices that a model read, with what it predicts. {RESEARCH}"
    result.ImageComments = RESEARCH
    result.SourceImageSequence = references(answer.headers)
    for name in ("LossyImageCompression", "LossyImageCompressionRatio"):
        if name in header:
            result.add(header[name])
    return settle(result, header)


# ------------------------------------------------------------------------------------ what is told


def _words(answer: Answer) -> list[str]:
    """Return what the model predicts, a line a label; of many the first, and how many more."""
    lines = [_prediction(one) for one in answer.predictions]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"and {len(lines) - MOST_LINES + 1} labels more"]
    return [printable(line)[:MOST_LETTERS] for line in lines]


def _prediction(one: Prediction) -> str:
    if one.called and one.probabilities:
        ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {probability:.3f}" for name, probability in ranked)
        how = "" if one.expected_cost is None else ", the call of least expected cost"
        return f"{one.label}: {one.called}{how}  (probabilities: {shares})"
    call = "positive" if one.positive else "negative"
    calibrated = "" if one.calibrated is None else f", calibrated {one.calibrated:.3f}"
    return (
        f"{one.label}: {call}, probability {one.probability:.3f}{calibrated} (positive from "
        f"{one.threshold:.3f} on)"
    )


def _legend(answer: Answer, shown: Sequence[int], key: Sequence[KeySlice], label: str) -> list[str]:
    """Return what the sheet's colours, frames and numbers are, a line each."""
    count = len(answer.slices)
    lines = [
        f"Slices 1 to {count} as the model read them"
        if len(shown) == count
        else f"{len(shown)} of {count} slices, by their number, as the model read them"
    ]
    maps = answer.maps
    if maps is None:
        lines.append("No heat map: this model tells none")
    elif maps.kind == "lesion":
        lines.append(f"Colour: probability that a pixel is {maps.label}, from 0 to 1")
    else:
        lines.append(
            f"Colour: Grad-CAM of {maps.label}, from 0 to its greatest value: where the model "
            "looked, no outline of anything"
        )
    if key:
        lines.append(f"Framed: slices that counted most for {label}, and what it loses without one")
    return [line[:MOST_LETTERS] for line in map(printable, lines)]


# ---------------------------------------------------------------------------------------- picture


def sheet(answer: Answer) -> np.ndarray:
    """Return the contact sheet as a picture, (H, W, 3) uint8."""
    label = answer.maps.label if answer.maps else told_label(answer.description, answer.predictions)
    key = answer.key_slices.get(label, [])
    shown = _shown(len(answer.slices), [one.slice for one in key])
    words, legend = _words(answer), _legend(answer, shown, key, label)
    columns = _columns(len(shown))
    tile = min(LARGEST_TILE, (WIDTH - 2 * MARGIN) // columns)
    top = MARGIN + LINE * (len(words) + 2)
    bottom = top + tile * math.ceil(len(shown) / columns)
    picture = np.zeros((bottom + MARGIN + LINE * (len(legend) + 1), WIDTH, 3), np.uint8)
    of_model = printable(f"{answer.model.name}, version {answer.model.version}")
    texts = [
        (MARGIN, MARGIN, RESEARCH.upper(), "gold"),
        (MARGIN + 400, MARGIN, of_model[: MOST_LETTERS - 50], "grey"),
        *((MARGIN, MARGIN + LINE * (n + 1), line, "white") for n, line in enumerate(words)),
    ]
    importance = {one.slice: one.importance for one in key}
    window = _window(answer)
    for place, number in enumerate(shown):
        y, x = top + tile * (place // columns), MARGIN + tile * (place % columns)
        inside = _tile(answer, number, window, tile - BETWEEN)
        picture[y : y + tile - BETWEEN, x : x + tile - BETWEEN] = inside
        texts.append((x + 4, y + 2, str(number + 1), "white"))
        if number in importance:
            corner = (x + tile - BETWEEN - 1, y + tile - BETWEEN - 1)
            cv2.rectangle(picture, (x, y), corner, FRAME, 3)
            texts.append((x + 6, corner[1] - 20, f"{importance[number]:+.3f}", "#5ac8fa"))
    for n, line in enumerate(legend):
        texts.append((MARGIN, bottom + MARGIN + LINE * (n + 1), line, "lightgrey"))
    if answer.maps is not None:
        picture[bottom + MARGIN : bottom + MARGIN + LINE - 8, MARGIN : MARGIN + 256] = _bar()
    return _with_texts(picture, texts)


def _shown(count: int, key: Sequence[int]) -> list[int]:
    """Return the numbers of the slices on a sheet: all, or else the key ones and some between."""
    if count <= MOST_SLICES:
        return list(range(count))
    even = np.linspace(0, count - 1, MOST_SLICES - len(set(key))).round().astype(int)
    return sorted({*even.tolist(), *key})


def _columns(count: int) -> int:
    return min(MOST_COLUMNS, max(5, math.ceil(math.sqrt(1.5 * count))))


def _window(answer: Answer) -> tuple[float, float]:
    """Return the intensities that are black and white."""
    description, header = answer.description, answer.headers[0]
    if description.modality != "CT":
        low, high = np.quantile(np.stack(answer.slices), QUANTILES)
        return float(low), float(max(high, low + 1))
    centre, width = (_first(header.get(f"Window{name}")) for name in ("Center", "Width"))
    if centre is None or width is None or not width > 0:
        centre, width = CT_WINDOW
    return centre - width / 2, centre + width / 2


def _first(value: Any) -> float | None:
    """Return the first number of a header's value, None where it is none."""
    try:
        number = float(value[0] if isinstance(value, Sequence) else value)
    except (TypeError, ValueError, LookupError):
        return None
    return number if math.isfinite(number) else None


def _tile(answer: Answer, number: int, window: tuple[float, float], side: int) -> np.ndarray:
    """Return a slice with its map over it, (side, side, 3) uint8, in its true proportions."""
    low, high = window
    intensities = answer.slices[number].astype(np.float32)
    grey = np.clip((intensities + answer.description.offset - low) / (high - low), 0, 1)
    shown = np.repeat(_proportioned(answer, number, grey, side)[..., None], 3, axis=-1)
    if answer.maps is not None and not np.isnan(answer.maps.values[number]).any():
        greatest = 1.0
        if answer.maps.kind == "heat":
            greatest = max(float(np.nanmax(answer.maps.values)), 1e-6)
        values = _proportioned(answer, number, answer.maps.values[number] / greatest, side)
        colour = HEAT(np.clip(values, 0, 1))
        shown += (colour[..., :3] - shown) * colour[..., 3:]
    return (255 * shown).round().astype(np.uint8)


def _proportioned(answer: Answer, number: int, square: np.ndarray, side: int) -> np.ndarray:
    """Return values of a slice as wide and high as it is in mm, in the middle of a tile."""
    down = across = 1.0
    if answer.pictures is not None:
        picture = answer.study.pictures[answer.pictures[number]]
        rows, columns = picture.shape
        between_rows, between_columns = picture.frame.pixel_spacing
        cosines = answer.study.pictures[0].frame.cosines
        height, width = in_plane(columns, rows, cosines)
        down, across = in_plane(columns * between_columns, rows * between_rows, cosines)
        square = from_square(square, height, width, answer.description.aspect)
    scale = side / max(down, across)
    height, width = (max(1, round(length * scale)) for length in (down, across))
    shrinks = min(square.shape[0] / height, square.shape[1] / width) >= 1
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(square, (width, height), interpolation=method)
    tile = np.zeros((side, side), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = resized
    return tile


def _bar() -> np.ndarray:
    """Return the colours of a map from 0 to its greatest value, (rows, 256, 3)."""
    colour = HEAT(np.linspace(0, 1, 256))
    mixed = 0.45 + (colour[:, :3] - 0.45) * colour[:, 3:]
    return np.broadcast_to((255 * mixed).round().astype(np.uint8), (LINE - 8, 256, 3))


def _with_texts(picture: np.ndarray, texts: Sequence[tuple[int, int, str, str]]) -> np.ndarray:
    """Return a picture with texts on it, each with its place from the left and from the top.

    The settings of the user's Matplotlib change nothing of it.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    with style.context("default"):
        # A little more than the pixels, of which what rounds down would lose the last.
        figure = Figure(figsize=((width + 0.01) / 100, (height + 0.01) / 100), dpi=100)
        canvas = FigureCanvasAgg(figure)
        background = figure.figimage(picture, origin="upper")
        for x, y, text, colour in texts:
            figure.text(
                x / width,
                1 - y / height,
                text,
                color=colour,
                fontsize=10,
                family="DejaVu Sans",
                va="top",
                parse_math=False,
            )
        canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    # They are in cycles, which may stay for hundreds of sheets: without the pixels.
    background.set_data(picture[:1, :1])
    for artist in figure.texts:
        vars(artist)["_renderer"] = None
    del canvas.renderer
    return drawn
