"""The preprocessing in the graph: OpenCV's and NumPy's numbers, bit for bit."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medseq_tf import recipe as recipes
from medseq_tf.dataset.records import to_square
from medseq_tf.input import sampling, slice_store
from medseq_tf.readers.pictures import decode_picture
from medseq_tf.serving import graph as serving_graph
from medseq_tf.serving.graph import Stored

OFFSETS = {np.uint8: 0, np.int16: -32768, np.uint16: 0}


def stored(dtype, size=16, aspect="pad"):
    return Stored(size, aspect, OFFSETS[dtype], 8 * np.dtype(dtype).itemsize)


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
    found = serving_graph.to_square(tf.constant(image.astype(np.float32)), how).numpy()
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
    graph = tf.function(lambda x: serving_graph.to_square(x, stored(dtype, size)), autograph=False)
    found = graph(tf.constant(image.astype(np.float32))).numpy()
    np.testing.assert_array_equal(found, opencv(image, size, "pad"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("old", "new"), [(48, 48), (48, 24), (48, 32), (32, 48)])
def test_prepared_slices_come_to_the_recipe_s_size(rng, dtype, old, new):
    images = np.stack([picture(rng, dtype, old, old) for _ in range(3)])
    found = serving_graph.resize(
        tf.constant(images.astype(np.float32)), old, old, new, stored(dtype, old)
    )
    atol = 1 if new > old and dtype != np.uint8 else 0
    np.testing.assert_allclose(
        found, slice_store.resize(images, new).astype(int), rtol=0, atol=atol
    )


# -------------------------------------------------------------------------------------- decoding


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def png_by_hand(rng, bits, colour=0, extra=b"", width=16, height=9):
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = b"".join(b"\0" + rng.bytes(width * samples * bits // 8) for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def kinds(rng):
    colour = rng.integers(0, 256, (37, 23, 3)).astype(np.uint8)
    whole, grey = Image.fromarray(colour), Image.fromarray(colour[..., 0])
    yield "jpeg grey", saved(grey, "JPEG", quality=80)
    yield "jpeg colour", saved(whole, "JPEG", quality=60)
    yield "jpeg progressive", saved(whole, "JPEG", progressive=True)
    yield "jpeg rgb", saved(whole, "JPEG", keep_rgb=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "jpeg turned by its EXIF", saved(whole, "JPEG", exif=exif)
    yield "png grey", saved(grey, "PNG")
    yield "png colour", saved(whole, "PNG")
    yield "png with alpha", saved(whole.convert("RGBA"), "PNG")
    yield "png grey with alpha", saved(grey.convert("LA"), "PNG")
    yield "png palette", saved(whole.quantize(50), "PNG")
    yield "png palette, one clear", saved(whole.quantize(50), "PNG", transparency=3)
    yield "png 1 bit", saved(grey.convert("1"), "PNG")
    yield "png 2 bits", png_by_hand(rng, 2)
    yield "png 4 bits", png_by_hand(rng, 4)
    yield "png with gamma", png_by_hand(rng, 8, 2, chunk(b"gAMA", struct.pack(">I", 45455)))
    yield "png sRGB", png_by_hand(rng, 8, 2, chunk(b"sRGB", b"\0"))


def test_pictures_decode_as_the_reader_decodes_them(rng):
    for name, data in kinds(rng):
        serving_graph.require_pictures(tf.constant([data]), tf.constant(["a slice"]), 8)
        found = serving_graph.decode(tf.constant(data), tf.constant("a slice"), stored(np.uint8))
        np.testing.assert_array_equal(found, decode_picture(data), err_msg=name)


def test_16_bits_are_intensities_plus_an_offset(rng):
    values = rng.integers(0, 2**16, (9, 7)).astype(np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    found = serving_graph.decode(tf.constant(data), tf.constant("a slice"), stored(np.int16))
    np.testing.assert_array_equal(found, values.astype(int) - 32768)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_slice_that_is_none_is_named(rng, bits):
    wide = cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes()
    narrow = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    good = {8: narrow, 16: wide}[bits]
    wrong = [b"", b"short", b"GIF89a" + bytes(40), b"BM" + bytes(40), {8: wide, 16: narrow}[bits]]
    wrong += [] if bits == 8 else [saved(Image.new("L", (4, 4)), "JPEG"), png_by_hand(rng, 16, 2)]
    for data in wrong:
        names = tf.constant(["first", "second", "third"])
        with pytest.raises(tf.errors.InvalidArgumentError, match="second"):
            serving_graph.require_pictures(tf.constant([good, data, data]), names, bits)


@pytest.mark.parametrize(("width", "height"), [(100_000, 1), (8000, 8000), (0, 5), (2**32 - 1, 2)])
def test_a_small_file_that_declares_a_huge_picture_is_not_decoded(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + bytes(20)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the slice declares"):
        serving_graph.decode(tf.constant(data), tf.constant("the slice"), stored(np.uint8))


def test_a_huge_jpeg_is_not_decoded():
    small = saved(Image.new("L", (8, 8)), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    data = small[:at] + struct.pack(">HH", 60_000, 60_000) + small[at + 4 :]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the slice declares 60000 x 60000"):
        serving_graph.decode(tf.constant(data), tf.constant("the slice"), stored(np.uint8))


# -------------------------------------------------------------------------- ranges and sequences


@pytest.mark.parametrize("quantiles", [(0.01, 0.99), (0.0, 1.0), (0.5, 0.5), (0.123, 0.777)])
def test_quantiles_are_numpy_s(rng, quantiles):
    studies = [rng.integers(0, 2**16, (n, 5, 7)).astype(np.uint16) for n in (1, 4, 2)]
    studies.append(np.full((2, 5, 7), 65535, np.uint16))
    images = tf.constant(np.concatenate(studies).astype(np.float32))
    owner = tf.constant(np.repeat(np.arange(4), [len(s) for s in studies]), tf.int32)
    found = serving_graph.quantile_ranges(images, owner, tf.constant(4), quantiles)
    expected = np.stack([slice_store.quantile_range(study, quantiles) for study in studies])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("policy", ["paper", "all", "even"])
@pytest.mark.parametrize(
    ("length", "limit", "fill"), [(6, None, False), (6, 9, True), (1, 1, True)]
)
def test_sequences_are_those_of_evaluation(policy, length, limit, fill):
    recipe = recipes.Sequence(
        length=length, fill=fill, evaluation=recipes.Evaluation(policy=policy, length=limit)
    )
    lengths = np.arange(1, 41, dtype=np.int32)
    found = serving_graph.evaluation_sequences(tf.constant(lengths), recipe)
    positions, counts = found.positions.numpy(), found.lengths.numpy()
    own = [p[:n].tolist() for p, n in zip(positions, counts, strict=True)]
    expected = [
        (study, sequence.tolist())
        for study, n in enumerate(lengths)
        for sequence in sampling.evaluation_sequences(int(n), recipe)
    ]
    assert list(zip(found.study.numpy().tolist(), own, strict=True)) == expected


def test_what_is_known_after_each_slice(rng):
    """By hand: two sequences of one study, one of another."""
    chosen = serving_graph.Sequences(
        study=tf.constant([0, 0, 1]),
        positions=tf.constant([[1, 3, 3], [2, 4, 5], [0, 0, 0]]),
        lengths=tf.constant([2, 3, 1]),
    )
    steps = rng.random((3, 3, 2)).astype(np.float32)
    lengths = tf.constant([6, 2])
    found = serving_graph.mean_of_sequences(tf.constant(steps), chosen, lengths, tf.constant(7))
    a, b, c = steps
    expected = np.zeros((2, 7, 2))
    expected[0, :2] = a[0]  # before the first chosen slice its answer stands
    expected[0, 2] = (a[0] + b[0]) / 2
    expected[0, 3] = (a[1] + b[0]) / 2
    expected[0, 4] = (a[1] + b[1]) / 2
    expected[0, 5] = (a[1] + b[2]) / 2
    expected[1, :2] = c[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
