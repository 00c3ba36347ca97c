"""What a data set keeps of the columns that are no labels, and what it does not."""

from __future__ import annotations

import json
from datetime import date

import numpy as np
import pandas as pd
import pytest
from image_folders import make, save

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom, write_image_folder, write_volumes

TABLE = """id,x,hospital,when,age,sex
p0,1,North,2024-01-31,61,F
p1,0,South,1987-06-05,,M
p2,1,North,2024-01-31,70.5,
p3,0,,1999-01-01,50,M
p4,,East,1900-01-01,50,M
"""
ASKED = {"site": "hospital", "date": "when", "covariates": ["age", "sex"]}


@pytest.fixture
def source(tmp_path):
    """Five patients, of whom the last has no label; their table, and one of labels alone."""
    for patient in range(5):
        save(tmp_path / "source" / f"p{patient}" / "1.png", np.eye(9, dtype=np.uint8) * patient)
    (tmp_path / "table.csv").write_text(TABLE)
    rows = [line.split(",")[:2] for line in TABLE.splitlines()]
    (tmp_path / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    return tmp_path


def prepared(place, name, table="table.csv", **options):
    folder = place / "source"
    return make("image-folder", folder, out=place / name, labels=place / table, **options)


def known(column):
    return [None if pd.isna(value) else value for value in column]


def test_what_is_kept(source):
    data = prepared(source, "out", **ASKED)
    assert data.label_names == ["x"]
    assert known(data.studies["site"]) == ["North", "South", "North", None]
    assert known(data.studies["date"]) == [2, 0, 2, 1], "ranks of the studies that have a label"
    assert known(data.studies["covariate.age"]) == [61, None, 70.5, 50]
    assert known(data.studies["covariate.sex"]) == ["F", "M", None, "M"]
    assert data.info["columns"] == {
        "site": {"column": "hospital", "names": "keep"},
        "date": {"column": "when"},
        "covariates": {
            "age": {"kind": "number"},
            "sex": {"kind": "category", "categories": ["F", "M"]},
        },
    }
    assert data.covariates == data.info["columns"]["covariates"]
    found = {e["where"]: e["detail"] for e in data.audit["entries"] if "column" in e["kind"]}
    assert found == dict.fromkeys(["site", "covariate.age", "covariate.sex"], "in 1 of 4 studies")


def test_no_date_and_no_hashed_name_is_kept_anywhere(source):
    data = prepared(source, "out", **ASKED, site_names="hash")
    assert data.studies["site"].dropna().str.fullmatch("site-[0-9a-f]{8}").all()
    assert data.studies["site"].nunique() == 2
    files = [file for file in data.path.rglob("*") if file.is_file()]
    written = [file.read_bytes().decode("latin-1") for file in files] + [data.studies.to_csv()]
    days = [date.fromisoformat(day) for day in ("2024-01-31", "1987-06-05", "1999-01-01")]
    secrets = [form for day in days for form in (str(day), f"{day:%Y%m%d}", str(day.toordinal()))]
    for secret in ("North", "South", "table.csv", *secrets):
        assert not any(secret in text for text in written)


def test_a_column_of_nothing_but_missing_values_in_the_studies_that_are_left(source):
    (source / "table.csv").write_text("id,x,c,d,n\np0,1,,,\np1,0,,,\np4,,u,5,6\n")
    data = prepared(source, "out", site="c", date="d", covariates="n")
    assert known(data.studies["site"]) == known(data.studies["date"]) == [None, None]
    assert known(Prepared.load(data.path).studies["covariate.n"]) == [None, None]


def test_a_data_set_without_them_is_as_it_was(source):
    plain = prepared(source, "plain", "labels.csv")
    assert "columns" not in plain.info
    assert not set(plain.studies) & {"site", "date"}
    participants = source / "table.csv"
    more = prepared(source, "more", "labels.csv", participants=participants, **ASKED)
    shared = list(plain.studies)
    pd.testing.assert_frame_equal(more.studies[shared], plain.studies)
    assert more.info["shards"] == plain.info["shards"]
    assert more.fingerprint != plain.fingerprint
    assert more.info["preparation"]["options"]["participants"] == "CSV"


def test_the_fingerprint_follows_what_is_kept(source, monkeypatch):
    def fingerprint(name, old="", new="", **options):
        (source / "table.csv").write_text(TABLE.replace(old, new))
        return prepared(source, name, columns=["x"], **{**ASKED, **options}).fingerprint

    first = fingerprint("a")
    assert fingerprint("b", "2024-01-31", "2024-02-01") == first, "the order is the same"
    others = [
        fingerprint("c", "1987-06-05", "2030-01-01"),
        fingerprint("d", "South", "North"),
        fingerprint("e", "70.5", "70"),
        fingerprint("f", covariates="age"),
    ]
    assert len({first, *others}) == 5
    hashed = fingerprint("g", site_names="hash")
    monkeypatch.setenv("MEDSEQ_TF_SALT", "pepper")
    assert fingerprint("h", site_names="hash") == hashed
    sites = [Prepared.load(source / name).studies["site"].dropna() for name in "gh"]
    assert set(sites[0]).isdisjoint(sites[1])


def test_tables_in_the_source_are_no_odd_files(source):
    for name in ("table.csv", "labels.csv"):
        (source / name).rename(source / "source" / name)
    folder = source / "source"
    options = {"labels": folder / "labels.csv", "participants": folder / "table.csv"}
    data = make("image-folder", folder, out=source / "out", site="hospital", **options)
    assert "odd file" not in data.audit["counts"]


def test_participants_in_a_source_of_dicom_or_volumes_are_no_odd_file(tmp_path):
    cohort = DemoCohort(patients=2, size=16, slices=(3, 4))
    for reader, write in (("dicom", write_dicom), ("volumes", write_volumes)):
        folder = write(cohort, tmp_path / reader)
        table = folder / "participants.tsv"
        table.write_text("participant_id\tsite\npatient-0001\tu\npatient-0002\tv\n")
        options = {"site": "site", "participants": table}
        data = make(reader, folder, out=tmp_path / f"{reader} out", **options)
        assert sorted(data.studies["site"]) == ["u", "v"]
        assert "odd file" not in data.audit["counts"]
        plain = make(reader, folder, out=tmp_path / f"{reader} plain")
        assert plain.audit["counts"]["odd file"] == 1


def test_a_patient_s_studies_may_be_of_two_sites(tmp_path):
    cohort = DemoCohort(patients=3, size=16, slices=(3, 4))
    folder = write_volumes(cohort, tmp_path / "source")
    rows = [
        "file,patient,x,where",
        "patient-0001,a,1,u",
        "patient-0002,a,0,v",
        "patient-0003,b,0,u",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = make(
        "volumes", folder, out=tmp_path / "out", labels=tmp_path / "labels.csv", site="where"
    )
    assert list(data.studies["site"]) == ["u", "v", "u"]
    assert data.studies["patient_id"].nunique() == 2


def test_numbers_that_one_name_makes_names_are_said(source):
    table = (source / "table.csv").read_text().replace("1999-01-01,50", "1999-01-01,>89")
    (source / "table.csv").write_text(table)
    data = prepared(source, "mixed", **ASKED)
    assert data.covariates["age"]["categories"] == ["50", "61", "70.5", ">89"]
    (entry,) = [e for e in data.audit["entries"] if e["kind"] == "column of numbers and names"]
    assert entry["where"] == "covariate.age"
    assert entry["detail"] == "all are names because of >89; leave unknown numbers empty"


def test_participants_of_class_folders(source):
    for patient in range(4):
        name = f"{'ab'[patient % 2]}/{patient} (1).png"
        save(source / "classes" / name, np.eye(9, dtype=np.uint8) * patient)
    (source / "who.csv").write_text("id,site\n0,u\n1,v\n2,u\n9,v\n")
    options = {"classes": "folder", "site": "site", "participants": source / "who.csv"}
    data = make("image-folder", source / "classes", out=source / "out", **options)
    sites = dict(zip(data.studies["source"], known(data.studies["site"]), strict=True))
    assert sites == {"a/0": "u", "a/2": "u", "b/1": "v", "b/3": None}
    assert {(e["kind"], e["where"]) for e in data.audit["entries"]} == {
        ("patient without row", "b/3"),
        ("row for an unknown patient", "participants line 5"),
        ("column with missing values", "site"),
    }
    with pytest.raises(InputError, match="no table has the column site; give participants"):
        make("image-folder", source / "classes", out=source / "no", positive="a", site="site")


def test_every_reader_reads_the_same_of_a_table(tmp_path):
    cohort = DemoCohort(patients=6, size=16, slices=(3, 4), kind="grades", sites=2)
    settings = {"patients": 6, "size": 16, "slices": (3, 4), "kind": "grades", "sites": 2}
    demo = make("demo", out=tmp_path / "demo", **settings)
    sources = {
        "image-folder": write_image_folder(cohort, tmp_path / "png", "patient"),
        "volumes": write_volumes(cohort, tmp_path / "nii", extension=".nii"),
        "dicom": write_dicom(cohort, tmp_path / "dicom"),
    }
    names = ["site", "date", "covariate.age", "covariate.sex", *map("label.{}".format, GRADES)]
    wanted = demo.studies[names].map(lambda value: None if pd.isna(value) else value)
    options = {"classes": "grade", "ordered": GRADES, "covariates": "age,sex"}
    for reader, folder in sources.items():
        out = tmp_path / "out" / reader
        data = make(reader, folder, out=out, site="site", date="date", **options)
        found = data.studies[names].map(lambda value: None if pd.isna(value) else value)
        if reader == "dicom":  # studies are in the order of their hashes
            assert sorted(map(repr, found.values)) == sorted(map(repr, wanted.values))
        else:
            pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
        assert data.info["columns"] == demo.info["columns"]
        assert data.classes == demo.classes


GRADES = ["mild", "moderate", "severe"]


def test_a_data_set_that_lacks_a_column_it_names_is_refused(source):
    data = prepared(source, "out", **ASKED)
    file = data.path / "dataset.json"
    info = json.loads(file.read_text())
    info["columns"]["covariates"]["height"] = {"kind": "number"}
    file.write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"names columns or shards that studies\.parquet does not"):
        Prepared.load(data.path)
