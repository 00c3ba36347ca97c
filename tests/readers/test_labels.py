"""Tables of labels: what is no header, what is one id in two spellings, what is said of whom."""

from __future__ import annotations

import pytest

from medseq_tf.errors import InputError
from medseq_tf.readers.labels import read_labels


@pytest.fixture
def table(tmp_path):
    def read(text, **options):
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding="utf-8")
        return read_labels(path, **options)

    return read


@pytest.mark.parametrize(
    "text",
    [
        "roe,1\ndoe,0\n",
        "roe,1,0\ndoe,0,1\n",
        "roe;1;train\ndoe;0;test\n",
        "roe,,nan\ndoe,0,1\n",
        "roe,train\ndoe,test\n",
        "roe,61,F,1\ndoe,50,M,0\n",
        "roe,1.0,\ndoe,0.0,1\n",
        "\ufeff17\t0\n18\t1\n",
    ],
)
def test_a_first_line_of_data_is_no_header(table, text):
    with pytest.raises(InputError, match="has no header line") as error:
        table(text)
    assert "roe" not in str(error.value)


@pytest.mark.parametrize(
    "header", ["patient_id,2019,2020", "ID,0,1", "name,stroke,bleed", "who,x1,x2"]
)
def test_names_are_a_header(table, header):
    read = table(f"{header}\nroe,1,0\ndoe,0,1\n")
    assert read.names == header.split(",")[1:]
    assert read.lines == {"roe": 2, "doe": 3}


def test_a_first_line_that_may_be_a_patient_s_is_not_shown(table):
    with pytest.raises(InputError, match="line 2, column 2 is not 0, 1 or empty") as error:
        table("roe,Jane Roe,sick\ndoe,John Doe,well\n")
    with pytest.raises(InputError, match=r"no label column x; its columns: 3, none of them called"):
        table("roe,Jane Roe,sick\ndoe,John Doe,well\n", columns=["x"])
    assert "Roe" not in str(error.value)


@pytest.mark.parametrize(("one", "other"), [("7", "7 "), ("e\u0301", "\u00e9"), (" a/b", "a/b")])
def test_two_spellings_of_an_id_are_refused_with_both_lines(table, one, other):
    with pytest.raises(InputError, match="lines 2 and 3 have one key in two spellings"):
        table(f"id,x\n{one},1\n{other},1\n")
    with pytest.raises(InputError, match="lines 2 and 3 have one patient in two spellings"):
        table(f"file,id,x\n1,{one},1\n2,{other},1\n", study_columns=["file"])


def test_ids_are_text(table):
    read = table("id,x\n007,1\n7,0\n a ,1\nA,0\n")
    assert {key: row.labels["x"] for key, row in read.rows.items()} == {
        "007": 1,
        "7": 0,
        "a": 1,
        "A": 0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,id,x\na,p,1\na,q,1\n", "lines 2 and 3 give one study two patients"),
        ("file,id,x\na,p,1\nb,,1\n", "line 3 has no value in column 'id'"),
        ("Unnamed: 0,name,x\n0,a,1\n", "needs a header of distinct column names: a patient column"),
        ("split,name,x\ntrain,a,1\n", "needs a header of distinct column names: a patient column"),
        ("id,x,x \n1,1,1\n", "needs a header of distinct column names"),
    ],
)
def test_what_does_not_say_whose_it_is_is_refused(table, text, message):
    with pytest.raises(InputError, match=message):
        table(text, study_columns=["file"])


def test_other_names_of_patients_are_no_labels(table):
    assert table("patient_id,id,patient,x\na,0,1,1\nb,1,0,0\n").names == ["x"]
    assert table("patient_id,id,x\na,0,1\nb,1,0\n", columns=["id"]).names == ["id"]
