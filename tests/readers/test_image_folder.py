"""Both layouts of image folders: what is a study, what is an audit entry, what is an error."""

from __future__ import annotations

import collections
import math
import os
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.readers import UnreadableStudy, natural_key, picture_study
from medseq_tf.readers.image_folder import index_image_folder, parse_slice_name


def picture(path, shape=(8, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


def kinds(scan):
    return collections.Counter(entry.kind for entry in scan.audit_entries)


def where(scan, kind):
    return [entry.where for entry in scan.audit_entries if entry.kind == kind]


@pytest.fixture
def classes(tmp_path):
    for number in (1, 2, 10):
        picture(tmp_path / "Normal" / f"7 ({number}).png", seed=number)
        picture(tmp_path / "Stroke" / f"58 ({number}).png", seed=10 + number)
    return tmp_path


@pytest.fixture
def patients(tmp_path):
    for patient in ("a1", "a2", "a10"):
        for number in (1, 2, 10):
            picture(tmp_path / patient / f"{number}.png", seed=hash((len(patient), number)) % 1000)
    (tmp_path / "labels.csv").write_text("patient_id,bleed,mass\na1,1,0\na2,0,\na10,0,1\n")
    return tmp_path


# ------------------------------------------------------------------------------------ class layout


@pytest.mark.parametrize(
    ("stem", "patient", "number"),
    [
        ("58 (10)", "58", 10),
        ("58(10)", "58", 10),
        ("58_10", "58", 10),
        ("58-10", "58", 10),
        ("study_7_003", "study_7", 3),
        ("Jane Roe (0)", "Jane Roe", 0),
    ],
)
def test_patient_and_slice_from_the_name(stem, patient, number):
    assert parse_slice_name(stem) == (patient, number)


@pytest.mark.parametrize("stem", ["scout", "58", "(10)", "_10", "58 (a)", ""])
def test_names_without_patient_and_slice(stem):
    assert parse_slice_name(stem) is None


@given(st.text(st.characters(categories=["L", "N"]), min_size=1), st.integers(0, 10**6))
def test_names_are_read_back(patient, number):
    for pattern in ("{} ({})", "{}({})", "{}_{}", "{}-{}"):
        assert parse_slice_name(pattern.format(patient, number)) == (patient, number)


def test_two_classes_are_one_label(classes):
    scan = index_image_folder(classes)
    assert scan.label_names == ["stroke"]
    assert [(s.source, s.patient, s.labels) for s in scan.studies] == [
        ("Normal/7", "7", {"stroke": 0.0}),
        ("Stroke/58", "58", {"stroke": 1.0}),
    ]
    assert scan.studies[1].files == tuple(f"Stroke/58 ({n}).png" for n in (1, 2, 10))
    assert len(scan.listing) == 6


def test_reading_gives_the_files_in_slice_order(classes):
    study = pickle.loads(pickle.dumps(index_image_folder(classes).studies[1]))
    slices = study.read()
    for image, number in zip(slices.images, (1, 2, 10), strict=True):
        expected = np.random.default_rng(10 + number).integers(0, 256, (8, 8), np.uint8)
        np.testing.assert_array_equal(image, expected)


def test_every_extension_in_any_case(tmp_path):
    for number, end in enumerate(["jpg", "JPEG", "PNG", "bmp", "Tif", "TIFF"]):
        picture(tmp_path / "yes" / f"1 ({number}).{end}")
        picture(tmp_path / "no" / f"2 ({number}).{end}")
    scan = index_image_folder(tmp_path)
    assert [len(s.read().images) for s in scan.studies] == [6, 6]
    assert not scan.audit_entries


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("Control", "Tumour"), "tumour"),
        (("healthy", "ill"), "ill"),
        (("No Stroke", "Stroke"), "stroke"),
        (("nostroke", "stroke"), "stroke"),
        (("NonStroke", "Stroke"), "stroke"),
        (("negative", "positive"), "positive"),
        (("Nodule", "Normal"), "nodule"),
    ],
)
def test_the_positive_class_is_the_other_one(tmp_path, names, label):
    for number, name in enumerate(names):
        picture(tmp_path / name / f"{number} (1).png")
    assert index_image_folder(tmp_path).label_names == [label]


def test_more_classes_are_a_label_each(tmp_path):
    for number, name in enumerate(["Bleeding", "Ischemia", "Normal"]):
        picture(tmp_path / name / f"{number} (1).png")
    scan = index_image_folder(tmp_path)
    assert scan.label_names == ["bleeding", "ischemia"]
    assert [list(s.labels.values()) for s in scan.studies] == [[1, 0], [0, 1], [0, 0]]
    assert index_image_folder(tmp_path, positive="Ischemia").label_names == ["ischemia"]


def test_positive_must_be_told_where_no_name_says_it(tmp_path):
    for number, name in enumerate(("left", "right")):
        picture(tmp_path / name / f"{number} (1).png")
    with pytest.raises(InputError, match=r"positive=.*left, right"):
        index_image_folder(tmp_path)
    with pytest.raises(InputError, match="'up' is not a class folder; valid: left, right"):
        index_image_folder(tmp_path, positive="up")
    assert index_image_folder(tmp_path, positive="left").label_names == ["left"]


def test_a_number_in_two_classes_is_asked_for(classes):
    picture(classes / "Normal" / "58 (1).png")
    with pytest.raises(InputError, match="Normal/58 and Stroke/58 may be one patient or two; give"):
        index_image_folder(classes)
    same = index_image_folder(classes, same_numbers="same")
    assert [s.patient for s in same.studies if s.source.endswith("/58")] == ["58", "58"]
    assert where(same, "patient in several classes") == ["Normal/58"]
    different = index_image_folder(classes, same_numbers="different")
    assert [s.patient for s in different.studies] == ["Normal/7", "Normal/58", "Stroke/58"]
    assert not where(different, "patient in several classes")
    with pytest.raises(InputError, match="same_numbers='both' is unknown; valid: same, different"):
        index_image_folder(classes, same_numbers="both")


def test_another_class_in_capitals_does_not_get_the_positive_label(classes):
    picture(classes / "stroke" / "9 (1).png")
    with pytest.raises(InputError, match="differ only in capitals"):
        index_image_folder(classes, positive="Stroke")


@pytest.mark.parametrize("other", ["\u00e9 (2)", " e\u0301 (2)"])
def test_two_spellings_of_a_patient_s_name_are_refused(classes, other):
    picture(classes / "Stroke" / "e\u0301 (1).png")
    picture(classes / "Stroke" / f"{other}.png")
    with pytest.raises(InputError, match="name one patient in two spellings"):
        index_image_folder(classes)


def test_what_does_not_fit_is_named(classes):
    (classes / "Stroke" / "notes.txt").write_text("x")
    (classes / "Empty").mkdir()
    picture(classes / "Stroke" / "scout.png")
    picture(classes / "loose (1).png")
    picture(classes / "Stroke" / "deep" / "58 (3).png")
    picture(classes / "Stroke" / "58_2.png")
    scan = index_image_folder(classes)
    assert set(where(scan, "odd file")) == {
        "Stroke/notes.txt",
        "Stroke/scout.png",
        "loose (1).png",
        "Stroke/deep/58 (3).png",
    }
    assert where(scan, "empty folder") == ["Empty"]
    assert where(scan, "slice number given twice") == ["Stroke/58_2.png"]
    assert where(scan, "gap in slice numbers") == ["Normal/7", "Stroke/58"]


def test_symbolic_links_out_of_the_source_are_left_out(classes, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    picture(outside / "secret.png")
    (classes / "Stroke" / "9 (1).png").symlink_to(outside / "secret.png")
    (classes / "Stroke" / "link").symlink_to(outside)
    (classes / "Stroke" / "loop (1).png").symlink_to("loop (1).png")
    (classes / "Stroke" / "60 (1).png").symlink_to(classes / "Stroke" / "58 (1).png")
    scan = index_image_folder(classes)
    assert kinds(scan)["symbolic link out of the source"] == 3
    assert "Stroke/60" in {s.source for s in scan.studies}


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes are a matter of POSIX")
def test_a_name_that_is_not_unicode_is_named(classes):
    try:
        (classes / "Stroke" / os.fsdecode(b"\xff (1).png")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes only Unicode names")
    assert where(index_image_folder(classes), "odd file") == ["Stroke/\\udcff (1).png"]


def test_unreadable_slices_are_findings_and_the_others_remain(classes):
    (classes / "Stroke" / "58 (2).png").write_bytes(b"")
    slices = index_image_folder(classes).studies[1].read()
    assert len(slices.images) == 2
    assert [(f.kind, f.where) for f in slices.audit_entries] == [
        ("unreadable image", "Stroke/58 (2).png")
    ]


def test_a_study_without_one_readable_slice(classes):
    for number in (1, 2, 10):
        (classes / "Stroke" / f"58 ({number}).png").write_bytes(b"not a picture")
    with pytest.raises(UnreadableStudy) as error:
        index_image_folder(classes).studies[1].read()
    assert len(error.value.audit_entries) == 3


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        index_image_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="two or more class folders"):
        index_image_folder(tmp_path)


def test_folders_that_exclude_each_other_are_classes(classes):
    picture(classes / "no tumour" / "9 (1).png")
    scan = index_image_folder(classes, classes="folder", ordered=["no tumour", "Normal", "Stroke"])
    assert scan.label_names == ["no tumour", "Normal", "Stroke"]
    assert (scan.classes.column, scan.classes.ordered) == ("folder", True)
    assert {s.source: list(s.labels.values()) for s in scan.studies} == {
        "no tumour/9": [1, 0, 0],
        "Normal/7": [0, 1, 0],
        "Stroke/58": [0, 0, 1],
    }
    scan = index_image_folder(classes, classes="folder")
    assert scan.classes.outputs == "classes"
    assert scan.label_names == ["no tumour", "Normal", "Stroke"]
    assert index_image_folder(classes).label_names == ["stroke"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "diagnosis"}, "'diagnosis' is a column of a table: give labels, a CSV"),
        ({"classes": "folder", "positive": "Stroke"}, "positive makes a label of one folder"),
        ({"ordered": "Normal,Stroke"}, "ordered is the order of classes; give classes='folder'"),
        (
            {"classes": "folder", "ordered": "Normal,Other"},
            "ordered names Normal, Other, and not Stroke",
        ),
    ],
)
def test_options_of_class_folders_that_make_no_sense(classes, options, message):
    with pytest.raises(InputError, match=message):
        index_image_folder(classes, **options)


def test_a_folder_that_is_no_name_of_a_class(classes):
    picture(classes / "=1+1" / "9 (1).png")
    with pytest.raises(InputError, match="the folder '=1\\+1' is no name of a class: it begins"):
        index_image_folder(classes, classes="folder")


# ---------------------------------------------------------------------------------- patient layout


def test_patients_with_labels(patients):
    scan = index_image_folder(patients)
    assert scan.label_names == ["bleed", "mass"]
    assert [s.source for s in scan.studies] == ["a1", "a2", "a10"]
    assert scan.studies[0].files == ("a1/1.png", "a1/2.png", "a1/10.png")
    assert scan.studies[1].labels["bleed"] == 0
    assert math.isnan(scan.studies[1].labels["mass"])
    assert not scan.audit_entries
    assert ("labels.csv", 43) in scan.listing


def test_nested_images_in_natural_order(patients):
    picture(patients / "a1" / "series 2" / "1.png")
    picture(patients / "a1" / "series 10" / "1.png")
    files = index_image_folder(patients).studies[0].files
    assert files[-2:] == ("a1/series 2/1.png", "a1/series 10/1.png")


def test_patients_and_labels_that_do_not_meet(patients):
    picture(patients / "a3" / "1.png")
    (patients / "a4").mkdir()
    (patients / "labels.csv").write_text(
        "patient_id,bleed\na1,1\na2,\na10,0\na4,1\nghost,1\nghost,1\n"
    )
    scan = index_image_folder(patients)
    assert [s.source for s in scan.studies] == ["a1", "a10"]
    assert where(scan, "patient without label") == ["a2", "a3"]
    assert where(scan, "patient without images") == ["a4"]
    assert where(scan, "label for an unknown patient") == ["labels line 6"]
    assert where(scan, "row given twice") == ["labels line 7"]


def test_splits_and_column_names(patients):
    table = patients / "labels.csv"
    table.write_text("ID;Split;bleed\na1;Train;1\na2;val;0\na10;;0\n", encoding="utf-8-sig")
    studies = index_image_folder(patients).studies
    assert [s.split for s in studies] == ["train", "validation", None]


def test_columns_picks_the_labels(patients):
    (patients / "labels.csv").write_text("patient,age,bleed\na1,77,1\na2,50,0\n")
    with pytest.raises(InputError, match="line 2, column 'age' is not 0, 1 or empty"):
        index_image_folder(patients)
    assert index_image_folder(patients, columns=["bleed"]).label_names == ["bleed"]
    with pytest.raises(InputError, match="no label column weight; its columns: patient, age"):
        index_image_folder(patients, columns=["weight"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,bleed,split\na1,1,train\na1,1,test\n", "lines 2 and 3 put one patient in two"),
        ("patient,bleed\na1,1\na1,0\n", "lines 2 and 3 give one patient two labels"),
        ("patient,bleed,split\na1,1,later\n", "line 2: split is none of"),
        ("patient,bleed\na1,1,1\n", "line 2 has 3 values for 2 columns"),
        ("patient,bleed\n,1\n", "line 2 has no value in column 'patient'"),
        ("patient,bleed\nz1,1\n", "no folder of .* has the name of a patient"),
        ("patient\na1\n", "needs a header"),
        ("", "needs a header"),
    ],
)
def test_bad_labels_are_one_line(patients, text, message):
    (patients / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        index_image_folder(patients)
    assert "\n" not in str(error.value)
    assert "a1" not in str(error.value).replace(str(patients), "")


def test_settings_of_the_other_layout_are_refused(patients):
    with pytest.raises(InputError, match="valid: class, patient"):
        index_image_folder(patients, layout="flat")
    with pytest.raises(InputError, match="positive is for layout=class"):
        index_image_folder(patients, positive="a1")
    with pytest.raises(InputError, match="takes its labels from the folders"):
        index_image_folder(patients, layout="class", labels=patients / "labels.csv")
    with pytest.raises(InputError, match="does not exist"):
        index_image_folder(patients, labels=patients / "other.csv")


@given(st.lists(st.text(max_size=8)))
def test_natural_order_is_total(names):
    ordered = sorted(names, key=natural_key)
    assert sorted(dict.fromkeys(names[::-1]), key=natural_key) == list(dict.fromkeys(ordered))


def test_natural_order_reads_numbers():
    names = ["58 (10)", "6 (1)", "58 (9)", "a", "10a"]
    assert sorted(names, key=natural_key) == ["6 (1)", "10a", "58 (9)", "58 (10)", "a"]


def test_a_slice_number_of_ten_digits_costs_no_memory(tmp_path):
    for name in ("S0 (1).png", "S0 (4000000000).png"):
        picture(tmp_path / "Stroke" / name)
    picture(tmp_path / "Normal" / "N0 (1).png")
    audit_entries = index_image_folder(tmp_path).audit_entries
    assert [f.detail for f in audit_entries if f.kind == "gap in slice numbers"] == [
        "3999999998 missing: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..."
    ]


def test_a_slice_number_of_twenty_digits_is_one_entry(tmp_path):
    for name in ("S0 (1).png", f"S0 ({10**20}).png"):
        picture(tmp_path / "Stroke" / name)
    picture(tmp_path / "Normal" / "N0 (1).png")
    (entry,) = index_image_folder(tmp_path).audit_entries
    assert entry.detail.startswith(f"{10**20 - 2} missing: 2, 3, 4")


def test_images_are_counted_before_they_are_read(classes, monkeypatch):
    monkeypatch.setattr(picture_study, "MOST_SLICES", 2)
    monkeypatch.setattr(picture_study, "_read_bytes", lambda path: pytest.fail("was read"))
    with pytest.raises(UnreadableStudy, match="3 images; a study has at most 2"):
        index_image_folder(classes).studies[0].read()


def test_folders_may_lie_deep(patients):
    deep = patients / "a1"
    for _ in range(1200):
        deep = deep / "d"
        deep.mkdir()
    picture(deep / "11.png")
    try:
        study = index_image_folder(patients).studies[0]
        assert len(study.files) == 4
        assert len(study.read().images) == 4
    finally:  # what clears pytest's folders goes down one call a folder
        (deep / "11.png").unlink()
        for _ in range(1200):
            deep.rmdir()
            deep = deep.parent
