"""Columns that are no labels: sites, dates, covariates, of the labels' table or of participants."""

from __future__ import annotations

import pytest

from medseq_tf.errors import InputError
from medseq_tf.readers.columns import OtherColumns
from medseq_tf.readers.labels import read_labels


@pytest.fixture
def table(tmp_path):
    def read(text, participants=None, **options):
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding="utf-8")
        if participants is not None:
            options["participants"] = tmp_path / "participants.tsv"
            options["participants"].write_text(participants, encoding="utf-8")
        return read_labels(path, **options)

    return read


def column(read, name):
    return {key: row.others[name] for key, row in read.rows.items()}


TEXT = """id,x,hospital,when,age,sex
a,1,North,2024-01-31,61,F
b,0,South,2023-12-01,50.5,M
c,1,North,,n/a,
d,0,,2024-01-31T08:15:00Z,70,M
"""
ALL = {"site": "hospital", "date": "when", "covariates": "age,sex"}


def test_columns_of_the_labels(table):
    read = table(TEXT, **ALL)
    assert read.names == ["x"]
    assert column(read, "site") == {"a": "North", "b": "South", "c": "North", "d": None}
    assert column(read, "covariate.age") == {"a": 61, "b": 50.5, "c": None, "d": 70}
    assert column(read, "covariate.sex") == {"a": "F", "b": "M", "c": None, "d": "M"}
    days = column(read, "date")
    assert days["a"] - days["b"] == 61
    assert days["a"] == days["d"]
    assert days["c"] is None
    assert read.columns.to_json() == {
        "site": {"column": "hospital", "names": "keep"},
        "date": {"column": "when"},
        "covariates": {
            "age": {"kind": "number"},
            "sex": {"kind": "category", "categories": ["F", "M"]},
        },
    }
    assert list(read.rows["a"].others) == read.columns.names


def test_without_them_nothing_is_other(table):
    read = table("id,x\na,1\nb,0\n")
    assert read.columns is None
    assert read.rows["a"].others == {}
    assert OtherColumns().to_json() == {}


def test_classes_beside_other_columns(table):
    read = table(TEXT, classes="sex", site="hospital", covariates=["age"])
    assert read.names == ["F", "M"]
    assert read.columns.names == ["site", "covariate.age"]


@pytest.mark.parametrize(
    ("days", "order"),
    [
        (["20240131", "20231201", "20240131"], [1, 0, 1]),
        (["20240131", "2023-12-01", "2024-01-31"], [1, 0, 1]),
        (["2020", "1999.5", "-3"], [2, 1, 0]),
        (["0", "10", "9"], [0, 2, 1]),
        (["20231201.0", "20240131.0", "20240131.0"], [0, 1, 1]),
        (["2024-01-31 23:59:59.5+02:00", "2024-01-31", "2024-02-01 0000"], [0, 0, 1]),
    ],
)
def test_dates_are_in_order(table, days, order):
    rows = "".join(f"{i},1,{day}\n" for i, day in enumerate(days))
    found = list(column(table("id,x,when\n" + rows, date="when"), "date").values())
    assert [sorted(set(found)).index(day) for day in found] == order


@pytest.mark.parametrize(
    ("days", "line"),
    [
        (["2024-01-31", "31.01.2024"], 3),
        (["31.01.2024", "2024-01-31"], 2),
        (["20240131", "20240231"], 3),
        (["20240131", "5"], 3),
        (["5", "2024-01-31"], 3),
        (["2024-13-01", "2024-01-31"], 2),
        (["inf", "5"], 2),
    ],
)
def test_a_date_that_is_none_is_named_by_its_line(table, days, line):
    rows = "".join(f"{i},1,{day}\n" for i, day in enumerate(days))
    with pytest.raises(InputError, match=f"line {line}, column 'when' is no date") as error:
        table("id,x,when\n" + rows, date="when")
    said = str(error.value).removesuffix("as 2024-01-31 or 20240131, or all as numbers")
    assert not any(day in said for day in days if len(day) > 5)


@pytest.mark.parametrize("age", ["61", "6.1e1", "-1", "0"])
def test_a_covariate_of_finite_numbers_is_a_number(table, age):
    read = table(f"id,x,age\na,1,{age}\nb,0,\n", covariates="age")
    assert read.columns.covariates == {"age": {"kind": "number"}}
    assert read.rows["a"].others == {"covariate.age": float(age)}


def test_another_covariate_is_a_category(table):
    read = table("id,x,scanner\na,1,1\nb,0, GE \nc,0,inf\nd,0,e\u0301\n", covariates="scanner")
    categories = ["1", "GE", "inf", "\u00e9"]
    assert read.columns.covariates["scanner"] == {"kind": "category", "categories": categories}
    assert column(read, "covariate.scanner")["b"] == "GE"


MANY = "id,x,c\n" + "".join(f"{i},1,k{i % 21}\n" for i in range(50))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (MANY, {"covariates": "c"}, "'c' is no number in line 2, and has 21 different values"),
        ("id,x,c\na,1,\nb,0,n/a\n", {"covariates": "c"}, "column 'c' has no value in any row"),
        ("id,x,c\na,1,\nb,0,n/a\n", {"site": "c"}, "column 'c' has no site in any row"),
        ("id,x,c\na,1,\nb,0,n/a\n", {"date": "c"}, "column 'c' has no date in any row"),
        ("id,x,c\na,1,M\nb,0,m\n", {"covariates": "c"}, "holds 'M' and 'm', which differ only"),
        ("id,x,c\na,1,A 1\nb,0,A  1\n", {"site": "c"}, "holds 'A 1' and 'A  1', which differ"),
        ("id,x,c\na,1,2024-01-31\nb,0,2024-01-30\n", {"covariates": "c"}, "holds dates, which"),
        ("id,x,c\na,1,20240131\nb,0,20240130\n", {"covariates": "c"}, "holds dates, which"),
        ("id,x,c\na,1,20240131\nb,0,20240130\nc,0,0\n", {"covariates": "c"}, "holds dates"),
        ("id,x,c\na,1,2024-01-31\nb,0,later\n", {"covariates": "c"}, "of a category: it is a date"),
        ("id,x,c\na,1,1/31/24\nb,0,later\n", {"covariates": "c"}, "of a category: it is a date"),
        ("id,x,c\na,1,=1\nb,0,u\n", {"site": "c"}, "no name of a site: it begins like a formula"),
        ("id,x,c\na,1,u\nb,0,v\n", {"site": "y"}, "has no column y to be a site, .*: id, x, c"),
        ("id,x,c\na,1,u\nb,0,v\n", {"site": "id"}, "has no column id to be a site"),
        ("id,patient,x\na,1,1\nb,0,0\n", {"site": "id"}, "has no column id to be a site"),
        ("id,x,c\na,1,u\nb,0,v\n", {"site": "c", "covariates": "c"}, "'c' is named twice"),
        ("id,x,c\na,1,1\nb,0,0\n", {"site": "c", "columns": ["c"]}, "'c' is a label, and named as"),
        ("id,x,c\na,1,1\nb,0,0\n", {"site": "c", "classes": "c"}, "'c' is a label, and named as"),
        ("id,x,c\na,1,u\na,1,v\nb,0,u\n", {"site": "c"}, "lines 2 and 3 give .* in column 'c'"),
        ("id,x\na,1\nb,0\n", {"site_names": "hash"}, "site_names says how sites are called"),
        ("id,x,c\na,1,1\nb,0,0\n", {"site": "c", "site_names": "x"}, "valid: keep, hash"),
        ("id,c\na,1\nb,0\n", {"site": "c"}, "has no label column; its columns: id, c"),
        ("id,x,c\na,1,1\nb,0,0\n", {"covariates": "a\rb"}, "is no list with commas, in one line"),
    ],
)
def test_columns_that_are_something_else_are_refused(table, text, options, message):
    with pytest.raises(InputError, match=message) as error:
        table(text, **options)
    assert "\n" not in str(error.value)


def test_a_first_line_that_may_be_a_patient_s_is_not_shown(table):
    with pytest.raises(InputError, match="its columns: 3, none of them called") as error:
        table("Jane Roe,x,c\nJohn Doe,1,u\n", site="hospital")
    with pytest.raises(InputError, match="line 2, column 3 is no date"):
        table("Jane Roe,x,c\nJohn Doe,1,u\n", date="c")
    assert "Roe" not in str(error.value)


def test_a_patient_of_two_sites_needs_rows_of_studies(table):
    rows = "1,a,1,u\n2,a,0,v\n3,b,0,u\n"
    read = table("file,id,x,c\n" + rows, study_columns=["file"], site="c")
    assert column(read, "site") == {"1": "u", "2": "v", "3": "u"}


# ------------------------------------------------------------------------------------ participants

LABELS = "id,dx\nsub-01,glioma\nsub-02,mass\nsub-03,glioma\n"
PARTICIPANTS = "participant_id\tage\tsex\nsub-02\t61\tF\nsub-01\tn/a\tM\nsub-9\t1\tM\nsub-9\t1\tM\n"


def test_participants_as_of_bids(table):
    read = table(LABELS, PARTICIPANTS, classes="dx", covariates="age,sex")
    assert column(read, "covariate.age") == {"sub-01": None, "sub-02": 61, "sub-03": None}
    assert column(read, "covariate.sex") == {"sub-01": "M", "sub-02": "F", "sub-03": None}
    entries = {(e.kind, e.where, e.detail) for e in read.audit_entries(read.rows)}
    assert entries == {
        ("patient without row", "labels line 4", "no row in the participants"),
        ("row for an unknown patient", "participants line 4", ""),
        ("row given twice", "participants line 5", ""),
    }


def test_one_table_may_be_both(table):
    read = table("participant_id\tdx\tage\nsub-01\tu\t5\nsub-02\tv\t6\n", classes="dx")
    assert read.key == "participant_id"
    again = table("participant_id\tdx\tage\ns\tu\t5\nt\tv\t6\n", classes="dx", covariates="age")
    assert column(again, "covariate.age") == {"s": 5, "t": 6}


def test_participants_are_matched_to_the_labels_patients(table):
    labels = "file,patient,x\n1,a,1\n2,a,0\n3,b,0\n"
    read = table(labels, "id,site\na,u\nb,v\n", study_columns=["file"], site="site")
    assert column(read, "site") == {"1": "u", "2": "u", "3": "v"}


@pytest.mark.parametrize(
    ("participants", "options", "message"),
    [
        ("id,c\nx,1\n", {"covariates": "c"}, "participants.tsv: no row is of a patient with a"),
        ("id,c\nsub-1,1\n", {"covariates": "c"}, "participants.tsv: no row is of a patient with a"),
        ("id,c\nsub-01,1\n", {}, "participants are read for their columns; name them"),
        ("id,c\nsub-01,1\n", {"covariates": "dx"}, "'dx' is a label, and named as"),
        ("id,c\nsub-01,1\nsub-01,2\n", {"covariates": "c"}, "tsv lines 2 and 3 give one patient"),
        ("", {"covariates": "c"}, "participants.tsv needs a header of distinct column names"),
    ],
)
def test_participants_that_do_not_fit_are_refused(table, participants, options, message):
    with pytest.raises(InputError, match=message):
        table(LABELS, participants, classes="dx", **options)


def test_participants_whose_key_is_in_doubt_are_refused(table):
    labels = "id,x\n1,1\n2,0\n3,0\n"
    with pytest.raises(InputError, match="of the participants may be its first column or another"):
        table(labels, "row,who,age\n1,2,5\n2,1,6\n3,3,7\n", covariates="age")


def test_participants_that_are_not_there(table, tmp_path):
    table(LABELS, classes="dx")
    with pytest.raises(InputError, match="does not exist; participants is a CSV or TSV"):
        read_labels(tmp_path / "labels.csv", classes="dx", site="c", participants="no.csv")
