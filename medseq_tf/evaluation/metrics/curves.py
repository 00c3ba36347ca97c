"""Curves over all thresholds, with pointwise bands: ROC, precision and recall, net benefit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    by_score,
    known_studies,
    operating_points,
    ratio,
)
from medseq_tf.evaluation.metrics.resampling import (
    bootstrap_weights,
    owners_by_content,
    percentiles,
)


def roc_points(labels: Array, probabilities: Array) -> pd.DataFrame:
    """The ROC curve: a row for each distinct probability, from nothing called positive to all.

    Returns:
        Columns `threshold` (the first is inf), `false_positive_rate`, `sensitivity`.
    """
    sensitivities, specificities = operating_points(labels, probabilities, None)
    thresholds = by_score(labels, probabilities, None)[2]
    return pd.DataFrame(
        {
            "threshold": np.concatenate([[np.inf], thresholds]),
            "false_positive_rate": 1 - specificities,
            "sensitivity": sensitivities,
        }
    )


def precision_recall_points(labels: Array, probabilities: Array) -> pd.DataFrame:
    """The precision-recall curve: a row for each distinct probability, from the highest down.

    Returns:
        Columns `threshold`, `recall`, `precision`.
    """
    positives, negatives, thresholds = by_score(labels, probabilities, None)
    hits = np.cumsum(positives)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "recall": ratio(hits, positives.sum()),
            "precision": ratio(hits, hits + np.cumsum(negatives)),
        }
    )


def net_benefit(
    labels: Array, probabilities: Array, thresholds: Array, weights: Array | None = None
) -> Array:
    """True positives minus false ones weighed by the odds of the threshold, per study.

    Vickers and Elkin 2006: TP / n - FP / n * t / (1 - t), for thresholds t in [0, 1), the
    probabilities at which one would act; (thresholds,) or (resamples, thresholds).
    """
    labels, probabilities, weights, _ = known_studies(
        labels, probabilities, weights, unit_interval=True
    )
    thresholds = np.asarray(thresholds, dtype=float)
    odds = thresholds / (1 - thresholds)
    called = probabilities[:, None] >= thresholds
    worth = called * np.where(labels[:, None] == 1, 1.0, -odds)
    return ratio(weights @ worth, weights.sum(axis=-1, keepdims=True))


def decision_curve(
    labels: Array,
    probabilities: Array,
    thresholds: Array | None = None,
    patients: Array | None = None,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Net benefit of acting on the model, on everyone and on no one, at thresholds in [0, 1).

    Returns:
        Columns `threshold`, `model`, `low`, `high` (95%), `everyone`, `no_one`.
    """
    thresholds = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds)

    def curve(weights: Array | None) -> Array:
        return net_benefit(labels, probabilities, thresholds, weights)

    model, low, high = _band(curve, labels, probabilities, patients, resamples)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "model": model,
            "low": low,
            "high": high,
            "everyone": net_benefit(labels, np.ones(len(labels)), thresholds),
            "no_one": 0.0,
        }
    )


def roc_band(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    points: int = 101,
) -> pd.DataFrame:
    """The ROC curve at evenly spaced false positive rates, with a pointwise 95% band.

    Returns:
        Columns `false_positive_rate`, `sensitivity`, `low`, `high`.
    """
    grid = np.linspace(0, 1, points)

    def curve(weights: Array | None) -> Array:
        sensitivities, specificities = operating_points(labels, probabilities, weights)
        return _steps_at(1 - specificities, sensitivities, grid + 1e-12, "right", -1)

    value, low, high = _band(curve, labels, probabilities, patients, resamples)
    return pd.DataFrame(
        {"false_positive_rate": grid, "sensitivity": value, "low": low, "high": high}
    )


def precision_recall_band(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    points: int = 101,
) -> pd.DataFrame:
    """Precision at evenly spaced recalls (steps, as average precision), with a 95% band.

    Returns:
        Columns `recall`, `precision`, `low`, `high`.
    """
    grid = np.linspace(0, 1, points)

    def curve(weights: Array | None) -> Array:
        positives, negatives, _ = by_score(labels, probabilities, weights)
        hits = np.cumsum(positives, axis=-1)
        precision = ratio(hits, hits + np.cumsum(negatives, axis=-1))
        recall = ratio(hits, hits[..., -1:])
        # The first threshold that reaches a recall; at recall 0, the first that finds anyone.
        return _steps_at(recall, precision, np.maximum(grid, 1e-9) - 1e-12, "left", 0)

    value, low, high = _band(curve, labels, probabilities, patients, resamples)
    return pd.DataFrame({"recall": grid, "precision": value, "low": low, "high": high})


def _band(
    curve: Callable[[Array | None], Array],
    labels: Array,
    probabilities: Array,
    patients: Array | None,
    resamples: int,
) -> tuple[Array, Array, Array]:
    """A curve (points,) and its pointwise 95% bounds."""
    owners = owners_by_content(labels, probabilities) if patients is None else patients
    chunks = bootstrap_weights(labels, owners, resamples, 0)
    low, high = percentiles(np.concatenate([curve(weights) for weights in chunks]))
    return curve(None), low, high


def _steps_at(x: Array, y: Array, grid: Array, side: Literal["left", "right"], shift: int) -> Array:
    """Read each row's y at the step of its ascending x that holds each point of the grid."""
    rows_x, rows_y = np.atleast_2d(x), np.atleast_2d(y)
    steps = np.stack([np.searchsorted(row, grid, side=side) for row in rows_x]) + shift
    values = np.take_along_axis(rows_y, np.clip(steps, 0, rows_y.shape[1] - 1), axis=1)
    values = np.where(np.isnan(rows_x[:, :1]), np.nan, values)
    return values if x.ndim == 2 else values[0]
