"""A search space: which settings of a recipe vary, and over what, read from YAML.

    name: fsm_bilstm                       # of the search
    recipe: fsm_bilstm                     # a preset, or a file beside the space's
    set: [fit.epochs=15]                   # fixed for all trials
    objective: {metric: auroc, folds: 5}   # also repeats: 3; repeats alone: divisions at random;
                                           # validation: true: one split. None: see `tune`
    space:
      sequence.length: {choice: [5, 10, 15]}
      optimizer.learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
      model.aggregator.name: {choice: [lstm, gru, attention]}
      model.aggregator.layers: {int: [1, 3], when: {model.aggregator.name: [lstm, gru]}}
      network:                             # a name of one's own: several settings that go together
        choice:
          small: {model.encoder.filters: [8, 16, 24], model.head.units: [16]}
          large: {model.encoder.filters: [32, 48, 64], model.head.units: [64]}

Everything is checked against the recipe's schema before a trial starts. What is impossible only in
some combinations is left to the trial that meets it. No TensorFlow is imported here.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic
import yaml

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.recipe import Experiment
from medseq_tf.recipe.yaml_text import read_yaml
from medseq_tf.tuning.settings import (
    Objective,
    Setting,
    Values,
    check_keys,
    parse_objective,
    parse_setting,
    plain_setting,
)

_KEYS = ("name", "recipe", "set", "objective", "space")
_TRIES = 40
MOST_SETTINGS = 100
"""That vary in one space; no search of ours could tell the effects of so many apart."""
_MOST_CONTEXTS = 1000


@dataclass(frozen=True)
class Space:
    """A recipe and the settings of it that a search varies.

    Attributes:
        name: of the search.
        recipe: what `recipes.load` was given.
        base: the recipe with what is fixed for all trials.
        objective: what a trial is scored by.
        settings: those that vary; a setting stands after those that it depends on.
    """

    name: str
    recipe: str
    base: Experiment
    objective: Objective
    settings: tuple[Setting, ...]

    @classmethod
    def load(
        cls, space: str | os.PathLike | Mapping[str, Any] | Space, overrides: Iterable[str] = ()
    ) -> Space:
        """Read and check a search space.

        Args:
            space: the path of a YAML file, or its content.
            overrides: `dotted.key=value`, fixed for all trials, after those of the space.

        Raises:
            InputError: one line that names the key, its value and what would be valid.
        """
        if isinstance(space, Space):
            return replace(space, base=recipes.load(space.base, overrides))
        content, origin, folder = _read(space)
        made = _space(content, origin, folder, list(overrides))
        _check(made, origin)
        return made

    def overrides(self, values: Values) -> list[str]:
        """Return a point as the overrides of `recipes.load`."""
        return [
            f"{key}={_yaml(value)}"
            for setting in self.settings
            if setting.name in values
            for key, value in setting.settings(values[setting.name]).items()
        ]

    def experiment(self, values: Values) -> Experiment:
        """Return the recipe at a point.

        Raises:
            InputError: the settings are impossible together.
        """
        try:
            return recipes.load(self.base, self.overrides(values))
        except InputError as error:
            raise InputError(_own_words(error)) from None

    def sample(self, rng: random.Random, fixed: Values | None = None) -> Values:
        """Draw a point at random, some of its values given."""
        values: Values = {}
        for setting in self.settings:
            if setting.is_active(values):
                value = (fixed or {}).get(setting.name)
                values[setting.name] = setting.sample(rng) if value is None else value
        return values

    @property
    def key(self) -> str:
        """SHA-256 of all that decides a trial but its values: searches are told apart by it."""
        base = self.base.model_copy(update={"chosen": []})  # says where it comes from, no more
        parts = [
            self.name,
            str(self.objective),
            base.to_yaml(identity=True),
            self.to_yaml("recipe"),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_yaml(self, recipe: str) -> str:
        """Return the space as YAML that `load` reads, `base` being the recipe of that name."""
        objective = {"metric": self.objective.metric}
        for kind in ("folds", "repeats", "validation"):
            if count := getattr(self.objective, kind):
                objective[kind] = count
        content = {
            "name": self.name,
            "recipe": recipe,
            "objective": objective,
            "space": {setting.name: plain_setting(setting) for setting in self.settings},
        }
        return yaml.safe_dump(content, sort_keys=False, width=100)


# ------------------------------------------------------------------------------------ reading


def _read(space: str | os.PathLike | Mapping[str, Any]) -> tuple[Any, str, Path]:
    if isinstance(space, Mapping):
        return dict(space), str(space.get("name", "space")), Path()
    path = Path(space)
    try:
        return read_yaml(path, "search space"), str(path), path.parent
    except OSError as error:
        near = sorted(map(str, path.parent.glob("*.yaml")))[:8]
        hint = f"; there are {', '.join(near)}" if near else ""
        raise InputError(f"{path}: cannot be read: {error.strerror}{hint}") from None


def _space(content: Any, origin: str, folder: Path, overrides: list[str]) -> Space:
    if not isinstance(content, dict) or "space" not in content:
        raise InputError(f"{origin}: holds no search space; keys such as recipe: and space:")
    check_keys(content, _KEYS, origin)
    for needed in ("name", "recipe"):
        if not isinstance(content.get(needed), str):
            raise InputError(f"{origin}: {needed} is missing; give the search a {needed}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", content["name"]):
        raise InputError(
            f"{origin}: name = {content['name']!r} should be letters, digits, '_', '.' or '-'"
        )
    fixed = content.get("set") or []
    if not isinstance(fixed, list) or not all(isinstance(item, str) for item in fixed):
        raise InputError(f"{origin}: set should be a list of key=value, such as [fit.epochs=15]")
    recipe = content["recipe"]
    if recipe not in recipes.presets() and (folder / recipe).is_file():
        recipe = str(folder / recipe)
    try:
        base = recipes.load(recipe, [*fixed, *overrides])
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    if not isinstance(content["space"], dict) or not content["space"]:
        raise InputError(f"{origin}: space should map at least one setting to what it can be")
    if len(content["space"]) > MOST_SETTINGS:
        raise InputError(
            f"{origin}: space has {len(content['space'])} settings; at most {MOST_SETTINGS}"
        )
    settings = {
        name: parse_setting(name, values, f"{origin}: space: {name}")
        for name, values in content["space"].items()
    }
    return Space(
        content["name"],
        recipe,
        base,
        parse_objective(content.get("objective"), origin),
        tuple(_sorted(settings, origin)),
    )


def _sorted(settings: dict[str, Setting], origin: str) -> Iterator[Setting]:
    """Yield the settings, each after those that it depends on."""
    for setting in settings.values():
        where = f"{origin}: space: {setting.name}: when"
        for name, labels in setting.when.items():
            if name not in settings:
                guess = did_you_mean(str(name), settings)
                raise InputError(f"{where}: {name} does not vary in this space{guess}")
            parent = settings[name]
            if parent.kind != "choice":
                raise InputError(f"{where}: {name} is a range; only a choice can be a condition")
            unknown = [label for label in labels if label not in parent.alternatives]
            if unknown or not labels:
                raise InputError(
                    f"{where}: {name} is never {', '.join(unknown) or 'nothing'}; it is one of "
                    f"{', '.join(parent.alternatives)}"
                )
    waiting, done = list(settings.values()), set[str]()
    while waiting:
        ready = [setting for setting in waiting if done >= set(setting.when)]
        if not ready:
            circle = ", ".join(setting.name for setting in waiting)
            raise InputError(f"{origin}: space: the conditions of {circle} depend on each other")
        yield from ready
        done |= {setting.name for setting in ready}
        waiting = [setting for setting in waiting if setting.name not in done]


# ----------------------------------------------------------------- checking against the recipe


def _check(space: Space, origin: str) -> None:
    """Raise an InputError for a setting, or a value of one, that no trial could ever use."""
    owners: dict[str, str] = {}
    for setting in space.settings:
        for key in setting.keys:
            if owners.setdefault(key, setting.name) != setting.name:
                raise InputError(
                    f"{origin}: space: {key} is set by {owners[key]} and by {setting.name}; one of "
                    "them would be without effect"
                )
    rng = random.Random(0)
    for setting in space.settings:
        for context in _contexts(space, setting):
            for value in setting.ends:
                _check_value(space, setting, {**context, setting.name: value}, origin)
    for setting in space.settings:
        for value in setting.ends:
            _check_possible(space, setting, value, rng, origin)


def _contexts(space: Space, setting: Setting) -> Iterator[Values]:
    """Yield what other settings have to be for this one to be active: every combination."""
    first: dict[str, Values] = {}  # of each setting, those that it depends on before it
    for other in space.settings:
        own = {name: labels[0] for name, labels in other.when.items()}
        first[other.name] = _joined(own, first)
    every = itertools.product(*setting.when.values())
    for labels in itertools.islice(every, _MOST_CONTEXTS):
        own = dict(zip(setting.when, labels, strict=True))
        yield _joined(own, first)


def _joined(own: Values, first: Mapping[str, Values]) -> Values:
    """Return values and, before them, those that the settings they belong to depend on."""
    return functools.reduce(operator.or_, [*(first[name] for name in own), own], {})


def _check_value(space: Space, setting: Setting, point: Values, origin: str) -> None:
    """Raise for an unknown key, or a value that the recipe's schema never allows for its key."""
    where = f"{origin}: space: {setting.name}"
    try:
        values, _ = recipes.plain_values(space.base, space.overrides(point))
    except InputError as error:
        raise InputError(f"{where}: {_own_words(error)}") from None
    try:
        Experiment.model_validate(values)
    except pydantic.ValidationError as error:
        keys = [key.split(".") for key in setting.settings(point[setting.name])]
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if any(_is_of(problem, key) for problem in problems for key in keys):
            raise InputError(f"{where}: {_reason(values)}{_hint(space, setting)}") from None


def _is_of(error: Mapping[str, Any], key: list[str]) -> bool:
    """Whether an error lies with a key, not with what it is combined with."""
    location = [str(part) for part in error["loc"]]
    if location[:2] in recipes.KINDS and len(location) > 2:
        del location[2]  # the tag of a union
    if error["type"] == "extra_forbidden":
        return location == key[: len(location)]
    if error["type"] == "unknown_kind":
        location.append("name")
    return location[: len(key)] == key


def _hint(space: Space, setting: Setting) -> str:
    """Say what may be missing where a setting belongs to one kind of encoder or aggregator."""
    varied = {other.name for other in space.settings}
    for kind in recipes.KINDS:
        name = ".".join([*kind, "name"])
        inside = any(key.split(".")[:2] == kind for key in setting.keys)
        if inside and name in varied and name not in setting.when and setting.name != name:
            return f"; is a when: {{{name}: ...}} missing?"
    return ""


def _check_possible(
    space: Space, setting: Setting, value: Any, rng: random.Random, origin: str
) -> None:
    """Raise where none of many random combinations with a value makes a recipe."""
    contexts = list(_contexts(space, setting))
    reason = ""
    for _ in range(_TRIES):
        fixed = {**rng.choice(contexts), setting.name: value}
        try:
            space.experiment(space.sample(rng, fixed))
        except InputError as error:
            reason = str(error)
        else:
            return
    raise InputError(
        f"{origin}: space: {setting.name} = {value} is possible in no combination, such as: "
        f"{reason}"
    )


def _reason(values: dict[str, Any]) -> str:
    try:
        recipes.from_values(values, "")
    except InputError as error:
        return str(error).removeprefix(": ")
    raise AssertionError("the values were found invalid")


def _yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _own_words(error: InputError) -> str:
    """Leave out that an override is spelled --set on the command line."""
    return str(error).removeprefix("--set ")
