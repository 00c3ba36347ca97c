"""What a layer has to know of the other replicas, where several devices train copies of one model.

A replica sees its share of each batch. What looks across the batch, as statistics of it do, sums
over all shares by `summed`, so that N replicas compute what one device computes of the whole batch.
Whoever trains says by `among` how sums are made; elsewhere a replica is alone, and `summed` gives
back what it gets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from keras import ops

from medseq_tf.layers.layer import Tensor

Sums = Callable[[list[Tensor]], Sequence[Tensor]]
"""Tensors to their sums over all replicas, through which gradients flow; each replica calls it."""


class _Here(threading.local):
    sums: Sums | None = None
    counts: Tensor | bool = True


_here = _Here()  # replicas are traced in a thread each


@contextmanager
def among(sums: Sums, counts: Tensor | bool = True) -> Iterator[None]:
    """Let `summed` of this thread sum over replicas.

    Args:
        sums: sums tensors.
        counts: whether this replica's share is one, or stands in for none and counts in no sum.
    """
    before = _here.sums, _here.counts
    _here.sums, _here.counts = sums, counts
    try:
        yield
    finally:
        _here.sums, _here.counts = before


def is_alone() -> bool:
    """Return whether there is no other replica."""
    return _here.sums is None


def counted(tensor: Tensor) -> Tensor:
    """Return a tensor; 0 in its place where this replica's share counts in no sum."""
    if _here.counts is True:
        return tensor
    return ops.where(_here.counts, tensor, ops.zeros_like(tensor))


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """Return the sums of tensors over all replicas."""
    return tensors if _here.sums is None else list(_here.sums(list(map(counted, tensors))))
