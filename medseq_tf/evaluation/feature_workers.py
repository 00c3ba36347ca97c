"""Features of a frozen network that an executor's workers compute, each of whom builds it once.

What is missing is computed study by study by the workers, written into the folder under the names
that one process gives, and handed to the process that asks. A worker whose features would have
other names, of other weights, versions or another kind of machine, is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseq_tf.errors import InputError, Unreachable
from medseq_tf.evaluation.feature_folder import feature_folder
from medseq_tf.evaluation.feature_store import FeatureStore
from medseq_tf.evaluation.feature_views import View
from medseq_tf.execution.executor import Executor, executor_for
from medseq_tf.execution.work import require_seen
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import SequenceClassifier
from medseq_tf.recipe import Experiment

PIECES_A_WORKER = 4
MOST_TOGETHER = 16
"""Studies of a piece: what a worker that dies costs, and what is handed over at once."""


@dataclass(frozen=True)
class FeaturePlace(os.PathLike[str]):
    """A folder of features whose missing ones are computed by an executor's workers.

    Attributes:
        folder: as `feature_folder` gives it, absolute.
        executor: whose workers.
    """

    folder: Path
    executor: Executor

    def __fspath__(self) -> str:
        return str(self.folder)


@contextlib.contextmanager
def feature_place(
    features: str | os.PathLike | None,
    ray: str | None = None,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Iterator[os.PathLike]:
    """Yield the folder that `feature_folder` finds; with Ray, a `FeaturePlace`, or that given.

    The others are those of `executor_for`.

    Raises:
        InputError: the folder or the cluster cannot be used.
    """
    if isinstance(features, FeaturePlace):
        yield features
        return
    folder = feature_folder(features)
    if ray is None:
        yield folder
        return
    with executor_for(None, ray, cpus=cpus, gpus=gpus) as executor:
        yield FeaturePlace(folder.absolute(), executor)


class SpreadFeatureStore(FeatureStore):
    """A `FeatureStore` whose missing features are computed by an executor's workers.

    Args:
        place: the folder, and the executor.
        rebuild: picklable; makes the same store in a worker process, over the same folder, for one
            study after the other.

    The others are those of `FeatureStore`.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        slices: SliceStore,
        experiment: Experiment,
        place: FeaturePlace,
        verbose: bool,
        rebuild: Callable[[], FeatureStore],
    ):
        super().__init__(model, slices, experiment, place.folder, verbose)
        self._executor = place.executor
        self._setup = _Rebuilding(rebuild, slices.prepared.fingerprint, self.made_by, self.mark)

    def _computed(self, views: Sequence[View]) -> Generator[tuple[View, np.ndarray]]:
        if not views:
            return
        studies = [list(group) for _, group in itertools.groupby(views, key=lambda view: view[0])]
        computed = self._executor.map(
            _features_of,
            studies,
            _ended,
            name="encode",
            together=studies_together(len(studies), self._executor.workers),
            setup=self._setup,
            seconds=math.inf,
        )
        for of_study, features in zip(studies, computed, strict=True):
            if features is None:
                study = self.slices.prepared.studies["study_id"].iat[of_study[0][0]]
                raise InputError(
                    f"study {study}: computing its features ended each worker that tried to"
                )
            self.computed += len(of_study)
            yield from zip(of_study, features, strict=True)


def studies_together(studies: int, workers: int) -> int:
    """Count the studies of a piece: few enough that all workers have some to the end."""
    return max(1, min(MOST_TOGETHER, studies // (PIECES_A_WORKER * workers)))


# -------------------------------------------------------------------------------- in a worker


@dataclass(frozen=True)
class _Rebuilding:
    """Makes a store in a worker process, and makes sure that it is the same.

    Attributes:
        rebuild: makes it.
        fingerprint: of the data set.
        made_by: what the names of the features are made of, of the store that asks.
        mark: a file that is in the folder while the store that asks uses it.
    """

    rebuild: Callable[[], FeatureStore]
    fingerprint: str
    made_by: list[str]
    mark: Path | None

    def __call__(self) -> FeatureStore:
        if self.mark is not None:
            require_seen(self.mark, "data and features")
        node = f"node {socket.gethostname()}"
        try:
            store = self.rebuild()
        except Unreachable:  # which names the node
            raise
        except InputError as error:
            raise InputError(f"{node}: {error}") from None
        prepared = store.slices.prepared
        if prepared.fingerprint != self.fingerprint:
            raise InputError(f"{prepared.path}: {node} sees another data set there")
        for made, wanted in zip(store.made_by, self.made_by, strict=True):
            here, asked = json.loads(made), json.loads(wanted)
            for name in asked:
                if here[name] != asked[name]:
                    raise InputError(
                        f"{node} would compute other features than are asked for: {name} is "
                        f"{here[name]}, not {asked[name]}; let all nodes have the same"
                    )
        return store


def _features_of(store: FeatureStore, views: list[View]) -> list[np.ndarray] | None:
    """Compute the views of a study."""
    return [features for _, features in store.computed_here(views)]


def _ended(views: list[View]) -> None:
    """Stand in for the features of a study that ended its worker."""
