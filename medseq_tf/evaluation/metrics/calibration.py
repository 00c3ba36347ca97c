"""Calibration of probabilities: in three numbers, by bins, and by temperature scaling.

O/E, intercept and slope are the first things to look at (Van Calster et al. 2016, 2019): whether as
many studies are positive as the probabilities say; by how much their logits are too low in all; and
whether they are too extreme (slope below 1) or too timid (above). The expected calibration error is
above 0 for perfect probabilities too, the more the fewer the studies, so it means nothing without
what perfect ones would have: `null_calibration_error`. Temperature scaling divides logits by one
number, fitted on validation (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.point_metrics import (
    CONFIDENCE,
    TAILS,
    Array,
    class_counts,
    class_limits,
    known_studies,
    owners_of,
    ratio,
)
from medseq_tf.evaluation.metrics.proportions import effective_interval, wilson_interval
from medseq_tf.evaluation.metrics.resampling import variance_of_mean

TEMPERATURES = (0.05, 20.0)
"""The least and the greatest that `fit_temperature` gives."""

LOG_TEMPERATURE_SPREAD = 0.5
"""Standard deviation of the normal prior of log T, whose mean is 0."""

LEAST_GAIN = 0.5
"""By how much a temperature's log posterior has to exceed that of 1 to be taken instead."""


# ------------------------------------------------------------------------------- three numbers


def observed_expected(
    labels: Array, probabilities: Array, patients: Array | None = None
) -> Estimate:
    """O/E: the share of positive studies over the mean probability; 1 is right.

    Its interval is that of the share of as many patients as give the variance of the ratio.
    """
    known = _KnownStudies.of(labels, probabilities, patients)
    expected = known.probabilities.mean() if len(known.labels) else 0.0
    if expected == 0:
        return Estimate(note="no study, or no probability above 0")
    observed = float(known.labels.mean())
    rest = known.labels - observed / expected * known.probabilities
    variance = variance_of_mean(rest, known.owners)
    low, high = effective_interval(observed, variance, known.patients)
    value, low, high = (float(share / expected) for share in (observed, low, high))
    return Estimate(value, low, high)


def calibration_intercept(
    labels: Array, probabilities: Array, patients: Array | None = None
) -> Estimate:
    """Calibration in the large: what is to be added to all logits; 0 is right.

    The maximum likelihood of sigmoid(logit + a), with the interval of the score test. Where
    patients have several studies, its variance is that over patients.
    """
    known = _KnownStudies.of(labels, probabilities, patients)
    if known.limits:
        return Estimate(note="; ".join(known.limits))

    def excess(added: float, z: float, effect: float = 1.0) -> float:
        """How far the observed count lies above the expected one, less z standard errors."""
        expected = special.expit(known.logits + added)
        spread = np.sqrt(effect * (expected * (1 - expected)).sum())
        return float((known.labels - expected).sum() - z * spread)

    value = optimize.brentq(excess, -60.0, 60.0, args=(0.0,))
    expected = special.expit(known.logits + value)
    model = float((expected * (1 - expected)).sum())
    effect = known.design_effect(known.labels - expected, expected, model)
    t = float(stats.t.ppf(TAILS[1], known.patients - 1))
    low, high = (_root(partial(excess, z=z, effect=effect), value) for z in (t, -t))
    return Estimate(value, low, high)


def calibration_slope(
    labels: Array, probabilities: Array, patients: Array | None = None
) -> Estimate:
    """Calibration slope: what the logits are to be multiplied by; 1 is right (Cox 1958).

    The maximum likelihood of sigmoid(a + b logit), with the interval of the likelihood ratio over
    all a, held against F: the degrees of freedom are the patients, each as far as its label is
    uncertain, because a few of them decide where most are told apart. Where patients have several
    studies, the ratio is divided by the design effect. Studies that are told apart without error
    give a lower bound alone.
    """
    known = _KnownStudies.of(labels, probabilities, patients)
    if known.limits:
        return Estimate(note="; ".join(known.limits))
    x = known.logits - known.logits.mean()
    if np.ptp(x) < 1e-9:
        return Estimate(note="all probabilities are the same")
    unit = np.abs(x).max()
    x, signs = x / unit, 2 * known.labels - 1

    def loss(slope: float) -> float:
        """The least negative log likelihood of a slope, over all intercepts."""
        intercept = known.intercept(x, slope, tolerance=1e-9)
        return float(np.logaddexp(0, -signs * (intercept + slope * x)).sum())

    positive, negative = x[known.labels == 1], x[known.labels == 0]
    apart = int(positive.min() >= negative.max()) - int(negative.min() >= positive.max())
    farthest = 1e3
    if apart:
        best, effect = apart * np.inf, known.copies_effect
        # Told apart but for a tie at the border, the least loss is above 0.
        least = min(loss(apart * farthest), loss(0.0))
    else:
        optimum = optimize.minimize_scalar(loss, bracket=(0.0, 1.0), tol=1e-8)
        best, least = float(optimum.x), float(optimum.fun)
        effect = known.slope_effect(x, best)
    # Patients, each as far as its label is uncertain, less the two numbers that are fitted.
    freedom = max(known.uncertain_patients(known.probabilities) - 2, 1)
    allowed = effect * float(stats.f.ppf(CONFIDENCE, 1, freedom)) / 2

    def excess(slope: float) -> float:
        return loss(slope) - least - allowed

    start = best if np.isfinite(best) else apart * farthest
    low = -np.inf if apart < 0 else _crossing(excess, start, -1.0)
    high = np.inf if apart > 0 else _crossing(excess, start, 1.0)
    note = "told apart without error: the slope has one bound only" if apart else ""
    return Estimate(best / unit, low / unit, high / unit, note)


def _crossing(excess: Callable[[float], float], start: float, direction: float) -> float:
    """Where a function that is below 0 at `start` crosses 0 on one side of it."""
    step = 0.5
    while excess(start + direction * step) < 0:
        step *= 2
        if step > 1e4:
            return direction * np.inf
    return float(optimize.brentq(excess, *sorted([start, start + direction * step])))


def _root(function: Callable[[float], float], near: float) -> float:
    """The root of a falling function near a point, infinite where there is none."""
    step = 1.0
    while function(near - step) < 0 or function(near + step) > 0:
        step *= 2
        if step > 64:
            return np.inf if function(near + step) > 0 else -np.inf
    return float(optimize.brentq(function, near - step, near + step))


@dataclass(frozen=True)
class _KnownStudies:
    """The studies whose label is known, (studies,) each, owners numbered from 0."""

    labels: Array
    probabilities: Array
    owners: Array
    limits: list[str]

    @classmethod
    def of(cls, labels: Array, probabilities: Array, patients: Array | None) -> _KnownStudies:
        kept_labels, kept, _, known = known_studies(labels, probabilities, None, unit_interval=True)
        owners = owners_of(patients, len(known))[known]
        limits = class_limits(labels, patients)
        return cls(kept_labels, kept, np.unique(owners, return_inverse=True)[1], limits)

    @property
    def patients(self) -> int:
        """Their number."""
        return int(self.owners.max()) + 1

    @property
    def logits(self) -> Array:
        """Of the probabilities."""
        return logits(self.probabilities)

    @property
    def copies_effect(self) -> float:
        """The design effect of patients whose studies are copies of each other (Kish 1965)."""
        sizes = np.bincount(self.owners)
        return float((sizes**2).sum() / sizes.sum())

    def sum_of_squares(self, scores: Array) -> float:
        """The squares of the patients' sums of scores (studies,), added."""
        return float((np.bincount(self.owners, scores) ** 2).sum())

    def uncertain_patients(self, probabilities: Array) -> float:
        """The number of patients, each as far as its label is uncertain by probability."""
        uncertainty = 4 * float((probabilities * (1 - probabilities)).sum())
        return uncertainty / self.copies_effect

    def intercept(self, x: Array, slope: float, tolerance: float = 2e-12) -> float:
        """The most likely intercept a of sigmoid(a + slope x), x (studies,) in [-1, 1]."""

        def gradient(intercept: float) -> float:
            return float((special.expit(intercept + slope * x) - self.labels).sum())

        reach = abs(slope) + 40.0
        return optimize.brentq(gradient, -reach, reach, xtol=tolerance)

    def design_effect(self, scores: Array, expected: Array, model: float) -> float:
        """The variance of a sum over patients, by what a model gives it.

        It is drawn towards that of copies where little is known: the weight of the estimate is the
        number of patients, each as far as its label is uncertain. `model` is the variance of the
        sum of `scores` if all studies were independent.
        """
        variance = self.sum_of_squares(scores) * self.patients / (self.patients - 1)
        weight = self.uncertain_patients(expected)
        return (weight * variance / model + self.copies_effect) / (weight + 1)

    def slope_effect(self, x: Array, slope: float) -> float:
        """The design effect of a slope on x (studies,); 1 where each patient has one study."""
        if self.patients == len(self.owners):
            return 1.0
        expected = special.expit(self.intercept(x, slope) + slope * x)
        weights = expected * (1 - expected)
        scores = (x - (weights @ x) / weights.sum()) * (self.labels - expected)
        # Against the scores themselves, not their model: fitted, they are too small alike.
        return self.design_effect(scores, expected, float((scores**2).sum()))


# ------------------------------------------------------------------------------------- by bins


def expected_calibration_error(
    labels: Array, probabilities: Array, bins: int = 10, weights: Array | None = None
) -> Array:
    """Mean over studies: |observed share - mean probability| in their bin (Naeini et al. 2015)."""
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
    probabilities: Array, bins: int = 10, studies: Array | None = None
) -> tuple[float, float]:
    """The calibration error that right probabilities would have by chance: median, 95th percentile.

    Labels are drawn from the probabilities (rows,) themselves, each study by itself. `studies`
    (rows,) are ids, where a study stands in several rows, as with repeated folds.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    if not len(probabilities):
        return float("nan"), float("nan")
    order = np.argsort(probabilities, kind="stable")
    probabilities = probabilities[order]
    study = np.arange(len(order))
    if studies is not None and len(np.unique(studies)) < len(order):
        study = np.unique(np.asarray(studies)[order], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    drawn = rng.random((2000, study.max() + 1))[:, study] < probabilities
    inside = _bin(probabilities, bins)[:, None] == np.arange(bins)
    gaps = np.abs((drawn - probabilities) @ inside.astype(float)).sum(axis=1) / len(probabilities)
    median, high = np.quantile(gaps, [0.5, 0.95])
    return float(median), float(high)


# ------------------------------------------------------------------------- temperature scaling


def fit_temperature(labels: Array, logits: Array) -> float:
    """Fit the temperature T of sigmoid(logit / T) (Guo et al. 2017, section 4.2), by its posterior.

    Fitted on validation: the most likely T under the prior log T ~ N(0, 0.5^2), and 1 where its log
    posterior is less than 0.5 above that of 1. Without a prior, a model that is right is made worse
    by what few studies happen to show, and studies that are told apart without error drive T to 0;
    with it T is below 1 there. Of many studies the prior says nothing.

    Raises:
        InputError: Only one class.
    """
    labels, logits, _, _ = known_studies(labels, logits, None)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"no temperature can be fitted: {class_counts(labels)}; both classes are needed"
        )
    margins = (2 * labels - 1) * logits

    def loss(inverse: Array) -> Array:
        return np.logaddexp(0, -margins * inverse[..., None]).sum(axis=-1)

    apart = logits[labels == 1].min() >= logits[labels == 0].max()
    return most_likely_temperature(loss, bool(apart))


def most_likely_temperature(loss: Callable[[Array], Array], apart: bool) -> float:
    """The temperature of the greatest posterior, as `fit_temperature` describes it.

    Args:
        loss: the negative log likelihood, of 1 / T (temperatures,) or ().
        apart: whether the studies are told apart without error, so that any T below 1 is likelier.
    """

    def excess(log_temperature: Array | float) -> Array:
        """Negative log posterior (temperatures,), but for a constant."""
        prior = (log_temperature / LOG_TEMPERATURE_SPREAD) ** 2 / 2
        return loss(np.exp(-np.asarray(log_temperature))) + prior

    grid = np.linspace(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]), 241)
    near = grid[np.argmin(excess(grid))]
    step = grid[1] - grid[0]
    bounds = (max(near - step, grid[0]), min(near + step, grid[-1]))
    best = optimize.minimize_scalar(
        excess, bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    if excess(0.0) - best.fun < LEAST_GAIN and not apart:
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
