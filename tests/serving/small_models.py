"""A network small enough for a test, a description of it, and its recipe."""

from __future__ import annotations

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.records import STORAGE
from medseq_tf.serving.description import Description

SIZE = 24
LABELS = ["a", "b"]
NETWORK = {
    "input.size": 20,
    "model.encoder.filters": [3],
    "model.encoder.kernels": [5],
    "model.encoder.strides": [2],
    "model.encoder.paddings": [0],
    "model.aggregator.units": 4,
    "model.aggregator.layers": 1,
    "model.head.units": [3],
    "sequence.length": 4,
}


def recipe_of(values):
    overrides = values if isinstance(values, list) else [f"{k}={v}" for k, v in values.items()]
    return recipes.load(recipes.Experiment(), overrides)


def description_of(dtype, most_slices=40, labels=LABELS):
    modality = {"uint8": "photograph", "int16": "CT", "uint16": "MR"}[dtype]
    return Description(
        name="a run",
        labels=labels,
        thresholds=dict.fromkeys(labels, 0.5),
        temperatures=dict.fromkeys(labels, 1.0),
        modality=modality,
        unit="any",
        bits=8 if dtype == "uint8" else 16,
        offset=STORAGE[dtype]["offset"],
        size=SIZE,
        aspect="pad",
        most_slices=most_slices,
        preparation={},
    )


def model_of(recipe, seed=0, labels=LABELS):
    """A random model with answers far apart."""
    size = recipe.input.size
    model = models.build(recipe.model, (size, size, recipe.input.channels), len(labels), seed=seed)
    for weight in model.head.trainable_variables:
        weight.assign(4 * weight)
    return model
