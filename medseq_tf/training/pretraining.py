"""Pretraining: a model's encoder learns to find synthetic lesions in studies without a finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import Diverged, InputError
from medseq_tf.input.slice_store import SliceStore
from medseq_tf.models import ConvFSMStack, SequenceClassifier
from medseq_tf.readers.series import series_text
from medseq_tf.recipe import Experiment, SyntheticLesions
from medseq_tf.training.synthetic_lesions import add_lesion, vary

WITH_LESION = 0.75
"""Share of the sequences that get a lesion."""
CELL = 0.3
"""Share of a map's cell that has to be lesion for the cell to be one."""


def healthy(prepared: Prepared, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return those of `rows` whose labels are known and all 0.

    Raises:
        InputError: there is none, the labels are classes, of which every study has one, or a slice
            is of several series.
    """
    if prepared.channels > 1:
        raise InputError(
            f"pretraining adds synthetic lesions to slices of one channel, these have "
            f"{prepared.channels} ({series_text(prepared.series)}); set pretraining to null"
        )
    if prepared.classes:
        raise InputError(
            "pretraining adds synthetic lesions to training studies without a finding, and of "
            f"classes ({prepared.classes.column}) every study has one; set pretraining to null"
        )
    rows = np.asarray(rows)
    negative = rows[(prepared.labels[rows] == 0).all(axis=1)]
    if not len(negative):
        raise InputError(
            "pretraining adds synthetic lesions to training studies without a finding, and there "
            "is none; set pretraining to null"
        )
    return negative


def pretrain(
    model: SequenceClassifier,
    store: SliceStore,
    rows: Sequence[int] | np.ndarray,
    recipe: Experiment,
    verbose: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Teach `model`'s encoder to find synthetic lesions, by `recipe.pretraining`.

    A step is AdamW on the mean cross-entropy plus half of 1 - Dice over the cells of the encoder's
    lesion map. Everything is drawn from `recipe.seed`; on a CPU the weights are bitwise the same.

    Args:
        model: its encoder is a `ConvFSMStack` with a lesion map.
        store: the prepared data set's slices.
        rows: the training studies.
        recipe: the recipe.
        verbose: show progress.
        interrupted: asked before every step; if true, the function returns.

    Raises:
        Diverged: the loss became NaN or infinite.
        InputError: no training study is without a finding, or one cannot be read.
    """
    settings = _settings(recipe)
    rows = healthy(store.prepared, rows)
    stack = model.encoder.backbone.layer
    model.encoder.backbone.trainable = True
    step = _step(stack, settings, model.slice_shape)
    bar = keras.utils.Progbar(settings.steps, verbose=2 if verbose else 0, unit_name="step")
    if verbose:
        print(f"Pretraining on synthetic lesions: {len(rows)} studies, {settings.steps} steps")
    for number in range(settings.steps):
        if interrupted():
            return
        rng = np.random.default_rng([recipe.seed, number])
        loss = float(step(*lesion_batch(store, rows, recipe, rng)))
        if not np.isfinite(loss):
            raise Diverged(
                f"the loss became {loss} in step {number + 1} of the pretraining; a smaller "
                "pretraining.learning_rate may help"
            )
        bar.update(number + 1, [("loss", loss)], finalize=number + 1 == settings.steps)
    model.encoder.backbone.trainable = not settings.frozen


def _settings(recipe: Experiment) -> SyntheticLesions:
    if recipe.pretraining is None:
        raise InputError("the recipe has no pretraining")
    return recipe.pretraining


def lesion_batch(
    store: SliceStore,
    rows: Sequence[int] | np.ndarray,
    recipe: Experiment,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the slices and masks of one step.

    Args:
        store: the prepared data set's slices.
        rows: studies without a finding.
        recipe: the recipe.
        rng: what is drawn from.

    Returns:
        float32 `(N, H, W, channels)`, the model's input, and float32 `(N, H, W)`, 1 where a lesion
        was added.
    """
    settings = _settings(recipe)
    images, masks = [], []
    for row in rng.choice(rows, settings.studies, replace=settings.studies > len(rows)):
        length = int(store.prepared.studies["slices"].iloc[row])
        first = int(rng.integers(max(length - settings.slices, 0) + 1))
        chosen = np.arange(first, min(first + settings.slices, length))
        ranges = store.intensity_ranges(int(row), chosen[:1])[0, 0]
        low, high = ranges[0]
        slices = (store.slices(int(row), chosen).astype(np.float32) - low) / (high - low)
        mask = np.zeros_like(slices)
        if rng.random() < WITH_LESION:
            slices, mask = add_lesion(slices, settings, rng)
        slices, mask = vary(slices, mask, rng)
        intensities = (slices * (high - low) + low)[..., None]
        images.append(np.clip((intensities - ranges[:, 0]) / (ranges[:, 1] - ranges[:, 0]), 0, 1))
        masks.append(mask)
    inputs = (np.concatenate(images) - recipe.input.mean) / recipe.input.std
    return inputs.astype(np.float32), np.concatenate(masks)


def _step(
    stack: ConvFSMStack, settings: SyntheticLesions, slice_shape: tuple[int, int, int]
) -> Callable[..., tf.Tensor]:
    """Return the function that makes one update of `stack` and returns its loss."""
    warmup = max(settings.steps // 10, 1)
    rate = keras.optimizers.schedules.CosineDecay(
        settings.learning_rate / warmup,
        max(settings.steps - warmup, 1),
        warmup_target=settings.learning_rate,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay)
    variables = stack.trainable_variables
    optimizer.build(variables)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *slice_shape), tf.float32),
            tf.TensorSpec((None, *slice_shape[:2]), tf.float32),
        ],
        autograph=False,
    )
    def step(slices: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
        masks = masks[..., None]
        if stack.mirror:
            masks = stack.mirror.upright(masks, slices)
        with tf.GradientTape() as tape:
            logits = stack.maps(slices, training=True)
            cells = tf.image.resize(masks, logits.shape[1:3], method="area")
            loss = _loss(tf.cast(cells > CELL, tf.float32), tf.cast(logits, tf.float32))
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return loss

    return step


def _loss(cells: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the mean cross-entropy plus half of 1 - Dice over all cells of all slices."""
    probability = tf.sigmoid(logits)
    overlap = tf.reduce_sum(probability * cells)
    both = tf.reduce_sum(probability) + tf.reduce_sum(cells)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=cells, logits=logits)
    return tf.reduce_mean(cross_entropy) + 0.5 * (1 - (2 * overlap + 1) / (both + 1))
