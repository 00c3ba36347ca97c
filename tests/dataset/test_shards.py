"""Shards: the same bytes every time, whoever wrote them, and whatever was in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from image_folders import contents, make, save

from medseq_tf.dataset import shards
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.phantom.cohort import DemoCohort
from medseq_tf.phantom.writers import write_atlas, write_volumes


def test_tensorflow_reads_the_shards(tmp_path):
    import tensorflow as tf

    data = make("demo", out=tmp_path / "demo", patients=18, size=16, slices=(3, 5))
    files = sorted(str(path) for path in (data.path / "shards").iterdir())
    assert len(files) == 2
    features = {
        "study_id": tf.io.FixedLenFeature([], tf.string),
        "slices": tf.io.RaggedFeature(tf.string),
        "masks": tf.io.RaggedFeature(tf.string),
        "labels": tf.io.FixedLenFeature([1], tf.float32),
    }
    for row, record in enumerate(tf.data.TFRecordDataset(files)):
        assert record.numpy() == data.record(row)
        example = tf.io.parse_single_example(record, features)
        assert example["study_id"].numpy().decode() == data.studies.study_id[row]
        np.testing.assert_array_equal(example["labels"], data.labels[row])
        slices = np.stack([tf.io.decode_png(png)[..., 0] for png in example["slices"]])
        np.testing.assert_array_equal(slices, data.slices(row))
        masks = np.stack([tf.io.decode_png(png)[..., 0] for png in example["masks"]])
        np.testing.assert_array_equal(masks // 255, data.masks(row))


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    settings = {"patients": 20, "size": 16, "slices": (3, 6)}
    one = make("demo", out=tmp_path / "one", **settings)
    two = make("demo", out=tmp_path / "two", workers=2, **settings)
    assert contents(one.path) == contents(two.path)


KILLED = """
import sys
from medseq_tf.dataset.prepare import prepare
if __name__ == "__main__":
    prepare("demo", out=sys.argv[1], patients=70, size=48, workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, workers):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(script), str(out), str(workers)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out.partial-*/progress/*1.json")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (partial,) = tmp_path.glob("out.partial-*")
    finished = partial / "shards" / "00000.tfrecord"
    written = finished.stat().st_ino
    resumed = make("demo", out=out, patients=70, size=48)
    assert (out / "shards" / "00000.tfrecord").stat().st_ino == written
    assert not list(tmp_path.glob("*.partial-*"))
    whole = make("demo", out=tmp_path / "whole", patients=70, size=48)
    assert contents(resumed.path) == contents(whole.path)


UNGUARDED = """
import sys
from medseq_tf.dataset.prepare import prepare
prepare(sys.argv[1], sys.argv[2], out=sys.argv[3], size=16, workers=1)
"""


@pytest.mark.parametrize(("reader", "write"), [("volumes", write_volumes), ("atlas", write_atlas)])
def test_one_worker_is_this_process_in_a_script_without_a_guard(tmp_path, reader, write):
    source = write(DemoCohort(patients=4, seed=1, size=24, slices=(30, 40)), tmp_path / "source")
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script), reader, str(source), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(Prepared.load(tmp_path / "out"))


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt(monkeypatch, after):
    """Ends the run when that many studies are done."""
    original, count = shards.study_record_of, iter(range(10**6))

    def failing(task):
        if next(count) == after:
            raise Interrupted
        return original(task)

    monkeypatch.setattr(shards, "study_record_of", failing)


def damage_a_shard(partial):
    shard = partial / "shards" / "00001.tfrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)


def write_progress_as_version_0_1_did(partial):
    for file in (partial / "progress").iterdir():
        values = json.loads(file.read_text("utf-8"))
        values["findings"] = values.pop("audit_entries")
        file.write_text(json.dumps(values), "utf-8")


def write_progress_that_is_no_shard(partial):
    for file, text in zip(sorted((partial / "progress").iterdir()), ("[]", "{"), strict=True):
        file.write_text(text, "utf-8")


@pytest.mark.parametrize(
    "change",
    [damage_a_shard, write_progress_as_version_0_1_did, write_progress_that_is_no_shard],
)
def test_what_an_earlier_run_left_that_is_not_whole_is_written_again(tmp_path, monkeypatch, change):
    settings = {"patients": 33, "size": 16, "slices": (3, 4)}
    with monkeypatch.context() as patch:
        interrupt(patch, after=32)
        with pytest.raises(Interrupted):
            make("demo", out=tmp_path / "out", **settings)
    (partial,) = tmp_path.glob("out.partial-*")
    change(partial)
    resumed = make("demo", out=tmp_path / "out", **settings)
    whole = make("demo", out=tmp_path / "whole", **settings)
    assert contents(resumed.path) == contents(whole.path)


def test_other_settings_or_a_changed_file_start_again(folder, tmp_path, monkeypatch):
    for number in range(5, 22):
        save(folder / "Normal" / f"{number} (1).png", np.eye(9, dtype=np.uint8) * number)
    with monkeypatch.context() as patch:
        interrupt(patch, after=18)
        with pytest.raises(Interrupted):
            make("image-folder", folder, out=tmp_path / "out")
    (before,) = tmp_path.glob("out.partial-*")
    time.sleep(0.01)
    save(folder / "Normal" / "1 (1).png", 255 - cv2.imread(str(folder / "Normal/1 (1).png"), 0))
    data = make("image-folder", folder, out=tmp_path / "out")
    assert not before.exists()
    np.testing.assert_array_equal(
        data.slices(0), make("image-folder", folder, out=tmp_path / "new").slices(0)
    )
