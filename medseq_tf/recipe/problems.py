"""What is wrong with a recipe, in one line."""

from __future__ import annotations

from typing import Any

import pydantic

from medseq_tf.errors import did_you_mean
from medseq_tf.recipe.experiment import Experiment
from medseq_tf.recipe.model import KINDS, kind_of
from medseq_tf.recipe.settings import Settings, settings_in


def one_line(error: pydantic.ValidationError, values: dict[str, Any]) -> str:
    """Return one line for the first thing that is wrong, and how many more there are."""
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        location, value, present = _locate(item["loc"], values)
        key = ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            valid = _keys_at(location[:-1], values)
            guess = did_you_mean(str(location[-1]), valid)
            problems.setdefault(f"unknown key {key}{guess}; valid: {', '.join(valid)}", [])
        else:
            if item["type"] == "unknown_kind":
                key, value, present = f"{key}.name", value["name"], True
            head = f"{key} = {short(value)}" if present and not isinstance(value, dict) else key
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            message = message.replace("less than or equal to", "at most")
            expected = "" if item["type"] in ("value_error", "unknown_kind") else "should be "
            problems.setdefault(head or "recipe", []).append(expected + message)
    first, messages = next(iter(problems.items()))
    line = first + (": " + ", or ".join(dict.fromkeys(messages)) if messages else "")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return line.replace("\n", " ") + more


def _locate(loc: tuple, values: Any) -> tuple[list, Any, bool]:
    """Follow an error's location as far as the user's own keys go (unions add their tags)."""
    location: list = []
    for part in loc:
        if location in KINDS and part not in (values if isinstance(values, dict) else ()):
            continue  # the tag of a union
        inside = isinstance(part, int) and isinstance(values, list) and part < len(values)
        if inside or (isinstance(values, dict) and part in values):
            values = values[part]
        elif isinstance(part, str) and isinstance(values, dict) and part.isidentifier():
            location.append(part)
            return location, None, False
        else:
            break
        location.append(part)
    return location, values, True


def _keys_at(location: list, values: Any) -> list[str]:
    """Return the valid keys of the settings group at a dotted location."""
    group: type[Settings] = Experiment
    for depth, part in enumerate(location):
        values = values[part]
        candidates = (
            settings_in(group.model_fields[part].annotation) if isinstance(part, str) else []
        )
        if location[: depth + 1] in KINDS:
            group = kind_of(part, values.get("name", "")) or candidates[0]
        elif candidates:
            group = candidates[0]
    return list(group.model_fields)


def short(value: Any) -> str:
    """Return a value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
