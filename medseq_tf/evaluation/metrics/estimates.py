"""An estimate with its confidence interval, what is to be said of it, and its row in a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medseq_tf.evaluation.metrics.point_metrics import Array

NAN = float("nan")

FEW_PATIENTS = 10
"""With fewer patients of the rarer class, figures describe and nothing is concluded from them."""

OUTSIDE = "no interval: not in [0, 1]"
"""Of a metric that leaves the range that all of `CATALOGUE` have."""

DESCRIBED = "these figures describe them, nothing is concluded"


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        value: nan where undefined.
        low: nan where there is no interval.
        high: likewise.
        note: why a number is nan or to be doubted.
        method: of the interval, as in `label_estimates`; empty where none is named.
        influence: (groups,) what each group of patients adds to the value, by the jackknife.
    """

    value: float = NAN
    low: float = NAN
    high: float = NAN
    note: str = ""
    method: str = ""
    influence: Array = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    @property
    def has_interval(self) -> bool:
        """Whether there are bounds."""
        return not np.isnan(self.low)


def is_share(value: float) -> bool:
    """Whether a metric lies in [0, 1], but for rounding."""
    return -1e-9 <= value <= 1 + 1e-9


def few_patients(positive: int, negative: int) -> str:
    """That the rarer class has too few patients to conclude from; empty if enough, or none."""
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
    """Adjust p-values (tests,) for their number (Holm 1979); nan is not counted."""
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    adjusted = p.copy()
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def metric_row(
    label: str,
    metric: str,
    estimate: Estimate,
    counts: tuple[int, int, int],
    thresholds: Array,
) -> dict[str, Any]:
    """Make a row of a table of metrics, as `evaluate_predictions` returns it.

    The counts are studies with a known label, positive studies and patients; `thresholds` are empty
    where the metric has none.
    """
    different = np.unique(thresholds)
    return {
        "label": label,
        "metric": metric,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "interval": estimate.method,
        **dict(zip(("n", "positives", "patients"), counts, strict=True)),
        "threshold": float(different[0]) if len(different) == 1 else NAN,
        "note": estimate.note,
    }


def difference_row(label: str, metric: str, estimate: Estimate, p: float = NAN) -> dict[str, Any]:
    """Make a row of a table of differences, as `compare_predictions` returns it."""
    return {
        "label": label,
        "metric": metric,
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p": p,
        "method": estimate.method,
        "note": estimate.note,
    }
