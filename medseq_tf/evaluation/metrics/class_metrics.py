"""Metrics of classes that exclude each other, without intervals, for weighted studies.

As in `point_metrics`, each metric is written once for weights (studies,) or (resamples, studies). A
macro mean is over the classes for which the figure is defined, as scikit-learn's: recall and AUROC
of those that have a study, F1 of those that have a study or are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from medseq_tf.errors import InputError
from medseq_tf.evaluation.metrics.calibration import expected_calibration_error
from medseq_tf.evaluation.metrics.calls import call
from medseq_tf.evaluation.metrics.point_metrics import Array, auroc, mean_of_numbers, ratio


@dataclass(frozen=True)
class ClassPredictions:
    """What a model tells of the studies whose class is known.

    Attributes:
        truth: (studies,) numbers of the true classes.
        probabilities: (studies, classes).
        called: (studies,) numbers of the called classes.
        costs: (classes, classes) of a call, true by called; 1 of a wrong one where none are given.
    """

    truth: Array
    probabilities: Array
    called: Array
    costs: Array

    @classmethod
    def of(
        cls,
        truth: Array,
        probabilities: Array,
        called: Array | None = None,
        costs: Array | None = None,
    ) -> tuple[ClassPredictions, Array]:
        """Check arrays as `class_point_metrics` takes them, and leave out unknown classes.

        Returns:
            The predictions, and which studies they are of, (studies,) bool.

        Raises:
            InputError: rows that are not one-hot or nan, probabilities that are not in [0, 1] or do
                not add up to 1, calls that are no class, or shapes that do not fit.
        """
        truth, probabilities = np.asarray(truth, dtype=float), np.asarray(probabilities, float)
        if truth.ndim != 2 or truth.shape != probabilities.shape:
            raise InputError(
                f"truth {truth.shape} and probabilities {probabilities.shape} do not fit: expected "
                "both (studies, classes)"
            )
        classes = truth.shape[1]
        known = ~np.isnan(truth).all(axis=1)
        wrong = known & ~(np.isin(truth, (0, 1)).all(axis=1) & (truth.sum(axis=1) == 1))
        if wrong.any():
            raise InputError(
                f"truth {truth[wrong][0].tolist()} of study {wrong.argmax()}: expected one 1 and "
                "else 0, or all nan"
            )
        inside = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)
        wrong = known & ~(inside & (np.abs(probabilities.sum(axis=1) - 1) < 1e-3))
        if wrong.any():
            raise InputError(
                f"probabilities {probabilities[wrong][0].tolist()} of study {wrong.argmax()}: "
                "expected numbers in [0, 1] that add up to 1"
            )
        if costs is not None and np.shape(costs) != (classes, classes):
            raise InputError(
                f"costs {np.shape(costs)} of {classes} classes: expected ({classes}, {classes})"
            )
        called = call(probabilities, costs) if called is None else np.asarray(called)
        costs = 1 - np.eye(classes) if costs is None else np.asarray(costs, dtype=float)
        if called.shape != known.shape or not np.isin(called[known], range(classes)).all():
            raise InputError(
                f"called {called.shape} of {len(known)} studies: expected the number of a class, "
                f"0 to {classes - 1}, for each"
            )
        of_known = (truth[known].argmax(axis=1), probabilities[known], called[known].astype(int))
        return cls(*of_known, costs), known

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.probabilities.shape[1]

    @property
    def one_hot(self) -> Array:
        """The truth as (studies, classes) of 0.0 and 1.0."""
        return (self.truth[:, None] == np.arange(self.classes)).astype(float)

    @property
    def top(self) -> tuple[Array, Array]:
        """Whether the most probable class is right, 0.0 or 1.0, and its probability."""
        right = (self.truth == call(self.probabilities)).astype(float)
        return right, self.probabilities.max(axis=1)

    def pair(self, first: int, second: int) -> Array:
        """Labels (studies,) of two classes: 1 for the first, 0 for the second, nan for others."""
        second_or_unknown = np.where(self.truth == second, 0.0, np.nan)
        return np.where(self.truth == first, 1.0, second_or_unknown)

    def counts(self, weights: Array) -> Array:
        """How many studies of each class are called which: (..., true, called)."""
        cells = self.truth * self.classes + self.called
        counts = weights @ (cells[:, None] == np.arange(self.classes**2)).astype(float)
        return counts.reshape(*counts.shape[:-1], self.classes, self.classes)


# ------------------------------------------------------------------ what a study adds, (studies,)


def is_right(predictions: ClassPredictions) -> Array:
    """Whether the call is right."""
    return (predictions.truth == predictions.called).astype(float)


def grades_off(predictions: ClassPredictions) -> Array:
    """How many grades the call is away from the truth."""
    return np.abs(predictions.truth - predictions.called).astype(float)


def cross_entropy(predictions: ClassPredictions) -> Array:
    """Negative logarithm of the true class's probability.

    It is kept 2.2e-16, the precision of float64, away from 0 and 1, as scikit-learn's `log_loss`
    does: a probability of 0 for what is true costs 36.
    """
    of_truth = np.take_along_axis(predictions.probabilities, predictions.truth[:, None], 1)[:, 0]
    least = np.finfo(float).eps
    return -np.log(np.clip(of_truth, least, 1 - least))


def squared_distance(predictions: ClassPredictions) -> Array:
    """Squared differences of probabilities and truth, added over the classes (Brier 1950)."""
    return ((predictions.probabilities - predictions.one_hot) ** 2).sum(axis=1)


def cost_of_call(predictions: ClassPredictions) -> Array:
    """What the call costs."""
    return predictions.costs[predictions.truth, predictions.called]


# --------------------------------------------------------------------------- of weighted studies


def balanced_accuracy(predictions: ClassPredictions, weights: Array) -> Array:
    """Mean of the classes' recalls."""
    counts = predictions.counts(weights)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return mean_of_numbers(np.moveaxis(ratio(hits, counts.sum(axis=-1)), -1, 0))


def f1_macro(predictions: ClassPredictions, weights: Array) -> Array:
    """Mean of the classes' F1."""
    counts = predictions.counts(weights)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = ratio(2 * hits, counts.sum(axis=-1) + counts.sum(axis=-2))
    return mean_of_numbers(np.moveaxis(f1, -1, 0))


def disagreements(classes: int, ordered: bool) -> Array:
    """How far classes disagree, (classes, classes) in [0, 1]; grades by the squared distance."""
    numbers = np.arange(classes)
    apart = np.abs(numbers[:, None] - numbers)
    return (apart / max(classes - 1, 1)) ** 2 if ordered else (apart > 0).astype(float)


def chance_disagreement(predictions: ClassPredictions, weights: Array, ordered: bool) -> Array:
    """The mean disagreement of calls that are dealt to the studies at random."""
    counts = predictions.counts(weights)
    true, called = counts.sum(axis=-1), counts.sum(axis=-2)
    apart = disagreements(predictions.classes, ordered)
    pairs = ((true @ apart) * called).sum(axis=-1)
    return ratio(pairs, weights.sum(axis=-1) ** 2)


def kappa(predictions: ClassPredictions, weights: Array, ordered: bool = False) -> Array:
    """Cohen's kappa (1960), of grades weighted by the squared distance (Cohen 1968).

    1 less the mean disagreement over that by chance; nan where all truths and calls are one class.
    """
    apart = disagreements(predictions.classes, ordered)[predictions.truth, predictions.called]
    observed = ratio(weights @ apart, weights.sum(axis=-1))
    return 1 - ratio(observed, chance_disagreement(predictions, weights, ordered))


def kappa_quadratic(predictions: ClassPredictions, weights: Array) -> Array:
    """Quadratically weighted kappa of grades."""
    return kappa(predictions, weights, ordered=True)


def auroc_macro(predictions: ClassPredictions, weights: Array) -> Array:
    """Mean of the classes' AUROCs, each one against the rest."""
    columns = zip(predictions.one_hot.T, predictions.probabilities.T, strict=True)
    return mean_of_numbers(np.stack([auroc(*column, weights) for column in columns]))


def auroc_pairwise(predictions: ClassPredictions, weights: Array) -> Array:
    """Mean over pairs of classes of how well they are told apart (Hand and Till 2001, eq. 7).

    Of a pair it is the mean of two AUROCs of their studies, by either class's probability.
    """
    pairs = permutations(range(predictions.classes), 2)
    return mean_of_numbers(
        np.stack(
            [
                auroc(predictions.pair(i, j), predictions.probabilities[:, i], weights)
                for i, j in pairs
            ]
        )
    )


def top_calibration_error(predictions: ClassPredictions, weights: Array) -> Array:
    """Expected calibration error of the most probable class (Guo et al. 2017, equation 3)."""
    return expected_calibration_error(*predictions.top, weights=weights)


def mean_over_studies(each: Callable[[ClassPredictions], Array]) -> Callable[..., Array]:
    """The metric that is the mean of what each study adds."""

    def metric(predictions: ClassPredictions, weights: Array) -> Array:
        return ratio(weights @ each(predictions), weights.sum(axis=-1))

    return metric


# -------------------------------------------------------------------------------------- catalogue


CLASS_METRICS: dict[str, Callable[[ClassPredictions, Array], Array]] = {
    "accuracy": mean_over_studies(is_right),
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc_macro,
    "auroc_pairwise": auroc_pairwise,
    "f1_macro": f1_macro,
    "kappa": kappa,
    "kappa_quadratic": kappa_quadratic,
    "mean_absolute_error": mean_over_studies(grades_off),
    "log_loss": mean_over_studies(cross_entropy),
    "brier": mean_over_studies(squared_distance),
    "expected_calibration_error": top_calibration_error,
    "expected_cost": mean_over_studies(cost_of_call),
}
"""The metrics of the classes together, in a table's order: (predictions, weights) -> (...)."""

OF_GRADES = ("kappa_quadratic", "mean_absolute_error")
"""Those that ordered classes alone have."""


def class_metric_names(ordered: bool, costs: bool) -> list[str]:
    """The metrics of classes that are ordered or not, with costs or without."""
    left_out = {*(() if ordered else OF_GRADES), *(() if costs else ["expected_cost"])}
    return [name for name in CLASS_METRICS if name not in left_out]


def class_point_metrics(
    truth: Array,
    probabilities: Array,
    called: Array | None = None,
    ordered: bool = False,
    costs: Array | None = None,
    weights: Array | None = None,
) -> dict[str, Array]:
    """Compute the metrics of `CLASS_METRICS` that the classes have, without intervals.

    Args:
        truth: (studies, classes) one-hot; a row of nan is unknown and left out.
        probabilities: (studies, classes), which add up to 1.
        called: (studies,) numbers of the called classes; None: as `call` calls them.
        ordered: whether the classes are grades, the lowest first.
        costs: (classes, classes), true by called.
        weights: (studies,) or (resamples, studies).

    Raises:
        InputError: arrays of another shape, or numbers that are none of these.
    """
    predictions, known = ClassPredictions.of(truth, probabilities, called, costs)
    weights = np.ones(len(known)) if weights is None else np.asarray(weights, dtype=float)
    weights = weights[..., known]
    names = class_metric_names(ordered, costs is not None)
    return {name: CLASS_METRICS[name](predictions, weights) for name in names}
