"""Which slices of a padded batch are real, by the lengths of its studies."""

from __future__ import annotations

from keras import ops

from medseq_tf.layers.layer import Tensor


def sequence_mask(lengths: Tensor, steps: int | Tensor) -> Tensor:
    """Return which of `steps` positions hold a real slice.

    Args:
        lengths: `(B,)` integers, the number of real slices of each study.
        steps: number of positions, padding included.

    Returns:
        `(B, T)` bool.
    """
    lengths = ops.expand_dims(ops.cast(lengths, "int32"), 1)
    return ops.expand_dims(ops.arange(steps, dtype="int32"), 0) < lengths


def zero_padding(inputs: Tensor, mask: Tensor) -> Tensor:
    """Return `inputs` `(B, T, ...)` with zeros where `mask` `(B, T)` is False."""
    mask = ops.reshape(mask, (*ops.shape(mask), *(1 for _ in inputs.shape[2:])))
    return ops.where(mask, inputs, ops.zeros((), dtype=inputs.dtype))
