"""The commands of docs/archive.md, run in order as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from orthanc import PATHS, free_port, program

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "archive.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
NEW = 5
"""Studies that the page leaves without a label, and predicts."""
ENDED_WITH_ITS_CHILDREN = "set -euo pipefail\ntrap 'kill $(jobs -p); wait' EXIT\n"


@pytest.mark.slow
def test_the_page_leads_to_a_report_in_the_archive(tmp_path):
    program()
    for need in ("curl", "dsrdump"):
        if shutil.which(need) is None:
            pytest.skip(f"{need} is not installed")
    script = ENDED_WITH_ITS_CHILDREN + "\n".join(BLOCKS).replace("8043", str(free_port()))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MEDSEQ_TF_")
    }
    environment |= {
        "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{PATHS}",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=1500,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert said.count("Research use only") >= NEW, said
