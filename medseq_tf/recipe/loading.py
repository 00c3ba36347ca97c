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
from medseq_tf.recipe.overrides import apply_override, picks_a_kind
from medseq_tf.recipe.problems import one_line
from medseq_tf.recipe.yaml_text import read_yaml, yaml_values


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
    for override in sorted(overrides, key=picks_a_kind, reverse=True):
        apply_override(values, override)
    return values, origin


def from_values(values: dict[str, Any], origin: str = "recipe") -> Experiment:
    """Validate plain nested values; errors are one line that starts with `origin`."""
    try:
        return Experiment.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{origin}: {one_line(error, values)}") from None


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
