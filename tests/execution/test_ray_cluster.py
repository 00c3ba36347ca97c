"""Pieces on two nodes of Ray; workers and nodes that die, and clusters that cannot be used."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import sys
import threading
import time

import pytest

from medseq_tf import __version__
from medseq_tf.errors import InputError, Stopped
from medseq_tf.execution import ray_cluster
from medseq_tf.execution.executor import executor_for
from medseq_tf.execution.ray_cluster import RayExecutor, connected
from medseq_tf.execution.work import Work


@pytest.fixture(scope="module")
def executor(two_nodes):
    with RayExecutor(two_nodes) as executor:
        yield executor


def double(item):
    return 2 * item


def double_or_die(item):
    """Double the item; a negative one ends its process, and notes it in the file it comes with."""
    number, notes = item
    if number < 0:
        with open(notes, "ab") as file:
            file.write(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def die_once(path):
    """End the process, but for the second time that the path is given."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def refuse(item):
    raise InputError(f"{item} is refused")


class Odd(Exception):
    """An exception that cannot be made again from its pickle."""

    def __init__(self, one, two):
        super().__init__("odd")


def raise_odd(item):
    raise Odd(1, 2)


def where(item):
    """The node and process that an item is worked on by, once another node may be, too."""
    import ray

    time.sleep(0.3)
    return ray.get_runtime_context().get_node_id(), os.getpid()


def make():
    """A model, say: made once in a process."""
    return os.getpid(), time.monotonic_ns()


def made_and(made, item):
    return (*made, os.getpid(), item)


def sleep_for(seconds):
    time.sleep(seconds)
    return seconds


def want_memory(item):
    raise MemoryError


GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"


def visible_gpus(item):
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def lost(item):
    return "lost"


def test_the_cluster_has_room_for_a_piece_a_core(executor):
    assert executor.workers == 2
    assert executor.shared


def test_results_are_in_order(executor):
    for together in (1, 3):
        doubled = executor.map(double, iter(range(20)), lost, name="test", together=together)
        assert list(doubled) == list(range(0, 40, 2))
    assert list(executor.map(double, [], lost, name="test")) == []


def test_pieces_are_spread_over_nodes(executor):
    nodes, processes = zip(*executor.map(where, range(6), lost, name="test"), strict=True)
    assert len(set(nodes)) == 2
    assert os.getpid() not in processes


def test_an_item_is_lost_after_the_third_worker_and_its_mates_are_not(executor, tmp_path):
    for together in (1, 4):
        notes = tmp_path / str(together)
        items = [(number, notes) for number in (1, 2, -1, 3, 4, 5)]
        results = executor.map(double_or_die, items, lost, name="test", together=together)
        assert list(results) == [2, 4, "lost", 6, 8, 10]
        assert notes.read_bytes() == b"xxx"


def test_a_piece_whose_worker_died_is_done_again(executor, tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    assert list(executor.map(die_once, paths, lost, name="test", deaths=2)) == ["one", "two"]
    assert list(executor.map(die_once, [tmp_path / "x"], lost, name="test", deaths=1)) == ["lost"]


def test_few_items_are_read_ahead(executor):
    read = []
    items = (read.append(number) or number for number in range(100))
    results = executor.map(double, items, lost, name="test")
    assert next(results) == 0
    assert len(read) <= ray_cluster.WAITING_A_WORKER * executor.workers
    results.close()
    assert len(read) < 100


def test_a_map_that_outlives_its_executor_ends_quietly(two_nodes, executor):
    results = executor.map(sleep_for, [0.0, 5.0], lost, name="test")
    assert next(results) == 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        results.close()


def test_what_is_raised_is_raised_here_at_its_turn(executor, capfd):
    results = executor.map(refuse, ["patient Smith"], lost, name="test")
    with pytest.raises(InputError, match=r"^patient Smith is refused$"):
        list(results)
    with pytest.raises(RuntimeError, match="Odd: odd"):
        list(executor.map(raise_odd, [1], lost, name="test"))
    assert "Smith" not in "".join(capfd.readouterr())


def test_setup_is_made_once_a_process_and_kept(executor):
    results = [
        r for _ in range(2) for r in executor.map(made_and, "abcdef", lost, name="t", setup=make)
    ]
    assert [item for *_, item in results] == list("abcdefabcdef")
    assert all(maker == worker for maker, _, worker, _ in results)
    assert len({made for _, made, _, _ in results}) == len({worker for *_, worker, _ in results})


def test_an_item_that_takes_too_long_is_lost(executor):
    results = executor.map(sleep_for, [0.0, 60.0], lost, name="test", seconds=1.0, deaths=2)
    assert list(results) == [0.0, "lost"]


def test_an_item_that_wants_too_much_memory_is_lost(executor):
    assert list(executor.map(want_memory, [1], lost, name="test")) == ["lost"]


def test_without_gpus_a_piece_sees_none(executor):
    assert list(executor.map(visible_gpus, [1], lost, name="test")) == ["-1"]


def test_who_shares_a_gpu_does_not_take_all_its_memory(monkeypatch):
    monkeypatch.setenv(GROWTH, "false")  # so that it is undone
    monkeypatch.delenv(GROWTH)
    work = pickle.dumps(Work(os.getenv))
    for gpus, expected in ((2, None), (0.5, "true")):
        outcome = ray_cluster._work(__version__, gpus, work, pickle.dumps([GROWTH]))
        assert pickle.loads(outcome) == ([expected], None)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((float("nan"), 0), "nan CPUs on Ray: should be a number"),
        ((-1, 0), "-1 CPUs"),
        ((1e-9, 0), "1e-09 CPUs on Ray: .* four decimals"),
        ((1, 1.5), "1.5 GPUs on Ray: should be a whole number, or a part of one"),
    ],
)
def test_shares_that_ray_gives_nobody_are_one_line(shares, words):
    with pytest.raises(InputError, match=words):
        RayExecutor("nowhere", None, *shares)


def test_the_list_of_jobs_does_not_say_the_words_of_the_command(executor):
    """They are paths of studies, `predict MODEL /data/JANE_DOE`, and the dashboard shows them."""
    from ray._private.state import state

    own = [job for job in state.job_table() if job["DriverPid"] == os.getpid()]
    assert {job["Entrypoint"] for job in own} == {"medseq_tf"}


def test_threads_map_at_the_same_time(executor):
    found = {}

    def one(number):
        found[number] = next(executor.map(double, [number], lost, name="test"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: 2 * number for number in range(5)}


def test_work_that_waits_for_a_node_may_be_ended_by_another_thread(executor, two_nodes):
    with RayExecutor(two_nodes, cpus=99) as waits:
        timer = threading.Timer(0.5, waits.end)
        timer.start()
        with pytest.raises(Stopped, match="was ended"):
            next(waits.map(double, [1], lost, name="test"))
        timer.join()
    assert list(executor.map(double, [1], lost, name="test")) == [2], "others go on"


def test_fewer_workers_may_be_asked_for(executor, two_nodes):
    with executor_for(1, two_nodes) as one:
        assert one.workers == 1
        assert list(one.map(double, range(5), lost, name="test")) == [0, 2, 4, 6, 8]


def test_room_that_no_node_has_yet_is_said(executor, two_nodes, capfd):
    with executor_for(None, two_nodes, cpus=5, gpus=0.5):
        assert "no node of the Ray cluster has 5 CPUs and 0.5 GPUs yet" in capfd.readouterr().err


def test_another_version_of_the_package_is_refused(executor, monkeypatch):
    monkeypatch.setattr(ray_cluster, "__version__", "0.0.1")
    with pytest.raises(InputError, match=r"node \S+ .*medseq_tf \d\S+, this machine 0\.0\.1"):
        list(executor.map(double, [1], lost, name="test"))


def test_the_answer_to_sigterm_stays_as_it_was(executor):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def apart(monkeypatch):
    """This process as if it were connected to no cluster, and none were known."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", "http://a:80", ""])
def test_an_address_that_is_none_is_refused(apart, address):
    with pytest.raises(InputError, match="neither HOST:PORT"), connected(address):
        pass


def test_a_cluster_that_does_not_answer_is_one_line(apart, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(ray_cluster, "SECONDS_TO_ANSWER", 1.0)
        for address in (f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1:1"):
            with pytest.raises(
                InputError, match=f"--ray {re.escape(address)}: no Ray cluster answers"
            ):
                executor_for(None, address)
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(
                InputError, match=f"--ray {re.escape(address)}: no Ray cluster answers"
            ):
                executor_for(None, "auto")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'medseq_tf\[cluster\]'"):
        executor_for(None, "auto")
