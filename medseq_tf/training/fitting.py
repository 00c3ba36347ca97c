"""What every training of one run does: its model is made, validated, noted and saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from medseq_tf.dataset.covariate_values import covariate_values
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import Stopped
from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.inference import study_predictions
from medseq_tf.evaluation.scoring import point_metrics
from medseq_tf.files import atomic
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import losses
from medseq_tf.readers.classes import LABELS
from medseq_tf.recipe import Experiment
from medseq_tf.runs.tracking import AnyTracker
from medseq_tf.training.beginning import model_and_features
from medseq_tf.training.distribution import Distribution


class Fitting:
    """A recipe's model for a data set, and what its training leaves in the run folder.

    Args:
        recipe: the recipe.
        store: the prepared data set's slices.
        split: rows of the prepared data set, by `train`, `validation` and perhaps `test`.
        folder: the run folder.
        tracker: where figures go.
        verbose: show progress.
        features: the folder for stored features, or a `FeaturePlace`; None: in memory alone.
        stop: asked after every update; once true, training stops as after Ctrl-C.
        distribution: the devices to train on; default: one.

    Attributes:
        model: the `SequenceClassifier`.
        features: its `FeatureStore`, or None.
        constants: the variables that standardise covariates, which never change.
        loss: the training loss, which those that train or solve set.
        history: what is noted of each epoch.
    """

    loss: losses.KnownLoss

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
        self.recipe, self.store, self.split = recipe, store, split
        self.folder, self.tracker, self.verbose = folder, tracker, verbose
        self.stop = stop
        self.distribution = distribution or Distribution()
        with self.distribution.scope():
            self.model, self.features = model_and_features(recipe, store, features, verbose)
        self.constants = self._standardise()
        self.history: list[dict[str, float]] = []

    def _standardise(self) -> list[keras.Variable]:
        """Take the covariates' constants from the training studies; return them."""
        layer = self.model.covariates
        if layer is None:
            return []
        values = covariate_values(self.store.prepared, layer.names)
        layer.standardise(values[self.split["train"]])
        return list(layer.non_trainable_variables)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Say of a block that was stopped that the run can go on."""
        try:
            yield
        except Stopped as stop:
            raise Stopped(f"{self.folder}: {stop}; --resume goes on") from None

    def _validate(self) -> dict[str, float]:
        rows = self.split["validation"]
        if len(rows) == 0:
            return {}
        predictions = study_predictions(self.model, self.store, rows, self.recipe, self.features)
        labels, outputs = self.store.prepared.labels[rows], self.store.prepared.outputs
        values = epoch_metrics(labels, predictions.probabilities, self.loss, outputs)
        if predictions.pixels is not None:
            means = metrics.pixel_metrics(*predictions.pixels.T)
            values["loss"] = predictions.loss
            values |= {name: float(means[name]) for name in metrics.PIXEL_METRICS}
        return {f"val_{k}": v for k, v in values.items()}

    def note_epoch(self, row: dict[str, float]) -> None:
        """Keep and log what there is to say of an epoch, by name, its number among it."""
        self.history.append(row)
        if not self.distribution.chief:
            return
        with atomic(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.history).to_csv(temporary, index=False)
        figures = {name: value for name, value in row.items() if name != "epoch"}
        self.tracker.metrics(figures, step=int(row["epoch"]))

    def save_model(self) -> None:
        """Write the model, whole or not at all."""
        with atomic(self.folder / "model.keras") as temporary:
            self.model.save(temporary)


def epoch_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    loss: losses.LabelLoss | losses.ClassLoss | losses.PixelLoss,
    outputs: str = LABELS,
) -> dict[str, float]:
    """Return the loss and, as means over the labels, the metrics at a threshold of 0.5.

    Args:
        labels: `(studies, labels)`, NaN where unknown.
        probabilities: `(studies, labels)`, NaN for a study that was left out.
        loss: the training loss; that of pixels says nothing of probabilities.
        outputs: what the labels are; the metrics of classes are of all of them together.
    """
    kept = ~np.isnan(probabilities).any(1)
    if isinstance(loss, losses.PixelLoss):
        return point_metrics(labels[kept], probabilities[kept])
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    logits = np.log(clipped) - np.log1p(-clipped)
    elements, known = loss.elementwise(labels[kept], logits[kept])
    count = float(np.sum(known))
    values = {"loss": float(np.sum(elements)) / count if count else float("nan")}
    return values | point_metrics(labels[kept], probabilities[kept], outputs=outputs)


@contextmanager
def interrupts(stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Collect Ctrl-C instead of raising, so that an update is never cut in two; twice raises.

    What is yielded tells whether it came, or `stop` says so.
    """
    caught: list[bool] = []

    def interrupted() -> bool:
        return bool(caught) or stop()

    def note(signum: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(True)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: KeyboardInterrupt cannot come here either
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
