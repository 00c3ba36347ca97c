"""The studies of a path without labels, read as the training data of a run were.

    a volume file (NIfTI, NRRD, MetaImage)      one study
    a folder with volumes anywhere in it        a study a file
    a folder of images                          one study, its images in natural order
    a folder of folders of images               a study a folder that holds images
    images called `58 (10).jpg`                 a study a folder and patient, in order of the slices
    any other folder                            its DICOM studies
    an archive, `dicomweb+https://HOST/...`     those of its studies that are wanted

What the training data were decides where a folder can be read in more ways than one, so that the
tree that was prepared gives the studies that were prepared. The reader says what is looked for
first: images, volumes or DICOM files. Of image folders, with the layout `patient` a folder directly
under the path is a study, whatever its images are called, and an image beside the folders is left
out (where most images lie beside them, the path is one study); with `class` images of other names
than `58 (10).jpg` are left out, and so are those that lie elsewhere than in folders directly under
the path, where most lie there. Of an `atlas` lesion masks are left out, and beside volumes that are
called as its images are, those that are not.

Whatever is left out is an audit entry. A study is called by its path. A DICOM study is called by a
hash: its files may hold a name.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.readers import image_folder, volume_file
from medseq_tf.readers.atlas import Protocol, is_image_name, is_mask_name
from medseq_tf.readers.dicom.archive import Query, is_archive, is_uid
from medseq_tf.readers.dicom.archive_study import find_archive_studies
from medseq_tf.readers.dicom.index import find_dicom_studies
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.image_folder import parse_slice_name
from medseq_tf.readers.joined_study import chosen_series
from medseq_tf.readers.names import listed
from medseq_tf.readers.picture_study import PictureStudy, in_series
from medseq_tf.readers.storage import Place, folder_of, name_of, place_in, root_of
from medseq_tf.readers.study import (
    AuditEntry,
    Slices,
    SourceIndex,
    StudySource,
    UnreadableStudy,
    natural_key,
)
from medseq_tf.readers.volumes import (
    VolumeStudy,
    checked_axis,
    checked_spacing,
    study_and_series,
)

PHOTOGRAPH = "photograph"
DICOM_READERS = ("dicom", "dicomweb")
"""Of files, and of an archive; either reads what the other has prepared."""
LABELS = "labels.csv"
"""The file of labels that readers look for in a source; it is no odd file."""

_Indexed = tuple[Sequence[StudySource], list[AuditEntry]]


@dataclasses.dataclass(frozen=True)
class _StackSection(StudySource):
    """The slices of another study from one share of its stack to another."""

    stack: StudySource
    extent: tuple[float, float]

    def read(self) -> Slices:
        slices = self.stack.read()
        first, last = (int(share * len(slices.images) + 1e-9) for share in self.extent)
        if first == last:
            raise UnreadableStudy("too few slices for the part of the stack that is used")
        names = slices.names[first:last]
        return dataclasses.replace(slices, images=slices.images[first:last], names=names)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which studies of an archive are wanted: those of some UIDs, or those that answer a query."""

    study_uids: tuple[str, ...] = ()
    query: Query | None = None
    insecure_tls: bool = False

    @classmethod
    def of(cls, study: Sequence[str], query: str | None, insecure_tls: bool) -> Wanted:
        """Return what is wanted, as it is written on the command line.

        Raises:
            InputError: both are given, or one is none.
        """
        if isinstance(study, str):
            raise InputError("study is a sequence of StudyInstanceUIDs, not one text")
        study_uids = tuple(dict.fromkeys(study))
        for number, uid in enumerate(study_uids, start=1):
            if not is_uid(uid):
                raise InputError(f"--study number {number} is no UID of a study, such as 1.2.840.1")
        if study_uids and query is not None:
            raise InputError("--study and --query: give one of them")
        if query is not None and not query.strip():
            raise InputError("--query: is empty, which would be all that the archive holds")
        asked = None if query is None else Query.parse(query)
        return cls(study_uids, asked, insecure_tls)

    @property
    def is_said(self) -> bool:
        """Whether something is."""
        return bool(self.study_uids) or self.query is not None


NOTHING = Wanted()


def find_studies(
    path: Place, modality: str, preparation: Mapping[str, Any], wanted: Wanted = NOTHING
) -> tuple[list[StudySource], list[AuditEntry]]:
    """Find the studies of a path.

    Args:
        path: a file or folder, or its URL (see `storage`), or an archive.
        modality: what the model reads: `photograph`, `CT` or `MR`.
        preparation: how the training data were read: `reader`, its `options`, and what it
            `resolved` (layout, axis, spacing, and so on).
        wanted: of an archive.

    Returns:
        The studies in natural order, and audit entries on what is left out.

    Raises:
        InputError: if nothing there is of a kind that this model reads.
    """
    if is_archive(path):
        return _archive_studies(str(path), modality, preparation, wanted)
    path = root_of(path)
    is_url_of_file = isinstance(path, str) and path.lower().endswith(volume_file.EXTENSIONS)
    if is_url_of_file or (isinstance(path, Path) and path.is_file()):
        if not name_of(path).lower().endswith(volume_file.EXTENSIONS):
            raise InputError(
                f"{path}: a study is a volume ({', '.join(volume_file.EXTENSIONS)}) or the "
                "folder that holds its images or DICOM files"
            )
        if _is_mask(name_of(path), preparation):
            raise InputError(f"{path}: is a lesion mask by its name; give the image")
        read_as = _settings(preparation).get("series_as")
        if read_as in ("channels", "sequence"):
            raise InputError(
                f"{path}: is one series of a study, and the model was trained on series as "
                f"{read_as}; give the folder that holds them all"
            )
        return [_volume(folder_of(path), name_of(path), str(path), modality, preparation)], []
    if isinstance(path, Path) and not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    studies, audit_entries = _in_folder(path, modality, preparation)
    return sorted(studies, key=lambda study: natural_key(study.source)), audit_entries


def study_of(entry: AuditEntry, studies: Sequence[StudySource]) -> StudySource | None:
    """The study that an audit entry is about; None where it is about none of them, or about all."""
    if len(studies) == 1:
        return studies[0]
    by_source = {study.source: study for study in studies}
    where = entry.where
    while where:
        if where in by_source:
            return by_source[where]
        folder, _, name = where.rpartition("/")
        parsed = parse_slice_name(name.rpartition(".")[0])
        if parsed and f"{folder}/{parsed[0]}" in by_source:
            return by_source[f"{folder}/{parsed[0]}"]
        where = folder
    return None


def _in_folder(path: Place, modality: str, preparation: Mapping[str, Any]) -> _Indexed:
    """The studies of a folder: of the kind that the training data were, or else of another."""
    wanted = image_folder.EXTENSIONS + volume_file.EXTENSIONS
    folder = Folder(path, wanted, ignored=place_in(path, LABELS))
    names = [file.name for file in folder.files]
    volumes = [name for name in names if name.lower().endswith(volume_file.EXTENSIONS)]
    pictures = [name for name in names if not name.lower().endswith(volume_file.EXTENSIONS)]
    reader = preparation.get("reader")
    if reader in DICOM_READERS and modality != PHOTOGRAPH:
        studies, audit_entries = _dicom_studies(path, modality, preparation)
        if studies or not volumes:
            _refuse_nothing(path, modality, studies, audit_entries, bool(pictures))
            return studies, audit_entries
    if pictures and modality == PHOTOGRAPH and (reader == "image-folder" or not volumes):
        studies, audit_entries = _picture_studies(path, pictures, preparation)
        left = volumes
    elif volumes:
        studies, audit_entries = _volumes(path, volumes, modality, preparation)
        left = pictures
    elif modality != PHOTOGRAPH:
        studies, audit_entries = _dicom_studies(path, modality, preparation)
        _refuse_nothing(path, modality, studies, audit_entries, bool(pictures))
        return studies, audit_entries
    else:
        counts = Counter(entry.kind for entry in folder.audit_entries)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise InputError(
            f"{path}: holds no image ({', '.join(image_folder.EXTENSIONS)}), which is what this "
            "model reads" + (f"; found: {kinds}" if kinds else "")
        )
    detail = "of another kind than the studies that are read there"
    of_left = [AuditEntry("odd file", name, detail) for name in left]
    return _shown(path, studies, [*audit_entries, *folder.audit_entries, *of_left])


def _shown(
    path: Place, studies: Sequence[StudySource], audit_entries: Sequence[AuditEntry]
) -> _Indexed:
    """Call what lies in a path, studies and audit entries, by the path too."""
    named = [
        dataclasses.replace(study, source=shown, patient=shown)
        for study in studies
        for shown in [_shown_in(path, study.source)]
    ]
    return named, [
        AuditEntry(entry.kind, _shown_in(path, entry.where), entry.detail)
        for entry in audit_entries
    ]


def _shown_in(path: Place, name: str) -> str:
    return str(path / name) if isinstance(path, Path) else f"{path}/{name}".rstrip("/")


def _settings(preparation: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the training data's reader, as given and, where that is known, as settled."""
    settled = (preparation.get("resolved") or {}).items()
    return {**(preparation.get("options") or {}), **dict(settled)}


# ------------------------------------------------------------------------------------------ DICOM


def _dicom_studies(path: Place, modality: str, preparation: Mapping[str, Any]) -> _Indexed:
    return find_dicom_studies(path, modality=modality, **_series_settings(preparation))


def _archive_studies(
    url: str, modality: str, preparation: Mapping[str, Any], wanted: Wanted
) -> tuple[list[StudySource], list[AuditEntry]]:
    """The studies of an archive, read as the DICOM files of a folder are."""
    if modality == PHOTOGRAPH:
        raise InputError("the model reads photographs, and an archive holds none; give a folder")
    studies, audit_entries = find_archive_studies(
        url,
        wanted.query,
        wanted.study_uids,
        insecure_tls=wanted.insecure_tls,
        modality=modality,
        **_series_settings(preparation),
    )
    if not studies and not audit_entries:
        raise InputError(f"{url}: holds no study that the query asks for")
    return list(studies), audit_entries


def _series_settings(preparation: Mapping[str, Any]) -> dict[str, Any]:
    options = _settings(preparation)
    names = ("series", "fewest_slices", "tilt", "spacing", "series_as")
    return {name: options[name] for name in names if name in options}


def _refuse_nothing(
    path: Place,
    modality: str,
    studies: Sequence[StudySource],
    audit_entries: list[AuditEntry],
    has_pictures: bool,
) -> None:
    """Refuse a folder in which nothing is a DICOM study."""
    of_the_walk = ("odd file", "empty folder", "symbolic link out of the source")
    if studies or not all(entry.kind in of_the_walk for entry in audit_entries):
        return
    if has_pictures:
        raise InputError(
            f"{path}: holds images of 8 bits, the model reads {modality} intensities; give "
            "volumes or DICOM files"
        )
    raise InputError(f"{path}: holds no image, volume or DICOM series of {modality}")


# ---------------------------------------------------------------------------------------- volumes


def _volumes(
    path: Place, names: list[str], modality: str, preparation: Mapping[str, Any]
) -> _Indexed:
    studies, audit_entries = [], []
    is_atlas = preparation.get("reader") == "atlas"
    as_images = {name for name in names if is_atlas and is_image_name(PurePosixPath(name).name)}
    for name in names:
        if _is_mask(name, preparation):
            audit_entries.append(AuditEntry("odd file", name, "a lesion mask by its name"))
        elif as_images and name not in as_images:
            detail = "neither a T1 image nor a lesion mask by its name"
            audit_entries.append(AuditEntry("odd file", name, detail))
        else:
            studies.append(_volume(path, name, name, modality, preparation))
    if not studies:
        raise InputError(f"{path}: holds lesion masks, but no image")
    options = _settings(preparation)
    if "series_as" not in options:
        return studies, audit_entries
    of_series, names = [], listed(options["series"])
    for study in studies:
        place = study_and_series(PurePosixPath(study.source), names)
        if place is None:
            audit_entries.append(AuditEntry("file of no series", study.source, "left out"))
        else:
            of_series.append(dataclasses.replace(study, source="/".join(place)))
    index = SourceIndex(of_series, [], audit_entries=audit_entries)
    index = chosen_series(index, names, options["series_as"])
    return index.studies, index.audit_entries


def _is_mask(name: str, preparation: Mapping[str, Any]) -> bool:
    is_atlas = preparation.get("reader") == "atlas"
    return is_atlas and is_mask_name(PurePosixPath(name).name)


def _volume(
    root: Place, name: str, shown: str, modality: str, preparation: Mapping[str, Any]
) -> StudySource:
    options = _settings(preparation)
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
    return _StackSection(shown, shown, {}, None, study, extent)


# --------------------------------------------------------------------------------------- pictures


def _layout(preparation: Mapping[str, Any]) -> str | None:
    """The layout of the image folders of the training data; None where nothing tells."""
    options = _settings(preparation)
    if preparation.get("reader") != "image-folder":
        return None
    if options.get("layout"):
        return options["layout"]
    if options.get("labels") or options.get("columns"):
        return "patient"
    return "class" if options.get("positive") else None


def _picture_studies(path: Place, names: list[str], preparation: Mapping[str, Any]) -> _Indexed:
    layout, options = _layout(preparation), _settings(preparation)
    group = {"patient": _by_folder, "class": _by_class}.get(layout or "", _by_names)
    if "series_as" in options and _is_in_series(names, options["series"]):
        group = _as_one
    groups, left_out = group(names)
    audit_entries = [AuditEntry("odd file", name, why) for name, why in left_out.items()]
    studies = [PictureStudy(n, n, {}, None, str(path), tuple(files)) for n, files in groups]
    if "series_as" in options:
        index = SourceIndex(studies, [], audit_entries=audit_entries, root=path)
        index = in_series(index, options["series_as"], options["series"], all_there=False)
        return index.studies, index.audit_entries
    is_unknown = layout is None and preparation.get("reader") == "image-folder"
    if is_unknown and len(groups) > len({PurePosixPath(name).parent for name in names}):
        detail = "studies are told apart by the names of their images; the run does not say how"
        audit_entries.append(AuditEntry("layout not known", "", f"{detail} its own were"))
    return studies, audit_entries


_Groups = tuple[list[tuple[str, list[str]]], dict[str, str]]
"""Each study's name, relative to the path, and its files; and why others are left out."""


def _is_in_series(names: list[str], series: Sequence[str]) -> bool:
    """Whether a path is the folder of one study: those of its series lie directly in it."""
    folders = [name.split("/")[:-1] for name in names]
    first, second = ({own[depth] for own in folders if len(own) > depth} for depth in (0, 1))
    return bool(first & set(series)) and not second & set(series)


def _as_one(names: list[str]) -> _Groups:
    return [("", sorted(names, key=natural_key))], {}


def _by_folder(names: list[str]) -> _Groups:
    """A study a folder directly under the path; or the path, where most images lie in itself."""
    outside = [name for name in names if "/" not in name]
    if 2 * len(outside) > len(names):
        return _as_one(names)
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, is_inside, _ = name.partition("/")
        if is_inside:
            by_folder[folder].append(name)
    groups = [(folder, sorted(files, key=natural_key)) for folder, files in by_folder.items()]
    return groups, dict.fromkeys(outside, "not in a patient's folder")


def _by_class(names: list[str]) -> _Groups:
    """A study a folder and patient, of images called `58 (10).jpg`, as prepared classes are."""
    numbered = [name for name in names if parse_slice_name(PurePosixPath(name).stem)]
    if not numbered:
        return _by_names(names)
    left_out = dict.fromkeys(set(names) - set(numbered), "name is not like `58 (10).jpg`")
    depths = Counter(name.count("/") for name in numbered)
    if depths[1] and depths[1] >= depths[0]:  # else the path is a class's own folder, or above all
        elsewhere = (name for name in names if name.count("/") != 1)
        left_out |= dict.fromkeys(elsewhere, "not directly in a class folder")
    groups, _ = _by_names([name for name in names if name not in left_out], fewest=1)
    return groups, {name: left_out[name] for name in names if name in left_out}


def _by_names(names: list[str], fewest: int = 2) -> _Groups:
    """A study a folder, or a folder and patient where the names tell of `fewest` or more."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[name.rpartition("/")[0]].append(name)
    groups: list[tuple[str, list[str]]] = []
    left_out: dict[str, str] = {}
    for folder, files in by_folder.items():
        by_patient, others = _by_patient(files, fewest)
        groups += [(f"{folder}/{p}".strip("/"), own) for p, own in by_patient.items()]
        left_out |= dict.fromkeys(others, "name is not like `58 (10).jpg`")
    return groups, left_out


def _by_patient(files: list[str], fewest: int) -> tuple[dict[str, list[str]], list[str]]:
    """The files of one folder by patient, in order, and those whose names tell of none.

    All are one study, called "", where the names tell of fewer than `fewest` patients.
    """
    slices: dict[str, list[tuple[int, str]]] = defaultdict(list)
    unnamed = []
    for name in files:
        parsed = parse_slice_name(PurePosixPath(name).stem)
        if parsed is None:
            unnamed.append(name)
        else:
            slices[parsed[0]].append((parsed[1], name))
    if len(slices) < fewest:
        return {"": sorted(files, key=natural_key)}, []
    by_patient = {
        patient: [name for _, name in sorted(slices[patient], key=lambda item: item[0])]
        for patient in sorted(slices, key=natural_key)
    }
    return by_patient, unnamed
