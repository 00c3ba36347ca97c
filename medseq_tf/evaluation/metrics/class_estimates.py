"""Intervals over patients of the metrics of classes that exclude each other.

The methods are those of `label_estimates`. Of the classes together:

`Wilson`, `Wilson, effective n`: accuracy, a share of the studies.
`score, jackknife`: AUROCs, kappas, the mean absolute error, log loss, the Brier score and the
  expected cost: Wilson's interval of a share with the variance that the jackknife over patients
  gives, the share being where a figure lies from its best value to its worst. Means over classes
  have as many patients as would give the variance if all classes had equally many.
`score or combined`: balanced accuracy and macro F1: the wider, on either side, of the one above and
  of that from the classes' own intervals. Where a class has a handful of patients the first alone
  is too narrow, where a model is nearly perfect the second.

The expected calibration error has none: it is too great by chance, and the fewer the studies, the
more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import numpy as np

from medseq_tf.evaluation.metrics.calibration import null_calibration_error
from medseq_tf.evaluation.metrics.catalogue import CATALOGUE
from medseq_tf.evaluation.metrics.class_metrics import (
    CLASS_METRICS,
    ClassPredictions,
    chance_disagreement,
    class_metric_names,
    cross_entropy,
)
from medseq_tf.evaluation.metrics.estimates import DESCRIBED, FEW_PATIENTS, Estimate
from medseq_tf.evaluation.metrics.label_estimates import LabelPredictions, mean_of
from medseq_tf.evaluation.metrics.point_metrics import Array, auroc, owners_of
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

NO_STUDY = "no study of a known class"


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
        found = {}
        for name in self.metrics:
            if name in MEAN_OF_CLASSES:
                parts = [of[MEAN_OF_CLASSES[name]] for of in by_class.values()]
                found[name] = self._mean(parts, or_combined=name != "auroc")
            elif name == "auroc_pairwise":
                found[name] = self._mean(self._pairs())
            else:
                plain = self._jackknifed(partial(CLASS_METRICS[name], self.predictions))
                own = self._own(name, plain.value, plain.influence)
                found[name] = replace(own, influence=plain.influence)
        return found

    def _jackknifed(self, metric: Callable[[Array], Array]) -> Estimate:
        """A metric of weights (..., studies) with its influences over patients, no interval."""
        pieces = left_out_weights(jackknife_groups(self.patients))
        without = [np.zeros(0), *map(metric, pieces)]
        value = float(metric(np.ones(len(self.patients))))
        return Estimate(value, influence=influences(np.concatenate(without)))

    def _pairs(self) -> list[Estimate]:
        """The AUROC of each class against each other one, by the first one's probability."""
        pairs = permutations(range(len(self.classes.names)), 2)
        predictions = self.predictions
        return [
            self._jackknifed(
                partial(auroc, predictions.pair(i, j), predictions.probabilities[:, i])
            )
            for i, j in pairs
        ]

    def _mean(self, parts: list[Estimate], or_combined: bool = False) -> Estimate:
        """The mean of what is defined, with its interval, and a note of what is not."""
        patients = dict(zip(self.classes.names, self.patients_by_class(), strict=True))
        absent, single = ([name for name, n in patients.items() if n == m] for m in (0, 1))
        defined = [part for part in parts if not np.isnan(part.value)]
        if not defined:
            return Estimate(note="undefined: no two classes" if self.patient_count else NO_STUDY)
        mean = mean_of(defined)
        notes = [f"without {', '.join(absent)}: no study"] if absent else []
        if single or (or_combined and not mean.has_interval):
            alone = (
                f"one patient of {', '.join(single)}" if single else "a class called has no study"
            )
            note = "; ".join([*notes, f"no interval: {alone}"])
            return Estimate(mean.value, note=note, influence=mean.influence)
        counts = [count for count in patients.values() if count]
        # Of classes that count alike, the rarest gives the most of the variance.
        size = len(counts) ** 2 / sum(1 / count for count in counts)
        low, high = effective_interval(mean.value, jackknife_variance(mean.influence), size)
        method = "score, jackknife"
        if or_combined:
            low, high = min(low, mean.low), max(high, mean.high)
            method = "score or combined"
        note = "; ".join(filter(None, [*notes, self.remark()]))
        return replace(mean, low=low, high=high, method=method, note=note)

    def _own(self, name: str, value: float, influence: Array) -> Estimate:
        """A figure that is no mean of others, with its interval."""
        count = self.patient_count
        if np.isnan(value):
            one_class = "undefined: all studies are of one class and called it"
            return Estimate(note=one_class if count else NO_STUDY)
        if name == "expected_calibration_error":
            return Estimate(value, note=_by_chance(self.predictions))
        if count < 2:
            return Estimate(value, note="no interval: one patient")
        if name == "accuracy" and self.has_one_study_each:
            low, high = map(float, wilson_interval(value * count, count))
            return Estimate(value, low, high, self.remark(), "Wilson")
        best, worst = self.range_of(name)
        if best == worst:
            return Estimate(value, note="no interval: every call costs the same")
        share, variance = (value - best) / (worst - best), jackknife_variance(influence)
        ends = effective_interval(share, variance / (worst - best) ** 2, count)
        bounds = [best + (worst - best) * end for end in ends]
        low, high = (float(bound) for bound in np.clip(sorted(bounds), *self.limits(name)))
        method = "Wilson, effective n" if name == "accuracy" else "score, jackknife"
        return Estimate(value, low, high, self.remark(), method)

    def range_of(self, name: str) -> tuple[float, float]:
        """The values of a figure that are a share of 0 and of 1, for the interval.

        Of a kappa, all calls right and all as far as can be from right. A log loss has no worst
        value: twice the greatest of a study, or of equally probable classes if that is more, so
        that studies worse than those seen are allowed for.
        """
        if name.startswith("kappa"):
            weights, ordered = np.ones(len(self.patients)), name == "kappa_quadratic"
            return 1.0, 1 - 1 / float(chance_disagreement(self.predictions, weights, ordered))
        if name == "log_loss":
            greatest = float(cross_entropy(self.predictions).max())
            return 0.0, 2 * max(greatest, float(np.log(len(self.classes.names))))
        return self.limits(name)

    def limits(self, name: str) -> tuple[float, float]:
        """The least and the greatest that a figure can be."""
        if name == "expected_cost":
            return float(self.predictions.costs.min()), float(self.predictions.costs.max())
        limits = {
            "kappa": (-1.0, 1.0),
            "kappa_quadratic": (-1.0, 1.0),
            "mean_absolute_error": (0.0, len(self.classes.names) - 1.0),
            "log_loss": (0.0, np.inf),
            "brier": (0.0, 2.0),
        }
        return limits.get(name, (0.0, 1.0))

    def reach(self, name: str) -> float:
        """How far a figure of two models can differ."""
        low, high = self.limits(name)
        return high - low


def _by_chance(predictions: ClassPredictions) -> str:
    """Of a calibration error: what right probabilities would have."""
    median, high = null_calibration_error(predictions.top[1])
    return f"no interval: right probabilities have {median:.3f} by chance, 1 of 20 above {high:.3f}"
