"""Calibration of probabilities in three numbers, with intervals over patients.

They are the first things to look at (Van Calster et al. 2016, 2019): O/E, whether as many studies
are positive as the probabilities say; the intercept, by how much their logits are too low in all;
and the slope, whether they are too extreme (below 1) or too timid (above).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import optimize, special, stats

from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    class_limits,
    known_studies,
    owners_of,
)
from medseq_tf.evaluation.metrics.proportions import effective_interval
from medseq_tf.evaluation.metrics.temperature import logits


def observed_expected(
    labels: Array, probabilities: Array, patients: Array | None = None, confidence: float = 0.95
) -> Estimate:
    """O/E: the share of positive studies over the mean probability; 1 is right.

    Its interval is that of the share of as many patients as give the variance of the ratio.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        patients: (studies,) owners; None: each study has its own.
        confidence: Of the interval.
    """
    known = _KnownStudies.of(labels, probabilities, patients)
    expected = known.probabilities.mean() if len(known.labels) else 0.0
    if expected == 0:
        return Estimate(note="no study, or no probability above 0")
    observed = float(known.labels.mean())
    rest = known.labels - observed / expected * known.probabilities
    count = known.patients
    sums = np.bincount(known.owners, rest) / len(rest)
    variance = float((sums**2).sum()) * count / max(count - 1, 1)
    low, high = effective_interval(observed, variance, count, confidence)
    value, low, high = (float(share / expected) for share in (observed, low, high))
    return Estimate(value, low, high)


def calibration_intercept(
    labels: Array, probabilities: Array, patients: Array | None = None, confidence: float = 0.95
) -> Estimate:
    """Calibration in the large: what is to be added to all logits; 0 is right.

    The maximum likelihood of sigmoid(logit + a), with the interval of the score test. Where
    patients have several studies, its variance is that over patients. The arguments are those of
    `observed_expected`.
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
    t = float(stats.t.ppf((1 + confidence) / 2, known.patients - 1))
    low, high = (_root(partial(excess, z=z, effect=effect), value) for z in (t, -t))
    return Estimate(value, low, high)


def calibration_slope(
    labels: Array, probabilities: Array, patients: Array | None = None, confidence: float = 0.95
) -> Estimate:
    """Calibration slope: what the logits are to be multiplied by; 1 is right (Cox 1958).

    The maximum likelihood of sigmoid(a + b logit), with the interval of the likelihood ratio over
    all a, held against F: the degrees of freedom are the patients, each as far as its label is
    uncertain, because a few of them decide where most are told apart. Where patients have several
    studies, the ratio is divided by the design effect. Studies that are told apart without error
    give a lower bound alone. The arguments are those of `observed_expected`.
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
    allowed = effect * float(stats.f.ppf(confidence, 1, freedom)) / 2

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
        number of patients, each as far as its label is uncertain.

        Args:
            scores: (studies,) that are summed.
            expected: (studies,) probability that the label is 1.
            model: The variance of the sum if all studies were independent.
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
