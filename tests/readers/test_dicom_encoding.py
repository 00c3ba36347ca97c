"""Pixels however a file stores them: right, or refused for what they are."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import zlib

import numpy as np
import pydicom
import pytest
from dicom_writer import BIG, EXPLICIT, IMPLICIT, dicom_file, image, kinds, stack, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut
from pydicom.uid import JPEGLSLossless, RLELossless

from medseq_tf.readers.dicom.elements import has_decoder
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.index import index_dicom
from medseq_tf.readers.dicom.pixels import decode
from medseq_tf.readers.dicom.series import DicomFile, pictures_of

DEFLATED, HTJ2K = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.201"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


def limits(bits, is_signed):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)


def stored(values, allocated, bits, high_bit, is_signed, around=0, order="<"):
    """Bytes of values whose stored bits end at `high_bit`, with bits of something else around."""
    low = high_bit + 1 - bits
    own = (values.astype(np.int64) & (2**bits - 1)) << low
    others = around & ~((2**bits - 1) << low) & (2**allocated - 1)
    return (own | others).astype(f"{order}u{allocated // 8}").tobytes()


def slices_of(values, allocated, bits, high_bit, is_signed, syntax=EXPLICIT, around=0, **changes):
    """Files of slices (T, H, W) of values; those that are deflated are packed."""
    order = ">" if syntax == BIG else "<"
    changes = {"t00281052": "0", **changes}
    files = []
    for height, slice_ in enumerate(values):
        elements = image(
            slice_,
            (0, 0, height),
            t00280100=allocated,
            t00280101=bits,
            t00280102=high_bit,
            t00280103=int(is_signed),
            **changes,
        )
        data = stored(slice_, allocated, bits, high_bit, is_signed, around, order)
        elements[0x7FE00010] = ("OB" if allocated == 8 else "OW", data)
        whole = dicom_file(elements, syntax)
        files.append(deflated(whole) if syntax == DEFLATED else whole)
    return files


def deflated(whole):
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    return whole[:start] + packer.compress(whole[start:]) + packer.flush()


@st.composite
def encodings(draw):
    allocated = draw(st.sampled_from([8, 16, 32]))
    bits = draw(st.integers(2, allocated))
    high_bit = draw(st.integers(bits - 1, allocated - 1))
    is_signed = draw(st.booleans())
    syntax = draw(st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED]))
    return allocated, bits, high_bit, is_signed, syntax


@given(encoding=encodings(), around=st.integers(0, 2**32 - 1), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_whole_numbers_of_any_bits_signs_and_order(tmp_path_factory, encoding, around, seed):
    *bits, syntax = encoding
    _, stored_bits, _, is_signed = bits
    low, high = limits(stored_bits, is_signed)
    values = np.random.default_rng(seed).integers(low, high, (3, 5, 7), endpoint=True)
    folder = tmp_path_factory.mktemp("a")
    (study,) = index_dicom(write(folder, *slices_of(values, *bits, syntax, around))).studies
    pictures = [image for _, image, _ in study_pictures(study)]
    np.testing.assert_array_equal(pictures, values)
    shutil.rmtree(folder)


def study_pictures(study):
    """The intensities as they are decoded, before they are those of a CT."""
    return decode(study.root, study.pictures)


def test_values_of_32_bits_and_their_intercept_do_not_wrap(tmp_path):
    values = np.full((3, 4, 6), 2**31 - 1)
    files = slices_of(values, 32, 32, 31, True, t00281052="9")
    (study,) = index_dicom(write(tmp_path, *files)).studies
    assert {int(image.max()) for _, image, _ in study_pictures(study)} == {2**31 + 8}


def test_monochrome_1_is_inverted_within_its_bits_and_padding_is_of_stored_values(tmp_path):
    values, _ = stack(3)
    values[:, 0] = 7
    changes = {"t00280004": "MONOCHROME1", "t00280120": ("US", 7)}
    files = slices_of(values, 16, 12, 11, False, EXPLICIT, 0xF000, **changes)
    (study,) = index_dicom(write(tmp_path, *files)).studies
    for (_, image_, padding), slice_ in zip(study_pictures(study), values, strict=True):
        np.testing.assert_array_equal(image_, 4095 - slice_)
        np.testing.assert_array_equal(padding, slice_ == 7)


# ----------------------------------------------------------------------------------------- refused


def refused(tmp_path, changes, syntax=EXPLICIT):
    """The audit entries, kind -> detail, of a series that is changed beside one that is not."""
    values, positions = stack(3)
    odd = [
        dicom_file(image(v, p, t0020000E="1.2.3.9", **changes), syntax)
        for v, p in zip(values, positions, strict=True)
    ]
    plain = [image(v, p) for v, p in zip(values, positions, strict=True)]
    index = index_dicom(write(tmp_path, *plain, *odd))
    assert len(index.studies) == 1
    np.testing.assert_array_equal(index.studies[0].read().images, values - 1024)
    return {entry.kind: entry.detail for entry in index.audit_entries}


FRAGMENTS = ("OB", [bytes(60)])
FLOATS = ("OW", np.zeros((4, 6), "<f4").tobytes())


@pytest.mark.parametrize(
    ("changes", "syntax", "reason"),
    [
        ({"t00280002": 3, "t00280004": "RGB"}, EXPLICIT, "colour image"),
        ({"t00280002": 3, "t00280004": "YBR_FULL_422", "t00280006": ("US", 1)}, EXPLICIT,
         "colour image"),
        ({"t00280004": "PALETTE COLOR"}, EXPLICIT, "palette colour image"),
        ({"t00280004": "HSV"}, EXPLICIT, "image neither grey nor colour"),
        ({"t7FE00010": None, "t7FE00008": FLOATS, "t00280100": 32}, EXPLICIT,
         "pixels in floating point"),
        ({"t7FE00010": None, "t7FE00009": FLOATS, "t00280100": 64}, EXPLICIT,
         "pixels in floating point"),
        ({"t7FE00010": FRAGMENTS}, HTJ2K, "transfer syntax that is not read: "
         "High-Throughput JPEG 2000 Image Compression (Lossless Only)"),
        ({"t7FE00010": FRAGMENTS}, "1.2.840.10008.1.2.4.100",
         "transfer syntax that is not read: MPEG2 Main Profile / Main Level"),
        ({"t7FE00010": FRAGMENTS}, "1.2.3.4.ZEBRA",
         "transfer syntax that is not read: none of the standard"),
        ({"t7FE00010": FRAGMENTS}, EXPLICIT, "pixels that their transfer syntax does not fit"),
        ({}, JPEG_LOSSLESS, "pixels that their transfer syntax does not fit"),
        ({"t00280100": 1, "t00280101": 1, "t00280102": 0}, EXPLICIT, "pixels of 1 bit"),
        ({"t00280100": 12}, EXPLICIT, "pixels of 12 bits"),
        ({"t00280100": 64}, EXPLICIT, "pixels of 64 bits"),
        ({"t00280100": 8, "t00280101": 8, "t00280102": 7}, BIG,
         "pixels of 8 bits in big-endian words"),
        ({"t00280101": 0}, EXPLICIT, "impossible bits of pixels"),
        ({"t00280101": 17}, EXPLICIT, "impossible bits of pixels"),
        ({"t00280102": 16}, EXPLICIT, "impossible bits of pixels"),
        ({"t00280102": 5}, EXPLICIT, "impossible bits of pixels"),
        ({"t7FE00010": FRAGMENTS, "t00280102": 15}, JPEG_LOSSLESS,
         "compressed pixels with bits to spare below"),
        ({"t00280004": "MONOCHROME1", "t00280103": 1}, EXPLICIT, "MONOCHROME1 with signed pixels"),
        ({"t00283000": ("SQ", [[(0x00283006, "OW", bytes(8))]])}, EXPLICIT,
         "modality LUT instead of slope and intercept"),
        ({"t00281054": ("LO", "Z_EFF")}, EXPLICIT, "CT of other units than Hounsfield's"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_left_out_by_its_name(tmp_path, monkeypatch, changes, syntax, reason):
    monkeypatch.setattr("medseq_tf.readers.dicom.encoding.has_decoder", lambda syntax: False)
    assert refused(tmp_path, changes, syntax) == {reason: "3 images left out"}


@pytest.mark.parametrize("unit", ["HU", "US", "HU_MOD"])
def test_units_of_a_ct_are_read(tmp_path, unit):
    values, positions = stack(3)
    files = [image(v, p, t00281054=("LO", unit)) for v, p in zip(values, positions, strict=True)]
    assert kinds(index_dicom(write(tmp_path, *files))) == []


def test_pixels_without_a_transfer_syntax_that_are_compressed_are_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(
        dicom_file(image(np.zeros((4, 5), np.uint16), t7FE00010=FRAGMENTS), EXPLICIT, bare=True)
    )
    assert read_dicom_header(path).unread == "pixels that their transfer syntax does not fit"


# -------------------------------------------------------------------------------------- compressed


def smooth(rng, bits, is_signed, frames=3):
    """Return values (T, H, W) with both ends of their range."""
    low, high = limits(bits, is_signed)
    rows, columns = np.mgrid[:24, :31]
    waves = [0.5 + 0.5 * np.sin(columns / 5 + rows / 9 + frame) for frame in range(frames)]
    values = low + (high - low) * np.array(waves) + rng.integers(-3, 4, (frames, 24, 31))
    values = np.clip(np.rint(values), low, high).astype(np.int64)
    values[:, 0, :2] = low, high
    return values


def multi_frame(values, allocated, bits, is_signed):
    """A data set of pydicom's with these frames."""
    (whole,) = slices_of(values[:1], allocated, bits, bits - 1, is_signed)
    data_set = pydicom.dcmread(io.BytesIO(whole))
    data_set.NumberOfFrames = len(values)
    data_set.PixelData = values.astype(f"<{'iu'[not is_signed]}{allocated // 8}").tobytes()
    return data_set


def decoded(path):
    """The intensities of a file's pictures; None for one that cannot be decoded."""
    header = read_dicom_header(path)
    assert header.unread == ""
    assert header.format.is_compressed
    pictures = pictures_of(DicomFile(1, str(path)[1:], header))
    return [image for _, image, _ in decode("/", list(pictures))]


BITS = [(8, 8), (8, 7), (16, 16), (16, 12), (16, 10)]


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("syntax", "allocated", "bits"),
    [
        *((RLELossless, *bits) for bits in BITS),
        *((JPEGLSLossless, *bits) for bits in (*BITS, (16, 8))),
    ],
)
def test_compressed_pixels_come_back(tmp_path, rng, syntax, allocated, bits, is_signed, frames):
    values = smooth(rng, bits, is_signed, frames)
    data_set = multi_frame(values, allocated, bits, is_signed)
    data_set.compress(syntax, generate_instance_uid=False)
    data_set.save_as(tmp_path / "a")
    np.testing.assert_array_equal(decoded(tmp_path / "a"), values)


@pytest.mark.skipif(
    not shutil.which("dcmcjpeg"), reason="dcmtk is not installed, which writes them"
)
@pytest.mark.parametrize(("allocated", "bits"), [*BITS, (16, 8)])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("process", ["+e1", "+el", "+eb", "+ee"])
def test_jpeg_comes_back_as_dcmtk_decodes_it(tmp_path, rng, process, allocated, bits, is_signed):
    values = smooth(rng, bits, is_signed)
    plain, packed, back = (tmp_path / name for name in ("plain", "packed", "back"))
    multi_frame(values, allocated, bits, is_signed).save_as(plain)
    done = subprocess.run(["dcmcjpeg", process, plain, packed], capture_output=True, check=False)
    assert not done.returncode
    subprocess.run(["dcmdjpeg", packed, back], capture_output=True, check=True)
    images, theirs = decoded(packed), pydicom.dcmread(back)
    np.testing.assert_array_equal(images, apply_modality_lut(theirs.pixel_array, theirs))
    if process in ("+e1", "+el"):
        np.testing.assert_array_equal(images, values)


def test_nothing_else_in_the_header_changes_compressed_values(tmp_path, rng):
    """A real world value mapping and a rescaling: the rescaling is used, once."""
    values = smooth(rng, 12, False, 1)
    data_set = multi_frame(values, 16, 12, False)
    data_set.Modality, data_set.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
    data_set.RescaleSlope, data_set.RescaleIntercept = "0.3", "-7"
    item = pydicom.Dataset()
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 5.0, 11.0
    item.add_new(0x00409216, "US", 0)
    item.add_new(0x00409211, "US", 4095)
    data_set.RealWorldValueMappingSequence = [item]
    data_set.save_as(tmp_path / "plain")
    data_set.compress(JPEGLSLossless, generate_instance_uid=False)
    data_set.save_as(tmp_path / "packed")
    images = decoded(tmp_path / "packed")
    np.testing.assert_array_equal(images, values * 0.3 - 7)


def compressed_as(syntax, values, packed, bits=12, is_signed=False):
    """A data set of compressed pictures; of JPEG by dcmtk, through a file."""
    data_set = multi_frame(values, 16, bits, is_signed)
    if syntax != JPEG_LOSSLESS:
        data_set.compress(syntax, generate_instance_uid=False)
        return data_set
    if not shutil.which("dcmcjpeg"):
        pytest.skip("dcmtk is not installed, which writes them")
    data_set.save_as(packed)
    subprocess.run(["dcmcjpeg", packed, packed], capture_output=True, check=True)
    return pydicom.dcmread(packed)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG_LOSSLESS])
@pytest.mark.parametrize(
    "changes",
    [
        {"Rows": 12},
        {"Rows": 48},
        {"Columns": 62},
        {"Rows": 23, "Columns": 32},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
        {"NumberOfFrames": 2},
        {"NumberOfFrames": 5},
    ],
)
def test_pictures_that_are_others_than_the_header_says_are_refused(tmp_path, rng, syntax, changes):
    """Of other sides, bits or number: decoders would cut or fill them."""
    data_set = compressed_as(syntax, smooth(rng, 12, False, 3), tmp_path / "a")
    for keyword, value in changes.items():
        setattr(data_set, keyword, value)
    data_set.save_as(tmp_path / "b")
    assert decoded(tmp_path / "b") == [None] * int(data_set.NumberOfFrames)


def test_values_beyond_the_stored_bits_are_refused(tmp_path, rng):
    data_set = compressed_as(JPEGLSLossless, smooth(rng, 12, False, 2), tmp_path / "a")
    data_set.BitsStored, data_set.HighBit = 10, 9
    data_set.save_as(tmp_path / "b")
    assert decoded(tmp_path / "b") == [None] * 2


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG_LOSSLESS])
@pytest.mark.parametrize("is_signed", [False, True])
def test_an_overlay_in_whole_words_is_no_value(tmp_path, rng, syntax, is_signed):
    """As in pixels that are not compressed."""
    values = smooth(rng, 12, is_signed, 2)
    words = values.copy()
    words[:, 3] ^= 0x7000
    data_set = compressed_as(syntax, words, tmp_path / "a", 16, is_signed)
    data_set.BitsStored, data_set.HighBit = 12, 11
    data_set.save_as(tmp_path / "b")
    np.testing.assert_array_equal(decoded(tmp_path / "b"), values)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG_LOSSLESS])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_a_picture_in_several_fragments_is_one(tmp_path, rng, syntax, with_offsets):
    values = smooth(rng, 12, False, 3)
    data_set = compressed_as(syntax, values, tmp_path / "a")
    frames = generate_frames(data_set.PixelData, number_of_frames=3)
    data_set.PixelData = encapsulate(list(frames), fragments_per_frame=2, has_bot=with_offsets)
    data_set.save_as(tmp_path / "b")
    images = decoded(tmp_path / "b")
    if syntax == RLELossless and not with_offsets:  # nothing tells which belong together
        assert images == [None] * 3
    else:
        np.testing.assert_array_equal(images, values)


def test_a_damaged_frame_costs_one_slice(tmp_path, rng):
    values = smooth(rng, 12, False, 3)
    data_set = compressed_as(JPEGLSLossless, values, tmp_path / "a")
    frames = list(generate_frames(data_set.PixelData, number_of_frames=3))
    frames[1] = frames[1][:20]
    data_set.PixelData = encapsulate(frames)
    data_set.save_as(tmp_path / "b")
    first, second, third = decoded(tmp_path / "b")
    np.testing.assert_array_equal([first, third], values[[0, 2]])
    assert second is None


OPENJPH = """
/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1AACAACAAAAB/9SAAwAAgABAAEEBEAB/1wA
ByBwcHB4/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAASwAB/5PAAW8A/3/9fW/7vted5ix9IBahmMlIalObIwFA
xyEA0LgAwAFTAAVgAAAA8KpxAnUADnTAAQf+wFKB7LYA/9k="""
"""What OpenJPH 0.9.0 makes of `ojph_compress -i a.pgm -o a.j2c -reversible true -num_decomps 1`,
a.pgm of 8 x 8 pixels up to 4095 being b"P5\\n8 8\\n4095\\n" and the values 0, 65, 130, ... 4095."""


def test_htj2k_is_read_where_a_plugin_is(tmp_path):
    if not has_decoder(HTJ2K):
        pytest.skip(
            "no plugin of pydicom's that decodes HTJ2K, as pylibjpeg-openjpeg, is installed"
        )
    values = np.arange(64).reshape(8, 8) * 65
    fragments = ("OB", [base64.b64decode(OPENJPH)] * 2)
    elements = image(values, t7FE00010=fragments, t00281052="0", t00280008=("IS", "2"))
    (tmp_path / "a").write_bytes(dicom_file(elements, HTJ2K))
    np.testing.assert_array_equal(decoded(tmp_path / "a"), [values] * 2)


def test_what_gdcm_does_not_know_is_given_to_the_plugins(tmp_path, monkeypatch):
    values = np.arange(64, dtype=np.uint16).reshape(1, 8, 8)
    asked = {}

    def decode_by_plugin(fragments, syntax, shape, dtype, bits):
        asked.update(syntax=syntax, shape=shape, dtype=dtype, bits=bits)
        return values

    monkeypatch.setattr("medseq_tf.readers.dicom.encoding.has_decoder", lambda syntax: True)
    monkeypatch.setattr("medseq_tf.readers.dicom.compressed.decoded_by_plugins", decode_by_plugin)
    fragments = ("OB", [base64.b64decode(OPENJPH)])
    elements = image(values[0], t7FE00010=fragments, t00281052="0")
    (tmp_path / "a").write_bytes(dicom_file(elements, HTJ2K))
    np.testing.assert_array_equal(decoded(tmp_path / "a"), values)
    assert asked == {"syntax": HTJ2K, "shape": (8, 8), "dtype": "<u2", "bits": 12}
