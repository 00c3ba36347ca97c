"""What the tests of training share: a small run that is finished."""

from __future__ import annotations

import pytest
from small_run import run_small


@pytest.fixture(scope="session")
def finished(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "first")
