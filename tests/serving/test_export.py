"""Exports: whole or absent, checked, and answering where there is no Keras."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from served import class_data, class_run, data, exported, exported_classes, pictures, small_run
from tensorflow_serving.apis import prediction_log_pb2

from medseq_tf import cli
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.inference import study_probabilities
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run
from medseq_tf.serving import export as export_module
from medseq_tf.serving import export_check
from medseq_tf.serving.description import Description
from medseq_tf.serving.export import export
from medseq_tf.serving.export_check import synthetic_studies
from medseq_tf.serving.model import LoadedRun
from medseq_tf.serving.open_model import open_model

CLEAN = """
import json, sys
sys.modules["keras"] = sys.modules["medseq_tf"] = None
import numpy as np, tensorflow as tf
try:
    import keras
except ImportError:
    pass
loaded = tf.saved_model.load(sys.argv[1])
files = np.load(sys.argv[2], allow_pickle=False)["files"]
rows = tf.constant([[bytes(file) for file in files]])
ask = loaded.signatures["serving_default"]
answer = ask(image_bytes=rows, lengths=tf.constant([len(files)]))
print(json.dumps([answer[name].numpy()[0].tolist() for name in sorted(answer)]))
"""


def keras_probability(row, run=None, prepared=None):
    run, prepared = run or small_run(), prepared or Prepared.load(data())
    store = SliceStore(prepared, run.experiment)
    return study_probabilities(run.model(), store, np.array([row]), run.experiment)[0]


def probabilities_by_tensorflow_alone(path, files, tmp_path):
    """What a model gives in a process that cannot import Keras: of the study, after each slice."""
    longest = max(map(len, files))
    padded = np.array([file.ljust(longest, b"\0") for file in files], f"S{longest}")
    np.savez(tmp_path / "files.npz", files=padded)
    words = [sys.executable, "-c", CLEAN, str(path), str(tmp_path / "files.npz")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    return map(np.array, json.loads(done.stdout))


def test_a_checked_version(tmp_path):
    done = exported()
    assert done.path.name == str(done.version) == "1"
    assert done.difference <= 1e-5
    assert done.studies >= 5
    found = {str(p.relative_to(done.path)) for p in done.path.rglob("*") if p.is_file()}
    assert {
        "saved_model.pb",
        "assets/description.json",
        "assets/experiment.yaml",
        "assets.extra/tf_serving_warmup_requests",
    } <= found
    assert not [p for p in done.path.parent.iterdir() if p.name.startswith(".")]
    run = small_run()
    description = Description.from_json((done.path / "assets/description.json").read_text("utf-8"))
    assert description == Description.of_run(run)
    assert description.thresholds == run.thresholds
    assert recipes.load(done.path / "assets/experiment.yaml") == run.experiment


def test_it_answers_where_keras_cannot_be_imported(tmp_path):
    files = Prepared.load(data()).encoded_slices(3)
    probability, running = probabilities_by_tensorflow_alone(exported().path, files, tmp_path)
    assert probability == pytest.approx(keras_probability(3), abs=1e-5)
    assert running.shape == (len(files), 1)


def test_classes_with_covariates(tmp_path):
    """Exported, described, and predicted by TensorFlow alone, where covariates are missing."""
    done, run, prepared = exported_classes(), class_run(), Prepared.load(class_data())
    assert done.difference <= 1e-5
    description = Description.from_json((done.path / "assets/description.json").read_text("utf-8"))
    assert description == Description.of_run(run)
    assert description.labels == ["hemorrhage", "ischemia", "mass"]
    assert (description.classes.column, description.classes.ordered) == ("lesion", False)
    assert description.temperatures == run.temperatures
    assert [covariate["name"] for covariate in description.covariates] == ["sex", "age"]
    files = prepared.encoded_slices(3)
    probability, running = probabilities_by_tensorflow_alone(done.path, files, tmp_path)
    blank = prepared.studies.drop(columns=["covariate.age", "covariate.sex"])
    without = dataclasses.replace(prepared, studies=blank)
    np.testing.assert_allclose(probability, keras_probability(3, run, without), atol=1e-5)
    np.testing.assert_allclose(running.sum(axis=1), np.ones(len(files)), atol=1e-6)
    told = open_model(done.path).predict(
        files,
        covariates={name: prepared.studies[f"covariate.{name}"][3] for name in ("age", "sex")},
    )
    np.testing.assert_allclose(
        told.probability, keras_probability(3, run, prepared), rtol=0, atol=1e-5
    )
    assert abs(told.probability - probability).max() > 1e-4, "covariates have to matter"


def test_classes_are_exported_with_their_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_save", a_file)
    descriptions = []
    monkeypatch.setattr(
        export_module, "check", lambda path, loaded, studies: descriptions.append(loaded) or 0.0
    )
    costs = tmp_path / "costs.csv"
    costs.write_text(
        "true,mass,ischemia,hemorrhage\nmass,0,1,1\nischemia,2,0,1\nhemorrhage,9,9,0\n"
    )
    export(class_run(), tmp_path / "model", costs=costs)
    assert descriptions[0].description.costs == [[0, 9, 9], [1, 0, 2], [1, 1, 0]]
    with pytest.raises(InputError, match="costs are of classes"):
        export(small_run(), tmp_path / "model", costs=costs)


def test_classes_whose_probabilities_do_not_add_up_fail_the_check():
    def ask(image_bytes, lengths):
        running = tf.constant([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.3]]])
        return {"probability": running[:, 0], "running_probability": running}

    classes = Classes("lesion", ("a", "b", "c"))
    export_check._check_sums(ask, [pictures(1)], classes)
    with pytest.raises(InputError, match=r"probabilities of lesion add up to 1\.05"):
        export_check._check_sums(ask, [pictures(2)], classes)


@pytest.mark.slow
def test_folds_of_grades(tmp_path):
    from small_run import run_small

    from medseq_tf.dataset.prepare import prepare

    prepared = prepare(
        "demo",
        out=tmp_path / "data",
        kind="grades",
        patients=30,
        size=32,
        workers=1,
        progress=False,
    )
    run = run_small(
        prepared, tmp_path / "run", "fit.epochs=1", "sequence.evaluation.policy=paper", folds=2
    )
    done = export(run, tmp_path / "model")
    assert done.difference <= 1e-5
    opened = open_model(done.path)
    description = opened.describe()
    assert description.labels == ["mild", "moderate", "severe"]
    assert (description.classes.ordered, description.members) == (True, 2)
    running = opened.predict(prepared.encoded_slices(0), running=True).running
    np.testing.assert_allclose(running.sum(axis=1), 1, rtol=0, atol=1e-6)


def a_file(loaded, folder):
    (folder / "saved_model.pb").write_bytes(b"a model")


def test_versions_count_up(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_save", a_file)
    monkeypatch.setattr(export_module, "check", lambda *a: 0.0)
    out = tmp_path / "model"
    (out / "7").mkdir(parents=True)
    (out / "not a version").mkdir()
    assert export(small_run(), out).path == out / "8"
    assert export(small_run(), out, version=3, batching=True).path == out / "3"
    with pytest.raises(InputError, match="3 exists already"):
        export(small_run(), out, version=3)
    with pytest.raises(InputError, match="from 1 up"):
        export(small_run(), out, version=0)
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def checked(studies=None):
    """The check of the version that is there."""
    loaded = LoadedRun.open(small_run())
    return export_check.check(exported().path, loaded, studies or synthetic_studies(loaded))


def test_a_model_with_another_number_fails_the_check(monkeypatch):
    monkeypatch.setattr(export_check, "_keras_probabilities", lambda *a: np.full((6, 1), 0.123))
    with pytest.raises(InputError, match="differ from the Keras model's by"):
        checked()


def test_a_model_that_answers_garbage_fails_the_check():
    with pytest.raises(InputError, match="answers no picture with a probability"):
        export_check._check_refusals(lambda **request: request, [b"a file"])


def test_a_model_that_fails_the_check_is_not_there(tmp_path, monkeypatch):
    def fails(*arguments):
        raise InputError("another number")

    monkeypatch.setattr(export_module, "_save", a_file)
    monkeypatch.setattr(export_module, "check", fails)
    with pytest.raises(InputError, match="another number"):
        export(small_run(), tmp_path / "model", batching=True)
    assert not list((tmp_path / "model").iterdir())


def test_what_a_killed_export_left_is_removed_and_another_s_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_save", a_file)
    monkeypatch.setattr(export_module, "check", lambda *a: 0.0)
    out = tmp_path / "model"
    for name in (".partial-0123456789ab", "1", "my notes"):
        (out / name).mkdir(parents=True)
        (out / name / "saved_model.pb").write_text("x")
    assert export(small_run(), out).version == 2
    assert sorted(p.name for p in out.iterdir()) == ["1", "2", "my notes"]


def test_two_exports_at_once_are_two_versions(tmp_path, monkeypatch):
    out, inside = tmp_path / "model", []

    def one_at_a_time(loaded, folder):
        inside.append(folder)
        assert len([p for p in out.iterdir() if p.is_dir() and not p.name.isdecimal()]) == 1
        (folder / "saved_model.pb").write_bytes(b"a model")

    monkeypatch.setattr(export_module, "_save", one_at_a_time)
    monkeypatch.setattr(export_module, "check", lambda *a: 0.0)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: export(small_run(), out), range(2)))
    assert sorted(exported.version for exported in done) == [1, 2]
    assert sorted(p.name for p in out.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "variables.data; No space left on device"),
        tf.errors.UnknownError(None, None, "variables.index; No space left on device"),
    ],
    ids=["Python", "exhausted", "unknown"],
)
def test_a_full_disk_is_one_line_with_the_model_s_name(tmp_path, monkeypatch, capsys, full):
    def fails(*arguments):
        raise full

    monkeypatch.setattr(export_module, "_save", fails)
    words = ["medseq-tf", "export", str(small_run().path), "--out", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert "No space left on device" in line
    assert str(tmp_path / "model" / "1") in line
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(tmp_path, monkeypatch, capsys, number, status):
    monkeypatch.setattr(export_module, "_save", a_file)
    monkeypatch.setattr(export_module, "check", lambda *a: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    words = ["medseq-tf", "export", str(small_run().path), "--out", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", words)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == status
    assert capsys.readouterr().err == "medseq-tf: interrupted; nothing was written\n"
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.slow
def test_checked_on_a_data_set():
    studies = export_check.prepared_studies(data(), Description.of_run(small_run()))
    assert len(studies) == 8
    assert len({len(study.files) for study in studies}) > 3
    assert checked(studies) <= 1e-5


def test_a_data_set_that_is_prepared_otherwise(tmp_path):
    from medseq_tf.dataset.prepare import prepare

    other = prepare("demo", out=tmp_path / "other", patients=2, size=24, workers=1, progress=False)
    with pytest.raises(InputError, match=r"prepared otherwise.*32 pixels"):
        export(small_run(), tmp_path / "model", data=other)


def test_warm_up_requests_are_tensorflow_serving_s():
    path = exported().path / "assets.extra" / "tf_serving_warmup_requests"
    records = [bytes(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    loaded = tf.saved_model.load(str(exported().path))
    assert 1 < len(records) <= 1000
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "lesion"
        ask = loaded.signatures[request.model_spec.signature_name]
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        assert ask(**inputs)


def test_the_batching_configuration_has_tensorflow_serving_s_fields():
    text = (exported().path.parent / "batching.config").read_text("utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    fields = dict(re.split(r":\s*|\s*\{\s*value:\s*", line.rstrip(" }")) for line in lines if line)
    assert fields == {
        "max_batch_size": "8",
        "batch_timeout_micros": "5000",
        "max_enqueued_batches": "128",
        "num_batch_threads": "2",
        "pad_variable_length_inputs": "true",
    }


def test_an_unfinished_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for file in small_run().path.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    info = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps({**info, "status": "stopped"}))
    with pytest.raises(InputError, match="the run is stopped"):
        export(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "modality"), [("int16", "CT"), ("uint16", "MR")])
def test_folds_of_16_bit_intensities(tmp_path, dtype, modality):
    """A cross-validated run on volumes, checked on made-up studies of their kind."""
    from small_run import run_small

    from medseq_tf.dataset.prepare import prepare
    from medseq_tf.phantom.cohort import DemoCohort
    from medseq_tf.phantom.writers import write_volumes

    cohort = DemoCohort(patients=20, size=40, difficulty=0.0)
    source = write_volumes(cohort, tmp_path / "volumes")
    prepared = prepare(
        "volumes", source, out=tmp_path / "data", size=32, workers=1, progress=False,
        modality=modality,
    )  # fmt: skip
    windows = ["input.windows=[[40, 80], [300, 2000]]"] if modality == "CT" else []
    run = run_small(prepared, tmp_path / "run", "fit.epochs=1", *windows, folds=2)
    assert len(Run.open(run).folds) == 2
    done = export(run, tmp_path / "model")
    assert done.difference <= 1e-5
    description = Description.from_json((done.path / "assets/description.json").read_text("utf-8"))
    assert (description.members, description.bits) == (2, 16)
    loaded = tf.saved_model.load(str(done.path))
    with pytest.raises(tf.errors.InvalidArgumentError, match="no 16-bit greyscale PNG"):
        loaded.signatures["serving_default"](
            image_bytes=tf.constant([pictures(1)]), lengths=tf.constant([1])
        )


def test_no_raw_path_of_this_machine_in_what_is_written():
    for path in exported().path.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            assert str(Path.home()) not in path.read_text("utf-8")
            assert str(data()) not in path.read_text("utf-8")


def test_the_command_has_the_defaults_of_its_function():
    words = ["run", "--out", "model"]
    found = cli.cli.commands["export"].make_context("export", words).params
    parameters = inspect.signature(export).parameters
    assert found.keys() == parameters.keys()
    for name in found.keys() - {"run", "out"}:
        assert found[name] == parameters[name].default, name


def test_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export_module, "_save", a_file)
    monkeypatch.setattr(export_module, "check", lambda *a: 2e-8)
    words = ["medseq-tf", "export", str(small_run().path), "--out", str(tmp_path / "m")]
    monkeypatch.setattr(sys, "argv", [*words, "--batching"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert f"model:  {tmp_path / 'm' / '1'}" in out
    assert "2.0e-08 from the Keras model" in out
    assert (tmp_path / "m" / "batching.config").is_file()
    monkeypatch.setattr(sys, "argv", ["medseq-tf", "export", str(tmp_path), "--out", "m"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "no run folder" in capsys.readouterr().err
