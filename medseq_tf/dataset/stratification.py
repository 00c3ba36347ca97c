"""Stratified division of patients: each split gets its share of every class, or of every label.

Patients who share a slice's content stay together, and whole sites where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medseq_tf.dataset import sites
from medseq_tf.dataset.class_shares import place_classes, wanted_of_class
from medseq_tf.dataset.whole_groups import place_by_date, place_whole
from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes

CANDIDATES = 100
"""Groups of a split that are looked at for an exchange: the first of them."""

Rows = dict[str, np.ndarray]
"""Row numbers (studies,) int64, ascending, by the name of the split."""


@dataclass(frozen=True)
class Kind:
    """The patients of one class, or the positive or the negative ones of a label.

    Attributes:
        name: of the class or the label.
        side: `positive` or `negative`; empty for a class.
    """

    name: str
    side: str = ""

    def counted(self, count: int) -> str:
        """Say how many patients there are, such as `class 'glioma' has 1 patient`."""
        patients = f"patient{'' if count == 1 else 's'}"
        if not self.side:
            return f"class {self.name!r} has {count} {patients}"
        return f"label {self.name!r} has {count} {self.side} {patients}"

    @property
    def nobody(self) -> str:
        """What is missing, such as `no patient of class 'glioma'`."""
        if not self.side:
            return f"no patient of class {self.name!r}"
        return f"no {self.side} patient of label {self.name!r}"

    @property
    def remedy(self) -> str:
        """What can be done where nothing else helps."""
        return "leave the label out" if self.side else "join the class with another"

    def of(self, studies: pd.DataFrame) -> pd.Series:
        """Whether each study is of this kind."""
        return studies[f"label.{self.name}"] == (self.side != "negative")


def kinds_of(studies: pd.DataFrame, classes: Classes | None) -> list[Kind]:
    """Return the kinds of patients that splits should share out."""
    columns = [column for column in studies.columns if column.startswith("label.")]
    names = [column.removeprefix("label.") for column in columns]
    if classes is not None:
        return [Kind(name) for name in names]
    return [Kind(name, side) for side in ("positive", "negative") for name in names]


def divide(
    studies: pd.DataFrame,
    rows: np.ndarray,
    shares: dict[str, float],
    seed: tuple[int, ...],
    what: str,
    classes: Classes | None = None,
    by: str = "patient",
) -> Rows:
    """Divide some rows by patient, stratified; a share of 0 gives an empty split.

    Args:
        studies: One row a study.
        rows: Those to divide.
        shares: Of the patients, by the name of the split; they add up to 1.
        seed: Entropy of the random order.
        what: What is being made, for errors.
        classes: Where the labels exclude each other, so that they are one class a study.
        by: `patient`, or as `recipe.Split.by` whole sites or dates.
    """
    rows = np.asarray(rows)
    by_id = np.argsort(studies["study_id"].iloc[rows].to_numpy().astype(str), kind="stable")
    rows = rows[by_id]
    groups = _grouped(studies.iloc[rows], classes, by)
    positive = {name: share for name, share in shares.items() if share > 0}
    is_strict = by == "patient" and groups.is_one_label
    _check_enough(groups, positive, what, is_strict, by)
    places = _placed(groups, positive, np.random.default_rng([n % 2**32 for n in seed]), by)
    _check_kinds(groups, places, list(positive), is_strict, by)
    result = {name: np.empty(0, dtype=np.int64) for name in shares}
    for index, name in enumerate(positive):
        inside = [groups.positions[group] for group in np.flatnonzero(places == index)]
        result[name] = np.sort(rows[np.concatenate(inside)]).astype(np.int64)
    return result


@dataclass(frozen=True)
class _Groups:
    """Groups of patients who go to one split.

    Attributes:
        positions: of their studies, by group.
        kinds: of patients. Classes stand in the order of their first study by id, whatever they are
            called.
        counts: (groups, kinds) number of patients. A patient is of a kind if one of the studies is:
            positive and negative of a label if the studies differ (as ATLAS's lesion and
            lesion-free sequences do), neither if it is unknown.
        unknown: (groups,) number of patients of no kind.
        sizes: (groups,) number of patients.
        dates: (groups,) rank of the latest study, where dates are divided.
    """

    positions: list[list[int]]
    kinds: list[Kind]
    counts: np.ndarray
    unknown: np.ndarray
    sizes: np.ndarray
    dates: np.ndarray | None

    @property
    def are_classes(self) -> bool:
        """Whether a patient is of one kind."""
        return not self.kinds[0].side

    @property
    def is_one_label(self) -> bool:
        """Whether the kinds are the positive and the negative patients of a single label."""
        return len(self.kinds) == 2 and not self.are_classes

    @property
    def parts(self) -> int:
        """Into how many parts they can be divided at most."""
        return len(self.sizes if self.dates is None else np.unique(self.dates))


def _grouped(studies: pd.DataFrame, classes: Classes | None, by: str) -> _Groups:
    positions = patient_groups(studies, by)
    kinds = kinds_of(studies, classes)
    values = np.stack([kind.of(studies).to_numpy() for kind in kinds], axis=1)
    if classes is not None:
        order = np.argsort(np.where(values.any(axis=0), values.argmax(axis=0), len(values)))
        kinds, values = [kinds[number] for number in order], values[:, order]
    number = np.unique(studies["patient_id"].to_numpy().astype(str), return_inverse=True)[1]
    of_patient = np.zeros((number.max() + 1, len(kinds)), dtype=bool)
    np.logical_or.at(of_patient, number, values)
    members = [np.unique(number[own]) for own in positions]
    return _Groups(
        positions,
        kinds,
        np.stack([of_patient[own].sum(axis=0) for own in members]).astype(np.int64),
        np.array([(~of_patient[own].any(axis=1)).sum() for own in members]),
        np.array([len(own) for own in members]),
        sites.latest_dates(studies, positions) if by == "date" else None,
    )


def _placed(
    groups: _Groups, shares: dict[str, float], rng: np.random.Generator, by: str
) -> np.ndarray:
    """Return the number of each group's split, (groups,)."""
    wanted = np.array(list(shares.values()))
    train = list(shares).index("train") if "train" in shares else -1
    if groups.dates is not None:
        return place_by_date(groups.dates, groups.sizes, wanted)
    if by == "site":
        return place_whole(groups.counts, groups.sizes, wanted, rng, train)
    if groups.are_classes:
        counts = np.column_stack([groups.counts, groups.unknown])
        return place_classes(counts, groups.sizes, wanted, rng, train)
    places = _stratify(groups.counts, groups.sizes, wanted, rng)
    if groups.is_one_label:
        return places
    return _exchange(groups.counts, groups.sizes, places, wanted)


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
    totals = classes.sum(axis=0)
    wanted = np.stack([wanted_of_class(total, shares) for total in totals], axis=1)
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


def patient_groups(studies: pd.DataFrame, by: str = "patient") -> list[list[int]]:
    """Group the positions of studies whose patients are linked by the content of a slice.

    With `by` = `site`, patients of one site are linked too.
    """
    patients = studies["patient_id"].to_numpy()
    parent = {patient: patient for patient in patients}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, hashes in zip(patients, studies["slice_hashes"].tolist(), strict=True):
        for content in telling_hashes(hashes):
            parent[root(patient)] = root(owner.setdefault(content, patient))
    if by == "site":
        first_of: dict[str, str] = {}
        for patient, site in zip(patients, sites.of_studies(studies), strict=True):
            parent[root(patient)] = root(first_of.setdefault(site, patient))
    groups: dict[str, list[int]] = {}
    for position, patient in enumerate(patients):
        groups.setdefault(root(patient), []).append(position)
    return list(groups.values())


def owners(studies: pd.DataFrame, by: str = "patient") -> np.ndarray:
    """Return whom each study is kept together with: the patient, or the first of those linked.

    Who is linked is as for `patient_groups`.
    """
    names = studies["patient_id"].to_numpy(dtype=object, copy=True)
    for group in patient_groups(studies, by):
        names[group] = min(names[group])
    return names


def _check_enough(
    groups: _Groups, shares: dict[str, float], what: str, is_strict: bool, by: str
) -> None:
    """Raise if the patients cannot fill the splits, however they are dealt out."""
    patients, is_folds = groups.sizes.sum(), "train" not in shares
    fewer = "take fewer folds" if is_folds else "make fewer splits"
    if by != "patient" and groups.parts < len(shares):
        words = f"1 {by} is" if groups.parts == 1 else f"{groups.parts} {by}s are"
        raise InputError(
            f"split.by={by}: {words} too few for {what}: at least {len(shares)} that share no "
            f"patient are needed; {fewer}, or set split.by=patient"
        )
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
    least = len(shares) if is_strict else 2 if is_folds else 1
    for kind, count in zip(groups.kinds, groups.counts.sum(axis=0), strict=True):
        if count < least:
            raise InputError(
                f"{kind.counted(count)}, too few for {what}: at least {least} are needed; "
                f"{fewer}, add patients, or {kind.remedy}"
            )


def _check_kinds(
    groups: _Groups, places: np.ndarray, names: list[str], is_strict: bool, by: str
) -> None:
    """Raise if a split came out empty, or without a kind of patients that it cannot do without.

    With one label (`is_strict`) every split needs both its positive and its negative ones. With
    several or with classes, and where whole sites or dates are divided, training does; a label or a
    class that evaluation cannot rank for want of patients is said there.
    """
    is_folds = "train" not in names
    for index, name in enumerate(names):
        inside = places == index
        if not inside.any():
            raise InputError(
                f"{name} would be empty: patients who share a slice stay together, which leaves "
                f"{len(places)} groups for {len(names)} splits; remove the copies"
            )
        if not is_strict and name in ("validation", "test"):
            continue
        taught = ~inside if is_folds and not is_strict else inside
        place = f"training outside {name}" if taught is not inside else name
        for kind, count in zip(groups.kinds, groups.counts[taught].sum(axis=0), strict=True):
            if not count:
                other = "another split.seed" if by == "patient" else "split.by=patient"
                raise InputError(
                    f"{place} would have {kind.nobody}: "
                    f"{'take fewer folds' if is_folds else 'take other shares'} or {other}, or add "
                    "patients"
                )
