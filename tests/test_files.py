"""Files are written whole or not at all, by one process at a time, and errors name them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from medseq_tf.errors import InputError
from medseq_tf.files import (
    atomic,
    destination,
    locked,
    naming,
    output_folder,
    read_parquet,
    remove_abandoned,
    write_json,
)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_is_written(tmp_path):
    write_json(tmp_path / "x.json", {})
    (tmp_path / "y.json").write_text("{}")
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "y.json").stat().st_mode


def test_the_mask_of_the_process_is_never_touched(tmp_path, monkeypatch):
    """Another thread would make files for everyone meanwhile."""
    before = os.umask(0o077)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
        write_json(tmp_path / "x.json", {})
        assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600
    finally:
        monkeypatch.undo()
        os.umask(before)


def test_json_has_null_where_a_number_is_none(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.5, float("nan")], "b": {"c": float("-inf")}})
    found = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert found == {"a": [1.5, None], "b": {"c": None}}


KILLED = """
import os, signal, sys
from medseq_tf.files import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    path = tmp_path / "history.csv"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with atomic(path) as temporary:
        remove_abandoned(tmp_path)
        assert list(tmp_path.iterdir()) == [temporary]
        temporary.write_text("whole")
    remove_abandoned(tmp_path)
    assert path.read_text("utf-8") == "whole"
    assert list(tmp_path.iterdir()) == [path]
    remove_abandoned(tmp_path / "absent")


def test_an_error_names_the_file_that_was_meant(tmp_path):
    def fill(path):
        with atomic(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        fill(tmp_path / "history.csv")
    assert caught.value.filename == str(tmp_path / "history.csv")

    def vanish(path):
        with atomic(path) as temporary:
            temporary.unlink()

    with pytest.raises(FileNotFoundError) as caught:
        vanish(tmp_path / "model.keras")
    assert str(caught.value).endswith(f"{str(tmp_path / 'model.keras')!r}")
    with pytest.raises(FileNotFoundError) as caught:
        write_json(tmp_path / "deleted" / "run.json", {})
    assert caught.value.filename == str(tmp_path / "deleted" / "run.json")

    def other():
        with naming("mine"):
            open(tmp_path / "absent")  # noqa: SIM115

    with pytest.raises(FileNotFoundError) as caught:
        other()
    assert caught.value.filename == str(tmp_path / "absent")


def test_one_at_a_time_holds_a_lock(tmp_path):
    with locked(tmp_path / "in" / ".lock", "taken"):
        refused = pytest.raises(InputError, match="taken")
        with refused, locked(tmp_path / "in" / ".lock", "taken"):
            pass
    assert not list((tmp_path / "in").iterdir())


def test_those_who_wait_for_a_lock_come_one_after_the_other(tmp_path):
    """Each owner removes the file; the next must not hold the lock of a file that is gone."""
    inside, most, done = [0], [0], []

    def work():
        for _ in range(100):
            with locked(tmp_path / ".lock", "", wait=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1
        done.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 4
    assert most == [1]
    assert not list(tmp_path.iterdir())


def test_a_link_stands_for_its_place(tmp_path):
    (tmp_path / "link").symlink_to("place")
    assert destination(tmp_path / "link") == tmp_path / "place"
    assert destination(tmp_path / "plain") == tmp_path / "plain"


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file, not a folder"):
        destination(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"^--out \S+file: is a file, not a folder$"):
        output_folder(tmp_path / "file")
    assert output_folder(tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert (tmp_path / "new" / "out").is_dir()


THREADS = """
import os, sys
import pandas, pyarrow.parquet
from medseq_tf.files import read_parquet

def threads():
    return len(os.listdir("/proc/self/task"))

data, before = open(sys.argv[1], "rb").read(), threads()
assert len(read_parquet(data)) == len(read_parquet(sys.argv[1])) == 50
print(threads() - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads of Linux")
def test_reading_a_table_starts_no_thread_that_outlives_the_interpreter(tmp_path):
    table = pd.DataFrame({"study": [f"s{i}" for i in range(50)], "slices": [["a"]] * 50})
    table["truth"] = np.where(table.index % 2, 1.0, np.nan)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(
        read_parquet(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "t.parquet")
    )
    command = [sys.executable, "-c", THREADS, str(tmp_path / "t.parquet")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
