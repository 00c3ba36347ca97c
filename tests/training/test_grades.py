"""Grades are learned, by cutpoints no worse than by a softmax that knows no order."""

from __future__ import annotations

import numpy as np
import pytest

from medseq_tf import recipe as recipes
from medseq_tf.dataset.prepare import prepare
from medseq_tf.training.train import train

RECIPE = (
    "input.size=32",
    "model.encoder.filters=[8,8]",
    "model.encoder.kernels=[5,3]",
    "model.encoder.strides=[2,1]",
    "model.encoder.paddings=[0,0]",
    "model.encoder.pooling=average",
    "model.encoder.fsm=null",
    "model.aggregator.name=max",
    "model.head.units=[16]",
    "model.head.dropout=0",
    "optimizer.learning_rate=0.01",
    "fit.epochs=20",
    "fit.batch_size=8",
    "split.test=0.4",
)


@pytest.mark.slow
def test_cutpoints_are_no_worse_than_a_softmax(tmp_path):
    prepare(
        "demo", out=tmp_path / "data", patients=160, size=32, difficulty=0.0, contrast=2.0,
        kind="grades", workers=1, progress=False,
    )  # fmt: skip
    metrics = {}
    for ordered in ("cumulative", "softmax"):
        for seed in (0, 1):
            overrides = (*RECIPE, f"seed={seed}", f"model.ordered={ordered}")
            out = tmp_path / f"{ordered}_{seed}"
            run = train(recipes.Experiment(), tmp_path / "data", out, overrides=overrides,
                        track=False, verbose=False)  # fmt: skip
            table = run.metrics
            table = table[(table["split"] == "test") & (table["label"] == "grade")]
            metrics[ordered, seed] = table.set_index("metric")["value"]
    for values in metrics.values():
        assert values["accuracy"] > 0.5, "three equally frequent grades: chance is a third"
        assert values["kappa_quadratic"] > 0.5
    kappas = {
        ordered: np.mean([metrics[ordered, seed]["kappa_quadratic"] for seed in (0, 1)])
        for ordered in ("cumulative", "softmax")
    }
    assert kappas["cumulative"] > kappas["softmax"] - 0.1, kappas
