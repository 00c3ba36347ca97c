"""The optimizers of a recipe, and the learning rate by the number of updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from medseq_tf.recipe import Optimizer


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
        "clipnorm": None,
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
