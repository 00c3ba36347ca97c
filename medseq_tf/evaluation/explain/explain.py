"""Takes a run and a study; gives which slices mattered for its answer, and where in them.

Slices are left out exactly, through `lengths`: a shorter sequence, not a blacked-out slice. Three
figures say what a slice is worth, all in probability:

- `importance`: the Banzhaf value, which is how much the slice adds to a random part of the others.
  The part of no slice counts as the base, the model's mean probability over the run's validation
  studies. Up to 10 slices every part is shown to the model; above that 512 parts and more, until
  the most important slice is told apart from the others, up to 8,192. What is left of the
  sampling's error is a 95% interval beside each value (`slice_values`).
- `occlusion`: what the answer loses when this slice alone is left out. Where several slices show
  the same lesion each of them is dispensable, which is why it is not the default.
- `alone`: the answer to this slice by itself.

Pixels: integrated gradients (Sundararajan et al. 2017) from a black study, and Grad-CAM (Selvaraju
et al. 2017) at the encoder's last feature maps. The default is the one that fits the encoder:
Grad-CAM for networks of `keras.applications`, which average their maps, and integrated gradients
for `conv_fsm`, which has few large map pixels and tells places apart, and where they are cheap. A
segmenter is explained by its own map of the lesion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation.explain.explainer import Explainer, check_label
from medseq_tf.evaluation.explain.explanation import LESION_MAP, PIXEL_METHODS, Explanation
from medseq_tf.evaluation.explain.quality import Quality, quality
from medseq_tf.files import atomic, destination
from medseq_tf.runs.run import Run

__all__ = [
    "LESION_MAP",
    "PIXEL_METHODS",
    "Explained",
    "Explanation",
    "Quality",
    "choose",
    "explain",
    "quality",
    "studies",
    "study",
]


def study(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    study_id: str,
    label: str | None = None,
    pixels: Sequence[str] | None = None,
    seed: int = 0,
) -> Explanation:
    """Explain the answer of a run's best model for one study.

    A study that is read as several sequences gets the mean over them. Of a cross-validated run the
    model is that of the fold that tested the study.

    Args:
        run: a run folder.
        data: a prepared data set that holds the study.
        study_id: as in its `studies.parquet`.
        label: None: every label.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.
        seed: of the parts of a long study that `importance` shows to the model.

    Raises:
        InputError: the study, label or method is unknown, or the data do not fit the run.
    """
    prepared = Prepared.open(data)
    return Explainer(Run.open(run), prepared, [study_id], seed).explain(study_id, label, pixels)


def studies(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    pairs: Sequence[tuple[str, str]],
    pixels: Sequence[str] | None = None,
) -> list[Explanation]:
    """Explain several studies, as `study` does; a study that cannot be read is left out.

    Args:
        run: a run folder.
        data: a prepared data set that holds the studies.
        pairs: id and label of each.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.

    Raises:
        InputError: a study, label or method is unknown, or the data do not fit the run.
    """
    prepared = Prepared.open(data)
    explainer = Explainer(Run.open(run), prepared, list(dict.fromkeys(s for s, _ in pairs)))
    for label in dict.fromkeys(label for _, label in pairs):
        explainer.check(label, pixels)
    explanations = []
    for name, label in pairs:
        if explainer.readable(name):
            explanations.append(explainer.explain(name, label, pixels))
    return explanations


# --------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Explained:
    """What `explain` found: explanations of studies, the files written, and their quality."""

    studies: list[Explanation]
    files: list[Path]
    quality: Quality | None = None

    def text(self) -> str:
        """For a terminal: each study's answer and the slices that spoke most for it."""
        lines = []
        for found in self.studies:
            for label in found.labels:
                truth = found.truth[label]
                known = "" if np.isnan(truth) else f", truth {truth:.0f}"
                called = found.probabilities[label] >= found.thresholds[label]
                lines.append(
                    f"study {found.study}  {label}: {found.probabilities[label]:.3f} "
                    f"({'positive' if called else 'negative'}{known})"
                )
                lines.append(f"    no slice: {found.base[label]:.3f}, the base of importance")
                for row in found.top(5, label).itertuples():
                    sampled = row.importance_high > row.importance_low
                    interval = f" ({row.importance_low:+.3f} to {row.importance_high:+.3f})"
                    lines.append(
                        f"    slice {row.slice:<4} importance {row.importance:+.3f}"
                        f"{interval if sampled else ''}   alone {row.alone:.3f}"
                    )
            lines += [f"    {note}" for note in found.notes]
        if self.quality is not None:
            lines.append(self.quality.text())
        return "\n".join(lines + [str(file) for file in self.files])


def explain(
    run: str | os.PathLike | Run,
    data: str | os.PathLike | Prepared,
    study: str | None = None,
    label: str | None = None,
    out: str | os.PathLike | None = None,
    pixels: Sequence[str] | None = None,
    with_quality: bool = False,
    seed: int = 0,
) -> Explained:
    """Explain one study, or the surest wrong ones and a right one of each class.

    Args:
        run: a run folder.
        data: a prepared data set that holds the studies.
        study: a study's id.
        label: None: every label, and the studies are chosen by the first.
        out: a folder for a contact sheet and curves (PNG, with the patient's images) and the table
            (CSV) of each study; None: nothing is written.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.
        with_quality: measure against the data set's lesion masks.
        seed: of the parts of a long study that `importance` shows to the model.

    Raises:
        InputError: see `study` and `quality`.
    """
    run = Run.open(run)
    prepared = Prepared.open(data)
    check_label(label, prepared)
    run.require_finished()
    chosen = [study] if study else choose(run.predictions, label)
    if not chosen:
        raise InputError(f"{run.path}: has no study of known label to choose; name one: --study")
    explainer = Explainer(run, prepared, chosen, seed)
    found = [explainer.explain(name, label, pixels) for name in chosen]
    files = [] if out is None else [file for one in found for file in _write(one, Path(out))]
    measured = quality(run, prepared, label=label, pixels=pixels) if with_quality else None
    return Explained(found, files, measured)


def choose(predictions: pd.DataFrame, label: str | None = None, wrong: int = 3) -> list[str]:
    """Choose studies worth a look: the surest wrong ones, then the surest right one of each class.

    Args:
        predictions: of a run; test studies are taken where there are any, and of repeated folds
            those of the first repeat, whose models explain them.
        label: which label; default: the first.
        wrong: how many of the wrong ones.
    """
    if predictions.empty:
        return []
    split = "test" if (predictions["split"] == "test").any() else "validation"
    label = predictions["label"].iloc[0] if label is None else label
    part = predictions[
        (predictions["split"] == split)
        & (predictions["label"] == label)
        & predictions["truth"].notna()
    ]
    if "repeat" in part:
        part = part[part["repeat"] == part["repeat"].min()]
    part = part.assign(
        right=part["positive"] == (part["truth"] == 1),
        distance=(part["probability"] - part["threshold"]).abs(),
    ).sort_values(["distance", "study"], ascending=[False, True])
    chosen = part[~part["right"]].head(wrong)["study"].tolist()
    for truth in (1, 0):
        chosen += part[part["right"] & (part["truth"] == truth)].head(1)["study"].tolist()
    return chosen


def _write(found: Explanation, out: Path) -> Iterator[Path]:
    out = destination(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{found.study}.csv"
    with atomic(path) as temporary:
        found.slices.to_csv(temporary, index=False)
    yield path
    for label in found.labels:
        figures = {"curves": found.curves(label)}
        figures |= {method: found.sheet(label, method) for method, of in found.heat if of == label}
        for name, figure in figures.items():
            label_name = "".join(c if c.isalnum() else "_" for c in label)
            path = out / f"{found.study}_{label_name}_{name}.png"
            with atomic(path) as temporary:
                figure.savefig(temporary, dpi=130, metadata={"Software": None})
            yield path
