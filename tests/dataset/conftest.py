"""What tests of prepared data sets share."""

from __future__ import annotations

import numpy as np
import pytest
from image_folders import save


@pytest.fixture
def folder(tmp_path, rng):
    """A class folder of four patients, two slices each, 20 x 30."""
    for patient in range(1, 5):
        for number in (1, 2):
            name = f"{'Normal' if patient < 3 else 'Stroke'}/{patient} ({number}).png"
            save(tmp_path / "source" / name, rng.integers(0, 256, (20, 30), np.uint8))
    return tmp_path / "source"
