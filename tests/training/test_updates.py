"""Updates of weights: exact over unequal batches, at the rate and precision asked for."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from small_run import SMALL, run_small

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training.loop import Fitter
from medseq_tf.training.updates import build_optimizer, learning_rate


def test_adam_has_no_weight_decay_and_adamw_has():
    def after_a_step(name):
        variable = keras.Variable([1.0])
        settings = recipes.Optimizer(name=name, weight_decay=0.5, learning_rate=0.1)
        build_optimizer(settings).apply([np.float32([0.0])], [variable])
        return float(variable[0])

    assert after_a_step("adam") == after_a_step("adamax") == 1
    assert after_a_step("adamw") == pytest.approx(0.95)
    assert after_a_step("sgd") == pytest.approx(0.95)


@keras.saving.register_keras_serializable(package="tests")
class MeanModel(keras.Model):
    """Mean over a sequence's real slices, then a dense layer: no batch statistics."""

    covariates = None

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

    def input_signature(self, kind="slices"):
        slices = keras.KerasTensor((None, None, *self.slice_shape), "float32")
        return {kind: slices, "lengths": keras.KerasTensor((None,), "int32")}

    def examples(self, inputs, labels):
        return self(inputs, training=True), labels


def test_accumulated_gradients_are_exact_for_unequal_batches(demo_data, tmp_path, monkeypatch):
    """One update from portions of 5, 5, ... and a rest equals one from all studies at once."""

    def build(*args, **kwargs):
        model = MeanModel()
        model.build()
        return model

    monkeypatch.setattr(models, "build", build)
    settings = ("fit.epochs=1", "optimizer.name=sgd", "augment.gaussian_noise=null")
    settings += ("sequence.policy=all", "sequence.length=64", "loss.weights=chexnet")
    found = []
    for batch_size, accumulate in ((64, 1), (5, 100)):
        recipe = recipes.load(
            recipes.Experiment(),
            [*SMALL, *settings, f"fit.batch_size={batch_size}", f"fit.accumulate={accumulate}"],
        )
        prepared = Prepared.load(demo_data)
        store = SliceStore(prepared, recipe)
        split = {"train": np.arange(23), "validation": np.array([], int)}
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        tracker = Tracker(folder, "x", enabled=False)
        fitter = Fitter(recipe, store, split, folder, tracker, verbose=False)
        fitter.run()
        assert int(fitter.optimizer.iterations) == 1
        found.append(fitter.model.dense.kernel.numpy())
    assert np.abs(found[0] - 1).max() > 1e-4
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-7)


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


def test_cosine_schedule_rises_to_its_full_rate_and_ends_at_zero():
    settings = recipes.Optimizer(schedule="cosine", warmup=0.2, learning_rate=0.1)
    rate = learning_rate(settings, updates=100)
    found = [float(rate(step)) for step in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(found, [0.005, 0.0525, 0.1, 0.05, 0], atol=1e-6)
