"""A `model.keras` that is damaged, a stranger's or a bomb: one line, and nothing of it is run."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from small_run import SMALL, run_small

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.runs.model_file import load_model_file
from medseq_tf.runs.run import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a model that is whole."""
    path = tmp_path_factory.mktemp("whole") / "model.keras"
    recipe = recipes.load(recipes.Experiment(), SMALL)
    models.build(recipe.model, (32, 32, 1), labels=1, seed=0).save(path)
    return path.read_bytes()


def parts(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(members, packing=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def with_config(data, change):
    members = parts(data)
    config = json.loads(members["config.json"])
    members["config.json"] = json.dumps(change(config) or config).encode()
    return archive(members)


def with_weights(data, change):
    members = parts(data)
    buffer = io.BytesIO(members["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return archive({**members, "model.weights.h5": buffer.getvalue()})


def set_units(config):
    config["config"]["aggregator"]["config"]["units"] = 10**8


def set_other_units(config):
    config["config"]["aggregator"]["config"]["units"] = 7


def set_lambda(config):
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None}}
    config["config"]["head"] = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"name": "head", "function": code},
        "registered_name": None,
    }


def set_function(config):
    config["config"]["name"] = {
        "module": "keras.utils",
        "class_name": "function",
        "config": "get_file",
        "registered_name": "get_file",
    }


def set_saved_model(config):
    config["config"]["head"] = {
        "module": "keras.layers",
        "class_name": "TFSMLayer",
        "config": {"filepath": "/tmp/a-stranger-s"},
        "registered_name": None,
    }


def nest(config):
    for _ in range(100):
        config = {"config": config}
    return config


def external_link(file):
    del file["head/logits/vars/0"]
    file["head/logits/vars/0"] = h5py.ExternalLink("/etc/hostname", "/")


def soft_link(file):
    del file["head/logits/vars/0"]
    file["head/logits/vars/0"] = h5py.SoftLink("/head/logits/vars/1")


def circle(file):
    file["head/again"] = file["head"]


def external_data(file):
    shape = file["head/logits/vars/0"].shape
    del file["head/logits/vars/0"]
    size = 4 * int(np.prod(shape))
    file["head/logits/vars"].create_dataset(
        "0", shape, np.float32, external=[("/etc/passwd", 0, size)]
    )


def shape_bomb(file):
    del file["head/logits/vars/0"]
    file["head/logits/vars"].create_dataset(
        "0", (2**20, 2**20), np.float32, chunks=(1, 1024), compression="gzip"
    )


def encrypted(data):
    """Mark all members as encrypted, in their own headers and in the table of contents."""
    data = bytearray(archive({**parts(data), "metadata.json": b""}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(signature), bytes(data)):
            data[match.start() + flags] |= 1
    return bytes(data)


def badly_packed(data):
    """Spoil the packed configuration."""
    buffer = io.BytesIO(archive({k: v for k, v in parts(data).items() if k != "config.json"}))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", parts(data)["config.json"])
    packed = bytearray(buffer.getvalue())
    start = packed.find(b"config.json") + len(b"config.json")
    packed[start : start + 40] = b"\xff" * 40
    return bytes(packed)


def no_weights(file):
    for name in list(file):
        del file[name]


HOSTILE = {
    "empty": (lambda data: b"", "damaged or cut short"),
    "foreign": (lambda data: b"\x89PNG\r\n" * 400, "damaged or cut short"),
    "cut in half": (lambda data: data[: len(data) // 2], "damaged or cut short"),
    "another archive": (lambda data: archive({"a.txt": b"a"}), "holds other files"),
    "a legacy file": (lambda data: parts(data)["model.weights.h5"], "damaged or cut short"),
    "without weights": (
        lambda data: archive({k: v for k, v in parts(data).items() if "weights" not in k}),
        "holds no weights",
    ),
    "without a configuration": (
        lambda data: archive({k: v for k, v in parts(data).items() if "config" not in k}),
        "holds no configuration",
    ),
    "a damaged configuration": (
        lambda data: archive({**parts(data), "config.json": b"{"}),
        "damaged or cut short",
    ),
    "a deep configuration": (
        lambda data: archive({**parts(data), "config.json": b"[" * 500_000}),
        "damaged or cut short",
    ),
    "a nested configuration": (lambda data: with_config(data, nest), "deeper than any of ours"),
    "more files": (
        lambda data: archive({**parts(data), "assets/../../x": b"x"}),
        "holds other files",
    ),
    "a packed bomb": (
        lambda data: archive(
            {**parts(data), "model.weights.h5": bytes(2**24)}, zipfile.ZIP_DEFLATED
        ),
        "unpacks to more than it holds",
    ),
    "encrypted": (encrypted, "is encrypted or packed"),
    "badly packed": (badly_packed, "is encrypted or packed"),
    "no HDF5": (
        lambda data: archive({**parts(data), "model.weights.h5": b"none"}),
        "its weights are damaged",
    ),
    "too many units": (
        lambda data: with_config(data, set_units),
        "units = 100000000 stands in its configuration",
    ),
    "other units": (lambda data: with_config(data, set_other_units), "do not fit together"),
    "a Lambda layer": (lambda data: with_config(data, set_lambda), "holds a 'Lambda'"),
    "a function": (lambda data: with_config(data, set_function), "holds a 'function'"),
    "a SavedModel": (lambda data: with_config(data, set_saved_model), "holds a 'TFSMLayer'"),
    "an external link": (lambda data: with_weights(data, external_link), "links to elsewhere"),
    "a soft link": (lambda data: with_weights(data, soft_link), "links to elsewhere"),
    "external data": (lambda data: with_weights(data, external_data), "links to elsewhere"),
    "a circle": (lambda data: with_weights(data, circle), "lie in circles"),
    "a shape bomb": (lambda data: with_weights(data, shape_bomb), "declares more weights"),
    "no weights": (lambda data: with_weights(data, no_weights), "holds no weights"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_file_that_is_none_is_one_line(tmp_path, whole, name):
    make, reason = HOSTILE[name]
    path = tmp_path / "model.keras"
    path.write_bytes(make(whole))
    with pytest.raises(InputError) as refused:
        load_model_file(path)
    line = str(refused.value)
    assert line.startswith(f"{path}: cannot be used (")
    assert reason in line
    assert "\n" not in line


def test_a_model_of_another_kind_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(InputError, match="holds a 'Sequential', which is no layer of this package"):
        load_model_file(tmp_path / "model.keras")


@pytest.mark.parametrize("preset", recipes.presets())
def test_the_models_of_all_presets_pass(tmp_path, preset):
    """With fewer weights where a preset has very many."""
    narrow = {"xnet": "model.encoder.width=4", "unet": "model.encoder.width=4"}
    narrow["dunet"] = "model.encoder.width=4"
    smaller = [narrow[preset]] if preset in narrow else []
    recipe = recipes.load(preset, smaller)
    if recipe.model.encoder.name == "keras_application":
        recipe = recipes.load(
            preset,
            [
                "model.encoder.network=MobileNetV3Small",
                "model.encoder.output=average",
                "model.encoder.weights=none",
                "model.encoder.frozen=all",
            ],
        )
    shape = (recipe.input.size, recipe.input.size, recipe.input.channels)
    model = models.build(recipe.model, shape, labels=1, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model_file(tmp_path / "model.keras")
    for before, after in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.fixture(scope="module")
def damaged_run(tmp_path_factory, demo_data):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    run = run_small(demo_data, folder, "fit.epochs=1")
    path = run.path / "model.keras"
    path.write_bytes(path.read_bytes()[:2000])
    return run


def command(*words):
    done = subprocess.run(
        [sys.executable, "-c", "from medseq_tf.cli import main; main()", *map(str, words)],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.slow
def test_every_command_says_that_a_run_s_model_is_damaged(tmp_path, damaged_run, demo_data):
    run, data = damaged_run.path, demo_data
    for words in (
        ("evaluate", run, "--data", data),
        ("export", run, "--out", tmp_path / "out"),
        ("explain", run, "--data", data),
        ("predict", run, data),
    ):
        assert "model.keras: cannot be used (damaged or cut short)" in command(*words)


def test_a_damaged_run_is_one_line(damaged_run):
    with pytest.raises(InputError, match=r"model\.keras: cannot be used \(damaged or cut short\)"):
        Run.open(damaged_run.path).model()
