"""TensorFlow Serving's messages, read and written by protobuf, without TensorFlow.

`PredictRequest`, `PredictResponse` and `PredictionLog` are declared here by the public numbers of
the fields that a client needs; protobuf skips the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from medseq_tf.dataset.protocol_buffers import BYTES, FLOAT, INT32, INT64, TEXT, declare

LARGEST_TENSOR = 2**24
"""Numbers of a tensor that is read."""
LARGEST_EMPTY = 1024
"""Rows of a tensor of strings that holds none."""
MOST_DIMENSIONS = 8

_MESSAGES: dict[str, Any] = declare(
    "tensorflow.serving",
    {
        "Dimension": {"size": (1, INT64)},
        "TensorShape": {"dim": (2, ["Dimension"])},
        "Tensor": {
            "dtype": (1, INT32),
            "tensor_shape": (2, "TensorShape"),
            "tensor_content": (4, BYTES),
            "float_val": (5, [FLOAT]),
            "int_val": (7, [INT32]),
            "string_val": (8, [BYTES]),
            "int64_val": (10, [INT64]),
        },
        "NamedTensor": {"key": (1, TEXT), "value": (2, "Tensor")},
        "ModelSpec": {"name": (1, TEXT), "signature_name": (3, TEXT)},
        "PredictRequest": {
            "model_spec": (1, "ModelSpec"),
            "inputs": (2, ["NamedTensor"]),
            "output_filter": (3, [TEXT]),
        },
        "PredictResponse": {"outputs": (1, ["NamedTensor"])},
        "PredictLog": {"request": (1, "PredictRequest")},
        "PredictionLog": {"predict_log": (6, "PredictLog")},
    },
)

_STRING = 7
_NUMBERS = {1: ("<f4", "float_val"), 3: ("<i4", "int_val"), 9: ("<i8", "int64_val")}
"""tensorflow.DataType -> NumPy's type, and the field of values that are sent one by one."""
_CODES = {np.dtype(dtype): code for code, (dtype, _) in _NUMBERS.items()}


def encode_predict_request(
    model: str,
    inputs: Mapping[str, Any],
    signature: str = "serving_default",
    outputs: tuple[str, ...] = (),
) -> bytes:
    """Serialise a `PredictRequest`.

    Args:
        model: the served model's name.
        inputs: by name: float32, int32 or int64 arrays, or nested lists of bytes of one shape.
        signature: to be asked.
        outputs: those wanted; empty: all.
    """
    request = _MESSAGES["PredictRequest"](output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        _write_tensor(request.inputs.add(key=name).value, value)
    return request.SerializeToString()


def encode_prediction_log(request: bytes) -> bytes:
    """Serialise a `PredictionLog` of a `PredictRequest`, as warm-up files hold them."""
    log = _MESSAGES["PredictionLog"]()
    log.predict_log.request.ParseFromString(request)
    return log.SerializeToString()


def decode_predict_response(payload: bytes) -> dict[str, np.ndarray]:
    """Read the outputs of a `PredictResponse`; strings are an array of bytes objects.

    Raises:
        ValueError: the payload is not one, or a tensor in it is of another kind or too large.
    """
    try:
        response = _MESSAGES["PredictResponse"].FromString(payload)
    except DecodeError:
        raise ValueError("not a PredictResponse, or one that is cut short") from None
    return {output.key: _read_tensor(output.value) for output in response.outputs}


def _write_tensor(tensor: Any, value: np.ndarray | list) -> None:
    array = np.array(value, object) if isinstance(value, list) else np.asarray(value)
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        tensor.dtype = _STRING
        tensor.string_val.extend(array.ravel().tolist())
    else:
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        tensor.dtype, tensor.tensor_content = _CODES[array.dtype], array.tobytes()


def _read_tensor(tensor: Any) -> np.ndarray:
    shape = [dim.size for dim in tensor.tensor_shape.dim[: MOST_DIMENSIONS + 1]]
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise ValueError("a tensor of this shape is not expected here")
    size = math.prod(shape)
    rows = math.prod(dim or 1 for dim in shape)
    if (
        tensor.dtype == _STRING
        and len(tensor.string_val) == size
        and (size or rows <= LARGEST_EMPTY)
    ):
        return np.array([*tensor.string_val, None], object)[:-1].reshape(shape)
    if tensor.dtype not in _NUMBERS or size > LARGEST_TENSOR:
        raise ValueError(f"a tensor of type {tensor.dtype} and shape {shape} is not expected here")
    dtype, values = _NUMBERS[tensor.dtype]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    array = np.array(getattr(tensor, values), dtype)
    if array.size == 1:  # one value stands for all
        return np.broadcast_to(array[0], shape)
    return array.reshape(shape)
