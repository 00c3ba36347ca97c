"""The views of studies that training is shown, and the names under which their features are kept.

Training on an augmented study draws on `features.views` variants of it; it is evaluated by its
plain slices, and by them mirrored where the recipe says so. A view is augmented as one sequence;
what is drawn for it depends on the recipe's seed, the study's slices, the view's number and the
generation (`features.redraw`), nothing else.

A name is the SHA-256 of everything that the features depend on: the encoded slices and which of
them are shown, the input settings, the augmentation and the seed of its draw, the network and its
weights, the dtype and the versions of what computes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

from medseq_tf import __version__
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.input.batches import training_plan
from medseq_tf.input.sampling import (
    StudySequence,
    evaluation_sequences,
    study_key,
    study_sequences,
)
from medseq_tf.recipe import Augment, Experiment, Flip

FORMAT_VERSION = 1
"""To be raised with every change to this package's own code that changes features."""

_VIEWS = 3
"""A random stream of (seed, epoch) besides those of `sampling`."""

Draw = tuple[int, int] | None
"""(generation, view) of an augmented study; None: its plain slices."""

MIRRORED: Draw = (-1, 0)
"""The plain slices mirrored left-right, which are of no generation."""

View = tuple[int, Draw]
"""Row of the prepared data set and draw."""


def frozen_network(model: Any) -> Any:
    """Return the layer that makes a model's features of slices, if it is frozen whole, else None.

    That is a network of `keras.applications`, or a layer without weights.
    """
    layer = getattr(getattr(getattr(model, "encoder", None), "backbone", None), "layer", None)
    return layer if getattr(layer, "frozen", None) == "all" else None


def weights_digest(network: Any) -> str:
    """Return the SHA-256 of a network's weights: their shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in network.weights:
        values = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{values.dtype.str} {values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


class FeatureViews:
    """The views that a recipe draws of the studies of a data set, and their names.

    Args:
        prepared: the data set.
        experiment: the recipe.
        network: a network that is frozen whole.
        slice_shape: of its input, before what it does to grey slices.

    Attributes:
        made_by: JSON of all that the names of all features are made of, beside the studies' slices
            and views.
    """

    def __init__(
        self,
        prepared: Prepared,
        experiment: Experiment,
        network: Any,
        slice_shape: Sequence[int],
    ):
        self.prepared, self.experiment = prepared, experiment
        self._contents: dict[int, bytes] = {}
        self._shown: dict[int, np.ndarray] = {}
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        tf32 = on_gpu and tf.config.experimental.tensor_float_32_execution_enabled()
        libraries = (tf, keras, cv2, np)
        self.made_by = json.dumps(
            {
                "format": FORMAT_VERSION,
                "versions": [__version__, *(library.__version__ for library in libraries)],
                "machine": [
                    platform.machine(),
                    on_gpu,
                    tf32,
                    os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
                ],
                "storage": prepared.info["storage"],
                "input": experiment.input.model_dump(mode="json"),
                "network": [*network.made_by, list(slice_shape)],
                "precision": network.dtype_policy.name,
                "weights": weights_digest(network),
                "dtype": np.dtype(experiment.features.dtype).name,
            },
            sort_keys=True,
        )

    @property
    def augmented(self) -> bool:
        """Whether training is shown anything but plain slices."""
        return self.experiment.augment != Augment()

    def generation(self, epoch: int) -> int:
        """Return which draw of the views an epoch belongs to."""
        redraw = self.experiment.features.redraw
        return epoch // redraw if redraw else 0

    def draw(self, epoch: int, sequence: StudySequence) -> Draw:
        """Return the view that a sequence shows in an epoch, drawn for it alone."""
        if not self.augmented:
            return None
        study = study_key(self.prepared.studies["study_id"].iat[sequence.study])
        rng = np.random.default_rng([self.experiment.seed, epoch, _VIEWS, study, sequence.number])
        return self.generation(epoch), int(rng.integers(self.experiment.features.views))

    def of_generation(self, rows: Sequence[int] | np.ndarray, epoch: int) -> set[View]:
        """Return all views that will be drawn from an epoch to the next redraw."""
        settings = self.experiment.features
        views: set[View] = set()
        end = self.experiment.fit.epochs
        if settings.redraw:
            end = min(end, (self.generation(epoch) + 1) * settings.redraw)
        per_study = settings.views if self.augmented else 1
        for number in range(epoch, end):
            plan = training_plan(self.prepared, rows, self.experiment, number)
            shown = [sequence for batch in plan for sequence in batch]
            views |= {(sequence.study, self.draw(number, sequence)) for sequence in shown}
            if len(views) == per_study * len({sequence.study for sequence in shown}):
                break  # each view of each study
        return views

    def of_evaluation(
        self, rows: Iterable[int], experiment: Experiment | None = None
    ) -> list[View]:
        """Return all views that studies are evaluated by, as `experiment` says, or the recipe."""
        mirrored = (experiment or self.experiment).sequence.evaluation.mirrored
        draws = [None, MIRRORED][: 1 + mirrored]
        return [(int(row), draw) for row in rows for draw in draws]

    def shown(self, row: int) -> np.ndarray:
        """Return which slices of the study at `row` the recipe ever shows, (L,) in scan order.

        Where it always shows the same ones, as of long studies that are thinned, features of the
        others are not needed.
        """
        length = int(self.prepared.studies["slices"].iat[row])
        if length not in self._shown:
            self._shown[length] = self._shown_of(length)
        return self._shown[length]

    def _shown_of(self, length: int) -> np.ndarray:
        sequence, solver = self.experiment.sequence, self.experiment.fit.solver
        read = evaluation_sequences(length, sequence)
        if solver != "lbfgs":  # which learns from a study as it is evaluated
            if sequence.policy not in ("all", "even"):
                return np.arange(length)
            read += study_sequences(length, sequence, np.random.default_rng(0))
        return np.unique(np.concatenate(read))

    def augmentation(self, draw: Draw) -> Augment:
        """Return how a view is augmented."""
        if draw is None:
            return Augment()
        return Augment(flip=Flip(p=1.0)) if draw == MIRRORED else self.experiment.augment

    def seed(self, row: int, draw: Draw) -> np.ndarray:
        """Return the seed, int32 (2,), of all that is drawn for a view."""
        if draw in (None, MIRRORED):
            return np.zeros(2, np.int32)
        study = int.from_bytes(self._content(row), "big")
        words = np.random.SeedSequence([self.experiment.seed, *draw, study])
        return words.generate_state(2).view(np.int32)

    def key(self, row: int, draw: Draw = None) -> str:
        """Return the name of the features of the study at `row`, in one view or plain."""
        view: list[Any] | None = None
        if draw is not None:
            augment = self.augmentation(draw).model_dump_json()
            view = [augment, self.seed(row, draw).tolist()]
        shown = self.shown(row)
        if len(shown) < self.prepared.studies["slices"].iat[row]:
            view = [view, shown.tolist()]
        material = f"{self.made_by}\n{json.dumps(view)}\n".encode() + self._content(row)
        return hashlib.sha256(material).hexdigest()

    def _content(self, row: int) -> bytes:
        """Return the SHA-256 of a study's encoded slices."""
        if row not in self._contents:
            digest = hashlib.sha256()
            for png in self.prepared.encoded_slices(row):
                digest.update(len(png).to_bytes(8, "big"))
                digest.update(png)
            if self.prepared.series is not None:  # which decides on percentiles and neighbours
                digest.update(self.prepared.series_of(row).tobytes())
            self._contents[row] = digest.digest()
        return self._contents[row]
