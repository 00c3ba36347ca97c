"""Selection: which figures are of patients who took part in a choice.

Validation studies choose the epoch, the threshold and the temperature; a search's patients choose
the recipe. A figure of patients who took part in a choice is too good, by an amount that no
interval knows: it is labelled, and has none.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from medseq_tf.readers.classes import Classes
from medseq_tf.recipe import Chosen, Experiment

LABEL = "used for selection"
NESTED = "`medseq-tf tune SPACE.yaml --data DIR --nested 5` gives a figure that is not"

_BOUNDS = ("low", "high")
_INTERVAL = (*_BOUNDS, *(f"{when}_{end}" for when in ("before", "after") for end in _BOUNDS))
_TESTS = ("p", "p_adjusted")


def of_validation(classes: Classes | None = None) -> str:
    """Return what to say of validation's figures; classes have no threshold to choose."""
    chosen = "the epoch, the threshold and the temperature"
    if classes:
        chosen = "the epoch and the temperature"
    return (
        f"{LABEL}: {chosen} were chosen on the validation studies, so their figures are too good "
        "and have no interval"
    )


def patient_keys(studies: pd.DataFrame) -> set[str]:
    """Return short hashes by which the patients of some studies are known again."""
    return {*studies["patient_id"].map(_key), *studies["content_hash"].map(_key)}


def chosen_on(recipe: Experiment, studies: pd.DataFrame) -> tuple[int, int, Chosen | None]:
    """Return on how many of some patients a recipe was chosen, of how many, and the last choice.

    A patient is known again by the salted id, which another preparation of the same source keeps,
    or by the content of a study.
    """
    patients, took_part, last = studies["patient_id"], np.zeros(len(studies), bool), None
    for choice in recipe.chosen:
        known = set(choice.patients.split())
        inside = patients.map(_key).isin(known) | studies["content_hash"].map(_key).isin(known)
        if inside.any():
            took_part, last = took_part | inside.to_numpy(), choice
    return patients[took_part].nunique(), patients.nunique(), last


def note(recipe: Experiment, studies: pd.DataFrame) -> str:
    """Return what to say of a recipe's figures over some studies; empty where all is well."""
    count, of, choice = chosen_on(recipe, studies)
    if choice is None:
        return ""
    score = f": {choice.score}" if choice.score else ""
    return (
        f"{LABEL}: the recipe was chosen on {count} of these {of} patients ({choice.by}{score}), "
        f"so this figure is too good and has no interval; {NESTED}"
    )


def origins(recipe: Experiment) -> list[str]:
    """Return where a recipe comes from, a line a choice."""
    return [
        f"the recipe was chosen on {choice.cohort} ({choice.by}"
        + (f": {choice.score}" if choice.score else "")
        + "); its figures on those patients are too good"
        for choice in recipe.chosen
    ]


def _key(value: str) -> str:
    return hashlib.sha256(str(value).encode("utf-8", "backslashreplace")).hexdigest()[:10]


def without_intervals(table: pd.DataFrame, rows: np.ndarray | pd.Series, why: str) -> pd.DataFrame:
    """Return a table of figures, some of its rows without interval and p and with a note more."""
    rows = np.asarray(rows, bool)
    if not rows.any():
        return table
    table = table.copy()
    for name in (*_INTERVAL, *_TESTS):
        if name in table:
            table.loc[rows, name] = np.nan
    for name in ("interval", "method"):
        if name in table:
            table[name] = table[name].mask(rows, "")
    notes = table["note"].fillna("").astype(str)
    missing = rows & ~notes.str.contains(why, regex=False).to_numpy()
    table["note"] = notes.where(
        ~missing, notes.map(lambda text: "; ".join(filter(None, (text, why))))
    )
    return table


def noted_in(table: pd.DataFrame) -> str:
    """Return what the notes of a table of figures say of selection; nothing where none do."""
    notes = table["note"].fillna("").astype(str) if len(table) else pd.Series([], dtype=str)
    return next((text[text.index(LABEL) :] for text in notes if LABEL in text), "")


def labelled(table: pd.DataFrame, classes: Classes | None = None) -> pd.DataFrame:
    """Return a table of figures by `split`: validation's last, labelled, without interval."""
    if "split" not in table or not len(table):
        return table
    validation = table["split"] == "validation"
    if "value" in table:  # notes on an interval have nothing left to speak of
        table = table.assign(note=table["note"].mask(validation & table["value"].notna(), ""))
    table = without_intervals(table, validation, of_validation(classes))
    order = np.argsort((table["split"] == "validation").to_numpy(), kind="stable")
    return table.iloc[order].reset_index(drop=True)
