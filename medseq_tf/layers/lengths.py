"""Takes lengths, gives masks of the real slices."""

from __future__ import annotations

from keras import ops


def sequence_mask(lengths, steps):
    """Which of `steps` positions hold a real slice.

    Args:
        lengths: `(batch,)` integers, the number of real slices of each study.
        steps: number of positions, padding included.

    Returns:
        `(batch, steps)` bool.
    """
    lengths = ops.expand_dims(ops.cast(lengths, "int32"), 1)
    return ops.expand_dims(ops.arange(steps, dtype="int32"), 0) < lengths


def zero_padding(inputs, mask):
    """`inputs` `(batch, steps, ...)` with zeros wherever `mask` `(batch, steps)` is False."""
    mask = ops.reshape(mask, (*ops.shape(mask), *(1 for _ in inputs.shape[2:])))
    return ops.where(mask, inputs, ops.zeros((), dtype=inputs.dtype))
