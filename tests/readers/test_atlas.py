"""ATLAS: both releases' layouts, masks by rule, and sequences as the protocol says."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import T1, write_atlas
from medseq_tf.readers import atlas
from medseq_tf.readers.atlas import Protocol, index_atlas

COHORT = DemoCohort(patients=3, seed=3, size=32)
STEM = "sub-r001s001_ses-1_space-MNI152NLin2009aSym"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Spares the tests the start of worker processes, which test_processes.py tests."""
    monkeypatch.setattr(
        atlas, "mapped", lambda function, items, stand_in, workers: map(function, items)
    )


def image_of(values, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def subject(folder, lesion, stem=STEM, mask_image=None):
    """Write a subject whose slice t is all t, with lesion voxels where `lesion` (T,) says."""
    slices = np.broadcast_to(np.arange(len(lesion))[:, None, None], (len(lesion), 8, 8))
    mask = np.zeros(slices.shape, np.uint8)
    mask[np.flatnonzero(lesion), 3, 4] = 1
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(slices.astype(np.int16)), str(folder / f"{stem}_T1w.nii.gz"))
    mask_image = image_of(mask) if mask_image is None else mask_image
    sitk.WriteImage(mask_image, str(folder / f"{stem}_label-L_desc-T1lesion_mask.nii.gz"))


def shown(study):
    """Return the numbers of the slices that a study of `subject` shows."""
    return [int(image[0, 0]) for image in study.read().images]


# ----------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("release", ["1.2", "2.0"])
def test_both_releases_give_the_same_slices_and_masks(tmp_path, release):
    scan = index_atlas(write_atlas(COHORT, tmp_path, release), whole=True, extent=(0, 1))
    assert (scan.label_names, scan.modality, len(scan.studies)) == (["lesion"], "MR", 3)
    for number, study in enumerate(scan.studies):
        drawn = COHORT.render(number)
        slices = study.read()
        np.testing.assert_array_equal(slices.masks, drawn.mask)
        assert study.labels == {"lesion": float(drawn.mask.any())}
        seen = np.interp(drawn.volume, *np.transpose(T1))
        assert np.corrcoef(np.ravel(slices.images), seen.ravel())[0, 1] > 0.999999


def test_the_synthetic_scans_have_the_contrast_of_t1(tmp_path):
    """White matter is brighter than grey, fluid, bone and lesions darker than both."""
    (study,) = index_atlas(
        write_atlas(DemoCohort(patients=1, prevalence=1.0), tmp_path), whole=True, extent=(0, 1)
    ).studies
    drawn, slices = DemoCohort(patients=1, prevalence=1.0).render(0), study.read()
    volume, images = drawn.volume, np.asarray(slices.images, float)
    in_hu = {"bone": (700, 3000), "fluid": (4, 12), "white": (24, 28), "grey": (36, 40)}
    mean = {
        name: images[(volume > low) & (volume < high) & (drawn.mask == 0)].mean()
        for name, (low, high) in in_hu.items()
    }
    assert mean["bone"] < mean["fluid"] < mean["grey"] < mean["white"]
    assert images[drawn.mask == 1].mean() < 0.7 * mean["grey"]


def test_sessions_and_timepoints_belong_to_their_subject(tmp_path):
    subject(tmp_path / "a", np.ones(40))
    subject(tmp_path / "b", np.ones(40), STEM.replace("ses-1", "ses-2"))
    for timepoint in ("c0001s0004t01", "c0001s0004t02"):
        for name in ("t1w_deface", "LesionSmooth"):
            image = image_of(np.ones((40, 8, 8), np.uint8))
            sitk.WriteImage(image, str(tmp_path / f"{timepoint}_{name}_stx.nii.gz"))
    patients = [study.patient for study in index_atlas(tmp_path, whole=True).studies]
    assert patients == ["sub-r001s001"] * 2 + ["c0001s0004"] * 2


def test_odd_files_and_lonely_images_are_named(tmp_path):
    subject(tmp_path, np.ones(40))
    data = (tmp_path / f"{STEM}_T1w.nii.gz").read_bytes()
    (tmp_path / "sub-r002s001_ses-1_T1w.nii.gz").write_bytes(data)
    (tmp_path / "sub-r003s001_ses-1_label-L_mask.nii.gz").write_bytes(data)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "template.nii.gz").write_bytes(data)
    found = {(f.kind, f.where) for f in index_atlas(tmp_path, whole=True).audit_entries}
    assert found == {
        ("study left out", "sub-r002s001_ses-1_T1w.nii.gz"),
        ("mask without an image", "sub-r003s001_ses-1_label-L_mask.nii.gz"),
        ("odd file", "notes.txt"),
        ("odd file", "template.nii.gz"),
    }


def test_a_folder_that_is_no_atlas(tmp_path):
    with pytest.raises(InputError, match="holds no ATLAS image"):
        index_atlas(tmp_path)


# ------------------------------------------------------------------------------------------- masks


def test_masks_of_either_scale_are_merged(tmp_path):
    subject(tmp_path, np.zeros(10))
    first, second = np.zeros((10, 8, 8), np.float32), np.zeros((10, 8, 8), np.float32)
    first[4, 2, 2], second[5, 3, 3], second[6, 3, 3] = 255, 1, 0.2
    for number, mask in enumerate((first, second)):
        path = tmp_path / f"{STEM}_label-R{number}_desc-T1lesion_mask.nii.gz"
        sitk.WriteImage(image_of(mask), str(path))
    (study,) = index_atlas(tmp_path, whole=True, extent=(0, 1)).studies
    masks = np.array(study.read().masks)
    assert {tuple(place) for place in np.argwhere(masks)} == {(4, 2, 2), (5, 3, 3)}


def test_a_mask_on_another_grid_is_resampled_and_named(tmp_path):
    lesion = np.zeros((20, 16, 16), np.uint8)
    lesion[8:10, 6:8, 6:8] = 1
    fine = image_of(lesion, (0.5, 0.5, 0.5), (-0.25, -0.25, -0.25))
    subject(tmp_path, np.zeros(10), mask_image=fine)
    scan = index_atlas(tmp_path, whole=True, extent=(0, 1))
    assert [f.kind for f in scan.audit_entries] == ["mask on another grid"]
    masks = np.array(scan.studies[0].read().masks)
    np.testing.assert_array_equal(np.argwhere(masks), [[4, 3, 3]])


def test_a_flipped_mask_is_the_same_mask(tmp_path):
    lesion = np.zeros((10, 8, 8), np.uint8)
    lesion[4, 2, 1] = 1
    subject(tmp_path, np.zeros(10), mask_image=sitk.DICOMOrient(image_of(lesion), "RAI"))
    scan = index_atlas(tmp_path, whole=True, extent=(0, 1))
    np.testing.assert_array_equal(np.argwhere(scan.studies[0].read().masks), [[4, 2, 1]])


def test_a_mask_elsewhere_leaves_its_session_out(tmp_path):
    elsewhere = image_of(np.ones((10, 8, 8), np.uint8), origin=(0.0, 0.0, 3.0))
    subject(tmp_path, np.zeros(10), mask_image=elsewhere)
    scan = index_atlas(tmp_path, whole=True)
    assert scan.studies == []
    assert scan.audit_entries[0].kind == "study left out"
    assert "covers 69% of the image's" in scan.audit_entries[0].detail


def test_a_damaged_mask_leaves_its_session_out(tmp_path):
    subject(tmp_path, np.zeros(10))
    (tmp_path / f"{STEM}_label-R_desc-T1lesion_mask.nii.gz").write_bytes(b"")
    scan = index_atlas(tmp_path, whole=True)
    assert "a lesion mask cannot be used: an empty file" in scan.audit_entries[0].detail


# --------------------------------------------------------------------------------------- sequences


def test_the_paper_s_protocol(tmp_path):
    lesion = np.zeros(189)
    lesion[5:60] = 1
    subject(tmp_path / "kept", lesion)
    lesion[30:] = lesion[:10] = 0
    subject(tmp_path / "few", np.roll(lesion, -4), STEM.replace("s001", "s002"))
    scan = index_atlas(tmp_path)
    with_lesion, without = scan.studies
    assert (with_lesion.labels, without.labels) == ({"lesion": 1.0}, {"lesion": 0.0})
    assert with_lesion.patient == without.patient == "sub-r001s001"
    for study, places in ((with_lesion, range(18, 60)), (without, range(60, 132))):
        slices = shown(study)
        assert len(slices) == len(set(slices)) == 15
        assert slices == sorted(slices)
        assert set(slices) <= set(places)
    assert [f.kind for f in scan.audit_entries] == ["subject left out"]
    assert "8 lesion slices of 114" in scan.audit_entries[0].detail


def test_the_extent_of_189_slices():
    assert Protocol().window(189) == range(18, 132)
    assert Protocol(extent=(0, 1)).window(189) == range(189)


def test_draws_depend_on_seed_and_session_alone(tmp_path):
    lesion = np.arange(100) % 2
    subject(tmp_path / "x", lesion)
    alone = [study.places for study in index_atlas(tmp_path).studies]
    subject(tmp_path / "a", lesion, STEM.replace("s001", "s000"))
    beside = index_atlas(tmp_path).studies
    assert [s.places for s in beside if s.patient == "sub-r001s001"] == alone
    assert [s.places for s in index_atlas(tmp_path, seed=1).studies][-2:] != alone


def test_several_sequences_with_a_share_of_lesion_slices(tmp_path):
    lesion = np.arange(100) % 2
    subject(tmp_path, lesion)
    scan = index_atlas(tmp_path, sequences=11, length=10, lesion_share=0.3)
    assert [s.labels["lesion"] for s in scan.studies] == [1.0] * 6 + [0.0] * 5
    assert len({study.source for study in scan.studies}) == 11
    for study in scan.studies:
        slices = study.read()
        lesions = sum(mask.any() for mask in slices.masks)
        assert (len(slices.images), lesions) == (10, 3 * study.labels["lesion"])


def test_findings_of_a_session_are_told_once(tmp_path):
    subject(tmp_path, np.arange(100) % 2)
    values = sitk.GetImageFromArray(np.random.default_rng(0).random((100, 8, 8), np.float32))
    sitk.WriteImage(values, str(tmp_path / f"{STEM}_T1w.nii.gz"))
    audit_entries = [
        study.read().audit_entries for study in index_atlas(tmp_path, sequences=4).studies
    ]
    assert [len(found) for found in audit_entries] == [1, 0, 0, 0]


def test_a_session_that_changed_is_read_again(tmp_path):
    subject(tmp_path, np.arange(100) % 2)
    study = index_atlas(tmp_path, length=5).studies[0]
    before = shown(study)
    values = np.broadcast_to(np.arange(100)[:, None, None] * 7, (100, 8, 8)).astype(np.int16)
    sitk.WriteImage(image_of(values), str(tmp_path / f"{STEM}_T1w.nii.gz"))
    assert shown(study) == [7 * value for value in before]


@given(
    has_lesion=st.lists(st.booleans(), min_size=1, max_size=60),
    length=st.integers(1, 20),
    share=st.floats(0.01, 1),
    neighbours=st.booleans(),
    seed=st.integers(0, 5),
)
def test_any_draw_keeps_its_promises(has_lesion, length, share, neighbours, seed):
    has_lesion = np.array(has_lesion)
    protocol = Protocol(4, length, share, neighbours, seed=seed)
    for name, places in protocol.draw(has_lesion, "a").items():
        assert len(places) == length
        assert list(places) == sorted(set(places))
        lesions = has_lesion[list(places)].sum()
        if name.startswith("lesion-free"):
            assert lesions == 0
        elif neighbours:
            assert lesions >= protocol.lesion_slices
        else:
            assert lesions == protocol.lesion_slices
        if neighbours:
            assert places[-1] - places[0] == length - 1


def test_neighbours_come_as_near_to_the_share_as_they_can():
    has_lesion = np.zeros(40, bool)
    has_lesion[10:30] = True
    drawn = Protocol(20, 10, 0.4, neighbours=True).draw(has_lesion, "a")
    starts = {places[0] for name, places in drawn.items() if not name.startswith("lesion-free")}
    assert starts == {4, 26}


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"sequences": 1.5},
        {"lesion_share": 0.0},
        {"extent": (0.7, 0.1)},
        {"seed": -1},
        {"axis": "up"},
    ],
)
def test_wrong_settings(tmp_path, options):
    (name,) = options
    with pytest.raises(InputError, match=f"{name}=.* is"):
        index_atlas(tmp_path, **options)
