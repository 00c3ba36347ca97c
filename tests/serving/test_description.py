"""What a model says of itself: read as written, and nonsense is none."""

from __future__ import annotations

import dataclasses
import json

import pytest

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


def test_a_description_is_read_as_written():
    assert Description.from_json(DESCRIPTION.to_json()) == DESCRIPTION
    assert Description.from_json(DESCRIPTION.to_json().encode()) == DESCRIPTION


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
