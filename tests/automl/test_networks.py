"""The rounds of a network: which model predicts whom, and what becomes of one that cannot go on."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from mean_network import TINY

from medseq_tf.automl.candidates import Candidate
from medseq_tf.automl.networks import network_predictions, share_of
from medseq_tf.automl.plan import make_plan
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Stopped
from medseq_tf.runs.run import Run
from medseq_tf.training.loop import Fitter


def candidate(**changes):
    overrides = {**TINY, **changes.pop("overrides", {})}
    made = {"name": "tiny", "kind": "network", "recipe": "fsm_bilstm", "complexity": 3}
    return Candidate(**{**made, "reason": "", "overrides": overrides, **changes})


@pytest.fixture(scope="module")
def demo(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture(scope="module")
def fold_of(demo):
    return make_plan(demo, folds=3, repeats=2).fold_of(demo)


def rounds(demo, fold_of, folder, made=None, left=lambda: 1e9, **arguments):
    return network_predictions(
        made or candidate(), demo, fold_of, folder, left, say=lambda line: None, **arguments
    )


@pytest.fixture(scope="module")
def finished(demo, fold_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds") / "candidates" / "tiny"
    return rounds(demo, fold_of, folder), folder


def test_a_study_is_predicted_by_models_that_never_saw_it(finished, demo, fold_of):
    made, folder = finished
    assert made.note == "tiny: 2 of 2 rounds"
    ids = demo.studies["study_id"].to_numpy()
    for number, step in ((1, 1), (2, 2)):
        for fold, split in enumerate(Run(folder / f"round_{number}").splits):
            assert set(split["test"]) == set(ids[fold_of[0] == fold])
            assert set(split["validation"]) == set(ids[fold_of[0] == (fold + step) % 3])
            assert set(split["train"]) == set(ids[fold_of[0] == (fold + 2 * step) % 3])


def test_predictions_are_those_of_the_runs(finished, demo, fold_of):
    made, folder = finished
    (predicted,) = made.predictions
    studies = demo.studies["study_id"].to_list()
    tables = {}
    for number in (1, 2):
        for fold, run in enumerate(Run(folder / f"round_{number}").folds):
            for row in run.predictions.to_dict("records"):
                tables[number, fold, row["split"], row["study"]] = row["probability"]
    for place, study in enumerate(studies):
        own = fold_of[0, place]
        outer = [tables[number, own, "test", study] for number in (1, 2)]
        assert predicted.outer[place, 0] == pytest.approx(np.mean(outer))
        for fold in range(3):
            inner = predicted.inner[fold, place, 0]
            if fold == own:
                assert np.isnan(inner)
            else:
                number = (own - fold) % 3
                assert inner == tables[number, fold, "validation", study]


def test_what_is_finished_is_not_trained_again(finished, demo, fold_of, monkeypatch):
    made, folder = finished
    monkeypatch.setattr(Fitter, "run", lambda self: pytest.fail("trained again"))
    again = rounds(demo, fold_of, folder, left=lambda: 0.0)
    for before, after in zip(made.predictions[0], again.predictions[0], strict=True):
        np.testing.assert_array_equal(before, after)


def test_rounds_that_are_there_count_where_a_further_repeat_has_no_time(
    finished, demo, fold_of, tmp_path
):
    made, folder = finished
    other = tmp_path / "candidates" / "tiny"
    other.mkdir(parents=True)
    for number in (1, 2):
        (other / f"round_{number}").symlink_to(folder / f"round_{number}")
    again = rounds(demo, fold_of, other, candidate(repeats=2), left=lambda: 0.0)
    assert len(again.predictions) == 1
    for before, after in zip(made.predictions[0], again.predictions[0], strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_further_round_begins_only_if_it_ends_in_time(finished, demo, fold_of, tmp_path):
    _, folder = finished
    other = tmp_path / "candidates" / "tiny"
    other.mkdir(parents=True)
    (other / "round_1").symlink_to(folder / "round_1")
    (other / "rounds.json").write_text(json.dumps({"1": 60.0}))
    made = rounds(demo, fold_of, other, share=65.0)
    assert made.note == "tiny: 1 of 2 rounds"
    assert [run.path.name for run in made.runs] == ["round_1"]
    assert np.isfinite(made.predictions[0].outer).all()
    assert np.isnan(made.predictions[0].inner).mean() == pytest.approx(2 / 3, abs=0.05)


def test_what_a_network_leaves_the_others_have():
    one, two, three = (candidate(name=f"n{i}", minutes=m) for i, m in enumerate((10, 10, 20)))
    linear = candidate(name="l", kind="linear")
    everyone = [linear, one, two, three]
    assert share_of(one, everyone, 40 * 60) == 10 * 60
    assert share_of(two, everyone, 39 * 60) == 13 * 60
    assert share_of(three, everyone, 26 * 60) == 26 * 60
    endless = candidate(name="e")
    assert share_of(endless, [endless, one], 100.0) == 100.0


def test_every_repeat_has_its_first_round_before_any_has_a_second(demo, fold_of, tmp_path):
    seen = []

    def left():
        seen.append(1)
        return 1e9 if (tmp_path / "tiny" / "round_3" / "fold_3").exists() is False else -1.0

    made = rounds(demo, fold_of, tmp_path / "tiny", candidate(repeats=2), left=left)
    assert seen
    first = Run(tmp_path / "tiny" / "round_3").splits[0]
    ids = demo.studies["study_id"].to_numpy()
    assert set(first["test"]) == set(ids[fold_of[1] == 0])
    assert len(made.predictions) == 1


def test_a_candidate_without_time_is_left_out_and_goes_on_later(demo, fold_of, tmp_path):
    made = rounds(demo, fold_of, tmp_path / "tiny", left=lambda: 10.0)
    assert made.predictions == []
    assert made.note == "tiny is left out for time: its time is over"
    assert not (tmp_path / "tiny" / "round_1").exists()  # not begun
    seconds = iter([20.0])
    made = rounds(demo, fold_of, tmp_path / "tiny", left=lambda: next(seconds, 0.0))
    assert made.predictions == []
    assert "its time is over" in made.note
    assert (tmp_path / "tiny" / "round_1").exists()
    made = rounds(demo, fold_of, tmp_path / "tiny", share=1e9)
    assert len(made.predictions) == 1


def test_a_candidate_that_diverges_is_left_out_and_named(demo, fold_of, tmp_path):
    wild = candidate(overrides={"optimizer.learning_rate": 1e30, "fit.epochs": 3})
    made = rounds(demo, fold_of, tmp_path / "tiny", wild)
    assert made.predictions == []
    assert re.match(r"tiny is left out: .*smaller optimizer\.learning_rate", made.note)
    assert "\n" not in made.note


def test_whatever_goes_wrong_is_one_line(demo, fold_of, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(Fitter, "run", fail)
    made = rounds(demo, fold_of, tmp_path / "tiny")
    assert made.note == "tiny is left out: RuntimeError: first"


def test_an_interruption_is_passed_on(demo, fold_of, tmp_path, monkeypatch):
    def interrupt(self):
        raise Stopped("stopped")

    monkeypatch.setattr(Fitter, "run", interrupt)
    with pytest.raises(Stopped):
        rounds(demo, fold_of, tmp_path / "tiny")


def test_studies_that_take_no_part_are_not_read(demo, fold_of, tmp_path):
    some = np.where(np.arange(len(demo)) < 30, fold_of, -1)
    made = rounds(demo, some, tmp_path / "tiny", candidate(), left=Stopping(tmp_path / "tiny"))
    (predicted,) = made.predictions
    assert np.isnan(predicted.outer[30:]).all()
    assert np.isnan(predicted.inner[:, 30:]).all()
    assert np.isfinite(predicted.outer[:30]).all()


class Stopping:
    """Time for one round."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        return 0.0 if (self.folder / "rounds.json").is_file() else 1e9
