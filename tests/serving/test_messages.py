"""Messages: what TensorFlow Serving's own classes read and write."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from medseq_tf.serving.messages import (
    decode_predict_response,
    encode_predict_request,
    encode_prediction_log,
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
    payload = encode_predict_request("héad", inputs, "probability", ("a", "b"))
    request = predict_pb2.PredictRequest.FromString(payload)
    assert (request.model_spec.name, request.model_spec.signature_name) == ("héad", "probability")
    assert list(request.output_filter) == ["a", "b"]
    assert request.inputs.keys() == inputs.keys()
    for name, value in inputs.items():
        found = tf.make_ndarray(request.inputs[name])
        np.testing.assert_array_equal(found, np.array(value, found.dtype))


@given(
    outputs=st.dictionaries(st.text(min_size=1), numbers() | strings(), max_size=3),
    content=st.booleans(),
)
def test_what_protobuf_writes_is_read(outputs, content):
    response = predict_pb2.PredictResponse()
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
    found = decode_predict_response(response.SerializeToString())
    assert found.keys() == outputs.keys()
    for name, value in outputs.items():
        np.testing.assert_array_equal(np.array(found[name], object), np.array(value, object))


def test_a_prediction_log_is_what_protobuf_reads():
    request = encode_predict_request("m", {"lengths": np.int32([3, 4])})
    log = prediction_log_pb2.PredictionLog.FromString(encode_prediction_log(request))
    assert log.predict_log.request.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(log.predict_log.request.inputs["lengths"]).tolist() == [3, 4]


@given(payload=st.binary())
def test_nonsense_is_a_value_error(payload):
    try:
        outputs = decode_predict_response(payload)
    except ValueError:
        return
    assert isinstance(outputs, dict)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_response_that_is_cut_short_is_a_value_error(share):
    response = predict_pb2.PredictResponse()
    response.outputs["probability"].CopyFrom(tf.make_tensor_proto(np.float32([[0.5, 0.25]])))
    payload = response.SerializeToString()
    with pytest.raises(ValueError, match="cut short"):
        decode_predict_response(payload[: int(share * len(payload))])
