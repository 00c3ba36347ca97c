"""A network and a run small enough for a test: 32 x 32 slices, two epochs, seconds."""

from __future__ import annotations

from medseq_tf import recipe as recipes
from medseq_tf.training.train import train

SMALL = (
    "input.size=32",
    "model.encoder.filters=[4, 6]",
    "model.encoder.kernels=[5, 3]",
    "model.encoder.strides=[2, 2]",
    "model.encoder.paddings=[0, 0]",
    "model.aggregator.units=6",
    "model.aggregator.layers=1",
    "model.head.units=[4]",
    "sequence.policy=window",
    "sequence.length=6",
    "augment.gaussian_noise.p=0.5",
    "fit.epochs=2",
    "fit.batch_size=4",
)


def run_small(data, out, *overrides, **arguments):
    arguments = {"track": False, "verbose": False, **arguments}
    return train(recipes.Experiment(), data, out, overrides=(*SMALL, *overrides), **arguments)
