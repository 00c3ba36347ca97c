"""What every encoder, aggregator and model here has to hold, and small ones to check it on.

The checks run over calls `(inputs, lengths) -> outputs` with right-padded inputs `(batch, steps,
...)`; each raises AssertionError with the difference found.
"""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pydantic
import tensorflow as tf

from medseq_tf import recipe as recipes
from medseq_tf.models import ENCODERS
from medseq_tf.models.aggregators import build_aggregator

NOISE = 1e3
SLICE_SHAPE = (4, 5, 2)
"""Of the slices that aggregators of pixels read."""


def aggregator_settings(name, **changes):
    """The recipe's settings of an aggregator, some of them changed."""
    values = {"encoder": {"name": "pixels"}, "aggregator": {"name": name, **changes}}
    return recipes.Model(**values).aggregator


def aggregator(name, seed=0, **changes):
    """An aggregator by its settings; those of pixels take 40 features."""
    return build_aggregator(aggregator_settings(name, **changes), SLICE_SHAPE, seed)


def encoder_settings(name, **changes):
    """The recipe's settings of an encoder, some of them changed."""
    return recipes.Model(encoder={"name": name, **changes}).encoder


def encoder(name, seed=0, skip_padding=True, **changes):
    """An encoder by its settings."""
    return ENCODERS[name](encoder_settings(name, **changes), seed, skip_padding)


def other_values(settings):
    """Settings, every one of which has another value than before, where one is easily found."""
    changes = {}
    for key, value in [*settings, *settings]:  # what some keys may be depends on later ones
        if key in changes:
            continue
        listed = recipes.choices(type(settings), key)
        if isinstance(value, bool):
            changes[key] = not value
        elif isinstance(value, int | float):
            changes[key] = value // 2 or 2 if isinstance(value, int) else value / 2 or 0.1
        elif isinstance(value, list):
            changes[key] = value[::-1]
        elif value in listed and key != "name":
            changes[key] = next(choice for choice in listed if choice != value)
        try:
            settings = type(settings).model_validate({**dict(settings), **changes})
        except pydantic.ValidationError:
            del changes[key]
    return settings


def randomize_moving_statistics(layer, seed=0):
    """Give every moving mean and variance a value of its own, near 0 and 1."""
    rng = np.random.default_rng(seed)
    for variable in layer.non_trainable_variables:
        if "moving_mean" in variable.path:
            variable.assign(rng.normal(0, 0.1, variable.shape))
        elif "moving_variance" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def pad(inputs, steps, rng):
    """`inputs` with noise appended along axis 1 until there are `steps`."""
    shape = (len(inputs), steps - inputs.shape[1], *inputs.shape[2:])
    noise = rng.normal(0, NOISE, shape).astype(inputs.dtype)
    return np.concatenate([inputs, noise], axis=1)


def fill_padding(inputs, lengths, rng):
    """`inputs` with noise wherever a study has ended."""
    inputs = inputs.copy()
    for row, length in zip(inputs, lengths, strict=True):
        row[length:] = rng.normal(0, NOISE, row[length:].shape)
    return inputs


def check_padding(call, inputs, lengths, longest=None, tolerance=1e-5, each_alone=True):
    """Padding, noise in it, longer batch-mates and the batch itself change no output.

    Args:
        call: `(inputs, lengths) -> outputs`, `(batch, ...)` or, with the steps, `(batch, steps,
            ...)`, whose padding then has to be zeros.
        inputs: `(batch, steps, ...)` float32.
        lengths: `(batch,)`.
        longest: number of steps to pad to; None: 3 more than there are.
        tolerance: largest difference allowed.
        each_alone: whether a study by itself has to give what it gives in the batch.
    """
    rng = np.random.default_rng(1)
    steps = inputs.shape[1]
    longest = steps + 3 if longest is None else longest
    lengths = np.asarray(lengths, "int32")
    expected = np.asarray(call(fill_padding(inputs, lengths, np.random.default_rng(2)), lengths))
    by_step = expected.ndim > 1 and expected.shape[1] == steps
    variants = {
        "other noise": (fill_padding(inputs, lengths, rng), lengths),
        "more padding": (pad(fill_padding(inputs, lengths, rng), longest, rng), lengths),
    }
    for name, (variant, variant_lengths) in variants.items():
        got = np.asarray(call(variant, variant_lengths))
        if by_step:
            assert not got[:, steps:].any(), f"{name}: the padding is not zero"
            got = got[:, :steps]
        assert np.abs(got - expected).max() <= tolerance, name
    if by_step:
        for row, length in zip(expected, lengths, strict=True):
            assert not row[length:].any(), "the padding is not zero"
    for index, length in enumerate(lengths if each_alone else ()):
        got = np.asarray(call(inputs[index : index + 1, :length], lengths[index : index + 1]))[0]
        want = expected[index, :length] if by_step else expected[index]
        assert np.abs(got - want).max() <= tolerance, f"study {index} alone"


def check_round_trip(layer, *args, tolerance=0.0, **kwargs):
    """A layer from its own configuration, with the same weights, gives the same outputs.

    The configuration has to be JSON and hold every argument of the constructor.
    """
    expected = np.asarray(layer(*args, **kwargs))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    arguments = [
        name
        for name, parameter in inspect.signature(type(layer).__init__).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    ]
    missing = [name for name in arguments if name not in config["config"]]
    assert not missing, f"get_config lacks {missing}"
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer)
    for name in arguments:
        if not isinstance(getattr(layer, name), keras.layers.Layer):
            assert getattr(copy, name) == getattr(layer, name), name
    copy(*args, **kwargs)
    copy.set_weights(layer.get_weights())
    got = np.asarray(copy(*args, **kwargs))
    assert np.abs(got - expected).max() <= tolerance


def check_one_trace(call, *shapes, batches=((3, 4), (1, 1), (2, 7), (5, 2))):
    """One `tf.function` trace serves every batch size and number of steps, B > T included.

    Args:
        call: `(inputs, lengths) -> outputs`.
        shapes: what follows `(batch, steps)` in the inputs.
        batches: pairs of batch size and steps.
    """
    traces = []

    def counted(inputs, lengths):
        traces.append(inputs.shape)
        return call(inputs, lengths)

    signature = [tf.TensorSpec((None, None, *shapes)), tf.TensorSpec((None,), tf.int32)]
    function = tf.function(counted, input_signature=signature)
    rng = np.random.default_rng(3)
    for batch, steps in batches:
        inputs = rng.normal(size=(batch, steps, *shapes)).astype("float32")
        lengths = rng.integers(1, steps + 1, size=batch).astype("int32")
        expected = call(inputs, lengths)  # first, for it may build
        np.testing.assert_allclose(function(inputs, lengths), expected, atol=1e-5)
    assert len(traces) == 1
