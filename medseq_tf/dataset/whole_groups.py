"""Division of patients who may not be parted at will: whole sites, and one date after the other."""

from __future__ import annotations

import numpy as np

STARTS, FEWEST_STARTS = 30, 3
"""Random divisions from which the nearest to the shares is looked for: fewer of many groups."""
PLENTY = 100
"""Groups from which on there are fewer: many small ones come near to their shares from any."""
EMPTY, UNTAUGHT, UNSEEN = 1000.0, 100.0, 1.0
"""What a split costs that is empty, that lacks a kind of patients to learn from, or to test on."""
GAIN = 1e-9
"""A smaller one is a rounding error."""


def place_whole(
    kinds: np.ndarray, sizes: np.ndarray, shares: np.ndarray, rng: np.random.Generator, train: int
) -> np.ndarray:
    """Deal out large groups of patients, so that the splits come near to their shares.

    What is made small is `_Cost`: by moving a group, or else exchanging two, as long as that helps,
    from several divisions at random. No split is left empty, and training is left with every kind,
    where that is possible at all.

    Args:
        kinds: (groups, kinds) number of patients of each kind in each group.
        sizes: (groups,) number of patients.
        shares: (splits,) share of the patients; they add up to 1.
        rng: decides among equals.
        train: number of the split that trains; -1: each is tested, and the others train.

    Returns:
        (groups,) the number of the split.
    """
    amounts = np.column_stack([sizes, kinds]).astype(float)
    cost = _Cost(amounts.sum(axis=0), shares, train)
    best, least = np.zeros(len(sizes), np.int64), np.inf
    for _ in range(max(FEWEST_STARTS, STARTS * PLENTY // max(PLENTY, len(sizes)))):
        places, total = _improved(rng.integers(len(shares), size=len(sizes)), amounts, cost)
        if total < least - GAIN:
            best, least = places, total
    return best


class _Cost:
    """How far splits are from their shares of the patients, and of the patients of each kind.

    The squared distance of each, as a share of all its patients; over the kinds their mean.
    """

    def __init__(self, totals: np.ndarray, shares: np.ndarray, train: int):
        self.totals = totals
        self.shares = shares
        self.train = train

    def of(self, split: int, held: np.ndarray) -> np.ndarray:
        """Return what a split costs that holds (..., 1 + kinds) patients, and of each kind."""
        far = (held / np.maximum(self.totals, 1) - self.shares[split]) ** 2
        taught = held if self.train >= 0 else self.totals - held
        untaught = ((taught < 0.5) & (self.totals > 0))[..., 1:].sum(axis=-1)
        unseen = ((held < 0.5) & (self.totals > 0))[..., 1:].sum(axis=-1)
        learns = self.train in (split, -1)
        return (
            far[..., 0]
            + far[..., 1:].mean(axis=-1)
            + EMPTY * (held[..., 0] < 0.5)
            + UNTAUGHT * untaught * learns
            + UNSEEN * unseen
        )


def _improved(places: np.ndarray, amounts: np.ndarray, cost: _Cost) -> tuple[np.ndarray, float]:
    """Return a division that no move or exchange makes better, and its cost."""
    splits = range(len(cost.shares))
    held = np.stack([amounts[places == split].sum(axis=0) for split in splits])
    costs = np.array([cost.of(split, held[split]) for split in splits])
    while True:
        change = _best_move(places, amounts, held, costs, cost)
        if change is None:
            change = _best_exchange(places, amounts, held, costs, cost)
        if change is None:
            return places, float(costs.sum())
        for group, split in change:
            held[places[group]] -= amounts[group]
            held[split] += amounts[group]
            places[group] = split
        costs = np.array([cost.of(split, held[split]) for split in splits])


Change = list[tuple[int, int]]
"""Groups and the splits they go to."""


def _best_move(
    places: np.ndarray, amounts: np.ndarray, held: np.ndarray, costs: np.ndarray, cost: _Cost
) -> Change | None:
    best, most = None, GAIN
    for split in range(len(costs)):
        inside = np.flatnonzero(places == split)
        left = cost.of(split, held[split] - amounts[inside])
        for other in range(len(costs)):
            if other == split or not len(inside):
                continue
            gains = costs[split] + costs[other] - left
            gains = gains - cost.of(other, held[other] + amounts[inside])
            if gains.max() > most:
                best, most = [(int(inside[gains.argmax()]), other)], gains.max()
    return best


def _best_exchange(
    places: np.ndarray, amounts: np.ndarray, held: np.ndarray, costs: np.ndarray, cost: _Cost
) -> Change | None:
    best, most = None, GAIN
    for split in range(len(costs)):
        mine = np.flatnonzero(places == split)
        for other in range(split + 1, len(costs)):
            theirs = np.flatnonzero(places == other)
            if not len(mine) or not len(theirs):
                continue
            change = amounts[theirs][None] - amounts[mine][:, None]
            after = cost.of(split, held[split] + change) + cost.of(other, held[other] - change)
            gains = costs[split] + costs[other] - after
            if gains.max() > most:
                first, second = np.unravel_index(gains.argmax(), gains.shape)
                best = [(int(mine[first]), other), (int(theirs[second]), split)]
                most = gains.max()
    return best


def place_by_date(dates: np.ndarray, sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Give the oldest groups to the first split, the latest to the last.

    A date is not parted: each split begins with the date that brings it nearest to its share, and
    of two that are equally near, with the later one.

    Args:
        dates: (groups,) rank of the latest study; there are as many different ones as splits.
        sizes: (groups,) number of patients.
        shares: (splits,) share of the patients; they add up to 1.

    Returns:
        (groups,) the number of the split.
    """
    days, number = np.unique(dates, return_inverse=True)
    before = np.concatenate([[0], np.cumsum(np.bincount(number, sizes))])
    starts, end = [], len(days)
    for split in range(len(shares) - 1, 0, -1):
        wanted = shares[:split].sum() * before[-1]
        possible = np.arange(split, end)[::-1]
        end = int(possible[np.abs(before[possible] - wanted).round(6).argmin()])
        starts.append(end)
    return np.searchsorted(sorted(starts), number, side="right")
