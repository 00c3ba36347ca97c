"""DICOM: slices by position whatever the files say, odd series by rule, and no name anywhere."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math

import cv2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from click.testing import CliRunner
from dicom_writer import BIG, ENHANCED_CT, EXPLICIT, IMPLICIT, dicom_file, image

from medseq_tf.cli import cli
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.phantom.cohort import DemoCohort, photographs
from medseq_tf.phantom.writers import ORIENTATIONS, write_dicom, write_image_folder, write_volumes
from medseq_tf.readers import UnreadableStudy
from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.simpleitk_volume import read_dicom_frames

COHORT = DemoCohort(patients=3, seed=3, size=32, slices=(5, 8))


def stack(count=5, rng=None, step=2.0):
    """Return stored values (count, 4, 6) and the positions of their slices."""
    rng = rng or np.random.default_rng(0)
    return rng.integers(0, 4096, (count, 4, 6)), [(0, 0, step * t) for t in range(count)]


def write(folder, *files, labels=(("patient-1", 1),)):
    """Write files of elements or bytes under shuffled names, and labels by patient."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        data = file if isinstance(file, bytes) else dicom_file(file)
        (folder / f"{(number * 7919) % 1009:04}").write_bytes(data)
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["patient_id", "x"], *labels])
    return folder


def write_stack(folder, values, positions, **changes):
    return write(folder, *(image(v, p, **changes) for v, p in zip(values, positions, strict=True)))


def kinds(scan):
    return [entry.kind for entry in scan.audit_entries]


# --------------------------------------------------------------------- the same slices everywhere


def test_every_reader_gives_the_same_prepared_slices(tmp_path):
    """The demo cohort as photographs, NIfTI of four orientations and DICOM; to one grey level."""
    sources = {"image-folder": write_image_folder(COHORT, tmp_path / "png", "patient")}
    for orientation in ORIENTATIONS:
        sources[orientation] = write_volumes(COHORT, tmp_path / orientation, orientation)
    sources["dicom"] = write_dicom(COHORT, tmp_path / "dicom")
    prepared = {}
    for name, source in sources.items():
        reader = "volumes" if name in ORIENTATIONS else name
        prepared[name] = prepare(
            reader, source, out=tmp_path / "out" / name, size=32, workers=1, progress=False
        )
    truth = [COHORT.render(number).volume for number in range(COHORT.patients)]
    for name, data in prepared.items():
        found = {data.slices(row).tobytes(): data.slices(row) for row in range(len(data))}
        assert len(found) == len(truth)
        for volume in truth:
            expected = photographs(volume) if name == "image-folder" else volume
            assert expected.tobytes() in found, f"{name} has other slices"
        assert data.labels.sum() == prepared["image-folder"].labels.sum()


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


# ---------------------------------------------------------------------------------- which is used


def series_of(values, positions, number, **changes):
    return [
        image(v, p, **{"t0020000E": f"1.2.3.{number}", "t00200011": ("IS", str(number)), **changes})
        for v, p in zip(values, positions, strict=True)
    ]


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


def test_ct_and_mr_side_by_side(tmp_path, rng):
    values, positions = stack(5, rng)
    mr_class = "1.2.840.10008.5.1.4.1.1.4"
    files = [
        *series_of(values, positions, 1),
        *series_of(
            values, positions, 2, t0020000D="1.2.4", t00100020="patient-2",
            t00080016=mr_class, t00281052="0",
        ),
        *series_of(values, positions, 3, t0020000D="1.2.5", t00100020="patient-3"),
    ]  # fmt: skip
    labels = [(f"patient-{number}", 1) for number in (1, 2, 3)]
    folder = write(tmp_path, *files, labels=labels)
    scan = index_dicom(folder)
    assert (scan.modality, scan.dtype, len(scan.studies)) == ("CT", "int16", 2)
    assert [f.detail for f in scan.audit_entries] == [
        "2 studies are, 1 are MR; give --modality MR for those",
        "MR in a data set of CT",
    ]
    for path in folder.iterdir():
        if path.suffix != ".csv" and b"patient-3" in path.read_bytes():
            path.unlink()
    with pytest.raises(InputError, match="1 studies are CT and 1 are MR; give --modality"):
        index_dicom(folder)
    scan = index_dicom(folder, modality="MR")
    assert (scan.modality, scan.dtype) == ("MR", "uint16")
    np.testing.assert_array_equal(scan.studies[0].read().images, values)


# ------------------------------------------------------------------------------------- intensities


def test_slope_and_intercept_give_hounsfield_units(tmp_path):
    values, positions = stack()
    folder = write_stack(tmp_path, values, positions, t00281053="0.5", t00281052="-1000")
    images = index_dicom(folder).studies[0].read().images
    np.testing.assert_allclose(images, values * 0.5 - 1000, atol=0.5)


def test_monochrome_1_is_inverted(tmp_path):
    values, positions = stack()
    scan = index_dicom(write_stack(tmp_path, 4095 - values, positions, t00280004="MONOCHROME1"))
    assert [(f.kind, f.detail) for f in scan.audit_entries] == [
        ("MONOCHROME1", "5 images inverted")
    ]
    np.testing.assert_array_equal(scan.studies[0].read().images, values - 1024)


@pytest.mark.parametrize(
    ("bits", "is_signed", "overlay"),
    [(12, 0, 0), (12, 0, 0xF000), (12, 1, 0), (16, 0, 0), (16, 1, 0)],
)
@pytest.mark.parametrize("slope", ["1", "0.25"])
def test_unpacked_values_are_as_simpleitk_reads_them(
    tmp_path, rng, bits, is_signed, overlay, slope
):
    values = rng.integers(0, 2**bits, (3, 40, 30))
    changes = {"t00280101": bits, "t00280102": bits - 1, "t00280103": is_signed}
    folder = write_stack(
        tmp_path, values | overlay, stack(3)[1], t00281053=slope, t00281052="-20", **changes
    )
    (study,) = index_dicom(folder).studies
    assert all(picture.plain for picture in study.pictures)
    expected = [read_dicom_frames(folder / picture.path)[0] for picture in study.pictures]
    np.testing.assert_array_equal(study.read().images, np.clip(np.rint(expected), -32768, 32767))


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
def test_compressed_files(tmp_path, compressor):
    values = np.random.default_rng(0).integers(0, 4096, (4, 48, 64))
    folder = write_stack(tmp_path, values, stack(4)[1])
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    for path in folder.iterdir():
        if path.suffix == "":
            loaded = sitk.ReadImage(str(path))
            stored = sitk.Cast(loaded + 1024, sitk.sitkUInt16)
            for key in loaded.GetMetaDataKeys():
                if key not in ("0028|1052", "0028|1053"):
                    stored.SetMetaData(key, loaded.GetMetaData(key))
            writer.SetFileName(str(path))
            writer.Execute(stored)
            assert EXPLICIT.encode() + b"\0" not in path.read_bytes()[:600]
    np.testing.assert_array_equal(index_dicom(folder).studies[0].read().images, values)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_headers_of_every_syntax(tmp_path, syntax):
    values, _ = stack(1)
    path = tmp_path / "a"
    elements = image(values[0], (1, 2, 3.5))
    for undefined in (False, True):
        elements[0x00081140] = ("SQ", [[(0x00081155, "UI", "1.2")], []])
        path.write_bytes(dicom_file(elements, syntax, undefined=undefined))
        header = read_dicom_header(path)
        assert (header.rows, header.columns, header.patient_id) == (4, 6, "patient-1")
        assert header.frames[0].position == (1, 2, 3.5)
        assert (header.frames[0].slope, header.frames[0].intercept) == (1.0, -1024.0)


def test_a_bare_data_set_is_read(tmp_path):
    values, positions = stack()
    files = [
        dicom_file(image(v, p), syntax, bare=True)
        for v, p, syntax in zip(
            values, positions, [IMPLICIT, EXPLICIT] * 2 + [IMPLICIT], strict=True
        )
    ]
    scan = index_dicom(write(tmp_path, *files))
    np.testing.assert_array_equal(scan.studies[0].read().images, values - 1024)


def enhanced(values, positions, slopes):
    """Return a multi-frame CT whose frames are shuffled and rescaled one by one."""
    order = np.random.default_rng(1).permutation(len(values))
    elements = image(
        values[order],
        t00080016=ENHANCED_CT,
        t00200032=None,
        t00200037=None,
        t00280030=None,
        t00281052=None,
        t00281053=None,
    )
    elements[0x00280008] = ("IS", str(len(values)))
    elements[0x52009229] = (
        "SQ",
        [
            [
                (0x00209116, "SQ", [[(0x00200037, "DS", "1\\0\\0\\0\\1\\0")]]),
                (0x00289110, "SQ", [[(0x00180050, "DS", "2"), (0x00280030, "DS", "1\\1")]]),
            ]
        ],
    )
    elements[0x52009230] = (
        "SQ",
        [
            [
                (0x00209113, "SQ", [[(0x00200032, "DS", f"0\\0\\{positions[i][2]:g}")]]),
                (
                    0x00289145,
                    "SQ",
                    [[(0x00281052, "DS", "-1000"), (0x00281053, "DS", f"{slopes[i]:g}")]],
                ),
            ]
            for i in order
        ],
    )
    return elements


def test_frames_of_a_multi_frame_file_are_slices(tmp_path):
    values, positions = stack(6)
    slopes = np.array([1, 1, 2, 1, 0.5, 1])
    scan = index_dicom(write(tmp_path, enhanced(values, positions, slopes)))
    expected = values * slopes[:, None, None] - 1000
    np.testing.assert_allclose(scan.studies[0].read().images, expected, atol=0.51)


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("study_instance_uid", "1.2.3"),
        ("accession_number", "A1"),
        ("patient_id", "patient-1"),
        ("folder", "folder7"),
        ("patient", "folder7"),
        ("study", "folder7"),
        ("study", "A1"),
        ("id", "1.2.3"),
        ("who", "patient-1"),
    ],
)
def test_keys_of_the_labels(tmp_path, column, key):
    values, positions = stack()
    write_stack(tmp_path / "folder7" / "deep", values, positions, t00080050=("SH", "A1"))
    (tmp_path / "folder7" / "deep" / "labels.csv").unlink()
    path = tmp_path / "labels.csv"
    path.write_text(f"{column},x,split\n{key},1,val\nnobody,0,train\n")
    scan = index_dicom(tmp_path)
    assert [(s.patient, s.labels, s.split) for s in scan.studies] == [
        ("folder7" if column == "patient" else "patient-1", {"x": 1.0}, "validation")
    ]
    rule = scan.resolved["match"]
    taken = [] if rule == column else [("labels matched", f"by {rule}")]
    assert [(f.kind, f.detail) for f in scan.audit_entries] == [
        *taken,
        ("label for an unknown patient", ""),
    ]
    assert scan.audit_entries[-1].where == "labels line 3"


def two_patients(folder, header, *rows):
    """Patient 17, whose accession number is 23, and patient 23, whose is 40."""
    values, positions = stack()
    files = series_of(values, positions, 1, t00100020="17", t00080050=("SH", "23"))
    files += series_of(
        values, positions, 2, t00100020="23", t00080050=("SH", "40"), t0020000D="1.2.4"
    )
    write(folder, *files)
    (folder / "labels.csv").write_text("\n".join([f"{header},x", *rows]))
    return folder


def test_an_accession_number_is_no_patient_id(tmp_path):
    scan = index_dicom(two_patients(tmp_path, "patient_id", "17,0", "23,1"))
    assert {s.patient: s.labels["x"] for s in scan.studies} == {"17": 0, "23": 1}
    scan = index_dicom(two_patients(tmp_path, "accession_number", "23,0", "40,1"))
    assert {s.patient: s.labels["x"] for s in scan.studies} == {"17": 0, "23": 1}


@pytest.mark.parametrize("header", ["id", "who"])
def test_an_id_that_may_be_two_things_is_asked_for(tmp_path, header):
    folder = two_patients(tmp_path, header, "17,0", "23,1")
    with pytest.raises(
        InputError, match=r"--match accession_number or --match patient_id"
    ) as error:
        index_dicom(folder)
    assert "labels line 3 by accession_number and line 2 by patient_id" in str(error.value)
    for match, labels in (("patient_id", {"17": 0, "23": 1}), ("accession_number", {"17": 1})):
        scan = index_dicom(folder, match=match)
        assert {s.patient: s.labels["x"] for s in scan.studies} == labels
    with pytest.raises(InputError, match="match='name' is unknown; valid: study_instance_uid"):
        index_dicom(folder, match="name")


def test_the_labels_may_join_a_patient_s_studies_but_not_part_them(tmp_path):
    folder = two_patients(tmp_path, "accession_number,patient_id", "23,p,0", "40,p,1")
    scan = index_dicom(folder)
    assert [s.patient for s in scan.studies] == ["p", "p"]
    assert "patients joined by the labels" in [f.kind for f in scan.audit_entries]
    values, positions = stack()
    third = series_of(
        values, positions, 3, t00100020="17", t0020000D="1.2.5", t00080050=("SH", "41")
    )
    write(folder / "more", *third)
    (folder / "labels.csv").write_text("accession_number,patient_id,x\n23,p,0\n41,q,1\n")
    with pytest.raises(InputError, match="one PatientID, and labels lines 2 and 3 give them two"):
        index_dicom(folder)


def test_two_patients_do_not_share_a_row(tmp_path):
    folder = two_patients(tmp_path / "ward", "folder", "ward,1")
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="of two patients and both labels line 2"):
        index_dicom(tmp_path)


def test_a_study_without_patient_id_is_said(tmp_path):
    values, positions = stack()
    write(tmp_path, *series_of(values, positions, 1, t00100020=""))
    (tmp_path / "labels.csv").write_text("study_instance_uid,x\n1.2.3,1\n")
    scan = index_dicom(tmp_path)
    assert [study.patient for study in scan.studies] == ["1.2.3"]
    assert [f.kind for f in scan.audit_entries] == ["study without PatientID"]


def test_one_patient_in_two_splits_is_refused(tmp_path, rng):
    values, positions = stack()
    files = series_of(values, positions, 1) + series_of(values, positions, 2, t0020000D="1.2.4")
    write(tmp_path, *files)
    (tmp_path / "labels.csv").write_text("study,x,split\n1.2.3,1,train\n1.2.4,1,test\n")
    with pytest.raises(InputError, match="lines 2 and 3 put one patient in two splits"):
        index_dicom(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "PT"}, "modality='PT' is unknown; valid: CT, MR"),
        ({"fewest_slices": 0}, "fewest_slices=0 is not"),
        ({"tilt": "shear"}, "tilt='shear' is unknown; valid: keep, correct"),
        ({"spacing": -2}, "spacing=-2 is not"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        index_dicom(tmp_path, **options)


# --------------------------------------------------------------------------------------- bad files


def test_files_that_are_no_dicom_are_numbered(tmp_path):
    values, positions = stack()
    folder = write_stack(tmp_path, values, positions)
    (folder / "a.txt").write_text("hello " * 100)
    (folder / "b").write_bytes(b"")
    (folder / "c").write_bytes((folder / "0000").read_bytes()[:400])
    (folder / "d").write_bytes(dicom_file(image(values[0]))[:-20])
    scan = index_dicom(folder)
    done = CliRunner().invoke(cli, ["prepare", "dicom", str(folder), "--list"])
    assert done.exit_code == 0
    numbers = {line.split(" ", 1)[1]: line.split()[0] for line in done.output.splitlines()}
    assert {(f.where, f.detail) for f in scan.audit_entries} == {
        (f"file {numbers['a.txt']}", "not a DICOM file"),
        (f"file {numbers['b']}", "an empty file"),
        (f"file {numbers['c']}", "damaged or cut short"),
        (f"file {numbers['d']}", "cut short: declares more pixels than it holds"),
    }


def test_pixels_that_cannot_be_decoded_cost_one_slice(tmp_path):
    values, positions = stack()
    files = [dicom_file(image(v, p)) for v, p in zip(values, positions, strict=True)]
    packed = image(values[2], positions[2])
    packed[0x7FE00010] = ("OB", b"\xff\xd8 no JPEG at all " * 20)
    files[2] = dicom_file(packed, "1.2.840.10008.1.2.4.70")
    scan = index_dicom(write(tmp_path, *files))
    slices = scan.studies[0].read()
    np.testing.assert_array_equal(slices.images, values[[0, 1, 3, 4]] - 1024)
    assert [entry.kind for entry in slices.audit_entries] == ["unreadable image"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t00280010": 60000, "t00280011": 60000}, "declares 60000 x 60000 pixels; 1 to 8192"),
        ({"t00280010": 0}, "declares 6 x 0 pixels"),
        ({"t00280008": ("IS", "2000000000")}, "declares 2000000000 frames"),
        ({"t00280010": 4000, "t00280011": 4000}, "more pixels than it holds"),
    ],
)
def test_huge_declared_pictures(tmp_path, changes, reason):
    values, positions = stack(1)
    path = tmp_path / "a"
    path.write_bytes(dicom_file(image(values[0], positions[0], **changes)))
    with pytest.raises(UnreadableDicom, match=reason):
        read_dicom_header(path)


def test_what_is_no_dicom(tmp_path):
    for data in (
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"x",
        cv2.imencode(".jpg", np.eye(8))[1].tobytes(),
    ):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(NotDicom):
            read_dicom_header(tmp_path / "a")


def test_nesting_without_end(tmp_path):
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 500
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM" + nested)
    with pytest.raises(UnreadableDicom, match="damaged"):
        read_dicom_header(tmp_path / "a")


# ----------------------------------------------------------------------------------------- privacy

SECRET = "ZEBRA"
TEXT = {
    0x00080050: "SH", 0x00080080: "LO", 0x00080081: "ST", 0x00080090: "PN", 0x00081010: "SH",
    0x00081030: "LO", 0x0008103E: "LO", 0x00081048: "PN", 0x00081050: "PN", 0x00081070: "PN",
    0x00081080: "LO", 0x00081090: "LO", 0x00082111: "ST", 0x00100010: "PN", 0x00100020: "LO",
    0x00100021: "LO", 0x00101000: "LO", 0x00101001: "PN", 0x00101005: "PN", 0x00101040: "LO",
    0x00101060: "PN", 0x00102154: "SH", 0x001021B0: "LT", 0x00104000: "LT", 0x00180015: "CS",
    0x00181000: "LO", 0x00181030: "LO", 0x00200010: "SH", 0x00204000: "LT", 0x00321032: "PN",
    0x00321060: "LO", 0x00400006: "PN", 0x00400254: "LO", 0x00401400: "LT", 0x00290010: "LO",
}  # fmt: skip
DATES = {0x00080020: "DA", 0x00080021: "DA", 0x00080022: "DA", 0x00080023: "DA", 0x00100030: "DA"}


def test_no_name_date_or_id_leaves_the_files(tmp_path, caplog, capfd):
    values, positions = stack(6)
    date = "19510623"
    source = tmp_path / "source"
    planted = {f"t{tag:08X}": (kind, f"{SECRET}^{tag:x}") for tag, kind in TEXT.items()}
    planted |= {f"t{tag:08X}": (kind, date) for tag, kind in DATES.items()}
    planted |= {"t0020000D": "1.2.777.1", "t0020000E": "1.2.777.2"}
    folder = source / f"{SECRET}_{date}"
    files = [image(v, p, **planted) for v, p in zip(values, positions, strict=True)]
    bad = dicom_file(files[3])[:900]
    packed = {**files[2], 0x7FE00010: ("OB", b"\xff\xd8 no JPEG " * 20)}
    more = [dicom_file(packed, "1.2.840.10008.1.2.4.70"), bad, b"", SECRET.encode() * 200]
    write(folder, *files[:2], *files[4:], *more, labels=[(f"{SECRET}^100020", 1), ("ZEBRA9", 0)])
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    (source / f"{SECRET} empty").mkdir()
    (source / f"{SECRET} link").symlink_to(tmp_path)
    out, printed = tmp_path / "out", io.StringIO()
    with contextlib.redirect_stdout(printed), caplog.at_level(logging.DEBUG):
        prepared = prepare(
            "dicom", source, labels=tmp_path / "labels.csv", out=out, size=16, workers=2
        )
        print(prepared.audit_text, prepared.studies.to_string(), prepared.info)
    assert len(prepared) == 1
    assert len(prepared.slices(0)) == 4
    captured = capfd.readouterr()
    texts = [printed.getvalue(), captured.out, captured.err, caplog.text]
    texts += [str(path.relative_to(tmp_path)) for path in out.rglob("*")]
    texts += [path.read_bytes().decode("latin-1") for path in out.rglob("*") if path.is_file()]
    for text in texts:
        for secret in (SECRET, SECRET.lower(), date, "1.2.777"):
            assert secret not in text
    assert {entry["kind"] for entry in prepared.audit["entries"]} >= {
        "unreadable image", "odd file", "empty folder", "label for an unknown patient",
    }  # fmt: skip


def test_errors_name_nobody(tmp_path):
    values, positions = stack()
    folder = write_stack(tmp_path, values, positions, t00100020=f"{SECRET}")
    with pytest.raises(
        InputError, match=r"no study of .* is in the labels; .* studies' patient_id "
    ) as caught:
        index_dicom(folder)
    assert SECRET not in str(caught.value)


def test_prepared_hounsfield_units_come_back(tmp_path):
    source = write_dicom(COHORT, tmp_path / "source")
    prepare("dicom", source, out=tmp_path / "out", size=32, workers=1, progress=False)
    prepared = Prepared.load(tmp_path / "out")
    assert (prepared.info["modality"], prepared.info["unit"]) == ("CT", "HU")
    found = {prepared.slices(row).tobytes() for row in range(3)}
    assert found == {COHORT.render(n).volume.tobytes() for n in range(3)}
    assert all(
        "patient-0001" not in path.read_text("utf-8") for path in tmp_path.glob("out/*.json")
    )
