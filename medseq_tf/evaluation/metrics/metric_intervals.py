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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medseq_tf.evaluation.metrics.auc_intervals import delong_interval
from medseq_tf.evaluation.metrics.point_metrics import (
    DECISIONS,
    RANKING,
    TRADE_OFFS,
    Array,
    all_metrics,
    brier,
    class_limits,
    confusion,
    owners_of,
    ratio,
)
from medseq_tf.evaluation.metrics.proportions import (
    combine,
    correlation,
    effective_interval,
    wilson_interval,
)
from medseq_tf.evaluation.metrics.resampling import (
    Estimate,
    influences,
    jackknife_groups,
    jackknife_variance,
    left_out_weights,
)

TABLE = (*RANKING, *TRADE_OFFS, *DECISIONS, "brier")
"""Names of the metrics in a table, in its order."""

CLASSES_NEEDED = {
    "recall": ("positive",),
    "specificity": ("negative",),
    "sensitivity_at_90_specificity": ("positive",),
    "specificity_at_90_sensitivity": ("negative",),
}
"""Of which classes a metric needs patients to have an interval, if not of both."""

FEW_PATIENTS = 10
"""With fewer patients of the rarer class, figures describe and nothing is concluded from them."""

DESCRIBED = "these figures describe them, nothing is concluded"

BOTH = ("positive", "negative")

CHOSEN_HERE = "cut chosen on these studies: too good, by some 0.05 with 30 of them; no interval"


@dataclass(frozen=True)
class MetricEstimate:
    """A metric with its interval.

    Attributes:
        value: nan where undefined.
        low: nan where there is no interval.
        high: likewise.
        method: of the interval, as in this module's docstring; empty where there is none.
        note: why a number is nan or to be doubted.
        influence: (groups,) what each group of patients adds to the value, by the jackknife.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    method: str = ""
    note: str = ""
    influence: Array = field(default_factory=lambda: np.zeros(0), repr=False)

    @property
    def has_interval(self) -> bool:
        """Whether there are bounds."""
        return not np.isnan(self.low)


def few_patients(positive: int, negative: int) -> str:
    """That the rarer class has too few patients to conclude from; empty if it has enough, or none.

    Args:
        positive: patients with a positive study.
        negative: patients with a negative study.
    """
    fewest, kind = min((positive, "positive"), (negative, "negative"))
    if not 0 < fewest < FEW_PATIENTS:
        return ""
    return f"{fewest} {kind} patient{'s' * (fewest > 1)}: {DESCRIBED}"


def multiplicity(intervals: int) -> str:
    """What to expect of many 95% intervals at once; empty for a few."""
    if intervals < 20:
        return ""
    missing = round(intervals / 20)
    one = "one is" if missing == 1 else f"some {missing} are"
    return f"{intervals} intervals at 95%: {one} expected to miss."


def holm(p: Array) -> Array:
    """p-values (tests,) adjusted for their number (Holm 1979); nan stays and is not counted."""
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    adjusted = p.copy()
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


# ----------------------------------------------------------------------------------- one label


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

    def values(self, weights: Array | None = None) -> dict[str, Array]:
        """Every metric of `TABLE`, () or (resamples,)."""
        figures = self._figures(weights)
        return {name: figures[name] for name in TABLE}

    def _figures(self, weights: Array | None = None) -> dict[str, Array]:
        """The metrics of `TABLE` and what `MEANS` are made of."""
        figures = all_metrics(self.labels, self.probabilities, self.thresholds, weights)
        counts = confusion(self.labels, self.probabilities, self.thresholds, weights)
        wrong = counts.false_positives + counts.false_negatives
        right = 2 * counts.true_negatives
        figures |= {
            "negative_predictive_value": counts.negative_predictive_value,
            "f1_negative": ratio(right, right + wrong),
        }
        for name, metric in TRADE_OFFS.items():
            if name in self.cuts:
                figures[name] = self._at_cut(name, weights)[0]
            else:
                figures[name] = metric(self.labels, self.probabilities, weights=weights)
        return figures

    def _at_cut(self, name: str, weights: Array | None = None) -> tuple[Array, Array]:
        """What a cut of `TRADE_OFFS` finds, and what it keeps of what it was chosen to keep."""
        counts = confusion(self.labels, self.probabilities, self.cuts[name], weights)
        rates = (counts.recall, counts.specificity)
        return rates if name.startswith("sensitivity") else rates[::-1]

    @property
    def has_both_classes(self) -> bool:
        """Whether there is a positive and a negative study."""
        return bool((self.labels == 0).any() and (self.labels == 1).any())

    def patients_by_class(self) -> tuple[int, int]:
        """How many patients have a positive study, and how many a negative one."""
        positive, negative = (len(np.unique(self.patients[self.labels == k])) for k in (1, 0))
        return positive, negative

    def remark(self) -> str:
        """That the rarer class has too few patients to conclude from; empty if it has enough."""
        return few_patients(*self.patients_by_class())

    def estimates(self, confidence: float = 0.95) -> dict[str, MetricEstimate]:
        """Every metric of `TABLE` with its interval, patients being what is drawn."""
        groups = jackknife_groups(self.patients)
        without = [self._figures(weights) for weights in left_out_weights(groups)]
        found = {}
        for name, value in self._figures().items():
            parts = [part[name] for part in without]
            influence = influences(np.concatenate(parts)) if parts else np.zeros(0)
            estimate = self._estimate(name, float(value), influence, confidence)
            notes = [estimate.note, self.remark() if estimate.has_interval else ""]
            note = "; ".join(filter(None, notes))
            found[name] = replace(estimate, influence=influence, note=note)
        for name, (first, second) in MEANS.items():
            if not np.isnan(found[name].value):
                mean = mean_of([found[first], found[second]])
                note = found[name].note if mean.has_interval else ""
                note = note or found[first].note or found[second].note
                found[name] = replace(mean, note=note)
        return {name: found[name] for name in TABLE}

    def _estimate(
        self, name: str, value: float, influence: Array, confidence: float
    ) -> MetricEstimate:
        """A metric with its interval, but for those of `MEANS`."""
        limits = class_limits(self.labels, self.patients, CLASSES_NEEDED.get(name, BOTH))
        if np.isnan(value):
            reason = "; ".join(limits) or "undefined: a class is never called"
            return MetricEstimate(value, note=reason)
        if limits:
            return MetricEstimate(value, note="no interval: " + "; ".join(limits))
        if name == "auroc":
            arguments = (self.labels, self.probabilities, self.patients, confidence)
            bounds = delong_interval(*arguments)
            return MetricEstimate(value, bounds.low, bounds.high, "DeLong")
        if name in TRADE_OFFS and name not in self.cuts:
            return MetricEstimate(value, note=CHOSEN_HERE)
        of = self._studies_of(name)
        patients = len(np.unique(self.patients[of]))
        is_share = name not in ("average_precision", "brier")
        # F1 is 2 s / (1 + s) of the share s of hits among all studies that are called or positive.
        is_f1 = name.startswith("f1")
        share, slope = (value / (2 - value), 2 / (2 - value) ** 2) if is_f1 else (value, 1.0)
        if is_share and patients == of.sum():
            low, high = map(float, wilson_interval(share * patients, patients, confidence))
            method = "Wilson"
        else:
            variance = jackknife_variance(influence) * slope**2
            low, high = effective_interval(share, variance, patients, confidence)
            method = "Wilson, effective n" if is_share else "score, jackknife"
        if is_f1:
            low, high = 2 * low / (1 + low), 2 * high / (1 + high)
        return MetricEstimate(value, low, high, method, self._note(name))

    def _studies_of(self, name: str) -> Array:
        """Which studies (studies,) a metric is a share or a mean of."""
        positive, negative = self.labels == 1, self.labels == 0
        called = self.probabilities >= self.thresholds
        known = positive | negative
        return {
            "recall": positive,
            "sensitivity_at_90_specificity": positive,
            "average_precision": positive,
            "specificity": negative,
            "specificity_at_90_sensitivity": negative,
            "precision": known & called,
            "negative_predictive_value": known & ~called,
            "f1": positive | (known & called),
            "f1_negative": negative | (known & ~called),
        }.get(name, known)

    def _note(self, name: str) -> str:
        """Of a metric at a cut: where that is from, and what it keeps of what it was to keep."""
        if name not in TRADE_OFFS:
            return ""
        kept = "specificity" if name.startswith("sensitivity") else "sensitivity"
        cuts = np.unique(self.cuts[name])
        cut = f"cut {cuts[0]:.3f}" if len(cuts) == 1 else "each fold's cut"
        return f"{cut}, chosen on validation; {kept} here {float(self._at_cut(name)[1]):.3f}"


MEANS = {
    "balanced_accuracy": ("recall", "specificity"),
    "recall_macro": ("recall", "specificity"),
    "precision_macro": ("precision", "negative_predictive_value"),
    "f1_macro": ("f1", "f1_negative"),
}
"""Metrics that are the mean of two others."""


# ------------------------------------------------------------------------------ sums of figures


def weighted_sum(
    estimates: Sequence[MetricEstimate], coefficients: Sequence[float], bound: tuple[float, float]
) -> MetricEstimate:
    """A sum of figures with its interval; none if one of the figures has none.

    Args:
        estimates: over the same patients.
        coefficients: of each.
        bound: the least and the greatest that the sum can be.
    """
    values = np.array([estimate.value for estimate in estimates])
    coefficients = np.asarray(coefficients, float)
    influence = coefficients @ np.stack([estimate.influence for estimate in estimates])
    if not all(estimate.has_interval for estimate in estimates):
        return MetricEstimate(float(coefficients @ values), influence=influence)
    lows, highs = ([getattr(e, side) for e in estimates] for side in ("low", "high"))
    related = correlation([estimate.influence for estimate in estimates])
    value, low, high = combine(coefficients, values, lows, highs, related)
    low, high = max(low, bound[0]), min(high, bound[1])
    return MetricEstimate(value, low, high, "combined", influence=influence)


def mean_of(estimates: Sequence[MetricEstimate]) -> MetricEstimate:
    """The mean of figures over the same patients, with its interval."""
    return weighted_sum(estimates, np.full(len(estimates), 1 / len(estimates)), (0.0, 1.0))


def difference_of(
    first: Sequence[MetricEstimate], second: Sequence[MetricEstimate]
) -> MetricEstimate:
    """The mean of the first figures less that of the second, over the same patients."""
    share = 1 / len(first)
    coefficients = [share] * len(first) + [-share] * len(second)
    return weighted_sum([*first, *second], coefficients, (-1.0, 1.0))


def label_row(label: LabelPredictions, metric: str, estimate: MetricEstimate) -> dict:
    """A row of a table of metrics, as `metrics.evaluate_predictions` gives."""
    known = ~np.isnan(label.labels)
    thresholds = np.unique(label.cuts.get(metric, label.thresholds))
    has_threshold = (metric in DECISIONS or metric in label.cuts) and len(thresholds) == 1
    return {
        "label": label.name,
        "metric": metric,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "interval": estimate.method,
        "n": int(known.sum()),
        "positives": int((label.labels == 1).sum()),
        "patients": len(np.unique(label.patients[known])),
        "threshold": float(thresholds[0]) if has_threshold else float("nan"),
        "note": estimate.note,
    }


def brier_interval(
    labels: Array, probabilities: Array, patients: Array | None = None, confidence: float = 0.95
) -> Estimate:
    """The Brier score with its interval over patients.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        patients: (studies,) owners; None: each study has its own.
        confidence: Of the interval.
    """
    labels = np.asarray(labels, dtype=float)
    value, owners = float(brier(labels, probabilities)), owners_of(patients, len(labels))
    known = ~np.isnan(labels)
    count = len(np.unique(owners[known]))
    if count < 2:
        return Estimate(value, note="fewer than two patients")
    pieces = left_out_weights(jackknife_groups(owners))
    without = np.concatenate([brier(labels, probabilities, weights) for weights in pieces])
    variance = jackknife_variance(influences(without))
    return Estimate(value, *effective_interval(value, variance, count, confidence))
