"""Augmentations against OpenCV, SciPy and NumPy, and what all of them promise."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from medseq_tf.input.augment import AUGMENTATIONS, augment
from medseq_tf.recipe import Augment

H, W = 24, 40
SEED = tf.constant([3, 7], tf.int32)
CERTAIN = {
    "rotation": {"degrees": 180.0, "p": 1.0},
    "resized_crop": {"scale": (0.4, 0.9), "p": 1.0},
    "flip": {"p": 1.0},
    "gaussian_noise": {"p": 1.0},
    "gaussian_blur": {"kernel": (3, 7), "p": 1.0},
    "grid_distortion": {"p": 1.0},
    "optical_distortion": {"p": 1.0},
    "coarse_dropout": {"p": 1.0},
}
each = pytest.mark.parametrize("name", AUGMENTATIONS)
# Noise is one field over all chosen pixels, and brightens black.
each_but_noise = pytest.mark.parametrize("name", [n for n in CERTAIN if n != "gaussian_noise"])


def pictures(count: int = 6, height: int = H, width: int = W, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(0.1, 0.9, (count, height, width, channels)).astype(np.float32)


def settings_of(name: str, **values):
    return getattr(Augment(**{name: {**CERTAIN[name], **values}}), name)


def draw(name: str, count: int, seed=SEED, **values) -> dict[str, tf.Tensor]:
    return AUGMENTATIONS[name].draw(count, seed, settings_of(name, **values))


def apply(name: str, images: np.ndarray, parameters) -> np.ndarray:
    return AUGMENTATIONS[name].apply(tf.constant(images), parameters).numpy()


def sample(image: np.ndarray, y: np.ndarray, x: np.ndarray, border: str) -> np.ndarray:
    """SciPy's bilinear sampling; `mirror` is OpenCV's BORDER_REFLECT_101."""
    y, x = np.broadcast_arrays(y, x)
    return ndimage.map_coordinates(image, [y, x], order=1, mode=border, cval=0.0)


# ------------------------------------------------------------------------- what all of them promise


def test_there_is_one_for_every_field_in_its_order():
    assert list(AUGMENTATIONS) == list(Augment.model_fields) == list(CERTAIN)


@each
def test_changes_the_output_keeps_shape_and_type_and_leaves_the_input(name):
    images = pictures()
    before = images.copy()
    given = tf.constant(images)
    changed = AUGMENTATIONS[name].apply(given, draw(name, 6))
    assert changed.shape == given.shape
    assert changed.dtype == tf.float32
    assert all((changed[i].numpy() != images[i]).any() for i in range(6))
    np.testing.assert_array_equal(given, before)
    assert np.isfinite(changed).all()


@each
def test_a_draw_that_was_not_chosen_changes_no_bit(name):
    images = pictures()
    np.testing.assert_array_equal(apply(name, images, draw(name, 6, p=0.0)), images)


@each
def test_only_chosen_slices_change(name):
    images = pictures(200, 16, 16)
    changed = apply(name, images, draw(name, 200, p=0.3)) != images
    share = changed.any(axis=(1, 2, 3)).mean()
    assert 0.18 < share < 0.42


@each
def test_a_draw_can_be_replayed_and_another_seed_draws_otherwise(name):
    images = pictures()
    parameters = draw(name, 6, p=0.5)
    kept = {key: tf.constant(value.numpy()) for key, value in parameters.items()}
    first = apply(name, images, parameters)
    np.testing.assert_array_equal(first, apply(name, images, kept))
    np.testing.assert_array_equal(first, apply(name, images, draw(name, 6, p=0.5)))
    other = draw(name, 64, seed=tf.constant([3, 8]), p=0.5)
    assert (
        apply(name, pictures(64), draw(name, 64, p=0.5)) != apply(name, pictures(64), other)
    ).any()


@each_but_noise
def test_each_slice_by_its_own_parameters(name):
    """A slice comes out the same alone and among others."""
    images, parameters = pictures(), draw(name, 6)
    together = apply(name, images, parameters)
    for i in range(6):
        alone = {key: value[i : i + 1] for key, value in parameters.items()}
        np.testing.assert_allclose(together[i], apply(name, images[i : i + 1], alone)[0], atol=1e-6)


@each_but_noise
def test_channels_go_through_the_same_change(name):
    images, parameters = pictures(channels=3), draw(name, 6)
    together = apply(name, images, parameters)
    for channel in range(3):
        alone = apply(name, images[..., channel : channel + 1], parameters)
        np.testing.assert_allclose(together[..., channel : channel + 1], alone, atol=1e-6)


@each_but_noise
def test_a_black_slice_stays_black_and_none_is_added(name):
    black = np.zeros((2, H, W, 1), np.float32)
    np.testing.assert_array_equal(apply(name, black, draw(name, 2)), black)
    assert apply(name, black[:0], draw(name, 0)).shape == (0, H, W, 1)


# --------------------------------------------------------------------------- each by its reference


@pytest.mark.parametrize("degrees", [-170.0, -33.0, 10.0, 90.0])
def test_rotation_is_opencvs_with_black_outside(degrees):
    images = pictures(1)
    turned = apply("rotation", images, {"radians": tf.constant([np.deg2rad(degrees)], tf.float32)})
    matrix = cv2.getRotationMatrix2D(((W - 1) / 2, (H - 1) / 2), degrees, 1.0)
    y, x = np.mgrid[:H, :W]
    source = cv2.invertAffineTransform(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(H * W)])
    exact = sample(images[0, ..., 0], source[1], source[0], "grid-constant").reshape(H, W)
    np.testing.assert_allclose(turned[0, ..., 0], exact, atol=2e-5)
    # OpenCV itself rounds coordinates to 1/32 pixel.
    smooth = ndimage.gaussian_filter(images, (0, 3, 3, 0))
    turned = apply("rotation", smooth, {"radians": tf.constant([np.deg2rad(degrees)], tf.float32)})
    opencv = cv2.warpAffine(smooth[0, ..., 0], matrix, (W, H), flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(turned[0, ..., 0], opencv, atol=0.02)


def test_rotation_angles_fill_the_range():
    angles = np.rad2deg(draw("rotation", 2000, degrees=10.0)["radians"])
    assert -10 <= angles.min() < -9.8
    assert 9.8 < angles.max() <= 10
    assert abs(angles.mean()) < 0.5


@pytest.mark.parametrize(("scale", "y", "x"), [(0.4, 0.0, 0.999), (0.7, 0.25, 0.5)])
def test_resized_crop_is_a_bilinear_zoom(scale, y, x):
    images = pictures(1)
    parameters = {key: tf.constant([v]) for key, v in {"scale": scale, "y": y, "x": x}.items()}
    rows = y * (1 - scale) * H + scale * (np.arange(H) + 0.5) - 0.5
    columns = x * (1 - scale) * W + scale * (np.arange(W) + 0.5) - 0.5
    exact = sample(images[0, ..., 0], rows[:, None], columns[None], "mirror")
    np.testing.assert_allclose(
        apply("resized_crop", images, parameters)[0, ..., 0], exact, atol=2e-5
    )


def test_resized_crop_of_whole_pixels_is_opencvs_resize():
    images = pictures(1, 32, 32)
    parameters = {"scale": [0.5], "y": [0.5], "x": [0.25]}  # rows 8 to 24, columns 4 to 20
    parameters = {key: tf.constant(value) for key, value in parameters.items()}
    zoomed = apply("resized_crop", images, parameters)[0, ..., 0]
    opencv = cv2.resize(images[0, 8:24, 4:20, 0], (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(zoomed[1:-1, 1:-1], opencv[1:-1, 1:-1], atol=1e-5)


def test_resized_crop_scales_stay_in_the_range():
    scale = draw("resized_crop", 1000, scale=(0.4, 1.0))["scale"].numpy()
    assert 0.4 <= scale.min() < 0.42
    assert 0.98 < scale.max() <= 1.0


def test_flip_is_numpys():
    images = pictures(2)
    flipped = apply("flip", images, {"flip": tf.constant([True, False])})
    np.testing.assert_array_equal(flipped, np.stack([images[0, :, ::-1], images[1]]))


def test_noise_has_the_drawn_variance_on_the_255_scale():
    grey = np.full((400, 32, 32, 1), 0.5, np.float32)
    parameters = draw("gaussian_noise", 400, variance=(1.0, 7.0))
    noise = (apply("gaussian_noise", grey, parameters) - grey) * 255
    drawn = (parameters["std"].numpy() * 255) ** 2
    assert 1.0 <= drawn.min() < 1.2
    assert 6.8 < drawn.max() <= 7.0
    np.testing.assert_allclose(noise.var(axis=(1, 2, 3)), drawn, rtol=0.2)
    assert abs(noise.mean()) < 0.02
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.15
    standardised = noise / np.sqrt(drawn)[:, None, None, None]
    assert abs((standardised**4).mean() - 3) < 0.05  # a normal distribution's fourth moment


def test_noise_stays_in_the_range_of_the_picture():
    images = np.float32(np.random.default_rng(0).integers(0, 2, (4, 16, 16, 1)))
    noisy = apply("gaussian_noise", images, draw("gaussian_noise", 4, variance=(100.0, 900.0)))
    assert noisy.min() == 0.0
    assert noisy.max() == 1.0


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 15, 31])
@pytest.mark.parametrize("shape", [(H, W), (16, 17)])
def test_blur_is_opencvs(size, shape):
    images = pictures(2, *shape)
    parameters = draw("gaussian_blur", 2, kernel=(size, size))
    opencv = np.stack([cv2.GaussianBlur(image[..., 0], (size, size), 0) for image in images])
    np.testing.assert_allclose(
        apply("gaussian_blur", images, parameters)[..., 0], opencv, atol=2e-6
    )


def test_the_largest_blur_of_the_smallest_slice_keeps_its_mean_grey():
    grey = np.full((1, 8, 8, 1), 0.5, np.float32)
    parameters = draw("gaussian_blur", 1, kernel=(31, 31))
    np.testing.assert_allclose(apply("gaussian_blur", grey, parameters), grey, atol=1e-6)


def test_blur_kernels_are_equally_likely():
    weights = draw("gaussian_blur", 3000, kernel=(1, 5))["weights"].numpy()
    shares = np.bincount((weights > 0).sum(axis=1), minlength=6) / 3000
    assert (shares[[0, 2, 4]] == 0).all()
    np.testing.assert_allclose(shares[[1, 3, 5]], 1 / 3, atol=0.04)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_grid_distortion_stretches_the_cells(steps):
    images = pictures(1)
    parameters = draw("grid_distortion", 1, steps=steps, limit=0.9)

    def coordinates(extents, size):
        edges = np.arange(steps + 1) * size / steps
        moved = np.concatenate([[0.0], np.cumsum(np.asarray(extents) * size / steps)])
        return np.interp(np.arange(size), edges, moved)

    y, x = (coordinates(parameters[k][0], n) for k, n in (("y", H), ("x", W)))
    exact = sample(images[0, ..., 0], y[:, None], x[None], "mirror")
    warped = apply("grid_distortion", images, parameters)[0, ..., 0]
    np.testing.assert_allclose(warped, exact, atol=1e-4)


def test_grid_distortion_extents_stay_within_the_limit():
    extents = draw("grid_distortion", 500, limit=0.3)["x"].numpy()
    assert extents.shape == (500, 3)
    assert 0.7 <= extents.min() < 0.71
    assert 1.29 < extents.max() <= 1.3


@pytest.mark.parametrize("coefficient", [-0.9, -0.05, 0.05, 0.9])
def test_optical_distortion_is_opencvs_camera_model(coefficient):
    images = pictures(1)
    warped = apply("optical_distortion", images, {"coefficient": tf.constant([coefficient])})
    camera = np.array([[W, 0, (W - 1) / 2], [0, H, (H - 1) / 2], [0, 0, 1.0]])
    x, y = cv2.initUndistortRectifyMap(
        camera, np.array([coefficient, coefficient, 0, 0, 0]), None, camera, (W, H), cv2.CV_32FC1
    )
    exact = sample(images[0, ..., 0], y, x, "mirror")
    np.testing.assert_allclose(warped[0, ..., 0], exact, atol=1e-4)
    smooth = ndimage.gaussian_filter(images, (0, 3, 3, 0))
    warped = apply("optical_distortion", smooth, {"coefficient": tf.constant([coefficient])})
    opencv = cv2.remap(smooth[0, ..., 0], x, y, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(warped[0, ..., 0], opencv, atol=0.02)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_dropout_is_numpys_holes_inside_the_slice(size):
    images = pictures(3)
    parameters = draw("coarse_dropout", 3, holes=4, size=size)
    expected = images.copy()
    side = (min(size, H), min(size, W))
    for i in range(3):
        for y, x in zip(parameters["y"][i].numpy(), parameters["x"][i].numpy(), strict=True):
            top, left = int(y * np.float32(H - side[0] + 1)), int(x * np.float32(W - side[1] + 1))
            assert top + side[0] <= H
            assert left + side[1] <= W
            expected[i, top : top + side[0], left : left + side[1]] = 0
    np.testing.assert_array_equal(apply("coarse_dropout", images, parameters), expected)


# -------------------------------------------------------------------------------------- together

PAPER = {name: {} for name in CERTAIN}


def run(images, ids, settings, seed=SEED) -> np.ndarray:
    return augment(tf.constant(images), tf.constant(ids), seed, settings, 0.5, 0.3).numpy()


def test_without_augmentations_slices_are_normalised():
    images = pictures()
    np.testing.assert_allclose(
        run(images, [0] * 6, Augment()), (images - 0.5) / 0.3, rtol=1e-5, atol=1e-6
    )


def test_graph_equals_eager_and_the_seed_decides():
    images, ids = pictures(), [0, 0, 1, 1, 1, 2]
    settings = Augment(**PAPER)
    eager = run(images, ids, settings)

    @tf.function
    def graph(images, ids, seed):
        return augment(images, ids, seed, settings, 0.5, 0.3)

    signature = graph.get_concrete_function(
        tf.TensorSpec((None, H, W, 1)),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((2,), tf.int32),
    )
    np.testing.assert_allclose(signature(images, ids, SEED), eager, atol=1e-5)
    np.testing.assert_array_equal(run(images, ids, settings), eager)
    assert (run(images, ids, settings, tf.constant([0, 1])) != eager).any()


@each
def test_drawn_once_a_sequence_or_once_a_slice(name):
    """Equal slices stay equal within a sequence where its draw is shared (noise excepted)."""
    images = np.repeat(pictures(1), 8, axis=0)
    ids = np.repeat([0, 1], 4)
    values = {**CERTAIN[name], "p": 0.5} if name == "flip" else CERTAIN[name]

    def distinct(per: str, seed: int) -> list[int]:
        changed = run(
            images, ids, Augment(**{name: {**values, "per": per}}), tf.constant([0, seed])
        )
        return [len({picture.tobytes() for picture in changed[ids == i]}) for i in (0, 1)]

    if name != "gaussian_noise":
        assert all(distinct("sequence", seed) == [1, 1] for seed in range(4))
    assert any(max(distinct("slice", seed)) > 1 for seed in range(4))
    settings = Augment(**{name: {**values, "per": "sequence"}})
    changed = [run(images, ids, settings, tf.constant([0, seed])) for seed in range(8)]
    assert any((sequences[0] != sequences[4]).any() for sequences in changed)


@pytest.mark.parametrize(("after", "value"), [(True, 0.0), (False, -0.5 / 0.3)])
def test_dropout_stands_before_or_after_normalisation(after, value):
    settings = Augment(coarse_dropout={"after_normalisation": after, "p": 1.0, "holes": 1})
    images = pictures()
    changed = run(images, [0] * 6, settings)
    normalised = run(images, [0] * 6, Augment())
    holes = changed != normalised
    np.testing.assert_allclose(changed[holes], value, rtol=1e-6)
    assert (holes.sum(axis=(1, 2, 3)) == 64).all()


def test_one_augmentation_draws_the_same_whatever_else_is_on():
    images, ids = pictures(), [0] * 6
    flips = Augment(flip={"p": 0.5, "per": "slice"})
    both = Augment(flip={"p": 0.5, "per": "slice"}, gaussian_blur={"kernel": (1, 1)})
    np.testing.assert_array_equal(run(images, ids, flips), run(images, ids, both))


def test_the_module_draws_only_statelessly():
    tf.random.set_seed(0)
    first = run(pictures(), [0] * 6, Augment(**PAPER))
    tf.random.set_seed(1)
    np.testing.assert_array_equal(run(pictures(), [0] * 6, Augment(**PAPER)), first)
