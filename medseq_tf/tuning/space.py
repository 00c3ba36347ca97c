"""Takes a YAML search space; gives a `Space`: which settings of a recipe vary, and over what.

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

import hashlib
import itertools
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.recipe import Experiment
from medseq_tf.recipe.yaml_text import read_yaml

METRICS = tuple(name for name in recipes.MONITORS if name != "loss")
"""What a search can aim at; losses of different recipes cannot be compared."""

Values = dict[str, Any]
"""A point of a space: the value of each active setting, by its name; of a choice, its label."""

_KEYS = ("name", "recipe", "set", "objective", "space")
_KINDS = ("choice", "int", "float")
_NOT_SEARCHED = ("name", "description", "split", "chosen")
_TRIES = 40
MOST_SETTINGS = 100
"""That vary in one space; no search of ours could tell the effects of so many apart."""
MOST_ALTERNATIVES = 200
"""Of one choice; each is checked against the recipe's schema."""
_MOST_CONTEXTS = 1000
MOST_REPEATS = 1000
"""Folds or divisions that score a trial, each of which is a training."""


@dataclass(frozen=True)
class Objective:
    """What a trial is scored by, over patients who are not its training's.

    Attributes:
        metric: one of `METRICS`; for several labels its mean.
        folds: patient-level folds, each held out in turn; None: none.
        repeats: how often the patients are divided into folds anew; without folds, how often some
          are held out at random; None: once, or not at all.
        validation: the score is that of the best epoch on the recipe's own validation split, which
          also chose the epoch. With none of the three, `tune` decides by the number of patients.
    """

    metric: str = "auroc"
    folds: int | None = None
    repeats: int | None = None
    validation: bool = False

    @property
    def is_decided(self) -> bool:
        """Whether it says on whom a trial is scored."""
        return bool(self.folds or self.repeats or self.validation)

    @property
    def direction(self) -> Literal["max", "min"]:
        """Which way is better."""
        return "min" if self.metric == "brier" else "max"

    def better(self, score: float, than: float) -> bool:
        """Whether one score is better than another."""
        return score > than if self.direction == "max" else score < than

    def __str__(self) -> str:
        if self.folds:
            again = f", {self.repeats} times" if (self.repeats or 1) > 1 else ""
            return f"{self.metric} over {self.folds} patient-level folds{again}"
        if self.repeats:
            return f"{self.metric} over {self.repeats} random divisions of the patients"
        return f"{self.metric} of the validation patients"


@dataclass(frozen=True)
class Setting:
    """A setting that varies, or a named bundle of several.

    Attributes:
        name: the recipe's dotted key, or a bundle's own name.
        kind: `choice` (also of a bundle), `int` or `float`.
        alternatives: of a choice: by label, the recipe's keys and values that it stands for.
        low: the smallest number.
        high: the largest number, included.
        log: numbers are drawn evenly on a logarithmic scale.
        step: distance between numbers, or None.
        when: labels of other settings under which this one is active; all must hold.
    """

    name: str
    kind: Literal["choice", "int", "float"]
    alternatives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The recipe's keys that it sets."""
        if self.kind != "choice":
            return {self.name}
        return {key for values in self.alternatives.values() for key in values}

    @property
    def ends(self) -> list[Any]:
        """Every alternative's label, or both bounds."""
        return list(self.alternatives) if self.kind == "choice" else [self.low, self.high]

    def is_active(self, values: Values) -> bool:
        """Whether its conditions hold at a point."""
        return all(values.get(name) in labels for name, labels in self.when.items())

    def settings(self, value: Any) -> Mapping[str, Any]:
        """Return the recipe's keys and values that a value of this setting stands for."""
        return self.alternatives[value] if self.kind == "choice" else {self.name: value}

    def sample(self, rng: random.Random) -> Any:
        """Draw a value."""
        if self.kind == "choice":
            return rng.choice(list(self.alternatives))
        if self.kind == "int":
            return rng.randint(int(self.low), int(self.high))
        return rng.uniform(self.low, self.high)


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
                given = fixed is not None and setting.name in fixed
                values[setting.name] = fixed[setting.name] if given else setting.sample(rng)
        return values

    @property
    def key(self) -> str:
        """SHA-256 of all that decides a trial but its values: searches are told apart by it."""
        base = self.base.model_copy(update={"chosen": []})  # says where it comes from, no more
        parts = [self.name, str(self.objective), base.to_yaml(), self.to_yaml("recipe")]
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
            "space": {setting.name: _plain(setting) for setting in self.settings},
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
        near = sorted(str(found) for found in path.parent.glob("*.yaml"))
        there = f"; there are {', '.join(near[:8])}" if near else ""
        raise InputError(f"{path}: cannot be read: {error.strerror}{there}") from None


def _space(content: Any, origin: str, folder: Path, overrides: list[str]) -> Space:
    if not isinstance(content, dict) or "space" not in content:
        raise InputError(f"{origin}: holds no search space; keys such as recipe: and space:")
    _known(content, _KEYS, origin)
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
        name: _setting(name, given, f"{origin}: space: {name}")
        for name, given in content["space"].items()
    }
    return Space(
        content["name"],
        recipe,
        base,
        _objective(content.get("objective"), origin),
        tuple(_sorted(settings, origin)),
    )


def _objective(content: Any, origin: str) -> Objective:
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"{origin}: objective should be such as {{metric: auroc, folds: 5}}")
    _known(content, ("metric", "folds", "repeats", "validation"), f"{origin}: objective")
    metric = content.get("metric", "auroc")
    if metric not in METRICS:
        hint = (
            "losses of different recipes cannot be compared, brier can; "
            if metric == "loss"
            else ""
        )
        raise InputError(
            f"{origin}: objective.metric = {metric!r}: {hint}one of {', '.join(METRICS)}"
        )
    for kind, least in (("folds", 2), ("repeats", 1)):
        count = content.get(kind)
        whole = isinstance(count, int) and not isinstance(count, bool)
        if count is not None and (not whole or count < least):
            raise InputError(
                f"{origin}: objective.{kind} = {count!r} should be a whole number of at least "
                f"{least}"
            )
        if whole and count > MOST_REPEATS:
            raise InputError(
                f"{origin}: objective.{kind} = {count} should be at most {MOST_REPEATS}; each is a "
                "training"
            )
    if (content.get("folds") or 1) * (content.get("repeats") or 1) > MOST_REPEATS:
        raise InputError(
            f"{origin}: objective.folds times objective.repeats should be at most {MOST_REPEATS}; "
            "each is a training"
        )
    validation = content.get("validation", False)
    if not isinstance(validation, bool):
        raise InputError(f"{origin}: objective.validation = {validation!r} should be true or false")
    if validation and (content.get("folds") or content.get("repeats")):
        raise InputError(
            f"{origin}: objective has validation beside folds or repeats; give one or the other"
        )
    return Objective(metric, content.get("folds"), content.get("repeats"), validation)


def _setting(name: Any, content: Any, where: str) -> Setting:
    if not isinstance(name, str):
        raise InputError(f"{where}: should be the recipe's dotted key, or a bundle's name")
    if not isinstance(content, dict) or sum(kind in content for kind in _KINDS) != 1:
        raise InputError(
            f"{where}: should be one of {{choice: [...]}}, {{int: [low, high]}} and "
            "{float: [low, high]}"
        )
    kind = next(kind for kind in _KINDS if kind in content)
    choice = content.get("choice")
    if isinstance(choice, list | dict) and len(choice) > MOST_ALTERNATIVES:
        raise InputError(
            f"{where}: choice has {len(choice)} alternatives; at most {MOST_ALTERNATIVES}"
        )
    _known(content, (kind, "when", *(("log", "step") if kind != "choice" else ())), where)
    if name.partition(".")[0] in _NOT_SEARCHED:
        raise InputError(
            f"{where}: cannot vary: all trials are scored on the same patients"
            if name.startswith("split")
            else f"{where}: says nothing of the training, so it cannot vary"
        )
    when = _conditions(content.get("when"), where)
    if kind == "choice":
        return Setting(name, kind, _alternatives(name, content["choice"], where), when=when)
    return Setting(name, kind, **_bounds(kind, content, where), when=when)


def _alternatives(name: str, choice: Any, where: str) -> dict[str, dict[str, Any]]:
    if isinstance(choice, dict) and choice:
        return _bundle(name, choice, where)
    if not isinstance(choice, list) or not choice:
        raise InputError(f"{where}: choice is empty; list at least one value")
    labels = [_label(value) for value in choice]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: {twice} stands twice among its choices")
    return {label: {name: value} for label, value in zip(labels, choice, strict=True)}


def _bundle(name: str, choice: dict[Any, Any], where: str) -> dict[str, dict[str, Any]]:
    if "." in name or name in Experiment.model_fields:
        raise InputError(
            f"{where}: a choice of named bundles needs a name of its own, which no setting of the "
            "recipe has; for a setting, list its values"
        )
    for label, values in choice.items():
        if not isinstance(label, str):
            raise InputError(
                f"{where}: the label {label!r} is no text; put it in quotes (YAML reads on, off, "
                "yes, no and numbers as values)"
            )
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise InputError(f"{where}: {label} should map dotted keys of the recipe to values")
        fixed = [key for key in values if key.partition(".")[0] in _NOT_SEARCHED]
        if fixed:
            raise InputError(f"{where}: {label}: {fixed[0]} cannot vary")
    return choice


def _bounds(kind: str, content: dict[str, Any], where: str) -> dict[str, Any]:
    bounds, log, step = content[kind], content.get("log", False), content.get("step")
    expected = int if kind == "int" else (int, float)
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise InputError(f"{where}: {kind} should be [low, high], got {bounds!r}")
    numbers = bounds if step is None else [*bounds, step]
    for number in numbers:
        if not isinstance(number, expected) or isinstance(number, bool):
            hint = (
                "; YAML wants a point in it, such as 1.0e-4" if _looks_like_number(number) else ""
            )
            article = "a whole number" if kind == "int" else "a number"
            raise InputError(f"{where}: {number!r} is not {article}{hint}")
    low, high = bounds
    if low >= high:
        raise InputError(f"{where}: the lower bound {low} should be below the upper bound {high}")
    if not isinstance(log, bool):
        raise InputError(f"{where}: log = {log!r} should be true or false")
    if log and low <= 0:
        raise InputError(f"{where}: log needs bounds above 0, got {low}")
    if step is not None and (step <= 1 if log else step <= 0):
        least = "above 1 (it multiplies)" if log else "above 0"
        raise InputError(f"{where}: step = {step} should be {least}")
    if kind == "float":
        low, high = float(low), float(high)
    return {"low": low, "high": high, "log": log, "step": step}


def _looks_like_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(float(value) or True)
    except ValueError:
        return False


def _conditions(content: Any, where: str) -> dict[str, tuple[str, ...]]:
    if content is None:
        return {}
    if not isinstance(content, dict) or not content:
        raise InputError(f"{where}: when should be such as {{model.aggregator.name: [lstm, gru]}}")
    return {
        name: tuple(_label(value) for value in (given if isinstance(given, list) else [given]))
        for name, given in content.items()
    }


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
    waiting, done = list(settings.values()), set()
    while waiting:
        ready = [setting for setting in waiting if done >= set(setting.when)]
        if not ready:
            circle = ", ".join(setting.name for setting in waiting)
            raise InputError(f"{origin}: space: the conditions of {circle} depend on each other")
        yield from ready
        done |= {setting.name for setting in ready}
        waiting = [setting for setting in waiting if setting.name not in done]


def _known(content: dict[Any, Any], valid: Iterable[str], where: str) -> None:
    unknown = [key for key in content if key not in valid]
    if unknown:
        guess = did_you_mean(str(unknown[0]), valid)
        raise InputError(f"{where}: unknown key {unknown[0]}{guess}; valid: {', '.join(valid)}")


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
        first[other.name] = _joined([*(first[name] for name in own), own])
    every = itertools.product(*setting.when.values())
    for labels in itertools.islice(every, _MOST_CONTEXTS):
        own = dict(zip(setting.when, labels, strict=True))
        yield _joined([*(first[name] for name in own), own])


def _joined(parts: list[Values]) -> Values:
    context: Values = {}
    for part in parts:
        context |= part
    return context


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
        found = error.errors(include_url=False, include_input=False, include_context=False)
        if any(_is_of(item, key) for item in found for key in keys):
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


# ---------------------------------------------------------------------------------------- words


def _label(value: Any) -> str:
    """Return what a choice is called in tables: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _plain(setting: Setting) -> dict[str, Any]:
    if setting.kind != "choice":
        content: dict[str, Any] = {setting.kind: [setting.low, setting.high]}
        if setting.log:
            content["log"] = True
        if setting.step is not None:
            content["step"] = setting.step
    elif "." in setting.name or setting.keys == {setting.name}:
        content = {"choice": [values[setting.name] for values in setting.alternatives.values()]}
    else:
        content = {"choice": {label: dict(v) for label, v in setting.alternatives.items()}}
    if setting.when:
        content["when"] = {name: list(labels) for name, labels in setting.when.items()}
    return content


def _own_words(error: InputError) -> str:
    """Leave out that an override is spelled --set on the command line."""
    return str(error).removeprefix("--set ")
