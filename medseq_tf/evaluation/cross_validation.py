"""Takes the held-out predictions of folds; gives what a recipe can do, and compares recipes.

A cross-validated figure answers another question than one of a fitted model: what the recipe would
do if it were trained anew, on another cohort of this size (`RECIPE`). Its interval has to count
that every patient stands in two places: tested by one model, and in the training of the others.
Where nothing can be learned both weigh the same, and the variance is twice that of the tested
patients alone (the estimate is a degenerate U-statistic); where the training patients determine a
model well it is hardly more. `INFLATION` is what covers between the two, chosen by simulation
(`benchmarks/coverage_folds.py`); to it comes what the folds differ by beyond their patients, as
where training fails in one of them. Intervals are Wilson's, for the number of patients that would
give this variance, with Student's quantile.

A fold is one model and the studies that it was not trained on. Repeats divide the patients into
folds anew: a study stands once a repeat. What ranks studies is the mean over the folds, because
probabilities of two models do not rank each other's studies; what judges calls and probabilities
one by one is over all studies at once, each called at its own fold's threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.metrics import DECISIONS, RANKING, TABLE, TRADE_OFFS
from medseq_tf.evaluation.metrics.metric_intervals import few_patients
from medseq_tf.evaluation.metrics.point_metrics import Array, ratio
from medseq_tf.evaluation.metrics.resampling import Estimate

RECIPE = "this recipe, trained anew on another cohort of this size"
FITTED = "these fitted models, on new patients"
"""The questions that an interval can answer."""

METHOD = "cross-validation"
"""What stands in the columns `interval` and `method`."""

INFLATION = (2.0, 2.8)
"""Of the variance of the tested patients: with one repeat, and with very many."""

ALIKE = 0.05
"""Folds whose probabilities differ, within a class, with a smaller p-value are not pooled."""

RANKED = {**RANKING, **TRADE_OFFS}


# ------------------------------------------------------------------------------ the predictions


@dataclass(frozen=True)
class HeldOut:
    """A model's held-out predictions, a row a study and repeat.

    Attributes:
        labels: names.
        truth: (rows, labels) 0, 1 or nan.
        probabilities: (rows, labels).
        thresholds: (rows, labels), of the fold that tested the study.
        patients: (rows,) owners.
        studies: (rows,) ids.
        folds: (rows,) a number unique over all repeats.
        repeats: (rows,).
    """

    labels: Sequence[str]
    truth: Array
    probabilities: Array
    thresholds: Array
    patients: Array
    studies: Array
    folds: Array
    repeats: Array

    def of(self, label: int) -> OneLabel:
        """The predictions of one label, where it is known."""
        known = ~np.isnan(self.truth[:, label])
        everyone, owner = np.unique(self.patients, return_inverse=True)
        return OneLabel(
            self.labels[label],
            len(everyone),
            *(part[known, label] for part in (self.truth, self.probabilities, self.thresholds)),
            *(part[known] for part in (owner, self.studies, self.folds, self.repeats)),
        )


def held_out(predictions: pd.DataFrame, labels: Sequence[str]) -> HeldOut:
    """Read a table of predictions, a row a study, label and repeat.

    Args:
        predictions: with `patient`, `study`, `label`, `truth`, `probability`, `threshold`, and,
            where they are not all of one model, `fold` and perhaps `repeat`.
        labels: the labels, in the order wanted.
    """
    labels = list(labels)
    columns = {"fold": 1, "repeat": 1}
    missing = {name: value for name, value in columns.items() if name not in predictions}
    wide = predictions.assign(**missing).pivot(
        index=["patient", "study", "repeat", "fold"],
        columns="label",
        values=["truth", "probability", "threshold"],
    )
    values = (
        wide[name].reindex(columns=labels).to_numpy(float)
        for name in ("truth", "probability", "threshold")
    )
    keys = (wide.index.get_level_values(name) for name in ("patient", "study", "fold", "repeat"))
    return HeldOut(labels, *values, *(key.to_numpy() for key in keys))


@dataclass(frozen=True)
class OneLabel:
    """A model's held-out predictions of one label, (rows,) each, of known label.

    Attributes:
        name: of the label.
        everyone: number of patients of the whole table; `owner` counts among them.
        truth: 0 or 1.
        probabilities: of the label.
        thresholds: of the fold that tested the study.
        owner: the patient's number.
        studies: ids.
        folds: a number unique over all repeats.
        repeats: the repeat's number.
    """

    name: str
    everyone: int
    truth: Array
    probabilities: Array
    thresholds: Array
    owner: Array
    studies: Array
    folds: Array
    repeats: Array

    @cached_property
    def rows(self) -> dict[int, Array]:
        """Row numbers by fold, of the folds that have both classes."""
        every = {fold: np.flatnonzero(self.folds == fold) for fold in np.unique(self.folds)}
        return {fold: rows for fold, rows in every.items() if len(set(self.truth[rows])) == 2}

    @property
    def left_out(self) -> list[str]:
        """The folds that cannot be ranked, as a note."""
        names = [str(fold) for fold in np.unique(self.folds) if fold not in self.rows]
        return [f"without fold {', '.join(names)}: not both classes"] if names else []

    @property
    def has_both_classes(self) -> bool:
        """Whether there is a positive and a negative study."""
        return len(set(self.truth)) == 2

    @cached_property
    def classes(self) -> tuple[int, int]:
        """How many patients have a positive, and how many a negative study."""
        return tuple(len(np.unique(self.owner[self.truth == kind])) for kind in (1, 0))

    @cached_property
    def patient_truth(self) -> Array:
        """(everyone,) 1 where a study is positive, else 0; nan for patients of unknown label."""
        truth = np.full(self.everyone, np.nan)
        truth[self.owner] = 0
        truth[self.owner[self.truth == 1]] = 1
        return truth

    @property
    def inflation(self) -> float:
        """How much more than the tested patients alone the estimate varies."""
        repeats = len(np.unique(self.repeats))
        return INFLATION[1] - (INFLATION[1] - INFLATION[0]) / repeats

    def limits(self, metric: str) -> list[str]:
        """Why there is no interval of a metric; empty if there is one."""
        kinds = {"recall": ("positive",), "specificity": ("negative",)}
        needed = kinds.get(metric, ("positive", "negative"))
        counts = dict(zip(("positive", "negative"), self.classes, strict=True))
        too_few = [kind for kind in needed if counts[kind] < 2]
        return [f"{'one' if counts[kind] else 'no'} {kind} patient" for kind in too_few]

    def support(self, metric: str) -> int:
        """The number of patients that a metric is a share of, or of the rarer class."""
        called = self.probabilities >= self.thresholds
        if metric in ("precision", "negative_predictive_value"):
            return len(np.unique(self.owner[called == (metric == "precision")]))
        of = {"recall": self.classes[0], "specificity": self.classes[1]}
        whole = len(np.unique(self.owner))
        return of.get(metric, whole if metric in ("accuracy", "brier") else min(self.classes))

    def as_one_model(self) -> OneLabel:
        """The same, with all folds of a repeat ranked together."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return OneLabel(**{**fields, "folds": self.repeats})

    @property
    def is_alike(self) -> bool:
        """Whether the folds' probabilities, class by class, could be of one model.

        By the test of Kruskal and Wallis (1952) in each repeat, of which the median counts.
        """
        for kind in (0, 1):
            ps = []
            for repeat in np.unique(self.repeats):
                mine = (self.repeats == repeat) & (self.truth == kind)
                groups = [self.probabilities[mine & (self.folds == f)] for f in self.rows]
                groups = [group for group in groups if len(group)]
                if len(groups) > 1 and len(set(np.concatenate(groups))) > 1:
                    ps.append(stats.kruskal(*groups).pvalue)
            if ps and np.median(ps) < ALIKE:
                return False
        return True


# ------------------------------------------------------------------------------ what it varies by


@dataclass(frozen=True)
class Varying:
    """An estimate and the parts of its variance.

    Attributes:
        value: () or the difference of two.
        patients: the variance that the tested patients give it.
        between: variance that the folds add to that, in the mean over them.
        freedom: degrees of freedom of the first.
    """

    value: float
    patients: float
    between: float
    freedom: float

    def spread(self, inflation: float) -> float:
        """The standard deviation, training counted."""
        return float(np.sqrt(inflation * self.patients + self.between))


@dataclass(frozen=True)
class Ranks:
    """The mean of the folds' AUROCs, as each patient contributes to it.

    Attributes:
        value: the mean.
        by_fold: AUROC by fold.
        repeats: repeat by fold.
        shares: (repeats, 2, patients) how far each patient's positive, then negative studies lie
            from the mean, so that their sums over the repeats are what each adds to it.
        wins: (positive, negative patients) by fold, how often the one ranks above the other.
        classes: number of patients with a positive, and with a negative study.
    """

    value: float
    by_fold: dict[int, float]
    repeats: dict[int, int]
    shares: Array
    wins: dict[int, Array]
    classes: tuple[int, int]

    @property
    def counted_twice(self) -> float:
        """The variance by pairs of patients, which is in the shares of the one and of the other.

        What a fold's wins differ by beyond their rows and columns, for the mean over the folds. In
        small folds, and in a difference of two models, it is most of DeLong's variance.
        """
        found = 0.0
        for wins in self.wins.values():
            rows, columns = wins.shape
            if rows > 1 and columns > 1:
                rest = wins - wins.mean(axis=1, keepdims=True) - wins.mean(axis=0) + wins.mean()
                found += (rest**2).sum() / ((rows - 1) * (columns - 1)) / wins.size
        return found / max(len(self.wins), 1) ** 2

    def varying(self) -> Varying:
        """The mean with its variance (DeLong et al. 1988; of several studies, Obuchowski 1997)."""
        shares = self.shares.sum(axis=0)
        count = [size / max(size - 1, 1) for size in (*self.classes, shares.shape[1])]
        parts = [float(count[kind] * (shares[kind] ** 2).sum()) for kind in (0, 1)]
        both = 2 * count[2] * float((shares[0] * shares[1]).sum())
        total = max(sum(parts) + both, 0.0)
        total = max(total - self.counted_twice, total / 2)
        freedom = [max(size - 1, 1) for size in self.classes]
        weights = sum(part**2 / free for part, free in zip(parts, freedom, strict=True))
        free = sum(parts) ** 2 / weights if weights else min(freedom)
        return Varying(self.value, total, _between(self.by_fold, self.repeats, total), float(free))

    def minus(self, other: Ranks) -> Ranks:
        """The same of the difference to another model on the same patients."""
        same = self.by_fold.keys() == other.by_fold.keys() and self.repeats == other.repeats
        if same and self.shares.shape == other.shares.shape:
            by_fold = {fold: value - other.by_fold[fold] for fold, value in self.by_fold.items()}
            shares, repeats = self.shares - other.shares, self.repeats
            wins = {fold: mine - other.wins[fold] for fold, mine in self.wins.items()}
        else:
            by_fold, repeats, wins = {}, {}, {}
            shares = (self.shares.sum(axis=0) - other.shares.sum(axis=0))[None]
        return Ranks(self.value - other.value, by_fold, repeats, shares, wins, self.classes)


def _between(by_fold: dict[int, float], repeats: dict[int, int], patients: float) -> float:
    """Variance that folds add to their mean, beyond what their patients explain.

    Args:
        by_fold: a metric by fold.
        repeats: the repeat of each fold.
        patients: the variance of the mean by its patients alone.
    """
    values = pd.Series(by_fold, dtype=float).dropna()
    groups = values.groupby([repeats[fold] for fold in values.index])
    of_means = [group.var() / len(group) for _, group in groups if len(group) > 1]
    if not of_means:
        return 0.0
    return max(float(np.mean(of_means)) - patients, 0.0) / len(of_means)


def ranks(label: OneLabel) -> Ranks:
    """The mean of the folds' AUROCs with the share of each patient.

    Each study's placement among the other class of its fold is held against the mean over all
    folds, so that a fold with a single positive study says its part too.
    """
    placed, by_fold, every = {}, {}, {}
    for fold, rows in label.rows.items():
        truth, scores = label.truth[rows] == 1, label.probabilities[rows]
        wins = (np.sign(scores[truth][:, None] - scores[~truth]) + 1) / 2
        by_fold[fold] = float(wins.mean())
        of_positive = _of_owners(wins, label.owner[rows[truth]])
        every[fold] = _of_owners(of_positive.T, label.owner[rows[~truth]]).T
        placed[fold] = ((rows[truth], wins.mean(axis=1)), (rows[~truth], wins.mean(axis=0)))
    value = float(np.mean(list(by_fold.values())))
    repeats = {fold: int(label.repeats[rows[0]]) for fold, rows in label.rows.items()}
    order = {repeat: number for number, repeat in enumerate(sorted(set(repeats.values())))}
    shares = np.zeros((len(order), 2, label.everyone))
    for fold, sides in placed.items():
        for side, (rows, places) in enumerate(sides):
            share = (places - value) / (len(rows) * len(placed))
            shares[order[repeats[fold]], side] += np.bincount(
                label.owner[rows], share, label.everyone
            )
    return Ranks(value, by_fold, repeats, shares, every, label.classes)


def _of_owners(values: Array, owner: Array) -> Array:
    """The mean over the studies of each owner, (owners, ...)."""
    owners, number = np.unique(owner, return_inverse=True)
    member = (number == np.arange(len(owners))[:, None]).astype(float)
    return member @ values / member.sum(axis=1, keepdims=True)


def mean_ranks(labels: Sequence[OneLabel]) -> Ranks:
    """The mean over several labels of the same patients and folds."""
    every = [ranks(label) for label in labels]
    if len(every) == 1:
        return every[0]
    common = [f for f in every[0].by_fold if all(f in one.by_fold for one in every)]
    by_fold = {f: float(np.mean([one.by_fold[f] for one in every])) for f in common}
    same = len({one.shares.shape for one in every}) == 1
    shares = [one.shares if same else one.shares.sum(axis=0)[None] for one in every]
    classes = tuple(np.min([one.classes for one in every], axis=0))
    repeats = {fold: every[0].repeats[fold] for fold in common}
    value = float(np.mean([one.value for one in every]))
    return Ranks(value, by_fold if same else {}, repeats, np.mean(shares, axis=0), {}, classes)


OTHERS = tuple(name for name in TABLE if name != "auroc")
"""The metrics whose variance is the bootstrap's."""


@dataclass(frozen=True)
class Resampled:
    """Metrics of one model, as they are and in bootstrap samples of patients.

    Attributes:
        values: by metric.
        samples: (resamples,) by metric.
        by_fold: by metric and fold; nan where a fold cannot say.
        repeats: repeat by fold.
    """

    values: dict[str, float]
    samples: dict[str, Array]
    by_fold: dict[str, dict[int, float]]
    repeats: dict[int, int]

    def varying(self, metric: str, rarer: int, support: int) -> tuple[Varying, float]:
        """A metric with its variance, and the share of the resamples in which it is defined."""
        samples = self.samples[metric]
        defined = float(np.isfinite(samples).mean())
        spread = float(np.nanvar(samples)) * rarer / max(rarer - 1, 1) if defined else 0.0
        between = _between(self.by_fold[metric], self.repeats, spread)
        return Varying(self.values[metric], spread, between, max(support - 1, 1)), defined


def combined(parts: Sequence[Resampled], weights: Sequence[float]) -> Resampled:
    """The weighted sum of metrics that were resampled alike, such as a mean or a difference."""
    repeats = parts[0].repeats if all(p.repeats == parts[0].repeats for p in parts) else {}

    def total(values: list) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    by_fold = {
        name: {fold: total([part.by_fold[name][fold] for part in parts]) for fold in repeats}
        for name in OTHERS
    }
    values = {name: total([part.values[name] for part in parts]) for name in OTHERS}
    samples = {name: total([part.samples[name] for part in parts]) for name in OTHERS}
    return Resampled(values, samples, by_fold, repeats)


def resampled(label: OneLabel, weights: Sequence[Array]) -> Resampled:
    """The metrics of `OTHERS` in bootstrap samples.

    Args:
        label: the predictions.
        weights: (some resamples, patients) each, how often each patient was drawn.
    """
    values, by_fold = _of_weights(label, np.ones((1, label.everyone)))
    parts = [_of_weights(label, some)[0] for some in weights]
    samples = {name: np.concatenate([part[name] for part in parts]) for name in OTHERS}
    repeats = {int(fold): int(label.repeats[label.folds == fold][0]) for fold in by_fold}
    return Resampled(
        {name: float(values[name][0]) for name in OTHERS},
        samples,
        {
            name: {int(fold): float(own[name][0]) for fold, own in by_fold.items()}
            for name in OTHERS
        },
        repeats,
    )


def _of_weights(
    label: OneLabel, weights: Array
) -> tuple[dict[str, Array], dict[int, dict[str, Array]]]:
    """Metrics for weighted patients (resamples, patients): over all folds, and of each."""
    called, positive = label.probabilities >= label.thresholds, label.truth == 1
    cells = [called & positive, called & ~positive, ~called & ~positive, ~called & positive]
    loss = (label.probabilities - label.truth) ** 2
    counted = np.stack([*cells, loss, np.ones(len(loss))], axis=1).astype(float)
    total, by_fold = 0.0, {}
    for fold in np.unique(label.folds):
        rows = np.flatnonzero(label.folds == fold)
        of_patients = np.zeros((label.everyone, counted.shape[1]))
        np.add.at(of_patients, label.owner[rows], counted[rows])
        sums = weights @ of_patients
        total = total + sums
        arguments = (label.truth[rows], label.probabilities[rows])
        of_rows = weights[:, label.owner[rows]]
        ranked = {
            name: metric(*arguments, weights=of_rows)
            for name, metric in RANKED.items()
            if name in OTHERS
        }
        by_fold[fold] = {**_decisions(sums), **ranked}
    means = {name: _mean([own[name] for own in by_fold.values()]) for name in ranked}
    return {**_decisions(total), **means}, by_fold


def _decisions(sums: Array) -> dict[str, Array]:
    """What follows from sums over studies (..., 6): four counts, squared errors, studies."""
    counts = metrics.Confusion(*np.moveaxis(sums[..., :4], -1, 0))
    return {name: getattr(counts, name) for name in DECISIONS} | {
        "brier": ratio(sums[..., 4], sums[..., 5])
    }


def _mean(parts: list[Array]) -> Array:
    """The mean over those that are numbers, nan where none is."""
    every = np.stack(parts)
    known = np.isfinite(every)
    return ratio(np.where(known, every, 0.0).sum(axis=0), known.sum(axis=0))


def _weights(patient_truth: Array, resamples: int, seed: int) -> list[Array]:
    """How often each patient is drawn, (some resamples, patients) each.

    Not stratified by class: how common the label is varies too, and precision with it.
    """
    everyone = np.where(np.isnan(patient_truth), np.nan, 0.0)
    size = max(1, 1_000_000 // max(len(everyone), 1))
    return [
        metrics.resample_weights(everyone, None, min(size, resamples - start), seed + start)
        for start in range(0, resamples, size)
    ]


# ------------------------------------------------------------------------------------ intervals


def interval(
    varying: Varying, inflation: float, support: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of a metric in [0, 1], for as many patients as give its variance.

    Where the variance is 0, as at complete separation, they are the patients behind the metric,
    over `inflation`.

    Args:
        varying: the metric.
        inflation: of the variance by the tested patients.
        support: number of patients behind the metric.
        confidence: of the interval.
    """
    quantile = stats.t.ppf((1 + confidence) / 2, varying.freedom)
    value, variance = varying.value, varying.spread(inflation) ** 2
    most = support / inflation
    patients = min(value * (1 - value) / variance, 1e9) if variance > 1e-12 else most
    if value in (0, 1):
        patients = most
    square = quantile**2
    centre = (value * patients + square / 2) / (patients + square)
    half = np.sqrt(value * (1 - value) * patients + square / 4) * quantile / (patients + square)
    return float(np.clip(centre - half, 0, 1)), float(np.clip(centre + half, 0, 1))


def evaluate_folds(
    predictions: HeldOut, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> pd.DataFrame:
    """Every metric of every label, and their mean over labels, with intervals of the recipe.

    Args:
        predictions: of all folds and repeats.
        resamples: of the bootstrap over patients, for all but the AUROC.
        seed: of the bootstrap.
        confidence: of the intervals.

    Returns:
        As `metrics.evaluate_predictions`, `interval` being `METHOD`. Where the folds'
        probabilities are alike, each of `RANKING` is followed by the same over all of a repeat's
        folds together (`auroc_pooled`).
    """
    labels = [predictions.of(number) for number in range(len(predictions.labels))]
    rows = []
    for label in labels:
        weights = _weights(label.patient_truth, resamples, seed)
        rows += _rows(label, [label], [resampled(label, weights)], confidence, label.left_out)
    if len(labels) > 1:
        rows += _macro_rows(predictions, labels, resamples, seed, confidence)
    return pd.DataFrame(rows)


def _macro_rows(
    predictions: HeldOut, labels: list[OneLabel], resamples: int, seed: int, confidence: float
) -> list[dict]:
    used = [label for label in labels if label.has_both_classes]
    left_out = [label.name for label in labels if not label.has_both_classes]
    remark = [f"without {', '.join(left_out)}: not both classes"] if left_out else []
    findings = _findings(predictions)
    weights = _weights(findings.patient_truth, resamples, seed)
    return _rows(findings, used, [resampled(one, weights) for one in used], confidence, remark)


def _findings(predictions: HeldOut) -> OneLabel:
    """Whether any label is positive, as a label without predictions."""
    truth = np.where(
        np.isnan(predictions.truth).all(axis=1), np.nan, (predictions.truth == 1).any(axis=1)
    )[:, None]
    fields = {name: getattr(predictions, name) for name in predictions.__dataclass_fields__}
    nowhere = np.full_like(truth, np.nan)
    fields |= {"labels": ["macro"], "truth": truth}
    return HeldOut(**{**fields, "probabilities": nowhere, "thresholds": nowhere}).of(0)


def _rows(
    shown: OneLabel,
    used: list[OneLabel],
    parts: list[Resampled],
    confidence: float,
    remark: list[str],
) -> list[dict]:
    """The rows of a label, or of the mean over labels."""
    rows, names = [], []
    pooled = bool(used) and all(label.is_alike and label.has_both_classes for label in used)
    for metric in TABLE:
        names += [metric, f"{metric}_pooled"] if pooled and metric in RANKING else [metric]
    mean = combined(parts, [1 / len(parts)] * len(parts)) if used else None
    for name in names:
        metric = name.removesuffix("_pooled")
        limits = [
            f"{label.name}: {limit}" if len(used) > 1 else limit
            for label in used
            for limit in label.limits(metric)
        ]
        support = min((label.support(metric) for label in used), default=0)
        rarer = min((min(label.classes) for label in used), default=0)
        notes, low, high = list(remark) if metric in RANKED else [], np.nan, np.nan
        its = used if name == metric else [label.as_one_model() for label in used]
        varying, defined = _measured(metric, name, its, mean, rarer, support)
        if not np.isfinite(varying.value):
            notes = limits or notes or ["undefined: a class is never called"]
            notes = notes if used else ["no label has both classes"]
        elif limits:
            notes = ["no interval: " + "; ".join(limits), *notes]
        elif metric in TRADE_OFFS:
            notes.append("cut chosen on each fold's own test studies: too good; no interval")
        elif defined < 0.5:
            notes.append(f"no interval: undefined in {1 - defined:.1%} of resamples")
        else:
            inflation = max(label.inflation for label in used)
            low, high = interval(varying, inflation, support, confidence)
            if len(used) == 1:
                notes += filter(None, [few_patients(*used[0].classes)])
        rows.append(_row(shown, name, varying.value, low, high, "; ".join(notes)))
    return rows


def _measured(
    metric: str,
    name: str,
    labels: list[OneLabel],
    mean: Resampled | None,
    rarer: int,
    support: int,
) -> tuple[Varying, float]:
    """A metric of the table, with its variance and how often it is defined."""
    able = bool(labels) and all(label.rows for label in labels)
    if metric == "auroc":
        nothing = Varying(float("nan"), 0.0, 0.0, 1.0)
        return (mean_ranks(labels).varying() if able else nothing), 1.0
    if mean is None:
        return Varying(float("nan"), 0.0, 0.0, 1.0), 0.0
    varying, defined = mean.varying(metric, rarer, support)
    if name != metric:  # its spread is taken from the folds' mean, which ranks fewer pairs
        values = [
            RANKING[metric](one.truth[one.folds == fold], one.probabilities[one.folds == fold])
            for one in labels
            for fold in np.unique(one.folds)
        ]
        varying = Varying(float(np.mean(values)), *list(vars(varying).values())[1:])
    return varying, defined


def _row(label: OneLabel, metric: str, value: float, low: float, high: float, note: str) -> dict:
    thresholds = np.unique(label.thresholds)
    has_threshold = metric in DECISIONS and len(thresholds) == 1
    studies = pd.DataFrame({"study": label.studies, "positive": label.truth == 1})
    studies = studies.drop_duplicates("study")
    return {
        "label": label.name,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "interval": "" if np.isnan(low) else METHOD,
        "n": len(studies),
        "positives": int(studies["positive"].sum()),
        "patients": len(np.unique(label.owner)),
        "threshold": float(thresholds[0]) if has_threshold else float("nan"),
        "note": note,
    }


def recipe_auroc(
    labels: Array,
    probabilities: Array,
    folds: Array,
    patients: Array | None = None,
    repeats: Array | None = None,
    studies: Array | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of the folds' AUROCs, with the interval of the recipe.

    Args:
        labels: (rows,) 0, 1 or nan, a row a study and repeat.
        probabilities: (rows,).
        folds: (rows,) a number unique over all repeats.
        patients: (rows,) owners; None: each study has its own.
        repeats: (rows,); None: one.
        studies: (rows,) ids, needed with several repeats.
        confidence: of the interval.
    """
    label = _one(labels, probabilities, folds, patients, repeats, studies)
    if not label.rows:
        return Estimate(note="no fold has both classes")
    varying, limits = mean_ranks([label]).varying(), label.limits("auroc")
    if limits:
        return Estimate(varying.value, note="no interval: " + "; ".join(limits))
    bounds = interval(varying, label.inflation, label.support("auroc"), confidence)
    return Estimate(varying.value, *bounds, "; ".join(label.left_out))


def _one(
    labels: Array,
    probabilities: Array,
    folds: Array,
    patients: Array | None,
    repeats: Array | None,
    studies: Array | None,
) -> OneLabel:
    count = len(labels)
    studies = np.arange(count) if studies is None else np.asarray(studies)
    columns = (np.asarray(part, float)[:, None] for part in (labels, probabilities))
    return HeldOut(
        ["label"],
        *columns,
        np.full((count, 1), 0.5),
        studies if patients is None else np.asarray(patients),
        studies,
        np.asarray(folds),
        np.ones(count, int) if repeats is None else np.asarray(repeats),
    ).of(0)


# ----------------------------------------------------------------------------- two recipes


def compare_folds(
    first: HeldOut,
    second: HeldOut,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Differences of two models on the same studies, of which one at least is cross-validated.

    The same patients are drawn for both, and what each gives to one model is held against what he
    gives to the other, whether their folds are the same or not.

    Returns:
        As `metrics.compare_predictions`; `p`, two-sided, is that of the AUROC.
    """
    both = (first, _apart(first, second))
    models = [[model.of(i) for i in range(len(model.labels))] for model in both]
    pairs = list(zip(*models, strict=True))
    rows = []
    for a, b in pairs:
        weights = _weights(a.patient_truth, resamples, seed)
        rows += _difference_rows(a.name, [(a, b)], weights, confidence)
    used = [pair for pair in pairs if pair[0].has_both_classes]
    if len(pairs) > 1 and used:
        weights = _weights(_findings(first).patient_truth, resamples, seed)
        rows += _difference_rows("macro", used, weights, confidence)
    return pd.DataFrame(rows)


def _apart(first: HeldOut, second: HeldOut) -> HeldOut:
    """The second, its folds numbered apart if they do not test the same studies as the first's."""
    tested = [set(zip(model.folds, model.studies, strict=True)) for model in (first, second)]
    if tested[0] == tested[1]:
        return second
    return replace(second, folds=second.folds + first.folds.max())


def _difference_rows(
    name: str, pairs: list[tuple[OneLabel, OneLabel]], weights: list[Array], confidence: float
) -> list[dict]:
    parts = [resampled(label, weights) for pair in pairs for label in pair]
    difference = combined(parts, [1 / len(pairs), -1 / len(pairs)] * len(pairs))
    rarer = min(min(a.classes) for a, _ in pairs)
    rows = []
    for metric in TABLE:
        if metric == "auroc":
            estimate, p = auroc_difference(pairs, confidence)
        else:
            support = min(label.support(metric) for pair in pairs for label in pair)
            varying, defined = difference.varying(metric, rarer, support)
            estimate, p = _bounded(varying, defined, pairs, metric, confidence)[0], float("nan")
        rows.append(
            {
                "label": name,
                "metric": metric,
                "difference": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "p": p,
                "method": METHOD,
                "note": estimate.note,
            }
        )
    return rows


def auroc_difference(
    pairs: list[tuple[OneLabel, OneLabel]], confidence: float
) -> tuple[Estimate, float]:
    """First minus second, mean over the labels, and the two-sided p-value."""
    if not all(label.rows for pair in pairs for label in pair):
        return Estimate(note="no fold has both classes"), float("nan")
    first, second = (mean_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    return _bounded(first.minus(second).varying(), 1.0, pairs, "auroc", confidence)


def _bounded(
    varying: Varying,
    defined: float,
    pairs: list[tuple[OneLabel, OneLabel]],
    metric: str,
    confidence: float,
) -> tuple[Estimate, float]:
    """A difference with its interval and its p-value."""
    value, nan = varying.value, float("nan")
    limits = [
        f"{a.name}: {limit}" if len(pairs) > 1 else limit
        for a, _ in pairs
        for limit in a.limits(metric)
    ]
    if limits:
        return Estimate(value, note="no interval: " + "; ".join(limits)), nan
    if not np.isfinite(value) or defined < 0.5:
        return Estimate(value, note="undefined: a class is never called"), nan
    spread = varying.spread(max(label.inflation for pair in pairs for label in pair))
    if spread > 1e-8:
        half = stats.t.ppf((1 + confidence) / 2, varying.freedom) * spread
        p = float(2 * stats.t.sf(abs(value) / spread, varying.freedom))
        return Estimate(value, max(value - half, -1.0), min(value + half, 1.0)), p
    if value == 0:
        return Estimate(value, 0.0, 0.0, "the two are alike"), 1.0
    return Estimate(value, note="no test: the variance is 0"), nan


def compare_recipes(
    labels: Array,
    probabilities: tuple[Array, Array],
    folds: Array,
    patients: Array | None = None,
    repeats: Array | None = None,
    studies: Array | None = None,
    confidence: float = 0.95,
) -> metrics.DeLongTest:
    """Test whether two recipes rank equally well, on the same folds.

    Args:
        labels: as for `recipe_auroc`, like the others.
        probabilities: of the first and of the second recipe, (rows,) each.
        folds: of both.
        patients: owners.
        repeats: of the folds.
        studies: ids.
        confidence: of the interval of the difference, first minus second.
    """
    pair = tuple(_one(labels, one, folds, patients, repeats, studies) for one in probabilities)
    values = [mean_ranks([one]).value if one.rows else float("nan") for one in pair]
    difference, p = auroc_difference([pair], confidence)
    quotient = stats.norm.isf(p / 2) * np.sign(difference.value)
    bounds = (difference.low, difference.high)
    return metrics.DeLongTest(
        *values, difference.value, *bounds, float(quotient), p, difference.note
    )
