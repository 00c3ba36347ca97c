"""Overrides: single values of a recipe, given as `dotted.key=value`."""

from __future__ import annotations

from typing import Any

from medseq_tf.errors import InputError
from medseq_tf.recipe.model import KINDS, kind_of
from medseq_tf.recipe.problems import short
from medseq_tf.recipe.yaml_text import DEEPEST, yaml_values


def picks_a_kind(override: str) -> bool:
    """Whether an override picks an encoder or aggregator, whose settings then can be set."""
    *location, last = override.partition("=")[0].strip().split(".")
    return location in KINDS and last == "name"


def apply_override(values: dict[str, Any], override: str) -> None:
    """Change one of a recipe's plain values in place."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected key=value, such as fit.epochs=30")
    *parents, last = key.strip().split(".")
    if len(parents) >= DEEPEST:
        raise InputError(f"--set {short(override)}: no key lies more than {DEEPEST} levels deep")
    try:
        value = yaml_values(text, "")
    except InputError as error:
        problem = str(error).removeprefix(": not valid YAML at line 1: ")
        raise InputError(
            f"--set {short(override)}: the value is not valid YAML ({problem})"
        ) from None
    node: Any = values
    for parent in parents:
        node = _step(node, parent, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
        return
    if picks_a_kind(override) and kind_of(parents[-1], node.get(last)) != kind_of(
        parents[-1], value
    ):
        node.clear()  # another kind has other settings: it begins with its own defaults
    node[last] = value


def _step(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, part, override)]
    else:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"--set {override}: {part} is a single value and has no keys below it")
    return child


def _index(items: list, part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise InputError(f"--set {override}: {part} is no index of a list of {len(items)}")
    return int(part)
