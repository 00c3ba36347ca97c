"""Pairs of perceptual hashes that differ in few bits, found without comparing each with each.

Of hashes cut into more parts than bits may differ, two near ones have a part in common (the pigeon
hole principle; Norouzi et al. 2012, section 2). So only hashes that share a part are compared: of a
hundred thousand times as many pairs a few millions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BITS = 256
FEWEST_PARTS = 8
BLOCK = 256
COMPARED_TOGETHER = 2**22
"""Pairs of hashes that are held in memory at once."""
COMPARED_PLAINLY = 2**26
"""So many pairs take a second, each with each."""
WORTH = 8
"""How many times fewer pairs have to share a part than there are, to look for those first."""

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def near(bits: np.ndarray, others: np.ndarray, distance: int) -> Iterator[Pairs]:
    """Find all pairs of hashes that differ in at most `distance` bits.

    Args:
        bits: `(N, 4)` uint64.
        others: `(M, 4)` uint64.
        distance: the most bits.

    Yields:
        Positions in `bits` and in `others`, and the number of bits, `(pairs,)` each; every pair
        once, in no order that means something.
    """
    parts, pairs = max(distance + 1, FEWEST_PARTS), len(bits) * len(others)
    if pairs <= COMPARED_PLAINLY or parts > BITS:
        yield from _each_with_each(bits, others, distance)
        return
    mine, theirs = _parts(bits, parts), _parts(others, parts)
    shared = sum(int(_sharing(a, b)[2].sum()) for a, b in zip(mine, theirs, strict=True))
    if shared > pairs // WORTH:
        yield from _each_with_each(bits, others, distance)
        return
    for part in range(parts):
        for a, b in _pairs_of_a_part(mine[part], theirs[part]):
            found_a, found_b, differing = _checked(bits, others, a, b, distance)
            is_new = ~(mine[:part, found_a] == theirs[:part, found_b]).any(axis=0)
            yield found_a[is_new], found_b[is_new], differing[is_new]


def _each_with_each(bits: np.ndarray, others: np.ndarray, distance: int) -> Iterator[Pairs]:
    """Compare each with each, by the first quarter of their bits and then by all."""
    block = max(1, min(BLOCK, COMPARED_TOGETHER // max(len(others), 1)))
    for start in range(0, len(bits), block):
        first = bits[start : start + block, None, 0] ^ others[None, :, 0]
        a, b = np.nonzero(np.bitwise_count(first) <= distance)
        yield _checked(bits, others, a + start, b, distance)


def _checked(
    bits: np.ndarray, others: np.ndarray, a: np.ndarray, b: np.ndarray, distance: int
) -> Pairs:
    """Return those of some pairs that are near, and in how many bits they differ."""
    differing = np.bitwise_count(bits[a] ^ others[b]).sum(axis=1)
    kept = differing <= distance
    return a[kept], b[kept], differing[kept]


def _parts(bits: np.ndarray, parts: int) -> np.ndarray:
    """Return the parts of hashes as numbers, `(parts, N)` uint32."""
    found = np.empty((parts, len(bits)), np.uint32)
    places = np.array_split(np.arange(BITS), parts)
    rows = 2**16
    for start in range(0, len(bits), rows):
        block = np.ascontiguousarray(bits[start : start + rows]).view(np.uint8)
        unpacked = np.unpackbits(block, axis=1)
        for part, place in enumerate(places):
            powers = np.uint32(1) << np.arange(len(place), dtype=np.uint32)
            found[part, start : start + rows] = unpacked[:, place] @ powers
    return found


def _sharing(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of `theirs`, and for each of `mine` where its equals begin and how many."""
    order = np.argsort(theirs, kind="stable")
    in_order = theirs[order]
    first = np.searchsorted(in_order, mine, "left")
    return order, first, np.searchsorted(in_order, mine, "right") - first


def _pairs_of_a_part(
    mine: np.ndarray, theirs: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions of equal numbers, some `COMPARED_TOGETHER` pairs at a time."""
    order, first, counts = _sharing(mine, theirs)
    groups = (np.cumsum(counts) - counts) // COMPARED_TOGETHER
    for rows in np.split(np.arange(len(mine)), np.flatnonzero(np.diff(groups)) + 1):
        a = np.repeat(rows, counts[rows])
        begins = np.cumsum(counts[rows]) - counts[rows]
        within = np.arange(len(a)) - np.repeat(begins, counts[rows])
        yield a, order[first[a] + within]
