"""Takes what a model server and its client say to each other; gives its bytes, and back.

`Description` is what an exported model says of itself. The messages are TensorFlow Serving's
`PredictRequest`, `PredictResponse` and `PredictionLog`, in protocol buffers' wire format
(protobuf.dev/programming-guides/encoding): a few fields of a few messages, for which neither
TensorFlow nor its serving package has to be there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medseq_tf.dataset.tfrecord import field, varint

FORMAT_VERSION = 1
MODALITIES = ("photograph", "CT", "MR")
LARGEST_SIZE = 1024

Array = np.ndarray | list
"""float32 or int32 values; or strings, as nested lists of bytes of one shape."""


# ---------------------------------------------------------------------------- what a model is


@dataclasses.dataclass(frozen=True)
class Description:
    """What an exported model says of itself.

    Attributes:
        name: the run's.
        labels: in the order of the probabilities.
        thresholds: of each label's probability: positive from there on.
        temperatures: of each label, for the calibrated probability.
        modality: `photograph`, `CT` or `MR`.
        unit: of the intensities.
        bits: of a stored intensity: 8 (JPEG, PNG) or 16 (greyscale PNG).
        offset: intensity = stored value + offset.
        size: side in pixels of prepared slices; others are brought to it as `aspect` says.
        aspect: `pad` or `stretch`.
        most_slices: of a study.
        preparation: how the training data were read: reader, its options, and what it resolved.
        members: models whose probabilities are averaged, the folds of a cross-validated run.
        fingerprint: of the data set that the run was trained on.
        versions: of what wrote it.
        operating_points: of each label, on how many patients the threshold was chosen and what it
            was measured to do; see `operating_points.OperatingPoint`. Empty of older exports.
    """

    name: str
    labels: list[str]
    thresholds: dict[str, float]
    temperatures: dict[str, float]
    modality: str
    unit: str
    bits: int
    offset: int
    size: int
    aspect: str
    most_slices: int
    preparation: dict[str, Any]
    members: int = 1
    fingerprint: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    operating_points: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Description:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if the text is nothing of the kind, or of another version.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError("not the description of a model, or one of another version")
        try:
            description = cls(**values)
            description._check()
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the description of a model: {error}") from None
        return description

    def _check(self) -> None:
        """Raises a ValueError, TypeError or KeyError if what is used of it is something else."""
        is_whole = (
            isinstance(self.labels, list)
            and self.labels
            and all(isinstance(label, str) for label in self.labels)
            and all(math.isfinite(self.thresholds[label]) for label in self.labels)
            and all(0 < self.temperatures[label] < math.inf for label in self.labels)
            and self.modality in MODALITIES
            and self.bits in (8, 16)
            and isinstance(self.offset, int)
            and isinstance(self.size, int)
            and 1 <= self.size <= LARGEST_SIZE
            and self.aspect in ("pad", "stretch")
            and isinstance(self.preparation, dict)
            and isinstance(self.preparation.get("options") or {}, dict)
            and isinstance(self.preparation.get("resolved") or {}, dict)
        )
        if not is_whole:
            raise ValueError("not the description of a model")


# ------------------------------------------------------------------------------------- messages

LARGEST_TENSOR = 2**28
"""Numbers of a tensor that is read."""
LARGEST_EMPTY = 1024
"""Rows of a tensor of strings that holds none."""

_FLOAT, _INT32, _STRING, _INT64 = 1, 3, 7, 9  # tensorflow.DataType
_NUMBERS = {_FLOAT: np.dtype("<f4"), _INT32: np.dtype("<i4"), _INT64: np.dtype("<i8")}
_TYPES = {dtype: number for number, dtype in _NUMBERS.items()}


def encode_predict_request(
    model: str,
    inputs: Mapping[str, Array],
    signature: str = "serving_default",
    outputs: tuple[str, ...] = (),
) -> bytes:
    """Serialises a `PredictRequest`.

    Args:
        model: the served model's name.
        inputs: by name.
        signature: to be asked.
        outputs: those wanted; empty: all.
    """
    spec = field(1, model.encode()) + field(3, signature.encode())
    return b"".join(
        [
            field(1, spec),
            *(field(2, _entry(name, value)) for name, value in inputs.items()),
            *(field(3, name.encode()) for name in outputs),
        ]
    )


def encode_predict_response(outputs: Mapping[str, Array]) -> bytes:
    """Serialises a `PredictResponse`."""
    return b"".join(field(1, _entry(name, value)) for name, value in outputs.items())


def decode_predict_response(payload: bytes) -> dict[str, Array]:
    """Reads the outputs of a `PredictResponse`.

    Raises:
        ValueError: if the payload is not one.
    """
    return _entries(payload, 1)


def decode_predict_request(payload: bytes) -> tuple[str, str, dict[str, Array]]:
    """Reads model, signature and inputs of a `PredictRequest`.

    Raises:
        ValueError: if the payload is not one.
    """
    spec = b"".join(_content(value) for number, value in _fields(payload) if number == 1)
    texts = {number: _text(value) for number, value in _fields(spec) if number in (1, 3)}
    return texts.get(1, ""), texts.get(3, "serving_default"), _entries(payload, 2)


def encode_prediction_log(request: bytes) -> bytes:
    """Serialises a `PredictionLog` of a `PredictRequest`, as warm-up files hold them."""
    return field(6, field(1, request))


def _entries(payload: bytes, number: int) -> dict[str, Array]:
    entries = {}
    for found, entry in _fields(payload):
        if found == number:
            parts = dict(_fields(_content(entry)))
            if not {1, 2} <= parts.keys():
                raise ValueError("a tensor without a name or a value")
            entries[_text(parts[1])] = _decode_tensor(_content(parts[2]))
    return entries


def _entry(name: str, value: Array) -> bytes:
    return field(1, name.encode()) + field(2, _encode_tensor(value))


def _encode_tensor(value: Array) -> bytes:
    """A `TensorProto`; lists hold strings."""
    if isinstance(value, list):
        shape, strings = _flat(value)
        content = b"".join(field(8, string) for string in strings)
        kind = _STRING
    else:
        array = np.ascontiguousarray(value)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        kind = _TYPES[array.dtype]
        shape, content = array.shape, field(4, array.tobytes())
    dims = b"".join(field(2, _number(1, size)) for size in shape)
    return _number(1, kind) + field(2, dims) + content


def _flat(value: list) -> tuple[tuple[int, ...], list[bytes]]:
    shape: list[int] = []
    while value and isinstance(value[0], list):
        shape.append(len(value))
        if len({len(inner) for inner in value}) > 1:
            raise ValueError("rows of strings differ in length")
        if not value[0]:
            return (*shape, 0), []
        shape_of_rest = len(value[0])
        value = [item for inner in value for item in inner]
        if not isinstance(value[0], list):
            return (*shape, shape_of_rest), value
    return (*shape, len(value)), value


def _decode_tensor(payload: bytes) -> Array:
    kind, shape, content, values, strings = 0, [], b"", [], []
    for number, value in _fields(payload):
        if number == 1:
            kind = _integer(value)
        elif number == 2:
            dims = [
                dict(_fields(_content(d))) for found, d in _fields(_content(value)) if found == 2
            ]
            shape = [_integer(dim.get(1, 0)) for dim in dims]
        elif number == 4:
            content = _content(value)
        elif number == 8:
            strings.append(_content(value))
        elif (number, kind) in ((5, _FLOAT), (7, _INT32), (10, _INT64)):
            values.append(_repeated(value, kind))
    size = math.prod(shape)
    rows = math.prod(dim or 1 for dim in shape)
    if kind == _STRING and len(strings) == size and (size or rows <= LARGEST_EMPTY):
        return np.array([*strings, None], object)[:-1].reshape(shape).tolist()
    if kind not in _NUMBERS or size > LARGEST_TENSOR:
        raise ValueError(f"a tensor of type {kind} and shape {shape} is not expected here")
    if content:
        return np.frombuffer(content, _NUMBERS[kind]).reshape(shape)
    array = np.concatenate(values) if values else np.zeros(0, _NUMBERS[kind])
    if array.size == 1:  # one value stands for all
        return np.broadcast_to(array[0], shape)
    return array.reshape(shape)


def _repeated(value: int | memoryview, kind: int) -> np.ndarray:
    """Numbers of a repeated field, packed or one by one."""
    if kind == _FLOAT:
        packed = struct.pack("<I", value) if isinstance(value, int) else value
        return np.frombuffer(packed, "<f4")
    numbers, position = [], 0
    if isinstance(value, int):
        numbers = [value]
    else:
        while position < len(value):
            number, position = _read_varint(value, position)
            numbers.append(number)
    return np.array(numbers, np.uint64).astype(_NUMBERS[kind])


# ---------------------------------------------------------------------------------- wire format


def _number(number: int, value: int) -> bytes:
    """A field of an integer (wire type 0)."""
    return bytes([number << 3]) + varint(value)


def _content(value: int | memoryview) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return bytes(value)


def _text(value: int | memoryview) -> str:
    return _content(value).decode()


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number is expected")
    return value


def _fields(payload: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields number and value of the fields of a message: integers, or memoryviews of content."""
    view = memoryview(payload)
    position = 0
    while position < len(view):
        tag, position = _read_varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _read_varint(view, position)
        elif wire_type in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire_type)
            if size is None:
                size, position = _read_varint(view, position)
            value = view[position : position + size]
            position += size
            if position > len(view):
                raise ValueError("a message that is cut short")
            value = value if wire_type == 2 else int.from_bytes(value, "little")
        else:
            raise ValueError("not a message of this kind")
        yield number, value


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(view) and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value % 2**64, position
        shift += 7
    raise ValueError("a message that is cut short")
