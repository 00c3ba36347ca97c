"""What a report says of an automatic run: what was tried, what was chosen, and how far it is ahead.

The only metrics of such a run are those of the whole procedure, on patients that had no part in its
choice. What chose stands in `used_for_selection.csv`, and not here, but how often.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from medseq_tf.errors import InputError
from medseq_tf.evaluation.comparison import auroc_differences
from medseq_tf.evaluation.metrics import interval_text
from medseq_tf.readers.classes import Classes
from medseq_tf.recipe.yaml_text import read_yaml
from medseq_tf.reporting import tables
from medseq_tf.runs.run import CANDIDATES, PLAN, SELECTION, Run

HELD_AGAINST = ("reference", "baseline")
"""The roles of candidates that the procedure is compared with, whatever was chosen."""


def data(run: Run, predictions: pd.DataFrame, classes: Classes | None) -> dict[str, Any] | None:
    """Return how an automatic run was chosen; None of another run.

    Args:
        run: the run.
        predictions: of its test patients.
        classes: where the labels exclude each other, what they are.

    Raises:
        InputError: a file that `auto` wrote is damaged.
    """
    if run.automatic is None:
        return None
    candidates = candidates_of(run)
    return {
        "sentence": sentence(run),
        "candidate_table": _candidates(run, candidates),
        "choice_table": _choices(run),
        "comparison_table": _differences(run, candidates, predictions, classes),
    }


def sentence(run: Run) -> str:
    """Return how what an automatic run predicts with was chosen."""
    told = run.sentence.rstrip(".")
    return f"{told[:1].upper()}{told[1:]}."


def notes(run: Run) -> list[str]:
    """Return the notes of a run, but what the sentence of an automatic one says."""
    return [note for note in run.notes if note not in run.sentence]


def models(run: Run) -> list[str]:
    """Return what an automatic run predicts with, in words; nothing of another run."""
    return [_in_words(part.run, part.weight, run) for part in run.parts or []]


def _in_words(part: Run, weight: float, run: Run) -> str:
    recipe, count = part.experiment, len(part.members)
    several = f" (the mean of {count} models)" if count > 1 else ""
    return (
        f"{part.path.relative_to(run.path).as_posix()}{several}, {weight:.0%} of the probability: "
        f"{recipe.model.encoder.name} encoder, {recipe.model.aggregator.name}, "
        f"{recipe.input.size} pixels"
    )


def candidates_of(run: Run) -> list[dict[str, Any]]:
    """Return the candidates of an automatic run's plan."""
    path = run.path / PLAN
    try:
        listed = read_yaml(path, "plan")["candidates"]
        return [{key: one[key] for key in ("name", "kind", "role", "reason")} for one in listed]
    except (LookupError, TypeError):
        raise InputError(f"{path}: is damaged; it should be the plan that auto wrote") from None


def _candidates(run: Run, candidates: list[dict[str, Any]]) -> tables.Table:
    """List what was tried, why, and what share of the probability it has."""
    share = run.shares
    return tables.table(
        pd.DataFrame(
            {
                "candidate": one["name"],
                "role": one["role"] if one["kind"] == "linear" else "network",
                "why": one["reason"],
                "share": f"{share[one['name']]:.0%}" if one["name"] in share else "not deployed",
            }
            for one in candidates
        )
    )


def _choices(run: Run) -> tables.Table | None:
    """Count how often each candidate, or average, was chosen inside a fold; None if not kept."""
    path = run.path / SELECTION
    if not path.is_file():
        return None
    try:
        scored = pd.read_csv(path, usecols=["fold", "candidate", "chosen"])
    except (OSError, ValueError):
        raise InputError(f"{path}: is damaged; it should be the table that auto wrote") from None
    inside = scored[scored["fold"].astype(str) != "all"]
    counts = inside.groupby("candidate", sort=False)["chosen"].sum()
    counts = counts[counts > 0].sort_values(ascending=False, kind="stable")
    folds = len(run.splits_by_fold)
    nothing = folds - int(counts.sum())
    rows = [*counts.items(), *([("nothing", nothing)] if nothing > 0 else [])]
    return tables.table(pd.DataFrame(rows, columns=["chosen inside a fold", f"of {folds} folds"]))


def _differences(
    run: Run,
    candidates: list[dict[str, Any]],
    predictions: pd.DataFrame,
    classes: Classes | None,
) -> tables.Table | None:
    """List how far the procedure is above what it is held against; None where that is not kept."""
    path = run.path / CANDIDATES
    if not path.is_file() or predictions.empty:
        return None
    kept = run.candidates
    names = [one["name"] for one in candidates if one["role"] in HELD_AGAINST]
    others = {name: kept[kept["candidate"] == name] for name in names}
    others = {name: table for name, table in others.items() if len(table)}
    found = auroc_differences(predictions, others, run.dataset["label_names"], classes)
    return tables.table(
        pd.DataFrame(
            {
                "held against": found["other"],
                "AUROC of the procedure minus it (95% interval)": [
                    interval_text.with_interval(
                        row.difference, row.low, row.high, "+", missing=tables.MISSING
                    )
                    for row in found.itertuples()
                ],
                "note": found["note"].fillna(""),
            }
        )
    )
