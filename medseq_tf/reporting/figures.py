"""Figures of runs and predictions, each with what it shows in words.

Bands are pointwise 95% intervals, by bootstrap over patients; with few patients they are too
narrow. Of a cross-validated run the thin lines are the folds, each ranked by its own model, and the
thick one is all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medseq_tf.evaluation import metrics
from medseq_tf.recipe import MINIMISED
from medseq_tf.runs.run import Run

COLORS = ("#0b6e99", "#c4622d", "#4c8c4a", "#8a5aa8", "#b0891c")
QUIET, FAINT = "#5c6b7a", "#d9e0e6"


class Drawing(NamedTuple):
    """A figure, its title and what it shows in words."""

    figure: Figure
    title: str
    words: str


def panel(**settings: Any) -> tuple[Figure, Any]:
    """Return a figure of the reports' usual size and its one pair of axes."""
    figure = Figure(figsize=(4.6, 3.7), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set(**settings)
    return figure, axis


def unit_panel(**settings: Any) -> tuple[Figure, Any]:
    """Return a panel of two shares, with the diagonal where they are equal."""
    figure, axis = panel(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), **settings)
    axis.plot([0, 1], [0, 1], color=FAINT, zorder=0)
    return figure, axis


def _legend(axis: Any, **settings: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize="small", **settings)


def _rankable(
    predictions: pd.DataFrame, labels: Sequence[str]
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield name, colour and predictions of each label that has both classes."""
    for number, label in enumerate(labels):
        rows = predictions[(predictions["label"] == label) & predictions["truth"].notna()]
        if rows["truth"].nunique() == 2:
            yield label, COLORS[number % len(COLORS)], rows


def _arrays(rows: pd.DataFrame, column: str = "probability") -> tuple[np.ndarray, np.ndarray]:
    return rows["truth"].to_numpy(float), rows[column].to_numpy(float)


def training(runs: Sequence[Run]) -> list[Drawing]:
    """Draw loss and monitored metric by epoch, a line per run."""
    if not runs:
        return []
    monitor = runs[0].experiment.fit.monitor
    name = "AUROC" if monitor == "auroc" else monitor.replace("_", " ")
    losses, left = panel(xlabel="epoch", ylabel="loss")
    metric, right = panel(xlabel="epoch", ylabel=f"validation {name}")
    best = []
    for number, run in enumerate(runs):
        history, first = run.history, number == 0
        epochs = history["epoch"]
        left.plot(epochs, history["loss"], color=QUIET, label="training" if first else None)
        if "val_loss" in history:
            label = "validation" if first else None
            left.plot(epochs, history["val_loss"], color=COLORS[1], linestyle="--", label=label)
        if f"val_{monitor}" in history:
            values = history[f"val_{monitor}"]
            right.plot(epochs, values, color=COLORS[0], marker=".", linewidth=1)
            smaller = monitor in MINIMISED
            best.append(values.min() if smaller else values.max())
    left.set_ylim(0, None)
    _legend(left)
    ends = ", ".join(f"{run.history['loss'].iloc[-1]:.3f}" for run in runs)
    words = f"Training and validation loss by epoch; the training loss ends at {ends}."
    drawings = [Drawing(losses, "Loss by epoch", words)]
    if best:
        reached = ", ".join(f"{value:.3f}" for value in best)
        words = (
            f"Validation {name} by epoch; the best epoch reaches {reached}, which chose that epoch "
            "(used for selection)."
        )
        drawings.append(Drawing(metric, f"Validation {name} by epoch", words))
    return drawings


def roc(predictions: pd.DataFrame, labels: Sequence[str], resamples: int = 2000) -> Drawing:
    """Draw the ROC curve of each label, with its band, and the operating point."""
    figure, axis = unit_panel(xlabel="1 - specificity", ylabel="sensitivity")
    words = []
    for label, color, rows in _rankable(predictions, labels):
        for fold in _folds(rows):
            curve = metrics.roc_points(*_arrays(fold))
            axis.plot(curve["false_positive_rate"], curve["sensitivity"], color=color, alpha=0.35,
                      lw=0.8)  # fmt: skip
        band = metrics.roc_band(*_arrays(rows), rows["patient"].to_numpy(), resamples)
        x = band["false_positive_rate"]
        axis.plot(x, band["sensitivity"], color=color, label=label, drawstyle="steps-post")
        if _has_band(rows, labels):
            axis.fill_between(x, band["low"], band["high"], color=color, alpha=0.15, step="post")
        called = rows["positive"].to_numpy(bool)
        truth = rows["truth"].to_numpy(float) == 1
        false_positives, sensitivity = called[~truth].mean(), called[truth].mean()
        axis.plot(false_positives, sensitivity, "o", color=color, markersize=6)
        words.append(
            f"{label}: the operating point finds {sensitivity:.0%} of the positive studies and "
            f"calls {false_positives:.0%} of the negative ones"
        )
    _legend(axis, loc="lower right")
    return Drawing(figure, "ROC", _sentence("ROC curve", words))


def precision_recall(
    predictions: pd.DataFrame, labels: Sequence[str], resamples: int = 2000
) -> Drawing:
    """Draw precision by recall of each label, with its band; chance is the share of positives."""
    figure, axis = panel(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(0, 1.02))
    words = []
    for label, color, rows in _rankable(predictions, labels):
        truth, probability = _arrays(rows)
        for fold in _folds(rows):
            curve = metrics.precision_recall_points(*_arrays(fold))
            axis.step(curve["recall"], curve["precision"], where="pre", color=color, alpha=0.35,
                      lw=0.8)  # fmt: skip
        band = metrics.precision_recall_band(
            truth, probability, rows["patient"].to_numpy(), resamples
        )
        axis.step(band["recall"], band["precision"], where="pre", color=color, label=label)
        if _has_band(rows, labels):
            axis.fill_between(
                band["recall"], band["low"], band["high"], color=color, alpha=0.15, step="pre"
            )
        axis.axhline(truth.mean(), color=color, linestyle=":", linewidth=0.8)
        words.append(f"{label}: chance is at {truth.mean():.2f}")
    _legend(axis, loc="lower left")
    return Drawing(figure, "Precision and recall", _sentence("Precision by recall", words))


def reliability(predictions: pd.DataFrame, labels: Sequence[str], bins: int = 8) -> Drawing:
    """Draw the observed share of positives by predicted probability, before and after scaling."""
    figure, axis = unit_panel(xlabel="predicted probability", ylabel="observed share of positives")
    words = []
    for label, color, rows in _rankable(predictions, labels):
        before = metrics.reliability_curve(*_arrays(rows), bins)
        after = metrics.reliability_curve(*_arrays(rows, "calibrated"), bins)
        axis.plot(before["probability"], before["observed"], "o--", color=color, alpha=0.45,
                  markersize=4, linewidth=0.9, label=f"{label}, as predicted")  # fmt: skip
        axis.plot(after["probability"], after["observed"], "o-", color=color, markersize=5,
                  label=f"{label}, scaled")  # fmt: skip
        if _has_band(rows, labels) and not rows["study"].duplicated().any():
            for row in after.itertuples():
                axis.vlines(row.probability, row.low, row.high, color=color, linewidth=0.9)
                axis.annotate(f"{row.n}", (row.probability, row.high), xytext=(0, 2), color=QUIET,
                              textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
        errors = []
        for column in ("probability", "calibrated"):
            truth, probability = _arrays(rows, column)
            value = metrics.expected_calibration_error(truth, probability)
            studies = rows["study"].to_numpy()
            median, high = metrics.null_calibration_error(probability, studies=studies)
            errors.append(f"{value:.3f} (if they were right {median:.3f}, to {high:.3f})")
        words.append(
            f"{label}: expected calibration error of the probabilities as predicted {errors[0]}, "
            f"after scaling {errors[1]}"
        )
    _legend(axis, loc="upper left")
    title = "Calibration before and after temperature scaling"
    return Drawing(figure, title, _sentence("Observed share by predicted probability", words))


def decision(predictions: pd.DataFrame, labels: Sequence[str], resamples: int = 2000) -> Drawing:
    """Draw the net benefit of acting on the scaled probability, on everyone, on no one."""
    figure, axis = panel(xlabel="probability at which one would act", ylabel="net benefit")
    words, highest = [], 0.05
    for label, color, rows in _rankable(predictions, labels):
        curve = metrics.decision_curve(
            *_arrays(rows, "calibrated"), patients=rows["patient"].to_numpy(), resamples=resamples
        )
        x = curve["threshold"]
        axis.plot(x, curve["model"], color=color, label=f"model, {label}")
        axis.plot(x, curve["everyone"], color=color, linestyle=":", linewidth=0.9,
                  label="everyone" if len(labels) == 1 else None)  # fmt: skip
        if _has_band(rows, labels):
            axis.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.15)
        useful = x[curve["model"] > np.maximum(curve["everyone"], 0) + 1e-12]
        words.append(
            f"{label}: better than acting on everyone or no one at {len(useful)} of {len(x)} "
            "thresholds"
        )
        highest = max(highest, curve["high"].max(), rows["truth"].mean())
    axis.axhline(0, color=QUIET, linewidth=0.8, label="no one")
    axis.set(xlim=(0, 1), ylim=(-0.25 * highest, 1.1 * highest))
    _legend(axis, loc="upper right")
    return Drawing(figure, "Decision curve", _sentence("Net benefit", words))


def confusion(predictions: pd.DataFrame, labels: Sequence[str]) -> Drawing:
    """Draw how many studies of each class were called what, a square per label."""
    figure = Figure(figsize=(3.2 * len(labels), 3.2), layout="constrained")
    words = []
    for axis, label in zip(np.atleast_1d(figure.subplots(1, len(labels))), labels, strict=True):
        rows = predictions[(predictions["label"] == label) & predictions["truth"].notna()]
        truth, called = rows["truth"] == 1, rows["positive"].astype(bool)
        counts = np.array(
            [[(~truth & ~called).sum(), (~truth & called).sum()],
             [(truth & ~called).sum(), (truth & called).sum()]]
        )  # fmt: skip
        axis.imshow(counts, cmap="Blues", vmin=0)
        for (row, column), count in np.ndenumerate(counts):
            shade = "w" if count > counts.max() / 2 else "k"
            axis.text(column, row, count, ha="center", va="center", color=shade)
        names = ["negative", "positive"]
        axis.set(xticks=(0, 1), yticks=(0, 1), xticklabels=names, yticklabels=names)
        axis.set(xlabel="called", ylabel="truth", title=label)
        words.append(f"{label}: {counts[1, 1]} of {counts[1].sum()} positive studies called so")
    return Drawing(figure, "Confusion", _sentence("Studies by class and call", words))


def evaluation(
    predictions: pd.DataFrame, labels: Sequence[str], resamples: int = 2000
) -> list[Drawing]:
    """Draw all figures of the predictions of one split; none without both classes."""
    if not any(_rankable(predictions, labels)):
        return []
    return [
        roc(predictions, labels, resamples),
        precision_recall(predictions, labels, resamples),
        reliability(predictions, labels),
        decision(predictions, labels, resamples),
    ]


def _has_band(rows: pd.DataFrame, labels: Sequence[str]) -> bool:
    """Return whether intervals are drawn: not for several labels, nor of studies used to select.

    The column `selected`, where there is one, says of which studies that is so.
    """
    return len(labels) == 1 and not ("selected" in rows and rows["selected"].any())


def _folds(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the predictions of each fold that has both classes; nothing without folds."""
    if "fold" not in rows:
        return []
    folds = [fold for _, fold in rows.groupby("fold")]
    return [fold for fold in folds if fold["truth"].nunique() == 2]


def _sentence(start: str, words: Sequence[str]) -> str:
    return f"{start}. " + "; ".join(words) + "."
