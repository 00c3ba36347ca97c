"""The settings of a search space and its objective: what varies, over what, and what is scored."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.recipe import Experiment

METRICS = tuple(name for name in recipes.MONITORS if name != "loss")
"""What a search can aim at; losses of different recipes cannot be compared."""

Values = dict[str, Any]
"""A point of a space: the value of each active setting, by its name; of a choice, its label."""

Kind = Literal["choice", "int", "float"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_NOT_SEARCHED = ("name", "description", "split", "chosen")
MOST_ALTERNATIVES = 200
"""Of one choice; each is checked against the recipe's schema."""
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
        return "min" if self.metric in recipes.MINIMISED else "max"

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
    kind: Kind
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


# ------------------------------------------------------------------------------------ reading


def parse_objective(content: Any, origin: str) -> Objective:
    """Read the objective of a space file; an InputError names the key and what would be valid."""
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"{origin}: objective should be such as {{metric: auroc, folds: 5}}")
    check_keys(content, ("metric", "folds", "repeats", "validation"), f"{origin}: objective")
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
        if count is None:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise InputError(
                f"{origin}: objective.{kind} = {count!r} should be a whole number of at least "
                f"{least}"
            )
        if count > MOST_REPEATS:
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


def parse_setting(name: Any, content: Any, where: str) -> Setting:
    """Read one setting of a space file; an InputError names the key and what would be valid."""
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
    check_keys(content, (kind, "when", *(("log", "step") if kind != "choice" else ())), where)
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
    labels = [choice_label(value) for value in choice]
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
        name: tuple(
            choice_label(value) for value in (values if isinstance(values, list) else [values])
        )
        for name, values in content.items()
    }


def check_keys(content: dict[Any, Any], valid: Iterable[str], where: str) -> None:
    """Raise an InputError for a key that is not among the valid ones."""
    unknown = [key for key in content if key not in valid]
    if unknown:
        guess = did_you_mean(str(unknown[0]), valid)
        raise InputError(f"{where}: unknown key {unknown[0]}{guess}; valid: {', '.join(valid)}")


def choice_label(value: Any) -> str:
    """Return what a choice is called in tables: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def plain_setting(setting: Setting) -> dict[str, Any]:
    """Return a setting as a space file holds it."""
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
