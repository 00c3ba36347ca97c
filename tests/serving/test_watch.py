"""Watching an archive: a real one, and one that misbehaves."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pydicom
import pytest
from bright_model import Bright
from command_line import run_command
from dicom_heads import head_study, leaked
from faulty_archive import FaultyArchive
from simulated_archive import Killed, SimulatedClock
from small_models import SERIES, description_of

from medseq_tf.cli.watch_command import Duration
from medseq_tf.errors import InputError
from medseq_tf.readers.dicom.archive import Archive, Query
from medseq_tf.readers.dicom.archive_study import ArchiveStudy
from medseq_tf.serving import watch as watching
from medseq_tf.serving.predict import predict
from medseq_tf.serving.refusals import ServingError
from medseq_tf.serving.study_prediction import FoundStudy
from medseq_tf.serving.watch import ArchiveWork, watch
from medseq_tf.serving.watch_loop import Watcher
from medseq_tf.serving.watch_status import Log, Status

HEADS, SLICES = 3, 3


class Watched(Bright):
    """A model that sees studies come.

    Args:
        before: called when a study is seen for the first time, with the number of those before it.
    """

    def __init__(self, before=lambda number: None):
        super().__init__()
        self._before = before
        self._seen = set()

    def predict(self, slices, running=False, **told):
        if len(slices) == SLICES and slices[0] not in self._seen:  # whole, and for the first time
            self._seen.add(slices[0])
            self._before(len(self._seen) - 1)
        return super().predict(slices, running, **told)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    return [head_study(folder / f"head-{number}", number, slices=SLICES) for number in range(HEADS)]


@pytest.fixture
def faulty(heads, monkeypatch):
    monkeypatch.setattr("medseq_tf.readers.storage.SECONDS_BETWEEN_TRIES", (0.0, 0.0, 0.0))
    with FaultyArchive(path for head in heads for path in head.files) as server:
        yield server


def reports(server, study_uid):
    """The reports of a study, as a reader of DICOM has them."""
    files = [instance.data for instance in server.studies[study_uid].instances]
    found = [pydicom.dcmread(pydicom.filebase.DicomBytesIO(file)) for file in files]
    return [dataset for dataset in found if dataset.Modality == "SR"]


def once(server, **more):
    return watch(Bright(), server.url, store=True, stable=0.0, once=True, **more)


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# -------------------------------------------------------------------------------------- as it is


def test_each_study_is_answered_once_by_however_many_watchers(faulty, heads, tmp_path):
    done = once(faulty, log=tmp_path / "log")
    assert (done.answered, done.given_up, done.waiting) == (HEADS, 0, 0)
    for head in heads:
        (report,) = reports(faulty, head.study_uid)
        assert report.PatientName == pydicom.dcmread(head.paths[0]).PatientName
    stored = dict(faulty.stored)
    again = once(faulty, log=tmp_path / "log")
    assert (again.answered, again.found_answered) == (0, HEADS)
    assert faulty.stored == stored
    events = [line["event"] for line in lines_of(tmp_path / "log")]
    assert events.count("answered") == HEADS
    assert events.count("ended") == 2


def test_a_report_that_is_missing_is_made_again_and_is_the_same(faulty, heads):
    once(faulty)
    (report,) = reports(faulty, heads[0].study_uid)
    uid = report.SOPInstanceUID
    study = faulty.studies[heads[0].study_uid]
    before = study.added.pop(uid)
    assert once(faulty).answered == 1
    assert study.added[uid].data == before.data


def test_a_study_s_results_are_those_that_predict_gives_it(heads, tmp_path):
    dataset = pydicom.dcmread(heads[0].paths[0])  # twice in its place
    dataset.SOPInstanceUID += ".1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.InstanceNumber += 90
    dataset.save_as(tmp_path / "again.dcm", enforce_file_format=True)
    with FaultyArchive([*heads[0].files, tmp_path / "again.dcm"]) as server:
        url, uid = f"dicomweb+{server.url}", heads[0].study_uid
        (first, *_) = predict(Bright(), url, study=[uid], dicom_out=tmp_path / "out", workers=1)
        assert first.results_error is None
        once(server)
        (report,) = reports(server, uid)
        (path,) = (tmp_path / "out").glob("sr-*.dcm")
        assert server.studies[uid].added[report.SOPInstanceUID].data == path.read_bytes()
    assert b"duplicate slice positions" in path.read_bytes()


def test_the_report_is_stored_last(faulty, heads, monkeypatch):
    order = []
    store = watching.store

    def noted(data_sets, archive):
        order.append([data_set.Modality for data_set in data_sets])
        store(data_sets, archive)

    monkeypatch.setattr(watching, "store", noted)
    once(faulty)
    assert order[1::2] == [["SR"]] * HEADS
    assert not any("SR" in modalities for modalities in order[::2])


def test_on_a_real_archive(archive, heads, tmp_path, monkeypatch, capsys):
    archive.send(path for head in heads for path in head.files)
    monkeypatch.setattr("medseq_tf.serving.predict.open_model", lambda name: Bright())
    words = ["watch", "model", archive.url, "--query", "Modality=CT", "--store", "--once"]
    words += ["--stable", "0s", "--log", tmp_path / "log"]
    code, out, err = run_command(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert out == f"{HEADS} studies answered, 0 given up, 0 with nothing to read, 0 waiting\n"
    count = archive.get("statistics")["CountInstances"]
    code, out, _ = run_command(monkeypatch, capsys, *words)
    assert (code, out.split()[0]) == (0, "0")
    assert archive.get("statistics")["CountInstances"] == count
    text = (tmp_path / "log").read_text("utf-8") + out
    assert leaked(text, *range(HEADS)) == []
    assert not [uid for head in heads for uid in (head.study_uid, head.series_uid) if uid in text]


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(("kind", "what"), [("junk", "instances/"), ("status", "metadata")])
def test_a_study_whose_files_cannot_be_had_is_tried_later(faulty, heads, tmp_path, kind, what):
    uid = heads[1].study_uid
    faulty.misbehave(kind, rf"GET /dicom-web/studies/{uid}/series/.*/{what}", 50, status=500)
    done = once(faulty, log=tmp_path / "log")
    assert (done.answered, done.given_up) == (HEADS - 1, 1)
    (line,) = [line for line in lines_of(tmp_path / "log") if line["event"] == "given up"]
    assert line["reason"]
    assert uid not in json.dumps(line)
    faulty.faults.clear()
    assert once(faulty).answered == 1


def test_nothing_of_a_study_is_in_the_log_or_the_metrics(faulty, heads, tmp_path):
    faulty.misbehave("junk", rf"{heads[0].study_uid}.*/instances/", 50)
    faulty.misbehave("status", "POST", 3, status=500)
    done = once(faulty, log=tmp_path / "log")
    text = (tmp_path / "log").read_text("utf-8") + done.metrics() + done.health(0.0)[1]
    assert leaked(text, *range(HEADS)) == []
    instances = [i for head in heads for i in faulty.studies[head.study_uid].instances]
    assert not [i for i in instances if i.uid("00080018") in text]
    assert not [head for head in heads if head.study_uid in text or head.series_uid in text]


def test_a_model_s_server_that_is_away_is_told_of_as_such(faulty, tmp_path):
    def away(number):
        raise ServingError("http://tf:8501: the server does not answer")

    model = Watched(away)
    watch(model, faulty.url, store=True, stable=0.0, once=True, log=tmp_path / "log")
    events = {line["event"]: line.get("reason") for line in lines_of(tmp_path / "log")}
    assert events["away"] == "http://tf:8501: the server does not answer"
    assert not any(reports(faulty, uid) for uid in faulty.studies)


# ------------------------------------------------------------------------------------ simulation


class Unread(ArchiveStudy):
    """A study of an archive, of which nothing is read."""

    def __init__(self, study_uid):
        object.__setattr__(self, "study_uid", study_uid)


class Reporting(ArchiveWork):
    """Asks a real client for reports and stores them; no study is read; any step may be the last.

    Args:
        url: of the archive.
        clock: the watcher's.
        death: the chance of it, before each step.
        seed: of the chances.
    """

    def __init__(self, url, clock, death, seed):
        super().__init__(Archive.open(url), Query.parse("Modality=CT"), None, None)
        self.clock, self.death, self.random = clock, death, random.Random(seed)

    def _step(self):
        if self.random.random() < self.death:
            raise Killed

    def _studies(self, study_uid):
        self._step()
        return [FoundStudy(Unread(study_uid), self.archive.url)]

    def _report_uid(self, study):
        return f"{study.study_uid}.9"

    def _answer(self, found):
        self._step()
        self.clock.seconds += 0.1
        self.archive.store([report_file(found.study.study_uid)])
        self._step()
        return 1


def report_file(study_uid):
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"
    dataset.SOPInstanceUID = f"{study_uid}.9"
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = f"{study_uid}.8"
    dataset.Modality = "SR"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("count", [24, pytest.param(400, marks=pytest.mark.slow)])
def test_none_is_lost_and_none_has_two_reports_over_http(count, heads, tmp_path, monkeypatch):
    monkeypatch.setattr("medseq_tf.readers.storage.SECONDS_BETWEEN_TRIES", (0.0, 0.0, 0.0))
    faults = random.Random(count)
    seeds = itertools.count()

    def begun(now):
        clock = SimulatedClock(now)
        work = Reporting(server.url, clock, 1 / count, next(seeds))
        return Watcher(work, clock, Status(), log, 30.0, 0.0)

    with FaultyArchive() as server:
        uids = server.add_copies(heads[0].paths[:1], count)
        log = Log(tmp_path / "log", lambda: 0.0)
        team, kills = [begun(0.0), begun(7.0)], 0
        for steps in itertools.count():
            if all(len(server.studies[uid].added) for uid in uids):
                break
            assert steps < 100 * count, "some are never answered"
            if faults.random() < 0.02:
                server.faults.clear()
                server.misbehave("status", times=faults.randrange(8), status=500)
            place = min((0, 1), key=lambda n: team[n].clock.now())
            try:
                team[place].step()
            except Killed:
                kills += 1
                team[place] = begun(team[place].clock.now() + 5.0)
        server.faults.clear()
        end = max(watcher.clock.now() for watcher in team) + 70.0
        for watcher in team:
            while watcher.clock.now() < end:
                try:
                    watcher.step()
                except Killed:
                    kills += 1
        assert {tuple(server.studies[uid].added) for uid in uids} == {(f"{uid}.9",) for uid in uids}
        assert sum(server.stored.values()) < 1.25 * count + 5
        assert kills
    log.close()


# --------------------------------------------------------------------------------- as a service


def test_a_signal_ends_it_after_the_study_in_hand(faulty, tmp_path):
    def sigterm(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    done = watch(
        Watched(sigterm), faulty.url, store=True, stable=0.0, every=600.0, log=tmp_path / "log"
    )
    assert done.answered == 2
    assert [bool(reports(faulty, uid)) for uid in faulty.studies].count(True) == 2
    last = lines_of(tmp_path / "log")[-1]
    assert last["event"] == "ended"
    assert last["reason"].startswith("2 studies answered")


def test_health_and_metrics_while_it_works(faulty, tmp_path):
    told = {}

    def ask(number):
        (line,) = [line for line in lines_of(tmp_path / "log") if line["event"] == "watching"]
        for path in ("health", "metrics"):
            url = line["health"].replace("health", path)
            with urllib.request.urlopen(url, timeout=10) as answer:
                told[path] = answer.read().decode()
        if number == HEADS - 1:
            os.kill(os.getpid(), signal.SIGINT)

    watch(Watched(ask), faulty.url, store=True, stable=0.0, log=tmp_path / "log")
    assert json.loads(told["health"])["status"] == "ok"
    assert f"medseq_tf_watch_answer_seconds_count {HEADS - 1}\n" in told["metrics"]


SCRIPT = """
import sys

if __name__ == "__main__":  # a process that reads comes by here as well
    sys.path[:0] = {path!r}
    from bright_model import Bright
    from medseq_tf import cli
    from medseq_tf.serving import predict

    predict.open_model = lambda name: Bright()
    sys.argv = ["medseq-tf", "watch", "model", {url!r}, "--store", "--every", "1s", "--stable", "0"]
    cli.main()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_leaves_one_answer_of_each_study(faulty, tmp_path):
    script = tmp_path / "watching.py"
    path = [entry for entry in sys.path if entry.startswith(str(Path(__file__).parents[1]))]
    script.write_text(SCRIPT.format(path=path, url=faulty.url), "utf-8")

    def begun():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, script], text=True, **pipes)

    def wait_for(objects, process):
        while len(faulty.stored) < objects:
            assert process.poll() is None
            time.sleep(0.002)

    for objects in (1, 4):  # of two a study
        with begun() as process:
            wait_for(objects, process)
            process.kill()
    with begun() as process:
        wait_for(2 * HEADS, process)
        process.terminate()
        out, err = process.communicate()
    assert process.returncode == 0
    assert re.fullmatch(r"\d studies answered, 0 given up, .* waiting\n", out)
    assert json.loads(err.splitlines()[-1])["event"] == "ended"
    assert {len(reports(faulty, uid)) for uid in faulty.studies} == {1}
    assert len(faulty.stored) == 2 * HEADS
    assert once(faulty).answered == 0


# ------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"store": False}, "watch needs --store"),
        ({"every": 0.0}, "every=0: expected seconds, more than 0 to 2592000"),
        ({"every": 1e20}, "every=1e+20: expected seconds, more than 0"),
        ({"stable": float("nan")}, "stable=nan: expected seconds, 0 to"),
        ({"query": "Modalty=CT"}, "Modalty is no keyword of DICOM"),
        ({"url": "ftp://pacs/dicom-web"}, "the address of an archive starts with"),
        ({"url": "https://user:hunter2@pacs/dicom-web"}, "is not taken"),
        ({"model": "no-such-run"}, "no-such-run: is no model"),
    ],
)
def test_what_cannot_be_used_is_one_line(more, message):
    arguments = {"model": "model", "url": "http://127.0.0.1:9/dicom-web", "store": True}
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        watch(**(arguments | more))
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_model_of_which_no_results_can_be_made_is_refused_at_once(faulty):
    model = Bright()
    model._description = description_of("int16", series=SERIES)
    with pytest.raises(InputError, match="reads several series of a study"):
        watch(model, faulty.url, store=True)
    assert not faulty.asked


def test_a_wrong_archive_ends_it_at_once(faulty):
    faulty.misbehave("html", times=100)
    with pytest.raises(InputError, match="is no DICOMweb server"):
        watch(Bright(), faulty.url, store=True)
    faulty.faults.clear()
    faulty.accepts = "Bearer key"
    with pytest.raises(InputError, match="MEDSEQ_TF_DICOMWEB_TOKEN"):
        watch(Bright(), faulty.url, store=True)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("7", 7)])
def test_a_duration_is_seconds_or_has_a_unit(text, seconds):
    assert Duration()(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "1 s", "½m", "inf"])
def test_another_duration_is_refused(text, monkeypatch, capsys):
    words = ["watch", "model", "http://pacs", "--store", "--every", text]
    code, _, err = run_command(monkeypatch, capsys, *words)
    assert code == 2
    assert "is no duration, such as 30s, 5m or 1h" in err
