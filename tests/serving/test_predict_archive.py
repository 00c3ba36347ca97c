"""From a real archive and back: studies are predicted, and their results are found beside them."""

from __future__ import annotations

import json

import pydicom
import pytest
import requests
from bright_model import Bright
from command_line import run_command
from dicom_heads import head_study, leaked, planted
from dicom_validators import assert_valid
from faulty_archive import FaultyArchive
from orthanc import archive, free_port, orthanc  # noqa: F401

from medseq_tf.errors import InputError
from medseq_tf.serving.predict import predict

QUERY = "Modality=CT,StudyDate=20260101-20260131,StudyDescription=*HEAD*"


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three studies, stored in different ways, one of a tilted gantry."""
    folder = tmp_path_factory.mktemp("heads")
    return [
        head_study(folder / "0", 0, slices=4, localiser=True),
        head_study(folder / "1", 1, slices=5, syntax="jpeg"),
        head_study(folder / "2", 2, slices=4, tilt=12.0),
    ]


@pytest.fixture
def filled(archive, heads):  # noqa: F811
    for head in heads:
        archive.send(head.files)
    return archive


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr("medseq_tf.serving.predict.open_model", lambda name: Bright())


def place(server):
    return f"dicomweb+{server.url}"


def found(server, study_uid, **query):
    """The SOP instance UIDs that an archive finds in a study, by QIDO."""
    answer = requests.get(f"{server.url}/studies/{study_uid}/instances", query, timeout=30)
    answer.raise_for_status()
    return {item["00080018"]["Value"][0] for item in answer.json()}


def test_the_results_of_a_query_are_found_beside_the_studies(
    filled, heads, model, monkeypatch, capsys, no_server
):
    sources = {head.study_uid: found(filled, head.study_uid) for head in heads}
    words = ["predict", "model", place(filled), "--query", QUERY, "--store", "--workers", 1]
    status, out, err = run_command(monkeypatch, capsys, *words, "--json")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len({row["study"] for row in rows}) == 3
    assert {row["stored"] for row in rows} == {2}
    results = {uid: found(filled, uid) - sources[uid] for uid in sources}
    assert [len(uids) for uids in results.values()] == [2, 2, 2]
    for number, head in enumerate(heads):
        reports = found(filled, head.study_uid, Modality="SR")
        assert len(reports & results[head.study_uid]) == 1
        for uid in results[head.study_uid]:
            file = no_server / "object.dcm"
            file.write_bytes(filled.file(uid))
            data_set = pydicom.dcmread(file)
            assert data_set.StudyInstanceUID == head.study_uid
            assert data_set.PatientName == planted(number)["PatientName"]
            assert data_set.PatientID == planted(number)["PatientID"]
            assert_valid(file)
            file.unlink()
    stored = {uid: filled.file(uid) for uids in results.values() for uid in uids}
    assert run_command(monkeypatch, capsys, *words, "--json") == (0, out, "")
    assert {uid: found(filled, uid) - sources[uid] for uid in sources} == results
    assert {uid: filled.file(uid) for uid in stored} == stored
    assert not leaked(out, 0, 1, 2)
    assert not list(no_server.iterdir())
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert (status, err) == (0, "")
    assert out.count("results: 2 stored in the archive") == 3
    assert not leaked(out, 0, 1, 2)


def test_the_numbers_and_results_are_those_of_the_files(filled, heads, tmp_path):
    folder = heads[0].folder.parent
    of_files = list(predict(Bright(), folder, workers=1, dicom_out=tmp_path / "files"))
    uids = [head.study_uid for head in heads]
    of_archive = list(
        predict(Bright(), place(filled), study=uids, workers=2, dicom_out=tmp_path / "archive")
    )
    assert sorted(row.probability for row in of_files) == sorted(
        row.probability for row in of_archive
    )
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("files", "archive")
    ]
    assert len(contents[0]) == 6
    assert contents[0] == contents[1]
    (row,) = {row.study for row in predict(Bright(), place(filled), study=uids[:1], workers=1)}
    assert not leaked(row, 0)


def one_line(monkeypatch, capsys, *words):
    status, out, err = run_command(monkeypatch, capsys, "predict", "model", *words)
    assert status == 2
    assert out == ""
    assert err.startswith("medseq-tf: error: ")
    assert len(err.splitlines()) == 1
    assert not leaked(err, 0, 1, 2)
    return err


WRONG = {
    "nobody there": ("dicomweb+http://127.0.0.1:{free}/dicom-web", "does not answer"),
    "no TLS there": ("dicomweb+https://127.0.0.1:{port}/dicom-web", "127.0.0.1"),
    "a page": ("dicomweb+http://127.0.0.1:{port}", "no DICOMweb server"),
    "nothing": ("dicomweb+http://127.0.0.1:{port}/dicomweb", "no DICOMweb server"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_address_is_one_line(case, filled, model, monkeypatch, capsys, no_server):
    monkeypatch.setattr("medseq_tf.readers.storage.SECONDS_BETWEEN_TRIES", (0.01,))
    url, words = WRONG[case]
    url = url.format(free=free_port(), port=filled.port)
    assert words in one_line(monkeypatch, capsys, url, "--query", QUERY)


def test_a_query_that_finds_nothing_is_one_line(filled, model, monkeypatch, capsys, no_server):
    for query in ("StudyDate=19000101", "Modality=MR", "StudyDescription=NECK*"):
        err = one_line(monkeypatch, capsys, place(filled), "--query", query)
        assert "no study" in err


def test_a_study_that_is_not_there_is_left_out(filled, heads, model, monkeypatch, capsys):
    words = ["predict", "model", place(filled), "--study", "1.2.840.4711", "--workers", 1]
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert (status, err) == (1, "medseq-tf: 1 studies left out\n")
    assert "left out: the archive has no such study" in out
    assert "4711" not in out
    status, out, _ = run_command(monkeypatch, capsys, *words, "--study", heads[0].study_uid)
    assert status == 1
    assert "negative" in out


def test_an_archive_of_another_modality_or_kind_of_picture(filled):
    with pytest.raises(InputError, match="reads photographs"):
        predict(_photographs(), place(filled), query=QUERY)


def _photographs():
    model = Bright()
    import dataclasses

    model._description = dataclasses.replace(model.describe(), modality="photograph")
    return model


# --------------------------------------------------------------------- an archive that misbehaves


@pytest.fixture
def faulty(heads, monkeypatch):
    monkeypatch.setattr("medseq_tf.readers.storage.SECONDS_BETWEEN_TRIES", (0.01, 0.01))
    with FaultyArchive(file for head in heads for file in head.files) as server:
        yield server


def test_results_that_are_refused_stop_no_other(faulty, model, monkeypatch, capsys, no_server):
    faulty.misbehave("status", where="^POST", status=409)
    words = ["predict", "model", place(faulty), "--query", QUERY, "--store", "--workers", 1]
    status, out, err = run_command(monkeypatch, capsys, *words, "--json")
    assert (status, err) == (1, "medseq-tf: 1 studies without results\n")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.get("stored") for row in rows] == [None] * 2 + [2] * 4
    assert all("refused" in row["results_error"] for row in rows[:2])
    assert not leaked(out, 0, 1, 2)
    faulty.misbehave("status", where="^POST", status=409)
    status, out, err = run_command(monkeypatch, capsys, *words, "--strict")
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "refused" in err


def test_the_same_command_goes_on_when_the_archive_is_back(faulty, no_server):
    def predictions():
        return predict(Bright(), place(faulty), query=QUERY, store=True, workers=1)

    some = predictions()
    next(some)
    stored = dict(faulty.stored)
    assert len(stored) == 2
    faulty.stop()
    with pytest.raises(InputError, match="no longer answers"):
        list(some)
    assert dict(faulty.stored) == stored
    faulty.start()
    rows = list(predictions())
    assert [row.stored for row in rows] == [2] * 6
    assert len(faulty.stored) == 6
    assert max(faulty.stored.values()) == 2


def test_credentials_come_from_the_environment(heads, model, monkeypatch, capsys, no_server):
    monkeypatch.setattr("medseq_tf.readers.storage.SECONDS_BETWEEN_TRIES", (0.01,))
    monkeypatch.setenv("NETRC", str(no_server / "none"))
    files = heads[0].files
    with FaultyArchive(files, accepts="Bearer a-secret-key") as server:
        words = ["--study", heads[0].study_uid, "--workers", 1]
        err = one_line(monkeypatch, capsys, place(server), "--query", QUERY)
        assert "MEDSEQ_TF_DICOMWEB_TOKEN" in err
        one_line(monkeypatch, capsys, place(server), *words)
        monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_TOKEN", "a-secret-key")
        words = ["predict", "model", place(server), *words, "--store", "--json"]
        status, out, err = run_command(monkeypatch, capsys, *words)
        assert (status, err) == (0, "")
        assert "secret" not in out
