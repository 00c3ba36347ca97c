"""Takes a folder of NIfTI, NRRD or MetaImage volumes and a CSV of labels; gives one study a file.

Slices. A volume is brought to one orientation from its direction cosines (`orientation`), so that
a flipped or permuted file gives the same slices, and is cut along `axis`. An oblique volume is cut
in its own planes, each the nearest to the named one. `axis` 0, 1 or 2 cuts along the file's own
first, second or third axis and turns nothing.

Intensities. `modality` says what they are (`intensities`); by default 8-bit files are photographs,
and others are CT if a value of -500 or less stands in the first 4 MiB of one of up to ten of them,
MR otherwise.

Labels. A row belongs to a file if its key is the file's path without extension, relative to the
source, or else the file's name without extension, or else the folder directly under the source.
The key is the column `file` or `volume`, where there is one (`patient_id` then says whose it is),
or the patient column. A file of 4-D gives its first volume, one of 2-D a study of one slice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.intensities import DTYPES, stored_intensities
from medseq_tf.readers.labels import LabelRow, LabelTable, read_labels
from medseq_tf.readers.orientation import PLANES, nearest_axes, to_plane
from medseq_tf.readers.study import MODALITIES, Scan, Slices, StudySource, UnreadableStudy
from medseq_tf.readers.volume_header import (
    EXTENSIONS,
    UnreadableVolume,
    VolumeHeader,
    read_header,
    smallest_value,
    without_extension,
)

STUDY_COLUMNS = ("file", "volume")
CT_HAS_AIR_BELOW_HU = -500
_SAMPLED = 10

Axis = str | int
Spacing = tuple[float, float, float] | None


@dataclass(frozen=True)
class VolumeStudy(StudySource):
    """A study in one volume file under `root`."""

    root: str
    file: str
    axis: Axis
    modality: str
    spacing: Spacing

    def read(self) -> Slices:
        """Reads the volume and cuts it."""
        from medseq_tf.readers.simpleitk_volume import read_volume

        try:
            image, findings = read_volume(Path(self.root, self.file), self.file)
            cut = cut_image(image, self.axis, self.spacing)
        except UnreadableVolume as error:
            raise UnreadableStudy(str(error)) from None
        images, odd = stored_intensities(cut, self.modality, self.file)
        return Slices(images, findings=findings + odd)


def cut_image(image, axis: Axis, spacing: Spacing = None, nearest: bool = False) -> np.ndarray:
    """Cuts a SimpleITK image into slices.

    Args:
        image: 3-D.
        axis: a plane, or the image's own axis.
        spacing: mm along the patient's left, back and head to resample to; 0 keeps one.
        nearest: resample to the nearest voxel (masks) instead of linearly.

    Returns:
        (T, H, W), contiguous.
    """
    from medseq_tf.readers import simpleitk_volume as volume

    cosines = volume.direction(image)
    if spacing is not None:
        image = volume.resampled(image, spacing, nearest_axes(cosines)[0], nearest)
    values = volume.voxels_view(image)
    if isinstance(axis, int):
        cut = np.moveaxis(values.transpose(), 2 - axis, 0)
    else:
        cut = to_plane(values, cosines, axis)
    return np.array(cut, order="C")


def scan_volumes(
    source: str | Path,
    labels: str | Path | None = None,
    columns: Sequence[str] | None = None,
    axis: Axis = "axial",
    modality: str | None = None,
    spacing: float | tuple[float, float, float] | None = None,
) -> Scan:
    """Lists the volumes under a folder that have labels.

    Args:
        source: the folder; volumes may lie in folders of it.
        labels: CSV of labels, see `labels.read_labels`. Default: `labels.csv` in the source.
        columns: the label columns. Default: all but patient, file and split.
        axis: `axial`, `coronal`, `sagittal`, or the file's own axis 0, 1 or 2.
        modality: `photograph`, `CT` or `MR`. Default: from the files.
        spacing: mm to resample to, one number or x, y, z (left, back, head; 0 keeps one). Default:
            nothing is resampled.

    Raises:
        InputError: if the source, the labels or a setting cannot be used.
    """
    root = Path(source)
    axis, spacing = checked_axis(axis), checked_spacing(spacing)
    if modality not in (None, *MODALITIES):
        raise InputError(f"modality={modality!r} is unknown; valid: {', '.join(MODALITIES)}")
    if labels is None and (root / "labels.csv").is_file():
        labels = root / "labels.csv"
    folder = Folder(root, EXTENSIONS, ignored=labels)
    if labels is None:
        raise InputError("volumes need labels, a CSV with one row a patient and 0/1 columns")
    if not folder.files:
        raise InputError(f"{root} holds no volume; valid endings: {', '.join(EXTENSIONS)}")
    table = read_labels(labels, columns, STUDY_COLUMNS)
    headers = _headers(folder)
    modality = modality or guess_modality(root, headers)
    rows = _matched(folder, headers, table)
    studies = [
        VolumeStudy(
            source=file,
            patient=row.patient or key,
            labels=row.labels,
            split=row.split,
            root=str(root),
            file=file,
            axis=axis,
            modality=modality,
            spacing=spacing,
        )
        for file, (key, row) in rows.items()
    ]
    listing = [*folder.listing, table.listing]
    resolved = {"modality": modality, "axis": axis, "spacing": spacing and list(spacing)}
    return Scan(
        studies,
        table.names,
        modality,
        folder.findings,
        listing,
        root,
        DTYPES[modality],
        resolved,
    )


def checked_axis(axis: Axis) -> Axis:
    """The axis, `"0"` as 0.

    Raises:
        InputError: if there is no such axis.
    """
    if str(axis) in ("0", "1", "2"):
        return int(axis)
    if axis not in PLANES:
        raise InputError(f"axis={axis!r} is unknown; valid: {', '.join(PLANES)}, 0, 1, 2")
    return axis


def checked_spacing(spacing: float | Sequence[float] | None) -> Spacing:
    """The spacing in mm along x, y and z.

    Raises:
        InputError: if it is not one number or three, from 0.1 to 100 mm (0 keeps an axis).
    """
    if spacing is None:
        return None
    try:
        values = tuple(map(float, np.atleast_1d(spacing)))
    except (TypeError, ValueError):
        values = ()
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(v == 0 or 0.1 <= v <= 100 for v in values):
        raise InputError(
            f"spacing={spacing!r} is not one number or three, 0.1 to 100 mm (0 keeps an axis)"
        )
    return values if any(values) else None


def _headers(folder: Folder) -> dict[str, VolumeHeader]:
    """The headers of the files that can be read; the others become findings."""
    headers = {}
    for file in folder.files:
        try:
            headers[file.name] = read_header(folder.root / file.name)
        except UnreadableVolume as error:
            folder.found("study left out", file.name, str(error))
    return headers


def guess_modality(root: Path, headers: dict[str, VolumeHeader]) -> str:
    """What the intensities of a folder of volumes are, see the module's words."""
    if all(header.is_8_bit for header in headers.values()):
        return "photograph"
    wide = [name for name, header in headers.items() if not header.is_8_bit]
    sampled = wide[:: max(len(wide) // _SAMPLED, 1)][:_SAMPLED]
    lowest = (smallest_value(root / name, headers[name]) for name in sampled)
    return "CT" if any(value <= CT_HAS_AIR_BELOW_HU for value in lowest) else "MR"


def _matched(
    folder: Folder, headers: dict[str, VolumeHeader], table: LabelTable
) -> dict[str, tuple[str, LabelRow]]:
    """The key and the row of every readable file that has one; the rest become findings."""
    matched, used = {}, defaultdict(list)
    for file in folder.files:
        key = next((key for key in _keys(file.path) if key in table.rows), None)
        if key is not None:
            used[key].append(file.name)
        if file.name not in headers:
            continue
        if key is None or table.rows[key].is_unknown:
            detail = "no row in the labels" if key is None else "every label is empty"
            folder.found("patient without label", file.name, f"{detail}; left out")
        else:
            matched[file.name] = key, table.rows[key]
    if not used:
        raise InputError(
            f"no file of {folder.root} has the name of a patient or file in {table.path.name}; "
            f"a row's key is a file's name without its extension, or its folder's"
        )
    for key, row in table.rows.items():
        if key not in used:
            folder.found("label for an unknown patient", f"{table.path.name} line {row.line}")
    for line in table.repeated:
        folder.found("row given twice", f"{table.path.name} line {line}")
    return matched


def _keys(path: PurePosixPath) -> list[str]:
    whole = without_extension(str(path))
    keys = [str(path), whole, path.name, PurePosixPath(whole).name]
    return keys + [path.parts[0]] * (len(path.parts) > 1)
