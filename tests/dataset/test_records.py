"""Records of studies: slices at their stored size, their encoding and their hashes."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import make, save

from medseq_tf.dataset import tfrecord
from medseq_tf.dataset.records import FEWEST_TELLING_PIXELS, is_telling, slice_hash, to_square

BLACK = np.zeros((20, 30), np.uint8)


def test_slices_are_padded_to_a_square_and_shrunk_by_area(folder, tmp_path):
    source = cv2.imread(str(folder / "Normal" / "1 (1).png"), cv2.IMREAD_GRAYSCALE)
    padded = np.zeros((30, 30), np.uint8)
    padded[5:25] = source
    data = make("image-folder", folder, out=tmp_path / "pad", size=15)
    blocks = padded.reshape(15, 2, 15, 2).mean((1, 3))
    assert np.abs(data.slices(0)[0] - blocks).max() <= 0.5
    data = make("image-folder", folder, out=tmp_path / "stretch", size=10, aspect="stretch")
    blocks = source.reshape(10, 2, 10, 3).mean((1, 3))
    assert np.abs(data.slices(0)[0] - blocks).max() <= 0.51
    assert data.info["preparation"]["aspect"] == "stretch"


def test_squares_are_shrunk_and_grown_as_tensorflow_does(rng):
    import tensorflow as tf

    image = rng.integers(0, 256, (24, 24), np.uint8)
    for size, ours, theirs in ((12, cv2.INTER_AREA, "area"), (36, cv2.INTER_LINEAR, "bilinear")):
        expected = tf.image.resize(image[..., None], (size, size), method=theirs)[..., 0]
        assert np.abs(to_square(image, size, "pad", ours) - expected).max() <= 1


@settings(max_examples=200)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from(["uint8", "int16", "uint16"]),
    marked=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_slice_tells_if_sixteen_pixels_differ_from_its_most_common_value(
    shape, dtype, marked, seed
):
    rng = np.random.default_rng(seed)
    image = np.full(shape, rng.integers(0, 256), dtype)
    places = rng.permutation(image.size)[:marked]
    image.ravel()[places] = rng.integers(0, 256, len(places))
    differing = image.size - np.unique(image, return_counts=True)[1].max()
    assert is_telling(image) == (differing >= FEWEST_TELLING_PIXELS)


def test_channels_that_are_blank_each_say_nothing():
    """Though half of all their pixels differ from the other half."""
    blank = np.stack([np.full((20, 30), 7), np.zeros((20, 30))], axis=-1).astype(np.uint16)
    assert not is_telling(blank)
    blank[:4, :4, 1] = 9
    assert is_telling(blank)


def test_hashes_are_of_the_slices_before_they_are_resized(folder, tmp_path):
    for number, mark in ((3, 0), (4, 1)):
        picture = np.full((300, 300), 80, np.uint8)
        picture[100:200, 100:200], picture[150, 151] = 90, 90 + mark
        save(folder / "Normal" / f"2 ({number}).png", picture)
    small = make("image-folder", folder, out=tmp_path / "small", size=8)
    large = make("image-folder", folder, out=tmp_path / "large", size=64, aspect="stretch")
    for column in ("slice_hashes", "content_hash"):
        assert list(map(list, small.studies[column])) == list(map(list, large.studies[column]))
    row = list(small.studies.source).index("Normal/2")
    np.testing.assert_array_equal(*small.slices(row, [2, 3]))
    assert len(set(small.studies.slice_hashes[row])) == 4


@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    dtype=st.sampled_from(["uint8", "int16", "uint16"]),
    data=st.data(),
)
def test_one_other_pixel_is_another_hash(shape, dtype, data):
    image = np.zeros(shape, dtype)
    other = image.copy()
    other.ravel()[data.draw(st.integers(0, other.size - 1))] = data.draw(st.integers(1, 255))
    assert slice_hash(image) == slice_hash(np.asfortranarray(image))
    assert slice_hash(image) != slice_hash(other)
    assert shape[0] == shape[1] or slice_hash(image) != slice_hash(image.T)


@pytest.mark.parametrize("grey_levels", [2, 256])
def test_flat_slices_are_packed_and_others_stored(folder, tmp_path, rng, grey_levels):
    picture = rng.integers(0, grey_levels, (4, 4), np.uint8).repeat(16, 0).repeat(16, 1)
    if grey_levels > 2:
        picture += rng.integers(0, 9, picture.shape, np.uint8)
    save(folder / "Normal" / "0 (1).png", picture)
    data = make("image-folder", folder, out=tmp_path / "out", size=64)
    np.testing.assert_array_equal(data.slices(0), picture[None])
    assert (data.studies.length[0] < picture.size / 5) == (grey_levels == 2)


def test_a_study_that_no_record_can_hold_is_left_out(folder, tmp_path, monkeypatch):
    """Protocol buffers end at 2 GiB: some thousand slices of 1024 x 1024."""
    monkeypatch.setattr(tfrecord, "MOST_BYTES", 3000)
    save(folder / "Stroke" / "4 (3).png", np.zeros((20, 30), np.uint8) + np.arange(30, dtype="u1"))
    data = make("image-folder", folder, out=tmp_path / "out", size=32)
    assert len(data) == 3
    (entry,) = [e for e in data.audit["entries"] if e["kind"] == "study left out"]
    assert "2 GiB" in entry["detail"]
    assert entry["where"] == "Stroke/4"


def test_slices_alike_are_encoded_once_and_all_kept(folder, tmp_path):
    for number in (3, 4):
        save(folder / "Normal" / f"1 ({number}).png", BLACK)
    data = make("image-folder", folder, out=tmp_path / "out", size=16)
    assert data.studies.slices[0] == 4
    np.testing.assert_array_equal(data.slices(0)[2:], np.zeros((2, 16, 16)))
    assert data.slices(0)[:2].any((1, 2)).all()


def test_workers_import_neither_tensorflow_nor_pandas():
    code = (
        "import sys, medseq_tf.dataset.records as s; "
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
