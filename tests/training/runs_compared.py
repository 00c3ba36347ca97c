"""Compare the weights of two runs."""

from __future__ import annotations

import numpy as np


def weights(run):
    return [np.asarray(v) for v in run.model().variables]


def assert_same_weights(first, second):
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(a, b)
