"""X-Net, U-Net and D-UNet: weights counted by hand, and what every slice model has to hold."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from model_checks import check_padding, check_round_trip, randomize_moving_statistics

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.layers import kernels
from medseq_tf.models import AreaHead, segmenters
from medseq_tf.models.segmenters import Segmenter

CHANNELS = {"xnet": 1, "unet": 1, "dunet": 5}
WIDTH, SIDE = 2, 16


@functools.cache
def built(network):
    """A network that no test changes."""
    return small(network)


def small(network, **arguments):
    segmenter = Segmenter(network, WIDTH, seed=0, **arguments)
    segmenter.build((None, SIDE, SIDE, CHANNELS[network]))
    return segmenter


def slices(rng, network, *shape):
    return rng.normal(size=(*shape, SIDE, SIDE, CHANNELS[network])).astype("float32")


def recipe(network="unet", *overrides):
    return recipes.load(network, [f"input.size={SIDE}", f"model.encoder.width={WIDTH}", *overrides])


@functools.cache
def classifier(network, seed=0):
    model = models.build(recipe(network).model, (SIDE, SIDE, CHANNELS[network]), 1, seed)
    randomize_moving_statistics(model)
    return model


# ---------------------------------------------------------------------------------- counts


def convolution(kernel, inputs, outputs, dimensions=2, bias=True):
    return kernel**dimensions * inputs * outputs + bias * outputs


def block(kernel, inputs, outputs, dimensions=2):
    """A convolution and the batch normalisation's scale, offset and two moving averages."""
    return convolution(kernel, inputs, outputs, dimensions) + 4 * outputs


def twice(inputs, outputs, dimensions=2):
    return block(3, inputs, outputs, dimensions) + block(3, outputs, outputs, dimensions)


def separable(inputs, outputs):
    def one(inputs):
        depthwise = 9 * inputs + 4 * inputs
        return depthwise + block(1, inputs, outputs)

    return block(1, inputs, outputs) + one(inputs) + 2 * one(outputs)


def both_ways(level, filters, channels, rise):
    """The levels of a U: each from the one above; then up, each beside its own maps."""
    down = sum(level(i, o) for i, o in zip([channels, *filters], filters, strict=False))
    up = sum(rise(2 * f, f) + level(2 * f, f) for f in filters[:-1])
    return down + up + convolution(1, filters[0], 1)


def expected_weights(network, channels):
    filters = [segmenters.WIDTHS[network] * 2**level for level in range(5)]
    if network == "unet":
        return both_ways(twice, filters, channels, lambda i, o: block(3, i, o))
    if network == "xnet":
        bottom = block(3, 1024, 128) + block(3, 128, 1024)
        bottom += 3 * convolution(1, 128, 64, bias=False) + convolution(1, 64, 128, bias=False)
        return bottom + both_ways(separable, filters, channels, lambda i, o: block(3, i, o))
    volume = twice(1, 32, 3) + twice(32, 64, 3) + twice(64, 128, 3)
    fusions = 0
    for f, depth in ((64, 2), (128, 1)):
        squeeze_and_excitation = 2 * f * (f // 16)
        fusions += convolution(1, f, 1, 3) + convolution(3, depth, f) + 2 * squeeze_and_excitation
    return volume + fusions + both_ways(twice, filters, 4, lambda i, o: convolution(2, i, o))


PUBLISHED = {"xnet": "15.1M", "unet": "34.5M", "dunet": "8,640,163"}


@pytest.mark.parametrize("network", CHANNELS)
def test_as_many_weights_as_published(network):
    segmenter = Segmenter(network, None)
    with keras.device("cpu"):
        segmenter.build((None, 192, 192, CHANNELS[network]))
    count = segmenter.count_params()
    assert count == expected_weights(network, CHANNELS[network])
    published = PUBLISHED[network]
    assert (f"{count / 1e6:.1f}M" if "M" in published else f"{count:,}") == published


# --------------------------------------------------------------------------------- networks


@pytest.fixture(params=CHANNELS)
def network(request):
    return request.param


def test_a_logit_for_every_pixel_and_another_config(network, rng):
    segmenter = small(network, momentum=0.8, epsilon=1e-4, dropout=0.1)
    images = slices(rng, network, 3)
    logits = segmenter(images)
    assert (
        logits.shape
        == (3, SIDE, SIDE, 1)
        == segmenter.compute_output_shape(images.shape[:3] + (1,))
    )
    assert np.ptp(logits) > 0
    if network != "xnet":  # which is slow to build
        check_round_trip(segmenter, images)


def test_padding_leaves_no_trace_in_training(rng):
    """`real` slices alone count in batch statistics, as if the others were not there."""
    found = []
    for count, real in ((3, None), (5, np.array([True] * 3 + [False] * 2))):
        segmenter = small("dunet", dropout=0.0)
        images = np.concatenate(
            [slices(np.random.default_rng(1), "dunet", 3), 1e3 * slices(rng, "dunet", count - 3)]
        )
        logits = segmenter(images, real=real, training=True)[:3]
        moving = [v for v in segmenter.non_trainable_variables if "moving" in v.path]
        found.append(np.concatenate([np.ravel(logits), *(np.ravel(v) for v in moving)]))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_dunet_reads_four_slices_and_leaves_the_fifth(rng):
    segmenter, images = built("dunet"), slices(rng, "dunet", 2)
    expected = np.asarray(segmenter(images))
    changed = images.copy()
    changed[..., 4] += 1
    np.testing.assert_array_equal(segmenter(changed), expected)
    for channel in range(4):
        changed = images.copy()
        changed[..., channel] += 1
        assert np.abs(segmenter(changed) - expected).max() > 1e-4


def test_similarity_is_scaled_attention(rng):
    """Against the textbook order: a matrix of places by places first."""
    similarity = built("xnet").bottom
    x = rng.normal(size=(2, 3, 4, 6)).astype("float32")
    theta, phi, g = np.split(x.reshape(2, 12, 6).astype(float), 3, axis=-1)
    expected = np.einsum("bic,bjc->bij", theta, phi) / 12 @ g
    np.testing.assert_allclose(
        np.reshape(similarity._attend(x), (2, 12, 2)), expected, rtol=1e-4, atol=1e-6
    )


def test_inference_in_portions_is_inference_at_once(rng, monkeypatch):
    segmenter, images = built("unet"), slices(rng, "unet", 7)
    at_once = np.asarray(segmenter(images))
    monkeypatch.setattr(segmenters, "SLICES_AT_ONCE", 3)
    calls = []
    in_chunks = kernels.in_chunks
    monkeypatch.setattr(
        kernels,
        "in_chunks",
        lambda f, x, size, *rest: calls.append(size) or in_chunks(f, x, size, *rest),
    )
    np.testing.assert_allclose(segmenter(images), at_once, atol=1e-5)
    assert calls == [3]


def test_unknown_networks_are_named():
    with pytest.raises(ValueError, match="one of xnet, unet, dunet, got 'vnet'"):
        Segmenter("vnet", None)


# --------------------------------------------------------------------- detection by segmentation


def test_the_answer_rises_with_the_area_alone(rng):
    model = classifier("unet")
    backbone = model.encoder.backbone
    images, lengths = slices(rng, "unet", 3, 4), np.array([4, 2, 3], "int32")
    lesion = np.asarray(backbone.lesion(images, lengths))
    areas = np.clip(lesion + 0.5, 0, 1).mean(axis=(2, 3))
    expected = [
        np.log(a[:n].sum() + 1e-6) - np.log(0.01) for a, n in zip(areas, lengths, strict=True)
    ]
    logits = model({"slices": images, "lengths": lengths})
    np.testing.assert_allclose(np.ravel(logits), expected, rtol=1e-4)
    running = np.asarray(model.running({"slices": images, "lengths": lengths}))[..., 0]
    for row, n in zip(running, lengths, strict=True):
        assert (np.diff(row[:n]) >= -1e-6).all()


def test_the_head_is_the_logarithm_of_the_area_over_the_even_one():
    areas = np.array([[0.02], [0.005], [0.5]], "float32")
    head = AreaHead(0.02)
    np.testing.assert_allclose(head(areas), np.log((areas + 1e-6) / 0.02), atol=1e-5)
    check_round_trip(head, areas)


@pytest.mark.parametrize("network", ["unet", "dunet"])
def test_padding_and_batch_mates_change_no_answer(network, rng):
    model = classifier(network)

    def answer(inputs, lengths):
        return model({"slices": inputs, "lengths": lengths})

    check_padding(answer, slices(rng, network, 3, 4), [4, 1, 3])


def test_the_model_survives_its_file(tmp_path, rng):
    model = classifier("unet")
    inputs = {"slices": slices(rng, "unet", 2, 3), "lengths": np.array([3, 2], "int32")}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    assert [v.path for v in loaded.variables] == [v.path for v in model.variables]


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (Segmenter("unet", WIDTH, seed=seed) for seed in (3, 3, 4))
    for segmenter in (first, again, other):
        segmenter.build((None, SIDE, SIDE, 1))
    for a, b in zip(first.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(first.variables, other.variables, strict=True)
    )


def test_one_label_only():
    with pytest.raises(InputError, match=r"predicts one label.*the data set has 5"):
        models.build(recipe().model, (SIDE, SIDE, 1), 5)


# ------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("unet", "loss.name=focal", "set loss.name to one of dice_cross_entropy, dice_focal"),
        ("unet", "loss.weights=balanced", "has no loss.weights"),
        ("unet", "model.aggregator.name=lstm", "joined by model.aggregator sum, max or mean"),
        ("unet", "input.size=40", "a multiple of 16, got 40"),
        ("dunet", "input.neighbours=1", "set input.neighbours=2"),
        ("unet", "model.encoder.network=vnet", "'xnet', 'unet' or 'dunet'"),
        ("fsm_bilstm", "loss.name=dice_focal", "is for model.encoder.name=segmenter"),
        ("fsm_bilstm", "fit.monitor=dice", "dice is for model.encoder.name=segmenter"),
    ],
)
def test_what_does_not_go_together_is_one_line(preset, override, message):
    with pytest.raises(InputError) as caught:
        recipes.load(preset, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
