"""The folder of stored features: bounded, private, and no run stops because of it."""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_network
from click.testing import CliRunner
from feature_stores import VARIED, entries, filling, make, plain

from medseq_tf import cli
from medseq_tf.dataset.prepared import Prepared
from medseq_tf.errors import InputError
from medseq_tf.evaluation import feature_folder
from medseq_tf.evaluation.feature_cache import cache

KIB = 1024


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_network.install(monkeypatch)
    monkeypatch.delenv("MEDSEQ_TF_FEATURES_GIB", raising=False)


@pytest.fixture(scope="module")
def prepared(demo_data):
    return Prepared.load(demo_data)


def entry(folder, number, size=KIB, used=0):
    """Write an entry of some size that was last used at a second since 1970."""
    key = f"{number:064x}"
    path = folder / key[-2:] / (key[-2:] + key[:-2])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def run(*words):
    """Return what the command prints."""
    return CliRunner().invoke(cli.cli, ["cache", *map(str, words)], catch_exceptions=False).output


# --------------------------------------------------------------------------------- the bound


def test_the_least_recently_used_go_first_and_nothing_that_is_not_ours(tmp_path):
    paths = [entry(tmp_path, number, used=1000 - number) for number in range(1, 6)]
    others = [tmp_path / "notes.txt", paths[0].parent / "notes.txt", tmp_path / "runs" / "model"]
    (tmp_path / "runs").mkdir()
    for other in others:
        other.write_bytes(bytes(9 * KIB))
    assert feature_folder.make_room(tmp_path, 2 * KIB) == (2 * KIB, 3)
    assert [path.exists() for path in paths] == [True, True, False, False, False]
    assert feature_folder.make_room(tmp_path, 2 * KIB) == (2 * KIB, 0)
    cache(tmp_path, clear=True)
    assert feature_folder.entries(tmp_path) == []
    assert all(other.exists() for other in others)


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    outside = entry(tmp_path / "outside", 1)
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / outside.parent.name).symlink_to(outside.parent, target_is_directory=True)
    cache(folder, clear=True)
    assert outside.exists()


def test_what_is_in_use_stays_until_the_user_is_gone(tmp_path):
    old, new = entry(tmp_path, 1, used=1000), entry(tmp_path, 2, used=1000)
    with feature_folder.in_use(tmp_path) as mark:
        os.utime(new)
        assert feature_folder.make_room(tmp_path, 0) == (KIB, 1)
        assert not old.exists()
        assert "in use: by 1" in cache(tmp_path).text()
        later = new.stat().st_mtime_ns + 10**9
        os.utime(mark, ns=(later, later))  # the next generation of views
        assert feature_folder.make_room(tmp_path, 0) == (0, 1)
    assert cache(tmp_path).users == 0


def test_a_killed_process_uses_nothing_any_more(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from medseq_tf.evaluation import feature_folder\n"
        "with feature_folder.in_use(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".in-use-*"))
    entry(tmp_path, 1, used=4e9)
    assert feature_folder.make_room(tmp_path, 0) == (0, 1)
    assert not list(tmp_path.glob(".in-use-*"))


def test_an_entry_that_is_read_is_no_longer_the_oldest(prepared, tmp_path):
    store = make(prepared, folder=tmp_path)
    store.prepare(plain())
    for path in entries(tmp_path):
        os.utime(path, (1000, 1000))
    again = make(prepared, folder=tmp_path)
    again.prepare([(4, None)])
    assert again.computed == 0
    *others, last = feature_folder.entries(tmp_path)
    assert last.path.name == again.views.key(4)
    assert {other.used for other in others} == {1000 * 10**9}


def test_a_store_goes_above_the_limit_only_while_it_is_at_work(
    prepared, tmp_path, monkeypatch, capsys
):
    strangers = [entry(tmp_path, number, used=1000) for number in range(3)]
    limit = 3 * KIB
    monkeypatch.setenv("MEDSEQ_TF_FEATURES_GIB", f"{limit / 2**30:.12f}")
    store = make(prepared, folder=tmp_path, verbose=True)
    store.prepare(plain())
    assert not any(path.exists() for path in strangers)
    assert len(entries(tmp_path)) == 10
    assert "above the limit" in capsys.readouterr().out
    other = make(prepared, "seed=1", folder=tmp_path)
    other.prepare(plain([0]))
    assert len(entries(tmp_path)) == 11, "none of what another store uses is removed"
    del store
    gc.collect()
    del other
    gc.collect()
    assert 0 < sum(one.bytes for one in feature_folder.entries(tmp_path)) <= limit
    assert not list(tmp_path.glob(".in-use-*"))


def test_views_of_a_generation_that_is_over_may_go(prepared, tmp_path, monkeypatch):
    store = make(
        prepared, *VARIED, "features.views=2", "features.redraw=1", "fit.epochs=4", folder=tmp_path
    )
    rows = np.arange(10)
    store.prepare_training(rows, 0)
    store.prepare([(10, None)])
    first = {path.name for path in entries(tmp_path)}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            os.utime(path, (1000, 1000))
    store.prepare_training(rows, 1)
    feature_folder.make_room(tmp_path, 0)
    left = {path.name for path in entries(tmp_path)}
    assert store.views.key(10) in left
    assert left & first == {store.views.key(10)}
    assert {store.views.key(*pair) for pair in store._checked} == left


def test_a_full_disk_is_helped_by_what_is_not_in_use(prepared, tmp_path, monkeypatch):
    stranger = entry(tmp_path, 1, size=100 * KIB, used=1000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        "medseq_tf.evaluation.feature_folder.shutil.disk_usage",
        lambda folder: usage._replace(free=0 if stranger.exists() else 2**30),
    )
    make(prepared, folder=tmp_path).prepare(plain())
    assert not stranger.exists()
    assert len(entries(tmp_path)) == 10


@pytest.mark.slow
def test_processes_kills_and_a_small_limit_on_one_folder(prepared, tmp_path, monkeypatch):
    """Each process ends well, whatever the others remove; what is left is whole and bounded."""
    monkeypatch.setenv("MEDSEQ_TF_FEATURES_GIB", f"{4 * KIB / 2**30:.12f}")
    killed = filling(prepared, tmp_path, dies_at=7)
    assert killed.wait() == -signal.SIGKILL
    killed.stderr.close()
    assert list(tmp_path.glob("*/.*")), "a file that was not written to its end"
    assert list(tmp_path.glob(".in-use-*"))
    others = [filling(prepared, tmp_path) for _ in range(2)]
    for process in others:
        assert process.wait() == 0, process.stderr.read().decode()
        process.stderr.close()
    feature_folder.make_room(tmp_path, 4 * KIB)
    assert sum(one.bytes for one in feature_folder.entries(tmp_path)) <= 4 * KIB
    assert not list(tmp_path.glob("*/.*"))
    store, expected = make(prepared, folder=tmp_path), make(prepared)
    store.prepare(plain(range(20)))
    for row in range(20):
        np.testing.assert_array_equal(store.of(row), expected.of(row))


def test_what_killed_processes_left_goes_too(tmp_path):
    part = entry(tmp_path, 1).parent
    for name in (".partial-0123456789ab", ".tmp8_k2x"):
        (part / name).write_bytes(bytes(KIB))
    (part / ".gitignore").write_text("mine")
    cache(tmp_path, clear=True)
    assert [path.name for path in part.iterdir()] == [".gitignore"]


def test_without_a_home_a_folder_is_asked_for(tmp_path, monkeypatch):
    for name in ("MEDSEQ_TF_FEATURES", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match=r"no home folder is known .*--features"):
        feature_folder.feature_folder()
    assert feature_folder.feature_folder(tmp_path) == tmp_path


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be read \(Not a directory\)"):
        cache(tmp_path / "file")


# --------------------------------------------------------------------------------- the limit


def test_the_limit_is_set_by_the_environment_or_the_command_or_is_20_gib(tmp_path, monkeypatch):
    assert feature_folder.limit_of(tmp_path).bytes == 20 * 2**30
    assert "limit:  5 GiB (medseq-tf cache --limit)" in cache(tmp_path, limit=5).text()
    assert feature_folder.limit_of(tmp_path).bytes == 5 * 2**30
    monkeypatch.setenv("MEDSEQ_TF_FEATURES_GIB", "0.5")
    assert feature_folder.limit_of(tmp_path) == (2**29, "MEDSEQ_TF_FEATURES_GIB")
    with pytest.raises(InputError, match="MEDSEQ_TF_FEATURES_GIB is set"):
        cache(tmp_path, limit=1)


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_one_line(tmp_path, monkeypatch, value):
    if value != "much":
        with pytest.raises(InputError, match=r"limit = .*: expected a number of GiB, such as 20"):
            cache(tmp_path, limit=float(value))
    monkeypatch.setenv("MEDSEQ_TF_FEATURES_GIB", value)
    with pytest.raises(InputError, match=r"MEDSEQ_TF_FEATURES_GIB = .*: expected a number of GiB"):
        feature_folder.feature_folder(tmp_path)


def test_the_command_shows_limits_and_clears(tmp_path, monkeypatch):
    folder = tmp_path / "features"
    monkeypatch.setenv("MEDSEQ_TF_FEATURES", str(folder))
    assert "size:   0.0 MiB in 0 entries\n" in run()
    assert not folder.exists(), "looking makes no folder"
    for number in range(4):
        entry(folder, number, size=2**20, used=1000 + number)
    shown = run()
    assert f"folder: {folder}" in shown
    assert "4.0 MiB in 4 entries, the least recently used one at 1970-01-0" in shown
    assert "limit:  20 GiB (the default)" in shown
    assert "2 entries removed" in run("--limit", 2 / 1024)
    assert len(feature_folder.entries(folder)) == 2
    assert "2 entries removed" in run("--features", folder, "--clear")
    assert run().count("removed") == 0


# ------------------------------------------------------------------------------- whose it is


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_a_folder_that_anyone_may_write_to_is_refused(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    for mode in (0o777, 0o1777):
        folder.chmod(mode)
        with pytest.raises(InputError, match=r"anyone on this machine may write to it.*chmod o-w"):
            feature_folder.feature_folder(folder)
    folder.chmod(0o770)
    assert feature_folder.feature_folder(folder) == folder


def test_the_folder_taken_away_in_mid_run_is_made_again(prepared, tmp_path):
    folder = feature_folder.feature_folder(tmp_path / "features")
    store, expected = make(prepared, "fit.cache=none", folder=folder), make(prepared)
    store.prepare(plain(range(5)))
    shutil.rmtree(folder)
    np.testing.assert_array_equal(store.of(2), expected.of(2))
    store.prepare(plain())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(folder)
    batches = [list(one.evaluation_batches(np.arange(10), 10)) for one in (store, expected)]
    for (found, *_), (right, *_) in zip(*batches, strict=True):
        np.testing.assert_array_equal(found["features"], right["features"])


def test_a_folder_that_turns_into_something_else_is_one_line(prepared, tmp_path):
    folder = feature_folder.feature_folder(tmp_path / "features")
    store = make(prepared, folder=folder)
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(InputError, match=r"cannot be kept there \(.*\); name another folder"):
        store.prepare(plain())


def test_a_folder_that_may_no_longer_be_written_to_is_one_line(prepared, tmp_path, monkeypatch):
    store = make(prepared, folder=tmp_path)
    store.prepare(plain([0]))

    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("medseq_tf.files._new_file", refuse)
    store.prepare(plain([0]))  # reading goes on
    with pytest.raises(InputError, match=r"kept there \(Permission denied\); name another folder"):
        store.prepare(plain([1]))
    assert Path(tmp_path).is_dir()


def test_the_command_has_the_defaults_of_its_function():
    found = cli.cli.commands["cache"].make_context("cache", []).params
    parameters = inspect.signature(cache).parameters
    assert {name: found[name] for name in parameters} == {
        name: parameter.default for name, parameter in parameters.items()
    }
