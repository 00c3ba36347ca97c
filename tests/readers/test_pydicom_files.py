"""Every file of pydicom's own tests is read as pydicom reads it, or refused for a named reason."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut

from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.pixels import decode
from medseq_tf.readers.dicom.series import DicomFile, pictures_of, why_no_slice

FOLDER = Path(pydicom.__file__).parent / "data"
NO_PICTURE = "an object without a picture"
REASONS = {
    "not a DICOM file": """
        ExplVR_BigEndNoMeta.dcm FileInfo.txt README.md README.txt crayons.icc hashes.json
        no_meta.dcm rtplan.dump rtstruct.dump test1.json test_PN.json urls.json zipMR.gz""",
    NO_PICTURE: """
        DICOMDIR DICOMDIR-bigEnd DICOMDIR-empty.dcm DICOMDIR-implicit DICOMDIR-nooffset
        DICOMDIR-nopatient DICOMDIR-reordered ExplVR_LitEndNoMeta.dcm chrJapMulti.dcm
        chrJapMultiExplicitIR6.dcm chrKoreanMulti.dcm fall.dcm hotiron.dcm hotmetalblue.dcm
        no_meta_group_length.dcm pet.dcm pet20step.dcm reportsi.dcm
        reportsi_with_empty_number_tags.dcm rtplan.dcm rtstruct.dcm spring.dcm summer.dcm
        test-SR.dcm waveform_ecg.dcm winter.dcm""",
    "damaged or cut short": "rtplan_truncated.dcm",
    "cut short: declares more pixels than it holds": "MR_truncated.dcm",
    "declares 0 x 0 pixels; 1 to 8192 a side can be used": """
        meta_missing_tsyntax.dcm nested_priv_SQ.dcm""",
    "colour image": """
        ExplVR_BigEnd.dcm GDCMJ2K_TextGBR.dcm SC_jpeg_no_color_transform.dcm
        SC_jpeg_no_color_transform_2.dcm SC_rgb_dcmtk_+eb+cr.dcm SC_rgb_dcmtk_+eb+cy+n1.dcm
        SC_rgb_dcmtk_+eb+cy+n2.dcm SC_rgb_dcmtk_+eb+cy+np.dcm SC_rgb_dcmtk_+eb+cy+s2.dcm
        SC_rgb_dcmtk_+eb+cy+s4.dcm SC_rgb_gdcm_KY.dcm SC_rgb_jls_lossy_line.dcm
        SC_rgb_jls_lossy_sample.dcm SC_rgb_jpeg.dcm SC_rgb_jpeg_app14_dcmd.dcm
        SC_rgb_jpeg_dcmd.dcm SC_rgb_jpeg_dcmtk.dcm SC_rgb_jpeg_gdcm.dcm SC_rgb_jpeg_lossy_gdcm.dcm
        SC_rgb_rle.dcm SC_rgb_rle_16bit.dcm SC_rgb_rle_16bit_2frame.dcm SC_rgb_rle_2frame.dcm
        SC_rgb_rle_32bit.dcm SC_rgb_rle_32bit_2frame.dcm SC_rgb_small_odd.dcm
        SC_rgb_small_odd_big_endian.dcm SC_rgb_small_odd_jpeg.dcm SC_ybr_full_422_uncompressed.dcm
        examples_jpeg2k.dcm examples_rgb_color.dcm examples_ybr_color.dcm""",
    "palette colour image": "examples_palette.dcm",
    "pixels of 1 bit": "liver_1frame.dcm liver_expb_1frame.dcm",
    "neither CT nor MR": """
        6154 6247 6278 rtdose.dcm rtdose_1frame.dcm rtdose_expb.dcm rtdose_expb_1frame.dcm
        rtdose_rle.dcm rtdose_rle_1frame.dcm""",
    "localiser": "15820 15970 4919 5641 6293 6924",
    "secondary capture": """
        JPEG-lossy.dcm JPEG2000-embedded-sequence-delimiter.dcm JPEG2000.dcm
        JPEGLSNearLossless_08.dcm JPEGLSNearLossless_16.dcm JPGExtended.dcm chrArab.dcm
        chrFren.dcm chrFrenMulti.dcm chrGerm.dcm chrGreek.dcm chrH31.dcm chrH32.dcm chrHbrw.dcm
        chrI2.dcm chrRuss.dcm chrX1.dcm chrX2.dcm image_dfl.dcm""",
    "damaged or cut short: holds no pixels": """
        IM000000 UN_sequence.dcm chrSQEncoding.dcm chrSQEncoding1.dcm empty_charset_LEI.dcm
        priv_SQ.dcm""",
    "its number of frames is no number": "badVR.dcm",
}  # fmt: skip
"""Why a file's pictures are no slices -> the files; the others are read."""
UNDECODABLE = ("JPEG2000-embedded-sequence-delimiter.dcm",)
"""By pydicom as well: its code stream holds what ends it."""
BY_DCMTK = ("JPEG-lossy.dcm", "JPGExtended.dcm")
"""Of JPEG of 12 bits, which pydicom's plugins that come with the package do not decode."""


def own_files():
    """List those that ship with it; of fifty that hold no pixels one."""
    files = [p for p in FOLDER.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = [p for p in files if p.suffix != ".py" and p.name != "py.typed"]
    return sorted(p for p in files if "TINY_ALPHA" not in p.parts or p.name == "IM000000")


def outcome(path):
    """The header, and why its pictures are no slices; "" where they are."""
    try:
        header = read_dicom_header(path)
    except (NotDicom, UnreadableDicom) as error:
        return None, str(error)
    if header is None:
        return None, NO_PICTURE
    return header, header.unread or why_no_slice(header)


@pytest.fixture(scope="module")
def outcomes():
    return {path: outcome(path) for path in own_files()}


def test_each_file_is_read_or_refused_for_its_reason(outcomes):
    found = defaultdict(set)
    for path, (_, reason) in outcomes.items():
        found[reason].add(path.name)
    read = found.pop("")
    assert found == {reason: set(n.split()) for reason, n in REASONS.items()}
    assert {"CT_small.dcm", "693_J2KI.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"} <= read


def as_pydicom_reads(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        return dataset, {e.keyword: e.value for e in dataset}


def as_integer(value):
    try:
        return int(value or 0)
    except ValueError:
        return 0


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.name)
def test_headers_are_as_pydicom_reads_them(outcomes, path):
    header, reason = outcomes[path]
    if reason == NO_PICTURE:
        assert "PixelData" not in as_pydicom_reads(path)[1]
    if header is None:
        return
    _, theirs = as_pydicom_reads(path)
    assert (header.rows, header.columns) == (theirs["Rows"], theirs["Columns"])
    assert (header.unread == "colour image") == (theirs["SamplesPerPixel"] != 1)
    assert header.format.is_inverted == (theirs["PhotometricInterpretation"] == "MONOCHROME1")
    assert len(header.frames) == (as_integer(theirs.get("NumberOfFrames")) or 1)
    for name, keyword in TEXTS.items():
        assert getattr(header, name) == str(theirs.get(keyword) or "").strip(), keyword
    for name, keyword in NUMBERS.items():
        assert getattr(header, name) == as_integer(theirs.get(keyword)), keyword
    if reason:
        return
    for name, keyword in GEOMETRY.items():
        assert getattr(header.frames[0], name) == tuple(theirs.get(keyword) or ()), keyword
    first = header.frames[0]
    rescaling = (theirs.get("RescaleSlope") or 1, theirs.get("RescaleIntercept") or 0)
    assert (first.slope, first.intercept) == rescaling


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.name)
def test_intensities_are_as_pydicom_rescales_them(outcomes, path):
    header, _ = outcomes[path]
    if header is None or header.unread:
        return
    file = DicomFile(1, str(path)[1:], header)
    images = [image for _, image, _ in decode("/", list(pictures_of(file)))]
    if path.name in UNDECODABLE:
        assert images == [None]
        with pytest.raises(RuntimeError):
            as_pydicom_reads(path)[0].pixel_array  # noqa: B018
        return
    dataset = decompressed(path) if path.name in BY_DCMTK else as_pydicom_reads(path)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of excess padding
        stored = dataset.pixel_array.reshape(-1, header.rows, header.columns)
    if header.format.is_inverted:
        stored = 2**dataset.BitsStored - 1 - stored
    np.testing.assert_array_equal(images, apply_modality_lut(stored, dataset))


def decompressed(path):
    """What dcmtk makes of it."""
    if not shutil.which("dcmdjpeg"):
        pytest.skip("dcmtk is not installed: no other program decodes JPEG of 12 bits")
    whole = subprocess.run(["dcmdjpeg", path, "-"], capture_output=True, check=True).stdout
    return pydicom.dcmread(io.BytesIO(whole))


TEXTS = {
    "patient_id": "PatientID",
    "accession_number": "AccessionNumber",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "series_description": "SeriesDescription",
    "sop_instance": "SOPInstanceUID",
    "sop_class": "SOPClassUID",
    "modality": "Modality",
}
NUMBERS = {
    "series_number": "SeriesNumber",
    "acquisition_number": "AcquisitionNumber",
    "instance_number": "InstanceNumber",
}
GEOMETRY = {
    "position": "ImagePositionPatient",
    "orientation": "ImageOrientationPatient",
    "pixel_spacing": "PixelSpacing",
}
