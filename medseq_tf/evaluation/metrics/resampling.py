"""The bootstrap and the jackknife over patients: which studies stand in which sample.

The unit of evaluation is the study. Where a patient has several, `patients` (studies,) names the
owner of each, and whole patients are drawn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.point_metrics import TAILS, Array, class_limits, owners_of

MOST_LEFT_OUT = 1000
"""Groups that the jackknife leaves out in turn; of more patients, several make one group."""


def bootstrap_weights(
    labels: Array, patients: Array | None, resamples: int, seed: int
) -> Iterator[Array]:
    """Count how often each study stands in each bootstrap sample of patients.

    As many patients are drawn, with replacement, as there are, whatever their class: how common the
    label is varies too. A study of unknown label has weight 0. Patients are drawn in the order of
    their ids.

    Yields:
        Weights (some resamples, studies), float64, in pieces of about 16 MiB.
    """
    labels = np.asarray(labels, dtype=float)
    known = ~np.isnan(labels)
    owner = np.unique(owners_of(patients, len(labels))[known], return_inverse=True)[1]
    count = int(owner.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // max(len(labels), 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        weights = np.zeros((size, len(labels)))
        weights[:, known] = _draw(count, size, rng)[:, owner]
        yield weights


def owners_by_content(labels: Array, probabilities: Array) -> Array:
    """An owner for each study, numbered so that the order of the rows changes no resample."""
    order = np.lexsort(np.column_stack([labels, probabilities]).astype(float).T)
    patients = np.empty(len(order), dtype=np.int64)
    patients[order] = np.arange(len(order))
    return patients


def _draw(patients: int, resamples: int, rng: np.random.Generator) -> Array:
    """How often each patient is drawn: (resamples, patients)."""
    if not patients:
        return np.zeros((resamples, 0))
    drawn = rng.integers(patients, size=(resamples, patients))
    flat = drawn + np.arange(resamples)[:, None] * patients
    return np.bincount(flat.ravel(), minlength=flat.size).reshape(flat.shape).astype(float)


def bootstrap(
    metric: Callable[..., Array],
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Any metric with its BCa interval over patients (Efron 1987), prevalence varying too.

    For a metric of one's own, `metric(labels, probabilities, weights=...)` as `auroc`; one without
    an argument `weights` gets them as the third. Near the end of its range it covers too seldom
    with few patients: `metrics.evaluate_predictions` has better intervals of the known ones.
    """
    takes_weights = "weights" in inspect.signature(metric).parameters
    known = ~np.isnan(np.asarray(labels, dtype=float))
    patients = None if patients is None else owners_of(patients, len(known))[known]
    labels, probabilities = (np.asarray(part)[known] for part in (labels, probabilities))
    owners = owners_by_content(labels, probabilities) if patients is None else patients

    def of(weights: Array | None) -> Array:
        if takes_weights:
            return np.asarray(metric(labels, probabilities, weights=weights))
        return np.asarray(metric(labels, probabilities, weights))

    value = float(of(None))
    limits = class_limits(labels, patients)
    if not np.isfinite(value) or limits:
        reason = "; ".join(limits) or "undefined: a class is never called"
        return Estimate(value, note=f"no interval: {reason}" if np.isfinite(value) else reason)
    chunks = bootstrap_weights(labels, owners, resamples, seed)
    values = np.concatenate([of(weights) for weights in chunks])
    groups = jackknife_groups(owners)
    without = np.concatenate([of(weights) for weights in left_out_weights(groups)])
    defined = values[np.isfinite(values)]
    share = len(defined) / len(values)
    if share < 0.5:
        return Estimate(value, note=f"no interval: undefined in {1 - share:.1%} of resamples")
    low, high = np.quantile(defined, _bca_tails(value, defined, influences(without)))
    notes = []
    if share < 1:
        notes.append(f"undefined in {1 - share:.1%} of the resamples, which are left out")
    if low == high:
        notes.append("the same in every resample: the interval understates the uncertainty")
    return Estimate(value, float(low), float(high), "; ".join(notes))


def _bca_tails(value: float, values: Array, influence: Array) -> Array:
    """The two quantiles of bootstrap values that are the bounds (Efron 1987)."""
    below = (np.mean(values < value) + np.mean(values <= value)) / 2
    edge = 0.5 / len(values)
    bias = stats.norm.ppf(np.clip(below, edge, 1 - edge))
    spread = (influence**2).sum() ** 1.5
    skew = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + stats.norm.ppf(TAILS)
    return stats.norm.cdf(bias + z / (1 - skew * z))


def percentiles(values: Array) -> tuple[Array, Array]:
    """Bounds over the first axis; nan where fewer than half of the values are numbers."""
    share = np.isfinite(values).mean(axis=0)
    low, high = np.full(share.shape, np.nan), np.full(share.shape, np.nan)
    enough = share >= 0.5
    tails = TAILS
    if enough.any():
        low[enough], high[enough] = np.nanquantile(values[..., enough], tails, axis=0)
    return low, high


def jackknife_groups(owners: Array) -> Array:
    """The group of patients (studies,) with which each study is left out, numbered from 0."""
    return np.unique(owners, return_inverse=True)[1] % MOST_LEFT_OUT


def left_out_weights(groups: Array) -> Iterator[Array]:
    """Weights (groups, studies), 0 where a study is left out and else 1, in pieces of 16 MiB."""
    count = int(groups.max()) + 1 if len(groups) else 0
    rows = max(1, 2_000_000 // max(len(groups), 1))
    for start in range(0, count, rows):
        numbers = np.arange(start, min(start + rows, count))
        yield (groups != numbers[:, None]).astype(float)


def influences(values: Array) -> Array:
    """What each group adds to a metric, from its values (groups,) without the group."""
    known = np.isfinite(values)
    if known.sum() < 2:
        return np.zeros(len(values))
    return np.where(known, np.mean(values[known]) - values, 0.0) * (len(values) - 1)


def jackknife_variance(influence: Array) -> float:
    """The variance of a metric from its influences (groups,)."""
    count = len(influence)
    return float((influence**2).sum() / (count * (count - 1))) if count > 1 else float("nan")


def variance_of_mean(deviations: Array, owners: Array) -> float:
    """The variance over patients of a mean of studies, from their deviations (studies,) from it.

    `owners` (studies,) number the patients from 0, leaving no number out.
    """
    sums = np.bincount(owners, deviations) / len(deviations)
    count = len(sums)
    return float((sums**2).sum()) * count / max(count - 1, 1)
