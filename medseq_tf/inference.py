"""Takes a model and prepared studies; gives one probability for every study and label."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from medseq_tf.errors import Diverged
from medseq_tf.experiment import Experiment
from medseq_tf.features import FeatureStore
from medseq_tf.pipeline import SliceStore, evaluation_batches, readable


def study_probabilities(
    model: Any,
    store: SliceStore,
    rows: np.ndarray,
    experiment: Experiment,
    features: FeatureStore | None = None,
) -> np.ndarray:
    """Return the probability of each label for each study.

    A study that `sequence.evaluation` reads as several sequences gets their mean probability.

    Args:
      model: a `SequenceClassifier`.
      store: the prepared data set's slices.
      rows: rows of the prepared data set, `(studies,)`.
      experiment: the recipe.
      features: the slices' features, to be read in place of the slices. The same probabilities to
        rounding (with `features.dtype` float16, that of float16).

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
    if features is None:
        kind, shape = "slices", model.slice_shape
        batches = evaluation_batches(store.prepared, rows, experiment, store=store)
        batches = readable(batches, store)
    else:
        kind, shape = "features", (features.width,)
        batches = features.evaluation_batches(rows)
    forward = _forward(model, kind, shape)
    for inputs, _, batch_rows in batches:
        probabilities = forward(inputs[kind], inputs["lengths"]).numpy()
        at = [position[int(row)] for row in np.asarray(batch_rows)]
        np.add.at(total, at, probabilities)
        np.add.at(count, at, 1)
    if not np.isfinite(total).all():
        raise Diverged(
            "the model's probabilities are no numbers; a smaller optimizer.learning_rate or "
            "optimizer.clip_norm=1 may help"
        )
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def _forward(model: Any, kind: str, shape: tuple[int, ...]) -> Any:
    """Return the model's inference graph for slices or features of some shape.

    It is traced once for all lengths and kept on the model.
    """
    graphs = vars(model).setdefault("_study_probabilities", {})
    if kind not in graphs:

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, None, *shape), tf.float32),
                tf.TensorSpec((None,), tf.int32),
            ],
            autograph=False,
        )
        def graph(inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
            return tf.sigmoid(model({kind: inputs, "lengths": lengths}, training=False))

        graphs[kind] = graph
    return graphs[kind]
