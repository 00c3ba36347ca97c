"""A search: what it finds, what it leaves untouched, and that nothing stops it for good."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from small_run import SMALL
from trials import (
    SETTINGS,
    SINGLE,
    SPACE,
    UNSAID,
    command,
    in_this_process,
    outcome,
    wait_for,
)

from medseq_tf import recipe as recipes
from medseq_tf.dataset import splits
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.files import locked, write_json
from medseq_tf.training.train import train
from medseq_tf.tuning import patients, trial, tune
from medseq_tf.tuning.search import BASE, Search, nested_text
from medseq_tf.tuning.space import Space


@pytest.fixture
def trained(monkeypatch):
    """Trials that are scored by their learning rate, without training; the jobs they were given."""
    jobs = {}

    def run(folder, job, *_):
        folder.mkdir(parents=True, exist_ok=True)
        if (found := trial.result(folder)) is None:
            jobs[folder.name] = job
            found = outcome(round(0.9 - abs(np.log10(_rate(job)) + 2) / 10, 6))
            write_json(folder / "result.json", found)  # others read meanwhile
        return found

    monkeypatch.setattr(trial, "run", run)
    return jobs


def _rate(job):
    return job["recipe"]["optimizer"]["learning_rate"]


@pytest.fixture
def search(demo_data, tmp_path, trained):
    def start(space=SPACE, **arguments):
        arguments = {
            "trials": 6,
            "tuner": "random",
            "retrain": False,
            "track": False,
            "verbose": False,
            **arguments,
        }
        arguments["out"] = tmp_path / arguments.get("out", "search")
        return tune.tune(space, demo_data, **arguments)

    return start


# ------------------------------------------------------------------------------ what it finds


def test_the_best_recipe_is_one_that_train_takes(search, trained):
    found = search()
    table = found.trials
    assert table["trial"].tolist() == [BASE, *(f"{i:04d}" for i in range(6))]
    assert (table["status"] == "finished").all()
    best = found.best_trial
    assert best["auroc"] == table["auroc"].max()
    recipe = recipes.load(found.path / "best.yaml")
    assert recipe == found.best
    assert recipe.name == "small_best"
    expected = recipes.from_values(trained[best["trial"]]["recipe"])
    assert recipe.model_copy(update={"name": expected.name, "chosen": expected.chosen}) == expected
    comments = [
        line
        for line in (found.path / "best.yaml").read_text("utf-8").split("\n")
        if line[:1] == "#"
    ]
    said = " ".join(comments)
    assert f"trial {best['trial']}, the best of 7 finished of 7 (random, seed 0)" in said
    assert found.info["data"][:16] in said
    assert "optimizer.learning_rate=" in said


def test_the_recipe_as_it_is_comes_first(search, trained):
    found = search(trials=1)
    assert next(iter(trained)) == BASE
    assert recipes.from_values(trained[BASE]["recipe"]) == found.space.base
    assert "0000" in search(trials=1, base=False, out="no_base").trials["trial"].tolist()


def test_the_base_may_be_the_best(search, trained):
    found = search(overrides=["optimizer.learning_rate=0.01"], trials=2)
    assert found.best_trial["trial"] == BASE
    assert "#   nothing" in (found.path / "best.yaml").read_text("utf-8")


def test_the_table_has_a_column_a_setting(search):
    table = search().trials
    assert set(SETTINGS) < set(table.columns)
    mean = table["model.aggregator.name"] == "mean"
    assert table.loc[mean, "model.aggregator.units"].isna().all()
    assert Search.load(search().path).ranking["auroc"].is_monotonic_decreasing
    stored = pd.read_csv(search().path / "trials.csv", dtype={"trial": str})
    assert stored["trial"].tolist() == table["trial"].tolist()


def test_what_matters_is_found_and_adds_up(search):
    importance = search(trials=24).importance()
    assert importance["setting"].iloc[0] == "optimizer.learning_rate"
    assert importance["importance"].sum() == pytest.approx(1)
    assert search(trials=3, out="few").importance().empty


def test_a_notebook_shows_it(search):
    page = search()._repr_html_()
    assert "auroc over 2 patient-level folds" in page
    assert "optimizer.learning_rate" in page


def test_one_line_a_finished_trial(search, capsys):
    search(trials=3, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("search: ")
    assert "8 test studies are set aside" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["trial", BASE, "0000", "0001", "0002"]
    assert "0.800 ± 0.050" in lines[3]
    assert lines[3].endswith("fsm_bilstm as it is  <- best")
    assert "aggregator.name=" in lines[4]


def test_brier_is_to_be_small(search):
    found = search({**SPACE, "objective": {"metric": "brier", "folds": 2}})
    assert found.best_trial["brier"] == found.trials["brier"].min()


def test_a_seed_decides_what_is_tried(search, tmp_path):
    tables = [search(seed=seed, out=tmp_path / str(i)).trials for i, seed in enumerate((0, 0, 1))]
    rates = [table["optimizer.learning_rate"].tolist() for table in tables]
    assert rates[0][1:] == rates[1][1:]
    assert rates[0][1:] != rates[2][1:]


@pytest.mark.parametrize("tuner", ["grid", "hyperband", "bayesian"])
def test_the_other_tuners(search, tuner):
    found = search(tuner=tuner, overrides=["fit.epochs=4"], trials=8)
    assert len(found.trials) == 9
    assert found.best_trial["auroc"] >= 0.8
    epochs = {found.experiment(name).fit.epochs for name in found.trials["trial"]}
    assert epochs == ({2, 4} if tuner == "hyperband" else {4})


@pytest.mark.parametrize("tuner", ["random", "grid"])
def test_trials_side_by_side_are_those_of_one_after_the_other(search, tuner):
    one, three = (
        search(tuner=tuner, workers=count, out=str(count), trials=9).trials for count in (1, 3)
    )
    pd.testing.assert_frame_equal(one.drop(columns="run"), three.drop(columns="run"))


# ---------------------------------------------------------------------------- the patients


@pytest.mark.parametrize(
    "objective",
    [{"folds": 3}, {"repeats": 3}, {"validation": True}],
    ids=["folds", "repeats", "single"],
)
def test_the_test_patients_are_in_no_trial(demo_data, objective):
    prepared = Prepared.load(demo_data)
    space = Space.load({**SPACE, "objective": objective})
    plan = patients.set_aside(space, prepared)
    patient = prepared.studies.set_index("study_id")["patient_id"]
    aside = set(patient[plan["set_aside"]])
    assert len(aside) == 8
    own = splits.make_holdout(prepared.studies, space.base.split)
    assert set(prepared.studies["study_id"].iloc[own["test"]]) == set(plan["set_aside"])
    assert len(plan["splits"]) == (1 if "validation" in objective else 3)
    for split in plan["splits"]:
        parts = [set(patient[studies]) for studies in split.values()]
        assert not aside & set.union(*parts)
        assert sum(map(len, parts)) == len(set.union(*parts)) == 32
        assert all(split[part] for part in ("train", "validation"))
        assert bool(split["test"]) == ("validation" not in objective)
    if "folds" in objective:
        held_out = [set(split["test"]) for split in plan["splits"]]
        assert len(set.union(*held_out)) == sum(map(len, held_out)) == 32


def test_random_divisions_are_trained_and_scored(search, trained, demo_data, tmp_path):
    """Two divisions at random may hold out the same patient, unlike two folds."""
    found = search({**SPACE, "objective": {"repeats": 2}}, trials=1, base=False)
    (job,) = trained.values()
    recipe = recipes.load(recipes.Experiment(), [*SMALL, "fit.epochs=1"])
    splits = [
        {part: np.sort(rows) for part, rows in split.items()}
        for split in trial._rows(Prepared.load(demo_data), found.splits["splits"])
    ]
    tested = np.concatenate([split["test"] for split in splits])
    assert len(np.unique(tested)) < len(tested)
    run = train(
        recipe,
        demo_data,
        tmp_path / "run",
        splits=splits,
        repeats=job["repeats"],
        track=False,
        verbose=False,
    )
    scored = trial._score(run, "auroc")
    assert len(scored["folds"]) == 2
    assert scored["score"] == pytest.approx(np.mean(scored["folds"]))
    run.require_finished()


def test_a_given_test_split_is_what_is_set_aside(demo_data):
    prepared = Prepared.load(demo_data)
    studies = prepared.studies.assign(split=["test"] * 10 + ["train"] * 30)
    given = Prepared(prepared.path, prepared.info, studies)
    plan = patients.set_aside(Space.load(SPACE), given)
    assert set(plan["set_aside"]) == set(studies["study_id"][:10])


@pytest.fixture
def of_sites(demo_data):
    """The demo cohort, as of ten sites and ten days."""
    prepared = Prepared.load(demo_data)
    ten = np.arange(len(prepared)) % 10
    columns = {"site": [f"site {number}" for number in ten], "date": ten}
    return Prepared(prepared.path, prepared.info, prepared.studies.assign(**columns))


def test_trials_are_scored_over_whole_sites(of_sites, tmp_path):
    space = Space.load({**SPACE, "objective": {}}, ["split.by=site"])
    space = patients.decide_objective(space, of_sites, tmp_path)
    assert space.objective.folds
    assert space.objective.repeats is None
    plan = patients.set_aside(space, of_sites)
    site = of_sites.studies.set_index("study_id")["site"]
    for split in plan["splits"]:
        parts = [set(site[part]) for part in (*split.values(), plan["set_aside"])]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 10


def test_trials_by_date_are_scored_on_the_latest_that_may_be_seen(of_sites, tmp_path):
    space = Space.load({**SPACE, "objective": {}}, ["split.by=date"])
    space = patients.decide_objective(space, of_sites, tmp_path)
    assert space.objective.validation
    plan = patients.set_aside(space, of_sites)
    date = of_sites.studies.set_index("study_id")["date"]
    (split,) = plan["splits"]
    parts = [date[part] for part in (split["train"], split["validation"], plan["set_aside"])]
    assert parts[0].max() < parts[1].min() <= parts[1].max() < parts[2].min()
    twice = Space.load({**SPACE, "objective": {"repeats": 2}}, ["split.by=date"])
    with pytest.raises(InputError, match=r"objective.repeats = 2: split.by=date divides in one"):
        patients.set_aside(twice, of_sites)


def test_without_validation_patients_folds_are_needed(demo_data):
    space = Space.load(SINGLE, ["split.validation=0"])
    with pytest.raises(InputError, match="no one to score a trial on"):
        patients.set_aside(space, Prepared.load(demo_data))


def test_too_many_folds_are_refused_before_a_trial(search, trained):
    with pytest.raises(InputError, match="fewer folds"):
        search({**SPACE, "objective": {"folds": 30}})
    assert not trained


# ------------------------------------------------------------------- trials that do not finish


def test_impossible_combinations_are_failed_trials(search):
    keys = ("filters", "kernels", "strides", "paddings")
    stages = {f"model.encoder.{key}": {"choice": [[2, 2], [2]]} for key in keys}
    found = search({**SPACE, "space": {**SETTINGS, **stages}}, trials=12)
    table = found.trials.set_index("status")
    assert {"finished", "failed"} == set(table.index)
    assert table.loc[["failed"], "reason"].str.contains("one entry a stage").all()
    assert len(table) == 13


def test_a_failed_trial_says_why_and_the_search_goes_on(search, monkeypatch, capsys):
    whole = trial.run

    def run(folder, job, *_, **__):
        if folder.name == "0001":
            return trial.failure("the loss became nan in epoch 1, batch 3")
        return whole(folder, job)

    monkeypatch.setattr(trial, "run", run)
    found = search(trials=3, verbose=True)
    table = found.trials.set_index("trial")
    assert table["status"].tolist() == ["finished", "finished", "failed", "finished"]
    assert "became nan" in table.loc["0001", "reason"]
    assert "the loss became nan in epoch 1" in capsys.readouterr().out


def test_a_stopped_trial_stands_below_the_finished_and_keeps_its_reason(
    search, monkeypatch, capsys
):
    whole, jobs = trial.run, {}

    def run(folder, job, *_):
        jobs[folder.name] = job
        if folder.name == "0000":
            return trial.unscored("stopped", "hopeless at epoch 3", None, 1.0)
        return trial.failure("it diverged") if folder.name == "0001" else whole(folder, job)

    monkeypatch.setattr(trial, "run", run)
    found = search(trials=3, verbose=True, stop_hopeless=True)
    assert found.ranking["status"].tolist() == ["finished", "finished", "stopped", "failed"]
    assert found.ranking["reason"].iloc[2] == "hopeless at epoch 3"
    assert "2 finished, 1 failed, 1 stopped" in found.text()
    assert re.search(r"0000 +stopped .*hopeless at epoch 3", capsys.readouterr().out)
    assert all(job["stop_hopeless"] for job in jobs.values())
    assert len(search(trials=3, stop_hopeless=True).trials) == 4, "the same goes on"
    jobs.clear()
    search(trials=1, out="plain")
    assert not any("stop_hopeless" in job for job in jobs.values())


def test_a_search_that_cannot_work_ends(search, monkeypatch):
    monkeypatch.setattr(trial, "run", lambda *_, **__: trial.failure("input.windows is null"))
    with pytest.raises(InputError, match=r"all 8 trials failed.*input.windows is null"):
        search(trials=50)


def test_no_trial_begins_after_the_time(search, trained):
    assert len(search(trials=50, minutes=1e-9).trials) == 1, "the recipe as it is"


# ---------------------------------------------------------------------------- going on


def test_interrupted_it_goes_on_and_ends_as_if_it_had_not_been(search, trained, monkeypatch):
    whole = search(out="whole", tuner="bayesian")
    run = trial.run

    def interrupted(folder, *rest, **more):
        if folder.name in ("0001", "0004") and not (folder / "begun").exists():
            (folder / "begun").touch()
            raise KeyboardInterrupt
        return run(folder, *rest, **more)

    monkeypatch.setattr(trial, "run", interrupted)
    for done in (2, 5):
        with pytest.raises(Stopped, match=f"{done} trials are done; the same command goes on"):
            search(tuner="bayesian")
    again = search(tuner="bayesian")
    compared = ["trial", "auroc", *SETTINGS]
    pd.testing.assert_frame_equal(again.trials[compared], whole.trials[compared])


def test_finished_trials_are_not_trained_again(search, trained):
    search(trials=3)
    trained.clear()
    assert len(search(trials=5).trials) == 6
    assert list(trained) == ["0003", "0004"]
    trained.clear()
    search(trials=5)
    assert not trained


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"overrides": ["seed=1"]}, "other settings"),
        ({"space": {**SPACE, "name": "other"}}, r"other space \(small\)"),
        ({"space": SINGLE}, "other objective"),
        ({"seed": 1}, r"other seed \(0\)"),
        ({"tuner": "grid"}, r"other tuner \(random\)"),
    ],
)
def test_the_folder_of_another_search_is_refused(search, arguments, words):
    search(trials=1)
    with pytest.raises(InputError, match=words) as caught:
        search(trials=1, **arguments)
    assert "choose another --out" in str(caught.value)


def test_a_folder_in_use_is_refused(search, tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.txt").touch()
    with pytest.raises(InputError, match="is in use and holds no search"):
        search()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tuner": "genetic"}, "one of bayesian, random, hyperband, grid"),
        ({"trials": 0}, "above 0"),
        ({"minutes": -1}, "above 0"),
        ({"tuner": "hyperband", "stop_hopeless": True}, "ends hopeless trials itself"),
        ({"workers": 0}, "workers = 0: should be above 0"),
        ({"cluster": "4"}, "no longer known; --workers N"),
        ({"cluster": "worker:10.0.0.1:7000"}, "no longer known; --workers N"),
        (
            {
                "tuner": "hyperband",
                "space": {**SPACE, "space": {"fit.epochs": {"int": [1, 3]}}},
            },
            "hyperband sets fit.epochs itself",
        ),
    ],
)
def test_bad_arguments(search, arguments, words):
    with pytest.raises(InputError, match=words):
        search(**arguments)


def test_a_search_that_is_none(tmp_path):
    with pytest.raises(InputError, match="holds no search"):
        Search.load(tmp_path)


# ------------------------------------------------------------------- a trial and its process


@pytest.fixture(scope="module")
def plan(demo_data, tmp_path_factory):
    """A job of two folds, one epoch, for the trial's own process."""
    folder = tmp_path_factory.mktemp("plan")
    prepared, space = Prepared.load(demo_data), Space.load(SPACE)
    (folder / "splits.json").write_text(json.dumps(patients.set_aside(space, prepared)))
    return {
        "title": "small 0000",
        "recipe": space.base.model_dump(mode="json"),
        "data": str(demo_data),
        "fingerprint": prepared.fingerprint,
        "splits": str(folder / "splits.json"),
        "metric": "auroc",
        "params": {"trial": "0000"},
        "features": None,
        "track": False,
        "mlflow_parent": None,
    }


@pytest.mark.slow
def test_a_score_is_the_mean_of_what_was_held_out(plan, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(plan))
    found = trial.evaluate(tmp_path)
    run = trial_run(tmp_path)
    judged = run.predictions[run.predictions["split"] == "test"]
    from sklearn.metrics import roc_auc_score

    scores = [roc_auc_score(f["truth"], f["probability"]) for _, f in judged.groupby("fold")]
    assert found["folds"] == pytest.approx(scores)
    assert found["score"] == pytest.approx(np.mean(scores))
    assert found["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert found["epochs"] == [1, 1]
    aside = set(json.loads(Path(plan["splits"]).read_text("utf-8"))["set_aside"])
    assert not aside & set(run.predictions["study"])
    assert not list(tmp_path.rglob("model.keras")), "30 trials of 5 folds would be 150 models"


def trial_run(folder):
    from medseq_tf.runs.run import Run

    return Run.open(folder / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["optimizer.learning_rate=1e30"], "the loss became"),
        (["input.windows=[[40, 80]]"], "input.windows is set"),
        (["input.size=8"], "small 0000|size|smaller|kernel"),
    ],
)
def test_what_cannot_be_trained_is_a_failed_trial(plan, tmp_path, change, words, monkeypatch):
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    recipe = recipes.load(recipes.from_values(plan["recipe"]), [*change, "optimizer.name=sgd"])
    job = {**plan, "recipe": recipe.model_dump(mode="json")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert trial.main(tmp_path) == 0
    found = trial.result(tmp_path)
    assert found["status"] == "failed"
    assert re.search(words, found["reason"])
    assert found["score"] is None


def test_another_data_set_is_refused(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    (tmp_path / "job.json").write_text(json.dumps({**plan, "fingerprint": "0"}))
    trial.main(tmp_path)
    assert "not the data set" in trial.result(tmp_path)["reason"]


def process(monkeypatch, code):
    """Let a few lines of Python stand for a trial's process."""

    def start(folder, variables):
        with open(folder / "log.txt", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    monkeypatch.setattr(trial, "_start", start)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed .signal 9., as the system does when memory"),
        ("import os; os.kill(os.getpid(), 11)", "crashed: SIGSEGV"),
        ("import sys; print('no such thing'); sys.exit(5)", "status 5: no such thing"),
    ],
)
def test_a_process_that_dies_is_a_failed_trial(tmp_path, monkeypatch, code, words):
    process(monkeypatch, code)
    found = trial.run(tmp_path / "0000", {})
    assert found["status"] == "failed"
    assert re.search(words, found["reason"])
    assert trial.run(tmp_path / "0000", {}) == found, "it is not tried again"


def test_an_interrupted_trial_saves(tmp_path, monkeypatch):
    code = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        "try:\n    (pathlib.Path(sys.argv[1]) / 'ready').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    (pathlib.Path(sys.argv[1]) / 'saved').touch()"
    )
    process(monkeypatch, code)

    def seconds_left():
        return 60.0 if (tmp_path / "0000" / "ready").exists() else np.inf

    assert trial.run(tmp_path / "0000", {}, None, seconds_left) is None
    assert (tmp_path / "0000" / "saved").exists()
    assert trial.result(tmp_path / "0000") is None


@pytest.mark.parametrize("asker", ["a worker of Ray", "a shell's &"])
def test_an_interrupt_is_heard_though_who_starts_the_trial_hears_none(tmp_path, asker):
    before, end = signal.getsignal(signal.SIGINT), time.monotonic() + 30
    if asker == "a worker of Ray":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with locked(tmp_path / ".lock", "taken"):  # so it waits
            assert trial.run(tmp_path, {}, None, lambda: left(end)) is None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, before)


def left(end):
    """Return the seconds until the end, which are not used up."""
    seconds = end - time.monotonic()
    assert seconds > 1, "it was to be killed"
    return seconds


def test_a_trial_that_is_in_training_elsewhere_is_not_trained_beside_it(tmp_path, monkeypatch):
    """A node that the cluster has lost touch with goes on for a while."""
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    monkeypatch.setattr(trial, "evaluate", lambda folder: pytest.fail("it is in training"))
    second = threading.Thread(target=trial.main, args=(tmp_path,))
    with locked(tmp_path / ".lock", "taken"):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        (tmp_path / "result.json").write_text(json.dumps(outcome(0.5)))
    second.join(30)
    assert trial.result(tmp_path) == outcome(0.5)


def test_a_hopeless_trial_is_stopped_for_good(tmp_path, monkeypatch):
    code = "import signal, time; signal.signal(2, signal.default_int_handler); time.sleep(60)"
    process(monkeypatch, code)
    folder = tmp_path / "0000"
    (folder / "run" / "fold_1").mkdir(parents=True)
    (folder / "run" / "fold_1" / "checkpoint.npz").touch()
    (folder / "tracking.json").write_text('{"run_id": "abc"}')
    found = trial.run(folder, {}, hopeless=lambda: "hopeless at epoch 3")
    assert (found["status"], found["score"]) == ("stopped", None)
    assert (found["reason"], found["mlflow_run_id"]) == ("hopeless at epoch 3", "abc")
    assert trial.run(folder, {}) == found, "it is not tried again"
    assert not list(folder.rglob("checkpoint.npz"))


def test_a_trial_that_does_not_end_is_killed(tmp_path, monkeypatch):
    process(monkeypatch, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); input()")
    deadline = time.monotonic() + 2
    asked = []

    def seconds_left():
        asked.append(deadline - time.monotonic())
        return asked[-1]

    assert trial.run(tmp_path / "0000", {}, None, seconds_left) is None
    assert asked[-1] <= 0
    assert trial.result(tmp_path / "0000") is None, "it is tried again"


@pytest.mark.slow
def test_memory_stays_flat_over_100_trials(demo_data, tmp_path):
    """Of the process that searches: its trials are trained in others."""
    code = f"""
import json, sys, psutil
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
import trials
from medseq_tf.tuning import trial, tune
seen = []
def run(folder, job, *_):
    seen.append(psutil.Process().memory_info().rss)
    found = trials.outcome(0.5 + len(seen) / 1000)
    (folder / "result.json").write_text(json.dumps(found))
    return found
trial.run = run
tune.tune(trials.SPACE, {str(demo_data)!r}, "s", trials=110, tuner="random", retrain=False,
          track=False, verbose=False)
print(seen[10], seen[-1])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split()[-2:])
    assert after < 1.05 * before


# -------------------------------------------------------------------- the real command, killed


def spoil(data, studies):
    """Overwrite what a prepared data set holds of some studies; its tables say nothing of it."""
    prepared = Prepared.load(data)
    rows = prepared.studies.set_index("study_id").loc[studies]
    for row in rows.itertuples():
        with open(prepared.path / "shards" / row.shard, "r+b") as file:
            file.seek(row.offset)
            file.write(b"\xff" * row.length)
    info = json.loads((data / "dataset.json").read_text("utf-8"))
    for name, shard in info["shards"].items():
        content = (data / "shards" / name).read_bytes()
        shard["sha256"] = hashlib.sha256(content).hexdigest()
    (data / "dataset.json").write_text(json.dumps(info))


@pytest.mark.slow
def test_killed_it_goes_on_in_the_trial_it_was_in(demo_data, no_server):
    """kill -9 of the real command, in the middle of a trial, on data whose test part is spoiled."""
    data, out = no_server / "data", no_server / "search"
    shutil.copytree(demo_data, data)
    space = Space.load(SINGLE)
    spoil(data, patients.set_aside(space, Prepared.load(data))["set_aside"])
    words = command(SINGLE, data, out, "--trials", "2", "--no-retrain", "--no-base")
    words += ["--set", "fit.epochs=3"]
    killed = subprocess.Popen(
        words, cwd=no_server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    second = out / "trials" / "0001"
    wait_for(lambda: (second / "run" / "checkpoint.npz").exists() or killed.poll() is not None)
    child = json.loads((second / "job.json").read_text("utf-8"))
    running = [
        p for p in psutil.process_iter(["cmdline"]) if str(second) in (p.info["cmdline"] or [])
    ]
    killed.kill()
    killed.communicate()
    wait_for(lambda: not any(process.is_running() for process in running), 20)
    first = json.loads((out / "trials" / "0000" / "result.json").read_text("utf-8"))
    mlflow_run = json.loads((second / "tracking.json").read_text("utf-8"))["run_id"]

    done = subprocess.run(words, cwd=no_server, capture_output=True, text=True, check=True)
    assert "goes on" in done.stdout
    found = Search.load(out)
    assert found.trials["status"].tolist() == ["finished", "finished"]
    assert json.loads((out / "trials" / "0000" / "result.json").read_text("utf-8")) == first
    again = json.loads((second / "job.json").read_text("utf-8"))
    assert again["recipe"] == child["recipe"]
    assert trial.result(second)["mlflow_run_id"] == mlflow_run
    assert not list(out.rglob("tracking_unsent.jsonl"))


# ------------------------------------------------------------------ the best, and the command


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_the_best_is_trained_anew_and_registered_once(demo_data, no_server, monkeypatch):
    monkeypatch.setattr(trial, "run", in_this_process)
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    arguments = {"trials": 1, "tuner": "random", "verbose": False, "out": "search"}
    search = tune.tune(SINGLE, demo_data, **arguments)
    tune.tune(SINGLE, demo_data, **arguments)
    champion = search.champion
    assert champion.info["status"] == "finished"
    assert champion.experiment.model_dump(exclude={"name"}) == search.best.model_dump(
        exclude={"name"}
    )
    assert champion.metrics.loc[champion.metrics["split"] == "test", "low"].notna().any()
    assert set(champion.splits["test"]) == set(search.splits["set_aside"])
    assert (champion.predictions["split"] == "test").sum() == 8

    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    client = mlflow.MlflowClient()
    (model,) = client.search_registered_models()
    assert {alias: int(number) for alias, number in model.aliases.items()} == {"champion": 1}
    version = client.get_model_version_by_alias("small", "champion")
    assert (champion.path / "model_card.md").read_text("utf-8") == version.description
    assert (
        client.get_run(version.run_id).data.tags["mlflow.parentRunId"]
        == (search.info["mlflow_run_id"])
    )
    served = mlflow.pyfunc.load_model("models:/small@champion")
    assert served.metadata.signature.inputs.input_names() == ["slices", "study"]
    answer = served.predict(served.input_example)
    assert answer["study"].tolist() == ["example"]
    assert 0 < answer["probability"].iloc[0] < 1


def test_the_command_has_the_defaults_of_its_function():
    from medseq_tf.cli import cli

    found = cli.commands["tune"].make_context("tune", ["x.yaml", "--data", "y"]).params
    parameters = inspect.signature(tune.tune).parameters
    for name in found.keys() - {"space", "data"}:
        assert found[name] == parameters[name].default, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.yaml"], "absent.yaml: cannot be read"),
        (["space.yaml", "--set", "fit.epoch=3"], "did you mean epochs"),
        (["space.yaml", "--cluster", "2"], "cluster: is no longer known"),
        (["space.yaml", "--tuner", "genetic"], "'genetic' is not one of"),
        (["space.yaml", "--trials", "0"], "--trials"),
    ],
)
def test_wrong_words_are_one_line(demo_data, tmp_path, monkeypatch, capsys, words, said):
    from medseq_tf import cli

    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medseq-tf", "tune", *words, "--data", str(demo_data)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------- what chose itself, and says so


def outcome_of(seed, studies, effect=0.0):
    """A trial's result with the held-out predictions of two times two folds."""
    rng = np.random.default_rng(seed)
    rows = []
    for repeat in (0, 1):
        fold = np.random.default_rng(repeat).permutation(len(studies)) % 2
        score = effect * studies["truth"] + rng.normal(size=len(studies))
        rows.append(
            studies.assign(
                fold=2 * repeat + fold + 1,
                label="lesion",
                probability=1 / (1 + np.exp(-score)),
                threshold=0.5,
            )
        )
    table = pd.concat(rows, ignore_index=True)
    from medseq_tf.evaluation.scoring import fold_table

    scores = fold_table(table)["auroc"]
    kept = {name: column.tolist() for name, column in table.items()}
    return {**outcome(scores.mean()), "folds": scores.tolist(), "held_out": kept}


@pytest.fixture
def by_chance(demo_data, monkeypatch):
    """Trials whose predictions are chance; they keep them."""
    studies = Prepared.load(demo_data).studies
    studies = pd.DataFrame(
        {
            "study": studies["study_id"],
            "patient": studies["patient_id"],
            "truth": studies["label.lesion"].to_numpy(float),
        }
    )

    def run(folder, job, *_):
        folder.mkdir(parents=True, exist_ok=True)
        if (found := trial.result(folder)) is None:
            seed = 0 if folder.name == BASE else int(folder.name) + 1
            found = outcome_of(seed, studies)
            write_json(folder / "result.json", found)
        return found

    return run


def test_the_winner_of_chance_is_said_to_be_chance(search, by_chance, monkeypatch, capsys):
    monkeypatch.setattr(trial, "run", by_chance)
    found = search(trials=15, verbose=True)
    best = found.corrected
    assert best.trials == 16
    assert best.score > 0.6
    assert abs(best.corrected - 0.5) < 0.08
    words = f"about {best.corrected:.3f} when corrected for the choice"
    assert words in found.text()
    assert words in found._repr_html_()
    assert words in (found.path / "best.yaml").read_text("utf-8").replace("\n# ", " ")
    assert found.info["best"]["corrected"] == best.corrected
    assert "used for selection" in found.text()


def test_the_best_recipe_carries_on_whom_it_was_chosen(search, demo_data):
    found = search(trials=2)
    recipe = recipes.load(found.path / "best.yaml", ["fit.epochs=3"])
    choice = recipe.chosen[-1]
    assert recipe.chosen[:-1] == found.space.base.chosen
    prepared = Prepared.load(demo_data)
    assert (choice.by, choice.search, choice.trials) == ("search small", found.id, 3)
    assert choice.fingerprint == prepared.fingerprint
    from medseq_tf.dataset import selection

    inside = ~prepared.studies["study_id"].isin(found.splits["set_aside"])
    assert selection.chosen_on(recipe, prepared.studies)[:2] == (32, 40)
    assert selection.chosen_on(recipe, prepared.studies[~inside])[0] == 0
    assert "some trials have kept no predictions" in choice.score
    again = Space.load({**SPACE, "recipe": str(found.path / "best.yaml")})
    assert again.base.chosen == recipe.chosen, "a search around it goes on with the list"


def test_few_patients_are_divided_into_repeated_folds(demo_data, search):
    found = search(UNSAID, trials=1)
    assert found.space.objective.folds == 5
    assert found.space.objective.repeats == 2
    assert len(found.splits["splits"]) == 10
    held_out = [set(split["test"]) for split in found.splits["splits"]]
    assert held_out[:5] != held_out[5:]
    for repeat in (held_out[:5], held_out[5:]):
        assert len(set.union(*repeat)) == sum(map(len, repeat)) == 32
    assert search(UNSAID, trials=1).trials["status"].eq("finished").all(), "the same goes on"


def test_many_patients_are_not(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    many = pd.concat(
        [
            prepared.studies.assign(
                study_id=prepared.studies["study_id"] + str(i),
                patient_id=prepared.studies["patient_id"] + str(i),
                slice_hashes=None,
            )
            for i in range(7)
        ],
        ignore_index=True,
    )
    data = Prepared(prepared.path, prepared.info, many)
    space = patients.decide_objective(Space.load(UNSAID), data, tmp_path)
    assert space.objective.validation
    assert not space.objective.folds


def test_few_patients_of_a_class_have_fewer_folds(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    positive = np.flatnonzero(prepared.labels[:, 0] == 1)[:5]
    negative = np.flatnonzero(prepared.labels[:, 0] == 0)
    rows = np.sort(np.concatenate([positive, negative]))
    few = Prepared(prepared.path, prepared.info, prepared.studies.iloc[rows])
    objective = patients.decide_objective(Space.load(UNSAID), few, tmp_path).objective
    assert 2 <= objective.folds < 5


def test_a_search_of_before_goes_on_as_it_began(search, trained):
    """A version that knew no default but one validation split wrote no `validation: true`."""
    found = search(SINGLE, trials=2)
    text = (found.path / "space.yaml").read_text("utf-8")
    (found.path / "space.yaml").write_text(text.replace("  validation: true\n", ""))
    info = {k: v for k, v in found.info.items() if k not in ("scored", "patients", "best")}
    (found.path / "search.json").write_text(json.dumps({**info, "settings": "another hash"}))
    trained.clear()
    again = search(UNSAID, trials=3)
    assert list(trained) == ["0002"]
    assert len(again.trials) == 4
    assert again.best.chosen[-1].patients == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nested": 1}, "at least 2 folds"),
    ],
)
def test_nested_evaluation_is_refused_before_a_trial(search, trained, arguments, words):
    with pytest.raises(InputError, match=words):
        search(**arguments)
    assert not trained


@pytest.mark.slow
def test_nested_evaluation_tests_on_patients_who_chose_nothing(search, trained, demo_data):
    found = search(trials=2, nested=2, verbose=False)
    prepared = Prepared.load(demo_data)
    everyone, tested = set(prepared.studies["study_id"]), []
    for number in (1, 2):
        inner = Search.load(found.path / "nested" / f"fold_{number}")
        aside = set(inner.splits["set_aside"])
        scored = {study for split in inner.splits["splits"] for study in split["test"]}
        assert not aside & scored
        assert aside | scored == everyone
        assert set(inner.champion.splits["test"]) == aside
        assert not aside & set(inner.champion.splits["train"])
        tested.append(aside)
    assert not tested[0] & tested[1]
    nested = found.nested
    assert [fold["fold"] for fold in nested["folds"]] == [1, 2]
    rows = pd.DataFrame(nested["table"]).set_index("metric")
    assert rows.loc["auroc", "n"] == 40
    assert rows.loc["auroc", "low"] < rows.loc["auroc", "value"] < rows.loc["auroc", "high"]
    assert "nested evaluation over 2 folds: auroc" in found.text()
    assert "on patients who chose nothing" in found.text()


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_nested_evaluation_without_a_figure_of_all_folds_says_their_mean(nothing):
    row = {"metric": "auroc", "label": "a", "value": nothing, "low": nothing, "high": nothing}
    folds = [{"inside": 0.9, "outside": 0.7}, {"inside": 0.8, "outside": 0.6}]
    words = nested_text({"metric": "auroc", "folds": folds, "table": [row]})
    assert words.startswith("nested evaluation over 2 folds: auroc 0.650, mean of the folds, on")
    scored = nested_text({"metric": "auroc", "folds": folds, "table": [{**row, "value": 0.75}]})
    assert scored.startswith("nested evaluation over 2 folds: auroc 0.750, on patients")


@pytest.fixture
def permuted(demo_data, tmp_path):
    """The demo cohort with the labels dealt out at random: nothing can be learned."""
    import hashlib

    folder = tmp_path / "permuted"
    shutil.copytree(demo_data, folder)
    studies = pd.read_parquet(folder / "studies.parquet")
    rng = np.random.default_rng(3)
    studies["label.lesion"] = rng.permutation(studies["label.lesion"].to_numpy())
    studies.to_parquet(folder / "studies.parquet", index=False)
    info = json.loads((folder / "dataset.json").read_text("utf-8"))
    digest = hashlib.sha256((folder / "studies.parquet").read_bytes()).hexdigest()
    info["studies"]["sha256"] = digest
    (folder / "dataset.json").write_text(json.dumps(info), "utf-8")
    return folder


@pytest.mark.slow
def test_where_nothing_can_be_learned_no_headline_claims_it(permuted, tmp_path, monkeypatch):
    """From a search to a cross-validation of what it found, and nested evaluation."""
    from medseq_tf.evaluation import results_text
    from medseq_tf.reporting import model_card, report
    from medseq_tf.training.train import train

    monkeypatch.setattr(trial, "run", in_this_process)
    monkeypatch.setattr(trial, "end_with_parent", lambda: None)
    arguments = {"trials": 1, "tuner": "random", "base": False, "retrain": False, "nested": 2}
    quiet = {"track": False, "verbose": False}
    search = tune.tune(SPACE, permuted, tmp_path / "search", **arguments, **quiet)
    assert "when corrected for the choice" in search.text()
    rows = pd.DataFrame(search.nested["table"]).set_index("metric")
    assert rows.loc["auroc", "low"] < 0.5
    run = train(search.path / "best.yaml", permuted, tmp_path / "run", folds=2, **quiet)
    assert run.metrics["low"].isna().all()
    for text in (report.page(run), model_card.card(run), results_text.metrics_text(run.metrics)):
        assert "chosen on 32 of these 40 patients" in text
    assert "AUROC has no interval" in report.page(run)
    plain = train(recipes.load("fsm_bilstm", SPACE["set"]), permuted, tmp_path / "plain", **quiet)
    auroc = plain.metrics.set_index(["split", "metric"]).xs("auroc", level="metric")
    assert auroc.index[0] == "test"
    assert np.isnan(auroc.loc["validation", "low"])
    assert not auroc.loc["test", "low"] > 0.5
