"""Score intervals of figures in [0, 1], such as recall or the Brier score, and of their sums.

A share of independent studies has Wilson's interval. Every other figure gets Wilson's interval of a
share with the same variance: `effective_interval`. Figures are added and subtracted with their
intervals by `combine`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from medseq_tf.evaluation.metrics.point_metrics import TAILS, Array


def wilson_interval(count: ArrayLike, n: ArrayLike) -> tuple[Array, Array]:
    """Wilson's score interval (1927) of a share `count / n` of independent observations, n > 0.

    The shares p from which the observed one is no farther than z standard errors sqrt(p(1 - p)/n).
    """
    z = stats.norm.ppf(TAILS[1])
    count, n = np.asarray(count, dtype=float), np.asarray(n, dtype=float)
    centre = (count + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(np.maximum(count * (n - count), 0) / n + z**2 / 4)
    low = np.where(count <= 0, 0.0, np.clip(centre - half, 0, 1))
    high = np.where(count >= n, 1.0, np.clip(centre + half, 0, 1))
    return low[()], high[()]


def shrunk_ratio(variance: float, model: float, value: float, patients: float) -> float:
    """The ratio of an estimated variance to a model's, drawn towards 1 where little is known.

    Near 0 and 1 few patients differ, so that an estimated variance is itself a guess, and 0 at the
    very end. The weight of the estimate is `4 value (1 - value)` times the number of patients, for
    a figure `value` in [0, 1], that of the model is one patient.
    """
    weight = 4 * value * (1 - value) * patients
    return float((weight * variance / model + 1) / (weight + 1)) if weight > 0 else 1.0


def effective_interval(value: float, variance: float, patients: float) -> tuple[float, float]:
    """Wilson's interval of a share of as many patients as give a figure's variance."""
    model = value * (1 - value) / patients
    ratio = shrunk_ratio(variance, model, value, patients)
    size = patients / max(ratio, 1e-12)
    low, high = wilson_interval(value * size, size)
    return float(low), float(high)


def combine(
    coefficients: Array, values: Array, lows: Array, highs: Array, correlation: Array
) -> tuple[float, float, float]:
    """The interval of a sum of figures from their own (MOVER: Zou and Donner 2008).

    The distances from the figures to their bounds take the place of standard errors, so that the
    sum's interval is as lopsided as theirs. For the difference of two shares it is Newcombe's
    (1998, method 10). All arguments are (figures,), `correlation` that of their estimates,
    (figures, figures).

    Returns:
        The sum, its lower and its upper bound.
    """
    coefficients, values = np.asarray(coefficients, float), np.asarray(values, float)
    down, up = values - np.asarray(lows, float), np.asarray(highs, float) - values
    below = coefficients * np.where(coefficients > 0, down, up)
    above = coefficients * np.where(coefficients > 0, up, down)
    total = float(coefficients @ values)
    low, high = (np.sqrt(max(side @ correlation @ side, 0.0)) for side in (below, above))
    return total, float(total - low), float(total + high)


def correlation(influences: Array) -> Array:
    """Correlation (figures, figures) of figures from their (figures, patients) influences.

    It is 0 between two figures of which one does not vary.
    """
    influences = np.asarray(influences, float)
    centred = influences - influences.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T
    spread = np.sqrt(np.diag(covariance))
    scale = np.outer(spread, spread)
    result = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-300)
    np.fill_diagonal(result, 1.0)
    return np.clip(result, -1, 1)


def cautious_correlation(influences: Array) -> Array:
    """The correlation drawn towards 0, the more the fewer patients decide a figure.

    Of a figure that varies by few of them, such as a log loss by those it is wrong about, it is a
    guess: their number is (sum i^2)^2 / sum i^4 of the influences i, one patient's weight is taken
    off.
    """
    squares = np.asarray(influences, float) ** 2
    fourth = (squares**2).sum(axis=1)
    deciding = np.divide(
        squares.sum(axis=1) ** 2, fourth, out=np.ones(len(squares)), where=fourth > 0
    )
    result = correlation(influences) * (1 - 1 / deciding.min())
    np.fill_diagonal(result, 1.0)
    return result
