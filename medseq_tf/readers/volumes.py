"""The reader of a folder of NIfTI, NRRD or MetaImage volumes and a CSV of labels: a study a file.

Slices. A volume is brought to one orientation from its direction cosines (`orientation`), so that
a flipped or permuted file gives the same slices, and is cut along `axis`. An oblique volume is cut
in its own planes, each the nearest to the named one. `axis` 0, 1 or 2 cuts along the file's own
first, second or third axis and turns nothing.

Intensities. `modality` says what they are (`intensities`). Where it is not given, up to ten of the
files that have a label are looked at, the first 4 MiB of each, and the audit says what was taken:

    photograph   all files are of 8 bits
    CT           one holds a value of -500 or less, as air has
    MR           one holds a value above 4095, or all hold fractions in a range of less than 10:
                 no Hounsfield units
    otherwise    nothing tells CT (without the air, or with a lost intercept) from MR: asked for

Labels. One rule for the whole table says which row a file belongs to (`matching`); its key is

    path     the file's path relative to the source, with or without its extension
    stem     the file's name, with or without its extension
    folder   the folder directly under the source, which holds all volumes of a patient

`match` names the rule; a key column called `file` or `volume` means `path` (`patient_id` then says
whose it is). Otherwise the one that fits is taken and said in the audit. By `stem` two files of the
same name in two folders may be one patient's or two patients': that is asked for, too. A file of
4-D gives its first volume, one of 2-D a study of one slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Unpack, get_args

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.execution.processes import ENDED, mapped
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.intensities import DTYPES, stored_intensities
from medseq_tf.readers.joined_study import chosen_series
from medseq_tf.readers.labels import (
    LabelRow,
    LabelTable,
    TableOptions,
    labels_in,
    read_labels,
)
from medseq_tf.readers.matching import lines_alike, match_rows, why_unmatched
from medseq_tf.readers.names import listed
from medseq_tf.readers.orientation import PLANES, nearest_axes, to_plane
from medseq_tf.readers.series import SeriesAs, checked_series
from medseq_tf.readers.storage import (
    Place,
    UnavailableStudy,
    headers,
    local_files,
    read_ahead,
    root_of,
)
from medseq_tf.readers.study import MODALITIES, Slices, SourceIndex, StudySource, UnreadableStudy
from medseq_tf.readers.volume_file import (
    EXTENSIONS,
    UnreadableVolume,
    without_extension,
)

STUDY_COLUMNS = ("file", "volume")
CT_HAS_AIR_BELOW_HU = -500
LARGEST_HU = 4095
"""Of 12 bits, the intercept forgotten."""
SMALLEST_HU_RANGE = 10
_SAMPLED = 10
_HEADERS_TOGETHER = 32

Match = Literal["path", "stem", "folder"]
Axis = str | int
Spacing = tuple[float, float, float] | None


@dataclass(frozen=True)
class VolumeStudy(StudySource):
    """A study in one volume file under `root`, a folder or URL."""

    root: str
    file: str
    axis: Axis
    modality: str
    spacing: Spacing

    def read_ahead(self) -> None:
        """Begin to read a file behind a URL."""
        read_ahead(self.root, [self.file])

    def read(self) -> Slices:
        """Read the volume and cut it."""
        from medseq_tf.readers.simpleitk_volume import read_volume

        try:
            with local_files(self.root, [self.file]) as path_of:
                image, audit_entries = read_volume(Path(path_of(self.file)), self.file)
            grid = np.array([*image.GetOrigin(), *image.GetDirection(), *image.GetSpacing()])
            cut = cut_image(image, self.axis, self.spacing)
        except UnreadableVolume as error:
            raise UnreadableStudy(str(error)) from None
        images, intensity_entries = stored_intensities(cut, self.modality, self.file)
        return Slices(images, audit_entries=audit_entries + intensity_entries, grid=grid)


def cut_image(image, axis: Axis, spacing: Spacing = None, nearest: bool = False) -> np.ndarray:
    """Cut a SimpleITK image into slices.

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


def index_volumes(
    source: Place,
    labels: Place | None = None,
    columns: Sequence[str] | None = None,
    axis: Axis = "axial",
    modality: str | None = None,
    spacing: float | tuple[float, float, float] | None = None,
    match: Match | None = None,
    workers: int | None = None,
    series_as: SeriesAs | None = None,
    series: str | Sequence[str] | None = None,
    **table_options: Unpack[TableOptions],
) -> SourceIndex:
    """List the volumes under a folder that have labels.

    Args:
        source: the folder, or its URL (see `storage`); volumes may lie in folders of it.
        labels: CSV of labels, see `labels.read_labels`. Default: `labels.csv` in the source.
        columns: the label columns. Default: all but patient, file and split.
        axis: `axial`, `coronal`, `sagittal`, or the file's own axis 0, 1 or 2.
        modality: `photograph`, `CT` or `MR`. Default: from the files.
        spacing: mm to resample to, one number or x, y, z (left, back, head; 0 keeps one). Default:
            nothing is resampled.
        match: what a row's key is of a file: `path`, `stem` or `folder`. Default: the one that
            fits.
        workers: processes that read headers; default: one a core. 1: this process.
        series_as: how the series of a study, a file each, are read: as `channels` of one place in
            the body, on one grid of voxels; as one `sequence`, one after the other, each slice with
            a mark; or `separate`, each as a study.
        series: their names, in order: a file is of series `adc` where its name without extension is
            `adc` or ends in `_adc` or `-adc`, or it lies in a folder `adc`. A row of the labels is
            of the study, whose files are called alike but for that.
        **table_options: see `labels.TableOptions`.

    Raises:
        InputError: if the source, the labels or a setting cannot be used, or if what belongs to
            what is in doubt.
    """
    root = root_of(source)
    axis, spacing = checked_axis(axis), checked_spacing(spacing)
    if modality not in (None, *MODALITIES):
        raise InputError(f"modality={modality!r} is unknown; valid: {', '.join(MODALITIES)}")
    if match not in (None, *get_args(Match)):
        raise InputError(f"match={match!r} is unknown; valid: {', '.join(get_args(Match))}")
    labels = labels_in(root) if labels is None else labels
    folder = Folder(root, EXTENSIONS, ignored=(labels, table_options.get("participants")))
    if labels is None:
        raise InputError("volumes need labels, a CSV with one row a patient and 0/1 columns")
    if not folder.files:
        raise InputError(f"{root} holds no volume; valid endings: {', '.join(EXTENSIONS)}")
    keys = () if match == "folder" else None
    table = read_labels(labels, columns, STUDY_COLUMNS, keys, **table_options)
    of_series = _files_of_series(folder, series_as, series)
    is_part = series_as in ("channels", "sequence")
    is_8_bit = _readable(folder, workers, "series left out" if is_part else "study left out")
    rule, rows = _matched(folder, is_8_bit, table, match, of_series)
    if modality is None and rows:
        wide = [file for file in rows if not is_8_bit[file]]
        modality, why = _guess_modality(root, wide, workers)
        folder.add_entry("modality taken", modality, why)
    modality = modality or MODALITIES[0]
    studies = [
        VolumeStudy(
            source="/".join(of_series[file]) if of_series else file,
            patient=row.patient or key,
            labels=row.labels,
            split=row.split,
            root=str(root),
            file=file,
            axis=axis,
            modality=modality,
            spacing=spacing,
            others=row.others,
        )
        for file, (key, row) in rows.items()
    ]
    listing = [*folder.listing, table.listing]
    resolved = {
        "modality": modality,
        "axis": axis,
        "spacing": spacing and list(spacing),
        "match": rule,
    }
    index = SourceIndex(
        studies,
        table.names,
        modality,
        folder.audit_entries,
        listing,
        root,
        DTYPES[modality],
        resolved,
        table.classes,
        table.columns,
        versions=folder.versions,
    )
    return index if series_as is None else chosen_series(index, listed(series or ()), series_as)


def _files_of_series(
    folder: Folder, series_as: SeriesAs | None, series: str | Sequence[str] | None
) -> dict[str, tuple[str, str]]:
    """Return the study and the series of each file that is of one; the folder keeps those alone."""
    if (series_as is None) != (series is None):
        raise InputError("series_as and series go together: how series are read, and their names")
    if series_as is None:
        return {}
    names = listed(series or ())
    checked_series(names, series_as)
    found = {file.name: study_and_series(file.path, names) for file in folder.files}
    of_series = {file: study for file, study in found.items() if study is not None}
    absent = [name for name in names if all(name != own for _, own in of_series.values())]
    if absent:
        raise InputError(
            f"no file of {folder.root} is of series {absent[0]}: is called so, ends in "
            f"_{absent[0]}, or lies in a folder of that name"
        )
    first: dict[tuple[str, str], str] = {}
    for file, study in of_series.items():
        if (other := first.setdefault(study, file)) != file:
            raise InputError(f"{other} and {file} are both series {study[1]} of one study")
    for name in found.keys() - of_series.keys():
        folder.add_entry("file of no series", name, "left out")
    folder.files[:] = [file for file in folder.files if file.name in of_series]
    return of_series


def study_and_series(path: PurePosixPath, names: Sequence[str]) -> tuple[str, str] | None:
    """Tell the study and the series of a volume file from its path; None if it is of none.

    >>> study_and_series(PurePosixPath("sub-1/dwi/sub-1_adc.nii.gz"), ["dwi", "adc"])
    ('sub-1/sub-1', 'adc')
    >>> study_and_series(PurePosixPath("sub-1/adc/7.nii"), ["dwi", "adc"])
    ('sub-1/7', 'adc')
    """
    stem, folders = without_extension(path.name), path.parent.parts
    study = PurePosixPath(*(folder for folder in folders if folder not in names))
    for name in sorted(names, key=len, reverse=True):  # `b_adc` before `adc`
        if stem == name:
            return str(study), name
        if stem.endswith((f"_{name}", f"-{name}")):
            return str(study / stem[: -len(name) - 1]), name
    of_series = [folder for folder in folders if folder in names]
    return (str(study / stem), of_series[0]) if len(of_series) == 1 else None


def checked_axis(axis: Axis) -> Axis:
    """Check the axis; `"0"` becomes 0.

    Raises:
        InputError: if there is no such axis.
    """
    if str(axis) in ("0", "1", "2"):
        return int(axis)
    if axis not in PLANES:
        raise InputError(f"axis={axis!r} is unknown; valid: {', '.join(PLANES)}, 0, 1, 2")
    return axis


def checked_spacing(spacing: float | Sequence[float] | None) -> Spacing:
    """Check the spacing, in mm along x, y and z.

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


def _readable(folder: Folder, workers: int | None, kind: str) -> dict[str, bool]:
    """Tell which files can be read, and whether they are of 8 bits.

    The others are audit entries of a `kind`.
    """
    files = [(str(folder.root), file.name, file.size) for file in folder.files]
    readable = {}
    found = mapped(_is_8_bit, files, lambda file: ENDED, workers, _HEADERS_TOGETHER)
    for file, is_8_bit in zip(folder.files, found, strict=True):
        if isinstance(is_8_bit, str):
            folder.add_entry(kind, file.name, is_8_bit)
        else:
            readable[file.name] = is_8_bit
    return readable


def _is_8_bit(file: tuple[str, str, int]) -> bool | str:
    """Whether a file that can be read (its root, name and size) is of 8 bits, or why it cannot."""
    from medseq_tf.readers.simpleitk_volume import VolumeFile

    def read(path: str, size: int) -> bool:
        return VolumeFile(Path(path), size).is_8_bit

    root, name, size = file
    ((_, is_8_bit),) = headers(root, {name: size}, read, UnreadableVolume)
    return is_8_bit if isinstance(is_8_bit, bool) else str(is_8_bit)


class _Sample(NamedTuple):
    """The first intensities of a file: the least, the largest, and whether fractions occur."""

    low: float
    high: float
    has_fractions: bool


def _sample(file: tuple[str, str]) -> _Sample | None:
    """Look at the first intensities of a file, its root and name; None if there are none."""
    from medseq_tf.readers.simpleitk_volume import VolumeFile

    root, name = file
    try:
        with local_files(root, [name]) as path_of:
            values = VolumeFile(Path(path_of(name))).first_intensities()
    except (UnreadableVolume, UnavailableStudy):
        return None
    if not values.size:
        return None
    has_fractions = not np.all(values == np.rint(values))
    return _Sample(float(values.min()), float(values.max()), has_fractions)


def _guess_modality(root: Place, wide: list[str], workers: int | None) -> tuple[str, str]:
    """Tell what the intensities of some volumes are, and why; see the module's words.

    Args:
        root: the source.
        wide: those of more than 8 bits.
        workers: see `index_volumes`.

    Raises:
        InputError: if they may be of CT or of MR.
    """
    if not wide:
        return "photograph", "every file is of 8 bits; give --modality if they are CT or MR"
    files = [(str(root), name) for name in wide[:: max(len(wide) // _SAMPLED, 1)][:_SAMPLED]]
    samples = [sample for sample in mapped(_sample, files, lambda file: None, workers) if sample]
    with_air = sum(sample.low <= CT_HAS_AIR_BELOW_HU for sample in samples)
    looked_at = f"of {len(samples)} files looked at"
    if with_air:
        detail = f"{with_air} {looked_at} hold values of {CT_HAS_AIR_BELOW_HU} or less, as air has"
        return "CT", f"{detail}; give --modality MR if they are not CT"
    none_below = f"none {looked_at} holds a value of {CT_HAS_AIR_BELOW_HU} or less, which air has,"
    if any(sample.high > LARGEST_HU for sample in samples):
        detail = f"and one holds a value above {LARGEST_HU}"
        return "MR", f"{none_below} {detail}; give --modality CT if they are"
    if samples and all(
        sample.has_fractions and sample.high - sample.low < SMALLEST_HU_RANGE for sample in samples
    ):
        detail = f"and all hold fractions in a range of less than {SMALLEST_HU_RANGE}"
        return "MR", f"{none_below} {detail}; give --modality CT if they are"
    low = min((sample.low for sample in samples), default=0)
    high = max((sample.high for sample in samples), default=0)
    raise InputError(
        f"{root}: give --modality CT or --modality MR; the files do not tell: values from {low:g} "
        f"to {high:g} may be CT without the air around the body, or MR"
    )


def _matched(
    folder: Folder,
    readable: Collection[str],
    table: LabelTable,
    match: Match | None,
    of_series: Mapping[str, tuple[str, str]],
) -> tuple[str, dict[str, tuple[str, LabelRow]]]:
    """Match every readable file to a key and row by one rule; the rest become audit entries."""
    stated = match or ("path" if table.key in STUDY_COLUMNS else None)
    rules = [stated] if stated else get_args(Match)
    paths = {file.name: file.path for file in folder.files}
    paths |= {file: PurePosixPath(study) for file, (study, _) in of_series.items()}
    readings = {
        rule: {name: _identifiers(path, rule) for name, path in paths.items()} for rule in rules
    }
    taken, keys = match_rows(readings, table.lines)
    if taken is None:
        by = f"column {table.key} means --match path" if stated and not match else "--match says"
        raise InputError(
            f"no file of {folder.root} has the name of a patient or file in the labels; a row's "
            f"key is {' or '.join(_MEANS[rule] for rule in rules)} ({by} which)"
        )
    table.refuse_rivals(itertools.chain.from_iterable(readings[taken].values()))
    if stated is None:
        _refuse_one_stem_in_several_folders(taken, keys, table, paths)
        folder.add_entry("labels matched", "labels", f"by {taken}: a row's key is {_MEANS[taken]}")
    matched, near = {}, lines_alike(table.lines)
    for file in folder.files:
        key = keys.get(file.name)
        if file.name not in readable:
            continue
        if key is None or table.rows[key].is_unknown:
            detail = "every label is empty"
            if key is None:
                detail = why_unmatched(readings[taken][file.name], near, "labels")
            folder.add_entry("patient without label", file.name, f"{detail}; left out")
        else:
            matched[file.name] = key, table.rows[key]
    folder.audit_entries += table.audit_entries(set(keys.values()))
    return taken, matched


_MEANS = {
    "path": "a file's path in the source",
    "stem": "a file's name without its extension",
    "folder": "the folder in the source that holds it",
}


def _identifiers(path: PurePosixPath, rule: Match) -> Iterable[str]:
    if rule == "folder":
        return path.parts[:1] if len(path.parts) > 1 else ()
    name = str(path) if rule == "path" else path.name
    return name, without_extension(name)


def _refuse_one_stem_in_several_folders(
    rule: str, keys: dict[str, str], table: LabelTable, paths: Mapping[str, PurePosixPath]
) -> None:
    if rule != "stem":
        return
    first: dict[str, str] = {}
    for file, key in keys.items():
        other = first.setdefault(key, file)
        if paths[other].parent != paths[file].parent:
            raise InputError(
                f"{other} and {file} are both labels line {table.rows[key].line} by stem; give "
                "--match stem if they are one patient's, or else write their paths into the "
                "labels and give --match path"
            )
