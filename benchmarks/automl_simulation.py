"""The number that an automatic run prints, held against the truth, by simulation.

Candidates are cross-validated on many cohorts that are drawn anew, and chosen among by `procedure`,
as an automatic run does it; the AUROC of the whole procedure and its interval are asked whether
they hold what the procedure does on average on new patients, when it is trained on as many patients
as in four of five folds. Candidates see the same patients by features of their own, of which some
tell the classes apart, and are linear discriminants. With six or more candidates one is a network:
the first candidate with weights that training's chance disturbs, which is never better than that.

    python benchmarks/automl_simulation.py [--cohorts 500] [--size 40 62 152] [--processes 2]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from medseq_tf.automl.choice import Choice
from medseq_tf.automl.procedure import CandidatePredictions, Outcome, procedure
from medseq_tf.evaluation import cross_validation
from medseq_tf.evaluation.metrics import auroc

FOLDS, REPEATS = 5, 5
FEATURES = (10, 4, 40)
"""Of the candidates, one after the other."""
INFORMATIVE = 4
"""How many of a candidate's features tell the classes apart."""
SHARED = 0.5
"""How much of a feature's variance all candidates see."""
SHRINKAGE = 1.0
"""Of the covariance, towards the identity."""
CHUNK = 50
"""Cohorts that are drawn at once."""
NEW = 400
"""New patients of each class, by whom a model's true AUROC is known."""

Array = np.ndarray


class Candidate(NamedTuple):
    """What `procedure` knows of a candidate."""

    name: str
    kind: str
    complexity: int
    role: str = "candidate"


@dataclass(frozen=True)
class Cell:
    """What is simulated.

    Attributes:
        patients: of a cohort, half of them positive.
        auroc: what the best candidates reach on average.
        count: number of candidates.
        alike: whether all candidates reach that, or the second alone, and the others half as much
            above chance.
    """

    patients: int
    auroc: float
    count: int
    alike: bool = True

    @property
    def candidates(self) -> list[Candidate]:
        """From the simplest; the last of six or more is a network."""
        last = self.count - 1 if self.count >= 6 else self.count
        kinds = ["network" if number == last else "linear" for number in range(self.count)]
        return [Candidate(f"c{number:02d}", kind, number) for number, kind in enumerate(kinds)]

    def gap(self, number: int) -> Array:
        """The difference of the classes in each feature of a candidate."""
        is_good = self.alike or number == min(1, self.count - 1)
        reached = self.auroc if is_good else 0.5 + (self.auroc - 0.5) / 2
        return gap_for(FEATURES[number % len(FEATURES)], self.patients, reached)


def training_size(patients: int) -> int:
    """How many of each class four of five folds have."""
    return patients // 2 - patients // 2 // FOLDS


@lru_cache
def gap_for(features: int, patients: int, reached: float) -> Array:
    """The difference of the classes that makes a discriminant reach an AUROC on average."""
    informative, size = np.arange(features) < INFORMATIVE, training_size(patients)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 2, size, features))
    low, high = 0.0, 4.0
    for _ in range(14 if reached > 0.5 else 0):
        middle = (low + high) / 2
        moved = noise + middle * informative * np.array([-0.5, 0.5])[:, None, None]
        weights = discriminant(*_moments(moved))[0]
        apart = weights @ (middle * informative) / np.sqrt(2 * (weights**2).sum(axis=1))
        low, high = (middle, high) if stats.norm.cdf(apart).mean() < reached else (low, middle)
    return informative * (low if reached > 0.5 else 0.0)


def _moments(values: Array) -> tuple[Array, Array, Array]:
    """Counts, sums and second moments of values (..., 2, patients, features)."""
    counts = np.full(values.shape[:-2], float(values.shape[-2]))
    return counts, values.sum(axis=-2), (np.swapaxes(values, -1, -2) @ values).sum(axis=-3)


def discriminant(counts: Array, sums: Array, squares: Array) -> tuple[Array, Array]:
    """Fisher's linear discriminant, shrunk: weights (..., features) and bias (...).

    Args:
        counts: (..., 2) patients, negative and positive.
        sums: (..., 2, features) of their features.
        squares: (..., features, features) of both.
    """
    means = sums / counts[..., None]
    between = np.einsum("...kf,...kg->...fg", sums, means)
    scatter = (squares - between) / (counts.sum(axis=-1) - 2)[..., None, None]
    scatter = scatter + SHRINKAGE * np.eye(sums.shape[-1])
    gap = means[..., 1, :] - means[..., 0, :]
    weights = np.linalg.solve(scatter, gap[..., None])[..., 0]
    bias = np.log(counts[..., 1] / counts[..., 0]) - (weights * means.mean(axis=-2)).sum(axis=-1)
    return weights, bias


class Drawn(NamedTuple):
    """Some cohorts, with what each candidate says in them.

    Attributes:
        truth: (patients,).
        folds: (cohorts, repeats, patients).
        outer: by candidate (cohorts, repeats, patients).
        inner: by candidate (cohorts, repeats, folds, patients).
        new: by candidate (cohorts, folds + 1, new patients), of the first repeat's models and of
            one that is trained on all patients; negative patients first.
    """

    truth: Array
    folds: Array
    outer: list[Array]
    inner: list[Array]
    new: list[Array]


def draw(cell: Cell, cohorts: int, seed: Sequence[int]) -> Drawn:
    """Draw cohorts and train all candidates on all their folds, and on all but two."""
    rng, patients = np.random.default_rng(seed), cell.patients
    truth = (np.arange(patients) % 2).astype(float)
    folds = np.empty((cohorts, REPEATS, patients), int)
    for kind in (0, 1):
        order = np.argsort(rng.random((cohorts, REPEATS, patients // 2)), axis=-1)
        folds[..., kind::2] = (order + kind * 2) % FOLDS
    new_truth = np.repeat([0.0, 1.0], NEW)
    widest = max(FEATURES)
    shared = rng.normal(size=(cohorts, patients, widest))
    shared_new = rng.normal(size=(cohorts, 2 * NEW, widest))
    outer, inner, new = [], [], []
    for number, candidate in enumerate(cell.candidates):
        is_network = candidate.kind == "network"
        if not is_network or number == 0:
            gap = cell.gap(number)
            values = _features(shared, truth, gap, rng)
            values_new = _features(shared_new, new_truth, gap, rng)
            if number == 0:
                first = values, values_new
        else:
            values, values_new = first
        jitter = 0.5 if is_network else 0.0
        found = _trained(values, values_new, truth, folds, jitter, rng)
        for kept, one in zip((outer, inner, new), found, strict=True):
            kept.append(special.expit(one))
    return Drawn(truth, folds, outer, inner, new)


def _features(shared: Array, truth: Array, gap: Array, rng: np.random.Generator) -> Array:
    own = rng.normal(size=(*shared.shape[:2], len(gap)))
    noise = np.sqrt(SHARED) * shared[..., : len(gap)] + np.sqrt(1 - SHARED) * own
    return noise + (truth - 0.5)[:, None] * gap


def _trained(
    values: Array,
    values_new: Array,
    truth: Array,
    folds: Array,
    jitter: float,
    rng: np.random.Generator,
) -> tuple[Array, Array, Array]:
    """Logits of one candidate: outer, inner, and of new patients, as `Drawn` has them."""
    cohorts, repeats, patients = folds.shape
    of_fold = [_fold_moments(values, truth, folds[:, repeat]) for repeat in range(repeats)]

    def fit(repeat: int, without: Sequence[int]) -> tuple[Array, Array]:
        kept = [fold for fold in range(FOLDS) if fold not in without]
        weights, bias = discriminant(*(part[:, kept].sum(axis=1) for part in of_fold[repeat]))
        length = np.sqrt((weights**2).mean(axis=-1, keepdims=True))
        return weights + jitter * length * rng.normal(size=weights.shape), bias

    def scores(model: tuple[Array, Array], told: Array) -> Array:
        return (told @ model[0][..., None])[..., 0] + model[1][:, None]

    outer = np.empty((cohorts, repeats, patients))
    inner = np.full((cohorts, repeats, FOLDS, patients), np.nan)
    new = np.empty((cohorts, FOLDS + 1, values_new.shape[1]))
    new[:, FOLDS] = scores(fit(0, []), values_new)
    for repeat in range(repeats):
        for fold in range(FOLDS):
            model = fit(repeat, [fold])
            tested = folds[:, repeat] == fold
            outer[:, repeat][tested] = scores(model, values)[tested]
            if repeat == 0:
                new[:, fold] = scores(model, values_new)
        for fold, other in itertools.combinations(range(FOLDS), 2):
            found = scores(fit(repeat, [fold, other]), values)
            for of, tested in ((fold, other), (other, fold)):
                rows = folds[:, repeat] == tested
                inner[:, repeat, of][rows] = found[rows]
    return outer, inner, new


def _fold_moments(values: Array, truth: Array, folds: Array) -> tuple[Array, Array, Array]:
    """What `discriminant` takes, of each fold's patients: (cohorts, folds, ...)."""
    counts, sums, squares = [], [], []
    for fold in range(FOLDS):
        inside = (folds == fold)[..., None] * values
        of_class = np.stack([(folds == fold) & (truth == kind) for kind in (0, 1)], axis=1)
        counts.append(of_class.sum(axis=-1).astype(float))
        sums.append(of_class.astype(float) @ values)
        squares.append(np.swapaxes(inside, 1, 2) @ values)
    return tuple(np.stack(parts, axis=1) for parts in (counts, sums, squares))


class Cohort(NamedTuple):
    """What an automatic run of one cohort has printed, and what is true.

    Attributes:
        value: the AUROC that is printed.
        low: of its interval.
        high: likewise.
        true: the AUROC on new patients of what the folds of the first repeat have chosen.
        deployed: that of the final choice, trained on all patients.
        simplest: that of the first candidate.
        network: whether the final choice contains a network.
        differ: whether two candidates that are equally good differ with p < 0.05.
    """

    value: float
    low: float
    high: float
    true: float
    deployed: float
    simplest: float
    network: bool
    differ: bool


def run(cell: Cell, drawn: Drawn, cohort: int, repeats: int) -> Cohort:
    """Let `procedure` choose on one cohort."""
    names = [one.name for one in cell.candidates]
    predictions = [
        {
            name: CandidatePredictions(
                drawn.outer[number][cohort, repeat][:, None],
                drawn.inner[number][cohort, repeat][..., None],
            )
            for number, name in enumerate(names)
        }
        for repeat in range(repeats)
    ]
    folds, patients = drawn.folds[cohort, :repeats], np.arange(cell.patients)
    outcome = procedure(
        drawn.truth[:, None], patients, folds, predictions, cell.candidates, "labels"
    )
    new = {name: drawn.new[number][cohort] for number, name in enumerate(names)}
    true = [_true(choice, new, fold) for fold, choice in enumerate(outcome.choices[0])]
    deployed = outcome.final if outcome.final.weights else outcome.linear
    return Cohort(
        outcome.auroc.value,
        outcome.auroc.low,
        outcome.auroc.high,
        float(np.mean(true)),
        _true(deployed, new, FOLDS),
        _true(deployed._replace(weights={names[0]: 1.0}), new, FOLDS),
        _has_network(outcome, cell),
        _differ(cell, drawn, cohort, repeats),
    )


def _true(choice: Choice, new: dict[str, Array], model: int) -> float:
    told = sum(share * new[name][model] for name, share in choice.weights.items())
    return float(auroc(np.repeat([0.0, 1.0], NEW), told))


def _has_network(outcome: Outcome, cell: Cell) -> bool:
    kinds = {one.name: one.kind for one in cell.candidates}
    return any(kinds[name] == "network" for name in outcome.final.weights)


def _differ(cell: Cell, drawn: Drawn, cohort: int, repeats: int) -> bool:
    """Whether the first and the fourth candidate, which are alike, differ with p < 0.05."""
    if cell.count < 4 or not cell.alike:
        return False
    studies = np.tile(np.arange(cell.patients), repeats)
    of_repeat = np.arange(repeats)[:, None]
    folds = (drawn.folds[cohort, :repeats] + FOLDS * of_repeat).ravel()
    numbers = np.broadcast_to(of_repeat, (repeats, cell.patients)).ravel()
    truth = np.tile(drawn.truth, repeats)[:, None]
    pair = tuple(
        cross_validation.HeldOut(
            ["label"],
            truth,
            drawn.outer[number][cohort, :repeats].reshape(-1, 1),
            np.full_like(truth, 0.5),
            *(studies, studies, folds, numbers),
        ).of(0)
        for number in (0, 3)
    )
    return cross_validation.auroc_difference([pair])[1] < 0.05


@dataclass(frozen=True)
class Result:
    """What came of a cell, over its cohorts.

    Attributes:
        repeats: of the folds.
        cohorts: their number.
        true: mean AUROC on new patients of what the folds chose.
        bias: how much more is printed, on average.
        bias_error: standard error of that.
        covered: share of the intervals that hold the truth.
        chance: share of the intervals that lie above chance.
        width: mean width.
        deployed: mean AUROC on new patients of what is deployed, trained on all patients.
        simplest: the same of the simplest candidate.
        network: share of the cohorts in which a network is in the final choice.
        differ: share of the cohorts in which two candidates that are alike differ.
    """

    cell: Cell
    repeats: int
    cohorts: int
    true: float
    bias: float
    bias_error: float
    covered: float
    chance: float
    width: float
    deployed: float
    simplest: float
    network: float
    differ: float

    @classmethod
    def of(cls, cell: Cell, repeats: int, cohorts: list[Cohort]) -> Result:
        """Of the cohorts of a cell."""
        columns = Cohort(*(np.array(column, float) for column in zip(*cohorts, strict=True)))
        truth = float(columns.true.mean()) if cell.auroc > 0.5 else 0.5
        apart = columns.value - columns.true
        return cls(
            cell,
            repeats,
            len(cohorts),
            truth,
            float(apart.mean()),
            float(apart.std() / np.sqrt(len(cohorts))),
            float(((columns.low <= truth) & (truth <= columns.high)).mean()),
            float((columns.low > 0.5).mean()),
            float((columns.high - columns.low).mean()),
            *(float(column.mean()) for column in columns[4:]),
        )

    def line(self) -> str:
        """The cell in a line of the table."""
        cell, design = self.cell, "alike" if self.cell.alike else "one good"
        differ = f"{self.differ:.3f}" if cell.alike and cell.count > 3 else "  -  "
        network = f"{self.network:.3f}" if cell.count > 5 else "  -  "
        return (
            f"{cell.patients:>4} {cell.auroc:<5} {cell.count:>3} {design:<8} {self.repeats} | "
            f"{self.true:.3f} {self.bias:+.3f} +- {self.bias_error:.3f} {self.covered:.3f} "
            f"{self.width:.3f} {self.chance:.3f} | {network} {differ} | {self.deployed:.3f} "
            f"{self.simplest:.3f}"
        )


HEADER = (
    "patients, AUROC, candidates, design, repeats | truth, bias, coverage, width, better than "
    "chance | a network is deployed, two that are alike differ | truth of what is deployed, of the "
    "simplest candidate"
)


def simulate(
    cell: Cell, cohorts: int, repeats: Sequence[int] = (1, REPEATS), seed: int = 0
) -> list[Result]:
    """Run a cell, by number of repeats."""
    found: dict[int, list[Cohort]] = {count: [] for count in repeats}
    for start in range(0, cohorts, CHUNK):
        size = min(CHUNK, cohorts - start)
        own_seed = [seed, cell.patients, cell.count, start, round(100 * cell.auroc), cell.alike]
        drawn = draw(cell, size, own_seed)
        for count, own in found.items():
            own += [run(cell, drawn, cohort, count) for cohort in range(size)]
    return [Result.of(cell, count, own) for count, own in found.items()]


def cells(sizes: Sequence[int]) -> list[Cell]:
    """All cells; with nothing to learn, or one candidate, all are alike."""
    return [
        Cell(patients, reached, count, alike)
        for patients in sizes
        for reached in (0.5, 0.7, 0.85)
        for count in (1, 6, 30)
        for alike in ((True, False) if reached > 0.5 and count > 1 else (True,))
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cohorts", type=int, default=500)
    parser.add_argument("--size", type=int, nargs="*", default=[40, 62, 152])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    results = []
    chosen = cells(arguments.size)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for of_cell in pool.map(simulate, chosen, itertools.repeat(arguments.cohorts)):
            for result in of_cell:
                print(result.line(), flush=True)
                results.append(asdict(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
