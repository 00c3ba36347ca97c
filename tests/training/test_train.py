"""Training as a user meets it: what a run leaves, exact repetition and resumption, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from small_run import SMALL, run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Diverged, InputError, Stopped
from medseq_tf.evaluation import cross_validation, metrics
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.models import losses
from medseq_tf.runs.run import Run
from medseq_tf.serving.description import Description
from medseq_tf.serving.predict import predict, table
from medseq_tf.serving.probabilities import StudyProbabilities
from medseq_tf.training import loop as fitting


def weights(run):
    return [np.asarray(v) for v in run.model().variables]


def assert_same_weights(first, second):
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "first")


def test_a_run_leaves_everything_that_is_needed_to_repeat_it(finished, demo_data):
    assert {f.name for f in finished.path.iterdir()} == {
        "experiment.yaml",
        "dataset.json",
        "run.json",
        "splits.json",
        "studies.json",
        "history.csv",
        "model.keras",
        "metrics.json",
        "predictions.parquet",
        "slices.parquet",
        "report.html",
        "model_card.md",
    }
    assert finished.info["status"] == "finished"
    assert finished.info["fingerprint"] == Prepared.load(demo_data).fingerprint
    assert list(finished.history["epoch"]) == [1, 2]
    assert {"loss", "val_loss", "val_auroc", "learning_rate", "seconds"} <= set(finished.history)


def test_splits_cover_all_patients_once(finished, demo_data):
    studies = [study for part in finished.splits.values() for study in part]
    assert sorted(studies) == sorted(Prepared.load(demo_data).studies["study_id"])


def test_predictions_are_of_held_out_studies_and_called_at_the_threshold(finished):
    table = finished.predictions
    assert set(table["split"]) == {"validation", "test"}
    for split, part in table.groupby("split"):
        assert set(part["study"]) == set(finished.splits[split])
    assert table["probability"].between(0, 1).all()
    np.testing.assert_array_equal(table["positive"], table["probability"] >= table["threshold"])
    assert set(table["threshold"]) == {finished.thresholds["lesion"]}


def test_the_same_recipe_twice_gives_bitwise_the_same_weights(finished, demo_data, tmp_path):
    again = run_small(demo_data, tmp_path / "again")
    assert_same_weights(finished, again)
    columns = ["loss", "val_loss", "val_auroc"]
    pd.testing.assert_frame_equal(again.history[columns], finished.history[columns])


def test_another_seed_gives_other_weights(finished, demo_data, tmp_path):
    other = run_small(demo_data, tmp_path / "other", "seed=1")
    assert any((a != b).any() for a, b in zip(weights(finished), weights(other), strict=True))


@pytest.mark.parametrize("saves", [1, 4, 7])
def test_a_killed_run_resumes_to_bitwise_the_same_weights(
    finished, demo_data, tmp_path, monkeypatch, saves
):
    """The state is saved after every update; the run dies after some of the saves."""

    class Killed(BaseException):
        pass

    save, count = fitting.Fitter.save, 0

    def save_then_die(self):
        nonlocal count
        save(self)
        count += 1
        if count == saves:
            raise Killed

    settings = ("fit.checkpoint_minutes=0",)
    monkeypatch.setattr(fitting.Fitter, "save", save_then_die)
    with pytest.raises(Killed):
        run_small(demo_data, tmp_path / "run", *settings)
    monkeypatch.setattr(fitting.Fitter, "save", save)
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
    save = fitting.Fitter.save

    def save_then_die(self):
        save(self)
        if self.epoch == 1 and self.batch >= 2:
            raise SystemExit

    monkeypatch.setattr(fitting.Fitter, "save", save_then_die)
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "cut", *settings)
    monkeypatch.setattr(fitting.Fitter, "save", save)
    assert_same_weights(whole, run_small(demo_data, tmp_path / "cut", *settings, resume=True))


def test_resuming_keeps_the_split_that_the_run_began_with(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting.Fitter, "run", lambda self: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    monkeypatch.undo()
    before = (tmp_path / "run" / "splits.json").read_text("utf-8")
    monkeypatch.setattr(sys.modules["medseq_tf.training.train"], "make_holdout", None)
    resumed = run_small(demo_data, tmp_path / "run", "fit.epochs=1", resume=True)
    assert (resumed.path / "splits.json").read_text("utf-8") == before


def test_resuming_on_data_with_other_ids_is_refused(demo_data, tmp_path, monkeypatch):
    """The same content under other ids would be split anew, test patients into training."""
    monkeypatch.setattr(fitting.Fitter, "run", lambda self: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    monkeypatch.undo()
    data = Prepared.load(demo_data)
    data.studies["study_id"] = data.studies["study_id"].str[::-1]
    with pytest.raises(InputError, match="stud"):
        run_small(data, tmp_path / "run", "fit.epochs=1", resume=True)


def test_what_cannot_be_trained_is_said_before_a_folder_is_made(demo_data, tmp_path):
    for setting, message in (
        ("loss.weights=[1, 2]", "loss.weights has 2 weights, the data set 1 labels"),
        ("input.windows=[[40, 80]]", "input.windows is set"),
        ("split.validation=0.01", "split.validation"),
        ("input.size=8", "smaller than the kernel"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            run_small(demo_data, tmp_path / "run", setting)
        assert not (tmp_path / "run").exists()


def test_without_held_out_studies_there_are_no_figures_and_it_says_so(demo_data, tmp_path):
    run = run_small(
        demo_data, tmp_path / "run", "fit.epochs=1", "split.test=0", "split.validation=0"
    )
    assert run.metrics.empty
    assert run.notes == ["no validation studies: the thresholds are 0.5"]
    assert "No study was held out" in (run.path / "report.html").read_text("utf-8")


def test_probabilities_that_are_no_numbers_end_the_run(demo_data, tmp_path, monkeypatch):
    """The last update of an epoch can break the model after its loss was looked at."""
    validate = fitting.Fitter._validate

    def broken(self):
        self.model.trainable_variables[-1].assign([np.nan])
        return validate(self)

    monkeypatch.setattr(fitting.Fitter, "_validate", broken)
    with pytest.raises(Diverged, match="no numbers"):
        run_small(demo_data, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_adam_has_no_weight_decay_and_adamw_has():
    def after_a_step(name):
        variable = keras.Variable([1.0])
        settings = recipes.Optimizer(name=name, weight_decay=0.5, learning_rate=0.1)
        fitting.build_optimizer(settings).apply([np.float32([0.0])], [variable])
        return float(variable[0])

    assert after_a_step("adam") == after_a_step("adamax") == 1
    assert after_a_step("adamw") == pytest.approx(0.95)
    assert after_a_step("sgd") == pytest.approx(0.95)


def test_ctrl_c_after_the_last_epoch_is_a_stop_and_no_failure(demo_data, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("medseq_tf.training.train._finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_small(demo_data, tmp_path / "run", "fit.epochs=1")
    assert Run(tmp_path / "run").info["status"] == "stopped"
    monkeypatch.undo()
    assert run_small(demo_data, tmp_path / "run", "fit.epochs=1", resume=True).metrics is not None


@pytest.mark.slow
def test_kill_minus_nine_and_the_command_again(finished, demo_data, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from medseq_tf.training import loop as fitting\n"
        "save = fitting.Fitter.save\n"
        "def die(self):\n"
        "    save(self)\n"
        "    if self.epoch == 1 and self.batch == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "fitting.Fitter.save = die\n"
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


@keras.saving.register_keras_serializable(package="tests")
class MeanModel(keras.Model):
    """Mean over a sequence's real slices, then a dense layer: no batch statistics."""

    def __init__(self, labels=1, **kwargs):
        super().__init__(**kwargs)
        self.labels, self.slice_shape = labels, (32, 32, 1)
        self.dense = keras.layers.Dense(labels, kernel_initializer="ones")

    def build(self, input_shape=None):
        self.dense.build((None, 32 * 32))
        self.built = True

    def call(self, inputs, training=False):
        ops = keras.ops
        slices, lengths = inputs["slices"], ops.cast(inputs["lengths"], "float32")
        flat = ops.reshape(slices, (ops.shape(slices)[0], -1, 32 * 32))
        return self.dense(ops.sum(flat, axis=1) / lengths[:, None])

    def examples(self, inputs, labels):
        return self(inputs, training=True), labels


def test_accumulated_gradients_are_exact_for_unequal_batches(demo_data, tmp_path, monkeypatch):
    """One update from portions of 5, 5, ... and a rest equals one from all studies at once."""

    def build(*args, **kwargs):
        model = MeanModel()
        model.build()
        return model

    monkeypatch.setattr(fitting.models, "build", build)
    settings = ("fit.epochs=1", "optimizer.name=sgd", "augment.gaussian_noise=null")
    settings += ("sequence.policy=all", "sequence.length=64", "loss.weights=chexnet")
    found = []
    for batch_size, accumulate in ((64, 1), (5, 100)):
        recipe = recipes.load(
            recipes.Experiment(),
            [*SMALL, *settings, f"fit.batch_size={batch_size}", f"fit.accumulate={accumulate}"],
        )
        prepared = Prepared.load(demo_data)
        store = fitting.SliceStore(prepared, recipe)
        split = {"train": np.arange(23), "validation": np.array([], int)}
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        tracker = fitting.tracking.Tracker(folder, "x", enabled=False)
        fitter = fitting.Fitter(recipe, store, split, folder, tracker, verbose=False)
        fitter.run()
        assert int(fitter.optimizer.iterations) == 1
        found.append(fitter.model.dense.kernel.numpy())
    assert np.abs(found[0] - 1).max() > 1e-4
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-7)


def test_the_best_epoch_is_by_the_monitor_then_by_loss():
    fitter = object.__new__(fitting.Fitter)
    fitter.recipe = recipes.Experiment()
    rows = [(0.8, 0.5), (0.9, 0.6), (0.9, 0.4), (float("nan"), 0.1), (0.7, 0.2)]
    fitter.history = [
        {"epoch": i, "val_auroc": auroc, "val_loss": loss}
        for i, (auroc, loss) in enumerate(rows, 1)
    ]
    assert fitter.best_epoch() == 3
    fitter.recipe = recipes.load(recipes.Experiment(), ["fit.monitor=loss"])
    assert fitter.best_epoch() == 4


def test_training_stops_when_patience_runs_out(demo_data, tmp_path):
    run = run_small(demo_data, tmp_path / "run", "fit.epochs=30", "fit.patience=2")
    best = run.history["val_auroc"].idxmax()
    assert len(run.history) == min(30, best + 1 + 2)


def test_a_diverging_run_says_where(demo_data, tmp_path):
    with pytest.raises(Diverged, match=r"loss became \w+ in epoch 1, batch \d+; a smaller"):
        run_small(demo_data, tmp_path / "run", "optimizer.name=sgd", "optimizer.learning_rate=1e30")
    assert Run(tmp_path / "run").info["status"] == "failed"


@pytest.fixture(scope="module")
def folded(demo_data, tmp_path_factory):
    return run_small(demo_data, tmp_path_factory.mktemp("runs") / "cv", "fit.epochs=1", folds=2)


def test_folds_test_every_patient_once_and_pool(folded, demo_data):
    run = folded
    assert len(run.folds) == 2
    tested = [study for fold in run.folds for study in fold.splits["test"]]
    assert sorted(tested) == sorted(Prepared.load(demo_data).studies["study_id"])
    pooled = run.predictions[run.predictions["split"] == "test"]
    for number, fold in enumerate(run.folds, 1):
        own = pooled[pooled["fold"] == number]
        assert set(own["study"]) == set(fold.splits["test"])
        assert set(own["threshold"]) == {fold.thresholds["lesion"]}
    assert "Folds" in (run.path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_repeats_divide_anew_and_start_from_other_weights(folded, demo_data, tmp_path):
    run = run_small(demo_data, tmp_path / "cv", "fit.epochs=1", folds=2, repeats=2)
    once = folded
    assert (run.info["folds"], run.info["repeats"], run.repeats, once.repeats) == (2, 2, 2, 1)
    assert [fold.name for fold in run.folds] == ["fold_1", "fold_2", "fold_3", "fold_4"]
    everyone = sorted(Prepared.load(demo_data).studies["study_id"])
    for repeat in (1, 2):
        tested = [name for fold in run.of_repeat(repeat) for name in fold.splits["test"]]
        assert sorted(tested) == everyone
    first, second, again = run.folds[0], run.folds[2], once.folds[0]
    assert first.splits == again.splits != second.splits
    assert_same_weights(first, again)
    assert first.experiment.seed == 0 != second.experiment.seed
    assert run.folds[3].experiment.seed == second.experiment.seed
    tested = run.predictions[run.predictions["split"] == "test"]
    assert set(zip(tested["repeat"], tested["fold"], strict=True)) == {
        (1, 1), (1, 2), (2, 3), (2, 4)
    }  # fmt: skip
    assert (tested.groupby("repeat")["study"].nunique() == len(everyone)).all()
    stored = json.loads((run.path / "metrics.json").read_text("utf-8"))
    assert stored["question"] == cross_validation.RECIPE
    rows = run.metrics.set_index("metric")
    assert rows.loc["auroc", "interval"] == "cross-validation"
    assert rows.loc["auroc", "n"] == len(everyone)
    page = (run.path / "report.html").read_text("utf-8")
    assert cross_validation.RECIPE in page
    assert "repeat 2" in page
    point = run.operating_points["lesion"]
    assert (point["models"], point["members"]) == (2, 4)
    assert point["positives"] + point["negatives"] == len(everyone)
    found = evaluate(run, demo_data, resamples=20, audit=True)
    assert found.audit.is_clean
    assert found.confusion["patients"].tolist() == [len(everyone)]
    pd.testing.assert_series_equal(
        found.table.set_index("metric")["value"].drop("auroc_pooled", errors="ignore"),
        rows["value"].drop("auroc_pooled", errors="ignore"),
        atol=1e-5,
    )
    assert run_small(demo_data, run.path, "fit.epochs=1", folds=2, repeats=2, resume=True)
    with pytest.raises(InputError, match="repeats = 2, asked for 1"):
        run_small(demo_data, run.path, "fit.epochs=1", folds=2, resume=True)


def test_a_training_split_of_one_class_is_refused_by_the_label_s_name(demo_data, tmp_path):
    prepared = Prepared.load(demo_data)
    positive = prepared.labels[:, 0] == 1
    given = np.where(positive, "train", "test")
    studies = prepared.studies.assign(split=given)
    given = dataclasses.replace(prepared, studies=studies)
    with pytest.raises(InputError, match="no negative patient of label 'lesion'"):
        run_small(given, tmp_path / "run", "split.validation=0")
    rows = {"train": np.flatnonzero(positive)[:5], "validation": np.zeros(0, int)}
    rows["test"] = np.flatnonzero(~positive)[:5]
    with pytest.raises(InputError, match="no negative patient of label 'lesion'"):
        run_small(prepared, tmp_path / "run", splits=rows)
    assert not (tmp_path / "run").exists()


def test_repeats_need_folds(demo_data, tmp_path):
    with pytest.raises(InputError, match="repeats = 2: goes with folds"):
        run_small(demo_data, tmp_path / "run", repeats=2)
    with pytest.raises(InputError, match="repeats = 0: expected at least 1"):
        run_small(demo_data, tmp_path / "run", folds=2, repeats=0)
    assert not (tmp_path / "run").exists()


def test_the_threshold_of_folds_is_chosen_on_all_patients_and_measured(folded):
    run = folded
    tested = run.predictions[run.predictions["split"] == "test"]
    point = run.operating_points["lesion"]
    assert run.thresholds["lesion"] == point["threshold"]
    expected = metrics.choose_threshold(tested["truth"], tested["probability"])
    assert point["threshold"] == pytest.approx(expected)
    calls = []
    for fold in (1, 2):
        rest, own = tested[tested["fold"] != fold], tested[tested["fold"] == fold]
        cut = metrics.choose_threshold(rest["truth"], rest["probability"])
        calls.append(own.assign(called=own["probability"] >= cut))
    calls = pd.concat(calls)
    for name, kind in (("sensitivity", 1), ("specificity", 0)):
        right = (calls["called"] == calls["truth"])[calls["truth"] == kind].mean()
        value, low, high = point[name]
        assert value == pytest.approx(right)
        assert low <= value <= high
    said = "\n".join(run.notes)
    assert "chosen on the held-out predictions of all patients" in said
    assert "20 positive and 20 negative patients" in said
    assert "was not measured itself" in (run.path / "report.html").read_text("utf-8")
    description = Description.of_run(run)
    assert description.thresholds == run.thresholds
    assert description.operating_points == run.operating_points
    assert description.temperatures == run.temperatures


def test_predictions_say_what_the_threshold_stands_on(folded, tmp_path):
    class Asked:
        def describe(self):
            return Description.of_run(folded)

        def predict(self, slices, running=False):
            return StudyProbabilities(np.array([0.7]), None)

    (tmp_path / "study").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "study" / "1.png"), grey)
    rows = list(predict(Asked(), tmp_path, workers=1))
    assert "(20 positive, 20 negative)" in rows[0].operating_point
    assert "operating_point" in json.loads(rows[0].to_json())
    assert any("with each fold left out of the choice" in line for line in table(rows))


def test_a_threshold_says_on_how_many_patients_it_stands(finished):
    point = finished.operating_points["lesion"]
    counts = f"{point['positives']} positive and {point['negatives']} negative patients"
    assert min(point["positives"], point["negatives"]) < 25
    assert any(counts in note for note in finished.notes)


def test_resuming_a_finished_run_returns_it(finished, demo_data):
    before = (finished.path / "model.keras").stat().st_mtime_ns
    again = run_small(demo_data, finished.path, resume=True)
    assert (again.path / "model.keras").stat().st_mtime_ns == before


def test_what_cannot_be_resumed_says_so(demo_data, tmp_path, monkeypatch):
    save = fitting.Fitter.save

    def save_then_die(self):
        save(self)
        raise SystemExit

    monkeypatch.setattr(fitting.Fitter, "save", save_then_die)
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run")
    monkeypatch.undo()
    content = (tmp_path / "run" / fitting.CHECKPOINT).read_bytes()
    (tmp_path / "run" / fitting.CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot go on; start anew in another --out"):
        run_small(demo_data, tmp_path / "run", resume=True)


def test_a_model_lost_before_the_run_was_finished_is_written_again(
    finished, demo_data, tmp_path, monkeypatch
):
    """The checkpoint alone holds all that a run goes on from."""

    def die(fitter):
        raise SystemExit

    monkeypatch.setattr("medseq_tf.training.train._finish", die)
    with pytest.raises(SystemExit):
        run_small(demo_data, tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / "model.keras").unlink()
    assert_same_weights(finished, run_small(demo_data, tmp_path / "run", resume=True))


def test_a_damaged_study_is_one_line(demo_data, tmp_path):
    data = shutil.copytree(demo_data, tmp_path / "data")
    shard = sorted((data / "shards").iterdir())[0]
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(InputError, match=r"00000.tfrecord is not the shard that .* whole"):
        run_small(data, tmp_path / "run")


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


def test_mixed_precision_gives_float32_logits_and_restores_the_policy(demo_data, tmp_path):
    run = run_small(demo_data, tmp_path / "run", "fit.precision=mixed_bfloat16", "fit.epochs=1")
    assert keras.config.dtype_policy().name == "float32"
    assert run.predictions["probability"].notna().all()
    assert all(v.dtype == "float32" for v in run.model().trainable_variables)


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_losses(demo_data, tmp_path):
    """To rounding, which later epochs make larger."""
    settings = ("model.aggregator.dropout=0", "model.head.dropout=0", "model.aggregator.layers=1")
    settings += ("fit.epochs=1",)
    plain = run_small(demo_data, tmp_path / "plain", *settings)
    compiled = run_small(demo_data, tmp_path / "jit", "fit.jit=true", *settings)
    columns = ["loss", "val_loss"]
    np.testing.assert_allclose(compiled.history[columns], plain.history[columns], rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.schedule=cosine", "optimizer.warmup=0.3"),
        ("optimizer.name=adamax", "optimizer.warmup=0.5"),
        ("optimizer.name=sgd", "optimizer.clip_norm=1.0", "loss.name=focal"),
        ("fit.precision=mixed_float16", "model.aggregator.name=gru"),
        ("sequence.policy=all", "sequence.order=shuffled", "loss.weights=balanced"),
    ],
    ids=lambda s: s[0],
)
def test_other_settings_train(demo_data, tmp_path, settings):
    run = run_small(demo_data, tmp_path / "run", "fit.epochs=1", *settings)
    assert np.isfinite(run.history["loss"]).all()


def test_cosine_schedule_rises_to_its_full_rate_and_ends_at_zero():
    settings = recipes.Optimizer(schedule="cosine", warmup=0.2, learning_rate=0.1)
    rate = fitting.learning_rate(settings, updates=100)
    found = [float(rate(step)) for step in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(found, [0.005, 0.0525, 0.1, 0.05, 0], atol=1e-6)


def test_a_study_that_the_recipe_leaves_out_is_not_scored(demo_data):
    probabilities = np.array([[0.2], [np.nan], [0.9]])
    values = fitting.epoch_metrics(
        np.array([[0.0], [1.0], [1.0]]), probabilities, losses.LabelLoss()
    )
    assert values["auroc"] == 1
    assert values["loss"] == pytest.approx(-(np.log(0.8) + np.log(0.9)) / 2, rel=1e-5)


def test_metrics_json_has_no_nan(finished):
    text = (finished.path / "metrics.json").read_text("utf-8")
    assert "NaN" not in text
    assert json.loads(text)["thresholds"] == finished.thresholds


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


def test_a_shard_of_another_data_set_is_refused_before_a_run_begins(demo_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    run = run_small(data, tmp_path / "run", "fit.epochs=1")
    studies = Prepared.load(data).studies.set_index("study_id")
    shard = data / "shards" / studies.loc[run.splits["validation"][0], "shard"]
    damaged = bytearray(shard.read_bytes())
    damaged[200] ^= 1
    shard.write_bytes(damaged)
    message = rf"{shard.name} is not the shard that"
    with pytest.raises(InputError, match=message):
        run_small(data, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match=message):
        evaluate(run, data, split="validation")
