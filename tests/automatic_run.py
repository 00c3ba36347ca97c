"""The folder of an automatic run, made of small trained ones, as `auto` leaves it.

Two single runs that were trained on all patients, and a cross-validated one; each reads slices in
its own way, and its share of the probability is another.
"""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import yaml
from small_run import run_small

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import make_folds
from medseq_tf.evaluation.inference import Predictions
from medseq_tf.evaluation.operating_points import of_folds as points_of_folds
from medseq_tf.evaluation.predictions import calibrated, of_folds, predictions_table
from medseq_tf.recipe import Split
from medseq_tf.runs.run import CANDIDATES, Run
from medseq_tf.runs.tracking import Tracker
from medseq_tf.training.beginning import Request
from medseq_tf.training.one_run import Results, write_results

FOLDS, REPEATS = 2, 2
SENTENCE = (
    "`sequence` and two others are deployed: together they were ahead of `mean`, the best linear "
    "baseline, by 0.041 (0.012 to 0.070)"
)
SMALL = (
    "fit.epochs=1",
    "model.encoder.filters=[4]",
    "model.encoder.kernels=[5]",
    "model.encoder.strides=[4]",
    "model.encoder.paddings=[0]",
    "model.aggregator.units=4",
    "model.aggregator.layers=1",
)
OTHER_INPUT = (
    "input.size=24",
    "input.neighbours=1",
    "sequence.evaluation.policy=all",
    "sequence.evaluation.length=4",
)
MEAN = (
    "input.mean=0.3",
    "sequence.length=8",
    "model.aggregator={name: mean}",
    "split.test=0",
    "split.validation=0",
)
MEMBERS = {
    "sequence": (0.5, (), {"folds": FOLDS}),
    "neighbours": (0.3, OTHER_INPUT, {}),
    "mean": (0.2, MEAN, {}),
}
"""By name: share of the probability, overrides, further arguments of the training."""


def automatic_run(data, folder):
    """Train the members and write what the procedure would have found; return the finished run."""
    prepared = Prepared.load(data)
    members = {
        name: run_small(data, folder / "members" / name, *SMALL, *overrides, **arguments)
        for name, (_, overrides, arguments) in MEMBERS.items()
    }
    run = begun_run(folder, prepared, members["sequence"].experiment)
    run.update_info(
        members=[
            {"run": f"members/{name}", "weight": weight} for name, (weight, _, _) in MEMBERS.items()
        ],
        auto=made_choice({name: weight for name, (weight, _, _) in MEMBERS.items()}),
    )
    finish(run, prepared)
    return run


def made_choice(weights, sentence=SENTENCE):
    """What `run.json` says of how the members were chosen."""
    choice = {"weights": weights, "reason": sentence}
    return {"plan": "0" * 64, "choice": choice, "baseline": "mean", "sentence": sentence}


def begun_run(folder, prepared, recipe):
    """Write what a run of repeated folds begins with."""
    splits = make_folds(prepared.studies, FOLDS, Split(), REPEATS, prepared.classes)
    recipe = recipe.model_copy(update={"name": "auto"})
    Request(folder, recipe, prepared, FOLDS, REPEATS, splits=splits).begin(splits)
    return Run(folder)


def finish(run, prepared):
    """Write out-of-fold predictions, better than chance, and what follows from them."""
    tested = out_of_fold(run, prepared, seed=0)
    points = {} if prepared.classes else points_of_folds(tested, prepared.label_names)
    temperatures = {prepared.classes.column: 1.25} if prepared.classes else {"lesion": 1.25}
    tested = calibrated(tested, temperatures, prepared.classes)
    write_what_was_tried(run, prepared)
    tracker = Tracker(run.path, "auto", enabled=False)
    notes = [run.automatic["sentence"]]
    write_results(run, prepared, Results(tested, points, temperatures, notes), tracker)
    run.update_info(status="finished")


def out_of_fold(run, prepared, seed):
    """Draw predictions of each fold's test studies."""
    rng = np.random.default_rng(seed)
    row_of = {study: row for row, study in enumerate(prepared.studies["study_id"])}
    tables = []
    for split in run.splits_by_fold:
        rows = np.array([row_of[study] for study in split["test"]])
        odds = np.exp(2 * prepared.labels[rows] + rng.normal(size=prepared.labels[rows].shape))
        odds /= odds.sum(axis=1, keepdims=True) if prepared.classes else 1 + odds
        thresholds = dict.fromkeys(prepared.label_names, 0.5)
        tables.append(predictions_table(prepared, rows, Predictions(odds), "test", thresholds))
    return of_folds(tables, run)


def write_what_was_tried(run, prepared):
    """Write the plan, what chose, and what each candidate predicts, as `auto` does."""
    names = [*MEMBERS, "acquisition"]
    roles = ["candidate", "candidate", "baseline", "reference"]
    plan = [
        {
            "name": name,
            "kind": "network" if role == "candidate" else "linear",
            "role": role,
            "reason": f"why {name} | is <tried>",
        }
        for name, role in zip(names, roles, strict=True)
    ]
    (run.path / "plan.yaml").write_text(yaml.safe_dump({"candidates": plan}), "utf-8")
    scores = [
        {
            "repeat": number // FOLDS + 1,
            "fold": number % FOLDS + 1,
            "candidate": name,
            "weights": "{}",
            "log_loss": 0.5,
            "auroc": 0.987654,
            "chosen": name == ("mean" if number == 0 else "average") and number < 3,
        }
        for number in range(FOLDS * REPEATS)
        for name in (*names, "average")
    ]
    scores.append({**scores[0], "repeat": "all", "fold": "all", "chosen": True})
    pd.DataFrame(scores).to_csv(run.path / "used_for_selection.csv", index=False)
    columns = ["study", "patient", "repeat", "fold", "label", "truth", "probability"]
    candidates = [
        out_of_fold(run, prepared, seed)[columns].assign(candidate=name)
        for seed, name in enumerate(names, start=1)
    ]
    pd.concat(candidates, ignore_index=True).to_parquet(run.path / CANDIDATES, index=False)


def emptied(run, folder):
    """Return a copy of a run that found nothing better than chance."""
    copy = Run(folder / "auto")
    shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("members"))
    copy.update_info(members=[], auto=made_choice({}, "nothing beats chance."))
    return copy
