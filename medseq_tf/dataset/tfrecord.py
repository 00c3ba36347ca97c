"""`tf.train.Example` and TFRecord files, without TensorFlow.

Preparing runs in several processes, and importing TensorFlow would cost each of them seconds and
hundreds of megabytes. A record of a TFRecord file is framed by its length, the masked CRC-32C of
that, the payload, and the masked CRC-32C of the payload.
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError

from medseq_tf.dataset.protocol_buffers import BYTES, FLOAT, TEXT, declare

HEADER_BYTES = 12
FOOTER_BYTES = 4
MOST_BYTES = 2**31 - 2**20
"""Of an example's values: protocol buffers, and one read of a file, end at 2 GiB."""

Value = list[bytes] | np.ndarray
"""A feature: a list of bytes, or an array of float32."""

# A map is a list of its entries, which keep their order: always the same bytes.
_Example: Any = declare(
    "tensorflow.example",
    {
        "BytesList": {"value": (1, [BYTES])},
        "FloatList": {"value": (1, [FLOAT])},
        "Feature": {"bytes_list": (1, "BytesList"), "float_list": (2, "FloatList")},
        "NamedFeature": {"key": (1, TEXT), "value": (2, "Feature")},
        "Features": {"feature": (1, ["NamedFeature"])},
        "Example": {"features": (1, "Features")},
    },
)["Example"]


def encode_example(features: dict[str, Value]) -> bytes:
    """Serialise features as a `tf.train.Example`, in their order: always the same bytes.

    Raises:
        ValueError: they take more than `MOST_BYTES`.
    """
    if sum(sum(map(len, v)) if isinstance(v, list) else v.nbytes for v in features.values()) > (
        MOST_BYTES
    ):
        raise ValueError("more than 2 GiB, which is all that a tf.train.Example can hold")
    example = _Example()
    for name, value in features.items():
        feature = example.features.feature.add(key=name).value
        numbers = isinstance(value, np.ndarray)
        values = feature.float_list if numbers else feature.bytes_list
        values.SetInParent()  # an empty one too
        values.value.extend(value.tolist() if isinstance(value, np.ndarray) else value)
    return example.SerializeToString()


def decode_example(payload: bytes) -> dict[str, Value]:
    """Read the bytes and float features of a serialised `tf.train.Example`.

    Raises:
        ValueError: the payload is not one, or holds features of another kind.
    """
    try:
        example = _Example.FromString(payload)
    except DecodeError:
        raise ValueError("not a tf.train.Example, or one that is cut short") from None
    features: dict[str, Value] = {}
    for entry in example.features.feature:
        if entry.value.HasField("bytes_list"):
            features[entry.key] = list(entry.value.bytes_list.value)
        elif entry.value.HasField("float_list"):
            features[entry.key] = np.array(entry.value.float_list.value, np.float32)
        else:
            raise ValueError("only bytes and float features are known here")
    return features


def frame(payload: bytes) -> bytes:
    """Return the payload as one record of a TFRecord file; it starts `HEADER_BYTES` in."""
    return b"".join((_header(payload), payload, _masked_crc(payload)))


def unframe(record: bytes) -> bytes:
    """Return the payload of one record of a TFRecord file.

    Raises:
        ValueError: its length or a checksum does not fit.
    """
    payload = record[HEADER_BYTES:-FOOTER_BYTES]
    if record[:HEADER_BYTES] != _header(payload) or record[-FOOTER_BYTES:] != _masked_crc(payload):
        raise ValueError("no TFRecord of this length, or one whose checksum does not fit")
    return payload


def _header(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
