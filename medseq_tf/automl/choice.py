"""The choice among candidates, and the average of them, by predictions of held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from medseq_tf.automl.observed import Observed
from medseq_tf.evaluation.metrics.estimates import Estimate
from medseq_tf.evaluation.metrics.point_metrics import Array

AVERAGE = "average"
"""The name of the average of candidates, in the table of scores."""

FARTHEST = 2.0
"""Standard errors; what is farther behind the best has no share."""

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
        name: of the candidate, `average`, or of a network and what it was averaged with.
        weights: shares of the candidates.
        log_loss: mean over the studies, and over several labels; it chooses nothing.
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


def shares_of(behind: Array) -> Array:
    """The share of each candidate in the average, (candidates,).

    It is as the likelihood that the candidate is as good as the best: a standard error behind it
    has 0.61 of its share. So where the patients do not tell the candidates apart all have nearly
    the same, which is hard to beat by any weights that are learned (Smith and Wallis 2009), and
    where they do it is the one-standard-error rule (Breiman et al. 1984) by degrees. It was chosen
    by simulation, see `benchmarks/automl_rules.py`.

    Args:
        behind: (candidates,) how far each is behind the best, in standard errors.
    """
    likelihood = np.where(behind <= FARTHEST, np.exp(-(behind**2) / 2), 0.0)
    return likelihood / likelihood.sum()


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

    The linear candidates are averaged, each with its share by `shares_of`. A network is chosen,
    alone or averaged with these, where the paired 95% interval of its AUROC lies above theirs.

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
        and _predicted([predictions[one.name]]).any()
    ]
    linear = [one.name for one in competing if one.kind == "linear"]
    networks = [one.name for one in competing if one.kind != "linear"]
    if not competing:
        return Choice({}, "no candidate predicts", ())
    average = _averaged(linear or networks, predictions, observed)
    if not (linear and networks):
        return average
    return _challenged(average, networks, predictions, observed)


def combine(choice: Choice, predictions: Mapping[str, Array]) -> Array:
    """The weighted mean of the chosen candidates' probabilities (studies, outputs).

    Raises:
        ValueError: nothing is chosen.
    """
    if not choice.weights:
        raise ValueError("nothing is chosen")
    return _mean(choice.weights, predictions)


def _mean(weights: Shares, predictions: Mapping[str, Array]) -> Array:
    return np.sum([share * predictions[name] for name, share in weights.items()], axis=0)


def _predicted(predictions: Sequence[Array]) -> Array:
    """Which rows all predict, (rows,) bool."""
    return np.logical_and.reduce([np.isfinite(one).all(axis=1) for one in predictions])


def _averaged(names: Sequence[str], predictions: Mapping[str, Array], observed: Observed) -> Choice:
    """Average candidates by the rows that all of them predict."""
    rows = _predicted([predictions[name] for name in names])
    observed = observed.where(rows)
    stacked = np.stack([predictions[name][rows] for name in names])
    behind = observed.ranking(stacked).behind_the_best()
    shares = shares_of(behind)
    weights = {name: float(share) for name, share in zip(names, shares, strict=True) if share}
    tried = {name: {name: 1.0} for name in names}
    if len(weights) > 1:
        tried[AVERAGE] = weights
        mean = np.einsum("c,cro->ro", shares, stacked)
        stacked = np.concatenate([stacked, mean[None]])
    losses, aurocs = observed.log_losses(stacked), observed.ranking(stacked).aurocs
    scores = tuple(
        Score(name, own, float(loss), float(auroc), own == weights)
        for (name, own), loss, auroc in zip(tried.items(), losses, aurocs, strict=True)
    )
    best = names[int(np.argmin(behind))]
    why = f"{best} ranks best, all others are more than {FARTHEST:g} standard errors behind"
    if len(names) == 1:
        why = f"{best} is the only linear candidate"
    elif len(weights) > 1:
        why = (
            f"the average of {', '.join(weights)}, of which none ranks more than {FARTHEST:g} "
            f"standard errors behind {best}"
        )
    return Choice(weights, why, scores)


def _challenged(
    linear: Choice,
    networks: Sequence[str],
    predictions: Mapping[str, Array],
    observed: Observed,
) -> Choice:
    """Let networks, alone and averaged with the linear choice, stand against the linear choice."""
    title = next(score.name for score in linear.scores if score.chosen)
    before = combine(linear, predictions)
    found: list[tuple[Estimate, Score]] = []
    for name in networks:
        halves = {name: 0.5} | {other: share / 2 for other, share in linear.weights.items()}
        for tried, weights in ((name, {name: 1.0}), (f"{name} with {title}", halves)):
            own = _mean(weights, predictions)
            rows = _predicted([own, before])
            seen = observed.where(rows)
            loss = float(seen.log_losses(own[None, rows])[0])
            auroc = float(seen.ranking(own[None, rows]).aurocs[0])
            lead = seen.lead(own[rows], before[rows])
            found.append((lead, Score(tried, weights, loss, auroc, chosen=False)))
    lead, best = max(found, key=lambda one: float(np.nan_to_num(one[0].low, nan=-1.0)))
    scores = tuple(score for _, score in found)
    if not lead.low > 0:
        why = f"{linear.reason}; no network is ahead of that by a paired 95% interval"
        return Choice(linear.weights, why, linear.scores + scores)
    scores = tuple(
        score._replace(chosen=score.name == best.name) for score in (*linear.scores, *scores)
    )
    why = f"{best.name} is ahead of {title} by a paired 95% interval of the AUROC"
    return Choice(best.weights, why, scores)
