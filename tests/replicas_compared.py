"""What several devices make of the same batches as one, by case, as JSON; a process of its own.

The processor has to be divided before TensorFlow is used, so none of this can be in the tests'.

    python tests/replicas_compared.py DATA CASE ...
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from small_run import SMALL

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Stopped
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import applications
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training.distribution import Distribution, distribution_for
from medseq_tf.training.loop import Fitter

FIT = ("fit.epochs=1", "fit.batch_size=8", "augment.gaussian_noise.p=0.5")
SGD = ("optimizer.name=sgd", "optimizer.learning_rate=0.1", "optimizer.weight_decay=0")
PADDED = ("sequence.policy=all", "sequence.length=9")
"""Sequences of the studies' own lengths, of up to 9 slices."""
DROPOUT = ("model.encoder.dropout=0.2", "model.aggregator.dropout=0.2", "model.head.dropout=0.2")
VECTORS = (*SMALL[:5], "model.encoder.pooling=average", "model.head.units=[]")
NETWORK = (
    "model.encoder.name=keras_application",
    "model.encoder.network=MobileNetV3Small",  # `network`, where that is installed
    "model.encoder.weights=none",
    "model.encoder.dense=[{units: 5}]",
    "model.aggregator.units=6",
    "model.aggregator.layers=1",
    "input.size=32",
    "input.mean=0",
    "input.std=1",
)
SEGMENTER = (
    "input.size=32",
    "model.encoder.name=segmenter",
    "model.encoder.width=4",
    "model.aggregator.name=sum",
    "loss.name=dice_cross_entropy",
    "fit.monitor=dice",
    "sequence.policy=even",
    "sequence.length=4",
)


@dataclass(frozen=True)
class Case:
    """Settings, how many studies to train on, how many devices to, and further rows to validate."""

    overrides: tuple[str, ...]
    studies: int = 5
    devices: int = 2
    validated: int = 0


CASES = {
    "conv_fsm": Case((*SMALL, *FIT, *SGD, *PADDED, *DROPOUT, "optimizer.clip_norm=0.1")),
    "fewer studies than devices": Case(
        (*VECTORS, *FIT, *SGD, *PADDED, "model.aggregator.name=mean", "model.encoder.dropout=0.2")
        + ("model.encoder.fsm=null", "optimizer.clip_norm=0.1"),
        studies=2,
        devices=3,
    ),
    "per_position": Case(
        (*SMALL, *FIT, *SGD, "model.encoder.weights=per_position", "model.encoder.positions=6")
    ),
    "accumulated": Case((*SMALL, *FIT, *SGD, *PADDED, "fit.batch_size=2", "fit.accumulate=8"), 11),
    "mixed": Case((*SMALL, *FIT, *SGD, "fit.precision=mixed_float16", "fit.epochs=4")),
    "an epoch": Case((*SMALL, *FIT, *SGD, *PADDED, *DROPOUT, "fit.batch_size=4"), 22, 2, 10),
    "an epoch on three": Case(
        (*SMALL, *FIT, *SGD, *PADDED, *DROPOUT, "fit.batch_size=4"), 22, 3, 10
    ),
    "an epoch of Adam": Case((*SMALL, *FIT, *PADDED, *DROPOUT, "fit.batch_size=4"), 22, 2, 10),
    "pretrained": Case(
        (*SMALL, *FIT, *SGD, "model.encoder.paddings=[2, 1]", "model.encoder.filters=[8, 12]")
        + ("model.encoder.pooling=lesion_map", "model.encoder.fsm=null")
        + ("pretraining.steps=3", "pretraining.slices=4", "pretraining.frozen=false"),
        studies=8,
    ),
    "mean": Case((*VECTORS, *FIT, *SGD, *PADDED, "model.aggregator.name=mean")),
    "attention": Case((*VECTORS, *FIT, *SGD, *PADDED, "model.aggregator.name=attention")),
    "transformer": Case((*VECTORS, *FIT, *SGD, *PADDED, "model.aggregator.name=transformer")),
    "slice_scores": Case((*VECTORS, *FIT, *SGD, *PADDED, "model.aggregator.name=slice_scores")),
    "cnn_3d": Case(
        (
            *("input.size=32", "model.encoder.name=pixels", "model.aggregator.name=cnn_3d"),
            *("model.aggregator.depth=8", "model.aggregator.filters=[3, 4]"),
            *(*FIT, *SGD, *PADDED),
        )
    ),
    "keras_application": Case(
        (*NETWORK, *FIT, *SGD, *PADDED, *DROPOUT, "model.encoder.frozen=none")
    ),
    "frozen": Case(
        (*NETWORK, *FIT, *SGD, *PADDED, *DROPOUT)
        + ("model.encoder.frozen=all", "fit.batch_size=2", "fit.accumulate=3")
    ),
    "handcrafted": Case(
        (
            *FIT,
            *SGD,
            *PADDED,
            *NETWORK[-3:],
            "model.encoder.name=handcrafted",
            "model.aggregator.name=mean",
        )
    ),
    "unet": Case(
        (*SEGMENTER, *FIT, *SGD, "model.encoder.network=unet", "optimizer.learning_rate=0.03")
    ),  # through so many normalisations of few pixels rounding grows, in proportion to the rate
}
"""An update each, by plain gradient descent, which hides no wrong factor; or an epoch."""


def network(name, output, input_shape, weights=None, seed=None):
    """One convolution, with Keras's own batch normalisation, and a drop of whole maps."""
    slices = keras.Input(input_shape)
    kernel = keras.initializers.RandomNormal(stddev=0.003, seed=seed or 0)
    maps = keras.layers.Conv2D(6, 5, 4, kernel_initializer=kernel)(slices)
    maps = keras.layers.BatchNormalization(momentum=0.9)(maps)
    maps = keras.layers.Dropout(0.3, noise_shape=(None, 1, 1, 1))(keras.layers.ReLU()(maps))
    model = keras.Model(slices, keras.layers.GlobalAveragePooling2D()(maps))
    applications.seed_dropout(model.layers, seed)
    return model, model.layers


def fitted(prepared: Prepared, case: Case, distribution: Distribution) -> Fitter:
    """Return what trained a case."""
    recipe = recipes.load(recipes.Experiment(), case.overrides)
    rows = np.arange(case.studies + case.validated)
    split = {"train": rows[: case.studies], "validation": rows[case.studies :]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, tracker = SliceStore(prepared, recipe), Tracker(folder, "x", enabled=False)
        made = Fitter(recipe, store, split, folder, tracker, False, distribution=distribution)
        made.start = [variable.numpy() for variable in made.model.trainable_variables]
        made.run()
    return made


def compared(prepared: Prepared, case: Case) -> dict[str, Any]:
    """Return how far several devices are from one, and from each other."""
    started = time.monotonic()
    several = distribution_for(case.devices, recipes.load(recipes.Experiment(), case.overrides))
    one, many = (fitted(prepared, case, d) for d in (Distribution(), several))
    again = fitted(prepared, case, several) if case.validated else many
    weights = [[v.numpy() for v in made.model.variables] for made in (one, many, again)]
    copies = [[np.asarray(copy) for copy in v.value.values] for v in many.model.variables]

    def furthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))

    return {
        "updates": [int(made.optimizer.iterations.numpy()) for made in (one, many)],
        "weights": furthest(weights[0], weights[1]),
        "moved": furthest([v.numpy() for v in one.model.trainable_variables], one.start),
        "losses": [
            [row.get(k, 0.0) for k in ("loss", "val_loss")]
            for m in (one, many)
            for row in m.history
        ],
        "again": all(map(np.array_equal, weights[1], weights[2])),
        "copies": [len(values) for values in copies],
        "alike": all(np.array_equal(values[0], v) for values in copies for v in values),
        "seconds": round(time.monotonic() - started, 1),
    }


def resumed(prepared: Prepared) -> dict[str, Any]:
    """Return the losses of two epochs on one device; and of one on two, gone on with on one."""
    case = CASES["an epoch"]
    recipe = recipes.load(recipes.Experiment(), [*case.overrides, "fit.epochs=2"])
    rows = np.arange(case.studies + case.validated)
    split = {"train": rows[: case.studies], "validation": rows[case.studies :]}
    losses = []
    for plan in ((1,), (2, 1)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for devices in plan:
                made = Fitter(
                    recipe,
                    SliceStore(prepared, recipe),
                    split,
                    folder,
                    Tracker(folder, "x", enabled=False),
                    verbose=False,
                    stop=(folder / "history.csv").is_file if devices > 1 else lambda: False,
                    distribution=distribution_for(devices, recipe),
                )
                with contextlib.suppress(Stopped):
                    made.run()
        losses.append([[row["loss"], row["val_loss"]] for row in made.history])
    return {"losses": losses}


if __name__ == "__main__":
    distribution_for(3, recipes.Experiment())  # before TensorFlow is used
    applications.network = network
    data = Prepared.load(Path(sys.argv[1]))
    for name in sys.argv[2:]:
        found = resumed(data) if name == "resumed" else compared(data, CASES[name])
        print(json.dumps({"case": name, **found}), flush=True)
