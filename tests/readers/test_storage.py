"""Cohorts behind URLs give the bytes that the same files give from a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from dicom_writer import enhanced, stack, write
from stores import CREDENTIALS, google_store, served, upload

from medseq_tf.cli import cli
from medseq_tf.dataset.prepare import prepare
from medseq_tf.dataset.records import StorageSpec, study_record
from medseq_tf.errors import InputError, Unreachable
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom, write_image_folder, write_volumes
from medseq_tf.readers import storage
from medseq_tf.readers.folder import Folder
from medseq_tf.readers.image_folder import index_image_folder
from medseq_tf.readers.joined_study import JoinedStudy
from medseq_tf.readers.picture_study import PictureStudy
from medseq_tf.readers.unlabelled import find_studies

SECRETS = tuple(CREDENTIALS.values())[:2]


def make(reader, source, out, **settings):
    return prepare(reader, source, out=out, workers=1, progress=False, size=16, **settings)


def contents(data):
    return {
        path.relative_to(data.path).as_posix(): path.read_bytes()
        for path in sorted(data.path.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def patients(tmp_path):
    """Folders of patients with labels, and what does not fit: odd names, kinds and files."""
    folder = write_image_folder(
        DemoCohort(patients=6, size=24, slices=(3, 5)), tmp_path / "patients", "patient"
    )
    one = sorted(path for path in folder.iterdir() if path.is_dir())[0]
    (one / "broken.png").write_bytes(b"no picture")
    (one / "empty.jpg").write_bytes(b"")
    (one / "a #1 100% (é)?.png").write_bytes((one / "1.png").read_bytes())
    (one / "notes.txt").write_text("odd")
    (folder / "outside.png").write_bytes((one / "2.png").read_bytes())
    (folder / "no one").mkdir()
    (folder / "no one" / "inner").mkdir()
    (folder / "no one" / "inner" / "10.png").write_bytes((one / "1.png").read_bytes())
    return folder


@pytest.fixture
def classes(tmp_path):
    return write_image_folder(DemoCohort(patients=5, size=24, slices=(3, 4)), tmp_path / "classes")


def test_patients_in_a_bucket_are_those_of_a_folder(tmp_path, patients, s3):
    expected = make("image-folder", patients, tmp_path / "local")
    data = make("image-folder", upload(s3, patients), tmp_path / "remote")
    assert contents(data) == contents(expected)
    assert data.info["counts"]["studies"] == 6


def test_classes_in_a_bucket_are_those_of_a_folder(tmp_path, classes, s3):
    expected = make("image-folder", classes, tmp_path / "local")
    data = make("image-folder", f"{upload(s3, classes)}/", tmp_path / "remote")
    assert contents(data) == contents(expected)


def test_files_over_http_are_those_of_a_folder(tmp_path, patients):
    expected = make("image-folder", patients, tmp_path / "local")
    with served(patients) as (url, handler):
        data = make("image-folder", url, tmp_path / "remote")
    assert contents(data) == contents(expected)
    read = {path: count for path, count in handler.requests.items() if path.endswith("g")}
    assert set(read.values()) == {1}


def test_patients_in_a_bucket_of_google_are_those_of_a_folder(tmp_path, patients, monkeypatch):
    expected = make("image-folder", patients, tmp_path / "local")
    with google_store(patients) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        storage._file_system_of.cache_clear()
        data = make("image-folder", "gs://hospital/cohort", tmp_path / "remote")
    storage._file_system_of.cache_clear()
    assert contents(data) == contents(expected)


def test_tables_may_lie_behind_urls_of_their_own(tmp_path, patients, s3):
    (tmp_path / "other").mkdir()
    table = tmp_path / "other" / "table.csv"
    (patients / "labels.csv").rename(table)
    participants = tmp_path / "other" / "people.csv"
    participants.write_text("patient_id,age\npatient-0001,40\npatient-0002,50\n")
    options = {"covariates": "age"}
    expected = make(
        "image-folder",
        patients,
        tmp_path / "local",
        labels=table,
        participants=participants,
        **options,
    )
    tables = upload(s3, tmp_path / "other", "tables")
    urls = {"labels": f"{tables}/table.csv", "participants": f"{tables}/people.csv"}
    for name, source in (("remote", upload(s3, patients)), ("half", patients)):
        data = make("image-folder", source, tmp_path / name, **urls, **options)
        assert contents(data) == contents(expected)


def test_series_in_a_bucket_are_those_of_a_folder(tmp_path, s3):
    folder = write_image_folder(
        DemoCohort(patients=4, size=24, slices=(3, 3)), tmp_path / "patients", "patient"
    )
    for patient in [path for path in folder.iterdir() if path.is_dir()]:
        for series in ("adc", "dwi"):
            (patient / series).mkdir()
            for number in (1, 2, 3):
                target = patient / series / f"{number}.png"
                target.write_bytes((patient / f"{number}.png").read_bytes())
        for number in (1, 2, 3):
            (patient / f"{number}.png").unlink()
    expected = make("image-folder", folder, tmp_path / "local", series_as="channels")
    data = make("image-folder", upload(s3, folder), tmp_path / "remote", series_as="channels")
    assert contents(data) == contents(expected)


def test_no_study_goes_on_without_a_series_that_vanished(tmp_path, s3):
    place = tmp_path / "source" / "a"
    place.mkdir(parents=True)
    (place / "1.png").write_bytes(b"x")
    url = upload(s3, tmp_path / "source")
    parts = tuple(
        PictureStudy(f"a/{name}", "a", {}, None, url, (f"a/{name}.png",)) for name in ("1", "2")
    )
    study = JoinedStudy("a", "a", {"x": 1.0}, None, parts=parts, numbers=(0, 1))
    with pytest.raises(storage.UnavailableStudy, match="it is not there"):
        study.read()
    record = study_record(study, "id", StorageSpec(("x",), "uint8", 16, "pad"))
    assert [(e.kind, e.where) for e in record.audit_entries] == [("study left out", "a")]


def test_placeholders_of_folders_are_folders(s3, tmp_path):
    for name in ("a/b/empty", "a/full", "top"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree" / "a" / "full" / "1.png").write_bytes(b"x")
    local = Folder(tmp_path / "tree", (".png",))
    for key in ("a/b/empty/", "a/", "a/full/", "a/full/1.png", "top/"):
        s3.put_object(Bucket="hospital", Key=f"tree/{key}", Body=b"x" if key[-1] == "g" else b"")
    remote = Folder("s3://hospital/tree", (".png",))
    assert remote.listing == local.listing == [("a/full/1.png", 1)]
    assert remote.folders == local.folders == ["a", "top"]
    assert {(e.kind, e.where) for e in remote.audit_entries} == {
        (e.kind, e.where) for e in local.audit_entries
    }


def test_names_that_are_no_paths_are_odd_files(s3):
    for key in ("a//1.png", "../2.png", "./3.png", "good/4.png"):
        s3.put_object(Bucket="hospital", Key=f"tree/{key}", Body=b"x")
    folder = Folder("s3://hospital/tree", (".png",))
    assert [file.name for file in folder.files] == ["good/4.png"]
    assert {entry.kind for entry in folder.audit_entries} == {"odd file"}


def test_a_study_whose_object_vanishes_is_left_out(tmp_path, patients, s3, monkeypatch):
    url, list_files = upload(s3, patients), storage.listing

    def listing(root):
        found = list_files(root)
        s3.delete_object(Bucket="hospital", Key="cohort/patient-0002/2.png")
        return found

    monkeypatch.setattr(storage, "listing", listing)
    data = make("image-folder", url, tmp_path / "out")
    entries = [e for e in data.audit["entries"] if e["kind"] == "study left out"]
    assert [(e["where"], e["detail"]) for e in entries] == [
        ("patient-0002", "a file of it cannot be read: it is not there")
    ]
    assert data.info["counts"]["studies"] == 5


def test_a_read_that_fails_is_tried_again(tmp_path, classes, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", (0.0, 0.0))
    expected = make("image-folder", classes, tmp_path / "local")
    with served(classes) as (url, handler):
        name = next(iter(Folder(url).files)).name
        path = storage._url_in("http://host", name).removeprefix("http://host")
        handler.failures[path] = 2
        data = make("image-folder", url, tmp_path / "remote")
        assert handler.requests[path] == 3
        assert contents(data) == contents(expected)
        handler.failures[path] = 3
        data = make("image-folder", url, tmp_path / "again")
    assert data.info["counts"]["studies"] == expected.info["counts"]["studies"] - 1


def test_a_source_that_no_longer_answers_ends_the_work_to_be_gone_on_with(
    tmp_path, classes, monkeypatch
):
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", (0.0,))
    expected = make("image-folder", classes, tmp_path / "local")
    with served(classes) as (url, handler):
        read = storage._read
        left = [4]

        def interrupted(root, name, **part):
            left[0] -= 1
            if left[0] < 0:
                handler.failures.update({f"/{storage.INDEX}": 100})
                raise storage.StorageError("no whole answer")
            return read(root, name, **part)

        monkeypatch.setattr(storage, "_read", interrupted)
        with pytest.raises(Unreachable, match="no longer answers"):
            make("image-folder", url, tmp_path / "remote")
        monkeypatch.undo()
        assert len(list(tmp_path.glob("remote.partial-*"))) == 1
        handler.failures.clear()
        data = make("image-folder", url, tmp_path / "remote")
    assert contents(data) == contents(expected)


def test_a_table_that_does_not_answer_is_not_taken_for_none(tmp_path, patients, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_BETWEEN_TRIES", (0.0,))
    with served(patients) as (url, handler):
        handler.failures["/labels.csv"] = 100
        with pytest.raises(InputError, match=r"labels\.csv cannot be looked for: no whole answer"):
            make("image-folder", url, tmp_path / "out")


def test_another_version_of_an_object_is_another_preparation(tmp_path, classes, s3):
    from medseq_tf.dataset.preparation import Preparation

    url = upload(s3, classes)

    def key():
        return Preparation.of("image-folder", {}, index_image_folder(url), 16, "pad").key()

    before = key()
    assert key() == before
    name = index_image_folder(url).listing[0][0]
    content = (classes / name).read_bytes()
    s3.put_object(Bucket="hospital", Key=f"cohort/{name}", Body=content[:-1] + b"\0")
    assert key() != before


def test_nothing_says_the_credentials_or_leaves_a_copy(
    tmp_path,
    patients,
    s3,
    monkeypatch,
    caplog,
    capfd,
):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    url = upload(s3, patients)
    caplog.clear()
    data = make("image-folder", url, tmp_path / "out")
    said = capfd.readouterr()
    assert list((tmp_path / "copies").iterdir()) == []
    for content in (*contents(data).values(), said.out.encode(), said.err.encode()):
        for secret in SECRETS:
            assert secret.encode() not in content
        assert b"hospital" not in content
    assert [r.message for r in caplog.records if r.name.startswith("medseq_tf")] == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret-word@hospital/cohort", "has a name, password or query in it"),
        ("https://me:secret-word@host/cohort", "has a name, password or query in it"),
        ("https://host/cohort?X-Amz-Signature=secret-word", "has a name, password or query"),
        ("ftp://host/secret-word", "ftp://... is not read; valid: a path, or a URL that starts"),
        ("s3:///secret-word", "names no bucket or host"),
        ("S3://hospital/cohort", "is not read"),
        ("https:///me:secret-word@host/cohort", "names no bucket or host"),
        ("me:secret-word@s3://hospital/cohort", "is not read"),
    ],
)
def test_a_url_that_is_not_taken(tmp_path, url, message):
    (tmp_path / "source").mkdir()
    for arguments in ((url,), (tmp_path / "source", url)):
        with pytest.raises(InputError, match=message) as error:
            make("image-folder", arguments[0], tmp_path / "out", labels=arguments[-1])
        assert "@" not in str(error.value)
        assert "secret-word" not in str(error.value)
        assert "\n" not in str(error.value)
        assert "Signature" not in str(error.value)


def test_what_is_wrong_with_a_url_is_one_line(tmp_path, s3, monkeypatch):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    with pytest.raises(InputError, match=r"s3://none/x cannot be listed: it is not there"):
        make("image-folder", "s3://none/x", out, layout="class")
    with pytest.raises(InputError, match="is not a folder that holds files"):
        make("image-folder", "s3://hospital/none", out)
    with pytest.raises(InputError, match=r"labels\.csv cannot be read: it is not there"):
        make("image-folder", source, out, labels="s3://hospital/labels.csv")
    with pytest.raises(InputError, match="out is a URL; a data set is written into a folder"):
        make("image-folder", "s3://hospital/none", "s3://hospital/out")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    storage._file_system_of.cache_clear()
    with pytest.raises(InputError, match="the environment holds no credentials"):
        make("image-folder", "s3://hospital/cohort", out, layout="class")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "files.csv cannot be read: it is not there; it lists the source"),
        ("a,b\n1.png,3\n", "files.csv line 2: is not name and size"),
        ("name,size\n1.png,three\n", "files.csv line 2: is not name and size"),
        ("name,size\n1.png,-3\n", "files.csv line 2: is not name and size"),
        ("name,size\n" + "1" * 5000 + ".png,3\n", "files.csv line 2: is not name and size"),
        ("name,size\n1.png\n", "files.csv line 2: is not name and size"),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path, index, message):
    with served(tmp_path) as (url, _):
        if index is None:
            (tmp_path / "files.csv").unlink()
        else:
            (tmp_path / "files.csv").write_text(index)
        with pytest.raises(InputError, match=message):
            make("image-folder", url, tmp_path / "out", layout="class")


def test_without_the_libraries_it_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    storage._file_system_of.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'medseq_tf\[remote\]'"):
        make("image-folder", "gs://hospital/cohort", tmp_path / "out")
    storage._file_system_of.cache_clear()


def test_a_folder_of_this_machine_needs_none_of_the_libraries(tmp_path, classes):
    code = (
        "import sys\nfrom medseq_tf.dataset.prepare import prepare\n"
        f"prepare('image-folder', {str(classes)!r}, out={str(tmp_path / 'out')!r}, workers=1)\n"
        "print([m for m in ('fsspec', 's3fs', 'aiohttp', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_worker_processes_read_for_themselves(tmp_path, patients, s3):
    """By the command, whose workers find the credentials in its environment."""
    expected = make("image-folder", patients, tmp_path / "local")
    url, out = upload(s3, patients), tmp_path / "remote"
    command = [sys.executable, "-m", "medseq_tf", "prepare", "image-folder", url]
    done = subprocess.run(
        [*command, "--out", str(out), "--size", "16", "--workers", "2"],
        capture_output=True,
        encoding="utf-8",
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    } == contents(expected)
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr


def test_the_command_keeps_a_url_as_it_is_given(tmp_path):
    arguments = ["prepare", "image-folder", "s3://a:b@c/d", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, InputError)
    assert "has a name, password or query in it" in str(done.exception)
    arguments = ["prepare", "image-folder", str(tmp_path), "--out", "s3://bucket/out"]
    assert "out is a URL" in str(CliRunner().invoke(cli, arguments).exception)


def copies_held():
    held = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held += os.readlink(descriptor).startswith("/memfd:medseq_tf")
    return held


def test_files_are_read_ahead_of_their_use_and_let_go_of_after_it(monkeypatch):
    begun = []

    def read(root, name):
        begun.append(name)
        return name.encode()

    monkeypatch.setattr(storage, "_read", read)
    names = [f"{number}.dcm" for number in range(40)]
    with storage.local_files("s3://hospital/x", names) as path_of:
        for place, name in enumerate(names):
            with open(path_of(name), "rb") as file:
                assert file.read() == name.encode()
            assert len(begun) <= place + 1 + storage.READS_AHEAD
        assert copies_held() == 1
    assert copies_held() == 0
    assert sorted(begun) == sorted(names)
    with storage.local_files("s3://hospital/x", ["a", "b", "a"]) as path_of:
        first = Path(path_of("a"))
        assert Path(path_of("b")).read_bytes() == b"b"
        assert copies_held() == 2
        assert first.read_bytes() == Path(path_of("a")).read_bytes() == b"a"


def test_a_study_is_read_ahead_while_another_is_worked_on(tmp_path, classes, s3, monkeypatch):
    begun, read = [], storage._read

    def counted(root, name, **part):
        begun.append(name)
        return read(root, name, **part)

    monkeypatch.setattr(storage, "_read", counted)
    url = upload(s3, classes)
    first, second, *_ = index_image_folder(url).studies
    for study in (first, second):
        study.read_ahead()
    storage._begun[url, first.files[0]].result()
    assert sorted(begun) == sorted(first.files + second.files)
    for study in (first, second):
        local = dataclasses.replace(study, root=str(classes))
        np.testing.assert_array_equal(study.read().images, local.read().images)
    assert len(begun) == len(set(begun))
    assert not storage._begun
    monkeypatch.setattr(storage, "_read", lambda root, name: b"")
    for number in range(100):
        storage.read_ahead(url, [f"none/{number}"])
    assert len(storage._begun) == 2 * storage.READS_AHEAD
    storage._begun.clear()


def test_the_index_of_a_data_set_is_json_without_the_url(tmp_path, classes, s3):
    data = make("image-folder", upload(s3, classes), tmp_path / "out")
    assert "s3://" not in json.dumps(data.info)


# -------------------------------------------------------------------------------- volumes and DICOM


COHORT = DemoCohort(patients=5, size=24, slices=(4, 6))


@pytest.fixture
def volumes(tmp_path):
    """NIfTI volumes with labels; one is cut short, one is no volume, one names another file."""
    folder = write_volumes(COHORT, tmp_path / "volumes")
    files = sorted(folder.glob("*.nii.gz"))
    files[0].write_bytes(files[0].read_bytes()[:-300])
    files[1].write_bytes(b"no volume")
    (folder / "patient-0009.nrrd").write_bytes(b"NRRD0004\ndata file: /etc/passwd\n\n")
    (folder / "empty.nii").write_bytes(b"")
    return folder


def test_volumes_in_a_bucket_are_those_of_a_folder(tmp_path, volumes, s3):
    expected = make("volumes", volumes, tmp_path / "local")
    data = make("volumes", upload(s3, volumes), tmp_path / "remote")
    assert contents(data) == contents(expected)
    assert data.info["counts"]["studies"] == 3
    with served(volumes) as (url, _):
        data = make("volumes", url, tmp_path / "over http")
    assert contents(data) == contents(expected)


@pytest.mark.parametrize("extension", [".nii", ".nrrd", ".mha"])
def test_volumes_of_every_format_are_those_of_a_folder(tmp_path, s3, extension):
    cohort = DemoCohort(patients=3, size=64, slices=(12, 16))  # longer than their start
    folder = write_volumes(cohort, tmp_path / "volumes", extension=extension)
    options = {"modality": "CT", "axis": "coronal"}
    expected = make("volumes", folder, tmp_path / "local", **options)
    data = make("volumes", upload(s3, folder), tmp_path / "remote", **options)
    assert contents(data) == contents(expected)


@pytest.fixture
def dicom(tmp_path):
    """DICOM series with labels, files of other kinds, damaged ones and a very long header."""
    folder = write_dicom(COHORT, tmp_path / "dicom")
    files = sorted(folder.rglob("IM*"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[1].write_bytes(files[1].read_bytes()[:200])
    long = pydicom.dcmread(files[2])
    long.add_new(0x00091001, "OB", bytes(3 * storage.START_BYTES))
    long.save_as(files[2])
    (folder / "notes.txt").write_text("odd")
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_dicom_in_a_bucket_is_that_of_a_folder(tmp_path, dicom, s3, packed):
    if packed:
        for path in sorted(dicom.rglob("IM*"))[3:]:
            file = pydicom.dcmread(path)
            file.compress(pydicom.uid.RLELossless)
            file.save_as(path)
    expected = make("dicom", dicom, tmp_path / "local")
    data = make("dicom", upload(s3, dicom), tmp_path / "remote")
    assert contents(data) == contents(expected)
    assert data.info["counts"]["studies"] == 5
    command = ["prepare", "dicom", "--list"]
    listed = [
        CliRunner().invoke(cli, [*command, str(place)]).output
        for place in (dicom, "s3://hospital/cohort")
    ]
    assert listed[0] == listed[1] != ""


def test_frames_of_one_file_are_read_from_one_copy(tmp_path, s3):
    """Two files of shuffled frames, one series: each is asked for more than once."""
    values, positions = stack(12)
    files = [
        enhanced(values[part], positions[part], np.ones(6))
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    folder = write(tmp_path / "frames", *files)
    expected = make("dicom", folder, tmp_path / "local")
    data = make("dicom", upload(s3, folder), tmp_path / "remote")
    assert contents(data) == contents(expected)
    assert data.info["counts"]["slices"] == 12


def test_an_atlas_is_read_from_a_folder(tmp_path):
    with pytest.raises(InputError, match="atlas reads a folder, not a URL"):
        make("atlas", "s3://hospital/cohort", tmp_path / "out")


@pytest.mark.parametrize(
    ("write_cohort", "modality", "reader"),
    [
        (write_volumes, "CT", "volumes"),
        (write_dicom, "CT", "dicom"),
        (write_image_folder, "photograph", "image-folder"),
    ],
)
def test_studies_to_predict_are_those_of_a_folder(tmp_path, s3, write_cohort, modality, reader):
    folder = write_cohort(COHORT, tmp_path / "cohort")
    (folder / "odd.txt").write_text("odd")
    preparation = {"reader": reader, "options": {"positive": "Lesion"}}
    url = upload(s3, folder)
    found, odd = find_studies(f"{url}/", modality, preparation)
    expected, expected_odd = find_studies(folder, modality, preparation)
    assert [s.source.removeprefix(url) for s in found] == [
        s.source.removeprefix(str(folder)) for s in expected
    ]
    assert [e.where.removeprefix(url) for e in odd] == [
        e.where.removeprefix(str(folder)) for e in expected_odd
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.stack(one.read().images), np.stack(other.read().images))


def test_one_volume_to_predict_may_have_a_url(tmp_path, s3):
    folder = write_volumes(COHORT, tmp_path / "a folder")
    path = sorted(folder.glob("*.nii.gz"))[0]
    (expected,), _ = find_studies(path, "CT", {})
    with served(folder) as (url, _):
        for one in (f"{upload(s3, folder)}/{path.name}", f"{url}/{path.name}"):
            (study,), _ = find_studies(one, "CT", {})
            assert study.source == one
            np.testing.assert_array_equal(study.read().images, expected.read().images)


def test_the_nodes_of_a_cluster_read_for_themselves(two_nodes, tmp_path, patients):
    expected = make("image-folder", patients, tmp_path / "local")
    settings = {"size": 16, "progress": False, "ray": two_nodes}
    with served(patients) as (url, _):
        data = prepare("image-folder", url, out=tmp_path / "remote", **settings)
    assert contents(data) == contents(expected)
