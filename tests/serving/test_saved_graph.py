"""A SavedModel that is more than arithmetic is refused before any of it runs."""

from __future__ import annotations

import shutil

import pytest
import tensorflow as tf
from small_models import NETWORK, description_of, members_of, model_of, recipe_of
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from medseq_tf.errors import InputError
from medseq_tf.serving.model import ServingModel
from medseq_tf.serving.open_model import open_model, open_saved_model
from medseq_tf.serving.predict import predict
from medseq_tf.serving.saved_graph import check_saved_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An honest export."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = recipe_of(NETWORK)
    model = ServingModel(members_of([model_of(recipe)], recipe), description_of("uint8"))
    tf.saved_model.save(model, str(folder), signatures=model.signatures)
    return folder


def test_an_honest_export_is_opened(exported):
    assert open_saved_model(exported).describe().labels == ["a", "b"]


def python(value):
    return tf.py_function(lambda x: x, [value], tf.string)


DEEDS = {
    "ReadFile": lambda path: tf.io.read_file(path),
    "WriteFile": lambda path: tf.raw_ops.WriteFile(filename=path, contents="x") and path,
    "MatchingFiles": lambda path: tf.io.matching_files(path)[0],
    "EagerPyFunc": python,
    "PyFunc": lambda path: tf.numpy_function(lambda x: x, [path], tf.string),
    "PrintV2": lambda path: tf.raw_ops.PrintV2(input=path, output_stream="file:///tmp/x") and path,
    "RestoreV2": lambda path: tf.raw_ops.RestoreV2(
        prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.string]
    )[0],
    "SaveV2": lambda path: (
        tf.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[path])
        and path
    ),
    r"T\w+Dataset": lambda path: tf.data.TextLineDataset(path).reduce(path, lambda _, b: b),
    "DebugIdentity": lambda path: tf.raw_ops.DebugIdentity(
        input=path, tensor_name="x", debug_urls=["file:///tmp/x"]
    ),
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "within a function"])
def test_a_model_that_does_more_than_compute_is_refused(tmp_path, deed, hidden):
    done = DEEDS[deed]

    @tf.function
    def inner(path):
        return done(path)

    class Stranger(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
        def describe(self, question):
            path = tf.constant(str(tmp_path / "deed"))
            if not hidden:
                return {"description": done(path)}
            answer = tf.cond(tf.equal(question, ""), lambda: inner(path), lambda: path)
            return {"description": answer}

    stranger = Stranger()
    tf.saved_model.save(stranger, str(tmp_path / "m"), {"describe": stranger.describe})
    with pytest.raises(InputError, match=f"is refused: its graph holds {deed}") as refused:
        open_model(tmp_path / "m")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "deed").exists()
    with pytest.raises(InputError, match="is refused"):
        list(predict(tmp_path / "m", tmp_path))


def test_what_runs_at_loading_is_refused(tmp_path):
    class Stranger(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.lookup.StaticVocabularyTable(
                tf.lookup.KeyValueTensorInitializer(["a"], tf.constant([1], tf.int64)), 1
            )

        @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
        def __call__(self, word):
            return {"n": self.table.lookup(word)}

    stranger = Stranger()
    tf.saved_model.save(stranger, str(tmp_path / "m"), {"serving_default": stranger.__call__})
    with pytest.raises(InputError, match="is refused: its graph holds"):
        open_model(tmp_path / "m")


def changed(exported, folder, change):
    shutil.copytree(exported, folder)
    model = SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    change(model)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


def unknown_operation(model):
    model.meta_graphs[0].graph_def.library.function[0].node_def[0].op = "StrangersCustomOp"


def no_objects(model):
    model.meta_graphs[0].ClearField("object_graph_def")


def no_graphs(model):
    del model.meta_graphs[:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unknown_operation, "its graph holds StrangersCustomOp"),
        (no_objects, "none that this version's export wrote"),
        (no_graphs, "none that this version's export wrote"),
    ],
)
def test_a_graph_of_another_kind_is_refused(exported, tmp_path, change, reason):
    folder = changed(exported, tmp_path / "m", change)
    with pytest.raises(InputError, match=reason):
        open_saved_model(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_cut_export_is_one_line(exported, tmp_path, name, share):
    folder = tmp_path / "m"
    shutil.copytree(exported, folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError) as refused:
        open_saved_model(folder)
    assert str(refused.value).startswith(str(folder))
    assert "\n" not in str(refused.value)


def test_another_model_is_named(tmp_path):
    class Other(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
        def __call__(self, value):
            return {"twice": 2 * value}

    other = Other()
    tf.saved_model.save(other, str(tmp_path / "m"), {"serving_default": other.__call__})
    check_saved_model(tmp_path / "m")
    with pytest.raises(InputError, match="none that this version's export wrote"):
        open_saved_model(tmp_path / "m")
