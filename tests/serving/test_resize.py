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
from medseq_tf.serving import resize


def stored(dtype, size=16, aspect="pad"):
    description = description_of(np.dtype(dtype).name)
    return dataclasses.replace(description, size=size, aspect=aspect)


def picture(rng, dtype, height, width):
    """Smooth, with edges: neither noise nor flat, and no ties by design."""
    image = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 1.5)
    image[height // 3 :, : width // 2] *= 0.5
    limits = np.iinfo(dtype)
    return (limits.min + image * (limits.max - limits.min)).astype(dtype)


def opencv(image, size, aspect):
    sides = image.shape
    shrinks = max(sides) >= size if aspect == "pad" else min(sides) >= size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return to_square(image, size, aspect, method).astype(int)


@settings(max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([8, 16, 24, 32, 45]),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16]),
    aspect=st.sampled_from(["pad", "stretch"]),
    seed=st.integers(0, 99),
)
def test_a_slice_becomes_the_prepared_one(height, width, size, dtype, aspect, seed):
    image = picture(np.random.default_rng(seed), dtype, height, width)
    how = stored(dtype, size, aspect)
    found = resize.to_square(tf.constant(image.astype(np.float32)), how).numpy()
    expected = opencv(image, size, aspect)
    enlarged = dtype != np.uint8 and not (max if aspect == "pad" else min)(height, width) >= size
    # There OpenCV rounds as the processor's own library does, which may be one unit off.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1 if enlarged else 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 256, 64), (512, 512, 192), (192, 192, 64), (128, 128, 64), (500, 600, 224), (96, 96, 9)],
)
def test_of_usual_sizes_noise_too(rng, dtype, height, width, size):
    """Noise in whole numbers makes many exact halves, which OpenCV rounds one way or the other."""
    limits = np.iinfo(dtype)
    image = rng.integers(limits.min, limits.max, (height, width), endpoint=True).astype(dtype)
    graph = tf.function(lambda x: resize.to_square(x, stored(dtype, size)), autograph=False)
    found = graph(tf.constant(image.astype(np.float32))).numpy()
    np.testing.assert_array_equal(found, opencv(image, size, "pad"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("old", "new"), [(48, 48), (48, 24), (48, 32), (32, 48)])
def test_prepared_slices_come_to_the_recipe_s_size(rng, dtype, old, new):
    images = np.stack([picture(rng, dtype, old, old) for _ in range(3)])
    found = resize.resize(tf.constant(images.astype(np.float32)), old, old, new, stored(dtype, old))
    expected = slice_store.resize(images, new).astype(int)
    atol = 1 if new > old and dtype != np.uint8 else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
