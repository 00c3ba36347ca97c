"""A ball in space, cut into DICOM pictures of any direction, shape and spacing of pixels."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

CENTRE, RADIUS = np.array([14.0, -22.0, 31.0]), 9.0
"""Of the ball, in mm (LPS)."""
SHAPE, SPACING, STEP, COUNT = (44, 60), (1.5, 0.9), 4.0, 9
"""Rows and columns, mm between them, mm between pictures, and how many there are."""
AXES = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
DIRECTIONS = [
    (across, down) for across, down in itertools.product(AXES, AXES) if not np.dot(across, down)
]
"""All 24 ways that rows and columns of pixels can run along the patient's axes."""


def oblique(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions near those of an axial picture."""
    angle = np.radians(degrees)
    across = np.array([np.cos(angle), np.sin(angle), 0])
    normal = np.array([np.sin(angle / 2) * 0.3, 0.2, 1])
    down = np.cross(normal, across)
    return across, down / np.linalg.norm(down)


def pixel_places(position, across, down, shape, spacing) -> np.ndarray:
    """(rows, columns, 3) the centres of pixels in mm (PS3.3, equation C.7.6.2.1-1)."""
    rows, columns = (np.arange(side)[:, None] for side in shape)
    along_rows = (rows * spacing[0]) * np.asarray(down, float)
    along_columns = (columns * spacing[1]) * np.asarray(across, float)
    return np.asarray(position, float) + along_rows[:, None] + along_columns[None]


def is_ball(places: np.ndarray) -> np.ndarray:
    """Whether points (..., 3) lie in the ball."""
    return np.linalg.norm(places - CENTRE, axis=-1) < RADIUS


def pictures(
    across, down, shape=SHAPE, spacing=SPACING, tilt: float = 0.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Position and pixels of pictures around the ball, which lies off their middle.

    With a tilt the pictures stand askew: each is moved down by so many mm.
    """
    normal = np.cross(across, down)
    middle = CENTRE + 5.0 * across - 4.0 * down
    first = middle - across * spacing[1] * shape[1] / 2 - down * spacing[0] * shape[0] / 2
    cut = []
    for number in range(COUNT):
        position = first + normal * STEP * (number - COUNT // 2) + down * tilt * number
        places = pixel_places(position, across, down, shape, spacing)
        cut.append((position, is_ball(places)))
    return cut


def write_pictures(folder: Path, across, down, **settings) -> Path:
    """Write the pictures, a file each, their names and numbers in no order of theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing = settings.get("spacing", SPACING)
    for number, (position, ball) in enumerate(pictures(across, down, **settings)):
        dataset = _picture(number, position, across, down, spacing, ball)
        dataset.save_as(folder / f"{(number * 7) % 11:02}.dcm", enforce_file_format=True)
    return folder


def _picture(number, position, across, down, spacing, ball) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = "1.2.3.5", ""
    dataset.PatientName, dataset.PatientID = "Plantedname^Verity", "PLANTED-ID-4711"
    dataset.PatientBirthDate, dataset.PatientSex = "19610203", "O"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "8", "7", ""
    dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20260115", "101112", 2
    dataset.Modality, dataset.Manufacturer, dataset.SeriesDescription = "CT", "Synthetic", "HEAD"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber, dataset.AcquisitionNumber = number + 1, 1
    dataset.SliceThickness, dataset.KVP, dataset.PatientPosition = STEP, 120, "HFS"
    dataset.ImagePositionPatient = [f"{value:.10g}"[:16] for value in position]
    dataset.ImageOrientationPatient = [f"{value:.10f}"[:16] for value in (*across, *down)]
    dataset.PixelSpacing = list(spacing)
    dataset.Rows, dataset.Columns = ball.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    dataset.PixelData = (ball * 100).astype("<i2").tobytes()
    return dataset
