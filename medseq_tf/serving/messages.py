"""TensorFlow Serving's messages, read and written by protobuf, without TensorFlow.

`PredictRequest`, `PredictResponse` and `PredictionLog` are declared here by the public numbers of
the fields that a client needs; protobuf skips the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

LARGEST_TENSOR = 2**24
"""Numbers of a tensor that is read."""
LARGEST_EMPTY = 1024
"""Rows of a tensor of strings that holds none."""
MOST_DIMENSIONS = 8

_FLOAT, _INT64 = FieldDescriptorProto.TYPE_FLOAT, FieldDescriptorProto.TYPE_INT64
_INT32, _BYTES = FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_BYTES
_TEXT = FieldDescriptorProto.TYPE_STRING

_FIELDS: dict[str, dict[str, tuple[int, Any]]] = {
    "Dimension": {"size": (1, _INT64)},
    "TensorShape": {"dim": (2, ["Dimension"])},
    "Tensor": {
        "dtype": (1, _INT32),
        "tensor_shape": (2, "TensorShape"),
        "tensor_content": (4, _BYTES),
        "float_val": (5, [_FLOAT]),
        "int_val": (7, [_INT32]),
        "string_val": (8, [_BYTES]),
        "int64_val": (10, [_INT64]),
    },
    "NamedTensor": {"key": (1, _TEXT), "value": (2, "Tensor")},
    "ModelSpec": {"name": (1, _TEXT), "signature_name": (3, _TEXT)},
    "PredictRequest": {
        "model_spec": (1, "ModelSpec"),
        "inputs": (2, ["NamedTensor"]),
        "output_filter": (3, [_TEXT]),
    },
    "PredictResponse": {"outputs": (1, ["NamedTensor"])},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
}
"""Message -> field -> its number and its type or message, in a list where it is repeated."""

_STRING = 7
_NUMBERS = {1: ("<f4", "float_val"), 3: ("<i4", "int_val"), 9: ("<i8", "int64_val")}
"""tensorflow.DataType -> NumPy's type, and the field of values that are sent one by one."""
_CODES = {np.dtype(dtype): code for code, (dtype, _) in _NUMBERS.items()}


@functools.cache
def _message(name: str) -> Any:
    """Return the class of a message, from a pool of its own: TensorFlow may have the same names."""
    file = FileDescriptorProto(name="serving.proto", package="serving", syntax="proto3")
    for message_name, fields in _FIELDS.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            is_repeated = isinstance(kind, list)
            kind = kind[0] if is_repeated else kind
            field.label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
            field.type = field.TYPE_MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                field.type_name = f".serving.{kind}"
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"serving.{name}"))


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
    request = _message("PredictRequest")(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        _write_tensor(request.inputs.add(key=name).value, value)
    return request.SerializeToString()


def encode_prediction_log(request: bytes) -> bytes:
    """Serialise a `PredictionLog` of a `PredictRequest`, as warm-up files hold them."""
    log = _message("PredictionLog")()
    log.predict_log.request.ParseFromString(request)
    return log.SerializeToString()


def decode_predict_response(payload: bytes) -> dict[str, np.ndarray]:
    """Read the outputs of a `PredictResponse`; strings are an array of bytes objects.

    Raises:
        ValueError: the payload is not one, or a tensor in it is of another kind or too large.
    """
    try:
        response = _message("PredictResponse").FromString(payload)
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
