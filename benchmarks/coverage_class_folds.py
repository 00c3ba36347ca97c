"""Coverage of cross-validated intervals of classes that exclude each other, by simulation.

A linear discriminant of three classes is cross-validated on many cohorts that are drawn anew, and
each interval is asked whether it holds what the recipe does on average: the metric of the learner,
trained on another cohort of the same size, on new patients. Everything goes through
`cross_validation.evaluate_class_folds`.

    python benchmarks/coverage_class_folds.py [--cohorts 300] [--size 152]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from medseq_tf.evaluation import cross_validation
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.metrics import class_point_metrics
from medseq_tf.readers.classes import Classes

CLASSES = Classes("tumour", ("a", "b", "c"), ordered=True)
SHARES = (0.45, 0.35, 0.2)
"""Of the patients, by class."""
FOLDS = 5
METRICS = (
    *("accuracy", "balanced_accuracy", "auroc", "auroc_pairwise", "f1_macro", "kappa"),
    *("kappa_quadratic", "mean_absolute_error", "brier"),
)

Array = np.ndarray


@dataclass(frozen=True)
class Design:
    """What is cross-validated, on what patients.

    Attributes:
        name: of the table.
        features: their number; each patient has as many values, of variance 1.
        gap: how far the classes' means lie apart.
    """

    name: str
    features: int
    gap: float

    def draw(self, truth: Array, rng: np.random.Generator) -> Array:
        """The features of patients of given classes, (patients, features)."""
        features = rng.normal(size=(len(truth), self.features))
        features[:, 0] += self.gap * (truth - 1)
        features[:, 1] += self.gap * (truth == 1)
        return features


DESIGNS = (
    Design("nothing to learn", 10, 0.0),
    Design("hard", 10, 0.8),
    Design("easy", 10, 2.0),
    Design("many features", 60, 1.5),
)


def classes_of(patients: int) -> Array:
    """Numbers of the classes of a cohort, (patients,)."""
    counts = np.round(np.cumsum(SHARES) * patients).astype(int)
    return np.searchsorted(counts, np.arange(patients), side="right")


def probabilities(training: Array, truth: Array, tested: Array) -> Array:
    """What a linear discriminant, shrunk towards the identity, says of patients, (tested, 3)."""
    kinds = range(len(CLASSES.names))
    means = np.stack([training[truth == kind].mean(axis=0) for kind in kinds])
    inner = training - means[truth]
    scatter = inner.T @ inner / (len(truth) - len(means)) + 0.5 * np.eye(training.shape[1])
    weights = np.linalg.solve(scatter, means.T)
    bias = np.log(np.bincount(truth)) - 0.5 * np.einsum("kf,fk->k", means, weights)
    return special.softmax(tested @ weights + bias, axis=1)


def cross_validate(
    design: Design, patients: int, repeats: int, rng: np.random.Generator
) -> pd.DataFrame:
    """One cohort's held-out predictions, as a cross-validated run keeps them."""
    truth = classes_of(patients)
    features, parts = design.draw(truth, rng), []
    for repeat in range(repeats):
        fold = np.empty(patients, int)
        for kind in range(len(CLASSES.names)):
            own = np.flatnonzero(truth == kind)
            fold[own] = rng.permutation(len(own)) % FOLDS
        for number in range(FOLDS):
            tested = fold == number
            found = probabilities(features[~tested], truth[~tested], features[tested])
            parts.append(_table(np.flatnonzero(tested), truth, found, FOLDS * repeat + number + 1))
    return pd.concat(parts, ignore_index=True)


def _table(rows: Array, truth: Array, found: Array, fold: int) -> pd.DataFrame:
    count, called = len(CLASSES.names), found.argmax(axis=1)
    return pd.DataFrame(
        {
            "study": np.tile(rows, count),
            "patient": np.tile(rows, count),
            "split": "test",
            "fold": fold,
            "repeat": (fold - 1) // FOLDS + 1,
            "label": np.repeat(CLASSES.names, len(rows)),
            "truth": (truth[rows] == np.arange(count)[:, None]).ravel().astype(float),
            "probability": found.T.ravel(),
            "positive": (called == np.arange(count)[:, None]).ravel(),
        }
    )


def expected(design: Design, patients: int, cohorts: int, seed: int) -> dict[str, float]:
    """The mean of the metrics, on new patients, of models trained on as many as in four folds."""
    rng, found = np.random.default_rng(seed), []
    trained, new = classes_of(patients - patients // FOLDS), classes_of(1000)
    for _ in range(cohorts):
        training, tested = design.draw(trained, rng), design.draw(new, rng)
        told = probabilities(training, trained, tested)
        found.append(class_point_metrics(np.eye(3)[new], told, ordered=True))
    return {name: float(np.mean([one[name] for one in found])) for name in METRICS}


def coverage(
    design: Design, patients: int, repeats: tuple[int, ...], cohorts: int, seed: int = 0
) -> pd.DataFrame:
    """Coverage and mean width by metric and number of repeats."""
    truth, rng, found = expected(design, patients, 1500, seed + 1), np.random.default_rng(seed), []
    for _ in range(cohorts):
        predictions = cross_validate(design, patients, max(repeats), rng)
        for count in repeats:
            table = ClassTable.of(predictions[predictions["repeat"] <= count], CLASSES)
            scored = cross_validation.evaluate_class_folds(table, resamples=200)
            of_all = scored[scored["label"] == CLASSES.column].set_index("metric").loc[[*METRICS]]
            found.append(of_all[["value", "low", "high"]].assign(repeats=count))
    table = pd.concat(found).reset_index()
    table["truth"] = table["metric"].map(truth)
    table["covered"] = (table["low"] <= table["truth"]) & (table["truth"] <= table["high"])
    table["width"] = table["high"] - table["low"]
    columns = ["truth", "value", "covered", "width"]
    return table.groupby(["repeats", "metric"], sort=False)[columns].mean().reset_index()


def lines(cohorts: int, sizes: list[int]) -> Iterator[str]:
    """The table, line by line."""
    yield "the truth, mean estimate, coverage of the 95% interval, its mean width"
    for patients in sizes:
        for design in DESIGNS:
            for row in coverage(design, patients, (1, 5), cohorts).itertuples():
                yield (
                    f"n = {patients:<4} {design.name:<17} {row.repeats} repeats  {row.metric:<20} "
                    f"{row.truth:.3f} {row.value:.3f} {row.covered:.3f} {row.width:.3f}"
                )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=300)
    parser.add_argument("--size", type=int, nargs="*", default=[152])
    arguments = parser.parse_args()
    for line in lines(arguments.cohorts, arguments.size):
        print(line, flush=True)


if __name__ == "__main__":
    main()
