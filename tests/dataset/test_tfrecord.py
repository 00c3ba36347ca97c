"""The record format written without TensorFlow, against TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf.dataset.tfrecord import decode_example, encode_example, frame, unframe


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=200),
        st.lists(st.binary(max_size=300), max_size=4)
        | st.lists(st.floats(width=32), max_size=5).map(lambda v: np.array(v, np.float32)),
        max_size=4,
    )
)
def test_examples_are_read_as_tensorflow_reads_them(features):
    import tensorflow as tf

    payload = encode_example(features)
    theirs = tf.train.Example.FromString(payload).features.feature
    assert set(theirs) == set(features)
    ours = decode_example(payload)
    for name, value in features.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(np.float32(theirs[name].float_list.value), value)
            np.testing.assert_array_equal(ours[name], value)
        else:
            assert list(theirs[name].bytes_list.value) == value == ours[name]


def test_example_of_tensorflow_is_read(rng):
    import tensorflow as tf

    feature = {
        "a": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x", b"", rng.bytes(300)])),
        "b": tf.train.Feature(float_list=tf.train.FloatList(value=[1.5, -2.0])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    ours = decode_example(example.SerializeToString())
    assert ours["a"] == list(feature["a"].bytes_list.value)
    np.testing.assert_array_equal(ours["b"], [1.5, -2.0])


def test_frames_pass_the_checks_of_tensorflow(tmp_path, rng):
    import tensorflow as tf

    payloads = [rng.bytes(int(n)) for n in (4, 1000, 5000, 100_000)]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(frame(payload) for payload in payloads))
    assert [r.numpy() for r in tf.data.TFRecordDataset(str(path))] == payloads
    assert [unframe(frame(payload)) for payload in payloads] == payloads


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_frame_that_a_bit_or_a_byte_spoils_is_refused(rng, size):
    record = frame(rng.bytes(size))
    assert len(unframe(record)) == size
    spoiled = [b"", record[:-1], record[1:], record + b"x", record + record]
    for place in {0, 3, 8, 11, len(record) // 2, len(record) - 1}:
        other = bytearray(record)
        other[place] ^= 1
        spoiled.append(bytes(other))
    for bad in spoiled:
        with pytest.raises(ValueError, match="checksum does not fit"):
            unframe(bad)


@given(st.binary(max_size=60))
def test_other_bytes_are_an_error_or_an_example(data):
    try:
        example = decode_example(data)
    except ValueError:
        return
    assert isinstance(example, dict)
