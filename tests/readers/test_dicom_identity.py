"""Which row is whose: one rule for the whole table, and every doubt is shown."""

from __future__ import annotations

import pytest
from dicom_writer import (
    series_of,
    stack,
    write,
    write_stack,
)

from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.index import index_dicom


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("study_instance_uid", "1.2.3"),
        ("accession_number", "A1"),
        ("patient_id", "patient-1"),
        ("folder", "folder7"),
        ("patient", "folder7"),
        ("study", "folder7"),
        ("study", "A1"),
        ("id", "1.2.3"),
        ("who", "patient-1"),
    ],
)
def test_keys_of_the_labels(tmp_path, column, key):
    values, positions = stack()
    write_stack(tmp_path / "folder7" / "deep", values, positions, t00080050=("SH", "A1"))
    (tmp_path / "folder7" / "deep" / "labels.csv").unlink()
    path = tmp_path / "labels.csv"
    path.write_text(f"{column},x,split\n{key},1,val\nnobody,0,train\n")
    scan = index_dicom(tmp_path)
    assert [(s.patient, s.labels, s.split) for s in scan.studies] == [
        ("folder7" if column == "patient" else "patient-1", {"x": 1.0}, "validation")
    ]
    rule = scan.resolved["match"]
    taken = [] if rule == column else [("labels matched", f"by {rule}")]
    assert [(f.kind, f.detail) for f in scan.audit_entries] == [
        *taken,
        ("label for an unknown patient", ""),
    ]
    assert scan.audit_entries[-1].where == "labels line 3"


def two_patients(folder, header, *rows):
    """Patient 17, whose accession number is 23, and patient 23, whose is 40."""
    values, positions = stack()
    files = series_of(values, positions, 1, t00100020="17", t00080050=("SH", "23"))
    files += series_of(
        values, positions, 2, t00100020="23", t00080050=("SH", "40"), t0020000D="1.2.4"
    )
    write(folder, *files)
    (folder / "labels.csv").write_text("\n".join([f"{header},x", *rows]))
    return folder


def test_an_accession_number_is_no_patient_id(tmp_path):
    scan = index_dicom(two_patients(tmp_path, "patient_id", "17,0", "23,1"))
    assert {s.patient: s.labels["x"] for s in scan.studies} == {"17": 0, "23": 1}
    scan = index_dicom(two_patients(tmp_path, "accession_number", "23,0", "40,1"))
    assert {s.patient: s.labels["x"] for s in scan.studies} == {"17": 0, "23": 1}


@pytest.mark.parametrize("header", ["id", "who"])
def test_an_id_that_may_be_two_things_is_asked_for(tmp_path, header):
    folder = two_patients(tmp_path, header, "17,0", "23,1")
    with pytest.raises(
        InputError, match=r"--match accession_number or --match patient_id"
    ) as error:
        index_dicom(folder)
    assert "labels line 3 by accession_number and line 2 by patient_id" in str(error.value)
    for match, labels in (("patient_id", {"17": 0, "23": 1}), ("accession_number", {"17": 1})):
        scan = index_dicom(folder, match=match)
        assert {s.patient: s.labels["x"] for s in scan.studies} == labels
    with pytest.raises(InputError, match="match='name' is unknown; valid: study_instance_uid"):
        index_dicom(folder, match="name")


def test_the_labels_may_join_a_patient_s_studies_but_not_part_them(tmp_path):
    folder = two_patients(tmp_path, "accession_number,patient_id", "23,p,0", "40,p,1")
    scan = index_dicom(folder)
    assert [s.patient for s in scan.studies] == ["p", "p"]
    assert "patients joined by the labels" in [f.kind for f in scan.audit_entries]
    values, positions = stack()
    third = series_of(
        values, positions, 3, t00100020="17", t0020000D="1.2.5", t00080050=("SH", "41")
    )
    write(folder / "more", *third)
    (folder / "labels.csv").write_text("accession_number,patient_id,x\n23,p,0\n41,q,1\n")
    with pytest.raises(InputError, match="one PatientID, and labels lines 2 and 3 give them two"):
        index_dicom(folder)


def test_two_patients_do_not_share_a_row(tmp_path):
    folder = two_patients(tmp_path / "ward", "folder", "ward,1")
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="of two patients and both labels line 2"):
        index_dicom(tmp_path)


def test_a_study_without_patient_id_is_said(tmp_path):
    values, positions = stack()
    write(tmp_path, *series_of(values, positions, 1, t00100020=""))
    (tmp_path / "labels.csv").write_text("study_instance_uid,x\n1.2.3,1\n")
    scan = index_dicom(tmp_path)
    assert [study.patient for study in scan.studies] == ["1.2.3"]
    assert [f.kind for f in scan.audit_entries] == ["study without PatientID"]


def test_one_patient_in_two_splits_is_refused(tmp_path, rng):
    values, positions = stack()
    files = series_of(values, positions, 1) + series_of(values, positions, 2, t0020000D="1.2.4")
    write(tmp_path, *files)
    (tmp_path / "labels.csv").write_text("study,x,split\n1.2.3,1,train\n1.2.4,1,test\n")
    with pytest.raises(InputError, match="lines 2 and 3 put one patient in two splits"):
        index_dicom(tmp_path)
