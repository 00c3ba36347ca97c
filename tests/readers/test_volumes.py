"""Volumes: one orientation whatever the file's, honest intensities, labels by file or patient."""

from __future__ import annotations

import csv
import gzip
import itertools
import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.phantom.writers import ORIENTATIONS, write_volumes
from medseq_tf.readers import UnreadableStudy, nifti
from medseq_tf.readers.intensities import stored_intensities
from medseq_tf.readers.orientation import nearest_axes, plane_of, to_plane
from medseq_tf.readers.simpleitk_volume import VolumeFile
from medseq_tf.readers.volume_file import UnreadableVolume, without_extension
from medseq_tf.readers.volumes import checked_spacing, index_volumes

COHORT = DemoCohort(patients=2, seed=5, size=32, slices=(5, 8))


def write(path, values, spacing=(1.0, 1.0, 1.0), direction=None):
    image = sitk.GetImageFromArray(np.asarray(values), isVector=False)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetDirection(np.eye(3).ravel() if direction is None else np.ravel(direction))
    sitk.WriteImage(image, str(path))


def write_labels(folder, header, *rows):
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def odd(scan):
    """Return the audit entries but for those that only say what was taken for granted."""
    return [f for f in scan.audit_entries if f.kind not in ("modality taken", "labels matched")]


def one_volume(folder, values, name="a.nii.gz", **options):
    """Return the slices and the scan of a folder with one volume."""
    write(folder / name, values)
    write_labels(folder, ["patient_id", "x"], [without_extension(name), 1])
    scan = index_volumes(folder, **options)
    return scan.studies[0].read(), scan


# ------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_any_orientation_and_format_gives_the_same_slices(tmp_path, orientation, extension):
    scan = index_volumes(write_volumes(COHORT, tmp_path, orientation, extension))
    assert (scan.modality, scan.dtype, odd(scan)) == ("CT", "int16", [])
    for number, study in enumerate(scan.studies):
        drawn = COHORT.render(number)
        np.testing.assert_array_equal(study.read().images, drawn.volume)
        assert study.labels == drawn.labels


def test_all_48_orientations_are_told_apart(rng):
    """Against NumPy: x, y and z of every voxel are carried through every flip and permutation."""
    x, y, z = np.meshgrid(range(3), range(4), range(5), indexing="ij")
    world = (x + 10 * y + 100 * z).astype(np.int32)
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            direction = np.zeros((3, 3))
            direction[list(axes), range(3)] = signs
            stored = world.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
            np.testing.assert_array_equal(to_plane(stored, direction, "axial"), world.T)
            np.testing.assert_array_equal(
                to_plane(stored, direction, "coronal"), world.transpose(1, 2, 0)[:, ::-1]
            )
            np.testing.assert_array_equal(
                to_plane(stored, direction, "sagittal"), world.transpose(0, 2, 1)[:, ::-1]
            )


def test_an_oblique_volume_belongs_to_its_nearest_planes(rng):
    for _ in range(50):
        angles = rng.uniform(-0.4, 0.4, 3)
        rotation = np.eye(3)
        for axis, angle in enumerate(angles):
            turn = sitk.VersorTransform(np.eye(3)[axis].tolist(), float(angle))
            rotation = rotation @ np.array(turn.GetMatrix()).reshape(3, 3)
        assert nearest_axes(rotation) == ((0, 1, 2), (1, 1, 1))
        assert plane_of(rotation) == "axial"
        assert plane_of(rotation[:, [1, 2, 0]]) == "sagittal"


def test_a_file_s_own_axis_turns_nothing(tmp_path, rng):
    values = rng.integers(0, 1000, (3, 4, 5)).astype(np.int16)
    write(tmp_path / "a.nii", values, direction=np.diag([-1.0, -1, -1]))
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1])
    for axis, expected in ((2, values), (1, np.moveaxis(values, 1, 0)), ("0", values.T)):
        images = index_volumes(tmp_path, axis=axis, modality="MR").studies[0].read().images
        if axis == "0":
            expected = np.moveaxis(values, 2, 0)
        np.testing.assert_array_equal(images, expected)


def test_spacing_resamples_and_keeps_the_corners(tmp_path):
    ramp = np.broadcast_to(np.arange(8, dtype=np.int16)[:, None, None] * 100, (8, 6, 6))
    write(tmp_path / "a.nii", ramp, spacing=(1, 1, 2))
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1])
    images = np.array(
        index_volumes(tmp_path, spacing=(0, 2, 1), modality="CT").studies[0].read().images
    )
    assert images.shape == (16, 3, 6)
    np.testing.assert_allclose(images[1:-1, 0, 0], np.arange(25, 725, 50), atol=1)
    assert index_volumes(tmp_path, spacing=0, modality="CT").studies[0].spacing is None


@pytest.mark.parametrize("spacing", [-1, "wide", (1, 2), float("nan"), 1000, (1, 1, 0.001)])
def test_impossible_spacing(spacing):
    with pytest.raises(InputError, match=r"spacing=.* is not one number or three"):
        checked_spacing(spacing)


# ------------------------------------------------------------------------------------- intensities


def test_8_bit_volumes_are_photographs(tmp_path):
    scan = index_volumes(write_volumes(COHORT, tmp_path, as_photographs=True))
    assert (scan.modality, scan.dtype) == ("photograph", "uint8")
    np.testing.assert_array_equal(
        scan.studies[0].read().images, photographs(COHORT.render(0).volume)
    )


def test_fractions_are_scaled_by_one_map_a_study(rng):
    volume = rng.normal(size=(4, 5, 6)).astype(np.float32)
    images, audit_entries = stored_intensities(volume, "MR", "a")
    low, high = volume.min(), volume.max()
    expected = (volume.astype(np.float64) - low) / (high - low) * 65535
    np.testing.assert_allclose(images, expected, atol=0.51)
    assert [entry.kind for entry in audit_entries] == ["intensities scaled"]


def test_whole_mr_intensities_stay_as_they_are(rng):
    volume = rng.integers(0, 4096, (4, 5, 6)).astype(np.float32)
    images, audit_entries = stored_intensities(volume, "MR", "a")
    np.testing.assert_array_equal(images, volume)
    assert images[0].dtype == np.uint16
    assert audit_entries == []


def test_voxels_that_are_no_number_take_the_smallest_value():
    volume = np.array([[[np.nan, -900.0], [np.inf, 40.4]], [[-np.inf, 10.0], [0.0, 40000.0]]])
    images, audit_entries = stored_intensities(volume, "CT", "a")
    np.testing.assert_array_equal(images, [[[-900, -900], [-900, 40]], [[-900, 10], [0, 32767]]])
    assert audit_entries[0].detail == "3 took the study's smallest value, -900"
    with pytest.raises(UnreadableStudy, match="not one voxel"):
        stored_intensities(np.full((1, 2, 2), np.nan), "MR", "a")


def test_a_constant_volume_is_a_volume():
    images, _ = stored_intensities(np.full((2, 3, 3), -1.5), "MR", "a")
    np.testing.assert_array_equal(images, np.zeros((2, 3, 3)))


def test_photographs_have_256_grey_levels():
    with pytest.raises(UnreadableStudy, match="0 to 255"):
        stored_intensities(np.full((1, 2, 2), 256, np.int16), "photograph", "a")


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (np.full((3, 4, 4), -1000, np.int16), "CT"),
        (np.full((3, 4, 4), 4096, np.int16), "MR"),
        (np.full((3, 4, 4), 0.5, np.float32), "MR"),
        (np.full((3, 4, 4), 7, np.uint8), "photograph"),
    ],
)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_modality_is_told_from_the_files(tmp_path, values, modality, extension):
    slices, scan = one_volume(tmp_path, values, f"a{extension}")
    assert scan.modality == modality
    assert slices.images[0].dtype == scan.dtype
    assert VolumeFile(tmp_path / f"a{extension}").size == (4, 4, 3)


@pytest.mark.parametrize(
    ("low", "high", "taken", "why"),
    [
        (-1000, 80, "CT", "1 of 1 files looked at hold values of -500 or less, as air has; give"),
        (0, 5000, "MR", "none of 1 files .* and one holds a value above 4095; give --modality CT"),
    ],
)
def test_the_audit_says_which_modality_was_taken(tmp_path, low, high, taken, why):
    write(tmp_path / "a.nii", np.linspace(low, high, 60).reshape(3, 4, 5).astype(np.int16))
    write_labels(tmp_path, ["file", "x"], ["a", 1])
    scan = index_volumes(tmp_path)
    (entry,) = scan.audit_entries
    assert (entry.kind, entry.where, scan.resolved["modality"]) == (
        "modality taken",
        taken,
        taken,
    )
    assert re.match(why, entry.detail)
    assert index_volumes(tmp_path, modality="CT").audit_entries == []


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 80, np.int16), (0, 80, np.float32), (-160, 240, np.int16), (0, 4095, np.uint16),
     (0, 0, np.int16)],
)  # fmt: skip
def test_values_that_may_be_ct_or_mr_are_asked_for(tmp_path, low, high, dtype):
    """Skull-stripped, windowed, of 12 bits with the intercept lost, empty."""
    write(tmp_path / "a.nii", np.linspace(low, high, 60).reshape(3, 4, 5).astype(dtype))
    write_labels(tmp_path, ["file", "x"], ["a", 1])
    with pytest.raises(InputError, match=f"--modality CT or --modality MR.*{low} to {high} may be"):
        index_volumes(tmp_path)
    assert index_volumes(tmp_path, modality="CT").studies[0].read().images[0].dtype == np.int16


def test_only_files_with_a_label_tell_the_modality(tmp_path):
    write(tmp_path / "a.nii", np.full((3, 4, 5), 5000, np.int16))
    write(tmp_path / "other.nii", np.full((3, 4, 5), -1000, np.int16))
    write_labels(tmp_path, ["file", "x"], ["a", 1])
    assert index_volumes(tmp_path).modality == "MR"


def test_the_given_modality_holds(tmp_path):
    _, scan = one_volume(tmp_path, np.full((3, 4, 4), 7, np.uint8), modality="MR")
    assert (scan.modality, scan.dtype) == ("MR", "uint16")


# ------------------------------------------------------------------------------------------ labels


def test_a_patient_may_have_several_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.nii", "deep/b.nii.gz"):
        write(tmp_path / name, np.zeros((2, 3, 3), np.uint8))
    write_labels(
        tmp_path, ["file", "patient_id", "x"], ["a", "p", 1], ["deep/b", "p", 0], ["c", "q", 1]
    )
    scan = index_volumes(tmp_path)
    assert [(s.source, s.patient, s.labels) for s in scan.studies] == [
        ("a.nii", "p", {"x": 1.0}),
        ("deep/b.nii.gz", "p", {"x": 0.0}),
    ]
    assert [f.where for f in odd(scan)] == ["labels line 4"]


def test_a_patient_s_folder_is_a_key(tmp_path):
    (tmp_path / "p7").mkdir()
    write(tmp_path / "p7" / "ct.nii", np.zeros((2, 3, 3), np.uint8))
    write_labels(tmp_path, ["patient_id", "x", "split"], ["p7", 1, "test"])
    (study,) = index_volumes(tmp_path).studies
    assert (study.patient, study.split) == ("p7", "test")


def test_a_patient_in_two_splits_is_refused(tmp_path):
    write(tmp_path / "a.nii", np.zeros((2, 3, 3), np.uint8))
    write_labels(
        tmp_path,
        ["file", "patient_id", "x", "split"],
        ["a", "p", 1, "train"],
        ["b", "p", 1, "test"],
    )
    with pytest.raises(InputError, match="lines 2 and 3 put one patient in two splits"):
        index_volumes(tmp_path)


def test_missing_labels_are_audit_entries(tmp_path):
    for name in ("a.nii", "b.nii", "c.nii"):
        write(tmp_path / name, np.zeros((2, 3, 3), np.uint8))
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1], ["b", ""])
    scan = index_volumes(tmp_path)
    assert [study.source for study in scan.studies] == ["a.nii"]
    assert [(f.kind, f.where) for f in odd(scan)] == [
        ("patient without label", "b.nii"),
        ("patient without label", "c.nii"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "vertical"}, "axis='vertical' is unknown; valid: axial"),
        ({"modality": "PET"}, "modality='PET' is unknown; valid: photograph, CT, MR"),
        ({"columns": ["y"]}, "no label column y; its columns: patient_id, x"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    write(tmp_path / "a.nii", np.zeros((2, 3, 3), np.uint8))
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1])
    with pytest.raises(InputError, match=message):
        index_volumes(tmp_path, **options)


def test_sources_of_no_use(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        index_volumes(tmp_path / "absent", labels=tmp_path / "l.csv")
    with pytest.raises(InputError, match="volumes need labels"):
        index_volumes(tmp_path)
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1])
    with pytest.raises(InputError, match="holds no volume; valid endings"):
        index_volumes(tmp_path)
    write(tmp_path / "b.nii", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match=r"no file of .* has the name of a patient"):
        index_volumes(tmp_path)


# --------------------------------------------------------------------------------------- bad files


def test_4_d_gives_its_first_volume(tmp_path, rng):
    values = rng.integers(0, 255, (2, 3, 4, 5)).astype(np.uint8)
    slices, _ = one_volume(tmp_path, values)
    np.testing.assert_array_equal(slices.images, values[0])
    assert slices.audit_entries[0].detail == "the first of its 2 volumes is used"


def test_2_d_is_a_study_of_one_slice(tmp_path, rng):
    values = rng.integers(0, 255, (3, 4)).astype(np.uint8)
    slices, _ = one_volume(tmp_path, values)
    np.testing.assert_array_equal(slices.images, values[None])


def nifti_header(path, size):
    """A NIfTI file that declares a size and holds 64 bytes of voxels."""
    write(path, np.zeros((4, 4, 4), np.uint8))
    data = bytearray(path.read_bytes())
    data[40:56] = np.array([3, *size, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"not a volume at all" * 40), "not a NIfTI file"),
        (lambda path: nifti_header(path, (32000, 32000, 600)), "at most 8192 a side"),
        (lambda path: nifti_header(path, (8000, 8000, 600)), "536870912 in all"),
        (lambda path: nifti_header(path, (64, 64, 64)), "cut short: declares 64 x 64 x 64"),
        (lambda path: nifti_header(path, (4, 0, 4)), "declares 4 x 0 x 4 voxels"),
    ],
)
def test_files_that_are_no_volume_are_named(tmp_path, make, reason):
    make(tmp_path / "a.nii")
    write(tmp_path / "b.nii", np.zeros((2, 3, 3), np.uint8))
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1], ["b", 0])
    scan = index_volumes(tmp_path)
    assert [study.source for study in scan.studies] == ["b.nii"]
    assert [(f.kind, f.where) for f in odd(scan)] == [("study left out", "a.nii")]
    assert reason in odd(scan)[0].detail


@pytest.mark.parametrize("shape", [(9, 30, 40), (30, 40), (2, 9, 30, 40)])
def test_the_first_intensities_are_those_of_the_first_slices(tmp_path, rng, monkeypatch, shape):
    """Whatever the format; a file that is sampled can still be read as a whole."""
    monkeypatch.setattr(nifti, "SAMPLE_BYTES", 2 * 30 * 40 * 3 - 10)
    values = rng.integers(-1000, 1000, shape).astype(np.int16)
    image = sitk.GetImageFromArray(values, isVector=False)
    for name in ("a.nii", "a.nrrd", "a.mha", "b.mha"):
        sitk.WriteImage(image, str(tmp_path / name), useCompression=name == "b.mha")
        file = VolumeFile(tmp_path / name)
        sample = file.first_intensities()
        assert len(sample) == min(values.size, 3 * 30 * 40 - 5)
        np.testing.assert_array_equal(sample, values.ravel()[: len(sample)])
        first = values.reshape(-1, *shape[-3:])[0]
        np.testing.assert_array_equal(sitk.GetArrayFromImage(file.image()).squeeze(), first)


def test_a_small_gzip_that_declares_much_is_left_out(tmp_path):
    nifti_header(tmp_path / "a.nii", (512, 512, 512))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(UnreadableVolume, match="cut short"):
        VolumeFile(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_cut_file_is_left_out(tmp_path, rng, extension, share):
    path = tmp_path / f"a{extension}"
    image = sitk.GetImageFromArray(rng.integers(0, 255, (60, 64, 64)).astype(np.uint8))
    sitk.WriteImage(image, str(path), useCompression=True)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    write(tmp_path / "b.nii", np.zeros((2, 3, 3), np.uint8))
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1], ["b", 0])
    scan = index_volumes(tmp_path)
    reasons = [entry.detail for entry in odd(scan)]
    for study in scan.studies[:-1]:
        with pytest.raises(UnreadableStudy) as caught:
            study.read()
        reasons.append(caught.value.reason)
    assert len(reasons) == 1


@pytest.mark.parametrize("change", ["two members", "an empty member", "bytes after the voxels"])
def test_a_gzip_file_may_have_another_length_at_its_end(tmp_path, rng, change):
    values = rng.integers(0, 255, (20, 64, 64)).astype(np.uint8)
    write(tmp_path / "a.nii", values)
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").unlink()
    packed = {
        "two members": gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
        "an empty member": gzip.compress(data) + gzip.compress(b""),
        "bytes after the voxels": gzip.compress(data + b"notes"),
    }
    (tmp_path / "a.nii.gz").write_bytes(packed[change])
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1])
    (study,) = index_volumes(tmp_path, axis=2).studies
    np.testing.assert_array_equal(study.read().images, values)


def test_colour_is_no_intensity(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 4, 3), np.uint8), isVector=True)
    for name in ("a.nii", "b.nrrd", "c.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        with pytest.raises(UnreadableVolume, match="colour"):
            VolumeFile(tmp_path / name)


@pytest.mark.parametrize("target", ["../secret.raw", "/etc/hostname", "LIST", "%03d.raw"])
def test_a_header_cannot_point_out_of_its_folder(tmp_path, target):
    (tmp_path / "secret.raw").write_bytes(bytes(64))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"
        f"ElementDataFile = {target}\n"
    )
    with pytest.raises(UnreadableVolume, match="not in it but in another file"):
        VolumeFile(folder / "a.mhd")


def test_a_link_out_of_the_source_is_left_out(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    write(tmp_path / "a.nii", np.zeros((2, 3, 3), np.uint8))
    write(folder / "b.nii", np.zeros((2, 3, 3), np.uint8))
    (folder / "a.nii").symlink_to(tmp_path / "a.nii")
    write_labels(folder, ["patient_id", "x"], ["a", 1], ["b", 0])
    scan = index_volumes(folder)
    assert [study.source for study in scan.studies] == ["b.nii"]
    assert odd(scan)[0].kind == "symbolic link out of the source"


def test_scaled_nifti_is_in_its_units(tmp_path):
    values = np.full((2, 4, 4), 24, np.int16)
    write(tmp_path / "a.nii", values)
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[112:120] = np.array([1.0, -1024.0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    write_labels(tmp_path, ["patient_id", "x"], ["a", 1])
    scan = index_volumes(tmp_path)
    assert scan.modality == "CT"
    np.testing.assert_array_equal(scan.studies[0].read().images, values - 1024)
