"""Weights of networks: downloaded, from files of both layouts, and every file that does not fit."""

from __future__ import annotations

import urllib.error

import h5py
import keras
import numpy as np
import pytest

from medseq_tf.errors import InputError
from medseq_tf.models import KerasNetwork

SHAPE = (32, 32, 3)


def made(name="MobileNet", **options):
    """A network with weights that Keras draws, its moving statistics unlike those of a new one."""
    options = {"include_top": False, "input_shape": SHAPE, **options}
    network = getattr(keras.applications, name)(weights=None, **options)
    rng = np.random.default_rng(1)
    for variable in network.variables:
        if "moving_mean" in variable.path:
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return network


def write_older_layout(network, path):
    """The layout of the files that Keras downloads: one group a layer, in the network's order."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        for layer in network.layers:
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0" for w in weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, weights, strict=True):
                group.create_dataset(name, data=np.asarray(weight))


def loaded(source, name="MobileNet", shape=SHAPE, output="average"):
    network = KerasNetwork(name, output, "all")
    network.source = str(source)
    network.build((None, *shape))
    return network


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    network = made()
    write_older_layout(network, folder / "older.h5")
    network.save_weights(folder / "new.weights.h5")
    write_older_layout(made(include_top=True, input_shape=(224, 224, 3)), folder / "top.h5")
    write_older_layout(made("MobileNetV2"), folder / "other.h5")
    (folder / "text.h5").write_text("no weights")
    (folder / "older.weights.h5").write_bytes((folder / "older.h5").read_bytes())
    (folder / "new.h5").write_bytes((folder / "new.weights.h5").read_bytes())
    (folder / "cut.h5").write_bytes((folder / "older.h5").read_bytes()[:100_000])
    (folder / "weights.npz").write_bytes(b"")
    return folder, network


@pytest.mark.parametrize("file", ["older.h5", "new.weights.h5"])
def test_a_file_of_either_layout(files, file):
    folder, network = files
    for ours, theirs in zip(
        loaded(folder / file).model.get_weights(), network.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_is_loaded_as_imagenet_is(files, monkeypatch):
    folder, _ = files
    asked = []
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file",
        lambda name, origin, **kwargs: asked.append(origin) or str(folder / "older.h5"),
    )
    downloaded = loaded("imagenet").model
    assert asked[0].endswith("mobilenet_1_0_224_tf_no_top.h5")
    for ours, theirs in zip(
        downloaded.get_weights(), loaded(folder / "older.h5").model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_efficientnet_divides_by_the_deviation_wherever_its_weights_come_from(
    tmp_path, monkeypatch, rng
):
    """Keras adds a scaling layer for `weights="imagenet"` and for nothing else."""
    network = made("EfficientNetB0")
    normalization = next(n for n in network.layers if isinstance(n, keras.layers.Normalization))
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalization.set_weights([np.array(mean), np.array(deviation), np.array(0)])
    write_older_layout(network, tmp_path / "b0.h5")
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file", lambda *args, **kwargs: str(tmp_path / "b0.h5")
    )
    keras_s_own = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, pooling="avg", input_shape=SHAPE
    )
    slices = rng.uniform(size=(2, *SHAPE)).astype("float32")
    expected = np.asarray(keras_s_own(255 * slices))
    for source in ("imagenet", tmp_path / "b0.h5"):
        network = loaded(source, "EfficientNetB0")
        np.testing.assert_allclose(network(slices), expected, rtol=1e-4, atol=1e-5)


def test_a_failed_download_says_what_to_fetch_and_how_to_name_it(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", no_network)
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: str(tmp_path))
    with pytest.raises(InputError) as caught:
        loaded("imagenet", "VGG16")
    line = str(caught.value)
    file = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{file}" in line
    assert line.endswith(f"--set model.encoder.weights=PATH/{file}")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.h5", "no such file; give imagenet, none or"),
        ("weights.npz", "ends in .h5 or .weights.h5"),
        ("text.h5", "is not an HDF5 file"),
        ("cut.h5", "is not an HDF5 file"),
        ("top.h5", "with its classification layers, which this output does without; take the file"),
        ("other.h5", "does not fit MobileNet: it holds 2,257,984 weights, the network has 3,228,8"),
        ("older.weights.h5", "its layout is that of a file that ends in .h5, without .weights"),
        ("new.h5", "its layout is that of a file that ends in .weights.h5; rename it"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(files, file, message):
    folder, _ = files
    with pytest.raises(InputError) as caught:
        loaded(folder / file)
    assert str(caught.value).startswith(f"model.encoder.weights = {folder / file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_the_top_that_is_needed(files):
    folder, _ = files
    with pytest.raises(InputError, match="without the classification layers that this output"):
        loaded(folder / "older.h5", shape=(224, 224, 3), output="conv_preds")
    assert loaded(folder / "top.h5", shape=(224, 224, 3), output="conv_preds").model.output_shape


def test_as_many_weights_of_another_shape(files, tmp_path):
    _, network = files
    write_older_layout(network, tmp_path / "turned.h5")
    with h5py.File(tmp_path / "turned.h5", "a") as file:
        group = file["conv1"]
        name = group.attrs["weight_names"][0]
        turned = np.moveaxis(group[name][:], 3, 0)
        del group[name]
        group.create_dataset(name, data=turned)
    with pytest.raises(InputError, match=r"turned\.h5: does not fit MobileNet: ") as caught:
        loaded(tmp_path / "turned.h5")
    assert "\n" not in str(caught.value)
