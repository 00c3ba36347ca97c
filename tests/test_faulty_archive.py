"""The archive in this process answers as the real one does, and misbehaves as it is told."""

from __future__ import annotations

import io
import json

import pydicom
import pytest
import requests
from dicom_heads import head_study
from faulty_archive import FaultyArchive

DICOM = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


def get(url, **more):
    return requests.get(url, timeout=10, **more)


def parts(answer):
    boundary = answer.headers["Content-Type"].split("boundary=")[1].encode()
    pieces = answer.content.split(b"--" + boundary)[1:-1]
    return sorted(piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces)


def stow(url, *files):
    body = b"".join(b"--X\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % f for f in files)
    kind = 'multipart/related; type="application/dicom"; boundary=X'
    return requests.post(f"{url}/studies", body + b"--X--", headers={"Content-Type": kind})


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    place = tmp_path_factory.mktemp("heads")
    return [head_study(place / str(n), n, localiser=n == 0, syntax="rle") for n in range(2)]


QUERIES = (
    "studies",
    "studies?limit=1",
    "studies?limit=1&offset=1",
    "studies?offset=9",
    "studies?StudyDate=20260101-20260131",
    "studies?StudyDate=20260116-",
    "studies?StudyDescription=*HEAD*",
    "studies?ModalitiesInStudy=MR",
    "studies?PatientID=PLANTED-ID-4711001",
    "studies/{uid}/series",
    "studies/{uid}/series?SeriesDescription=AX*",
    "studies/{uid}/instances?limit=3",
    "studies/1.2.3/instances",
)
SAID_BY_ORTHANC_ALONE = {"00080005", "00081190"}
"""The character set, and the URL to retrieve a study from."""


def test_it_answers_as_orthanc_does(studies, archive):
    files = [path for study in studies for path in study.files]
    archive.send(files)
    uid, series = studies[0].study_uid, studies[0].series_uid
    with FaultyArchive(files) as simulated:
        for query in QUERIES:
            real, ours = (get(f"{s.url}/{query.format(uid=uid)}") for s in (archive, simulated))
            assert real.status_code == ours.status_code == 200
            real, ours = real.json(), ours.json()
            assert len(real) == len(ours), query
            if query.startswith("studies?") and real:
                assert set(real[0]) - set(ours[0]) <= SAID_BY_ORTHANC_ALONE
        for path in (f"studies/{uid}", f"studies/{uid}/series/{series}"):
            real, ours = (get(f"{s.url}/{path}", headers=DICOM) for s in (archive, simulated))
            assert parts(real) == parts(ours)
        for path in (f"studies/{uid}/metadata", f"studies/{uid}/series/{series}/metadata"):
            real, ours = (
                {
                    (d.SOPInstanceUID, str(d.ImagePositionPatient), str(d.PatientName))
                    for d in map(pydicom.Dataset.from_json, get(f"{s.url}/{path}").json())
                }
                for s in (archive, simulated)
            )
            assert real == ours
        for server in (archive, simulated):
            assert get(f"{server.url}/studies/1.2.3", headers=DICOM).status_code == 404
            assert get(f"{server.url}/studies/1.2.3/series/{series}").status_code == 404
            assert get(f"{server.url}/studies/1.2.3/metadata").status_code == 404


def test_what_is_stored_is_there_once(studies, archive):
    file = studies[0].paths[0].read_bytes()
    with FaultyArchive() as simulated:
        for server in (archive, simulated):
            answers = [stow(server.url, file) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert all(len(answer.json()["00081199"]["Value"]) == 1 for answer in answers)
            assert len(get(f"{server.url}/studies/{studies[0].study_uid}/instances").json()) == 1
            assert stow(server.url, b"no DICOM").status_code == 400
        assert list(simulated.stored.values()) == [2]


def test_copies_are_studies_of_their_own(studies):
    with FaultyArchive(page=1000) as simulated:
        uids = simulated.add_copies(studies[0].paths[:2], 10_000)
        assert len(get(f"{simulated.url}/studies?offset=9500").json()) == 500
        answer = get(f"{simulated.url}/studies/{uids[7777]}")
        read = [pydicom.dcmread(io.BytesIO(part)) for part in parts(answer)]
        assert {dataset.StudyInstanceUID for dataset in read} == {uids[7777]}
        assert len({dataset.SOPInstanceUID for dataset in read}) == 2
        assert read[0].PatientID == "COPY-100007777"


def test_faults(studies):
    with FaultyArchive([*studies[0].paths, *studies[1].paths], accepts="Bearer key") as simulated:
        ask = {"headers": {"Authorization": "Bearer key"}}
        url = f"{simulated.url}/studies/{studies[0].study_uid}"
        whole = get(url, **ask).content
        assert get(url).status_code == 401
        simulated.misbehave("status", times=2, status=500, body=b"no")
        assert [get(url, **ask).status_code for _ in range(3)] == [500, 500, 200]
        simulated.misbehave("status", "metadata", status=503)
        assert get(url, **ask).status_code == 200
        assert get(f"{url}/metadata", **ask).status_code == 503
        simulated.misbehave("html")
        assert get(url, **ask).headers["Content-Type"] == "text/html"
        simulated.misbehave("half")
        assert whole.startswith(get(url, **ask).content)
        simulated.misbehave("cut")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            get(url, **ask)
        simulated.misbehave("drop")
        with pytest.raises(requests.ConnectionError):
            get(url, **ask)
        simulated.misbehave("slow", seconds=10)
        with pytest.raises(requests.Timeout):
            requests.get(url, timeout=0.2, **ask)
        simulated.misbehave("other")
        other = pydicom.dcmread(io.BytesIO(parts(get(url, **ask))[0]))
        assert other.StudyInstanceUID == studies[1].study_uid
        simulated.misbehave("junk")
        assert b"DICM" not in get(url, **ask).content
        simulated.misbehave("large")
        with requests.get(url, stream=True, timeout=10, **ask) as answer:
            assert len(next(answer.iter_content(2**20))) > 2**16
        simulated.misbehave("empty")
        assert get(f"{simulated.url}/studies", **ask).status_code == 204
        simulated.stop()
        with pytest.raises(requests.ConnectionError):
            get(url, **ask)
        simulated.start()
        assert get(url, **ask).content == whole
        assert json.loads(get(f"{simulated.url}/studies?limit=1", **ask).text)
