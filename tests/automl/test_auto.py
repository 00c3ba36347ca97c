"""The command `auto`: what it leaves, that it goes on where it was interrupted, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from mean_network import TINY
from sklearn.metrics import roc_auc_score

from medseq_tf.automl import auto as command
from medseq_tf.automl.auto import auto
from medseq_tf.automl.fingerprint import fingerprint_of
from medseq_tf.automl.kept import Kept
from medseq_tf.automl.linear import FITS
from medseq_tf.automl.plan import Plan
from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.automl.sentences import against_reference
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.runs.run import Run


def measures(name, role, *groups):
    """A candidate of hand-made features and a regression."""
    encoder = {"name": "handcrafted", "features": list(groups)}
    overrides = {"input.size": 32, "model.encoder": encoder}
    return {"name": name, "role": role, "recipe": "frozen_linear", "overrides": overrides}


LINEAR = (
    measures("acquisition", "reference", "acquisition"),
    measures("handcrafted", "baseline", "histogram", "asymmetry", "texture", "shape"),
    measures("histogram", "baseline", "histogram"),
)
NETWORK = {
    "name": "network",
    "kind": "network",
    "recipe": "fsm_bilstm",
    "overrides": {**TINY, "fit.monitor": "loss"},
}


def small_plan(data, *candidates, **settings):
    """A plan of 2 x 3 folds of few candidates, the simplest first."""
    numbered = [
        {"kind": "linear", "reason": "a test", **candidate, "complexity": number}
        for number, candidate in enumerate(candidates or LINEAR)
    ]
    settings = {"seed": 0, "folds": 3, "repeats": 2, "minutes": 60, "conclude": True} | settings
    cohort = fingerprint_of(Prepared.open(data))
    return Plan.model_validate({**settings, "candidates": numbered, "cohort": cohort})


def quiet(data, out, plan, **arguments):
    return auto(data, out, plan=plan, track=False, verbose=False, **arguments)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """No page is drawn, which takes longer than all else of a small run."""
    monkeypatch.setattr("medseq_tf.reporting.report.write", lambda *arguments, **options: None)


@pytest.fixture(scope="module")
def plan(demo_data):
    return small_plan(demo_data)


@pytest.fixture(scope="module")
def run(demo_data, plan, tmp_path_factory):
    return quiet(demo_data, tmp_path_factory.mktemp("auto") / "run", plan)


def predicted(run):
    table = run.predictions
    assert set(table["split"]) == {"test"}
    return table


def test_every_patient_is_tested_once_a_repeat_by_the_plans_folds(run, plan, demo_data):
    prepared, table = Prepared.load(demo_data), predicted(run)
    assert run.info["status"] == "finished"
    assert (run.info["folds"], run.repeats) == (3, 2)
    assert len(table) == 2 * len(prepared)
    assert not table.duplicated(["study", "repeat"]).any()
    row = {study: number for number, study in enumerate(prepared.studies["study_id"])}
    fold_of = plan.fold_of(prepared)
    expected = [
        3 * (repeat - 1) + fold_of[repeat - 1, row[study]] + 1
        for study, repeat in zip(table["study"], table["repeat"], strict=True)
    ]
    assert table["fold"].tolist() == expected
    for number, split in enumerate(run.splits, start=1):
        assert set(split["test"]) == set(table.loc[table["fold"] == number, "study"])


def test_the_figure_is_that_of_what_was_chosen_in_each_fold(run):
    """From the two tables that are kept: shares by fold, and every candidate's probabilities."""
    chosen = pd.read_csv(run.path / "used_for_selection.csv")
    chosen = chosen[chosen["chosen"] & (chosen["repeat"] != "all")]
    assert len(chosen) == 6
    candidates = pd.read_parquet(run.path / "candidates.parquet")
    assert set(candidates["candidate"]) == {"acquisition", "handcrafted", "histogram"}
    wide = candidates.pivot(index=["fold", "study"], columns="candidate", values="probability")
    table = predicted(run).set_index(["fold", "study"])
    aurocs = []
    for row in chosen.itertuples():
        fold = 3 * (int(row.repeat) - 1) + int(row.fold)
        weights = json.loads(row.weights)
        assert "acquisition" not in weights
        mean = sum(share * wide.loc[fold][name] for name, share in weights.items())
        own = table.loc[fold]
        np.testing.assert_allclose(own["probability"], mean[own.index], rtol=1e-12)
        aurocs.append(roc_auc_score(own["truth"], own["probability"]))
    row = run.metrics.set_index("metric").loc["auroc"]
    assert row["value"] == pytest.approx(np.mean(aurocs))
    assert row["low"] < row["value"] < row["high"] or row["value"] == 1


def test_no_call_of_a_fold_depends_on_its_own_truth(run):
    """A fold's threshold is one for all of its studies."""
    table = predicted(run)
    assert (table.groupby("fold")["threshold"].nunique() == 1).all()
    assert (table["positive"] == (table["probability"] >= table["threshold"])).all()


def test_what_is_deployed_learned_from_everyone(run, demo_data):
    members = run.members
    assert sum(member.weight for member in members) == pytest.approx(1)
    choice = run.info["auto"]["choice"]["weights"]
    assert {m.run.name: m.weight for m in members} == pytest.approx(choice)
    for member in members:
        assert len(member.run.splits["train"]) == 40
        assert member.run.splits["test"] == []
    heaviest = max(choice, key=choice.get)
    assert run.experiment.model == members[0].run.experiment.model
    assert members[0].run.name == heaviest
    assert run.info["auto"]["baseline"] in ("handcrafted", "histogram")
    sentence = run.info["auto"]["sentence"]
    assert " deployed: " in sentence
    assert sentence.split("; ")[0] in "\n".join(run.notes)


def test_a_finished_run_is_returned_as_it_is(run, plan, demo_data):
    before = (run.path / "metrics.json").stat().st_mtime_ns
    again = quiet(demo_data, run.path, None, resume=True)
    assert again.path == run.path
    assert (run.path / "metrics.json").stat().st_mtime_ns == before


def test_a_plan_alone_is_written_edited_and_run(demo_data, plan, tmp_path, capsys):
    out = tmp_path / "run"
    assert auto(demo_data, out, folds=3, repeats=2, plan_only=True, track=False) is None
    assert [file.name for file in out.iterdir()] == ["plan.yaml"]
    assert "fsm_bilstm" in capsys.readouterr().out
    values = yaml.safe_load((out / "plan.yaml").read_text("utf-8"))
    values["candidates"] = small_plan(demo_data, LINEAR[1]).model_dump(mode="json")["candidates"]
    values["repeats"] = 1
    (out / "plan.yaml").write_text(yaml.safe_dump(values), "utf-8")
    with pytest.raises(InputError, match=r"holds another plan .* give --plan"):
        auto(demo_data, out, folds=3, repeats=2, track=False)
    made = quiet(demo_data, out, out / "plan.yaml")
    assert made.repeats == 1
    assert list(made.info["auto"]["choice"]["weights"]) == ["handcrafted"]


def test_another_plan_other_data_or_other_numbers_do_not_go_on(
    run, plan, demo_data, class_data, tmp_path
):
    other = plan.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="holds another plan"):
        quiet(demo_data, run.path, other, resume=True)
    with pytest.raises(InputError, match="another data set"):
        quiet(class_data, run.path, None, resume=True)
    with pytest.raises(InputError, match=r"seed = 3: the plan .* has 0"):
        quiet(demo_data, run.path, None, seed=3, resume=True)
    with pytest.raises(InputError, match=r"minutes = 60: the plan has 3.0"):
        quiet(demo_data, run.path, plan.model_copy(update={"minutes": 3.0}), minutes=60)
    with pytest.raises(InputError, match="--resume"):
        quiet(demo_data, run.path, plan)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="in use"):
        quiet(demo_data, tmp_path, plan)


def test_no_processes_are_one_line(plan, demo_data, tmp_path):
    with pytest.raises(InputError, match="workers=0 is not a number of processes, 1 or more"):
        quiet(demo_data, tmp_path / "run", plan, workers=0)
    assert not list(tmp_path.iterdir())


def test_without_time_linear_candidates_have_one_repeat_and_it_is_said(
    run, plan, demo_data, tmp_path
):
    made = quiet(demo_data, tmp_path / "run", plan.model_copy(update={"minutes": 1e-6}))
    assert made.repeats == 1
    assert "there was time for 1 of 2 repeats of the folds" in made.notes
    both = [pd.read_parquet(one.path / "candidates.parquet") for one in (made, run)]
    first = both[1].query("repeat == 1").reset_index(drop=True)
    pd.testing.assert_frame_equal(both[0], first)


@pytest.mark.parametrize(("minutes", "seconds"), [(60, 180), (4, 20), (1, 18), (0.1, 1.8)])
def test_time_is_kept_for_the_end(minutes, seconds):
    assert command._reserve(minutes) == pytest.approx(seconds)


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1, 3, 6])
def test_a_killed_run_goes_on_to_the_same_bits(run, plan, demo_data, tmp_path, monkeypatch, kept):
    keep, count = Kept.keep, 0

    def keep_then_die(self, *arguments):
        nonlocal count
        keep(self, *arguments)
        count += 1
        if count == kept:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "keep", keep_then_die)
        with pytest.raises(Killed):
            quiet(demo_data, tmp_path / "run", plan)
    handed_out = tmp_path / "run" / "candidates" / "acquisition" / FITS
    handed_out.touch()
    again = quiet(demo_data, tmp_path / "run", None, resume=True)
    assert_same_bytes(again, run)
    assert not handed_out.exists()


def assert_same_bytes(one, other):
    for name in ("predictions.parquet", "candidates.parquet", "used_for_selection.csv"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    assert one.info["members"] == other.info["members"]


@pytest.mark.slow
def test_candidates_side_by_side_come_to_the_same_bits(run, plan, demo_data, tmp_path):
    assert_same_bytes(quiet(demo_data, tmp_path / "run", plan, workers=2), run)


@pytest.mark.slow
def test_features_and_candidates_on_two_nodes_come_to_the_same_bits(
    run, plan, demo_data, tmp_path, two_nodes
):
    folders = {"out": tmp_path / "spread", "features": tmp_path / "features"}
    assert_same_bytes(quiet(demo_data, plan=plan, ray=two_nodes, **folders), run)
    assert len(list((tmp_path / "features").glob("??/*"))) == len(LINEAR) * len(
        Prepared.open(demo_data)
    )


def test_ctrl_c_at_the_end_says_how_to_go_on(run, plan, demo_data, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "conclude", interrupt)
        with pytest.raises(Stopped, match="--resume goes on"):
            quiet(demo_data, out, plan)
    info = Run(out).info
    assert info["status"] == "stopped"
    assert info["auto"]["seconds"] > 0
    with monkeypatch.context() as patch:  # everything is there
        patch.setattr(command, "study_vectors", None)
        again = quiet(demo_data, out, None, resume=True)
    assert again.info["auto"]["seconds"] > info["auto"]["seconds"]
    pd.testing.assert_frame_equal(again.predictions, run.predictions)


@pytest.mark.slow
def test_no_time_leaves_networks_out_and_finishes_the_linear_ones(demo_data, tmp_path):
    plan = small_plan(demo_data, *LINEAR, NETWORK, minutes=1e-6, repeats=1)
    made = quiet(demo_data, tmp_path / "run", plan)
    assert "network" not in set(pd.read_parquet(made.path / "candidates.parquet")["candidate"])
    assert any("network is left out for time" in note for note in made.notes)
    assert made.members


@pytest.mark.slow
def test_a_network_of_no_use_is_measured_and_not_deployed(demo_data, tmp_path, capsys):
    plan = small_plan(demo_data, *LINEAR, NETWORK, repeats=2)
    made = auto(demo_data, tmp_path / "run", plan=plan, track=False)
    candidates = pd.read_parquet(made.path / "candidates.parquet")
    assert set(candidates.loc[candidates["candidate"] == "network", "repeat"]) == {1}
    assert made.repeats == 1  # of the one that all candidates have
    assert set(made.predictions["repeat"]) == {1}
    assert "network" not in made.info["auto"]["choice"]["weights"]
    assert "no network is ahead" in made.info["auto"]["sentence"]
    assert not list(made.path.glob("candidates/*/round_*/fold_*/model.keras"))
    printed = capsys.readouterr().out
    scores = pd.read_csv(made.path / "used_for_selection.csv")[["auroc", "log_loss"]].stack()
    for score in scores:
        assert f"{score:.3f}" not in printed


@pytest.mark.slow
def test_networks_have_further_repeats_while_all_of_them_fit(demo_data, tmp_path):
    plan = small_plan(demo_data, LINEAR[1], {**NETWORK, "repeats": 2})
    made = quiet(demo_data, tmp_path / "run", plan)
    assert made.repeats == 2
    assert made.info["auto"]["rounds"]["network"]["note"] == "network: 4 of 4 rounds"
    candidates = pd.read_parquet(made.path / "candidates.parquet")
    assert set(candidates.loc[candidates["candidate"] == "network", "repeat"]) == {1, 2}
    assert predicted(made).groupby("repeat").size().to_dict() == {1: 40, 2: 40}


def permuted(data, seed=0):
    """The same data set with its labels dealt out anew among the studies."""
    prepared = Prepared.load(data)
    columns = [f"label.{name}" for name in prepared.label_names]
    studies = prepared.studies.copy()
    order = np.random.default_rng(seed).permutation(len(studies))
    studies[columns] = studies[columns].to_numpy()[order]
    return dataclasses.replace(prepared, studies=studies)


@pytest.mark.slow
def test_where_nothing_beats_chance_nothing_is_deployed_unless_asked(demo_data, tmp_path):
    data, plan = permuted(demo_data), small_plan(demo_data, repeats=1)
    made = quiet(data, tmp_path / "run", plan)
    assert made.info["members"] == made.members == []
    assert made.info["auto"]["choice"]["weights"] == {}
    sentence = made.info["auto"]["sentence"]
    assert any(note.endswith("chosen without them; none is exported") for note in made.notes)
    assert sentence.startswith("nothing beats chance: AUROC 0.")
    assert "confounding" not in sentence
    low, high = made.metrics.set_index("metric").loc["auroc", ["low", "high"]]
    assert low < 0.5 < high
    assert any("none is exported" in note for note in made.notes)
    with pytest.raises(InputError, match=r"nothing beats chance.*deploy-anyway"):
        made.require_members()
    asked = quiet(data, made.path, None, resume=True, deploy_anyway=True)
    assert asked.members
    assert "deployed because that was asked for" in asked.info["auto"]["sentence"]
    pd.testing.assert_frame_equal(asked.predictions, made.predictions)


@pytest.mark.slow
def test_of_very_few_patients_nothing_is_concluded(demo_data, tmp_path):
    plan = small_plan(demo_data, repeats=1, conclude=False)
    made = quiet(demo_data, tmp_path / "run", plan)
    assert made.members == []
    assert made.info["auto"]["sentence"].startswith("nothing is concluded")


@pytest.mark.slow
def test_what_acquisition_alone_reaches_is_held_against_the_procedure(demo_data, tmp_path):
    """The reference is here what the baseline is, so that nothing is ahead of it."""
    reference = {**LINEAR[1], "name": "acquisition", "role": "reference"}
    plan = small_plan(demo_data, reference, LINEAR[1], repeats=1)
    made = quiet(demo_data, tmp_path / "run", plan)
    row = made.metrics.set_index("metric").loc["auroc"]
    sentence = made.info["auto"]["sentence"]
    assert "confounding is not excluded: acquisition alone reaches an AUROC of" in sentence
    assert sentence.count(f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})") == 2


def test_a_reference_that_tells_nothing_excludes_nothing():
    """Its difference from what tells everything has no variance, and so no interval."""
    truth = np.tile([0.0, 1.0], 20)[:, None]
    data = SimpleNamespace(
        labels=truth, outputs="labels", studies=pd.DataFrame({"patient_id": range(40)})
    )
    nothing = {"acquisition": CandidatePredictions(np.full((40, 1), 0.5), np.empty(0))}
    plan = SimpleNamespace(candidates=[SimpleNamespace(name="acquisition", role="reference")])
    candidates = SimpleNamespace(
        plan=plan,
        prepared=data,
        part=np.ones(40, bool),
        fold_of=(np.arange(40) // 2 % 4)[None],
        predictions=[nothing],
    )
    outcome = SimpleNamespace(outer=0.1 + 0.8 * truth[None], auroc=Estimate(1.0, 0.7, 1.0))
    assert against_reference(candidates, outcome, [0]) == []
    outcome.outer = 0.9 - 0.8 * truth[None]
    assert len(against_reference(candidates, outcome, [0])) == 1


@pytest.mark.slow
def test_classes_have_one_figure_and_no_threshold(class_data, tmp_path):
    plan = small_plan(class_data, repeats=1)
    made = quiet(class_data, tmp_path / "run", plan)
    table = predicted(made)
    assert table["threshold"].isna().all()
    assert made.thresholds == {}
    np.testing.assert_allclose(table.groupby("study")["probability"].sum(), 1)
    sums = table.groupby("study")["positive"].sum()
    assert (sums == 1).all()


def counts_of(labels):
    return {
        "positive": int((labels == 1).sum()),
        "negative": int((labels == 0).sum()),
        "unknown": int(np.isnan(labels).sum()),
    }


@pytest.mark.slow
def test_several_labels_with_unknown_ones(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    second = np.where(np.arange(40) % 8 == 0, np.nan, (np.arange(40) // 2) % 2)
    studies = prepared.studies.assign(**{"label.second": second})
    info = {**prepared.info, "label_names": ["lesion", "second"]}
    info["counts"] = {
        **info["counts"],
        "labels": info["counts"]["labels"] | {"second": counts_of(second)},
    }
    data = dataclasses.replace(prepared, info=info, studies=studies)
    plan = small_plan(data, repeats=1)
    made = quiet(data, tmp_path / "run", plan)
    table = predicted(made)
    assert table["label"].value_counts().to_dict() == {"lesion": 40, "second": 40}
    assert set(made.thresholds) == {"lesion", "second"}


@pytest.mark.slow
def test_sites_are_kept_whole(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    sites = [f"site-{number % 4}" for number in range(40)]
    data = dataclasses.replace(prepared, studies=prepared.studies.assign(site=sites))
    made = quiet(data, tmp_path / "run", small_plan(data, repeats=1, by="site"))
    table = predicted(made).assign(
        site=lambda t: t["study"].map(dict(zip(data.studies["study_id"], sites, strict=True)))
    )
    assert (table.groupby("site")["fold"].nunique() == 1).all()


def test_the_candidates_are_children_of_one_run(demo_data, no_server):
    import mlflow

    plan = small_plan(demo_data, *LINEAR, NETWORK, repeats=1)
    made = auto(demo_data, no_server / "run", plan=plan, verbose=False)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'medseq_tf'")
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("run")
    assert parent.info.run_id == made.info["mlflow_run_id"]
    assert parent.data.tags["medseq_tf.kind"] == "auto"
    assert parent.data.params["plan"] == plan.digest()
    value = made.metrics.set_index("metric").loc["auroc", "value"]
    assert parent.data.metrics["test_auroc"] == pytest.approx(value)
    assert set(runs) == {f"run {c.name}" for c in plan.candidates}
    for child in runs.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"


RESUMED = """
import sys
from medseq_tf.automl.auto import auto
auto(*sys.argv[1:3], plan=sys.argv[3], resume=True, track=False, verbose=False)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(demo_data, tmp_path):
    """Killed with its process, each time when something more is there, in the middle of a network
    too."""
    plan, out = small_plan(demo_data, *LINEAR, NETWORK, repeats=1), tmp_path / "killed"
    whole = quiet(demo_data, tmp_path / "whole", plan)
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), "utf-8")
    words = [sys.executable, "-c", RESUMED, str(demo_data), str(out), str(tmp_path / "plan.yaml")]
    for appears in (
        "run.json",
        "candidates/handcrafted/repeat_1.npz",
        "candidates/network/round_1/fold_2/experiment.yaml",
        "candidates/network/repeat_1.npz",
        "members/*/experiment.yaml",
        "predictions.parquet",
    ):
        process = subprocess.Popen(words)
        while process.poll() is None and not list(out.glob(appears)):
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL, appears
    subprocess.run(words, check=True)
    again = Run(out)
    assert again.info["status"] == "finished"
    for name in ("predictions.parquet", "candidates.parquet", "used_for_selection.csv"):
        assert (out / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert again.info["auto"]["choice"] == whole.info["auto"]["choice"]


@pytest.mark.slow
def test_permuted_labels_seldom_beat_chance(demo_data, tmp_path):
    """Of 20 permutations at most 3 may: a rate of 0.025 gives more in 1 of 600 such tests."""
    plan = small_plan(demo_data, repeats=1)
    found = []
    for seed in range(20):
        made = quiet(permuted(demo_data, seed), tmp_path / f"run_{seed}", plan)
        found.append(made.metrics.set_index("metric").loc["auroc", ["value", "low", "high"]])
    table = pd.DataFrame(found).astype(float)
    assert (table["low"] > 0.5).sum() <= 3
    covered = (table["low"] <= 0.5) & (table["high"] >= 0.5)
    assert covered.sum() >= 16
    assert abs(table["value"].mean() - 0.5) < 4 * table["value"].std() / np.sqrt(len(table))
