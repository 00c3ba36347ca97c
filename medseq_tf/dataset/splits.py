"""Takes the table of a cohort's studies; gives patient-level splits, or says why there are none.

Every split is by patient, stratified over the labels, and keeps patients who share a slice's
content together. A split is a dict of row numbers into the table: `train`, `validation`, `test`.

The table is that of a prepared data set, one row a study, and these columns are read: `study_id`,
`patient_id`, `split`, `slice_hashes` (a list of str or None a row; None says nothing) and one
`label.<name>` a label (0, 1, or nan for unknown).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd

from medseq_tf import recipe as recipes
from medseq_tf.errors import InputError

SPLITS = ("train", "validation", "test")

Rows = dict[str, np.ndarray]
"""Row numbers (studies,) int64, ascending, by the name of the split."""


def make_holdout(studies: pd.DataFrame, split: recipes.Split) -> Rows:
    """Divides the patients once into training, validation and test.

    Args:
        studies: One row a study.
        split: Shares of all patients, seed, and whether the table's own `split` column is honoured.
            A given split is used as it is; if it has no test, there is none; if it has no
            validation, a share `split.validation` of its training patients becomes that.

    Returns:
        Row numbers for each of `train`, `validation` and `test`; every row in exactly one. The same
        studies fall into the same splits in whatever order the rows stand.

    Raises:
        InputError: Too few patients, a half-given split column, or leakage between given splits.
    """
    _check_studies(studies)
    given = _given_split(studies) if split.given else None
    if given is None:
        shares = _shares(1 - split.test - split.validation, split.validation, split.test)
        rows = _divide(studies, np.arange(len(studies)), shares, (split.seed,), _listed(shares))
    else:
        check_leakage(studies, given)
        rows = given
        if split.validation and not len(given["validation"]):
            shares = _shares(1 - split.validation, split.validation, 0.0)
            what = "train and validation out of the given training patients"
            divided = _divide(studies, given["train"], shares, (split.seed,), what)
            rows = divided | {"test": given["test"]}
    check_leakage(studies, rows)
    return rows


def make_folds(studies: pd.DataFrame, k: int, split: recipes.Split, repeats: int = 1) -> list[Rows]:
    """Divides the patients into k folds, each the test of one split.

    Each patient is tested once a repeat.

    Args:
        studies: One row a study.
        k: Number of folds, at least 2.
        split: Seed, and the share `validation` of the patients outside the test fold. Folds are
            over all patients, so a table with a split of its own needs `given=False`.
        repeats: How often the patients are divided, each time anew.

    Returns:
        k splits a repeat as from `holdout`, one repeat after the other.

    Raises:
        InputError: k below 2, too few patients for it, or a given split that would be ignored.
    """
    _check_studies(studies)
    if split.given and studies["split"].notna().any():
        raise InputError(
            "the data set has a split of its own, and folds would test on its training patients "
            "and train on its test patients; split.given=false does so all the same"
        )
    if k < 2:
        raise InputError(f"folds = {k}: cross-validation needs at least 2")
    if repeats < 1:
        raise InputError(f"repeats = {repeats}: expected at least 1")
    everyone, result = np.arange(len(studies)), []
    for repeat in range(repeats):
        seed = (split.seed, k) if not repeat else (split.seed, k, k + repeat)
        fold_shares = {f"fold {i + 1}": 1 / k for i in range(k)}
        tests = _divide(studies, everyone, fold_shares, seed, f"{k} folds")
        for i, test in enumerate(tests.values()):
            shares = _shares(1 - split.validation, split.validation, 0.0)
            rest = np.setdiff1d(everyone, test)
            what = f"{_listed(shares)} outside the test fold {i + 1} of {k}"
            own = (*seed, i) if not repeat else (*seed, i + 1)
            rows = _divide(studies, rest, shares, own, what) | {"test": test}
            check_leakage(studies, rows)
            result.append(rows)
    return result


def check_leakage(studies: pd.DataFrame, split: Rows) -> None:
    """Raises if a study, a patient or the content of a slice is in two splits.

    Args:
        studies: One row a study.
        split: Row numbers by split; it need not cover every row.

    Raises:
        InputError: Names the patient (salted hash), or the two studies that share a slice.
    """
    split_of_row: dict[int, str] = {}
    split_of_patient: dict[str, str] = {}
    patients, study_ids = studies["patient_id"].to_numpy(), studies["study_id"].to_numpy()
    for name, rows in split.items():
        for row in np.asarray(rows, dtype=np.int64).tolist():
            if row in split_of_row:
                raise InputError(
                    f"study {study_ids[row]} is in {split_of_row[row]} and in {name}: "
                    "a study belongs to one split"
                    if split_of_row[row] != name
                    else f"study {study_ids[row]} is in {name} twice: name it once"
                )
            split_of_row[row] = name
            other = split_of_patient.setdefault(patients[row], name)
            if other != name:
                raise InputError(
                    f"patient {patients[row]} is in {other} and in {name}: "
                    "all studies of a patient belong to one split"
                )
    slice_hashes, first_row = studies["slice_hashes"].tolist(), {}
    for row, name in split_of_row.items():
        for content in _contents(slice_hashes[row]):
            other = first_row.setdefault(content, row)
            if split_of_row[other] != name:
                raise InputError(
                    f"study {study_ids[other]} in {split_of_row[other]} and study "
                    f"{study_ids[row]} in {name} hold the same slice: put both in one split, or "
                    "remove the copy"
                )


def check_training(studies: pd.DataFrame, split: Rows) -> None:
    """Raises if the training studies hold one class of a label only, of which nothing is learned.

    Args:
        studies: One row a study.
        split: Row numbers by split.

    Raises:
        InputError: Names the label and the class.
    """
    for label, kind in _missing(studies, split["train"]):
        raise InputError(
            f"the training split has no {kind} patient of label {label!r}, of which nothing could "
            "be learned: give it other patients, set split.given=false, or leave the label out"
        )


def missing_test_classes(studies: pd.DataFrame, split: Rows) -> list[str]:
    """What a split's test studies cannot say for want of a class, label by label, in words."""
    if not len(split["test"]):
        return []
    return [
        f"{label}: the test split has no {kind} patient, so its ranking cannot be judged"
        for label, kind in _missing(studies, split["test"])
    ]


def _missing(studies: pd.DataFrame, rows: np.ndarray) -> list[tuple[str, str]]:
    """(label, kind) of the classes without a study among some rows."""
    part = studies.iloc[rows]
    return [
        (column.removeprefix("label."), kind)
        for column in part.columns
        if column.startswith("label.")
        for kind, value in (("positive", 1), ("negative", 0))
        if not (part[column] == value).any()
    ]


def splits_to_json(studies: pd.DataFrame, splits: Rows | list[Rows]) -> str:
    """Writes one split, or a list of folds, as JSON text: study ids by split."""
    study_ids = studies["study_id"].to_numpy()

    def named(split: Rows) -> dict[str, list[str]]:
        return {name: study_ids[rows].tolist() for name, rows in split.items()}

    content = named(splits) if isinstance(splits, dict) else [named(split) for split in splits]
    return json.dumps(content, indent=1)


def splits_from_json(studies: pd.DataFrame, text: str) -> Rows | list[Rows]:
    """Reads what `splits_to_json` wrote, for the same studies.

    Returns:
        One split, or a list of folds, as row numbers of `studies`.

    Raises:
        InputError: Not such JSON, an unknown study, a study in no split, or leakage.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"the splits are not JSON ({error}): expected ids by split") from None
    row_of_study = {study_id: row for row, study_id in enumerate(studies["study_id"])}

    def rows(split: object) -> Rows:
        if not isinstance(split, dict) or set(split) != set(SPLITS):
            raise InputError(f"a split needs exactly the lists {', '.join(SPLITS)}")
        result = {}
        for name in SPLITS:
            if not isinstance(split[name], list):
                raise InputError(f"split {name} is not a list of study ids")
            unknown = [study for study in split[name] if str(study) not in row_of_study]
            if unknown:
                raise InputError(
                    f"split {name} names {len(unknown)} unknown studies, first {unknown[0]!r}: "
                    "it was made for other data"
                )
            result[name] = np.sort(
                np.array([row_of_study[str(study)] for study in split[name]], dtype=np.int64)
            )
        check_leakage(studies, result)
        missing = np.setdiff1d(np.arange(len(studies)), np.concatenate(list(result.values())))
        if len(missing):
            raise InputError(
                f"{len(missing)} studies are in no split, first "
                f"{studies['study_id'].iloc[missing[0]]}: the splits were made for other data"
            )
        return result

    return [rows(split) for split in content] if isinstance(content, list) else rows(content)


# ------------------------------------------------------------------------------ the given split


def _given_split(studies: pd.DataFrame) -> Rows | None:
    """The table's own split, or None where it has none."""
    if "split" not in studies:
        return None
    given = studies["split"].astype(object).where(studies["split"].notna(), None).to_numpy()
    without = np.flatnonzero([name is None for name in given])
    if len(without) == len(given):
        return None
    if len(without):
        raise InputError(
            f"{len(without)} of {len(given)} studies have no split, first "
            f"{studies['study_id'].iloc[without[0]]}: give one for all or for none, or set "
            "split.given=false"
        )
    unknown = sorted({str(name) for name in given} - set(SPLITS))
    if unknown:
        raise InputError(f"unknown split {unknown[0]!r}: expected one of {', '.join(SPLITS)}")
    rows = {name: np.flatnonzero(given == name) for name in SPLITS}
    if not len(rows["train"]):
        raise InputError(
            "no study is given to the split 'train': give some, or set split.given=false"
        )
    return rows


# -------------------------------------------------------------------- groups that no split parts


def _contents(slice_hashes: object) -> Iterator[str]:
    """The slice hashes of a study that say something."""
    if isinstance(slice_hashes, (list, tuple, np.ndarray)):
        yield from (content for content in slice_hashes if isinstance(content, str))


def _patient_groups(patients: np.ndarray, slice_hashes: list[object]) -> list[list[int]]:
    """Positions of the studies of patients who are linked by the content of a slice.

    Args:
        patients: (studies,) patient ids.
        slice_hashes: (studies,) hashes of each study's slices.

    Returns:
        One list of positions a group, groups and positions in the order of the studies.
    """
    parent = {patient: patient for patient in patients}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, hashes in zip(patients, slice_hashes, strict=True):
        for content in _contents(hashes):
            parent[root(patient)] = root(owner.setdefault(content, patient))
    groups: dict[str, list[int]] = {}
    for position, patient in enumerate(patients):
        groups.setdefault(root(patient), []).append(position)
    return list(groups.values())


# ------------------------------------------------------------------------------- stratification


def _shares(train: float, validation: float, test: float) -> dict[str, float]:
    return {"train": train, "validation": validation, "test": test}


def _listed(shares: dict[str, float]) -> str:
    """The splits that get a share, as words."""
    names = [name for name, share in shares.items() if share > 0]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _divide(
    studies: pd.DataFrame,
    rows: np.ndarray,
    shares: dict[str, float],
    seed: tuple[int, ...],
    what: str,
) -> Rows:
    """Divides some rows by patient, stratified; a share of 0 gives an empty split.

    Args:
        studies: One row a study.
        rows: Row numbers to divide.
        shares: Share of the patients by the name of the split; they add up to 1.
        seed: Entropy of the random order.
        what: What is being made, for errors.

    Returns:
        Row numbers by the names in `shares`.
    """
    part = studies.iloc[rows]
    order = np.argsort(part["study_id"].to_numpy().astype(str), kind="stable")
    part, rows = part.iloc[order], np.asarray(rows)[order]
    groups = _patient_groups(part["patient_id"].to_numpy(), part["slice_hashes"].tolist())
    columns = [column for column in part.columns if column.startswith("label.")]
    labels = part[columns].to_numpy(dtype=float)
    patients = part["patient_id"].to_numpy()
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
        mine = [groups[group] for group in np.flatnonzero(places == index)]
        result[name] = np.sort(rows[np.concatenate(mine)]).astype(np.int64)
    return result


def _members(positions: list[int], patients: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The classes of a group's patients: (patients, 2 * labels), positive ones first.

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
    wanted = np.stack([_ask(total, shares) for total in classes.sum(axis=0)], axis=1)
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


CANDIDATES = 100
"""Groups of a split that are looked at for an exchange: the first of them."""


def _exchange(
    classes: np.ndarray, sizes: np.ndarray, places: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Exchange groups of equal size between splits until each has what it should of every class.

    With several labels a patient who is dealt out for the one takes the place of another, and a
    small split can be full before a rare label's turn comes. Of a class with two patients for each
    split, and two more where training is one of them, every split should have two; of one with a
    patient for each split, one. An exchange is made if it lessens what is missing; of several, the
    one that keeps the splits nearest to their shares.

    Args:
        classes: (groups, classes) number of patients of each class in each group.
        sizes: (groups,) number of patients.
        places: (groups,) the number of the split.
        shares: (splits,) share of the patients.

    Returns:
        (groups,) the number of the split; unchanged where nothing is missing.
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


def _ask(total: int, shares: np.ndarray) -> np.ndarray:
    """How many of a class's patients each split wants: its share, but at least one if possible."""
    ask = total * shares
    if total >= len(shares):
        low = ask < 1
        while low.any() and (ask[low] < 1).any():
            ask[low] = 1.0
            ask[~low] = (total - low.sum()) * shares[~low] / shares[~low].sum()
            low |= ask < 1
    return ask


def _apportion(total: int, shares: np.ndarray, smallest: int) -> np.ndarray:
    """Whole numbers that add up to `total` (largest remainders), none below `smallest`."""
    exact = total * shares
    whole = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(-(exact - whole).round(9), kind="stable")
    whole[by_remainder[: total - whole.sum()]] += 1
    while whole.min() < smallest < whole.max():
        whole[whole.argmin()] += 1
        whole[whole.argmax()] -= 1
    return whole


# --------------------------------------------------------------------------------------- checks


def _check_studies(studies: pd.DataFrame) -> None:
    if not len(studies):
        raise InputError("the data set holds no study")
    if not any(column.startswith("label.") for column in studies.columns):
        raise InputError("the data set has no label: splits are stratified over at least one")
    twice = studies["study_id"].duplicated()
    if twice.any():
        first = studies.loc[twice, "study_id"].iloc[0]
        raise InputError(f"study id {first} stands twice in the data set: ids are unique")


def _check_enough(
    columns: list[str], totals: np.ndarray, patients: int, shares: dict[str, float], what: str
) -> None:
    """Raises if the patients cannot fill the splits, however they are dealt out."""
    name, share = min(shares.items(), key=lambda item: item[1])
    if share * patients < 1 - 1e-9:
        remedy = (
            f"raise split.{name} to at least {1 / patients:.2g}, or set it to 0"
            if name in ("validation", "test")
            else f"take at most {patients} folds"
            if name not in SPLITS
            else "lower the other shares"
        )
        raise InputError(
            f"{patients} patients are too few for {what}: a share of {share:.2g} for {name} is "
            f"less than one patient; {remedy}"
        )
    one_label, is_folds = len(columns) == 1, "train" not in shares
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
    """Raises if a split came out empty, or without a class that it cannot do without.

    With one label every split needs both of its classes. With several, training does; a label that
    evaluation cannot judge for want of a class is said there.
    """
    for index, name in enumerate(names):
        inside = places == index
        if not inside.any():
            raise InputError(
                f"{name} would be empty: patients who share a slice stay together, which leaves "
                f"{len(places)} groups for {len(names)} splits; remove the copies"
            )
        if len(columns) > 1 and name in ("validation", "test"):
            continue
        is_fold = name not in SPLITS
        judged = ~inside if is_fold and len(columns) > 1 else inside
        part = f"training outside {name}" if judged is not inside else name
        for (label, kind), count in zip(
            _class_names(columns), classes[judged].sum(axis=0), strict=True
        ):
            if not count:
                raise InputError(
                    f"{part} would have no {kind} patient of label {label!r}: "
                    f"{'take fewer folds' if is_fold else 'take other shares'} or another "
                    "split.seed, or add patients"
                )


def _class_names(columns: list[str]) -> list[tuple[str, str]]:
    """(label, kind) of each class, in the order of the columns of `_members`."""
    names = [column.removeprefix("label.") for column in columns]
    return [(name, kind) for kind in ("positive", "negative") for name in names]
