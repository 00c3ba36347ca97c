"""Chief and workers: nobody waits for one who is gone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from keras_tuner.src import protos

from medseq_tf.errors import InputError
from medseq_tf.tuning import cluster, trial

FINISHED = {"status": "finished", "score": 1.0, "reason": ""}


class Source:
    """A few trials that need no training."""

    def __init__(self, count):
        self.waiting = [f"{i:04d}" for i in range(count)]
        self.given, self.found, self.gone = {}, {}, []

    def next(self, worker):
        if worker not in self.given and self.waiting:
            self.given[worker] = self.waiting.pop(0)
        if worker in self.given:
            return {"kind": "run", "trial": self.given[worker], "job": {"rate": 0.1}}
        return {"kind": "stop"}

    def report(self, name, found):
        self.given = {worker: other for worker, other in self.given.items() if other != name}
        self.found[name] = found


@pytest.fixture
def serve():
    servers = []

    def start(source, greeting=None):
        servers.append(cluster.Server(source, greeting or {}, "127.0.0.1"))
        return servers[-1], f"127.0.0.1:{servers[-1].port}"

    yield start
    for server in servers:
        server.stop()


def test_a_worker_trains_what_the_chief_hands_out(serve, tmp_path, monkeypatch):
    jobs = {}

    def train(folder, job, variables, abandoned):
        jobs[folder.name] = job
        return {**FINISHED, "score": 0.1234567890123456, "folds": [0.1, 0.2]}

    monkeypatch.setattr(trial, "run", train)
    source = Source(3)
    _, address = serve(source)
    cluster.work(cluster.Chief(address), "a", tmp_path, {"data": "d"})
    assert jobs["0002"] == {"rate": 0.1, "data": "d"}
    assert sorted(source.found) == ["0000", "0001", "0002"]
    assert source.found["0000"]["score"] == 0.1234567890123456, "to the last digit"


def test_a_chief_that_is_gone_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match="the chief there does not answer"):
        cluster.Chief(f"127.0.0.1:{port}").greet()


def test_a_chief_that_goes_while_a_worker_trains_ends_the_worker(serve, tmp_path, monkeypatch):
    """The real loop: the trial's process is ended too."""
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    started = []

    def start(folder, variables):
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(trial, "_start", start)
    server, address = serve(Source(1))
    chief = cluster.Chief(address)

    def still_mine(name):
        server.stop()
        return chief.next("a").get("trial") == name

    with pytest.raises(InputError, match="does not answer"):
        cluster.work(chief, "a", tmp_path, {}, still_mine)
    assert started[0].poll() is not None


def test_a_trial_that_another_has_now_is_left(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(
        trial,
        "_start",
        lambda *_: subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE),
    )
    source = Source(1)
    _, address = serve(source)
    cluster.work(cluster.Chief(address), "a", tmp_path, {}, lambda name: bool(source.given.clear()))
    assert source.found == {}


def test_silence_is_noticed(serve, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.3)
    server, address = serve(Source(2))
    chief = cluster.Chief(address)
    chief.next("a")
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        chief.next("b")
        time.sleep(0.05)
    assert server.silent() == ["a"]
    assert server.silent() == []
    assert server.workers == 1


def test_an_error_of_the_chief_s_own_is_kept_and_told(serve):
    class Broken(Source):
        def next(self, worker):
            raise OSError("no space left on device")

    server, address = serve(Broken(1))
    with pytest.raises(InputError, match="failed"):
        cluster.Chief(address).next("a")
    assert "no space left" in str(server.failure)


NONSENSE = [
    "no JSON",
    "[" * 100_000,
    "[]",
    "{}",
    '{"status": "finished", "score": NaN}',
    '{"status": "finished", "score": true}',
    '{"status": "finished", "score": 1e999}',
    '{"status": "finished", "score": "best of all"}',
    '{"status": "finished"}',
    '{"status": "failed", "score": 1}',
    '{"status": ["finished"], "score": 1}',
    json.dumps({**FINISHED, "score": 10**400}),
    json.dumps({**FINISHED, "reason": ["none"]}),
    json.dumps({**FINISHED, "metrics": {"auroc": "high"}}),
    json.dumps({**FINISHED, "mlflow_run_id": "../../x"}),
]


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused_and_ends_no_search(serve, text):
    source = Source(1)
    server, address = serve(source)
    chief = cluster.Chief(address)
    order = chief.next("a")
    message = cluster._pack({})
    message.values.values["medseq_tf"].string_value = text
    done = protos.get_proto().Trial(trial_id=order["trial"], hyperparameters=message)
    with pytest.raises(grpc.RpcError) as caught:
        chief._stub.EndTrial(protos.get_service().EndTrialRequest(trial=done), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.failure is None
    chief.report(order["trial"], FINISHED)
    assert source.found == {order["trial"]: {**FINISHED, "seconds": 0.0}}


def test_other_nonsense_ends_no_search_either(serve):
    server, address = serve(Source(1))
    chief = cluster.Chief(address)
    for name in ("", "x" * 999, "\x1b[2J"):
        with pytest.raises(InputError, match="a worker has a name"):
            chief.next(name)
    chief._ask(chief._stub.CreateTrial, protos.get_service().CreateTrialRequest(tuner_id="a"))
    with pytest.raises(InputError, match="failed"):
        chief._ask(chief._stub.EndTrial, protos.get_service().EndTrialRequest())
    with pytest.raises(InputError, match="failed"):
        chief.report("x" * (cluster.LARGEST_REQUEST + 1), FINISHED)
    assert server.failure is None
    assert chief.next("a")["trial"] == "0000"


def test_a_chief_s_trial_stays_within_the_worker_s_folder(serve, tmp_path):
    source = Source(0)
    source.waiting = ["../../elsewhere"]
    _, address = serve(source)
    with pytest.raises(InputError, match="names a trial as none is named"):
        cluster.work(cluster.Chief(address), "a", tmp_path / "search", {})
    assert not list(tmp_path.rglob("*"))


def test_what_is_no_chief_is_one_line(serve):
    _, address = serve(Source(0), {"another": "program"})
    with pytest.raises(InputError, match="not as a chief of this version does"):
        cluster.Chief(address).greet()


def test_a_port_that_is_taken_is_one_line(serve):
    server, _ = serve(Source(1))
    with pytest.raises(InputError, match="is it taken"):
        cluster.Server(Source(1), {}, "127.0.0.1", server.port)


def test_a_worker_of_another_search_or_other_data_is_refused(serve, tmp_path, demo_data):
    _, address = serve(Source(0), {"key": "k", "fingerprint": "f", "splits": {}})
    with pytest.raises(InputError, match="another space"):
        cluster.work_for_chief(address, "a", demo_data, tmp_path, key="other")
    with pytest.raises(InputError, match="not the data set of the chief"):
        cluster.work_for_chief(address, "a", demo_data, tmp_path, key="k")


def test_questions_of_many_workers_at_once(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "run", lambda folder, *_, **__: FINISHED)
    source, lock = Source(40), threading.Lock()
    asked, reported = source.next, source.report
    source.next = lambda worker: _with(lock, asked, worker)
    source.report = lambda name, found: _with(lock, reported, name, found)
    _, address = serve(source)
    threads = [
        threading.Thread(
            target=cluster.work, args=(cluster.Chief(address), f"w{i}", tmp_path / str(i), {})
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(source.found) == 40


def _with(lock, function, *arguments):
    with lock:
        return function(*arguments)


def test_gpus_that_are_named_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    dealt = [variables["CUDA_VISIBLE_DEVICES"] for variables in cluster._devices(3)]
    assert dealt == ["2", "3", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES" not in cluster._devices(2)[1]


def test_messages_are_plain_json():
    content = {"kind": "run", "values": {"a": 1e-05, "b": [1, None, True], "c": "ä"}}
    assert cluster._unpack(cluster._pack(content)) == json.loads(json.dumps(content))


def test_held_out_predictions_of_a_worker_are_kept_and_checked():
    table = {
        "study": ["a", "b"],
        "patient": ["p", "q"],
        "fold": [1, 2],
        "label": ["lesion", "lesion"],
        "truth": [1.0, None],
        "probability": [0.25, 0.5],
        "threshold": [0.5, 0.5],
    }
    found = {"status": "finished", "score": 0.7, "held_out": table}
    assert trial.checked(found)["held_out"] == table
    for name, wrong in [("truth", [2, 1]), ("study", ["a"]), ("fold", ["1", "2"]), ("label", 3)]:
        with pytest.raises(ValueError, match="held_out cannot be"):
            trial.checked({**found, "held_out": {**table, name: wrong}})
