"""Takes a recipe, slices and a split; gives the model of the best epoch and the history of all."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from medseq_tf import experiment as recipes
from medseq_tf import losses, models, tracking
from medseq_tf.errors import Diverged, InputError, Stopped
from medseq_tf.evaluate import point_metrics
from medseq_tf.experiment import Experiment
from medseq_tf.inference import study_probabilities
from medseq_tf.pipeline import SliceStore, readable, steps_per_epoch, training_batches
from medseq_tf.runs import atomic

CHECKPOINT = "checkpoint.npz"


class Fitter:
    """The training loop of one run.

    An update is the gradient of the mean loss over all known labels of `fit.accumulate` batches:
    the batches' gradients of the *summed* loss are added and divided by the number of labels, so
    unequal batches and patients weigh as they should. Batch normalisation uses the statistics of
    each batch by itself. A group that the end of the epoch cuts short is applied there.

    The state (all model variables, seeds of dropout included, optimizer, position in the epoch,
    history) is saved only between updates, in one file that replaces the last one whole.
    """

    def __init__(
        self,
        recipe: Experiment,
        store: SliceStore,
        split: Mapping[str, np.ndarray],
        folder: Path,
        tracker: tracking.Tracker,
        verbose: bool = True,
    ):
        self.recipe, self.store, self.split = recipe, store, split
        self.folder, self.tracker, self.verbose = folder, tracker, verbose
        labels = store.prepared.labels
        side = recipe.input.size
        with _dtype_policy(recipe.fit.precision):
            self.model = models.build(
                recipe.model,
                input_shape=(side, side, recipe.input.channels),
                labels=labels.shape[1],
                seed=recipe.seed,
                skip_padding=not recipe.fit.jit,
            )
        self.loss = losses.build(recipe.loss, labels[split["train"]])
        self.steps = steps_per_epoch(store.prepared, split["train"], recipe)
        updates = math.ceil(self.steps / recipe.fit.accumulate) * recipe.fit.epochs
        self.optimizer = build_optimizer(recipe.optimizer, updates, recipe.fit.precision)
        self.optimizer.build(self.model.trainable_variables)
        self.accumulated = [
            tf.Variable(tf.zeros(v.shape, tf.float32), trainable=False)
            for v in self.model.trainable_variables
        ]
        self.epoch, self.batch = 0, 0
        self.loss_sum, self.known = 0.0, 0.0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self._build_steps()

    def _build_steps(self) -> None:
        jit = self.recipe.fit.jit
        any_shape = [
            tf.TensorSpec((None, None, *self.model.slice_shape), tf.float32),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None, len(self.store.prepared.label_names)), tf.float32),
        ]

        @tf.function(input_signature=None if jit else any_shape, jit_compile=jit, autograph=False)
        def accumulate(slices: tf.Tensor, lengths: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = self.model({"slices": slices, "lengths": lengths}, training=True)
                elements, known = self.loss.elementwise(labels, logits)
                total = tf.reduce_sum(elements)
                scaled = self.optimizer.scale_loss(total)
            gradients = tape.gradient(scaled, [v.value for v in self.model.trainable_variables])
            for variable, gradient in zip(self.accumulated, gradients, strict=True):
                if gradient is not None:
                    variable.assign_add(tf.cast(gradient, tf.float32))
            return tf.stack([total, tf.reduce_sum(known)])

        @tf.function(input_signature=[tf.TensorSpec((), tf.float32)], autograph=False)
        def update(known: tf.Tensor) -> None:
            known = tf.maximum(known, 1.0)
            gradients = [variable / known for variable in self.accumulated]
            self.optimizer.apply(gradients, self.model.trainable_variables)
            for variable in self.accumulated:
                variable.assign(tf.zeros_like(variable))

        self._accumulate, self._update = accumulate, update

    def run(self) -> None:
        """Train to the last epoch, or until `fit.patience` runs out."""
        self.restore()
        with _interrupts() as interrupted:
            while self.epoch < self.recipe.fit.epochs and not self._out_of_patience():
                self._run_epoch(interrupted)

    def _run_epoch(self, interrupted: list[bool]) -> None:
        recipe, started = self.recipe.fit, time.monotonic()
        before, last_saved = self.seconds, time.monotonic()
        batches = training_batches(
            self.store.prepared,
            self.split["train"],
            self.recipe,
            self.epoch,
            first_batch=self.batch,
            store=self.store,
        )
        bar = self._bar()
        totals: list[tf.Tensor] = []
        for inputs, labels in readable(batches, self.store):
            totals.append(self._accumulate(inputs["slices"], inputs["lengths"], labels))
            self.batch += 1
            if self.batch % recipe.accumulate and self.batch < self.steps:
                continue
            total, known = tf.add_n(totals).numpy()
            self._check(total)
            self._update(known)
            totals.clear()
            self.loss_sum += float(total)
            self.known += float(known)
            bar.update(self.batch, [("loss", self.loss_sum / max(self.known, 1.0))], finalize=False)
            self.seconds = before + time.monotonic() - started
            if interrupted:
                self.save()
                raise Stopped(f"{self.folder}: stopped in epoch {self.epoch + 1}; --resume goes on")
            if time.monotonic() - last_saved > recipe.checkpoint_minutes * 60:
                self.save()
                last_saved = time.monotonic()
        self.seconds = before + time.monotonic() - started
        self._end_epoch(bar)
        if interrupted:
            raise Stopped(f"{self.folder}: stopped after epoch {self.epoch}; --resume goes on")

    def _bar(self) -> keras.utils.Progbar:
        if not self.verbose:
            return keras.utils.Progbar(self.steps, verbose=0)
        print(f"Epoch {self.epoch + 1}/{self.recipe.fit.epochs}")
        shown = ["loss", "val_loss", f"val_{self.recipe.fit.monitor}"]
        verbose = 1 if keras.utils.is_interactive_logging_enabled() and _interactive() else 2
        return keras.utils.Progbar(
            self.steps, verbose=verbose, stateful_metrics=shown, unit_name="batch"
        )

    def _check(self, total: float) -> None:
        if not np.isfinite(total):
            raise Diverged(
                f"the loss became {total} in epoch {self.epoch + 1}, batch {self.batch}; a "
                "smaller optimizer.learning_rate or optimizer.clip_norm=1 may help"
            )

    def _end_epoch(self, bar: keras.utils.Progbar) -> None:
        row: dict[str, float] = {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / max(self.known, 1.0),
            **self._validate(),
            "learning_rate": float(self.optimizer.learning_rate),
            "seconds": round(self.seconds, 3),
        }
        shown = [
            (k, row[k]) for k in ("loss", "val_loss", f"val_{self.recipe.fit.monitor}") if k in row
        ]
        bar.update(self.steps, shown, finalize=True)
        self.history.append(row)
        if self.best_epoch() == len(self.history):
            with atomic(self.folder / "model.keras") as temporary:
                self.model.save(temporary)
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum = self.known = self.seconds = 0.0
        with atomic(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.history).to_csv(temporary, index=False)
        self.save()
        self.tracker.metrics({k: v for k, v in row.items() if k != "epoch"}, step=self.epoch)

    def _validate(self) -> dict[str, float]:
        rows = self.split["validation"]
        if len(rows) == 0:
            return {}
        probabilities = study_probabilities(self.model, self.store, rows, self.recipe)
        labels = self.store.prepared.labels[rows]
        return {f"val_{k}": v for k, v in epoch_metrics(labels, probabilities, self.loss).items()}

    def best_epoch(self) -> int:
        """Return the number of the best epoch so far: by the monitor, then by validation loss."""
        key = f"val_{self.recipe.fit.monitor}"
        if not self.history or key not in self.history[-1]:
            return len(self.history)
        sign = -1.0 if self.recipe.fit.monitor in ("loss", "brier") else 1.0

        def rank(row: dict[str, float]) -> tuple[float, float]:
            return _or_worst(sign * row[key]), _or_worst(-row["val_loss"])

        return max(self.history, key=rank)["epoch"]

    def _out_of_patience(self) -> bool:
        patience = self.recipe.fit.patience
        if patience is None or not len(self.split["validation"]):
            return False
        return len(self.history) - self.best_epoch() >= patience if self.history else False

    def save(self) -> None:
        """Write the state between two updates, whole or not at all."""
        state = {
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": self.loss_sum,
            "known": self.known,
            "seconds": self.seconds,
            "history": self.history,
        }
        arrays = {f"model_{i}": v.numpy() for i, v in enumerate(self.model.variables)}
        arrays |= {f"optimizer_{i}": v.numpy() for i, v in enumerate(self.optimizer.variables)}
        with atomic(self.folder / CHECKPOINT) as temporary, open(temporary, "wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)
            file.flush()
            os.fsync(file.fileno())

    def restore(self) -> None:
        """Go on from the saved state, if there is one."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
                state = json.loads(str(saved["state"]))
                for i, variable in enumerate(self.model.variables):
                    variable.assign(saved[f"model_{i}"])
                for i, variable in enumerate(self.optimizer.variables):
                    variable.assign(saved[f"optimizer_{i}"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise InputError(
                f"{path}: is damaged, so the run cannot go on; start anew in another --out"
            ) from None
        if state["history"] and not (self.folder / "model.keras").is_file():
            raise InputError(
                f"{self.folder}/model.keras: the best epoch's model is gone, so the run cannot go "
                "on; start anew in another --out"
            )
        for key, value in state.items():
            setattr(self, key, value)


def _or_worst(value: float) -> float:
    return value if value == value else -np.inf


def epoch_metrics(
    labels: np.ndarray, probabilities: np.ndarray, loss: losses.LabelLoss
) -> dict[str, float]:
    """Return the loss and, by label and as their mean, the metrics at a threshold of 0.5.

    Args:
      labels: `(studies, labels)`, NaN where unknown.
      probabilities: `(studies, labels)`, NaN for a study that was left out.
      loss: the training loss.
    """
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    logits = np.log(clipped) - np.log1p(-clipped)
    kept = ~np.isnan(probabilities).any(1)
    elements, known = loss.elementwise(labels[kept], logits[kept])
    count = float(np.sum(known))
    values = {"loss": float(np.sum(elements)) / count if count else float("nan")}
    return values | point_metrics(labels[kept], probabilities[kept])


def build_optimizer(
    settings: recipes.Optimizer, updates: int, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """Return the recipe's optimizer; `updates` is the length of the schedule."""
    rate: Any = settings.learning_rate
    warmup = round(settings.warmup * updates)
    first = settings.learning_rate / max(warmup, 1)
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=first,
            decay_steps=max(updates - warmup, 1),
            warmup_target=settings.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    elif warmup:
        rate = keras.optimizers.schedules.PolynomialDecay(
            initial_learning_rate=first,
            decay_steps=warmup,
            end_learning_rate=settings.learning_rate,
        )
    common = {"learning_rate": rate, "clipnorm": None, "global_clipnorm": settings.clip_norm}
    if settings.name == "sgd":
        optimizer = keras.optimizers.SGD(
            momentum=settings.beta_1, weight_decay=settings.weight_decay, **common
        )
    else:
        kinds = {"adam": keras.optimizers.Adam, "adamax": keras.optimizers.Adamax}
        decay = {}
        if settings.name == "adamw":
            kinds, decay = (
                {"adamw": keras.optimizers.AdamW},
                {"weight_decay": settings.weight_decay},
            )
        optimizer = kinds[settings.name](
            beta_1=settings.beta_1,
            beta_2=settings.beta_2,
            epsilon=settings.epsilon,
            **decay,
            **common,
        )
    if precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _interactive() -> bool:
    """Whether a line can be drawn over: a terminal or a notebook, not a log file."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


@contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Collect Ctrl-C instead of raising, so that an update is never cut in two; twice raises."""
    caught: list[bool] = []

    def note(signum: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(True)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: KeyboardInterrupt cannot come here either
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
