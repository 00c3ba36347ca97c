"""The end of an automatic run: the procedure's figure, the final choice, and what is deployed.

used_for_selection.csv   what chose: scores by repeat and fold, and at last by all held-out patients
candidates.parquet       every candidate's own out-of-fold probabilities
members/NAME             what is deployed and linear, trained on all patients; of a network it is
                         its first cross-validated run, candidates/NAME/round_1
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.automl.choice import Choice, Shares, combine
from medseq_tf.automl.kept import Kept, fold_splits
from medseq_tf.automl.linear import FITS
from medseq_tf.automl.plan import Plan
from medseq_tf.automl.predicted import Candidates
from medseq_tf.automl.procedure import Outcome
from medseq_tf.automl.sentences import against_reference, deployed_because
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import splits_to_json
from medseq_tf.dataset.stratification import Rows
from medseq_tf.evaluation import covariates_alone, operating_points
from medseq_tf.evaluation.inference import Predictions
from medseq_tf.evaluation.operating_points import OperatingPoint
from medseq_tf.evaluation.predictions import (
    calibrated,
    choose_operating_points,
    fit_temperatures,
    of_folds,
    predictions_table,
)
from medseq_tf.files import atomic, write_text
from medseq_tf.recipe import Experiment
from medseq_tf.runs.run import CANDIDATES, OF_CANDIDATES, SELECTION
from medseq_tf.runs.tracking import AnyTracker, Section
from medseq_tf.training.folds import write_pooled
from medseq_tf.training.loop import CHECKPOINT
from medseq_tf.training.one_run import Options
from medseq_tf.training.train import train

MEMBERS = "members"


def conclude(
    kept: Kept, candidates: Candidates, tracker: AnyTracker, options: Options, deploy_anyway: bool
) -> None:
    """Choose, deploy, and write the run's results.

    Args:
        kept: the run's folder.
        candidates: what they predict.
        tracker: the run's own.
        options: of the run.
        deploy_anyway: where nothing is concluded or beats chance, deploy the linear choice.
    """
    plan, prepared, run = candidates.plan, candidates.prepared, kept.run
    outcome = candidates.choose()
    repeats = [repeat for repeat, choices in enumerate(outcome.choices) if choices]
    concluded = bool(outcome.final.weights) and plan.conclude
    chosen = outcome.final if concluded else outcome.linear
    shares = chosen.weights if concluded or deploy_anyway else {}
    members = _deployed(kept, candidates, shares, tracker, options)
    sentences = [
        deployed_because(plan, outcome, shares),
        *(against_reference(candidates, outcome, repeats) if concluded else []),
    ]
    recipe = _recipe(plan, candidates, chosen)
    write_text(run.path / "experiment.yaml", recipe.to_yaml())
    splits = fold_splits(candidates.fold_of[repeats])
    write_text(run.path / "splits.json", splits_to_json(prepared.studies, splits))
    run.update_info(repeats=len(repeats), members=members)
    kept.note(
        choice={"weights": shares, "reason": chosen.reason},
        baseline=_best_baseline(plan, outcome.linear),
        sentence="; ".join(sentences),
    )
    _write_selection(kept, outcome)
    _write_candidates(kept, candidates)
    pooled, points = procedure_table(candidates, outcome, repeats, recipe.fit.threshold)
    alone = None
    if prepared.covariates:
        alone = of_folds([_told_by_covariates(prepared, split) for split in splits], run)
    notes = [*sentences, *plan.notes, *candidates.notes.values(), *candidates.left_out()]
    notes += operating_points.notes_of_folds(points)
    exported = len(run.members) if members else 0
    write_pooled(run, prepared, of_folds(pooled, run), notes, alone, tracker, exported)
    for score in outcome.final.scores:
        tracker.metrics({f"used_for_selection/{score.name}/auroc": score.auroc})
    for name in (SELECTION, CANDIDATES):
        tracker.artifact(run.path / name)
    _remove_leftovers(kept, members)


def _remove_leftovers(kept: Kept, members: Sequence[Mapping[str, Any]]) -> None:
    """Remove the models of networks that are not deployed; what they predicted is kept.

    With them goes what was handed to other processes when the run was killed.
    """
    for file in (kept.folder / OF_CANDIDATES).glob(f"*/{FITS}"):
        file.unlink()
    deployed = {kept.folder / member["run"] for member in members}
    for name in ("model.keras", CHECKPOINT):
        for file in (kept.folder / OF_CANDIDATES).glob(f"*/round_*/**/{name}"):
            if deployed.isdisjoint(file.parents):
                file.unlink()


def _best_baseline(plan: Plan, linear: Choice) -> str:
    """Return the baseline of the highest AUROC, over all held-out predictions."""
    names = {candidate.name for candidate in plan.candidates if candidate.role == "baseline"}
    return max((s for s in linear.scores if s.name in names), key=lambda s: s.auroc).name


def _recipe(plan: Plan, candidates: Candidates, chosen: Choice) -> Experiment:
    """Return the recipe of the heaviest member, with all choices that any candidate comes from."""
    heaviest = max(chosen.weights, key=lambda name: chosen.weights[name])
    recipes = {
        candidate.name: candidate.experiment()
        for candidate in plan.candidates
        if candidate.name in candidates.predictions[0]
    }
    origins = [choice for recipe in recipes.values() for choice in recipe.chosen]
    return recipes[heaviest].model_copy(
        update={
            "name": "auto",
            "description": "Chosen by medseq-tf auto; the recipe is that of the largest share.",
            "chosen": [c for i, c in enumerate(origins) if c not in origins[:i]],
        }
    )


def _deployed(
    kept: Kept, candidates: Candidates, shares: Shares, tracker: AnyTracker, options: Options
) -> list[dict[str, Any]]:
    """Return the members of the run, the heaviest first; train those that are linear."""
    by_name = {candidate.name: candidate for candidate in candidates.plan.candidates}
    untold = tracker if isinstance(tracker, Section) else Section(tracker, ())
    members = []
    for name in sorted(shares, key=lambda name: -shares[name]):
        if by_name[name].kind == "network":
            place = f"{kept.place(name).relative_to(kept.folder).as_posix()}/round_1"
        else:
            place = f"{MEMBERS}/{name}"
            folder = kept.folder / place
            train(
                by_name[name].experiment(),
                candidates.prepared,
                folder,
                splits=_everyone(candidates),
                resume=(folder / "run.json").is_file(),
                features=options.features,
                track=untold,
                verbose=False,
            )
            gc.collect()
        members.append({"run": place, "weight": shares[name]})
    return members


def _everyone(candidates: Candidates) -> Rows:
    """Return the split in which all who take part are trained on."""
    nobody = np.empty(0, np.int64)
    return {"train": np.flatnonzero(candidates.part), "validation": nobody, "test": nobody}


# -------------------------------------------------------------------------------- predictions


def procedure_table(
    candidates: Candidates, outcome: Outcome, repeats: Sequence[int], rule: str
) -> tuple[list[pd.DataFrame], list[dict[str, dict[str, Any]]]]:
    """Return the procedure's predictions fold by fold, and how each fold's thresholds were chosen.

    A fold's thresholds and temperatures are chosen by the inner predictions of its own choice.
    """
    prepared, part = candidates.prepared, candidates.part
    tables, chosen = [], []
    for repeat in repeats:
        folds = candidates.fold_of[repeat]
        for fold, choice in enumerate(outcome.choices[repeat]):
            others, tested = (
                np.flatnonzero(part & where) for where in (folds != fold, folds == fold)
            )
            own = {name: one.inner[fold] for name, one in candidates.predictions[repeat].items()}
            inner = combine(choice, own)[others]
            points: Mapping[str, OperatingPoint] = {}
            if not prepared.classes:
                points = choose_operating_points(prepared, others, inner, rule)
            thresholds = {label: point.threshold for label, point in points.items()}
            told = predictions_table(prepared, others, Predictions(inner), "validation", thresholds)
            temperatures, _ = fit_temperatures(told, prepared.classes)
            outer = Predictions(outcome.outer[repeat, tested])
            table = predictions_table(prepared, tested, outer, "test", thresholds)
            tables.append(calibrated(table, temperatures, prepared.classes))
            chosen.append({label: point.to_dict() for label, point in points.items()})
    return tables, chosen


def _told_by_covariates(prepared: Prepared, split: Rows) -> pd.DataFrame:
    """Return what covariates alone predict of a fold."""
    told = covariates_alone.probabilities(prepared, split["train"])[split["test"]]
    thresholds = dict.fromkeys(prepared.label_names, 0.5)
    return predictions_table(prepared, split["test"], Predictions(told), "test", thresholds)


def _write_selection(kept: Kept, outcome: Outcome) -> None:
    """Write the scores that chose, fold by fold, and those of the final choice."""
    rows = [
        {"repeat": repeat, "fold": fold, **score._asdict()}
        for repeat, choices in enumerate(outcome.choices, start=1)
        for fold, choice in enumerate(choices, start=1)
        for score in choice.scores
    ]
    rows += [{"repeat": "all", "fold": "all", **score._asdict()} for score in outcome.final.scores]
    table = pd.DataFrame(rows).rename(columns={"name": "candidate"})
    table["weights"] = table["weights"].map(json.dumps)
    write_text(kept.folder / SELECTION, table.to_csv(index=False))


def _write_candidates(kept: Kept, candidates: Candidates) -> None:
    """Write every candidate's own out-of-fold probabilities."""
    prepared = candidates.prepared
    studies = prepared.studies[["study_id", "patient_id"]].set_axis(["study", "patient"], axis=1)
    tables = [
        studies.assign(
            candidate=name,
            repeat=repeat + 1,
            fold=repeat * (folds.max() + 1) + folds + 1,
            label=label,
            truth=prepared.labels[:, column],
            probability=one.outer[:, column],
        )[np.isfinite(one.outer[:, column])]
        for repeat, (folds, own) in enumerate(
            zip(candidates.fold_of, candidates.predictions, strict=True)
        )
        for name, one in own.items()
        for column, label in enumerate(prepared.label_names)
    ]
    with atomic(kept.folder / CANDIDATES) as temporary:
        pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)
