"""What linear candidates predict of patients whom they were not fitted on, in and between folds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.recipe import Experiment
from medseq_tf.training.linear_head import filled, fit_linear


def linear_predictions(
    recipe: Experiment,
    prepared: Prepared,
    fold_of: np.ndarray,
    vectors: np.ndarray,
    *mirrored: np.ndarray,
) -> CandidatePredictions:
    """Return a linear recipe's inner and outer predictions in one repeat.

    Each fold is left out by itself, for the outer predictions of its studies, and with each other
    one, for the inner predictions of both. A strength that is `auto` is chosen anew in every fit,
    among the studies that it is fitted to.

    Args:
        recipe: whose head is solved (`fit.solver: lbfgs`).
        prepared: the data set.
        fold_of: (studies,) from 0; -1 for a study that takes no part.
        vectors: (studies, features), the first of `study_vectors`; all NaN for a study that the
            recipe leaves out.
        mirrored: the others of `study_vectors`, which are not learned from: the mean probability
            of all is predicted.
    """
    labels, patients = prepared.labels, prepared.studies["patient_id"].to_numpy()
    folds, is_read = int(fold_of.max()) + 1, ~np.isnan(vectors).all(axis=1)
    outer = np.full(labels.shape, np.nan)
    inner = np.full((folds, *labels.shape), np.nan)
    for left_out in _left_out(folds):
        rows = is_read & (fold_of >= 0) & ~np.isin(fold_of, left_out)
        fit = fit_linear(
            filled(vectors, rows)[rows],
            labels[rows],
            prepared.outputs,
            patients[rows],
            recipe.fit.strength,
            recipe.loss.weights,
            recipe.seed,
        )
        for fold in left_out:
            told = is_read & (fold_of == fold)
            others = [number for number in left_out if number != fold]
            target = inner[others[0]] if others else outer
            each = [fit.probabilities(filled(one, rows)[told]) for one in (vectors, *mirrored)]
            target[told] = np.mean(each, axis=0)
    return CandidatePredictions(outer, inner)


def _left_out(folds: int) -> Iterator[tuple[int, ...]]:
    """Yield which folds are left out together: each by itself, then each two."""
    for count in (1, 2):
        yield from itertools.combinations(range(folds), count)
