"""Tables of labels: what is no header, what is one id in two spellings, what is said of whom."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.readers.labels import read_labels
from medseq_tf.readers.matching import alike
from medseq_tf.readers.names import by_value, normal_name, what_is_wrong
from medseq_tf.readers.table import is_unknown


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


# ---------------------------------------------------------------------------------------- classes


def named(table, text, **options):
    """Each key's class by name; None where it is unknown."""
    read = table(text, classes="dx", **options)
    assert read.names == list(read.classes.names)
    for row in read.rows.values():
        values = list(row.labels.values())
        assert list(row.labels) == read.names
        assert sum(values) == 1 or all(map(math.isnan, values))
    return {
        key: next((name for name, value in row.labels.items() if value == 1), None)
        for key, row in read.rows.items()
    }


def test_a_column_of_names_becomes_classes_in_alphabetical_order(table):
    text = "id,dx,age\na, glioma ,61\nb,Meningioma,50\nc,glioma,3\nd,,4\ne,N/A,5\nf,nan,6\n"
    read = table(text, classes="dx")
    assert read.classes.names == ("glioma", "Meningioma")
    assert (read.classes.column, read.classes.ordered) == ("dx", False)
    assert list(named(table, text).values()) == ["glioma", "Meningioma", "glioma", None, None, None]
    assert read.rows["d"].is_unknown


def test_numbers_are_classes_in_order_of_their_values(table):
    text = "id,dx\na,10\nb,2.0\nc,2\nd,-1\ne,0.5\nf,10.0\n"
    assert table(text, classes="dx").classes.names == ("-1", "0.5", "2", "10")
    assert named(table, text) == {"a": "10", "b": "2", "c": "2", "d": "-1", "e": "0.5", "f": "10"}


def test_numbers_have_short_names(table):
    read = table("id,dx\na,1e300\nb,-0.0\nc,0\nd,1000000\n", classes="dx")
    assert read.names == ["0", "1000000", "1e+300"]


def test_grades_may_be_given_as_numbers(table):
    text = "id,dx\na,10\nb,2.0\nc,1e1\n"
    assert table(text, classes="dx", ordered=[10, 2]).names == ["10", "2"]
    assert table(text, classes="dx", ordered="2,10,1e1").names == ["2", "10"]


@pytest.mark.parametrize("ordered", ["low,middle,high", ["low", " middle", "high"]])
def test_grades_are_in_the_order_that_is_given(table, ordered):
    text = "id,dx\na,high\nb,low\nc,middle\n"
    read = table(text, classes="dx", ordered=ordered)
    assert read.classes.names == ("low", "middle", "high")
    assert read.classes.ordered
    assert named(table, text, ordered=ordered) == {"a": "high", "b": "low", "c": "middle"}


def test_a_grade_that_no_patient_has_is_a_class_all_the_same(table):
    read = table("id,dx\na,1\nb,3.0\n", classes="dx", ordered="0,1,2,3")
    assert read.classes.names == ("0", "1", "2", "3")
    assert read.rows["b"].labels == {"0": 0, "1": 0, "2": 0, "3": 1}
    assert table("id,dx\na,low\n", classes="dx", ordered="low,high").names == ["low", "high"]


def test_unicode_forms_of_a_name_are_one_class(table):
    text = "id,dx\na,\u00c4rger\nb,A\u0308rger\nc,mass\n"
    assert named(table, text) == {"a": "\u00c4rger", "b": "\u00c4rger", "c": "mass"}


def test_classes_in_other_kinds_of_csv(table):
    expected = {"a": "mass, left", "b": "bleed"}
    assert named(table, '\ufeffid;dx\r\na;"mass, left"\r\nb;bleed\r\n') == expected
    assert named(table, 'id,dx\na,"mass, left"\nb,bleed\nb,bleed\n') == expected
    assert named(table, "participant_id\tdx\na\tmass, left\nb\tbleed\n") == expected
    grades = named(table, 'id,dx\na,"mass, left"\nb,bleed\n', ordered='bleed,"mass, left"')
    assert grades == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,x\nb,x\n", "has one class, x; a model needs two or more"),
        ("a,\nb,\n", "has no known class; a model needs two or more"),
        ("a,Glioma\nb,glioma\nc,x\n", "holds 'Glioma' and 'glioma', which differ only in capital"),
        ("a,grade  2\nb,grade 2\nc,x\n", "'grade  2' and 'grade 2', which differ only in"),
        ("a,grade 02\nb,grade 2\nc,x\n", "'grade 02' and 'grade 2', which differ only in"),
        ("a,dx\nb,x\n", "has a class of the name of its column; rename one"),
        ("a,x\na,y\n", "lines 2 and 3 give one patient two labels"),
        ("a,=1+1\nb,y\n", "line 2, column 'dx' is no name of a class: it begins like a formula"),
        ("a,y\nb,@x\n", "line 3, column 'dx' is no name of a class: it begins like a formula"),
        ('a,"x\ny"\nb,y\n', "is no name of a class: it holds a line break or another"),
        ("a,\u202ex\nb,y\n", "is no name of a class: it holds a line break or another"),
        ("a,../x\nb,y\n", "is no name of a class: it reads like a path"),
        ("a,$\\frac$\nb,y\n", "is no name of a class: it holds two"),
        ("a,05.06.1987\nb,y\n", "line 2, column 'dx' is no name of a class: it is a date"),
        ("a,/etc/x\nb,y\n", "is no name of a class: it reads like a path"),
        ("a,..\\x\nb,y\n", "is no name of a class: it reads like a path"),
        (f"a,{'x' * 61}\nb,y\n", "is no name of a class: it has 61 characters, of 60 at most"),
    ],
)
def test_columns_that_are_no_classes_are_refused(table, rows, message):
    with pytest.raises(InputError, match=message) as error:
        table("id,dx\n" + rows, classes="dx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [62, 11])
def test_a_column_of_ids_or_measurements_is_no_class_column(table, rows):
    text = "id,dx\n" + "".join(f"{i},name{min(i, rows - 2)}\n" for i in range(rows))
    with pytest.raises(InputError, match=f"{rows - 1} different values in {rows} rows") as error:
        table(text, classes="dx")
    assert "name" not in str(error.value).replace("names of", "")


def test_many_classes(table):
    def text(count):
        return "id,dx\n" + "".join(f"{i},k{i % count}\n" for i in range(2 * count))

    assert len(table(text(100), classes="dx").names) == 100
    with pytest.raises(InputError, match="101 different values in 202 rows"):
        table(text(101), classes="dx")


@pytest.mark.parametrize(
    ("ordered", "message"),
    [
        ("low,high", "has the classes high, low, middle; ordered names low, high, and not middle"),
        ("low,middle,High", "ordered names low, middle, High, and not high"),
        ("low,middle,high,low", "name every class once, two or more"),
        ("low", "name every class once, two or more"),
        ("low,,high", "ordered: '' is no name of a class: it is empty"),
        ("low,Low,high", "ordered holds 'low' and 'Low', which differ only"),
    ],
)
def test_orders_that_do_not_fit_are_refused(table, ordered, message):
    with pytest.raises(InputError, match=message):
        table("id,dx\na,low\nb,middle\nc,high\n", classes="dx", ordered=ordered)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "dx", "columns": ["x"]}, "give one of the two"),
        ({"ordered": "a,b"}, "ordered is the order of classes; name their column with classes"),
        ({"classes": "grade"}, "has no class column grade; its columns: id, dx, x"),
        ({"classes": "id"}, "has no class column id; its columns: id, dx, x"),
    ],
)
def test_options_of_classes_that_make_no_sense(table, options, message):
    with pytest.raises(InputError, match=message):
        table("id,dx,x\na,u,1\nb,v,0\n", **options)


def test_a_column_of_text_without_classes_says_what_takes_it(table):
    with pytest.raises(InputError, match=r"is not 0, 1 or empty; .* --classes NAME"):
        table("id,dx\na,u\nb,v\n")


def test_the_first_line_is_not_shown_with_classes_either(table):
    with pytest.raises(InputError, match=r"has no class column dx; its columns: 2, none") as error:
        table("Jane Roe,sick\nJohn Doe,well\n", classes="dx")
    assert "Roe" not in str(error.value)


# ------------------------------------------------------------------------------------- all sorts

CELLS = st.one_of(
    st.sampled_from(
        [
            *("", "0", "1", "2.0", "n/a", "glioma", "Glioma", "mass, left", "x;y", "a/b", "../b"),
            *("label.x", "=1+1", "2024-01-31", "20240131", "1e400", "nan", "e\u0301", "\u00e9"),
        ]
    ),
    st.text(max_size=70),
)
OPTIONS = {
    "classes": st.sampled_from([None, "c", "d", "patient_id"]),
    "ordered": st.sampled_from([None, "0,1,2", "glioma,mass"]),
    "columns": st.sampled_from([None, ["c"], ["d", "e"]]),
    "site": st.sampled_from([None, "d"]),
    "site_names": st.sampled_from([None, "keep", "hash"]),
    "date": st.sampled_from([None, "e"]),
    "covariates": st.sampled_from([None, "c", ["e", "d"], "c,,d"]),
}


@given(
    header=st.sampled_from(["patient_id", "participant_id", "who"]),
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8),
    delimiter=st.sampled_from(",;\t"),
    start=st.sampled_from(["", "\ufeff"]),
    options=st.fixed_dictionaries(OPTIONS),
)
@settings(max_examples=400)
def test_a_table_of_all_sorts_is_read_or_refused_in_a_line_without_ids(
    tmp_path_factory, header, rows, delimiter, start, options
):
    path = tmp_path_factory.getbasetemp() / "sorts.csv"
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow([header, "c", "d", "e"])
    writer.writerows([f"ID-OF-{number}", *row] for number, row in enumerate(rows))
    path.write_text(start + text.getvalue(), encoding="utf-8", errors="replace", newline="")
    refusal = None
    try:
        read = read_labels(path, **options)
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.isprintable()
        assert "ID-OF-" not in refusal
        return
    assert len(read.rows) == len(rows)
    for row in read.rows.values():
        values = np.array(list(row.labels.values()))
        assert list(row.labels) == read.names
        if read.classes:
            assert (np.isin(values, (0, 1)).all() and values.sum() == 1) or np.isnan(values).all()
        assert list(row.others) == (read.columns.names if read.columns else [])
    for name in read.classes.names if read.classes else ():
        assert name.isprintable()
        assert 0 < len(name.strip()) == len(name) <= 60


NAMES = (
    st.text(max_size=60)
    .map(normal_name)
    .filter(lambda name: what_is_wrong(name) is None and not is_unknown(name) and name != "dx")
)


@given(
    names=st.lists(
        NAMES, min_size=2, max_size=6, unique_by=lambda name: alike("".join(name.split()))
    ),
    delimiter=st.sampled_from(",;\t"),
    order=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_names_that_are_some_come_back(tmp_path_factory, names, delimiter, order, data):
    path = tmp_path_factory.getbasetemp() / "names.csv"
    given_rows = [(f"p{number}", names[number % len(names)]) for number in range(2 * len(names))]
    order.shuffle(given_rows)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([("id", "dx"), *given_rows])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    read = read_labels(path, classes="dx")
    called = by_value(names) or {name: name for name in names}
    assert set(read.names) == set(called.values())
    for key, name in given_rows:
        row = read.rows[key].labels
        assert [other for other, value in row.items() if value] == [called[name]]
    if len(set(called.values())) == len(names):
        graded = read_labels(path, classes="dx", ordered=data.draw(st.permutations(names)))
        assert graded.classes.ordered
        assert set(graded.names) == set(read.names)
