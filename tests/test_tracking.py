"""Tracking: what reaches MLflow, and that nothing it does stops the work."""

from __future__ import annotations

import json
import warnings

import pytest

from medseq_tf import tracking


@pytest.fixture
def client(no_server):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's imports
        from mlflow import MlflowClient
    return MlflowClient(tracking.tracking_uri())


def test_a_run_with_its_child_reaches_mlflow(no_server, client):
    parent = tracking.Tracker(no_server, "search")
    child = tracking.Tracker(no_server, "trial", parent=parent.run_id)
    child.params({"model.aggregator.units": 64, "augment.rotation": None, "name": "x"})
    child.metrics({"val_auroc": 0.5, "loss": float("nan")}, step=1)
    child.metrics({"val_auroc": 0.75}, step=2)
    child.dataset("ct", "ab" * 32, {"studies": 3})
    (no_server / "report.html").write_text("<p>figures</p>")
    child.artifact(no_server / "report.html")
    child.end()
    found = client.get_run(child.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {
        "model.aggregator.units": "64",
        "augment.rotation": "null",
        "name": "x",
    }
    assert "loss" not in found.data.metrics
    history = client.get_metric_history(child.run_id, "val_auroc")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.75)]
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    (data,) = found.inputs.dataset_inputs
    assert json.loads(data.dataset.source)["fingerprint"] == "ab" * 32
    assert [a.path for a in client.list_artifacts(child.run_id)] == ["report.html"]
    assert not (no_server / tracking.UNSENT).exists()


def test_a_resumed_run_goes_on_under_its_id(no_server, client):
    first = tracking.Tracker(no_server, "first")
    first.end("KILLED")
    again = tracking.Tracker(no_server, "first", run_id=first.run_id)
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"


def test_a_run_that_the_server_forgot_begins_anew(no_server, client):
    again = tracking.Tracker(no_server, "first", run_id="0" * 32)
    assert again.run_id not in (None, "0" * 32)


@pytest.mark.parametrize(
    "uri", ["http://someone:secret@127.0.0.1:9", "nonsense://x", "sqlite:////dev/null/x.db"]
)
def test_without_a_usable_server_the_work_goes_on(tmp_path, monkeypatch, capsys, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = tracking.Tracker(tmp_path, "first")
    tracker.params({"seed": 0})
    tracker.metrics({"loss": 0.5}, step=3)
    tracker.artifact(tmp_path / "absent.html")
    tracker.end()
    said = capsys.readouterr().err
    assert said.count("the run goes on") == 1
    assert len(said.splitlines()) == 1
    assert "secret" not in said
    kept = [
        json.loads(line) for line in (tmp_path / tracking.UNSENT).read_text("utf-8").splitlines()
    ]
    assert [record["kind"] for record in kept] == ["start", "params", "metrics", "artifact", "end"]
    assert kept[2] == {"kind": "metrics", "step": 3, "loss": 0.5}


def test_a_server_that_goes_away_costs_only_what_follows(no_server, client, capsys, monkeypatch):
    tracker = tracking.Tracker(no_server, "first")
    tracker.metrics({"loss": 1.0}, step=1)

    def gone(*args, **kwargs):
        raise ConnectionError("connection reset")

    monkeypatch.setattr(tracker._client, "log_batch", gone)
    tracker.metrics({"loss": 0.5}, step=2)
    tracker.end()
    assert "connection reset" in capsys.readouterr().err
    kept = (no_server / tracking.UNSENT).read_text("utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in kept] == ["metrics", "end"]


def test_switched_off_it_writes_nothing(tmp_path):
    tracker = tracking.Tracker(tmp_path, "first", enabled=False)
    tracker.params({"seed": 0})
    tracker.end()
    assert tracker.run_id is None
    assert not list(tmp_path.iterdir())
