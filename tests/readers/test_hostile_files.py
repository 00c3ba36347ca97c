"""Files that were made to deceive or to exhaust: refused by what they declare, for a few bytes."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_writer import dicom_file, image

from medseq_tf.dataset.prepare import prepare
from medseq_tf.execution.processes import isolated_map
from medseq_tf.readers.dicom.elements import UnreadableDicom
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.intensities import stored_intensities
from medseq_tf.readers.simpleitk_volume import VolumeFile, read_volume, voxels
from medseq_tf.readers.study import UnreadableStudy
from medseq_tf.readers.volume_file import UnreadableVolume
from medseq_tf.readers.volumes import index_volumes

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
JPEG_LOSSLESS, DEFLATED = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1.99"


def write(path, values):
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


def prepared(source, out, **options):
    (source / "labels.csv").write_text("patient_id,x\na,1\nb,0\n")
    return prepare(
        "volumes", source, out=out, size=8, workers=1, progress=False, modality="CT", **options
    )


def entries(data):
    return {(f["kind"], f["where"]): f["detail"] for f in data.audit["entries"]}


# ------------------------------------------------------------- one scan, whatever its file's format


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_no_number_are_the_same_in_every_format(tmp_path, rng, dtype):
    values = rng.uniform(-1000, 1000, (3, 8, 9)).astype(dtype)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    for extension in FORMATS:
        found, _ = read_volume(write(tmp_path / f"a{extension}", values), "a")
        np.testing.assert_array_equal(voxels(found).transpose(), values)


@pytest.mark.parametrize("extension", FORMATS)
def test_prepare_counts_what_is_no_number_and_leaves_out_what_holds_nothing_else(
    tmp_path, rng, extension
):
    source = tmp_path / "source"
    source.mkdir()
    values = rng.uniform(-1000, 1000, (3, 8, 8)).astype(np.float32)
    lowest = values.min()
    values[1, 2, 3:5] = np.nan, np.inf
    write(source / f"a{extension}", values)
    write(source / f"b{extension}", np.full((3, 8, 8), np.nan, np.float32))
    data = prepared(source, tmp_path / "out")
    assert {
        ("voxels not a number", f"a{extension}"): f"2 took the study's smallest value, {lowest:g}",
        ("study left out", f"b{extension}"): "not one voxel is a finite number",
    }.items() <= entries(data).items()
    expected = np.rint(np.where(np.isfinite(values), values, lowest)).astype(int)
    found = np.sort(data.slices(0), axis=None)
    np.testing.assert_array_equal(found, np.sort(expected, axis=None))


def with_scaling(path, slope, intercept):
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (0, 7, lambda v: v),
        (np.nan, 7, lambda v: v),
        (1, 0, lambda v: v),
        (2, -3, lambda v: 2 * v - 3),
        (0.5, 0.25, lambda v: 0.5 * v + 0.25),
        (-1, 0, lambda v: -v),
    ],
)
def test_nifti_s_scaling_is_the_standard_s(tmp_path, dtype, slope, intercept, expected):
    values = np.arange(60).reshape(3, 4, 5).astype(dtype)
    path = with_scaling(write(tmp_path / "a.nii", values), slope, intercept)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.nii", "b.nii.gz"):
        found, _ = read_volume(tmp_path / name, name)
        np.testing.assert_array_equal(voxels(found).transpose(), expected(values.astype(float)))


@pytest.mark.parametrize(("slope", "intercept"), [(np.inf, 0), (2, np.nan), (1, -np.inf)])
def test_scaling_by_what_is_no_number_is_refused(tmp_path, slope, intercept):
    path = with_scaling(write(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16)), slope, intercept)
    with pytest.raises(UnreadableVolume, match="its scaling is no number"):
        VolumeFile(path)


def test_nifti_lies_in_space_as_simpleitk_says(tmp_path, rng):
    grid = sitk.GetImageFromArray(rng.integers(0, 99, (3, 4, 5)).astype(np.int16))
    grid.SetSpacing((0.5, 0.75, 2.0))
    grid.SetOrigin((3.0, -4.0, 5.0))
    grid.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    for name in ("a.nii", "a.nii.gz"):
        sitk.WriteImage(grid, str(tmp_path / name))
        ours, theirs = read_volume(tmp_path / name, name)[0], sitk.ReadImage(tmp_path / name)
        for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
            assert getattr(ours, of)() == getattr(theirs, of)()
        np.testing.assert_array_equal(voxels(ours), voxels(theirs))


def test_a_changed_byte_of_a_packed_volume_is_noticed(tmp_path, rng):
    path = write(tmp_path / "a.nii.gz", rng.integers(0, 99, (8, 32, 32)).astype(np.int16))
    data = bytearray(path.read_bytes())
    data[-6] ^= 255  # of the checksum
    path.write_bytes(data)
    with pytest.raises(UnreadableVolume, match="damaged"):
        read_volume(path, "a")


def test_a_ct_beyond_hounsfield_units_is_seen():
    values = np.full((2, 4, 4), 60000.0)
    with pytest.raises(UnreadableStudy, match="not one voxel lies between -32768 and 32767"):
        stored_intensities(values, "CT", "a")
    with pytest.raises(UnreadableStudy, match="not one voxel lies between"):
        stored_intensities(values.astype(np.int32), "CT", "a")
    values[0, 0, :2] = 5, -7
    images, audit_entries = stored_intensities(values, "CT", "a")
    assert images[0][0].tolist() == [5, -7, 32767, 32767]
    assert [f.detail for f in audit_entries] == ["30 of 32 became -32768 or 32767"]


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_a_study_of_one_value_is_seen(dtype):
    _, audit_entries = stored_intensities(np.full((2, 4, 4), 3071, dtype), "CT", "a")
    assert [(f.kind, f.detail) for f in audit_entries] == [
        ("study of one value", "every voxel has the value 3071")
    ]


# ------------------------------------------------------------------- headers that hide what they do

NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"
AWAY = "../secret.raw"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nrrd", NRRD + "# a comment\n" * 20000 + f"data file: {AWAY}\n\n"),
        ("a.nrrd", NRRD + "# a comment\n" * 200000 + f"data file: {AWAY}\n\n"),
        ("a.nhdr", NRRD + f"data file: {AWAY}\n"),
        ("a.nrrd", NRRD + f"data file:={AWAY}\n\n"),
        ("a.nrrd", NRRD + f"data file: {AWAY}:=x\n\n"),
        ("a.nrrd", NRRD + f"content: x\rdata file: {AWAY}\n\n"),
        ("a.nrrd", NRRD + f"data file: beside.raw\ndatafile: {AWAY}\n\n"),
        ("a.nrrd", NRRD + f"data file: LIST\n{AWAY}\n"),
        ("a.nrrd", NRRD + "content: x\x0csizes: 2 2 2\nsizes: 9999 9999 9999\n\n"),
        ("a.mha", META + f"ElementDataFile = {AWAY}\n"),
        ("a.mha", META + f"ElementDataFile : {AWAY}\nElementDataFile = LOCAL\n"),
        ("a.mha", META + f"Comment = x\x0cElementDataFile = LOCAL\nElementDataFile = {AWAY}\n"),
        ("a.mha", META + f" ElementDataFile = {AWAY}\nElementDataFile = LOCAL\n"),
        ("a.mhd", META + f"ElementDataFile = LIST\n{AWAY}\n"),
        ("a.mhd", META + "ElementDataFile = beside.raw\n"),
        ("a.mha", META + f"Comment =\nElementDataFile = LOCAL\nElementDataFile = {AWAY}\n"),
        ("a.mha", META + f"ElementDataFile = LOCAL x\nElementDataFile = {AWAY}\n"),
        ("a.mha", META + f"Comment = {'x' * 5000}\nElementDataFile = {AWAY}\n"),
        ("a.nhdr", NRRD + "data file: beside.raw\n"),
        ("a.nrrd", NRRD + f"DATA FILE: {AWAY}\n\n"),
        ("a.nrrd", NRRD + f"data\tfile: {AWAY}\n\n"),
        ("a.nrrd", NRRD + f"# a comment\rdata file: {AWAY}\n\n"),
        ("a.nrrd", (NRRD + f"data file: {AWAY}\n\n").replace("\n", "\r\n")),
        ("a.nrrd", (NRRD + f"data file: {AWAY}\n\n").replace("\n", "\r")),
        (
            "a.mha",
            META + "CompressedData = True\nCompressedDataSize = 99999999999\n"
            "ElementDataFile = LOCAL\n",
        ),
    ],
)
def test_no_header_hides_another_file_or_size(tmp_path, name, header):
    folder = tmp_path / "source"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes([77] * 64))
    for beside in ("LIST", "beside.raw"):
        (folder / beside).write_bytes(bytes(64))
    (folder / name).write_bytes(header.encode("latin-1") + bytes(64))
    with pytest.raises(UnreadableVolume) as refused:
        read_volume(folder / name, name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("comments", [0, 1, 20000])
def test_an_honest_header_is_read_however_long(tmp_path, comments):
    text = NRRD + "# no data file\n" * comments + "key:=value: of a writer's own\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + bytes(range(64)))
    found, _ = read_volume(tmp_path / "a.nrrd", "a")
    assert voxels(found).transpose().ravel().tolist() == list(range(64))


def test_a_packed_volume_that_never_ends_costs_what_it_declares(tmp_path):
    start = write(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8)).read_bytes()
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(start) + b"".join(packer.compress(bytes(2**20)) for _ in range(64))
    (tmp_path / "b.nii.gz").write_bytes(packed + packer.flush())
    found, _ = read_volume(tmp_path / "b.nii.gz", "b")
    assert found.GetSize() == (5, 4, 3)


@pytest.mark.parametrize("key", ["ElementSpacing"])
def test_a_place_in_space_that_is_no_number_is_refused(tmp_path, key):
    text = META + f"{key} = nan 1 1\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(text.encode() + bytes(64))
    with pytest.raises(UnreadableVolume, match="impossible geometry"):
        read_volume(tmp_path / "a.mha", "a")


# -------------------------------------------------------------------------------------------- DICOM


def dicom_source(folder, count=4, **changes):
    folder.mkdir()
    for number in range(count):
        elements = image(np.full((4, 5), number, np.uint16), (0, 0, number), **changes)
        (folder / f"{number}").write_bytes(dicom_file(elements))
    (folder / "labels.csv").write_text("patient_id,x\npatient-1,1\n")
    return folder


def frames_bomb(path):
    elements = image(np.zeros((1, 1), np.uint16), t00280008=("IS", "400000000"))
    path.write_bytes(dicom_file(elements, JPEG_LOSSLESS))
    return path


def test_frames_are_believed_no_further_than_the_file_reaches(tmp_path):
    path = frames_bomb(tmp_path / "a")
    assert path.stat().st_size < 1000
    with pytest.raises(UnreadableDicom, match="declares 400000000 frames; at most 65536"):
        read_dicom_header(path)
    elements = image(np.zeros((1, 1), np.uint16), t00280008=("IS", "60000"))
    path.write_bytes(dicom_file(elements, JPEG_LOSSLESS))
    with pytest.raises(UnreadableDicom, match="declares more pixels than it holds"):
        read_dicom_header(path)


def test_a_file_of_few_bytes_and_many_frames_does_not_take_prepare_down(tmp_path):
    source = dicom_source(tmp_path / "source")
    frames_bomb(source / "bomb")
    command = ["prepare", "dicom", "source", "--out", "out", "--size", "8", "--workers", "1"]
    bound = "import resource as r; r.setrlimit(r.RLIMIT_DATA, (2**30, 2**30)); "
    done = subprocess.run(
        [sys.executable, "-c", bound + "from medseq_tf.cli import main; main()", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "unreadable image" in done.stdout
    assert "Traceback" not in done.stderr


def deflated(elements):
    whole = dicom_file(elements, DEFLATED)
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    return whole[:start] + packer.compress(whole[start:]) + packer.flush()


def test_a_deflated_file_is_unpacked_no_further_than_its_header(tmp_path, rng):
    pixels = rng.integers(0, 4000, (8, 9)).astype(np.uint16)
    (tmp_path / "a").write_bytes(deflated(image(pixels)))
    assert read_dicom_header(tmp_path / "a").rows == 8
    (tmp_path / "b").write_bytes(deflated({**image(pixels), 0x00091010: ("OB", bytes(40 * 2**20))}))
    with pytest.raises(UnreadableDicom, match="damaged or cut short"):
        read_dicom_header(tmp_path / "b")


@pytest.mark.parametrize(
    "change", [{"t00281053": "0"}, {"t00281053": "nan"}, {"t00281052": "inf"}, {"t00281053": "a"}]
)
def test_an_image_with_an_impossible_rescaling_is_left_out(tmp_path, change):
    source = dicom_source(tmp_path / "source")
    odd = image(np.zeros((4, 5), np.uint16), (0, 0, 9), **change)
    (source / "odd").write_bytes(dicom_file(odd))
    scan = index_dicom(source)
    assert len(scan.studies[0].pictures) == 4
    kinds = [entry.kind for entry in scan.audit_entries]
    assert "image with an impossible rescale slope or intercept" in kinds


def test_each_slice_of_a_series_has_its_own_rescaling(tmp_path):
    source = dicom_source(tmp_path / "source")
    for number, (slope, intercept) in enumerate([("2", "-10"), ("0.5", "0"), ("1", "-1024")]):
        elements = image(
            np.full((4, 5), 100, np.uint16),
            (0, 0, 10 + number),
            t00281053=slope,
            t00281052=intercept,
        )
        (source / f"more{number}").write_bytes(dicom_file(elements))
    scan = index_dicom(source)
    assert (
        "several rescalings in a series",
        "3 pairs of slope and intercept; each image is given its own",
    ) in [(f.kind, f.detail) for f in scan.audit_entries]
    images = scan.studies[0].read().images
    assert [int(i[0, 0]) for i in images] == [-1024, -1023, -1022, -1021, 190, 50, -924]


@pytest.mark.parametrize(
    ("far", "pixels"), [(999_999, "100\\100"), (4, "900000\\900000")], ids=["long", "wide"]
)
def test_resampling_makes_no_more_voxels_than_a_file_may_have(tmp_path, far, pixels):
    source = dicom_source(tmp_path / "source", t00280030=pixels)
    last = image(np.zeros((4, 5), np.uint16), (0, 0, far), t00280030=pixels)
    (source / "last").write_bytes(dicom_file(last))
    with pytest.raises(UnreadableStudy, match="would have more than 536870912 voxels"):
        index_dicom(source, spacing=0.1).studies[0].read()


def test_a_series_beyond_hounsfield_units_is_left_out(tmp_path):
    source = dicom_source(tmp_path / "source", t00281052="50000")
    with pytest.raises(UnreadableStudy, match="no Hounsfield units"):
        index_dicom(source).studies[0].read()


def test_a_volume_that_is_left_out_for_its_header_names_it(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write(source / "b.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    (source / "a.nrrd").write_text(NRRD + "# a comment\n" * 20000 + f"data file: {AWAY}\n\n")
    (source / "labels.csv").write_text("patient_id,x\na,1\nb,0\n")
    scan = index_volumes(source, modality="CT")
    reason = "its voxels are not in it but in another file; write it as one file"
    assert ("study left out", "a.nrrd", reason) in [
        (f.kind, f.where, f.detail) for f in scan.audit_entries
    ]


# ------------------------------------------------------------------------------------------- memory


def allocate(gibibytes):
    """Ask for memory, and use a little of it."""
    return int(np.zeros(int(gibibytes * 2**27)).nbytes > 0)


def test_a_worker_that_wants_more_than_half_of_the_memory_loses_its_item_alone():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    items = [0.01, 2 * machine + 4, 0.01]
    assert list(isolated_map(allocate, items, lambda item: "lost", workers=1)) == [1, "lost", 1]
