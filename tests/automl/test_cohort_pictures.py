"""What pictures look like: drawn discs with and without a bright rim, and the demo's heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medseq_tf.automl.pictures import look_at
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared


class Drawn:
    """What stands for a prepared data set of one picture, of several studies."""

    def __init__(self, picture, unit="grey level"):
        self.picture, self.info = np.asarray(picture), {"unit": unit}
        self.studies = pd.DataFrame({"slices": [3] * 5})

    def slices(self, row, indices):
        return self.picture[None]


def disc(inside, rim, background=0, side=96):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(y, x) / side
    picture = np.where(radius < 0.42, rim, background)
    return np.where(radius < 0.36, inside, picture).astype(np.int16)


def test_a_skull_is_a_bright_shell():
    low, median, high = look_at(Drawn(disc(100, 250)), np.arange(5)).intensities
    assert (low, high) == (0.0, 250.0)
    assert median == 0.0 or median == 100.0
    centre, spread = look_at(Drawn(disc(100, 250)), np.arange(5)).inside
    assert centre == pytest.approx(100 / 250, abs=0.01)
    assert spread == 0.0


def test_hounsfield_units_have_their_own_range():
    assert look_at(Drawn(disc(40, 1200, -1000), "HU"), np.arange(5)).inside is not None
    assert look_at(Drawn(disc(40, 60, -1000), "HU"), np.arange(5)).inside is None


@pytest.mark.parametrize("picture", [disc(100, 120), disc(250, 250), disc(0, 0), disc(250, 100)])
def test_without_a_bright_rim_there_is_no_shell(picture):
    assert look_at(Drawn(picture), np.arange(5)).inside is None


def test_a_shape_has_two_intensities():
    assert look_at(Drawn(disc(255, 255)), np.arange(5)).binary
    assert not look_at(Drawn(disc(100, 255)), np.arange(5)).binary


def test_both_intensities_of_a_small_shape_are_seen():
    speck = np.zeros((96, 96), np.uint8)
    speck[40:44, 40:44] = 1
    assert look_at(Drawn(speck), np.arange(5)).intensities == (0.0, 0.0, 1.0)


def test_several_channels_are_seen_by_their_first():
    several = np.stack([disc(100, 250), disc(7, 7)], axis=-1)
    assert look_at(Drawn(several), np.arange(5)) == look_at(Drawn(disc(100, 250)), np.arange(5))


def test_the_demos_heads_have_a_skull(tmp_path):
    prepare("demo", out=tmp_path / "d", patients=6, size=64, workers=1, progress=False)
    prepared = Prepared.load(tmp_path / "d")
    seen = look_at(prepared, np.arange(6))
    assert seen.inside is not None
    assert not seen.binary
    assert look_at(prepared, np.arange(6)) == seen
