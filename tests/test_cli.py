"""The command line: thin, quick, and one clear line with exit status 2 for bad input."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import cv2
import numpy as np
import pytest
from command_line import run_command
from small_run import SMALL, run_small

import medseq_tf
from medseq_tf import cli
from medseq_tf.cli import FoldCount
from medseq_tf.dataset.prepare import READERS, prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import Aspect
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.predictions import SPLIT_NAMES
from medseq_tf.phantom import cohort
from medseq_tf.readers import image_folder, volumes
from medseq_tf.readers.columns import SiteNames
from medseq_tf.readers.dicom import identity
from medseq_tf.readers.dicom.study import Tilt
from medseq_tf.readers.labels import TableOptions
from medseq_tf.readers.series import SeriesAs
from medseq_tf.readers.study import MODALITIES
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.run import Run
from medseq_tf.training.loop import Fitter
from medseq_tf.training.train import train

SIZES = ["--size", "16", "--workers", "1"]


def write_slices(folder: Path, names, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (16, 16), np.uint8))


@pytest.mark.parametrize(("command", "function"), [("train", train), ("evaluate", evaluate)])
def test_a_command_has_the_defaults_of_its_function(command, function):
    """Each option is an argument of the function; --json alone is the command line's own."""
    given = {"experiment": "x", "run": Path("x"), "data": Path("y")}
    found = cli.cli.commands[command].make_context(command, ["x", "--data", "y"]).params
    parameters = inspect.signature(function).parameters
    for name in found.keys() - given.keys() - {"as_json"}:
        assert found[name] == parameters[name].default, name
    assert all(parameters[name].default is inspect.Parameter.empty for name in found & given.keys())


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_s_options_have_the_defaults_of_its_scan_and_of_prepare(reader):
    words = ["--out", "o"] if reader == "demo" else ["source", "--out", "o"]
    found = cli.prepare.commands[reader].make_context(reader, words).params
    expected = inspect.signature(prepare).parameters | inspect.signature(READERS[reader]).parameters
    for name in found.keys() - {"source", "out"}:
        value = None if found[name] == () else found[name]
        of_table = name in TableOptions.__annotations__ and name not in expected
        assert value == (None if of_table else expected[name].default), name


@pytest.mark.parametrize(
    ("command", "option", "valid"),
    [
        (cli.prepare.commands["volumes"], "match", get_args(volumes.Match)),
        (cli.prepare.commands["volumes"], "modality", MODALITIES),
        (cli.prepare.commands["image-folder"], "series_as", get_args(SeriesAs)),
        (cli.prepare.commands["image-folder"], "site_names", get_args(SiteNames)),
        (cli.prepare.commands["image-folder"], "layout", get_args(image_folder.Layout)),
        (cli.prepare.commands["image-folder"], "same_numbers", get_args(image_folder.SameNumbers)),
        (cli.prepare.commands["dicom"], "match", get_args(identity.Match)),
        (cli.prepare.commands["dicom"], "tilt", get_args(Tilt)),
        (cli.prepare.commands["demo"], "kind", get_args(cohort.Kind)),
        (cli.prepare.commands["demo"], "aspect", get_args(Aspect)),
        (cli.evaluate, "split", SPLIT_NAMES),
    ],
)
def test_what_may_be_chosen_is_what_the_function_takes(command, option, valid):
    """The command line lists it anew, for --help imports nothing."""
    (found,) = [parameter for parameter in command.params if parameter.name == option]
    assert set(found.type.choices) == set(valid)


def test_the_same_as_a_module():
    for command, option in (
        ("prepare", "image-folder"),
        ("train", "--data"),
        ("evaluate", "--data"),
    ):
        words = [sys.executable, "-m", "medseq_tf", command, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert option in done.stdout


def test_tune_as_a_module_is_light_in_the_processes_it_starts():
    code = (
        "import runpy, sys\n"
        "runpy.run_module('medseq_tf.tune', run_name='__mp_main__', alter_sys=True)\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("words", [[], ["prepare"]])
def test_without_a_command_the_help_is_shown(words, monkeypatch, capsys):
    status, _, err = run_command(monkeypatch, capsys, *words)
    assert status in (0, 2)  # click before 8.2: 0
    assert len(err.splitlines()) > 10 or not err
    assert "error" not in err.splitlines()[:1]


def test_version(monkeypatch, capsys):
    assert medseq_tf.__version__ in run_command(monkeypatch, capsys, "--version")[1]


def test_from_a_folder_to_a_report(monkeypatch, capsys, tmp_path, no_server):
    for label, shade in (("Normal", 0), ("Stroke", 1)):
        for patient in range(10):
            names = [f"{patient + 10 * shade} ({i}).png" for i in range(1, 5)]
            write_slices(tmp_path / "scans" / label, names, seed=patient + 10 * shade)
    status, out, _ = run_command(
        monkeypatch, capsys, "prepare", "image-folder", "scans", "--out", "data", *SIZES
    )
    assert status == 0
    assert "20 studies" in out
    small = ["input.size=16", "model.encoder.filters=[2]", "model.encoder.kernels=[3]"]
    small += ["model.encoder.strides=[2]", "model.encoder.paddings=[0]", "fit.epochs=1"]
    words = [word for setting in small for word in ("--set", setting)]
    status, out, _ = run_command(
        monkeypatch, capsys, "train", "fsm_bilstm", "--data", "data", "--name", "first", *words
    )
    assert status == 0
    assert "auroc" in out
    assert "report: runs/first/report.html" in out
    assert "MLflow: sqlite" in out
    status, out, _ = run_command(
        monkeypatch, capsys, "evaluate", "runs/first", "--data", "data", "--json"
    )
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    expected = {"metric", "calibration", "confusion", "subgroup", "test_reads"}
    assert expected == {row["table"] for row in rows}
    rows = [row for row in rows if row["table"] == "metric"]
    stored = json.loads(Path("runs/first/metrics.json").read_text("utf-8"))["table"]
    stored = {row["metric"]: row for row in stored if row["split"] == "test"}
    for row in rows:
        assert row["value"] == pytest.approx(stored[row["metric"]]["value"], abs=1e-5)


BAD = {
    "no such source": (["prepare", "image-folder", "nowhere", "--out", "o"], "nowhere"),
    "a file as source": (["prepare", "image-folder", "file.txt", "--out", "o"], "file.txt"),
    "an empty source": (["prepare", "image-folder", "empty", "--out", "o"], "empty"),
    "only broken images": (["prepare", "image-folder", "broken", "--out", "o"], "broken"),
    "labels without a usable column": (
        ["prepare", "image-folder", "patients", "--labels", "text.csv", "--out", "o"],
        "text.csv",
    ),
    "labels that are not 0 or 1": (
        ["prepare", "image-folder", "patients", "--labels", "two.csv", "--out", "o"],
        "two.csv",
    ),
    "a patient twice in the labels": (
        ["prepare", "image-folder", "patients", "--labels", "twice.csv", "--out", "o"],
        "twice.csv",
    ),
    "a missing labels file": (
        ["prepare", "image-folder", "patients", "--labels", "none.csv", "--out", "o"],
        "none.csv",
    ),
    "volumes without labels": (["prepare", "volumes", "patients", "--out", "o"], "labels"),
    "no volume in the source": (
        ["prepare", "volumes", "patients", "--labels", "ok.csv", "--out", "o"],
        "patients",
    ),
    "no such axis": (
        ["prepare", "volumes", "patients", "--labels", "ok.csv", "--out", "o", "--axis", "top"],
        "axial",
    ),
    "not an ATLAS release": (["prepare", "atlas", "patients", "--out", "o"], "patients"),
    "no DICOM in the source": (
        ["prepare", "dicom", "patients", "--labels", "ok.csv", "--out", "o"],
        "patients",
    ),
    "a setting out of range": (
        ["prepare", "demo", "--difficulty", "3", "--out", "o"],
        "difficulty",
    ),
    "an impossible size": (
        ["prepare", "image-folder", "patients", "--out", "o", "--size", "0"],
        "size",
    ),
    "out in use": (["prepare", "image-folder", "patients", "--out", "patients"], "patients"),
    "an unknown option": (["train", "fsm_bilstm", "--dta", "x"], "--dta"),
    "an unknown command": (["trian"], "trian"),
    "not a data set": (["train", "fsm_bilstm", "--data", "empty"], "dataset.json"),
    "a file as data set": (["train", "fsm_bilstm", "--data", "file.txt"], "prepared data set"),
    "a run as data set": (["train", "fsm_bilstm", "--data", "run"], "run is the folder of a run"),
    "an unknown preset": (["train", "fsm_lstm", "--data", "empty"], "fsm_bilstm"),
    "an unknown key": (
        ["train", "fsm_bilstm", "--data", "empty", "--set", "fit.epoch=3"],
        "did you mean epochs?",
    ),
    "no run": (["evaluate", "empty", "--data", "empty"], "no run folder"),
    "one fold": (["train", "fsm_bilstm", "--data", "empty", "--folds", "1"], "--folds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys, no_server):
    words, named = BAD[case]
    Path("file.txt").write_text("text")
    Path("empty").mkdir()
    write_slices(Path("patients/anna"), ["1.png", "2.png"])
    write_slices(Path("patients/berta"), ["1.png"], seed=1)
    Path("broken/Stroke").mkdir(parents=True)
    Path("broken/Stroke/1 (1).jpg").write_bytes(b"")
    Path("broken/Stroke/2 (1).png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Path("text.csv").write_text("patient_id,finding\nanna,yes please\nberta,no\n")
    Path("ok.csv").write_text("patient_id,stroke\nanna,1\nberta,0\n")
    Path("two.csv").write_text("patient_id,stroke\nanna,2\nberta,0\n")
    Path("twice.csv").write_text("patient_id,stroke\nanna,1\nanna,0\nberta,0\n")
    Path("run").mkdir()
    Path("run/experiment.yaml").touch()
    Path("run/dataset.json").write_text("{}")
    before = sorted(str(p) for p in Path().rglob("*"))
    status, _, err = run_command(monkeypatch, capsys, *words)
    assert status == 2
    assert err.startswith("medseq-tf: error: ")
    assert len(err.strip().splitlines()) == 1
    assert named in err
    assert "Traceback" not in err
    assert sorted(str(p) for p in Path().rglob("*")) == before


def test_debug_shows_where_an_error_comes_from(monkeypatch, capsys, tmp_path):
    for words in (
        ["train", "fsm_bilstm", "--data", "nowhere"],
        ["prepare", "image-folder", "nowhere", "--out", tmp_path / "o"],
        ["track", "nowhere"],
        ["report", "nowhere"],
    ):
        status, _, plain = run_command(monkeypatch, capsys, *words)
        assert status == 2
        assert len(plain.splitlines()) == 1
        for given in ([*words, "--debug"], ["--debug", *words]):
            status, _, err = run_command(monkeypatch, capsys, *given)
            assert status == 2
            assert err.startswith("Traceback")
            assert err.endswith(plain)


def test_every_command_takes_debug():
    def every(group):
        for command in group.commands.values():
            yield command
            yield from every(command) if hasattr(command, "commands") else ()

    commands = [cli.cli, *every(cli.cli)]
    assert len(commands) > 10
    for command in commands:
        assert [p.name for p in command.params].count("debug") == 1, command.name


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "medseq-tf: interrupted"),
        (OSError(28, "No space left on device", "x.csv"), 2, "x.csv: No space left on device (--d"),
        (MemoryError(), 2, "medseq-tf: error: out of memory; a smaller"),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype(int)), 2, "out of memory"),
    ],
    ids=["interrupted", "full disk", "memory", "array"],
)
def test_what_ends_a_command_is_one_line(monkeypatch, capsys, error, status, line):
    def fails(**arguments):
        raise error

    monkeypatch.setattr(sys.modules["medseq_tf.evaluation.evaluate"], "evaluate", fails)
    code, _, err = run_command(monkeypatch, capsys, "evaluate", "x", "--data", "y")
    assert code == status
    assert line in err
    assert len(err.splitlines()) == 1


def test_a_ctrl_c_that_becomes_another_error_is_one_line(monkeypatch, capsys):
    """TensorFlow, while it traces a model, makes a TypeError of it."""

    def fails(**arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError("cannot be converted") from None

    monkeypatch.setattr(sys.modules["medseq_tf.evaluation.evaluate"], "evaluate", fails)
    before = signal.getsignal(signal.SIGINT)
    status, _, err = run_command(monkeypatch, capsys, "evaluate", "x", "--data", "y")
    assert (status, err) == (130, "medseq-tf: interrupted\n")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_sigterm_is_as_a_ctrl_c(monkeypatch, capsys, demo_data, tmp_path):
    """Also where a shell ignores Ctrl-C: training saves its state, and --resume goes on."""
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    original = Fitter._end_epoch

    def ended(self, bar):
        original(self, bar)
        signal.raise_signal(signal.SIGTERM)

    words = ["train", "fsm_bilstm", "--data", demo_data, "--out", tmp_path / "run", "--no-track"]
    words += [word for setting in SMALL for word in ("--set", setting)]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Fitter, "_end_epoch", ended)
            status, _, err = run_command(monkeypatch, capsys, *words)
        assert status == 143
        assert "--resume goes on" in err
        assert len(err.splitlines()) == 1
        assert Run(tmp_path / "run").info["status"] == "stopped"
        assert run_command(monkeypatch, capsys, *words, "--resume")[0] == 0
        assert len(Run(tmp_path / "run").history) == 2

        def evaluates(**arguments):
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(sys.modules["medseq_tf.evaluation.evaluate"], "evaluate", evaluates)
        status, _, err = run_command(monkeypatch, capsys, "evaluate", "x", "--data", "y")
        assert (status, err) == (143, "medseq-tf: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_that_is_deleted_meanwhile_is_one_line(monkeypatch, capsys, demo_data, no_server):
    original = Fitter._validate

    def deleted(self):
        shutil.rmtree(self.folder)
        return original(self)

    monkeypatch.setattr(Fitter, "_validate", deleted)
    words = [word for setting in SMALL for word in ("--set", setting)]
    status, _, err = run_command(
        monkeypatch, capsys, "train", "fsm_bilstm", "--data", demo_data, "--out", "gone", *words
    )
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "gone/" in err
    assert "No such file or directory" in err
    assert not Path("gone").exists()
    client = mlflow_store.connect()
    experiment = client.get_experiment_by_name("medseq_tf").experiment_id
    assert [found.info.status for found in client.search_runs([experiment])] == ["FAILED"]


def test_evaluation_refuses_the_wrong_data(demo_data, tmp_path, monkeypatch, capsys):
    run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    prepare("demo", out=tmp_path / "other", patients=12, size=32, seed=7, workers=1, progress=False)
    prepare("demo", out=tmp_path / "five", patients=12, size=32, labels=5, progress=False)
    for data, split, message in (
        (demo_data, "all", "are of the data set that the run was trained on"),
        (tmp_path / "other", "test", "--split all evaluates the whole of it"),
        (tmp_path / "five", "all", "has the labels"),
    ):
        words = ["evaluate", tmp_path / "run", "--data", data, "--split", split]
        status, _, err = run_command(monkeypatch, capsys, *words)
        assert status == 2
        assert message in err
    result = evaluate(tmp_path / "run", tmp_path / "other", split="all")
    assert len(result.predictions) == len(Prepared.load(tmp_path / "other"))


def test_folds_are_a_number_or_sites():
    kind = FoldCount()
    assert [kind.convert(typed, None, None) for typed in ("site", "2", "10")] == ["site", 2, 10]
    for typed in ("1", "sites", "2.5", "\u00b2", "-3"):
        with pytest.raises(click.BadParameter, match="neither a number from 2 up nor site"):
            kind.convert(typed, None, None)
