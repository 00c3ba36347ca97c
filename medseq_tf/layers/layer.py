"""The base of all layers here, and the parts that many of them have."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeAlias

import keras
import numpy as np

Tensor: TypeAlias = Any
"""Of whatever backend is set."""
Shape: TypeAlias = tuple[Any, ...]
"""Sizes of the axes; None where a size is free."""
Training: TypeAlias = bool | None
"""Whether a call is one of training; None: as the layer that calls it."""


class Layer(keras.layers.Layer):
    """A layer that keeps every argument of its constructor as an attribute of the same name.

    The attributes are its configuration, from which a saved model is read back; an argument that is
    a layer itself stands there by its own configuration.
    """

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        arguments = {name: getattr(self, name) for name in arguments_of(type(self))}
        return {**super().get_config(), **{k: _plain(v) for k, v in arguments.items()}}

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """Return the shape of the outputs; here: that of the inputs."""
        return inputs_shape

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Layer:
        """Return the layer that has this configuration."""
        return cls(**{name: _revived(name, value) for name, value in config.items()})


def arguments_of(layer: type[Layer]) -> list[str]:
    """Return the names of the arguments that a layer's constructor adds to those of Keras."""
    if layer.__init__ is keras.layers.Layer.__init__:
        return []
    _, *parameters = inspect.signature(layer.__init__).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _plain(value: Any) -> Any:
    is_layer = isinstance(value, keras.layers.Layer)
    return keras.saving.serialize_keras_object(value) if is_layer else value


def _revived(name: str, value: Any) -> Any:
    is_layer = name != "dtype" and isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_layer else value


def child_seeds(seed: int | None, count: int) -> list[int | None]:
    """Return `count` independent seeds; each None, to draw anew, where `seed` is None."""
    if seed is None:
        return [None] * count
    # 31 bits: Keras keeps seeds in int32 on some backends.
    return [int(s) >> 1 for s in np.random.SeedSequence(seed).generate_state(count)]


def check_choice(name: str, value: str, valid: Iterable[str]) -> None:
    """Raise a ValueError where an argument is none of the valid ones."""
    if value not in valid:
        raise ValueError(f"{name} is one of {', '.join(valid)}, got {value!r}")


def dense(
    units: int, seed: int | None, name: str, activation: str | None = None, **kwargs: Any
) -> keras.layers.Dense:
    """Return a dense layer, its kernel drawn as by Glorot and Bengio (2010)."""
    kernel = keras.initializers.GlorotUniform(seed)
    return keras.layers.Dense(units, activation, kernel_initializer=kernel, name=name, **kwargs)
