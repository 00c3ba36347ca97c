"""The model card of a finished run: what software can know, and what its author has to say.

Items are numbered as in CLAIM (Mongan, Moy and Kahn 2020) and TRIPOD+AI (Collins et al. 2024).
"""

from __future__ import annotations

import pandas as pd

from medseq_tf.dataset import leakage, selection
from medseq_tf.dataset.prepared import series_of
from medseq_tf.evaluation import results_text
from medseq_tf.evaluation.metrics.interval_text import interval, number
from medseq_tf.files import write_text
from medseq_tf.readers.series import series_text
from medseq_tf.recipe import Experiment, network_in
from medseq_tf.reporting import automatic, class_report
from medseq_tf.reporting.rendering import LIMITS_OF_USE, render_markdown
from medseq_tf.runs.run import Run


def write(run: Run, audit: leakage.Audit | None = None) -> None:
    """Write `model_card.md` into a finished run's folder; `audit`: what its splits share."""
    write_text(run.path / "model_card.md", card(run, audit))


def card(run: Run, audit: leakage.Audit | None = None) -> str:
    """Return the model card of a finished run as Markdown."""
    recipe, dataset, classes = run.experiment, run.dataset, run.classes
    series = series_of(dataset)
    scores = results_text.reported(run.metrics, classes)
    metrics = scores.assign(
        value=scores["value"].map(number),
        interval=[interval(*bounds) for bounds in scores[["low", "high"]].to_numpy(float)],
    )
    origin = "; ".join(selection.origins(recipe))
    return render_markdown(
        "model_card.md.j2",
        run=run,
        folds=run.cross_validated,
        recipe=recipe,
        dataset=dataset,
        counts=dataset["counts"],
        series=series_in_words(run),
        channels=recipe.input.slice_shape(series.channels if series else 1)[-1],
        audit=audit,
        partitions=_partitions(run),
        augmentations=[name for name, value in recipe.augment if value is not None],
        initial_weights=_initial_weights(recipe),
        solved=recipe.fit.solver == "lbfgs",
        origin=origin[:1].upper() + origin[1:] or "The recipe names no search that chose it",
        measures=_measures(scores),
        reads=_reads(run),
        metrics=list(metrics.itertuples()),
        noted=automatic.notes(run),
        automatic=run.automatic is not None,
        chosen_by=automatic.sentence(run),
        models=automatic.models(run),
        candidates=automatic.candidates_of(run) if run.automatic is not None else [],
        notes=list(dict.fromkeys(note for note in metrics["note"] if note)),
        used_for_selection=selection.LABEL,
        classes=classes,
        **(class_report.sentences(classes) if classes else {"limits_of_use": LIMITS_OF_USE}),
    )


def series_in_words(run: Run) -> str | None:
    """Return the series of a study and how they are read; None where each is one stack."""
    series = series_of(run.dataset)
    if series is None:
        return None
    mark = "each slice with a learned mark of its series"
    told = mark if run.experiment.model.series_mark else "not told apart by the model"
    return series_text(series) + (f", {told}" if series.in_turn else "")


def _initial_weights(recipe: Experiment) -> str:
    """Return the weights that training began with, or stood on."""
    network = network_in(recipe.model.encoder)
    if recipe.model.initial_weights or network is None:
        nothing = "none" if recipe.fit.solver == "lbfgs" else "random"
        return recipe.model.initial_weights or nothing
    return "random" if network.weights == "none" else network.weights


def _partitions(run: Run) -> str:
    """Return how the patients are divided."""
    if not run.cross_validated:
        return ", ".join(f"{split} {len(ids)}" for split, ids in run.splits.items()) + " studies"
    if run.fold_sites:
        return f"each site tested by a model trained without it: {', '.join(run.fold_sites)}"
    folds = f"{run.info['folds']} folds over all patients, each tested once"
    return folds if run.repeats == 1 else f"{folds} in each of {run.repeats} repeats"


def _measures(scores: pd.DataFrame) -> str:
    """Return which metrics of the table have an interval, and of which kind."""
    is_bare = scores["low"].isna()
    kinds = scores[~is_bare].groupby("interval", sort=False)["metric"].unique()
    parts = [f"95% intervals ({kind}): {', '.join(names)}" for kind, names in kinds.items()]
    without = [
        name for name in scores["metric"].unique() if is_bare[scores["metric"] == name].all()
    ]
    if without:
        parts.append(f"without interval: {', '.join(without)}")
    if (scores["split"] == "validation").any():
        parts.append(f"validation's figures have none, being {selection.LABEL}")
    return "; ".join(parts)


def _reads(run: Run) -> str:
    """Return how often the test patients have answered for figures."""
    if run.reads is not None:
        return f"As far as this data set knows, {run.reads.text()}"
    tested = (run.metrics["split"] == "test").any()
    return "Not counted" if tested else "No test patients"
