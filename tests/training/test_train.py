"""Training as a user meets it: what a run leaves, exact repetition and resumption, bad input."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from runs_compared import assert_same_weights, weights
from small_run import run_small

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Diverged, InputError
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.models import losses
from medseq_tf.runs.run import Run
from medseq_tf.training.fitting import epoch_metrics
from medseq_tf.training.loop import Fitter


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
    validate = Fitter._validate

    def broken(self):
        self.model.trainable_variables[-1].assign([np.nan])
        return validate(self)

    monkeypatch.setattr(Fitter, "_validate", broken)
    with pytest.raises(Diverged, match="no numbers"):
        run_small(demo_data, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_the_best_epoch_is_by_the_monitor_then_by_loss():
    fitter = object.__new__(Fitter)
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


def test_a_threshold_says_on_how_many_patients_it_stands(finished):
    point = finished.operating_points["lesion"]
    counts = f"{point['positives']} positive and {point['negatives']} negative patients"
    assert min(point["positives"], point["negatives"]) < 25
    assert any(counts in note for note in finished.notes)


def test_a_damaged_study_is_one_line(demo_data, tmp_path):
    data = shutil.copytree(demo_data, tmp_path / "data")
    shard = sorted((data / "shards").iterdir())[0]
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(InputError, match=r"00000.tfrecord is not the shard that .* whole"):
        run_small(data, tmp_path / "run")


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


def test_a_study_that_the_recipe_leaves_out_is_not_scored(demo_data):
    probabilities = np.array([[0.2], [np.nan], [0.9]])
    values = epoch_metrics(np.array([[0.0], [1.0], [1.0]]), probabilities, losses.LabelLoss())
    assert values["auroc"] == 1
    assert values["loss"] == pytest.approx(-(np.log(0.8) + np.log(0.9)) / 2, rel=1e-5)


def test_metrics_json_has_no_nan(finished):
    text = (finished.path / "metrics.json").read_text("utf-8")
    assert "NaN" not in text
    assert json.loads(text)["thresholds"] == finished.thresholds


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
