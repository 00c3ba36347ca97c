"""Networks of `keras.applications` over slices: outputs, what is frozen and what is saved."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_checks import check_one_trace, check_padding, check_round_trip

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import KerasNetwork, PretrainedEncoder
from medseq_tf.models.applications import dtype_policy
from medseq_tf.models.losses import LabelLoss

SHAPE = (32, 32, 1)
LENGTHS = np.array([5, 1, 3], "int32")
SMALL = "MobileNet"  # 86 layers, batch normalisation among them, and a quick build


def settings(**encoder):
    values = {"network": SMALL, "weights": "none", "dense": [{"units": 6}], **encoder}
    return recipes.Model(
        encoder={"name": "keras_application", **values},
        aggregator={"units": 4, "layers": 1, "readout": "concat"},
        head={"units": []},
    )


def build(shape=SHAPE, labels=2, seed=0, skip_padding=True, **encoder):
    return models.build(settings(**encoder), shape, labels, seed, skip_padding)


@pytest.fixture
def slices(rng):
    return rng.uniform(size=(3, 5, *SHAPE)).astype("float32")


def application(name):
    return getattr(keras.applications, name)


@pytest.mark.parametrize(
    ("name", "module", "features", "output", "pooling"),
    [
        ("VGG19", "vgg19", 512, "average", "avg"),
        pytest.param("DenseNet121", "densenet", 1024, "average", "avg", marks=pytest.mark.slow),
        pytest.param("ResNet50V2", "resnet_v2", 2048, "max", "max", marks=pytest.mark.slow),
    ],
)
def test_features_are_those_of_the_network_itself(rng, name, module, features, output, pooling):
    network = KerasNetwork(name, output, "all", seed=3)
    network.build((None, 40, 40, 1))
    itself = application(name)(
        weights=None, include_top=False, pooling=pooling, input_shape=(40, 40, 3)
    )
    itself.set_weights(network.model.get_weights())
    slices = rng.uniform(size=(3, 40, 40, 1)).astype("float32")
    pictures = np.repeat(255 * slices, 3, axis=-1)
    preprocess = getattr(keras.applications, module).preprocess_input
    expected = np.asarray(itself(preprocess(pictures)))
    got = network(slices)
    assert got.shape == (3, features)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.1  # not all the same


def test_three_channels_are_red_green_and_blue(rng):
    network = KerasNetwork("VGG16", "average", "all", seed=3)
    network.build((None, *SHAPE[:2], 3))
    slices = rng.uniform(size=(2, *SHAPE[:2], 3)).astype("float32")
    expected = network.model(keras.applications.vgg16.preprocess_input(255 * slices))
    np.testing.assert_allclose(network(slices), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(network(slices[..., ::-1]) - expected).max() > 1e-3


def test_a_model_takes_neighbouring_slices_as_channels(rng):
    model = build((*SHAPE[:2], 3))
    slices = rng.uniform(size=(2, 4, *SHAPE[:2], 3)).astype("float32")
    check_padding(
        lambda x, n: model({"slices": x, "lengths": n}), slices, np.array([4, 2], "int32")
    )


def test_a_layer_below_the_top_is_read_at_any_size(slices):
    whole = application(SMALL)(weights=None, include_top=False, input_shape=(*SHAPE[:2], 3))
    network = KerasNetwork(SMALL, "conv_pw_3_relu", "all", seed=0)
    network.build((None, *SHAPE))
    assert network.compute_output_shape((None, *SHAPE)) == (None, 128)
    part = keras.Model(whole.input, whole.get_layer("conv_pw_3_relu").output)
    part.set_weights(network.model.get_weights())
    pictures = keras.applications.mobilenet.preprocess_input(np.repeat(255 * slices[0], 3, -1))
    expected = np.mean(part(pictures), axis=(1, 2))
    np.testing.assert_allclose(network(slices[0]), expected, rtol=1e-4, atol=1e-4)


def test_several_depths_are_those_of_each_joined_in_order(slices):
    names = ["conv_pw_5_relu", "average", "conv_pw_1", "max"]
    joined = KerasNetwork(SMALL, names, "all", seed=0)
    joined.build((None, *SHAPE))
    expected = []
    for name in names:
        alone = KerasNetwork(SMALL, name, "all")
        alone.build((None, *SHAPE))
        weights = {weight.path.partition("/")[2]: weight for weight in joined.model.weights}
        for weight in alone.model.weights:
            weight.assign(weights[weight.path.partition("/")[2]])
        expected.append(np.asarray(alone(slices[0])))
    found = joined(slices[0])
    assert joined.compute_output_shape((None, *SHAPE)) == (None, 256 + 1024 + 64 + 1024)
    np.testing.assert_allclose(found, np.concatenate(expected, -1), rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing_of_several_depths(slices):
    model = build(output=["conv_pw_3_relu", "average"])
    check_padding(lambda x, n: model({"slices": x, "lengths": n}), slices, LENGTHS, tolerance=1e-4)
    check_padding(model.extract, slices, LENGTHS, tolerance=1e-4)


def test_automatic_layer_names_do_not_depend_on_what_was_built_before():
    first = KerasNetwork("Xception", "conv2d_1", "all", seed=0)
    first.build((None, 72, 72, 1))
    again = KerasNetwork("Xception", "conv2d_1", "all", seed=0)
    again.build((None, 72, 72, 1))
    assert first.model.layers[-2].name != again.model.layers[-2].name  # Keras counts on
    slices = np.ones((1, 72, 72, 1), "float32")
    np.testing.assert_array_equal(first(slices), again(slices))


# ------------------------------------------------------------------------------ sequences


@pytest.mark.parametrize(
    "frozen", ["all", *(pytest.param(frozen, marks=pytest.mark.slow) for frozen in (30, "none"))]
)
def test_padding_and_batch_mates_change_nothing(slices, frozen):
    model = build(frozen=frozen)
    check_padding(lambda x, n: model({"slices": x, "lengths": n}), slices, LENGTHS, tolerance=1e-4)
    check_padding(model.extract, slices, LENGTHS, tolerance=1e-4)
    check_one_trace(lambda x, n: model({"slices": x, "lengths": n}), *SHAPE)


def test_padding_changes_nothing_where_shapes_are_fixed(slices):
    model = build(skip_padding=False)
    expected = build()({"slices": slices, "lengths": LENGTHS})
    call = tf.function(lambda x, n: model({"slices": x, "lengths": n}), jit_compile=True)
    np.testing.assert_allclose(call(slices, LENGTHS), expected, atol=1e-4)
    check_padding(lambda x, n: model({"slices": x, "lengths": n}), slices, LENGTHS, tolerance=1e-4)


def test_features_in_place_of_slices(slices):
    model = build(dropout=0.3)
    features = model.extract(slices, LENGTHS)
    assert features.shape == (3, 5, 1024)
    expected = model({"slices": slices, "lengths": LENGTHS})
    np.testing.assert_array_equal(model({"features": features, "lengths": LENGTHS}), expected)
    np.testing.assert_allclose(model.encoder.network(slices[0]), features[0], rtol=1e-5, atol=1e-5)
    check_padding(lambda x, n: model({"features": x, "lengths": n}), np.asarray(features), LENGTHS)


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_a_study_passes_a_frozen_network_in_portions(rng, monkeypatch, count):
    network = KerasNetwork(SMALL, "average", "all", seed=0)
    network.build((None, *SHAPE))
    seen, whole = [], network._features
    slices = rng.uniform(size=(count, *SHAPE)).astype("float32")
    expected = whole(tf.constant(slices))
    monkeypatch.setattr(network, "_features", lambda x: seen.append(len(x)) or whole(x))
    got = network(slices)
    assert max(seen) <= 16
    assert sum(seen) == count
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------- frozen


def values(layer):
    return {v.path: np.asarray(v).copy() for v in layer.variables}


def train_a_step(model, slices):
    model.compile(keras.optimizers.SGD(0.1), keras.losses.BinaryCrossentropy(from_logits=True))
    labels = np.array([[1, 0], [0, 1], [1, 1]], "float32")
    model.train_on_batch({"slices": slices, "lengths": LENGTHS}, labels)


def test_a_network_frozen_whole_stays_as_it_was(slices):
    model = build()
    before, others = values(model.encoder.network), values(model.head)
    network = {v.path for v in model.encoder.network.variables}
    assert not network & {v.path for v in model.trainable_variables}
    features = model.extract(slices, LENGTHS)
    train_a_step(model, slices)
    after = values(model.encoder.network)
    assert any("moving_variance" in path for path in after)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    assert any((values(model.head)[path] != value).any() for path, value in others.items())
    in_training = model.encoder.backbone(slices, lengths=LENGTHS, training=True)
    np.testing.assert_array_equal(in_training, features)


def test_a_network_frozen_whole_has_no_gradient(slices):
    model = build()
    tensor = tf.constant(slices)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        total = tf.reduce_sum(model.extract(tensor, LENGTHS))
    assert tape.gradient(total, tensor) is None


def test_the_first_layers_are_frozen_and_the_others_learn(slices):
    model = build(frozen=30)
    layers = model.encoder.network.model.layers
    assert isinstance(layers[0], keras.layers.InputLayer)  # the first of Keras's list
    frozen = {v.path for layer in layers[:30] for v in layer.variables}
    before = values(model.encoder.network)
    train_a_step(model, slices)
    after = values(model.encoder.network)
    changed = {path for path in after if (after[path] != before[path]).any()}
    assert any("moving_mean" in path for path in frozen)
    assert not changed & frozen
    learned = {v.path for layer in layers[30:] for v in layer.variables}
    assert {path for path in learned if "moving" in path or "kernel" in path} <= changed


def test_nothing_is_frozen(slices):
    model = build(frozen="none")
    before = values(model.encoder.network)
    train_a_step(model, slices)
    after = values(model.encoder.network)
    assert all((after[p] != before[p]).any() for p in after if "kernel" in p or "moving" in p)


def test_batch_statistics_with_padding_in_them_are_refused():
    with pytest.raises(InputError, match=r"MobileNet learns batch statistics.*fit\.jit=false"):
        build(frozen=30, skip_padding=False)
    build(frozen=86, skip_padding=False)


def test_unknown_labels_teach_nothing(slices):
    """Five labels, the third unknown for every study, the others for some."""
    model, loss = build(labels=5, frozen=30), LabelLoss([1, 2, 3, 4, 5.0], [5, 4, 3, 2, 1.0])
    labels = np.array([[1, 0, np.nan, 1, 0], [0, np.nan] + 3 * [np.nan], [1, 1, np.nan, 0, 1]])

    def gradients(labels):
        with tf.GradientTape() as tape:
            logits = model({"slices": slices, "lengths": LENGTHS}, training=True)
            total = tf.reduce_sum(loss.elementwise(labels, logits)[0])
        return tape.gradient(total, model.trainable_variables)

    found = gradients(labels)
    assert all(np.isfinite(gradient).all() for gradient in found)
    kernel = found[-2]
    assert model.trainable_variables[-2].path.endswith("logits/kernel")
    assert not np.any(kernel[:, 2])
    assert np.asarray(kernel)[:, [0, 1, 3, 4]].any(axis=0).all()
    assert not any(np.any(gradient) for gradient in gradients(np.full((3, 5), np.nan)))


# -------------------------------------------------------------------------- saved and seeded


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"network": "EfficientNetB0", "frozen": 40, "dropout": 0.2},
        {"output": "conv_pw_3_relu", "dense": [{"units": 5, "activation": "linear"}]},
        {"output": ["conv_pw_3_relu", "max"], "frozen": 20},
        {"network": "EfficientNetLite0", "output": ["stage_3", "stage_5", "average"]},
    ],
)
def test_a_saved_model_needs_no_other_file(slices, tmp_path, monkeypatch, encoder):
    model = build(**encoder)
    inputs = {"slices": slices, "lengths": LENGTHS}
    expected = model(inputs)
    model.save(tmp_path / "model.keras")

    def no_weights(*args, **kwargs):
        raise AssertionError("a saved model brings its own weights")

    monkeypatch.setattr("medseq_tf.models.applications.randomize", no_weights)
    monkeypatch.setattr("medseq_tf.models.applications._load", no_weights)
    monkeypatch.setattr("medseq_tf.models.applications._download", no_weights)
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(inputs), expected)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    for ours, theirs in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_round_trips(slices):
    network = KerasNetwork(SMALL, "max", frozen=7, seed=5)
    check_round_trip(network, slices[0])
    network = KerasNetwork(SMALL, ["conv_pw_3_relu", "max"], frozen=7, seed=5)
    check_round_trip(network, slices[0])
    network = KerasNetwork(SMALL, "average", "all", seed=5)
    encoder = PretrainedEncoder(network, [(4, "relu"), (3, "linear")], 0.2, False, 6)
    check_round_trip(encoder, slices, LENGTHS)


@pytest.mark.parametrize(
    "network", ["VGG16", pytest.param("EfficientNetB0", marks=pytest.mark.slow)]
)
def test_one_seed_gives_one_network(network):
    first, again, other = (build(network=network, seed=seed) for seed in (3, 3, 4))
    different = False
    for ours, same, others in zip(first.variables, again.variables, other.variables, strict=True):
        np.testing.assert_array_equal(ours, same, err_msg=ours.path)
        different |= "kernel" in ours.path and (np.asarray(ours) != np.asarray(others)).any()
    assert different


@pytest.mark.parametrize(
    ("network", "side"),
    [
        ("EfficientNetLite0", 64),
        ("VGG19", 32),
        ("VGG19", 96),
        ("DenseNet121", 64),
        ("ResNet50", 32),
        ("MobileNetV2", 96),
    ],
)
def test_random_networks_neither_fade_nor_overflow(network, side):
    layer = KerasNetwork(network, "average", "all", seed=0)
    layer.build((None, side, side, 1))
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    heads = [np.hypot(rows, columns * w) < 0.4 for w in (1, 1.2, 1.5, 2)]  # ellipses on black
    slices = np.stack(heads).astype("float32")[..., None] * 0.6
    features = np.asarray(layer(slices))
    scale = np.sqrt(np.mean(np.square(features)))
    assert 0.02 < scale < 200
    assert features.std(axis=0).mean() > 1e-3 * scale


def test_mixed_precision_survives_saving(slices, tmp_path):
    expected = build()({"slices": slices, "lengths": LENGTHS})
    with dtype_policy("mixed_bfloat16"):
        model = build()
    features = model.extract(slices, LENGTHS)
    assert features.dtype == model.compute_dtype != "float32"
    inputs = {"slices": slices, "lengths": LENGTHS}
    logits = model(inputs)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, expected, atol=0.3)  # a hundred roundings to 8 bits
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs), logits)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("encoder", "shape", "message"),
    [
        ({"network": "VGG91"}, SHAPE, r"network = VGG91: .* \(did you mean VGG19\?\); it has "),
        ({"network": "vgg19"}, SHAPE, r"did you mean VGG19"),
        ({"network": "layers"}, SHAPE, r"keras.applications has no such network"),
        ({"output": "conv_pw_3_rel"}, SHAPE, r"no such layer \(did you mean conv_pw_3_relu\?\)"),
        ({"output": "conv_preds"}, SHAPE, r"needs slices of 224 x 224, got 32 x 32; set input"),
        (
            {"output": ["average", "conv_pw_3_rel"]},
            SHAPE,
            r"output = conv_pw_3_rel: .* no such lay",
        ),
        ({"output": ["max", "conv_preds"]}, SHAPE, r"needs slices of 224 x 224, got 32 x 32"),
        (
            {"output": ["max", "conv_preds"]},
            (224, 224, 1),
            r"max cannot be joined with conv_preds, a layer of the .* top; name conv_pw_13_relu in",
        ),
        ({"network": "EfficientNetLite"}, SHAPE, r"did you mean EfficientNetLite0\?"),
        ({"network": "EfficientNetLite0", "output": "stage_8"}, SHAPE, r"did you mean stage_"),
        ({"frozen": 500}, SHAPE, r"frozen = 500: MobileNet has 87 layers; all"),
        ({"network": "DenseNet121"}, (16, 16, 1), r"slices of 16 x 16 do not fit DenseNet121"),
        ({}, (32, 32, 2), r"1 or 3 channels, got 2; set input.windows"),
    ],
)
def test_what_does_not_fit_is_one_line(encoder, shape, message):
    with pytest.raises(InputError, match=message) as caught:
        build(shape, **encoder)
    assert "\n" not in str(caught.value)
