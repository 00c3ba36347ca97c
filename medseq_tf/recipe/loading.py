"""Recipes from presets, YAML files and plain values, some of their values overridden."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import pydantic

from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.recipe.experiment import Experiment
from medseq_tf.recipe.model import KINDS, kind_of
from medseq_tf.recipe.settings import Settings, settings_in
from medseq_tf.recipe.yaml_text import DEEPEST, read_yaml, yaml_values


def presets() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("medseq_tf.recipe") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load(
    preset_or_file: str | os.PathLike | Experiment, overrides: Iterable[str] = ()
) -> Experiment:
    """Load a recipe and override some of its values.

    Args:
        preset_or_file: a preset's name (see `presets`), the path of a YAML file, or an
          `Experiment`.
        overrides: `dotted.key=value`, the value in YAML; `augment.rotation=null` switches one off.

    Returns:
        The validated `Experiment`.

    Raises:
        InputError: one line that names the key, its value and what would be valid.
    """
    return from_values(*plain_values(preset_or_file, overrides))


def plain_values(
    preset_or_file: str | os.PathLike | Experiment, overrides: Iterable[str] = ()
) -> tuple[dict[str, Any], str]:
    """Return a recipe's nested values with the overrides of `load`, not validated, and its name."""
    if isinstance(preset_or_file, Experiment):
        values, origin = preset_or_file.model_dump(mode="json"), preset_or_file.name
    else:
        values, origin = _read(preset_or_file)
    for override in sorted(overrides, key=_picks_a_kind, reverse=True):
        _apply_override(values, override)
    return values, origin


def from_values(values: dict[str, Any], origin: str = "recipe") -> Experiment:
    """Validate plain nested values; errors are one line that starts with `origin`."""
    try:
        return Experiment.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: {_one_line(error, values)}") from None


def _read(preset_or_file: str | os.PathLike) -> tuple[dict[str, Any], str]:
    name = os.fspath(preset_or_file)
    if name in presets():
        path = resources.files("medseq_tf.recipe") / "presets" / f"{name}.yaml"
        values = yaml_values(path.read_text("utf-8"), name)
    else:
        values = _read_file(name)
    if not isinstance(values, dict):
        raise InputError(f"{name}: holds no recipe; keys such as model: or fit: are expected")
    return values, name


def _read_file(name: str) -> Any:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise InputError(
            f"no preset is called {name!r}{did_you_mean(name, presets())}; presets: "
            f"{', '.join(presets())}; or give the path of a .yaml file"
        )
    try:
        return read_yaml(name, "recipe")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None


# ------------------------------------------------------------------------- overrides


def _picks_a_kind(override: str) -> bool:
    """Whether an override picks an encoder or aggregator, whose settings then can be set."""
    *location, last = override.partition("=")[0].strip().split(".")
    return location in KINDS and last == "name"


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Change one of a recipe's plain values in place."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: expected key=value, such as fit.epochs=30")
    *parents, last = key.strip().split(".")
    if len(parents) >= DEEPEST:
        raise InputError(f"--set {_short(override)}: no key lies more than {DEEPEST} levels deep")
    try:
        value = yaml_values(text, "")
    except InputError as error:
        problem = str(error).removeprefix(": not valid YAML at line 1: ")
        raise InputError(
            f"--set {_short(override)}: the value is not valid YAML ({problem})"
        ) from None
    node: Any = values
    for parent in parents:
        node = _step(node, parent, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
        return
    if _picks_a_kind(override) and kind_of(parents[-1], node.get(last)) != kind_of(
        parents[-1], value
    ):
        node.clear()  # another kind has other settings: it begins with its own defaults
    node[last] = value


def _step(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, key, override)]
    else:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"--set {override}: {key} is a single value and has no keys below it")
    return child


def _index(items: list, key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise InputError(f"--set {override}: {key} is no index of a list of {len(items)}")
    return int(key)


# -------------------------------------------------------------------- what is wrong


def _one_line(error: pydantic.ValidationError, values: dict[str, Any]) -> str:
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
            head = f"{key} = {_short(value)}" if present and not isinstance(value, dict) else key
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


def _short(value: Any) -> str:
    """Return a value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
