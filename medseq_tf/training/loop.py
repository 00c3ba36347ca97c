"""The training loop: epochs, validation, the best epoch, saving and going on."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import Diverged, InputError, Stopped, is_interactive
from medseq_tf.evaluation.feature_store import FeatureStore, join
from medseq_tf.evaluation.feature_views import frozen_network, weights_digest
from medseq_tf.files import atomic
from medseq_tf.input.batches import readable, steps_per_epoch, training_batches, training_plan
from medseq_tf.input.sampling import WHOLE
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import losses
from medseq_tf.recipe import MINIMISED, Experiment
from medseq_tf.runs.tracking import AnyTracker
from medseq_tf.training.beginning import model_and_features
from medseq_tf.training.distribution import Distribution
from medseq_tf.training.fitting import Fitting, interrupts
from medseq_tf.training.pretraining import pretrain
from medseq_tf.training.updates import Updates

CHECKPOINT = "checkpoint.npz"

SAVING_SHARE = 0.05
"""Of the time that epochs take: no more goes into saving the state after each."""


class Fitter(Fitting):
    """The training loop of one run.

    An update is the gradient of the mean loss over all known labels of `fit.accumulate` batches:
    the batches' gradients of the *summed* loss are added and divided by the number of labels, so
    unequal batches and patients weigh as they should. Batch normalisation uses the statistics of
    each batch by itself. A group that the end of the epoch cuts short is applied there.

    A network that is frozen whole takes no part in the training step: the rest of the model learns
    from its features, stored (`features.use`) or computed for each batch. A group of batches is
    then one padded batch, the same mathematically, unless the rest has batch statistics.

    The state (model variables, seeds of dropout included, those of the best epoch, optimizer,
    position in the epoch, history) is saved only between updates, in one file that replaces the
    last one whole; without what never changes: a network that is frozen whole, and the constants
    that standardise covariates. `model.keras` is written once, at the end.

    Arguments and attributes are those of `Fitting`; the model is, after `run`, that of the best
    epoch.
    """

    def __init__(
        self,
        recipe: Experiment,
        store: SliceStore,
        split: Rows,
        folder: Path,
        tracker: AnyTracker,
        verbose: bool = True,
        features: os.PathLike | None = None,
        stop: Callable[[], bool] = lambda: False,
        distribution: Distribution | None = None,
    ):
        super().__init__(
            recipe, store, split, folder, tracker, verbose, features, stop, distribution
        )
        labels = store.prepared.labels
        self.network = frozen_network(self.model)
        self.digest = weights_digest(self.network) if self.network is not None else None
        if recipe.pretraining:
            self.model.encoder.backbone.trainable = not recipe.pretraining.frozen
        network = self.network.variables if self.network is not None else []
        fixed = {id(v) for v in [*self.constants, *network]}
        self.variables = [v for v in self.model.variables if id(v) not in fixed]
        joined = self.network is not None and not holds_statistics(self.variables)
        self.together = recipe.fit.accumulate if joined else 1
        self.best: list[np.ndarray] = []
        plan = training_plan(store.prepared, split["train"], recipe, epoch=0)
        studies = sorted({sequence.study for batch in plan for sequence in batch})
        # Studies that are left out have no say.
        self.loss = losses.build(recipe.loss, labels[studies], store.prepared.outputs)
        self.steps = steps_per_epoch(store.prepared, split["train"], recipe)
        self.updates = Updates(
            self.model,
            self.loss,
            recipe,
            math.ceil(self.steps / recipe.fit.accumulate) * recipe.fit.epochs,
            self.network,
            labels.shape[1],
            at_once=self.together == recipe.fit.accumulate and not recipe.fit.jit,
            distribution=self.distribution,
        )
        self.optimizer = self.updates.optimizer
        self._stream: Iterator | None = None
        self.epoch, self.batch = 0, 0
        self.loss_sum, self.known = 0.0, 0.0
        self.seconds = 0.0
        self.saved, self.saving_seconds = time.monotonic(), 0.0

    def run(self) -> None:
        """Train to the last epoch, or until `fit.patience` runs out; write the best epoch's model.

        Raises:
            Diverged: the loss became NaN or infinite.
            InputError: a study cannot be read, or the saved state not be gone on with.
            Stopped: interrupted with Ctrl-C, or by `stop`.
        """
        self._begin_alike()
        restored = self.restore()
        self.saved = time.monotonic()
        with interrupts(self.stop) as told:

            def interrupted() -> bool:
                return self.distribution.any(told())

            if self.recipe.pretraining and not restored:
                self._pretrain(told)
            try:
                while not self._over():
                    if self.features is not None:
                        self._prepare_features(self.features, told)
                    self._run_epoch(interrupted)
            finally:
                self._stream = None  # and with it the batches that are made ahead
        if self.distribution.chief:
            for variable, value in zip(self.variables, self.best, strict=True):
                variable.assign(value)
            self.save_model()

    def _begin_alike(self) -> None:
        """Let all hosts begin with the chief's weights, which theirs may have read elsewhere."""
        if self.distribution.part != WHOLE:
            self.distribution.check_same("frozen network", str(self.digest))
            self._take([*self.constants, *self.variables], [*self.constants, *self.variables])

    def _take(self, variables: Sequence[keras.Variable], chief_s: Sequence[keras.Variable]) -> None:
        """Give variables the values that others have on the chief."""
        data = self.distribution.from_chief(lambda: bytes_of([v.numpy() for v in chief_s]))
        for variable, value in zip(variables, arrays_of(data), strict=True):
            variable.assign(value)

    def _pretrain(self, interrupted: Callable[[], bool]) -> None:
        rows, model = self.split["train"], self.model
        if self.distribution.devices > 1:  # a copy on one device of the chief's learns
            model, _ = model_and_features(self.recipe, self.store)
        if self.distribution.chief:
            pretrain(model, self.store, rows, self.recipe, self.verbose, interrupted)
        if model is not self.model:
            self._take(self.model.encoder.backbone.variables, model.encoder.backbone.variables)
        if self.distribution.any(interrupted()):
            raise Stopped(f"{self.folder}: stopped in the pretraining; --resume begins it again")

    def _prepare_features(self, features: FeatureStore, interrupted: Callable[[], bool]) -> None:
        rows, distribution = self.split["train"], self.distribution
        validation = features.views.of_evaluation(self.split["validation"])
        with self.going_on():
            features.prepare_training(
                rows, self.epoch, interrupted, distribution.part, distribution.alike
            )
            views = validation if distribution.chief else []
            distribution.alike(lambda: features.prepare(views, interrupted))

    def _batches(self) -> Iterator[tuple[Mapping[str, Any], Any]]:
        """Yield what is left of the epoch; of features, `together` batches as one."""
        rows = self.split["train"]
        if self.features is not None:
            together, part = self.together, self.distribution.part
            yield from self.features.training_batches(rows, self.epoch, self.batch, together, part)
            return
        if self._stream is None:  # through all epochs: none waits for its first batches
            batches = training_batches(
                self.store.prepared,
                rows,
                self.recipe,
                self.epoch,
                self.batch,
                self.store,
                epochs=self.recipe.fit.epochs - self.epoch,
                part=self.distribution.part,
            )
            self._stream = readable(batches, self.store)
        batches = itertools.islice(self._stream, self.steps - self.batch)
        if self.network is None:
            yield from batches
            return
        while group := list(itertools.islice(map(self._featured, batches), self.together)):
            yield join(group)

    def _featured(self, batch: tuple[Mapping[str, tf.Tensor], tf.Tensor]) -> tuple[Any, Any]:
        inputs, labels = batch
        width = self.model.input_signature("features")["features"].shape[-1]
        features = np.zeros((0, inputs["slices"].shape[1], width), np.float32)
        if len(labels):  # of several hosts one may have no part of a small batch
            features = self.updates.extract(inputs["slices"], inputs["lengths"])
        others = {name: v.numpy() for name, v in inputs.items() if name != "slices"}
        return {"features": features, **others}, labels.numpy()

    def _run_epoch(self, interrupted: Callable[[], bool]) -> None:
        recipe, started = self.recipe.fit, time.monotonic()
        before = self.seconds
        bar = self._bar()
        totals: list[tf.Tensor] = []
        for inputs, labels in self._batches():
            totals.append(self.updates.add(inputs, labels))
            self.batch = min(self.batch + self.together, self.steps)
            if self.batch % recipe.accumulate and self.batch < self.steps:
                continue
            total, known = tf.add_n(totals).numpy()
            self._check(total)
            self.updates.apply(known)
            totals.clear()
            self.loss_sum += float(total)
            self.known += float(known)
            bar.update(self.batch, [("loss", self.loss_sum / max(self.known, 1.0))], finalize=False)
            self.seconds = before + time.monotonic() - started
            if interrupted():
                self.save()
                raise Stopped(f"{self.folder}: stopped in epoch {self.epoch + 1}; --resume goes on")
            if time.monotonic() - self.saved > recipe.checkpoint_minutes * 60:
                self.save()
        self.seconds = before + time.monotonic() - started
        self._end_epoch(bar)
        stops = interrupted()
        if stops or self._over() or self._is_time_to_save():
            self.save()
        if stops:
            raise Stopped(f"{self.folder}: stopped after epoch {self.epoch}; --resume goes on")

    def _bar(self) -> keras.utils.Progbar:
        if not self.verbose:
            return keras.utils.Progbar(self.steps, verbose=0)
        print(f"Epoch {self.epoch + 1}/{self.recipe.fit.epochs}")
        shown = ["loss", "val_loss", f"val_{self.recipe.fit.monitor}"]
        verbose = 1 if keras.utils.is_interactive_logging_enabled() and is_interactive() else 2
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
        row: dict[str, float] = self.distribution.json_from_chief(self._row)
        shown = [
            (k, row[k]) for k in ("loss", "val_loss", f"val_{self.recipe.fit.monitor}") if k in row
        ]
        bar.update(self.steps, shown, finalize=True)
        self.note_epoch(row)
        if self.distribution.chief and self.best_epoch() == len(self.history):
            self.best = [variable.numpy() for variable in self.variables]
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum = self.known = self.seconds = 0.0

    def _row(self) -> dict[str, float]:
        """Return what is noted of the epoch that has ended."""
        return {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / max(self.known, 1.0),
            **self._validate(),
            "learning_rate": float(self.updates.rate(self.optimizer.iterations)),
            "seconds": round(self.seconds, 3),
        }

    def best_epoch(self) -> int:
        """Return the number of the best epoch so far: by the monitor, then by validation loss."""
        key = f"val_{self.recipe.fit.monitor}"
        if not self.history or key not in self.history[-1]:
            return len(self.history)
        sign = -1.0 if self.recipe.fit.monitor in MINIMISED else 1.0

        def rank(row: dict[str, float]) -> tuple[float, float]:
            return _or_worst(sign * row[key]), _or_worst(-row["val_loss"])

        return int(max(self.history, key=rank)["epoch"])

    def _over(self) -> bool:
        return self.epoch >= self.recipe.fit.epochs or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.recipe.fit.patience
        if patience is None or not len(self.split["validation"]):
            return False
        return len(self.history) - self.best_epoch() >= patience if self.history else False

    def _is_time_to_save(self) -> bool:
        """Return whether the state after an epoch is worth the time that saving it takes."""
        since = time.monotonic() - self.saved
        minutes = self.recipe.fit.checkpoint_minutes
        return since >= min(60 * minutes, self.saving_seconds / SAVING_SHARE)

    def save(self) -> None:
        """Write the state between two updates, whole or not at all; the chief does."""
        if not self.distribution.chief:
            return
        started = time.monotonic()
        state = {
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": self.loss_sum,
            "known": self.known,
            "seconds": self.seconds,
            "history": self.history,
            "network": self.digest,
        }
        arrays = {f"model_{i}": v.numpy() for i, v in enumerate(self.variables)}
        arrays |= {f"best_{i}": value for i, value in enumerate(self.best)}
        arrays |= {f"optimizer_{i}": v.numpy() for i, v in enumerate(self.optimizer.variables)}
        with atomic(self.folder / CHECKPOINT) as temporary, open(temporary, "wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        self.saved = time.monotonic()
        self.saving_seconds = self.saved - started

    def restore(self) -> bool:
        """Go on from the saved state, if there is one; return whether there was."""
        path = self.folder / CHECKPOINT
        try:
            data = self.distribution.from_chief(
                lambda: path.read_bytes() if path.is_file() else b""
            )
            if not data:
                return False
            with np.load(io.BytesIO(data), allow_pickle=False) as saved:
                state = json.loads(str(saved["state"]))
                self._check_network(path, state.pop("network", None))
                count = len(self.variables) if state["history"] else 0
                best = [saved[f"best_{i}"] for i in range(count)]
                for i, variable in enumerate(self.variables):
                    variable.assign(saved[f"model_{i}"])
                for i, variable in enumerate(self.optimizer.variables):
                    variable.assign(saved[f"optimizer_{i}"])
        except InputError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise InputError(
                f"{path}: is damaged, so the run cannot go on; start anew in another --out"
            ) from None
        self.best = best
        for key, value in state.items():
            setattr(self, key, value)
        return True

    def _check_network(self, path: Path, digest: str | None) -> None:
        if digest != self.digest:
            raise InputError(
                f"{path}: the run began with other weights of the frozen network than are there "
                "now, so it cannot go on; start anew in another --out"
            )


def bytes_of(arrays: Sequence[np.ndarray]) -> bytes:
    """Return arrays as the bytes of one file."""
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


def arrays_of(data: bytes) -> list[np.ndarray]:
    """Return the arrays of `bytes_of`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return [file[name] for name in file.files]


def holds_statistics(variables: list[keras.Variable]) -> bool:
    """Return whether variables hold moving statistics, apart from seeds of dropout."""
    return any(not v.trainable and np.issubdtype(v.dtype, np.floating) for v in variables)


def _or_worst(value: float) -> float:
    return value if value == value else -np.inf
