"""Servers of this machine that hold a folder's files: one speaks S3, the others HTTP."""

from __future__ import annotations

import csv
import functools
import http.server
import json
import logging
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medseq_tf.readers import storage

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "synthetic-key",
    "AWS_SECRET_ACCESS_KEY": "synthetic-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """The address of a server that speaks S3, on a free port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_address, monkeypatch):
    """The client of an empty bucket, whose credentials stand in the environment."""
    import boto3
    import requests

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", (0.0, 0.0))
    storage._file_system_of.cache_clear()
    requests.post(f"{s3_address}/moto-api/reset", timeout=10)
    client = boto3.client("s3")
    client.create_bucket(Bucket="hospital")
    yield client
    storage._file_system_of.cache_clear()


def upload(client, folder: Path, prefix: str = "cohort") -> str:
    """Put a folder's files into the bucket; return their URL."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = f"{prefix}/{path.relative_to(folder).as_posix()}"
        client.put_object(Bucket="hospital", Key=key, Body=path.read_bytes())
    return f"s3://hospital/{prefix}"


class GoogleHandler(http.server.BaseHTTPRequestHandler):
    """Answers what is asked of Google's JSON API to list and read the objects of a folder."""

    folder: Path
    PAGE = 5

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        _, is_object, name = path.partition("/b/hospital/o/")
        file = self.folder / urllib.parse.unquote(name).removeprefix("cohort/")
        if is_object and asked.get("alt") == "media":
            self.answer(file.read_bytes() if file.is_file() else None)
        elif is_object:
            self.answer(self.described(file))
        else:
            names = sorted(p for p in self.folder.rglob("*") if p.is_file())
            found = [self.described(p) for p in names]
            found = [f for f in found if f["name"].startswith(asked.get("prefix", ""))]
            start = int(asked.get("pageToken", 0))
            page = {"kind": "storage#objects", "items": found[start : start + self.PAGE]}
            if start + self.PAGE < len(found):
                page["nextPageToken"] = str(start + self.PAGE)
            self.answer(page)

    def described(self, path: Path) -> dict | None:
        if not path.is_file():
            return None
        name = f"cohort/{path.relative_to(self.folder).as_posix()}"
        size, time = str(path.stat().st_size), "2024-01-31T00:00:00.000Z"
        about = {"etag": "CAE=", "timeCreated": time, "updated": time, "generation": "1"}
        return {"bucket": "hospital", "name": name, "size": size, **about}

    def answer(self, content: bytes | dict | None):
        body = json.dumps(content).encode() if isinstance(content, dict) else content or b""
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *message):
        pass


@contextmanager
def google_store(folder: Path) -> Iterator[str]:
    """Serve a folder as Google's storage does; give the address of the server."""
    with running(type("Handler", (GoogleHandler,), {"folder": folder})) as address:
        yield address


class FolderHandler(http.server.SimpleHTTPRequestHandler):
    """Gives a folder's files, counts requests, and answers some with an error first."""

    requests: Counter[str]
    failures: Counter[str]
    """Path -> how many requests for it fail before one does not."""

    def do_GET(self):
        self.requests[self.path] += 1
        if self.failures[self.path] > 0:
            self.failures[self.path] -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def end_headers(self):
        if self.path.endswith(".gz"):  # as web servers say of files that are packed where they lie
            self.send_header("Content-Encoding", "gzip")
        super().end_headers()

    def log_message(self, *message):
        pass


def write_index(folder: Path) -> None:
    """Write the file that lists a folder's others, for those who read it over HTTP."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with open(folder / storage.INDEX, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "size"])
        rows.writerows([p.relative_to(folder).as_posix(), p.stat().st_size] for p in files)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, type[FolderHandler]]]:
    """Serve a folder with its index; give the URL, and what counts requests."""
    write_index(folder)
    handler = type("Handler", (FolderHandler,), {"requests": Counter(), "failures": Counter()})
    with running(functools.partial(handler, directory=str(folder))) as address:
        yield address, handler


@contextmanager
def running(handler: Any) -> Iterator[str]:
    """Run a server on a free port of this machine; give its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
