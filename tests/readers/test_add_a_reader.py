"""The reader of CONTRIBUTING.md, added to a copy of the package as the page says, and used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medseq_tf
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.phantom.cohort import DemoCohort, patient_names
from medseq_tf.phantom.writers import write_labels

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## Add a reader\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
COHORT = DemoCohort(patients=3, seed=5, size=32, slices=(4, 6))
PREPARE = """
import medseq_tf
if __name__ == "__main__":
    data = medseq_tf.prepare("numpy", "source", out="out", size=32, workers=2, progress=False)
    print(data.audit_text())
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of a package that has the page's reader."""
    section = SECTION.search((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    if section is None:
        pytest.skip("CONTRIBUTING.md has no section 'Add a reader' yet")
    (name,) = re.findall(r"new file, `medseq_tf/([\w/]+\.py)`", section[1])
    reader, listed = re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(medseq_tf.__file__).parent, copy / "medseq_tf")
    (copy / "medseq_tf" / name).write_text(reader)
    with open(copy / "medseq_tf" / "dataset" / "prepare.py", "a") as file:
        file.write(f"\n{listed}")
    return copy


def run(package, folder):
    return subprocess.run(
        [sys.executable, "run.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def source(tmp_path):
    (tmp_path / "run.py").write_text(PREPARE)
    folder = tmp_path / "source"
    folder.mkdir()
    names = patient_names(COHORT)
    write_labels(COHORT, folder)
    for number, name in enumerate(names):
        np.save(folder / f"{name}.npy", COHORT.render(number).volume)
    return folder


def test_the_reader_of_the_page_prepares_a_cohort(package, source):
    (source / "notes.txt").write_text("no volume")
    np.save(source / "unknown.npy", np.zeros((2, 8, 8)))
    done = run(package, source.parent)
    assert done.returncode == 0, done.stderr
    assert "notes.txt" in done.stdout
    assert "unknown.npy" in done.stdout
    data = Prepared.load(source.parent / "out")
    found = {data.slices(row).tobytes() for row in range(len(data))}
    assert found == {COHORT.render(number).volume.tobytes() for number in range(3)}
    assert (data.info["modality"], data.info["unit"]) == ("CT", "HU")


def test_what_it_cannot_read_costs_one_study(package, source):
    first, second, _ = sorted(source.glob("*.npy"))
    first.write_bytes(first.read_bytes()[:300])
    np.save(second, np.array([{}], object), allow_pickle=True)
    done = run(package, source.parent)
    assert done.returncode == 0, done.stderr
    assert len(Prepared.load(source.parent / "out")) == 1
    assert done.stdout.count("damaged or cut short") == 2
