"""By how much the best of a search's trials is too good, for having been chosen.

Bootstrap bias-corrected cross-validation (Tsamardinos, Greasidou and Borboudakis 2018): patients
are drawn with replacement; the trial that is best on those drawn is scored on those who were not.
That score, on average, is what to expect of a trial that is chosen so. No trial is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.metrics.point_metrics import mean_of_numbers
from medseq_tf.readers.classes import Classes
from medseq_tf.recipe import MINIMISED

RESAMPLES = 500
COLUMNS = ("study", "patient", "fold", "label", "truth", "probability", "threshold")
"""Of a trial's held-out predictions, one row a fold, study and label."""

UNKNOWN = ""
"""The class of a patient of whom none is known."""


@dataclass(frozen=True)
class Corrected:
    """The best trial's score, and what it is when corrected for having been chosen.

    Attributes:
        score: of the best trial, as the search compared them.
        corrected: what to expect on patients who did not choose it; nan where it cannot be said.
        trials: among how many it was the best.
        note: why it cannot be said.
    """

    score: float
    corrected: float
    trials: int
    note: str = ""

    def text(self, metric: str) -> str:
        """Return both in words."""
        words = f"{metric} {self.score:.3f}, the best of {self.trials} trials, is too good"
        if np.isnan(self.corrected):
            return f"{words}; by how much cannot be said: {self.note}"
        loss = self.corrected - self.score if metric in MINIMISED else self.score - self.corrected
        if loss <= 0:
            return (
                f"{words}; by how much cannot be said: {self.corrected:.3f} when corrected for the "
                "choice (bootstrap, Tsamardinos 2018) is no worse, by chance of so few patients"
            )
        return (
            f"{words}: about {self.corrected:.3f} when corrected for the choice (bootstrap, "
            "Tsamardinos 2018)"
        )


def held_out(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions by which a trial is scored, with `COLUMNS`.

    Args:
        predictions: of a trial's run: those of its `test` studies, else of its `validation`.
    """
    scored = predictions[predictions["split"] == "test"]
    if scored.empty:
        scored = predictions[predictions["split"] == "validation"]
    if "fold" not in scored:
        scored = scored.assign(fold=1)
    return scored[list(COLUMNS)].reset_index(drop=True)


def correct(
    trials: Mapping[str, pd.DataFrame],
    metric: str,
    seed: int = 0,
    classes: Classes | None = None,
) -> tuple[float, str]:
    """Return the corrected score of the best of some trials, and why there is none.

    A trial's score is the mean over its folds of the mean over the labels, as `tune` compares them;
    of classes that of all of them together.

    Args:
        trials: held-out predictions with `COLUMNS`, by the trial's name; of the same studies.
        metric: one of `metrics.METRICS`; of classes one of `metrics.CLASS_METRICS`.
        seed: of the draws.
        classes: what the labels are, if they exclude each other.
    """
    if metric not in (metrics.CLASS_METRICS if classes else metrics.METRICS):
        return float("nan"), f"{metric} is not resampled"
    if not trials:
        return float("nan"), "no trial has kept its predictions"
    every = pd.concat([t[["patient", "label", "truth"]] for t in trials.values()])
    groups = every.groupby("patient")["truth"].max().fillna(0) > 0
    kinds: list[Any] = [True, False]
    if classes:
        named = every[every["truth"] == 1].groupby("patient")["label"].first()
        groups, kinds = named.reindex(groups.index, fill_value=UNKNOWN), list(classes.names)
    if min((groups == kind).sum() for kind in kinds) < 2:
        return float("nan"), "it takes two patients of each class"
    chosen = _draws(
        [(groups == kind).to_numpy() for kind in dict.fromkeys([*kinds, *groups])], seed
    )
    both = [_scores(table, metric, chosen, groups.index, classes) for table in trials.values()]
    inside, outside = (np.array([scores[i] for scores in both]) for i in (0, 1))
    inside = np.where(np.isnan(inside), np.inf, inside if metric in MINIMISED else -inside)
    winner = inside.argmin(axis=0)
    values = outside[winner, np.arange(len(winner))]
    if np.isnan(values).mean() > 0.5:
        return float("nan"), "too few patients of a class are left out of the draws"
    return float(np.nanmean(values)), ""


def _draws(groups: list[np.ndarray], seed: int) -> np.ndarray:
    """Return how often each patient is drawn, `(resamples, patients)`, as many of each group.

    Each group says of every patient `(patients,)` whether it is one of its own.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((RESAMPLES, len(groups[0])), np.int16)
    for group in groups:
        members = np.flatnonzero(group)
        if len(members):
            shares = np.full(len(members), 1 / len(members))
            counts[:, members] = rng.multinomial(len(members), shares, RESAMPLES)
    return counts


def _scores(
    table: pd.DataFrame,
    metric: str,
    drawn: np.ndarray,
    patients: pd.Index,
    classes: Classes | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a trial's score of each draw on the patients drawn, and on the others."""
    by_fold: dict[int, list[np.ndarray]] = {}
    together = ["fold"] if classes else ["fold", "label"]
    for (fold, *_), part in table.groupby(together, sort=True):
        part = part[part["truth"].notna()]
        if classes:
            studies = ClassTable.of(part, classes)
            owners, values = studies.patients, _class_metric(studies, metric)
        else:
            owners, values = part["patient"], _label_metric(part, metric)
        counts = drawn[:, patients.get_indexer(owners)].astype(float)
        both = [values(weights) for weights in (counts, (counts == 0) * 1.0)]
        by_fold.setdefault(fold, []).append(np.array(both))
    folds = np.array([mean_of_numbers(np.array(labels)) for labels in by_fold.values()])
    inside, outside = mean_of_numbers(folds)
    return inside, outside


def _label_metric(part: pd.DataFrame, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a metric of one label by the weights of its studies."""
    truth, probability, threshold = (
        part[name].to_numpy(float) for name in ("truth", "probability", "threshold")
    )
    return lambda weights: metrics.all_metrics(truth, probability, threshold, weights, [metric])[
        metric
    ]


def _class_metric(studies: ClassTable, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a metric of all classes together by the weights of their studies."""
    arrays = (studies.truth, studies.probabilities, studies.called)
    predictions = metrics.ClassPredictions.of(*arrays)[0]
    return lambda weights: metrics.CLASS_METRICS[metric](predictions, weights)
