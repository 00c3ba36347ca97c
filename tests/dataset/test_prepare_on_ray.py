"""Preparing on two nodes of Ray: the same bytes, whatever dies meanwhile."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from image_folders import contents, make, save
from ray_nodes import started_nodes

from medseq_tf.dataset import prepare as preparing
from medseq_tf.dataset.shards import ShardPlan, _write_seen
from medseq_tf.errors import InputError, Unreachable
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_dicom
from medseq_tf.readers import SourceIndex, StudySource
from medseq_tf.readers.study import Slices

DEMO = {"patients": 70, "size": 16, "slices": (3, 6)}


def test_two_nodes_give_the_bytes_of_one_process(two_nodes, tmp_path):
    one = make("demo", out=tmp_path / "one", **DEMO)
    two = make("demo", out=tmp_path / "two", workers=None, ray=two_nodes, **DEMO)
    assert contents(two.path) == contents(one.path)
    assert not list(tmp_path.glob("*partial*"))


def test_an_image_folder_with_an_unreadable_study_and_a_relative_path(
    two_nodes, folder, tmp_path, monkeypatch
):
    (folder / "Normal" / "1 (1).png").write_bytes(b"no picture")
    for number in (1, 2):
        (folder / "Stroke" / f"3 ({number}).png").write_bytes(b"no picture")
    one = make("image-folder", folder, out=tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    two = make("image-folder", Path("source"), out="two", workers=None, ray=two_nodes)
    assert contents(two.path) == contents(one.path)
    assert one.audit["counts"]["study left out"] == 1
    with pytest.raises(InputError, match="Stroke/3: study left out"):
        make(
            "image-folder",
            folder,
            out=tmp_path / "strict",
            workers=None,
            ray=two_nodes,
            strict=True,
        )
    assert not list(tmp_path.glob("*partial*"))


def test_dicom(two_nodes, tmp_path):
    source = write_dicom(
        DemoCohort(patients=5, seed=1, size=24, slices=(3, 5)), tmp_path / "source"
    )
    one = make("dicom", source, out=tmp_path / "one", size=16)
    two = make("dicom", source, out=tmp_path / "two", size=16, workers=None, ray=two_nodes)
    assert contents(two.path) == contents(one.path)


@dataclasses.dataclass(frozen=True)
class Hostile(StudySource):
    """A study of twenty, of which the fourth ends who reads it."""

    notes: str = ""

    def read(self) -> Slices:
        if self.source == "3":
            with open(self.notes, "ab") as file:
                file.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng(int(self.source))
        return Slices(list(rng.integers(0, 256, (3, 16, 16), np.uint8)))


def index_hostile(source, notes):
    labels = [{"ill": float(number % 2)} for number in range(20)]
    studies = [Hostile(str(n), str(n), label, None, notes=notes) for n, label in enumerate(labels)]
    return SourceIndex(studies, ["ill"])


def test_a_study_that_ends_its_worker_three_times_is_left_out(two_nodes, tmp_path, monkeypatch):
    monkeypatch.setitem(preparing.READERS, "hostile", index_hostile)
    notes = str(tmp_path / "notes")
    two = make(
        "hostile", "-", out=tmp_path / "two", size=16, notes=notes, workers=None, ray=two_nodes
    )
    assert Path(notes).read_bytes() == b"xx" + b"xxx", "among others, then by itself"
    assert len(two) == 19
    left_out = [entry for entry in two.audit["entries"] if entry["kind"] == "study left out"]
    assert [entry["where"] for entry in left_out] == ["3"]
    pool = make("hostile", "-", out=tmp_path / "pool", size=16, notes=notes, workers=2)
    assert contents(two.path) == contents(pool.path)


def test_a_node_that_does_not_see_a_path_is_one_line(tmp_path):
    plan = ShardPlan(0, [], [], [], None)
    with pytest.raises(Unreachable, match=rf"node \S+ .* does not see {tmp_path}/out/progress; "):
        _write_seen(tmp_path / "out", None, "", False, plan)
    (tmp_path / "out" / "progress").mkdir(parents=True)
    first = "Stroke/Jane Doe (1).png"
    with pytest.raises(Unreachable, match=f"does not see {tmp_path}/source; "):
        _write_seen(tmp_path / "out", tmp_path / "source", first, False, plan)
    (tmp_path / "source").mkdir()  # its own disk's
    words = f"does not see {tmp_path}/source as this machine does; "
    with pytest.raises(Unreachable, match=words) as raised:
        _write_seen(tmp_path / "out", tmp_path / "source", first, False, plan)
    assert "Doe" not in str(raised.value)


def test_a_cluster_that_is_not_there_is_said_before_anything_is_read(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster answers"):
        make("image-folder", tmp_path / "nothing", out=tmp_path / "out", ray="127.0.0.1:1")


# --------------------------------------------------------------------------- what is killed


def workers_of_this_process():
    """The worker processes of clusters that this process has started, with a piece in hand."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            if child.cmdline()[:1] == ["ray::prepare"]:
                yield child
        except psutil.Error:
            continue


def kill_workers(times, seed, over):
    """Kill a worker so many times, each after a time that the seed tells."""
    draw = random.Random(seed)
    killed = 0
    while killed < times and not over.is_set():
        time.sleep(draw.uniform(0.02, 0.3))
        for worker in workers_of_this_process():
            worker.kill()
            killed += 1
            break
    return killed


SLOWER = {"patients": 130, "size": 96, "slices": (10, 20)}


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    """The bytes of what is prepared while something is killed."""
    return contents(make("demo", out=tmp_path_factory.mktemp("one") / "one", **SLOWER).path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_workers_cost_nothing_but_time(two_nodes, tmp_path, of_one_process, seed):
    over, killed = threading.Event(), []
    killer = threading.Thread(target=lambda: killed.append(kill_workers(2, seed, over)))
    killer.start()
    try:
        data = make("demo", out=tmp_path / "out", workers=None, ray=two_nodes, **SLOWER)
    finally:
        over.set()
        killer.join()
    assert killed == [2]
    assert contents(data.path) == of_one_process


@pytest.mark.slow
def test_a_killed_node_costs_nothing_but_time(tmp_path, of_one_process):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    cluster = started_nodes(3)
    try:
        with driver(script, tmp_path / "out", cluster.address) as process:
            wait_for_shards(tmp_path, random.Random(0).randint(1, 3), process)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            assert process.wait(120) == 0
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "out") == of_one_process


DRIVER = """
import sys
from medseq_tf.dataset.prepare import prepare
if __name__ == "__main__":
    prepare("demo", out=sys.argv[1], ray=sys.argv[2], patients=130, size=96, slices=(10, 20))
"""


def driver(script, out, address):
    return subprocess.Popen([sys.executable, str(script), str(out), address])


def wait_for_shards(folder, count, process):
    deadline = time.monotonic() + 120
    while len(list(folder.glob("out.partial-*/progress/*.json"))) < count:
        assert process.poll() is None, "it ended before anything could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(two_nodes, tmp_path, of_one_process):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    draw = random.Random(0)
    for more in (draw.randint(1, 3), draw.randint(4, 6)):
        with driver(script, tmp_path / "out", two_nodes) as process:
            wait_for_shards(tmp_path, more, process)
            process.kill()
    (partial,) = tmp_path.glob("out.partial-*")
    finished = partial / "shards" / "00000.tfrecord"
    written = finished.stat().st_ino if finished.exists() else None
    data = make("demo", out=tmp_path / "out", workers=None, ray=two_nodes, **SLOWER)
    assert contents(data.path) == of_one_process
    if written:
        assert (data.path / "shards" / "00000.tfrecord").stat().st_ino == written


@pytest.mark.slow
def test_three_thousand_tiny_studies(two_nodes, tmp_path, rng):
    for patient in range(3000):
        kind = "Stroke" if patient % 3 else "Normal"
        for number in range(3):
            picture = rng.integers(0, 256, (8, 8), np.uint8)
            save(tmp_path / "source" / kind / f"{patient} ({number}).png", picture)
    one = make("image-folder", tmp_path / "source", out=tmp_path / "one", size=8)
    two = make(
        "image-folder",
        tmp_path / "source",
        out=tmp_path / "two",
        size=8,
        workers=None,
        ray=two_nodes,
    )
    assert contents(two.path) == contents(one.path)


@pytest.mark.slow
def test_a_cluster_for_one_command(tmp_path):
    """It ends with the command, which prints what it prints without."""
    printed = {}
    for name, options in {"one": ["--workers", "1"], "local": ["--ray", "local"]}.items():
        command = [sys.executable, "-m", "medseq_tf", "prepare", "demo", "--patients", "20"]
        command += ["--size", "16", "--out", str(tmp_path / name), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        printed[name] = done.stdout.replace(str(tmp_path / name), "OUT")
    assert printed["local"] == printed["one"]
    assert contents(tmp_path / "local") == contents(tmp_path / "one")
