"""The updates of a model's weights: gradients of the summed loss, optimizers, learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from medseq_tf.input.further_inputs import input_specs
from medseq_tf.models import SequenceClassifier, losses
from medseq_tf.recipe import Experiment, Optimizer
from medseq_tf.training.distribution import Distribution


class Updates:
    """The compiled functions that train a model, and its optimizer.

    Args:
        model: the model.
        loss: the training loss.
        recipe: the recipe.
        count: how many updates the whole training makes, for the schedule of the rate.
        network: the part of the model that is frozen whole, whose features are then the input of
            the training step; None: slices are.
        label_count: how many labels a study has.
        at_once: whether a batch is an update by itself, so that no gradients are kept.
        distribution: the devices that the model was made on.

    Attributes:
        optimizer: the optimizer.
        rate: the learning rate by the number of updates so far.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        loss: losses.KnownLoss,
        recipe: Experiment,
        count: int,
        network: keras.Layer | None,
        label_count: int,
        at_once: bool,
        distribution: Distribution,
    ):
        self.model, self.loss, self.at_once = model, loss, at_once
        self.distribution = distribution
        self.rate = learning_rate(recipe.optimizer, count)
        with distribution.scope():
            self.optimizer = build_optimizer(recipe.optimizer, recipe.fit.precision)
            self.optimizer.build(model.trainable_variables)
            self.accumulated = [
                tf.Variable(
                    tf.zeros(v.shape, tf.float32),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for v in ([] if at_once else model.trainable_variables)
            ]
        distribution.adopt(model, self.optimizer)
        self._inputs = input_specs(model, "slices" if network is None else "features")
        if network is not None:
            seen = input_specs(model)
            self._extract = tf.function(
                self._features, input_signature=[seen["slices"], seen["lengths"]], autograph=False
            )
        pixels = (None, None, *model.slice_shape[:2])
        targets = tf.TensorSpec(pixels if recipe.segments else (None, label_count), tf.float32)
        jit, signature = recipe.fit.jit, [self._inputs, targets]
        self._accumulate = tf.function(
            distribution.on_shares(self._add_gradients),
            input_signature=None if jit else signature,
            jit_compile=jit,
            autograph=False,
        )
        self._update = tf.function(
            distribution.on_all(self._apply_accumulated),
            input_signature=[tf.TensorSpec((), tf.float32)],
            autograph=False,
        )
        self._step = tf.function(
            distribution.on_shares(self._update_at_once), input_signature=signature, autograph=False
        )

    def extract(self, slices: tf.Tensor, lengths: tf.Tensor) -> np.ndarray:
        """Compute the features of the frozen network."""
        return self._extract(slices, lengths).numpy()

    def add(self, inputs: Mapping[str, tf.Tensor], targets: tf.Tensor) -> tf.Tensor:
        """Learn from a batch; return the sum of its loss and how many known labels it has."""
        work = self._step if self.at_once else self._accumulate
        return work({name: inputs[name] for name in self._inputs}, targets)

    def apply(self, known: float) -> None:
        """Make the update of the batches that were added since the last, with so many labels."""
        if not self.at_once:
            self._update(known)

    def _features(self, slices: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.model.extract(slices, lengths), tf.float32)

    def _gradients(
        self, inputs: Mapping[str, tf.Tensor], targets: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape() as tape:
            logits, targets = self.model.examples(inputs, targets)
            elements, known = self.loss.elementwise(targets, logits)
            total = tf.reduce_sum(elements)
            scaled = self.optimizer.scale_loss(total)
        variables = self.model.trainable_variables
        gradients = tape.gradient(scaled, [v.value for v in variables])
        # What takes no part in the loss has a gradient of 0.
        gradients = [
            tf.zeros(v.shape) if g is None else tf.cast(g, tf.float32)
            for v, g in zip(variables, gradients, strict=True)
        ]
        return gradients, tf.stack([total, tf.reduce_sum(known)])

    def _add_gradients(self, inputs: Mapping[str, tf.Tensor], targets: tf.Tensor) -> tf.Tensor:
        gradients, totals = self._gradients(inputs, targets)
        for variable, gradient in zip(self.accumulated, gradients, strict=True):
            variable.assign_add(gradient)
        return self.distribution.sum([totals])[0]

    def _apply_accumulated(self, known: tf.Tensor) -> None:
        known = tf.maximum(known, 1.0)
        gradients = self.distribution.sum([variable.value() for variable in self.accumulated])
        self._apply([gradient / known for gradient in gradients])
        for variable in self.accumulated:
            variable.assign(tf.zeros_like(variable))

    def _update_at_once(self, inputs: Mapping[str, tf.Tensor], targets: tf.Tensor) -> tf.Tensor:
        gradients, totals = self._gradients(inputs, targets)
        *gradients, totals = self.distribution.sum([*gradients, totals])
        known = tf.maximum(totals[1], 1.0)
        self._apply([gradient / known for gradient in gradients])
        return totals

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        # Here, once: Keras's optimizer would compute the rate anew for every weight that decays.
        self.optimizer.learning_rate.assign(self.rate(self.optimizer.iterations))
        self.optimizer.apply(gradients, self.model.trainable_variables)


def learning_rate(settings: Optimizer, updates: int) -> Callable[[Any], Any]:
    """Return the rate by the number of updates so far; `updates` is the length of the schedule."""
    warmup = round(settings.warmup * updates)
    first = settings.learning_rate / max(warmup, 1)
    if settings.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=first,
            decay_steps=max(updates - warmup, 1),
            warmup_target=settings.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    if warmup:
        return keras.optimizers.schedules.PolynomialDecay(
            initial_learning_rate=first,
            decay_steps=warmup,
            end_learning_rate=settings.learning_rate,
        )
    return lambda done: settings.learning_rate


def build_optimizer(settings: Optimizer, precision: str = "float32") -> keras.optimizers.Optimizer:
    """Return the recipe's optimizer, at the recipe's rate; a schedule is `learning_rate`'s."""
    settings_of_all: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "global_clipnorm": settings.clip_norm,
    }
    decay = {"weight_decay": settings.weight_decay}
    if settings.name == "sgd":
        optimizer = keras.optimizers.SGD(momentum=settings.beta_1, **decay, **settings_of_all)
    else:
        kinds = {
            "adam": keras.optimizers.Adam,
            "adamax": keras.optimizers.Adamax,
            "adamw": keras.optimizers.AdamW,
        }
        optimizer = kinds[settings.name](
            beta_1=settings.beta_1,
            beta_2=settings.beta_2,
            epsilon=settings.epsilon,
            **(decay if settings.name == "adamw" else {}),
            **settings_of_all,
        )
    if precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
