"""Slices resized in the graph: OpenCV's numbers, bit for bit."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import description_of

from medseq_tf.dataset.records import to_square
from medseq_tf.input import slice_store
from medseq_tf.readers.series import Series
from medseq_tf.serving import resize


def stored(dtype, size=16, aspect="pad", channels=1):
    series = Series(tuple("abcd"[:channels]), "channels") if channels > 1 else None
    description = description_of(np.dtype(dtype).name, series=series)
    return dataclasses.replace(description, size=size, aspect=aspect)


def picture(rng, dtype, height, width):
    """Smooth, with edges: neither noise nor flat, and no ties by design."""
    image = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 1.5)
    image[height // 3 :, : width // 2] *= 0.5
    limits = np.iinfo(dtype)
    return (limits.min + image * (limits.max - limits.min)).astype(dtype)


def opencv(image, size, aspect):
    sides = image.shape[:2]
    shrinks = max(sides) >= size if aspect == "pad" else min(sides) >= size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return to_square(image, size, aspect, method).astype(int)


def channels_first(image):
    return tf.constant(np.moveaxis(np.atleast_3d(image), -1, 0).astype(np.float32))


@settings(max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([8, 16, 24, 32, 45]),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16]),
    aspect=st.sampled_from(["pad", "stretch"]),
    channels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_slice_becomes_the_prepared_one(height, width, size, dtype, aspect, channels, seed):
    rng = np.random.default_rng(seed)
    image = np.stack([picture(rng, dtype, height, width) for _ in range(channels)], axis=-1)
    how = stored(dtype, size, aspect, channels)
    found = resize.to_square(channels_first(image), how).numpy()
    expected = channels_first(opencv(image if channels > 1 else image[..., 0], size, aspect))
    enlarged = dtype != np.uint8 and not (max if aspect == "pad" else min)(height, width) >= size
    # There OpenCV rounds as the processor's own library does, which may be one unit off.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1 if enlarged else 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 256, 64), (512, 512, 192), (192, 192, 64), (128, 128, 64), (500, 600, 224), (96, 96, 9)],
)
def test_of_usual_sizes_noise_too(rng, dtype, height, width, size, channels):
    """Noise in whole numbers makes many exact halves, which OpenCV rounds one way or the other."""
    limits = np.iinfo(dtype)
    shape = (height, width, channels) if channels > 1 else (height, width)
    image = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)
    how = stored(dtype, size, channels=channels)
    graph = tf.function(lambda x: resize.to_square(x, how), autograph=False)
    found = graph(channels_first(image)).numpy()
    np.testing.assert_array_equal(found, channels_first(opencv(image, size, "pad")))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("old", "new"), [(48, 48), (48, 24), (48, 32), (32, 48)])
def test_prepared_slices_come_to_the_recipe_s_size(rng, dtype, old, new):
    images = np.stack([picture(rng, dtype, old, old) for _ in range(3)])
    found = resize.resize(tf.constant(images.astype(np.float32)), old, old, new, stored(dtype, old))
    expected = slice_store.resize(images, new).astype(int)
    atol = 1 if new > old and dtype != np.uint8 else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
