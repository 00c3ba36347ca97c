"""The patients of a search: set aside from every trial, or divided to score the trials on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseq_tf.dataset import splits
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes
from medseq_tf.recipe import Split
from medseq_tf.tuning.search import Search
from medseq_tf.tuning.settings import Objective
from medseq_tf.tuning.space import Space

FEW_PATIENTS = 200
"""Fewer that take part are divided into folds, where the objective does not say otherwise."""
FOLDS, REPEATS = 5, 2
"""How they are divided."""
HELD_OUT = 0.2
"""Share of the patients that a repeat holds out, where the recipe has no test share."""


def decide_objective(space: Space, prepared: Prepared, folder: Path) -> Space:
    """Return a space whose objective says on whom trials are scored.

    Where it does not, a search that is there goes on as it began; else few patients are divided
    into folds, for one small validation split is mostly chance.
    """
    if space.objective.is_decided:
        return space
    if (folder / "search.json").is_file():
        before = Search(folder).space.objective
        return replace(space, objective=replace(before, metric=space.objective.metric))
    studies, split = prepared.studies, space.base.split
    own = splits.make_holdout(studies, split, prepared.classes)
    rest = studies.iloc[np.sort(np.concatenate([own["train"], own["validation"]]))]
    if rest["patient_id"].nunique() < FEW_PATIENTS:
        repeats = REPEATS if split.by == "patient" else None  # others are divided in one way
        for count in range(FOLDS, 1, -1):
            objective = replace(space.objective, folds=count, repeats=repeats)
            with contextlib.suppress(InputError):  # too few patients of a class for so many
                _divisions(rest.reset_index(drop=True), split, objective, prepared.classes)
                return replace(space, objective=objective)
    return replace(space, objective=replace(space.objective, validation=True))


def outer_folds(space: Space, prepared: Prepared, count: int) -> list[dict[str, Any]]:
    """Return the plan of each search of a nested evaluation: a fold is set aside in each.

    Test patients that the data set itself names are left alone, as by every search.
    """
    if count < 2:
        raise InputError(f"nested = {count}: it takes at least 2 folds")
    studies, split = prepared.studies, space.base.split
    own = splits.make_holdout(studies, split, prepared.classes)
    named = split.given and "split" in studies and (studies["split"] == "test").any()
    rows = np.sort(np.concatenate([own["train"], own["validation"]]))
    rows = rows if named else np.arange(len(studies))
    everyone = studies.iloc[rows].reset_index(drop=True)
    not_given = split.model_copy(update={"given": False})
    outer = splits.make_folds(everyone, count, not_given, classes=prepared.classes)
    ids = everyone["study_id"].to_numpy()
    plans = []
    for fold in outer:
        inside = np.sort(np.concatenate([fold["train"], fold["validation"]]))
        others = everyone.iloc[inside].reset_index(drop=True)
        inner = _divisions(others, split, space.objective, prepared.classes)
        plans.append(
            {
                "set_aside": ids[fold["test"]].tolist(),
                "splits": [
                    {part: ids[fold[part]].tolist() for part in ("train", "validation")}
                    | {"test": []}
                ]
                if inner is None
                else [
                    {part: ids[inside[of]].tolist() for part, of in division.items()}
                    for division in inner
                ],
                "champion": {part: ids[of].tolist() for part, of in fold.items()},
            }
        )
    return plans


def set_aside(space: Space, prepared: Prepared) -> dict[str, Any]:
    """Return the studies that no trial sees, and the splits of the others that it is scored on.

    Returns:
        `set_aside`: study ids; `splits`: a list of study ids by `train`, `validation` (chooses the
        epoch) and `test` (held out, scored; empty without folds and repeats).

    Raises:
        InputError: too few patients.
    """
    studies, split, objective = prepared.studies, space.base.split, space.objective
    own = splits.make_holdout(studies, split, prepared.classes)
    rest = np.sort(np.concatenate([own["train"], own["validation"]]))
    others = studies.iloc[rest].reset_index(drop=True)
    divisions = _divisions(others, split, objective, prepared.classes)
    ids = studies["study_id"].to_numpy()
    if divisions is None:
        if not len(own["validation"]):
            raise InputError(
                f"{space.base.name}: split.validation is 0, so there is no one to score a trial "
                "on; raise it, or give objective.folds"
            )
        named = [{part: ids[own[part]].tolist() for part in ("train", "validation")} | {"test": []}]
    else:
        named = [
            {part: ids[rest[rows]].tolist() for part, rows in division.items()}
            for division in divisions
        ]
    return {"set_aside": ids[own["test"]].tolist(), "splits": named}


def _divisions(
    studies: pd.DataFrame, split: Split, objective: Objective, classes: Classes | None
) -> list[Rows] | None:
    if objective.folds:
        everyone = split.model_copy(update={"given": False})
        repeats = objective.repeats or 1
        return splits.make_folds(studies, objective.folds, everyone, repeats, classes)
    if not objective.repeats:
        return None
    if objective.repeats > 1 and split.by != "patient":
        raise InputError(
            f"objective.repeats = {objective.repeats}: split.by={split.by} divides in one way, "
            "which would be repeated; give objective.validation, or set split.by=patient"
        )
    held_out = split.test or HELD_OUT
    return [
        splits.make_holdout(
            studies,
            split.model_copy(
                update={
                    "given": False,
                    "test": held_out,
                    "validation": split.validation * (1 - held_out),
                    "seed": split.seed + 1 + repeat,
                }
            ),
            classes,
        )
        for repeat in range(objective.repeats)
    ]


def scored_studies(prepared: Prepared, plan: dict[str, Any]) -> pd.DataFrame:
    """Return the studies that trials are scored on."""
    ids = {study for split in plan["splits"] for study in (split["test"] or split["validation"])}
    return prepared.studies[prepared.studies["study_id"].isin(ids)]
