"""The audit: copies of slices are found across splits, look-alikes and blank slices are not."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest

from medseq_tf.dataset import leakage
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError


def hash_of(image):
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


class Cohort:
    """What the audit reads of a prepared data set: slices by row, from memory."""

    channels = 1

    def __init__(self, studies, patients=None, unit="grey level"):
        self.path, self.info = "cohort", {"unit": unit}
        self._slices = [np.asarray(study) for study in studies]
        names = [f"s{i}" for i in range(len(studies))]
        self.studies = pd.DataFrame(
            {
                "study_id": names,
                "patient_id": patients or [f"p{i}" for i in range(len(studies))],
                "slices": [len(study) for study in studies],
                "slice_hashes": [[hash_of(image) for image in study] for study in studies],
            }
        )

    def slices(self, row):
        if self._slices[row].ndim != 3:
            raise InputError("damaged")
        return self._slices[row]


@pytest.fixture(scope="module")
def heads(demo_data):
    """Slices of ten patients at 32 x 32, eight each."""
    prepared = Prepared.load(demo_data)
    return [prepared.slices(row)[4:12] for row in range(10)]


COPIES = {
    "same": lambda image: image,
    "jpeg": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [1, 85])[1], 0),
    "brighter": lambda image: np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8),
    "more contrast": lambda image: np.clip(image * 1.06, 0, 255).astype(np.uint8),
    "resized": lambda image: cv2.resize(
        cv2.resize(image, (64, 64), interpolation=cv2.INTER_LINEAR), (32, 32),
        interpolation=cv2.INTER_AREA,
    ),
    "noisy": lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 2, image.shape), 0, 255
    ).astype(np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_in_another_split_is_found(heads, change):
    copy = COPIES[change](heads[0][5])
    cohort = Cohort([*heads, np.stack([copy])])
    splits = {"train": [f"s{i}" for i in range(10)], "test": ["s10"]}
    audit = leakage.audit(cohort, splits)
    assert not audit.is_clean
    best = audit.pairs.iloc[0]
    assert {best["study"], best["other_study"]} == {"s0", "s10"}
    assert sorted([best["slice"], best["other_slice"]]) == [0, 5]
    assert best["kind"] == ("same slice" if change == "same" else "near duplicate")
    assert "s10" in audit.text()


def test_look_alikes_of_other_patients_are_no_copies(heads):
    splits = {"train": [f"s{i}" for i in range(6)], "test": [f"s{i}" for i in range(6, 10)]}
    audit = leakage.audit(Cohort(heads), splits)
    assert audit.is_clean
    assert audit.compared == 80
    assert audit.parts[["part", "studies", "slices"]].values.tolist() == [
        ["train", 6, 48],
        ["test", 4, 32],
    ]


def test_within_a_split_and_within_a_patient_copies_are_no_leak(heads):
    cohort = Cohort([*heads, heads[0], heads[1]], [*(f"p{i}" for i in range(11)), "p1"])
    splits = {"train": [f"s{i}" for i in range(11)], "test": ["s11"]}
    audit = leakage.audit(cohort, splits)
    assert audit.pairs.empty
    assert audit.shared_patients == ["p1"]
    assert not audit.is_clean


def test_blank_slices_are_left_out_and_counted(heads):
    blank = np.full((3, 32, 32), 7, np.uint8)
    cohort = Cohort([blank, blank, heads[0]])
    audit = leakage.audit(cohort, {"train": ["s0"], "test": ["s1", "s2"]})
    assert audit.is_clean
    assert (audit.blank, audit.compared) == (6, 8)


def test_any_two_folds_are_two_parts(heads):
    cohort = Cohort([heads[0], heads[1], heads[0]])
    folds = [{"test": ["s0"]}, {"test": ["s1"]}, {"test": ["s2"]}]
    audit = leakage.audit(cohort, folds)
    assert audit.parts["part"].tolist() == ["fold 1", "fold 2", "fold 3"]
    assert set(audit.pairs["split"] + audit.pairs["other_split"]) == {"fold 1fold 3"}
    assert len(audit.pairs) >= 8


def test_hounsfield_units_are_compared_in_the_soft_tissue_window(heads):
    volumes = [study.astype(np.int16) * 2 - 200 for study in heads[:3]]
    cohort = Cohort([*volumes, volumes[0] + 4], unit="HU")
    audit = leakage.audit(cohort, {"train": ["s0", "s1", "s2"], "test": ["s3"]})
    assert set(audit.pairs["study"] + audit.pairs["other_study"]) <= {"s0s3", "s3s0"}
    assert len(audit.pairs) >= 8


def test_a_broken_study_stops_no_other(heads):
    cohort = Cohort([heads[0], heads[0], heads[0]])
    cohort._slices[1] = np.zeros(3)
    audit = leakage.audit(cohort, {"train": ["s0", "s1"], "test": ["s2"]})
    assert audit.unreadable == ["s1"]
    assert len(audit.pairs) >= 8


def test_splits_of_other_data_are_refused(heads):
    with pytest.raises(InputError, match="has no study s9"):
        leakage.audit(Cohort(heads[:2]), {"train": ["s0"], "test": ["s9"]})
