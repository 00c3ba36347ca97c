"""A small recipe of a frozen network's features and a linear head that is solved."""

from __future__ import annotations

from medseq_tf import recipe as recipes

SETTINGS = (
    "input.size=32",
    "input.mean=0",
    "input.std=1",
    "model.encoder.name=keras_application",
    "model.encoder.network=MobileNetV3Small",  # `tiny_network`, where that is installed
    "model.encoder.weights=none",
    "model.aggregator.name=statistics",
    "model.head={units: [], dropout: 0}",
    "sequence.policy=all",
    "sequence.evaluation.policy=all",
    "fit.solver=lbfgs",
)


def linear_recipe(*overrides):
    return recipes.load(recipes.Experiment(), [*SETTINGS, *overrides])
