"""The DICOM studies that tests are made of: what they claim, by independent programs."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_heads import SYNTAXES, enhanced, head_study, leaked, planted
from dicom_validators import assert_valid, dicom_errors, dsr_tree

from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom

UNKNOWN_TO_DCIODVFY = ("deflated",)


def intensities(path):
    import SimpleITK as sitk  # noqa: N813

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_head_is_the_phantom_in_every_transfer_syntax(tmp_path, syntax):
    study = head_study(tmp_path / "study", 3, syntax=syntax, tilt=12.0, localiser=True)
    assert len(study.files) == len(study.paths) + 1
    for path, image in zip(study.paths, study.volume, strict=True):
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == SYNTAXES[syntax]
        np.testing.assert_array_equal(intensities(path), image)
    if syntax not in UNKNOWN_TO_DCIODVFY:
        assert_valid(study.paths[0])


def test_what_the_phantom_writes_is_valid(tmp_path):
    write_dicom(DemoCohort(2, size=32, slices=(3, 3)), tmp_path, tilt_degrees=9.0)
    for path in tmp_path.rglob("IM*"):
        assert_valid(path)


def test_an_mr_and_files_of_many_frames(tmp_path):
    study = head_study(tmp_path / "study", modality="MR")
    np.testing.assert_array_equal(intensities(study.paths[2]), (study.volume[2] + 1024).clip(0))
    assert_valid(study.paths[2])
    frames = pydicom.dcmread(enhanced(study, tmp_path / "enhanced.dcm")).pixel_array
    assert frames.shape == study.volume.shape


def test_planted_names_are_found(tmp_path):
    path = head_study(tmp_path / "study", 5, StudyDescription=None).paths[0]
    dataset = pydicom.dcmread(path)
    assert "StudyDescription" not in dataset
    assert dataset.PatientName == planted(5)["PatientName"]
    assert set(planted(5).values()) <= set(leaked(path.read_bytes(), 5))
    assert leaked("seen of 1961-02-03", 5) == ["1961-02-03"]
    assert not leaked("study 3f9a of 12 slices", 5)


def test_the_validators_find_what_is_wrong(tmp_path):
    dataset = pydicom.dcmread(head_study(tmp_path / "study").paths[0])
    del dataset.PixelSpacing
    (error,) = dicom_errors(dataset)
    assert "PixelSpacing" in error
    with pytest.raises(AssertionError, match="dsrdump"):
        dsr_tree(dataset)
