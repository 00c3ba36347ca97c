"""Training on the features of a frozen network: the same as training on slices, only quicker."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_network
from interrupted import Killed, killed_after

from medseq_tf import models
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, Stopped
from medseq_tf.evaluation.evaluate import evaluate
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.input.batches import training_batches
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.run import Run
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training import loop
from medseq_tf.training.loop import CHECKPOINT, Fitter
from medseq_tf.training.train import train
from medseq_tf.training.updates import learning_rate

SPLIT = {"train": np.arange(22), "validation": np.arange(22, 32), "test": np.arange(32, 40)}
DROPPING = ("model.encoder.dropout=0.3", "model.head.dropout=0.3")
NOT_DROPPING = ("model.encoder.dropout=0", "model.aggregator.dropout=0", "model.head.dropout=0")
VARIED = ("augment.gaussian_noise.p=0.7", "augment.flip.p=0.5", "features.views=3")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    tiny_network.install(monkeypatch)
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(tmp_path / "features"))


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


def fitter(prepared, folder, *overrides, features=None, **changes):
    recipe = tiny_network.recipe(*overrides)
    folder.mkdir(exist_ok=True)
    tracker = Tracker(folder, "x", enabled=False)
    made = Fitter(
        recipe, SliceStore(prepared, recipe), SPLIT, folder, tracker, False, features=features
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def fitted(*arguments, **keywords):
    made = fitter(*arguments, **keywords)
    made.run()
    return made


def losses(made):
    return [(row["loss"], row["val_loss"]) for row in made.history]


def assert_same_bits(one, other):
    assert losses(one) == losses(other)
    for a, b in zip(one.model.variables, other.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def run(data, out, *overrides, **arguments):
    recipe = tiny_network.recipe(*overrides)
    return train(recipe, data, out, **{"track": False, "verbose": False, **arguments})


# ---------------------------------------------------------------- the same as without the store


@pytest.mark.parametrize("accumulate", [1, 3])
def test_cached_and_uncached_training_give_the_same_losses(prepared, tmp_path, accumulate):
    """Dropout included: the same seeds are drawn for the same batches."""
    settings = (*DROPPING, f"fit.accumulate={accumulate}", "sequence.policy=all")
    cached = fitted(prepared, tmp_path / "a", *settings)
    uncached = fitted(prepared, tmp_path / "b", *settings, "features.use=never")
    assert cached.features.computed == 32
    assert uncached.features is None
    np.testing.assert_allclose(losses(cached), losses(uncached), rtol=0, atol=1e-5)
    for a, b in zip(cached.variables, uncached.variables, strict=True):
        if "seed" in a.path:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_whole_model_trained_by_keras_on_slices_gives_the_same_weights(prepared, tmp_path):
    """One epoch, one batch an update, written out with the model's own call on slices."""
    settings = (*DROPPING, "fit.epochs=1", "optimizer.name=sgd", "optimizer.learning_rate=0.1")
    made = fitter(prepared, tmp_path / "a", *settings)
    other = fitter(prepared, tmp_path / "b", *settings)
    made.run()
    model, optimizer = other.model, keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01)
    batches = training_batches(prepared, SPLIT["train"], other.recipe, 0)
    for inputs, labels in batches:
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(other.loss(labels, model(inputs, training=True)))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    for a, b in zip(made.variables, other.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_updates_follow_the_schedule_of_the_rate(prepared, tmp_path):
    settings = ("optimizer.warmup=0.5", "optimizer.schedule=cosine", "fit.epochs=2")
    made = fitter(prepared, tmp_path / "run", *settings)
    apply, rates = made.optimizer.apply, []

    def noted(gradients, variables):
        rates.append(tf.identity(made.optimizer.learning_rate))
        apply(gradients, variables)

    made.optimizer.apply = noted
    tf.config.run_functions_eagerly(True)
    try:
        made.run()
    finally:
        tf.config.run_functions_eagerly(False)
    updates = int(made.optimizer.iterations)
    rate = learning_rate(made.recipe.optimizer, updates)
    assert updates > 2
    np.testing.assert_allclose(rates, [rate(done) for done in range(updates)], rtol=1e-6)
    assert made.history[-1]["learning_rate"] == pytest.approx(float(rate(updates)), abs=1e-9)


def test_stored_views_and_views_computed_on_the_fly_give_the_same_bits(prepared, tmp_path):
    settings = (*VARIED, *DROPPING, "features.redraw=1")
    memory = fitted(prepared, tmp_path / "a", *settings)
    (tmp_path / "kept").mkdir()
    filling = fitted(prepared, tmp_path / "b", *settings, features=tmp_path / "kept")
    reading = fitted(prepared, tmp_path / "c", *settings, features=tmp_path / "kept")
    mapped = fitted(
        prepared, tmp_path / "d", *settings, "fit.cache=none", features=tmp_path / "kept"
    )
    assert filling.features.computed == memory.features.computed
    assert reading.features.computed == mapped.features.computed == 0
    for other in (filling, reading, mapped):
        assert_same_bits(memory, other)


def test_a_group_of_batches_is_one_batch(prepared, tmp_path, monkeypatch):
    settings = (*NOT_DROPPING, "fit.accumulate=2", "fit.batch_size=3", "sequence.policy=all")
    joined = fitter(prepared, tmp_path / "a", *settings)
    assert joined.together == 2
    joined.run()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "holds_statistics", lambda variables: True)
        single = fitted(prepared, tmp_path / "b", *settings)
    assert single.together == 1
    assert int(joined.optimizer.iterations) == int(single.optimizer.iterations) == 2 * 4
    np.testing.assert_allclose(losses(joined), losses(single), rtol=0, atol=1e-5)
    for a, b in zip(joined.variables, single.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class NormalisingHead(models.Head):
    """A head that learns from the statistics of a batch."""

    def build(self, vectors_shape):
        self.normalisation = keras.layers.BatchNormalization()
        self.normalisation.build(vectors_shape)
        super().build(vectors_shape)

    def call(self, vectors, training=None):
        return super().call(self.normalisation(vectors, training=training), training=training)


def test_batches_stay_apart_where_what_is_trained_has_batch_statistics(
    prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "Head", NormalisingHead)
    settings = ("fit.accumulate=2", "fit.epochs=1")
    cached = fitter(prepared, tmp_path / "a", *settings)
    assert cached.together == 1
    cached.run()
    uncached = fitted(prepared, tmp_path / "b", *settings, "features.use=never")
    np.testing.assert_allclose(losses(cached), losses(uncached), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------- what a run leaves


def test_a_runs_predictions_are_those_of_the_whole_model_from_pixels(prepared, tmp_path):
    finished = run(prepared, tmp_path / "run", *VARIED)
    assert len(list((tmp_path / "features").glob("*/*"))) >= 40
    evaluated = evaluate(finished, prepared, "test", resamples=1).predictions
    stored = finished.predictions[finished.predictions["split"] == "test"]
    stored = stored.set_index("study")["probability"]
    pixels = evaluated.set_index("study")["probability"]
    assert len(pixels) == 8
    np.testing.assert_allclose(stored[pixels.index], pixels, rtol=0, atol=1e-5)
    network = finished.model().encoder.network
    expected = tiny_network.network("", "", (32, 32, 3), seed=network.seed)[0]
    assert len(network.weights) == len(expected.weights) == 2


def test_features_are_kept_where_train_is_told_and_shared_by_folds(prepared, tmp_path, capsys):
    place = tmp_path / "here"
    settings = ("fit.epochs=1",)
    run(prepared, tmp_path / "cv", *settings, folds=2, features=place, verbose=True)
    assert len(list(place.glob("*/*"))) == 40
    lines = [line for line in capsys.readouterr().out.splitlines() if "features:" in line]
    done = [
        tuple(int(n) for n in line.replace("/", " ").split() if n.isdecimal()) for line in lines
    ]
    assert sum(total - cached for _, total, cached in done) == 40


def test_a_place_that_cannot_be_written_to_is_said_before_a_folder_is_made(prepared, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="features cannot be kept there"):
        run(prepared, tmp_path / "run", features=tmp_path / "taken")
    assert not (tmp_path / "run").exists()
    run(prepared, tmp_path / "run", "features.use=never", "fit.epochs=1", features="/dev/null")


def test_the_frozen_network_is_in_no_checkpoint_and_the_model_written_once(
    prepared, tmp_path, monkeypatch
):
    made = fitter(prepared, tmp_path / "run")
    save, saved = Fitter.save, []

    def look(self):
        save(self)
        assert not (tmp_path / "run" / "model.keras").exists()
        with np.load(tmp_path / "run" / CHECKPOINT) as arrays:
            saved.append({name: arrays[name].shape for name in arrays})

    monkeypatch.setattr(Fitter, "save", look)
    made.run()
    kernel = made.network.weights[0].shape
    assert saved
    assert all(kernel not in arrays.values() for arrays in saved)
    model = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
    for a, b in zip(model.weights, made.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_model_is_that_of_the_best_epoch(prepared, tmp_path):
    settings = ("fit.epochs=4", "fit.monitor=loss", "optimizer.learning_rate=0.3")
    made = fitted(prepared, tmp_path / "run", *settings)
    assert made.best_epoch() < 4
    assert made._validate()["val_loss"] == min(row["val_loss"] for row in made.history)


# ----------------------------------------------------------------------------------- resuming


GROUPS = ("fit.accumulate=2", *VARIED, "features.redraw=2")


@pytest.mark.parametrize(
    "settings", [(), pytest.param(GROUPS, marks=pytest.mark.slow)], ids=["plain", "groups"]
)
def test_killed_after_any_save_it_resumes_to_the_same_bits(
    prepared, tmp_path, monkeypatch, settings
):
    settings = (*settings, *DROPPING, "fit.epochs=3", "fit.checkpoint_minutes=0")
    whole = fitted(prepared, tmp_path / "whole", *settings)
    for saves in (2, 8):
        folder = tmp_path / str(saves)
        with killed_after(monkeypatch, saves):
            fitted(prepared, folder, *settings)
        assert not (folder / "model.keras").exists()
        assert_same_bits(whole, fitted(prepared, folder, *settings))


def test_killed_between_the_last_epoch_and_the_model_it_writes_the_same_model(
    prepared, tmp_path, monkeypatch
):
    whole = fitted(prepared, tmp_path / "whole")

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", die)
        with pytest.raises(Killed):
            fitted(prepared, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*.keras"))
    resumed = fitter(prepared, tmp_path / "cut")
    monkeypatch.setattr(Fitter, "_run_epoch", None)
    resumed.run()
    assert_same_bits(whole, resumed)


def test_stopped_while_features_are_computed_it_says_so_and_goes_on(
    prepared, tmp_path, monkeypatch
):
    prepare = FeatureStore.prepare

    def pressed(store, wanted, stopped):
        prepare(store, wanted, lambda: store.computed >= 1)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "prepare", pressed)
        with pytest.raises(Stopped, match="features: 1/22 studies, 0 cached; --resume goes on"):
            run(prepared, tmp_path / "run", "split.validation=0.25")
    assert Run(tmp_path / "run").info["status"] == "stopped"
    assert not (tmp_path / "run" / "model.keras").exists()
    finished = run(prepared, tmp_path / "run", "split.validation=0.25", resume=True)
    assert finished.info["status"] == "finished"


def test_a_run_does_not_go_on_with_other_frozen_weights(prepared, tmp_path, monkeypatch):
    with killed_after(monkeypatch, 1):
        fitted(prepared, tmp_path / "run")
    made = fitter(prepared, tmp_path / "run", digest="0" * 64)
    with pytest.raises(InputError, match="other weights of the frozen network than are there now"):
        made.run()


def test_quick_epochs_are_saved_as_often_as_is_worth_it(prepared, tmp_path, monkeypatch):
    made = fitter(prepared, tmp_path / "run", "fit.epochs=6")
    made.saving_seconds = 3600.0
    save, saved = Fitter.save, []
    monkeypatch.setattr(
        Fitter,
        "save",
        lambda self: (
            save(self),
            saved.append(self.epoch),
            setattr(self, "saving_seconds", 3600.0),
        ),
    )
    made.run()
    assert saved == [6], "at the end in any case"


# ------------------------------------------------------------------------- other ways to train


@pytest.mark.parametrize("frozen", ["1", "none"])
def test_a_network_that_is_partly_frozen_trains_from_slices(prepared, tmp_path, frozen):
    settings = (f"model.encoder.frozen={frozen}", "fit.epochs=1", "fit.accumulate=2")
    made = fitter(prepared, tmp_path / "run", *settings)
    before = [v.numpy() for v in made.model.encoder.network.weights]
    made.run()
    assert made.features is None
    assert made.together == 1
    after = made.model.encoder.network.weights
    changed = [bool((a != b.numpy()).any()) for a, b in zip(before, after, strict=True)]
    assert changed == [True, True]
    assert np.isfinite(losses(made)).all()


@pytest.mark.parametrize(
    "settings",
    [
        ("input.neighbours=1",),
        ("features.dtype=float16",),
        ("fit.precision=mixed_bfloat16",),
        pytest.param(("fit.jit=true", "sequence.fill=true"), marks=pytest.mark.slow),
        ("split.validation=0", "split.test=0"),
    ],
    ids=lambda settings: settings[0],
)
def test_other_settings_train_on_features(prepared, tmp_path, settings):
    finished = run(prepared, tmp_path / "run", "fit.epochs=1", *settings)
    assert np.isfinite(finished.history["loss"]).all()


def test_studies_left_out_of_training_have_no_say_in_the_weights_of_the_loss(prepared, tmp_path):
    """Weights by class count the studies that are shown, not those that are too long."""
    slices = prepared.studies["slices"].to_numpy()
    longest = int(np.median(slices))
    made = fitter(
        prepared,
        tmp_path,
        "sequence.policy=all",
        f"sequence.length={longest}",
        "sequence.over=leave_out",
        "loss.weights=chexnet",
    )
    train_rows = SPLIT["train"]
    shown = prepared.labels[train_rows[slices[train_rows] <= longest], 0]
    assert 0 < len(shown) < len(train_rows)
    assert made.loss.positive_weight == pytest.approx([(shown == 0).mean()])
