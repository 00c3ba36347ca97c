"""What linear candidates predict of patients whom they were not fitted on, in and between folds."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.stratification import owners
from medseq_tf.errors import InputError
from medseq_tf.execution.executor import Executor
from medseq_tf.execution.work import require_seen
from medseq_tf.files import atomic
from medseq_tf.recipe import Experiment
from medseq_tf.training.linear_head import filled, fit_linear

FITS = ".fits.npz"
"""Of a candidate's folder: what other processes fit, while they do."""


def linear_predictions(
    recipe: Experiment,
    prepared: Prepared,
    fold_of: np.ndarray,
    vectors: np.ndarray,
    executor: Executor | None = None,
    folder: Path = Path(),
) -> Generator[CandidatePredictions, None, None]:
    """Yield a linear recipe's inner and outer predictions, repeat by repeat.

    Each fold is left out by itself, for the outer predictions of its studies, and with each other
    one, for the inner predictions of both. A strength that is `auto` is chosen anew in every fit,
    among the studies that it is fitted to.

    Args:
        recipe: whose head is solved (`fit.solver: lbfgs`).
        prepared: the data set.
        fold_of: (repeats, studies) from 0; -1 for a study that takes no part.
        vectors: (sequences, studies, features), `study_vectors`. The first is learned from, the
            mean probability of all is predicted; all NaN for a study that the recipe leaves out.
        executor: where the fits run; default: this process. They come to the same anywhere.
        folder: where others than this process find what they fit.

    Raises:
        InputError: a worker process ends in a fit, again and again.
    """
    fits = _Fits(
        vectors,
        prepared.labels,
        owners(prepared.studies, recipe.split.by).astype(str),
        fold_of,
        _Settings(prepared.outputs, recipe.fit.strength, recipe.loss.weights, recipe.seed),
    )
    pieces = [
        (repeat, left_out)
        for repeat, folds in enumerate(fold_of)
        for left_out in _left_out(int(folds.max()) + 1)
    ]
    found = (
        map(fits.predicted, pieces) if executor is None else _spread(fits, pieces, executor, folder)
    )
    for repeat, pairs in itertools.groupby(
        zip(pieces, found, strict=True), lambda pair: pair[0][0]
    ):
        folds = fold_of[repeat]
        outer = np.full(prepared.labels.shape, np.nan)
        inner = np.full((int(folds.max()) + 1, *prepared.labels.shape), np.nan)
        for (_, left_out), predicted in pairs:
            for fold, probabilities in zip(left_out, predicted, strict=True):
                others = [number for number in left_out if number != fold]
                target = inner[others[0]] if others else outer
                target[fits.told(repeat, fold)] = probabilities
        yield CandidatePredictions(outer, inner)


Piece = tuple[int, tuple[int, ...]]
"""A fit: the repeat, and the folds that are left out of it."""


def _left_out(folds: int) -> Iterator[tuple[int, ...]]:
    """Yield which folds are left out together: each by itself, then each two."""
    for count in (1, 2):
        yield from itertools.combinations(range(folds), count)


class _Settings(NamedTuple):
    """What of a recipe its fits depend on; see `fit_linear`."""

    outputs: str
    strength: Literal["auto"] | float
    weights: str | list[float]
    seed: int


@dataclass(frozen=True)
class _Fits:
    """What the fits of a linear recipe are made of; see `linear_predictions`."""

    vectors: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    fold_of: np.ndarray
    settings: _Settings

    @functools.cached_property
    def is_read(self) -> np.ndarray:
        """Which studies the recipe does not leave out, (studies,)."""
        return ~np.isnan(self.vectors[0]).all(axis=1)

    def told(self, repeat: int, fold: int) -> np.ndarray:
        """Return which studies of a fold are predicted, (studies,)."""
        return self.is_read & (self.fold_of[repeat] == fold)

    def predicted(self, piece: Piece) -> list[np.ndarray]:
        """Fit once; return the probabilities of each fold that was left out, (told, outputs).

        Linear algebra has one thread: matrices are small, and so it comes to the same anywhere.
        """
        repeat, left_out = piece
        folds, outputs = self.fold_of[repeat], self.settings.outputs
        rows = self.is_read & (folds >= 0) & ~np.isin(folds, left_out)
        with threadpool_limits(1):
            filled_in = [filled(one, rows) for one in self.vectors]
            fit = fit_linear(
                filled_in[0][rows],
                self.labels[rows],
                outputs,
                self.owners[rows],
                *self.settings[1:],
            )
            return [
                np.mean(
                    [fit.probabilities(one[self.told(repeat, fold)]) for one in filled_in], axis=0
                )
                for fold in left_out
            ]


# ------------------------------------------------------------------------- in other processes


class _Errand(NamedTuple):
    """A fit as another process is given it; `written` tells contents of the file apart."""

    file: str
    written: int
    settings: _Settings
    piece: Piece


def _spread(
    fits: _Fits, pieces: list[Piece], executor: Executor, folder: Path
) -> Iterator[list[np.ndarray]]:
    """Yield what each piece predicts, worked on by others."""
    file = (folder / FITS).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(fits, name) for name in ("vectors", "labels", "owners", "fold_of")}
    with atomic(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)
    try:
        written = file.stat().st_mtime_ns
        errands = [_Errand(str(file), written, fits.settings, piece) for piece in pieces]
        yield from executor.map(_predicted, errands, _lost, name="candidate", seconds=math.inf)
    finally:
        file.unlink(missing_ok=True)


def _predicted(errand: _Errand) -> list[np.ndarray]:
    arrays = _arrays(errand.file, errand.written)
    return _Fits(**arrays, settings=errand.settings).predicted(errand.piece)


@functools.lru_cache(1)
def _arrays(file: str, written: int) -> dict[str, np.ndarray]:
    """Return what a file holds of fits; that of the last is kept for the next fit."""
    require_seen(Path(file), "data and out")
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def _lost(errand: _Errand) -> list[np.ndarray]:
    raise InputError(
        "a linear candidate's fit has ended its worker, again and again, as too little memory "
        "does; fewer workers may help"
    )
