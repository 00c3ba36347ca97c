"""Intensities of DICOM pictures, packed or not, inverted, rescaled, and without padding."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_writer import BIG, EXPLICIT, dicom_file, image, stack, write, write_stack

from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.simpleitk_volume import read_dicom_frames


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
    assert not any(picture.format.is_compressed for picture in study.pictures)
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


# ----------------------------------------------------------------------------------------- padding


def padded(values, mask, value):
    return np.where(mask, value, values)


@pytest.fixture
def mask():
    return np.broadcast_to(np.array([[1, 0, 0, 0, 0, 1]] * 4, bool), (5, 4, 6))


def read(folder, changes, values):
    (study,) = index_dicom(write_stack(folder, values, stack()[1], **changes)).studies
    slices = study.read()
    return np.array(slices.images), [e.detail for e in slices.audit_entries if e.kind == PADDING]


PADDING = "pixel padding"
SIGNED = {"t00280101": 16, "t00280102": 15, "t00280103": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"t00280120": ("SS", struct.pack("<h", -2000))},
        {"t00280120": ("US", 63536)},
        {"t00280120": ("SS", struct.pack("<h", -3000)), "t00280121": ("US", 63536)},
        {"t00280120": ("US", 63536), "t00280121": ("SS", struct.pack("<h", -3000))},
    ],
    ids=["signed", "unsigned", "range", "range from above"],
)
@pytest.mark.parametrize("slope", ["1", "0.5"])
def test_padding_takes_the_smallest_other_value(tmp_path, mask, changes, slope):
    values = padded(stack()[0], mask, -2000)
    images, details = read(tmp_path, {**changes, **SIGNED, "t00281053": slope}, values)
    expected = np.rint(padded(values, mask, values[~mask].min()) * float(slope) - 1024)
    np.testing.assert_array_equal(images, expected)
    lowest = values[~mask].min() * float(slope) - 1024
    assert details == [f"40 of 120 pixels took the study's smallest other value, {lowest:g}"]


def test_padding_far_below_is_not_beyond_the_range_of_hounsfield_units(tmp_path, mask):
    values = padded(stack()[0], mask, -32768)
    changes = {**SIGNED, "t00280120": ("SS", struct.pack("<h", -32768))}
    images, details = read(tmp_path, changes, values)
    assert images.min() == values[~mask].min() - 1024
    assert len(details) == 1


def test_padding_among_the_other_values_is_not_believed(tmp_path, mask):
    values = padded(stack()[0], mask, 2000)
    images, details = read(tmp_path, {"t00280120": ("US", 2000)}, values)
    np.testing.assert_array_equal(images, values - 1024)
    assert details == ["its value lies among the other pixels'; 40 pixels are left as they are"]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_what_simpleitk_decodes(tmp_path, mask, photometric):
    values = padded(np.clip(stack()[0], 10, 4000), mask, 4095)
    changes = {"t00280004": photometric, "t00280120": ("US", 4095), "t00281052": "-2000"}
    files = [image(v, p, **changes) for v, p in zip(values, stack()[1], strict=True)]
    if photometric == "MONOCHROME2":
        for elements in files:
            elements[0x7FE00010] = ("OW", values_of(elements).astype(">u2").tobytes())
        files = [dicom_file(elements, BIG) for elements in files]
    (study,) = index_dicom(write(tmp_path, *files)).studies
    images = np.array(study.read().images)
    shown = 4095 - values if photometric == "MONOCHROME1" else values
    expected = padded(shown, mask, shown[~mask].min()) - 2000
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(("modality", "background"), [("CT", -1024), ("MR", 0)])
def test_padding_that_is_air_already_stays(tmp_path, mask, modality, background):
    """As in CT whose stored 0 is both air and padding, and where only the head is left."""
    values = padded(np.clip(stack()[0], 1030, 1090), mask, 0)
    changes = {"t00280120": ("US", 0), "t00281052": str(background)}
    if modality == "MR":
        changes |= {"t00080060": "MR", "t00080016": "1.2.840.10008.5.1.4.1.1.4"}
    images, details = read(tmp_path, changes, values)
    np.testing.assert_array_equal(images, values + background)
    assert details == []


def values_of(elements):
    return np.frombuffer(elements[0x7FE00010][1], "<u2")


def test_slices_of_nothing_but_padding_and_files_that_only_name_it(tmp_path):
    values = stack()[0]
    values[2] = 0
    changes = {"t00280120": ("US", 0), "t00281052": "-2000"}
    images, details = read(tmp_path / "a", changes, values)
    assert (images[2] == values[[0, 1, 3, 4]].min() - 2000).all()
    assert len(details) == 1
    images, details = read(tmp_path / "b", {"t00280120": ("US", 9)}, np.full_like(values, 9))
    assert (images == 9 - 1024).all()
    assert details == []
    images, details = read(tmp_path / "c", {"t00280120": ("US", 5000)}, stack()[0])
    np.testing.assert_array_equal(images, stack()[0] - 1024)
    assert details == []
