"""Intervals of the AUROC, and the paired test of two models' AUROCs (DeLong et al. 1988)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from medseq_tf.evaluation.metrics.estimates import NAN, Estimate
from medseq_tf.evaluation.metrics.point_metrics import (
    TAILS,
    Array,
    class_limits,
    known_studies,
    owners_of,
)
from medseq_tf.evaluation.metrics.proportions import shrunk_ratio


@dataclass(frozen=True)
class DeLongTest:
    """Paired comparison of two models' AUROCs, the first minus the second; p is two-sided."""

    difference: float
    low: float = NAN
    high: float = NAN
    z: float = NAN
    p: float = NAN
    note: str = ""


def delong_interval(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
) -> Estimate:
    """AUROC with a score interval of DeLong's variance (DeLong et al. 1988).

    The interval holds every AUROC from which the observed one is no farther than chance explains,
    by the variance that Newcombe (2006, method 5) gives that AUROC, times the ratio of DeLong's
    variance to Newcombe's at the observed AUROC, `proportions.shrunk_ratio`. So it lies within 0
    and 1, covers where DeLong's own does not (a high AUROC of few patients), and is one-sided where
    the classes are told apart without error.

    Where a patient has several studies, the variance is Obuchowski's for clustered data (1997),
    which is DeLong's when each has one, and Newcombe's is that of the number of patients. Any
    increasing score serves in place of probabilities.
    """
    z = float(stats.norm.ppf(TAILS[1]))
    placed = Placements.of(labels, [probabilities], patients)
    value = float(placed.aurocs[0])
    if placed.limits:
        reason = "; ".join(placed.limits)
        return Estimate(value, note=reason if np.isnan(value) else f"no interval: {reason}")
    return Estimate(value, *auroc_bounds(value, placed.covariance[0, 0], *placed.counts, z))


def auroc_bounds(
    auroc: float, variance: float, positives: int, negatives: int, z: float
) -> tuple[float, float]:
    """Bounds of `delong_interval`: of so many patients with a positive and with a negative study.

    The variance is DeLong's, or Obuchowski's; z is a quantile of the normal distribution.
    """
    step = 0.5 / (positives * negatives)
    inside = min(max(auroc, step), 1 - step)
    model = _newcombe_variance(inside, positives, negatives)
    ratio = shrunk_ratio(variance, model, auroc, min(positives, negatives))

    def excess(true: float) -> float:
        allowed = z**2 * ratio * _newcombe_variance(true, positives, negatives)
        return (auroc - true) ** 2 - allowed

    # At 0 and 1 the excess is 0 too, because no AUROC varies there.
    low = optimize.brentq(excess, 0.0, min(auroc, 1 - 1e-9)) if auroc > 0 else 0.0
    high = optimize.brentq(excess, max(auroc, 1e-9), 1.0) if auroc < 1 else 1.0
    return float(low), float(high)


def _newcombe_variance(auroc: float, positives: int, negatives: int) -> float:
    """Variance of an AUROC of exponential scores, its classes' sizes averaged (Newcombe 2006)."""
    others = (positives + negatives) / 2 - 1
    spread = 1 + others * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
    return auroc * (1 - auroc) * spread / (positives * negatives)


def delong_test(
    labels: Array,
    probabilities_a: Array,
    probabilities_b: Array,
    patients: Array | None = None,
) -> DeLongTest:
    """Test whether two models rank the same studies equally well (DeLong et al. 1988).

    The difference over its standard error is held against Student's t, with the degrees of freedom
    of the patients of both classes (Welch 1947, Satterthwaite 1946): the normal distribution would
    reject equal models too often where one class has few patients.
    """
    contrast = np.array([1.0, -1.0])
    placed = Placements.of(labels, [probabilities_a, probabilities_b], patients)
    difference = float(contrast @ placed.aurocs)
    if placed.limits:
        return DeLongTest(difference, note="no interval: " + "; ".join(placed.limits))
    variance = contrast @ placed.covariance @ contrast
    if variance <= 1e-16:
        if difference == 0:
            return DeLongTest(difference, z=0.0, p=1.0, note="the two rank alike")
        return DeLongTest(difference, note="no test: the variance is 0")
    spread, freedom = float(np.sqrt(variance)), placed.degrees_of_freedom(contrast)
    z = difference / spread
    half = float(stats.t.ppf(TAILS[1], freedom)) * spread
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return DeLongTest(difference, low, high, z, float(2 * stats.t.sf(abs(z), freedom)))


@dataclass(frozen=True)
class Placements:
    """Where each patient's studies lie among those of the other class, as sums over patients.

    By midranks (Sun and Xu 2014).

    Attributes:
        aurocs: (models,).
        positive: (models, patients) share of a patient's positive studies in the AUROC, less
            the AUROC's own.
        negative: (models, patients) the same of the negative studies.
        counts: patients with a positive study, and with a negative one.
        limits: why there is no variance.
    """

    aurocs: Array
    positive: Array
    negative: Array
    counts: tuple[int, int]
    limits: list[str]

    @classmethod
    def of(cls, labels: Array, scores: list[Array], patients: Array | None) -> Placements:
        """Place the studies by each model's scores (studies,)."""
        checked = [known_studies(labels, score, None) for score in scores]
        known = checked[0][3]
        truth, values = checked[0][0] == 1, np.stack([score for _, score, _, _ in checked])
        limits = class_limits(labels, patients)
        _, owner = np.unique(owners_of(patients, len(known))[known], return_inverse=True)
        counts = (len(np.unique(owner[truth])), len(np.unique(owner[~truth])))
        if not all(counts):
            nothing = np.full((len(scores), 1), np.nan)
            return cls(nothing[:, 0], nothing, nothing, counts, limits)
        positives, negatives = values[:, truth], values[:, ~truth]
        m, n = positives.shape[1], negatives.shape[1]
        ranks = stats.rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
        placed_positives = (ranks[:, :m] - stats.rankdata(positives, axis=1)) / n
        placed_negatives = 1 - (ranks[:, m:] - stats.rankdata(negatives, axis=1)) / m
        aurocs = placed_positives.mean(axis=1)
        a = _sum_by(placed_positives - aurocs[:, None], owner[truth], owner.max() + 1) / m
        b = _sum_by(placed_negatives - aurocs[:, None], owner[~truth], owner.max() + 1) / n
        return cls(aurocs, a, b, counts, limits)

    @property
    def covariance(self) -> Array:
        """Of the AUROCs, (models, models); nan where a class has fewer than two patients."""
        if self.limits:
            return np.full((len(self.aurocs),) * 2, np.nan)
        a, b, everyone = self.positive, self.negative, self.positive.shape[1]
        with_positive, with_negative = self.counts
        covariance = with_positive / (with_positive - 1) * (a @ a.T)
        covariance += with_negative / (with_negative - 1) * (b @ b.T)
        return covariance + everyone / (everyone - 1) * (a @ b.T + b @ a.T)

    def degrees_of_freedom(self, contrast: Array) -> float:
        """Welch and Satterthwaite's, of a weighted sum of the AUROCs with weights (models,)."""
        if self.limits:
            return float("nan")
        by_class = []
        for sums, count in zip((self.positive, self.negative), self.counts, strict=True):
            by_class.append((count / (count - 1) * ((contrast @ sums) ** 2).sum(), count - 1))
        total = sum(variance for variance, _ in by_class) ** 2
        below = sum(variance**2 / freedom for variance, freedom in by_class)
        return total / below if below > 0 else float(min(self.counts) - 1)


def _sum_by(values: Array, owner: Array, owners: int) -> Array:
    """Sums of (models, studies) over the studies of each owner: (models, owners)."""
    return np.stack([np.bincount(owner, row, owners) for row in values])
