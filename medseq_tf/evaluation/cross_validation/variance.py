"""By how much a cross-validated estimate varies, and its interval.

An interval of what a recipe does has to count that every patient stands in two places: tested by
one model, and in the training of the others. Where nothing can be learned both weigh the same, and
the variance is twice that of the tested patients alone (the estimate is a degenerate U-statistic);
where the training patients determine a model well it is hardly more. `INFLATION` is what covers
between the two, chosen by simulation (`benchmarks/coverage_folds.py`); to it comes what the folds
differ by beyond their patients, as where training fails in one of them. Intervals are Wilson's, for
the number of patients that would give this variance, with Student's quantile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from medseq_tf.evaluation.metrics.point_metrics import TAILS

INFLATION = (2.0, 2.8)
"""Of the variance of the tested patients: with one repeat, and with very many."""


@dataclass(frozen=True)
class VarianceComponents:
    """An estimate and the components of its variance.

    Attributes:
        value: of one recipe, or the difference of two.
        patients: the variance that the tested patients give it.
        between: variance that the folds add to that, in the mean over them.
        freedom: degrees of freedom of the first.
    """

    value: float = float("nan")
    patients: float = 0.0
    between: float = 0.0
    freedom: float = 1.0

    def spread(self, inflation: float) -> float:
        """The standard deviation, training counted."""
        return float(np.sqrt(inflation * self.patients + self.between))

    def scaled(self, best: float, worst: float) -> VarianceComponents:
        """The same of where the value lies between its best, 0, and its worst, 1."""
        square = (worst - best) ** 2
        value = (self.value - best) / (worst - best)
        return replace(
            self, value=value, patients=self.patients / square, between=self.between / square
        )


def between_folds(
    by_fold: Mapping[int, float], repeats: Mapping[int, int], patients: float
) -> float:
    """Variance that folds add to the mean of a metric, beyond what its patients alone give it."""
    values = pd.Series(by_fold, dtype=float).dropna()
    groups = values.groupby([repeats[fold] for fold in values.index])
    of_means = [group.var() / len(group) for _, group in groups if len(group) > 1]
    if not of_means:
        return 0.0
    return max(float(np.mean(of_means)) - patients, 0.0) / len(of_means)


def interval(estimate: VarianceComponents, inflation: float, support: int) -> tuple[float, float]:
    """Wilson's interval (1927) of a metric in [0, 1], for as many patients as give its variance.

    Where the variance is 0, as at complete separation, they are the patients behind the metric,
    `support`, over `inflation`, that of the variance by the tested patients.
    """
    quantile = stats.t.ppf(TAILS[1], estimate.freedom)
    value, variance = estimate.value, estimate.spread(inflation) ** 2
    most = support / inflation
    patients = min(value * (1 - value) / variance, 1e9) if variance > 1e-12 else most
    if value in (0, 1):
        patients = most
    square = quantile**2
    centre = (value * patients + square / 2) / (patients + square)
    half = np.sqrt(value * (1 - value) * patients + square / 4) * quantile / (patients + square)
    return float(np.clip(centre - half, 0, 1)), float(np.clip(centre + half, 0, 1))
