"""Every notebook runs from top to bottom, on small sizes."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's machinery, in this process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, no_server, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_NOTEBOOK_PATIENTS", "40")
    monkeypatch.setenv("MEDSEQ_TF_NOTEBOOK_EPOCHS", "2")
    monkeypatch.setenv("MEDSEQ_TF_NOTEBOOK_TRIALS", "2")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(no_server)}}
    ).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
