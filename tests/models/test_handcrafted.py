"""Hand-made features, against computations of NumPy and SciPy, and what they leave alone."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from model_checks import check_padding, check_round_trip, encoder

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import HandcraftedFeatures
from medseq_tf.models.slice_measures import GROUPS

SIZE = 48
ALL = list(GROUPS)
BINS = 8


def heads(rng, count=3, size=SIZE):
    """Tilted ellipses with a bright rim, a speck at a place of its own, and noise; a bed below."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    made = []
    for number in range(count):
        turn = 0.1 * number - 0.1
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        radius = np.hypot(u / 0.3, v / 0.4)
        head = 0.45 * (radius < 1) + 0.5 * ((radius > 0.85) & (radius < 1))
        head += 0.3 * (np.hypot(u - 0.1, v - 0.05 * number) < 0.06)
        head += 0.2 * (y > 0.47)
        made.append(np.clip(head + rng.normal(0, 0.03, head.shape) * (radius < 1), 0, 1))
    return np.stack(made)[..., None].astype("float32")


@pytest.fixture
def slices(rng):
    return heads(rng)


def measure(slices, *groups, bins=BINS):
    """Features by name, `(N,)` each."""
    layer = HandcraftedFeatures(groups or ALL, bins)
    values = np.asarray(layer(slices))
    names = layer.feature_names(slices.shape[-1])
    assert values.shape == layer.compute_output_shape(slices.shape) == (len(slices), len(names))
    assert len(set(names)) == len(names)
    return dict(zip(names, values.T, strict=True))


def assert_equal(found, expected, tolerance=2e-5):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=tolerance, rtol=1e-4, err_msg=name)


# ------------------------------------------------------------------- an independent computation


def square_mean(image, size):
    return scipy.ndimage.uniform_filter(image.astype("float64"), size, mode="constant")


def between(bright, axis):
    one_way = np.maximum.accumulate(bright, axis)
    return one_way & np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)


def regions_of(image):
    side = len(image)
    grey = image - image.min()
    outline = np.minimum(grey / max(grey.max() / 4, 1e-6), 1)
    bright = square_mean(outline, max(side // 32, 1) | 1) > 0.5
    whole = between(bright, 0) & between(bright, 1)
    rim = 2 * max(side // 21, 1) + 1
    inside = scipy.ndimage.binary_erosion(whole, np.ones((rim, rim)))
    return {"bright": bright, "whole": whole, "inside": inside}


def shares(image, region, bins=BINS):
    distance = np.abs(image[region][:, None] * (bins - 1) - np.arange(bins))
    return np.maximum(1 - distance, 0).sum(0) / max(region.sum(), 1)


def halve(image, region):
    def fours(x):
        high, wide = x.shape
        return x[: high // 2 * 2, : wide // 2 * 2].reshape(high // 2, 2, wide // 2, 2)

    return fours(image).mean((1, 3)), fours(region).all((1, 3))


def moments(values):
    return (values.mean(), values.std()) if values.size else (0.0, 0.0)


def by_hand(image):
    """Histogram, texture, shape and acquisition of one image, by name."""
    found, regions, side = {}, regions_of(image), len(image)
    for name in ("whole", "inside"):
        for step, share in enumerate(shares(image, regions[name])):
            found[f"histogram_{name}_{step}"] = np.sqrt(share + 1e-4)
    for name in ("whole", "inside"):
        z, region = image.astype("float64"), regions[name]
        for scale in (1, 2, 4):
            if scale > 1:
                z, region = halve(z, region)
            below = np.vstack([np.diff(z, axis=0), np.zeros((1, z.shape[1]))])
            right = np.hstack([np.diff(z, axis=1), np.zeros((len(z), 1))])
            maps = {
                "gradient": np.hypot(below, right),
                "laplacian": np.abs(scipy.ndimage.laplace(z, mode="constant")),
                "local_sd": scipy.ndimage.generic_filter(z, np.std, 3, mode="constant"),
            }
            for kind, values in maps.items():
                found[f"{kind}_{name}_{scale}"] = moments(values[region])[0]
    for name in ("bright", "whole"):
        found |= {f"{key}_{name}": value for key, value in shape_by_hand(regions[name]).items()}
    found["filled"] = regions["bright"].sum() / max(regions["whole"].sum(), 1)
    corner = side // 8
    starts = {"top": slice(corner), "low": slice(-corner, None)}
    ends = {"left": slice(corner), "right": slice(-corner, None)}
    corners = {f"{v}_{h}": image[a, b] for v, a in starts.items() for h, b in ends.items()}
    found |= {f"corner_{name}": part.mean() for name, part in corners.items()}
    found["corner_sd"] = np.sqrt(np.mean([part.var() for part in corners.values()]))
    thick = max(side // 32, 1)
    middle = np.zeros(image.shape, bool)
    middle[thick:-thick, thick:-thick] = True
    for name, place in (("border", ~middle), ("outside", ~regions["whole"])):
        mean, deviation = moments(image[place])
        top = image[place].max() if place.any() else 0
        found |= {f"{name}_mean": mean, f"{name}_sd": deviation, f"{name}_max": top}
    found |= {"share_0": (image == 0).mean(), "share_1": (image == 1).mean()}
    for percent in (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100):
        found[f"quantile_{percent}"] = np.quantile(image, percent / 100, method="nearest")
    return found


def shape_by_hand(region):
    side = len(region)
    y, x = (np.argwhere(region) - (side - 1) / 2).T / side
    pixels = len(x)
    if not pixels:
        names = "area centre_x centre_y long_axis short_axis roundness covariance perimeter"
        return dict.fromkeys([*names.split(), "compactness"], 0.0)
    covariance = np.cov(x, y, bias=True)
    short, long = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0))
    wide = np.pad(region, 1).astype(int)
    edges = np.abs(np.diff(wide, axis=0)).sum() + np.abs(np.diff(wide, axis=1)).sum()
    return {
        "area": pixels / side**2,
        "centre_x": x.mean(),
        "centre_y": y.mean(),
        "long_axis": long,
        "short_axis": short,
        "roundness": short / long if long else 0.0,
        "covariance": covariance[0, 1],
        "perimeter": edges / (4 * side),
        "compactness": 4 * np.sqrt(pixels) / edges,
    }


@pytest.mark.parametrize("size", [SIZE, 33, 64])
def test_features_are_those_computed_by_hand(rng, size):
    slices = heads(rng, size=size)
    found = measure(slices, "histogram", "texture", "shape", "acquisition")
    for number, image in enumerate(slices[..., 0]):
        of_slice = {name: values[number] for name, values in found.items()}
        assert_equal(of_slice, by_hand(image), tolerance=5e-4)
    assert np.ptp(found["gradient_inside_1"]) > 0
    assert (found["area_whole"] > 0.2).all(), "a head is found"


def silhouette_by_hand(region):
    """Measures of a binary slice, by name."""
    side, pixels = len(region), region.sum()
    shape = shape_by_hand(region)
    edges = shape["perimeter"] * 4 * side
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    box = np.ptp(rows) + 1, np.ptp(columns) + 1
    cross, square = scipy.ndimage.generate_binary_structure(2, 1), np.ones((3, 3))
    depth, left, rest = np.zeros(region.shape), [pixels], region
    for number in range(side // 4):
        depth += rest
        rest = scipy.ndimage.binary_erosion(rest, square if number % 2 else cross)
        left.append(rest.sum())
    depth += rest
    found = {
        **shape,
        "outline": edges**2 / (16 * pixels),
        "height": box[0] / side,
        "width": box[1] / side,
        "extent": pixels / np.prod(box),
        "depth_max": depth.max() / side,
        "depth_mean": depth[region].mean() / side,
        **{f"left_{k}": left[max(round(k * side / 64), 1)] / pixels for k in (1, 2, 3, 4)},
    }
    for k in (1, 2, 4):
        blurred = scipy.ndimage.gaussian_filter(
            region.astype("float64"), k * side / 64, mode="constant", radius=-(-3 * k * side // 64)
        )
        found[f"near_{k}"] = blurred[region].mean()
    return {f"silhouette_{name}": value for name, value in found.items()}


@pytest.mark.parametrize("size", [33, 64, 96])
def test_silhouettes_are_those_computed_by_hand(rng, size):
    blurred = scipy.ndimage.gaussian_filter(rng.normal(size=(3, size, size)), (0, size / 16, 3))
    regions = blurred > 0.4 * blurred.std()
    slices = np.where(regions, 0.9, 0.2).astype("float32")[..., None]
    found = measure(slices, "silhouette")
    for number, region in enumerate(regions):
        of_slice = {name: values[number] for name, values in found.items()}
        assert_equal(of_slice, silhouette_by_hand(region))
    assert np.ptp(found["silhouette_depth_max"]) > 0


def test_a_disc_is_as_deep_as_its_radius():
    y, x = np.mgrid[:64, :64] - 31.5
    disc = (np.hypot(x, y) < 10).astype("float32")[None, ..., None]
    found = {name: values[0] for name, values in measure(disc, "silhouette").items()}
    assert found["silhouette_depth_max"] == pytest.approx(10 / 64, rel=0.1)
    assert found["silhouette_depth_mean"] == pytest.approx(10 / 64 / 3, rel=0.15)  # of a cone
    assert found["silhouette_outline"] > found["silhouette_extent"]
    wide = np.ones((1, 64, 64, 1), "float32")
    assert measure(wide, "silhouette")["silhouette_depth_max"][0] == pytest.approx(17 / 64)


def test_asymmetry_is_that_of_the_upright_halves(rng):
    """A slice that lies upright in the middle is compared as it is."""
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    head = 0.4 * (np.hypot(x / 0.3, y / 0.4) < 1)
    image = (head + rng.uniform(-0.01, 0.01, head.shape) * (head > 0)).astype("float32")
    both = regions_of(image)["inside"]
    image[20:25, 30:34] += 0.3 * both[20:25, 30:34]
    upright = np.asarray(models.HandcraftedFeatures(["asymmetry"], 2).mirrored.upright(
        image[None, ..., None], image[None, ..., None]))[0, ..., 0]  # fmt: skip
    np.testing.assert_allclose(upright, image, atol=0.05)
    regions, half = regions_of(upright), SIZE // 2
    expected = {}
    for name in ("whole", "inside"):
        left, right = regions[name][:, :half], regions[name][:, half:]
        roots = [
            np.sqrt(shares(part, region) + 1e-4)
            for part, region in ((upright[:, :half], left), (upright[:, half:], right))
        ]
        expected[f"asymmetry_{name}"] = np.sqrt(np.sum((roots[0] - roots[1]) ** 2) / 2)
    difference = (upright - upright[:, ::-1])[:, :half].astype("float64")
    both = (regions["inside"] & regions["inside"][:, ::-1])[:, :half]
    for scale in (1, 2, 4, 8):
        if scale > 1:
            difference, both = halve(difference, both)
        sizes = np.abs(difference[both])
        for kind, value in (("mean", moments(sizes)[0]), ("max", sizes.max(initial=0))):
            expected[f"asymmetry_{kind}_{scale}"] = np.log(value + 1e-3)
    found = measure(image[None, ..., None], "asymmetry")
    assert_equal({name: values[0] for name, values in found.items()}, expected, tolerance=1e-3)
    assert found["asymmetry_max_2"][0] > np.log(0.2)


# --------------------------------------------------------------------------------- invariances


def test_a_mirrored_slice_is_as_asymmetric(slices):
    found, mirrored = measure(slices, "asymmetry"), measure(slices[:, :, ::-1], "asymmetry")
    assert_equal(mirrored, found, tolerance=0.02)
    symmetric = (slices + slices[:, :, ::-1])[1:2] / 2
    less = measure(symmetric, "asymmetry")
    assert less["asymmetry_mean_4"] < found["asymmetry_mean_4"][1] - 0.5


def test_a_moved_and_turned_head_has_the_same_histogram_and_size(slices):
    slices[:, 44:] = 0
    moved = np.roll(slices, 4, axis=2)  # whole squares of 4 x 4
    groups = ("histogram", "texture")
    assert_equal(measure(moved, *groups), measure(slices, *groups), tolerance=1e-5)
    turned = measure(np.rot90(slices, axes=(1, 2)).copy(), "shape")
    for name in ("area", "long_axis", "short_axis", "perimeter", "compactness"):
        found = turned[f"{name}_whole"]
        np.testing.assert_allclose(found, measure(slices, "shape")[f"{name}_whole"], atol=1e-5)


def test_each_channel_is_measured_by_itself_in_the_region_of_its_slice(slices):
    pair = np.concatenate([slices, slices**2], axis=-1)
    found = measure(pair)
    alone = measure(pair.mean(axis=-1, keepdims=True), "shape", "silhouette")
    assert_equal({name: found[name] for name in alone}, alone)
    twice = measure(np.repeat(slices, 2, axis=-1))
    one = measure(slices)
    for name, values in one.items():
        if name in alone:
            np.testing.assert_allclose(twice[name], values, atol=1e-6)
        else:
            for channel in (1, 2):
                np.testing.assert_allclose(
                    twice[f"channel_{channel}_{name}"], values, atol=1e-5, err_msg=name
                )
    assert (found["channel_1_quantile_90"] != found["channel_2_quantile_90"]).any()


@pytest.mark.parametrize("grey", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [16, 17, SIZE])
def test_slices_of_one_grey_value_have_no_region_and_finite_features(grey, size):
    slices = np.full((2, size, size, 1), grey, "float32")
    found = measure(slices)
    assert all(np.isfinite(values).all() for values in found.values())
    assert not found["area_whole"].any()
    assert not found["roundness_whole"].any()
    assert found["silhouette_area"][0] == (grey > 0.5)
    if grey <= 0.5:
        assert not any(found[name].any() for name in found if name.startswith("silhouette"))
    assert (found["asymmetry_inside"] == 0).all()
    np.testing.assert_allclose(found["histogram_whole_0"], 0.01, rtol=1e-4)
    np.testing.assert_allclose(found["quantile_50"], grey)


def test_binary_shapes_are_their_own_region():
    slices = np.zeros((1, 64, 64, 1), "float32")
    slices[0, 10:30, 20:50] = 1
    found = {name: values[0] for name, values in measure(slices).items()}
    assert found["area_bright"] == pytest.approx(600 / 64**2, rel=0.01)
    assert found["filled"] == pytest.approx(1)
    assert found["compactness_whole"] == pytest.approx(np.sqrt(600) / 25, rel=0.01)
    assert found["roundness_whole"] == pytest.approx(20 / 30, rel=0.01)
    assert found["centre_y_whole"] == pytest.approx((19.5 - 31.5) / 64, abs=1e-3)
    assert found["outside_max"] < 1.1


def test_gradients_are_finite_everywhere(slices):
    images = tf.constant(np.concatenate([slices, np.zeros_like(slices), np.ones_like(slices)]))
    layer = HandcraftedFeatures(ALL, BINS)
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(layer(images))
    gradient = tape.gradient(total, images).numpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:3]).max() > 0


# --------------------------------------------------------------------------- the layer, the model


def test_many_slices_are_measured_in_chunks_to_the_same_bits(rng):
    slices = heads(rng, count=35)
    layer = HandcraftedFeatures(ALL, BINS)
    found = np.asarray(layer(slices))
    graph = tf.function(layer, input_signature=[tf.TensorSpec((None, SIZE, SIZE, 1))])
    np.testing.assert_allclose(graph(slices), found, atol=1e-6)
    np.testing.assert_array_equal(graph(slices), graph(slices))
    np.testing.assert_allclose(layer(slices[7:8])[0], found[7], atol=1e-6)


def test_what_is_beyond_black_and_white_is_clipped(slices):
    beyond = np.where(slices < 0.1, -3, slices).astype("float32")
    clipped = np.where(slices < 0.1, 0, slices).astype("float32")
    np.testing.assert_array_equal(
        HandcraftedFeatures(ALL, BINS)(beyond), HandcraftedFeatures(ALL, BINS)(clipped)
    )


def test_padding_and_batch_mates_change_nothing(rng):
    studies = heads(rng, count=8).reshape(2, 4, SIZE, SIZE, 1)
    layer = encoder("handcrafted", features=ALL)
    check_padding(layer, studies, np.array([4, 2], "int32"))
    assert not layer.weights


def test_round_trips(slices):
    check_round_trip(HandcraftedFeatures(["shape", "histogram"], 5), slices)


def test_a_saved_model_gives_the_same(rng, tmp_path):
    settings = recipes.Model(
        encoder={"name": "handcrafted", "features": ["texture", "histogram"], "bins": 4},
        aggregator={"name": "mean"},
        head={"units": []},
    )
    model = models.build(settings, (SIZE, SIZE, 1), labels=2, seed=0)
    studies = heads(rng, count=6).reshape(2, 3, SIZE, SIZE, 1)
    inputs = {"slices": studies, "lengths": np.array([3, 2], "int32")}
    expected = np.asarray(model(inputs))
    assert np.ptp(expected) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(inputs), expected)
    features = model.extract(studies, inputs["lengths"])
    given = {"features": features, "lengths": inputs["lengths"]}
    np.testing.assert_allclose(model(given), expected, atol=1e-5)
    assert model.encoder.backbone.layer.feature_names() == [
        *GROUPS["texture"].names(4),
        *GROUPS["histogram"].names(4),
    ]


def test_what_cannot_be_measured_is_one_line():
    with pytest.raises(InputError, match=r"16 x 16 pixels or more, got 12 x 20; set input\.size"):
        encoder("handcrafted").build((None, None, 12, 20, 1))
    with pytest.raises(ValueError, match=r"features is one of histogram, .*, got 'colour'"):
        HandcraftedFeatures(["colour"], 8)
    recipe = ["model.encoder.name=handcrafted"]
    with pytest.raises(
        InputError, match=r"takes slices in \[0, 1\] as they are; set input\.mean=0"
    ):
        recipes.load("fsm_bilstm", recipe)
    recipe += ["input.mean=0", "input.std=1"]
    assert recipes.load("fsm_bilstm", recipe).uses_features
    assert not recipes.load("fsm_bilstm", [*recipe, "features.use=never"]).uses_features
    with pytest.raises(InputError, match="names one twice"):
        recipes.load("fsm_bilstm", [*recipe, "model.encoder.features=[shape, shape]"])
