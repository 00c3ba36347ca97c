"""Run folders: what is missing is said, and what is written is whole or not there."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from medseq_tf.errors import InputError
from medseq_tf.runs.run import Run, locked


def test_a_folder_that_is_no_run_names_the_runs_beside_it(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "experiment.yaml").write_text("{}")
    with pytest.raises(InputError, match=r"no run folder .*; runs there: first"):
        Run.open(tmp_path / "frist")


def test_folds_are_in_order_and_a_copy_of_one_is_none(tmp_path):
    for name in ("", "fold_2", "fold_10", "fold_1", "fold_1 (copy)", "fold_old"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "experiment.yaml").write_text("{}")
    assert [fold.name for fold in Run.open(tmp_path).folds] == ["fold_1", "fold_2", "fold_10"]


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    with locked(tmp_path / "run"):
        refused = pytest.raises(InputError, match="another process is training there")
        with refused, locked(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").exists()
    with locked(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    for place in (tmp_path / "run", tmp_path / "run" / "fold_1"):
        place.mkdir()
        (place / ".partial-0123456789ab.csv").write_text("half")
        (place / "history.csv").write_text("whole")
    with locked(tmp_path / "run"):
        pass
    left = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*.csv"))
    assert left == ["fold_1/history.csv", "history.csv"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": 1', "\udc00"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(tmp_path, text):
    (tmp_path / "experiment.yaml").write_text("{}")
    for name in ("metrics.json", "history.csv", "predictions.parquet", "slices.parquet"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    run = Run.open(tmp_path)
    for read in ("metrics", "predictions", "slices"):
        with pytest.raises(InputError, match=r"is damaged; it should be") as refused:
            getattr(run, read)
        assert "\n" not in str(refused.value)


def test_a_run_of_before_does_not_pass_on_the_name_of_its_labels_file(tmp_path):
    (tmp_path / "experiment.yaml").write_text("{}")
    options = {"labels": "PLANTNAME_labels.csv", "axis": "axial"}
    about = {"label_names": ["a"], "preparation": {"reader": "volumes", "options": options}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    dataset = Run.open(tmp_path).dataset
    assert "PLANTNAME" not in str(dataset)
    assert dataset["preparation"]["options"]["axis"] == "axial"


def test_the_first_runs_of_0_1_0_say_less_and_open_as_well(tmp_path):
    (tmp_path / "experiment.yaml").write_text("{}")
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    row = {"label": "lesion", "metric": "auroc", "value": 0.9, "low": 0.8, "high": 1.0, "n": 40}
    table = [{"split": split, **row} for split in ("validation", "test")]
    (tmp_path / "metrics.json").write_text(json.dumps({"table": table}))
    (tmp_path / "dataset.json").write_text(json.dumps({"label_names": ["lesion"]}))
    pd.DataFrame({"study": ["a"], "probability": [0.25]}).to_parquet(
        tmp_path / "predictions.parquet"
    )
    run = Run.open(tmp_path)
    assert run.metrics["split"].tolist() == ["test", "validation"]
    assert run.metrics["interval"].fillna("").tolist() == ["", ""]
    assert run.predictions["calibrated"].tolist() == [0.25]
    assert run.notes == []
