"""Stores of features of a tiny network, and processes that fill a folder with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny_network

from medseq_tf import models
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.input.slice_store import SliceStore

ROWS = np.arange(10)
VARIED = ("augment.gaussian_noise.p=0.7", "augment.flip.p=0.5")


def build(experiment):
    shape = (experiment.input.size, experiment.input.size, experiment.input.channels)
    return models.build(experiment.model, shape, labels=1, seed=experiment.seed)


def make(prepared, *overrides, folder=None, **arguments):
    """A store of a recipe with these settings."""
    experiment = tiny_network.recipe(*overrides)
    slices = SliceStore(prepared, experiment)
    return FeatureStore(build(experiment), slices, experiment, folder, **arguments)


def plain(rows=ROWS):
    return [(int(row), None) for row in rows]


def entries(folder):
    return sorted(path for path in folder.glob("*/*") if not path.name.startswith("."))


FILL = """
import os, signal, sys
from pathlib import Path
import numpy as np
import tiny_network
from medseq_tf import models
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.input.slice_store import SliceStore
tiny_network.install()
recipe = tiny_network.recipe()
model = models.build(recipe.model, (32, 32, 1), labels=1, seed=0)
prepared = Prepared.load(sys.argv[1])
slices, folder = SliceStore(prepared, recipe), Path(sys.argv[2])
store = FeatureStore(model, slices, recipe, folder)
dies_at, fsync, count = int(sys.argv[3]), os.fsync, 0
def sync(file):
    global count
    count += 1
    if count == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = sync
store.prepare([(row, None) for row in range(20)])
"""


def filling(prepared, folder, dies_at=0):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", FILL, str(prepared.path), str(folder), str(dies_at)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
