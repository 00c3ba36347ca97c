"""The metrics of folds in bootstrap samples of patients, of all metrics but the AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseq_tf.evaluation.cross_validation.predictions import LabelFolds
from medseq_tf.evaluation.cross_validation.variance import VarianceComponents, between_folds
from medseq_tf.evaluation.metrics.catalogue import CATALOGUE
from medseq_tf.evaluation.metrics.point_metrics import (
    Array,
    Confusion,
    confusion_cells,
    mean_of_numbers,
    ratio,
)
from medseq_tf.evaluation.metrics.resampling import bootstrap_weights


@dataclass(frozen=True)
class Resampled:
    """Metrics of one model, as they are and in bootstrap samples of patients.

    Attributes:
        values: by metric.
        samples: (resamples,) by metric.
        by_fold: by metric and fold; nan where a fold cannot say.
        repeats: repeat by fold.
    """

    values: dict[str, float]
    samples: dict[str, Array]
    by_fold: dict[str, dict[int, float]]
    repeats: dict[int, int]

    def variance(self, metric: str, rarer: int, support: int) -> tuple[VarianceComponents, float]:
        """A metric with its variance, and the share of the resamples in which it is defined.

        Args:
            metric: its name.
            rarer: number of patients of the rarer class.
            support: number of patients behind the metric.
        """
        samples = self.samples[metric]
        defined = float(np.isfinite(samples).mean())
        spread = float(np.nanvar(samples)) * rarer / max(rarer - 1, 1) if defined else 0.0
        between = between_folds(self.by_fold[metric], self.repeats, spread)
        freedom = max(support - 1, 1)
        return VarianceComponents(self.values[metric], spread, between, freedom), defined


def weighted_sum(parts: Sequence[Resampled], weights: Sequence[float]) -> Resampled:
    """Add metrics that were resampled alike, as for a mean or a difference."""
    first = parts[0]
    repeats = first.repeats if all(part.repeats == first.repeats for part in parts) else {}

    def total(values: list) -> Any:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    by_fold = {
        name: {fold: total([part.by_fold[name][fold] for part in parts]) for fold in repeats}
        for name in first.values
    }
    values = {name: total([part.values[name] for part in parts]) for name in first.values}
    samples = {name: total([part.samples[name] for part in parts]) for name in first.values}
    return Resampled(values, samples, by_fold, repeats)


def draw_patients(patient_known: Array, resamples: int, seed: int) -> list[Array]:
    """How often each patient is drawn, (some resamples, patients) each.

    Args:
        patient_known: (patients,) nan for those who are never drawn.
        resamples: their number, of all pieces together.
        seed: of the draws.
    """
    size = max(1, 1_000_000 // max(len(patient_known), 1))
    return [
        weights
        for start in range(0, resamples, size)
        for weights in bootstrap_weights(
            patient_known, None, min(size, resamples - start), seed + start
        )
    ]


def resample(label: LabelFolds, weights: Sequence[Array]) -> Resampled:
    """Compute the metrics in bootstrap samples.

    Args:
        label: the predictions.
        weights: (some resamples, patients) each, how often each patient was drawn.
    """
    values, by_fold = _weighted_metrics(label, np.ones((1, label.everyone)))
    drawn = [_weighted_metrics(label, some)[0] for some in weights]
    return Resampled(
        {name: float(value[0]) for name, value in values.items()},
        {name: np.concatenate([sample[name] for sample in drawn]) for name in values},
        {name: {fold: float(own[name][0]) for fold, own in by_fold.items()} for name in values},
        {fold: int(label.repeats[label.folds == fold][0]) for fold in by_fold},
    )


def _weighted_metrics(
    label: LabelFolds, weights: Array
) -> tuple[dict[str, Array], dict[int, dict[str, Array]]]:
    """Metrics for weighted patients (resamples, patients): over all folds, and of each."""
    cells = confusion_cells(label.probabilities >= label.thresholds, label.truth == 1)
    losses = [
        metric.compute(label.truth, label.probabilities)
        for metric in CATALOGUE.values()
        if metric.kind == "loss"
    ]
    columns = np.stack([*cells, *losses, np.ones(len(label.truth))], axis=1)
    ranked = {
        name: metric.compute
        for name, metric in CATALOGUE.items()
        if metric.kind in ("ranking", "trade-off") and metric.interval != "DeLong"
    }
    total = np.zeros((len(weights), columns.shape[1]))
    by_fold: dict[int, dict[str, Array]] = {}
    for fold in np.unique(label.folds):
        rows = np.flatnonzero(label.folds == fold)
        of_patients = np.zeros((label.everyone, columns.shape[1]))
        np.add.at(of_patients, label.owner[rows], columns[rows])
        sums = weights @ of_patients
        total = total + sums
        arguments, of_rows = (
            (label.truth[rows], label.probabilities[rows]),
            weights[:, label.owner[rows]],
        )
        by_fold[int(fold)] = _from_sums(sums) | {
            name: compute(*arguments, weights=of_rows) for name, compute in ranked.items()
        }
    means = {
        name: mean_of_numbers(np.stack([own[name] for own in by_fold.values()])) for name in ranked
    }
    return _from_sums(total) | means, by_fold


def _from_sums(sums: Array) -> dict[str, Array]:
    """What follows from sums over studies (..., columns): four counts, losses, studies."""
    counts = Confusion(*np.moveaxis(sums[..., :4], -1, 0))
    decisions = {
        name: metric.compute(counts)
        for name, metric in CATALOGUE.items()
        if metric.kind == "decision"
    }
    losses = [name for name, metric in CATALOGUE.items() if metric.kind == "loss"]
    return decisions | {
        name: ratio(sums[..., 4 + i], sums[..., -1]) for i, name in enumerate(losses)
    }
