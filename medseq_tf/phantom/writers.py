"""A cohort of phantoms as the files of each reader: photographs, volumes, an ATLAS download, DICOM.

Whatever the format and the orientation of the files, the readers give the slices that
`DemoCohort.render` drew, in the same order. Nobody in the files exists.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, Study, patient_names, photographs
from medseq_tf.readers.columns import COVARIATE

ORIENTATIONS = ("LPS", "RAS", "SPL", "PIR")
"""What the axes of a file grow towards; these four flip and permute all of them."""

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def write_image_folder(
    cohort: DemoCohort, folder: str | Path, layout: Literal["class", "patient"] = "class"
) -> Path:
    """Write a cohort as PNG photographs in a layout that `image-folder` reads.

    Args:
        cohort: with one label for `class`.
        folder: made if it is not there.
        layout: `class` (`Normal/1 (1).png`, `Lesion/2 (1).png`; of classes a folder each) or
            `patient` (`patient-0001/1.png` and `labels.csv`).
    """
    if layout not in ("class", "patient"):
        raise InputError(f"layout={layout!r} is unknown; valid: class, patient")
    if layout == "class" and cohort.labels != 1:
        raise InputError("layout=class holds one label; write five labels with layout=patient")
    folder = _made(folder)
    for number, (name, study) in enumerate(_studies(cohort), start=1):
        if layout == "class":
            label = next((label for label, value in study.labels.items() if value), "normal")
            label = label if cohort.classes else label.capitalize()
            pattern = f"{label}/{number} ({{}}).png"
        else:
            pattern = f"{name}/{{}}.png"
        for slice_number, image in enumerate(photographs(study.volume), start=1):
            path = folder / pattern.format(slice_number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    if layout == "patient":
        write_labels(cohort, folder)
    return folder


def write_volumes(
    cohort: DemoCohort,
    folder: str | Path,
    orientation: str = "RAS",
    extension: str = ".nii.gz",
    as_photographs: bool = False,
) -> Path:
    """Write one volume a patient and `labels.csv`, as `volumes` reads them.

    Args:
        cohort: the patients.
        folder: made if it is not there.
        orientation: of the file's axes, three letters of L or R, A or P, S or I: what they grow
            towards.
        extension: `.nii`, `.nii.gz`, `.nrrd` or `.mha`.
        as_photographs: 8-bit grey levels of the brain window instead of HU.
    """
    folder = _made(folder)
    for name, study in _studies(cohort):
        values = photographs(study.volume) if as_photographs else study.volume
        _write_image(values, study.spacing, orientation, folder / f"{name}{extension}")
    write_labels(cohort, folder)
    return folder


T1 = (
    (-1000, 0.0),  # air
    (-200, 5.0),
    (-60, 150.0),  # fat
    (8, 30.0),  # fluid
    (26, 105.0),  # white matter
    (38, 80.0),  # grey matter
    (62, 45.0),  # venous blood
    (110, 30.0),  # a bleeding
    (900, 15.0),  # bone
)
"""HU of tissues and what they are in a T1-weighted scan; straight lines between them."""


def write_atlas(cohort: DemoCohort, folder: str | Path, release: str = "2.0") -> Path:
    """Write the cohort in the layout of an ATLAS release, as `atlas` reads it.

    HU become fractions with the contrast of a T1-weighted scan (`T1`), lesions dark as old strokes
    are; lesion masks are 0/1 in one file (2.0) or 0/255 in two (1.2).

    Args:
        cohort: the patients.
        folder: made if it is not there.
        release: `1.2` or `2.0`.
    """
    if release not in ("1.2", "2.0"):
        raise InputError(f"release={release!r} is unknown; valid: 1.2, 2.0")
    folder = _made(folder)
    hounsfield, t1 = np.array(T1).T
    for number, (_, study) in enumerate(_studies(cohort), start=1):
        image = np.interp(study.volume, hounsfield, t1).astype(np.float32)
        if release == "2.0":
            subject = f"sub-r001s{number:03}"
            place = _made(folder / "Training" / "R001" / subject / "ses-1" / "anat")
            stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
            image_name = f"{stem}_T1w.nii.gz"
            masks = {f"{stem}_label-L_desc-T1lesion_mask.nii.gz": study.mask}
        else:
            subject = f"{31000 + number:06}"
            place = _made(folder / "Site1" / subject / "t01")
            image_name = f"{subject}_t1w_deface_stx.nii.gz"
            half = study.mask.shape[2] // 2
            left, right = study.mask.copy(), study.mask.copy()
            left[:, :, half:], right[:, :, :half] = 0, 0
            masks = {
                f"{subject}_LesionSmooth_stx.nii.gz": 255 * left.astype(np.float32),
                f"{subject}_LesionSmooth_1_stx.nii.gz": 255 * right.astype(np.float32),
            }
        _write_image(image, study.spacing, "RAS", place / image_name)
        for name, mask in masks.items():
            _write_image(mask, study.spacing, "RAS", place / name)
    return folder


def write_dicom(
    cohort: DemoCohort,
    folder: str | Path,
    seed: int = 0,
    tilt_degrees: float = 0.0,
    with_localiser: bool = True,
) -> Path:
    """Write one CT series a patient under shuffled file names, and `labels.csv` by PatientID.

    Args:
        cohort: the patients.
        folder: made if it is not there.
        seed: of the file names and instance numbers, which say nothing of the order of slices.
        tilt_degrees: of the gantry about the patient's right-left axis.
        with_localiser: add a localiser of one image to each study.
    """
    folder = _made(folder)
    rng = np.random.default_rng(seed)
    for number, (name, study) in enumerate(_studies(cohort)):
        place = _made(folder / f"{rng.integers(16**8):08X}" / f"{rng.integers(16**8):08X}")
        tags = _patient_tags(name, number)
        names = iter(rng.permutation(len(study.volume) + 1))
        numbers = rng.permutation(len(study.volume))
        for slice_number in rng.permutation(len(study.volume)):
            series = _series_tags(name, "axial", 2) | {
                "0020|0013": str(numbers[slice_number] + 1),
                "0008|0018": _uid(name, "axial", slice_number),
            }
            path = place / f"IM{next(names):05}"
            _write_slice(study, slice_number, tilt_degrees, tags | series, path)
        if with_localiser:
            series = _series_tags(name, "localiser", 1) | {
                "0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER",
                "0008|0018": _uid(name, "localiser", 0),
                "0020|0013": "1",
            }
            path = place / f"IM{next(names):05}"
            _write_slice(study, len(study.volume) // 2, 0.0, tags | series, path)
    write_labels(cohort, folder)
    return folder


def write_labels(cohort: DemoCohort, folder: Path) -> None:
    """Write a cohort's labels as `labels.csv`, one row a patient: 0 and 1, or a class's name.

    A cohort with sites has columns of them, too: `site`, `date`, `age` and `sex`.
    """
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        classes = cohort.classes
        names = [classes.column] if classes else cohort.label_names
        others = cohort.columns.names if cohort.columns else []
        columns = [name.removeprefix(COVARIATE) for name in others]
        writer.writerow(["patient_id", *names, *columns])
        for number, name in enumerate(patient_names(cohort)):
            labels = cohort.labels_of(number)
            present = [label for label, value in labels.items() if value]
            values = present if classes else [int(value) for value in labels.values()]
            writer.writerow([name, *values, *(cohort.columns_of(number)[name] for name in others)])


def _made(folder: str | Path) -> Path:
    """Make a folder where it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _studies(cohort: DemoCohort) -> Iterator[tuple[str, Study]]:
    """Yield each patient's name, and the patient rendered."""
    for number, name in enumerate(patient_names(cohort)):
        yield name, cohort.render(number)


def _write_image(
    values: np.ndarray, spacing: tuple[float, float, float], orientation: str, path: Path
) -> None:
    """Write (T, H, W) slices, feet to head, front to back, right to left, turned."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing[::-1])
    half = np.array(values.shape[::-1]) // 2
    image.SetOrigin((-half * np.array(spacing[::-1])).tolist())
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), path, useCompression=True)


def _patient_tags(name: str, number: int) -> dict[str, str]:
    return {
        "0010|0010": f"Demo^{name}",
        "0010|0020": name,
        "0010|0030": f"19{50 + number % 50}0101",
        "0008|0020": "20200101",
        "0008|0030": "120000",
        "0008|0050": f"A{number:06}",
        "0008|1030": "demo head",
        "0018|5100": "HFS",
        "0020|0010": f"{number + 1}",
        "0020|0052": _uid(name, "frame of reference"),
        "0020|000d": _uid(name),
    }


def _series_tags(name: str, series: str, number: int) -> dict[str, str]:
    return {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": _CT_IMAGE_STORAGE,
        "0008|0060": "CT",
        "0008|0070": "medseq_tf",
        "0008|103e": f"demo {series}",
        "0018|0015": "HEAD",
        "0018|0060": "120",
        "0020|000e": _uid(name, series),
        "0020|0011": str(number),
        "0020|0012": str(number),
        "0020|1040": "",
        "0028|1052": "-1024",
        "0028|1053": "1",
        "0028|1054": "HU",
    }


def _write_slice(
    study: Study, number: int, tilt_degrees: float, tags: dict[str, str], path: Path
) -> None:
    import SimpleITK as sitk  # noqa: N813

    between, *in_plane = study.spacing
    tilt = np.radians(tilt_degrees)
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(tilt), -np.sin(tilt)])
    position = (-100.0, -100.0, between * number / np.cos(tilt))
    image = sitk.GetImageFromArray(study.volume[None, number])
    image.SetSpacing([*in_plane[::-1], between])
    image.SetOrigin(position)
    image.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    image.SetMetaData("0018|0050", f"{between:g}")
    image.SetMetaData("0020|0032", "\\".join(f"{value:.6f}" for value in position))
    image.SetMetaData("0020|0037", "\\".join(f"{value:.6f}" for value in (*row, *column)))
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def _uid(*parts: object) -> str:
    """Make a UID from a hash (PS3.5, B.2)."""
    digest = hashlib.sha256(repr(tuple(map(str, parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"
