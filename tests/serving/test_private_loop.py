"""Names, dates and ids of patients: from the archive into result objects, and nowhere else.

Studies hold planted ones. The commands run as a user runs them, each in a process of its own;
searched are what they print and log, what they write, and what they opened to write to.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pydicom
import pytest
import requests
from dicom_heads import head_study, leaked, planted
from small_run import run_small

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
HEADS = range(14)
NOTES_WHAT_IS_OPENED = """
import os, sys

noted = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR):
            os.write(noted, os.fsencode(arguments[0]) + b"\\n")

sys.addaudithook(note)
"""
NEW = (0, 1)
"""Those that are predicted."""
WATCHED = 2
"""The one that the watcher answers."""
WINDOW = "input.windows=[[40, 80]]"
OF_OTHERS = re.compile(
    r"/dev/.*|/proc/.*|.*/temporary(/[a-z0-9_]{8})?|.*/home/\.(cache/matplotlib|keras)/.*"
)
"""Devices, what Python tries a folder with, what TensorFlow says as it is imported; settings."""


class Said(NamedTuple):
    """What a command did.

    Attributes:
        text: standard output and standard error.
        opened: files that it, or a process of it, opened to write to.
    """

    status: int
    text: str
    opened: list[str]


class Place:
    """A folder of a user, with an archive."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        for name in ("home", "temporary", "hooks"):
            (folder / name).mkdir()
        (folder / "hooks" / "sitecustomize.py").write_text(NOTES_WHAT_IS_OPENED)

    def environment(self, opened: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSEQ_TF_", "MLFLOW_"))}
        return kept | {
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "temporary"),
            "PYTHONPATH": f"{self.folder / 'hooks'}:{ROOT}",
            "OPENED": str(opened),
        }

    def run(self, *arguments: object) -> Said:
        """Run `medseq-tf` with arguments."""
        opened = self.folder / "opened.txt"
        opened.unlink(missing_ok=True)
        ended = subprocess.run(
            [sys.executable, "-m", "medseq_tf", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(opened),
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = sorted(set(opened.read_text().splitlines()))
        lines = [line for line in lines if not OF_OTHERS.fullmatch(line)]
        return Said(ended.returncode, ended.stdout + ended.stderr, lines)


@pytest.fixture(scope="module")
def place(orthanc, tmp_path_factory):
    """A user's folder, and an archive of studies that hold planted names."""
    folder = tmp_path_factory.mktemp("place")
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["patient_id", "lesion"])
        for number in HEADS:
            study = head_study(
                folder / "sources" / str(number),
                number,
                slices=4,
                lesion=number % 2 == 0,
                StudyDescription="LATE" if number == WATCHED else "NEW" if number in NEW else "OLD",
            )
            orthanc.send(study.files)
            rows.writerow([planted(number)["PatientID"], int(number % 2 == 0)])
    return Place(folder, orthanc.url)


@pytest.fixture(scope="module")
def prepared(place):
    """What `prepare dicomweb` said."""
    return place.run(
        "prepare", "dicomweb", place.url, "--labels", "labels.csv", "--out", "prepared",
        "--size", 32, "--workers", 2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(place, prepared):
    return run_small(place.folder / "prepared", place.folder / "run", "fit.epochs=1", WINDOW)


@pytest.fixture(scope="module")
def predicted(place, run):
    """What `predict` said that also made and stored results."""
    archive = place.url.replace("http", "dicomweb+http", 1)
    return place.run(
        "predict", "run", archive, "--query", "StudyDescription=NEW*", "--dicom-out", "results",
        "--store", "--json",
    )  # fmt: skip


def text_of(path: Path) -> str:
    """What stands in a file, that of a table unpacked."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return table.to_csv() + str(table.attrs)
    return path.read_bytes().decode("latin-1")


def test_what_is_prepared_names_nobody(place, prepared):
    assert prepared.status == 0, prepared.text
    assert not leaked(prepared.text, *HEADS)
    written = [path for path in (place.folder / "prepared").rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert not leaked(text_of(path), *HEADS), path.name
        assert not leaked(path.name, *HEADS)


def test_preparing_writes_nothing_else(place, prepared):
    assert not [path for path in prepared.opened if not within(path, place, "prepared")]
    assert not any((place.folder / "temporary").iterdir())


def within(path: str, place: Place, name: str) -> bool:
    """Whether a path is that of a result, or of what becomes it once it is whole."""
    relative = os.path.relpath(Path(place.folder, path), place.folder)
    return name in relative.split(os.sep)[0]


def test_predicting_names_patients_in_results_alone(place, predicted):
    assert predicted.status == 0, predicted.text
    assert not leaked(predicted.text, *HEADS)
    outside = [path for path in predicted.opened if not within(path, place, "results")]
    assert not outside
    assert not any((place.folder / "temporary").iterdir())
    results = sorted((place.folder / "results").rglob("*.dcm"))
    assert len(results) >= 2 * len(NEW)
    names = set()
    for path in results:
        assert not leaked(path.name, *HEADS)
        names.add(str(pydicom.dcmread(path).PatientName))
    assert names == {planted(number)["PatientName"] for number in NEW}


def test_the_watcher_names_nobody(place, run, orthanc):
    said = place.run(
        "watch", "run", place.url, "--query", "StudyDescription=LATE", "--store", "--once",
        "--stable", "0s",
    )  # fmt: skip
    assert said.status == 0, said.text
    assert not leaked(said.text, *HEADS)
    assert not said.opened
    asked = {"Level": "Series", "Query": {"Modality": "SR", "StudyDescription": "LATE"}}
    answer = requests.post(f"{orthanc.root}/tools/find", json=asked, timeout=30)
    assert len(answer.json()) == 1
