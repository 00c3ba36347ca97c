"""What a watcher tells of itself: its log, its health and its metrics; nothing of a patient."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import logging.handlers
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

from medseq_tf.errors import InputError

HOST = "127.0.0.1"

UNHEALTHY_AFTER = 120.0
"""Seconds for which an archive may be away before `/health` says so."""

STUCK_AFTER = 3600.0
"""Seconds that one study may take before `/health` says that the watcher is stuck."""

_CLIENT_SECONDS = 10.0
"""The longest that a client of `/health` may take to ask."""


@dataclasses.dataclass
class Status:
    """What a watcher counts; times are those of its clock.

    Attributes:
        answered: studies answered, and their answers stored.
        found_answered: looks at a study whose answer was in the archive.
        skipped: looks at a study in which there is nothing for the model.
        failures: tries of a study that failed.
        given_up: studies that failed too often.
        sweeps: queries that the archive has answered to the end.
        seconds: spent on the studies that were answered.
        waiting: studies found that are neither answered nor given up.
        settled: studies that need no look until they change.
        busy_since: when the watcher began what it does; None while it waits.
        last_contact: when the archive last answered.
        away_since: when the archive was found to be away; None while it is there.
        last_success: seconds since 1970 at which a study was last answered; 0: none yet.
    """

    answered: int = 0
    found_answered: int = 0
    skipped: int = 0
    failures: int = 0
    given_up: int = 0
    sweeps: int = 0
    seconds: float = 0.0
    waiting: int = 0
    settled: int = 0
    busy_since: float | None = None
    last_contact: float | None = None
    away_since: float | None = None
    last_success: float = 0.0

    def problem(self, now: float) -> str | None:
        """Return what is wrong with the watcher, if anything is."""
        if self.away_since is not None and now - self.away_since >= UNHEALTHY_AFTER:
            return "the archive is away"
        if self.busy_since is not None and now - self.busy_since >= STUCK_AFTER:
            return "a study takes too long"
        return None

    def health(self, now: float) -> tuple[int, str]:
        """Return the HTTP status and the JSON of `/health`."""
        problem = self.problem(now)
        contact = None if self.last_contact is None else round(now - self.last_contact, 1)
        told = {"status": problem or "ok", "seconds_since_contact": contact}
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        return status, json.dumps(told) + "\n"

    def metrics(self) -> str:
        """Return the text of `/metrics`, in Prometheus' format 0.0.4."""
        lines = []
        for name, kind, meaning, values in _METRICS:
            name = f"medseq_tf_watch_{name}"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{ending} {value(self)}" for ending, value in values.items()]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Return in words what was done."""
        return (
            f"{self.answered} studies answered, {self.given_up} given up, {self.skipped} with "
            f"nothing to read, {self.waiting} waiting"
        )


_Values = dict[str, Callable[[Status], float]]

_METRICS: tuple[tuple[str, str, str, _Values], ...] = (
    (
        "answer_seconds",
        "summary",
        "Studies answered and stored, and the seconds they took.",
        {"_count": lambda s: s.answered, "_sum": lambda s: s.seconds},
    ),
    (
        "found_answered_total",
        "counter",
        "Looks at a study whose answer was in the archive.",
        {"": lambda s: s.found_answered},
    ),
    (
        "skipped_total",
        "counter",
        "Looks at a study in which there is nothing for the model.",
        {"": lambda s: s.skipped},
    ),
    ("failures_total", "counter", "Tries of a study that failed.", {"": lambda s: s.failures}),
    ("given_up_total", "counter", "Studies that failed too often.", {"": lambda s: s.given_up}),
    ("sweeps_total", "counter", "Queries that the archive answered.", {"": lambda s: s.sweeps}),
    (
        "waiting_studies",
        "gauge",
        "Studies found that are neither answered nor given up.",
        {"": lambda s: s.waiting},
    ),
    ("settled_studies", "gauge", "Studies left until they change.", {"": lambda s: s.settled}),
    (
        "archive_up",
        "gauge",
        "1: the archive answers; 0: it is away.",
        {"": lambda s: int(s.away_since is None)},
    ),
    (
        "last_success_timestamp_seconds",
        "gauge",
        "When a study was last answered; 0: not yet.",
        {"": lambda s: s.last_success},
    ),
)
"""Name, type, meaning, and the values by what their name ends in."""


class Log:
    """Lines of JSON: the time, the level, what happened, and more by name.

    Args:
        path: the file that they are added to, opened again where something has moved it away;
            default: standard error.
        time: gives the seconds since 1970.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike | None, time: Callable[[], float]):
        self._time = time
        try:
            handler = (
                logging.StreamHandler()
                if path is None
                else logging.handlers.WatchedFileHandler(path, encoding="utf-8")
            )
        except OSError as error:
            raise InputError(f"--log {path}: cannot be written ({error.strerror})") from None
        self._logger = logging.Logger("medseq_tf.watch")
        self._logger.addHandler(handler)

    def info(self, event: str, **more: Any) -> None:
        """Say what happened."""
        self._write(logging.INFO, event, more)

    def warning(self, event: str, **more: Any) -> None:
        """Say what went wrong and is tried again."""
        self._write(logging.WARNING, event, more)

    def error(self, event: str, **more: Any) -> None:
        """Say what went wrong and stays so."""
        self._write(logging.ERROR, event, more)

    @contextlib.contextmanager
    def takes_warnings(self) -> Iterator[None]:
        """Write what libraries warn of as lines, too: each once, and not its words.

        They may be of several lines, or hold what stands in a header.
        """
        told: set[str] = set()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            reason = f"{category.__name__} in {Path(filename).name}:{lineno}"
            if reason not in told:
                told.add(reason)
                self.warning("warning", reason=reason)

        with warnings.catch_warnings():
            warnings.showwarning = show
            yield

    def _write(self, level: int, event: str, more: dict[str, Any]) -> None:
        time = datetime.datetime.fromtimestamp(self._time(), datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": logging.getLevelName(level).lower(),
            "event": event,
            **more,
        }
        self._logger.log(level, json.dumps(line))

    def close(self) -> None:
        """Close the file."""
        for handler in self._logger.handlers:
            handler.close()


@contextlib.contextmanager
def serving(status: Status, now: Callable[[], float], port: int) -> Iterator[int]:
    """Answer `/health` and `/metrics` on 127.0.0.1 meanwhile; yield the port.

    Args:
        status: what is told.
        now: the time of the watcher's clock.
        port: where; 0: a free one.

    Raises:
        InputError: the port cannot be had.
    """

    class Handler(_Handler):
        answers = {
            "/health": lambda: ("application/json", *status.health(now())),
            "/metrics": lambda: ("text/plain; version=0.0.4", HTTPStatus.OK, status.metrics()),
        }

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise InputError(f"--port {port}: cannot be had ({error.strerror}); 0 takes one") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    with server:
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Answers two paths, and logs nothing."""

    answers: dict[str, Callable[[], tuple[str, int, str]]]
    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:
        """Answer."""
        answer = self.answers.get(self.path)
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, status, text = answer()
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
