"""Takes feature values; gives `tf.train.Example` bytes and TFRecord frames, without TensorFlow.

Preparing runs in several processes, and importing TensorFlow would cost each of them seconds and
hundreds of megabytes. The two formats are small: protocol buffers' wire format
(protobuf.dev/programming-guides/encoding) for `tf.train.Example`, and TFRecord's frame of length,
masked CRC-32C of the length, payload, masked CRC-32C of the payload.
"""

from __future__ import annotations

import struct

import google_crc32c
import numpy as np

HEADER_BYTES = 12
FOOTER_BYTES = 4

Value = list[bytes] | np.ndarray
"""A feature: a list of bytes, or an array of float32."""


# ------------------------------------------------------------------------------- tf.train.Example


def encode_example(features: dict[str, Value]) -> bytes:
    """Serialises features as a `tf.train.Example`, in their order: always the same bytes."""
    entries = [
        field(1, field(1, name.encode()) + field(2, _encode_feature(value)))
        for name, value in features.items()
    ]
    return field(1, b"".join(entries))


def decode_example(payload: bytes) -> dict[str, Value]:
    """Reads the bytes and float features of a serialised `tf.train.Example`.

    Raises:
        ValueError: if the payload is not one.
    """
    view = memoryview(payload)
    features = {}
    for _, message in _fields(view):
        for _, entry in _fields(message):
            parts = dict(_fields(entry))
            features[bytes(parts[1]).decode()] = _decode_feature(parts[2])
    return features


def _encode_feature(value: Value) -> bytes:
    if isinstance(value, np.ndarray):
        return field(2, field(1, np.ascontiguousarray(value, "<f4").tobytes()))
    return field(1, b"".join(field(1, item) for item in value))


def _decode_feature(feature: memoryview) -> Value:
    kind, values = next(iter(_fields(feature)))
    if kind == 1:
        return [bytes(item) for _, item in _fields(values)]
    if kind == 2:
        return np.concatenate(
            [np.frombuffer(item, "<f4") for _, item in _fields(values)] or [np.zeros(0, "<f4")]
        )
    raise ValueError("only bytes and float features are known here")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field (wire type 2)."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """An integer in groups of seven bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(view: memoryview):
    """Yields (number, content) of the length-delimited fields of a message."""
    position = 0
    while position < len(view):
        tag, position = _read_varint(view, position)
        if tag & 7 != 2:
            raise ValueError("not a tf.train.Example of bytes and floats")
        length, position = _read_varint(view, position)
        if position + length > len(view):
            raise ValueError("a tf.train.Example that is cut short")
        yield tag >> 3, view[position : position + length]
        position += length


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(view) and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a tf.train.Example that is cut short")


# --------------------------------------------------------------------------------------- TFRecord


def frame(payload: bytes) -> bytes:
    """The payload as one record of a TFRecord file; the payload starts `HEADER_BYTES` in."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        (length, _masked_crc(length), payload, _masked_crc(payload)),
    )


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
