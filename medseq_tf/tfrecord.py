"""Takes feature values; gives `tf.train.Example` bytes and TFRecord frames, without TensorFlow.

Preparing runs in several processes, and importing TensorFlow would cost each of them seconds and
hundreds of megabytes. The two formats are small: protocol buffers' wire format
(protobuf.dev/programming-guides/encoding) for `tf.train.Example`, and TFRecord's frame of length,
masked CRC-32C of the length, payload, masked CRC-32C of the payload.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

HEADER_BYTES = 12
FOOTER_BYTES = 4

Value = list[bytes] | np.ndarray
"""A feature: a list of bytes, or an array of float32."""

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_BLOCK = 1024


# ------------------------------------------------------------------------------- tf.train.Example


def encode_example(features: dict[str, Value]) -> bytes:
    """Serialises features as a `tf.train.Example`, in their order: always the same bytes."""
    entries = [
        _field(1, _field(1, name.encode()) + _field(2, _encode_feature(value)))
        for name, value in features.items()
    ]
    return _field(1, b"".join(entries))


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
        return _field(2, _field(1, np.ascontiguousarray(value, "<f4").tobytes()))
    return _field(1, b"".join(_field(1, item) for item in value))


def _decode_feature(feature: memoryview) -> Value:
    kind, values = next(iter(_fields(feature)))
    if kind == 1:
        return [bytes(item) for _, item in _fields(values)]
    if kind == 2:
        return np.concatenate(
            [np.frombuffer(item, "<f4") for _, item in _fields(values)] or [np.zeros(0, "<f4")]
        )
    raise ValueError("only bytes and float features are known here")


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field (wire type 2)."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
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
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of four bytes or more, at the speed of a NumPy table look-up.

    A CRC is linear over GF(2): that of a block is the exclusive or of what each byte, followed by
    its number of zero bytes, gives by itself. Blocks are looked up whole, then chained.
    """
    assert len(data) >= 4, "the start value is folded into the first four bytes"
    table, shift = _block_table(), _shift_table()
    padded = np.zeros(-(-len(data) // _BLOCK) * _BLOCK, np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 0xFF
    crc = 0
    positions = np.arange(_BLOCK)
    for blocks in np.array_split(padded.reshape(-1, _BLOCK), -(-len(padded) // (1 << 20))):
        for block in np.bitwise_xor.reduce(table[positions, blocks], axis=1).tolist():
            crc = (
                shift[0][crc & 0xFF]
                ^ shift[1][crc >> 8 & 0xFF]
                ^ shift[2][crc >> 16 & 0xFF]
                ^ shift[3][crc >> 24]
                ^ block
            )
    return crc ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> np.ndarray:
    """(256,) uint32: the CRC of each single byte, from a start value of 0."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(_POLYNOMIAL), crc >> 1)
    return crc


def _append_zero(crc: np.ndarray) -> np.ndarray:
    return crc >> 8 ^ _byte_table()[crc & 0xFF]


@functools.cache
def _block_table() -> np.ndarray:
    """(_BLOCK, 256) uint32: what a byte at each place of a block adds to the block's CRC."""
    rows = [_byte_table()]
    while len(rows) < _BLOCK:
        rows.append(_append_zero(rows[-1]))
    return np.stack(rows[::-1])


@functools.cache
def _shift_table() -> list[list[int]]:
    """4 x 256: the CRC whose byte k is b, after a block of zero bytes."""
    crc = np.arange(256, dtype=np.uint32) << (np.arange(4, dtype=np.uint32) * 8)[:, None]
    for _ in range(_BLOCK):
        crc = _append_zero(crc)
    return crc.tolist()
