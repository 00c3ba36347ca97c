"""Temperature scaling: logits divided by one number, fitted on validation (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.point_metrics import Array, class_counts, known_studies

TEMPERATURES = (0.05, 20.0)
"""The least and the greatest that `fit_temperature` gives."""

LOG_TEMPERATURE_SPREAD = 0.5
"""Standard deviation of the normal prior of log T, whose mean is 0."""

LEAST_GAIN = 0.5
"""By how much a temperature's log posterior has to exceed that of 1 to be taken instead."""


def fit_temperature(labels: Array, logits: Array) -> float:
    """Fit the temperature T of sigmoid(logit / T) (Guo et al. 2017, section 4.2), by its posterior.

    Fitted on validation: the most likely T under the prior log T ~ N(0, 0.5^2), and 1 where its log
    posterior is less than 0.5 above that of 1. Without a prior, a model that is right is made worse
    by what few studies happen to show, and studies that are told apart without error drive T to 0;
    with it T is below 1 there. Of many studies the prior says nothing.

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
    margins = (2 * labels - 1) * logits

    def loss(log_temperature: Array | float) -> Array:
        """Negative log posterior (temperatures,), but for a constant."""
        scaled = margins * np.exp(-np.asarray(log_temperature))[..., None]
        prior = (log_temperature / LOG_TEMPERATURE_SPREAD) ** 2 / 2
        return np.logaddexp(0, -scaled).sum(axis=-1) + prior

    grid = np.linspace(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]), 241)
    near = grid[np.argmin(loss(grid))]
    step = grid[1] - grid[0]
    bounds = (max(near - step, grid[0]), min(near + step, grid[-1]))
    best = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    apart = logits[labels == 1].min() >= logits[labels == 0].max()
    if loss(0.0) - best.fun < LEAST_GAIN and not apart:
        return 1.0
    return float(np.exp(best.x))


def logits(probabilities: Array) -> Array:
    """The logits of probabilities, kept 1e-7 away from 0 and 1, the precision of float32."""
    return special.logit(np.clip(np.asarray(probabilities, dtype=float), 1e-7, 1 - 1e-7))


def scale(probabilities: Array, temperature: float) -> Array:
    """Scale probabilities by a temperature: sigmoid(logit / temperature).

    It is increasing, so a threshold that is scaled too gives the same calls.
    """
    return special.expit(logits(probabilities) / temperature)
