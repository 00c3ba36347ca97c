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
_BLOCK = 64
_JOINED = _BLOCK // 4
_AT_ONCE = 1024
_PLACES = np.arange(_BLOCK) * 256


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
    """CRC-32C (Castagnoli) of four bytes or more, at the speed of NumPy table look-ups.

    A CRC is linear over GF(2): that of a block is the exclusive or of what each byte, followed by
    its number of zero bytes, gives by itself. Neighbouring blocks are joined in the same way, the
    bytes of their CRCs taking the place of the data's, until one is left.
    """
    assert len(data) >= 4, "the start value is folded into the first four bytes"
    values = np.frombuffer(data, np.uint8)
    start = -len(values) % _BLOCK
    values = np.concatenate([np.zeros(start, np.uint8), values])
    values[start : start + 4] ^= 0xFF
    crcs, length = _looked_up(_block_table(), values), _BLOCK
    while len(crcs) > 1:
        missing = -len(crcs) % _JOINED
        crcs = np.concatenate([np.zeros(missing, np.uint32), crcs])
        crcs = _looked_up(_joining_table(length), crcs.astype("<u4").view(np.uint8))
        length *= _JOINED
    return int(crcs[0]) ^ 0xFFFFFFFF


def _looked_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) uint32: the CRCs of n blocks of bytes.

    Args:
        table: (_BLOCK, 256) uint32: what a byte at each place of a block adds to its CRC.
        values: (n * _BLOCK,) uint8.
    """
    blocks = values.reshape(-1, _BLOCK)
    return np.concatenate(
        [
            np.bitwise_xor.reduce(table.ravel().take(part + _PLACES, mode="clip"), axis=1)
            for part in np.split(blocks, range(_AT_ONCE, len(blocks), _AT_ONCE))
        ]
    )


@functools.cache
def _byte_table() -> np.ndarray:
    """(256,) uint32: the CRC of each single byte, from a start value of 0."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(_POLYNOMIAL), crc >> 1)
    return crc


@functools.cache
def _block_table() -> np.ndarray:
    """(_BLOCK, 256) uint32: what a byte at each place of a block of data adds to its CRC."""
    rows = [_byte_table()]
    while len(rows) < _BLOCK:
        rows.append(_shifted(rows[-1], _zero_table(1)))
    return np.stack(rows[::-1])


@functools.cache
def _joining_table(length: int) -> np.ndarray:
    """(_BLOCK, 256) uint32: what a byte of one of _JOINED CRCs adds to that of all they are of.

    Args:
        length: bytes that each of the CRCs is of.
    """
    crcs = [np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])]
    while len(crcs) < _JOINED:
        crcs.append(_shifted(crcs[-1], _zero_table(length)))
    return np.concatenate(crcs[::-1])


@functools.cache
def _zero_table(length: int) -> np.ndarray:
    """(4, 256) uint32: the CRC whose byte k is b, after `length` zero bytes, a power of 2."""
    if length == 1:
        crc = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])
        return crc >> 8 ^ _byte_table()[crc & 0xFF]
    half = _zero_table(length // 2)
    return _shifted(half, half)


def _shifted(crcs: np.ndarray, zero_table: np.ndarray) -> np.ndarray:
    """CRCs after the zero bytes of a `_zero_table`."""
    parts = [zero_table[k][crcs >> 8 * k & 0xFF] for k in range(4)]
    return np.bitwise_xor.reduce(parts)
