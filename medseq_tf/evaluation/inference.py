"""Inference: a model's probability for every study and label.

Of a segmenter also how many pixels of each study's lesion it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Diverged, Stopped
from medseq_tf.evaluation.feature_store import FeatureStore, no_numbers
from medseq_tf.input.batches import evaluation_batches, evaluation_plan, readable
from medseq_tf.input.further_inputs import input_specs
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import losses
from medseq_tf.recipe import Experiment


class Predictions(NamedTuple):
    """A model's predictions for studies.

    Attributes:
        probabilities: `(studies, labels)`; NaN for a study that the recipe leaves out.
        pixels: of a segmenter, `(studies, 3)`: lesion pixels that are called lesion, other pixels
          that are, and lesion pixels that are not; NaN where a mask is not known. Else None.
        loss: of a segmenter, the training loss, a mean over slices, Dice being that of their study.
    """

    probabilities: np.ndarray
    pixels: np.ndarray | None = None
    loss: float = float("nan")


def study_predictions(
    model: Any,
    store: SliceStore,
    rows: np.ndarray,
    experiment: Experiment,
    features: FeatureStore | None = None,
) -> Predictions:
    """Return `study_probabilities` and, of a segmenter, how well it finds the lesions' pixels.

    Pixels and loss are those of the model's input, of the slices that a study is predicted by, as
    they are: what it makes of them mirrored counts in the probability alone.
    """
    if not experiment.segments:
        return Predictions(study_probabilities(model, store, rows, experiment, features))
    rows = np.asarray(rows, np.int64)
    position = {int(row): i for i, row in enumerate(rows)}
    total, count = np.zeros((len(rows), 1)), np.zeros((len(rows), 1))
    pixels, loss_sums = np.zeros((len(rows), 3)), np.zeros(2)
    batches = evaluation_batches(store.prepared, rows, experiment, 1, store, masks=True)
    plan = evaluation_plan(store.prepared, rows, experiment, 1)
    forward = _forward_pixels(model, losses.build(experiment.loss, store.prepared.labels))
    for (sequence,), (inputs, masks, (row,)) in zip(plan, readable(batches, store), strict=True):
        probability, of_pixels, sums = forward(inputs["slices"], inputs["lengths"], masks)
        at = position[int(row)]
        total[at] += probability[0]
        count[at] += 1
        if not sequence.mirrored:
            pixels[at] += of_pixels
            loss_sums += sums
    check_finite(total, store.prepared, rows)
    loss = float(loss_sums[0] / loss_sums[1]) if loss_sums[1] else np.nan
    with np.errstate(invalid="ignore"):
        return Predictions(total / count, pixels, loss)


def _forward_pixels(model: Any, loss: losses.PixelLoss) -> Any:
    """Return a segmenter's inference graph for one study: its probability, pixels and loss."""
    graphs = vars(model).setdefault("_study_probabilities", {})
    if "pixels" not in graphs:
        segmenter, (height, width, _) = model.encoder.backbone, model.slice_shape

        @tf.function(
            input_signature=[
                tf.TensorSpec((1, None, *model.slice_shape), tf.float32),
                tf.TensorSpec((1,), tf.int32),
                tf.TensorSpec((1, None, height, width), tf.float32),
            ],
            autograph=False,
        )
        def graph(slices: tf.Tensor, lengths: tf.Tensor, masks: tf.Tensor) -> tuple:
            lesion = segmenter.lesion(slices, lengths)
            logits = model.classify(segmenter.area(lesion, lengths), {"lengths": lengths})
            called, is_lesion = lesion > 0, masks == 1
            cells = (called & is_lesion, called & ~is_lesion, ~called & is_lesion)
            pixels = tf.stack([tf.reduce_sum(tf.cast(cell, tf.float32)) for cell in cells])
            unknown = tf.reduce_any(tf.math.is_nan(masks))
            elements, known = loss.elementwise(masks, lesion)
            sums = tf.stack([tf.reduce_sum(elements), tf.reduce_sum(known)])
            return tf.sigmoid(logits), tf.where(unknown, np.nan, pixels), sums

        graphs["pixels"] = graph
    return graphs["pixels"]


def study_probabilities(
    model: Any,
    store: SliceStore,
    rows: np.ndarray,
    experiment: Experiment,
    features: FeatureStore | None = None,
) -> np.ndarray:
    """Return the probability of each label for each study.

    A study that `sequence.evaluation` makes several sequences of, mirrored ones among them, gets
    their mean probability.

    Args:
        model: a `SequenceClassifier`.
        store: the prepared data set's slices.
        rows: rows of the prepared data set, `(studies,)`.
        experiment: the recipe.
        features: read in place of the slices; the same probabilities to the dtype's rounding.

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
    forward = _forward(model, "slices" if features is None else "features")
    for inputs, _, batch_rows in _batches(store, rows, experiment, features):
        probabilities = forward(inputs).numpy()
        at = [position[int(row)] for row in np.asarray(batch_rows)]
        np.add.at(total, at, probabilities)
        np.add.at(count, at, 1)
    check_finite(total, store.prepared, rows)
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def weighted_mean(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """Return the mean of arrays of one shape by weights that add up to 1."""
    if len(set(weights)) == 1:
        return np.mean(values, axis=0)
    return np.tensordot(np.asarray(weights), np.asarray(values), axes=1)


def _batches(
    store: SliceStore, rows: np.ndarray, experiment: Experiment, features: FeatureStore | None
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield inputs, labels and rows of the sequences that studies are evaluated on."""
    if features is not None:
        return features.evaluation_batches(rows, experiment=experiment)
    return readable(evaluation_batches(store.prepared, rows, experiment, store=store), store)


def model_vectors(
    model: Any,
    store: SliceStore,
    rows: np.ndarray,
    experiment: Experiment,
    features: FeatureStore | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Return the vectors that the model's head takes, `(sequences, studies, V)` float32.

    They are of a study's one sequence and, with `sequence.evaluation.mirrored`, of it mirrored.

    Args:
        model: a `SequenceClassifier` whose aggregator gives one vector a study.
        store: the prepared data set's slices.
        rows: rows of the prepared data set, `(studies,)`.
        experiment: the recipe, which evaluates a study on one sequence, or on it and its mirror.
        features: read in place of the slices.
        stopped: asked after every batch.

    Raises:
        InputError: a study cannot be read, or its vector holds what is no number.
        Stopped: `stopped` said so.
    """
    kind = "slices" if features is None else "features"
    signature = [input_specs(model, kind)]
    traced = tf.function(model.vectors, input_signature=signature, autograph=False)
    forward = traced.get_concrete_function()  # called so seldom that TensorFlow would warn of it
    by_row: dict[int, list[np.ndarray]] = {int(row): [] for row in rows}
    for inputs, _, batch_rows in _batches(store, np.asarray(rows, np.int64), experiment, features):
        vectors = tf.cast(forward(inputs), tf.float32).numpy()
        for row, vector in zip(np.asarray(batch_rows).tolist(), vectors, strict=True):
            by_row[row].append(vector)
        if stopped():
            seen = sum(map(bool, by_row.values()))
            raise Stopped(f"stopped at {seen}/{len(rows)} studies")
    found = np.stack([by_row[int(row)] for row in rows], axis=1)
    for row in np.asarray(rows)[~np.isfinite(found).all(axis=(0, 2))]:
        raise no_numbers(store.prepared.studies["study_id"].iat[row], experiment)
    return found


def check_finite(probabilities: np.ndarray, prepared: Prepared, rows: np.ndarray) -> None:
    """Raise Diverged if one of the probabilities `(studies, labels)` of some rows is no number."""
    wrong = np.asarray(rows)[~np.isfinite(probabilities).all(axis=1)]
    if len(wrong):
        first = prepared.studies["study_id"].iat[wrong[0]]
        raise Diverged(
            f"the model's probabilities of {len(wrong)} studies are no numbers (first: study "
            f"{first}); in training, a smaller optimizer.learning_rate or optimizer.clip_norm=1 "
            "may help"
        )


def _forward(model: Any, kind: str) -> Any:
    """Return the model's inference graph for slices or features, and all that it reads beside them.

    It is traced once for all lengths and kept on the model.
    """
    graphs = vars(model).setdefault("_study_probabilities", {})
    if kind not in graphs:

        @tf.function(input_signature=[input_specs(model, kind)], autograph=False)
        def graph(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
            return tf.sigmoid(model(inputs, training=False))

        graphs[kind] = graph
    return graphs[kind]
