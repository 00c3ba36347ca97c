"""KerasTuner's oracles, with a state that survives a kill.

They choose the points: at random, by Bayesian optimisation, by Hyperband or on a
grid. Their state is written whole after every change, so that a search that was killed at any
moment goes on where it was; a trial that was in flight is handed out again.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from keras_tuner import HyperParameters, Objective, Oracle, oracles
from keras_tuner.engine import hyperparameters
from keras_tuner.src.engine.conditions import Parent
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from medseq_tf.files import write_json
from medseq_tf.tuning.settings import Setting, Values
from medseq_tf.tuning.space import Space

TUNERS = ("bayesian", "random", "hyperband", "grid")
HYPERBAND_FACTOR = 3
NOISE = 1e-2
"""Variance of a score's noise as a share of the variance of all scores: folds of a few dozen
patients are far from exact."""
CANDIDATES = 1000
"""Points of each kind among which Bayesian optimisation chooses."""


# -------------------------------------------------------------------------------- the space


def hyperparameters_of(space: Space) -> HyperParameters:
    """Return KerasTuner's view of a space, with all its conditions declared up front.

    Choices go by their labels. What is the recipe's own value, where it is among the alternatives,
    is the default, which a grid tries first.
    """
    declared = HyperParameters()
    recipe = space.base.flat()
    for setting in space.settings:
        declared.merge([_hyperparameter(setting, recipe)])
    return declared


def _hyperparameter(setting: Setting, recipe: dict[str, Any]) -> Any:
    common = {
        "name": setting.name,
        "conditions": [Parent(name, list(labels)) for name, labels in setting.when.items()],
    }
    if setting.kind == "choice":
        alternatives = setting.alternatives.items()
        own_labels = (
            label
            for label, values in alternatives
            if all(key in recipe and recipe[key] == value for key, value in values.items())
        )
        labels = list(setting.alternatives)
        return hyperparameters.Choice(values=labels, default=next(own_labels, labels[0]), **common)
    kind = hyperparameters.Int if setting.kind == "int" else hyperparameters.Float
    own = recipe.get(setting.name)
    number = float(own) if isinstance(own, int | float) else math.nan
    inside = setting.low <= number <= setting.high
    step = 1 if setting.kind == "int" and not setting.log and not setting.step else setting.step
    on_grid = step is None or (inside and not setting.log and (number - setting.low) % step == 0)
    return kind(
        min_value=setting.low,
        max_value=setting.high,
        step=step,
        sampling="log" if setting.log else "linear",
        default=own if inside and on_grid else None,
        **common,
    )


# ------------------------------------------------------------------------------- the oracles


class _Durable(Oracle):
    """An oracle whose files are written whole, and that forgets a trial it had half begun.

    Numbers are rounded to three digits: finer differences are noise, and a table of them reads ill.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        found = super().populate_space(trial_id)
        if found.get("values"):
            found["values"] = self._rounded(found["values"])
        return found

    def _rounded(self, values: Values) -> Values:
        ranges = {hp.name: hp for hp in self.hyperparameters.space if hasattr(hp, "min_value")}

        def rounded(name: str, value: Any) -> Any:
            if not isinstance(value, float) or name not in ranges or ranges[name].step is not None:
                return value
            return min(max(float(f"{value:.3g}"), ranges[name].min_value), ranges[name].max_value)

        return {name: rounded(name, value) for name, value in values.items()}

    def save(self) -> None:
        write_json(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def reload(self) -> None:
        super().reload()
        self.trials: dict[str, Any] = {name: self.trials[name] for name in self.start_order}


class RandomOracle(_Durable, oracles.RandomSearchOracle):
    """Points drawn at random, none twice."""


class BayesianOracle(_Durable, oracles.BayesianOptimizationOracle):
    """KerasTuner's Gaussian process and confidence bound, asked about many points at once.

    KerasTuner looks for the best bound with 50 gradient descents, whose gradients are differences:
    seconds to minutes a trial, and of no use along choices. Here it is the best of many points, at
    random and near the best that are known. What is drawn depends on the seed and on the number of
    trials alone, so a search that was stopped draws as if it had not been.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of the next trial: the best bound among many points."""
        completed = [t for t in self.trials.values() if t.status == "COMPLETED"]
        if len(completed) < self.num_initial_points:
            return super().populate_space(trial_id)
        rng = np.random.default_rng([self.seed, len(self.trials)])
        with threadpool_limits(1), warnings.catch_warnings():  # small matrices: threads cost more
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound
            x, y = self._known(completed)
            points = [self._rounded(self._point(vector)) for vector in self._candidates(x, y, rng)]
            mean, sd = self.gpr.predict(np.array([*map(self._vector, points)]), return_std=True)
        for i in np.argsort(mean - self.beta * sd, kind="stable"):
            if not self._duplicate(points[i]):
                return {"status": "RUNNING", "values": points[i]}
        return super()._random_populate_space()

    def _known(self, completed: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Fit the process; return points and scores, the smaller the better.

        A trial that still runs stands there with what is expected of it, on the dark side, so that
        another worker is sent elsewhere.
        """
        sign = -1.0 if self.objective.direction == "max" else 1.0
        x = np.array([self._vector(trial.hyperparameters.values) for trial in completed])
        y = np.array([sign * trial.score for trial in completed])
        self.gpr.fit(x, y)
        running = [trial.hyperparameters.values for trial in self.ongoing_trials.values()]
        if running:
            there = np.array([self._vector(values) for values in running])
            mean, sd = self.gpr.predict(there, return_std=True)
            x, y = np.concatenate([x, there]), np.concatenate([y, mean + sd])
            self.gpr.fit(x, y)
        return x, y

    def _candidates(self, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return points of the unit cube, anywhere and near the five best: `(points, settings)`."""
        anywhere = rng.random((CANDIDATES, x.shape[1]))
        best = x[np.argsort(y, kind="stable")[:5]]
        near = best[rng.integers(len(best), size=CANDIDATES)]
        near = np.clip(near + rng.normal(0, 0.1, near.shape), 0, 1)
        redrawn = rng.random(near.shape) < 1 / x.shape[1]
        return np.concatenate([anywhere, np.where(redrawn, rng.random(near.shape), near)])

    def _point(self, vector: np.ndarray) -> Values:
        """Return the active settings at a point of the unit cube."""
        values: Values = {}
        for hp, share in zip(self.hyperparameters.space, vector, strict=True):
            if all(condition.is_active(values) for condition in hp.conditions):
                values[hp.name] = hp.prob_to_value(float(share))
        return values

    def _vector(self, values: Values) -> np.ndarray:
        """Return a point of the unit cube; a setting that is not active stands at its default."""
        return np.array(
            [hp.value_to_prob(values.get(hp.name, hp.default)) for hp in self.hyperparameters.space]
        )


class HyperbandOracle(_Durable, oracles.HyperbandOracle):
    """Many trials of few epochs, the best of them again with more."""


class GridOracle(_Durable, oracles.GridSearchOracle):
    """Every combination; a range without a step counts as ten values, unrounded."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of the next trial, as they stand on the grid.

        KerasTuner looks for the one after it when the trial has ended, lest it find new settings.
        Here all are known, so that many trials may run at once.
        """
        found = oracles.GridSearchOracle.populate_space(self, trial_id)
        if found["status"] == "RUNNING":
            self._populate_next.append(trial_id)
        return found

    def get_state(self) -> dict[str, Any]:
        """Return what a file keeps, the order of the combinations included."""
        # KerasTuner keeps the order of the combinations in memory only.
        return super().get_state() | {
            "ordered": self._in_order(),
            "populate_next": list(self._populate_next),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up a state, the order of the combinations included."""
        super().set_state(state)
        for name in state["ordered"]:
            self._ordered_ids.insert(name)
        self._populate_next = list(state["populate_next"])

    def _in_order(self) -> list[str]:
        links, found = self._ordered_ids, []
        index = links._next_index.get(None)
        while index is not None:
            found.append(links._memory[index])
            index = links._next_index.get(index)
        return found


def make_oracle(space: Space, tuner: str, seed: int, trials: int | None) -> Any:
    """Return the oracle of a tuner, one of `TUNERS`, over a space."""
    common = {
        "objective": Objective(space.objective.metric, space.objective.direction),
        "hyperparameters": hyperparameters_of(space),
        "seed": seed + 1,  # KerasTuner takes 0 for none
        "max_consecutive_failed_trials": 10**9,  # reaching it would leave its lock taken
    }
    if tuner == "hyperband":
        epochs = space.base.fit.epochs
        return HyperbandOracle(max_epochs=epochs, factor=HYPERBAND_FACTOR, **common)
    if tuner == "bayesian":
        at_random = max(3, min(3 * len(space.settings), (trials or 30) // 3))
        return BayesianOracle(num_initial_points=at_random, alpha=NOISE, **common, max_trials=None)
    kind = RandomOracle if tuner == "random" else GridOracle
    return kind(**common, max_trials=None)
