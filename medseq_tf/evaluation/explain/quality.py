"""Takes explanations and lesion masks that no model saw; gives how often they point at a lesion."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explainer import Explainer, ShownStudy, check_label, keep
from medseq_tf.evaluation.explain.explanation import PIXEL_METHODS, Explanation
from medseq_tf.runs.run import Run


@dataclass(frozen=True)
class Quality:
    """What `quality` found.

    Attributes:
        table: one row a method, means over the studies: `slice_hit` (the slice of the greatest
            value shows the lesion), `top_k` (share of lesion slices among the k of greatest value,
            k being their number), `deletion` (mean probability while slices are left out from the
            greatest value down: low is good), `pixel_hit` (the brightest pixel of a lesion slice
            lies in the lesion; mean over its slices), `studies`. Two rows know nothing of the
            model: `middle` takes the slices from the middle of those shown outwards, as lesions
            tend to lie there, and `random` is what chance gives.
        deletion: one row a method and share of the slices left out: mean `probability`.
    """

    table: pd.DataFrame
    deletion: pd.DataFrame

    def text(self) -> str:
        """The table for a terminal."""
        names = ("slice_hit", "top_k", "deletion", "pixel_hit")
        lines = [f"{'method':<22}" + "".join(f"{name:>11}" for name in names)]
        for row in self.table.to_dict(orient="records"):
            values = ("-" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in names)
            lines.append(f"{row['method']:<22}" + "".join(f"{value:>11}" for value in values))
        lines.append(f"{self.table['studies'].max()} studies with a lesion")
        hits = self.table.set_index("method")["slice_hit"]
        lines.append(
            f"without any model the middle slice shows a lesion in {hits['middle']:.0%} of them, a "
            f"random slice in {hits['random']:.0%}"
        )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """The deletion curves."""
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axis = figure.subplots()
        for method, part in self.deletion.groupby("method", sort=False):
            style = {"random": ":", "middle": "--"}.get(method, "-")
            axis.plot(part["left_out"], part["probability"], style, label=method)
        axis.set(xlabel="share of slices left out", ylabel="mean probability", ylim=(0, 1.02))
        axis.legend(frameon=False)
        return figure

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda v: f"{v:.3f}")


SLICE_METHODS = ("importance", "occlusion", "alone", "attention", "gradients")
GRID = np.linspace(0, 1, 21)
RANDOM_ORDERS = 5


def quality(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    split: str = "test",
    label: str | None = None,
    pixels: Sequence[str] | None = PIXEL_METHODS,
) -> Quality:
    """Measure explanations against lesion masks that the model never saw, and against chance.

    Args:
        run: a run folder.
        data: the prepared data set of the run, with masks.
        split: `validation` or `test`: studies of that split that are positive and of which a
            lesion is in sight in at least one, and not all, of the slices that the model is shown.
        label: the label that the masks are of; default: the first.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.

    Raises:
        InputError: there are no masks, or no such study.
    """
    run = Run.open(run)
    prepared = Prepared.open(data)
    check_label(label, prepared)
    label = prepared.label_names[0] if label is None else label
    splits = [fold.splits for fold in run.folds] or [run.splits]
    known = set(prepared.studies["study_id"])
    named = (name for part in splits for name in part[split] if name in known)
    studies = list(dict.fromkeys(named))  # repeated folds name a study once each
    explainer = Explainer(run, prepared, studies)
    if pixels == PIXEL_METHODS and (run.folds or [run])[0].experiment.segments:
        pixels = None
    explainer.check(label, pixels)
    number = prepared.label_names.index(label)
    rows, curves = [], []
    for name in studies:
        row = explainer.row_of[name]
        masks = prepared.masks(row) if prepared.labels[row, number] == 1 else None
        if masks is None:
            continue
        found = explainer.explain(name, label, pixels)
        shown = found.of()
        lesion = masks[shown["slice"]].any(axis=(1, 2))
        if lesion.any() and not lesion.all():
            one = explainer.shown(name)
            for method, figures, curve in _judged(found, one, masks, lesion, number):
                rows.append({"study": name, "method": method, **figures})
                curves.append(pd.DataFrame({"method": method, "left_out": GRID, "p": curve}))
    if not rows:
        raise InputError(
            f"{prepared.path}: has no positive {split} study with a lesion mask that some of the "
            "slices show and others do not"
        )
    table = pd.DataFrame(rows)
    order = list(dict.fromkeys(table["method"]))
    means = table.groupby("method").agg(
        slice_hit=("slice_hit", "mean"),
        top_k=("top_k", "mean"),
        deletion=("deletion", "mean"),
        pixel_hit=("pixel_hit", "mean"),
        studies=("study", "nunique"),
    )
    curve = pd.concat(curves).groupby(["method", "left_out"])["p"].mean().rename("probability")
    return Quality(
        means.loc[order].reset_index(),
        curve.reindex(order, level="method").reset_index(),
    )


def _judged(
    found: Explanation, one: ShownStudy, masks: np.ndarray, lesion: np.ndarray, label: int
) -> Iterator[tuple[str, dict[str, float], np.ndarray]]:
    """Yield each method's name, its figures for one study and its deletion curve on `GRID`."""
    rows = found.of()
    slices = rows["slice"].to_numpy()
    nothing = np.full(len(GRID), np.nan)
    for method in SLICE_METHODS:
        if method not in rows or rows[method].isna().any():
            continue
        best = np.argsort(-rows[method].to_numpy(float), kind="stable")
        yield method, *_order_quality(one, slices, best, lesion, label)
    outwards = np.argsort(np.abs(np.arange(len(slices)) - len(slices) // 2), kind="stable")
    yield "middle", *_order_quality(one, slices, outwards, lesion, label)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(slices) for _ in range(RANDOM_ORDERS)]
    curve = np.mean([_deletion(one, order, label) for order in orders], axis=0)
    area = float(np.trapezoid(curve, GRID))
    share = float(lesion.mean())
    yield (
        "random",
        {"slice_hit": share, "top_k": share, "deletion": area}
        | {"pixel_hit": float(np.mean([_small(masks[i], found).mean() for i in slices[lesion]]))},
        curve,
    )
    for (method, _), heat in found.heat.items():
        hits = [float(_small(masks[i], found).ravel()[np.argmax(heat[i])]) for i in slices[lesion]]
        yield method, {"pixel_hit": float(np.mean(hits))}, nothing


def _order_quality(
    one: ShownStudy, slices: np.ndarray, best: np.ndarray, lesion: np.ndarray, label: int
) -> tuple[dict[str, float], np.ndarray]:
    """The figures of slices in an order, best first, and its deletion curve on `GRID`."""
    curve = _deletion(one, slices[best], label)
    figures = {
        "slice_hit": float(lesion[best[0]]),
        "top_k": float(lesion[best[: lesion.sum()]].mean()),
        "deletion": float(np.trapezoid(curve, GRID)),
    }
    return figures, curve


def _deletion(one: ShownStudy, order: np.ndarray, label: int) -> np.ndarray:
    """The probability on `GRID` while slices are left out in this order, down to the last one."""
    sequence = one.sequences[0]
    rests = (keep(sequence, order[i:]) for i in range(len(order)))
    parts = [rest for rest in rests if len(rest)]
    answers = one.answers(parts)[:, label]
    return np.interp(GRID, np.arange(len(parts)) / max(len(parts) - 1, 1), answers)


def _small(mask: np.ndarray, found: Explanation) -> np.ndarray:
    """A mask at the size of the model's input."""
    height, width = found.images.shape[1:]
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0
