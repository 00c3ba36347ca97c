"""Studies of a DICOM archive: those of the same files in a folder, whatever the archive does."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import pickle

import pydicom
import pytest
from click.testing import CliRunner
from dicom_heads import enhanced, head_study, leaked, planted
from faulty_archive import FaultyArchive
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.cli import cli
from medseq_tf.dataset import preparation
from medseq_tf.dataset.prepare import prepare
from medseq_tf.errors import InputError, Unreachable
from medseq_tf.readers import storage
from medseq_tf.readers.dicom.archive import Archive, Query
from medseq_tf.readers.dicom.archive_study import (
    find_archive_studies,
    index_dicomweb,
    name_in_archive,
)
from medseq_tf.readers.dicom.elements import UnreadableDicom
from medseq_tf.readers.dicom.header import read_dicom_header
from medseq_tf.readers.dicom.index import find_dicom_studies
from medseq_tf.readers.dicom.metadata import header_of_metadata
from medseq_tf.readers.storage import UnavailableStudy

SYNTAXES = ("implicit", "jpeg_ls", "rle", "deflated", "big")
FILES = r"/instances/[\d.]+$"


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch, tmp_path):
    """No pauses, no credentials of this machine, and hashes that two sources share."""
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("MEDSEQ_TF_SALT", "a salt")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Studies of several transfer syntaxes, some with a localiser, one with a tilt."""
    place = tmp_path_factory.mktemp("heads")
    return [
        head_study(
            place / str(n), n, syntax=syntax, localiser=n % 2 == 0, tilt=12.0 * (n == 1), slices=5
        )
        for n, syntax in enumerate(SYNTAXES)
    ]


@pytest.fixture(scope="module")
def labels(heads, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = [(planted(n)["PatientID"], n % 2, ["train", "test"][n > 2]) for n in range(len(heads))]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("patient_id", "x", "split"), *rows])
    return path


@pytest.fixture
def faulty(heads):
    with FaultyArchive([path for head in heads for path in head.files]) as server:
        yield server


def prepared_of(reader, source, labels, out, **options):
    settings = {"size": 16, "workers": 1, "progress": False}
    return prepare(reader, source, labels=labels, out=out, **settings, **options)


def content(prepared):
    """Every byte but of what says which reader it was."""
    names = [
        "studies.parquet",
        "audit.json",
        *(f"shards/{name}" for name in prepared.info["shards"]),
    ]
    files = {name: (prepared.path / name).read_bytes() for name in names}
    return files, prepared.info["fingerprint"]


def test_the_same_data_set_as_of_a_folder(heads, labels, archive, tmp_path):
    """On the real archive, read by two worker processes."""
    archive.send([path for head in heads for path in head.files])
    folder = prepared_of("dicom", heads[0].files[0].parents[3], labels, tmp_path / "folder")
    options = {"query": "Modality=CT,StudyDescription=CT HEAD", "modality": "CT"}
    runner = CliRunner()
    arguments = ["--labels", str(labels), "--out", str(tmp_path / "archive"), "--size", "16"]
    for name, value in options.items():
        arguments += [f"--{name}", value]
    result = runner.invoke(cli, ["prepare", "dicomweb", archive.url, *arguments, "--workers", "2"])
    assert result.exit_code == 0, result.output
    found = type(folder).load(tmp_path / "archive")
    assert len(found) == len(heads)
    assert content(found) == content(folder)


def test_what_is_asked_for_is_found(heads, archive):
    """A blank, a letter and a mark that a URL has to escape, on both kinds of archive."""
    files = [path for head in heads[:2] for path in head.files]
    archive.send(files)
    with FaultyArchive(files) as simulated:
        for server in (archive, simulated):
            asked = Archive.open(server.url)
            for query, count in {
                "StudyDescription=CT HEAD": 2,
                "StudyDescription=CT?HEAD": 2,
                "StudyDescription=CT-HEAD": 0,
                "StudyDescription=CT_HEAD": 0,
                "StudyDescription=CT/HEAD": 0,
                f"PatientName={planted(1)['PatientName']}": 1,
                f"PatientID={planted(1)['PatientID']}": 1,
                "StudyDate=20260101-20260131,Modality=CT": 2,
                "StudyDate=20270101-": 0,
                "Modality=MR": 0,
            }.items():
                assert len(list(asked.studies(Query.parse(query)))) == count, query


def test_an_enhanced_study(heads, archive, tmp_path):
    path = enhanced(heads[0], tmp_path / "source" / "enhanced.dcm")
    archive.send([path])
    (of_folder,), _ = find_dicom_studies(path.parent)
    (of_archive,), _ = find_archive_studies(archive.url)
    expected, found = of_folder.read(), of_archive.read()
    assert [image.tobytes() for image in found.images] == [i.tobytes() for i in expected.images]
    assert found.pictures == expected.pictures
    assert of_archive.source_headers() == of_folder.source_headers()
    (item,) = Archive.open(archive.url).metadata_json(of_archive.study_uid)
    header, expected = header_of_metadata(item)[0], read_dicom_header(path)
    assert header._replace(format=expected.format) == expected


def test_metadata_say_what_the_files_say(heads, faulty):
    """All that chooses a series and orders its slices."""
    asked = Archive.open(faulty.url)
    for head in heads:
        by_uid = {}
        for path in head.files:
            header = read_dicom_header(path)
            by_uid[header.sop_instance] = header
        for item in asked.metadata_json(head.study_uid):
            header, pixel_bytes = header_of_metadata(item)
            expected = by_uid[header.sop_instance]
            assert header._replace(format=expected.format) == expected
            assert pixel_bytes == 2 * header.rows * header.columns


JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.just("1.2.3"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Value", "vr", "00280010", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
TAGS = [
    *("00080016", "00083002", "0020000D", "00200032", "00200037", "00280008", "00280010"),
    *("00280011", "00280100", "00280120", "52009229", "52009230", "7FE00010", "zzzzzzzz"),
]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(TAGS), JSON | st.fixed_dictionaries({"Value": JSON})))
def test_odd_metadata_are_named(item):
    with contextlib.suppress(UnreadableDicom):
        header_of_metadata(item)


def test_headers_are_those_of_the_files(heads, faulty, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_TOKEN", "planted-token")
    head = heads[1]
    (study,), _ = find_archive_studies(f"dicomweb+{faulty.url}", study_uids=[head.study_uid])
    assert b"planted-token" not in pickle.dumps(study)
    study = pickle.loads(pickle.dumps(study))
    for picture, header in zip(study.pictures, study.source_headers(), strict=True):
        file = next(p for p in head.paths if pydicom.dcmread(p).SOPInstanceUID == picture.path)
        assert header == pydicom.dcmread(file, stop_before_pixels=True)
    assert study.sop_uids == [picture.path for picture in study.pictures]
    assert study.read().pictures == tuple(range(5))


def test_names_are_hashes_that_last(heads, faulty):
    uid = heads[0].study_uid
    assert name_in_archive(faulty.url, uid) == name_in_archive(f"dicomweb+{faulty.url}", uid)
    assert uid not in name_in_archive(faulty.url, uid)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "html", "where": FILES}, "it answers with text/html"),
        ({"kind": "half", "where": FILES}, "no whole answer"),
        ({"kind": "large", "where": FILES}, "which it cannot need"),
        ({"kind": "status", "status": 500, "where": FILES}, "no whole answer"),
        ({"kind": "status", "status": 404, "where": FILES}, "it is not there"),
        ({"kind": "junk", "where": FILES}, "no slice can be read"),
        ({"kind": "html", "where": "metadata"}, "it answers with text/html"),
        ({"kind": "other", "where": "metadata"}, "another study than was asked for"),
        ({"kind": "half", "where": "metadata"}, "no whole answer"),
    ],
)
def test_one_study_that_cannot_be_had(heads, labels, faulty, tmp_path, fault, reason):
    """It is left out, called by its hash, and counted; the others are as they would be."""
    head = heads[3]
    where = f"{head.study_uid}/.*{fault.pop('where')}"
    faulty.misbehave(where=where, times=999, **fault)
    prepared = prepared_of("dicomweb", faulty.url, labels, tmp_path / "out")
    assert len(prepared) == len(heads) - 1
    left_out = [e for e in prepared.audit["entries"] if e["kind"] == "study left out"]
    assert len(left_out) == 1
    assert reason in left_out[0]["detail"]
    assert head.study_uid not in json.dumps(prepared.audit)


def test_a_file_of_another_series_is_refused(heads, faulty, monkeypatch):
    (study,), _ = find_archive_studies(faulty.url, study_uids=[heads[0].study_uid])
    others = [path.read_bytes() for path in heads[2].paths]
    wrong = dict(zip(study.sop_uids, others, strict=True))
    monkeypatch.setattr(Archive, "retrieve", lambda *_: wrong.items())
    with pytest.raises(UnavailableStudy, match="a file of another study or series"):
        study.read()


def test_work_goes_on_from_finished_shards(heads, labels, faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "STUDIES_PER_SHARD", 2)
    whole = prepared_of("dicomweb", faulty.url, labels, tmp_path / "whole")
    order = [name.split("/")[0] for name in whole.studies["source"]]
    by_name = {study.source: study for study in find_archive_studies(faulty.url)[0]}
    last = by_name[order[-1]]
    faulty.misbehave("drop", rf"{last.study_uid}/.*{FILES}", times=999)
    faulty.misbehave("drop", r"studies\?limit=1$", times=999)
    with pytest.raises(Unreachable, match=r"no longer answers.*same command again"):
        prepared_of("dicomweb", faulty.url, labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    faulty.faults.clear()
    asked = len(faulty.asked)
    prepared = prepared_of("dicomweb", faulty.url, labels, tmp_path / "out")
    retrieved = [path for _, path in faulty.asked[asked:] if path.split("/")[-2] == "instances"]
    assert all(last.study_uid in path for path in retrieved)
    assert content(prepared) == content(whole)


def test_where_an_archive_keeps_files_changes_nothing(heads, labels, faulty, tmp_path):
    """Shards that are finished are gone on with, and the data set is the same."""
    before = index_dicomweb(faulty.url, labels).versions
    for study in faulty.studies.values():
        for instance in study.instances:
            instance.attributes.update(
                {
                    "00080056": {"vr": "CS", "Value": ["NEARLINE"]},
                    "00081190": {"vr": "UR", "Value": ["http://elsewhere/1"]},
                    "77770010": {"vr": "LO", "Value": ["an archive"]},
                    "77771025": {"vr": "DT", "Value": ["20260101"]},
                    "7FE00010": {"vr": "OW", "BulkDataURI": "http://elsewhere/2"},
                }
            )
    assert index_dicomweb(faulty.url, labels).versions == before
    instance.attributes["00281052"] = {"vr": "DS", "Value": [-1000]}
    assert index_dicomweb(faulty.url, labels).versions != before


def test_transfer_syntaxes_that_an_archive_can_make(heads, faulty):
    """They do not say which is the file's."""
    item = Archive.open(faulty.url).metadata_json(heads[0].study_uid)[0]
    expected = header_of_metadata(item)[0]
    video = "1.2.840.10008.1.2.4.102"
    for values in ([video, "1.2.840.10008.1.2.1"], []):
        told = {**item, "00083002": {"vr": "UI", "Value": values}}
        assert header_of_metadata(told)[0] == expected
    told = {**item, "00083002": {"vr": "UI", "Value": [video]}}
    assert "transfer syntax" in header_of_metadata(told)[0].unread


def test_an_archive_that_is_not_there(labels, tmp_path):
    with FaultyArchive() as server:
        with pytest.raises(InputError, match="holds no DICOM series"):
            prepared_of("dicomweb", server.url, labels, tmp_path / "out")
        url = server.url
    with pytest.raises(Unreachable, match="does not answer"):
        prepared_of("dicomweb", url, labels, tmp_path / "out")
    with pytest.raises(InputError, match="needs labels"):
        prepared_of("dicomweb", url, None, tmp_path / "out")


def test_nobody_is_named(heads, labels, tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_TOKEN", "planted-token")
    files = [path for head in heads[:3] for path in head.files]
    printed = io.StringIO()
    query = f"PatientName={planted(0)['PatientName'][:6]}*"
    with (
        FaultyArchive(files, accepts="Bearer planted-token") as server,
        contextlib.redirect_stdout(printed),
        caplog.at_level(logging.DEBUG),
    ):
        server.misbehave("junk", rf"{heads[1].study_uid}.*{FILES}", times=2)
        prepared = prepared_of("dicomweb", server.url, labels, tmp_path / "out", query=query)
        print(prepared.audit_text(), prepared.info, prepared.studies.to_string())
    assert prepared.info["preparation"]["options"]["query"] == "PatientName=(withheld)"
    said = printed.getvalue() + caplog.text + str(capfd.readouterr())
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    for text in (said, written.decode("latin-1")):
        assert leaked(text, 0, 1, 2) == []
        assert "planted-token" not in text
        for head in heads[:3]:
            assert head.study_uid not in text
