"""What a watcher tells of itself: health, metrics and log lines."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import warnings

import pytest

from medseq_tf.errors import InputError
from medseq_tf.serving.watch_status import (
    STUCK_AFTER,
    UNHEALTHY_AFTER,
    Log,
    Status,
    serving,
)

NOW = 10_000.0


def status_of(**counts):
    return Status(busy_since=NOW, last_contact=NOW - 5, **counts)


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_health_and_metrics_are_served_on_this_machine_alone():
    status = status_of()
    with serving(status, lambda: NOW, 0) as port:
        code, kind, body = get(port, "/health")
        assert (code, kind) == (200, "application/json")
        assert json.loads(body) == {"status": "ok", "seconds_since_contact": 5.0}
        status.away_since = NOW - UNHEALTHY_AFTER
        code, _, body = get(port, "/health")
        assert code == 503
        assert json.loads(body)["status"] == "the archive is away"
        code, kind, body = get(port, "/metrics")
        assert (code, kind) == (200, "text/plain; version=0.0.4")
        assert "medseq_tf_watch_archive_up 0\n" in body
        assert get(port, "/studies")[0] == 404
        with (
            pytest.raises(InputError, match=f"^--port {port}: cannot be had"),
            serving(status, lambda: NOW, port),
        ):
            pass
    with pytest.raises(urllib.error.URLError):
        get(port, "/health")


def test_health_says_what_is_wrong_after_a_while():
    assert status_of().problem(NOW) is None
    assert status_of(away_since=NOW - UNHEALTHY_AFTER + 1).problem(NOW) is None
    assert status_of(away_since=NOW - UNHEALTHY_AFTER).problem(NOW) == "the archive is away"
    assert status_of().problem(NOW + STUCK_AFTER) == "a study takes too long"
    assert Status(busy_since=None).problem(NOW + STUCK_AFTER) is None


def test_metrics_are_read_by_prometheus_own_parser():
    parser = pytest.importorskip("prometheus_client.parser", reason="comes with ray[default]")
    status = status_of(answered=3, failures=2, given_up=1, seconds=4.5, waiting=7, settled=9)
    status.found_answered, status.skipped, status.sweeps, status.last_success = 4, 5, 6, 1.8e9
    families = list(parser.text_string_to_metric_families(status.metrics()))
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    assert samples == {
        f"medseq_tf_watch_{name}": value
        for name, value in {
            "answer_seconds_count": 3,
            "answer_seconds_sum": 4.5,
            "found_answered_total": 4,
            "skipped_total": 5,
            "failures_total": 2,
            "given_up_total": 1,
            "sweeps_total": 6,
            "waiting_studies": 7,
            "settled_studies": 9,
            "archive_up": 1,
            "last_success_timestamp_seconds": 1.8e9,
        }.items()
    }
    assert all(family.documentation.endswith(".") for family in families)
    assert [family.type for family in families].count("counter") == 5


def test_log_lines_are_json_and_go_on_in_a_new_file_when_the_old_one_was_moved(tmp_path, capsys):
    path = tmp_path / "watch.log"
    log = Log(path, lambda: 1.8e9)
    log.info("answered", study="0f", seconds=1.5)
    path.rename(tmp_path / "watch.log.1")
    log.error("given up", study="0f", reason='it is "odd"\n')
    log.close()
    (first,) = (tmp_path / "watch.log.1").read_text("utf-8").splitlines()
    (second,) = path.read_text("utf-8").splitlines()
    assert json.loads(first) == {
        "time": "2027-01-15T08:00:00.000+00:00",
        "level": "info",
        "event": "answered",
        "study": "0f",
        "seconds": 1.5,
    }
    assert json.loads(second)["level"] == "error"
    assert json.loads(second)["reason"] == 'it is "odd"\n'
    Log(None, lambda: 1.8e9).warning("away")
    assert json.loads(capsys.readouterr().err)["event"] == "away"
    with pytest.raises(InputError, match=r"^--log .*: cannot be written"):
        Log(tmp_path / "missing" / "watch.log", lambda: 0.0)


def test_warnings_are_lines_of_the_log_without_their_words(capsys):
    log = Log(None, lambda: 1.8e9)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with log.takes_warnings():
            for _ in range(2):
                warnings.warn("Mustermann^Erika is\nodd", UserWarning, stacklevel=1)
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["event"] == "warning"
    assert told["reason"].startswith("UserWarning in test_watch_status.py:")
    assert "Mustermann" not in line
