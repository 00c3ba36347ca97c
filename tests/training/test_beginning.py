"""A run that was stopped or killed goes on to the same bits, or says why it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import keras
import pytest
from interrupted import killed_after
from runs_compared import assert_same_weights
from small_run import SMALL, run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.runs.run import Run
from medseq_tf.training import beginning
from medseq_tf.training.loop import CHECKPOINT, Fitter


@pytest.mark.parametrize("saves", [1, pytest.param(4, marks=pytest.mark.slow), 7])
def test_a_killed_run_resumes_to_bitwise_the_same_weights(
    finished, demo_data, tmp_path, monkeypatch, saves
):
    """The state is saved after every update; the run dies after some of the saves."""
    settings = ("fit.checkpoint_minutes=0",)
    with killed_after(monkeypatch, saves):
        run_small(demo_data, tmp_path / "run", *settings)
    resumed = run_small(demo_data, tmp_path / "run", *settings, resume=True)
    assert_same_weights(finished, resumed)
    assert list(resumed.history["loss"]) == list(finished.history["loss"])


RESUMED = {
    "accumulated gradients": ("fit.accumulate=2", "fit.batch_size=3"),
    "a schedule": ("optimizer.schedule=cosine", "optimizer.warmup=0.2"),
    "slices in a new order": ("sequence.policy=all", "sequence.order=shuffled"),
    "a scaled loss": ("fit.precision=mixed_float16",),
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_other_recipes_resume_to_bitwise_the_same_weights(
    demo_data, tmp_path, monkeypatch, settings
):
    settings = (*settings, "model.aggregator.layers=1", "fit.checkpoint_minutes=0")
    whole = run_small(demo_data, tmp_path / "whole", *settings)
    save = Fitter.save

    def save_then_die(self):
        save(self)
        if self.epoch == 1 and self.batch >= 2:
            raise SystemExit

    monkeypatch.setattr(Fitter, "save", save_then_die)
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "cut", *settings)
    monkeypatch.setattr(Fitter, "save", save)
    assert_same_weights(whole, run_small(demo_data, tmp_path / "cut", *settings, resume=True))


def test_resuming_keeps_the_split_that_the_run_began_with(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(Fitter, "run", lambda self: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    monkeypatch.undo()
    before = (tmp_path / "run" / "splits.json").read_text("utf-8")
    monkeypatch.setattr(beginning, "make_holdout", None)
    resumed = run_small(demo_data, tmp_path / "run", "fit.epochs=1", resume=True)
    assert (resumed.path / "splits.json").read_text("utf-8") == before


def test_resuming_on_data_with_other_ids_is_refused(demo_data, tmp_path, monkeypatch):
    """The same content under other ids would be split anew, test patients into training."""
    monkeypatch.setattr(Fitter, "run", lambda self: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    monkeypatch.undo()
    data = Prepared.load(demo_data)
    data.studies["study_id"] = data.studies["study_id"].str[::-1]
    with pytest.raises(InputError, match="stud"):
        run_small(data, tmp_path / "run", "fit.epochs=1", resume=True)


def test_ctrl_c_after_the_last_epoch_is_a_stop_and_no_failure(demo_data, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("medseq_tf.training.one_run.finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    assert Run(tmp_path / "run").info["status"] == "stopped"
    monkeypatch.undo()
    assert run_small(demo_data, tmp_path / "run", "fit.epochs=1", resume=True).metrics is not None


@pytest.mark.slow
def test_kill_minus_nine_and_the_command_again(finished, demo_data, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from medseq_tf.training.loop import Fitter\n"
        "save = Fitter.save\n"
        "def die(self):\n"
        "    save(self)\n"
        "    if self.epoch == 1 and self.batch == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Fitter.save = die\n"
        "from medseq_tf.cli import main\n"
        "main()\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipes.load(recipes.Experiment(), SMALL).to_yaml(), "utf-8")
    words = ["train", recipe, "--data", demo_data, "--out", tmp_path / "run", "--no-track"]
    words += ["--set", "fit.checkpoint_minutes=0"]
    killed = subprocess.run([sys.executable, "-c", code, *words], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again = [sys.executable, "-m", "medseq_tf", *words, "--resume"]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert "Epoch 2/2" in done.stdout
    assert "Epoch 1/2" not in done.stdout
    assert_same_weights(finished, Run.open(tmp_path / "run"))


def test_ctrl_c_ends_cleanly_and_resumes(finished, demo_data, tmp_path, monkeypatch):
    update = keras.utils.Progbar.update
    pressed = []

    def press_once(self, *args, **kwargs):
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, *args, **kwargs)

    monkeypatch.setattr(keras.utils.Progbar, "update", press_once)
    with pytest.raises(Stopped, match="epoch 1; --resume"):
        run_small(demo_data, tmp_path / "run")
    assert Run(tmp_path / "run").info["status"] == "stopped"
    with pytest.raises(InputError, match="status is stopped: finish it with train --resume"):
        Run(tmp_path / "run").predictions  # noqa: B018
    assert_same_weights(finished, run_small(demo_data, tmp_path / "run", resume=True))


def test_resuming_a_finished_run_returns_it(finished, demo_data):
    before = (finished.path / "model.keras").stat().st_mtime_ns
    again = run_small(demo_data, finished.path, resume=True)
    assert (again.path / "model.keras").stat().st_mtime_ns == before


def test_what_cannot_be_resumed_says_so(demo_data, tmp_path, monkeypatch):
    save = Fitter.save

    def save_then_die(self):
        save(self)
        raise SystemExit

    monkeypatch.setattr(Fitter, "save", save_then_die)
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run")
    monkeypatch.undo()
    content = (tmp_path / "run" / CHECKPOINT).read_bytes()
    (tmp_path / "run" / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot go on; start anew in another --out"):
        run_small(demo_data, tmp_path / "run", resume=True)


def test_a_model_lost_before_the_run_was_finished_is_written_again(
    finished, demo_data, tmp_path, monkeypatch
):
    """The checkpoint alone holds all that a run goes on from."""

    def die(fitter):
        raise SystemExit

    monkeypatch.setattr("medseq_tf.training.one_run.finish", die)
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / "model.keras").unlink()
    assert_same_weights(finished, run_small(demo_data, tmp_path / "run", resume=True))


def test_a_taken_folder_is_not_touched(finished, demo_data, tmp_path):
    with pytest.raises(InputError, match="a run is there already"):
        run_small(demo_data, finished.path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="in use and holds no run"):
        run_small(demo_data, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_with_another_recipe_names_the_key(finished, demo_data):
    with pytest.raises(InputError, match=r"has fit\.epochs = 2, asked for 3"):
        run_small(demo_data, finished.path, "fit.epochs=3", resume=True)


def test_a_run_that_came_meanwhile_is_kept(demo_data, tmp_path, monkeypatch):
    """As of another process, which ended while this one read its data."""
    out, module = tmp_path / "run", sys.modules["medseq_tf.training.train"]
    begun = []
    store = module.SliceStore

    def slow(*arguments):
        monkeypatch.setattr(module, "SliceStore", store)
        begun.append(run_small(demo_data, out, "fit.epochs=1"))
        return store(*arguments)

    monkeypatch.setattr(module, "SliceStore", slow)
    with pytest.raises(InputError, match="a run is there already"):
        run_small(demo_data, out, "fit.epochs=1", "seed=7")
    assert begun[0].experiment.seed == 0
    assert begun[0].info["status"] == "finished"
