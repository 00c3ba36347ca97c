"""Takes a path without labels; gives the studies there, read as the training data of a run were.

    a volume file (NIfTI, NRRD, MetaImage)      one study
    a folder with volumes anywhere in it        a study a file
    a folder of images                          one study, its images in natural order
    a folder of folders of images               a study a folder
    images called `58 (10).jpg`                 a study a folder and patient, in order of the slices
    any other folder                            its DICOM studies

A study is called by its path. A DICOM study is called by a hash: its files may hold a name.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.readers import image_folder, volume_header
from medseq_tf.readers.atlas import Protocol
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
        InputError: if nothing there can be read for this model.
    """
    path = Path(path)
    options = dict(preparation.get("options") or {})
    if path.is_file():
        if not path.name.lower().endswith(volume_header.EXTENSIONS):
            raise InputError(
                f"{path}: a study is a volume ({', '.join(volume_header.EXTENSIONS)}) or the "
                "folder that holds its images or DICOM files"
            )
        return [_volume(path.parent, path.name, str(path), modality, preparation)], []
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    wanted = image_folder.EXTENSIONS + volume_header.EXTENSIONS
    names = [str(file.path) for file in Folder(path, wanted).files]
    volumes = [name for name in names if name.lower().endswith(volume_header.EXTENSIONS)]
    if volumes:
        named = ((name, str(path / name)) for name in volumes)
        return [_volume(path, name, shown, modality, preparation) for name, shown in named], []
    if names:
        if modality != PHOTOGRAPH:
            raise InputError(
                f"{path}: holds images of 8 bits, the model reads {modality} intensities; give "
                "volumes or DICOM files"
            )
        return list(_picture_studies(path, names)), []
    if modality == PHOTOGRAPH:
        raise InputError(
            f"{path}: holds no image ({', '.join(image_folder.EXTENSIONS)}), which is what this "
            "model reads"
        )
    known = {k: options[k] for k in ("series", "fewest_slices", "tilt", "spacing") if k in options}
    studies, findings = find_dicom_studies(path, modality=modality, **known)
    if not studies:
        raise InputError(f"{path}: holds no image, volume or DICOM series of {modality}")
    return sorted(studies, key=lambda study: natural_key(study.source)), findings


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


def _picture_studies(path: Path, names: list[str]) -> Iterator[PictureStudy]:
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = PurePosixPath(name).parts
        by_folder[parts[0] if len(parts) > 1 else ""].append(name)
    for folder, files in by_folder.items():
        for patient, own in _by_patient(files).items():
            shown = str(path.joinpath(folder, patient))
            yield PictureStudy(shown, shown, {}, None, str(path), tuple(own))


def _by_patient(files: list[str]) -> dict[str, list[str]]:
    """The files of one folder by patient, in order; all under "" where it is one study."""
    parsed = [parse_slice_name(PurePosixPath(name).stem) for name in files]
    if None in parsed or len({patient for patient, _ in parsed}) < 2:
        return {"": sorted(files, key=natural_key)}
    slices: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for (patient, number), name in zip(parsed, files, strict=True):
        slices[patient].append((number, name))
    return {
        patient: [name for _, name in sorted(slices[patient], key=lambda item: item[0])]
        for patient in sorted(slices, key=natural_key)
    }
