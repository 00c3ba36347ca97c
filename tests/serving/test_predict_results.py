"""Predictions whose results are DICOM objects: in a folder, in the archive, and told of."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from bright_model import Bright
from command_line import run_command
from dicom_heads import head_study, leaked

from medseq_tf import cli
from medseq_tf.errors import InputError
from medseq_tf.serving.client import StudyProbabilities
from medseq_tf.serving.dicom_results import delivery
from medseq_tf.serving.predict import predict, table
from medseq_tf.serving.refusals import RequestRefused


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three studies under a folder."""
    folder = tmp_path_factory.mktemp("heads")
    for number in range(3):
        head_study(folder / f"head-{number}", number, slices=4)
    return folder


def objects(folder):
    return [pydicom.dcmread(file) for file in sorted(folder.glob("*.dcm"))]


def test_the_results_of_a_folder_of_studies(heads, tmp_path):
    out = tmp_path / "results"
    rows = list(predict(Bright(), heads, workers=1, dicom_out=out))
    assert [row.error or row.results_error for row in rows] == [None] * 6
    by_study = {row.study: row.results for row in rows}
    assert len(by_study) == 3
    assert sorted(sum(by_study.values(), ())) == sorted(map(str, out.iterdir()))
    assert {data_set.Modality for data_set in objects(out)} == {"SR", "OT"}
    contents = {file.name: file.read_bytes() for file in out.iterdir()}
    assert list(predict(Bright(), heads, workers=1, dicom_out=out)) == rows
    assert {file.name: file.read_bytes() for file in out.iterdir()} == contents
    plain = list(predict(Bright(), heads, workers=1))
    assert [dataclasses.replace(row, results=None) for row in rows] == plain


def test_of_classes(heads, tmp_path):
    def shares(self, slices, running=False, **told):
        return StudyProbabilities(np.float32([0.5, 0.25, 0.25]), None)

    model = Bright(outputs="classes")
    model.predict = functools.partial(shares, model)
    rows = list(predict(model, heads, workers=1, dicom_out=tmp_path))
    assert [row.results_error for row in rows] == [None] * 3
    assert len({file for row in rows for file in row.results}) == len(list(tmp_path.iterdir())) == 6


def test_a_study_whose_results_fail_stops_no_other(heads, tmp_path, monkeypatch):
    made, calls = delivery.results, []

    def some(answer, **options):
        calls.append(answer)
        if len(calls) == 2:
            raise InputError("a header that no object can be made of")
        return made(answer, **options)

    monkeypatch.setattr(delivery, "results", some)
    rows = list(predict(Bright(), heads, workers=1, dicom_out=tmp_path))
    assert [bool(row.results_error) for row in rows] == [False] * 2 + [True] * 2 + [False] * 2
    assert [bool(row.results) for row in rows] == [True] * 2 + [False] * 2 + [True] * 2
    assert all(row.probability for row in rows)
    lines = list(table(rows))
    assert sum("no results: a header" in line for line in lines) == 1
    calls.clear()
    strict = predict(Bright(), heads, workers=1, dicom_out=tmp_path, strict=True)
    with pytest.raises(InputError, match=r"^study-[0-9a-f]{16}: a header that no object"):
        list(strict)


def test_what_an_odd_header_makes_of_a_library_is_told_without_the_header(
    heads, tmp_path, monkeypatch
):
    def odd(*args, **kwargs):
        raise ValueError("Plantedname^Verity is no name")

    monkeypatch.setattr(delivery, "answer_of", odd)
    rows = list(predict(Bright(), heads, workers=1, dicom_out=tmp_path))
    assert {row.results_error for row in rows} == {
        "no DICOM object can be made of this study (ValueError)"
    }
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_of_the_study(heads, tmp_path, monkeypatch):
    def full(data_sets, folder):
        raise OSError(28, "No space left on device", str(folder / "sr.dcm"))

    monkeypatch.setattr(delivery, "write", full)
    rows = list(predict(Bright(), heads, workers=1, dicom_out=tmp_path))
    assert {row.results_error for row in rows} == {
        "its results cannot be written (No space left on device)"
    }


def test_a_study_that_is_left_out_has_no_results(heads, tmp_path):
    class Picky(Bright):
        def __init__(self):
            super().__init__()
            self.seen = {}

        def predict(self, slices, running=False, **told):
            if len(slices) == 4:  # a study whole
                self.seen.setdefault(slices[0], len(self.seen))
                if self.seen[slices[0]] == 1:
                    raise RequestRefused("too odd for me")
            return super().predict(slices, running, **told)

    rows = list(predict(Picky(), heads, workers=1, dicom_out=tmp_path))
    assert [row.error for row in rows] == [None, None, "too odd for me", None, None]
    assert [bool(row.results) for row in rows] == [True, True, False, True, True]
    assert not any(row.results_error for row in rows)


def test_the_command_line_names_the_files(heads, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("medseq_tf.serving.predict.open_model", lambda name: Bright())
    words = ["predict", "model", heads, "--workers", 1, "--dicom-out", tmp_path / "out"]
    status, out, err = run_command(monkeypatch, capsys, *words, "--json")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    files = {file for row in rows for file in row["results"]}
    assert files == set(map(str, (tmp_path / "out").iterdir()))
    assert not leaked(out, 0, 1, 2)
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert (status, err) == (0, "")
    assert sum(line.startswith("  results: ") for line in out.splitlines()) == 3
    monkeypatch.setattr(delivery, "results", functools.partial(_refused))
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert (status, err) == (1, "medseq-tf: 3 studies without results\n")


def _refused(answer, **options):
    raise InputError("no header")


# ------------------------------------------------------------------------ before anything is read


def picture(folder):
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.zeros((8, 8), np.uint8))
    return folder


ARCHIVE = "dicomweb+http://127.0.0.1:9/dicom-web"
REFUSED = {
    "no study of an archive": ({}, [ARCHIVE], "which of its studies"),
    "insecure, and no study": ({"insecure_tls": True}, [ARCHIVE], "which of its studies"),
    "a study and a query": ({"study": ["1.2"], "query": "Modality=CT"}, [ARCHIVE], "one of them"),
    "an empty query": ({"query": " "}, [ARCHIVE], "all that the archive holds"),
    "an unknown keyword": ({"query": "Modalty=CT"}, [ARCHIVE], "Modality"),
    "no query": ({"query": "CT"}, [ARCHIVE], "KEYWORD=VALUE"),
    "a study that is no UID": ({"study": ["a/../b"]}, [ARCHIVE], "UID"),
    "one text of studies": ({"study": "1.2.3"}, [ARCHIVE], "sequence"),
    "a study of a folder": ({"study": ["1.2"]}, ["folder"], "ask an archive"),
    "a query of a folder": ({"query": "Modality=CT"}, ["folder"], "ask an archive"),
    "a query of a web server": ({"query": "Modality=CT"}, ["https://host/x"], "ask an archive"),
    "insecure TLS of a folder": ({"insecure_tls": True}, ["folder"], "ask an archive"),
    "a folder to be stored": ({"store": True}, ["folder"], "is none; --dicom-out"),
    "an archive and a folder": (
        {"store": True, "study": ["1.2"]},
        [ARCHIVE, "folder"],
        "is none; --dicom-out",
    ),
    "another scheme": ({"study": ["1.2"]}, ["dicomweb://host/dicom-web"], "begins with"),
    "a password": ({"study": ["1.2"]}, ["dicomweb+https://me:cret@host/x"], "name, password"),
    "a query in the address": ({"study": ["1.2"]}, ["dicomweb+https://host/x?key=cret"], "secret"),
    "no host": ({"study": ["1.2"]}, ["dicomweb+https:///x"], "names no"),
    "Ray and an archive": ({"ray": "auto", "study": ["1.2"]}, [ARCHIVE], "--ray goes"),
    "Ray and results": ({"ray": "auto", "dicom_out": "out"}, ["folder"], "--ray goes"),
    "results in a file": ({"dicom_out": "file"}, ["folder"], "is a file"),
    "results below a file": ({"dicom_out": "file/x"}, ["folder"], "is a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_one_line(case, heads, no_server, monkeypatch):
    """Before the model is opened, and before an archive is asked."""
    (no_server / "file").touch()
    options, paths, words = REFUSED[case]
    paths = [heads if path == "folder" else path for path in paths]
    before = sorted(no_server.iterdir())
    with pytest.raises(InputError, match=words) as caught:
        predict("a model that is never opened", *paths, **options)
    assert "\n" not in str(caught.value)
    assert "cret@" not in str(caught.value)
    assert "=cret" not in str(caught.value)
    assert sorted(no_server.iterdir()) == before


def test_results_of_what_is_no_dicom_are_refused_before_anything_is_predicted(heads, tmp_path):
    place = tmp_path / "volume.nii"
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 8, 8), np.int16)), str(place))
    with pytest.raises(InputError, match=r"volume.nii: is no DICOM study"):
        predict(Bright(), heads, place, workers=1, dicom_out=tmp_path / "out")


def test_without_the_library_results_are_one_line(heads, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "highdicom" else find(name)
    )
    with pytest.raises(InputError, match=r"pip install 'medseq_tf\[dicom\]'"):
        predict(Bright(), heads, workers=1, dicom_out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_library_is_imported_when_results_are_made():
    """It is an extra: without it, all else is as it was."""
    opened = [delivery, *(importlib.import_module(module) for module in _imported(delivery))]
    at_once = {name for module in opened for name in _imported(module)}
    assert "medseq_tf.serving.dicom_results.results" in at_once
    assert not {name for name in at_once if name.partition(".")[0] == "highdicom"}


def _imported(module):
    """The modules that a file of the results imports as it is imported itself."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    places = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [name for name in places if name.startswith(("medseq_tf.serving", "highdicom"))]


def test_the_command_has_the_defaults_of_its_function():
    found = cli.predict.make_context("predict", ["model", "path"]).params
    parameters = inspect.signature(predict).parameters
    assert found.keys() - {"as_json"} == parameters.keys() - {"progress"}
    for name in found.keys() - {"model", "paths", "as_json"}:
        assert found[name] == parameters[name].default, name


def test_results_among_the_files_of_a_study_change_nothing(heads, tmp_path):
    """They come out of an archive with it."""
    place, out = tmp_path / "heads", tmp_path / "heads" / "head-1" / "results"
    shutil.copytree(heads, place)
    first = list(predict(Bright(), place, workers=1, dicom_out=tmp_path / "out"))
    shutil.copytree(tmp_path / "out", out)
    again = list(predict(Bright(), place, workers=1, dicom_out=tmp_path / "out again"))
    told = [sorted((row.probability, row.warnings) for row in rows) for rows in (first, again)]
    assert told[0] == told[1]
    contents = [
        {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in (out, tmp_path / "out again")
    ]
    assert contents[0] == contents[1]
