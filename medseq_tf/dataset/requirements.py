"""Requirements: whether a data set is prepared as a recipe needs it.

A recipe's `requires` is compared with what `prepare` wrote into `dataset.json`. What differs is an
error, one line that names the options to prepare again with; what a data set does not say of
itself, such as one of version 0.1.0, is a note.
"""

from __future__ import annotations

from typing import Any

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError, printable
from medseq_tf.readers.orientation import PLANES
from medseq_tf.recipe import Experiment

CUT_ALONG_AN_AXIS = ("volumes", "atlas")


def check_requirements(recipe: Experiment, prepared: Prepared) -> list[str]:
    """Return what a user should know of a recipe on a data set, a line each.

    Raises:
        InputError: the data set lacks what the recipe needs; it says what to prepare again with.
    """
    needs = recipe.requires
    stored = reading(prepared.info)
    wrong, options, unknown = [], [], []
    for name in ("axis", "size", "modality", "unit", "aspect"):
        wanted, has = getattr(needs, name), stored[name]
        if wanted is None:
            continue
        any_of = wanted if isinstance(wanted, list) else [wanted]
        words = f"{name} {' or '.join(map(str, any_of))}"
        if has is None or (name == "axis" and (has in PLANES) != (wanted in PLANES)):
            unknown.append(words)
        elif has not in any_of:
            wrong.append(f"{words} (it has {printable(has)})")
            options += [f"--{name} {any_of[0]}"] if name != "unit" else []
    classes, count = prepared.classes, len(prepared.label_names)
    if needs.labels is not None and (classes or needs.labels != count):
        has = f"{count} classes of {printable(classes.column)}" if classes else str(count)
        wrong.append(f"{_labels(needs.labels)} (it has {has})")
        options.append("--column NAME")
    lacks_masks = needs.masks and not has_masks(prepared)
    if lacks_masks:
        wrong.append("lesion masks (it has none; the readers atlas and demo store them)")
    if wrong:
        again = f"; prepare it again with {' '.join(options)}" if options else ""
        if not (lacks_masks and recipe.segments):  # from which alone a segmenter learns
            again += " (--set requires=null trains all the same)"
        raise InputError(f"{prepared.path}: {recipe.name} needs {', '.join(wrong)}{again}")
    notes = []
    if stored["size"] < recipe.input.size:
        notes.append(
            f"{prepared.path}: its slices of {stored['size']} pixels are enlarged to the recipe's "
            f"{recipe.input.size}; prepare with --size {recipe.input.size} keeps more of them"
        )
    if unknown:
        notes.append(
            f"{prepared.path}: {recipe.name} needs {', '.join(unknown)}, and the data set does not "
            "say what it has"
        )
    return notes


def reading(info: dict[str, Any]) -> dict[str, Any]:
    """Return what a data set says of how it was read and stored; None for what it does not say.

    Args:
        info: its `dataset.json`.

    Returns:
        `modality`, `unit`, `size`, `aspect`, `axis` (of volumes) and `spacing`.
    """
    preparation = info["preparation"]
    settled = {**(preparation.get("options") or {}), **(preparation.get("resolved") or {})}
    is_cut = preparation.get("reader") in CUT_ALONG_AN_AXIS
    return {
        "modality": info.get("modality"),
        "unit": info.get("unit"),
        "size": info.get("size"),
        "aspect": preparation.get("aspect"),
        "axis": settled.get("axis") if is_cut else None,
        "spacing": (settled["spacing"] or "as acquired") if "spacing" in settled else None,
    }


def _labels(count: int) -> str:
    return "1 label" if count == 1 else f"{count} labels"


def has_masks(prepared: Prepared) -> bool:
    """Whether any study has lesion masks."""
    return any(prepared.masks(row, [0]) is not None for row in range(len(prepared)))
