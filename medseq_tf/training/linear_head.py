"""The linear head that is solved, not trained: L2 logistic regression on one vector a study.

The vectors are standardised by the studies that it learns from. What is minimised is what
scikit-learn's `LogisticRegression` minimises: the sum of the weighted losses times the strength C,
plus half the sum of the squared weights; the bias is free. It is solved by L-BFGS-B (Byrd et al.
1995) in the principal axes of the vectors, of which there are no more than studies and in which the
minimum is the same, each axis scaled by the curvature that it begins with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from medseq_tf.dataset.covariate_values import covariate_values
from medseq_tf.evaluation.inference import model_vectors
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models.losses import class_weights, label_weights
from medseq_tf.readers.classes import LABELS
from medseq_tf.recipe import Experiment
from medseq_tf.training.beginning import model_and_features

STRENGTHS = np.logspace(-0.5, 2, 6)
"""Those that `auto` tries, each over the number of features that vary. The penalty is a normal
prior of the weights, in which a study's logit then has the root as its deviation: 0.6 to 10."""

DEFAULT_STRENGTH = STRENGTHS[2]
"""Likewise: the middle of the prior of the strength, and the one where too few patients are known
to choose one, see `fit_linear`."""

PENALTIES = (np.log10(STRENGTHS / DEFAULT_STRENGTH) / 0.5) ** 2 / 2
"""Of each strength, beside the sum of the losses: minus the logarithm of a normal prior with a
deviation of half a decade. Few patients tell little of the strength, many outweigh it."""

INNER_FOLDS = 5

VARIES = 1e-5
"""A feature whose deviation is not above this share of its mean is left out."""

TOLERANCE = 1e-7
INNER_TOLERANCE = 1e-3
"""Largest derivative, by an axis scaled to a curvature of 1, that is left of the summed loss."""


@dataclass(frozen=True)
class LinearFit:
    """A fitted linear head.

    Attributes:
        kernel: `(features, outputs)` float64, of vectors as they are, not standardised.
        bias: `(outputs,)`.
        strength: C of each label, or the one of the classes.
        outputs: what the vectors tell of: `labels`, or classes.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: tuple[float, ...]
    outputs: str

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """Return the log-odds of labels, or the scores of classes that a softmax takes.

        Args:
            vectors: `(studies, features)`.

        Returns:
            `(studies, outputs)`.
        """
        return np.asarray(vectors, np.float64) @ self.kernel + self.bias

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return the probability of each label or class, `(studies, outputs)`."""
        logits = self.logits(vectors)
        return expit(logits) if self.outputs == LABELS else softmax(logits, axis=1)


def study_vectors(
    recipe: Experiment,
    store: SliceStore,
    features: os.PathLike | None = None,
    rows: np.ndarray | None = None,
    verbose: bool = False,
) -> np.ndarray:
    """Return the vectors of studies that a recipe's linear head is called with.

    The first are those that it is fitted to. Where the recipe mirrors slices, others follow, and
    the probability is the mean.

    Numbers among the covariates are as they are, and NaN where they are missing; see `filled`.

    Args:
        recipe: with `fit.solver` = `lbfgs`.
        store: the prepared data set's slices.
        features: the folder for stored features, or a `FeaturePlace`; None: in memory alone.
        rows: of the prepared data set, `(studies,)`; None: all.
        verbose: show progress.

    Returns:
        `(sequences, studies, features)` float32.
    """
    model, stored = model_and_features(recipe, store, features, verbose)
    rows = np.arange(len(store.prepared)) if rows is None else rows
    vectors = model_vectors(model, store, rows, recipe, stored)
    if model.covariates is not None:
        values = covariate_values(store.prepared, model.covariates.names)[rows]
        numbers = model.covariates.numbers
        own = vectors[..., -model.covariates.width :]
        own[..., list(numbers.values())] += 0 * values[:, list(numbers)]
    return vectors


def filled(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return vectors with the mean of some rows where they are NaN, 0 where these are all NaN.

    So a missing number is what a run that is trained on these rows takes it for.
    """
    is_missing = np.isnan(vectors)
    known = (~is_missing[rows]).sum(axis=0)
    sums = np.nansum(vectors[rows], axis=0, dtype=np.float64)
    return np.where(is_missing, sums / np.maximum(known, 1), vectors)


def fit_linear(
    vectors: np.ndarray,
    labels: np.ndarray,
    outputs: str,
    owners: Sequence[str] | np.ndarray,
    strength: Literal["auto"] | float = "auto",
    weights: str | list[float] = "none",
    seed: int = 0,
) -> LinearFit:
    """Fit a linear head to the vectors of some studies.

    Labels are fitted one by one, each to the studies of which it is known; classes together, by the
    softmax, two classes as one label.

    `auto` is the strength of a fixed grid with the least log loss of the studies that are left out,
    with all of their owner's, in five stratified folds, and of a prior (`PENALTIES`); the vectors
    are standardised once for all folds. Who is the only owner of a class is never left out.
    Unless two classes have two owners, the strength is 3.2 over the number of features that vary.

    Where nothing is known of a class, or of one side of a label, it gets the probability that half
    a study would give it, whatever the vector.

    Args:
        vectors: `(studies, features)`.
        labels: `(studies, outputs)`, 1 and 0, NaN where unknown; of classes one-hot.
        outputs: `labels`, or `classes` or `ordered`, whose order is not read.
        owners: `(studies,)`, the patient of each, or whatever else is to be left out as a whole.
        strength: C, or `auto`.
        weights: as `recipe.Loss.weights`.
        seed: decides who is left out together.
    """
    task = _Task(_Axes(vectors), np.asarray(owners), strength, seed)
    labels = np.asarray(labels, np.float64)
    if outputs == LABELS:
        each = zip(labels.T, *label_weights(labels, weights), strict=True)
        columns, chosen = zip(*(task.of_label(*of_one) for of_one in each), strict=True)
        coefficients = np.stack(columns, axis=1)
    else:
        coefficients, one_strength = task.of_classes(labels, class_weights(labels, weights))
        chosen = (one_strength,)
    return LinearFit(*task.axes.back(coefficients), chosen, outputs)


class _Axes:
    """Vectors `(studies, features)`, standardised, in their principal axes.

    Attributes:
        varies: `(features,)`, which features are not left out.
        values: `(studies, axes)`.
        sizes: `(axes,)`, the sum of the squares of each.
    """

    def __init__(self, vectors: np.ndarray):
        vectors = np.asarray(vectors, np.float64)
        mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
        self.varies = deviation > VARIES * np.abs(mean)
        self._mean, self._deviation = mean[self.varies], deviation[self.varies]
        self._standardised = (vectors[:, self.varies] - self._mean) / self._deviation
        self._by_study = len(vectors) <= self.varies.sum()
        rows = self._standardised if self._by_study else self._standardised.T  # the fewer
        sizes, axes = np.linalg.eigh(rows @ rows.T)
        kept = sizes > 1e-12 * sizes.max(initial=0.0)
        self.sizes, self._axes = sizes[kept], axes[:, kept]
        if self._by_study:
            self.values = self._axes * np.sqrt(self.sizes)
        else:
            self.values = self._standardised @ self._axes

    def back(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel `(features, outputs)` and bias `(outputs,)` of vectors as they are.

        Args:
            coefficients: `(axes + 1, outputs)`, the bias last.
        """
        by_axis, bias = coefficients[:-1], coefficients[-1]
        if self._by_study:
            of_study = self._axes @ (by_axis / np.sqrt(self.sizes)[:, None])
            by_feature = self._standardised.T @ of_study
        else:
            by_feature = self._axes @ by_axis
        kernel = np.zeros((len(self.varies), by_axis.shape[1]))
        kernel[self.varies] = by_feature / self._deviation[:, None]
        return kernel, bias - self._mean @ kernel[self.varies]


class _Task(NamedTuple):
    """What is to be fitted, but for labels or classes: see `fit_linear`."""

    axes: _Axes
    owners: np.ndarray
    strength: Literal["auto"] | float
    seed: int

    def of_label(
        self, labels: np.ndarray, positive_weight: float, negative_weight: float
    ) -> tuple[np.ndarray, float]:
        """Return coefficients `(axes + 1,)` and strength of one label `(studies,)`."""
        positive, negative = labels == 1, labels == 0
        if not (positive.any() and negative.any()):
            constant = np.zeros(len(self.axes.sizes) + 1)
            constant[-1] = np.log((positive.sum() + 0.5) / (negative.sum() + 0.5))
            return constant, self._scaled(DEFAULT_STRENGTH)
        kind = np.where(positive, 1, np.where(negative, 0, -1))
        weights = positive_weight * positive + negative_weight * negative
        coefficients, strength = self._solve(positive[:, None].astype(float), weights, kind)
        return coefficients[:, 0], strength

    def of_classes(self, classes: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
        """Return coefficients `(axes + 1, classes)` and strength of one-hot classes."""
        known = ~np.isnan(classes).any(axis=1)
        classes = np.where(known[:, None], classes, 0.0)
        there = np.flatnonzero(classes.any(axis=0))
        coefficients = np.zeros((len(self.axes.sizes) + 1, classes.shape[1]))
        strength = self._scaled(DEFAULT_STRENGTH)
        if len(there) == 2:
            lower, upper = there
            label = np.where(known, classes[:, upper], np.nan)
            logit, strength = self.of_label(label, weight[upper], weight[lower])
            coefficients[:, there] = logit[:, None] / 2 * [-1, 1]
        elif len(there) > 2:
            kind = np.where(known, classes.argmax(axis=1), -1)
            coefficients[:, there], strength = self._solve(
                classes[:, there], classes @ weight, kind
            )
        absent = np.setdiff1d(np.arange(classes.shape[1]), there)
        if len(there) and len(absent):
            scores = _scores(self.axes.values, coefficients[:, there])
            sums = logsumexp(scores, axis=1)
            coefficients[-1, absent] = sums.mean() - np.log(2 * known.sum())
        return coefficients, strength

    def _scaled(self, strength: float) -> float:
        """Return a strength over the number of features that vary, where `auto` is asked for."""
        if self.strength != "auto":
            return self.strength
        return float(strength / max(self.axes.varies.sum(), 1))

    def _solve(
        self, targets: np.ndarray, weights: np.ndarray, kind: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Return coefficients `(axes + 1, outputs)` and strength.

        Args:
            targets: `(studies, outputs)`: one output of 1 and 0, or several, one-hot.
            weights: `(studies,)` of the loss, 0 where it is unknown.
            kind: `(studies,)`, the number of the class or the label's side; -1 where unknown.
        """
        strength = self._scaled(DEFAULT_STRENGTH)
        folds = _inner_folds(kind, self.owners, self.seed)
        if self.strength == "auto" and folds is not None:
            strength = self._choose(targets, weights, folds)
        start = np.zeros((len(self.axes.sizes) + 1, 1, targets.shape[1]))
        solved = _minimum(self.axes, targets, weights[:, None], strength, start, TOLERANCE)
        return solved[:, 0], strength

    def _choose(self, targets: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> float:
        """Return the strength by the loss of the studies that are left out and by the prior."""
        left_out = folds[:, None] == np.arange(INNER_FOLDS)
        shown = weights[:, None] * ~left_out
        coefficients = np.zeros((len(self.axes.sizes) + 1, INNER_FOLDS, targets.shape[1]))
        losses: list[float] = []
        for strength in map(self._scaled, STRENGTHS):
            coefficients = _minimum(
                self.axes, targets, shown, strength, coefficients, INNER_TOLERANCE
            )
            by_study, _ = _losses(_scores(self.axes.values, coefficients), targets)
            losses.append(float(weights @ (by_study * left_out).sum(axis=1)))
        return self._scaled(STRENGTHS[np.argmin(losses + PENALTIES)])


def _inner_folds(kind: np.ndarray, owners: np.ndarray, seed: int) -> np.ndarray | None:
    """Return in which fold each study is left out, -1: in none; None where that tells nothing.

    Owners are dealt out at random, kind by kind; one of several kinds is of the highest. Where that
    makes nearly all of one kind, as it does of sites, they are dealt out without regard to it.
    """
    names, number = np.unique(owners, return_inverse=True)
    of_owner = np.full(len(names), -1)
    np.maximum.at(of_owner, number, kind)
    counts = np.bincount(of_owner[of_owner >= 0])
    order = np.random.default_rng(seed).permutation(len(names))
    fold = np.full(len(names), -1)
    if (counts >= 2).sum() < 2:
        order = order[of_owner[order] >= 0]
        fold[order] = np.arange(len(order)) % INNER_FOLDS
        return _without_the_last_of_a_kind(fold[number], kind)
    order = order[np.argsort(of_owner[order], kind="stable")]
    order = order[(of_owner[order] >= 0) & (counts[of_owner[order]] >= 2)]
    fold[order] = np.arange(len(order)) % INNER_FOLDS
    return fold[number]


def _without_the_last_of_a_kind(fold: np.ndarray, kind: np.ndarray) -> np.ndarray | None:
    """Return folds `(studies,)` without those that hold all of a kind; None if too few are left.

    What is left out in the others has to be of two kinds at least.
    """
    kinds = np.unique(kind[kind >= 0])
    for number in range(INNER_FOLDS):
        if not np.isin(kinds, kind[fold != number]).all():
            fold = np.where(fold == number, -1, fold)
    left_out = kind[(fold >= 0) & (kind >= 0)]
    return fold if len(np.unique(left_out)) > 1 else None


def _scores(values: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return `(studies, ...)` of values `(studies, axes)` and coefficients `(axes + 1, ...)`."""
    return np.tensordot(values, coefficients[:-1], 1) + coefficients[-1]


def _losses(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return losses `(studies, problems)` and their derivatives by the scores, as these.

    Args:
        scores: `(studies, problems, outputs)`.
        targets: `(studies, outputs)`: one output of 1 and 0, or several, one-hot.
    """
    targets = targets[:, None]
    if targets.shape[-1] == 1:
        losses = np.logaddexp(0.0, scores) - targets * scores
        return losses[..., 0], expit(scores) - targets
    scores = scores - scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores)
    sums = powers.sum(axis=-1, keepdims=True)
    losses = np.log(sums[..., 0]) - (targets * scores).sum(axis=-1)
    return losses, powers / sums - targets


def _minimum(
    axes: _Axes,
    targets: np.ndarray,
    weights: np.ndarray,
    strength: float,
    start: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """Minimise the weighted sums of the losses plus the penalty, of several problems side by side.

    Args:
        axes: the vectors.
        targets: as of `_losses`.
        weights: `(studies, problems)`.
        strength: C.
        start: coefficients `(axes + 1, problems, outputs)`, the bias last.
        tolerance: largest derivative that is left, by coefficients that are scaled by `scale`.

    Returns:
        Coefficients, as `start`.
    """
    outputs = max(targets.shape[1], 2)
    curvature = (outputs - 1) / outputs**2  # of the loss where all classes are as likely
    sizes = np.append(axes.sizes / len(weights), 1.0)
    penalty = np.append(np.full(len(axes.sizes), 1 / strength), 0.0)[:, None, None]
    scale = 1 / np.sqrt(curvature * np.outer(sizes, weights.sum(axis=0))[..., None] + penalty)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients = flat.reshape(start.shape) * scale
        losses, derivatives = _losses(_scores(axes.values, coefficients), targets)
        derivatives *= weights[..., None]
        shrunk = penalty * coefficients
        slope = np.empty_like(coefficients)
        slope[:-1] = np.tensordot(axes.values.T, derivatives, 1)
        slope[-1] = derivatives.sum(axis=0)
        total = (weights * losses).sum() + (shrunk * coefficients).sum() / 2
        return total, ((slope + shrunk) * scale).ravel()

    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 10_000, "maxfun": 10_000, "maxcor": 20}
    found = minimize(value, (start / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape) * scale
