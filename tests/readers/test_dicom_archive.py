"""A DICOM archive asked by DICOMweb: held to a real one, and to one that misbehaves."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import operator
import pickle
import re
import ssl

import pydicom
import pytest
from dicom_heads import head_study, planted
from faulty_archive import FaultyArchive

from medseq_tf.errors import InputError, Unreachable
from medseq_tf.readers import storage
from medseq_tf.readers.dicom import connection
from medseq_tf.readers.dicom.archive import Archive, Query
from medseq_tf.readers.dicom.connection import BadAnswer, Connection
from medseq_tf.readers.dicom.multipart import NotWhole, message_of, parts_of
from medseq_tf.readers.storage import UnavailableStudy

SYNTAXES = ("jpeg_ls", "rle", "deflated")


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch, tmp_path):
    """No pauses, and no credentials of this machine."""
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("TOKEN", "TOKEN_FILE", "USER", "PASSWORD", "CERT", "KEY", "CA"):
        monkeypatch.delenv(f"MEDSEQ_TF_DICOMWEB_{name}", raising=False)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Studies of several transfer syntaxes, the first with a localiser."""
    place = tmp_path_factory.mktemp("heads")
    return [
        head_study(place / syntax, number, syntax=syntax, localiser=number == 0, slices=5)
        for number, syntax in enumerate(SYNTAXES)
    ]


@pytest.fixture
def faulty(heads):
    with FaultyArchive([path for head in heads for path in head.files]) as server:
        yield server


# ------------------------------------------------------------------------------- a real archive


def test_it_finds_and_gives_what_was_put_in(heads, archive):
    archive.send([path for head in heads for path in head.files])
    asked = Archive.open(f"dicomweb+{archive.url}")
    found = {study.study_uid: study for study in asked.studies(Query())}
    assert found.keys() == {head.study_uid for head in heads}
    first, *_ = heads
    assert found[first.study_uid].modalities == ("CT",)
    assert found[first.study_uid].series == len(asked.series(first.study_uid)) == 2
    assert found[first.study_uid].instances == len(asked.instances(first.study_uid)) == 6
    for head in heads:
        expected = {
            str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path.read_bytes()
            for path in head.paths
        }
        uids = asked.instances(head.study_uid, head.series_uid)
        assert dict(asked.retrieve(head.study_uid, head.series_uid, uids)) == expected
        for dataset in asked.metadata(head.study_uid, head.series_uid):
            file = expected[dataset.SOPInstanceUID]
            header = pydicom.dcmread(pydicom.filebase.DicomBytesIO(file), stop_before_pixels=True)
            assert dataset == header
    assert asked.has_instance(first.study_uid, asked.instances(first.study_uid)[0])
    assert not asked.has_instance(first.study_uid, "1.2.3")
    assert not asked.has_instance("1.2.3", "1.2.3")


def test_queries_are_those_of_another_client(heads, archive):
    from dicomweb_client import DICOMwebClient

    archive.send([path for head in heads for path in head.files])
    other = DICOMwebClient(archive.url)
    for query in ("Modality=CT", "StudyDate=20260101-20260131", "StudyDescription=*nothing*",
                  f"PatientID={planted(1)['PatientID']}"):  # fmt: skip
        terms = dict(
            term.split("=") for term in query.replace("Modality=", "ModalitiesInStudy=").split(",")
        )
        expected = {
            item["0020000D"]["Value"][0] for item in other.search_for_studies(search_filters=terms)
        }
        found = {study.study_uid for study in Archive.open(archive.url).studies(Query.parse(query))}
        assert found == expected


def test_what_is_stored_is_there_and_what_is_refused_is_named(heads, archive):
    files = [path.read_bytes() for path in heads[0].paths]
    asked = Archive.open(archive.url)
    asked.store(files)
    asked.store(files)  # is no error
    assert len(asked.instances(heads[0].study_uid)) == 5
    with pytest.raises(InputError, match="stores nothing: it answers with status 400"):
        asked.store([b"no DICOM"])


# ------------------------------------------------------------------------------ who asks, how


def test_credentials_are_the_environments(monkeypatch, tmp_path, heads):
    files = heads[0].files
    ways = {
        "Bearer planted-token": {"TOKEN": "planted-token"},
        "Basic YWRhOnNlY3LDqXQ=": {"USER": "ada", "PASSWORD": "secrét"},
    }
    for accepted, variables in ways.items():
        with FaultyArchive(files, accepts=accepted) as server, monkeypatch.context() as patch:
            with pytest.raises(InputError, match="access is denied to the credentials"):
                list(Archive.open(server.url).studies(Query()))
            for name, value in variables.items():
                patch.setenv(f"MEDSEQ_TF_DICOMWEB_{name}", value)
            assert len(list(Archive.open(server.url).studies(Query()))) == 1
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultyArchive(files, accepts="Basic YWRhOm90aGVy") as server:
        assert len(list(Archive.open(server.url).studies(Query()))) == 1
    with FaultyArchive(files, accepts="Bearer x") as server:  # goes before the file
        monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_TOKEN", "x")
        assert len(list(Archive.open(server.url).studies(Query()))) == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TOKEN": "planted", "USER": "a", "PASSWORD": "b"}, "TOKEN and .*USER are both set"),
        ({"USER": "planted"}, "one is set; set both"),
        ({"TOKEN": "plant\ned"}, "characters that no token has"),
        ({"KEY": __file__}, "KEY is set and .*CERT is not"),
        ({"CA": "/planted"}, "CA names a file that is not there"),
        ({"CA": __file__}, "CA names a file that holds no certificate"),
        ({"CERT": __file__}, "CERT and _KEY are no certificate in PEM and its key"),
        ({"TOKEN_FILE": __file__}, "TOKEN_FILE holds characters that no token has"),
        ({"TOKEN_FILE": __file__, "USER": "a", "PASSWORD": "b"}, "TOKEN_FILE and .*USER are both"),
    ],
)
def test_credentials_that_cannot_be_used(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(f"MEDSEQ_TF_DICOMWEB_{name}", value)
    with pytest.raises(InputError, match=message) as error:
        Archive.open("https://pacs/dicom-web")
    assert "plant" not in str(error.value)


def test_a_token_that_is_renewed(monkeypatch, tmp_path, faulty):
    path = tmp_path / "token"
    path.write_text("one\n")
    monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_TOKEN_FILE", str(path))
    asked = Archive.open(faulty.url)
    for token in ("one", "two"):
        faulty.accepts = f"Bearer {token}"
        path.write_text(token)
        assert len(list(asked.studies(Query()))) == len(SYNTAXES)
    path.unlink()
    with pytest.raises(Unreachable, match="NoToken"):
        list(asked.studies(Query()))


def test_credentials_stay_in_their_process(monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_USER", "ada")
    monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_PASSWORD", "planted")
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(Archive.open("https://pacs/dicom-web"))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://pacs/dicom",
        "https://ada:planted@pacs/dicom",
        "https://pacs/dicom?token=planted",
        "pacs",
    ],
)
def test_addresses_that_are_refused(url):
    with pytest.raises(InputError) as error:
        Archive.open(url)
    assert "planted" not in str(error.value)


def test_redirections_lead_to_no_other_server(faulty, monkeypatch):
    monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_TOKEN", "planted-token")
    with FaultyArchive() as other:
        faulty.misbehave("status", status=302, headers={"Location": f"{other.url}/studies"})
        with pytest.raises(InputError, match="redirects to another server"):
            list(Archive.open(faulty.url).studies(Query()))
        assert other.asked == []
    faulty.misbehave("status", status=302, headers={"Location": "/dicom-web/studies?limit=1"})
    assert len(list(Archive.open(faulty.url).studies(Query()))) == len(SYNTAXES)
    faulty.misbehave("status", times=9, status=302, headers={"Location": "/dicom-web/studies"})
    with pytest.raises(InputError, match="redirects in circles"):
        list(Archive.open(faulty.url).studies(Query()))


def test_a_port_may_be_left_out_of_a_redirection():
    asked = Connection("https://pacs/dicom-web", False, 1.0)
    assert asked._redirected("https://pacs/a", "https://PACS:443/b") == "https://PACS:443/b"
    for other in (
        "http://pacs/b",
        "https://pacs:8443/b",
        "https://pacs.other/b",
        "https://a:b@pacs/b",
    ):
        with pytest.raises(BadAnswer, match="another server"):
            asked._redirected("https://pacs/a", other)


def test_certificates_are_verified_unless_told_otherwise(heads, monkeypatch, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultyArchive(heads[0].files, tls=context) as server:
        with pytest.raises(InputError, match=r"certificate is not trusted; .*insecure-tls"):
            list(Archive.open(server.url).studies(Query()))
        assert len(list(Archive.open(server.url, insecure_tls=True).studies(Query()))) == 1
        monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_CA", str(certificate))
        assert len(list(Archive.open(server.url).studies(Query()))) == 1
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    with FaultyArchive(heads[0].files, tls=context) as server:
        with pytest.raises(Unreachable):
            list(Archive.open(server.url).studies(Query()))
        monkeypatch.setenv("MEDSEQ_TF_DICOMWEB_CERT", str(certificate))
        assert len(list(Archive.open(server.url).studies(Query()))) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 that nobody signed, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


# --------------------------------------------------------------------------------- misbehaviour


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"kind": "html"}, "it answers with text/html"),
        ({"kind": "status", "status": 404}, "it is not there"),
        ({"kind": "status", "status": 400}, "status 400"),
        ({"kind": "status", "status": 403}, "access is denied"),
    ],
)
def test_what_is_no_archive_is_refused(faulty, fault, message):
    faulty.misbehave(times=9, **fault)
    with pytest.raises(InputError, match=message) as error:
        list(Archive.open(faulty.url).studies(Query()))
    assert not isinstance(error.value, Unreachable)
    assert len(faulty.asked) == 1  # it would say the same again


@pytest.mark.parametrize("kind", ["drop", "cut", "half"])
@pytest.mark.parametrize(("times", "is_there"), [(3, True), (99, False)])
def test_what_fails_is_tried_again(faulty, kind, times, is_there):
    faulty.misbehave(kind, times=times)
    if is_there:
        assert len(list(Archive.open(faulty.url).studies(Query()))) == len(SYNTAXES)
    else:
        with pytest.raises(Unreachable, match="does not answer: no whole answer"):
            list(Archive.open(faulty.url).studies(Query()))


@pytest.mark.parametrize(
    ("status", "headers", "pauses"),
    [
        (503, {"Retry-After": "7"}, [7, 7]),
        (429, {"Retry-After": "9999"}, [30, 30]),
        (429, {}, [20, 20]),
        (503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, [0, 0]),
        (500, {}, [0, 0]),
    ],
)
def test_a_busy_archive_is_waited_for(faulty, monkeypatch, status, headers, pauses):
    waited = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    faulty.misbehave("status", times=2, status=status, headers=headers)
    assert len(list(Archive.open(faulty.url).studies(Query()))) == len(SYNTAXES)
    assert waited == pauses


FILES = r"/instances/[\d.]+$"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"kind": "html"}, "it answers with text/html"),
        ({"kind": "large"}, "an answer of more than 100000 bytes"),
        ({"kind": "half"}, "no whole answer"),
        ({"kind": "cut"}, "no whole answer"),
        ({"kind": "other"}, "6 files where one was asked for"),
        ({"kind": "empty"}, "status 204"),
        ({"kind": "status", "status": 500}, "no whole answer .*500"),
        ({"kind": "status", "status": 404}, "it is not there"),
    ],
)
def test_a_file_that_is_refused(faulty, heads, fault, message):
    head = heads[1]
    asked = Archive.open(faulty.url)
    uids = asked.instances(head.study_uid, head.series_uid)
    faulty.misbehave(where=f"{uids[2]}$", times=99, **fault)
    with pytest.raises(UnavailableStudy, match=message) as error:
        list(asked.retrieve(head.study_uid, head.series_uid, uids, 100_000))
    assert head.study_uid not in str(error.value)


def test_metadata_that_are_refused(faulty, heads):
    head = heads[1]
    asked = Archive.open(faulty.url)
    for kind, message in {
        "other": "another study",
        "html": "text/html",
        "empty": "no metadata",
    }.items():
        faulty.misbehave(kind, "metadata")
        with pytest.raises(UnavailableStudy, match=message):
            asked.metadata(head.study_uid, head.series_uid)
    assert len(asked.metadata(head.study_uid, head.series_uid)) == 5


def test_an_archive_that_is_gone(faulty, heads):
    head = heads[1]
    asked = Archive.open(faulty.url)
    uids = asked.instances(head.study_uid, head.series_uid)
    files = asked.retrieve(head.study_uid, head.series_uid, uids)
    next(files)
    faulty.misbehave("drop", times=999)
    with pytest.raises(Unreachable, match=r"no longer answers.*run the same command again later"):
        asked.instances(head.study_uid)
    faulty.faults.clear()
    faulty.misbehave("status", times=999, status=401)
    with pytest.raises(Unreachable, match="no longer answers: access is denied"):
        asked.instances(head.study_uid)


@pytest.mark.parametrize("status", [401, 403])
def test_a_study_that_is_denied_costs_itself_alone(faulty, heads, status):
    faulty.misbehave("status", f"studies/{heads[0].study_uid}", times=999, status=status)
    asked = Archive.open(faulty.url)
    with pytest.raises(UnavailableStudy, match="the archive: access is denied"):
        asked.series(heads[0].study_uid)
    assert asked.series(heads[1].study_uid)


def test_values_that_are_none_are_not_believed(faulty):
    odd = b'"00201206": {"Value": [1e999]}, "00080061": {"Value": [{"Alphabetic": "Zebra"}, "CT"]}'
    body = b'[{"0020000D": {"Value": ["1.2"]}, %s}]' % odd
    headers = {"Content-Type": "application/dicom+json"}
    faulty.misbehave("status", "GET", status=200, body=body, headers=headers)
    found = next(Archive.open(faulty.url).studies(Query()))
    assert (found.series, found.modalities) == (None, ("CT",))


@pytest.mark.parametrize("status", [200, 202, 409])
@pytest.mark.parametrize(("reason", "is_there"), [(0x0111, True), (45070, True), (0xA700, False)])
def test_what_is_there_already_is_stored(faulty, heads, status, reason, is_there):
    failed = {"00081197": {"vr": "US", "Value": [reason]}}
    body = json.dumps({"00081198": {"vr": "SQ", "Value": [failed]}}).encode()
    headers = {"Content-Type": "application/dicom+json"}
    faulty.misbehave("status", "POST", status=status, body=body, headers=headers)
    refused = pytest.raises(InputError, match=r"refused 1 of 1 objects.*failure reason A700")
    with contextlib.nullcontext() if is_there else refused:
        Archive.open(faulty.url).store([heads[0].paths[0].read_bytes()])


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "access is denied"), (404, "it is not there"), (405, "it answers with status 405")],
)
def test_an_archive_that_is_only_read_is_told_of_as_such(faulty, heads, status, reason):
    faulty.misbehave("status", "POST", status=status)
    with pytest.raises(InputError, match=f"stores nothing: {reason}.*STOW") as error:
        Archive.open(faulty.url).store([heads[0].paths[0].read_bytes()])
    assert not isinstance(error.value, Unreachable)
    assert len(faulty.asked) == 1


def test_silence_is_an_answer(faulty):
    faulty.misbehave("slow", times=99, seconds=5)
    with pytest.raises(Unreachable, match="no whole answer"):
        list(Archive.open(faulty.url, seconds=0.05).studies(Query()))


def test_an_answer_takes_no_longer_than_it_may(faulty, heads, monkeypatch):
    monkeypatch.setattr(connection, "LONGEST_ANSWER", -1.0)
    with pytest.raises(UnavailableStudy, match="takes more than"):
        Archive.open(faulty.url).metadata_json(heads[0].study_uid)


def test_pages(heads):
    files = [path for head in heads for path in head.files]
    with FaultyArchive(files, page=2) as server:
        asked = Archive.open(server.url)
        assert len(list(asked.studies(Query()))) == 3
        assert len(asked.instances(heads[0].study_uid)) == 6


def test_no_page_is_larger_than_archives_give(faulty, heads):
    """Azure's refuses to be asked for more than 200."""
    asked = Archive.open(faulty.url)
    list(asked.studies(Query()))
    asked.instances(heads[0].study_uid)
    limits = [int(limit) for _, path in faulty.asked for limit in re.findall(r"limit=(\d+)", path)]
    assert len(limits) == len(faulty.asked)
    assert max(limits) <= 200


def test_an_archive_without_wildcards(faulty, heads, monkeypatch):
    monkeypatch.setattr(fnmatch, "fnmatchcase", operator.eq)
    asked = Archive.open(faulty.url)
    assert len(list(asked.studies(Query.parse("StudyDescription=CT HEAD")))) == len(SYNTAXES)
    assert list(asked.studies(Query.parse("StudyDescription=CT?HEAD"))) == []


def test_a_query_that_an_archive_refuses(faulty):
    faulty.misbehave("status", status=400)
    with pytest.raises(InputError, match=r"refuses what .*Description=\*HEAD"):
        list(Archive.open(faulty.url).studies(Query.parse("StudyDescription=*HEAD*,PatientID=7")))


def test_any_value_is_none_too():
    item = {"00081030": {"vr": "LO"}, "00080020": {"vr": "DA"}}
    assert Query.parse("StudyDescription=*").fits(item)
    assert not Query.parse("StudyDescription=*HEAD*").fits(item)
    for dates in (item, {"00080020": "20250101"}, {"00080020": ["20250101"]}, {"00080020": None}):
        assert not Query.parse("StudyDate=-20260101").fits(dates)


def test_nothing_is_said_of_whom_was_asked_for(faulty, heads, caplog, capfd):
    head = heads[1]
    faulty.misbehave("drop", times=2)
    with caplog.at_level(logging.DEBUG):
        asked = Archive.open(faulty.url)
        found = list(asked.studies(Query.parse(f"PatientID={planted(1)['PatientID']}")))
        asked.metadata(head.study_uid)
    said = caplog.text + str(capfd.readouterr()) + repr(found) + repr(asked)
    for secret in (head.study_uid, head.series_uid, *planted(1).values()):
        assert secret not in said


# -------------------------------------------------------------------------------------- queries


def test_queries():
    query = Query.parse("Modality=CT, StudyDate=20260101-20260131,StudyDescription=*HEAD*")
    assert query.terms == {
        "ModalitiesInStudy": "CT",
        "StudyDate": "20260101-20260131",
        "StudyDescription": "*HEAD*",
    }
    assert Query.parse(None) == Query.parse("") == Query()
    shown = repr(pickle.loads(pickle.dumps(Query.parse("PatientID=4711,Modality=MR"))))
    assert shown == "Query(PatientID=(withheld),ModalitiesInStudy=MR)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CT", "KEYWORD=VALUE"),
        ("Modality=", "KEYWORD=VALUE"),
        ("StudyDescripton=*", "did you mean StudyDescription"),
        ("Modality=CT,ModalitiesInStudy=MR", "given twice"),
        ("StudyDate=2026-01-01", "is no date"),
    ],
)
def test_queries_that_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        Query.parse(text)


# ------------------------------------------------------------------------------ several in one


def test_messages_of_several_parts():
    files = [b"first\r\n", b"", b"--third\r\n\r\n--"]
    body, boundary = message_of(files)
    assert parts_of(body, boundary) == files
    assert parts_of(b"a preamble\r\n" + body + b"\r\n", boundary) == files
    for end in range(len(body) - 4):
        with pytest.raises(NotWhole):
            parts_of(body[:end], boundary)
    body = b"--X\r\nContent-Length: 5\r\n\r\nfour\r\n--X--"
    with pytest.raises(NotWhole):
        parts_of(body, "X")
    with pytest.raises(NotWhole):
        parts_of(body, "")
