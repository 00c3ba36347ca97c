"""The trials of a search: handed out to workers, recorded with their results."""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseq_tf.tuning.oracles import make_oracle
from medseq_tf.tuning.search import BASE
from medseq_tf.tuning.settings import Values
from medseq_tf.tuning.space import Space


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do next.

    Attributes:
        kind: `run` a trial; `wait` and ask again; `stop`: there is nothing more to do.
        trial: the trial's name.
        values: the point of the space.
        epochs: how many epochs to train, where the tuner decides that; None: as the recipe says.
    """

    kind: Literal["run", "wait", "stop"]
    trial: str = ""
    values: Values = field(default_factory=dict)
    epochs: int | None = None


def _locked(method: Any) -> Any:
    @functools.wraps(method)
    def wrapped(self: TrialStore, *args: Any) -> Any:
        with self._lock:
            return method(self, *args)

    return wrapped


class TrialStore:
    """The trials of a search: handed out to workers, booked with their results; thread-safe.

    Args:
        space: what varies.
        folder: where the state is kept; one that holds a state goes on with it.
        tuner: one of `TUNERS`.
        seed: decides every draw.
        trials: how many to hand out in all, besides the base; None: as many as the tuner has.
        minutes: after this time no new trial begins; None: no limit.
        base: hand out the recipe as it is, first.
        base_done: that trial has a result already.
    """

    def __init__(
        self,
        space: Space,
        folder: Path,
        tuner: str,
        seed: int,
        trials: int | None,
        minutes: float | None,
        base: bool,
        base_done: bool,
    ):
        self._limit = trials
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._lock = threading.RLock()
        self._base = "waiting" if base and not base_done else "done"
        self.metric = space.objective.metric
        self._oracle = make_oracle(space, tuner, seed, trials)
        self._oracle.verbose = 0
        self._oracle._set_project_dir(str(folder), "oracle")
        if Path(self._oracle._get_oracle_fname()).is_file():
            self._oracle.reload()
            if tuner == "bayesian":  # trials may be more than the search began with
                fresh = make_oracle(space, tuner, seed, trials)
                self._oracle.num_initial_points = fresh.num_initial_points

    @_locked
    def next(self, worker: str) -> Assignment:
        """Return a worker's trial, the one that it has until that is finished, or a new one."""
        if self._base in ("waiting", worker):
            self._base = worker
            return Assignment("run", BASE)
        oracle = self._oracle
        if worker not in oracle.ongoing_trials and not oracle._retry_queue and self._spent():
            return Assignment("stop")
        trial = oracle.create_trial(worker)
        if trial.status == "IDLE":
            return Assignment("wait")
        if trial.status == "STOPPED":
            return Assignment("stop")
        values = dict(trial.hyperparameters.values)
        epochs = values.get("tuner/epochs")
        own = {
            name: float(f"{value:.10g}") if isinstance(value, float) else value  # 0.1 + 0.2 is 0.3
            for name, value in values.items()
            if not name.startswith("tuner/")
        }
        return Assignment("run", trial.trial_id, own, epochs)

    def _spent(self) -> bool:
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return late or (self._limit is not None and len(self._oracle.trials) >= self._limit)

    @_locked
    def finish(self, name: str, score: float | None, reason: str = "") -> bool:
        """Book a trial's score, or why it failed; False if it had been booked before."""
        if name == BASE:
            before, self._base = self._base, "done"
            return before != "done"
        oracle = self._oracle
        trial = oracle.trials.get(name)
        if trial is None or trial.status != "RUNNING":
            return False
        oracle._retry_queue = [other for other in oracle._retry_queue if other != name]
        if score is None:
            trial.status, trial.message = "FAILED", reason
        else:
            oracle.update_trial(name, {self.metric: score})
            trial.status = "COMPLETED"
        oracle.end_trial(trial)
        oracle.save()  # KerasTuner saves before it takes the trial off its list
        return True
