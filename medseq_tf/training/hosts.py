"""Several hosts that train copies of one model: one process each, with all of its GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from medseq_tf.errors import HostLost, InputError, Stopped, printable
from medseq_tf.execution.hosts import Host
from medseq_tf.input.sampling import Part
from medseq_tf.recipe import Experiment
from medseq_tf.training.distribution import Inputs, Replicas, of_one_device

SECONDS_TO_CONNECT = 600
"""How long a host waits for the others to be started."""

SECONDS_BETWEEN_LOOKS = 10
"""While a host works alone, as the chief does on validation."""

LOOKS = 3
"""In vain, after which another host is taken for dead."""

SECONDS_TO_END = 10
"""What a host's own error, which says more, has from then on."""

OF_A_LOST_HOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)

CHUNK = 2**15
"""Numbers that are sent at once."""


class Hosts(Replicas):
    """Several hosts, each of which reads its part of every batch.

    They come to the same weights, bit for bit, since gradients are summed over all. What one of
    them decides, such as when to stop, is made known to all; the first, the chief, validates and
    writes. The service by which TensorFlow watches over them ends a sum of theirs within seconds
    when one has died.

    Args:
        host: this one, and the addresses of all.
        devices: how many of its GPUs; None: all that are visible. Without a GPU, it is one device.
        recipe: the recipe, which may be one that a single device trains.

    Raises:
        InputError: the hosts do not find each other, or the recipe does not go with several.
    """

    def __init__(self, host: Host, devices: int | None, recipe: Experiment):
        if setting := of_one_device(recipe):
            raise InputError(f"TF_CONFIG: {setting} takes one device; unset TF_CONFIG")
        self.host, self.chief = host, host.is_chief
        super().__init__(_connected(host, devices))
        self.part = Part(host.place, len(host.addresses))
        self._sums = tf.function(self._sum_of_hosts, autograph=False)

    def _share(self, inputs: Inputs, targets: tf.Tensor) -> tuple[Inputs, tf.Tensor, tf.Tensor]:
        """Return this replica's share of the part that its host has read, which may be empty."""
        studies = tf.shape(targets)[0]
        inputs = {name: _at_least_one(tensor, studies) for name, tensor in inputs.items()}
        inputs["lengths"] = tf.maximum(inputs["lengths"], 1)
        targets = _at_least_one(targets, studies)
        inputs, targets, counts = super()._share(inputs, targets)
        return inputs, targets, counts & (studies > 0)

    # ------------------------------------------------------------------ what hosts tell each other

    def from_chief(self, make: Callable[[], bytes]) -> bytes:
        """Return what the chief makes; an InputError of its is raised on all hosts."""
        if not self.chief:
            text = self._spread(b"")
            if text[:1] == b"!":
                raise InputError(text[1:].decode())
            return text[1:]
        try:
            made = make()
        except InputError as error:
            self._spread(b"!" + str(error).encode())
            raise
        self._spread(b"=" + made)
        return made

    def json_from_chief(self, make: Callable[[], Any]) -> Any:
        """Return what the chief makes, of numbers, texts, lists and dicts."""
        return json.loads(self.from_chief(lambda: json.dumps(make()).encode()))

    def any(self, flag: bool) -> bool:
        """Return whether it is true on any host."""
        return bool(self._sum(np.array([flag], np.float32))[0])

    def alike(self, work: Callable[[], None]) -> None:
        """Do this host's part of some work; if one is stopped meanwhile, all are."""
        stop = None
        try:
            work()
        except Stopped as error:
            stop = error
        if self.any(stop is not None):
            raise stop or Stopped("another host was told to stop")

    def check_same(self, what: str, value: str) -> None:
        """Raise an InputError on all hosts unless all have the value that the chief has."""
        theirs = self.from_chief(value.encode).decode()
        differs = np.zeros(len(self.host.addresses), np.float32)
        differs[self.host.place] = theirs != value
        if (differs := self._sum(differs)).any():
            other = self.host.name_of(int(np.argmax(differs)))
            raise InputError(
                f"{other} has another {what} than {self.host.name_of(0)}; start all hosts with the "
                "same command on the same data"
            )

    def _spread(self, data: bytes) -> bytes:
        """Return the chief's bytes, sent as numbers that every kind of sum leaves exact."""
        data = len(data).to_bytes(8, "big") + data
        received, total = bytearray(), 8
        while len(received) < total:
            piece = data[len(received) : len(received) + 2 * CHUNK] if self.chief else b""
            numbers = np.frombuffer(piece.ljust(2 * CHUNK, b"\0"), np.uint16).astype(np.float32)
            received += self._sum(numbers).astype(np.uint16).tobytes()
            total = 8 + int.from_bytes(received[:8], "big")
        return bytes(received[8:total])

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return self._sums(tf.constant(values)).numpy()

    def _sum_of_hosts(self, values: tf.Tensor) -> tf.Tensor:
        def of_replica(values: tf.Tensor) -> tf.Tensor:
            mine = self.number() % self.here == 0
            return self.sum([tf.identity(values) if mine else tf.zeros_like(values)])[0]

        return self._first(of_replica, values)

    # --------------------------------------------------------------------------- when one has died

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work from beginning to end with all hosts; if one dies, raise a HostLost.

        Where this host is busy with something that is not the others', the process is ended.
        """
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), daemon=True).start()
        try:
            self.check_same("number of devices", str(self.here))
            try:
                yield
            except Stopped:  # as all are, of which the chief may be saving still
                self.any(False)
                raise
            self.any(False)  # all are done
        except OF_A_LOST_HOST as error:
            if "ollective" not in str(error) and "/job:worker" not in str(error):
                raise
            raise HostLost(_has_ended(self._lost(str(error)))) from None
        finally:
            done.set()

    def _lost(self, text: str) -> str:
        """Return the name of the host that an error of TensorFlow's says has died."""
        places = {int(task) for task in re.findall(r"/job:worker(?:/replica:0)?/task:(\d+)", text)}
        places -= {self.host.place}
        return self.host.name_of(min(places)) if places else "another host"

    def _watch(self, done: threading.Event) -> None:
        """End the process when another host is gone and nothing else has ended it."""
        watched = range(1, len(self.host.addresses)) if self.chief else range(1)
        failed = dict.fromkeys(watched, 0)
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            for place in watched:
                failed[place] = 0 if _is_there(self.host.addresses[place]) else failed[place] + 1
            lost = [place for place in watched if failed[place] >= LOOKS]
            if lost and not done.wait(SECONDS_TO_END):
                message = _has_ended(self.host.name_of(lost[0]))
                print(f"medseq-tf: error: {printable(message)}", file=sys.stderr, flush=True)
                os._exit(2)


def _has_ended(name: str) -> str:
    return (
        f"{name} has ended or is out of reach, so the training cannot go on; --resume goes on from "
        "the state that was saved last, with as many hosts as there are then"
    )


def _is_there(address: str) -> bool:
    name, _, port = address.rpartition(":")
    try:
        socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _at_least_one(tensor: tf.Tensor, studies: tf.Tensor) -> tf.Tensor:
    """Return a tensor of studies; where there is none, zeros of the smallest study."""
    smallest = [1, *(1 if size is None else size for size in tensor.shape[1:])]
    return tf.cond(studies > 0, lambda: tensor, lambda: tf.zeros(smallest, tensor.dtype))


def _connected(host: Host, devices: int | None) -> tf.distribute.Strategy:
    """Return the strategy of the hosts, once all are there.

    Raises:
        InputError: they are not, or TensorFlow was in use already.
    """
    gpus = tf.config.list_physical_devices("GPU")
    most = max(len(gpus), 1)
    if devices is not None and not 1 <= devices <= most:
        raise InputError(f"devices = {devices}: expected 1 to {most}, those of this host")
    if not host.is_chief:
        _wait_for(host)
    cluster = tf.train.ClusterSpec({"worker": list(host.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type="worker", task_id=host.place, rpc_layer="grpc"
    )
    try:
        if gpus and devices:
            tf.config.set_visible_devices(gpus[:devices], "GPU")
        _limit_waiting(len(host.addresses))
        with _ended_by_ctrl_c():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError:
        raise InputError(
            "TF_CONFIG: TensorFlow was used in this process before; train in a new process"
        ) from None
    except tf.errors.OpError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise InputError(
            f"TF_CONFIG: {host.name} does not find the others ({reason}); start the same command "
            f"on all within {SECONDS_TO_CONNECT // 60} minutes"
        ) from None


def _limit_waiting(hosts: int) -> None:
    """Let TensorFlow's service wait for the hosts as long as we do, and not for an hour."""
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=SECONDS_TO_CONNECT * 1000,
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=hosts)],
    )


def _wait_for(host: Host) -> None:
    """Wait until the chief can be reached: TensorFlow itself would wait for ever."""
    end = time.monotonic() + SECONDS_TO_CONNECT
    while not _is_there(host.addresses[0]):
        if time.monotonic() > end:
            raise InputError(
                f"TF_CONFIG: {host.name} does not reach {host.name_of(0)}; start the same command "
                f"on all within {SECONDS_TO_CONNECT // 60} minutes"
            )
        time.sleep(0.2)


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, which nothing else does while TensorFlow connects.

    Its service takes SIGTERM for itself; afterwards the answers are those of before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answers: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, answer in answers.items():
            if answer is not None:  # one that Python knows
                signal.signal(number, answer)
