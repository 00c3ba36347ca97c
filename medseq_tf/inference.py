"""Takes a model and prepared studies; gives one probability for every study and label."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from medseq_tf.errors import Diverged
from medseq_tf.experiment import Experiment
from medseq_tf.pipeline import SliceStore, evaluation_batches, readable


def study_probabilities(
    model: Any, store: SliceStore, rows: np.ndarray, experiment: Experiment
) -> np.ndarray:
    """Return the probability of each label for each study.

    A study that `sequence.evaluation` reads as several sequences gets their mean probability.

    Args:
      model: a `SequenceClassifier`.
      store: the prepared data set's slices.
      rows: rows of the prepared data set, `(studies,)`.
      experiment: the recipe.

    Returns:
      Probabilities `(studies, labels)` in the order of `rows`; NaN for a study that the recipe's
      sequence policy leaves out.

    Raises:
      Diverged: the model gives a probability that is no number.
    """
    rows = np.asarray(rows, np.int64)
    total = np.zeros((len(rows), len(store.prepared.label_names)))
    count = np.zeros(len(rows))
    position = {int(row): i for i, row in enumerate(rows)}
    forward = _forward(model)
    batches = evaluation_batches(store.prepared, rows, experiment, store=store)
    for inputs, _, batch_rows in readable(batches, store):
        probabilities = forward(inputs["slices"], inputs["lengths"]).numpy()
        at = [position[int(row)] for row in batch_rows.numpy()]
        np.add.at(total, at, probabilities)
        np.add.at(count, at, 1)
    if not np.isfinite(total).all():
        raise Diverged(
            "the model's probabilities are no numbers; a smaller optimizer.learning_rate or "
            "optimizer.clip_norm=1 may help"
        )
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def _forward(model: Any) -> Any:
    """Return the model's inference graph, traced once for all shapes and kept on the model."""
    graph = getattr(model, "_study_probabilities", None)
    if graph is None:
        slices = (None, None, *model.slice_shape)

        @tf.function(
            input_signature=[tf.TensorSpec(slices, tf.float32), tf.TensorSpec((None,), tf.int32)],
            autograph=False,
        )
        def graph(slices: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
            return tf.sigmoid(model({"slices": slices, "lengths": lengths}, training=False))

        object.__setattr__(model, "_study_probabilities", graph)
    return graph
