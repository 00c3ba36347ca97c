"""What a model's prediction for a study rests on, as a table of slices and as figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medseq_tf.evaluation.metrics import call
from medseq_tf.readers.classes import Classes

PIXEL_METHODS = ("grad_cam", "integrated_gradients")
LESION_MAP = "lesion_map"
"""The method of segmenters: the probability that a pixel is lesion."""

HEAT = LinearSegmentedColormap.from_list("heat", [(1, 0.85, 0.2, 0), (1, 0.75, 0.1, 0.55),
                                                  (0.9, 0.1, 0.1, 0.85)])  # fmt: skip

CLASS_COLORS = ("#0b6e99", "#c4622d", "#4c8c4a", "#8a5aa8", "#b0891c", "#3c4650")
"""Of the lines of classes, by their order; of more classes, so many are named in a figure."""


@dataclass(frozen=True)
class Explanation:
    """What a model's prediction for a study rests on.

    Attributes:
        study: the study's id.
        labels: the labels, or classes, explained.
        probabilities: the model's, by label, for the slices that it was shown; of classes those of
            all.
        thresholds: by label; classes have none.
        truth: by label; nan where unknown.
        slices: one row a label and slice of the study, of classes for each of them: `slice` (from
            0), `series` (its name, where several follow one another), `shown` (in how many of the
            sequences that the study is predicted by), `importance` with its 95% interval
            `importance_low` to `importance_high` (the sampling's: none where every subset of the
            slices was shown to the model), `occlusion`, `alone`, `attention`
            (where the aggregator has weights), `running` (the probability of the slices up to this
            one) and, if asked for, `gradients` (integrated gradients of what is explained, summed
            over the slice; a share of the logit, which of a class is its log-odds).
            nan where a slice is not shown, or cannot be left out because it is the only one.
        images: the slices as the model sees them, (slices, height, width) in [0, 1].
        heat: by (method, label), (slices, height, width); nan where a slice is not shown.
        completeness: by label, by how much integrated gradients miss the difference of the logits
            that they are to add up to, as a share of it.
        notes: what is to be said of them.
        base_values: by label, what the subset of no slice is worth: the model's mean probability
            over the run's validation studies.
        ties: by label, the slices that cannot be told apart from the most important one.
        subsets: how many subsets of the slices the model was shown.
        classes: where the labels exclude each other, what they are.
        covariates: what each covariate adds, see `covariate_effects`.
    """

    study: str
    labels: list[str]
    probabilities: dict[str, float]
    thresholds: dict[str, float]
    truth: dict[str, float]
    slices: pd.DataFrame
    images: np.ndarray = field(repr=False)
    heat: dict[tuple[str, str], np.ndarray] = field(repr=False)
    completeness: dict[str, float]
    notes: list[str]
    base_values: dict[str, float] = field(default_factory=dict)
    ties: dict[str, list[int]] = field(default_factory=dict)
    subsets: int = 0
    classes: Classes | None = None
    covariates: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def called(self) -> str | None:
        """The class that the study is called, the most probable one; None of yes/no labels."""
        if self.classes is None:
            return None
        probabilities = np.array([[self.probabilities[name] for name in self.classes.names]])
        return self.classes.names[call(probabilities)[0]]

    @property
    def true_class(self) -> str | None:
        """The study's class; None if it is unknown, and of yes/no labels."""
        names = self.classes.names if self.classes else ()
        return next((name for name in names if self.truth[name] == 1), None)

    def call(self, label: str) -> str:
        """Return what the study is called: `positive` or `negative`, or its class."""
        if self.called is not None:
            return self.called
        return "positive" if self.probabilities[label] >= self.thresholds[label] else "negative"

    def truth_in_words(self, label: str) -> str:
        """Return what the study is: `positive`, `negative` or its class; or `unknown`."""
        if self.classes is not None or np.isnan(self.truth[label]):
            return self.true_class or "unknown"
        return "positive" if self.truth[label] else "negative"

    def heading(self, label: str, digits: int = 3) -> str:
        """Return a label's probability, with what the study is called and what it is."""
        if self.classes is None:
            truth, probability = self.truth[label], self.probabilities[label]
            known = "" if np.isnan(truth) else f", truth {truth:.0f}"
            return f"{label}: {probability:.{digits}f} ({self.call(label)}{known})"

        probabilities = {name: f"{p:.{digits}f}" for name, p in self.probabilities.items()}
        words = f"{self.classes.column}: called {self.called} {probabilities[self.call(label)]}"
        if self.true_class is not None:
            words += f", truth {self.true_class}"
        if self.true_class not in (None, self.called):
            words += f" {probabilities[self.true_class]}"
        if label == self.called:
            return words
        return f"{words}; what speaks for {label} ({probabilities[label]})"

    def shown_slices(self, label: str | None = None) -> pd.DataFrame:
        """Return the rows of one label (default: the first) for slices that the model was shown."""
        rows = self.slices[self.slices["label"] == (label or self.labels[0])]
        return rows[rows["shown"] > 0].reset_index(drop=True)

    def top(self, count: int = 3, label: str | None = None) -> pd.DataFrame:
        """Return the slices that spoke most for the label."""
        rows = self.shown_slices(label).sort_values("importance", ascending=False, kind="stable")
        return rows.head(count).reset_index(drop=True)

    def curves(self, label: str | None = None) -> Figure:
        """Draw the importance of each slice as bars, and the running probability."""
        label = label or self.labels[0]
        rows = self.shown_slices(label)
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        axis = figure.subplots()
        place = np.arange(len(rows))
        colors = np.where(rows["importance"] >= 0, "#c4622d", "#5c8aa8")
        faint = None if self.classes is None else 0.4  # behind the lines of several classes
        axis.bar(place, rows["importance"].fillna(0), color=colors, width=0.8, alpha=faint)
        if (rows["importance_high"] > rows["importance_low"]).any():
            axis.vlines(place, rows["importance_low"], rows["importance_high"], "#3c4650", lw=0.8)
        axis.axhline(0, color="#8a97a3", linewidth=0.6)
        of_what = "" if self.classes is None else f" for {label}"
        axis.set(xlabel="slice", ylabel=f"importance{of_what}")
        every = max(1, -(-len(rows) // 20))
        axis.set_xticks(place[::every], rows["slice"][::every])
        if rows["running"].notna().any():
            other = axis.twinx()
            other.set(ylim=(0, 1), ylabel="probability so far")
            if self.classes is None:
                other.plot(place, rows["running"], color="#0b6e99", marker=".", markersize=4)
                other.axhline(self.thresholds[label], color="#0b6e99", linestyle=":", linewidth=0.8)
                other.yaxis.label.set_color("#0b6e99")
            else:
                self._draw_classes_so_far(other, place)
        return figure

    def _draw_classes_so_far(self, axis: Axes, place: np.ndarray) -> None:
        """Draw each class's probability after each slice; name those that matter to the study."""
        by_probability = sorted(self.probabilities, key=lambda name: -self.probabilities[name])
        first = [name for name in (self.called, self.true_class, *self.labels) if name]
        named = list(dict.fromkeys([*first, *by_probability]))[: len(CLASS_COLORS)]
        in_order = [name for name in self.probabilities if name in named]
        for name in by_probability[::-1]:
            line = axis.plot(place, self.shown_slices(name)["running"], marker=".", markersize=4)[0]
            line.set(color="#d9e0e6", linewidth=0.6)
            if name in named:
                roles = {"called": name == self.called, "truth": name == self.true_class}
                line.set(
                    color=CLASS_COLORS[in_order.index(name)],
                    linewidth=2.0 if any(roles.values()) else 1.0,
                    linestyle="--" if roles["truth"] and not roles["called"] else "-",
                    label=fill(", ".join([name, *(role for role in roles if roles[role])]), 24),
                )
        handles, names = axis.get_legend_handles_labels()
        place_of_legend = {"loc": "upper left", "bbox_to_anchor": (1.1, 1)}
        axis.legend(handles[::-1], names[::-1], fontsize=7, frameon=False, **place_of_legend)

    def sheet(
        self, label: str | None = None, method: str | None = None, columns: int = 8
    ) -> Figure:
        """Draw a contact sheet: each slice shown, its heat, and a bar for its importance.

        The heat is that of a method (default: the first there is) which speaks for the label
        (default: the first), smoothed over 2% of the side.
        """
        label = label or self.labels[0]
        rows = self.shown_slices(label)
        heat = self._smooth_heat(label, method)
        columns = min(columns, len(rows))
        lines = -(-len(rows) // columns)
        figure = Figure(figsize=(1.25 * columns, 1.5 * lines), layout="constrained")
        figure.patch.set_facecolor("white")
        if self.classes is not None:
            figure.suptitle(fill(self.heading(label, 2), max(20, 20 * columns)), fontsize=8)
        axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
        most = max(float(np.nanmax(np.abs(rows["importance"].to_numpy(float)), initial=0)), 1e-6)
        brightest = 0 if heat is None else heat.max()
        for axis in axes:
            axis.axis("off")
        for axis, row in zip(axes, rows.itertuples(), strict=False):
            height, width = self.images.shape[1:]
            axis.imshow(self.images[row.slice], cmap="gray", vmin=0, vmax=1)
            if heat is not None and brightest > 0:
                axis.imshow(
                    heat[row.slice] / brightest, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear"
                )
            share = 0.0 if np.isnan(row.importance) else row.importance / most
            color = "#c4622d" if share >= 0 else "#5c8aa8"
            band = height * 0.08
            axis.set(xlim=(-0.5, width - 0.5), ylim=(height + 1.6 * band, -0.5))
            axis.barh(height + band * 0.8, width, band, left=-0.5, color="#e6ebef")
            axis.barh(height + band * 0.8, abs(share) * width, band, left=-0.5, color=color)
            axis.set_title(slice_text(row), fontsize=7, pad=2)
        return figure

    def _smooth_heat(self, label: str, method: str | None) -> np.ndarray | None:
        """Return the heat that speaks for the label, (slices, height, width), if there is any."""
        keys = [key for key in self.heat if key[1] == label and method in (None, key[0])]
        if not keys:
            return None
        blur = max(0.5, 0.02 * self.images.shape[1])
        heat = np.maximum(np.nan_to_num(self.heat[keys[0]]), 0)
        return np.stack([cv2.GaussianBlur(one, (0, 0), blur) for one in heat])

    def alternative(self, label: str | None = None) -> str:
        """Return what the contact sheet shows, in words."""
        label = label or self.labels[0]
        best = ", ".join(map(slice_text, self.top(3, label).itertuples()))
        ties = self.ties.get(label)
        tied = f" (the first not told apart from {listed(ties)})" if ties else ""
        predicted = f"probability {self.probabilities[label]:.2f}"
        return (
            f"{len(self.shown_slices(label))} slices of study {self.study} with heat overlays; "
            f"those that spoke most for {label}: {best}{tied}; "
            f"{self.heading(label, 2) if self.classes else predicted}"
        )

    def _repr_html_(self) -> str:
        return self.slices[self.slices["shown"] > 0].to_html(index=False)


def slice_text(row: Any) -> str:
    """Return the number of a row's slice in its study, and its series where there are several."""
    return " ".join(map(str, (row.slice, getattr(row, "series", "")))).strip()


def listed(slices: list[int], most: int = 5) -> str:
    """Return slices as words: the first of them, and how many more there are."""
    more = f" and {len(slices) - most} more" if len(slices) > most else ""
    return ", ".join(map(str, slices[:most])) + more
