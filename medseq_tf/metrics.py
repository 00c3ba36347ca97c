"""Takes labels and predicted probabilities; gives figures of merit with intervals over patients.

Every function takes `labels` (studies,) with 0, 1, or nan for unknown (left out), and
`probabilities` (studies,) of the positive class. The unit of evaluation is the study. Where a
patient has several, `patients` (studies,) names the owner of each and every interval is over
patients: resampling draws whole patients, and the variance of the AUROC is that for clustered data.

A metric is written once, for weighted studies: `weights` (studies,) or (resamples, studies), by
default 1 each, count how often each study stands in the sample. So a bootstrap is one call with a
matrix of counts. What cannot be said is nan, and a note says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from medseq_tf.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; `note` says why a number is nan or to be doubted."""

    value: float
    low: float
    high: float
    note: str = ""


# ------------------------------------------------------------------------------ at a threshold


@dataclass(frozen=True)
class Confusion:
    """Counts of studies, each () or (resamples,), and the rates that follow from them.

    A rate whose denominator is 0 is nan.
    """

    true_positives: Array
    false_positives: Array
    true_negatives: Array
    false_negatives: Array

    @property
    def accuracy(self) -> Array:
        """Share of all studies that are classified rightly."""
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def recall(self) -> Array:
        """Sensitivity: share of the positive studies that are found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> Array:
        """Share of the negative studies that are called negative."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def precision(self) -> Array:
        """Positive predictive value: share of the positive calls that are right."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def negative_predictive_value(self) -> Array:
        """Share of the negative calls that are right."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_negatives)

    @property
    def f1(self) -> Array:
        """Harmonic mean of precision and recall; 0 when every positive study is missed."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def balanced_accuracy(self) -> Array:
        """Mean of recall and specificity, which is the macro average of recall."""
        return (self.recall + self.specificity) / 2

    @property
    def recall_macro(self) -> Array:
        """Recall, averaged over the two classes (paper 1, tables 4 and 5)."""
        return self.balanced_accuracy

    @property
    def precision_macro(self) -> Array:
        """Precision, averaged over the two classes (paper 1, tables 4 and 5)."""
        return (self.precision + self.negative_predictive_value) / 2

    @property
    def f1_macro(self) -> Array:
        """F1, averaged over the two classes (paper 1, tables 4 and 5)."""
        wrong = self.false_positives + self.false_negatives
        negative = _ratio(2 * self.true_negatives, 2 * self.true_negatives + wrong)
        return (self.f1 + negative) / 2


def confusion(
    labels: Array, probabilities: Array, threshold: float | Array, weights: Array | None = None
) -> Confusion:
    """Counts of right and wrong calls; a study is called positive at `threshold` or above.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,).
        threshold: One for all, or (studies,), such as the one of each study's own fold.
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        Counts as floats, () or (resamples,).
    """
    labels, probabilities, weights, known = _known(labels, probabilities, weights)
    threshold = np.broadcast_to(np.asarray(threshold, dtype=float), known.shape)[known]
    called, positive = probabilities >= threshold, labels == 1
    cells = [called & positive, called & ~positive, ~called & ~positive, ~called & positive]
    counts = weights @ np.stack(cells, axis=1).astype(float)
    return Confusion(*np.moveaxis(counts, -1, 0))


# -------------------------------------------------------------------------- over all thresholds


def auroc(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Area under the ROC curve: a positive study ranks above a negative one, ties count half.

    The Mann-Whitney statistic on midranks; any increasing score serves in place of probabilities.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,).
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        () or (resamples,); nan without both classes.
    """
    positives, negatives, _ = _by_score(labels, probabilities, weights)
    negatives_below = negatives.sum(axis=-1, keepdims=True) - np.cumsum(negatives, axis=-1)
    concordant = (positives * (negatives_below + negatives / 2)).sum(axis=-1)
    return _ratio(concordant, positives.sum(axis=-1) * negatives.sum(axis=-1))


def average_precision(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Area under the precision-recall curve in steps: sum of precision times the gain in recall.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,).
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        () or (resamples,); nan without both classes.
    """
    positives, negatives, _ = _by_score(labels, probabilities, weights)
    found = np.cumsum(positives, axis=-1)
    called = found + np.cumsum(negatives, axis=-1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    area = _ratio((positives * precision).sum(axis=-1), found[..., -1])
    return np.where(called[..., -1] > found[..., -1], area, np.nan)


def sensitivity_at_specificity(
    labels: Array, probabilities: Array, specificity: float = 0.9, weights: Array | None = None
) -> Array:
    """The greatest sensitivity of any threshold that keeps at least this specificity.

    Returns:
        () or (resamples,); nan without both classes.
    """
    sensitivities, specificities = _operating_points(labels, probabilities, weights)
    return _best(sensitivities, specificities >= specificity - 1e-12)


def specificity_at_sensitivity(
    labels: Array, probabilities: Array, sensitivity: float = 0.9, weights: Array | None = None
) -> Array:
    """The greatest specificity of any threshold that keeps at least this sensitivity.

    Returns:
        () or (resamples,); nan without both classes.
    """
    sensitivities, specificities = _operating_points(labels, probabilities, weights)
    return _best(specificities, sensitivities >= sensitivity - 1e-12)


def _best(values: Array, allowed: Array) -> Array:
    """The greatest allowed value along the last axis, nan where none is allowed."""
    best = np.where(allowed, values, -np.inf).max(axis=-1)
    return np.where(allowed.any(axis=-1), best, np.nan)


def roc_points(labels: Array, probabilities: Array) -> pd.DataFrame:
    """The ROC curve: a row for each distinct probability, from nothing called positive to all.

    Returns:
        Columns `threshold` (the first is inf), `false_positive_rate`, `sensitivity`.
    """
    sensitivities, specificities = _operating_points(labels, probabilities, None)
    thresholds = _by_score(labels, probabilities, None)[2]
    return pd.DataFrame(
        {
            "threshold": np.concatenate([[np.inf], thresholds]),
            "false_positive_rate": 1 - specificities,
            "sensitivity": sensitivities,
        }
    )


def precision_recall_points(labels: Array, probabilities: Array) -> pd.DataFrame:
    """The precision-recall curve: a row for each distinct probability, from the highest down.

    Returns:
        Columns `threshold`, `recall`, `precision`.
    """
    positives, negatives, thresholds = _by_score(labels, probabilities, None)
    found = np.cumsum(positives)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "recall": _ratio(found, positives.sum()),
            "precision": _ratio(found, found + np.cumsum(negatives)),
        }
    )


# -------------------------------------------------------------------------------- the threshold


def choose_threshold(labels: Array, probabilities: Array, rule: str = "youden") -> float:
    """The operating point by a rule; to be chosen on validation, never on test.

    Candidates lie halfway between neighbouring observed probabilities, at half of the lowest and
    halfway from the highest to 1 (just above 1 if that is observed). Ties go to the higher Youden
    index, then to the lower threshold.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        rule: `youden` (sensitivity + specificity - 1), `f1`, `f1_macro`, `accuracy`,
            `sensitivity>=X` (the most specific that finds this share), or `specificity>=X` (the
            most sensitive that keeps this share).

    Raises:
        InputError: An unknown rule, or only one class.
    """
    objective = _rule(rule)
    labels, probabilities, _, _ = _known(labels, probabilities, None, unit_interval=True)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"no threshold can be chosen: {_class_counts(labels)}; both classes are needed"
        )
    positives, negatives, observed = _by_score(labels, probabilities, None)
    found, false = (np.concatenate([[0], np.cumsum(part)]) for part in (positives, negatives))
    counts = Confusion(found, false, false[-1] - false, found[-1] - found)
    top = max(1.0, np.nextafter(observed[0], np.inf))
    above, below = np.concatenate([[top], observed]), np.concatenate([observed, [0.0]])
    candidates = below + (above - below) / 2
    # Halfway between two neighbouring floats is one of them: only the upper one splits them.
    candidates = np.where(candidates <= below, above, candidates)
    score = objective(counts).round(12)
    youden = (counts.recall + counts.specificity - 1).round(12)
    return float(candidates[np.lexsort([candidates, -youden, -score])[0]])


def choose_thresholds(
    labels: Array, probabilities: Array, label_names: Sequence[str], rule: str = "youden"
) -> tuple[Array, list[str]]:
    """`choose_threshold` for each label; 0.5, and a note, where a label has only one class.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        rule: As for `choose_threshold`.

    Returns:
        Thresholds (labels,), and the notes.
    """
    _rule(rule)
    thresholds, notes = np.full(len(label_names), 0.5), []
    for index, name in enumerate(label_names):
        column = np.asarray(labels, dtype=float)[:, index]
        if len(np.unique(column[~np.isnan(column)])) < 2:
            notes.append(f"{name}: {_class_counts(column)}, so the threshold is 0.5")
        else:
            thresholds[index] = choose_threshold(column, np.asarray(probabilities)[:, index], rule)
    return thresholds, notes


def _rule(rule: str) -> Callable[[Confusion], Array]:
    simple = {
        "youden": lambda counts: counts.recall + counts.specificity - 1,
        "f1": lambda counts: counts.f1,
        "f1_macro": lambda counts: counts.f1_macro,
        "accuracy": lambda counts: counts.accuracy,
    }
    if rule in simple:
        return simple[rule]
    match = re.fullmatch(r"(sensitivity|specificity)\s*>=\s*(0(?:\.\d+)?|1(?:\.0+)?|\.\d+)", rule)
    if match is None:
        raise InputError(
            f"unknown threshold rule {rule!r}: expected one of {', '.join(simple)}, "
            "sensitivity>=X, specificity>=X (X from 0 to 1)"
        )
    kept, least = match[1], float(match[2]) - 1e-12

    def best_of_the_other(counts: Confusion) -> Array:
        rates = {"sensitivity": counts.recall, "specificity": counts.specificity}
        other = rates["specificity" if kept == "sensitivity" else "sensitivity"]
        return np.where(rates[kept] >= least, other, -np.inf)

    return best_of_the_other


# ---------------------------------------------------------------------------------- calibration


def brier(labels: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Brier score: mean squared difference of probability and label; () or (resamples,)."""
    labels, probabilities, weights, _ = _known(labels, probabilities, weights, unit_interval=True)
    return _ratio(weights @ (probabilities - labels) ** 2, weights.sum(axis=-1))


def expected_calibration_error(
    labels: Array, probabilities: Array, bins: int = 10, weights: Array | None = None
) -> Array:
    """Mean over studies of |observed share - mean probability| of their bin (Naeini et al. 2015).

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        bins: Number of bins of equal width.
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        () or (resamples,).
    """
    labels, probabilities, weights, _ = _known(labels, probabilities, weights, unit_interval=True)
    inside = _bin(probabilities, bins)[:, None] == np.arange(bins)
    gaps = np.abs(weights @ (inside * (labels - probabilities)[:, None]))
    return _ratio(gaps.sum(axis=-1), weights.sum(axis=-1))


def reliability_curve(labels: Array, probabilities: Array, bins: int = 10) -> pd.DataFrame:
    """Observed share against predicted probability, in bins of equal width.

    Returns:
        One row a bin that holds a study: `low_edge`, `high_edge`, `probability` (mean), `observed`
        (share of positives), `low` and `high` (Wilson's 95% interval of the share), `n`.
    """
    labels, probabilities, _, _ = _known(labels, probabilities, None, unit_interval=True)
    index, edges = _bin(probabilities, bins), np.linspace(0, 1, bins + 1)
    n = np.bincount(index, minlength=bins)
    used = np.flatnonzero(n)
    positives = np.bincount(index, labels, bins)[used]
    low, high = wilson_interval(positives, n[used])
    return pd.DataFrame(
        {
            "low_edge": edges[used],
            "high_edge": edges[used + 1],
            "probability": np.bincount(index, probabilities, bins)[used] / n[used],
            "observed": positives / n[used],
            "low": low,
            "high": high,
            "n": n[used],
        }
    )


def wilson_interval(count: Array, n: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Wilson's score interval (1927) of a share `count / n` of independent observations, n > 0."""
    z = stats.norm.ppf((1 + confidence) / 2)
    count, n = np.asarray(count, dtype=float), np.asarray(n, dtype=float)
    centre = (count + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(count * (n - count) / n + z**2 / 4)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


TEMPERATURES = (0.05, 20.0)
"""The least and the greatest that `fit_temperature` gives."""


def fit_temperature(labels: Array, logits: Array) -> float:
    """The temperature T that makes sigmoid(logit / T) most likely (Guo et al. 2017, section 4.2).

    Fitted on validation. The log likelihood is concave in 1 / T, so there is one optimum; it is
    kept within [0.05, 20], where separable or misleading logits would drive it to 0 or infinity.

    Args:
        labels: (studies,) 0, 1 or nan.
        logits: (studies,) before the sigmoid.

    Raises:
        InputError: Only one class.
    """
    labels, logits, _, _ = _known(labels, logits, None)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"no temperature can be fitted: {_class_counts(labels)}; both classes are needed"
        )

    def slope(inverse: float) -> float:
        """Derivative of the negative log likelihood by 1 / T; it never falls."""
        return float(((special.expit(inverse * logits) - labels) * logits).sum())

    smallest, largest = TEMPERATURES
    if slope(1 / smallest) <= 0:
        return smallest
    if slope(1 / largest) >= 0:
        return largest
    return float(1 / optimize.brentq(slope, 1 / largest, 1 / smallest, xtol=1e-12))


def apply_temperature(logits: Array, temperature: float) -> Array:
    """Probabilities sigmoid(logits / temperature), of the logits' shape."""
    return special.expit(np.asarray(logits, dtype=float) / temperature)


def logits(probabilities: Array) -> Array:
    """Logits of probabilities, which are kept 1e-7 away from 0 and 1, the precision of float32."""
    return special.logit(np.clip(np.asarray(probabilities, dtype=float), 1e-7, 1 - 1e-7))


def scale(probabilities: Array, temperature: float) -> Array:
    """Probabilities after temperature scaling.

    It is increasing, so a threshold that is scaled too gives the same calls.
    """
    return apply_temperature(logits(probabilities), temperature)


# ------------------------------------------------------------------------------- decision curve


def net_benefit(
    labels: Array, probabilities: Array, thresholds: Array, weights: Array | None = None
) -> Array:
    """True positives minus false ones weighed by the odds of the threshold, per study.

    Vickers and Elkin 2006: TP / n - FP / n * t / (1 - t).

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        thresholds: (thresholds,) in [0, 1): the probability at which one would act.
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        (thresholds,) or (resamples, thresholds).
    """
    labels, probabilities, weights, _ = _known(labels, probabilities, weights, unit_interval=True)
    thresholds = np.asarray(thresholds, dtype=float)
    odds = thresholds / (1 - thresholds)
    called = probabilities[:, None] >= thresholds
    worth = called * np.where(labels[:, None] == 1, 1.0, -odds)
    return _ratio(weights @ worth, weights.sum(axis=-1, keepdims=True))


def decision_curve(
    labels: Array,
    probabilities: Array,
    thresholds: Array | None = None,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Net benefit of acting on the model, on everyone and on no one.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        thresholds: In [0, 1); 0.01 to 0.99 by default.
        patients: (studies,) owners; None: each study has its own.
        resamples: Of the bootstrap for `low` and `high`.
        seed: Of the bootstrap.

    Returns:
        Columns `threshold`, `model`, `low`, `high` (95%), `everyone`, `no_one`.
    """
    thresholds = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds)

    def curve(weights: Array | None) -> Array:
        return net_benefit(labels, probabilities, thresholds, weights)

    model, low, high = _band(curve, labels, probabilities, patients, resamples, seed)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "model": model,
            "low": low,
            "high": high,
            "everyone": net_benefit(labels, np.ones(len(labels)), thresholds),
            "no_one": 0.0,
        }
    )


# ------------------------------------------------------------------------------------ bootstrap


def resample_weights(
    labels: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    folds: Array | None = None,
) -> Array:
    """How often each study stands in each bootstrap sample of patients, stratified by class.

    A patient with any positive study is of the positive class; as many patients of each class are
    drawn, with replacement, as there are. A study of unknown label has weight 0.

    Args:
        labels: (studies,) 0, 1 or nan.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of samples.
        seed: Of `numpy.random.default_rng`. Patients are drawn in the order of their ids.
        folds: (studies,) the fold that tests each study; each fold is drawn by itself then.

    Returns:
        (resamples, studies) float64.
    """
    return np.concatenate(list(_weight_chunks(labels, patients, resamples, seed, folds)))


def _weight_chunks(
    labels: Array, patients: Array | None, resamples: int, seed: int, folds: Array | None = None
) -> Iterator[Array]:
    """`resample_weights` in pieces of about 16 MiB."""
    labels = np.asarray(labels, dtype=float)
    known = ~np.isnan(labels)
    _, first, owner = np.unique(
        _owners(patients, len(labels))[known], return_index=True, return_inverse=True
    )
    strata = (np.bincount(owner, labels[known]) > 0).astype(np.int64)
    if folds is not None:
        strata += 2 * np.unique(np.asarray(folds)[known][first], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // max(len(labels), 1))
    for start in range(0, resamples, rows):
        weights = np.zeros((min(rows, resamples - start), len(labels)))
        weights[:, known] = _draw(strata, len(weights), rng)[:, owner]
        yield weights


def _by_content(labels: Array, probabilities: Array) -> Array:
    """An owner for each study, numbered so that the order of the rows changes no resample."""
    order = np.lexsort(np.column_stack([labels, probabilities]).astype(float).T)
    patients = np.empty(len(order), dtype=np.int64)
    patients[order] = np.arange(len(order))
    return patients


def _draw(strata: Array, resamples: int, rng: np.random.Generator) -> Array:
    """How often each patient is drawn: (resamples, patients), each stratum by itself."""
    counts = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn = rng.integers(len(members), size=(resamples, len(members)))
        flat = drawn + np.arange(resamples)[:, None] * len(members)
        tally = np.bincount(flat.ravel(), minlength=flat.size)
        counts[:, members] = tally.reshape(flat.shape)
    return counts


def bootstrap(
    metric: Callable[[Array, Array, Array | None], Array],
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A metric with its percentile interval over patients, stratified by class.

    Args:
        metric: `metric(labels, probabilities, weights)` -> () or (resamples,), as `auroc`.
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,).
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the interval.
    """
    owners = _by_content(labels, probabilities) if patients is None else patients
    chunks = _weight_chunks(labels, owners, resamples, seed)
    values = np.concatenate([metric(labels, probabilities, weights) for weights in chunks])
    value = metric(labels, probabilities, None)
    return _estimate(value, values, _class_limits(labels, patients), confidence)


def roc_band(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    points: int = 101,
) -> pd.DataFrame:
    """The ROC curve at evenly spaced false positive rates, with a pointwise 95% band.

    Returns:
        Columns `false_positive_rate`, `sensitivity`, `low`, `high`.
    """
    grid = np.linspace(0, 1, points)

    def curve(weights: Array | None) -> Array:
        sensitivities, specificities = _operating_points(labels, probabilities, weights)
        return _steps_at(1 - specificities, sensitivities, grid + 1e-12, "right", -1)

    value, low, high = _band(curve, labels, probabilities, patients, resamples, seed)
    return pd.DataFrame(
        {"false_positive_rate": grid, "sensitivity": value, "low": low, "high": high}
    )


def precision_recall_band(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    points: int = 101,
) -> pd.DataFrame:
    """Precision at evenly spaced recalls (steps, as average precision), with a 95% band.

    Returns:
        Columns `recall`, `precision`, `low`, `high`.
    """
    grid = np.linspace(0, 1, points)

    def curve(weights: Array | None) -> Array:
        positives, negatives, _ = _by_score(labels, probabilities, weights)
        found = np.cumsum(positives, axis=-1)
        precision = _ratio(found, found + np.cumsum(negatives, axis=-1))
        recall = _ratio(found, found[..., -1:])
        # The first threshold that reaches a recall; at recall 0, the first that finds anyone.
        return _steps_at(recall, precision, np.maximum(grid, 1e-9) - 1e-12, "left", 0)

    value, low, high = _band(curve, labels, probabilities, patients, resamples, seed)
    return pd.DataFrame({"recall": grid, "precision": value, "low": low, "high": high})


def _band(
    curve: Callable[[Array | None], Array],
    labels: Array,
    probabilities: Array,
    patients: Array | None,
    resamples: int,
    seed: int,
) -> tuple[Array, Array, Array]:
    """A curve (points,) and its pointwise 95% bounds."""
    owners = _by_content(labels, probabilities) if patients is None else patients
    chunks = _weight_chunks(labels, owners, resamples, seed)
    low, high, _ = _percentiles(np.concatenate([curve(weights) for weights in chunks]), 0.95)
    return curve(None), low, high


def _steps_at(x: Array, y: Array, grid: Array, side: str, shift: int) -> Array:
    """y at the step of each row's ascending x that holds each point of the grid; nan as x is."""
    rows_x, rows_y = np.atleast_2d(x), np.atleast_2d(y)
    steps = np.stack([np.searchsorted(row, grid, side=side) for row in rows_x]) + shift
    values = np.take_along_axis(rows_y, np.clip(steps, 0, rows_y.shape[1] - 1), axis=1)
    values = np.where(np.isnan(rows_x[:, :1]), np.nan, values)
    return values if x.ndim == 2 else values[0]


def _percentiles(values: Array, confidence: float) -> tuple[Array, Array, Array]:
    """Bounds over the first axis and the share of values that are numbers; nan below a half."""
    share = np.isfinite(values).mean(axis=0)
    low, high = np.full(share.shape, np.nan), np.full(share.shape, np.nan)
    enough = share >= 0.5
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if enough.any():
        low[enough], high[enough] = np.nanquantile(values[..., enough], tails, axis=0)
    return low, high, share


def _estimate(
    value: Array | float, values: Array, limits: list[str], confidence: float
) -> Estimate:
    """An interval from bootstrap values, with the reason where there is none."""
    value, nan = float(value), float("nan")
    if not np.isfinite(value):
        reason = "; ".join(limits) or "undefined: a class is never called"
        return Estimate(value, nan, nan, reason)
    if limits:
        return Estimate(value, nan, nan, "no interval: " + "; ".join(limits))
    low, high, share = _percentiles(values, confidence)
    if np.isnan(low):
        return Estimate(value, nan, nan, f"no interval: undefined in {1 - share:.1%} of resamples")
    notes = []
    if share < 1:
        notes.append(f"undefined in {1 - share:.1%} of the resamples, which are left out")
    if low == high:
        notes.append("the same in every resample: the interval understates the uncertainty")
    return Estimate(value, float(low), float(high), "; ".join(notes))


# --------------------------------------------------------------------------------------- DeLong


@dataclass(frozen=True)
class DeLongTest:
    """Paired comparison of two models' AUROCs on the same studies."""

    auroc_a: float
    auroc_b: float
    difference: float
    """AUROC of a minus AUROC of b."""
    low: float
    high: float
    z: float
    p: float
    """Two-sided."""
    note: str = ""


def delong_interval(
    labels: Array,
    probabilities: Array,
    patients: Array | None = None,
    confidence: float = 0.95,
    folds: Array | None = None,
) -> Estimate:
    """AUROC with DeLong's interval (DeLong et al. 1988), cut off at 0 and 1.

    By midranks (Sun and Xu 2014). Where a patient has several studies, the variance is
    Obuchowski's for clustered data (1997), which is DeLong's when each has one.

    With folds, the mean of the folds' AUROCs: each fold has a model of its own, and probabilities
    of two models do not rank each other's studies. Its variance is the sum of the folds' variances
    over the squared number of folds, given the models (cf. LeDell et al. 2015).

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) or any increasing score.
        patients: (studies,) owners; None: each study has its own.
        confidence: Of the interval.
        folds: (studies,) the fold that tests each study.
    """
    aurocs, covariance, notes = _delong_by_fold(labels, [probabilities], patients, folds)
    value, nan = float(aurocs[0]), float("nan")
    if notes:
        return Estimate(value, nan, nan, "; ".join(notes))
    spread = np.sqrt(max(covariance[0, 0], 0.0))
    if spread == 0:
        return Estimate(value, nan, nan, "no interval: complete separation, the variance is 0")
    half = stats.norm.ppf((1 + confidence) / 2) * spread
    return Estimate(value, float(max(value - half, 0)), float(min(value + half, 1)))


def delong_test(
    labels: Array,
    probabilities_a: Array,
    probabilities_b: Array,
    patients: Array | None = None,
    confidence: float = 0.95,
    folds: Array | None = None,
) -> DeLongTest:
    """Tests whether two models rank the same studies equally well (DeLong et al. 1988).

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities_a: (studies,) of the first model.
        probabilities_b: (studies,) of the second model, in the same order.
        patients: (studies,) owners; None: each study has its own.
        confidence: Of the interval of the difference.
        folds: (studies,) the fold that tests each study, the same for both models: compared are
            the means of the folds' AUROCs, as in `delong_interval`.

    Returns:
        Both AUROCs, their difference with its interval, z, and the two-sided p-value.
    """
    scores = [probabilities_a, probabilities_b]
    aurocs, covariance, notes = _delong_by_fold(labels, scores, patients, folds)
    difference, nan = float(aurocs[0] - aurocs[1]), float("nan")
    both = (float(aurocs[0]), float(aurocs[1]), difference)
    if notes:
        return DeLongTest(*both, nan, nan, nan, nan, "; ".join(notes))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= 1e-16:
        if difference == 0:
            return DeLongTest(*both, 0.0, 0.0, 0.0, 1.0, "the two rank alike")
        return DeLongTest(*both, nan, nan, nan, nan, "no test: the variance is 0")
    spread = float(np.sqrt(variance))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * spread
    z = difference / spread
    p = float(2 * stats.norm.sf(abs(z)))
    return DeLongTest(*both, difference - half, difference + half, z, p)


def _delong_by_fold(
    labels: Array, scores: list[Array], patients: Array | None, folds: Array | None
) -> tuple[Array, Array, list[str]]:
    """`_delong`, with folds the mean over those that have both classes."""
    if folds is None:
        return _delong(labels, scores, patients)
    labels, scores = np.asarray(labels, dtype=float), [np.asarray(score) for score in scores]
    owners, parts = _owners(patients, len(labels)), _judged_folds(labels, folds)
    if not parts:
        nothing = np.full(len(scores), np.nan)
        return nothing, np.diag(nothing), ["no fold has both classes"]
    found = [
        _delong(labels[part], [score[part] for score in scores], owners[part])
        for part in parts.values()
    ]
    aurocs = np.mean([auroc for auroc, _, _ in found], axis=0)
    covariance = np.sum([covariance for _, covariance, _ in found], axis=0) / len(parts) ** 2
    notes = [
        f"fold {fold}: {note}"
        for fold, (_, _, its_notes) in zip(parts, found, strict=True)
        for note in its_notes
    ]
    return aurocs, covariance, notes


def _judged_folds(labels: Array, folds: Array) -> dict[object, Array]:
    """Which studies each fold tests, (studies,) bool, of the folds that have both classes."""
    folds = np.asarray(folds)
    parts = {fold: folds == fold for fold in np.unique(folds)}
    return {
        fold: part
        for fold, part in parts.items()
        if (labels[part] == 0).any() and (labels[part] == 1).any()
    }


def _delong(
    labels: Array, scores: list[Array], patients: Array | None
) -> tuple[Array, Array, list[str]]:
    """AUROCs (models,), their covariance (models, models), and why there is none."""
    checked = [_known(labels, score, None) for score in scores]
    known = checked[0][3]
    truth, values = checked[0][0] == 1, np.stack([score for _, score, _, _ in checked])
    positives, negatives = values[:, truth], values[:, ~truth]
    m, n = positives.shape[1], negatives.shape[1]
    nothing = np.full((len(scores), len(scores)), np.nan)
    limits = _class_limits(labels, patients)
    if not m or not n:
        return np.full(len(scores), np.nan), nothing, limits
    ranks = stats.rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
    placed_positives = (ranks[:, :m] - stats.rankdata(positives, axis=1)) / n
    placed_negatives = 1 - (ranks[:, m:] - stats.rankdata(negatives, axis=1)) / m
    aurocs = placed_positives.mean(axis=1)
    if limits:
        return aurocs, nothing, ["no interval: " + "; ".join(limits)]
    _, owner = np.unique(_owners(patients, len(known))[known], return_inverse=True)
    a = _sum_by(placed_positives - aurocs[:, None], owner[truth], owner.max() + 1)
    b = _sum_by(placed_negatives - aurocs[:, None], owner[~truth], owner.max() + 1)
    with_positive, with_negative = len(np.unique(owner[truth])), len(np.unique(owner[~truth]))
    everyone = owner.max() + 1
    covariance = with_positive / (with_positive - 1) * (a @ a.T) / m**2
    covariance += with_negative / (with_negative - 1) * (b @ b.T) / n**2
    covariance += everyone / (everyone - 1) * (a @ b.T + b @ a.T) / (m * n)
    return aurocs, covariance, []


def _sum_by(values: Array, owner: Array, owners: int) -> Array:
    """Sums of (models, studies) over the studies of each owner: (models, owners)."""
    return np.stack([np.bincount(owner, row, owners) for row in values])


# ------------------------------------------------------------------------------ the whole table

RANKING = {"auroc": auroc, "average_precision": average_precision}
TRADE_OFFS = {
    "sensitivity_at_90_specificity": sensitivity_at_specificity,
    "specificity_at_90_sensitivity": specificity_at_sensitivity,
}
DECISIONS = (
    "accuracy",
    "recall",
    "specificity",
    "precision",
    "f1",
    "balanced_accuracy",
    "recall_macro",
    "precision_macro",
    "f1_macro",
)
METRICS = (*RANKING, *DECISIONS, "brier")
"""What `all_metrics` gives, in its order: cheap enough for every epoch."""

TABLE = (*RANKING, *TRADE_OFFS, *DECISIONS, "brier")
"""Names in the column `metric` of `evaluate_predictions`, in its order; with folds, each of
`RANKING` is followed by the same over all folds' probabilities together (`auroc_pooled`)."""

POOLED = tuple(f"{name}_pooled" for name in RANKING)

_CLASSES_NEEDED = dict.fromkeys([*TABLE, *POOLED], ("positive", "negative")) | {
    "recall": ("positive",),
    "specificity": ("negative",),
}


def all_metrics(
    labels: Array,
    probabilities: Array,
    threshold: float | Array = 0.5,
    weights: Array | None = None,
) -> dict[str, Array]:
    """Every metric of one label, without intervals.

    Args:
        labels: (studies,) 0, 1 or nan.
        probabilities: (studies,) in [0, 1].
        threshold: One for all, or (studies,).
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        By the names of `METRICS`, each () or (resamples,); nan where undefined.
    """
    result = {name: metric(labels, probabilities, weights) for name, metric in RANKING.items()}
    counts = confusion(labels, probabilities, threshold, weights)
    result |= {name: getattr(counts, name) for name in DECISIONS}
    return result | {"brier": brier(labels, probabilities, weights)}


def evaluate_predictions(
    labels: Array,
    probabilities: Array,
    label_names: Sequence[str],
    thresholds: Array | float = 0.5,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    folds: Array | None = None,
) -> pd.DataFrame:
    """Every metric of every label, and their mean over labels, with intervals over patients.

    The unit is the study; resampling draws whole patients. A label's intervals are stratified by
    its own classes; that of its AUROC is DeLong's. The macro rows resample all labels together,
    stratified by whether a patient has any finding; a resample in which a label cannot be judged
    is left out. A label without both classes is left out of the macro average.

    With folds, what ranks studies (`RANKING`, `TRADE_OFFS`) is the mean over the folds, because
    probabilities of two folds' models do not rank each other's studies; the rows of `POOLED` rank
    them all the same. What judges calls and probabilities one by one is over all studies at once.
    Resampling draws each fold by itself.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: (studies, labels) in [0, 1].
        label_names: (labels,).
        thresholds: One, (labels,), or (studies, labels), such as that of each study's own fold.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the intervals.
        folds: (studies,) the fold that tests each study, where each fold has a model of its own.

    Returns:
        Tidy, one row a label (then `macro`, if there are several) and metric of `TABLE`, with
        columns `label`, `metric`, `value`, `low`, `high`, `interval` (`DeLong`, `bootstrap`, or
        empty), `n` (studies with a known label), `positives` (studies), `patients`, `threshold`
        (nan if the metric has none, or several), and `note`.

    Raises:
        InputError: Arrays of other shapes, labels that are not 0, 1 or nan, probabilities outside
            [0, 1].
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    shape = (len(labels), len(label_names))
    if labels.shape != shape or probabilities.shape != shape:
        raise InputError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not fit "
            f"{len(label_names)} labels: expected both (studies, {len(label_names)})"
        )
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype=float), shape)
    if patients is None:
        owners = _by_content(labels, probabilities)
    else:
        owners = _owners(patients, len(labels))
    judged = [
        _Judged(name, labels[:, i], probabilities[:, i], thresholds[:, i], owners, folds)
        for i, name in enumerate(label_names)
    ]
    rows = []
    for label in judged:
        chunks = _weight_chunks(label.labels, owners, resamples, seed, folds)
        samples = _joined([label.metrics(weights) for weights in chunks])
        for metric, value in label.metrics().items():
            if metric.startswith("auroc"):
                estimate = replace(label.delong(metric, confidence), value=float(value))
                rows.append(_row(label, metric, estimate, "DeLong"))
            else:
                estimate = _estimate(value, samples[metric], label.limits(metric), confidence)
                rows.append(_row(label, metric, estimate, "bootstrap"))
    if len(judged) > 1:
        rows += _macro_rows(judged, labels, resamples, seed, confidence)
    return pd.DataFrame(rows)


def compare_predictions(
    labels: Array,
    probabilities: tuple[Array, Array],
    label_names: Sequence[str],
    thresholds: tuple[Array | float, Array | float] = (0.5, 0.5),
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    folds: tuple[Array | None, Array | None] = (None, None),
) -> pd.DataFrame:
    """Differences of two models on the same studies, with intervals over patients.

    The AUROC of a label is compared by DeLong's paired test, everything else, and the AUROC where
    the two models have other folds, by a bootstrap that draws the same patients for both.

    Args:
        labels: (studies, labels) 0, 1 or nan.
        probabilities: Of the first and the second model, (studies, labels) each.
        label_names: (labels,).
        thresholds: Of both models, as for `evaluate_predictions`.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the intervals.
        folds: Of both models, as for `evaluate_predictions`.

    Returns:
        One row a label (then `macro`) and metric of `TABLE`: `label`, `metric`, `difference`
        (first minus second), `low`, `high`, `p` (two-sided; DeLong's test alone gives one),
        `method` and `note`.
    """
    labels = np.asarray(labels, dtype=float)
    owners = np.arange(len(labels)) if patients is None else _owners(patients, len(labels))
    models = []
    for its, cut, its_folds in zip(probabilities, thresholds, folds, strict=True):
        its, cut = np.asarray(its, dtype=float), np.broadcast_to(cut, labels.shape)
        models.append(
            [
                _Judged(name, labels[:, i], its[:, i], cut[:, i], owners, its_folds)
                for i, name in enumerate(label_names)
            ]
        )
    same_folds = all(part is None for part in folds) or all(part is not None for part in folds)
    same_folds = same_folds and (folds[0] is None or np.array_equal(*folds))
    rows = []
    for a, b in zip(*models, strict=True):
        chunks = _weight_chunks(a.labels, owners, resamples, seed, folds[0] if same_folds else None)
        samples = _joined([_differences([a], [b], weights) for weights in chunks])
        for metric, value in _differences([a], [b]).items():
            if metric == "auroc" and same_folds:
                test = delong_test(
                    a.labels, a.probabilities, b.probabilities, owners, confidence, folds[0]
                )
                estimate = Estimate(float(value), test.low, test.high, test.note)
                rows.append(_difference_row(a.name, metric, estimate, test.p, "DeLong"))
            else:
                limits = list(dict.fromkeys(a.limits(metric) + b.limits(metric)))
                estimate = _estimate(value, samples[metric], limits, confidence)
                rows.append(_difference_row(a.name, metric, estimate))
    used = [pair for pair in zip(*models, strict=True) if pair[0].has_both_classes]
    if len(label_names) > 1 and used:
        pair = tuple(zip(*used, strict=True))
        findings = np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).any(axis=1))
        chunks = _weight_chunks(findings, owners, resamples, seed, folds[0] if same_folds else None)
        samples = _joined([_differences(*pair, weights) for weights in chunks])
        for metric, value in _differences(*pair).items():
            estimate = _estimate(value, samples[metric], [], confidence)
            rows.append(_difference_row("macro", metric, estimate))
    return pd.DataFrame(rows)


def _differences(
    a: Sequence[_Judged], b: Sequence[_Judged], weights: Array | None = None
) -> dict[str, Array]:
    """Every metric of `TABLE`, mean over the labels: first model minus second."""
    first, second = (_mean([label.metrics(weights) for label in model]) for model in (a, b))
    return {metric: first[metric] - second[metric] for metric in TABLE}


def _difference_row(
    label: str, metric: str, estimate: Estimate, p: float = np.nan, method: str = "bootstrap"
) -> dict:
    return {
        "label": label,
        "metric": metric,
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p": p,
        "method": method,
        "note": estimate.note,
    }


@dataclass(frozen=True)
class _Judged:
    """One label's predictions, (studies,) each."""

    name: str
    labels: Array
    probabilities: Array
    thresholds: Array
    patients: Array
    folds: Array | None

    def metrics(self, weights: Array | None = None) -> dict[str, Array]:
        whole = all_metrics(self.labels, self.probabilities, self.thresholds, weights)
        ranking = {**RANKING, **TRADE_OFFS}
        values = {}
        for name in TABLE:
            values[name] = self._ranked(ranking[name], weights) if name in ranking else whole[name]
            if self.folds is not None and name in RANKING:
                values[f"{name}_pooled"] = whole[name]
        return values

    def _ranked(self, metric: Callable[..., Array], weights: Array | None) -> Array:
        """A metric that ranks studies; with folds, its mean over those that have both classes."""
        if self.folds is None:
            return metric(self.labels, self.probabilities, weights=weights)
        by_fold = [
            metric(
                self.labels[part],
                self.probabilities[part],
                weights=None if weights is None else weights[..., part],
            )
            for part in _judged_folds(self.labels, self.folds).values()
        ]
        shape = () if weights is None else weights.shape[:-1]
        return np.mean(by_fold, axis=0) if by_fold else np.full(shape, np.nan)

    def delong(self, metric: str, confidence: float) -> Estimate:
        """The AUROC, `auroc` or `auroc_pooled`, with DeLong's interval."""
        folds = None if metric in POOLED else self.folds
        arguments = (self.labels, self.probabilities, self.patients, confidence)
        estimate = delong_interval(*arguments, folds)
        left_out = self._folds_left_out if folds is not None else []
        notes = [estimate.note] * bool(estimate.note) + left_out
        return replace(estimate, note="; ".join(notes))

    @property
    def _folds_left_out(self) -> list[str]:
        judged = _judged_folds(self.labels, self.folds)
        names = [str(fold) for fold in np.unique(self.folds) if fold not in judged]
        return [f"without fold {', '.join(names)}: not both classes"] if names else []

    @property
    def has_both_classes(self) -> bool:
        return bool((self.labels == 0).any() and (self.labels == 1).any())

    def limits(self, metric: str) -> list[str]:
        needed = _CLASSES_NEEDED[metric]
        if self.folds is None or metric not in {**RANKING, **TRADE_OFFS}:
            return _class_limits(self.labels, self.patients, needed)
        return [
            f"fold {fold}: {limit}"
            for fold, part in _judged_folds(self.labels, self.folds).items()
            for limit in _class_limits(self.labels[part], self.patients[part], needed)
        ] or ([] if self.has_both_classes else _class_limits(self.labels, self.patients, needed))


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


def _mean(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {metric: np.mean([part[metric] for part in parts], axis=0) for metric in parts[0]}


def _macro_rows(
    judged: list[_Judged], labels: Array, resamples: int, seed: int, confidence: float
) -> list[dict]:
    """The rows of `evaluate_predictions` for the mean over the labels that can be judged."""
    findings = np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).any(axis=1))
    nowhere, owners = np.full(len(labels), np.nan), judged[0].patients
    folds = judged[0].folds
    macro = _Judged("macro", findings, nowhere, nowhere, owners, folds)
    used = [label for label in judged if label.has_both_classes]
    if not used:
        nothing = Estimate(*[float("nan")] * 3, "no label has both classes")
        return [_row(macro, metric, nothing, "bootstrap") for metric in judged[0].metrics()]
    left_out = [label.name for label in judged if not label.has_both_classes]
    remark = [f"without {', '.join(left_out)}: not both classes"] if left_out else []
    chunks = _weight_chunks(findings, owners, resamples, seed, folds)
    samples = _joined([_mean([label.metrics(weights) for label in used]) for weights in chunks])
    rows = []
    for metric, value in _mean([label.metrics() for label in used]).items():
        limits = [f"{label.name}: {limit}" for label in used for limit in label.limits(metric)]
        estimate = _estimate(value, samples[metric], limits, confidence)
        note = "; ".join([estimate.note] * bool(estimate.note) + remark)
        rows.append(_row(macro, metric, replace(estimate, note=note), "bootstrap"))
    return rows


def _row(label: _Judged, metric: str, estimate: Estimate, interval: str) -> dict:
    known = ~np.isnan(label.labels)
    thresholds = np.unique(label.thresholds)
    has_threshold = metric in DECISIONS and len(thresholds) == 1
    return {
        "label": label.name,
        "metric": metric,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "interval": "" if np.isnan(estimate.low) else interval,
        "n": int(known.sum()),
        "positives": int((label.labels == 1).sum()),
        "patients": len(np.unique(np.asarray(label.patients)[known])),
        "threshold": float(thresholds[0]) if has_threshold else float("nan"),
        "note": estimate.note,
    }


# -------------------------------------------------------------------------------- lesion pixels

PIXEL_METRICS = ("dice", "iou", "pixel_recall", "pixel_precision")
"""Means over the studies that have a lesion; each `_pooled` over the pixels of all studies."""


def pixel_metrics(
    found: Array, false: Array, missed: Array, weights: Array | None = None
) -> dict[str, Array]:
    """How well the pixels that a segmenter calls lesion are the lesion's.

    A study whose mask is empty has no Dice, IoU or recall, and is left out of the means over
    studies; a study with a lesion in which no pixel is called has 0 in all four. What is wrongly
    called in studies without lesion counts in the pooled figures, where the pixels of all studies
    are one picture; they are nan where that has neither a lesion nor a call.

    Args:
        found: (studies,) lesion pixels that are called lesion; nan: the study's mask is not known.
        false: (studies,) other pixels that are called lesion.
        missed: (studies,) lesion pixels that are not.
        weights: (studies,) or (resamples, studies) counts.

    Returns:
        By the names of `PIXEL_METRICS`, then the same with `_pooled`, each () or (resamples,); nan
        where undefined.
    """
    counts = [np.asarray(part, dtype=float) for part in (found, false, missed)]
    weights = np.ones(len(counts[0])) if weights is None else np.asarray(weights, dtype=float)
    known = ~np.isnan(counts).any(axis=0)
    counts, weights = [part[known] for part in counts], weights[..., known]
    has_lesion = counts[0] + counts[2] > 0
    by_study = _overlap(*(part[has_lesion] for part in counts))
    of_lesions = weights[..., has_lesion]
    total = of_lesions.sum(axis=-1)
    means = {k: _ratio(of_lesions @ np.nan_to_num(v), total) for k, v in by_study.items()}
    pooled = _overlap(*(weights @ part for part in counts))
    return means | {f"{name}_pooled": value for name, value in pooled.items()}


def _overlap(found: Array, false: Array, missed: Array) -> dict[str, Array]:
    return {
        "dice": _ratio(2 * found, 2 * found + false + missed),
        "iou": _ratio(found, found + false + missed),
        "pixel_recall": _ratio(found, found + missed),
        "pixel_precision": _ratio(found, found + false),
    }


def evaluate_pixels(
    found: Array,
    false: Array,
    missed: Array,
    label: str,
    patients: Array | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """`pixel_metrics` with intervals over patients, stratified by whether they have a lesion.

    Args:
        found: (studies,), as the next two as for `pixel_metrics`.
        false: (studies,).
        missed: (studies,).
        label: What the masks are of.
        patients: (studies,) owners; None: each study has its own.
        resamples: Number of bootstrap samples.
        seed: Of `numpy.random.default_rng`.
        confidence: Of the intervals.

    Returns:
        Rows as those of `evaluate_predictions`; `positives` are the studies with a lesion.
    """
    counts = [np.asarray(part, dtype=float) for part in (found, false, missed)]
    unknown = np.isnan(counts).any(axis=0)
    has_lesion = np.where(unknown, np.nan, counts[0] + counts[2] > 0)
    owners = _owners(patients, len(has_lesion))
    nowhere = np.full(len(has_lesion), np.nan)
    judged = _Judged(label, has_lesion, nowhere, nowhere, owners, None)
    limits = _class_limits(has_lesion, owners, ("positive",))
    chunks = _weight_chunks(has_lesion, owners, resamples, seed)
    samples = _joined([pixel_metrics(*counts, weights) for weights in chunks])
    rows = []
    for metric, value in pixel_metrics(*counts).items():
        estimate = _estimate(value, samples[metric], limits, confidence)
        rows.append(_row(judged, metric, estimate, "bootstrap"))
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------- groundwork


def _known(
    labels: Array, probabilities: Array, weights: Array | None, unit_interval: bool = False
) -> tuple[Array, Array, Array, Array]:
    """Checks the input and leaves out studies of unknown label.

    Returns:
        Labels, probabilities and weights of the known studies, and which they are (studies,) bool.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    if labels.ndim != 1 or labels.shape != probabilities.shape:
        raise InputError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not fit: expected "
            "both (studies,)"
        )
    known = ~np.isnan(labels)
    wrong = known & (labels != 0) & (labels != 1)
    if wrong.any():
        raise InputError(f"label {labels[wrong][0]:g} of study {wrong.argmax()}: expected 0 or 1")
    wrong = known & ~np.isfinite(probabilities)
    if unit_interval:
        wrong |= known & ((probabilities < 0) | (probabilities > 1))
    if wrong.any():
        expected = "a number in [0, 1]" if unit_interval else "a finite number"
        raise InputError(
            f"probability {probabilities[wrong][0]:g} of study {wrong.argmax()}: "
            f"expected {expected}"
        )
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    return labels[known], probabilities[known], weights[..., known], known


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Their quotient, nan where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    )
    empty = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=empty, where=denominator != 0)


def _by_score(
    labels: Array, probabilities: Array, weights: Array | None
) -> tuple[Array, Array, Array]:
    """Weight of positive and of negative studies at each distinct probability, highest first.

    Returns:
        Positives and negatives (..., distinct), and the probabilities (distinct,).
    """
    labels, probabilities, weights, _ = _known(labels, probabilities, weights)
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if not len(ordered):
        nothing = np.zeros((*weights.shape[:-1], 1))
        return nothing, nothing, np.array([np.nan])
    weights, positive = weights[..., order], labels[order] == 1
    positives = np.add.reduceat(weights * positive, starts, axis=-1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=-1)
    return positives, negatives, ordered[starts]


def _operating_points(
    labels: Array, probabilities: Array, weights: Array | None
) -> tuple[Array, Array]:
    """Sensitivity and specificity (..., 1 + distinct), from nothing called positive to all."""
    positives, negatives, _ = _by_score(labels, probabilities, weights)
    found = np.cumsum(positives, axis=-1)
    false = np.cumsum(negatives, axis=-1)
    start = np.zeros((*found.shape[:-1], 1))
    found, false = (np.concatenate([start, part], axis=-1) for part in (found, false))
    return _ratio(found, found[..., -1:]), 1 - _ratio(false, false[..., -1:])


def _bin(probabilities: Array, bins: int) -> Array:
    """The number of each probability's bin of equal width; 1 belongs to the last."""
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def _owners(patients: Array | None, studies: int) -> Array:
    if patients is None:
        return np.arange(studies)
    patients = np.asarray(patients)
    if patients.shape != (studies,):
        raise InputError(
            f"patients {patients.shape} do not fit {studies} studies: expected ({studies},)"
        )
    return patients


def _class_counts(labels: Array) -> str:
    labels = np.asarray(labels, dtype=float)
    return f"{(labels == 1).sum()} positive and {(labels == 0).sum()} negative studies"


def _class_limits(
    labels: Array,
    patients: Array | None,
    needed: tuple[str, ...] = ("positive", "negative"),
) -> list[str]:
    """Why the classes that a metric needs do not carry an interval; empty if they do."""
    labels = np.asarray(labels, dtype=float)
    owner = _owners(patients, len(labels))
    limits = []
    for kind in needed:
        count = len(np.unique(owner[labels == (kind == "positive")]))
        if count < 2:
            limits.append(f"{'one' if count else 'no'} {kind} patient")
    return limits
