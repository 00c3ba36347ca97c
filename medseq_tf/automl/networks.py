"""The networks' rounds: as many cross-validations of a network as time allows.

In a repeat, round m trains one model a fold i: it is tested on fold i, its epoch and threshold are
chosen on fold i + m, and it learns from the others. So a study of fold j has an inner prediction
for fold i, by a model that saw neither, once round m = j - i is there; and its outer prediction is
the mean of what its own fold's models of all rounds say. A network is left out for time alone, or
because it cannot be trained: never for its score, so that no outcome decides who takes part.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medseq_tf.automl.candidates import Candidate
from medseq_tf.automl.pace import Pace
from medseq_tf.automl.procedure import CandidatePredictions
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.dataset.stratification import Rows
from medseq_tf.errors import InputError, Stopped, is_out_of_memory
from medseq_tf.files import write_json
from medseq_tf.runs.run import Run
from medseq_tf.runs.tracking import Section, Tracker
from medseq_tf.training.folds import of_repeat
from medseq_tf.training.train import train

LEAST_SECONDS = 15.0
"""In which no round begins: building the training step alone takes most of them."""
SECONDS_FILE = "rounds.json"
"""In a candidate's folder: what each of its finished rounds took."""


class Cluster(NamedTuple):
    """A Ray cluster whose workers train folds.

    Attributes:
        workers: folds that it has room for.
        options: of `train`.
    """

    workers: int
    options: dict[str, Any]


class Rounds(NamedTuple):
    """What became of a network.

    Attributes:
        predictions: by repeat, of those with a whole round; none if it is left out.
        runs: of the finished rounds; the first is the one to be deployed.
        note: what is to be said: how many rounds it had, or why it is left out.
    """

    predictions: list[CandidatePredictions]
    runs: list[Run]
    note: str


def share_of(candidate: Candidate, candidates: Sequence[Candidate], left: float) -> float:
    """Return how much of the time that is left is a network's, by its minutes in the plan.

    It is shared among this one and those that stand after it, so what one leaves the others have.
    """
    to_come = candidates[candidates.index(candidate) :]
    minutes = sum(other.minutes or 0.0 for other in to_come if other.kind == "network")
    return left * candidate.minutes / minutes if candidate.minutes else left


def network_predictions(
    candidate: Candidate,
    prepared: Prepared,
    fold_of: np.ndarray,
    folder: Path,
    left: Callable[[], float],
    share: float = float("inf"),
    tracker: Tracker | None = None,
    features: os.PathLike | None = None,
    say: Callable[[str], None] = print,
    cluster: Cluster | None = None,
) -> Rounds:
    """Train a network's rounds, as far as time allows.

    Finished rounds that are in the folder are used, and an unfinished one goes on.

    Args:
        candidate: the network.
        prepared: the data set.
        fold_of: (repeats, studies) the plan's folds; -1 for a study that takes no part.
        folder: the candidate's own.
        left: seconds that are left for all candidates.
        share: seconds of them that are this one's.
        tracker: the candidate's MLflow run.
        features: the folder for features of a frozen network, or a `FeaturePlace`.
        say: what is told of progress, a line at a time.
        cluster: whose workers train the folds of a round side by side; default: this process.

    Raises:
        Stopped: interrupted with Ctrl-C.
    """
    recipe, folds = candidate.experiment(), int(fold_of[0].max()) + 1
    ends = time.monotonic() + share
    rounds = list(_rounds(candidate, folds))
    took, finished, why = _Took(folder), list[_Round](), ""
    names = ("loss", "val_loss", f"val_{recipe.fit.monitor}")
    for one in rounds:
        run = Run(folder / f"round_{one.number}")
        at_once = min(cluster.workers, folds) if cluster else 1
        pace = Pace(
            run.path, folds, recipe.fit, lambda: min(left(), ends - time.monotonic()), at_once
        )
        if not _is_finished(run):
            if not finished and pace.left() < LEAST_SECONDS:
                why = "its time is over"
                break
            if finished and not pace.admits(took.usual()):
                break
            say(f"{candidate.name}: round {one.number} of {len(rounds)}")
            log = tracker or Tracker(folder, candidate.name, enabled=False)
            try:
                train(
                    of_repeat(recipe, one.number),
                    prepared,
                    run.path,
                    splits=one.splits(fold_of),
                    resume=(run.path / "run.json").is_file(),
                    features=features,
                    track=Section(log, names, f"round_{one.number}/"),
                    verbose=False,
                    stop=pace.stops,
                    **(cluster.options if cluster else {}),
                )
            except Stopped:
                if not pace.stopped:
                    raise
                why = pace.reason
                break
            except Exception as error:  # whatever becomes of one candidate, the others go on
                return Rounds([], [], f"{candidate.name} is left out: {_in_a_line(error)}")
            took.note(one.number, pace.whole_round())
            gc.collect()
        finished.append(one)
    finished = [one for one in rounds if _is_finished(Run(folder / f"round_{one.number}"))]
    if not finished:
        return Rounds([], [], f"{candidate.name} is left out for time: {why}")
    return Rounds(
        _predictions(finished, folder, prepared, fold_of),
        [Run(folder / f"round_{one.number}") for one in finished],
        f"{candidate.name}: {len(finished)} of {len(rounds)} rounds" + (f"; {why}" if why else ""),
    )


def _is_finished(run: Run) -> bool:
    return (run.path / "run.json").is_file() and run.info["status"] == "finished"


def _in_a_line(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    first = str(error).strip().splitlines() or [""]
    kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
    return f"{kind}: {first[0]}"


# ----------------------------------------------------------------------------------- the rounds


class _Round(NamedTuple):
    """One cross-validation.

    Attributes:
        number: by which its folder is called.
        repeat: of the folds, from 0.
        step: from the fold of the test to that of the validation.
    """

    number: int
    repeat: int
    step: int

    def splits(self, fold_of: np.ndarray) -> list[Rows]:
        """Return one split a fold."""
        of_study = fold_of[self.repeat]
        folds = int(of_study.max()) + 1
        return [
            {
                "train": np.flatnonzero(
                    ~np.isin(of_study, (-1, fold, self.validated(fold, folds)))
                ),
                "validation": np.flatnonzero(of_study == self.validated(fold, folds)),
                "test": np.flatnonzero(of_study == fold),
            }
            for fold in range(folds)
        ]

    def validated(self, fold: int, folds: int) -> int:
        """Return the fold on which a fold's model is validated."""
        return (fold + self.step) % folds


def _rounds(candidate: Candidate, folds: int) -> Iterator[_Round]:
    """Yield all rounds of a candidate: each repeat has its first before any has its second."""
    for step in range(1, folds):
        for repeat in range(candidate.repeats):
            yield _Round(repeat * (folds - 1) + step, repeat, step)


def total_seconds(folder: Path) -> float:
    """Return what all finished rounds of the candidate in a folder took."""
    return _Took(folder).total()


def _predictions(
    finished: list[_Round], folder: Path, prepared: Prepared, fold_of: np.ndarray
) -> list[CandidatePredictions]:
    """Return what the finished rounds predict, by repeat."""
    folds, shape = int(fold_of[0].max()) + 1, (len(prepared), len(prepared.label_names))
    result = []
    for repeat in sorted({one.repeat for one in finished}):
        own = [one for one in finished if one.repeat == repeat]
        outer = np.full((len(own), *shape), np.nan)
        inner = np.full((folds, *shape), np.nan)
        for place, one in zip(outer, own, strict=True):
            for fold, run in enumerate(Run(folder / f"round_{one.number}").folds):
                table = run.predictions
                _fill(place, table[table["split"] == "test"], prepared)
                _fill(inner[fold], table[table["split"] == "validation"], prepared)
        result.append(CandidatePredictions(outer.mean(axis=0), inner))
    return result


def _fill(target: np.ndarray, table: pd.DataFrame, prepared: Prepared) -> None:
    """Write a table's probabilities into (studies, outputs), where it has any."""
    wide = table.pivot(index="study", columns="label", values="probability")
    rows = pd.Index(prepared.studies["study_id"]).get_indexer(wide.index)
    target[rows] = wide[prepared.label_names].to_numpy()


class _Took:
    """What a candidate's finished rounds took, in seconds, kept in its folder."""

    def __init__(self, folder: Path):
        self._file = folder / SECONDS_FILE
        self._seconds = json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}

    def note(self, number: int, seconds: float) -> None:
        """Keep what a round took."""
        self._seconds[str(number)] = round(seconds, 1)
        write_json(self._file, self._seconds)

    def total(self) -> float:
        """Return what all of them took."""
        return float(sum(self._seconds.values()))

    def usual(self) -> float:
        """Return what a round takes, 0 where nothing is known."""
        return float(np.mean(list(self._seconds.values()))) if self._seconds else 0.0
