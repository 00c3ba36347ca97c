"""How folds score and by how much that varies over patients, for AUROCs and all other metrics.

AUROCs have DeLong's variance (1988), the others that of bootstrap samples of patients.
"""

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
class MeanAuroc:
    """The mean of the folds' AUROCs, as each patient contributes to it.

    Attributes:
        value: the mean.
        by_fold: AUROC by fold.
        repeats: repeat by fold.
        shares: (repeats, 2, patients) how far each patient's positive, then negative studies lie
            from the mean, so that their sums over the repeats are what each adds to it.
        wins: (positive, negative patients) by fold, how often the one ranks above the other.
        classes: number of patients with a positive, and with a negative study.
    """

    value: float
    by_fold: dict[int, float]
    repeats: dict[int, int]
    shares: Array
    wins: dict[int, Array]
    classes: tuple[int, int]

    @property
    def counted_twice(self) -> float:
        """The variance by pairs of patients, which is in the shares of the one and of the other.

        What a fold's wins differ by beyond their rows and columns, for the mean over the folds. In
        small folds, and in a difference of two models, it is most of DeLong's variance.
        """
        total = 0.0
        for wins in self.wins.values():
            rows, columns = wins.shape
            if rows > 1 and columns > 1:
                rest = wins - wins.mean(axis=1, keepdims=True) - wins.mean(axis=0) + wins.mean()
                total += (rest**2).sum() / ((rows - 1) * (columns - 1)) / wins.size
        return total / max(len(self.wins), 1) ** 2

    def variance(self) -> VarianceComponents:
        """The mean with its variance: DeLong's, of several studies a patient Obuchowski's (1997).

        The degrees of freedom are those of Welch (1947) and Satterthwaite (1946).
        """
        shares = self.shares.sum(axis=0)
        count = [size / max(size - 1, 1) for size in (*self.classes, shares.shape[1])]
        by_class = [float(count[kind] * (shares[kind] ** 2).sum()) for kind in (0, 1)]
        both = 2 * count[2] * float((shares[0] * shares[1]).sum())
        total = max(sum(by_class) + both, 0.0)
        total = max(total - self.counted_twice, total / 2)
        freedom = [max(size - 1, 1) for size in self.classes]
        weights = sum(part**2 / free for part, free in zip(by_class, freedom, strict=True))
        free = sum(by_class) ** 2 / weights if weights else min(freedom)
        between = between_folds(self.by_fold, self.repeats, total)
        return VarianceComponents(self.value, total, between, float(free))

    def minus(self, other: MeanAuroc) -> MeanAuroc:
        """The same of the difference to another model on the same patients."""
        same = self.by_fold.keys() == other.by_fold.keys() and self.repeats == other.repeats
        if same and self.shares.shape == other.shares.shape:
            by_fold = {fold: value - other.by_fold[fold] for fold, value in self.by_fold.items()}
            shares, repeats = self.shares - other.shares, self.repeats
            wins = {fold: own - other.wins[fold] for fold, own in self.wins.items()}
        else:
            by_fold, repeats, wins = {}, {}, {}
            shares = (self.shares.sum(axis=0) - other.shares.sum(axis=0))[None]
        return MeanAuroc(self.value - other.value, by_fold, repeats, shares, wins, self.classes)


def mean_auroc(labels: Sequence[LabelFolds]) -> MeanAuroc:
    """The mean over the folds, and over several labels of the same patients and folds."""
    of_labels = [_of_label(label) for label in labels]
    first = of_labels[0]
    if len(of_labels) == 1:
        return first
    common = [fold for fold in first.by_fold if all(fold in own.by_fold for own in of_labels)]
    by_fold = {fold: float(np.mean([own.by_fold[fold] for own in of_labels])) for fold in common}
    same = len({own.shares.shape for own in of_labels}) == 1
    shares = [own.shares if same else own.shares.sum(axis=0)[None] for own in of_labels]
    classes = (min(own.classes[0] for own in of_labels), min(own.classes[1] for own in of_labels))
    repeats = {fold: first.repeats[fold] for fold in common}
    value = float(np.mean([own.value for own in of_labels]))
    mean_shares = np.mean(shares, axis=0)
    return MeanAuroc(value, by_fold if same else {}, repeats, mean_shares, {}, classes)


def _of_label(label: LabelFolds) -> MeanAuroc:
    """The mean of the folds' AUROCs with the share of each patient.

    Each study's placement among the other class of its fold is held against the mean over all
    folds, so that a fold with a single positive study says its part too.
    """
    by_fold, patient_wins, places = {}, {}, {}
    for fold, rows in label.rows.items():
        positive, scores = label.truth[rows] == 1, label.probabilities[rows]
        wins = (np.sign(scores[positive][:, None] - scores[~positive]) + 1) / 2
        by_fold[fold] = float(wins.mean())
        of_positive = _mean_by_owner(wins, label.owner[rows[positive]])
        patient_wins[fold] = _mean_by_owner(of_positive.T, label.owner[rows[~positive]]).T
        of_negative = (rows[~positive], wins.mean(axis=0))
        places[fold] = ((rows[positive], wins.mean(axis=1)), of_negative)
    value = float(np.mean(list(by_fold.values())))
    repeats = {fold: int(label.repeats[rows[0]]) for fold, rows in label.rows.items()}
    order = {repeat: number for number, repeat in enumerate(sorted(set(repeats.values())))}
    shares = np.zeros((len(order), 2, label.everyone))
    for fold, sides in places.items():
        for side, (rows, placed) in enumerate(sides):
            share = (placed - value) / (len(rows) * len(places))
            sums = np.bincount(label.owner[rows], share, label.everyone)
            shares[order[repeats[fold]], side] += sums
    return MeanAuroc(value, by_fold, repeats, shares, patient_wins, label.classes)


def _mean_by_owner(values: Array, owner: Array) -> Array:
    """The mean over the studies of each owner, (owners, ...)."""
    owners, number = np.unique(owner, return_inverse=True)
    member = (number == np.arange(len(owners))[:, None]).astype(float)
    return member @ values / member.sum(axis=1, keepdims=True)


# ------------------------------------------------------------------------------- bootstrap samples


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

        `rarer` is the number of patients of the rarer class, `support` of those behind the metric.
        """
        samples = self.samples[metric]
        defined = float(np.isfinite(samples).mean())
        spread = float(np.nanvar(samples)) * rarer / max(rarer - 1, 1) if defined else 0.0
        between = between_folds(self.by_fold[metric], self.repeats, spread)
        freedom = max(support - 1, 1)
        return VarianceComponents(self.values[metric], spread, between, freedom), defined


def weighted_sum(terms: Sequence[Resampled], weights: Sequence[float]) -> Resampled:
    """Add metrics that were resampled alike, as for a mean or a difference."""
    first = terms[0]
    repeats = first.repeats if all(term.repeats == first.repeats for term in terms) else {}

    def total(values: list) -> Any:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    by_fold = {
        name: {fold: total([term.by_fold[name][fold] for term in terms]) for fold in repeats}
        for name in first.values
    }
    values = {name: total([term.values[name] for term in terms]) for name in first.values}
    samples = {name: total([term.samples[name] for term in terms]) for name in first.values}
    return Resampled(values, samples, by_fold, repeats)


def draw_patients(patient_known: Array, resamples: int) -> list[Array]:
    """How often each patient is drawn, (some resamples, patients) each.

    Who is nan in `patient_known` (patients,) is never drawn.
    """
    size = max(1, 1_000_000 // max(len(patient_known), 1))
    return [
        weights
        for start in range(0, resamples, size)
        for weights in bootstrap_weights(patient_known, None, min(size, resamples - start), start)
    ]


def resample(label: LabelFolds, weights: Sequence[Array]) -> Resampled:
    """Compute a label's metrics, also in the bootstrap samples of `draw_patients`."""
    values, by_fold = _weighted_metrics(label, np.ones((1, label.everyone)))
    drawn = [_weighted_metrics(label, pieces)[0] for pieces in weights]
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
    cells = confusion_cells(label.called, label.truth == 1)
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
        of_rows = weights[:, label.owner[rows]]
        by_fold[int(fold)] = _from_sums(sums) | {
            name: compute(label.truth[rows], label.probabilities[rows], weights=of_rows)
            for name, compute in ranked.items()
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
