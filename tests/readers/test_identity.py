"""Whose label is it: random trees and tables through every reader, right or refused.

Each test draws patients with names that invite mistakes, writes their scans and a table, and knows
which label belongs to which file. What a reader gives must be that, or an error, or leave the study
out: never another's label, two patients as one, or one as two.
"""

from __future__ import annotations

import csv
import io
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_writer import dicom_file, image
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.readers import atlas
from medseq_tf.readers.atlas import index_atlas
from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.image_folder import index_image_folder
from medseq_tf.readers.matching import alike, match_rows, normal_id
from medseq_tf.readers.volumes import index_volumes

NAMES = ["1", "2", "7", "07", "007", "23", "a", "A", "p1", "e\u0301", "\u00e9", " 7", "7 ", "1.0"]
PNG = cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes()

names = st.sampled_from(NAMES)
some_names = st.lists(names, min_size=1, max_size=5, unique=True)
labels = st.integers(0, 1)
few_or_many = pytest.mark.parametrize(
    "examples", [pytest.param(80, id="few"), pytest.param(500, id="many", marks=pytest.mark.slow)]
)


def volume(*voxels: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.nii")
        values = np.zeros((2, 2, 2), np.uint8)
        values.flat[: len(voxels)] = voxels
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
        return path.read_bytes()


NIFTI, LESION = volume(0), volume(1)


@dataclass
class Truth:
    """What the generator knows: file or study -> whose it is, and its label."""

    patients: dict[str, str]
    labels: dict[str, int]
    refused: int = 0
    right: int = 0


@st.composite
def tables(draw, rows, header, may_lose_rows=True):
    """Write rows as a user's software may: spellings of one id, orders, copies, separators."""
    rows = [list(map(str, row)) for row in rows]
    spelling = draw(st.sampled_from(["as it is", "NFC", "NFD", "spaces", "no leading zeros"]))
    for row in rows:
        if spelling in ("NFC", "NFD"):
            row[0] = unicodedata.normalize(spelling, row[0])
        elif spelling == "spaces":
            row[0] = f" {row[0]}  "
        elif spelling == "no leading zeros":
            row[0] = row[0].lstrip("0") or "0"
    if may_lose_rows and spelling != "no leading zeros":
        rows = [row for row in rows if draw(st.integers(0, 9))]
    rows += [row for row in rows if not draw(st.integers(0, 9))]
    rows = [*draw(st.permutations(rows)), ["stranger", *["0"] * (len(header) - 1)]]
    text = io.StringIO()
    csv.writer(text, delimiter=draw(st.sampled_from(",;\t"))).writerows([header, *rows])
    return draw(st.sampled_from(["", "\ufeff"])) + text.getvalue()


def check(scan_of, truth: Truth, name_of=lambda study: study.source) -> None:
    """Hold a scan to the truth; count it as right or as refused."""
    try:
        scan = scan_of()
    except InputError:
        truth.refused += 1
        return
    truth.right += bool(scan.studies)
    patients = {}
    for study in scan.studies:
        name = name_of(study)
        assert list(study.labels.values()) == [truth.labels[name]], name
        patients[name] = study.patient
    for one, patient in patients.items():
        for other, another in patients.items():
            same = truth.patients[one] == truth.patients[other]
            assert (patient == another) == same, f"{one} and {other}"


def run(examples, test) -> None:
    """Run a property, and see that it was not refused everywhere."""
    counts = {"right": 0, "refused": 0}

    @settings(max_examples=examples)
    @given(st.data())
    def holds(data):
        with tempfile.TemporaryDirectory() as folder:
            truth = Truth({}, {})
            test(Path(folder), data.draw, truth)
            counts["right"] += truth.right
            counts["refused"] += truth.refused

    holds()
    assert counts["right"] > examples / 20
    assert counts["refused"] > examples / 20


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# ----------------------------------------------------------------------------------------- volumes


def a_volume_cohort(root, draw, truth):
    rule = draw(st.sampled_from(["path", "stem", "folder"]))
    rows, header = [], [draw(st.sampled_from(["id", "patient_id", "who"])), "x"]
    with_patients = rule == "path" and draw(st.booleans())
    extension = draw(st.sampled_from([".nii", ".NII", ".nii.gz"]))
    for patient in draw(some_names):
        label = draw(labels)
        several = with_patients or rule == "folder" or (rule == "stem" and draw(st.booleans()))
        scans = draw(st.lists(names, min_size=1, max_size=2 if several else 1, unique=True))
        for number, scan in enumerate(scans):
            if rule == "stem":
                folder = f"{scan}/" if several or draw(st.booleans()) else ""
                file = f"{folder}{patient}{extension}"
            elif rule == "folder":
                file = f"{patient}/{scan}{extension}"
            else:
                file = f"{scan}/{patient}{extension}"
                if file in truth.labels:
                    continue
            truth.labels[file], truth.patients[file] = label, patient
            if rule == "path":
                key = file if draw(st.booleans()) else file.removesuffix(extension)
                rows.append([key, label, f"patient {patient}"])
                if not with_patients:
                    truth.patients[file] = file
            elif not number:
                rows.append([patient, label])
            write(root / file, NIFTI)
    if with_patients:
        header = [draw(st.sampled_from(["file", "volume"])), "x", "patient_id"]
    rows = [row[: len(header)] for row in rows]
    write(root / "labels.csv", draw(tables(rows, header)).encode())
    match = draw(st.sampled_from([None, rule]))
    check(lambda: index_volumes(root, match=match), truth)


@few_or_many
def test_volumes(examples):
    run(examples, a_volume_cohort)


# ------------------------------------------------------------------------------------ image folders


def patients_in_folders(root, draw, truth):
    rows = []
    for patient in draw(some_names):
        truth.labels[patient], truth.patients[patient] = draw(labels), patient
        rows.append([patient, truth.labels[patient]])
        for scan in draw(st.lists(names, min_size=1, max_size=2)):
            write(root / patient / scan / "1.png", PNG)
    header = [draw(st.sampled_from(["patient", "ID", "patient_id", "who"])), "x"]
    write(root / "labels.csv", draw(tables(rows, header)).encode())
    check(lambda: index_image_folder(root), truth)


def patients_in_classes(root, draw, truth):
    same = draw(st.sampled_from(["same", "different"]))
    for label, folder in enumerate(("Normal", "Stroke")):
        for patient in draw(some_names):
            if patient.endswith(" "):  # which parts the name from the slice's number
                continue
            pattern = draw(st.sampled_from(["{} ({}).png", "{}_{}.png", "{}-{}.png"]))
            for slice_number in draw(st.sets(st.integers(0, 3), min_size=1)):
                write(root / folder / pattern.format(patient, slice_number), PNG)
            # Spelt otherwise it is another patient, whose study may only be refused.
            study = f"{folder}/{normal_id(patient)}"
            truth.labels[study] = label
            truth.patients[study] = patient if same == "same" else study
    given = draw(st.sampled_from([None, same]))
    check(lambda: index_image_folder(root, layout="class", same_numbers=given), truth)


@few_or_many
@pytest.mark.parametrize("cohort", [patients_in_folders, patients_in_classes])
def test_image_folders(cohort, examples):
    run(examples, cohort)


# ------------------------------------------------------------------------------------------- DICOM


def a_dicom_cohort(root, draw, truth):
    rule = draw(st.sampled_from(["patient_id", "accession_number", "study_instance_uid", "folder"]))
    accessions = iter(draw(st.permutations([normal_id(n) for n in NAMES if n == normal_id(n)])))
    folders = iter(draw(st.permutations(NAMES)))
    rows, by_name, number = {}, {}, 0
    patients = {normal_id(patient): patient for patient in draw(some_names)}
    for patient in patients.values():
        label, folder = draw(labels), next(folders)
        for _ in range(draw(st.integers(1, 2))):
            number += 1
            if rule in ("accession_number", "study_instance_uid"):
                label = draw(labels)
            if rule != "folder" and draw(st.booleans()):
                folder = next(folders)
            keys = {
                "patient_id": patient,
                "accession_number": next(accessions),
                "study_instance_uid": f"1.2.{number}",
                "folder": folder,
            }
            rows[keys[rule]] = label
            for t in range(3):
                data = dicom_file(
                    image(
                        np.full((2, 2), 1000 * number),
                        (0, 0, t),
                        t00080005=("CS", "ISO_IR 192"),
                        t00100020=patient,
                        t00080050=("SH", keys["accession_number"]),
                        t0020000D=keys["study_instance_uid"],
                        t0020000E=f"1.2.{number}.1",
                    )
                )
                write(root / folder / f"{number}-{t}", data)
            by_name[f"{folder}/{number}"] = label, patient
    header = [draw(st.sampled_from([rule, "id", "who"])), "x"]
    write(root / "labels.csv", draw(tables(list(rows.items()), header)).encode())
    for study, (label, patient) in by_name.items():
        truth.labels[study], truth.patients[study] = label, patient
    match = draw(st.sampled_from([None, rule]))
    check(
        lambda: index_dicom(root, match=match),
        truth,
        lambda study: study.pictures[0].path.partition("-")[0],
    )


@few_or_many
def test_dicom(examples):
    run(examples, a_dicom_cohort)


# ------------------------------------------------------------------------------------------- ATLAS


@pytest.fixture
def in_this_process(monkeypatch):
    """Spares a test the start of worker processes."""
    monkeypatch.setattr(
        atlas, "mapped", lambda function, items, stand_in, workers: map(function, items)
    )


def an_atlas(root, draw, truth):
    has_folders = draw(st.booleans())
    for site in draw(st.lists(st.sampled_from(["A", "B"]), min_size=1, unique=True)):
        for patient in draw(some_names):
            subject = f"sub-{patient}"
            for session in draw(st.sets(st.integers(1, 2), min_size=1)):
                place = f"{site}/{subject}/ses-{session}" if has_folders else site
                stem = f"{place}/{subject}_ses-{session}"
                label = draw(labels)
                write(root / f"{stem}_T1w.nii", NIFTI)
                write(root / f"{stem}_label-L_mask.nii", LESION if label else NIFTI)
                truth.labels[f"{stem}_T1w.nii"] = label
                # Without a folder a subject's name is its own, whatever the folders are called.
                truth.patients[f"{stem}_T1w.nii"] = f"{site * has_folders} {patient}"
    check(lambda: index_atlas(root, whole=True, extent=(0, 1)), truth)


@few_or_many
def test_atlas(examples, in_this_process):
    run(examples, an_atlas)


def atlas_of(root, *places, end=".nii"):
    for place in places:
        write(root / place / f"sub-1_ses-1_T1w{end}", NIFTI)
        write(root / place / "sub-1_ses-1_label-L_mask.nii", LESION)


@pytest.mark.parametrize("places", [("A/sub-1/x", "B/sub-1/x"), ("A", "B"), ("sub-1", ".")])
def test_a_subject_s_name_in_two_places_is_refused(tmp_path, places):
    atlas_of(tmp_path, *places)
    with pytest.raises(InputError, match="have one subject's name and may be two subjects"):
        index_atlas(tmp_path, whole=True)


def test_two_timepoints_of_one_name_lie_in_their_subject_s_folder(tmp_path, in_this_process):
    atlas_of(tmp_path, "sub-1/t01", "sub-1/t02")
    studies = index_atlas(tmp_path, whole=True, extent=(0, 1)).studies
    assert [study.patient for study in studies] == ["sub-1", "sub-1"]


def test_a_session_in_two_files_is_one_study(tmp_path, in_this_process):
    atlas_of(tmp_path, ".")
    atlas_of(tmp_path, ".", end=".nii.gz")
    scan = index_atlas(tmp_path, whole=True, extent=(0, 1))
    assert [study.source for study in scan.studies] == ["sub-1_ses-1_T1w.nii"]
    assert [(f.kind, f.where) for f in scan.audit_entries] == [
        ("study left out", "sub-1_ses-1_T1w.nii.gz")
    ]


# --------------------------------------------------------------------------------------- the rule


def test_a_file_that_fits_two_rows_shows_both_readings(tmp_path):
    for patient in range(1, 3):
        for scan in range(1, 3):
            write(tmp_path / f"{patient}/{scan}.nii", NIFTI)
    write(tmp_path / "labels.csv", b"id,x\n1,0\n2,1\n")
    with pytest.raises(InputError) as error:
        index_volumes(tmp_path)
    assert str(error.value) == (
        "1/2.nii is labels line 3 by stem and line 2 by folder; give --match stem or --match folder"
    )
    scan = index_volumes(tmp_path, match="folder")
    assert [(s.patient, s.labels["x"]) for s in scan.studies] == [("1", 0)] * 2 + [("2", 1)] * 2
    assert scan.resolved["match"] == "folder"


def test_a_rule_that_fits_some_and_another_the_rest_are_not_mixed(tmp_path):
    write(tmp_path / "p1/ct.nii", NIFTI)
    write(tmp_path / "x/p2.nii", NIFTI)
    write(tmp_path / "labels.csv", b"id,x\np1,0\np2,1\n")
    with pytest.raises(InputError, match=r"x/p2.nii is labels line 3 by stem, p1/ct.nii is line 2"):
        index_volumes(tmp_path)


def test_a_column_called_file_is_a_path(tmp_path):
    for file in ("a/1.nii", "b/1.nii"):
        write(tmp_path / file, NIFTI)
    write(tmp_path / "labels.csv", b"file,x\n1,1\n")
    with pytest.raises(InputError, match="column file means --match path"):
        index_volumes(tmp_path)
    write(tmp_path / "labels.csv", b"file,x\na/1,1\nb/1.nii,0\n")
    assert [s.labels["x"] for s in index_volumes(tmp_path).studies] == [1, 0]


def test_files_of_one_name_in_two_folders_are_asked_for(tmp_path):
    for file in ("a/1.nii", "b/1.nii"):
        write(tmp_path / file, NIFTI)
    write(tmp_path / "labels.csv", b"id,x\n1,1\n")
    with pytest.raises(InputError, match=r"a/1.nii and b/1.nii are both labels line 2 by stem"):
        index_volumes(tmp_path)
    assert {s.patient for s in index_volumes(tmp_path, match="stem").studies} == {"1"}


def test_leading_zeros_that_a_spreadsheet_took_are_not_put_back(tmp_path):
    for file in ("001/7.nii", "007/1.nii"):
        write(tmp_path / file, NIFTI)
    write(tmp_path / "labels.csv", b"id,x\n1,0\n7,1\n")
    with pytest.raises(InputError, match="but for leading zeros or capitals; give --match stem or"):
        index_volumes(tmp_path)
    write(tmp_path / "labels.csv", b"id,x\n1,0\n007,1\n")
    scan = index_volumes(tmp_path, match="folder")
    assert [f.detail for f in scan.audit_entries if f.kind == "patient without label"] == [
        "no row in the labels (labels line 2 differs in leading zeros or capitals); left out"
    ]


def test_ids_are_text_in_one_unicode_form():
    assert normal_id(" e\u0301 ") == normal_id("\u00e9")
    assert normal_id("7 /x ") == "7/x"
    assert len({normal_id(name) for name in ("7", "07", "007", "7.0", "A", "a")}) == 6
    assert len({alike(name) for name in ("7", "07", "007", "7.0")}) == 1


def test_what_two_rules_agree_on_is_taken_by_the_wider():
    readings = {"stem": {"p/a": ("a",)}, "folder": {"p/a": ("p",), "q/b": ("q",)}}
    assert match_rows(readings, {"q": 2, "p": 3}) == ("folder", {"p/a": "p", "q/b": "q"})
    assert match_rows(readings, {"z": 2}) == (None, {})


@pytest.mark.parametrize("reader", ["volumes", "image folder"])
def test_a_row_number_in_the_first_column_is_no_patient(tmp_path, reader):
    for patient in (1, 2, 3):
        write(tmp_path / f"{patient}.nii", NIFTI)
        write(tmp_path / f"{patient}/1.png", PNG)
    write(tmp_path / "labels.csv", b"row,subject,age,x\n1,3,61,1\n2,2,61,0\n3,1,50,0\n")
    scan = index_volumes if reader == "volumes" else index_image_folder
    with pytest.raises(InputError, match="line 4 of the labels may be its first column or another"):
        scan(tmp_path, columns=["x"])
    write(tmp_path / "labels.csv", b"who,code,x\n1,A,1\n2,B,0\n3,C,0\n")
    assert [s.labels["x"] for s in scan(tmp_path, columns=["x"]).studies] == [1, 0, 0]
