"""A real archive on this machine: Orthanc with its DICOMweb plugin, on a free port."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin"
SECONDS_TO_START = 60.0


def program() -> str:
    """Where Orthanc is; the test is skipped where it is not."""
    found = shutil.which("Orthanc", path=PATHS)
    if found is None or not PLUGIN.is_file():
        missing = "Orthanc" if found is None else "Orthanc's DICOMweb plugin"
        pytest.skip(f"{missing} is not installed (apt-get install orthanc orthanc-dicomweb)")
    return found


class Orthanc:
    """An archive of its own folder; `with Orthanc(folder) as server:` runs and ends it.

    It may be stopped and started again: content and port stay.

    Attributes:
        url: of its DICOMweb service.
        root: of its own REST interface.
        auth: (user, password) where it asks for them.
    """

    def __init__(
        self,
        folder: Path,
        user: str | None = None,
        password: str | None = None,
        **settings: object,
    ):
        self.folder, self.settings = Path(folder), settings
        self.auth = None if user is None else (user, password or "")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/dicom-web"

    @property
    def log(self) -> str:
        """What the archive wrote of itself."""
        return (self.folder / "orthanc.log").read_text(errors="replace")

    def __enter__(self) -> Orthanc:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop(at_once=True)

    def start(self) -> None:
        """Run it, and wait until it answers."""
        path = program()
        for _ in range(3):  # another process may take the free port first
            self.port = self.port or free_port()
            self._run(path)
            if self._answers():
                return
            self.stop()
            self.port = 0
        raise RuntimeError(f"Orthanc does not start:\n{self.log}")

    def stop(self, *, at_once: bool = False) -> None:
        """End it, killed where it shall be gone at once; what it holds stays in its folder."""
        if self.process is None:
            return
        if at_once:
            self.process.kill()
        else:
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def send(self, paths: Iterable[Path]) -> None:
        """Put DICOM files into it."""
        with requests.Session() as session:
            session.auth = self.auth
            for path in paths:
                answer = session.post(f"{self.root}/instances", Path(path).read_bytes(), timeout=30)
                answer.raise_for_status()

    def get(self, path: str) -> object:
        """What its own REST interface says, such as `get("statistics")`."""
        answer = requests.get(f"{self.root}/{path}", auth=self.auth, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def file(self, sop_uid: str) -> bytes:
        """The DICOM file that it holds of an instance."""
        found = requests.post(
            f"{self.root}/tools/lookup", sop_uid, auth=self.auth, timeout=30
        ).json()
        (name,) = [each["ID"] for each in found if each["Type"] == "Instance"]
        answer = requests.get(f"{self.root}/instances/{name}/file", auth=self.auth, timeout=30)
        answer.raise_for_status()
        return answer.content

    def clear(self) -> None:
        """Remove all that it holds."""
        for patient in self.get("patients"):
            requests.delete(f"{self.root}/patients/{patient}", auth=self.auth, timeout=30)

    # ------------------------------------------------------------------------------- inside

    def _run(self, path: str) -> None:
        for name in ("storage", "temporary"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        configuration = {
            "Name": "TEST",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "TemporaryDirectory": str(self.folder / "temporary"),
            "HttpPort": self.port,
            "HttpRequestTimeout": 30,
            "RemoteAccessAllowed": False,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": self.auth is not None,
            "RegisteredUsers": dict([self.auth]) if self.auth else {},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **self.settings,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        with open(self.folder / "orthanc.log", "wb") as log:
            self.process = subprocess.Popen(
                [path, str(self.folder / "orthanc.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def _answers(self) -> bool:
        end = time.monotonic() + SECONDS_TO_START
        while self.process.poll() is None and time.monotonic() < end:
            try:
                answer = requests.get(f"{self.url}/studies?limit=1", auth=self.auth, timeout=5)
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.05)
            else:
                return answer.ok
        return False


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    """An archive that the tests of a module share; empty at first."""
    program()
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def archive(orthanc) -> Orthanc:
    """The module's archive, emptied for this test."""
    orthanc.clear()
    return orthanc
