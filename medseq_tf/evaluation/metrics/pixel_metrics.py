"""Metrics of lesion pixels: how well the pixels that a segmenter calls lesion are the lesion's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from medseq_tf.evaluation.metrics.estimates import (
    DESCRIBED,
    FEW_PATIENTS,
    Estimate,
    metric_row,
)
from medseq_tf.evaluation.metrics.label_estimates import LabelPredictions
from medseq_tf.evaluation.metrics.point_metrics import Array, class_limits, owners_of, ratio
from medseq_tf.evaluation.metrics.proportions import effective_interval
from medseq_tf.evaluation.metrics.resampling import (
    influences,
    jackknife_groups,
    jackknife_variance,
    left_out_weights,
)

PIXEL_METRICS = ("dice", "iou", "pixel_recall", "pixel_precision")
"""Means over the studies that have a lesion; each `_pooled` over the pixels of all studies."""


def pixel_metrics(
    found: Array, false: Array, missed: Array, weights: Array | None = None
) -> dict[str, Array]:
    """How well the pixels that a segmenter calls lesion are the lesion's.

    Each count is (studies,): `found` are lesion pixels that are called lesion (nan where a study's
    mask is not known), `false` other pixels that are, `missed` lesion pixels that are not. A study
    whose mask is empty has no Dice, IoU or recall, and is left out of the means over studies; a
    study with a lesion in which no pixel is called has 0 in all four. What is wrongly called in
    studies without lesion counts in the pooled figures, where the pixels of all studies are one
    picture; they are nan where that has neither a lesion nor a call.

    Returns:
        By the names of `PIXEL_METRICS`, then the same with `_pooled`, each () or (resamples,); nan
        where undefined.
    """
    counts = [np.asarray(pixels, dtype=float) for pixels in (found, false, missed)]
    weights = np.ones(len(counts[0])) if weights is None else np.asarray(weights, dtype=float)
    known = ~np.isnan(counts).any(axis=0)
    counts, weights = [pixels[known] for pixels in counts], weights[..., known]
    has_lesion = counts[0] + counts[2] > 0
    by_study = _overlap(*(pixels[has_lesion] for pixels in counts))
    of_lesions = weights[..., has_lesion]
    total = of_lesions.sum(axis=-1)
    means = {k: ratio(of_lesions @ np.nan_to_num(v), total) for k, v in by_study.items()}
    pooled = _overlap(*(weights @ pixels for pixels in counts))
    return means | {f"{name}_pooled": value for name, value in pooled.items()}


def _overlap(found: Array, false: Array, missed: Array) -> dict[str, Array]:
    return {
        "dice": ratio(2 * found, 2 * found + false + missed),
        "iou": ratio(found, found + false + missed),
        "pixel_recall": ratio(found, found + missed),
        "pixel_precision": ratio(found, found + false),
    }


def evaluate_pixels(
    found: Array,
    false: Array,
    missed: Array,
    label: str,
    patients: Array | None = None,
) -> pd.DataFrame:
    """`pixel_metrics` with intervals over patients, as `label_estimates` has them of a mean.

    Returns:
        Rows as those of `metrics.evaluate_predictions`; `label` is what the masks are of,
        `positives` are the studies with a lesion.
    """
    counts = [np.asarray(pixels, dtype=float) for pixels in (found, false, missed)]
    unknown = np.isnan(counts).any(axis=0)
    has_lesion = np.where(unknown, np.nan, counts[0] + counts[2] > 0)
    nowhere, owners = np.full(len(has_lesion), np.nan), owners_of(patients, len(has_lesion))
    predictions = LabelPredictions(label, has_lesion, nowhere, nowhere, owners)
    limits = class_limits(has_lesion, owners, ("positive",))
    pieces = left_out_weights(jackknife_groups(owners))
    without = [pixel_metrics(counts[0], counts[1], counts[2], weights) for weights in pieces]
    with_lesion, _ = predictions.patients_by_class()
    few = 0 < with_lesion < FEW_PATIENTS
    remark = f"{with_lesion} patients with a lesion: {DESCRIBED}" if few else ""
    rows = []
    for metric, value in pixel_metrics(*counts).items():
        estimate = Estimate(float(value), note="; ".join(limits))
        if np.isfinite(value) and limits:
            estimate = replace(estimate, note=f"no interval: {estimate.note}")
        elif np.isfinite(value):
            influence = influences(np.concatenate([figures[metric] for figures in without]))
            variance = jackknife_variance(influence)
            bounds = effective_interval(float(value), variance, with_lesion)
            estimate = Estimate(float(value), *bounds, remark, "score, jackknife")
        rows.append(metric_row(label, metric, estimate, predictions.counts, np.zeros(0)))
    return pd.DataFrame(rows)
