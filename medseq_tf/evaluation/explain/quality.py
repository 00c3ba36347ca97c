"""How often explanations point at a lesion, by lesion masks that no model saw."""

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
from medseq_tf.evaluation.explain.explainer import Explainer, check_label
from medseq_tf.evaluation.explain.explanation import PIXEL_METHODS, Explanation
from medseq_tf.evaluation.explain.shown_study import ShownStudy, only
from medseq_tf.evaluation.metrics.interval_text import number
from medseq_tf.evaluation.unseen_data import with_labels_of
from medseq_tf.runs.run import Run, RunOrPath

MEASURES = ("slice_hit", "top_k", "deletion", "pixel_hit")
SLICE_METHODS = ("importance", "occlusion", "alone", "attention", "gradients")
GRID = np.linspace(0, 1, 21)
RANDOM_ORDERS = 5


@dataclass(frozen=True)
class Quality:
    """How well explanations of several studies point at lesions.

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
        """Return the table for a terminal."""
        lines = [f"{'method':<22}" + "".join(f"{name:>11}" for name in MEASURES)]
        for row in self.table.to_dict(orient="records"):
            values = (number(row[name]) for name in MEASURES)
            lines.append(f"{row['method']:<22}" + "".join(f"{value:>11}" for value in values))
        lines.append(f"{self.table['studies'].max()} studies with a lesion")
        hits = self.table.set_index("method")["slice_hit"]
        lines.append(
            f"without any model the middle slice shows a lesion in {hits['middle']:.0%} of them, a "
            f"random slice in {hits['random']:.0%}"
        )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the deletion curves."""
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axis = figure.subplots()
        for method, curve in self.deletion.groupby("method", sort=False):
            style = {"random": ":", "middle": "--"}.get(method, "-")
            axis.plot(curve["left_out"], curve["probability"], style, label=method)
        axis.set(xlabel="share of slices left out", ylabel="mean probability", ylim=(0, 1.02))
        axis.legend(frameon=False)
        return figure

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda v: f"{v:.3f}")


def measure_quality(
    run: RunOrPath,
    data: str | os.PathLike | Prepared,
    split: str = "test",
    label: str | None = None,
    pixels: Sequence[str] | None = PIXEL_METHODS,
) -> Quality:
    """Measure explanations against lesion masks that the model never saw, and against chance.

    Args:
        run: a run folder.
        data: its prepared data set, with masks.
        split: `validation` or `test`: studies of that split that are positive and of which a
            lesion is in sight in at least one, and not all, of the slices that the model is shown.
        label: the label or class that the masks are of; default: the first label, or whichever
            class a study has.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.

    Raises:
        InputError: there are no masks, or no such study.
    """
    opened = Run.open(run)
    prepared = with_labels_of(opened, Prepared.open(data))
    check_label(label, prepared)
    if opened.automatic is not None:
        raise InputError(
            f"{opened.path}: its models were trained on all patients, so that no lesion mask is "
            "left that they have not seen; measure one of its candidates' cross-validated runs"
        )
    studies = _studies(opened, prepared, split)
    explainer = Explainer(opened, prepared, studies)
    if pixels == PIXEL_METHODS and explainer.segments:
        pixels = None
    explainer.check(label, pixels)
    if label is not None:
        candidates = [label]
    else:
        candidates = prepared.label_names[: None if prepared.classes else 1]
    rows, curves = [], []
    for study_id in studies:
        row = explainer.row_of[study_id]
        truth = dict(zip(prepared.label_names, prepared.labels[row], strict=True))
        positive = next((name for name in candidates if truth[name] == 1), None)
        masks = prepared.masks(row) if positive else None
        if positive is None or masks is None:
            continue
        explanation = explainer.explain(study_id, positive, pixels)
        lesion = masks[explanation.shown_slices()["slice"]].any(axis=(1, 2))
        if lesion.any() and not lesion.all():
            study = explainer.shown(study_id).heaviest
            number_of_label = prepared.label_names.index(positive)
            scored = _score_methods(explanation, study, masks, lesion, number_of_label)
            for method, scores, curve in scored:
                rows.append({"study": study_id, "method": method, **scores})
                curves.append(pd.DataFrame({"method": method, "left_out": GRID, "p": curve}))
    if not rows:
        raise InputError(
            f"{prepared.path}: has no positive {split} study with a lesion mask that some of the "
            "slices show and others do not"
        )
    return _means(pd.DataFrame(rows), pd.concat(curves))


def _studies(run: Run, prepared: Prepared, split: str) -> list[str]:
    """Return the studies of a run's split, or of its folds', that a data set holds."""
    known = set(prepared.studies["study_id"])
    named = (name for parts in run.splits_by_fold for name in parts[split] if name in known)
    return list(dict.fromkeys(named))  # repeated folds name a study once each


def _means(scores: pd.DataFrame, curves: pd.DataFrame) -> Quality:
    """Return means over the studies, the methods in the order of `scores`."""
    order = list(dict.fromkeys(scores["method"]))
    means = scores.groupby("method").agg(
        **{name: (name, "mean") for name in MEASURES}, studies=("study", "nunique")
    )
    curve = curves.groupby(["method", "left_out"])["p"].mean().rename("probability")
    by_share = curve.reindex(order, level="method").reset_index()
    return Quality(means.loc[order].reset_index(), by_share)


def _score_methods(
    explanation: Explanation, study: ShownStudy, masks: np.ndarray, lesion: np.ndarray, label: int
) -> Iterator[tuple[str, dict[str, float], np.ndarray]]:
    """Yield each method's name, its scores for one study and its deletion curve on `GRID`."""
    rows = explanation.shown_slices()
    slices = rows["slice"].to_numpy()
    resized = {i: _at_input_size(masks[i], explanation) for i in slices[lesion]}
    for method in SLICE_METHODS:
        if method not in rows or rows[method].isna().any():
            continue
        best = np.argsort(-rows[method].to_numpy(float), kind="stable")
        yield method, *_score_order(study, slices, best, lesion, label)
    outwards = np.argsort(np.abs(np.arange(len(slices)) - len(slices) // 2), kind="stable")
    yield "middle", *_score_order(study, slices, outwards, lesion, label)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(slices) for _ in range(RANDOM_ORDERS)]
    curve = np.mean([_deletion_curve(study, order, label) for order in orders], axis=0)
    share = float(lesion.mean())
    scores = {
        "slice_hit": share,
        "top_k": share,
        "deletion": float(np.trapezoid(curve, GRID)),
        "pixel_hit": float(np.mean([mask.mean() for mask in resized.values()])),
    }
    yield "random", scores, curve
    for (method, _), heat in explanation.heat.items():
        hits = [float(mask.ravel()[np.argmax(heat[i])]) for i, mask in resized.items()]
        yield method, {"pixel_hit": float(np.mean(hits))}, np.full(len(GRID), np.nan)


def _score_order(
    study: ShownStudy, slices: np.ndarray, best: np.ndarray, lesion: np.ndarray, label: int
) -> tuple[dict[str, float], np.ndarray]:
    """Return the scores of slices in an order, best first, and its deletion curve on `GRID`."""
    curve = _deletion_curve(study, slices[best], label)
    scores = {
        "slice_hit": float(lesion[best[0]]),
        "top_k": float(lesion[best[: lesion.sum()]].mean()),
        "deletion": float(np.trapezoid(curve, GRID)),
    }
    return scores, curve


def _deletion_curve(study: ShownStudy, order: np.ndarray, label: int) -> np.ndarray:
    """Return the probability on `GRID` while slices are left out in this order, to the last one."""
    sequence = study.sequences[0]
    remaining = [only(sequence, order[i:]) for i in range(len(order))]
    remaining = [steps for steps in remaining if len(steps)]
    probabilities = study.probabilities_of(remaining)[:, label]
    left_out = np.arange(len(remaining)) / max(len(remaining) - 1, 1)
    return np.interp(GRID, left_out, probabilities)


def _at_input_size(mask: np.ndarray, explanation: Explanation) -> np.ndarray:
    """Return a mask at the size of the model's input."""
    height, width = explanation.images.shape[1:]
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0
