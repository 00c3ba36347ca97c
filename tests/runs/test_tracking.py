"""Tracking: what reaches MLflow, and that nothing it does stops the work."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
import warnings

import pytest

from medseq_tf.errors import InputError
from medseq_tf.files import write_json
from medseq_tf.runs import mlflow_store, tracking, unsent
from medseq_tf.runs.run import Run, locked
from medseq_tf.runs.track import track


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A database of MLflow's, to be copied: to make one takes a second."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's imports
        mlflow_store.make_database(f"sqlite:///{file}")
    return file


@pytest.fixture
def client(no_server, database):
    shutil.copy(database, no_server / "mlflow.db")
    return mlflow_store.connect()


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
    assert not (no_server / unsent.UNSENT).exists()


def test_a_resumed_run_goes_on_under_its_id(no_server, client):
    first = tracking.Tracker(no_server, "first")
    first.end("KILLED")
    again = tracking.Tracker(no_server, "first", run_id=first.run_id)
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"


def test_a_run_that_the_server_forgot_begins_anew(no_server, client):
    again = tracking.Tracker(no_server, "first", run_id="0" * 32)
    assert again.run_id not in (None, "0" * 32)


def kept(folder):
    lines = (folder / unsent.UNSENT).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def quickly(monkeypatch):
    """No waits between two tries."""
    monkeypatch.setattr(tracking, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(tracking, "SHARE", 0.0)


@pytest.mark.parametrize(
    "uri", ["http://someone:secret@127.0.0.1:9", "nonsense://x", "sqlite:////dev/null/x.db"]
)
def test_without_a_usable_server_the_work_goes_on(tmp_path, monkeypatch, capsys, uri, quickly):
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
    assert f"medseq-tf track {tmp_path}" in said
    assert "secret" not in said
    assert not tracker.connected
    assert tracker.run_id is None
    records = kept(tmp_path)
    assert [record["kind"] for record in records] == [
        "start",
        "params",
        "metrics",
        "artifact",
        "end",
    ]
    assert records[2]["step"] == 3
    assert records[2]["values"] == {"loss": 0.5}


@pytest.mark.parametrize("password", ["secret", "sec@secret", "sec/secret", "@secret:/@"])
def test_no_message_holds_a_password(monkeypatch, password):
    uri = f"postgresql://someone:{password}@host/mlflow?password=secret&sslmode=require"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow_store.public_uri().startswith("postgresql://host/mlflow")
    texts = [mlflow_store.public_uri()]
    for before in (0, 100, 150, 170, 180):  # the message is cut at 200 characters
        error = ConnectionError(f"{'x' * before} {uri} does not answer")
        texts += [mlflow_store.first_line(error), mlflow_store.cannot_be_used(error)]
    assert [text for text in texts if "sec" in text] == []


def test_a_registry_out_of_reach_is_one_line_soon_and_without_a_password(monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 has none") as refused:
        mlflow_store.download_saved_model("models:/stroke/1")
    assert time.monotonic() - began < 30
    assert "secret" not in f"{refused.value}{capfd.readouterr()}"
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true", "it holds the password"


class Flaky:
    """MLflow's client, of which the calls named fail, as often as is said."""

    def __init__(self, client, failures):
        self._client, self.failures, self.calls = client, failures, []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append(name)
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise ConnectionError("connection reset")
            return getattr(self._client, name)(*args, **kwargs)

        return call


@pytest.fixture
def flaky(client, monkeypatch):
    """What fails, by the name of the client's method, and how many times."""
    failures = {}
    monkeypatch.setattr(mlflow_store, "connect", lambda: Flaky(client, failures))
    return failures


def history(client, run_id, name):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_one_error_costs_nothing(no_server, client, flaky, capsys, quickly):
    tracker = tracking.Tracker(no_server, "first")
    for step in range(1, 6):
        flaky["log_batch"] = int(step == 2)
        tracker.metrics({"loss": 1 / step}, step)
    tracker.end()
    assert history(client, tracker.run_id, "loss") == [(i, 1 / i) for i in range(1, 6)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert not (no_server / unsent.UNSENT).exists()
    said = capsys.readouterr().err
    assert "connection reset" in said
    assert "MLflow can be used again; 2 records" in said


def test_a_server_that_is_gone_is_not_asked_all_the_time(no_server, client, flaky, capsys):
    tracker = tracking.Tracker(no_server, "first")
    flaky["log_batch"] = 10**6
    for step in range(100):
        tracker.metrics({"loss": 1.0}, step)
    assert 10**6 - flaky["log_batch"] <= 2
    assert len(kept(no_server)) == 100
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_is_ended_whatever_failed_before(no_server, client, flaky, quickly):
    tracker = tracking.Tracker(no_server, "first")
    flaky["log_batch"] = 1
    tracker.metrics({"loss": 1.0}, 1)
    flaky["set_terminated"] = 1
    tracker.end("FAILED")
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    another = tracking.Tracker(no_server, "another")
    flaky["set_terminated"] = tracking.LAST_TRIES
    another.end("KILLED")
    assert client.get_run(another.run_id).info.status == "KILLED"


def test_a_run_is_ended_where_only_its_files_cannot_be_kept(no_server, client, flaky, quickly):
    (no_server / "report.html").write_text("<p>figures</p>")
    tracker = tracking.Tracker(no_server, "first")
    flaky["log_artifact"] = 10**6
    tracker.artifact(no_server / "report.html")
    tracker.end()
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [r["kind"] for r in kept(no_server)] == ["artifact", "end"]


def test_a_begin_whose_answer_was_lost_is_no_second_run(no_server, client, monkeypatch, quickly):
    original = type(client).create_run

    def lost(self, *args, **kwargs):
        original(self, *args, **kwargs)
        monkeypatch.setattr(type(client), "create_run", original)
        raise ConnectionError("timed out")

    monkeypatch.setattr(type(client), "create_run", lost)
    tracker = tracking.Tracker(no_server, "first")
    tracker.end()
    experiment = client.get_experiment_by_name("medseq_tf").experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [tracker.run_id]


def test_what_mlflow_never_takes_does_not_stand_in_the_way(no_server, client, capsys):
    tracker = tracking.Tracker(no_server, "first")
    tracker.params({"seed": 0})
    tracker.params({"seed": 1})  # MLflow's parameters do not change
    tracker.metrics({"loss": 0.5}, 1)
    tracker.end()
    assert history(client, tracker.run_id, "loss") == [(1, 0.5)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "MLflow refuses params" in capsys.readouterr().err
    assert json.loads((no_server / "tracking_refused.jsonl").read_text("utf-8"))["kind"] == "params"


def log_a_run(folder, name="first", parent=None):
    """All that a run logs, with no server to take it."""
    import matplotlib.figure

    folder.mkdir()
    (folder / "history.csv").write_text("epoch")
    tracker = tracking.Tracker(folder, name, parent=parent)
    tracker.params({"seed": 0})
    tracker.announce("auroc")
    tracker.dataset("ct", "ab" * 32, {"studies": 3})
    for step in range(1, 4):
        tracker.metrics({"loss": 1 / step, "val_loss": 2 / step}, step)
    tracker.artifact(folder / "history.csv")
    tracker.figure(matplotlib.figure.Figure(), "figures/curves.png")
    tracker.tags({"mlflow.note.content": "what it is"})
    return tracker


def as_a_run(folder, **info):
    (folder / "experiment.yaml").write_text("{}")
    write_json(folder / "run.json", {"status": "finished", "mlflow_run_id": None, **info})


@pytest.fixture
def down(monkeypatch, quickly):
    def connect():
        raise ConnectionError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "connect", connect)
        yield patch


def test_track_sends_what_waits_once_and_in_order(no_server, client, down, capsys):
    parent = log_a_run(no_server / "run")
    child = log_a_run(no_server / "run" / "fold_1", "fold 1", parent.reference)
    for tracker in (child, parent):
        tracker.end()
    as_a_run(no_server / "run")
    as_a_run(no_server / "run" / "fold_1")
    down.undo()
    times = [r["time"] for r in kept(no_server / "run")]
    assert track(no_server / "run").records == 22
    assert track(no_server / "run").records == 0
    ids = [Run(no_server / "run" / place).info["mlflow_run_id"] for place in (".", "fold_1")]
    experiment = client.get_experiment_by_name("medseq_tf").experiment_id
    assert {run.info.run_id for run in client.search_runs([experiment])} == set(ids)
    for number, run_id in enumerate(ids):
        found = client.get_run(run_id)
        assert found.info.run_name == ("first", "fold 1")[number]
        assert found.info.status == "FINISHED"
        assert found.data.params == {"seed": "0"}
        assert history(client, run_id, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert found.inputs.dataset_inputs[0].dataset.name == "ct"
        assert found.data.tags["mlflow.note.content"] == "what it is"
        files = {a.path for a in client.list_artifacts(run_id)}
        assert files == {"history.csv", "figures"}
        assert [a.path for a in client.list_artifacts(run_id, "figures")] == ["figures/curves.png"]
    assert client.get_run(ids[0]).info.start_time == times[0]
    assert client.get_run(ids[1]).data.tags["mlflow.parentRunId"] == ids[0]
    assert not list((no_server / "run").rglob("tracking_unsent*"))


def test_a_child_that_is_there_before_its_parent(no_server, client, down, monkeypatch):
    parent = log_a_run(no_server / "search", "search s")
    down.undo()
    child = tracking.Tracker(no_server, "trial", parent=parent.reference)
    child.end()
    assert "mlflow.parentRunId" not in client.get_run(child.run_id).data.tags
    parent.end()
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_the_next_tracker_of_the_run_sends_what_waits(no_server, client, down):
    first = log_a_run(no_server / "run")
    first.end("KILLED")
    down.undo()
    again = tracking.Tracker(no_server / "run", "first")
    again.metrics({"loss": 0.25}, 4)
    again.end()
    assert [value for _, value in history(client, again.run_id, "loss")] == [1.0, 0.5, 1 / 3, 0.25]
    assert client.get_run(again.run_id).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("medseq_tf").experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_a_server_that_fails_half_way_gets_the_rest_later(no_server, client, down, monkeypatch):
    log_a_run(no_server / "run").end()
    as_a_run(no_server / "run")
    down.undo()
    failures = {"set_tag": 1}
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "connect", lambda: Flaky(client, failures))
        with pytest.raises(InputError, match=r"connection reset.*2 records wait on"):
            track(no_server / "run")
    assert track(no_server / "run").records == 2
    experiment = client.get_experiment_by_name("medseq_tf").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == "what it is"


def test_track_ends_what_a_killed_process_left_running(no_server, client):
    run = no_server / "run"
    run.mkdir()
    killed = tracking.Tracker(run, "first")
    as_a_run(run, status="running", mlflow_run_id=killed.run_id)
    assert track(run).ended == 1
    assert client.get_run(killed.run_id).info.status == "KILLED"
    assert Run(run).info["status"] == "stopped"
    assert track(run).ended == 0


def test_track_ends_the_runs_of_a_search_that_was_killed(no_server, client):
    search = no_server / "search"
    (search / "trials" / "0001").mkdir(parents=True)
    names = ("search s", "s 0001", "s champion (0001)")
    ids = [tracking.Tracker(no_server, name).run_id for name in names]
    champions = {"0001": {"run_id": ids[2]}, "0002": {}}
    about = {"status": "running", "mlflow_run_id": ids[0], "champions": champions}
    write_json(search / "search.json", about)
    write_json(search / "trials" / "0001" / "tracking.json", {"run_id": ids[1]})
    assert track(search).ended == 3
    assert {client.get_run(run_id).info.status for run_id in ids} == {"KILLED"}
    assert json.loads((search / "search.json").read_text("utf-8"))["status"] == "stopped"


def test_track_reaches_the_searches_of_a_nested_evaluation(no_server, client):
    search, about = no_server / "search", {"status": "finished"}
    inner = search / "nested" / "fold_1"
    (inner / "trials" / "0001").mkdir(parents=True)
    ids = [tracking.Tracker(no_server, name).run_id for name in ("search s", "s 0001", "s best")]
    write_json(search / "search.json", about)
    champions = {"0001": {"run_id": ids[2]}}
    running = {"status": "running", "mlflow_run_id": ids[0], "champions": champions}
    write_json(inner / "search.json", running)
    write_json(inner / "trials" / "0001" / "tracking.json", {"run_id": ids[1]})
    with locked(inner), pytest.raises(InputError, match="another process"):
        track(search)
    assert track(search).ended == 3
    assert {client.get_run(run_id).info.status for run_id in ids} == {"KILLED"}
    assert json.loads((inner / "search.json").read_text("utf-8"))["status"] == "stopped"


def test_track_takes_what_version_0_1_kept(no_server, client):
    run = no_server / "run"
    run.mkdir()
    as_a_run(run)
    (run / "report.html").write_text("<p>figures</p>")
    lines = [
        {"kind": "start", "name": "first"},
        {"kind": "params", "seed": "0"},
        {"kind": "metrics", "step": 3, "loss": 0.5},
        {"kind": "dataset", "name": "ct", "fingerprint": "ab" * 32},
        {"kind": "artifact", "path": "report.html", "folder": None},
        {"kind": "figure", "path": "figures/curves.png"},
        {"kind": "end", "status": "FINISHED"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / unsent.UNSENT).write_text(text + '{"kind": "cut sh')
    assert track(run).records == 7
    found = client.get_run(Run(run).info["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"seed": "0"}
    assert found.data.metrics == {"loss": 0.5}
    assert [a.path for a in client.list_artifacts(found.info.run_id)] == ["report.html"]
    later = tracking.Tracker(run, "a run whose server went away")
    write_json(run / "run.json", {"status": "finished", "mlflow_run_id": later.run_id})
    (run / unsent.UNSENT).write_text('{"kind": "metrics", "step": 4, "loss": 0.25}\n')
    assert track(run).records == 1
    assert history(client, later.run_id, "loss") == [(4, 0.25)]
    assert client.get_run(later.run_id).info.status == "FINISHED"


def test_track_of_what_is_no_run_or_is_at_work(no_server):
    with pytest.raises(InputError, match="no run folder"):
        track(no_server / "nowhere")
    (no_server / "run").mkdir()
    as_a_run(no_server / "run")
    with locked(no_server / "run"), pytest.raises(InputError, match="another process"):
        track(no_server / "run")


def test_a_database_is_made_whole_or_not_at_all(no_server, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def killed(self, *arguments):
        (no_server / arguments[0].removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "__init__", killed)
        with pytest.raises(KeyboardInterrupt):
            mlflow_store.connect()
    assert not list(no_server.iterdir())
    tracker = tracking.Tracker(no_server, "first")
    assert tracker.connected
    assert (no_server / "mlflow.db").is_file()


def test_a_database_that_is_half_made_names_its_remedy(no_server, capsys):
    with contextlib.closing(sqlite3.connect(no_server / "mlflow.db")) as half:
        half.execute("CREATE TABLE experiments (name TEXT)")
        half.execute("CREATE TABLE runs (name TEXT)")
        half.commit()
    tracking.Tracker(no_server, "first")
    said = capsys.readouterr().err
    assert "mlflow.db holds no run and is half made: remove it" in said
    assert len(said.splitlines()) == 1
    (no_server / "mlflow.db").write_bytes(b"no database " * 99)
    assert "mlflow.db is no database: move it away" in mlflow_store.remedy(
        mlflow_store.tracking_uri()
    )


def test_a_half_made_database_is_known_whatever_its_folder_is_called(tmp_path):
    file = tmp_path / "50%20 #1" / "mlflow.db"
    file.parent.mkdir()
    with contextlib.closing(sqlite3.connect(file)) as half:
        half.execute("CREATE TABLE runs (name TEXT)")
        half.commit()
    assert "is half made: remove it" in mlflow_store.remedy(f"sqlite:///{file}")


def test_switched_off_it_writes_nothing(tmp_path):
    tracker = tracking.Tracker(tmp_path, "first", enabled=False)
    tracker.params({"seed": 0})
    tracker.end()
    assert tracker.run_id is None
    assert not list(tmp_path.iterdir())
