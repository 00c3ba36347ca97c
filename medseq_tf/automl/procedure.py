"""The whole procedure, choice and all, on patients who took part in none of its choices.

In each fold the choice is made by the predictions of patients of the other folds, each by models
that saw neither him nor the fold; what the fold's own patients are given is the chosen candidates'
probabilities, by models that never saw them. So the figure of the procedure counts what choosing
costs (Varma and Simon 2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medseq_tf.automl.choice import Choice, Competitor, choose, combine
from medseq_tf.automl.observed import Observed
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.interval_text import with_interval
from medseq_tf.evaluation.metrics.point_metrics import Array

CHANCE = 0.5
"""The AUROC of a constant."""


class CandidatePredictions(NamedTuple):
    """One candidate's held-out probabilities in one repeat; nan where it does not predict.

    Attributes:
        outer: (studies, outputs) of each study, by models that never saw its fold.
        inner: (folds, studies, outputs) of each study of another fold than the first axis's, by
            models that saw neither of the two.
    """

    outer: Array
    inner: Array


class Outcome(NamedTuple):
    """What the procedure predicts, what it chose, and how good it is.

    Attributes:
        outer: (repeats, studies, outputs) the procedure's held-out probabilities; nan in repeats in
            which a candidate is not whole, which do not count.
        choices: by repeat and fold; none of a repeat that does not count.
        auroc: of the procedure, with the interval of a cross-validated recipe.
        final: what is deployed; without shares where the interval does not lie above chance.
        linear: the choice among the linear candidates, chance or not.
    """

    outer: Array
    choices: list[list[Choice]]
    auroc: Estimate
    final: Choice
    linear: Choice


def procedure(
    truth: Array,
    patients: Array,
    fold_of: Array,
    predictions: Sequence[Mapping[str, CandidatePredictions]],
    candidates: Sequence[Competitor],
    outputs: str,
) -> Outcome:
    """Choose in every fold of every repeat, and at last by all held-out predictions.

    Args:
        truth: (studies, outputs) 0, 1 or nan.
        patients: (studies,) owners, each in one fold of a repeat.
        fold_of: (repeats, studies) numbers of folds, from 0.
        predictions: by repeat and candidate.
        candidates: the plan's.
        outputs: `labels`, `classes` or `ordered`.

    Raises:
        ValueError: no repeat in which all candidates predict all studies.
    """
    truth, fold_of = np.asarray(truth, float), np.asarray(fold_of)
    admitted, counting = _whole(predictions, candidates)
    if not counting:
        raise ValueError("there is no repeat in which all candidates predict all studies")
    outer = np.full((len(fold_of), *truth.shape), np.nan)
    choices: list[list[Choice]] = [[] for _ in fold_of]
    for repeat in counting:
        own, folds = {name: predictions[repeat][name] for name in admitted}, fold_of[repeat]
        for fold in range(folds.max() + 1):
            others = folds != fold
            inner = {name: one.inner[fold][others] for name, one in own.items()}
            choice = choose(
                truth[others], inner, candidates, outputs, patients[others], folds[others]
            )
            choices[repeat].append(choice)
            tested = {name: one.outer[~others] for name, one in own.items()}
            outer[repeat, ~others] = combine(choice, tested)
    observed = repeated(truth, outputs, patients, fold_of[counting])
    auroc = observed.auroc(np.concatenate(outer[counting]))
    stacked = {
        name: np.concatenate([predictions[repeat][name].outer for repeat in counting])
        for name in admitted
    }
    whole = (outputs, observed.patients, observed.folds, observed.repeats)
    final = linear = choose(
        observed.truth, stacked, [one for one in candidates if one.kind == "linear"], *whole
    )
    if any(one.kind != "linear" and one.name in admitted for one in candidates):
        final = choose(observed.truth, stacked, candidates, *whole)
    if not auroc.low > CHANCE:
        words = with_interval(auroc.value, auroc.low, auroc.high)
        final = final._replace(weights={}, reason=f"nothing beats chance: AUROC {words}")
    return Outcome(outer, choices, auroc, final, linear)


def _whole(
    predictions: Sequence[Mapping[str, CandidatePredictions]], candidates: Sequence[Competitor]
) -> tuple[list[str], list[int]]:
    """The candidates that predict every study in some repeat, and the repeats in which all do."""
    names = [one.name for one in candidates if one.role != "reference"]
    whole = [
        [name for name in names if name in own and np.isfinite(own[name].outer).all()]
        for own in predictions
    ]
    admitted = [name for name in names if any(name in own for own in whole)]
    return admitted, [repeat for repeat, own in enumerate(whole) if own and own == admitted]


def repeated(truth: Array, outputs: str, patients: Array, fold_of: Array) -> Observed:
    """The patients once a repeat; `fold_of` (repeats, studies)."""
    count = len(fold_of)
    numbers = np.arange(count)[:, None]
    folds = (fold_of + numbers * (fold_of.max() + 1)).ravel()
    repeats = np.broadcast_to(numbers, fold_of.shape).ravel()
    return Observed(np.tile(truth, (count, 1)), outputs, np.tile(patients, count), folds, repeats)
