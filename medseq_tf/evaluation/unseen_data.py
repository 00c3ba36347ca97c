"""Which data sets a run may be evaluated on, and what they share with its own."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from medseq_tf.dataset import leakage
from medseq_tf.dataset.covariate_values import read_as
from medseq_tf.dataset.prepared import Prepared, classes_of, covariates_of, series_of
from medseq_tf.dataset.requirements import reading
from medseq_tf.errors import InputError, note
from medseq_tf.runs.run import Run


def with_labels_of(run: Run, prepared: Prepared) -> Prepared:
    """Return a data set with a run's labels; classes and series are in the run's order.

    Raises:
        InputError: it has other labels or series, or a class that the run does not know.
    """
    prepared = prepared.with_series(series_of(run.dataset))
    predicted, classes = run.dataset["label_names"], classes_of(run.dataset)
    if classes is not None:
        return prepared.with_classes(classes)
    if predicted != prepared.label_names or prepared.classes is not None:
        has = "the labels" if prepared.classes is None else "classes that exclude each other,"
        raise InputError(
            f"{prepared.path}: has {has} {', '.join(prepared.label_names)}, the run "
            f"{run.path} predicts {', '.join(predicted)}"
            + ("" if prepared.classes is None else ", yes or no to each")
        )
    return prepared


def fitting(run: Run, prepared: Prepared, split: str) -> Prepared:
    """Return a data set, with a run's labels and covariates, of which it may predict a split.

    The split `all` is that of data which the run has never seen, any other that of its own data.

    Raises:
        InputError: it may not.
    """
    prepared = with_labels_of(run, prepared)
    if split == "all":
        _check_reading(run, prepared)
        _check_unseen(run, prepared)
    elif run.dataset["fingerprint"] != prepared.fingerprint or not set(run.contents) <= set(
        prepared.studies["study_id"]
    ):
        raise InputError(
            f"{prepared.path}: is not the data set of the run {run.path} (another fingerprint), so "
            f"it has no {split} split; --split all evaluates the whole of it"
        )
    return with_covariates_of(run, prepared)


def with_covariates_of(run: Run, prepared: Prepared) -> Prepared:
    """Return a data set whose covariates are read as a run's members and data set have them.

    What it lacks, or has as a category that the run does not know, is missing, and noted.

    Raises:
        InputError: a number there is a category here, or the other way round.
    """
    names = run.covariates
    return read_as(prepared, covariates_of(run.dataset), names) if names else prepared


def _check_reading(run: Run, prepared: Prepared) -> None:
    """Raise an InputError for data that were read otherwise than the run's own."""
    trained, offered = reading(run.dataset), reading(prepared.info)
    differ = [
        name
        for name in trained
        if None not in (trained[name], offered[name]) and trained[name] != offered[name]
    ]
    words = ", ".join(f"{name} {offered[name]} instead of {trained[name]}" for name in differ)
    says = f"{prepared.path}: is prepared otherwise than the data of the run {run.path}: {words}"
    if {"modality", "unit", "axis"} & set(differ):
        raise InputError(f"{says}; prepare it again as those were")
    if differ:
        note(says)


def _check_unseen(run: Run, prepared: Prepared) -> None:
    """Raise an InputError if the run knows a study, a slice or a patient of a data set."""
    only = "--split all is for studies that it has never seen"
    contents = prepared.studies["content_hash"]
    seen = prepared.studies.loc[contents.isin(set(run.contents.values())), "study_id"]
    if len(seen):
        raise InputError(
            f"{prepared.path}: {len(seen)} of its {len(prepared)} studies are of the data set "
            f"that the run was trained on (such as {seen.iloc[0]}); {only}"
        )
    known = run.slices
    if known is None:
        note(
            f"{run.path}: was trained by a version that kept no hashes of slices; whether single "
            "slices of its studies are among these was not checked, whole studies are not"
        )
        return
    shared = leakage.seen_before(known, prepared)
    if len(shared):
        first = shared.iloc[0]
        count = int((shared["study"] == first["study"]).sum())
        raise InputError(
            f"{prepared.path}: {shared['study'].nunique()} of its {len(prepared)} studies hold "
            f"slices of the data set that the run was trained on (study {first['study']} of "
            f"patient {first['patient']} has {count}, such as slice {first['slice']}, which is "
            f"slice {first['other_slice']} of study {first['other_study']}, patient "
            f"{first['other_patient']}); {only}"
        )
    patients = sorted(set(known["patient"]) & set(prepared.studies["patient_id"]))
    if patients:
        raise InputError(
            f"{prepared.path}: {len(patients)} of its patients have the id of a patient whom the "
            f"run was trained on (such as {patients[0]}); {only}; where they are others, prepare "
            "with another MEDSEQ_TF_SALT"
        )


def audit_splits(run: Run, prepared: Prepared) -> leakage.Audit:
    """Return what the splits, or the folds, of a run share."""
    fitting(run, prepared, "test")
    if not run.cross_validated:
        return leakage.audit(prepared, run.splits)
    splits, folds = run.splits_by_fold, run.info["folds"]
    audits = [
        leakage.audit(prepared, splits[start : start + folds])
        for start in range(0, len(splits), folds)
    ]
    if len(audits) == 1:
        return audits[0]
    parts = [audit.parts.assign(repeat=i) for i, audit in enumerate(audits, start=1)]
    pairs = [audit.pairs for audit in audits if len(audit.pairs)] or [audits[0].pairs]
    return replace(
        audits[0],
        parts=pd.concat(parts, ignore_index=True),
        shared_patients=sorted({name for audit in audits for name in audit.shared_patients}),
        pairs=pd.concat(pairs, ignore_index=True),
    )


def audit_unseen(run: Run, prepared: Prepared) -> leakage.Audit:
    """Return what a data set that a run has not seen shares with the run's own.

    Raises:
        InputError: the run does not say which slices it was trained on.
    """
    known = run.slices
    if known is None:
        raise InputError(
            f"{run.path}: was trained by a version that kept no hashes of slices, so nothing can "
            "be compared with them; train it again, or leave out --audit"
        )
    return leakage.audit_unseen(known, prepared)
