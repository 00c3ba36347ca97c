"""Pieces of work on the nodes of a Ray cluster; the one module that imports Ray.

Every node has this package, in the same version, and sees the same storage. A piece is a Ray task
of one try; what is tried again is decided here, so that a piece that ends its worker is told apart
from one whose node was lost, as far as counting can.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import pickle
import re
import secrets
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from medseq_tf import __version__
from medseq_tf.errors import HostLost, InputError, Stopped, Unreachable, note
from medseq_tf.execution.hosts import VARIABLE, Host
from medseq_tf.execution.processes import cores
from medseq_tf.execution.work import SECONDS_AN_ITEM, Item, Result, Work

MOST_DEATHS = 3
"""Workers that an item may end, or lose with their node, before its stand-in answers."""

UNFINISHED_A_WORKER = 2
WAITING_A_WORKER = 4
"""Pieces that have been handed out, and those among them that wait for their turn as well."""

SECONDS_FOR_NODES = 60
SECONDS_TO_ANSWER = 10.0
SECONDS_BETWEEN_COUNTS = 5.0
SECONDS_TO_FOLLOW = 30
"""That hosts have when one has ended, until its process ends too, which those it left notice."""
SECONDS_TO_END = 1.0
"""Until a map notices that it was ended."""


class RayExecutor:
    """The nodes of a Ray cluster, see `executor.Executor`.

    Worker processes go on from piece to piece, and keep what `setup` gave; but with GPUs each piece
    has a process of its own, since Ray gives it other ones. So let pieces there be large.

    Args:
        address: see `connected`.
        workers: pieces at once, at most; default: as many as the nodes have room for.
        cpus: of a node that a piece takes.
        gpus: the same; a fraction shares one.

    Raises:
        InputError: the cluster cannot be used.
    """

    shared = True

    def __init__(
        self, address: str, workers: int | None = None, cpus: float = 1.0, gpus: float = 0.0
    ):
        _check_shares(cpus, gpus)
        self._most, self._cpus, self._gpus = workers, cpus, gpus
        self._name = secrets.token_hex(8)
        self._counted = -SECONDS_BETWEEN_COUNTS, 0
        self._ended = threading.Event()
        self._connection = contextlib.ExitStack()
        self._connection.enter_context(connected(address))
        if not self._room():
            note(f"no node of the Ray cluster has {self._needs()} yet; waiting for one")

    @property
    def workers(self) -> int:
        """How many pieces run at once: what the nodes that are there now have room for."""
        room = max(self._room(), 1)
        return min(room, self._most) if self._most else room

    def _room(self) -> int:
        """Count the pieces that the nodes have room for; every few seconds anew."""
        when, room = self._counted
        if time.monotonic() - when >= SECONDS_BETWEEN_COUNTS:
            alive = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
            room = sum(map(self._pieces_on, alive))
            self._counted = time.monotonic(), room
        return room

    def _pieces_on(self, resources: dict[str, float]) -> int:
        needs = [(self._cpus, "CPU"), (self._gpus, "GPU")]
        rooms = [resources.get(name, 0) / amount for amount, name in needs if amount]
        return int(min(rooms, default=cores()) + 1e-6)

    def _needs(self) -> str:
        return f"{self._cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        stand_in: Callable[[Item], Result],
        *,
        name: str,
        together: int = 1,
        initializer: Callable[[], None] | None = None,
        setup: Callable[[], Any] | None = None,
        seconds: float = SECONDS_AN_ITEM,
        deaths: int = MOST_DEATHS,
    ) -> Generator[Result]:
        """Map as an `Executor` does."""
        work = pickle.dumps(Work(function, initializer, setup, seconds, self._name))
        items = iter(items)
        groups = iter(lambda: list(itertools.islice(items, together)), [])
        pieces: collections.deque[_Piece] = collections.deque()
        try:
            while True:
                self._hand_out(groups, pieces, work, name)
                if not pieces:
                    return
                if pieces[0].outcome is None:
                    for piece in self._finished(pieces):
                        self._settle(piece, pieces, work, name, deaths)
                    continue
                piece = pieces.popleft()
                results, error = piece.outcome or (None, None)
                if error is not None:
                    raise error
                yield from map(stand_in, piece.group) if results is None else results
        finally:
            _cancel(pieces)

    def _hand_out(
        self, groups: Iterator[list], pieces: collections.deque[_Piece], work: bytes, name: str
    ) -> None:
        """Submit further groups, as far as may be read ahead."""
        workers = self.workers
        while (
            len(pieces) < WAITING_A_WORKER * workers
            and sum(piece.outcome is None for piece in pieces) < UNFINISHED_A_WORKER * workers
            and (group := next(groups, None)) is not None
        ):
            pieces.append(self._submitted(group, 0, work, name))

    def _submitted(self, group: list, deaths: int, work: bytes, name: str) -> _Piece:
        """Hand a group of items to a worker that is, or becomes, free."""
        task = _task().options(
            name=name,
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        given = (__version__, self._gpus, work, pickle.dumps(group))
        return _Piece(group, task.remote(*given), deaths)

    def _finished(self, pieces: Iterable[_Piece]) -> list[_Piece]:
        """Wait until at least one piece is finished; return those that are.

        Raises:
            Stopped: `end` was called.
        """
        waiting = {piece.task: piece for piece in pieces if piece.outcome is None}
        ready: list[Any] = []
        while not ready:
            if self._ended.is_set():
                raise Stopped("work on the Ray cluster was ended")
            ready, _ = _ray().wait(list(waiting), num_returns=1, timeout=SECONDS_TO_END)
        ready, _ = _ray().wait(list(waiting), num_returns=len(waiting), timeout=0)
        return [waiting[task] for task in ready]

    def _settle(
        self,
        piece: _Piece,
        pieces: collections.deque[_Piece],
        work: bytes,
        name: str,
        deaths: int,
    ) -> None:
        """Keep what came of a piece; if its worker died, its items are tried again, each alone."""
        piece.outcome = _outcome(piece.task)
        if piece.outcome != _LOST or (piece.deaths + 1 >= deaths and len(piece.group) == 1):
            return
        place = pieces.index(piece)
        del pieces[place]
        for number, item in enumerate(piece.group):
            pieces.insert(place + number, self._submitted([item], piece.deaths + 1, work, name))

    def end(self) -> None:
        """Let maps under way in other threads end soon, and with them their pieces in flight."""
        self._ended.set()

    def close(self) -> None:
        """Leave the cluster, which ends this process's tasks; a cluster of its own ends too."""
        self._connection.close()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_shares(cpus: float, gpus: float) -> None:
    """Raise an InputError for amounts that Ray gives nobody."""
    for amount, what in ((cpus, "CPUs"), (gpus, "GPUs")):
        if not math.isfinite(amount) or amount < 0 or round(amount, 4) != amount:
            raise InputError(f"{amount} {what} on Ray: should be a number of at most four decimals")
    if gpus > 1 and not float(gpus).is_integer():
        raise InputError(f"{gpus} GPUs on Ray: should be a whole number, or a part of one")


Outcome = tuple[list | None, Exception | None]
"""Results, one an item, or what the function raised; neither where the worker died."""

_LOST: Outcome = (None, None)


@dataclasses.dataclass(eq=False)
class _Piece:
    """A group of items that is done again whole when its worker dies.

    Attributes:
        group: the items.
        task: Ray's reference to what comes of it.
        deaths: workers that had died over its items when it was handed out.
        outcome: what came of it, once it is there.
    """

    group: list
    task: Any
    deaths: int
    outcome: Outcome | None = None


# ------------------------------------------------------------------------------- in a worker


def _work(version: str, gpus: float, work: bytes, group: bytes) -> bytes:
    """Work on a group of items; return the pickled outcome.

    What is raised is a value: Ray would write it, with the path in it, to its logs and dashboard.
    """
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    elif gpus < 1:  # or else TensorFlow takes all memory of the GPU, the others' share too
        os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    try:
        _check_version(version)
        return pickle.dumps((_unpickled(work).of_group(_unpickled(group)), None))
    except MemoryError:
        return pickle.dumps(_LOST)
    except Exception as error:  # raised where the results are asked for
        if not isinstance(error, InputError):
            error.add_note("".join(traceback.format_exception(error)))
        return pickle.dumps((None, _portable(error)))


def _check_version(version: str) -> None:
    if version != __version__:
        raise Unreachable(
            f"node {socket.gethostname()} of the Ray cluster has medseq_tf {__version__}, this "
            f"machine {version}; install the same on all"
        )


def _unpickled(data: bytes) -> Any:
    """Return what Ray has carried; it runs what its own users send, and unpickles as well."""
    return pickle.loads(data)  # noqa: S301


def _portable(error: Exception) -> Exception:
    """Return an exception that can be pickled: the same, or one that says what it was."""
    try:
        _unpickled(pickle.dumps(error))
    except Exception:  # whatever its class does not expect
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# ------------------------------------------------------------------------------- in the driver


def _outcome(task: Any) -> Outcome:
    """Return what came of a finished task.

    Raises:
        Unreachable: the package cannot be imported on its node.
    """
    errors = _ray().exceptions
    try:
        return _unpickled(_ray().get(task))
    except errors.RayTaskError:
        raise Unreachable(
            f"a node of the Ray cluster cannot import medseq_tf {__version__}; install it on all"
        ) from None
    except errors.RayError:
        return _LOST


def _cancel(pieces: Iterable[_Piece]) -> None:
    """End pieces in flight, unless leaving the cluster has."""
    for piece in pieces:
        if piece.outcome is None and _ray().is_initialized():
            _ray().cancel(piece.task, force=True)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of a Ray cluster; one that this process is connected to already is used as it is.

    Args:
        address: `HOST:PORT`; `auto`: `RAY_ADDRESS` or the cluster that runs on this machine;
            `local`: a cluster on this machine, with all its cores, that ends with the connection.

    Raises:
        InputError: Ray is not installed, there is no such cluster or it does not answer, or it has
            another version of Ray or Python.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False}
    if address != "local":
        settings = {}
        _check_answers(address)
    try:
        with _own_answer_to_sigterm(), _unsaid_command():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"--ray {address}: {text}") from None
    try:
        yield
    finally:
        ray.shutdown()


@functools.cache
def _task() -> Any:
    """Return what Ray runs: one function for all pieces, so that workers go on from one to next."""
    return _ray().remote(_work)


def _ray() -> Any:
    """Import Ray, which then sends nobody statistics, and prints nothing of workers that died."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray: pip install 'medseq_tf[cluster]'") from None
    return ray


def _check_answers(address: str) -> None:
    """Raise an InputError unless a Ray cluster answers there: Ray itself waits for two minutes."""
    import grpc

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
        if address == "auto":
            return
    if not re.fullmatch(r"[^\s/:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
        raise InputError(
            f"--ray {address}: is neither HOST:PORT, such as 10.0.0.1:6379, nor auto or local; to "
            "work from outside of a cluster, start the command on it by `ray job submit`"
        )
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=SECONDS_TO_ANSWER)
        except grpc.RpcError:
            raise InputError(
                f"--ray {address}: no Ray cluster answers there; give the address that `ray start "
                "--head` printed"
            ) from None


@contextlib.contextmanager
def _own_answer_to_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answer = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, answer)


@contextlib.contextmanager
def _unsaid_command() -> Iterator[None]:
    """Keep the words of this process's command, paths of studies, out of Ray's list of jobs.

    The dashboard shows it to all; `ray.init` takes no other name for a job.
    """
    utils: Any = _ray()._private.utils
    its_own = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: "medseq_tf"
    try:
        yield
    finally:
        utils.get_entrypoint_name = its_own


# ------------------------------------------------------------- hosts that work at the same time


def on_hosts(
    address: str,
    count: int,
    function: Callable[[Callable[[], bool]], Result],
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
    meanwhile: Callable[[], None] = lambda: None,
) -> Result:
    """Call a function on several nodes at the same time, told of each other by `TF_CONFIG`.

    Args:
        address: see `connected`.
        count: of nodes, each a host.
        function: picklable; it is given what tells whether to stop.
        cpus: of a node that a host takes.
        gpus: the same.
        stopped: asked every second; once true, the hosts are told so.
        meanwhile: called every second.

    Returns:
        What the chief's function returned.

    Raises:
        InputError: the cluster cannot be used, or has too few such nodes.
        HostLost: a host's process died.
        Exception: what the function raised on a host.
    """
    _check_shares(cpus, gpus)
    ray = _ray()
    with connected(address), _on_a_node_each(address, count, cpus, gpus) as actors:
        asked = [actor.address.remote(__version__) for actor in actors]
        addresses = tuple(_first(["a host"], [_outcome(reply)]) for reply in asked)
        work = pickle.dumps(function)
        hosts = [Host(addresses, place) for place in range(count)]
        tasks = [a.work.remote(h.to_json(), work) for a, h in zip(actors, hosts, strict=True)]
        waiting, told, alone_since = tasks, False, float("inf")
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
            if len(waiting) < count:
                alone_since = min(alone_since, time.monotonic())
            if waiting and time.monotonic() - alone_since > SECONDS_TO_FOLLOW:
                for actor, task in zip(actors, tasks, strict=True):
                    if task not in waiting:  # those that wait for its host end with its process
                        ray.kill(actor)
            meanwhile()
            if stopped() and not told:
                told = True
                for actor in actors:
                    actor.stop.remote()
        return _first([host.name for host in hosts], list(map(_outcome, tasks)))


@contextlib.contextmanager
def _on_a_node_each(address: str, count: int, cpus: float, gpus: float) -> Iterator[list[Any]]:
    """Yield actors for hosts, each on a node of its own."""
    ray = _ray()
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    needs = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    group = placement_group([needs] * count, strategy="STRICT_SPREAD", name="train")
    try:
        if not group.wait(SECONDS_FOR_NODES):
            each = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            raise InputError(
                f"--ray {address}: the cluster has no {count} nodes with {each} free on each; "
                "start more, or ask for fewer hosts"
            )
        kind = ray.remote(_HostActor)
        actors = [
            kind.options(
                name=None,
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=0,
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, place),
            ).remote(gpus > 0)
            for place in range(count)
        ]
        yield actors
        for actor in actors:
            ray.kill(actor)
    finally:
        remove_placement_group(group)  # what is on it ends


def _first(names: list[str], outcomes: list[Outcome]) -> Any:
    """Return the first host's result; or raise what says most of what went wrong on any."""
    errors = [error for _, error in outcomes if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, HostLost)):
        raise error
    if _LOST in outcomes:
        raise HostLost(f"{names[outcomes.index(_LOST)]} has ended; --resume goes on")
    [result] = outcomes[0][0] or []
    return result


class _HostActor:
    """The process of a host, which hears of a wish to stop while it works."""

    def __init__(self, has_gpu: bool):
        self._stopped = False
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

    def address(self, version: str) -> bytes:
        """Return `HOST:PORT`, free just now; a pickled outcome."""
        try:
            _check_version(version)
        except InputError as error:
            return pickle.dumps((None, error))
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return pickle.dumps(([f"{_ray().util.get_node_ip_address()}:{port}"], None))

    def work(self, tf_config: str, function: bytes) -> bytes:
        """Call a function as a host; return the pickled outcome."""
        os.environ[VARIABLE] = tf_config
        try:
            return pickle.dumps(([_unpickled(function)(lambda: self._stopped)], None))
        except Exception as error:
            return pickle.dumps((None, _portable(error)))

    def stop(self) -> None:
        """Ask what works here to stop."""
        self._stopped = True
