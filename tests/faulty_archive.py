"""An archive in this process: it speaks DICOMweb (PS3.18), and misbehaves on demand."""

from __future__ import annotations

import fnmatch
import functools
import io
import json
import re
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pydicom

ROOT = "/dicom-web"
PATH = re.compile(
    ROOT + r"(?:/studies/(?P<study>[\d.]+))?(?:/series/(?P<series>[\d.]+))?"
    r"(?:/instances/(?P<sop>[\d.]+))?(?:/(?P<what>studies|series|instances|metadata))?/?"
)
STUDY, SERIES, SOP, MODALITY = "0020000D", "0020000E", "00080018", "00080060"
MODALITIES = "00080061"
OF_A_STUDY = ("0008002", "0008003", "00080050", "00080090", "00081030", "0010", STUDY, "00200010")
OF_A_SERIES = (MODALITY, "0008103E", SERIES, "00200011", STUDY)
OF_AN_INSTANCE = ("00080016", SOP, "00200013", "00280008", "0028001", SERIES, STUDY, MODALITY)
"""What tags of an instance's start with that a query is answered with."""

NUMBER = b"900000000"
"""Stands in copied studies' UIDs and ids in place of their number."""
LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Log in</form></body></html>"
BOUNDARY = b"a-boundary-of-the-archive"

Json = dict[str, Any]


class Instance(NamedTuple):
    """A file and what its header says, as DICOM JSON."""

    attributes: Json
    data: bytes

    def uid(self, tag: str) -> str:
        return self.attributes[tag]["Value"][0]

    def renumbered(self, number: int) -> Instance:
        """The instance of a copied study."""
        new = str(100_000_000 + number).encode()
        attributes = json.dumps(self.attributes).replace(NUMBER.decode(), new.decode())
        return Instance(json.loads(attributes), self.data.replace(NUMBER, new))


class Study:
    """The instances of a study; of a copied one they are made when they are asked for."""

    def __init__(self, template: tuple[Instance, ...] = (), number: int = 0):
        self.template, self.number = template, number
        self.added: dict[str, Instance] = {}

    @property
    def instances(self) -> list[Instance]:
        copied = [instance.renumbered(self.number) for instance in self.template]
        return [*copied, *self.added.values()]

    @functools.cached_property
    def summary(self) -> Json:
        """What a query for studies is answered with."""
        instances = self.instances
        found = _chosen(instances[0].attributes, OF_A_STUDY)
        found[MODALITIES] = _value("CS", *sorted({i.uid(MODALITY) for i in instances}))
        found["00201206"] = _value("IS", len({i.uid(SERIES) for i in instances}))
        found["00201208"] = _value("IS", len(instances))
        return found


class Fault(NamedTuple):
    """What is done in place of an answer; see `FaultyArchive.misbehave`."""

    kind: str
    where: str
    status: int
    body: bytes
    headers: dict[str, str]
    seconds: float


class FaultyArchive:
    """An archive on a free port; `with FaultyArchive(paths) as archive:` runs and ends it.

    Attributes:
        studies: UID -> study.
        stored: UID of an instance -> how often it was sent to the archive.
        asked: (method, path with query) of every request.
        accepts: the `Authorization` that it wants, None: any.
        page: the most that one query is answered with.
    """

    def __init__(
        self,
        files: Iterable[Path | bytes] = (),
        *,
        accepts: str | None = None,
        page: int | None = None,
        tls: ssl.SSLContext | None = None,
    ):
        self.studies: dict[str, Study] = {}
        self.stored: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []
        self.accepts, self.page, self.tls = accepts, page, tls
        self.faults: list[list[Any]] = []
        self.port = 0
        self.lock, self.ended = threading.RLock(), threading.Event()
        self.add(files)

    @property
    def url(self) -> str:
        return f"http{'s' * (self.tls is not None)}://127.0.0.1:{self.port}{ROOT}"

    def __enter__(self) -> FaultyArchive:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Answer; on the same port as before, if there was one."""
        self.ended.clear()
        handler = type("Handler", (_Handler,), {"archive": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        if self.tls:
            self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Be gone: connections are refused until it starts again."""
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    # ------------------------------------------------------------------------------- content

    def add(self, files: Iterable[Path | bytes]) -> None:
        """Take in DICOM files; one that is there already stays as it is."""
        for file in files:
            instance = _instance(file if isinstance(file, bytes) else Path(file).read_bytes())
            with self.lock:
                study = self.studies.setdefault(instance.uid(STUDY), Study())
                study.added.setdefault(instance.uid(SOP), instance)
                study.__dict__.pop("summary", None)

    def add_copies(self, files: Iterable[Path], count: int) -> list[str]:
        """Take in a study many times, each with UIDs and a PatientID of its own; return UIDs."""
        number = NUMBER.decode()
        template = []
        for place, path in enumerate(files):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = f"COPY-{number}"
            dataset.StudyInstanceUID = f"1.2.3.{number}"
            dataset.SeriesInstanceUID = f"1.2.3.{number}.1"
            dataset.SOPInstanceUID = f"1.2.3.{number}.1.{place}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            template.append(_instance(buffer.getvalue()))
        uids = [f"1.2.3.{100_000_000 + place}" for place in range(count)]
        self.studies |= {uid: Study(tuple(template), place) for place, uid in enumerate(uids)}
        return uids

    # -------------------------------------------------------------------------------- faults

    def misbehave(
        self,
        kind: str,
        where: str = "",
        times: int = 1,
        *,
        status: int = 200,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Answer the next requests otherwise than asked.

        Args:
            kind: `status`: that and `body`; `html`: a page to log in; `slow`: right, but only after
                `seconds`; `drop`: the connection is closed without a word; `half`: the answer ends
                in its middle, of the length that it has; `cut`: the same, of a length that was
                said to be larger; `other`: another study's; `large`: never ends; `junk`: the right
                parts of wrong bytes; `empty`: nothing, in good order.
            where: a pattern that is found in `METHOD path?query`.
            times: how many requests.
            status: of the kind `status`.
            body: of the kind `status`.
            headers: of the kind `status`.
            seconds: of the kind `slow`.
        """
        self.faults.append([times, Fault(kind, where, status, body, headers or {}, seconds)])

    def fault_of(self, request: str) -> Fault | None:
        with self.lock:
            for left in self.faults:
                if left[0] > 0 and re.search(left[1].where, request):
                    left[0] -= 1
                    return left[1]
        return None

    def other_than(self, study: str | None) -> str:
        return next(uid for uid in self.studies if uid != study)

    # -------------------------------------------------------------------------------- answers

    def chosen(self, study: str | None, series: str | None, sop: str | None) -> list[Instance]:
        """The instances at a path."""
        with self.lock:
            studies = list(self.studies.values()) if study is None else [self.studies.get(study)]
            return [
                instance
                for each in studies
                if each is not None
                for instance in each.instances
                if series in (None, instance.uid(SERIES)) and sop in (None, instance.uid(SOP))
            ]

    def query(self, level: str, at: dict[str, str | None], asked: list[tuple[str, str]]) -> bytes:
        """Answer QIDO-RS."""
        wanted, limit, offset = {}, self.page, 0
        for name, value in asked:
            if name == "limit":
                limit = min(int(value), self.page or int(value))
            elif name == "offset":
                offset = int(value)
            elif name not in ("includefield", "fuzzymatching"):
                tag = pydicom.datadict.tag_for_keyword(name)
                wanted[name.upper() if tag is None else f"{tag:08X}"] = value
        with self.lock:
            if level == "studies":
                found = [study.summary for study in self.studies.values()]
            else:
                found = self._below(level, self.chosen(at["study"], at["series"], None))
            found = [each for each in found if _matches(each, wanted)]
        end = None if limit is None else offset + limit
        return json.dumps(found[offset:end]).encode()

    def _below(self, level: str, instances: list[Instance]) -> list[Json]:
        if level == "instances":
            return [_chosen(instance.attributes, OF_AN_INSTANCE) for instance in instances]
        series = {instance.uid(SERIES): instance for instance in instances}
        counts = Counter(instance.uid(SERIES) for instance in instances)
        return [
            _chosen(instance.attributes, OF_A_SERIES) | {"00201209": _value("IS", counts[uid])}
            for uid, instance in series.items()
        ]

    def store(self, parts: list[bytes], study: str | None) -> tuple[int, bytes]:
        """Answer STOW-RS."""
        done, failed = [], []
        for part in parts:
            try:
                instance = _instance(part)
            except Exception:  # pydicom's many
                return 400, b"{}"
            named = {
                "00081150": _value("UI", instance.uid("00080016")),
                "00081155": _value("UI", instance.uid(SOP)),
            }
            if study not in (None, instance.uid(STUDY)):
                failed.append(named | {"00081197": _value("US", 0x0110)})
                continue
            with self.lock:
                self.stored[instance.uid(SOP)] += 1
                self.add([part])
            done.append(named)
        answer = {"00081199": {"vr": "SQ", "Value": done}}
        if failed:
            answer["00081198"] = {"vr": "SQ", "Value": failed}
        status = 200 if not failed else 202 if done else 409
        return status, json.dumps(answer).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; no answer to a retrieval says how long it is, as Orthanc's do not."""

    protocol_version = "HTTP/1.1"
    archive: FaultyArchive

    def do_GET(self):
        self.handle_one(b"")

    def do_POST(self):
        self.handle_one(self.body())

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_one(self, body: bytes) -> None:
        request = f"{self.command} {self.path}"
        with self.archive.lock:
            self.archive.asked.append((self.command, self.path))
        fault = self.archive.fault_of(request)
        kind = fault.kind if fault else ""
        if kind == "slow":
            self.archive.ended.wait(fault.seconds)
        if kind == "drop":
            self.close_connection = True
        elif kind == "status":
            self.answer(fault.status, fault.body, **fault.headers)
        elif kind == "html":
            self.answer(200, LOGIN_PAGE, **{"Content-Type": "text/html"})
        elif self.archive.accepts not in (None, self.headers.get("Authorization")):
            self.answer(401, b"", **{"WWW-Authenticate": "Basic realm=archive"})
        elif kind == "empty":
            self.answer(204, b"")
        elif kind == "large":
            self.endless()
        else:
            self.answer_rightly(body, kind)

    def answer_rightly(self, body: bytes, kind: str) -> None:
        path, _, query = self.path.partition("?")
        match = PATH.fullmatch(path)
        if match is None:
            self.answer(404, b"")
            return
        at = match.groupdict()
        if kind == "other":
            at |= {"study": self.archive.other_than(at["study"]), "series": None, "sop": None}
        if self.command == "POST":
            status, answer = self.archive.store(self.parts(body), at["study"])
            self.answer(status, answer, **{"Content-Type": "application/dicom+json"})
        elif at["what"] == "metadata":
            found = [each.attributes for each in self.at(at)]
            self.answer_json(json.dumps(found).encode(), kind, 200 if found else 404)
        elif at["what"]:
            asked = urllib.parse.parse_qsl(query, keep_blank_values=True)
            self.answer_json(self.archive.query(at["what"], at, asked), kind)
        else:
            files = [each.data for each in self.at(at)]
            if kind == "junk":
                files = [b"no DICOM, " * 20 for _ in files]
            head = b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"
            whole = b"".join(head + file + b"\r\n" for file in files) + b"--" + BOUNDARY + b"--\r\n"
            if not files:
                self.answer(404, b"")
                return
            kind_of = f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'
            self.answer(200, whole, kind, says_length=False, **{"Content-Type": kind_of})

    def at(self, at: dict[str, str | None]) -> list[Instance]:
        return self.archive.chosen(at["study"], at["series"], at["sop"])

    def parts(self, body: bytes) -> list[bytes]:
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"]).group(1)
        parts = body.split(b"--" + boundary.encode())[1:-1]
        return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]

    def answer_json(self, answer: bytes, kind: str, status: int = 200) -> None:
        self.answer(status, answer, kind, **{"Content-Type": "application/dicom+json"})

    def answer(
        self, status: int, answer: bytes, kind: str = "", says_length: bool = True, **headers: str
    ) -> None:
        half = answer[: len(answer) // 2] if kind in ("half", "cut") else answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "cut" or (says_length and status != 204):
            self.send_header("Content-Length", str(len(answer if kind == "cut" else half)))
        elif status != 204:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(half)
        self.close_connection = self.close_connection or half != answer

    def endless(self) -> None:
        self.send_response(200)
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}'
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n")
        end = time.monotonic() + 60
        while not self.archive.ended.is_set() and time.monotonic() < end:
            self.wfile.write(bytes(2**20))

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ssl.SSLError):  # who asked is gone
            self.close_connection = True

    def log_message(self, *message: object) -> None:
        pass


def _instance(data: bytes) -> Instance:
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    return Instance(dataset.to_json_dict(), data)


def _chosen(attributes: Json, starts: tuple[str, ...]) -> Json:
    return {tag: value for tag, value in attributes.items() if tag.startswith(starts)}


def _value(kind: str, *values: Any) -> Json:
    return {"vr": kind, "Value": list(values)}


def _matches(found: Json, wanted: dict[str, str]) -> bool:
    """Whether attributes match a query: wildcards, lists of UIDs, ranges of dates."""
    for tag, pattern in wanted.items():
        element = found.get(tag, {})
        values = [_text(value) for value in element.get("Value", [])]
        if element.get("vr") in ("DA", "TM") and "-" in pattern:
            low, _, high = pattern.partition("-")
            fits = [low <= value <= (high or "99999999") for value in values]
        elif element.get("vr") == "UI":
            fits = [value in re.split(r"[,\\]", pattern) for value in values]
        else:
            fits = [fnmatch.fnmatchcase(value, pattern) for value in values]
        if not any(fits):
            return False
    return True


def _text(value: Any) -> str:
    return value.get("Alphabetic", "") if isinstance(value, dict) else str(value)
