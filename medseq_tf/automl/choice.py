"""The choice among candidates, and the average of them, by predictions of held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from medseq_tf.automl.ensembles import ALIKE, TruthProbabilities, greedy, spread
from medseq_tf.evaluation import cross_validation
from medseq_tf.evaluation.cross_validation import HeldOut, LabelFolds
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.point_metrics import Array

AVERAGE = "average"
"""The name of the average of all linear candidates, in equal shares."""

GREEDY = "greedy"
"""The name of the average by greedy selection."""

Shares = dict[str, float]
"""Of candidates by name, adding up to 1."""


class Competitor(Protocol):
    """What is to be known of a candidate; `Candidate` of the plan is one."""

    @property
    def name(self) -> str:
        """Of the table."""

    @property
    def kind(self) -> str:
        """`linear` or `network`."""

    @property
    def role(self) -> str:
        """`reference`, which is held against the others and never chosen, or another."""

    @property
    def complexity(self) -> int:
        """Its place in the order from the simplest."""


class Score(NamedTuple):
    """What a candidate, or an average of several, has reached.

    Attributes:
        name: of the candidate, `average`, `greedy`, or of a network and what it was averaged with.
        weights: shares of the candidates.
        log_loss: mean over the studies, and over several labels.
        auroc: mean over the folds, and over several labels or classes.
        chosen: whether it is the choice.
    """

    name: str
    weights: Shares
    log_loss: float
    auroc: float
    chosen: bool


class Choice(NamedTuple):
    """What predicts: candidates whose probabilities are averaged.

    Attributes:
        weights: shares by name; empty where there is nothing to choose, or nothing beats chance.
        reason: a sentence.
        scores: of all that was held against each other, the chosen ones among them.
    """

    weights: Shares
    reason: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Observed:
    """Patients with what is known of them, a row a study and repeat.

    Attributes:
        truth: (rows, outputs) 0, 1 or nan.
        outputs: `labels`, `classes` or `ordered`.
        patients: (rows,) owners.
        folds: (rows,) which rows are of one model, a number unique over all repeats.
        repeats: (rows,).
    """

    truth: Array
    outputs: str
    patients: Array
    folds: Array
    repeats: Array

    def where(self, rows: Array) -> Observed:
        """The same of some rows (rows,) bool."""
        arrays = (self.patients[rows], self.folds[rows], self.repeats[rows])
        return Observed(self.truth[rows], self.outputs, *arrays)

    def ranked(self, probabilities: Array) -> list[LabelFolds]:
        """Probabilities (rows, outputs) of each label, or class against the rest, that has both."""
        names = [str(number) for number in range(self.truth.shape[1])]
        nowhere = np.full(self.truth.shape, np.nan)
        rows = (np.arange(len(self.truth)), self.folds, self.repeats)
        held_out = HeldOut(names, self.truth, probabilities, nowhere, self.patients, *rows)
        labels = [held_out.of(number) for number in range(len(names))]
        return [label for label in labels if label.has_both_classes]

    def aurocs(self, probabilities: Array) -> Array:
        """The mean AUROC over the folds, and over the outputs, of several (averages,).

        Args:
            probabilities: (averages, rows, outputs).
        """
        means = []
        for column in range(self.truth.shape[1]):
            truth, values = self.truth[:, column], probabilities[:, :, column]
            of_folds = []
            for fold in np.unique(self.folds):
                positive, negative = ((self.folds == fold) & (truth == kind) for kind in (1, 0))
                if positive.any() and negative.any():
                    apart = values[:, positive, None] - values[:, None, negative]
                    of_folds.append((np.sign(apart).mean(axis=(1, 2)) + 1) / 2)
            if of_folds:
                means.append(np.mean(of_folds, axis=0))
        return np.mean(means, axis=0) if means else np.full(len(probabilities), np.nan)

    def auroc(self, probabilities: Array) -> Estimate:
        """The mean AUROC of probabilities (rows, outputs), with its interval."""
        return cross_validation.auroc_estimate(self.ranked(probabilities))

    def lead(self, first: Array, second: Array) -> Estimate:
        """By how much the AUROC of the first probabilities (rows, outputs) is ahead."""
        pairs = [*zip(self.ranked(first), self.ranked(second), strict=True)]
        return cross_validation.auroc_difference(pairs)[0] if pairs else Estimate()


def choose(
    truth: Array,
    predictions: Mapping[str, Array],
    candidates: Sequence[Competitor],
    outputs: str,
    patients: Array,
    folds: Array | None = None,
    repeats: Array | None = None,
) -> Choice:
    """Choose by predictions of patients whom no candidate was trained on.

    Of the linear candidates each one, the average of all in equal shares, and the average by greedy
    selection are held against each other by the log loss. What is simplest is chosen of those that
    are not worse than the best by more than a standard error of the difference, over patients
    (Breiman et al. 1984). A network is chosen, alone or averaged with that, where the paired 95%
    interval of its AUROC lies above that of the linear choice.

    Args:
        truth: (rows, outputs) 0, 1 or nan; a row a study, or a study and repeat.
        predictions: (rows, outputs) probabilities by candidate; nan where it does not predict.
        candidates: that are compared, in any order; a `reference` is not.
        outputs: `labels`, `classes` or `ordered`.
        patients: (rows,) owners.
        folds: (rows,) which rows one model predicts, a number unique over repeats; None: all.
        repeats: (rows,); None: one.

    Returns:
        The choice; without shares where no candidate predicts any row.
    """
    ones = np.ones(len(truth), int)
    folds, repeats = (ones if given is None else np.asarray(given) for given in (folds, repeats))
    observed = Observed(np.asarray(truth, float), outputs, np.asarray(patients), folds, repeats)
    competing = [
        one
        for one in sorted(candidates, key=lambda one: (one.complexity, one.name))
        if one.role != "reference"
        and one.name in predictions
        and _rows([predictions[one.name]]).any()
    ]
    linear = [one.name for one in competing if one.kind == "linear"]
    networks = [one.name for one in competing if one.kind != "linear"]
    if not competing:
        return Choice({}, "no candidate predicts", ())
    base = linear or networks
    scores, why = _among(base, predictions, observed)
    if linear and networks:
        scores, why = _challenged(scores, why, networks, predictions, observed)
    chosen = next(score for score in scores if score.chosen)
    return Choice(chosen.weights, why, tuple(scores))


def combine(choice: Choice, predictions: Mapping[str, Array]) -> Array:
    """The weighted mean of the chosen candidates' probabilities (studies, outputs).

    Raises:
        ValueError: nothing is chosen.
    """
    return _mean(choice.weights, predictions)


def _mean(weights: Shares, predictions: Mapping[str, Array]) -> Array:
    if not weights:
        raise ValueError("nothing is chosen")
    return np.sum([share * predictions[name] for name, share in weights.items()], axis=0)


def _rows(predictions: Sequence[Array]) -> Array:
    """Which rows all predict, (rows,) bool."""
    return np.logical_and.reduce([np.isfinite(one).all(axis=1) for one in predictions])


def _among(
    names: Sequence[str], predictions: Mapping[str, Array], observed: Observed
) -> tuple[list[Score], str]:
    """Choose among candidates, from the simplest, and their averages, by the log loss."""
    rows = _rows([predictions[name] for name in names])
    observed = observed.where(rows)
    stacked = np.stack([predictions[name][rows] for name in names])
    of_truth = TruthProbabilities.of(observed.truth, stacked, observed.outputs, observed.patients)
    shares = np.eye(len(names))
    titles = [*names]
    if len(names) > 1:
        shares = np.vstack([shares, np.full(len(names), 1 / len(names)), greedy(of_truth)])
        titles += [AVERAGE, GREEDY]
    by_patient = of_truth.losses(shares)
    losses = by_patient.sum(axis=1)
    best = int(np.flatnonzero(losses <= losses.min() + ALIKE)[0])
    behind = losses - losses[best]
    near = behind <= spread(by_patient - by_patient[best]) + ALIKE
    chosen = int(np.flatnonzero(near)[0])
    why = f"{titles[chosen]} has the lowest log loss"
    if chosen != best:
        why = (
            f"{titles[chosen]} is the simplest whose log loss is within a standard error of "
            f"that of {titles[best]}"
        )
    aurocs = observed.aurocs(np.einsum("ac,cro->aro", shares, stacked))
    scores = []
    for number, title in enumerate(titles):
        weights = {name: float(w) for name, w in zip(names, shares[number], strict=True) if w}
        auroc = float(aurocs[number])
        scores.append(Score(title, weights, float(losses[number]), auroc, number == chosen))
    return scores, why


def _challenged(
    scores: list[Score],
    why: str,
    networks: Sequence[str],
    predictions: Mapping[str, Array],
    observed: Observed,
) -> tuple[list[Score], str]:
    """Let networks, alone and averaged with the linear choice, stand against the linear choice."""
    linear = next(score for score in scores if score.chosen)
    before, found, leads = _mean(linear.weights, predictions), [], []
    for name in networks:
        halves = {name: 0.5} | {other: w / 2 for other, w in linear.weights.items()}
        for title, weights in ((name, {name: 1.0}), (f"{name} with {linear.name}", halves)):
            own = _mean(weights, predictions)
            rows = _rows([own, before])
            seen = observed.where(rows)
            of_truth = TruthProbabilities.of(
                seen.truth, own[None, rows], seen.outputs, seen.patients
            )
            loss = float(of_truth.losses(np.ones((1, 1))).sum())
            auroc = float(seen.aurocs(own[None, rows])[0])
            found.append(Score(title, weights, loss, auroc, False))
            leads.append(seen.lead(own[rows], before[rows]))
    lows = np.nan_to_num([lead.low for lead in leads], nan=-1.0)
    best = int(lows.argmax())
    if lows[best] <= 0:
        return [*scores, *found], f"{why}; no network is ahead of it by a paired 95% interval"
    scores = [score._replace(chosen=False) for score in scores]
    found[best] = found[best]._replace(chosen=True)
    low, high = leads[best].low, leads[best].high
    return [*scores, *found], (
        f"{found[best].name} is ahead of {linear.name} by an AUROC of {leads[best].value:.3f} "
        f"({low:.3f} to {high:.3f})"
    )
