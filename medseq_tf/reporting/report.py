"""The report of a finished run: one self-contained HTML file.

`report.html` holds no image of a patient: figures, tables, and study ids, which are salted hashes.
So it can be mailed. Contact sheets of slices are made only when they are asked for, into a file of
its own, `report_with_images.html`, which says so on top and is never logged to MLflow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.dataset import leakage, selection, subgroups
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import cross_validation, metrics, results_text, scoring
from medseq_tf.evaluation.class_table import ClassTable
from medseq_tf.evaluation.evaluate import read_costs
from medseq_tf.evaluation.explain.explain import choose_studies, explain_studies
from medseq_tf.evaluation.explain.explanation import Explanation, slice_text
from medseq_tf.evaluation.predictions import with_calls
from medseq_tf.evaluation.unseen_data import audit_splits
from medseq_tf.files import destination, write_text
from medseq_tf.reporting import (
    automatic,
    class_figures,
    class_report,
    class_tables,
    figures,
    tables,
)
from medseq_tf.reporting.figures import Drawing
from medseq_tf.reporting.model_card import series_in_words
from medseq_tf.reporting.rendering import LIMITS_OF_USE, Picture, picture, render_html
from medseq_tf.runs.run import Run, RunOrPath

TITLE_SUFFIX = " · medseq_tf"
"""Of the page's title, by which a report is known that a new one may replace."""


def report(
    run: RunOrPath,
    data: str | os.PathLike | Prepared | None = None,
    images: bool = False,
    out: str | os.PathLike | None = None,
    costs: str | os.PathLike | None = None,
) -> Path:
    """Write a run's report anew, with its data also what the model looked at.

    Args:
        run: a finished run.
        data: the prepared data set of the run: for the audit, sources, and chosen studies (the
          surest wrong ones, a right one of each class) with the importance of their slices.
        images: also show those studies' slices with heat overlays. They are images of patients.
        out: the file; default `report.html` in the run's folder, with images
          `report_with_images.html`.
        costs: of a run of classes, a CSV file of what a wrong call costs, as for `evaluate`: the
          class of least expected cost is called, and what follows from the calls is scored anew.

    Returns:
        The file.

    Raises:
        InputError: the run is not finished, or the data or costs do not fit it.
    """
    opened = Run.open(run)
    opened.require_finished()
    if images and data is None:
        raise InputError("images need the prepared data set: give --data too")
    name = "report_with_images.html" if images else "report.html"
    path = opened.path / name if out is None else destination(out)
    if path.exists() and not _is_report(path):
        raise InputError(f"{path}: is there already and is no report; choose another --out")
    matrix = read_costs(opened, costs)
    if data is None:
        text = page(opened, costs=matrix)
    else:
        prepared = Prepared.open(data)
        text = page(
            opened,
            audit_splits(opened, prepared),
            _explain_chosen(opened, prepared, matrix),
            images,
            subgroups.standing(prepared),
            matrix,
        )
    write_text(path, text)
    return path


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return f"{TITLE_SUFFIX}</title>".encode() in file.read(4096)


def _explain_chosen(run: Run, prepared: Prepared, costs: np.ndarray | None) -> list[Explanation]:
    """Explain three surest wrong calls and a right one of each class; of many labels, one each."""
    if classes := run.classes:
        predictions = with_calls(run.predictions, classes, costs)
        chosen = choose_studies(predictions, classes=classes)
        called = class_report.calls_of(ClassTable.of(predictions, classes))
        return explain_studies(run, prepared, [(study, called[study]) for study in chosen])
    labels = prepared.label_names
    wrong = 3 if len(labels) == 1 else 1
    pairs = [
        (study, label)
        for label in labels
        for study in choose_studies(run.predictions, label, wrong)
    ]
    return explain_studies(run, prepared, pairs)


def write(run: Run, audit: leakage.Audit | None = None, groups: pd.DataFrame | None = None) -> None:
    """Write `report.html` into the run's folder, without images, as at the end of a training."""
    write_text(run.path / "report.html", page(run, audit, groups=groups))


def page(
    run: Run,
    audit: leakage.Audit | None = None,
    explanations: Sequence[Explanation] = (),
    images: bool = False,
    groups: pd.DataFrame | None = None,
    costs: np.ndarray | None = None,
) -> str:
    """Return the report of a finished run as HTML.

    Args:
        run: the run.
        audit: what its splits share.
        explanations: of chosen studies.
        images: whether to show their slices.
        groups: subgroups by study id, as for `evaluate.evaluate_predictions`.
        costs: of a wrong call of classes, (true, called).
    """
    scores = run.metrics
    split = "test" if (scores["split"] == "test").any() else "validation"
    scores = scores[scores["split"] == split]
    selected = selection.noted_in(scores)
    predictions = run.predictions
    predictions = predictions[predictions["split"] == split].assign(selected=bool(selected))
    classes = run.classes
    context = {
        "run": run,
        "folds": run.cross_validated,
        "split": split,
        "title_suffix": TITLE_SUFFIX,
        "limits_of_use": LIMITS_OF_USE,
        "images": images,
        "nothing_held_out": predictions.empty,
        "fitted_on": _fitted_on(run),
        "versions": json.dumps(run.info, indent=1),
        "classes": classes,
        **_data(run, audit),
        "automatic": automatic.data(run, predictions, classes),
        "notes": automatic.notes(run),
    }
    if classes:
        predictions = with_calls(predictions, classes, costs)
        scores = class_report.with_scores(run, classes, predictions, scores, costs)
        context |= class_report.data(run, classes, predictions, split, costs)
    drawings = figures.training(_trained_by_epoch(run))
    if not predictions.empty:
        if classes:
            table = ClassTable.of(predictions, classes)
            known = table.known
            evaluated = class_figures.evaluation(known)
            context |= {
                **class_report.summary(scores, known),
                **class_report.metric_tables(run, classes, scores, predictions),
                **_common(run, scores),
                **class_report.calls(run, table, predictions, groups, selected),
            }
            called = class_report.calls_of(table)
            explained = [
                class_report.explained(study, called[study.study], images) for study in explanations
            ]
        else:
            evaluated = figures.evaluation(predictions, run.dataset["label_names"])
            context |= {
                **_summary(scores),
                **_metrics(run, scores),
                **_common(run, scores),
                **_calls(run, predictions, groups, selected),
            }
            explained = [_explained(study, images) for study in explanations]
        drawings = [*evaluated, *drawings]
        context |= {"has_curves": bool(evaluated), "explained": explained}
    return render_html("report.html.j2", pictures=[*map(_drawn, drawings)], **context)


def _fitted_on(run: Run) -> str:
    """Say which predictions gave the temperatures that the report shows."""
    if run.automatic:
        return "held-out predictions"
    return "each fold's validation" if run.cross_validated else "validation"


def _trained_by_epoch(run: Run) -> list[Run]:
    """Return the members that learned by epochs, of an automatic run its networks."""
    members = [member.run for member in run.members]
    if run.automatic is None:
        return members
    return [member for member in members if len(member.history) > 1]


def _data(run: Run, audit: leakage.Audit | None) -> dict[str, Any]:
    """Return the data set, its splits, and what they share."""
    dataset = run.dataset
    return {
        "dataset": dataset,
        "counts": dataset["counts"],
        "series": series_in_words(run),
        "label_counts": tables.labels(dataset["counts"]["labels"]),
        "splits": tables.splits(run) if audit is None else tables.table(audit.parts),
        "audit": audit,
        "shared_slices": None if audit is None else tables.table(audit.pairs.head(20)),
    }


def _summary(scores: pd.DataFrame) -> dict[str, Any]:
    """Return the key metrics, and what they allow to say of chance."""
    of_labels = scores[scores["label"] != "macro"]
    several = len(of_labels) < len(scores)
    label = "macro" if several else scores["label"].iloc[0]
    rows = scores[scores["label"] == label].set_index("metric")
    auroc = rows.loc["auroc"]
    return {
        "key_metrics": [
            tables.key_metric(tables.metric_name(metric), rows.loc[metric])
            for metric in ("auroc", "average_precision", "recall", "specificity", "brier")
        ],
        "averaged_labels": of_labels["label"].nunique() if several else 0,
        "known_studies": f"{of_labels['n'].max():.0f}",
        "chance": tables.against_chance(auroc, _few_patients(of_labels)),
        "auroc_note": str(auroc["note"]),
        "few_patients": metrics.FEW_PATIENTS,
    }


def _few_patients(of_labels: pd.DataFrame) -> bool:
    """Whether some label has too few patients to conclude from."""
    noted = of_labels["note"].fillna("").str.contains(metrics.DESCRIBED, regex=False)
    rarer = np.minimum(of_labels["positives"], of_labels["n"] - of_labels["positives"])
    return bool(noted.any() or ((rarer > 0) & (rarer < metrics.FEW_PATIENTS)).any())


def _metrics(run: Run, scores: pd.DataFrame) -> dict[str, Any]:
    """Return the table of metrics, and that of the folds."""
    return {
        "metric_table": tables.metric_rows(scores),
        "fold_table": tables.folds(run.predictions) if run.cross_validated else None,
    }


def _common(run: Run, scores: pd.DataFrame) -> dict[str, Any]:
    """Return what is said of any metrics."""
    return {
        "validation_is_optimistic": selection.of_validation(run.classes),
        "questions": {
            "fitted": cross_validation.FITTED,
            "recipe": run.question if run.fold_sites else cross_validation.RECIPE,
        },
        "reads": run.reads,
        "metric_multiplicity": metrics.multiplicity(int(scores["low"].notna().sum())),
        "covariates_table": _beside_covariates(run, scores),
    }


def _beside_covariates(run: Run, scores: pd.DataFrame) -> tables.Table | None:
    """Return what covariates alone reach on the same studies, if that was measured."""
    alone, classes = run.covariates_alone, run.classes
    if alone is None:
        return None
    alone = alone[alone["split"].isin(scores["split"])]
    if classes:
        of_all = scores[scores["label"] == classes.column]
        return tables.beside_covariates(of_all, alone, class_tables.metric_name)
    return tables.beside_covariates(results_text.reported(scores), alone)


def _calls(
    run: Run, predictions: pd.DataFrame, groups: pd.DataFrame | None, selected: str
) -> dict[str, Any]:
    """Return what is said of the calls: of all patients, their calibration, subgroups, each."""
    label_names = run.dataset["label_names"]
    fitted = [model.temperatures for model in run.folds or [run]]
    by_group = tables.subgroup_scores(predictions, label_names, groups, selected)
    return {
        "any_positive": results_text.ANY_POSITIVE,
        "confusion": list(scoring.confusion_table(predictions).itertuples()),
        "temperatures": {
            label: [f"{temperatures.get(label, 1.0):.2f}" for temperatures in fitted]
            for label in scoring.calibration_table(predictions)["label"].unique()
        },
        "calibration_table": tables.calibration(predictions, selected),
        "subgroup_table": tables.subgroups(by_group),
        "subgroup_multiplicity": tables.multiplicity(by_group),
        "patient_table": tables.patients(predictions),
    }


def _explained(explanation: Explanation, images: bool) -> dict[str, Any]:
    """Return what a chosen study's page shows of each label."""
    return {
        "id": explanation.study,
        "labels": list(_explained_labels(explanation, images)),
        "notes": explanation.notes,
    }


def _explained_labels(explanation: Explanation, images: bool) -> Iterator[dict[str, Any]]:
    for label in explanation.labels:
        slices = ", ".join(map(slice_text, explanation.top(3, label).itertuples()))
        words = (
            "Importance of each slice (bars) and the probability after each slice (line); "
            f"slices {slices} spoke most for {label}"
        )
        sheet = None
        if images:
            sheet = picture(explanation.sheet(label), explanation.alternative(label), "", "png")
        yield {
            "label": label,
            "call": explanation.call(label),
            "probability": explanation.probabilities[label],
            "truth": explanation.truth_in_words(label),
            "sheet": sheet,
            "curves": picture(explanation.curves(label), words, f"{words}."),
        }


def _drawn(drawing: Drawing) -> Picture:
    return picture(drawing.figure, drawing.words, drawing.words, title=drawing.title)
