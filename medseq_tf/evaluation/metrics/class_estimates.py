"""Intervals over patients of the metrics of classes that exclude each other.

The methods are those of `label_estimates`. Of the classes together:

`Wilson`, `Wilson, effective n`: accuracy, a share of the studies.
`combined`: balanced accuracy, macro AUROC and macro F1, from the intervals of the classes, each one
  against the rest; the pairwise AUROC from those of the pairs.
`score, jackknife`: kappas, the mean absolute error, the Brier score and the expected cost: Wilson's
  interval of a share with the variance that the jackknife over patients gives, the share being
  where a figure lies from its best value to its worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from scipy import stats

from medseq_tf.evaluation.metrics.auc_intervals import delong_interval
from medseq_tf.evaluation.metrics.calibration import null_calibration_error
from medseq_tf.evaluation.metrics.catalogue import CATALOGUE
from medseq_tf.evaluation.metrics.class_metrics import (
    CLASS_METRICS,
    ClassPredictions,
    chance_disagreement,
    class_metric_names,
)
from medseq_tf.evaluation.metrics.estimates import DESCRIBED, FEW_PATIENTS, Estimate
from medseq_tf.evaluation.metrics.label_estimates import LabelPredictions, mean_of
from medseq_tf.evaluation.metrics.point_metrics import TAILS, Array, auroc, owners_of
from medseq_tf.evaluation.metrics.proportions import effective_interval, wilson_interval
from medseq_tf.evaluation.metrics.resampling import (
    influences,
    jackknife_groups,
    jackknife_variance,
    left_out_weights,
    owners_by_content,
)
from medseq_tf.readers.classes import Classes

MEAN_OF_CLASSES = {"balanced_accuracy": "recall", "auroc": "auroc", "f1_macro": "f1"}
"""The figures of the classes together that are the mean of those of each one against the rest."""


def one_against_rest_names() -> list[str]:
    """The metrics of `CATALOGUE` that a class has, against the rest.

    There is no cut to choose; and accuracy, or a mean of the class and the rest, would be read as
    those of all classes.
    """
    return [
        name
        for name, metric in CATALOGUE.items()
        if metric.kind != "trade-off" and not metric.mean_of and name != "accuracy"
    ]


@dataclass(frozen=True)
class ClassFigures:
    """One model's predictions of studies of known class, and whose they are.

    Attributes:
        predictions: of the studies.
        classes: their names.
        patients: (studies,) owners.
        metrics: the names of those that they have of `CLASS_METRICS`.
    """

    predictions: ClassPredictions
    classes: Classes
    patients: Array
    metrics: list[str]

    @classmethod
    def of(
        cls,
        truth: Array,
        probabilities: Array,
        classes: Classes,
        called: Array | None = None,
        patients: Array | None = None,
        costs: Array | None = None,
    ) -> ClassFigures:
        """Check arrays as `evaluate_classes` takes them, and leave out unknown classes."""
        predictions, known = ClassPredictions.of(truth, probabilities, called, costs)
        if patients is None:
            owners = owners_by_content(predictions.one_hot, predictions.probabilities)
        else:
            owners = owners_of(patients, len(known))[known]
        metrics = class_metric_names(classes.ordered, costs is not None)
        return cls(predictions, classes, owners, metrics)

    @property
    def patient_count(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.patients))

    @property
    def has_one_study_each(self) -> bool:
        """Whether no patient has several studies."""
        return self.patient_count == len(self.patients)

    def patients_by_class(self) -> list[int]:
        """How many patients have a study of each class."""
        truth = self.predictions.truth
        return [len(np.unique(self.patients[truth == k])) for k in range(len(self.classes.names))]

    def counts(self) -> tuple[int, int, int]:
        """How many studies there are, how many have one of the classes, and how many patients."""
        studies = len(self.predictions.truth)
        return studies, studies, self.patient_count

    def remark(self) -> str:
        """That the rarest class has too few patients to conclude from; empty if it has enough."""
        present = [count for count in self.patients_by_class() if count]
        fewest = min(present, default=0)
        if not 0 < fewest < FEW_PATIENTS:
            return ""
        rarest = self.classes.names[self.patients_by_class().index(fewest)]
        return f"{fewest} patient{'s' * (fewest > 1)} of {rarest}: {DESCRIBED}"

    def against_rest(self) -> dict[str, LabelPredictions]:
        """Each class as a label by its name, positive where it is called."""
        predictions = self.predictions
        return {
            name: LabelPredictions(
                name,
                predictions.one_hot[:, k],
                predictions.probabilities[:, k],
                # All that are called lie above this threshold, and no other.
                np.where(predictions.called == k, 0.0, 2.0),
                self.patients,
            )
            for k, name in enumerate(self.classes.names)
        }

    def estimates_by_class(self) -> dict[str, dict[str, Estimate]]:
        """Estimate the metrics of each class against the rest: by class, then by metric."""
        names = one_against_rest_names()
        return {name: label.estimates(names) for name, label in self.against_rest().items()}

    def estimates(self, by_class: dict[str, dict[str, Estimate]]) -> dict[str, Estimate]:
        """Estimate the metrics of the classes together, given those of each against the rest."""
        weights, groups = np.ones(len(self.patients)), jackknife_groups(self.patients)
        pieces = list(left_out_weights(groups))
        found = {}
        for name in self.metrics:
            if name in MEAN_OF_CLASSES:
                parts = {label: of[MEAN_OF_CLASSES[name]] for label, of in by_class.items()}
                found[name] = self._mean(parts)
            elif name == "auroc_pairwise":
                found[name] = self._mean(self._pairs(pieces))
            else:
                metric = CLASS_METRICS[name]
                value = float(metric(self.predictions, weights))
                without = [metric(self.predictions, piece) for piece in pieces]
                influence = influences(np.concatenate(without)) if without else np.zeros(0)
                found[name] = replace(self._own(name, value, influence), influence=influence)
        return found

    def _pairs(self, pieces: Sequence[Array]) -> dict[str, Estimate]:
        """The AUROC of each class against each other one, by the first one's probability."""
        pairs = {}
        names = self.classes.names
        for i, j in permutations(range(len(names)), 2):
            columns = self.predictions.pair(i, j), self.predictions.probabilities[:, i]
            without = [auroc(*columns, weights) for weights in pieces]
            influence = influences(np.concatenate(without)) if without else np.zeros(0)
            estimate = delong_interval(*columns, self.patients)
            pairs[f"{names[i]} and {names[j]}"] = replace(estimate, influence=influence)
        return pairs

    def _mean(self, parts: dict[str, Estimate]) -> Estimate:
        """The mean of what is defined, with its interval, and a note of what is not."""
        by_class = zip(self.classes.names, self.patients_by_class(), strict=True)
        absent = [name for name, count in by_class if not count]
        notes = [f"without {', '.join(absent)}: no study"] if absent else []
        defined = {name: part for name, part in parts.items() if not np.isnan(part.value)}
        if not defined:
            return Estimate(note="undefined: fewer than two classes")
        mean = mean_of(list(defined.values()))
        notes += [f"{name}: {e.note}" for name, e in defined.items() if not e.has_interval]
        return replace(mean, note="; ".join(filter(None, [*notes, self.remark()])))

    def _own(self, name: str, value: float, influence: Array) -> Estimate:
        """A figure that is no mean of others, with its interval."""
        count = self.patient_count
        if np.isnan(value):
            return Estimate(note="undefined: one class" if len(self.patients) else "no study")
        if name == "expected_calibration_error":
            return Estimate(value, note=_by_chance(self.predictions))
        if count < 2:
            return Estimate(value, note="no interval: one patient")
        if name == "accuracy" and self.has_one_study_each:
            low, high = map(float, wilson_interval(value * count, count))
            return Estimate(value, low, high, self.remark(), "Wilson")
        if name == "log_loss":
            half = stats.t.ppf(TAILS[1], count - 1) * np.sqrt(jackknife_variance(influence)) / value
            low, high = value * np.exp(-half), value * np.exp(half)
            return Estimate(value, float(low), float(high), self.remark(), "log, jackknife")
        best, worst = self.range_of(name)
        if best == worst:
            return Estimate(value, note="no interval: it does not vary")
        share, variance = (value - best) / (worst - best), jackknife_variance(influence)
        bounds = effective_interval(share, variance / (worst - best) ** 2, count)
        low, high = sorted(best + (worst - best) * bound for bound in bounds)
        method = "Wilson, effective n" if name == "accuracy" else "score, jackknife"
        return Estimate(value, low, high, self.remark(), method)

    def range_of(self, name: str) -> tuple[float, float]:
        """The best and the worst that a figure can be."""
        if name.startswith("kappa"):
            weights, ordered = np.ones(len(self.patients)), name == "kappa_quadratic"
            return 1.0, 1 - 1 / float(chance_disagreement(self.predictions, weights, ordered))
        if name == "expected_cost":
            return float(self.predictions.costs.min()), float(self.predictions.costs.max())
        ranges = {"accuracy": (1.0, 0.0), "brier": (0.0, 2.0), "log_loss": (0.0, np.inf)}
        return ranges.get(name, (0.0, len(self.classes.names) - 1.0))

    def reach(self, name: str) -> float:
        """How far a figure of two models can differ."""
        if name.startswith("kappa"):
            return 2.0
        if name in MEAN_OF_CLASSES or name in ("auroc_pairwise", "expected_calibration_error"):
            return 1.0
        best, worst = self.range_of(name)
        return abs(worst - best)


def _by_chance(predictions: ClassPredictions) -> str:
    """Of a calibration error: what right probabilities would have."""
    median, high = null_calibration_error(predictions.top[1])
    return f"no interval: right probabilities have {median:.3f} by chance, 1 of 20 above {high:.3f}"
