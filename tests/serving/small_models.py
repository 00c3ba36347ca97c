"""A network small enough for a test, a description of it, and its recipe.

What a model tells of a study is as in `readers.classes.OUTPUTS`: yes or no to each of the `LABELS`,
or one of the `CLASSES` of classes.
"""

from __future__ import annotations

import numpy as np

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.records import STORAGE
from medseq_tf.readers.classes import Classes
from medseq_tf.readers.series import Series
from medseq_tf.readers.study import Slices, StudySource
from medseq_tf.serving.description import Description
from medseq_tf.serving.member_group import ServedMember

SIZE = 24
LABELS = ["a", "b"]
CLASSES = ["glioma", "meningioma", "pituitary"]
COLUMN, TEMPERATURE = "tumour", 1.7
COVARIATES = [
    {"name": "age", "kind": "number"},
    {"name": "sex", "kind": "category", "categories": ["F", "M"]},
]
SERIES = Series(("axial", "coronal"), "sequence")
WITH_COVARIATES = {"model.covariates": ["age", "sex"]}
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


def names_of(outputs):
    return LABELS if outputs == "labels" else CLASSES


def description_of(dtype, most_slices=40, outputs="labels", **changes):
    modality = {"uint8": "photograph", "int16": "CT", "uint16": "MR"}[dtype]
    labels = names_of(outputs)
    if outputs == "labels":
        calls = {
            "temperatures": dict.fromkeys(labels, 1.0),
            "thresholds": dict.fromkeys(labels, 0.5),
        }
    else:
        classes = Classes(COLUMN, tuple(labels), outputs == "ordered")
        calls = {"temperatures": {COLUMN: TEMPERATURE}, "thresholds": {}, "classes": classes}
    return Description(
        name="a run",
        labels=labels,
        **calls,
        modality=modality,
        unit="any",
        bits=8 if dtype == "uint8" else 16,
        offset=STORAGE[dtype]["offset"],
        size=SIZE,
        aspect="pad",
        most_slices=most_slices,
        preparation={},
        **changes,
    )


def model_of(recipe, seed=0, outputs="labels"):
    """A random model with answers far apart."""
    shape = (recipe.input.size, recipe.input.size, recipe.input.channels)
    count = len(names_of(outputs))
    known = {covariate["name"]: covariate for covariate in COVARIATES}
    model = models.build(
        recipe.model,
        shape,
        count,
        seed=seed,
        outputs=outputs,
        covariates=known,
        series=SERIES.names if recipe.model.series_mark else (),
    )
    if recipe.model.series_mark:
        marks = np.random.default_rng(seed).normal(size=model.series_mark.marks.shape)
        model.series_mark.marks.assign(marks)
    if recipe.model.covariates:
        model.covariates.standardise(np.float32([[20, 0], [80, 1]]))
        model.covariates.missing.assign([0.5, 0.25, -0.5])
    for weight in model.head.trainable_variables:
        weight.assign(4 * weight)
    return model


def members_of(models, recipe):
    """Models of one recipe, each as much as any other."""
    return [ServedMember(model, recipe, 1 / len(models)) for model in models]


class Drawn(StudySource):
    """A study of images that are there."""

    def __init__(self, images):
        super().__init__("drawn", "nobody", {}, None)
        object.__setattr__(self, "images", images)

    def read(self):
        return Slices(self.images)


class InMemory(Prepared):
    """A prepared data set whose records stand in its table."""

    def record(self, row):
        return self.studies["record"].iat[row]
