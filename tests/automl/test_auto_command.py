"""The command `auto`: its options, and one clear line with exit status 2 for what is wrong."""

from __future__ import annotations

import inspect

import pandas as pd
import pytest
import yaml
from command_line import run_command

from medseq_tf import cli
from medseq_tf.automl.auto import auto
from medseq_tf.automl.plan import load_plan
from medseq_tf.evaluation.results_text import headline_text
from medseq_tf.readers.classes import Classes


def test_the_command_has_the_defaults_of_its_function():
    found = cli.cli.commands["auto"].make_context("auto", ["x"]).params
    parameters = inspect.signature(auto).parameters
    assert found.keys() == parameters.keys() - {"verbose"}
    for name in found.keys() - {"data"}:
        assert found[name] == parameters[name].default, name


@pytest.fixture(scope="module")
def planned(demo_data, tmp_path_factory):
    """The folder of a plan for the demo cohort."""
    folder = tmp_path_factory.mktemp("planned")
    auto(demo_data, folder / "auto", minutes=5, plan_only=True, track=False)
    return folder / "auto"


def test_a_plan_alone_is_printed_and_kept(demo_data, tmp_path, monkeypatch, capsys):
    words = ["auto", demo_data, "--out", tmp_path / "auto", "--plan-only", "--seed", "3"]
    status, out, _ = run_command(monkeypatch, capsys, *words)
    assert status == 0
    plan = load_plan(tmp_path / "auto" / "plan.yaml")
    assert plan.text() in out
    assert plan.seed == 3
    assert [file.name for file in (tmp_path / "auto").iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "minutes = 0: should be above 0"),
        (["--minutes", "inf"], "minutes"),
        (["--folds", "30"], "30 folds"),
        (["--plan", "none.yaml"], "none.yaml"),
        (["none"], "none is not a prepared data set"),
    ],
)
def test_what_is_wrong_is_one_line(demo_data, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    data = [] if "none" in words else [demo_data]
    status, out, err = run_command(monkeypatch, capsys, "auto", *data, "--no-track", *words)
    assert status == 2
    assert not out
    (line,) = err.strip().splitlines()
    assert line.startswith("medseq-tf: error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 4}, "fold: unknown key"),
        ({"candidates": []}, "candidates: "),
        ({"minutes": 0}, "minutes = 0"),
    ],
)
def test_an_edited_plan_that_is_wrong_is_one_line(
    demo_data, planned, tmp_path, monkeypatch, capsys, change, message
):
    values = yaml.safe_load((planned / "plan.yaml").read_text())
    file = tmp_path / "edited.yaml"
    file.write_text(yaml.safe_dump(values | change))
    words = ["auto", demo_data, "--plan", file, "--out", tmp_path / "auto"]
    status, _, err = run_command(monkeypatch, capsys, *words)
    assert status == 2
    (line,) = err.strip().splitlines()
    assert message in line
    assert str(file) in line


def test_a_plan_for_another_cohort_is_one_line(class_data, planned, tmp_path, monkeypatch, capsys):
    words = ["auto", class_data, "--plan", planned / "plan.yaml"]
    status, _, err = run_command(monkeypatch, capsys, *words, "--out", tmp_path / "auto")
    assert status == 2
    assert "the plan was made for another data set" in err
    assert len(err.strip().splitlines()) == 1


def test_the_headline_is_that_of_all_labels_or_classes_together():
    row = {"split": "test", "metric": "auroc", "value": 0.9, "low": 0.8, "high": 0.95}
    one = pd.DataFrame([row | {"label": "stroke"}])
    assert headline_text(one) == "AUROC 0.900 (0.800 to 0.950): stroke"
    several = pd.DataFrame([row | {"label": "a", "value": 0.1}, row | {"label": "macro"}])
    assert headline_text(several).endswith("0.950): macro")
    classes = Classes("kind", ("a", "b", "c"))
    table = pd.DataFrame([row | {"label": "a"}, row | {"label": "kind", "value": 0.7}])
    assert headline_text(table, classes).startswith("AUROC 0.700")
