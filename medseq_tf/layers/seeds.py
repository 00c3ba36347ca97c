"""Seeds for the parts of a layer or model, of one seed."""

from __future__ import annotations

import numpy as np


def child_seeds(seed: int | None, count: int) -> list[int | None]:
    """Return `count` independent seeds; each None, to draw anew, where `seed` is None."""
    if seed is None:
        return [None] * count
    # 31 bits: Keras keeps seeds in int32 on some backends.
    return [int(s) >> 1 for s in np.random.SeedSequence(seed).generate_state(count)]
