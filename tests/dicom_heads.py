"""Heads of the phantom as studies of DICOM, of people that nobody is, in several forms."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom

PLANTED = {
    "PatientName": "Plantedname^Verity",
    "PatientID": "PLANTED-ID-4711",
    "PatientBirthDate": "19610203",
    "AccessionNumber": "PLANTEDACC-8",
    "StudyID": "PLANTEDSTUDY",
    "ReferringPhysicianName": "Plantedreferrer^Ada",
    "InstitutionName": "Planted Infirmary",
    "PatientAddress": "Planted Lane 5",
    "OtherPatientIDs": "PLANTED-OTHER-1",
}
"""What the studies hold and nothing but results may: DICOM's keyword -> value."""

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big": "1.2.840.10008.1.2.2",
    "jpeg": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg_2000": "1.2.840.10008.1.2.4.90",
    "rle": "1.2.840.10008.1.2.5",
}
"""Transfer syntaxes, all of them without loss."""

_CONVERTERS = {
    "implicit": ("dcmconv", "+ti"),
    "explicit": ("dcmconv", "+te"),
    "deflated": ("dcmconv", "+td"),
    "big": ("dcmconv", "+tb"),
    "jpeg": ("dcmcjpeg", "+e1"),
    "jpeg_ls": ("dcmcjpls", "+el"),
    "rle": ("dcmcrle",),
}
"""The programs of dcmtk that write them."""


class HeadStudy(NamedTuple):
    """A study of DICOM files.

    Attributes:
        paths: of the axial series' files, from the feet up.
        volume: (T, H, W) HU, in that order.
        mask: (T, H, W) uint8, 1 where there is a lesion.
        label: whether there is one.
    """

    folder: Path
    paths: list[Path]
    study_uid: str
    series_uid: str
    volume: np.ndarray
    mask: np.ndarray
    label: bool

    @property
    def files(self) -> list[Path]:
        """All files of the study, those of a localiser too."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def head_study(
    folder: Path,
    number: int = 0,
    *,
    syntax: str = "explicit",
    tilt: float = 0.0,
    modality: str = "CT",
    size: int = 32,
    slices: int = 6,
    lesion: bool = True,
    localiser: bool = False,
    **attributes: Any,
) -> HeadStudy:
    """Write a head.

    Args:
        folder: made; holds the study's files alone.
        number: which head; studies of other numbers have other UIDs and ids of patients.
        syntax: a key of `SYNTAXES`, or `mixed`: each file another.
        tilt: of the gantry, in degrees.
        modality: CT or MR.
        size: pixels a side.
        slices: how many.
        lesion: whether there is one.
        localiser: whether there is a series of one more picture.
        **attributes: of all files, by DICOM's keywords; None removes one.
    """
    import pydicom

    cohort = DemoCohort(
        1, seed=number, size=size, slices=(slices, slices), prevalence=float(lesion), difficulty=0
    )
    write_dicom(cohort, folder, number, tilt, localiser)
    (folder / "labels.csv").unlink()
    head = cohort.render(0)
    heights = {}
    names = sorted(SYNTAXES) if syntax == "mixed" else [syntax]
    for place, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        dataset = pydicom.dcmread(path)
        _describe(dataset, number, modality, attributes)
        save(dataset, path, names[place % len(names)])
        if "LOCALIZER" not in dataset.ImageType:
            heights[path] = float(dataset.ImagePositionPatient[2])
    paths = sorted(heights, key=heights.__getitem__)
    first = pydicom.dcmread(paths[0], stop_before_pixels=True)
    return HeadStudy(
        folder,
        paths,
        str(first.StudyInstanceUID),
        str(first.SeriesInstanceUID),
        head.volume,
        head.mask,
        bool(head.mask.any()),
    )


def planted(number: int = 0) -> dict[str, str]:
    """What a study of a number holds of what is planted."""
    mark = f"{number:03}" if number else ""
    several = ("PatientName", "PatientID", "AccessionNumber", "OtherPatientIDs")
    return {name: value + mark * (name in several) for name, value in PLANTED.items()}


def leaked(text: str | bytes, *numbers: int) -> list[str]:
    """What of the planted stands in a text: names, dates, ids, and UIDs of the studies."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    wanted = {"Plantedname", "Plantedreferrer", "Verity", "1961-02-03"}
    for number in numbers or (0,):
        wanted |= set(planted(number).values()) | set(study_uids(number))
    return sorted(value for value in wanted if value.lower() in text.lower())


def study_uids(number: int) -> tuple[str, str]:
    """The UIDs of a head's study and of its axial series."""
    return _uid(number, "study"), _uid(number, "axial")


def save(dataset: Any, path: Path, syntax: str = "explicit") -> None:
    """Write a data set of plain pixels in a transfer syntax."""
    if syntax == "jpeg_2000":
        _to_jpeg_2000(dataset)
    dataset.save_as(path, enforce_file_format=True)
    if syntax not in ("explicit", "jpeg_2000"):
        _convert(path, syntax)


def enhanced(study: HeadStudy, path: Path) -> Path:
    """Write the slices of a study as one legacy-converted enhanced multi-frame CT or MR."""
    import pydicom
    from highdicom import legacy

    files = [pydicom.dcmread(path) for path in study.paths]
    kind = f"LegacyConvertedEnhanced{files[0].Modality}Image"
    uids = (_uid(study.series_uid, "enhanced"), _uid(study.series_uid, "enhanced", 1))
    made = getattr(legacy, kind)(files, uids[0], 7, uids[1], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


# ------------------------------------------------------------------------------------- inside

_CT_ONLY = ("KVP", "RescaleIntercept", "RescaleSlope", "RescaleType")
_MR = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "ScanningSequence": "SE",
    "SequenceVariant": "NONE",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "EchoTime": "100",
    "RepetitionTime": "4000",
    "EchoTrainLength": "1",
}


def _describe(dataset: Any, number: int, modality: str, attributes: dict[str, Any]) -> None:
    """Fill in what scanners write, what is planted, and what is asked for."""
    is_axial = "LOCALIZER" not in dataset.ImageType
    values: dict[str, Any] = {
        **planted(number),
        "SOPInstanceUID": _uid(number, dataset.SOPInstanceUID),
        "StudyInstanceUID": _uid(number, "study"),
        "SeriesInstanceUID": _uid(number, "axial" if is_axial else "localiser"),
        "FrameOfReferenceUID": _uid(number, "frame"),
        "StudyDate": "20260115",
        "SeriesDate": "20260115",
        "StudyTime": "101112",
        "SeriesTime": "101200",
        "StudyDescription": f"{modality} HEAD",
        "SeriesDescription": "AXIAL" if is_axial else "SCOUT",
        "Modality": modality,
        "Manufacturer": "Synthetic",
        "PatientSex": "O",
        "PatientAge": "064Y",
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
        "BodyPartExamined": "HEAD",
        "AcquisitionNumber": "1",
        "SliceThickness": "5",
        "KVP": "120",
        "RescaleType": "HU",
    }
    if modality == "MR":
        values |= _MR | dict.fromkeys(_CT_ONLY)
        dataset.PixelData = dataset.pixel_array.clip(0).astype("<i2").tobytes()
    for name, value in (values | attributes).items():
        if value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.TransferSyntaxUID = SYNTAXES["explicit"]


def _convert(path: Path, syntax: str) -> None:
    program, *options = _CONVERTERS[syntax]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install dcmtk)")
    subprocess.run([program, *options, path, path], check=True, capture_output=True, timeout=60)


def _to_jpeg_2000(dataset: Any) -> None:
    from PIL import Image
    from pydicom.encaps import encapsulate

    # JPEG 2000 by Pillow holds no negative values: stored ones are raised, the intercept lowered.
    least = min(int(dataset.pixel_array.min()), 0)
    values = (dataset.pixel_array.astype(np.int32) - least).astype(np.uint16)
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept = str(float(dataset.get("RescaleIntercept", 0)) + least)
    packed = io.BytesIO()
    Image.fromarray(values).save(packed, "JPEG2000", no_jp2=True, irreversible=False)
    dataset.PixelData = encapsulate([packed.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = SYNTAXES["jpeg_2000"]


def _uid(*parts: object) -> str:
    digest = hashlib.sha256(repr(tuple(map(str, parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"
