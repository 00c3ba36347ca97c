"""The pace of a cross-validation: whether it ends in time, by what folds and epochs have cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from medseq_tf.recipe import Fit

SPARE = 1.1
"""By which an estimate of time may be too short."""
LOOK_SECONDS = 1.0
"""Between two looks at how far a round is."""
LEAST_EPOCHS = 2
"""That tell how long one takes: the first of a process also builds the training step."""


@dataclass
class Pace:
    """Tells when a round cannot end in time, by what its folds and epochs have cost.

    Before the first fold is finished, it is the least that the fold may take that counts: the
    epochs that patience leaves it, each as quick as the quickest.

    Attributes:
        folder: of the round.
        folds: how many there are.
        fit: of the recipe.
        left: seconds that are left.
        at_once: folds that are trained at a time.
        stopped: whether it has said so.
        reason: why, in words.
    """

    folder: Path
    folds: int
    fit: Fit
    left: Callable[[], float]
    at_once: int = 1
    stopped: bool = False
    reason: str = ""
    _began: float = field(default_factory=lambda: time.monotonic())
    _looked: float = -np.inf
    _last: float = 0.0
    _before: int = 0
    _done: int = 0

    def __post_init__(self) -> None:
        self._before = self._done = self._finished()

    def admits(self, seconds: float) -> bool:
        """Whether a round that takes so long ends in time."""
        return SPARE * seconds <= self.left()

    def whole_round(self) -> float:
        """Return what the round took; of one that went on, as if it had begun anew."""
        ran = max(1, self.folds - self._before)
        return (time.monotonic() - self._began) * self.folds / ran

    def stops(self) -> bool:
        """Whether the round is to stop; once true, it stays so."""
        now = time.monotonic()
        if self.stopped or now - self._looked < LOOK_SECONDS:
            return self.stopped
        self._looked, left = now, self.left()
        needed = self._needed(now)
        if left <= 0 or needed > SPARE * left:
            self.stopped = True
            self.reason = "its time is over"
            if needed > 0:
                self.reason = f"a round needs {needed:.0f} s more, {max(left, 0):.0f} s are left"
        return self.stopped

    def _finished(self) -> int:
        folds = range(1, self.folds + 1)
        return sum((self.folder / f"fold_{n}" / "metrics.json").is_file() for n in folds)

    def _needed(self, now: float) -> float:
        """Return how many seconds more the round takes, or may take at least."""
        done = self._finished()
        if done > self._done:
            self._done, self._last = done, now
        to_do = self.folds - done
        if done > self._before:
            each = (self._last - self._began) / (done - self._before)
            return max(each * to_do - (now - self._last), each * (to_do - 1))
        history = self.folder / f"fold_{done + 1}" / "history.csv"
        seconds = pd.read_csv(history)["seconds"] if history.is_file() else []
        if len(seconds) < LEAST_EPOCHS:
            return 0.0
        least = self.fit.epochs
        if self.fit.patience is not None:
            least = min(least, max(self.fit.patience + 1, len(seconds)))
        each = float(np.min(seconds))
        return each * (least * to_do / min(self.at_once, to_do) - len(seconds))
