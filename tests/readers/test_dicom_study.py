"""A DICOM study's own files: their headers, and which picture each slice of the model is."""

from __future__ import annotations

import http.server
import io
import pickle
import threading

import numpy as np
import pydicom
import pytest
from dicom_writer import EXPLICIT, IMPLICIT, dicom_file, enhanced, image, stack, write

from medseq_tf.dataset.records import StorageSpec, study_record
from medseq_tf.readers.dicom.index import find_dicom_studies
from medseq_tf.readers.study import UnreadableStudy

STORAGE = StorageSpec((), "int16", 8, "pad")


def files_of(values, positions, syntax=EXPLICIT):
    for number, (pixels, position) in enumerate(zip(values, positions, strict=True)):
        elements = image(pixels, position, t00080018=f"1.2.3.9.{number}")
        yield dicom_file(elements, syntax)


def deflated(file: bytes) -> bytes:
    """A file whose data set is deflated."""
    data_set = pydicom.dcmread(io.BytesIO(file))
    data_set.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    packed = io.BytesIO()
    data_set.save_as(packed)
    return packed.getvalue()


def only_study(folder):
    (study,), _ = find_dicom_studies(folder)
    return study


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_headers_are_those_that_pydicom_reads(tmp_path, syntax):
    values, positions = stack()
    study = only_study(write(tmp_path, *files_of(values, positions, syntax)))
    headers = study.source_headers()
    assert len(headers) == len(study.pictures) == 5
    for picture, header in zip(study.pictures, headers, strict=True):
        expected = pydicom.dcmread(tmp_path / picture.path, stop_before_pixels=True)
        assert header == expected
        assert header.PatientName == "Planted^Name"
        assert header.file_meta.TransferSyntaxUID == expected.file_meta.TransferSyntaxUID
        assert tuple(header.ImagePositionPatient) == picture.frame.position


def test_headers_of_a_multi_frame_file_and_of_deflated_ones(tmp_path):
    values, positions = stack()
    elements = enhanced(values, positions, np.ones(5))
    study = only_study(write(tmp_path / "enhanced", elements))
    headers = study.source_headers()
    assert len(headers) == 5
    assert len({id(header) for header in headers}) == 1
    for picture, header in zip(study.pictures, headers, strict=True):
        group = header.PerFrameFunctionalGroupsSequence[picture.place]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert tuple(position) == picture.frame.position
    packed = [deflated(file) for file in files_of(values, positions)]
    study = only_study(write(tmp_path / "deflated", *packed))
    for picture, header in zip(study.pictures, study.source_headers(), strict=True):
        assert header == pydicom.dcmread(tmp_path / "deflated" / picture.path)[:0x7FE00010]


def test_each_slice_knows_its_picture(tmp_path):
    values, positions = stack()
    packed = list(files_of(values, positions))
    folder = write(tmp_path, *packed)
    study = only_study(folder)
    assert study.read().pictures == study_record(study, "", STORAGE).pictures == (0, 1, 2, 3, 4)
    (folder / study.pictures[2].path).write_bytes(b"")  # cannot be read any more
    record = study_record(pickle.loads(pickle.dumps(study)), "", STORAGE)
    assert record.pictures == (0, 1, 3, 4)
    with pytest.raises(UnreadableStudy, match="the header of a picture: an empty file"):
        study.source_headers()


def test_resampled_slices_are_no_pictures(tmp_path):
    values, positions = stack()
    folder = write(tmp_path, *files_of(values, positions))
    (study,), _ = find_dicom_studies(folder, spacing=1.0)
    assert study.read().pictures is None


def test_headers_behind_a_url(tmp_path):
    values, positions = stack()
    folder = write(tmp_path, *files_of(values, positions))
    names = [path for path in folder.iterdir() if path.suffix != ".csv"]
    lines = [f"{path.name},{path.stat().st_size}" for path in names]
    (folder / "files.csv").write_text("\n".join(["name,size", *lines]))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        study = only_study(f"http://127.0.0.1:{server.server_port}")
        headers = study.source_headers()
        server.shutdown()
    assert headers == only_study(folder).source_headers()
