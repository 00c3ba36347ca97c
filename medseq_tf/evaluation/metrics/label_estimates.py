"""Intervals of one label's metrics, of means over labels, and of differences of two models.

One test set, one model: the intervals say what other patients of the same kind would give to these
fitted models. Each method is named in the tables:

`Wilson`: a share of studies, such as recall, by the score interval.
`Wilson, effective n`: the same where patients have several studies: of as many independent studies
  as give the variance over patients (`proportions.effective_interval`).
`DeLong`: the AUROC, by a score interval of DeLong's variance (`auc_intervals.delong_interval`).
`score, jackknife`: average precision, the Brier score and means over studies: Wilson's interval of
  a share with the variance that the jackknife over patients gives.
`combined`: a mean or a difference of figures, from their own intervals and the correlation that the
  jackknife gives (`proportions.combine`).

The jackknife leaves out each patient in turn, whatever the class, so that prevalence varies as
it does from one set of patients to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medseq_tf.evaluation.metrics.auc_intervals import delong_interval
from medseq_tf.evaluation.metrics.calibration import (
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    null_calibration_error,
    observed_expected,
)
from medseq_tf.evaluation.metrics.catalogue import CATALOGUE, PARTS, Metric, all_metrics
from medseq_tf.evaluation.metrics.estimates import NAN, OUTSIDE, Estimate, few_patients, is_share
from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    brier,
    class_limits,
    confusion,
    owners_of,
)
from medseq_tf.evaluation.metrics.proportions import (
    combine,
    correlation,
    effective_interval,
    wilson_interval,
)
from medseq_tf.evaluation.metrics.resampling import (
    influences,
    jackknife_groups,
    jackknife_variance,
    left_out_weights,
)

CHOSEN_HERE = "cut chosen on these studies: too good, by some 0.05 with 30 of them; no interval"


@dataclass(frozen=True)
class LabelPredictions:
    """One label's predictions by one model, (studies,) each.

    Attributes:
        name: the label's.
        labels: 0, 1 or nan.
        probabilities: in [0, 1].
        thresholds: from which a study is called positive.
        patients: owners.
        cuts: thresholds by the names of `TRADE_OFFS`, chosen on other studies.
    """

    name: str
    labels: Array
    probabilities: Array
    thresholds: Array
    patients: Array
    cuts: Mapping[str, Array] = field(default_factory=dict)

    @property
    def has_both_classes(self) -> bool:
        """Whether there is a positive and a negative study."""
        return bool((self.labels == 0).any() and (self.labels == 1).any())

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many studies have a known label, how many a positive one, and how many patients."""
        known = ~np.isnan(self.labels)
        patients = len(np.unique(self.patients[known]))
        return int(known.sum()), int((self.labels == 1).sum()), patients

    def patients_by_class(self) -> tuple[int, int]:
        """How many patients have a positive study, and how many a negative one."""
        positive, negative = (len(np.unique(self.patients[self.labels == k])) for k in (1, 0))
        return positive, negative

    def remark(self) -> str:
        """That the rarer class has too few patients to conclude from; empty if it has enough."""
        return few_patients(*self.patients_by_class())

    def thresholds_of(self, name: str) -> Array:
        """The thresholds (studies,) that a metric is of; empty where it has none."""
        if name in self.cuts:
            return self.cuts[name]
        is_decision = name in CATALOGUE and CATALOGUE[name].kind == "decision"
        return self.thresholds if is_decision else np.zeros(0)

    def estimates(self, names: Sequence[str] | None = None) -> dict[str, Estimate]:
        """Estimate metrics of `CATALOGUE` with their intervals, patients being what is drawn.

        `names` are by themselves, not the mean of two others; None: all of the catalogue.
        """
        computed = (*CATALOGUE, *PARTS) if names is None else names
        groups = jackknife_groups(self.patients)
        left_out = [self._figures(computed, weights) for weights in left_out_weights(groups)]
        estimates: dict[str, Estimate] = {}
        for name, value in self._figures(computed).items():
            values = [figures[name] for figures in left_out]
            influence = influences(np.concatenate(values)) if values else np.zeros(0)
            estimate = self._estimate(name, float(value), influence)
            estimates[name] = replace(estimate, influence=influence)
        for name, metric in CATALOGUE.items():
            if name in estimates and metric.mean_of and not np.isnan(estimates[name].value):
                parts = [estimates[part] for part in metric.mean_of]
                mean = mean_of(parts)
                note = self.remark() if mean.has_interval else parts[0].note or parts[1].note
                estimates[name] = replace(mean, note=note)
        return {name: estimates[name] for name in CATALOGUE if name in estimates}

    def _figures(self, names: Sequence[str], weights: Array | None = None) -> dict[str, Array]:
        """Metrics of `CATALOGUE` and `PARTS`, () or (resamples,), trade-offs at their cuts."""
        arguments = (self.labels, self.probabilities, self.thresholds, weights)
        at_cuts = {name: self._at_cut(name, weights)[0] for name in self.cuts if name in names}
        names = [name for name in names if name not in at_cuts]
        return all_metrics(*arguments, names) | at_cuts

    def _at_cut(self, name: str, weights: Array | None = None) -> tuple[Array, Array]:
        """What the cut of a trade-off finds, and what it keeps of what it was chosen to keep."""
        counts = confusion(self.labels, self.probabilities, self.cuts[name], weights)
        rates = (counts.recall, counts.specificity)
        return rates if CATALOGUE[name].keeps == "specificity" else rates[::-1]

    def _estimate(self, name: str, value: float, influence: Array) -> Estimate:
        """A metric with its own interval, even where it is the mean of two others."""
        metric = CATALOGUE[name] if name in CATALOGUE else PARTS[name]
        limits = class_limits(self.labels, self.patients, metric.classes)
        if np.isnan(value):
            reason = "; ".join(limits) or "undefined: a class is never called"
            return Estimate(value, note=reason)
        if limits:
            return Estimate(value, note="no interval: " + "; ".join(limits))
        if not is_share(value):
            return Estimate(value, note=OUTSIDE)
        if metric.kind == "trade-off" and name not in self.cuts:
            return Estimate(value, note=CHOSEN_HERE)
        if metric.interval == "DeLong":
            bounds = delong_interval(self.labels, self.probabilities, self.patients)
            low, high, method = bounds.low, bounds.high, "DeLong"
        else:
            low, high, method = self._score_interval(metric, value, influence)
        notes = [self._cut_note(name), self.remark()]
        return Estimate(value, low, high, "; ".join(filter(None, notes)), method)

    def _score_interval(
        self, metric: Metric, value: float, influence: Array
    ) -> tuple[float, float, str]:
        """Bounds of a share or of a mean over studies, and the method."""
        positive, called = self.labels == 1, self.probabilities >= self.thresholds
        studies = metric.studies(positive, called) & ~np.isnan(self.labels)
        patients = len(np.unique(self.patients[studies]))
        is_f1, of_calls = metric.interval == "F1", metric.interval in ("share", "F1")
        # F1 is 2 s / (1 + s) of the share s of hits among all studies that are called or positive.
        share, slope = (value / (2 - value), 2 / (2 - value) ** 2) if is_f1 else (value, 1.0)
        if of_calls and patients == studies.sum():
            low, high = map(float, wilson_interval(share * patients, patients))
            method = "Wilson"
        else:
            variance = jackknife_variance(influence) * slope**2
            low, high = effective_interval(share, variance, patients)
            method = "Wilson, effective n" if of_calls else "score, jackknife"
        if is_f1:
            low, high = 2 * low / (1 + low), 2 * high / (1 + high)
        return low, high, method

    def _cut_note(self, name: str) -> str:
        """Of a metric at a cut: where that is from, and what it keeps of what it was to keep."""
        if name not in self.cuts:
            return ""
        cuts = np.unique(self.cuts[name])
        cut = f"cut {cuts[0]:.3f}" if len(cuts) == 1 else "each fold's cut"
        kept = float(self._at_cut(name)[1])
        return f"{cut}, chosen on validation; {CATALOGUE[name].keeps} here {kept:.3f}"


def weighted_sum(
    estimates: Sequence[Estimate],
    coefficients: Sequence[float],
    bound: tuple[float, float],
    related: Callable[[Array], Array] = correlation,
) -> Estimate:
    """Add figures over the same patients, times their coefficients, with their intervals.

    There is no interval if one of the figures has none. `bound` is the least and the greatest that
    the sum can be; `related` makes the figures' correlation of their influences.
    """
    values = np.array([estimate.value for estimate in estimates])
    weights = np.asarray(coefficients, float)
    influence = weights @ np.stack([estimate.influence for estimate in estimates])
    if not all(estimate.has_interval for estimate in estimates):
        return Estimate(float(weights @ values), influence=influence)
    lows = np.array([estimate.low for estimate in estimates])
    highs = np.array([estimate.high for estimate in estimates])
    influences_of_all = np.stack([estimate.influence for estimate in estimates])
    value, low, high = combine(weights, values, lows, highs, related(influences_of_all))
    low, high = max(low, bound[0]), min(high, bound[1])
    return Estimate(value, low, high, method="combined", influence=influence)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of figures over the same patients, with its interval."""
    return weighted_sum(estimates, [1 / len(estimates)] * len(estimates), (0.0, 1.0))


def difference_of(first: Sequence[Estimate], second: Sequence[Estimate]) -> Estimate:
    """The mean of the first figures less that of the second, over the same patients."""
    share = 1 / len(first)
    coefficients = [share] * len(first) + [-share] * len(second)
    return weighted_sum([*first, *second], coefficients, (-1.0, 1.0))


def brier_interval(labels: Array, probabilities: Array, patients: Array | None = None) -> Estimate:
    """The Brier score with its interval over patients."""
    labels = np.asarray(labels, dtype=float)
    value, owners = float(brier(labels, probabilities)), owners_of(patients, len(labels))
    count = len(np.unique(owners[~np.isnan(labels)]))
    if count < 2:
        return Estimate(value, note="fewer than two patients")
    pieces = left_out_weights(jackknife_groups(owners))
    without = np.concatenate([brier(labels, probabilities, weights) for weights in pieces])
    variance = jackknife_variance(influences(without))
    return Estimate(value, *effective_interval(value, variance, count))


CALIBRATION_MEASURES = {
    "observed_expected": observed_expected,
    "calibration_intercept": calibration_intercept,
    "calibration_slope": calibration_slope,
    "brier": brier_interval,
    "expected_calibration_error": None,
}
"""The rows of a table of calibration, in its order, and what gives their interval."""


def measure_calibration(
    metric: str, labels: Array, probabilities: Array, patients: Array, studies: Array
) -> tuple[Estimate, tuple[float, float]]:
    """One of `CALIBRATION_MEASURES`, and what right probabilities would have of it by chance.

    That is the median and the 95th percentile, of the expected calibration error alone. `studies`
    (studies,) are ids, as `null_calibration_error` takes them.
    """
    measure = CALIBRATION_MEASURES[metric]
    if measure is not None:
        return measure(labels, probabilities, patients), (NAN, NAN)
    known = ~np.isnan(labels)
    null = null_calibration_error(probabilities[known], studies=studies[known])
    return Estimate(float(expected_calibration_error(labels, probabilities))), null
