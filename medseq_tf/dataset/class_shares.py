"""Division of patients who each have one of several classes: every split its share of every class.

Whole numbers near to a table of shares, whose sums over the splits and over the classes are kept
too, are a controlled rounding of it (Bacharach 1966; Cox 1987). It always exists, because the
constraints are those of a transport problem, and is found as such by linear programming.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

ROUNDING = 1e-9
"""By which a share may miss a whole number and be it."""


def place_classes(
    kinds: np.ndarray, sizes: np.ndarray, shares: np.ndarray, rng: np.random.Generator, train: int
) -> np.ndarray:
    """Deal out groups of patients, so that each split holds its share of every class.

    Groups of several patients, and patients with studies of several classes, come first, the
    largest before the others, each where most of its classes is still wanted. The others fill up
    what is left: of every class, each split gets its share rounded up or down, and of all patients
    too.

    Args:
        kinds: (groups, classes + 1) number of patients of each class, and of an unknown one.
        sizes: (groups,) number of patients.
        shares: (splits,) share of the patients; they add up to 1.
        rng: decides the order of equal groups and ties.
        train: number of the split that has to have every class; -1: there is none.

    Returns:
        (groups,) the number of the split.
    """
    totals = kinds.sum(axis=0)
    wanted = np.stack([wanted_of_class(total, shares, train) for total in totals[:-1]])
    remaining = np.concatenate([wanted, totals[-1:, None] * shares]).T
    places = np.full(len(sizes), -1)
    shuffled = rng.permutation(len(sizes))
    is_free = (sizes == 1) & (kinds.sum(axis=1) == 1)
    bound = shuffled[~is_free[shuffled]]
    for group in bound[np.argsort(-sizes[bound], kind="stable")]:
        desire = remaining @ kinds[group]
        best = np.flatnonzero(np.isclose(desire, desire.max()))
        places[group] = best[rng.integers(len(best))]
        remaining[places[group]] -= kinds[group]
    free = np.where(is_free[:, None], kinds, 0)
    counts = round_table(_not_negative(remaining.T, free.sum(axis=0)), rng)
    for kind, of_splits in enumerate(counts):
        places[shuffled[free[shuffled, kind] > 0]] = np.repeat(np.arange(len(shares)), of_splits)
    return places


def wanted_of_class(total: int, shares: np.ndarray, train: int = -1) -> np.ndarray:
    """Return how many of a class's patients each split wants: its share, but one if possible.

    Of a class with fewer patients than there are splits, the split `train` wants one (-1: none).
    """
    wanted = total * shares
    everyone = total >= len(shares)
    low = (wanted < 1) & (everyone | ((np.arange(len(shares)) == train) & (total > 0)))
    while low.any() and (wanted[low] < 1).any():
        wanted[low] = 1.0
        wanted[~low] = (total - low.sum()) * shares[~low] / shares[~low].sum()
        low |= everyone & (wanted < 1)
    return wanted


def _not_negative(wanted: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return what is wanted (kinds, splits) with nothing below 0, the sums by kind kept."""
    wanted = np.clip(wanted, 0, None)
    sums = wanted.sum(axis=1, keepdims=True)
    return wanted * np.divide(totals[:, None], sums, out=np.zeros_like(sums), where=sums > 0)


def round_table(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round a table up or down so that its sums over rows, and over columns, are rounded too.

    The sums over the columns of each row are whole numbers. Of all such roundings it is one of
    those nearest to the table by the sum of squares; `rng` decides among equals.
    """
    low = np.floor(table + ROUNDING)
    part = np.clip(table - low, 0, 1)
    part[part < ROUNDING] = 0
    rows, columns = table.shape
    by_row = np.kron(np.eye(rows), np.ones(columns))
    by_column = np.kron(np.ones(rows), np.eye(columns))
    sums = part.sum(axis=0)
    cost = 1 - 2 * part + 1e-3 * rng.random(part.shape)
    found = optimize.linprog(
        cost.ravel(),
        A_ub=np.concatenate([by_column, -by_column]),
        b_ub=np.concatenate([np.ceil(sums - ROUNDING), -np.floor(sums + ROUNDING)]),
        A_eq=by_row,
        b_eq=np.rint(part.sum(axis=1)),
        bounds=[(0, float(has_part)) for has_part in (part > 0).ravel()],
        method="highs-ds",
    )
    return (low + np.rint(found.x).reshape(part.shape)).astype(np.int64)
