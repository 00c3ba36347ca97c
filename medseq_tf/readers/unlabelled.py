"""Takes a path without labels; gives the studies there, read as the training data of a run were.

    a volume file (NIfTI, NRRD, MetaImage)      one study
    a folder with volumes anywhere in it        a study a file
    a folder of images                          one study, its images in natural order
    a folder of folders of images               a study a folder that holds images
    images called `58 (10).jpg`                 a study a folder and patient, in order of the slices
    any other folder                            its DICOM studies

Where the training data were image folders whose layout is known, it decides: with `patient` a
folder directly under the path is a study, whatever its images are called; with `class` images of
other names than `58 (10).jpg` are left out. Beside volumes of an `atlas` lesion masks are left out.

A study is called by its path. A DICOM study is called by a hash: its files may hold a name.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.readers import image_folder, volume_header
from medseq_tf.readers.atlas import _MASK, Protocol
from medseq_tf.readers.dicom import find_dicom_studies
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.image_folder import PictureStudy, parse_slice_name
from medseq_tf.readers.study import (
    Finding,
    Slices,
    StudySource,
    UnreadableStudy,
    natural_key,
)
from medseq_tf.readers.volumes import VolumeStudy, checked_axis, checked_spacing

PHOTOGRAPH = "photograph"

_Found = tuple[list[StudySource], list[Finding]]


@dataclasses.dataclass(frozen=True)
class _Part(StudySource):
    """The slices of another study from one share of its stack to another."""

    whole: StudySource
    extent: tuple[float, float]

    def read(self) -> Slices:
        slices = self.whole.read()
        first, last = (int(share * len(slices.images) + 1e-9) for share in self.extent)
        if first == last:
            raise UnreadableStudy("too few slices for the part of the stack that is used")
        names = slices.names[first:last]
        return dataclasses.replace(slices, images=slices.images[first:last], names=names)


def find_studies(
    path: str | Path, modality: str, preparation: Mapping[str, Any]
) -> tuple[list[StudySource], list[Finding]]:
    """Finds the studies of a path.

    Args:
        path: a file or folder.
        modality: what the model reads: `photograph`, `CT` or `MR`.
        preparation: reader and options that the training data were read with: axis, spacing, and
            so on.

    Returns:
        The studies in natural order, and findings on what is left out.

    Raises:
        InputError: if nothing there is of a kind that this model reads.
    """
    path = Path(path)
    if path.is_file():
        if not path.name.lower().endswith(volume_header.EXTENSIONS):
            raise InputError(
                f"{path}: a study is a volume ({', '.join(volume_header.EXTENSIONS)}) or the "
                "folder that holds its images or DICOM files"
            )
        if _is_mask(path.name, preparation):
            raise InputError(f"{path}: is a lesion mask by its name; give the image")
        return [_volume(path.parent, path.name, str(path), modality, preparation)], []
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    wanted = image_folder.EXTENSIONS + volume_header.EXTENSIONS
    names = [str(file.path) for file in Folder(path, wanted).files]
    volumes = [name for name in names if name.lower().endswith(volume_header.EXTENSIONS)]
    if volumes:
        return _volumes(path, volumes, modality, preparation)
    if modality != PHOTOGRAPH:
        return _dicom_studies(path, modality, preparation, has_pictures=bool(names))
    if names:
        return _picture_studies(path, names, _layout(preparation))
    raise InputError(
        f"{path}: holds no image ({', '.join(image_folder.EXTENSIONS)}), which is what this "
        "model reads"
    )


def _dicom_studies(
    path: Path, modality: str, preparation: Mapping[str, Any], has_pictures: bool
) -> _Found:
    options = preparation.get("options") or {}
    known = {k: options[k] for k in ("series", "fewest_slices", "tilt", "spacing") if k in options}
    studies, findings = find_dicom_studies(path, modality=modality, **known)
    if not studies and all(finding.kind in ("odd file", "empty folder") for finding in findings):
        if has_pictures:
            raise InputError(
                f"{path}: holds images of 8 bits, the model reads {modality} intensities; give "
                "volumes or DICOM files"
            )
        raise InputError(f"{path}: holds no image, volume or DICOM series of {modality}")
    return sorted(studies, key=lambda study: natural_key(study.source)), findings


# ---------------------------------------------------------------------------------------- volumes


def _volumes(path: Path, names: list[str], modality: str, preparation: Mapping[str, Any]) -> _Found:
    studies, findings = [], []
    for name in names:
        shown = str(path / name)
        if _is_mask(name, preparation):
            findings.append(Finding("odd file", shown, "a lesion mask by its name"))
        else:
            studies.append(_volume(path, name, shown, modality, preparation))
    if not studies:
        raise InputError(f"{path}: holds lesion masks, but no image")
    return studies, findings


def _is_mask(name: str, preparation: Mapping[str, Any]) -> bool:
    is_atlas = preparation.get("reader") == "atlas"
    return is_atlas and _MASK.fullmatch(PurePosixPath(name).name) is not None


def _volume(
    root: Path, name: str, shown: str, modality: str, preparation: Mapping[str, Any]
) -> StudySource:
    options = preparation.get("options") or {}
    study = VolumeStudy(
        source=shown,
        patient=shown,
        labels={},
        split=None,
        root=str(root),
        file=name,
        axis=checked_axis(options.get("axis", "axial")),
        modality=modality,
        spacing=checked_spacing(options.get("spacing")),
    )
    if preparation.get("reader") != "atlas":
        return study
    extent = tuple(options.get("extent", Protocol.extent))
    return _Part(shown, shown, {}, None, study, extent)


# --------------------------------------------------------------------------------------- pictures


def _layout(preparation: Mapping[str, Any]) -> str | None:
    """The layout of the image folders of the training data; None where nothing tells."""
    options = preparation.get("options") or {}
    if preparation.get("reader") != "image-folder":
        return None
    if options.get("layout"):
        return options["layout"]
    if options.get("labels") or options.get("columns"):
        return "patient"
    return "class" if options.get("positive") else None


def _picture_studies(path: Path, names: list[str], layout: str | None) -> _Found:
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parents = PurePosixPath(name).parts[:-1]
        by_folder["/".join(parents[:1] if layout == "patient" else parents)].append(name)
    studies, findings = [], []
    for folder, files in by_folder.items():
        if layout == "patient":
            by_patient, odd = {"": sorted(files, key=natural_key)}, []
        else:
            by_patient, odd = _by_patient(files, fewest=1 if layout == "class" else 2)
        for patient, own in by_patient.items():
            shown = str(path.joinpath(folder, patient))
            studies.append(PictureStudy(shown, shown, {}, None, str(path), tuple(own)))
        findings += [
            Finding("odd file", str(path / name), "name is not like `58 (10).jpg`") for name in odd
        ]
    return studies, findings


def _by_patient(files: list[str], fewest: int) -> tuple[dict[str, list[str]], list[str]]:
    """The files of one folder by patient, in order, and those whose names tell of none.

    All are one study, called "", where the names tell of fewer than `fewest` patients.
    """
    slices: dict[str, list[tuple[int, str]]] = defaultdict(list)
    odd = []
    for name in files:
        parsed = parse_slice_name(PurePosixPath(name).stem)
        if parsed is None:
            odd.append(name)
        else:
            slices[parsed[0]].append((parsed[1], name))
    if len(slices) < fewest:
        return {"": sorted(files, key=natural_key)}, []
    by_patient = {
        patient: [name for _, name in sorted(slices[patient], key=lambda item: item[0])]
        for patient in sorted(slices, key=natural_key)
    }
    return by_patient, odd
