"""The command `explain`: which slices mattered for a study's prediction, and where in them.

Slices are left out exactly, through `lengths`: a shorter sequence, not a blacked-out slice. Three
figures say what a slice is worth, all in probability:

- `importance`: the Banzhaf value, which is how much the slice adds to a random subset of the
  others. The subset of no slice counts as the base value, the model's mean probability over the
  run's validation studies. Up to 10 slices every subset is shown to the model; above that 512
  subsets and more, until the most important slice is told apart from the others, up to 8,192. What
  is left of the sampling's error is a 95% interval beside each value (`slice_values`).
- `occlusion`: what the probability loses when this slice alone is left out. Where several slices
  show the same lesion each of them is dispensable, which is why it is not the default.
- `alone`: the probability for this slice by itself.

Where the model reads covariates, each has what the log-odds lose when it alone is not known.

Pixels: integrated gradients (Sundararajan et al. 2017) from a black study, and Grad-CAM (Selvaraju
et al. 2017) at the encoder's last feature maps. The default is the one that fits the encoder:
Grad-CAM for networks of `keras.applications`, which average their maps, and integrated gradients
for `conv_fsm`, which has few large map pixels and tells places apart, and where they are cheap. A
segmenter is explained by its own map of the lesion.

Of classes, which exclude each other, the one that a study is called is explained, or any one by its
name. Slices are worth something to every class, and what one adds to a class it takes from others:
importance and occlusion add up to 0 over the classes. Pixels speak for the class's log-odds against
all others together.
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
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.explain.explainer import Explainer, check_label
from medseq_tf.evaluation.explain.explanation import Explanation, slice_text
from medseq_tf.evaluation.explain.quality import Quality, measure_quality
from medseq_tf.evaluation.metrics.interval_text import interval
from medseq_tf.evaluation.unseen_data import with_labels_of
from medseq_tf.files import atomic, output_folder
from medseq_tf.readers.classes import Classes
from medseq_tf.runs.run import Run, RunOrPath


def explain_study(
    run: RunOrPath,
    data: str | os.PathLike | Prepared,
    study_id: str,
    label: str | None = None,
    pixels: Sequence[str] | None = None,
    seed: int = 0,
) -> Explanation:
    """Explain the prediction of a run's best model for one study.

    A study of several sequences gets the mean over them. Of a cross-validated run the
    model is that of the fold that tested the study.

    Args:
        run: a run folder.
        data: a prepared data set that holds the study.
        study_id: as in its `studies.parquet`.
        label: a label or class; None: every label, but of classes the one that it is called.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.
        seed: of the subsets of a long study's slices that `importance` shows to the model.

    Raises:
        InputError: the study, label or method is unknown, or the data do not fit the run.
    """
    explainer = Explainer(Run.open(run), Prepared.open(data), [study_id], seed)
    return explainer.explain(study_id, label, pixels)


def explain_studies(
    run: RunOrPath,
    data: str | os.PathLike | Prepared,
    pairs: Sequence[tuple[str, str | None]],
    pixels: Sequence[str] | None = None,
) -> list[Explanation]:
    """Explain several pairs of a study's id and a label or None, as `explain_study` does.

    A study that cannot be read is left out.
    """
    study_ids = list(dict.fromkeys(study_id for study_id, _ in pairs))
    explainer = Explainer(Run.open(run), Prepared.open(data), study_ids)
    for label in dict.fromkeys(label for _, label in pairs):
        explainer.check(label, pixels)
    return [
        explainer.explain(study_id, label, pixels)
        for study_id, label in pairs
        if explainer.readable(study_id)
    ]


@dataclass(frozen=True)
class Explained:
    """Explanations of studies, the files written, and the quality of explanations, if asked for."""

    studies: list[Explanation]
    files: list[Path]
    quality: Quality | None = None

    def text(self) -> str:
        """Return each study's prediction and the slices that spoke most for it, for a terminal."""
        lines = []
        for explanation in self.studies:
            for label in explanation.labels:
                base = explanation.base_values[label]
                lines.append(f"study {explanation.study}  {explanation.heading(label)}")
                if explanation.classes:
                    lines.append(f"    {_most_probable(explanation.probabilities)}")
                lines.append(f"    no slice: {base:.3f}, the base of importance")
                for row in explanation.top(5, label).itertuples():
                    sampled = row.importance_high > row.importance_low
                    limits = f" ({interval(row.importance_low, row.importance_high, '+')})"
                    lines.append(
                        f"    slice {slice_text(row):<4} importance {row.importance:+.3f}"
                        f"{limits if sampled else ''}   alone {row.alone:.3f}"
                    )
                for row in explanation.covariates.itertuples():
                    if row.label == label:
                        words = f"{row.covariate} {row.value}: {row.log_odds:+.3f}"
                        lines.append(f"    {words} in the log-odds, against not knowing it")
            lines += [f"    {note}" for note in explanation.notes]
        if self.quality is not None:
            lines.append(self.quality.text())
        return "\n".join(lines + [str(file) for file in self.files])


def explain(
    run: RunOrPath,
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
        label: a label or class; None: every label, and the studies are chosen by the first; of
            classes the one that a study is called.
        out: a folder for a contact sheet and curves (PNG, with the patient's images) and the table
            (CSV) of each study; None: nothing is written.
        pixels: of `PIXEL_METHODS`, of a segmenter `LESION_MAP`; None: what fits the encoder.
        with_quality: measure against the data set's lesion masks.
        seed: of the subsets of a long study's slices that `importance` shows to the model.

    Raises:
        InputError: see `explain_study` and `measure_quality`.
    """
    opened = Run.open(run)
    prepared = with_labels_of(opened, Prepared.open(data))
    check_label(label, prepared)
    opened.require_finished()
    classes = prepared.classes
    chosen = [study] if study else choose_studies(opened.predictions, label, classes=classes)
    if not chosen:
        raise InputError(f"{opened.path}: has no study of known label to choose; name one: --study")
    explainer = Explainer(opened, prepared, chosen, seed)
    explanations = [explainer.explain(study_id, label, pixels) for study_id in chosen]
    written = [] if out is None else [file for one in explanations for file in _write(one, out)]
    quality = None
    if with_quality:
        quality = measure_quality(opened, prepared, label=label, pixels=pixels)
    return Explained(explanations, written, quality)


def choose_studies(
    predictions: pd.DataFrame,
    label: str | None = None,
    wrong: int = 3,
    classes: Classes | None = None,
) -> list[str]:
    """Choose studies worth a look: the surest wrong ones, then the surest right one of each class.

    Args:
        predictions: of a run; test studies are taken where there are any, and of repeated folds
            those of the first repeat, whose models explain them.
        label: which label; default: the first. Of classes one that the chosen studies are or are
            called; default: any.
        wrong: how many of the wrong ones.
        classes: where the labels exclude each other, what they are.
    """
    if predictions.empty:
        return []
    split = "test" if (predictions["split"] == "test").any() else "validation"
    known = predictions[(predictions["split"] == split) & predictions["truth"].notna()]
    if "repeat" in known:
        known = known[known["repeat"] == known["repeat"].min()]
    if classes:
        table = ClassTable.of(known, classes)
        return _choose_by_class(table, classes.names if label is None else (label,), wrong)
    known = known[known["label"] == (predictions["label"].iloc[0] if label is None else label)]
    surest = known.assign(
        right=known["positive"] == (known["truth"] == 1),
        distance=(known["probability"] - known["threshold"]).abs(),
    ).sort_values(["distance", "study"], ascending=[False, True])
    chosen = surest[~surest["right"]].head(wrong)["study"].tolist()
    for truth in (1, 0):
        chosen += surest[surest["right"] & (surest["truth"] == truth)].head(1)["study"].tolist()
    return chosen


def _choose_by_class(table: ClassTable, names: Sequence[str], wrong: int) -> list[str]:
    """Choose of studies that are one of these classes, or are called so."""
    numbers = [table.classes.names.index(name) for name in names]
    truth, called = table.truth.argmax(axis=1), table.called
    studies = table.studies["study"].to_numpy()
    surest = np.lexsort((studies, -table.probabilities[np.arange(len(table)), called]))
    surest = surest[np.isin(called, numbers)[surest] | np.isin(truth, numbers)[surest]]
    is_right = (called == truth)[surest]
    chosen = surest[~is_right][:wrong].tolist()
    for number in numbers:
        chosen += surest[is_right & (called[surest] == number)][:1].tolist()
    return studies[chosen].tolist()


def _most_probable(probabilities: dict[str, float], most: int = 6) -> str:
    """Return the classes of greatest probability, in words."""
    order = sorted(probabilities, key=lambda name: -probabilities[name])
    more = f" and {len(order) - most} more" if len(order) > most else ""
    return ", ".join(f"{name} {probabilities[name]:.3f}" for name in order[:most]) + more


def _write(explanation: Explanation, out: str | os.PathLike) -> Iterator[Path]:
    """Write an explanation's table and figures, yielding each file when it is there."""
    folder = output_folder(out)
    path = folder / f"{explanation.study}.csv"
    with atomic(path) as temporary:
        explanation.slices.to_csv(temporary, index=False)
    yield path
    for label in explanation.labels:
        figures = {"curves": explanation.curves(label)}
        for method, of_label in explanation.heat:
            if of_label == label:
                figures[method] = explanation.sheet(label, method)
        label_name = "".join(c if c.isalnum() else "_" for c in label)
        for name, figure in figures.items():
            path = folder / f"{explanation.study}_{label_name}_{name}.png"
            with atomic(path) as temporary:
                figure.savefig(temporary, dpi=130, metadata={"Software": None})
            yield path
