"""Patient-level splits of a data set's studies: one holdout, or folds.

Every split is by patient, stratified over the labels or the classes, and keeps patients who share a
slice's content together; also whole sites, or the latest patients for the test, where the recipe
says so. A split is a dict of row numbers into the table: `train`, `validation`, `test`.

The table is that of a prepared data set, one row a study, and these columns are read: `study_id`,
`patient_id`, `split`, `slice_hashes` (a list of str or None a row; None says nothing), `site` and
`date` where they are asked for, and one `label.<name>` a label (0, 1, or nan for unknown). What is
called `classes` says that these exclude each other (`Prepared.classes`; None: they do not).
"""

from __future__ import annotations

import itertools
import json
from typing import Literal

import numpy as np
import pandas as pd

from medseq_tf import recipe as recipes
from medseq_tf.dataset import sites
from medseq_tf.dataset.stratification import (
    Kind,
    Rows,
    divide,
    kinds_of,
    patient_groups,
    telling_hashes,
)
from medseq_tf.errors import InputError
from medseq_tf.readers.classes import Classes

SPLITS = ("train", "validation", "test")


def make_holdout(
    studies: pd.DataFrame, split: recipes.Split, classes: Classes | None = None
) -> Rows:
    """Divide the patients once into training, validation and test.

    Args:
        studies: One row a study.
        split: Shares of all patients, seed, what stays whole (`by`), and whether the table's own
            `split` column is honoured. A given split is used as it is; if it has no test, there is
            none; if it has no validation, a share `split.validation` of its training patients
            becomes that.
        classes: Where the labels exclude each other.

    Returns:
        Every row in exactly one split, the same whatever the order in which the rows stand.

    Raises:
        InputError: Too few patients, sites or dates, a half-given split column, or leakage between
            given splits.
    """
    _check_studies(studies)
    given = _given_split(studies) if split.given else None
    if given is None:
        shares = {
            "train": 1 - split.test - split.validation,
            "validation": split.validation,
            "test": split.test,
        }
        rows = _divided(studies, np.arange(len(studies)), shares, (split.seed,), split, classes)
    else:
        check_leakage(studies, given)
        rows = given
        if split.validation and not len(given["validation"]):
            shares, what = _without_test(split), " out of the given training patients"
            train = given["train"]
            divided = _divided(studies, train, shares, (split.seed,), split, classes, what)
            rows = divided | {"test": given["test"]}
        _check_whole(studies, rows, split.by)
    check_leakage(studies, rows)
    return rows


def make_folds(
    studies: pd.DataFrame,
    k: int | Literal["site"],
    split: recipes.Split,
    repeats: int = 1,
    classes: Classes | None = None,
) -> list[Rows]:
    """Divide the patients into k folds, each the test of one split: once a repeat for each patient.

    Args:
        studies: One row a study.
        k: Number of folds, at least 2; or `site`: each is one site, in the order of their names.
            Sites that share a patient or a slice are one.
        split: Seed, the share `validation` of the patients outside the test fold, and what stays
            whole (`by`), in the folds as in these. Folds are over all patients, so a table with a
            split of its own needs `given=False`.
        repeats: How often the patients are divided, each time anew.
        classes: Where the labels exclude each other.

    Returns:
        k splits a repeat, one repeat after the other.

    Raises:
        InputError: k below 2, too few patients or sites for it, a given split that would be
            ignored, repeats of whole sites, or folds by date.
    """
    _check_studies(studies)
    _check_folds(studies, k, split, repeats)
    everyone, shares, result = np.arange(len(studies)), _without_test(split), []
    for repeat in range(repeats):
        if k == "site":
            seed: tuple[int, ...] = (split.seed,)
            tests = _site_folds(studies, classes)
        else:
            seed = (split.seed, k) if not repeat else (split.seed, k, k + repeat)
            fold_shares = {f"fold {i + 1}": 1 / k for i in range(k)}
            what = f"{k} folds"
            divided = divide(studies, everyone, fold_shares, seed, what, classes, split.by)
            tests = list(divided.values())
        for i, test in enumerate(tests):
            others = np.setdiff1d(everyone, test)
            what = f" outside the test fold {i + 1} of {len(tests)}"
            if k == "site":
                what = f" outside site {sites.named(studies.iloc[test])}"
            fold_seed = (*seed, i) if not repeat else (*seed, i + 1)
            rows = _divided(studies, others, shares, fold_seed, split, classes, what)
            rows |= {"test": test}
            check_leakage(studies, rows)
            result.append(rows)
    return result


def _divided(
    studies: pd.DataFrame,
    rows: np.ndarray,
    shares: dict[str, float],
    seed: tuple[int, ...],
    split: recipes.Split,
    classes: Classes | None,
    where: str = "",
) -> Rows:
    """Divide some rows as a recipe says; `where` they stand is for errors."""
    return divide(studies, rows, shares, seed, _listed(shares) + where, classes, split.by)


def _check_folds(
    studies: pd.DataFrame, k: int | Literal["site"], split: recipes.Split, repeats: int
) -> None:
    """Raise if folds of this kind mean nothing."""
    if split.given and "split" in studies and studies["split"].notna().any():
        raise InputError(
            "the data set has a split of its own, and folds would test on its training patients "
            "and train on its test patients; split.given=false does so all the same"
        )
    if k != "site" and k < 2:
        raise InputError(f"folds = {k}: cross-validation needs at least 2")
    if repeats < 1:
        raise InputError(f"repeats = {repeats}: expected at least 1")
    if split.by == "date":
        raise InputError(
            "split.by=date tests on the latest patients alone, and folds would test on every one: "
            "leave the folds out, or set split.by=patient"
        )
    if repeats > 1 and "site" in (k, split.by):
        raise InputError(
            f"repeats = {repeats}: whole sites are divided in one way, which would be repeated; "
            "leave the repeats out, or divide by patient"
        )


def _site_folds(studies: pd.DataFrame, classes: Classes | None) -> list[np.ndarray]:
    """Return the rows of each site, by its name; sites that share a patient or slice are one.

    Raises:
        InputError: There is one site, or one without which nothing of a class could be learned.
    """
    groups = [np.array(rows, np.int64) for rows in patient_groups(studies, "site")]
    if len(groups) < 2:
        raise InputError(
            f"folds = site: all studies are of {sites.named(studies)}, and to leave one out takes "
            "2 sites that share no patient; give a number of folds"
        )
    for rows in groups:
        for kind in _missing(studies, np.setdiff1d(np.arange(len(studies)), rows), classes):
            raise InputError(
                f"folds = site: {kind.counted(0)} outside site {sites.named(studies.iloc[rows])}, "
                "so that it could not be learned there; give a number of folds, which divide by "
                f"patient, or {kind.remedy}"
            )
    return sorted((np.sort(rows) for rows in groups), key=lambda r: sites.named(studies.iloc[r]))


def _check_whole(studies: pd.DataFrame, rows: Rows, by: str) -> None:
    """Raise if a given split parts what a recipe wants whole."""
    says = f"the data set's own split does not fit split.by={by}"
    remedy = "set split.given=false, or split.by=patient"
    if by == "site":
        of_study, split_of = sites.of_studies(studies), dict[str, str]()
        for name in SPLITS:
            for site in dict.fromkeys(of_study[rows[name]]):
                before = split_of.setdefault(site, name)
                if before != name:
                    raise InputError(f"{says}: site {site} is in {before} and in {name}; {remedy}")
    elif by == "date":
        patients = studies["patient_id"].to_numpy()
        latest = pd.Series(sites.dates(studies)).groupby(patients).transform("max")
        filled = [name for name in SPLITS if len(rows[name])]
        for earlier, later in itertools.pairwise(filled):
            if latest[rows[earlier]].max() > latest[rows[later]].min():
                raise InputError(
                    f"{says}: a patient in {earlier} has a later study than one in {later}; "
                    f"{remedy}"
                )


def check_leakage(studies: pd.DataFrame, split: Rows) -> None:
    """Raise if a study, a patient or the content of a slice is in two splits.

    The splits need not cover every row.

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
            before = split_of_patient.setdefault(patients[row], name)
            if before != name:
                raise InputError(
                    f"patient {patients[row]} is in {before} and in {name}: "
                    "all studies of a patient belong to one split"
                )
    slice_hashes = studies["slice_hashes"].tolist()
    first_row: dict[str, int] = {}
    for row, name in split_of_row.items():
        for content in telling_hashes(slice_hashes[row]):
            first = first_row.setdefault(content, row)
            if split_of_row[first] != name:
                raise InputError(
                    f"study {study_ids[first]} in {split_of_row[first]} and study "
                    f"{study_ids[row]} in {name} hold the same slice: put both in one split, or "
                    "remove the copy"
                )


def check_training(studies: pd.DataFrame, split: Rows, classes: Classes | None = None) -> None:
    """Raise if the training studies lack a class, or hold one kind of a label: nothing to learn."""
    for kind in _missing(studies, split["train"], classes):
        raise InputError(
            f"the training split has {kind.nobody}, of which nothing could be learned: give it "
            f"other patients, set split.given=false, or {kind.remedy}"
        )


def missing_test_classes(
    studies: pd.DataFrame, split: Rows, classes: Classes | None = None
) -> list[str]:
    """Say of which labels or classes a split's test studies lack a kind: nothing can be ranked."""
    if not len(split["test"]):
        return []
    missing = _missing(studies, split["test"], classes)
    notes = [
        f"{kind.name}: the test split has no {kind.side or 'such'} patient, so its ranking cannot "
        "be evaluated"
        for kind in missing
    ]
    there = [kind for kind in kinds_of(studies, classes) if kind not in missing]
    if classes is not None and len(there) == 1:
        notes.append(
            f"{there[0].name}: the test split has no patient of another class, so its ranking "
            "cannot be evaluated"
        )
    return notes


def _missing(studies: pd.DataFrame, rows: np.ndarray, classes: Classes | None) -> list[Kind]:
    """Return the kinds of patients without a study among some rows, label by label."""
    chosen = studies.iloc[rows]
    kinds = kinds_of(studies, classes)
    names = [kind.name for kind in kinds]
    missing = [kind for kind in kinds if not kind.of(chosen).any()]
    return sorted(missing, key=lambda kind: names.index(kind.name))


def splits_to_json(studies: pd.DataFrame, splits: Rows | list[Rows]) -> str:
    """Write one split, or a list of folds, as JSON text: study ids by split."""
    study_ids = studies["study_id"].to_numpy()

    def named(split: Rows) -> dict[str, list[str]]:
        return {name: study_ids[rows].tolist() for name, rows in split.items()}

    content = named(splits) if isinstance(splits, dict) else [named(split) for split in splits]
    return json.dumps(content, indent=1)


def splits_from_json(studies: pd.DataFrame, text: str) -> Rows | list[Rows]:
    """Read what `splits_to_json` wrote, for the same studies.

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


def _given_split(studies: pd.DataFrame) -> Rows | None:
    """Return the table's own split, or None where it has none."""
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


def _without_test(split: recipes.Split) -> dict[str, float]:
    return {"train": 1 - split.validation, "validation": split.validation, "test": 0.0}


def _listed(shares: dict[str, float]) -> str:
    """Name the splits that get a share."""
    names = [name for name, share in shares.items() if share > 0]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _check_studies(studies: pd.DataFrame) -> None:
    if not len(studies):
        raise InputError("the data set holds no study")
    if not any(column.startswith("label.") for column in studies.columns):
        raise InputError("the data set has no label: splits are stratified over at least one")
    twice = studies["study_id"].duplicated()
    if twice.any():
        first = studies.loc[twice, "study_id"].iloc[0]
        raise InputError(f"study id {first} stands twice in the data set: ids are unique")
