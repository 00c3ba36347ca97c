"""Which series is read, and its slices by position whatever the files say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dicom_writer import (
    image,
    kinds,
    series_of,
    stack,
    write,
    write_stack,
)

from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom
from medseq_tf.readers import UnreadableStudy
from medseq_tf.readers.dicom.index import index_dicom

COHORT = DemoCohort(patients=3, seed=3, size=32, slices=(5, 8))


@pytest.mark.parametrize("tilt", [0.0, -20.0, 25.0])
def test_a_tilted_series_is_kept_as_acquired(tmp_path, tilt):
    scan = index_dicom(write_dicom(COHORT, tmp_path, tilt_degrees=tilt))
    tilts = [entry.detail for entry in scan.audit_entries if entry.kind == "gantry tilt"]
    assert tilts == ([f"{abs(tilt):.1f} degrees"] * 3 if tilt else [])
    assert kinds(scan).count("localiser") == 3
    for study in scan.studies:
        drawn = COHORT.render(int(study.patient[-4:]) - 1)
        np.testing.assert_array_equal(study.read().images, drawn.volume)
        assert study.labels == drawn.labels


def test_tilt_is_corrected_by_shifting_slices(tmp_path):
    """A rod along the body's axis is oblique in the tilted slices, and upright once corrected."""
    tilt = math.radians(20)
    pixels = np.zeros((7, 40, 9), np.int64)
    positions = [(0.0, 0.0, 3.0 * t) for t in range(7)]
    column = f"1\\0\\0\\0\\{math.cos(tilt)}\\{-math.sin(tilt)}"
    for t, (_, y, z) in enumerate(positions):
        # The rod stands on the planes' normal through (0, 15, 9).
        normal = np.array([0, math.sin(tilt), math.cos(tilt)])
        start = np.array([0, 15.0, 9.0])
        distance = (np.array([0, y, z]) - start) @ normal
        point = start + distance * normal - np.array([0, y, z])
        row = point @ np.array([0, math.cos(tilt), -math.sin(tilt)])
        below = int(row)
        pixels[t, below, 4] = round(3000 * (1 - (row - below)))
        pixels[t, below + 1, 4] = round(3000 * (row - below))
    folder = write_stack(tmp_path, pixels, positions, t00200037=column)

    def centres(**options):
        images = np.array(index_dicom(folder, **options).studies[0].read().images) + 1024.0
        rows = np.arange(40)[:, None]
        return (images * rows).sum((1, 2)) / images.sum((1, 2))

    assert np.ptp(centres(tilt="keep")) > 5
    assert np.ptp(centres(tilt="correct")) < 0.1


# ------------------------------------------------------------------------------- order and geometry


def test_images_are_counted_before_they_are_read(tmp_path, monkeypatch):
    (study,) = index_dicom(write_stack(tmp_path, *stack())).studies
    monkeypatch.setattr("medseq_tf.readers.dicom.study.MOST_SLICES", 4)
    with pytest.raises(UnreadableStudy, match="5 images; a study has at most 4"):
        study.read()


def test_names_and_instance_numbers_say_nothing(tmp_path, rng):
    values, positions = stack(9, rng)
    files = [
        image(v, p, t00200013=str(n))
        for v, p, n in zip(values, positions, rng.permutation(9), strict=True)
    ]
    scan = index_dicom(write(tmp_path, *(files[i] for i in rng.permutation(9))))
    assert kinds(scan) == []
    np.testing.assert_array_equal(scan.studies[0].read().images, values - 1024)


@pytest.mark.parametrize(
    ("orientation", "along", "turn"),
    [
        ("1\\0\\0\\0\\1\\0", (0, 0, 1), lambda v: v),
        ("-1\\0\\0\\0\\1\\0", (0, 0, 1), lambda v: v[:, :, ::-1]),
        ("0\\1\\0\\1\\0\\0", (0, 0, 1), lambda v: v.transpose(0, 2, 1)),
        ("1\\0\\0\\0\\0\\-1", (0, 1, 0), lambda v: v),
        ("1\\0\\0\\0\\0\\1", (0, 1, 0), lambda v: v[:, ::-1]),
        ("0\\1\\0\\0\\0\\-1", (1, 0, 0), lambda v: v),
        ("0\\-1\\0\\0\\0\\-1", (1, 0, 0), lambda v: v[:, :, ::-1]),
    ],
)
def test_slices_are_turned_as_a_radiologist_sees_them(tmp_path, orientation, along, turn):
    values, _ = stack()
    positions = [tuple(2.0 * t * np.array(along)) for t in range(5)]
    scan = index_dicom(write_stack(tmp_path, values, positions, t00200037=orientation))
    np.testing.assert_array_equal(scan.studies[0].read().images, turn(values - 1024))


def test_missing_positions_are_counted(tmp_path):
    values, positions = stack(8)
    keep = [0, 1, 2, 5, 6, 7]
    scan = index_dicom(write_stack(tmp_path, values[keep], [positions[i] for i in keep]))
    assert [(f.kind, f.detail) for f in scan.audit_entries] == [
        ("missing slice positions", "2 missing, after slice 3")
    ]
    assert len(scan.studies[0].read().images) == 6


def test_variable_spacing_is_kept_or_made_even(tmp_path):
    heights = [0, 2, 4, 7, 10]
    values = np.broadcast_to(np.array(heights)[:, None, None] * 100, (5, 4, 6))
    folder = write_stack(tmp_path, values, [(0, 0, height) for height in heights])
    scan = index_dicom(folder)
    assert [(f.kind, f.detail) for f in scan.audit_entries] == [
        ("variable slice spacing", "2.00 to 3.00 mm between slices")
    ]
    assert len(scan.studies[0].read().images) == 5
    even = np.array(index_dicom(folder, spacing=(0.5, 2, 1)).studies[0].read().images)
    assert even.shape == (11, 2, 12)
    np.testing.assert_array_equal(even[:, 0, 0], np.arange(11) * 100 - 1024)


def test_of_duplicate_positions_the_first_acquisition_is_used(tmp_path):
    values, positions = stack()
    second = np.clip(values + 1, 0, 4095)
    files = [
        image(v, p, t00200012=("IS", str(number)), t00200013=str(9 - number))
        for number, stack_ in ((2, second), (1, values))
        for v, p in zip(stack_, positions, strict=True)
    ]
    scan = index_dicom(write(tmp_path, *files))
    assert [(f.kind, f.detail) for f in scan.audit_entries] == [
        ("duplicate slice positions", "5 images left out")
    ]
    np.testing.assert_array_equal(scan.studies[0].read().images, values - 1024)


def test_of_several_orientations_the_largest_stack_is_used(tmp_path):
    values, positions = stack()
    odd = [image(values[0], (0, y, 0), t00200037="1\\0\\0\\0\\0\\-1") for y in range(3)]
    files = [image(v, p) for v, p in zip(values, positions, strict=True)]
    scan = index_dicom(write(tmp_path, *odd, *files))
    assert kinds(scan) == ["several orientations or sizes in a series"]
    np.testing.assert_array_equal(scan.studies[0].read().images, values - 1024)


def test_the_best_series_of_a_study(tmp_path, rng):
    few, few_positions = stack(4, rng)
    many, positions = stack(6, rng)
    coronal = [(0, z, 0) for _, _, z in positions]
    files = [
        *series_of(many, coronal, 1, t00200037="1\\0\\0\\0\\0\\-1"),
        *series_of(many, positions, 2, t00080008="DERIVED\\SECONDARY\\REFORMATTED"),
        *series_of(few[:3], few_positions[:3], 3, t0008103E=("LO", "BRAIN thin")),
        *series_of(few, few_positions, 4, t0008103E=("LO", "Head BONE")),
        *series_of(few, few_positions, 5, t0008103E=("LO", "Head bone again")),
    ]
    folder = write(tmp_path, *files)
    best = index_dicom(folder)
    np.testing.assert_array_equal(best.studies[0].read().images, few - 1024)
    assert best.studies[0].pictures[0].number in range(len(files) + 2)
    thin = index_dicom(folder, series="*brain*").studies[0].read().images
    np.testing.assert_array_equal(thin, few[:3] - 1024)
    everything = index_dicom(folder, series="all").studies
    assert sorted(len(study.read().images) for study in everything) == [3, 4, 4, 6, 6]
    assert len({study.source for study in everything}) == 5
    with pytest.raises(InputError, match="no DICOM series of CT or MR that can be used; 1 study"):
        index_dicom(folder, series="neck")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"t00080008": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "localiser"),
        ({"t0008103E": ("LO", "3-Plane Scout")}, "localiser"),
        ({"t00080016": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"t00080008": "DERIVED\\SECONDARY\\SCREEN SAVE"}, "secondary capture"),
        ({"t00080016": "1.2.840.10008.5.1.4.1.1.128", "t00080060": "PT"}, "neither CT nor MR"),
        ({"t00280301": ("CS", "YES")}, "text burned into the image"),
        ({"t00080008": "ORIGINAL\\PRIMARY\\M\\MOSAIC"}, "mosaic of slices"),
        ({"t00200037": None}, "image without orientation"),
        ({"t00200037": "0\\0\\0\\0\\0\\0"}, "image without orientation"),
        ({"t00200032": None}, "image without position"),
        ({"t00200032": "nan\\0\\0"}, "image without position"),
        ({"t0020000E": None}, "odd file"),
    ],
)
def test_what_is_no_slice_is_left_out(tmp_path, changes, kind):
    values, positions = stack()
    odd = series_of(values, positions, 9, **changes)
    scan = index_dicom(write(tmp_path, *series_of(values, positions, 1), *odd))
    assert set(kinds(scan)) == {kind}
    assert len(scan.studies) == 1


def test_a_series_of_one_slice_is_a_setting(tmp_path):
    values, positions = stack(1)
    folder = write_stack(tmp_path, values, positions)
    with pytest.raises(InputError, match="1 slices, fewer than 3"):
        index_dicom(folder)
    (study,) = index_dicom(folder, fewest_slices=1).studies
    np.testing.assert_array_equal(study.read().images, values - 1024)
