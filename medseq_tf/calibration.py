"""Calibration of probabilities: its measures, and temperature scaling."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import optimize, special

from medseq_tf.errors import InputError
from medseq_tf.point_metrics import Array, class_counts, known_studies, ratio
from medseq_tf.proportions import wilson_interval


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


TEMPERATURES = (0.05, 20.0)
"""The least and the greatest that `fit_temperature` gives."""


def fit_temperature(labels: Array, logits: Array) -> float:
    """The temperature T that makes sigmoid(logit / T) most likely (Guo et al. 2017, section 4.2).

    Fitted on validation. The log likelihood is concave in 1 / T, so there is one optimum; it is
    kept within [0.05, 20], where separable or misleading logits would drive it to 0 or infinity.

    Args:
        labels: (studies,) 0, 1 or nan.
        logits: (studies,) before the sigmoid.

    Raises:
        InputError: Only one class.
    """
    labels, logits, _, _ = known_studies(labels, logits, None)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"no temperature can be fitted: {class_counts(labels)}; both classes are needed"
        )

    def slope(inverse: float) -> float:
        """Derivative of the negative log likelihood by 1 / T; it never falls."""
        return float(((special.expit(inverse * logits) - labels) * logits).sum())

    smallest, largest = TEMPERATURES
    if slope(1 / smallest) <= 0:
        return smallest
    if slope(1 / largest) >= 0:
        return largest
    return float(1 / optimize.brentq(slope, 1 / largest, 1 / smallest, xtol=1e-12))


def apply_temperature(logits: Array, temperature: float) -> Array:
    """Probabilities sigmoid(logits / temperature), of the logits' shape."""
    return special.expit(np.asarray(logits, dtype=float) / temperature)


def logits(probabilities: Array) -> Array:
    """Logits of probabilities, which are kept 1e-7 away from 0 and 1, the precision of float32."""
    return special.logit(np.clip(np.asarray(probabilities, dtype=float), 1e-7, 1 - 1e-7))


def scale(probabilities: Array, temperature: float) -> Array:
    """Probabilities after temperature scaling.

    It is increasing, so a threshold that is scaled too gives the same calls.
    """
    return apply_temperature(logits(probabilities), temperature)
