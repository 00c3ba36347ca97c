"""The reader of folders of photographs of slices, in either of two layouts.

    class    CLASS/58 (10).jpg            patient 58, slice 10; a study a class and patient
    patient  PATIENT/any/where/10.jpg     with a CSV of labels, one row a patient

Where a number stands in two class folders, `same_numbers` says whether it is the `same` patient,
with a study a class, or two `different` ones; nothing else can tell. Class folders are labels, yes
or no to each but the normal one; with `classes="folder"` they are classes, which exclude others.

A slice is one file: .jpg .jpeg .png .bmp .tif .tiff in any case, 8 bits a sample, one picture a
file. Colour is read as luma. What does not fit is left out and named in the audit entries.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, Unpack, get_args

from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes, find_classes
from medseq_tf.readers.columns import read_columns
from medseq_tf.readers.folder import File, Folder
from medseq_tf.readers.labels import LabelTable, TableOptions, labels_in, read_labels
from medseq_tf.readers.matching import lines_alike, match_rows, normal_id, why_unmatched
from medseq_tf.readers.names import normal_name, what_is_wrong
from medseq_tf.readers.participants import check_participants
from medseq_tf.readers.picture_study import PictureStudy, in_series
from medseq_tf.readers.series import SeriesAs
from medseq_tf.readers.storage import Place, root_of
from medseq_tf.readers.study import (
    SourceIndex,
    natural_key,
)
from medseq_tf.readers.table import PATIENT_COLUMNS

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

_SLICE_NAME = re.compile(r"(?P<patient>.*[^\s_-])\s*(?:\((?P<bracketed>\d+)\)|[_-](?P<plain>\d+))")
FOLDER = "folder"
"""What `classes` is called where a class is a folder."""
_ALL_EMPTY = "every label is empty"
_NORMAL = {"normal", "normals", "negative", "control", "controls", "healthy", "no", "non", "none"}

Layout = Literal["class", "patient"]
SameNumbers = Literal["same", "different"]


def index_image_folder(
    source: Place,
    labels: Place | None = None,
    layout: Layout | None = None,
    positive: str | None = None,
    columns: Sequence[str] | None = None,
    same_numbers: SameNumbers | None = None,
    series_as: SeriesAs | None = None,
    series: str | Sequence[str] | None = None,
    **table: Unpack[TableOptions],
) -> SourceIndex:
    """List the studies of a folder of photographs.

    Args:
        source: the folder, or its URL (see `storage`).
        labels: CSV with one row a patient: a patient column (`patient_id`, `patient`, `id`, or
            else the first), one or more columns of 0, 1 or empty (unknown), and perhaps `split`.
            Default: `labels.csv` in the source, where there is one.
        layout: `class` or `patient`; default: `patient` where there are labels.
        positive: class layout: the folder that is the positive class. Default: of two folders the
            one that is not called normal, negative, control, healthy, no...; of more than two, each
            such folder is a label of its own.
        columns: patient layout: the label columns. Default: all but patient and split.
        same_numbers: class layout: whether a number in two class folders is the `same` patient or
            two `different` ones. Default: that is an error.
        series_as: patient layout: how the folders in a patient's are read, each of which holds a
            series: as `channels` of one place in the body, their pictures being as many and as
            large, in one order; as one `sequence`, one after the other, each slice with a mark; or
            `separate`, each as a study. Default: as one sequence without marks.
        series: of those folders which, in that order; default: all.
        **table: patient layout: see `labels.TableOptions`. Class layout: with `classes="folder"`
            the folders exclude each other, every one is a class, and `ordered` may say their order.

    Raises:
        InputError: if the source, the layout or the labels cannot be used, or who is who is in
            doubt.
    """
    root = root_of(source)
    if layout not in (None, "class", "patient"):
        raise InputError(f"layout={layout!r} is unknown; valid: class, patient")
    if labels is None and layout != "class":
        labels = labels_in(root)
    layout = layout or ("class" if labels is None else "patient")
    if same_numbers not in (None, *get_args(SameNumbers)):
        raise InputError(f"same_numbers={same_numbers!r} is unknown; valid: same, different")
    if layout == "patient" and same_numbers is not None:
        raise InputError("same_numbers is for layout=class; with labels, a folder is a patient")
    _refuse_settings_of_the_other_layout(layout, labels, positive, columns, table)
    if series is not None and series_as is None:
        raise InputError("series needs series_as: how the series are read")
    if layout == "class" and series_as is not None:
        raise InputError("series_as is for layout=patient, a folder a series in the patient's")

    folder = Folder(root, EXTENSIONS, ignored=(labels, table.get("participants")))
    if labels is None:
        return _index_classes(folder, positive, same_numbers, table)
    index = _index_patients(folder, read_labels(labels, columns, **table))
    return index if series_as is None else in_series(index, series_as, series)


def _refuse_settings_of_the_other_layout(
    layout: Layout,
    labels: Place | None,
    positive: str | None,
    columns: Sequence[str] | None,
    table: TableOptions,
) -> None:
    classes, ordered = table.get("classes"), table.get("ordered")
    if layout == "patient" and labels is None:
        raise InputError(
            "layout=patient needs labels, a CSV with one row a patient and 0/1 columns"
        )
    if layout == "patient" and positive is not None:
        raise InputError("positive is for layout=class; with labels, name the columns instead")
    if layout == "class" and (labels is not None or columns is not None):
        raise InputError("layout=class takes its labels from the folders; leave out labels/columns")
    if layout == "class" and classes not in (None, FOLDER):
        raise InputError(
            f"classes={classes!r} is a column of a table: give labels, a CSV; {FOLDER!r} "
            "makes a class of every folder"
        )
    if layout == "class" and classes is not None and positive is not None:
        raise InputError("positive makes a label of one folder, classes a class of each; give one")
    if layout == "class" and ordered is not None and classes is None:
        raise InputError(f"ordered is the order of classes; give classes={FOLDER!r} too")


# ------------------------------------------------------------------------------------ class layout


def parse_slice_name(stem: str) -> tuple[str, int] | None:
    """Split a file name without extension into patient and slice number.

    >>> parse_slice_name("58 (10)"), parse_slice_name("58_10"), parse_slice_name("scout")
    (('58', 10), ('58', 10), None)
    """
    match = _SLICE_NAME.fullmatch(stem.strip())
    if not match:
        return None
    return normal_id(match["patient"]), int(match["bracketed"] or match["plain"])


def _index_classes(
    folder: Folder,
    positive: str | None,
    same_numbers: SameNumbers | None,
    table: TableOptions,
) -> SourceIndex:
    studies: dict[tuple[str, str], list[tuple[int, File]]] = defaultdict(list)
    spellings: dict[str, tuple[str, str]] = {}
    for picture in folder.files:
        parts = picture.name.split("/")
        parsed = parse_slice_name(parts[-1].rpartition(".")[0])
        if len(parts) != 2:
            folder.add_entry("odd file", picture.name, "not directly in a class folder")
        elif parsed is None:
            folder.add_entry("odd file", picture.name, "name is not like `58 (10).jpg`")
        else:
            studies[parts[0], parsed[0]].append((parsed[1], picture))
            patient = _class_patient(parts[0], parsed[0], same_numbers)
            _refuse_two_spellings(spellings, patient, picture.name)

    names = sorted({name for name, _ in studies}, key=natural_key)
    classes, labels = _labels_of_folders(folder.root, names, positive, table)
    label_names = list(labels[names[0]])
    values = read_columns(table)
    if values:
        patients = {_class_patient(*study, same_numbers): "/".join(study) for study in studies}
        folder.audit_entries += check_participants(values, patients)
    sources = [
        PictureStudy(
            source=f"{name}/{patient}",
            patient=_class_patient(name, patient, same_numbers),
            labels=labels[name],
            split=None,
            root=str(folder.root),
            files=_in_slice_order(folder, name, patient, slices),
            others=values.of(_class_patient(name, patient, same_numbers)) if values else {},
        )
        for (name, patient), slices in studies.items()
    ]
    if same_numbers != "different":
        _find_patients_in_two_classes(folder, studies, same_numbers)
    return SourceIndex(
        sources,
        label_names,
        "photograph",
        folder.audit_entries,
        folder.listing,
        folder.root,
        resolved={"layout": "class", "modality": "photograph", "same_numbers": same_numbers},
        classes=classes,
        columns=values and values.columns,
        versions=folder.versions,
    )


def _labels_of_folders(
    root: Place, names: list[str], positive: str | None, table: TableOptions
) -> tuple[Classes | None, dict[str, dict[str, float]]]:
    """The classes, where the folders are some, and the labels that a study in each folder has."""
    _check_class_folders(root, names)
    if table.get("classes") is None:
        positives = _positive_classes(names, positive)
        return None, {
            name: {positive.lower(): float(name == positive) for positive in positives}
            for name in names
        }
    normal = {name: normal_name(name) for name in names}
    for name in normal.values():
        if wrong := what_is_wrong(name):
            raise InputError(f"{root}: the folder {name!r} is no name of a class: {wrong}")
    where = f"{root}: its class folders"
    classes, called = find_classes(where, FOLDER, normal.values(), table.get("ordered"))
    return classes, {name: classes.one_hot(called[normal[name]]) for name in names}


def _class_patient(name: str, number: str, same_numbers: SameNumbers | None) -> str:
    """What a patient in a class folder is called."""
    return f"{name}/{number}" if same_numbers == "different" else number


def _refuse_two_spellings(spellings: dict, patient: str, name: str) -> None:
    """Refuse a patient whose name in a file's differs from another's in spaces or Unicode form."""
    stem = name.rpartition("/")[2].rpartition(".")[0].rstrip()
    spelling = _SLICE_NAME.sub(r"\g<patient>", stem)
    first, other = spellings.setdefault(patient, (spelling, name))
    if first != spelling:
        raise InputError(
            f"{other} and {name} name one patient in two spellings, which differ in spaces or in "
            "the Unicode form of letters; rename one"
        )


def _check_class_folders(root: Place, classes: list[str]) -> None:
    shown = ", ".join(classes)
    if len(classes) < 2:
        raise InputError(
            f"{root} needs two or more class folders with images named like `58 (10).jpg`, found "
            f"{shown or 'none'}; for one folder a patient give labels"
        )
    if len({normal_id(name).lower() for name in classes}) < len(classes):
        raise InputError(
            f"class folders of {root} differ only in capitals, spaces or Unicode forms: {shown}"
        )


def _positive_classes(classes: list[str], positive: str | None) -> list[str]:
    shown = ", ".join(classes)
    if positive is not None:
        if positive not in classes:
            raise InputError(f"positive={positive!r} is not a class folder; valid: {shown}")
        return [positive]
    positives = [name for name in classes if not _is_normal(name, classes)]
    if not positives or (len(classes) == 2 and len(positives) == 2):
        raise InputError(f"which class folder is the positive one? give positive=, one of {shown}")
    return positives


def _is_normal(name: str, classes: list[str]) -> bool:
    """Whether a class is the absence of the others: `Normal`, `no stroke`, `NonStroke`."""
    lower = name.lower()
    first_word = re.split(r"[\W_]+", lower)[0]
    opposites = {prefix + other.lower() for other in classes for prefix in ("no", "non")}
    return first_word in _NORMAL or lower in opposites


def _in_slice_order(
    folder: Folder, name: str, patient: str, slices: list[tuple[int, File]]
) -> tuple[str, ...]:
    slices = sorted(slices, key=lambda item: item[0])  # of one number in the folder's order
    numbers = [number for number, _ in slices]
    study = f"{name}/{patient}"
    for (number, first), (following, second) in itertools.pairwise(slices):
        if number == following:
            folder.add_entry("slice number given twice", second.name, f"also {first.path.name}")
    gaps = [(before + 1, after) for before, after in itertools.pairwise(numbers)]
    count = sum(max(after - first, 0) for first, after in gaps)
    if count:
        missing = itertools.chain.from_iterable(itertools.starmap(range, gaps))
        some = ", ".join(map(str, itertools.islice(missing, 10))) + (", ..." if count > 10 else "")
        folder.add_entry("gap in slice numbers", study, f"{count} missing: {some}")
    return tuple(picture.name for _, picture in slices)


def _find_patients_in_two_classes(
    folder: Folder, studies: Iterable[tuple[str, str]], same_numbers: SameNumbers | None
) -> None:
    classes = defaultdict(list)
    for name, patient in studies:
        classes[patient].append(name)
    shared = sorted((p for p, names in classes.items() if len(names) > 1), key=natural_key)
    if shared and same_numbers is None:
        first, second, *_ = sorted(classes[shared[0]], key=natural_key)
        more = f", and {len(shared) - 1} more like them" if len(shared) > 1 else ""
        raise InputError(
            f"{folder.root}: {first}/{shared[0]} and {second}/{shared[0]}{more} may be one patient "
            "or two; give --same-numbers same or --same-numbers different"
        )
    for patient in shared:
        first, *others = sorted(classes[patient], key=natural_key)
        detail = f"also in {', '.join(others)}; kept as one patient with {len(others) + 1} studies"
        folder.add_entry("patient in several classes", f"{first}/{patient}", detail)


# ---------------------------------------------------------------------------------- patient layout


def _index_patients(folder: Folder, labels: LabelTable) -> SourceIndex:
    files = defaultdict(list)
    for picture in folder.files:
        patient, is_inside, _ = picture.name.partition("/")
        if is_inside:
            files[patient].append(picture.name)
        else:
            folder.add_entry("odd file", picture.name, "not in a patient's folder")
    readings = {"folder": {name: (name,) for name in folder.folders}}
    keys = match_rows(readings, labels.lines).keys
    if files and not keys:
        raise InputError(
            f"no folder of {folder.root} has the name of a patient in the labels: their first "
            f"column, or one of {', '.join(PATIENT_COLUMNS)}, must hold the folders' names"
        )
    labels.refuse_rivals(files)
    studies, near = [], lines_alike(labels.lines)
    for patient, names in files.items():
        row = labels.rows[keys[patient]] if patient in keys else None
        if row is None or row.is_unknown:
            detail = why_unmatched((patient,), near, "labels") if row is None else _ALL_EMPTY
            folder.add_entry("patient without label", patient, f"{detail}; left out")
        else:
            studies.append(
                PictureStudy(
                    source=patient,
                    patient=keys[patient],
                    labels=row.labels,
                    split=row.split,
                    root=str(folder.root),
                    files=tuple(sorted(names, key=natural_key)),
                    others=row.others,
                )
            )
    for patient in folder.folders:
        if patient not in files:
            folder.add_entry("patient without images", patient)
    folder.audit_entries += labels.audit_entries(set(keys.values()))
    return SourceIndex(
        studies,
        labels.names,
        "photograph",
        folder.audit_entries,
        [*folder.listing, labels.listing],
        folder.root,
        resolved={"layout": "patient", "modality": "photograph", "match": "folder"},
        classes=labels.classes,
        columns=labels.columns,
        versions=folder.versions,
    )
