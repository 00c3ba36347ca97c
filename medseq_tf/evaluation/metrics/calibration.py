"""Calibration of probabilities by bins: the reliability curve and the calibration error.

The expected calibration error is above 0 for perfect probabilities too, the more the fewer the
studies, so it means nothing without what perfect ones would have: `null_calibration_error`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseq_tf.evaluation.metrics.point_metrics import Array, known_studies, ratio
from medseq_tf.evaluation.metrics.proportions import wilson_interval


def expected_calibration_error(
    labels: Array, probabilities: Array, bins: int = 10, weights: Array | None = None
) -> Array:
    """Mean over studies of |observed share - mean probability| of their bin (Naeini et al. 2015).

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        bins: Number of bins of equal width.
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        () or (resamples,).
    """
    labels, probabilities, weights, _ = known_studies(
        labels, probabilities, weights, unit_interval=True
    )
    inside = _bin(probabilities, bins)[:, None] == np.arange(bins)
    gaps = np.abs(weights @ (inside * (labels - probabilities)[:, None]))
    return ratio(gaps.sum(axis=-1), weights.sum(axis=-1))


def reliability_curve(labels: Array, probabilities: Array, bins: int = 10) -> pd.DataFrame:
    """Observed share against predicted probability, in bins of equal width.

    Returns:
        One row a bin that holds a study: `low_edge`, `high_edge`, `probability` (mean), `observed`
        (share of positives), `low` and `high` (Wilson's 95% interval of the share), `n`.
    """
    labels, probabilities, _, _ = known_studies(labels, probabilities, None, unit_interval=True)
    index, edges = _bin(probabilities, bins), np.linspace(0, 1, bins + 1)
    n = np.bincount(index, minlength=bins)
    used = np.flatnonzero(n)
    positives = np.bincount(index, labels, bins)[used]
    low, high = wilson_interval(positives, n[used])
    return pd.DataFrame(
        {
            "low_edge": edges[used],
            "high_edge": edges[used + 1],
            "probability": np.bincount(index, probabilities, bins)[used] / n[used],
            "observed": positives / n[used],
            "low": low,
            "high": high,
            "n": n[used],
        }
    )


def _bin(probabilities: Array, bins: int) -> Array:
    """The number of each probability's bin of equal width; 1 belongs to the last."""
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def null_calibration_error(
    probabilities: Array,
    bins: int = 10,
    draws: int = 2000,
    seed: int = 0,
    studies: Array | None = None,
) -> tuple[float, float]:
    """The calibration error that right probabilities would have, by chance alone.

    Labels are drawn from the probabilities themselves, each study by itself.

    Args:
        probabilities: (rows,) in [0, 1].
        bins: As of `expected_calibration_error`.
        draws: Number of draws.
        seed: Of `numpy.random.default_rng`.
        studies: (rows,) ids, where a study stands in several rows, as with repeated folds; None:
            each row is a study.

    Returns:
        The median and the 95th percentile.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    if not len(probabilities):
        return float("nan"), float("nan")
    order = np.argsort(probabilities, kind="stable")
    probabilities = probabilities[order]
    study = np.arange(len(order))
    if studies is not None and len(np.unique(studies)) < len(order):
        study = np.unique(np.asarray(studies)[order], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    drawn = rng.random((draws, study.max() + 1))[:, study] < probabilities
    inside = _bin(probabilities, bins)[:, None] == np.arange(bins)
    gaps = np.abs((drawn - probabilities) @ inside.astype(float)).sum(axis=1) / len(probabilities)
    median, high = np.quantile(gaps, [0.5, 0.95])
    return float(median), float(high)
