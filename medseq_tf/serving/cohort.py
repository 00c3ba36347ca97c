"""The studies of a cohort, each read and predicted by one of an executor's workers.

A worker process opens the model once. It is given where studies lie, and gives back what is
predicted of them: no slice goes from machine to machine.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from medseq_tf.dataset.records import left_out, start_worker, study_record
from medseq_tf.errors import InputError
from medseq_tf.evaluation.feature_workers import studies_together
from medseq_tf.execution.executor import Executor
from medseq_tf.execution.work import require_seen
from medseq_tf.runs import mlflow_store
from medseq_tf.runs.run import Run
from medseq_tf.serving.description import Description
from medseq_tf.serving.open_model import MLFLOW, Model, open_model
from medseq_tf.serving.study_prediction import FoundStudy, Prediction, Predictor

SECONDS_A_STUDY = 3600.0
"""The longest that one may take to be read and predicted."""


def shared_name(model: str | os.PathLike | Run | Model) -> str:
    """Return the name by which workers can open a model, too.

    Raises:
        InputError: it is open already, and has none.
    """
    if isinstance(model, Model) and not isinstance(model, Run):
        raise InputError("ray: the workers open the model by themselves; give its name")
    name = os.fspath(model.path if isinstance(model, Run) else model)
    if name.startswith(MLFLOW):
        name = os.fspath(mlflow_store.download_saved_model(name))
    return os.path.abspath(name) if os.path.exists(name) else name


@dataclasses.dataclass(frozen=True)
class Opening:
    """Opens a model in a worker process, as the process that asks has opened it.

    Attributes:
        model: its `shared_name`.
        described: what it says of itself.
        description: the same, and how it is to call.
        points: see `Predictor`.
        running: see `Predictor`.
        paths: where the studies lie.
        folder: that relative ones are relative to.
    """

    model: str
    described: Description
    description: Description
    points: Mapping[str, str | None]
    running: bool
    paths: tuple[str, ...]
    folder: str

    @classmethod
    def of(cls, model: str, predictor: Predictor, paths: Sequence[str]) -> Opening:
        """Return how workers open a model by its `shared_name`, for the studies of paths."""
        return cls(
            model,
            predictor.model.describe(),
            predictor.description,
            predictor.points,
            predictor.running,
            tuple(path for path in paths if os.path.exists(path)),
            os.getcwd(),
        )

    def __call__(self) -> Predictor:
        """Open it.

        Raises:
            InputError: the worker's machine sees another model, or not all paths.
        """
        node, seen = f"node {socket.gethostname()}", "model and studies"
        if not all(map(os.path.isabs, self.paths)):
            require_seen(Path(self.folder), seen)
            os.chdir(self.folder)
        for path in self.paths:
            require_seen(Path(path), seen)
        try:
            model = open_model(self.model)
            described = model.describe()
        except InputError as error:
            raise InputError(f"{node}: {error}") from None
        if described != self.described:
            raise InputError(f"{self.model}: {node} sees another model there")
        return Predictor(model, self.description, self.points, self.running)


def cohort_predictions(
    executor: Executor, opening: Opening, predictor: Predictor, studies: Sequence[FoundStudy]
) -> Generator[list[Prediction]]:
    """Yield the predictions of studies, one after the other, as workers make them.

    Args:
        executor: whose workers.
        opening: opens the model there.
        predictor: the model, open in this process.
        studies: what they are given.
    """
    yield from executor.map(
        _predicted,
        studies,
        functools.partial(_ended, predictor),
        name="predict",
        together=studies_together(len(studies), executor.workers),
        initializer=start_worker,
        setup=opening,
        seconds=SECONDS_A_STUDY,
    )


def _predicted(predictor: Predictor, found: FoundStudy) -> list[Prediction]:
    return predictor.of(found, study_record(found.study, "", predictor.storage))


def _ended(predictor: Predictor, found: FoundStudy) -> list[Prediction]:
    return predictor.of(found, left_out(found.study, "it ended its process, or took too long"))
