"""A search as its user sees it: a server, a browser, and what stands on the pages."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import cv2
import pytest
from trials import SINGLE, in_this_process, outcome

from medseq_tf.runs import mlflow_store, unsent
from medseq_tf.tuning import trial, tune

LOOK = Path(__file__).with_name("browser_look.py")


def browser():
    """Return a Python that has playwright, and a Chromium; skip where there is none."""
    here = importlib.util.find_spec("playwright") is not None
    python = sys.executable if here else os.environ.get("MEDSEQ_TF_PLAYWRIGHT_PYTHON")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    chromium = chromium or shutil.which("google-chrome")
    if python is None:
        pytest.skip("playwright is not installed, and MEDSEQ_TF_PLAYWRIGHT_PYTHON names no Python")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    return python, chromium


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An MLflow server on this machine alone; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    words += ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.chdir(tmp_path)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _wait_for(address, process):
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_a_search_can_be_read_in_the_browser(server, demo_data, tmp_path, monkeypatch):
    python, chromium = browser()
    monkeypatch.setattr(trial, "run", in_this_process)
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    search = tune.tune(SINGLE, demo_data, tmp_path / "search", trials=2, tuner="random",
                       retrain=False, verbose=False)  # fmt: skip
    assert search.trials["status"].tolist() == ["finished"] * 3

    with warnings.catch_warnings():
        from mlflow import MlflowClient
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("medseq_tf").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"search small", "small base", "small 0000", "small 0001"}
    parent = runs.pop("search small")
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs.values())
    assert parent.inputs.dataset_inputs[0].dataset.digest == search.info["data"][:36]
    assert "auroc of the validation patients" in parent.data.tags["mlflow.note.content"]

    ids = [run.info.run_id for run in runs.values()]
    start = f"{server}/?workflowType=machine_learning#"
    chosen = json.dumps(ids).replace(" ", "")
    pages = {
        "runs": ("search small", f"{start}/experiments/{experiment}/runs"),
        "compare": (
            "Parallel Coordinates",
            f"{start}/compare-runs?runs={chosen}&experiments={json.dumps([experiment])}",
        ),
        "trial": ("small 0000", f"{start}/experiments/{experiment}/runs/{_id(runs, '0000')}"),
        "figure": (
            "roc.png",
            f"{start}/experiments/{experiment}/runs/{_id(runs, '0000')}/artifacts/figures/roc.png",
        ),
    }
    wanted = [f"{name}={text}={url}" for name, (text, url) in pages.items()]
    subprocess.run([python, str(LOOK), chromium, str(tmp_path), *wanted], check=True)
    text = {name: (tmp_path / f"{name}.txt").read_text("utf-8") for name in pages}

    assert "search small" in text["runs"]
    assert all(f"small {name}" in text["runs"] for name in ("base", "0000", "0001"))
    for key in ("optimizer.learning_rate", "model.aggregator.name", "auroc"):
        assert key in text["compare"], key
    assert "Comparing 3 Runs" in text["compare"]
    value = runs["small 0000"].data.params["optimizer.learning_rate"]
    assert value in text["compare"]
    assert value in text["trial"]
    assert "val_loss" in text["trial"]
    for name in ("confusion.png", "roc.png", "precision_and_recall.png", "loss_by_epoch.png"):
        assert name in text["figure"], name
    for name in pages:
        picture = cv2.imread(str(tmp_path / f"{name}.png"))
        assert picture.std() > 5, f"the page {name} is empty"


def _id(runs, name):
    return runs[f"small {name}"].info.run_id


@pytest.mark.filterwarnings("ignore")
def test_without_a_server_a_search_ends_as_well(demo_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)

    def run(folder, job, *_):
        assert job["mlflow_parent"].startswith(mlflow_store.NOT_YET)
        return trial.failure("no reason") if folder.name == "0000" else outcome(0.5)

    monkeypatch.setattr(trial, "run", run)
    search = tune.tune(SINGLE, demo_data, "search", trials=2, tuner="random", retrain=False)
    assert search.trials["status"].tolist() == ["finished", "failed", "finished"]
    said = capsys.readouterr().err
    assert said.count("cannot be used") == 1
    kept = (search.path / unsent.UNSENT).read_text("utf-8").splitlines()
    assert {"start", "params", "tags", "metrics"} <= {json.loads(line)["kind"] for line in kept}
