"""Headers of every syntax, character set and kind; hostile ones cost little."""

from __future__ import annotations

import logging
import zlib

import cv2
import numpy as np
import pytest
from dicom_writer import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    dicom_file,
    enhanced,
    image,
    stack,
    write,
)

from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.index import index_dicom


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


def test_frames_of_a_multi_frame_file_are_slices(tmp_path):
    values, positions = stack(6)
    slopes = np.array([1, 1, 2, 1, 0.5, 1])
    scan = index_dicom(write(tmp_path, enhanced(values, positions, slopes)))
    expected = values * slopes[:, None, None] - 1000
    np.testing.assert_allclose(scan.studies[0].read().images, expected, atol=0.51)


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


# --------------------------------------------------------------------------------- character sets


@pytest.mark.parametrize(
    ("character_set", "encoded", "text"),
    [
        (None, b"M\xfcller", "Müller"),
        ("ISO_IR 100", "Müller".encode("latin-1"), "Müller"),
        ("ISO_IR 192", "Müller".encode(), "Müller"),
        ("ISO_IR 144", "Иванов".encode("iso8859_5"), "Иванов"),
        ("GB18030", "王".encode("gb18030"), "王"),
        ("\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B 7", "山田 7"),
        ("ISO_IR 192", b"M\xfcller", "M\\xfcller"),
        ("no such set", b"M\xfcller", "Müller"),
    ],
)  # fmt: skip
def test_a_patient_id_is_read_in_its_letters(tmp_path, caplog, character_set, encoded, text):
    elements = image(np.zeros((4, 5), np.uint16))
    elements[0x00100020] = ("LO", encoded + b" " * (len(encoded) % 2))
    if character_set:
        elements[0x00080005] = ("CS", character_set)
    (tmp_path / "a").write_bytes(dicom_file(elements))
    with caplog.at_level(logging.DEBUG):
        assert read_dicom_header(tmp_path / "a").patient_id == text
    assert caplog.text == ""


def test_ids_that_differ_in_bytes_that_are_no_letters_stay_two(tmp_path):
    ids = set()
    for byte in (b"\xfc", b"\xf6"):
        elements = image(np.zeros((4, 5), np.uint16), t00080005=("CS", "ISO_IR 192"))
        elements[0x00100020] = ("LO", b"M" + byte)
        (tmp_path / "a").write_bytes(dicom_file(elements))
        ids.add(read_dicom_header(tmp_path / "a").patient_id)
    assert len(ids) == 2


def test_other_threads_and_later_calls_keep_pydicom_s_messages(tmp_path, caplog):
    (tmp_path / "a").write_bytes(dicom_file(image(np.zeros((4, 5), np.uint16))))
    read_dicom_header(tmp_path / "a")
    logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text
    assert logging.getLogger("pydicom").filters == []


# ------------------------------------------------------------------------------------ hostile ones


@pytest.mark.parametrize("syntax", [EXPLICIT, "1.2.840.10008.1.2.1.99"])
def test_a_header_of_countless_items_costs_a_bounded_time(tmp_path, monkeypatch, syntax):
    """Zeros are items without end to a parser that does not look at their tag."""
    monkeypatch.setattr("medseq_tf.readers.dicom.elements._MOST_READS", 2**16)
    whole = dicom_file(image(np.zeros((4, 5), np.uint16)), syntax)
    start = 144 + int.from_bytes(whole[140:144], "little")
    sequence = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + bytes(8 * 2**20)
    body = sequence + whole[start:]
    if syntax != EXPLICIT:
        packer = zlib.compressobj(9, wbits=-15)
        body = packer.compress(body) + packer.flush()
    (tmp_path / "a").write_bytes(whole[:start] + body)
    with pytest.raises(UnreadableDicom, match="damaged or cut short"):
        read_dicom_header(tmp_path / "a")


def test_elements_before_the_pixels_in_their_group_are_passed(tmp_path):
    elements = image(np.zeros((4, 5), np.uint16))
    elements[0x7FE00000] = ("UL", (52).to_bytes(4, "little"))
    elements[0x7FE00001] = ("OB", bytes(8))
    (tmp_path / "a").write_bytes(dicom_file(elements))
    assert not read_dicom_header(tmp_path / "a").unread


def test_a_long_header_is_read(tmp_path):
    """Its pixels begin after what is read first; deflated, after what is unpacked first."""
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    noise = np.random.default_rng(0).bytes(200_000)
    elements = {**image(pixels), 0x00091010: ("OB", noise)}
    whole = dicom_file(elements, "1.2.840.10008.1.2.1.99")
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(whole[start:]) + packer.flush()
    (tmp_path / "a").write_bytes(dicom_file(elements))
    (tmp_path / "b").write_bytes(whole[:start] + packed)
    for name in ("a", "b"):
        assert read_dicom_header(tmp_path / name).rows == 4
