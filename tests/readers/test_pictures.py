"""Decoding of single pictures, against TensorFlow, Pillow and NumPy."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from medseq_tf.readers.pictures import UnreadablePicture, decode_picture, read_header


def encoded(image, extension):
    return cv2.imencode(extension, image)[1].tobytes()


def pillow(image, form, mode=None, **settings):
    file = io.BytesIO()
    picture = Image.fromarray(image)
    picture.convert(mode or picture.mode).save(file, form, **settings)
    return file.getvalue()


@pytest.fixture
def picture(rng):
    """(37, 53) uint8, smooth enough for JPEG."""
    return cv2.GaussianBlur(rng.integers(0, 256, (37, 53), np.uint8), (5, 5), 2)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif"])
def test_lossless_formats_keep_every_pixel(picture, extension):
    np.testing.assert_array_equal(decode_picture(encoded(picture, extension)), picture)


@pytest.mark.parametrize("form", ["TIFF", "BMP", "PNG"])
def test_files_of_another_writer(picture, form):
    np.testing.assert_array_equal(decode_picture(pillow(picture, form)), picture)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_decodes_as_in_tensorflow_and_pillow(picture, rng, colour, progressive):
    import tensorflow as tf

    image = np.stack([picture, picture[::-1], picture[:, ::-1]], -1) if colour else picture
    data = pillow(image, "JPEG", quality=85, progressive=progressive)
    ours = decode_picture(data).astype(int)
    theirs = tf.io.decode_jpeg(data, channels=1, dct_method="INTEGER_ACCURATE").numpy()[..., 0]
    np.testing.assert_array_equal(ours, theirs)
    luma = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert np.abs(ours - luma).max() <= (2 if colour else 0)


def test_orientation_in_exif_is_not_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = pillow(picture, "JPEG", exif=exif)
    assert decode_picture(data).shape == picture.shape


def test_header_agrees_with_the_picture(picture):
    for extension in (".png", ".bmp", ".tif", ".jpg"):
        header = read_header(encoded(picture, extension))
        assert header == (53, 37, False, True)
    assert read_header(pillow(picture, "JPEG", mode="CMYK")).is_cmyk


def test_truncated_and_foreign_data(picture):
    for extension in (".png", ".jpg", ".bmp", ".tif"):
        data = encoded(picture, extension)
        with pytest.raises(UnreadablePicture, match="cut short"):
            decode_picture(data[: len(data) // 2])
    with pytest.raises(UnreadablePicture, match="empty"):
        decode_picture(b"")
    with pytest.raises(UnreadablePicture, match="not a JPEG"):
        decode_picture(b"GIF89a......")


def test_sixteen_bits_are_not_a_photograph(picture):
    for extension in (".png", ".tif"):
        with pytest.raises(UnreadablePicture, match="16 bits a sample"):
            decode_picture(encoded(picture.astype(np.uint16) * 256, extension))


def test_twelve_bits_are_not_a_photograph(picture):
    data = bytearray(pillow(picture, "JPEG"))
    data[data.find(b"\xff\xc0") + 4] = 12
    with pytest.raises(UnreadablePicture, match="12 bits a sample"):
        decode_picture(bytes(data))


def test_what_stands_beside_a_png_s_pixels_does_not_matter(picture):
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "x" * 3 * 2**20, zip=True)
    data = pillow(picture, "PNG", pnginfo=comment)
    damaged = bytearray(data)
    damaged[data.find(b"zTXt") + 40] ^= 1
    profile = bytes(2 * 2**20)
    for held in (data, bytes(damaged), pillow(picture, "PNG", icc_profile=profile)):
        np.testing.assert_array_equal(decode_picture(held), picture)


def test_several_pictures_in_one_file(picture):
    pages = [Image.fromarray(picture)] * 2
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadablePicture, match="several pictures"):
        decode_picture(file.getvalue())


def test_a_huge_declared_size_is_refused_before_decoding(picture):
    data = bytearray(encoded(picture, ".png"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UnreadablePicture, match="declares 60000 x 60000"):
        decode_picture(bytes(data))


@given(st.binary(max_size=200), st.sampled_from([b"\xff\xd8", b"BM", b"II*\0", b"MM\0*"]))
def test_any_bytes_decode_or_are_unreadable(tail, magic):
    try:
        image = decode_picture(magic + tail)
    except UnreadablePicture:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 2
