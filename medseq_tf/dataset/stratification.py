"""Stratified division of patients: each split gets its share of every class of every label.

Patients who share a slice's content stay together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medseq_tf.errors import InputError

CANDIDATES = 100
"""Groups of a split that are looked at for an exchange: the first of them."""

Rows = dict[str, np.ndarray]
"""Row numbers (studies,) int64, ascending, by the name of the split."""


def divide(
    studies: pd.DataFrame,
    rows: np.ndarray,
    shares: dict[str, float],
    seed: tuple[int, ...],
    what: str,
) -> Rows:
    """Divide some rows by patient, stratified; a share of 0 gives an empty split.

    `shares` of the patients, by the name of the split, add up to 1; `seed` is the entropy of the
    random order, and `what` is being made, for errors.
    """
    rows = np.asarray(rows)
    by_id = np.argsort(studies["study_id"].iloc[rows].to_numpy().astype(str), kind="stable")
    rows = rows[by_id]
    chosen = studies.iloc[rows]
    patients = chosen["patient_id"].to_numpy()
    groups = _patient_groups(patients, chosen["slice_hashes"].tolist())
    columns = [column for column in chosen.columns if column.startswith("label.")]
    labels = chosen[columns].to_numpy(dtype=float)
    members = [_members(positions, patients, labels) for positions in groups]
    sizes = np.array([len(member) for member in members])
    classes = np.array([member.sum(axis=0) for member in members])

    names = [name for name, share in shares.items() if share > 0]
    wanted = np.array([shares[name] for name in names])
    positive_shares = {name: shares[name] for name in names}
    _check_enough(columns, classes.sum(axis=0), sizes.sum(), positive_shares, what)
    entropy = [number % 2**32 for number in seed]
    places = _stratify(classes, sizes, wanted, np.random.default_rng(entropy))
    if len(columns) > 1:
        places = _exchange(classes, sizes, places, wanted)
    _check_classes(columns, classes, places, names)
    result = {name: np.empty(0, dtype=np.int64) for name in shares}
    for index, name in enumerate(names):
        inside = [groups[group] for group in np.flatnonzero(places == index)]
        result[name] = np.sort(rows[np.concatenate(inside)]).astype(np.int64)
    return result


def _members(positions: list[int], patients: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the classes of a group's patients: (patients, 2 * labels), positive ones first.

    A patient is in a class of a label if one of the studies is: in both if the studies differ (as
    ATLAS's lesion and lesion-free sequences do), in neither if the label is unknown.
    """
    rows = []
    for patient in dict.fromkeys(patients[positions]):
        own = labels[[position for position in positions if patients[position] == patient]]
        rows.append(np.concatenate([(own == 1).any(axis=0), (own == 0).any(axis=0)]))
    return np.array(rows, dtype=np.int64)


def _stratify(
    classes: np.ndarray, sizes: np.ndarray, shares: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Iterative stratification (Sechidis et al. 2011, algorithm 1) with fixed sizes.

    The rarest class is dealt out first, each group to the split that still wants most of that
    class, then to the one with most room. A split never takes more patients than its size while
    another has room: sizes are exact where no group holds several patients.

    Args:
        classes: (groups, classes) number of patients of each class in each group.
        sizes: (groups,) number of patients.
        shares: (splits,) share of the patients; they add up to 1.
        rng: Decides the order of equal groups and ties.

    Returns:
        (groups,) the number of the split.
    """
    smallest = 2 if classes.shape[1] == 2 else 1
    room = _apportion(sizes.sum(), shares, smallest)
    wanted = np.stack([_wanted(total, shares) for total in classes.sum(axis=0)], axis=1)
    places = np.full(len(sizes), -1)
    shuffled = rng.permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]

    def place(group: int, desire: np.ndarray) -> None:
        fits = room >= sizes[group]
        candidates = np.flatnonzero(fits if fits.any() else room == room.max())
        best = candidates[np.isclose(desire[candidates], desire[candidates].max())]
        best = best[room[best] == room[best].max()]
        choice = best[rng.integers(len(best))]
        places[group] = choice
        room[choice] -= sizes[group]
        wanted[choice] -= classes[group]

    while True:
        left = np.where((places < 0)[:, None], classes, 0).sum(axis=0)
        if not left.any():
            break
        rarest = np.flatnonzero(left == left[left > 0].min())[0]
        for group in order[(places[order] < 0) & (classes[order, rarest] > 0)]:
            place(group, wanted[:, rarest])
    for group in order[places[order] < 0]:
        place(group, room)
    return places


def _exchange(
    classes: np.ndarray, sizes: np.ndarray, places: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Exchange groups of equal size between splits until each has what it should of every class.

    With several labels a patient who is dealt out for the one takes the place of another, and a
    small split can be full before a rare label's turn comes. Of a class with two patients for each
    split, and two more where training is one of them, every split should have two; of one with a
    patient for each split, one. An exchange is made if it lessens what is missing; of several, the
    one that keeps the splits nearest to their shares. Arguments and result are as of `_stratify`,
    which gave `places`; where nothing is missing, they are unchanged.
    """
    places, count = places.copy(), len(shares)
    totals = classes.sum(axis=0)
    spare = 0 if np.allclose(shares, shares[0]) else 2
    least = np.where(totals >= 2 * count + spare, 2, np.where(totals >= count, 1, 0))
    fair = shares[:, None] * totals
    held = np.stack([classes[places == split].sum(axis=0) for split in range(count)])

    def missing(amounts: np.ndarray) -> np.ndarray:
        return np.clip(least - amounts, 0, None).sum(axis=-1)

    while True:
        best = None
        for split, kind in np.argwhere(held < least):
            givers = np.flatnonzero((places != split) & (classes[:, kind] > 0))[:CANDIDATES]
            takers = np.flatnonzero((places == split) & (classes[:, kind] == 0))[:CANDIDATES]
            for giver in givers:
                others = takers[sizes[takers] == sizes[giver]]
                other = places[giver]
                change = classes[giver] - classes[others]
                after, rest = held[split] + change, held[other] - change
                gain = missing(held[split]) + missing(held[other]) - missing(after) - missing(rest)
                far = ((after - fair[split]) ** 2 + (rest - fair[other]) ** 2).sum(axis=-1)
                for number in np.flatnonzero(gain > 0):
                    key = (-gain[number], far[number], giver, others[number])
                    best = key if best is None or key < best else best
        if best is None:
            return places
        giver, taker = best[2:]
        split, other = places[taker], places[giver]
        change = classes[giver] - classes[taker]
        held[split], held[other] = held[split] + change, held[other] - change
        places[giver], places[taker] = split, other


def _wanted(total: int, shares: np.ndarray) -> np.ndarray:
    """Return how many of a class's patients each split wants: its share, but one if possible."""
    wanted = total * shares
    if total >= len(shares):
        low = wanted < 1
        while low.any() and (wanted[low] < 1).any():
            wanted[low] = 1.0
            wanted[~low] = (total - low.sum()) * shares[~low] / shares[~low].sum()
            low |= wanted < 1
    return wanted


def _apportion(total: int, shares: np.ndarray, smallest: int) -> np.ndarray:
    """Return whole numbers that add up to `total` (largest remainders), none below `smallest`."""
    exact = total * shares
    whole = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(-(exact - whole).round(9), kind="stable")
    whole[by_remainder[: total - whole.sum()]] += 1
    while whole.min() < smallest < whole.max():
        whole[whole.argmin()] += 1
        whole[whole.argmax()] -= 1
    return whole


def telling_hashes(slice_hashes: object) -> Iterator[str]:
    """Yield the slice hashes of a study that say something."""
    if isinstance(slice_hashes, (list, tuple, np.ndarray)):
        yield from (content for content in slice_hashes if isinstance(content, str))


def _patient_groups(patients: np.ndarray, slice_hashes: list[object]) -> list[list[int]]:
    """Group the positions of studies whose patients are linked by the content of a slice."""
    parent = {patient: patient for patient in patients}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, hashes in zip(patients, slice_hashes, strict=True):
        for content in telling_hashes(hashes):
            parent[root(patient)] = root(owner.setdefault(content, patient))
    groups: dict[str, list[int]] = {}
    for position, patient in enumerate(patients):
        groups.setdefault(root(patient), []).append(position)
    return list(groups.values())


def _check_enough(
    columns: list[str], totals: np.ndarray, patients: int, shares: dict[str, float], what: str
) -> None:
    """Raise if the patients cannot fill the splits, however they are dealt out."""
    one_label, is_folds = len(columns) == 1, "train" not in shares
    name, share = min(shares.items(), key=lambda item: item[1])
    if share * patients < 1 - 1e-9:
        remedy = (
            f"raise split.{name} to at least {1 / patients:.2g}, or set it to 0"
            if name in ("validation", "test")
            else f"take at most {patients} folds"
            if is_folds
            else "lower the other shares"
        )
        raise InputError(
            f"{patients} patients are too few for {what}: a share of {share:.2g} for {name} is "
            f"less than one patient; {remedy}"
        )
    least = len(shares) if one_label else 2 if is_folds else 1
    for (label, kind), count in zip(_class_names(columns), totals, strict=True):
        if count < least:
            raise InputError(
                f"label {label!r} has {count} {kind} patient{'' if count == 1 else 's'}, "
                f"too few for {what}: at least {least} are needed; "
                f"{'take fewer folds' if is_folds else 'make fewer splits'}, add patients, or "
                "leave the label out"
            )


def _check_classes(
    columns: list[str], classes: np.ndarray, places: np.ndarray, names: list[str]
) -> None:
    """Raise if a split came out empty, or without a class that it cannot do without.

    With one label every split needs both of its classes. With several, training does; a label that
    evaluation cannot rank for want of a class is said there.
    """
    is_folds = "train" not in names
    for index, name in enumerate(names):
        inside = places == index
        if not inside.any():
            raise InputError(
                f"{name} would be empty: patients who share a slice stay together, which leaves "
                f"{len(places)} groups for {len(names)} splits; remove the copies"
            )
        if len(columns) > 1 and name in ("validation", "test"):
            continue
        taught = ~inside if is_folds and len(columns) > 1 else inside
        place = f"training outside {name}" if taught is not inside else name
        for (label, kind), count in zip(
            _class_names(columns), classes[taught].sum(axis=0), strict=True
        ):
            if not count:
                raise InputError(
                    f"{place} would have no {kind} patient of label {label!r}: "
                    f"{'take fewer folds' if is_folds else 'take other shares'} or another "
                    "split.seed, or add patients"
                )


def _class_names(columns: list[str]) -> list[tuple[str, str]]:
    """Return (label, kind) of each class, in the order of the columns of `_members`."""
    names = [column.removeprefix("label.") for column in columns]
    return [(name, kind) for kind in ("positive", "negative") for name in names]
