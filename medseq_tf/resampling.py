"""The bootstrap over patients: resamples as weights of studies, and intervals from them.

The unit of evaluation is the study. Where a patient has several, `patients` (studies,) names the
owner of each, and whole patients are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from medseq_tf.point_metrics import Array, class_limits, owners_of


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; `note` says why a number is nan or to be doubted."""

    value: float
    low: float
    high: float
    note: str = ""


def resample_weights(
    labels: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Array:
    """How often each study stands in each bootstrap sample of patients, stratified by class.

    A patient with any positive study is of the positive class; as many patients of each class are
    drawn, with replacement, as there are. A study of unknown label has weight 0.

    Args:
        labels: (studies,) 0, 1 or nan.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of samples.
        seed: Of `numpy.random.default_rng`. Patients are drawn in the order of their ids.

    Returns:
        (resamples, studies) float64.
    """
    return np.concatenate(list(weight_chunks(labels, patients, resamples, seed)))


def weight_chunks(
    labels: Array, patients: Array | None, resamples: int, seed: int
) -> Iterator[Array]:
    """`resample_weights` in pieces of about 16 MiB."""
    labels = np.asarray(labels, dtype=float)
    known = ~np.isnan(labels)
    owner = np.unique(owners_of(patients, len(labels))[known], return_inverse=True)[1]
    strata = (np.bincount(owner, labels[known]) > 0).astype(np.int64)
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // max(len(labels), 1))
    for start in range(0, resamples, rows):
        weights = np.zeros((min(rows, resamples - start), len(labels)))
        weights[:, known] = _draw(strata, len(weights), rng)[:, owner]
        yield weights


def owners_by_content(labels: Array, probabilities: Array) -> Array:
    """An owner for each study, numbered so that the order of the rows changes no resample."""
    order = np.lexsort(np.column_stack([labels, probabilities]).astype(float).T)
    patients = np.empty(len(order), dtype=np.int64)
    patients[order] = np.arange(len(order))
    return patients


def _draw(strata: Array, resamples: int, rng: np.random.Generator) -> Array:
    """How often each patient is drawn: (resamples, patients), each stratum by itself."""
    counts = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn = rng.integers(len(members), size=(resamples, len(members)))
        flat = drawn + np.arange(resamples)[:, None] * len(members)
        tally = np.bincount(flat.ravel(), minlength=flat.size)
        counts[:, members] = tally.reshape(flat.shape)
    return counts


def bootstrap(
    metric: Callable[[Array, Array, Array | None], Array],
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A metric with its percentile interval over patients, stratified by class.

    Args:
        metric: `metric(labels, probabilities, weights)` -> () or (resamples,), as `auroc`.
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,).
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the interval.
    """
    owners = owners_by_content(labels, probabilities) if patients is None else patients
    chunks = weight_chunks(labels, owners, resamples, seed)
    values = np.concatenate([metric(labels, probabilities, weights) for weights in chunks])
    value = metric(labels, probabilities, None)
    return estimate_from(value, values, class_limits(labels, patients), confidence)


def percentiles(values: Array, confidence: float) -> tuple[Array, Array, Array]:
    """Bounds over the first axis and the share of values that are numbers; nan below a half."""
    share = np.isfinite(values).mean(axis=0)
    low, high = np.full(share.shape, np.nan), np.full(share.shape, np.nan)
    enough = share >= 0.5
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if enough.any():
        low[enough], high[enough] = np.nanquantile(values[..., enough], tails, axis=0)
    return low, high, share


def estimate_from(
    value: Array | float, values: Array, limits: list[str], confidence: float
) -> Estimate:
    """An interval from bootstrap values, with the reason where there is none."""
    value, nan = float(value), float("nan")
    if not np.isfinite(value):
        reason = "; ".join(limits) or "undefined: a class is never called"
        return Estimate(value, nan, nan, reason)
    if limits:
        return Estimate(value, nan, nan, "no interval: " + "; ".join(limits))
    low, high, share = percentiles(values, confidence)
    if np.isnan(low):
        return Estimate(value, nan, nan, f"no interval: undefined in {1 - share:.1%} of resamples")
    notes = []
    if share < 1:
        notes.append(f"undefined in {1 - share:.1%} of the resamples, which are left out")
    if low == high:
        notes.append("the same in every resample: the interval understates the uncertainty")
    return Estimate(value, float(low), float(high), "; ".join(notes))
