"""Figures of classes that exclude each other; names stand beside them, in no figure.

A name may be long, and of any script. So each class has a line of its own (`Line`), and the page
says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medseq_tf.evaluation import metrics
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.explain.explanation import CLASS_COLORS, Explanation, slice_text
from medseq_tf.evaluation.metrics.interval_text import number
from medseq_tf.readers.classes import Classes
from medseq_tf.reporting.figures import COLORS, FAINT, QUIET, Drawing, unit_panel

DASHES = ("", "6 3", "2 2")
"""As SVG writes them: one pattern more each time that the colours are used up."""


class Line(NamedTuple):
    """How a class is drawn.

    Attributes:
        name: of the class.
        color: as HTML writes it.
        dashes: lengths drawn and left out, as SVG writes them; empty of a whole line.
    """

    name: str
    color: str
    dashes: str

    @property
    def style(self) -> dict[str, Any]:
        """The same for Matplotlib."""
        lengths = tuple(map(float, self.dashes.split()))
        return {"color": self.color, "linestyle": (0, lengths or None)}


def lines(classes: Classes) -> list[Line]:
    """Return the line of each class, no two alike for up to 18 of them."""
    colors, patterns = len(CLASS_COLORS), len(DASHES)
    return [
        Line(name, CLASS_COLORS[i % colors], DASHES[i // colors % patterns])
        for i, name in enumerate(classes.names)
    ]


def evaluation(tested: ClassTable) -> list[Drawing]:
    """Draw all figures of predictions of known class; none without two classes."""
    if (tested.truth.sum(axis=0) > 0).sum() < 2:
        return []
    return [roc(tested), reliability_of_calls(tested), reliability(tested)]


def roc(tested: ClassTable) -> Drawing:
    """Draw each class against the rest; of folds the mean of their curves; a dot for the calls."""
    figure, axis = unit_panel(xlabel="1 - specificity", ylabel="sensitivity")
    for i, line in _rankable(tested):
        axis.plot(*_mean_curve(tested, i), **line.style)
        has, called = tested.truth[:, i] == 1, tested.called == i
        axis.plot(called[~has].mean(), called[has].mean(), "o", color=line.color, markersize=5)
    of_folds = ", the mean of the folds' curves" if "fold" in tested.studies else ""
    words = f"ROC curve of each class against the rest{of_folds}. A dot is where its calls lie."
    return Drawing(figure, "ROC, each class against the rest", words)


def _mean_curve(tested: ClassTable, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return false positive rates and sensitivities of a class; each model ranks its own."""
    curves = [
        metrics.roc_points(tested.truth[rows, i], tested.probabilities[rows, i])
        for rows in _by_model(tested, i)
    ]
    points = [(c["false_positive_rate"].to_numpy(), c["sensitivity"].to_numpy()) for c in curves]
    if len(points) == 1:
        return points[0]
    grid = np.linspace(0, 1, 201)
    mean = np.mean([np.interp(grid, *point) for point in points], axis=0)
    return np.r_[0, grid], np.r_[0, mean]


def _by_model(tested: ClassTable, i: int) -> list[np.ndarray]:
    """Return the rows of each model that a class can be told from the rest in."""
    everything = pd.Series(1, tested.studies.index)
    rows = tested.studies.groupby(tested.studies.get("fold", everything)).indices.values()
    return [own for own in rows if len(set(tested.truth[own, i])) == 2]


def _rankable(tested: ClassTable) -> Iterator[tuple[int, Line]]:
    """Yield number and line of each class that some model could tell from the rest."""
    for i, line in enumerate(lines(tested.classes)):
        if _by_model(tested, i):
            yield i, line


def reliability_of_calls(tested: ClassTable, bins: int = 8) -> Drawing:
    """Draw how often the most probable class is right, by its probability, before and after."""
    figure, axis = unit_panel(
        xlabel="probability of the most probable class", ylabel="share that is right"
    )
    words = []
    for probabilities, name, style in (
        (tested.probabilities, "as predicted", {"linestyle": "--", "alpha": 0.5}),
        (tested.calibrated, "scaled", {"linestyle": "-"}),
    ):
        right, top = metrics.top_class(tested.truth, probabilities)
        curve = metrics.reliability_curve(right, top, bins)
        axis.plot(curve["probability"], curve["observed"], marker="o", color=COLORS[0],
                  markersize=5, label=name, **style)  # fmt: skip
        words.append(f"{name} {number(float(metrics.expected_calibration_error(right, top)))}")
    if not tested.studies["study"].duplicated().any():
        axis.vlines(curve["probability"], curve["low"], curve["high"], color=COLORS[0], lw=0.9)
        for row in curve.itertuples():
            axis.annotate(f"{row.n}", (row.probability, row.high), xytext=(0, 2), color=QUIET,
                          textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
    axis.legend(frameon=False, fontsize="small", loc="best")
    text = (
        "How often the most probable class is the true one, by its probability. Expected "
        f"calibration error: {', '.join(words)}."
    )
    return Drawing(figure, "Calibration of the most probable class", text)


def reliability(tested: ClassTable, bins: int = 6) -> Drawing:
    """Draw how often each class is the true one, by its scaled probability."""
    figure, axis = unit_panel(xlabel="scaled probability", ylabel="share that has the class")
    for i, line in _rankable(tested):
        curve = metrics.reliability_curve(tested.truth[:, i], tested.calibrated[:, i], bins)
        axis.plot(curve["probability"], curve["observed"], marker="o", markersize=4, **line.style)
    words = "How often each class is the true one, by its probability after scaling."
    return Drawing(figure, "Calibration by class", words)


def slices(explanation: Explanation, label: str, called: str) -> Drawing:
    """Draw a class's importance of each slice, and the probability of all classes after it.

    The called class has the thick line. Some models have no probability after each slice.
    """
    own = explanation.shown_slices(label)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(own))
    axis.bar(place, own["importance"].fillna(0), color=FAINT, width=0.8)
    axis.vlines(place, own["importance_low"], own["importance_high"], QUIET, lw=0.8)
    axis.axhline(0, color=QUIET, linewidth=0.6)
    every = max(1, -(-len(own) // 20))
    axis.set_xticks(place[::every], own["slice"][::every])
    axis.set(xlabel="slice", ylabel="importance")
    top = ", ".join(map(slice_text, explanation.top(3, label).itertuples()))
    words = f"Importance of each slice for the class {label} (bars)"
    if own["running"].notna().any() and explanation.classes:
        other = axis.twinx()
        other.set(ylim=(-0.01, 1.01), ylabel="probability so far")
        for line in lines(explanation.classes):
            width = 2.8 if line.name == called else 1.1
            so_far = explanation.shown_slices(line.name)["running"]
            other.plot(place, so_far, linewidth=width, **line.style)
        words += ", and the probability of each class after each slice (lines)"
    return Drawing(figure, "", f"{words}; slices {top} spoke most for it.")
