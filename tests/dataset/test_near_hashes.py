"""Near hashes: those that a plain comparison finds, each pair once, however they are looked for."""

from __future__ import annotations

import numpy as np
import pytest

from medseq_tf.dataset import near_hashes


@pytest.fixture
def hashes(rng):
    """Hashes, and others that differ from one of them in 0 to 29 bits; and some that are equal."""
    bits = rng.integers(0, 2**63, (40, 4), dtype=np.uint64)
    others = bits[rng.integers(40, size=60)].copy()
    for row, flips in enumerate(rng.integers(0, 30, 60)):
        for bit in rng.choice(256, flips, replace=False):
            others[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return bits, np.concatenate([others, others[:5]])


def plain(bits, others, distance):
    pairs = [
        (i, j, sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True)))
        for i, a in enumerate(bits)
        for j, b in enumerate(others)
    ]
    return [pair for pair in pairs if pair[2] <= distance]


def found(bits, others, distance):
    blocks = list(near_hashes.near(bits, others, distance))
    pairs = [np.concatenate(parts).tolist() for parts in zip(*blocks, strict=True)]
    return sorted(zip(*pairs, strict=True))


@pytest.mark.parametrize("distance", [0, 8, 16, 31])
@pytest.mark.parametrize("together", [1, 7, 2**22])
def test_what_a_plain_comparison_finds(hashes, monkeypatch, distance, together):
    expected = plain(*hashes, distance)
    assert expected
    monkeypatch.setattr(near_hashes, "COMPARED_TOGETHER", together)
    assert found(*hashes, distance) == expected
    monkeypatch.setattr(near_hashes, "COMPARED_PLAINLY", 0)
    monkeypatch.setattr(near_hashes, "WORTH", 1)
    monkeypatch.setattr(near_hashes, "_each_with_each", None)
    assert found(*hashes, distance) == expected


def test_hashes_that_are_all_alike_are_compared_each_with_each(monkeypatch):
    same = np.ones((30, 4), np.uint64)
    monkeypatch.setattr(near_hashes, "COMPARED_PLAINLY", 0)
    assert found(same, same, 16) == [(i, j, 0) for i in range(30) for j in range(30)]


def test_none_against_some(hashes):
    none = np.empty((0, 4), np.uint64)
    for pair in ((none, hashes[0]), (hashes[0], none), (none, none)):
        assert sum(len(a) for a, _, _ in near_hashes.near(*pair, 16)) == 0
