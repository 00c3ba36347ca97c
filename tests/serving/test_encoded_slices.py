"""Slices decoded and scaled in the graph: the readers' and NumPy's numbers, bit for bit."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_models import description_of

from medseq_tf.dataset.records import png_channels
from medseq_tf.input import slice_store
from medseq_tf.readers.pictures import decode_picture
from medseq_tf.readers.series import Series
from medseq_tf.serving.encoded_slices import decode, quantile_ranges, require_pictures

PHOTOGRAPH, CT = description_of("uint8"), description_of("int16")


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
        require_pictures(tf.constant([data]), tf.constant(["a slice"]), 8)
        found = decode(tf.constant(data), tf.constant("a slice"), PHOTOGRAPH)
        np.testing.assert_array_equal(found[0], decode_picture(data), err_msg=name)


def test_16_bits_are_intensities_plus_an_offset(rng):
    values = rng.integers(0, 2**16, (9, 7)).astype(np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    found = decode(tf.constant(data), tf.constant("a slice"), CT)
    np.testing.assert_array_equal(found[0], values.astype(int) - 32768)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_channels_are_the_colours_of_a_png(rng, dtype, channels):
    description = description_of(dtype, series=Series(tuple("abcd"[:channels]), "channels"))
    values = rng.integers(0, 256 if dtype == "uint8" else 2**16, (9, 7, channels))
    values = values.astype(np.uint8 if dtype == "uint8" else np.uint16)
    in_file = values[..., png_channels(channels)]
    if channels == 2:
        in_file[..., 0] = 7  # blue, which is not read
    data = cv2.imencode(".png", in_file)[1].tobytes()
    require_pictures(tf.constant([data]), tf.constant(["x"]), description.bits, channels)
    found = np.moveaxis(decode(tf.constant(data), tf.constant("x"), description), 0, -1)
    np.testing.assert_array_equal(found, values.astype(int) + description.offset)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_picture_without_all_series_is_named(rng, bits, channels):
    colour = {2: 2, 3: 2, 4: 6}[channels]
    good = png_by_hand(rng, bits, colour)
    wrong = [png_by_hand(rng, bits, other) for other in {0, 2, 4, 6} - {colour}]
    wrong += [png_by_hand(rng, 24 - bits, colour), saved(Image.new("RGB", (9, 9)), "JPEG")]
    for data in wrong:
        names = tf.constant(["first", "second"])
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"second is no {bits}-bit RGB"):
            require_pictures(tf.constant([good, data]), names, bits, channels)


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
            require_pictures(tf.constant([good, data, data]), names, bits)


@pytest.mark.parametrize(("width", "height"), [(100_000, 1), (8000, 8000), (0, 5), (2**32 - 1, 2)])
def test_a_small_file_that_declares_a_huge_picture_is_not_decoded(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + bytes(20)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the slice declares"):
        decode(tf.constant(data), tf.constant("the slice"), PHOTOGRAPH)


def test_a_huge_jpeg_is_not_decoded():
    small = saved(Image.new("L", (8, 8)), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    data = small[:at] + struct.pack(">HH", 60_000, 60_000) + small[at + 4 :]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the slice declares 60000 x 60000"):
        decode(tf.constant(data), tf.constant("the slice"), PHOTOGRAPH)


@pytest.mark.parametrize("quantiles", [(0.01, 0.99), (0.0, 1.0), (0.5, 0.5), (0.123, 0.777)])
def test_quantiles_are_numpy_s(rng, quantiles):
    studies = [rng.integers(0, 2**16, (n, 5, 7)).astype(np.uint16) for n in (1, 4, 2)]
    studies.append(np.full((2, 5, 7), 65535, np.uint16))
    images = tf.constant(np.concatenate(studies).astype(np.float32))
    owner = tf.constant(np.repeat(np.arange(4), [len(s) for s in studies]), tf.int32)
    found = quantile_ranges(images, owner, tf.constant(4), quantiles)
    expected = np.stack([slice_store.quantile_range(study, quantiles) for study in studies])
    np.testing.assert_array_equal(found, expected)
