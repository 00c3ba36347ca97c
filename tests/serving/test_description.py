"""What a model says of itself: read as written, and nonsense is none."""

from __future__ import annotations

import dataclasses
import json

import pytest
from small_models import COVARIATES

from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes
from medseq_tf.serving.description import Description

DESCRIPTION = Description(
    name="a run",
    labels=["a", "b"],
    thresholds={"a": 0.25, "b": 0.5},
    temperatures={"a": 1.5, "b": 1.0},
    modality="CT",
    unit="HU",
    bits=16,
    offset=-32768,
    size=64,
    aspect="stretch",
    most_slices=9,
    preparation={"reader": "volumes", "options": {"axis": "sagittal"}},
    members=5,
    fingerprint="ab" * 32,
    versions={"tensorflow": "2.21"},
)

GRADES = dataclasses.replace(
    DESCRIPTION,
    labels=["mild", "severe"],
    thresholds={},
    temperatures={"grade": 1.5},
    classes=Classes("grade", ("mild", "severe"), ordered=True),
    costs=[[0.0, 1.0], [5.0, 0.0]],
)


@pytest.mark.parametrize(
    "description", [DESCRIPTION, GRADES, dataclasses.replace(GRADES, costs=None)]
)
def test_a_description_is_read_as_written(description):
    assert Description.from_json(description.to_json()) == description
    assert Description.from_json(description.to_json().encode()) == description


def test_of_yes_no_labels_it_holds_what_version_0_2_wrote():
    assert list(json.loads(DESCRIPTION.to_json())) == [
        *("format_version", "name", "labels", "thresholds", "temperatures", "modality", "unit"),
        *("bits", "offset", "size", "aspect", "most_slices", "preparation", "members"),
        *("fingerprint", "versions", "operating_points"),
    ]


def test_of_classes_it_tells_their_column_order_temperature_and_costs():
    found = json.loads(GRADES.to_json())
    assert found["labels"] == ["mild", "severe"]
    assert found["classes"] == {"column": "grade", "ordered": True}
    assert found["temperatures"] == {"grade": 1.5}
    assert found["costs"] == [[0.0, 1.0], [5.0, 0.0]]
    assert "costs" not in json.loads(dataclasses.replace(GRADES, costs=None).to_json())


def test_covariates_are_told_in_the_model_s_order():
    description = dataclasses.replace(GRADES, covariates=COVARIATES)
    assert json.loads(description.to_json())["covariates"] == COVARIATES
    assert Description.from_json(description.to_json()) == description
    assert "covariates" not in json.loads(GRADES.to_json())
    for wrong in ([], [1], {"age": 1}, [{"name": "age"}], [COVARIATES[0]] * 2, "age"):
        values = {**json.loads(GRADES.to_json()), "covariates": wrong}
        with pytest.raises(ValueError, match="not the description"):
            Description.from_json(json.dumps(values))


def test_costs_are_read_by_the_names_of_the_classes(tmp_path):
    file = tmp_path / "costs.csv"
    file.write_text("true,severe,mild\nsevere,0,9\nmild,1,0\n")
    assert GRADES.with_costs(file).costs == [[0.0, 1.0], [9.0, 0.0]]
    with pytest.raises(InputError, match=r"costs are of classes .* predicts 2 yes/no labels"):
        DESCRIPTION.with_costs(file)


def test_one_nested_without_end_is_none():
    with pytest.raises(ValueError, match="not the description"):
        Description.from_json("[" * 200_000)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 9}', '{"format_version": 1}'])
def test_another_text_is_no_description(text):
    with pytest.raises(ValueError, match=r"description|Expecting value"):
        Description.from_json(text)
    with pytest.raises(ValueError, match="Extra data"):
        Description.from_json(dataclasses.replace(DESCRIPTION, name="x").to_json() + text + "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": []},
        {"labels": [1]},
        {"labels": "ab"},
        {"thresholds": {}},
        {"thresholds": {"a": None, "b": 0.5}},
        {"thresholds": {"a": float("nan"), "b": 0.5}},
        {"temperatures": {"a": 0.0, "b": 1.0}},
        {"temperatures": [1.0, 1.0]},
        {"modality": "PET"},
        {"size": 10**6},
        {"size": "64"},
        {"bits": 12},
        {"aspect": None},
        {"preparation": None},
        {"thresholds": {"a": 10**400, "b": 0.5}},
        {"temperatures": {"a": 10**400, "b": 1.0}},
        {"preparation": {"options": [1]}},
        {"preparation": {"options": {"extent": 3}}},
        {"preparation": {"options": {"extent": [0.1, None]}}},
        {"preparation": {"resolved": {"layout": ["patient"]}}},
        {"operating_points": ["a"]},
        {"operating_points": {"a": [0.5]}},
        {"unknown": 1},
    ],
)
def test_a_description_of_nonsense_is_none(changes):
    values = {**json.loads(DESCRIPTION.to_json()), "labels": ["a", "b"]}
    values |= {"thresholds": {"a": 0.5, "b": 0.5}, "temperatures": {"a": 1.0, "b": 1.0}}
    assert Description.from_json(json.dumps(values)).labels == ["a", "b"]
    with pytest.raises(ValueError, match="not the description"):
        Description.from_json(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["mild"]},
        {"labels": ["mild", "mild"]},
        {"labels": 3},
        {"classes": "grade"},
        {"classes": None},
        {"classes": {}},
        {"classes": {"column": 3, "ordered": True}},
        {"classes": {"column": "grade", "ordered": "yes"}},
        {"classes": {"column": "grade", "ordered": True, "names": ["a"]}},
        {"classes": {"column": "other", "ordered": True}},
        {"temperatures": {"mild": 1.0, "severe": 1.0}},
        {"temperatures": {"grade": 0.0}},
        {"costs": [[0, 1]]},
        {"costs": [[0, 1], [1]]},
        {"costs": [[0, -1], [1, 0]]},
        {"costs": [[0, "1"], [1, 0]]},
        {"costs": [[0, float("inf")], [1, 0]]},
        {"costs": [[0, 10**400], [1, 0]]},
        {"costs": {"mild": 1}},
    ],
)
def test_a_description_of_classes_that_is_nonsense_is_none(changes):
    values = json.loads(GRADES.to_json())
    with pytest.raises(ValueError, match="not the description"):
        Description.from_json(json.dumps({**values, **changes}))


def test_yes_no_labels_have_no_costs():
    values = {**json.loads(DESCRIPTION.to_json()), "costs": [[0, 1], [1, 0]]}
    with pytest.raises(ValueError, match="not the description"):
        Description.from_json(json.dumps(values))
