"""What independent programs say of DICOM objects: dciodvfy (dicom3tools) and dsrdump (dcmtk)."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest


def assert_valid(dataset: Any) -> None:
    """Hold that dciodvfy finds no error in a data set, or in a file that a path names."""
    errors = dicom_errors(dataset)
    assert not errors, "\n".join(errors)


def dicom_errors(dataset: Any) -> list[str]:
    """The errors that dciodvfy finds."""
    answer = _said_by("dciodvfy", "dicom3tools", "-new", dataset)
    lines = (answer.stdout + answer.stderr).splitlines()
    return [line for line in lines if re.search(r"\bError\b", line)]


def dsr_tree(dataset: Any) -> str:
    """The tree of a structured report as dsrdump prints it, which also checks its relations."""
    answer = _said_by("dsrdump", "dcmtk", "+Pc", dataset)
    assert answer.returncode == 0, answer.stderr
    complaints = [
        line
        for line in answer.stderr.splitlines()
        if line.startswith(("E:", "W:")) and "does not support this Specific Character" not in line
    ]
    assert not complaints, "\n".join(complaints)
    return answer.stdout


def _said_by(
    program: str, package: str, option: str, dataset: Any
) -> subprocess.CompletedProcess[str]:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install {package})")
    with tempfile.TemporaryDirectory() as folder:
        path = dataset
        if not isinstance(dataset, str | Path):
            path = Path(folder, "object.dcm")
            dataset.save_as(path, enforce_file_format=True)
        return subprocess.run(
            [program, option, str(path)], capture_output=True, text=True, errors="replace"
        )
