"""Messages on the wire: what protobuf itself reads and writes."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serving_protos import messages

from medseq_tf.serving import wire as serving_wire
from medseq_tf.serving.wire import Description

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


def numbers():
    shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    floats = arrays.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False))
    return floats | arrays.arrays(np.int32, shapes)


def strings():
    rows = st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(st.binary(), min_size=width, max_size=width), min_size=1)
    )
    return rows | st.lists(st.binary(), min_size=1)


@given(inputs=st.dictionaries(st.text(min_size=1), numbers() | strings(), max_size=3))
def test_a_request_is_what_protobuf_reads(inputs):
    payload = serving_wire.encode_predict_request("héad", inputs, "probability", ("a", "b"))
    request = messages()["PredictRequest"].FromString(payload)
    assert (request.model_spec.name, request.model_spec.signature_name) == ("héad", "probability")
    assert list(request.output_filter) == ["a", "b"]
    assert request.inputs.keys() == inputs.keys()
    for name, value in inputs.items():
        found = tf.make_ndarray(request.inputs[name])
        np.testing.assert_array_equal(found, np.array(value, found.dtype))
    model, signature, read = serving_wire.decode_predict_request(payload)
    assert (model, signature, read.keys()) == ("héad", "probability", inputs.keys())


@given(
    outputs=st.dictionaries(st.text(min_size=1), numbers() | strings(), max_size=3),
    content=st.booleans(),
)
def test_what_protobuf_writes_is_read(outputs, content):
    response = messages()["PredictResponse"]()
    for name, value in outputs.items():
        tensor = response.outputs[name]
        if isinstance(value, list) or content:
            kind = tf.string if isinstance(value, list) else None
            tensor.CopyFrom(tf.make_tensor_proto(value, kind))
        else:  # values one by one, as TensorFlow Serving may send them
            tensor.dtype = tf.as_dtype(value.dtype).as_datatype_enum
            for size in value.shape:
                tensor.tensor_shape.dim.add().size = size
            field = tensor.float_val if value.dtype == np.float32 else tensor.int_val
            field.extend(value.ravel().tolist())
    found = serving_wire.decode_predict_response(response.SerializeToString())
    assert found.keys() == outputs.keys()
    for name, value in outputs.items():
        np.testing.assert_array_equal(np.array(found[name], object), np.array(value, object))
    again = serving_wire.decode_predict_response(serving_wire.encode_predict_response(outputs))
    for name, value in outputs.items():
        np.testing.assert_array_equal(np.array(again[name], object), np.array(value, object))


def test_a_prediction_log_is_what_protobuf_reads():
    request = serving_wire.encode_predict_request("m", {"lengths": np.int32([3, 4])})
    log = messages()["PredictionLog"].FromString(serving_wire.encode_prediction_log(request))
    assert log.predict_log.request.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(log.predict_log.request.inputs["lengths"]).tolist() == [3, 4]


def test_the_messages_are_tensorflow_serving_s_own():
    """Where its package is installed, which is no dependency."""
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    request = serving_wire.encode_predict_request("m", {"question": [b"x"]}, "describe", ("d",))
    log = apis.PredictionLog.FromString(serving_wire.encode_prediction_log(request))
    own = messages()["PredictRequest"].FromString(request)
    assert log.predict_log.request.SerializeToString(deterministic=True) == own.SerializeToString(
        deterministic=True
    )


@given(payload=st.binary())
def test_nonsense_is_a_value_error(payload):
    for read in (serving_wire.decode_predict_response, serving_wire.decode_predict_request):
        with contextlib.suppress(ValueError):
            read(payload)


def test_a_description_is_read_as_written():
    assert Description.from_json(DESCRIPTION.to_json()) == DESCRIPTION
    assert Description.from_json(DESCRIPTION.to_json().encode()) == DESCRIPTION


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
    ],
)
def test_a_description_of_nonsense_is_none(changes):
    values = {**json.loads(DESCRIPTION.to_json()), "labels": ["a", "b"]}
    values |= {"thresholds": {"a": 0.5, "b": 0.5}, "temperatures": {"a": 1.0, "b": 1.0}}
    assert Description.from_json(json.dumps(values)).labels == ["a", "b"]
    with pytest.raises(ValueError, match="not the description"):
        Description.from_json(json.dumps({**values, **changes}))
