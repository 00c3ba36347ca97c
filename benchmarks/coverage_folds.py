"""Coverage of cross-validated intervals, and the level of the paired comparison, by simulation.

A learner is cross-validated on many cohorts that are drawn anew, and its interval is asked whether
it holds what the recipe does on average: the expected AUROC of the learner, trained on another
cohort of the same size, on new patients. Everything goes through the functions of
`medseq_tf.evaluation.cross_validation`; the other candidates of `CANDIDATES` are those that it was
chosen from.

    python benchmarks/coverage_folds.py [--cohorts 500] [--size 62] [--candidates]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medseq_tf.evaluation import cross_validation
from medseq_tf.evaluation.cross_validation import HeldOut, mean_auroc

FOLDS = 5

Array = np.ndarray


@dataclass(frozen=True)
class Learner:
    """What is cross-validated.

    Attributes:
        name: of the table.
        features: their number; each patient has as many values, of variance 1.
        informative: how many of them differ between the classes.
        units: of a network of random tanh units under the linear discriminant; 0: none. Its random
            weights are training's own spread.
        fails: how often training fails, and the scores are of another, random model.
    """

    name: str
    features: int
    informative: int
    units: int = 0
    fails: float = 0.0

    def fit(self, positive: Array, negative: Array, rng: np.random.Generator) -> Callable:
        """Train one model a cohort.

        Args:
            positive: (cohorts, patients, features).
            negative: the same, of the other class.
            rng: of training.

        Returns:
            A function of (cohorts, patients, features) to scores (cohorts, patients).
        """
        cohorts, _, features = positive.shape
        if not self.units:
            weights = _discriminant(positive, negative)
        else:
            first = rng.normal(size=(cohorts, features, self.units)) * 1.5 / np.sqrt(features)
            shift = rng.normal(size=(cohorts, 1, self.units))

            def hidden(values: Array) -> Array:
                return np.tanh(values @ first + shift)

            last = _discriminant(hidden(positive), hidden(negative))
            return lambda values: np.einsum("cph,ch->cp", hidden(values), last)
        failed = rng.random(cohorts) < self.fails
        weights = np.where(failed[:, None], rng.normal(size=weights.shape), weights)
        return lambda values: np.einsum("cpf,cf->cp", values, weights)


LEARNERS = (
    Learner("3 features", 3, 1),
    Learner("10 features", 10, 3),
    Learner("60 features", 60, 12),
    Learner("random network", 6, 2, units=12),
    Learner("fails in 1 of 5", 3, 1, fails=0.2),
)


def _discriminant(positive: Array, negative: Array) -> Array:
    """Weights (cohorts, features) of Fisher's linear discriminant, shrunk towards the identity."""
    gap = positive.mean(axis=1) - negative.mean(axis=1)
    inner = [part - part.mean(axis=1, keepdims=True) for part in (positive, negative)]
    scatter = sum(np.swapaxes(part, 1, 2) @ part for part in inner)
    count = positive.shape[1] + negative.shape[1] - 2
    scatter = scatter / count + 0.5 * np.eye(scatter.shape[-1])
    return np.linalg.solve(scatter, gap[..., None])[..., 0]


def draw(cohorts: int, patients: int, gap: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Positive and negative patients, (cohorts, patients / 2, features) each."""
    shape = (cohorts, patients // 2, len(gap))
    return rng.normal(size=shape) + gap / 2, rng.normal(size=shape) - gap / 2


def _wins(positive: Array, negative: Array) -> Array:
    return (np.sign(positive[:, :, None] - negative[:, None]) + 1) / 2


def expected_auroc(learner: Learner, patients: int, gap: Array, seed: int, cohorts: int) -> float:
    """The mean AUROC on new patients of models that are trained on as many as in four folds."""
    rng, found = np.random.default_rng(seed), []
    trained = 2 * (patients // 2 - patients // 2 // FOLDS)
    for _ in range(0, cohorts, 500):
        model = learner.fit(*draw(500, trained, gap, rng), rng)
        found.append(_wins(*map(model, draw(500, 100, gap, rng))).mean())
    return float(np.mean(found))


def gap_for(learner: Learner, patients: int, auroc: float) -> Array:
    """The difference of the classes that makes a learner reach an AUROC."""
    direction = np.arange(learner.features) < learner.informative
    low, high = 0.0, 6.0
    for _ in range(10 if auroc > 0.5 else 0):
        middle = (low + high) / 2
        reached = expected_auroc(learner, patients, direction * middle, 1, 1000)
        low, high = (middle, high) if reached < auroc else (low, middle)
    return direction * (low if auroc > 0.5 else 0.0)


def cross_validate(
    learners: list[Learner],
    positive: Array,
    negative: Array,
    repeats: int,
    seed: int,
    seeds: list[int],
) -> list[tuple[Array, Array, Array]]:
    """Scores (cohorts, rows) of learners on the same folds, and their folds and repeats.

    Rows are the positive, then the negative patients, repeat by repeat.
    """
    cohorts, half = positive.shape[:2]
    rng, own = np.random.default_rng(seed), [np.random.default_rng(one) for one in seeds]
    scores = [np.zeros((cohorts, repeats, 2, half)) for _ in learners]
    folds = np.zeros((cohorts, repeats, 2, half), int)
    which = np.arange(cohorts)[:, None]
    for repeat in range(repeats):
        orders = [np.argsort(rng.random((cohorts, half)), axis=1) for _ in range(2)]
        for fold in range(FOLDS):
            tested = [order[:, fold::FOLDS] for order in orders]
            rest = [
                np.concatenate([order[:, k::FOLDS] for k in range(FOLDS) if k != fold], axis=1)
                for order in orders
            ]
            groups = (positive, negative)
            training = [group[which, rows] for group, rows in zip(groups, rest, strict=True)]
            for number, learner in enumerate(learners):
                model = learner.fit(*training, own[number])
                for side, (group, rows) in enumerate(zip(groups, tested, strict=True)):
                    scores[number][which, repeat, side, rows] = model(group[which, rows])
                    folds[which, repeat, side, rows] = repeat * FOLDS + fold + 1
    flat = folds.reshape(cohorts, -1)
    numbers = np.broadcast_to(np.arange(repeats).repeat(2 * half) + 1, flat.shape)
    return [(score.reshape(cohorts, -1), flat, numbers) for score in scores]


def held_out(scores: Array, folds: Array, repeats: Array, half: int) -> HeldOut:
    """One cohort's predictions, as a cross-validated run has them."""
    count = len(scores) // (2 * half)
    truth = np.tile(np.repeat([1.0, 0.0], half), count)[:, None]
    studies = np.tile(np.arange(2 * half), count)
    probabilities = 1 / (1 + np.exp(-np.clip(scores, -30, 30)))[:, None]
    thresholds = np.full_like(truth, 0.5)
    return HeldOut(["label"], truth, probabilities, thresholds, studies, studies, folds, repeats)


CANDIDATES: dict[str, Callable] = {}
"""Intervals that were compared: of a `LabelFolds` to low and high."""


def _candidate(function: Callable) -> Callable:
    CANDIDATES[function.__name__.strip("_").replace("_", " ")] = function
    return function


def _on_logits(value: float, spread: float, quantile: float) -> tuple[float, float]:
    value = float(np.clip(value, 1e-3, 1 - 1e-3))
    middle, half = np.log(value / (1 - value)), quantile * spread / (value * (1 - value))
    return tuple(1 / (1 + np.exp(-(middle + side * half))) for side in (-1, 1))


@_candidate
def _delong_of_the_tested_patients(label: cross_validation.LabelFolds) -> tuple[float, float]:
    estimate = mean_auroc([label]).variance()
    return _on_logits(estimate.value, np.sqrt(estimate.patients), stats.norm.ppf(0.975))


@_candidate
def _with_what_folds_add(label: cross_validation.LabelFolds) -> tuple[float, float]:
    estimate = mean_auroc([label]).variance()
    return _on_logits(estimate.value, estimate.spread(1.0), stats.t.ppf(0.975, estimate.freedom))


@_candidate
def _corrected_resampling(label: cross_validation.LabelFolds) -> tuple[float, float]:
    """Nadeau and Bengio 2003."""
    by_fold = list(mean_auroc([label]).by_fold.values())
    variance = np.var(by_fold, ddof=1) * (1 / len(by_fold) + 1 / (FOLDS - 1))
    quantile = stats.t.ppf(0.975, len(by_fold) - 1)
    return _on_logits(np.mean(by_fold), np.sqrt(variance), quantile)


@_candidate
def _corrected_few_degrees(label: cross_validation.LabelFolds) -> tuple[float, float]:
    """Nadeau and Bengio 2003, with the degrees of freedom of one repeat."""
    by_fold = list(mean_auroc([label]).by_fold.values())
    variance = np.var(by_fold, ddof=1) * (1 / len(by_fold) + 1 / (FOLDS - 1))
    return _on_logits(np.mean(by_fold), np.sqrt(variance), stats.t.ppf(0.975, FOLDS - 1))


@_candidate
def _twice_the_patients(label: cross_validation.LabelFolds) -> tuple[float, float]:
    estimate = mean_auroc([label]).variance()
    return _on_logits(estimate.value, estimate.spread(2.0), stats.t.ppf(0.975, estimate.freedom))


@_candidate
def _ours(label: cross_validation.LabelFolds) -> tuple[float, float]:
    estimate = mean_auroc([label]).variance()
    return cross_validation.interval(estimate, label.inflation, label.support("auroc"))


@dataclass(frozen=True)
class Coverage:
    """How often intervals of one design hold the truth.

    Attributes:
        covered: share of the cohorts whose interval holds the expected AUROC.
        above: share whose interval lies above it: at 0.5, claims to be better than chance.
        width: mean width.
    """

    covered: float
    above: float
    width: float


def coverage(
    learner: Learner,
    patients: int,
    auroc: float,
    repeats: tuple[int, ...] = (1, 5),
    cohorts: int = 500,
    names: tuple[str, ...] = ("ours",),
    seed: int = 0,
) -> dict[tuple[int, str], Coverage]:
    """Coverage by number of repeats and candidate."""
    half, gap = patients // 2, gap_for(learner, patients, auroc)
    truth = expected_auroc(learner, patients, gap, 2, 4000) if auroc > 0.5 else 0.5
    positive, negative = draw(cohorts, patients, gap, np.random.default_rng([seed, patients]))
    most = cross_validate([learner], positive, negative, max(repeats), seed, [seed + 1])[0]
    found = {}
    for count in repeats:
        rows = count * 2 * half
        labels = [held_out(*(part[i, :rows] for part in most), half).of(0) for i in range(cohorts)]
        for name in names:
            low, high = np.array([CANDIDATES[name](label) for label in labels]).T
            covered = float(np.mean((low <= truth) & (truth <= high)))
            found[count, name] = Coverage(
                covered, float(np.mean(low > truth)), float(np.mean(high - low))
            )
    return found


PAIRS = {
    "other seeds of a network": (LEARNERS[3], LEARNERS[3], 0.7),
    "other seeds, training fails": (LEARNERS[4], LEARNERS[4], 0.7),
    "nothing to learn, two learners": (LEARNERS[1], LEARNERS[3], 0.5),
    "nothing to learn, 3 and 6 features": (LEARNERS[0], LEARNERS[3], 0.5),
}
"""Recipes of equal expected AUROC."""


def equal_recipes(
    name: str, patients: int, repeats: int, cohorts: int, seed: int
) -> list[tuple[Array, Array, Array]]:
    """Two recipes of the same expected AUROC, as `cross_validate` gives them.

    `halves` are two learners that see other, equally good features of the patients.
    """
    if name == "halves":
        learner = LEARNERS[1]
        gap = gap_for(learner, patients, 0.7)
        parts = [draw(cohorts, patients, gap, np.random.default_rng([seed, i])) for i in (1, 2)]
        return [cross_validate([learner], *part, repeats, seed, [1])[0] for part in parts]
    a, b, auroc = PAIRS[name]
    gap = gap_for(a, patients, auroc) if auroc > 0.5 else np.zeros(max(a.features, b.features))
    drawn = draw(cohorts, patients, gap, np.random.default_rng([seed, patients]))
    return cross_validate([a, b], *drawn, repeats, seed, [1, 2])


def rejections(
    name: str, patients: int, repeats: tuple[int, ...] = (1, 5), cohorts: int = 500, seed: int = 0
) -> dict[int, float]:
    """Share of the cohorts in which two equal recipes differ with p < 0.05, by repeats."""
    half, both = patients // 2, equal_recipes(name, patients, max(repeats), cohorts, seed)
    found = {}
    for count in repeats:
        rows, rejected = count * 2 * half, []
        for i in range(cohorts):
            pair = tuple(held_out(*(part[i, :rows] for part in one), half).of(0) for one in both)
            rejected.append(cross_validation.auroc_difference([pair])[1] < 0.05)
        found[count] = float(np.mean(rejected))
    return found


def lines(cohorts: int, sizes: list[int], candidates: bool) -> Iterator[str]:
    """The tables, line by line."""
    names = tuple(CANDIDATES) if candidates else ("ours",)
    yield "coverage of the 95% interval / share above the truth / mean width"
    for patients in sizes:
        for auroc in (0.5, 0.7, 0.85):
            for learner in LEARNERS:
                found = coverage(learner, patients, auroc, (1, 5), cohorts, names)
                for (repeats, name), one in found.items():
                    yield (
                        f"n = {patients:<4} AUROC {auroc:<5} {learner.name:<16} "
                        f"{repeats} repeats  {name:<30} {one.covered:.3f} / {one.above:.3f} / "
                        f"{one.width:.2f}"
                    )
    yield "share of equal recipes that differ with p < 0.05"
    for patients in sizes:
        for name in ("halves", *PAIRS):
            for repeats, share in rejections(name, patients, (1, 5), cohorts).items():
                yield f"n = {patients:<4} {name:<36} {repeats} repeats  {share:.3f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=500)
    parser.add_argument("--size", type=int, nargs="*", default=[40, 62, 152])
    parser.add_argument("--candidates", action="store_true", help="also those not chosen")
    arguments = parser.parse_args()
    for line in lines(arguments.cohorts, arguments.size, arguments.candidates):
        print(line, flush=True)


if __name__ == "__main__":
    main()
