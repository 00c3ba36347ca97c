"""Intervals of the AUROC, and the paired test of two models' AUROCs (DeLong et al. 1988)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from medseq_tf.point_metrics import Array, class_limits, known_studies, owners_of
from medseq_tf.resampling import Estimate


@dataclass(frozen=True)
class DeLongTest:
    """Paired comparison of two models' AUROCs on the same studies."""

    auroc_a: float
    auroc_b: float
    difference: float
    """AUROC of a minus AUROC of b."""
    low: float
    high: float
    z: float
    p: float
    """Two-sided."""
    note: str = ""


def delong_interval(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """AUROC with DeLong's interval (DeLong et al. 1988), cut off at 0 and 1.

    By midranks (Sun and Xu 2014). Where a patient has several studies, the variance is
    Obuchowski's for clustered data (1997), which is DeLong's when each has one.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) or any increasing score.
        patients: (studies,) owners; None: each study has its own.
        confidence: Of the interval.
    """
    aurocs, covariance, notes = delong(labels, [probabilities], patients)
    value, nan = float(aurocs[0]), float("nan")
    if notes:
        return Estimate(value, nan, nan, "; ".join(notes))
    spread = np.sqrt(max(covariance[0, 0], 0.0))
    if spread == 0:
        return Estimate(value, nan, nan, "no interval: complete separation, the variance is 0")
    half = stats.norm.ppf((1 + confidence) / 2) * spread
    return Estimate(value, float(max(value - half, 0)), float(min(value + half, 1)))


def delong_test(
    labels: Array,
    probabilities_a: Array,
    probabilities_b: Array,
    patients: Array | None = None,
    confidence: float = 0.95,
) -> DeLongTest:
    """Tests whether two models rank the same studies equally well (DeLong et al. 1988).

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities_a: (studies,) of the first model.
        probabilities_b: (studies,) of the second model, in the same order.
        patients: (studies,) owners; None: each study has its own.
        confidence: Of the interval of the difference.

    Returns:
        Both AUROCs, their difference with its interval, z, and the two-sided p-value.
    """
    scores = [probabilities_a, probabilities_b]
    aurocs, covariance, notes = delong(labels, scores, patients)
    difference, nan = float(aurocs[0] - aurocs[1]), float("nan")
    both = (float(aurocs[0]), float(aurocs[1]), difference)
    if notes:
        return DeLongTest(*both, nan, nan, nan, nan, "; ".join(notes))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= 1e-16:
        if difference == 0:
            return DeLongTest(*both, 0.0, 0.0, 0.0, 1.0, "the two rank alike")
        return DeLongTest(*both, nan, nan, nan, nan, "no test: the variance is 0")
    spread = float(np.sqrt(variance))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * spread
    z = difference / spread
    p = float(2 * stats.norm.sf(abs(z)))
    return DeLongTest(*both, difference - half, difference + half, z, p)


def delong(
    labels: Array, scores: list[Array], patients: Array | None
) -> tuple[Array, Array, list[str]]:
    """AUROCs (models,), their covariance (models, models), and why there is none."""
    checked = [known_studies(labels, score, None) for score in scores]
    known = checked[0][3]
    truth, values = checked[0][0] == 1, np.stack([score for _, score, _, _ in checked])
    positives, negatives = values[:, truth], values[:, ~truth]
    m, n = positives.shape[1], negatives.shape[1]
    nothing = np.full((len(scores), len(scores)), np.nan)
    limits = class_limits(labels, patients)
    if not m or not n:
        return np.full(len(scores), np.nan), nothing, limits
    ranks = stats.rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
    placed_positives = (ranks[:, :m] - stats.rankdata(positives, axis=1)) / n
    placed_negatives = 1 - (ranks[:, m:] - stats.rankdata(negatives, axis=1)) / m
    aurocs = placed_positives.mean(axis=1)
    if limits:
        return aurocs, nothing, ["no interval: " + "; ".join(limits)]
    _, owner = np.unique(owners_of(patients, len(known))[known], return_inverse=True)
    a = _sum_by(placed_positives - aurocs[:, None], owner[truth], owner.max() + 1)
    b = _sum_by(placed_negatives - aurocs[:, None], owner[~truth], owner.max() + 1)
    with_positive, with_negative = len(np.unique(owner[truth])), len(np.unique(owner[~truth]))
    everyone = owner.max() + 1
    covariance = with_positive / (with_positive - 1) * (a @ a.T) / m**2
    covariance += with_negative / (with_negative - 1) * (b @ b.T) / n**2
    covariance += everyone / (everyone - 1) * (a @ b.T + b @ a.T) / (m * n)
    return aurocs, covariance, []


def _sum_by(values: Array, owner: Array, owners: int) -> Array:
    """Sums of (models, studies) over the studies of each owner: (models, owners)."""
    return np.stack([np.bincount(owner, row, owners) for row in values])
