"""Intervals of proportions, such as recall, specificity and precision."""

from __future__ import annotations

import numpy as np
from scipy import stats

from medseq_tf.point_metrics import Array


def wilson_interval(count: Array, n: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Wilson's score interval (1927) of a share `count / n` of independent observations, n > 0."""
    z = stats.norm.ppf((1 + confidence) / 2)
    count, n = np.asarray(count, dtype=float), np.asarray(n, dtype=float)
    centre = (count + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(count * (n - count) / n + z**2 / 4)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
