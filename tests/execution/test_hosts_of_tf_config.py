"""`TF_CONFIG` as a host of a training reads it."""

from __future__ import annotations

import json

import pytest

from medseq_tf.errors import InputError
from medseq_tf.execution.hosts import Host, host_of_environment, require_one_host

TWO = {"worker": ["10.0.0.1:2222", "[fe80::1]:2222"]}


def read(monkeypatch, told):
    monkeypatch.setenv("TF_CONFIG", told if isinstance(told, str) else json.dumps(told))
    return host_of_environment()


def test_a_host_knows_its_place(monkeypatch):
    task = {"type": "worker", "index": "1"}
    host = read(monkeypatch, {"cluster": TWO, "task": task, "rpc_layer": "grpc"})
    assert host == Host(("10.0.0.1:2222", "[fe80::1]:2222"), 1)
    assert not host.is_chief
    assert host.name == "host 2 of 2 ([fe80::1]:2222)"
    assert read(monkeypatch, host.to_json()) == host


def test_the_chief_comes_before_the_workers(monkeypatch):
    cluster = {"worker": ["a:1", "b:1"], "chief": ["c:1"]}
    host = read(monkeypatch, {"cluster": cluster, "task": {"type": "chief", "index": 0}})
    assert host == Host(("c:1", "a:1", "b:1"), 0)
    assert host.is_chief
    other = read(monkeypatch, {"cluster": cluster, "task": {"type": "worker", "index": 1}})
    assert other.place == 2


@pytest.mark.parametrize("told", ["", "  ", {"cluster": {"worker": ["a:1"]}}, {"cluster": {}}])
def test_one_host_is_none_of_several(monkeypatch, told):
    assert read(monkeypatch, told) is None


def test_without_the_variable_there_is_none(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert host_of_environment() is None


FIRST = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("{", "is not what it should be"),
        ("[]", "is not what it should be"),
        ("[" * 100_000, "is not what it should be"),
        ({"task": FIRST}, "is not what it should be"),
        ({"cluster": ["a:1", "b:1"], "task": FIRST}, "is not what it should be"),
        ({"cluster": {"worker": 3}, "task": FIRST}, "is not what it should be"),
        ({"cluster": {"worker": ["a:1", "b"]}, "task": FIRST}, "'b' is no HOST:PORT"),
        ({"cluster": {"worker": ["a:1", "b:70000"]}, "task": FIRST}, "'b:70000' is no HOST:PORT"),
        ({"cluster": {"worker": ["a:1", 5]}, "task": FIRST}, "5 is no HOST:PORT"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": FIRST}, "names a:1 twice"),
        ({"cluster": {"chief": ["a:1", "b:1"]}, "task": FIRST}, "has several chiefs"),
        ({"cluster": {**TWO, "ps": ["a:1"]}, "task": FIRST}, "tasks of the type ps"),
        ({"cluster": TWO}, "type None and index None"),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, "index 2"),
        ({"cluster": TWO, "task": {"type": "worker", "index": -1}}, "index -1"),
        ({"cluster": TWO, "task": {"type": "chief", "index": 0}}, "type 'chief'"),
        ({"cluster": TWO, "task": {"type": "worker", "index": True}}, "index True"),
        ({"cluster": TWO, "task": {"type": ["worker"], "index": 0}}, "type"),
        ({"cluster": TWO, "task": 3}, "type None"),
    ],
)
def test_what_is_malformed_is_one_line(monkeypatch, told, reason):
    with pytest.raises(InputError, match="^TF_CONFIG: .*" + reason.replace("[", r"\[")) as caught:
        read(monkeypatch, told)
    assert "\n" not in str(caught.value)


def test_a_command_of_one_host_says_so(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": TWO, "task": FIRST}))
    with pytest.raises(InputError, match="names several hosts, and tune takes one"):
        require_one_host("tune")
    monkeypatch.delenv("TF_CONFIG")
    require_one_host("tune")
