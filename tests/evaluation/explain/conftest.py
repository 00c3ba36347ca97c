"""Small runs, and a study before models of random weights."""

from __future__ import annotations

import pytest
import tiny_network
from small_run import SMALL, run_small

from medseq_tf import models
from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.explain.graphs import ModelGraphs
from medseq_tf.evaluation.explain.shown_study import ShownStudy
from medseq_tf.input.slice_store import SliceStore

KERAS = (
    "model.encoder.name=keras_application",
    "model.encoder.network=VGG16",
    "model.encoder.weights=none",
    "input.mean=0",
    "input.std=1",
)
WEIGHTS = {
    "shared": SMALL,
    "per position": (
        *SMALL,
        "model.encoder.weights=per_position",
        "model.encoder.positions=6",
        "sequence.policy=even",
    ),
    "frozen": tuple(s for s in SMALL if "encoder" not in s) + KERAS,
    "small frozen": tiny_network.SETTINGS,
    "mirrored": (*SMALL, "sequence.evaluation.mirrored=true"),
    "attention": (
        *(s for s in SMALL if "aggregator" not in s),
        "model.aggregator.name=attention",
    ),
}


@pytest.fixture(scope="session")
def prepared(demo_data):
    return Prepared.load(demo_data)


@pytest.fixture(scope="session")
def shown_studies(prepared):
    """One study before a model of random weights, by kind of model; made once each."""
    made = {}

    def shown_study(kind):
        if kind not in made:
            recipe = recipes.load(recipes.Experiment(), WEIGHTS[kind])
            with pytest.MonkeyPatch.context() as patch:
                if kind == "small frozen":
                    tiny_network.install(patch)
                model = models.build(recipe.model, (32, 32, 1), labels=1, seed=1)
            graphs = ModelGraphs(model, recipe)
            made[kind] = ShownStudy(graphs, SliceStore(prepared, recipe), 3)
        return made[kind]

    return shown_study


@pytest.fixture(scope="session")
def run(demo_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return run_small(demo_data, out, "fit.epochs=4", "optimizer.learning_rate=0.01")


@pytest.fixture(scope="session")
def class_run(class_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "classes"
    return run_small(class_data, out, "optimizer.learning_rate=0.01")
