"""Damaged files of every kind: each is left out with its reason or read; nothing dies or hangs."""

from __future__ import annotations

import contextlib
import io
import shutil

import cv2
import numpy as np
import pydicom
import pytest
from dicom_writer import dicom_file, enhanced, stack
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEGLSLossless, RLELossless

from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError
from medseq_tf.execution.processes import isolated_map
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_atlas, write_dicom, write_image_folder, write_volumes
from medseq_tf.readers.dicom.code_stream import code_stream, is_rle_of
from medseq_tf.readers.dicom.elements import NotDicom, UnreadableDicom
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.pixels import decode
from medseq_tf.readers.dicom.series import DicomFile, pictures_of, why_no_slice
from medseq_tf.readers.labels import read_labels
from medseq_tf.readers.pictures import UnreadablePicture, decode_picture
from medseq_tf.readers.volume_file import UnreadableVolume

COHORT = DemoCohort(patients=6, seed=1, size=16, slices=(4, 5))


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert or blank some bytes, mostly near the start, where headers are."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.3 else min(len(data), 600)
        at = int(rng.integers(0, max(end, 1)))
        kind = rng.integers(0, 5)
        if kind == 0:
            data[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
        elif kind == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 40)))
        elif kind == 3:
            data[at : at + 30] = bytes(30)
        else:
            del data[max(at, len(data) // 2) :]
    return bytes(data)


@contextlib.contextmanager
def one_line(*refusals, naming=""):
    """Let these exceptions pass, if their message is one line."""
    message = "-" + naming
    try:
        yield
    except refusals as refusal:
        message = str(refusal)
    assert message
    assert "\n" not in message
    assert naming in message


# ---------------------------------------------------------------------------------- single files


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """One file of each kind, by extension."""
    folder = tmp_path_factory.mktemp("samples")
    one = DemoCohort(patients=1, size=16, slices=(4, 5))
    for extension in (".nii", ".nii.gz", ".nrrd", ".mha"):
        write_volumes(one, folder, extension=extension)
    dicom = write_dicom(one, folder / "dicom")
    found = {path.name.removeprefix("patient-0001"): path for path in folder.glob("patient*")}
    found["dicom"] = next(path for path in dicom.rglob("IM*"))
    found["csv"] = folder / "labels.csv"
    files = {kind: path.read_bytes() for kind, path in found.items()}
    return {**files, **multi_frame_files()}


def multi_frame_files(patient="patient-1"):
    """Files of several frames, uncompressed and compressed."""
    values, positions = np.arange(6)[:, None, None] + np.full((4, 6), 1000), stack(6)[1]
    elements = enhanced(values, positions, np.ones(6))
    elements[0x00100020] = ("LO", patient)
    plain = dicom_file(elements)
    files = {"enhanced": plain}
    for syntax in (JPEGLSLossless, RLELossless):
        data_set, buffer = pydicom.dcmread(io.BytesIO(plain)), io.BytesIO()
        data_set.compress(syntax, generate_instance_uid=False)
        data_set.save_as(buffer)
        files[f"enhanced {syntax.keyword}"] = buffer.getvalue()
    return files


@pytest.mark.parametrize("kind", ["dicom", "enhanced", "csv"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_a_damaged_header_is_read_or_refused(samples, tmp_path_factory, kind, seed):
    path = tmp_path_factory.getbasetemp() / f"damaged{kind}"
    path.write_bytes(damaged(samples[kind], np.random.default_rng(seed)))
    with one_line(UnreadableDicom, NotDicom, InputError):
        if kind != "csv":
            header = read_dicom_header(path)
            assert header is None or header.rows * header.columns * len(header.frames) <= 2**29
        else:
            read_labels(path)


def look_into(path):
    """Read a volume file where readers do, in a worker process; its size, or the refusal."""
    from medseq_tf.readers.simpleitk_volume import VolumeFile

    try:
        file = VolumeFile(path)
        file.first_intensities()
        file.image()
    except UnreadableVolume as refusal:
        return str(refusal)
    return file.size


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_damaged_volume_is_read_or_refused(samples, tmp_path, kind):
    paths = [tmp_path / f"{seed}{kind}" for seed in range(150)]
    for seed, path in enumerate(paths):
        path.write_bytes(damaged(samples[kind], np.random.default_rng(seed)))
    for outcome in isolated_map(look_into, paths, lambda path: "ended the process", together=15):
        if isinstance(outcome, str):
            assert outcome
            assert "\n" not in outcome
        else:
            assert np.prod(outcome, dtype=float) <= 2**29


@pytest.mark.parametrize("start", [b"", b"\xff\xd8", b"\xff\x4f\xff\x51"])
@given(data=st.binary(max_size=200), count=st.integers(0, 20))
def test_a_code_stream_of_anything_is_read_or_none(start, data, count):
    stated = code_stream(start + data)
    assert stated is None or 0 <= stated.bits <= 255
    rle = count.to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + data
    assert is_rle_of(rle, 20, 1) in (True, False)


def decode_all(path):
    """Decode a DICOM file's pictures in a worker process: their shapes, or the refusal."""
    try:
        header = read_dicom_header(path)
    except (UnreadableDicom, NotDicom) as refusal:
        return str(refusal)
    if header is None or why_no_slice(header):
        return "no slices"
    pictures = pictures_of(DicomFile(1, str(path)[1:], header))
    return [image if image is None else image.shape for _, image, _ in decode("/", [*pictures])]


def test_damaged_frames_are_decoded_or_refused(samples, tmp_path):
    paths = []
    for kind in ("enhanced", "enhanced JPEGLSLossless", "enhanced RLELossless"):
        for seed in range(60):
            paths.append(tmp_path / f"{kind} {seed}")
            paths[-1].write_bytes(damaged(samples[kind], np.random.default_rng(seed)))
    outcomes = list(isolated_map(decode_all, paths, lambda path: "ended the process", together=60))
    assert [(4, 6)] * 6 in outcomes
    for outcome in outcomes:
        assert outcome
        assert outcome != "ended the process"


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".tif"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_damaged_picture_is_read_or_refused(extension, seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (12, 9), np.uint8)
    data = damaged(cv2.imencode(extension, picture)[1].tobytes(), rng)
    with one_line(UnreadablePicture):
        image = decode_picture(data)
        assert image.dtype == np.uint8
        assert image.ndim == 2


# ---------------------------------------------------------------------------------- whole sources


def write_source(reader: str, folder):
    if reader == "image-folder":
        return write_image_folder(COHORT, folder, "patient")
    if reader == "volumes":
        for extension in (".nii", ".nii.gz", ".nrrd", ".mha"):
            write_volumes(COHORT, folder / extension[1:], extension=extension)
        (folder / "labels.csv").write_bytes((folder / "nii" / "labels.csv").read_bytes())
        return folder
    if reader == "atlas":
        return write_atlas(COHORT, folder)
    if reader == "enhanced":
        folder.mkdir()
        for number in range(4):
            for kind, data in multi_frame_files(f"patient-{number}").items():
                (folder / f"{number} {kind}").write_bytes(
                    data.replace(b"1.2.3\0", b"1.2.%d\0" % (number + 3))
                )
        rows = "".join(f"patient-{number},{number % 2}\n" for number in range(4))
        (folder / "labels.csv").write_text(f"patient_id,x\n{rows}")
        return folder
    return write_dicom(COHORT, folder)


def damage_most(folder, rng):
    """Damage about two files in three, and add some that are something else."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix != ".csv" and rng.random() < 0.65:
            path.write_bytes(damaged(path.read_bytes(), rng))
    (files[0].parent / f"swapped{''.join(files[-1].suffixes)}").write_bytes(rng.bytes(3000))
    shutil.copy(files[0], files[0].parent / "copy")


@pytest.mark.parametrize("reader", ["image-folder", "volumes", "atlas", "dicom", "enhanced"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_source_is_prepared_or_refused(tmp_path, reader, seed, capfd):
    rng = np.random.default_rng(seed)
    source = write_source(reader, tmp_path / "source")
    damage_most(source, rng)
    options = {
        "atlas": {"whole": True, "extent": (0, 1)},
        "volumes": {"modality": "CT", "match": "stem"},
    }.get(reader, {})
    with one_line(InputError):
        prepared = prepare(
            reader.replace("enhanced", "dicom"),
            source,
            out=tmp_path / "out",
            size=16,
            workers=2,
            progress=False,
            **options,
        )
        assert prepared.audit["entries"]
        for row in range(len(prepared)):
            assert prepared.slices(row).shape[1:] == (16, 16)
    assert capfd.readouterr().err == ""


def test_labels_of_all_sorts(tmp_path):
    for number, text in enumerate(
        [
            "",
            "\n",
            "a",
            "a,b",
            "a,a\n1,1",
            'a,b\n"1,1',
            "patient_id,x\n1,2",
            "a,b\n1\n",
            "\0\0,\0\n",
        ]
    ):
        path = tmp_path / f"{number}.csv"
        path.write_text(text)
        with one_line(InputError, naming=str(path)):
            assert read_labels(path).names
