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


def write_run(folder, **info):
    """Write as much of a run as says what it predicts with."""
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"status": "finished", **info}))
    return Run.open(folder)


def shares(run):
    return {str(one.path.relative_to(run.path)): weight for one, weight in run.members}


def test_a_single_run_predicts_with_itself_and_folds_each_as_much(tmp_path):
    single = write_run(tmp_path / "single")
    assert shares(single) == {".": 1.0}
    assert not single.cross_validated
    folded = write_run(tmp_path / "folded", folds=3)
    for number in range(1, 4):
        write_run(folded.path / f"fold_{number}")
    assert shares(folded) == dict.fromkeys(["fold_1", "fold_2", "fold_3"], 1 / 3)
    assert folded.cross_validated
    assert folded.heaviest.name == "fold_1"


def automatic(folder, members, **info):
    return write_run(folder, folds=2, members=members, auto={"sentence": "It is so."}, **info)


def test_members_of_members_share_their_weight(tmp_path):
    named = [{"run": "members/a", "weight": 0.4}, {"run": "candidates/b/round_1", "weight": 0.6}]
    run = automatic(tmp_path / "auto", named)
    write_run(run.path / "members" / "a")
    folded = write_run(run.path / "candidates" / "b" / "round_1", folds=2)
    for number in (1, 2):
        write_run(folded.path / f"fold_{number}")
    b = "candidates/b/round_1"
    assert shares(run) == {"members/a": 0.4, f"{b}/fold_1": 0.3, f"{b}/fold_2": 0.3}
    assert sum(weight for _, weight in run.members) == pytest.approx(1)
    assert run.heaviest.path == folded.path / "fold_1"  # of the two that have 0.6
    assert run.cross_validated
    assert run.folds == []
    run.require_finished()
    (folded.path / "fold_2" / "run.json").write_text('{"status": "stopped"}')
    with pytest.raises(InputError, match=r"round_1: the run is stopped"):
        run.require_finished()


def test_a_run_of_no_members_says_why(tmp_path):
    run = automatic(tmp_path / "auto", [])
    run.require_finished()
    assert run.members == []
    for refuse in (run.require_members, lambda: run.heaviest):
        with pytest.raises(
            InputError, match=r"has no model \(It is so\); auto --resume --deploy-anyway"
        ):
            refuse()


@pytest.mark.parametrize(
    "members",
    [
        [{"run": "members/a", "weight": 0.5}],
        [{"run": "members/a", "weight": 1.5}, {"run": "members/b", "weight": -0.5}],
        [{"run": "members/a", "weight": float("nan")}],
        [{"run": "../elsewhere", "weight": 1}],
        [{"run": "members/../../elsewhere", "weight": 1}],
        [{"run": "/elsewhere", "weight": 1}],
        [{"run": ".", "weight": 1}],
        [{"run": "", "weight": 1}],
        [{"run": "members/a"}],
        ["members/a"],
        {"members/a": 1},
        7,
    ],
)
def test_members_that_are_none_are_refused_in_one_line(tmp_path, members):
    run = automatic(tmp_path / "auto", members)
    write_run(run.path / "members" / "a")
    write_run(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=r"run\.json: is damaged; its members should be"
    ) as refused:
        _ = run.members
    assert "\n" not in str(refused.value)


def test_a_link_leads_to_no_member_elsewhere(tmp_path):
    run = automatic(tmp_path / "auto", [{"run": "members/linked", "weight": 1}])
    write_run(tmp_path / "elsewhere")
    (run.path / "members").mkdir(exist_ok=True)
    (run.path / "members" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="its members should be runs below it"):
        _ = run.members
    moved = tmp_path / "linked"
    moved.symlink_to(run.path)
    write_run(run.path / "members" / "own")
    run.update_info(members=[{"run": "members/own", "weight": 1}])
    assert [member.run.name for member in Run(moved).members] == ["own"]


def test_a_member_that_is_not_there_is_named(tmp_path):
    run = automatic(tmp_path / "auto", [{"run": "members/a", "weight": 1}])
    with pytest.raises(InputError, match=r"members/a: no run folder"):
        run.require_finished()


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
