"""The median rule: whether a trial in training is hopeless beside those that have finished.

Golovin et al. 2017 (Google Vizier), section 3.2.2: a trial is stopped if its best value so far is
worse than the median, over the finished trials, of the means of their values up to the same epoch.
All trials of a search have the same folds; values are compared within one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medseq_tf.recipe import MINIMISED
from medseq_tf.tuning import trial

FEWEST_FINISHED = 5
"""Trials whose median is trusted."""
FEWEST_EPOCHS = 3
"""Of a fold, before which no trial is stopped for it."""

Curves = dict[str, np.ndarray]
"""The monitored values of a trial, one an epoch, by fold; the larger the better."""


class MedianRule:
    """Says of a trial in training, asked again and again, whether it is hopeless.

    Args:
        folder: the trial's, beside those of the other trials.
        monitor: the metric that chooses the epoch, `fit.monitor`.
    """

    def __init__(self, folder: Path, monitor: str):
        self._folder, self._monitor = folder, monitor
        self._judged: dict[str, int] = {}
        self._finished: dict[str, Curves] = {}

    def __call__(self) -> str | None:
        """Return why the trial is hopeless; None while it is not."""
        own = self._curves(self._folder)
        new = [name for name, curve in own.items() if len(curve) > self._judged.get(name, 0)]
        if new:
            self._find_finished()
        for name in new:
            first = max(self._judged.get(name, 0), FEWEST_EPOCHS - 1)
            self._judged[name] = len(own[name])
            for epoch in range(first + 1, len(own[name]) + 1):
                if why := self._why(name, own[name][:epoch]):
                    return why
        return None

    def _why(self, fold: str, own: np.ndarray) -> str | None:
        """Return why a trial is hopeless whose last epoch of a fold is the last of these."""
        there = (curves[fold][: len(own)] for curves in self._finished.values() if fold in curves)
        means = [np.nanmean(curve) for curve in there if not np.isnan(curve).all()]
        if len(means) < FEWEST_FINISHED or np.isnan(own).all():
            return None
        best, median = np.nanmax(own), np.median(means)
        if not best < median:
            return None
        sign = -1 if self._monitor in MINIMISED else 1
        return (
            f"hopeless at epoch {len(own)}{' of ' + fold.replace('_', ' ') if fold else ''}: its "
            f"best {self._monitor} is {sign * best:.3f}, the median of {len(means)} trials was "
            f"{sign * median:.3f} by then"
        )

    def _find_finished(self) -> None:
        for file in self._folder.parent.glob(f"*/{trial.RESULT}"):
            folder = file.parent
            if folder.name not in self._finished and folder != self._folder:
                outcome = trial.result(folder)
                if outcome is not None and outcome["status"] == "finished":
                    self._finished[folder.name] = self._curves(folder)

    def _curves(self, folder: Path) -> Curves:
        run = folder / trial.RUN
        curves = {}
        for file in (run / "history.csv", *sorted(run.glob("fold_*/history.csv"))):
            if file.is_file():
                history = pd.read_csv(file)
                if (key := f"val_{self._monitor}") in history:
                    values = history[key].to_numpy(float)
                    name = "" if file.parent == run else file.parent.name
                    curves[name] = -values if self._monitor in MINIMISED else values
        return curves
