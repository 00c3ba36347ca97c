"""Slices of heads are turned upright, whatever lay beside them, and their mirror images follow."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medseq_tf.layers import Mirrored


def head(turn=0.0, shift=(0, 0), size=64):
    """An upright oval with a dark spot on one side, then turned (degrees) and shifted (pixels)."""
    image = np.zeros((size, size), np.float32)
    scale = size / 64
    cv2.ellipse(image, (int(32 * scale),) * 2, (int(18 * scale), int(26 * scale)), 0, 0, 360, 1, -1)
    image[int(20 * scale) : int(26 * scale), int(22 * scale) : int(28 * scale)] = 0.5
    middle = ((size - 1) / 2,) * 2
    moved = cv2.getRotationMatrix2D(middle, turn, 1.0)
    moved[:, 2] += shift
    return cv2.warpAffine(image, moved, (size, size))


def mirrored(*images):
    return np.asarray(Mirrored()(np.stack(images)[..., None]))


@pytest.mark.parametrize(
    ("turn", "shift"), [(0, (5, -4)), (12, (4, -3)), (-20, (-5, 2)), (30, (0, 5))]
)
def test_a_turned_and_shifted_head_is_put_upright(turn, shift):
    moved, plain = head(turn, shift), head()
    before = np.abs(moved - plain).mean()
    upright = mirrored(plain, moved)[..., 0]
    assert np.abs(upright[1] - upright[0]).mean() < 0.05 * before


def test_the_second_half_of_the_channels_is_the_mirror_image():
    output = mirrored(head(7, (3, 1)))
    assert output.shape == (1, 64, 64, 2)
    np.testing.assert_array_equal(output[..., 1], output[:, :, ::-1, 0])


def test_a_mirrored_head_swaps_the_channels():
    image = head(9, (2, -3))
    plain, other = mirrored(image, image[:, ::-1])
    np.testing.assert_allclose(other[..., 0], plain[..., 1], atol=2e-4)


@pytest.mark.parametrize("image", [np.zeros((32, 32)), np.full((32, 32), 0.7)])
def test_a_slice_of_one_grey_value_stays_as_it_is(image):
    output = mirrored(image.astype(np.float32))
    np.testing.assert_array_equal(output[0, ..., 0], image.astype(np.float32))


def test_a_head_that_lies_on_its_side_is_not_turned():
    lying = np.rot90(head())
    assert np.abs(mirrored(lying)[0, ..., 0] - lying).mean() < 0.05


def test_a_mask_is_moved_as_its_slice_is():
    image = head(15, (3, 3))
    mask = (np.abs(image - 0.5) < 0.2).astype(np.float32)  # the spot, and the edge of the head
    layer = Mirrored()
    moved = layer.upright(mask[None, ..., None], image[None, ..., None])
    whole = layer.upright(image[None, ..., None], image[None, ..., None])
    spot = np.asarray(moved)[0, 22:25, 24:27, 0]
    np.testing.assert_array_less(0.9, spot)
    np.testing.assert_allclose(np.asarray(whole)[0, 22:25, 24:27, 0], 0.5, atol=0.05)


def test_other_slices_change_nothing():
    images = [head(turn) for turn in (5, -10, 20)]
    together, alone = mirrored(*images), mirrored(images[1])
    np.testing.assert_array_equal(together[1], alone[0])


@pytest.mark.parametrize(("turn", "shift"), [(0, (5, -4)), (14, (4, -3)), (-20, (-5, 2))])
def test_back_undoes_upright(turn, shift):
    image = cv2.GaussianBlur(head(turn, shift), (0, 0), 1.5)[None, ..., None]
    layer = Mirrored()
    upright = layer.upright(image, image)
    back = np.asarray(layer.back(upright, image))
    assert np.abs(back - image).mean() < 0.1 * np.abs(np.asarray(upright) - image).mean()
    np.testing.assert_allclose(back, image, atol=0.1)
