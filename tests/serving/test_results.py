"""The files of results: whole, all or none, the same for the same answer; nothing of a header."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

from medseq_tf.errors import InputError
from medseq_tf.serving.dicom_results import results as module
from medseq_tf.serving.dicom_results.results import (
    KINDS,
    results,
    results_folder,
    store,
    told_plainly,
    write,
)


def data_set(uid="2.25.1", modality="SR", **elements):
    made = Dataset()
    made.SOPClassUID = ComprehensiveSRStorage
    made.SOPInstanceUID = uid
    made.Modality = modality
    made.PatientName = "Planted^Name"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def test_the_same_answer_twice_is_the_same_files(tmp_path):
    files = write([data_set(), data_set("2.25.2", "SEG")], tmp_path)
    assert [file.name[:3] for file in files] == ["sr-", "seg"]
    assert not [file for file in files if "Planted" in file.name or "2.25" in file.name]
    contents = [file.read_bytes() for file in files]
    assert write([data_set(), data_set("2.25.2", "SEG")], tmp_path) == files
    assert [file.read_bytes() for file in files] == contents
    assert sorted(tmp_path.iterdir()) == sorted(files)
    read = pydicom.dcmread(files[0])  # a file with its preamble, which needs no force
    assert read.SOPInstanceUID == "2.25.1"
    assert read.PatientName == "Planted^Name"


def test_all_files_or_none(tmp_path, monkeypatch):
    kept = write([data_set("2.25.9")], tmp_path)
    atomic, calls = module.atomic, []

    def full(path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        return atomic(path)

    monkeypatch.setattr(module, "atomic", full)
    with pytest.raises(OSError, match="No space left"):
        write([data_set(), data_set("2.25.2"), data_set("2.25.3")], tmp_path)
    assert list(tmp_path.iterdir()) == kept


def test_a_data_set_that_cannot_be_written_leaves_nothing(tmp_path):
    broken = data_set("2.25.2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken.Rows = 70000  # no unsigned short
    with pytest.raises(InputError, match="no DICOM object can be made"):
        write([data_set(), broken], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_archive_is_given_whole_files():
    given = []
    store([data_set(), data_set("2.25.2", "SEG")], SimpleNamespace(store=given.append))
    ((first, last),) = given
    assert first[128:132] == last[128:132] == b"DICM"
    assert b"2.25.2" in first  # the report comes last: where it is, all is


def test_a_header_that_is_odd_is_not_quoted(monkeypatch, caplog, recwarn):
    def odd(answer):
        logging.getLogger("highdicom.sr.sop").error("patient Planted^Name")
        logging.getLogger("pydicom").warning("patient Planted^Name")
        warnings.warn("patient Planted^Name", stacklevel=1)
        if answer is None:
            raise ValueError("patient Planted^Name")
        return data_set()

    made = dict.fromkeys(KINDS, odd) | {"segmentation": lambda answer: None}
    monkeypatch.setattr(module, "_makers", lambda seg: made)
    assert len(results("answer")) == 2
    assert len(results("answer", ["report"])) == 1
    with pytest.raises(InputError) as caught:
        results(None)
    assert "ValueError" in str(caught.value)
    assert "Planted" not in f"{caught.value} {caplog.text}"
    assert not list(recwarn)
    logging.getLogger("highdicom.sr.sop").warning("of another piece of work")
    assert "of another piece of work" in caplog.text


def test_what_is_wrong_with_the_input_stays_as_it_is_said():
    with pytest.raises(InputError, match=r"^tilted$"), told_plainly():
        raise InputError("tilted")


@pytest.mark.parametrize("place", ["file", "file/below", "loop"])
def test_a_folder_that_is_none(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"^--dicom-out "):
        results_folder(tmp_path / place)


def test_a_folder_is_made_and_what_a_kill_left_is_removed(tmp_path):
    folder = results_folder(tmp_path / "new" / "results")
    abandoned = folder / ".partial-0123456789ab.dcm"
    abandoned.touch()
    assert results_folder(folder) == folder
    assert not abandoned.exists()
