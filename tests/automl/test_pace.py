"""Whether a round ends in time: told by made-up folders and a made-up clock."""

from __future__ import annotations

import pytest

from medseq_tf.automl import pace as pace_module
from medseq_tf.automl.pace import Pace
from medseq_tf.recipe import Fit


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(pace_module, "time", made)
    return made


def epochs(folder, fold, *seconds):
    (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    lines = [f"{number},{value}" for number, value in enumerate(seconds, start=1)]
    (folder / f"fold_{fold}" / "history.csv").write_text("\n".join(["epoch,seconds", *lines]))


def finish(folder, fold):
    epochs(folder, fold, 1.0)
    (folder / f"fold_{fold}" / "metrics.json").write_text("{}")


def begin(folder, clock, seconds, folds=5, **fit):
    began = clock.now
    return Pace(folder, folds, Fit(**fit), lambda: seconds - (clock.now - began))


def test_nothing_stops_before_anything_is_measured(tmp_path, clock):
    pace = begin(tmp_path, clock, 100)
    clock.now += 50
    assert not pace.stops()
    epochs(tmp_path, 1, 40.0)  # the first epoch alone tells nothing
    clock.now += 2
    assert not pace.stops()


def test_time_that_is_over_stops_at_once_and_for_good(tmp_path, clock):
    pace = begin(tmp_path, clock, 10)
    clock.now += 11
    assert pace.stops()
    assert pace.reason == "its time is over"
    pace.left = lambda: 1e6
    assert pace.stops()


@pytest.mark.parametrize(
    ("patience", "needed"), [(None, 5 * 20 * 3 - 2 * 3), (4, 5 * 5 * 3 - 2 * 3)]
)
def test_the_first_epochs_tell_the_least_that_a_round_takes(tmp_path, clock, patience, needed):
    fit = {"epochs": 20, "patience": patience}
    for seconds, stops in ((needed / 1.1 + 30, False), (needed / 1.1 + 1, True)):
        pace = begin(tmp_path, clock, seconds + 10, **fit)
        epochs(tmp_path, 1, 9.0, 3.0)
        clock.now += 12  # two seconds more than were reckoned with
        assert pace.stops() == stops
    assert pace.reason == f"a round needs {needed} s more, {needed / 1.1 - 1:.0f} s are left"


def test_the_first_fold_tells_what_the_others_take(tmp_path, clock):
    for seconds, stops in ((100, False), (90, True)):
        folder = tmp_path / str(seconds)
        pace = begin(folder, clock, seconds)
        clock.now += 20
        finish(folder, 1)
        assert pace.stops() == stops  # four folds more are 80 seconds


def test_folds_of_an_earlier_process_cost_nothing_anew(tmp_path, clock):
    for fold in (1, 2, 3):
        finish(tmp_path, fold)
    pace = begin(tmp_path, clock, 45)
    clock.now += 20
    finish(tmp_path, 4)
    assert not pace.stops()
    clock.now += 20
    finish(tmp_path, 5)
    assert pace.whole_round() == pytest.approx(100.0)


def test_it_looks_no_more_often_than_every_second(tmp_path, clock):
    pace = begin(tmp_path, clock, 100, folds=2)
    assert not pace.stops()
    clock.now += 0.5
    finish(tmp_path, 1)
    assert not pace.stops()
    clock.now += 99.6
    assert pace.stops()


def test_a_further_round_has_to_fit(tmp_path, clock):
    pace = begin(tmp_path, clock, 111)
    assert pace.admits(100)
    assert not pace.admits(101)
