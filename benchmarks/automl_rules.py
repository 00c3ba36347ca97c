"""Rules by which candidates are chosen or averaged, held against each other by simulation.

In cohorts of `automl_simulation.py` the linear candidates are given shares by the predictions of
all folds but one, and the average is asked for its AUROC on new patients. `ours` is the rule of
`medseq_tf.automl.choice`; the others are those that it was chosen from.

    python benchmarks/automl_rules.py [--cohorts 40] [--size 40 62 152]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from automl_simulation import NEW, Array, Cell, Drawn, draw

from medseq_tf.automl.choice import shares_of
from medseq_tf.automl.observed import Observed
from medseq_tf.evaluation.metrics import auroc

COUNTS = (2, 4, 12)
TESTED = 2
"""Folds that are left out, one after the other."""

RULES: dict[str, Callable[[Observed, Array], Array]] = {}
"""Of patients and probabilities (candidates, rows, 1) to shares (candidates,)."""


def _rule(function: Callable) -> Callable:
    RULES[function.__name__.strip("_").replace("_", " ")] = function
    return function


@_rule
def _ours(observed: Observed, told: Array) -> Array:
    return shares_of(observed.ranking(told).behind_the_best())


@_rule
def _equal_shares(observed: Observed, told: Array) -> Array:
    return np.full(len(told), 1 / len(told))


@_rule
def _highest_auroc(observed: Observed, told: Array) -> Array:
    return np.eye(len(told))[observed.ranking(told).aurocs.argmax()]


@_rule
def _lowest_log_loss(observed: Observed, told: Array) -> Array:
    return np.eye(len(told))[observed.log_losses(told).argmin()]


@_rule
def _simplest_within_a_standard_error(observed: Observed, told: Array) -> Array:
    """Breiman et al. 1984, of the AUROC."""
    behind = observed.ranking(told).behind_the_best()
    return np.eye(len(told))[np.flatnonzero(behind <= 1)[0]]


@_rule
def _equal_shares_within_a_standard_error(observed: Observed, told: Array) -> Array:
    near = observed.ranking(told).behind_the_best() <= 1
    return near / near.sum()


@_rule
def _greedy_by_log_loss(observed: Observed, told: Array) -> Array:
    """Selection with replacement (Caruana et al. 2004)."""
    return _greedy(told, lambda tried: -observed.log_losses(tried))


@_rule
def _greedy_by_auroc(observed: Observed, told: Array) -> Array:
    return _greedy(told, lambda tried: observed.ranking(tried).aurocs)


@_rule
def _stacked_by_log_loss(observed: Observed, told: Array) -> Array:
    """Shares that maximise the likelihood, which EM finds."""
    of_truth = np.where(observed.truth == 1, told, 1 - told)[:, :, 0]
    shares = _equal_shares(observed, told)
    for _ in range(200):
        shares = shares * (of_truth / (shares @ of_truth)).mean(axis=1)
    return shares


@_rule
def _half_greedy_and_half_equal(observed: Observed, told: Array) -> Array:
    """Shrunk as Diebold and Shin 2019 do it."""
    return (_greedy_by_log_loss(observed, told) + _equal_shares(observed, told)) / 2


def _greedy(told: Array, score: Callable[[Array], Array], steps: int = 20) -> Array:
    counts, total = np.zeros(len(told)), np.zeros_like(told[0])
    best, most = counts, -np.inf
    for step in range(1, steps + 1):
        scores = score((total + told) / step)
        added = int(scores.argmax())
        counts, total = counts + np.eye(len(told))[added], total + told[added]
        if scores[added] > most + 1e-9:
            best, most = counts / step, scores[added]
    return best


def reached(cell: Cell, cohorts: int, seed: int = 0) -> dict[str, float]:
    """The mean AUROC on new patients, by rule."""
    drawn, found = draw(cell, cohorts, [seed, cell.patients, cell.count]), []
    linear = [i for i, one in enumerate(cell.candidates) if one.kind == "linear"]
    for cohort in range(cohorts):
        found += [_of_fold(drawn, cohort, fold, linear) for fold in range(TESTED)]
    return {name: float(np.mean([one[name] for one in found])) for name in RULES}


def _of_fold(drawn: Drawn, cohort: int, fold: int, linear: Sequence[int]) -> dict[str, float]:
    rows = drawn.folds[cohort, 0] != fold
    told = np.stack([drawn.inner[number][cohort, 0, fold, rows] for number in linear])[..., None]
    new = np.stack([drawn.new[number][cohort, fold] for number in linear])
    folds, truth = drawn.folds[cohort, 0][rows], drawn.truth[rows][:, None]
    observed = Observed(truth, "labels", np.arange(len(truth)), folds, np.ones(len(truth)))
    labels = np.repeat([0.0, 1.0], NEW)
    return {name: float(auroc(labels, rule(observed, told) @ new)) for name, rule in RULES.items()}


def lines(cohorts: int, sizes: Sequence[int]) -> Iterator[str]:
    """The table, line by line."""
    yield (
        f"patients, AUROC, candidates ({', '.join(map(str, COUNTS))} for all alike | one good), "
        "and how far a rule is behind the best one, at most and on average"
    )
    behind: dict[str, list[float]] = {name: [] for name in RULES}
    for patients in sizes:
        for level in (0.7, 0.85):
            cells = [Cell(patients, level, n, alike) for alike in (True, False) for n in COUNTS]
            found = [reached(cell, cohorts) for cell in cells]
            for name in RULES:
                own = [one[name] for one in found]
                behind[name] += [max(one.values()) - one[name] for one in found]
                words = " ".join(f"{value:.3f}" for value in own)
                yield f"{patients:>4} {level:<5} {name:<37} {words}"
    for name, gaps in behind.items():
        yield f"{name:<37} {max(gaps):.3f} {np.mean(gaps):.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cohorts", type=int, default=40)
    parser.add_argument("--size", type=int, nargs="*", default=[40, 62, 152])
    arguments = parser.parse_args()
    for line in lines(arguments.cohorts, arguments.size):
        print(line, flush=True)


if __name__ == "__main__":
    main()
