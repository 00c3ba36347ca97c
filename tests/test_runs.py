"""Run folders: what is missing is said, and what is written is whole or not there."""

from __future__ import annotations

import json

import pytest

from medseq_tf.errors import InputError
from medseq_tf.runs import Run, atomic, locked, write_json


def test_a_folder_that_is_no_run_names_the_runs_beside_it(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "experiment.yaml").write_text("{}")
    with pytest.raises(InputError, match=r"no run folder .*; runs there: first"):
        Run.load(tmp_path / "frist")


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    with locked(tmp_path / "run"):
        refused = pytest.raises(InputError, match="another process is training there")
        with refused, locked(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").exists()
    with locked(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_others_may_read_what_is_written(tmp_path):
    write_json(tmp_path / "x.json", {})
    (tmp_path / "y.json").write_text("{}")
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "y.json").stat().st_mode


def test_json_has_null_where_a_number_is_none(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.5, float("nan")], "b": {"c": float("-inf")}})
    found = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert found == {"a": [1.5, None], "b": {"c": None}}


def test_folds_come_in_their_order(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / f"fold_{number}").mkdir()
        (tmp_path / f"fold_{number}" / "experiment.yaml").write_text("{}")
    assert [fold.name for fold in Run(tmp_path).folds] == ["fold_1", "fold_2", "fold_10"]
